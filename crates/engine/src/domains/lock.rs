//! Lock files of domains.
//!
//! Two for each, named after its UUID, in the runtime directory. The *command lock* is held by
//! whoever changes the domain, and handed on to a supervisor that is starting it, so that a
//! caller killed on the way leaves no half start behind. The *life lock* is held by the
//! supervisor from before the domain's first state to after its last; a domain that is said to
//! run and whose life lock is free has lost its supervisor.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::state::make_private_dir;

/// How often a lock that somebody holds is tried again.
const INTERVAL: Duration = Duration::from_millis(10);

/// Path of a domain's command lock.
pub(crate) fn command_path(dir: &Path, uuid: &str) -> PathBuf {
    dir.join(format!("{uuid}.lock"))
}

/// Path of a domain's life lock.
pub(crate) fn life_path(dir: &Path, uuid: &str) -> PathBuf {
    dir.join(format!("{uuid}.alive"))
}

/// Locks the file at `path`, making it, within `patience`. `None`: somebody else held it all
/// the time.
pub(crate) fn acquire(path: &Path, patience: Duration) -> Result<Option<File>> {
    let at = |source| Error::Io {
        action: "lock",
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        make_private_dir(dir).map_err(at)?;
    }
    let begun = Instant::now();
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(at)?;
        match file.try_lock() {
            // A holder may have removed the file meanwhile; the lock of a file without a name
            // keeps nobody out.
            Ok(()) if is_still(&file, path).map_err(at)? => return Ok(Some(file)),
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(at(source)),
        }
        if begun.elapsed() >= patience {
            return Ok(None);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Whether a living process holds the lock at `path`.
pub(crate) fn is_held(path: &Path) -> Result<bool> {
    let at = |source| Error::Io {
        action: "look at the lock",
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(at)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(at(source)),
    }
}

fn is_still(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_one_mans_and_ends_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = command_path(dir.path(), "u");
        assert!(!is_held(&path).unwrap());
        let held = acquire(&path, Duration::ZERO).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        assert!(acquire(&path, Duration::ZERO).unwrap().is_none());
        drop(held);
        assert!(!is_held(&path).unwrap());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = life_path(dir.path(), "u");
        let old = acquire(&path, Duration::ZERO).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        let new = acquire(&path, Duration::ZERO).unwrap().unwrap();
        drop(old);
        assert!(is_held(&path).unwrap());
        drop(new);
    }
}
