//! libslirp behind a safe face: a TCP/IP stack that takes a guest's frames and makes ordinary
//! sockets of them.
//!
//! Its own DHCP and TFTP servers and its protocol emulations are switched off. The caller runs
//! the loop: [`Slirp::fill`] says what to poll for, [`Slirp::dispatch`] acts on what was found.

#![allow(unsafe_code)] // A C library is called, and calls back.

mod sys;

use crate::{
    config::{Forward, Network, Protocol},
    frame::SHORTEST,
};
use libc::{c_char, c_int, c_void, in_addr, in6_addr, pollfd, size_t, ssize_t};
use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, CString},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    ptr::{self, NonNull},
    time::{Duration, Instant},
};

/// What the stack needs from its surroundings.
pub trait Surroundings {
    /// Takes a frame for the guest.
    fn send(&self, frame: &[u8]);
    /// Takes note of a guest's misbehaviour.
    fn guest_error(&self, text: &str);
}

/// A stack with one guest.
pub struct Slirp {
    stack: NonNull<sys::Slirp>,
    // The library keeps pointers to both.
    shared: Box<Shared>,
    _callbacks: Box<sys::SlirpCb>,
}

struct Shared {
    surroundings: Box<dyn Surroundings>,
    start: Instant,
    timers: RefCell<Vec<Option<Timer>>>,
}

#[derive(Clone, Copy)]
struct Timer {
    id: c_int,
    argument: *mut c_void,
    /// Milliseconds on the stack's clock.
    expires: Option<i64>,
}

impl Shared {
    fn nanoseconds(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }
}

impl Slirp {
    /// A stack for `network`. A `restricted` one reaches nothing outside; without
    /// `host_loopback` the gateway's address does not lead to the host's loopback addresses.
    ///
    /// # Errors
    /// If the library refuses the configuration.
    pub fn new(
        network: &Network,
        restricted: bool,
        host_loopback: bool,
        surroundings: Box<dyn Surroundings>,
    ) -> io::Result<Self> {
        let shared = Box::new(Shared {
            surroundings,
            start: Instant::now(),
            timers: RefCell::new(Vec::new()),
        });
        let callbacks = Box::new(callbacks());
        let host = |low: u128| {
            let prefix = network.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED);
            in6(Ipv6Addr::from(u128::from(prefix) | low))
        };
        let config = sys::SlirpConfig {
            version: sys::CONFIG_VERSION,
            restricted: restricted.into(),
            in_enabled: true,
            vnetwork: in4(network.subnet.address()),
            vnetmask: in4(network.mask()),
            vhost: in4(network.gateway),
            in6_enabled: network.ipv6.is_some(),
            vprefix_addr6: host(0),
            vprefix_len: 64,
            vhost6: host(2),
            vhostname: ptr::null(),
            tftp_server_name: ptr::null(),
            tftp_path: ptr::null(),
            bootfile: ptr::null(),
            vdhcp_start: in4(network.guest),
            vnameserver: in4(network.dns),
            vnameserver6: host(3),
            vdnssearch: ptr::null_mut(),
            vdomainname: ptr::null(),
            if_mtu: network.mtu.into(),
            if_mru: network.mtu.into(),
            disable_host_loopback: !host_loopback,
            enable_emu: false,
            outbound_addr: ptr::null_mut(),
            outbound_addr6: ptr::null_mut(),
            disable_dns: false,
            disable_dhcp: true,
        };
        let opaque = ptr::from_ref::<Shared>(&shared).cast_mut().cast();
        // SAFETY: the configuration is whole and read during the call only; callbacks and
        // `shared` are on the heap and live until `slirp_cleanup`.
        let stack = unsafe { sys::slirp_new(&raw const config, &raw const *callbacks, opaque) };
        let stack = NonNull::new(stack)
            .ok_or_else(|| io::Error::other("libslirp refused the configuration"))?;
        Ok(Self {
            stack,
            shared,
            _callbacks: callbacks,
        })
    }

    /// The library's version.
    #[must_use]
    pub fn version() -> String {
        // SAFETY: the library returns a constant string.
        let text = unsafe { CStr::from_ptr(sys::slirp_version_string()) };
        text.to_string_lossy().into_owned()
    }

    /// Takes a frame from the guest. Short ones are filled up, as on a wire: the library reads
    /// some headers without regard to their length.
    pub fn input(&mut self, frame: &[u8]) {
        let mut padded = [0; SHORTEST];
        let frame = if frame.len() < SHORTEST {
            padded[..frame.len()].copy_from_slice(frame);
            &padded[..]
        } else {
            frame
        };
        let Ok(length) = c_int::try_from(frame.len()) else {
            return;
        };
        // SAFETY: the library reads `length` bytes during the call.
        unsafe { sys::slirp_input(self.stack.as_ptr(), frame.as_ptr(), length) };
    }

    /// Lets a port of the host lead to the guest.
    ///
    /// # Errors
    /// If the host's port cannot be opened.
    pub fn forward(&mut self, forward: &Forward) -> io::Result<()> {
        let (host, host_length) = socket_address(forward.host);
        let (guest, guest_length) = socket_address(forward.guest);
        let mut flags = 0;
        if forward.protocol == Protocol::Udp {
            flags |= sys::HOSTFWD_UDP;
        }
        if forward.host.is_ipv6() {
            flags |= sys::HOSTFWD_V6ONLY;
        }
        // SAFETY: both addresses are as long as is said and read during the call only.
        let result = unsafe {
            sys::slirp_add_hostxfwd(
                self.stack.as_ptr(),
                (&raw const host).cast(),
                host_length,
                (&raw const guest).cast(),
                guest_length,
                flags,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Lets connections of the guest to `address` lead to the Unix socket `path`.
    ///
    /// # Errors
    /// If the address is not free, or the path holds a zero byte.
    pub fn service(&mut self, address: SocketAddrV4, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut guest = in4(*address.ip());
        // SAFETY: the library copies the path.
        let result = unsafe {
            sys::slirp_add_unix(
                self.stack.as_ptr(),
                path.as_ptr(),
                &raw mut guest,
                address.port().into(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::other("the address is not free in this network"))
        }
    }

    /// Appends what is to be polled for to `polled`, and shortens `timeout` to when the stack
    /// has something to do by itself.
    pub fn fill(&mut self, polled: &mut Vec<pollfd>, timeout: &mut Duration) {
        let mut milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let opaque = ptr::from_mut::<Vec<pollfd>>(polled).cast();
        // SAFETY: `add_poll` is called during the call only, with the vector.
        unsafe {
            sys::slirp_pollfds_fill(self.stack.as_ptr(), &raw mut milliseconds, add_poll, opaque);
        }
        *timeout = (*timeout).min(Duration::from_millis(milliseconds.into()));
        if let Some(expires) = self.next_timer() {
            let left = expires.saturating_sub(self.shared.nanoseconds() / 1_000_000);
            *timeout = (*timeout).min(Duration::from_millis(u64::try_from(left).unwrap_or(0)));
        }
    }

    /// Acts on what poll found; `polled` is what [`Slirp::fill`] was given last.
    pub fn dispatch(&mut self, polled: &[pollfd]) {
        let mut found: &[pollfd] = polled;
        let opaque = ptr::from_mut::<&[pollfd]>(&mut found).cast();
        // SAFETY: `events_of` is called during the call only, with the slice.
        unsafe { sys::slirp_pollfds_poll(self.stack.as_ptr(), 0, events_of, opaque) };
        self.run_timers();
    }

    fn next_timer(&self) -> Option<i64> {
        let timers = self.shared.timers.borrow();
        timers
            .iter()
            .flatten()
            .filter_map(|timer| timer.expires)
            .min()
    }

    fn run_timers(&mut self) {
        let now = self.shared.nanoseconds() / 1_000_000;
        let due: Vec<Timer> = {
            let mut timers = self.shared.timers.borrow_mut();
            let due = timers.iter_mut().flatten().filter_map(|timer| {
                timer.expires.filter(|expires| *expires <= now)?;
                timer.expires = None;
                Some(*timer)
            });
            due.collect()
        };
        for timer in due {
            // SAFETY: id and argument are what the library gave when it made the timer.
            unsafe { sys::slirp_handle_timer(self.stack.as_ptr(), timer.id, timer.argument) };
        }
    }
}

impl Drop for Slirp {
    fn drop(&mut self) {
        // SAFETY: made by `slirp_new`, cleaned up once; what it points to still lives.
        unsafe { sys::slirp_cleanup(self.stack.as_ptr()) };
    }
}

fn in4(address: Ipv4Addr) -> in_addr {
    in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}

fn in6(address: Ipv6Addr) -> in6_addr {
    in6_addr {
        s6_addr: address.octets(),
    }
}

/// An address as the C library has it, and its length.
fn socket_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(address) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: in4(*address.ip()),
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is large enough and aligned for every kind of address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(value) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: in6(*address.ip()),
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(value) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

fn callbacks() -> sys::SlirpCb {
    sys::SlirpCb {
        send_packet,
        guest_error,
        clock_get_ns,
        timer_new: None,
        timer_free,
        timer_mod,
        register_poll_fd: poll_fd_unused,
        unregister_poll_fd: poll_fd_unused,
        notify,
        init_completed: None,
        timer_new_opaque: Some(timer_new),
    }
}

/// What every callback is given.
///
/// # Safety
/// `opaque` must come from [`Slirp::new`], and the stack must live.
unsafe fn shared<'a>(opaque: *mut c_void) -> &'a Shared {
    // SAFETY: the caller's promise; only shared references to it are ever made.
    unsafe { &*opaque.cast::<Shared>() }
}

unsafe extern "C" fn send_packet(
    frame: *const c_void,
    length: size_t,
    opaque: *mut c_void,
) -> ssize_t {
    // SAFETY: the library gives a frame of that length, and what it was given.
    let (shared, frame) = unsafe {
        (
            shared(opaque),
            std::slice::from_raw_parts(frame.cast::<u8>(), length),
        )
    };
    shared.surroundings.send(frame);
    length as ssize_t
}

unsafe extern "C" fn guest_error(text: *const c_char, opaque: *mut c_void) {
    // SAFETY: the library gives a C string, and what it was given.
    let (shared, text) = unsafe { (shared(opaque), CStr::from_ptr(text)) };
    shared.surroundings.guest_error(&text.to_string_lossy());
}

unsafe extern "C" fn clock_get_ns(opaque: *mut c_void) -> i64 {
    // SAFETY: the library gives what it was given.
    unsafe { shared(opaque) }.nanoseconds()
}

/// Timers are known to the library by their place in the table, from 1.
unsafe extern "C" fn timer_new(
    id: c_int,
    argument: *mut c_void,
    opaque: *mut c_void,
) -> *mut c_void {
    // SAFETY: the library gives what it was given.
    let mut timers = unsafe { shared(opaque) }.timers.borrow_mut();
    timers.push(Some(Timer {
        id,
        argument,
        expires: None,
    }));
    ptr::without_provenance_mut(timers.len())
}

unsafe extern "C" fn timer_free(timer: *mut c_void, opaque: *mut c_void) {
    // SAFETY: the library gives what it was given.
    let mut timers = unsafe { shared(opaque) }.timers.borrow_mut();
    if let Some(slot) = timers.get_mut(timer.addr().wrapping_sub(1)) {
        *slot = None;
    }
}

unsafe extern "C" fn timer_mod(timer: *mut c_void, expires: i64, opaque: *mut c_void) {
    // SAFETY: the library gives what it was given.
    let mut timers = unsafe { shared(opaque) }.timers.borrow_mut();
    if let Some(Some(timer)) = timers.get_mut(timer.addr().wrapping_sub(1)) {
        timer.expires = Some(expires);
    }
}

unsafe extern "C" fn poll_fd_unused(_fd: c_int, _opaque: *mut c_void) {}

unsafe extern "C" fn notify(_opaque: *mut c_void) {}

const EVENTS: [(c_int, i16); 5] = [
    (sys::POLL_IN, libc::POLLIN),
    (sys::POLL_OUT, libc::POLLOUT),
    (sys::POLL_PRI, libc::POLLPRI),
    (sys::POLL_ERR, libc::POLLERR),
    (sys::POLL_HUP, libc::POLLHUP),
];

unsafe extern "C" fn add_poll(fd: c_int, events: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `fill` gives its vector, which nobody else uses during the call.
    let polled = unsafe { &mut *opaque.cast::<Vec<pollfd>>() };
    let wanted = EVENTS.iter().filter(|(slirp, _)| events & slirp != 0);
    polled.push(pollfd {
        fd,
        events: wanted.fold(0, |all, (_, poll)| all | poll),
        revents: 0,
    });
    c_int::try_from(polled.len() - 1).unwrap_or(-1)
}

unsafe extern "C" fn events_of(index: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `dispatch` gives its slice.
    let polled = unsafe { *opaque.cast::<&[pollfd]>() };
    let found = usize::try_from(index)
        .ok()
        .and_then(|index| polled.get(index));
    let found = found.map_or(0, |polled| polled.revents);
    EVENTS
        .iter()
        .filter(|(_, poll)| found & poll != 0)
        .fold(0, |all, (slirp, _)| all | slirp)
}

/// Counts what the library complains of.
#[derive(Debug, Default)]
pub struct Complaints(Cell<u64>);

impl Complaints {
    /// One more; tells whether it is worth a message (the first ones, then ever fewer).
    pub fn count(&self) -> bool {
        self.0.set(self.0.get().saturating_add(1));
        self.0.get().is_power_of_two()
    }

    /// How many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.get()
    }
}
