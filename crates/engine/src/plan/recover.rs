//! How interrupted operations are brought to an end.

use std::path::Path;

use cenote_pools::file::{self, FileIdentity};
use cenote_pools::{Error as StorageError, FormatOrigin, VolumeId};

use super::{Change, DataPart, Plan};
use crate::error::{Error, Result};
use crate::journal::RepairOutcome::{self, Pending, RolledBack, RolledForward};
use crate::node::Node;
use crate::records;
use crate::volumes::Collapse;

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
            Plan::SnapshotTake(take) => node.settle_snapshot(take),
            Plan::SnapshotChange(change) => node.settle_snapshot_change(change, step),
            Plan::LayerChange(change) => node.settle_layer_change(change, step),
            Plan::DomainClone(cloning) => node.settle_clone(cloning, step),
            Plan::VolumeCreate {
                volume,
                path,
                directory,
                identity,
                format,
                data,
                ..
            } => {
                let parts = Created {
                    volume,
                    path,
                    directory,
                    identity: *identity,
                    format,
                    data,
                };
                parts.recover(node)
            }
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
            // Nothing can be undone, and going on is the user's decision.
            Plan::VolumeWipe { subjects } => Ok((
                RolledBack,
                format!(
                    "wiping {} stopped; `cenote wipe-list` shows what is not finished, and \
                     `cenote wipe-resume` goes on with it",
                    subjects.join(", ")
                ),
            )),
            Plan::ImageChange {
                change,
                volume,
                path,
                format,
            } => {
                node.settle_image(path, *format)?;
                Ok(changed(*change, volume, step))
            }
            Plan::Collapse(collapse) if step >= 1 => {
                node.finish_collapse(collapse)?;
                Ok((
                    RolledForward,
                    format!("volume '{}' is out of its chain", collapse.volume),
                ))
            }
            Plan::Collapse(collapse) => {
                for image in collapse.overlays.iter().chain(&collapse.base) {
                    node.settle_image(&image.path, image.format)?;
                }
                Ok((RolledBack, uncollapsed(collapse)))
            }
            Plan::Install(install) => install.recover(node, step),
            Plan::Teardown(teardown) => Ok(teardown.recover(node, step)),
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
            | Plan::ImageChange { volume, .. }
            | Plan::LogicalDelete { volume } => Some(volume),
            Plan::Collapse(collapse) => Some(&collapse.volume),
            Plan::Pool { .. }
            | Plan::VolumeWipe { .. }
            | Plan::Install(_)
            | Plan::Teardown(_)
            | Plan::SnapshotTake(_)
            | Plan::SnapshotChange(_)
            | Plan::LayerChange(_)
            | Plan::DomainClone(_) => None,
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

/// A volume being made.
struct Created<'a> {
    volume: &'a VolumeId,
    path: &'a Path,
    directory: &'a Path,
    identity: Option<FileIdentity>,
    format: &'a str,
    data: &'a Option<DataPart>,
}

impl Created<'_> {
    fn recover(&self, node: &Node) -> Result<Outcome> {
        let published = self.identity.is_some() && file::identity(self.path)? == self.identity;
        if published {
            if let Some(data) = self.data {
                records::put(node.state(), &data.volume, "raw", FormatOrigin::Created)?;
            }
            records::put(
                node.state(),
                self.volume,
                self.format,
                FormatOrigin::Created,
            )?;
            self.clean()?;
            return Ok((RolledForward, complete(self.volume)));
        }
        let kept = match self.data {
            Some(data) => remove_data(data)?,
            None => None,
        };
        self.clean()?;
        let message = unfinished(self.volume);
        Ok((RolledBack, message + &kept.unwrap_or_default()))
    }

    fn clean(&self) -> Result<()> {
        let inside = self.directory.join(&self.volume.name);
        Ok(file::remove_private_dir(self.directory, &[&inside])?)
    }
}

/// Takes away the data file of an image that was not finished. One that may be
/// somebody else's, because it appeared meanwhile and holds data, is kept; the
/// answer says so.
fn remove_data(data: &DataPart) -> Result<Option<String>> {
    let found = file::identity(&data.path)?;
    let ours = match data.identity {
        Some(_) => found == data.identity,
        None => found.is_some() && file::is_without_data(&data.path)?,
    };
    if ours {
        file::retire(&data.path, &data.trash)?;
    }
    file::remove_private(&data.trash)?;
    Ok((found.is_some() && !ours).then(|| {
        format!(
            ", but '{}' holds data and was kept; delete it if it is not needed",
            data.volume
        )
    }))
}

fn deleted(node: &Node, volume: &VolumeId, path: &Path, trash: &Path) -> Result<Outcome> {
    if file::identity(trash)?.is_none() && file::identity(path)?.is_some() {
        return Ok((RolledBack, undeleted(volume)));
    }
    file::remove_private(trash)?;
    records::remove(node.state(), volume)?;
    Ok((RolledForward, gone(volume)))
}

fn changed(change: Change, volume: &VolumeId, step: i64) -> Outcome {
    let done = match change {
        Change::Resize => "resizing",
        Change::Repair => "repairing",
        Change::Rebase => "rebasing",
        Change::Flatten => "flattening",
        Change::SnapshotCreate => "taking an internal snapshot of",
        Change::SnapshotRevert => "reverting to an internal snapshot of",
        Change::SnapshotDelete => "deleting an internal snapshot of",
    };
    if step >= 1 {
        return (
            RolledForward,
            format!("{done} volume '{volume}' was complete"),
        );
    }
    let message = match change {
        Change::Rebase | Change::Flatten | Change::Repair => format!(
            "{done} volume '{volume}' was interrupted; it shows what it showed before; do it again"
        ),
        _ => format!(
            "{done} volume '{volume}' was interrupted; the volume is valid, before or after the \
             change; look at it, and do it again if need be"
        ),
    };
    (RolledBack, message)
}

fn uncollapsed(collapse: &Collapse) -> String {
    let volume = &collapse.volume;
    if collapse.down {
        format!(
            "the commit of volume '{volume}' was interrupted; it shows what it showed before; \
             commit it again"
        )
    } else {
        format!(
            "taking volume '{volume}' out of its chain was interrupted; all volumes show what they \
             showed before; do it again"
        )
    }
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
