//! How interrupted operations are brought to an end.

use std::path::Path;

use cenote_pools::file::{self, FileIdentity};
use cenote_pools::{Error as StorageError, FormatOrigin, VolumeId};

use super::Plan;
use crate::error::{Error, Result};
use crate::journal::RepairOutcome::{self, Pending, RolledBack, RolledForward};
use crate::node::Node;
use crate::records;

/// Which way it went, and a sentence that says so.
type Outcome = (RepairOutcome, String);

impl Plan {
    /// Finishes or undoes the operation, whatever point it reached, and says
    /// in a sentence what was done. Idempotent.
    pub(crate) fn recover(&self, node: &Node, step: i64) -> Result<Outcome> {
        if let Some(volume) = self.volume()
            && let Some(waiting) = pool_is_away(node, volume)?
        {
            return Ok(waiting);
        }
        match self {
            Plan::Pool { verb, pool } => node.recover_pool(*verb, pool),
            Plan::VolumeCreate {
                volume,
                path,
                temporary,
                identity,
                format,
                ..
            } => created(node, volume, path, temporary, *identity, format),
            Plan::VolumeDelete {
                volume,
                path,
                trash,
            } => deleted(node, volume, path, trash),
            Plan::VolumeUpload { volume } if step >= 1 => Ok((
                RolledForward,
                format!("the upload to volume '{volume}' was complete"),
            )),
            Plan::VolumeUpload { volume } => Ok((
                RolledBack,
                format!("the upload to volume '{volume}' was interrupted; upload it again"),
            )),
            Plan::LogicalCreate { volume, tag, .. } => {
                let group = node.pool_row(&volume.pool)?.logical()?;
                match group.has_tag(&volume.name, tag)? {
                    Some(true) => {
                        group.remove(&volume.name)?;
                        Ok((RolledBack, unfinished(volume)))
                    }
                    Some(false) => Ok((RolledForward, complete(volume))),
                    None => Ok((RolledBack, unfinished(volume))),
                }
            }
            Plan::LogicalDelete { volume } => {
                let group = node.pool_row(&volume.pool)?.logical()?;
                match group.has_tag(&volume.name, "")? {
                    Some(_) => Ok((RolledBack, undeleted(volume))),
                    None => {
                        records::remove(node.state(), volume)?;
                        Ok((RolledForward, gone(volume)))
                    }
                }
            }
        }
    }

    fn volume(&self) -> Option<&VolumeId> {
        match self {
            Plan::VolumeCreate { volume, .. }
            | Plan::VolumeDelete { volume, .. }
            | Plan::LogicalCreate { volume, .. }
            | Plan::VolumeUpload { volume }
            | Plan::LogicalDelete { volume } => Some(volume),
            Plan::Pool { .. } => None,
        }
    }
}

/// A volume whose pool is not there cannot be repaired now: its files may be
/// on a file system that is not mounted.
fn pool_is_away(node: &Node, volume: &VolumeId) -> Result<Option<Outcome>> {
    let reason = match node.pool_row(&volume.pool) {
        Ok(row) => match row.backend().check() {
            Ok(()) => return Ok(None),
            Err(error) => error.to_string(),
        },
        // Undefined meanwhile: its directory may still be there.
        Err(Error::Storage(StorageError::PoolNotFound(_))) => return Ok(None),
        Err(error) => return Err(error),
    };
    let message = format!("volume '{volume}' waits for its pool to be repaired: {reason}");
    Ok(Some((Pending, message)))
}

fn created(
    node: &Node,
    volume: &VolumeId,
    path: &Path,
    temporary: &Path,
    identity: Option<FileIdentity>,
    format: &str,
) -> Result<Outcome> {
    if identity.is_some() && file::identity(path)? == identity {
        records::put(node.state(), volume, format, FormatOrigin::Created)?;
        file::remove_private(temporary)?;
        return Ok((RolledForward, complete(volume)));
    }
    file::remove_private(temporary)?;
    Ok((RolledBack, unfinished(volume)))
}

fn deleted(node: &Node, volume: &VolumeId, path: &Path, trash: &Path) -> Result<Outcome> {
    if file::identity(trash)?.is_none() && file::identity(path)?.is_some() {
        return Ok((RolledBack, undeleted(volume)));
    }
    file::remove_private(trash)?;
    records::remove(node.state(), volume)?;
    Ok((RolledForward, gone(volume)))
}

fn complete(volume: &VolumeId) -> String {
    format!("volume '{volume}' was complete and is now listed")
}

fn unfinished(volume: &VolumeId) -> String {
    format!("volume '{volume}' was not finished; nothing is left of it")
}

fn undeleted(volume: &VolumeId) -> String {
    format!("volume '{volume}' was not deleted; it is as it was")
}

fn gone(volume: &VolumeId) -> String {
    format!("volume '{volume}' was half deleted and is now gone")
}
