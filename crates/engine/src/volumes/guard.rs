//! What must not be touched: volumes others stand on, volumes in use.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cenote_image::{BackingPolicy, Format};
use cenote_pools::{Error as StorageError, VolumeId, VolumeInfo, VolumeKind, host_users};

use crate::error::Result;
use crate::node::Node;

/// Tells a file from every other, whatever its path: device and inode, or the
/// device number of a block device.
pub(crate) type Identity = (u64, u64, u64);

pub(crate) fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    match metadata.rdev() {
        0 => Some((metadata.dev(), metadata.ino(), 0)),
        device => Some((0, 0, device)),
    }
}

impl Node {
    /// Volumes of any reachable pool, running or not, that stand on the file
    /// of `volume`, directly or through others.
    ///
    /// # Errors
    /// There is no such volume, or the database cannot be read.
    pub fn volume_dependents(&self, volume: &VolumeId) -> Result<Vec<VolumeId>> {
        self.dependents_of(&self.volume(volume)?.path)
    }

    pub(crate) fn dependents_of(&self, path: &Path) -> Result<Vec<VolumeId>> {
        let Some(wanted) = identity(path) else {
            return Ok(Vec::new());
        };
        let mut dependents = BTreeSet::new();
        for row in self.pool_rows()? {
            if let Err(error) = row.backend().check() {
                tracing::debug!(pool = row.name(), %error, "not looked at for dependents");
                continue;
            }
            for info in self.scan(&row)?.volumes {
                if info.format != "qcow2" || identity(&info.path) == Some(wanted) {
                    continue;
                }
                let below = self.layers().ancestors(&info.path, Format::Qcow2);
                if below.iter().any(|path| identity(path) == Some(wanted)) {
                    dependents.insert(info.id());
                }
            }
        }
        Ok(dependents.into_iter().collect())
    }

    /// Who uses a volume right now, named for a message.
    ///
    /// # Errors
    /// There is no such volume, or the host cannot be asked.
    pub fn volume_users(&self, volume: &VolumeId) -> Result<Vec<String>> {
        self.users_of(&self.volume(volume)?.path)
    }

    pub(crate) fn users_of(&self, path: &Path) -> Result<Vec<String>> {
        let mut users = host_users(path)?;
        if let Ok(real) = fs::canonicalize(path) {
            for usage in self.usages() {
                users.extend(usage.users(&real));
            }
        }
        Ok(users)
    }

    /// Whether a volume may be deleted or written: nothing but `besides`
    /// stands on it, and nobody uses it.
    ///
    /// # Errors
    /// Who stands on it or uses it; or there is no such volume.
    pub fn volume_ensure_changeable(&self, volume: &VolumeId, besides: &[VolumeId]) -> Result<()> {
        self.ensure_changeable(&self.volume(volume)?, besides)
    }

    /// Refuses to go on where others stand on the volume (except `besides`) or
    /// something uses it.
    pub(crate) fn ensure_changeable(&self, info: &VolumeInfo, besides: &[VolumeId]) -> Result<()> {
        if info.kind == VolumeKind::Dir {
            return Err(StorageError::NotADisk(info.id()).into());
        }
        let dependents: Vec<String> = self
            .dependents_of(&info.path)?
            .into_iter()
            .filter(|dependent| !besides.contains(dependent))
            .map(|dependent| dependent.to_string())
            .collect();
        if !dependents.is_empty() {
            let volume = info.id().to_string();
            return Err(StorageError::VolumeBacks { volume, dependents }.into());
        }
        let users = self.users_of(&info.path)?;
        if users.is_empty() {
            Ok(())
        } else {
            Err(StorageError::VolumeInUse {
                volume: info.id().to_string(),
                users,
            }
            .into())
        }
    }

    /// Where backing and data files may lie: in the directories of the node's
    /// pools and where [`crate::NodeOptions::backing_dirs`] allows.
    pub(crate) fn backing_policy(&self) -> Result<BackingPolicy> {
        let mut allowed = self.backing_dirs().to_vec();
        for row in self.pool_rows()? {
            match row.logical() {
                // Device nodes are links out of the group's directory.
                Ok(_) if row.active => {
                    let listing = row.backend().list()?;
                    allowed.extend(listing.volumes.into_iter().map(|found| found.path));
                }
                Ok(_) => {}
                Err(_) => allowed.push(row.definition.spec.target.clone()),
            }
        }
        let real = |path: PathBuf| fs::canonicalize(&path).unwrap_or(path);
        Ok(BackingPolicy {
            allowed_dirs: Some(allowed.into_iter().map(real).collect()),
            ..BackingPolicy::default()
        })
    }
}
