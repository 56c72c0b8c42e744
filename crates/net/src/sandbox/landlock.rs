//! Landlock: which files can be opened. See the kernel's *Landlock: unprivileged access control*.

#![allow(unsafe_code)] // System calls without a wrapper.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

pub(super) const READ_FILE: u64 = 1 << 2;
pub(super) const READ_FOLDER: u64 = 1 << 3;
/// Connecting to Unix sockets by name; since ABI 9.
pub(super) const RESOLVE_UNIX: u64 = 1 << 16;

/// Asks for the version instead of making a ruleset.
const VERSION: u64 = 1;
const RULE_PATH_BENEATH: u64 = 1;

/// `struct landlock_ruleset_attr`, as of ABI 6.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// All kinds of access to files that a kernel with this version can forbid.
fn kinds(version: i64) -> u64 {
    let count = match version {
        ..2 => 13,
        2 => 14,
        3..=4 => 15,
        5..=8 => 16,
        9.. => 17,
    };
    (1 << count) - 1
}

/// Forbids every access to files but `allowed`: kinds of access beneath folders or to files.
/// Paths that are not there are passed over. Signals and abstract sockets beyond the process go
/// too, where the kernel can forbid that. Gives the version, `None` where there is no Landlock.
pub(super) fn restrict(allowed: &[(&Path, u64)]) -> io::Result<Option<i64>> {
    let version = match create(std::ptr::null(), 0, VERSION) {
        Ok(version) => version,
        Err(error) => {
            return match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(None),
                _ => Err(error),
            };
        }
    };
    let handled = kinds(version);
    let ruleset = Ruleset {
        files: handled,
        network: 0,
        scoped: if version >= 6 { 3 } else { 0 },
    };
    // Older kernels take the part that they do not know if it is zero.
    let ruleset = create(&raw const ruleset, size_of::<Ruleset>(), 0)?;
    // SAFETY: the descriptor is new and nobody else's.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset as i32) };
    for (path, access) in allowed {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let Ok(parent) = rustix::fs::open(*path, flags, rustix::fs::Mode::empty()) else {
            continue;
        };
        let mut access = access & handled;
        if !path.is_dir() {
            access &= !READ_FOLDER;
        }
        if access == 0 {
            continue; // The kernel does not restrict it, and refuses empty rules.
        }
        let rule = PathBeneath {
            allowed: access,
            parent: parent.as_raw_fd(),
        };
        // SAFETY: the kernel reads the rule; the descriptors are open.
        check(unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                ruleset.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        })?;
    }
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    Ok(Some(version))
}

fn create(ruleset: *const Ruleset, size: usize, flags: u64) -> io::Result<i64> {
    // SAFETY: the kernel reads `size` bytes of the ruleset, which is none or all of it.
    check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ruleset, size, flags) })
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
