//! Who on the host uses a file or device.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use cenote_image::LockPolicy;
use cenote_image::lock::FileLock;

use crate::error::{Error, Result};
use crate::mounts;

/// Somebody who knows who uses volumes: the engine asks one per kind of user
/// (running domains, installs, ...).
pub trait Usage: Send + Sync {
    /// Users of the file at `path` (absolute, links resolved), each named for
    /// a message, as `domain 'web'`.
    fn users(&self, path: &Path) -> Vec<String>;
}

/// What on the host uses the file or device at `path`: mounts, loop devices,
/// swap, and whoever holds image locks on it.
///
/// # Errors
/// The kernel's tables cannot be read.
pub fn host_users(path: &Path) -> Result<Vec<String>> {
    let real = fs::canonicalize(path).map_err(|source| Error::at("examine", path, source))?;
    let mut users = Vec::new();
    for mount in mounts::all().map_err(mounts::unreadable)? {
        if mount.source == real || fs::canonicalize(&mount.source).is_ok_and(|p| p == real) {
            users.push(format!("the mount on '{}'", mount.mount_point.display()));
        }
    }
    let loops = mounts::loop_devices().into_iter();
    users.extend(
        loops
            .filter(|(_, file)| *file == real)
            .map(|(device, _)| format!("loop device '{}'", device.display())),
    );
    let swaps = mounts::swaps().map_err(|source| {
        let table = Path::new("/proc/swaps");
        Error::at("read", table, source)
    })?;
    if swaps
        .iter()
        .any(|swap| fs::canonicalize(swap).is_ok_and(|swap| swap == real))
    {
        users.push("the host, as swap space".into());
    }
    let metadata = fs::metadata(&real).map_err(|source| Error::at("examine", path, source))?;
    if metadata.file_type().is_block_device() {
        // The kernel refuses an exclusive open of a device that a file system,
        // RAID or device mapper holds.
        let flags = rustix::fs::OFlags::EXCL.bits() as i32;
        match OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&real)
        {
            Err(error) if error.raw_os_error() == Some(16) && users.is_empty() => {
                users.push("another part of the host's storage".into());
            }
            _ => {}
        }
    }
    if let Some(holder) = lock_holder(&real)? {
        users.push(holder);
    }
    Ok(users)
}

/// Who holds a lock on the image that speaks against changing it.
fn lock_holder(real: &Path) -> Result<Option<String>> {
    let file = fs::File::open(real).map_err(|source| Error::at("open", real, source))?;
    match FileLock::acquire(&file, real, LockPolicy::Exclusive) {
        Ok(_) => Ok(None),
        Err(cenote_image::Error::InUse { by, .. }) => Ok(Some(by)),
        // A file system without locks cannot tell.
        Err(error) => {
            tracing::debug!(path = %real.display(), %error, "cannot look at image locks");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_image_has_a_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, [0; 512]).unwrap();
        assert!(host_users(&path).unwrap().is_empty());
        let file = fs::File::open(&path).unwrap();
        let lock = FileLock::acquire(&file, &path, LockPolicy::Shared).unwrap();
        assert_eq!(host_users(&path).unwrap().len(), 1);
        drop(lock);
        drop(file);
        assert!(host_users(&path).unwrap().is_empty());
    }
}
