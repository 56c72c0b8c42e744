//! Changing an image in place: size, repair.
//!
//! The image engine makes each of these safe against dying half way: the file
//! is then valid, or marked so that the next opening for writing repairs it.
//! The journal entry is there so that the next command looks, and tells.

use cenote_image::check::{self, CheckReport, Repair};
use cenote_image::{Format, Snapshot, ops};
use cenote_pools::{Error as StorageError, Progress, VolumeId, VolumeInfo, VolumeKind};

use super::relink::open_alone;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::plan::{Change, Plan};

impl Node {
    /// Checks the structure of a qcow2 volume. Nobody may write it meanwhile.
    ///
    /// # Errors
    /// It is raw, which has no structure; it is in use by a writer. Damage is
    /// no error, it is in the report.
    pub fn volume_check(&self, volume: &VolumeId) -> Result<CheckReport> {
        let info = self.structured(volume)?;
        Ok(check::check(&info.path).map_err(StorageError::from)?)
    }

    /// Repairs the structure of a qcow2 volume that nobody else uses.
    ///
    /// # Errors
    /// As [`Node::volume_check`]; others stand on it.
    pub fn volume_repair(&self, volume: &VolumeId, repair: Repair) -> Result<CheckReport> {
        let info = self.structured(volume)?;
        self.ensure_changeable(&info, &[])?;
        self.change(&info, Change::Repair, |_| {
            Ok(check::repair(&info.path, repair).map_err(StorageError::from)?)
        })
    }

    fn structured(&self, volume: &VolumeId) -> Result<VolumeInfo> {
        let info = self.volume(volume)?;
        match self.trusted_format(&info)? {
            Format::Qcow2 => Ok(info),
            Format::Raw => Err(StorageError::Invalid {
                what: format!("volume '{}'", info.id()),
                reason: "it is raw, which has no structure that could be checked".into(),
            }
            .into()),
        }
    }

    /// The journalled way of a change of one image.
    pub(crate) fn change<T>(
        &self,
        info: &VolumeInfo,
        change: Change,
        body: impl FnOnce(&crate::journal::Operation<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut operation = self.begin(Plan::ImageChange {
            change,
            volume: info.id(),
            path: info.path.clone(),
            format: self.trusted_format(info)?,
        })?;
        let result = body(&operation).and_then(|value| {
            operation.revise(1, |_| {})?;
            Ok(value)
        });
        operation.finish(result)
    }

    /// Sees to it that an image whose change was interrupted is valid: opening
    /// it for writing repairs what its dirty mark tells of.
    pub(crate) fn settle_image(&self, path: &std::path::Path, format: Format) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        Ok(open_alone(path, format)?
            .close()
            .map_err(StorageError::from)?)
    }
}

/// Internal snapshots.
impl Node {
    /// The internal snapshots of a volume, oldest first; none of a raw one.
    ///
    /// # Errors
    /// There is no such volume, it is in use by a writer, or damaged.
    pub fn volume_snapshots(&self, volume: &VolumeId) -> Result<Vec<Snapshot>> {
        let info = self.volume(volume)?;
        let image = self.open_image(&info.path, self.trusted_format(&info)?, false)?;
        Ok(image.snapshots().map_err(StorageError::from)?)
    }

    /// Takes an internal snapshot of a qcow2 volume.
    ///
    /// # Errors
    /// The name is taken; others stand on the volume; it is in use; it is raw.
    pub fn volume_snapshot_create(&self, volume: &VolumeId, name: &str) -> Result<Snapshot> {
        self.on_snapshots(volume, Change::SnapshotCreate, |image| {
            image.create_snapshot(name)
        })
    }

    /// Makes a volume show again what it showed at a snapshot, by name or id.
    /// What it shows now is gone unless another snapshot holds it.
    ///
    /// # Errors
    /// As [`Node::volume_snapshot_create`]; there is no such snapshot.
    pub fn volume_snapshot_revert(&self, volume: &VolumeId, wanted: &str) -> Result<()> {
        self.on_snapshots(volume, Change::SnapshotRevert, |image| {
            image.apply_snapshot(wanted)
        })
    }

    /// Deletes an internal snapshot, by name or id.
    ///
    /// # Errors
    /// As [`Node::volume_snapshot_revert`].
    pub fn volume_snapshot_delete(&self, volume: &VolumeId, wanted: &str) -> Result<()> {
        self.on_snapshots(volume, Change::SnapshotDelete, |image| {
            image.delete_snapshot(wanted)
        })
    }

    fn on_snapshots<T>(
        &self,
        volume: &VolumeId,
        change: Change,
        body: impl FnOnce(&cenote_image::Image) -> cenote_image::Result<T>,
    ) -> Result<T> {
        let info = self.volume(volume)?;
        let format = self.trusted_format(&info)?;
        // Overlays read through the file that a snapshot rewrites.
        self.ensure_changeable(&info, &[])?;
        self.change(&info, change, |_| {
            let image = self.open_image(&info.path, format, true)?;
            let value = body(&image).map_err(StorageError::from)?;
            image.close().map_err(StorageError::from)?;
            Ok(value)
        })
    }
}

/// A new size for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resize {
    /// Bytes: the new size, or with `delta` the difference to the present.
    pub size: u64,
    /// Whether `size` is a difference: grown by, or with `shrink` shrunk by.
    pub delta: bool,
    /// Allows the volume to become smaller, which cuts off its end.
    pub shrink: bool,
    /// Reserves the space of the new part at once.
    pub allocate: bool,
}

impl Resize {
    /// The size that is meant, given the present one.
    fn target(&self, current: u64) -> Option<u64> {
        match (self.delta, self.shrink) {
            (false, _) => Some(self.size),
            (true, false) => current.checked_add(self.size),
            (true, true) => current.checked_sub(self.size),
        }
    }
}

impl Node {
    /// Makes a volume longer, or with [`Resize::shrink`] shorter, and answers
    /// its new size.
    ///
    /// # Errors
    /// It would become shorter without leave; others stand on it; it is in
    /// use; its snapshots do not fit the size; the pool is full.
    pub fn volume_resize(&self, volume: &VolumeId, resize: &Resize) -> Result<u64> {
        let info = self.volume(volume)?;
        let target = resize_target(&info, resize)?;
        let format = self.trusted_format(&info)?;
        if resize.allocate && format == Format::Qcow2 {
            return Err(StorageError::PoolCannot {
                pool: info.pool.clone(),
                what: "allocate the new part of a qcow2 volume".into(),
                reason: "only raw volumes are allocated when they are resized; leave --allocate \
                         away"
                    .into(),
            }
            .into());
        }
        self.ensure_changeable(&info, &[])?;
        if info.kind == VolumeKind::Block {
            let row = self.running_pool(&info.pool)?;
            let group = row.logical()?;
            return self
                .change(&info, Change::Resize, |_| {
                    Ok(group.resize(&info.name, target)?)
                })
                .and_then(|()| Ok(self.volume(volume)?.capacity));
        }
        self.change(&info, Change::Resize, |_| {
            let image = self.open_image(&info.path, format, true)?;
            if resize.allocate {
                super::create::reserve(&info.path, target)?;
            }
            ops::resize(&image, target, resize.shrink).map_err(StorageError::from)?;
            image.close().map_err(StorageError::from)?;
            Ok(target)
        })
    }

    /// Compares what two volumes show.
    ///
    /// # Errors
    /// One is in use by a writer or cannot be read.
    pub fn volume_compare(
        &self,
        left: &VolumeId,
        right: &VolumeId,
        progress: &dyn Progress,
    ) -> Result<ops::Comparison> {
        let (left, right) = (
            self.open_volume(left, false)?,
            self.open_volume(right, false)?,
        );
        let report = |done, total| progress.update(done, total);
        Ok(ops::compare(&left, &right, &report).map_err(StorageError::from)?)
    }

    /// The size a resize would give a volume.
    ///
    /// # Errors
    /// There is no such volume, it would become smaller without leave, or the
    /// size is beyond all bounds.
    pub fn volume_resize_target(&self, volume: &VolumeId, resize: &Resize) -> Result<u64> {
        resize_target(&self.volume(volume)?, resize)
    }
}

fn resize_target(info: &VolumeInfo, resize: &Resize) -> Result<u64> {
    let invalid = |reason: &str| {
        Error::from(StorageError::Invalid {
            what: format!("size of volume '{}'", info.id()),
            reason: reason.into(),
        })
    };
    let target = resize
        .target(info.capacity)
        .filter(|target| *target <= i64::MAX as u64)
        .ok_or_else(|| invalid("the result is no size a disk can have"))?;
    if target == 0 {
        return Err(invalid("a disk cannot be empty"));
    }
    if target < info.capacity && !resize.shrink {
        return Err(StorageError::WouldShrink {
            volume: info.id(),
            current: info.capacity,
            wanted: target,
        }
        .into());
    }
    if info.kind == VolumeKind::Dir {
        return Err(StorageError::NotADisk(info.id()).into());
    }
    Ok(target)
}
