//! From what a user typed to the volume that is meant.

use std::fs;
use std::path::{Path, PathBuf};

use cenote_pools::{Error as StorageError, VolumeId};

use crate::error::{Error, Result};
use crate::node::Node;

impl Node {
    /// The volume that `name` means: in `pool` if that is given, else in any
    /// running pool. `name` is a volume's name, `pool/name`, its key or its
    /// path; a bare name must be unique.
    ///
    /// # Errors
    /// None or several match; several are listed as candidates.
    pub fn resolve_volume(&self, name: &str, pool: Option<&str>) -> Result<VolumeId> {
        match pool {
            Some(pool) => self.resolve_in(name, pool),
            None => self.resolve_anywhere(name),
        }
    }

    fn resolve_in(&self, name: &str, pool: &str) -> Result<VolumeId> {
        let row = self.running_pool(pool)?;
        let listing = row.backend().list()?;
        if listing.volumes.iter().any(|found| found.name == name) {
            return Ok(VolumeId::new(row.name(), name));
        }
        // `vol-info default/a --pool default` is clear enough.
        let within = name
            .strip_prefix(row.name())
            .and_then(|rest| rest.strip_prefix('/'));
        let path = real(Path::new(name));
        let found = listing.volumes.into_iter().find(|found| {
            within == Some(&found.name)
                || found.path == Path::new(name)
                || (name.contains('/') && path.is_some() && real(&found.path) == path)
        });
        match found {
            Some(found) => Ok(VolumeId::new(row.name(), found.name)),
            None => Err(StorageError::VolumeNotFound {
                name: name.into(),
                pool: Some(row.name().into()),
            }
            .into()),
        }
    }

    fn resolve_anywhere(&self, name: &str) -> Result<VolumeId> {
        if let Some((pool, volume)) = name.split_once('/')
            && !pool.is_empty()
            && !volume.contains('/')
            && pool != "."
            && pool != ".."
        {
            match self.pool_row(pool) {
                Ok(_) => return self.resolve_in(volume, pool),
                Err(Error::Storage(StorageError::PoolNotFound(_))) => {}
                Err(error) => return Err(error),
            }
        }
        let path = name.contains('/').then(|| real(Path::new(name))).flatten();
        let mut candidates = Vec::new();
        for row in self.pool_rows()?.iter().filter(|row| row.active) {
            // A pool that cannot be read does not hide the others' volumes.
            let Ok(listing) = row.backend().check().and_then(|()| row.backend().list()) else {
                continue;
            };
            for found in listing.volumes {
                let same_path =
                    found.path == Path::new(name) || (path.is_some() && real(&found.path) == path);
                if found.name == name || same_path {
                    candidates.push(VolumeId::new(row.name(), found.name));
                }
            }
        }
        match candidates.len() {
            0 => Err(StorageError::VolumeNotFound {
                name: name.into(),
                pool: None,
            }
            .into()),
            1 => Ok(candidates.swap_remove(0)),
            _ => Err(StorageError::VolumeAmbiguous {
                name: name.into(),
                candidates,
            }
            .into()),
        }
    }
}

fn real(path: &Path) -> Option<PathBuf> {
    fs::canonicalize(path).ok()
}
