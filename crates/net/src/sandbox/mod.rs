//! What the process takes away from itself before it reads the first frame.
//!
//! * Limits: no core dumps, a bound for descriptors and memory.
//! * The user: the one that the description names; root without one loses its capabilities.
//! * `no_new_privs`.
//! * Landlock: reading below the TFTP folder and of the resolver's configuration, connecting to
//!   the sockets of the description's services (from ABI 9 on), nothing else of the file system.
//!   Older kernels enforce what they know.
//! * seccomp: an allow-list. No new port can be opened, no program run, no file opened for
//!   writing. A restricted network cannot make an Internet socket at all.

mod filter;
mod landlock;

use crate::config::{Description, User};
use filter::{Condition, Filter};
use rustix::{
    process::{DumpableBehavior, Gid, Resource, Rlimit, Uid},
    thread::{CapabilitySet, CapabilitySets},
};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Most descriptors: connections of the guest, most of all.
const DESCRIPTORS: u64 = 4096;
/// Most bytes of heap.
const MEMORY: u64 = 1 << 30;
const RESOLVER: &str = "/etc/resolv.conf";

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox cannot be closed: {step}")]
pub struct SandboxError {
    /// The step that failed.
    step: &'static str,
    /// What the kernel said.
    source: io::Error,
}

/// Confines the calling thread, which is the process's only one.
///
/// # Errors
/// [`SandboxError`]; the process must not go on then. A kernel without Landlock is no error.
pub fn close(description: &Description) -> Result<(), SandboxError> {
    step("limits", limits())?;
    step("user", user(description.user))?;
    step(
        "no_new_privs",
        rustix::thread::set_no_new_privs(true).map_err(io::Error::from),
    )?;
    match step("Landlock", files(description))? {
        Some(version) => tracing::debug!(version, "Landlock"),
        None => tracing::warn!(
            "the host has no Landlock: files are shut off by their owners' rights only"
        ),
    }
    step("seccomp", filter(description).apply())
}

fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, SandboxError> {
    result.map_err(|source| SandboxError { step, source })
}

fn limits() -> io::Result<()> {
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Data, MEMORY),
    ] {
        let now = rustix::process::getrlimit(resource);
        // What is lower already stays as it is.
        let most = now.maximum.map_or(most, |now| now.min(most));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        rustix::process::setrlimit(resource, limit)?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn user(user: Option<User>) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if let Some(User { uid, gid }) = user {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    } else {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none)?;
    }
    Ok(())
}

fn files(description: &Description) -> io::Result<Option<i64>> {
    let reading = landlock::READ_FILE | landlock::READ_FOLDER;
    let root = description
        .tftp
        .as_ref()
        .and_then(|tftp| tftp.root.as_ref());
    let mut allowed: Vec<(&Path, u64)> = root
        .map(|root| (root.as_path(), reading))
        .into_iter()
        .collect();
    let resolver = resolver().filter(|_| !description.restricted);
    if let Some(resolver) = &resolver {
        allowed.push((resolver, reading));
    }
    for service in &description.services {
        // The folder: whoever gives the service may make its socket anew.
        if let Some(folder) = service.unix.parent() {
            allowed.push((folder, landlock::RESOLVE_UNIX));
        }
    }
    landlock::restrict(&allowed)
}

/// The resolver's configuration: the file, and where it is a link to somewhere else its folder,
/// in which network managers replace it. `/etc` itself is not opened up.
fn resolver() -> Option<PathBuf> {
    let file = Path::new(RESOLVER).canonicalize().ok()?;
    match file.parent() {
        Some(folder) if folder != Path::new("/etc") => Some(folder.to_owned()),
        _ => Some(file),
    }
}

/// System calls that are harmless with any arguments.
const ALWAYS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpeername,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    // Its flags lie in memory, where a filter cannot look; Landlock does.
    libc::SYS_openat2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_tgkill,
    libc::SYS_time,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_poll,
    libc::SYS_stat,
];

/// Bits of `open` that change something.
const WRITING: libc::c_int =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE) & !libc::O_DIRECTORY;
/// The part of a socket's type that is not a flag.
const SOCKET_TYPE: libc::c_int = 0xf;

fn filter(description: &Description) -> Filter {
    let mut filter = Filter::default();
    for call in ALWAYS {
        filter.allow(*call, &[]);
    }
    let mut socket = |family: libc::c_int, kind: libc::c_int| {
        let conditions = [is(0, -1, family), is(1, SOCKET_TYPE, kind)];
        filter.allow(libc::SYS_socket, &conditions);
    };
    if !description.restricted {
        for family in [libc::AF_INET, libc::AF_INET6] {
            socket(family, libc::SOCK_STREAM);
            socket(family, libc::SOCK_DGRAM);
        }
    }
    if !description.services.is_empty() {
        socket(libc::AF_UNIX, libc::SOCK_STREAM);
    }
    filter.allow(libc::SYS_openat, &[is(2, WRITING, 0)]);
    filter.allow(libc::SYS_mmap, &[is(2, libc::PROT_EXEC, 0)]);
    filter.allow(libc::SYS_mprotect, &[is(2, libc::PROT_EXEC, 0)]);
    filter.allow(libc::SYS_ioctl, &[is(1, -1, libc::FIONREAD as libc::c_int)]);
    filter
}

/// Those bits of an argument that are in the mask have the value.
fn is(argument: u8, mask: libc::c_int, value: libc::c_int) -> Condition {
    Condition {
        argument,
        mask: mask.cast_unsigned(),
        value: value.cast_unsigned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Service, Tftp};
    use std::{
        fs::File,
        io::ErrorKind,
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::net::{UnixListener, UnixStream},
        process::Command,
    };

    const CHILD: &str = "CENOTE_TEST_SANDBOX";

    /// Runs this test again in a process of its own, which is the one that is confined.
    fn in_child(test: &str, folder: &Path) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, folder)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "the child ran nothing: {text}");
    }

    fn prepare() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("root")).unwrap();
        std::fs::write(folder.path().join("root/file"), "served").unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        folder
    }

    fn description(folder: &Path) -> Description {
        let mut description = Description::new(3);
        description.tftp = Some(Tftp {
            root: Some(folder.join("root")),
            ..Tftp::default()
        });
        description
    }

    #[track_caller]
    fn denied<T>(result: io::Result<T>) {
        assert_eq!(
            result.err().map(|error| error.kind()),
            Some(ErrorKind::PermissionDenied)
        );
    }

    #[test]
    fn code_in_the_processs_place_is_confined() {
        let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else {
            let folder = prepare();
            return in_child(
                "sandbox::tests::code_in_the_processs_place_is_confined",
                folder.path(),
            );
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        close(&description(&folder)).unwrap();
        // What the network needs goes on.
        assert_eq!(
            std::fs::read_to_string(folder.join("root/file")).unwrap(),
            "served"
        );
        TcpStream::connect(address).unwrap();
        listener.accept().unwrap();
        File::open(RESOLVER).unwrap();
        // Nothing else does.
        denied(File::open(folder.join("secret")));
        denied(File::open("/etc/passwd"));
        denied(File::create(folder.join("root/new")));
        denied(File::options().write(true).open(folder.join("root/file")));
        denied(std::fs::remove_file(folder.join("root/file")));
        denied(std::fs::read_dir("/"));
        denied(TcpListener::bind("127.0.0.1:0"));
        denied(UdpSocket::bind("127.0.0.1:0"));
        denied(UnixStream::connect(folder.join("x")));
        denied(Command::new("/bin/true").status());
        denied(rustix::process::setsid().map_err(io::Error::from));
    }

    #[test]
    fn a_restricted_network_cannot_make_internet_sockets() {
        let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else {
            let folder = prepare();
            return in_child(
                "sandbox::tests::a_restricted_network_cannot_make_internet_sockets",
                folder.path(),
            );
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut description = description(&folder);
        let _service = UnixListener::bind(folder.join("service")).unwrap();
        description.restricted = true;
        description.services.push(Service {
            address: "10.0.2.4:80".parse().unwrap(),
            unix: folder.join("service"),
        });
        close(&description).unwrap();
        denied(TcpStream::connect(address));
        denied(File::open(RESOLVER));
        UnixStream::connect(folder.join("service")).unwrap();
    }
}
