//! The work files of an install: kernel, initrd, seed, reports. They are the owner's alone, and
//! those with secrets are overwritten before they are removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cenote_pools::crash;

use crate::error::{Error, Result};
use crate::node::Node;
use crate::state::make_private_dir;

/// What the guest's serial line said in phase one; beside the domain's other logs.
pub(crate) const SERIAL_LOG: &str = "install.log";
/// What its installer wrote to its own log port.
pub(crate) const INSTALLER_LOG: &str = "installer.log";

impl Node {
    /// Folder of an install's work files.
    pub(super) fn install_dir(&self, uuid: &str) -> PathBuf {
        self.state_dir().join("installs").join(uuid)
    }
}

pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// Makes a folder that is empty and its owner's alone.
pub(super) fn fresh_folder(path: &Path) -> Result<()> {
    remove_folder(path)?;
    make_private_dir(path).map_err(at("make", path))
}

/// Writes a file that is not there yet.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(at("write", path))
}

/// Removes the folder and what is in it. Seeds and initrds have hashes of passwords.
pub(super) fn remove_folder(path: &Path) -> Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at("look through", path))?,
    };
    for entry in entries {
        let file = entry.map_err(at("look through", path))?.path();
        overwrite(&file).map_err(at("overwrite", &file))?;
        crash::point("install-overwritten");
        remove_file(&file)?;
    }
    fs::remove_dir(path).map_err(at("remove", path))
}

/// Zeroes in the place of what a file holds, synced. What lies under it may keep a copy all the
/// same; `cenote help wipe` is about that.
fn overwrite(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut left = file.metadata()?.len();
    let mut writer: &File = &file;
    let zeroes = vec![0; 1 << 20];
    while left > 0 {
        let piece = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(zeroes.len());
        writer.write_all(zeroes.get(..piece).unwrap_or_default())?;
        left = left.saturating_sub(piece as u64);
    }
    file.sync_data()
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        _ => Ok(()),
    }
}
