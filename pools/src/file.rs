//! Making files appear and disappear without a moment in between.
//!
//! A new volume is written inside a private directory of its pool, which only
//! its owner may enter, synced, and then renamed with `RENAME_NOREPLACE`: it
//! appears whole or not at all, and never in place of something else. Removal renames to a random private name
//! first, so that the old name is free at once and an interrupted removal can
//! be told from a volume.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::crash;
use crate::error::{Error, Result};
use crate::name::PRIVATE_PREFIX;

/// Which file this is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device of the file system.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
}

/// The identity of the file at `path`, links not followed; `None` if there is
/// none.
pub fn identity(path: &Path) -> Result<Option<FileIdentity>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::at("examine", path, source)),
    }
}

/// A private name beside `path` that nobody can guess, for a file half made
/// (`new`) or half removed (`old`).
pub fn private_sibling(path: &Path, what: &str) -> PathBuf {
    let name = format!("{PRIVATE_PREFIX}{what}-{:032x}", rand::random::<u128>());
    path.with_file_name(name)
}

/// Whether `path` bears a name [`private_sibling`] makes.
pub fn is_private(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|n| n.starts_with(PRIVATE_PREFIX))
}

/// Waits until the file and its length are on stable storage.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::at("write out", path, source))?;
    crash::point("file-synced");
    Ok(())
}

/// Waits until the entries of the directory that holds `path` are on stable
/// storage.
pub fn sync_parent(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| Error::at("write out the directory", dir, source))?;
    crash::point("directory-synced");
    Ok(())
}

/// Gives the finished file `temporary` its name, durably. Fails with
/// [`crate::ErrorKind::Exists`] where something has that name already.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    rename_new(temporary, path)?;
    crash::point("file-published");
    sync_parent(path)
}

/// Takes a file's name away: renames it to the private name `trash`, durably.
pub fn retire(path: &Path, trash: &Path) -> Result<()> {
    rename_new(path, trash)?;
    crash::point("file-retired");
    sync_parent(path)
}

/// Removes a private file durably; one that is gone already is fine.
pub fn remove_private(path: &Path) -> Result<()> {
    if !is_private(path) {
        // A journal entry that names another file is damaged; keep the file.
        return Err(Error::at(
            "remove as a temporary file",
            path,
            io::Error::from(io::ErrorKind::InvalidInput),
        ));
    }
    match fs::remove_file(path) {
        Ok(()) => {
            crash::point("file-removed");
            sync_parent(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::at("remove", path, source)),
    }
}

/// Whether the file at `path` is one long hole.
pub fn is_without_data(path: &Path) -> Result<bool> {
    use rustix::fs::{SeekFrom, seek};
    let at = |source| Error::at("examine", path, source);
    let file = File::open(path).map_err(at)?;
    match seek(&file, SeekFrom::Data(0)) {
        Ok(_) => Ok(false),
        Err(rustix::io::Errno::NXIO) => Ok(true),
        Err(errno) => Err(at(errno.into())),
    }
}

/// Removes a private directory and the files `inside` it; what is gone already
/// is fine, and other files keep the directory.
pub fn remove_private_dir(directory: &Path, inside: &[&Path]) -> Result<()> {
    if !is_private(directory) || inside.iter().any(|file| file.parent() != Some(directory)) {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(Error::at(
            "remove as a temporary directory",
            directory,
            source,
        ));
    }
    for file in inside {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::at("remove", file, error));
            }
            _ => crash::point("file-removed"),
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => sync_parent(directory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::at("remove", directory, source)),
    }
}

/// Creates a private directory that only its owner may enter.
pub fn create_private_dir(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(|source| Error::at("create directory", directory, source))?;
    crash::point("directory-created");
    Ok(())
}

fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // File systems without the flag (NFS): a hard link never replaces.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to).map_err(|source| Error::at("create", to, source))?;
            fs::remove_file(from).map_err(|source| Error::at("rename", from, source))
        }
        Err(Errno::EXIST) => Err(Error::FileExists {
            path: to.to_owned(),
        }),
        Err(errno) => Err(Error::at("rename to", to, errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "precious").unwrap();
        let temporary = private_sibling(&path, "new");
        fs::write(&temporary, "").unwrap();
        let error = publish(&temporary, &path).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Exists, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        remove_private(&temporary).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn publishing_does_not_follow_a_dangling_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::os::unix::fs::symlink("/nonexistent/target", &path).unwrap();
        let temporary = private_sibling(&path, "new");
        fs::write(&temporary, "").unwrap();
        assert!(publish(&temporary, &path).is_err());
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    }

    #[test]
    fn only_private_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "precious").unwrap();
        assert!(remove_private(&path).is_err());
        assert!(path.exists());
    }

    #[test]
    fn removing_what_is_gone_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        remove_private(&private_sibling(&dir.path().join("disk"), "old")).unwrap();
    }

    #[test]
    fn identity_survives_renaming() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "x").unwrap();
        let before = identity(&a).unwrap().unwrap();
        publish(&a, &b).unwrap();
        assert_eq!(identity(&b).unwrap(), Some(before));
        assert_eq!(identity(&a).unwrap(), None);
    }
}
