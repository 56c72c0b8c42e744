//! Landlock: no file is opened, made or removed any more, no socket reaches out.
//!
//! A ruleset that handles a kind of access and has no rule forbids it altogether. See the kernel's
//! *Landlock: unprivileged access control*.

#![allow(unsafe_code)] // No safe wrapper for these system calls is at hand.

use super::{Entered, Missing, SandboxError};
use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// `struct landlock_ruleset_attr`, as of ABI 6. Older kernels take the unknown part if it is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ruleset {
    /// Execute, write and read files, list and change folders; 13 kinds in ABI 1.
    files: u64,
    /// Bind and connect TCP; since ABI 4.
    network: u64,
    /// Abstract Unix sockets and signals beyond the process; since ABI 6.
    scoped: u64,
}

/// Asks for the version instead of making a ruleset.
const VERSION: u64 = 1;

/// All that a kernel with this version of Landlock can forbid.
fn ruleset(version: i64) -> Ruleset {
    let kinds = match version {
        ..2 => 13,
        2 => 14,     // moving and linking between folders
        3..=4 => 15, // truncating
        5.. => 16,   // controls of devices
    };
    Ruleset {
        files: (1 << kinds) - 1,
        network: if version >= 4 { 3 } else { 0 },
        scoped: if version >= 6 { 3 } else { 0 },
    }
}

/// What a kernel with this version cannot forbid.
fn lacks(version: i64) -> Option<&'static str> {
    match version {
        ..3 => Some("truncation, TCP, device controls, signals and abstract sockets"),
        3 => Some("TCP, device controls, signals and abstract sockets"),
        4 => Some("device controls, signals and abstract sockets"),
        5 => Some("signals and abstract sockets"),
        6.. => None,
    }
}

/// Forbids what the kernel's Landlock can forbid. What is open stays usable. `no_new_privs` is on.
pub(super) fn forbid(entered: &mut Entered) -> Result<(), SandboxError> {
    let version = match create(std::ptr::null(), 0, VERSION) {
        Ok(version) => version,
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => {
                    "Landlock is switched off on the host: start its kernel with 'lsm=landlock,…'"
                }
                Some(libc::ENOSYS) => {
                    "the host's kernel has no Landlock: use one of version 5.13 or later"
                }
                _ => {
                    return Err(SandboxError::Refused {
                        what: "Landlock",
                        source: error,
                    });
                }
            };
            entered.missing.push(Missing(why.to_owned()));
            return Ok(());
        }
    };
    let ruleset = ruleset(version);
    create(&raw const ruleset, size_of::<Ruleset>(), 0)
        .and_then(restrict_self)
        .map_err(|source| SandboxError::Refused {
            what: "Landlock's rules",
            source,
        })?;
    let holds = format!("no file is opened (Landlock ABI {version})");
    entered.holds.push(holds);
    if let Some(lacks) = lacks(version) {
        entered.missing.push(Missing(format!(
            "the host's Landlock (ABI {version}) knows nothing of {lacks}"
        )));
    }
    Ok(())
}

fn create(ruleset: *const Ruleset, size: usize, flags: u64) -> io::Result<i64> {
    // SAFETY: the kernel reads `size` bytes of the ruleset, which is none or all of it.
    match unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ruleset, size, flags) } {
        result if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn restrict_self(ruleset: i64) -> io::Result<()> {
    // SAFETY: the descriptor is new and nobody else's.
    let _closed_afterwards = unsafe { OwnedFd::from_raw_fd(ruleset as i32) };
    // SAFETY: takes numbers only.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_all_that_it_has_and_nothing_else() {
        let parts = |version| {
            let Ruleset {
                files,
                network,
                scoped,
            } = ruleset(version);
            (files, network, scoped)
        };
        assert_eq!(parts(1), (0x1fff, 0, 0));
        assert_eq!(parts(2), (0x3fff, 0, 0));
        assert_eq!(parts(3), (0x7fff, 0, 0));
        assert_eq!(parts(4), (0x7fff, 3, 0));
        assert_eq!(parts(5), (0xffff, 3, 0));
        for version in [6, 7, 100] {
            assert_eq!(parts(version), (0xffff, 3, 3));
            assert_eq!(lacks(version), None);
        }
        assert!((1..6).all(|version| lacks(version).is_some()));
    }
}
