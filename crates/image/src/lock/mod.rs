//! Image locks that QEMU and Cenote both respect.
//!
//! QEMU (`block/file-posix.c`) says with shared locks on single bytes of the
//! file what it does with an image: byte `100 + n` is locked by whoever uses
//! permission `n`, byte `200 + n` by whoever cannot bear that others use it.
//! After taking its bytes, an opener looks whether anyone else holds a byte
//! that contradicts it. No lock is ever exclusive, so a reader needs no right
//! to write, and a crashed holder's locks vanish with its open file.
//!
//! Both sides take before they look; so of two openers at the same time at
//! least one sees the other. Never may a file be changed without the
//! [`LockPolicy::Exclusive`] lock, except where the caller asked for
//! [`LockPolicy::Off`].

mod holders;
mod ofd;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::{Error, LockPolicy, Result};

/// QEMU's permissions, numbered as their bits (`include/block/block-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    WriteUnchanged = 2,
    Resize = 3,
}

const PERMISSIONS: [Permission; 4] = [
    Permission::ConsistentRead,
    Permission::Write,
    Permission::WriteUnchanged,
    Permission::Resize,
];
const USED: u64 = 100;
const UNSHARED: u64 = 200;

impl Permission {
    fn used_byte(self) -> u64 {
        USED + self as u64
    }

    fn unshared_byte(self) -> u64 {
        UNSHARED + self as u64
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::WriteUnchanged => "write unchanged",
            Self::Resize => "resize",
        })
    }
}

impl LockPolicy {
    fn uses(self, permission: Permission) -> bool {
        match self {
            Self::Exclusive => permission != Permission::WriteUnchanged,
            Self::Shared => permission == Permission::ConsistentRead,
            Self::Off => false,
        }
    }

    fn unshares(self, permission: Permission) -> bool {
        self != Self::Off && matches!(permission, Permission::Write | Permission::Resize)
    }

    fn holds(self, byte: u64) -> bool {
        PERMISSIONS.iter().any(|&permission| {
            (self.uses(permission) && permission.used_byte() == byte)
                || (self.unshares(permission) && permission.unshared_byte() == byte)
        })
    }
}

/// The locks on one open file; given back when dropped.
///
/// Locks belong to the open file description: descriptors duplicated from the
/// one given share them, a second `open` of the same file does not.
#[derive(Debug)]
pub struct FileLock {
    fd: OwnedFd,
    path: PathBuf,
    policy: LockPolicy,
}

impl FileLock {
    /// Locks an open file, which must be readable. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::InUse`] names who is in the way; nothing stays locked then.
    /// [`Error::Io`] where the file system refuses to lock at all.
    pub fn acquire(fd: impl AsFd, path: &Path, policy: LockPolicy) -> Result<Self> {
        let fd = fd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::io(path, "lock", error))?;
        let mut lock = Self {
            fd,
            path: path.to_owned(),
            policy: LockPolicy::Off,
        };
        lock.change(policy)?;
        Ok(lock)
    }

    /// What is locked now.
    pub fn policy(&self) -> LockPolicy {
        self.policy
    }

    /// Goes over to another policy without letting go in between.
    ///
    /// # Errors
    /// As [`Self::acquire`]; the old policy is kept then.
    pub fn change(&mut self, policy: LockPolicy) -> Result<()> {
        let fd = self.fd.as_fd();
        let outcome = exchange(fd, self.policy, policy)
            .map_err(|error| Error::io(&self.path, "lock", error))?;
        match outcome {
            None => {
                self.policy = policy;
                Ok(())
            }
            Some(conflict) => Err(Error::InUse {
                path: self.path.clone(),
                by: conflict.describe(fd, self.policy),
            }),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Err(error) = release(self.fd.as_fd(), self.policy, LockPolicy::Off) {
            tracing::warn!(%error, "image locks were not given back");
        }
    }
}

fn lock_bytes(policy: LockPolicy) -> impl Iterator<Item = u64> {
    PERMISSIONS
        .iter()
        .flat_map(|permission| [permission.used_byte(), permission.unshared_byte()])
        .filter(move |&byte| policy.holds(byte))
}

/// Goes from one policy to another; stays at the old one on a conflict.
fn exchange(fd: BorrowedFd<'_>, old: LockPolicy, new: LockPolicy) -> io::Result<Option<Conflict>> {
    let outcome = match take(fd, old, new) {
        Ok(None) => look(fd, new),
        other => other,
    };
    match outcome {
        Ok(None) => release(fd, old, new)?,
        _ => release(fd, new, old)?,
    }
    outcome
}

/// A byte that somebody else holds.
struct Conflict {
    byte: u64,
    what: String,
}

/// Locks the bytes of `wanted` that `held` has not.
fn take(fd: BorrowedFd<'_>, held: LockPolicy, wanted: LockPolicy) -> io::Result<Option<Conflict>> {
    for byte in lock_bytes(wanted).filter(|&byte| !held.holds(byte)) {
        if !ofd::lock_shared(fd, byte)? {
            return Ok(Some(Conflict {
                byte,
                what: format!("it locks byte {byte} exclusively"),
            }));
        }
    }
    Ok(None)
}

/// Looks for others whose bytes contradict the policy.
fn look(fd: BorrowedFd<'_>, policy: LockPolicy) -> io::Result<Option<Conflict>> {
    for permission in PERMISSIONS {
        let (unshared, used) = (permission.unshared_byte(), permission.used_byte());
        if policy.uses(permission) && ofd::held_elsewhere(fd, unshared)? {
            let what = format!("it does not share the {permission} permission");
            return Ok(Some(Conflict {
                byte: unshared,
                what,
            }));
        }
        if policy.unshares(permission) && ofd::held_elsewhere(fd, used)? {
            let what = format!("it holds the {permission} permission");
            return Ok(Some(Conflict { byte: used, what }));
        }
    }
    Ok(None)
}

fn release(fd: BorrowedFd<'_>, held: LockPolicy, keep: LockPolicy) -> io::Result<()> {
    for byte in lock_bytes(held).filter(|&byte| !keep.holds(byte)) {
        ofd::unlock(fd, byte)?;
    }
    Ok(())
}

impl Conflict {
    /// Names the holders and what they do. `ours` is what this lock still
    /// holds itself.
    fn describe(&self, fd: BorrowedFd<'_>, ours: LockPolicy) -> String {
        let mut seen = holders::holders(fd, self.byte..=self.byte);
        if ours.holds(self.byte) && seen.len() > 1 {
            seen.retain(|holder| holder != holders::THIS_PROCESS);
        }
        let holders = match seen.len() {
            0 => "one that cannot be seen from here".to_owned(),
            1..=4 => seen.join(", "),
            more => format!("{} and {} others", seen[..3].join(", "), more - 3),
        };
        format!("{holders}: {}", self.what)
    }
}
