//! What dead processes left behind, seen without touching it.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::jobs::{Job, JobState};
use crate::node::Node;

impl Node {
    /// Operations whose process is gone and that nobody repaired yet, oldest
    /// first. [`Node::open`] repairs them, so that only a read-only node, or
    /// one opened with `skip_repair`, has any that can be repaired.
    ///
    /// # Errors
    /// The database or a lock cannot be read.
    pub fn interrupted(&self) -> Result<Vec<Job>> {
        let mut found = Vec::new();
        for job in self.jobs()? {
            let path = self.locks_dir().join(format!("{}.lock", job.id));
            if job.state == JobState::Running && !is_held(&path)? {
                found.push(job);
            }
        }
        Ok(found)
    }

    /// Lock files of operations that have ended. They do no harm.
    ///
    /// # Errors
    /// The database or a lock cannot be read.
    pub fn stale_locks(&self) -> Result<Vec<PathBuf>> {
        let running: HashSet<String> = self
            .jobs()?
            .iter()
            .filter(|job| job.state == JobState::Running)
            .map(|job| format!("{}.lock", job.id))
            .collect();
        let dir = self.locks_dir();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|source| Error::Io {
                action: "list",
                path: dir.clone(),
                source,
            })?,
        };
        let mut stale = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let ours = name.to_string_lossy().ends_with(".lock");
            if ours && !running.contains(&*name.to_string_lossy()) && !is_held(&entry.path())? {
                stale.push(entry.path());
            }
        }
        stale.sort();
        Ok(stale)
    }

    /// Removes [`Node::stale_locks`] and names them.
    ///
    /// # Errors
    /// As [`Node::stale_locks`]; one that cannot be removed.
    pub fn remove_stale_locks(&self) -> Result<Vec<PathBuf>> {
        let stale = self.stale_locks()?;
        for path in &stale {
            match fs::remove_file(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let (action, path) = ("remove the operation lock", path.clone());
                    return Err(Error::Io {
                        action,
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(stale)
    }

    /// The locks of living processes, also for a node that is a copy.
    fn locks_dir(&self) -> PathBuf {
        self.state_dir().join("operations")
    }
}

/// Whether a living process holds the lock.
fn is_held(path: &Path) -> Result<bool> {
    let at = |source| Error::Io {
        action: "look at the operation lock",
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeOptions;

    #[test]
    fn a_lock_without_an_operation_is_stale_until_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
        assert!(node.stale_locks().unwrap().is_empty());
        let path = node.locks_dir().join("77.lock");
        let file = File::create(&path).unwrap();
        assert_eq!(node.stale_locks().unwrap(), std::slice::from_ref(&path));
        file.lock().unwrap();
        assert!(node.stale_locks().unwrap().is_empty());
        file.unlock().unwrap();
        assert_eq!(
            node.remove_stale_locks().unwrap(),
            std::slice::from_ref(&path)
        );
        assert!(!path.exists());
        assert!(node.interrupted().unwrap().is_empty());
    }
}
