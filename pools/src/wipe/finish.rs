//! After the overwrite: an empty image in the volume's place, or nothing.
//!
//! Each step can be repeated, so that a wipe killed here goes on from the
//! start of the file's steps. A file is taken for the wiped one by its inode,
//! never by its name alone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::hex;
use super::journal::{FileRecord, sync_folder};
use super::request::{Afterwards, WipeRequest};
use super::target::creation;

/// A random name in the folder of `path`: what the file is called before it is
/// unlinked, so that its own name is not the last thing in the folder's block;
/// and what its successor is called before it is complete.
pub(super) fn aside(path: &Path) -> Result<PathBuf> {
    use rand::TryRng as _;
    let mut bytes = [0; 12];
    rand::rngs::SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Error::NoRandomness {
            reason: error.to_string(),
        })?;
    Ok(path.with_file_name(format!(".{}", hex::encode(&bytes))))
}

/// Rebuilds or removes `file`; `step` hears the name of each step done.
pub(super) fn file(
    request: &WipeRequest,
    file: &FileRecord,
    aside: &Path,
    step: &dyn Fn(&'static str),
) -> Result<()> {
    match request.afterwards {
        Afterwards::Remove => remove(file, aside, step),
        Afterwards::Keep => super::rebuild::replace(file, aside, step),
    }
}

/// Whether `path` names the file that was wiped.
pub(super) fn is_wiped_file(file: &FileRecord, path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(metadata) => {
            Ok(metadata.ino() == file.identity.inode
                && creation(&metadata) == file.identity.created)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "look at")(error)),
    }
}

fn remove(file: &FileRecord, aside: &Path, step: &dyn Fn(&'static str)) -> Result<()> {
    if is_wiped_file(file, &file.path)? {
        fs::rename(&file.path, aside).map_err(Error::io(&file.path, "rename"))?;
        sync_folder(aside).map_err(Error::io(aside, "sync the folder of"))?;
        step("renamed");
    }
    if is_wiped_file(file, aside)? {
        fs::remove_file(aside).map_err(Error::io(aside, "remove"))?;
        sync_folder(aside).map_err(Error::io(aside, "sync the folder of"))?;
        step("removed");
    }
    Ok(())
}
