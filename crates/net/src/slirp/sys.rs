//! The part of libslirp's C interface (`libslirp.h`, version 4.7) that is used here.
//!
//! Declared by hand: the published bindings stop at an older version of the structures and lack
//! the call that joins a guest's connection to a Unix socket. A test compares the layouts with
//! the installed header.

use libc::{
    c_char, c_int, c_void, in_addr, in6_addr, size_t, sockaddr, sockaddr_in, sockaddr_in6,
    socklen_t, ssize_t,
};

/// Version of [`SlirpConfig`] that is filled in.
pub(super) const CONFIG_VERSION: u32 = 4;

pub(super) const POLL_IN: c_int = 1;
pub(super) const POLL_OUT: c_int = 2;
pub(super) const POLL_PRI: c_int = 4;
pub(super) const POLL_ERR: c_int = 8;
pub(super) const POLL_HUP: c_int = 16;

/// Flag of [`slirp_add_hostxfwd`]: forward UDP, not TCP.
pub(super) const HOSTFWD_UDP: c_int = 1;
/// Flag of [`slirp_add_hostxfwd`]: an IPv6 address takes no IPv4 connections.
pub(super) const HOSTFWD_V6ONLY: c_int = 2;

/// An instance; only ever seen through a pointer.
#[repr(C)]
pub(super) struct Slirp {
    _opaque: [u8; 0],
}

pub(super) type AddPoll =
    unsafe extern "C" fn(fd: c_int, events: c_int, opaque: *mut c_void) -> c_int;
pub(super) type GetEvents = unsafe extern "C" fn(index: c_int, opaque: *mut c_void) -> c_int;

/// `SlirpCb`.
#[repr(C)]
pub(super) struct SlirpCb {
    pub(super) send_packet: unsafe extern "C" fn(*const c_void, size_t, *mut c_void) -> ssize_t,
    pub(super) guest_error: unsafe extern "C" fn(*const c_char, *mut c_void),
    pub(super) clock_get_ns: unsafe extern "C" fn(*mut c_void) -> i64,
    pub(super) timer_new: Option<
        unsafe extern "C" fn(
            Option<unsafe extern "C" fn(*mut c_void)>,
            *mut c_void,
            *mut c_void,
        ) -> *mut c_void,
    >,
    pub(super) timer_free: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pub(super) timer_mod: unsafe extern "C" fn(*mut c_void, i64, *mut c_void),
    pub(super) register_poll_fd: unsafe extern "C" fn(c_int, *mut c_void),
    pub(super) unregister_poll_fd: unsafe extern "C" fn(c_int, *mut c_void),
    pub(super) notify: unsafe extern "C" fn(*mut c_void),
    pub(super) init_completed: Option<unsafe extern "C" fn(*mut Slirp, *mut c_void)>,
    pub(super) timer_new_opaque:
        Option<unsafe extern "C" fn(c_int, *mut c_void, *mut c_void) -> *mut c_void>,
}

/// `SlirpConfig`.
#[repr(C)]
pub(super) struct SlirpConfig {
    pub(super) version: u32,
    pub(super) restricted: c_int,
    pub(super) in_enabled: bool,
    pub(super) vnetwork: in_addr,
    pub(super) vnetmask: in_addr,
    pub(super) vhost: in_addr,
    pub(super) in6_enabled: bool,
    pub(super) vprefix_addr6: in6_addr,
    pub(super) vprefix_len: u8,
    pub(super) vhost6: in6_addr,
    pub(super) vhostname: *const c_char,
    pub(super) tftp_server_name: *const c_char,
    pub(super) tftp_path: *const c_char,
    pub(super) bootfile: *const c_char,
    pub(super) vdhcp_start: in_addr,
    pub(super) vnameserver: in_addr,
    pub(super) vnameserver6: in6_addr,
    pub(super) vdnssearch: *mut *const c_char,
    pub(super) vdomainname: *const c_char,
    pub(super) if_mtu: size_t,
    pub(super) if_mru: size_t,
    pub(super) disable_host_loopback: bool,
    pub(super) enable_emu: bool,
    pub(super) outbound_addr: *mut sockaddr_in,
    pub(super) outbound_addr6: *mut sockaddr_in6,
    pub(super) disable_dns: bool,
    pub(super) disable_dhcp: bool,
}

unsafe extern "C" {
    pub(super) fn slirp_new(
        config: *const SlirpConfig,
        callbacks: *const SlirpCb,
        opaque: *mut c_void,
    ) -> *mut Slirp;
    pub(super) fn slirp_cleanup(slirp: *mut Slirp);
    pub(super) fn slirp_pollfds_fill(
        slirp: *mut Slirp,
        timeout: *mut u32,
        add_poll: AddPoll,
        opaque: *mut c_void,
    );
    pub(super) fn slirp_pollfds_poll(
        slirp: *mut Slirp,
        select_error: c_int,
        get_events: GetEvents,
        opaque: *mut c_void,
    );
    pub(super) fn slirp_input(slirp: *mut Slirp, packet: *const u8, length: c_int);
    pub(super) fn slirp_handle_timer(slirp: *mut Slirp, id: c_int, cb_opaque: *mut c_void);
    pub(super) fn slirp_add_hostxfwd(
        slirp: *mut Slirp,
        host: *const sockaddr,
        host_length: socklen_t,
        guest: *const sockaddr,
        guest_length: socklen_t,
        flags: c_int,
    ) -> c_int;
    pub(super) fn slirp_add_unix(
        slirp: *mut Slirp,
        path: *const c_char,
        guest: *mut in_addr,
        port: c_int,
    ) -> c_int;
    pub(super) fn slirp_version_string() -> *const c_char;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fmt::Write as _, mem::offset_of, process::Command};

    /// Prints what a C compiler makes of the installed header.
    fn from_header(expressions: &[String]) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let mut text =
            "#include <stdio.h>\n#include <stddef.h>\n#include <libslirp.h>\nint main(void) {\n"
                .to_owned();
        for expression in expressions {
            writeln!(text, "printf(\"%zu\\n\", (size_t)({expression}));").unwrap();
        }
        text.push_str("return 0; }\n");
        let source = folder.path().join("layout.c");
        std::fs::write(&source, text).unwrap();
        let flags = Command::new("pkg-config")
            .args(["--cflags", "slirp"])
            .output()
            .unwrap();
        let program = folder.path().join("layout");
        let status = Command::new("cc")
            .args(String::from_utf8(flags.stdout).unwrap().split_whitespace())
            .arg("-o")
            .args([&program, &source])
            .status()
            .unwrap();
        assert!(status.success());
        let printed = Command::new(program).output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        printed.lines().map(|line| line.parse().unwrap()).collect()
    }

    #[test]
    fn layouts_are_those_of_the_installed_header() {
        let mut expressions = vec![
            "sizeof(SlirpConfig)".to_owned(),
            "sizeof(SlirpCb)".to_owned(),
        ];
        let mut ours = vec![size_of::<SlirpConfig>(), size_of::<SlirpCb>()];
        macro_rules! fields {
            ($type:ident: $($field:ident)*) => {$(
                expressions.push(format!("offsetof({}, {})", stringify!($type), stringify!($field)));
                ours.push(offset_of!($type, $field));
            )*};
        }
        fields!(SlirpConfig: version restricted in_enabled vnetwork vnetmask vhost in6_enabled
            vprefix_addr6 vprefix_len vhost6 vhostname tftp_server_name tftp_path bootfile
            vdhcp_start vnameserver vnameserver6 vdnssearch vdomainname if_mtu if_mru
            disable_host_loopback enable_emu outbound_addr outbound_addr6 disable_dns disable_dhcp);
        fields!(SlirpCb: send_packet guest_error clock_get_ns timer_new timer_free timer_mod
            register_poll_fd unregister_poll_fd notify init_completed timer_new_opaque);
        for (name, value) in [
            ("SLIRP_POLL_IN", POLL_IN),
            ("SLIRP_POLL_OUT", POLL_OUT),
            ("SLIRP_POLL_PRI", POLL_PRI),
            ("SLIRP_POLL_ERR", POLL_ERR),
            ("SLIRP_POLL_HUP", POLL_HUP),
            ("SLIRP_HOSTFWD_UDP", HOSTFWD_UDP),
            ("SLIRP_HOSTFWD_V6ONLY", HOSTFWD_V6ONLY),
        ] {
            expressions.push(name.to_owned());
            ours.push(value as usize);
        }
        assert_eq!(from_header(&expressions), ours, "{expressions:?}");
    }
}
