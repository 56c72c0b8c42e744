//! Changing what an image stands on: rebase and flatten, and the steps that
//! commit and removal are made of. Each may be taken again after it was
//! interrupted.

use std::path::Path;

use cenote_image::{BackingPolicy, BackingSpec, Format, Image, OpenOptions, chain, ops};
use cenote_pools::{Error as StorageError, Progress, VolumeId};

use super::collapse::{ImageRef, invalid};
use super::guard::identity;
use super::{NewBacking, NewVolume};
use crate::error::Result;
use crate::jobs::JobProgress;
use crate::node::Node;
use crate::plan::Change;

impl Node {
    /// Puts another image (or none) below a volume. What the volume shows
    /// stays the same: where old and new differ, it takes over the old.
    ///
    /// # Errors
    /// The new image stands on the volume itself; either is in use; the
    /// volume has internal snapshots.
    pub fn volume_rebase(
        &self,
        volume: &VolumeId,
        new: Option<&NewBacking>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let info = self.volume(volume)?;
        let image = self.image_ref(&info)?;
        self.ensure_unused(&info)?;
        let base = self.new_base(volume, new)?;
        let change = if base.is_some() {
            Change::Rebase
        } else {
            Change::Flatten
        };
        self.change(&info, change, |operation| {
            self.rebase_image(&image, base.as_ref(), &operation.progress(progress))
        })
    }

    /// Changes only what the volume's header says of its backing file, for
    /// one that was moved. Other content below changes what the volume shows.
    ///
    /// # Errors
    /// As [`Node::volume_rebase`].
    pub fn volume_rebase_unsafe(&self, volume: &VolumeId, new: Option<&NewBacking>) -> Result<()> {
        let info = self.volume(volume)?;
        let image = self.image_ref(&info)?;
        self.ensure_unused(&info)?;
        let base = self.new_base(volume, new)?;
        self.change(&info, Change::Rebase, |_| {
            self.rename_base(&image, base.as_ref())
        })
    }

    /// Makes a volume stand alone: it takes over all it needs from below.
    ///
    /// # Errors
    /// As [`Node::volume_rebase`].
    pub fn volume_flatten(&self, volume: &VolumeId, progress: &dyn Progress) -> Result<()> {
        self.volume_rebase(volume, None, progress)
    }

    /// The image meant by `new`, which must not stand on `volume`.
    fn new_base(&self, volume: &VolumeId, new: Option<&NewBacking>) -> Result<Option<ImageRef>> {
        let Some(new) = new else { return Ok(None) };
        let info = self.volume(volume)?;
        let spec = self.backing_spec(&NewVolume::overlay(&info.name, new.clone()), new)?;
        let base = ImageRef {
            path: spec.path.into(),
            format: spec.format,
        };
        let wanted = identity(&info.path);
        let below = self.layers().ancestors(&base.path, base.format);
        if std::iter::once(&base.path)
            .chain(&below)
            .any(|path| identity(path) == wanted)
        {
            return Err(invalid(
                volume,
                format!(
                    "'{}' is or stands on the volume itself",
                    base.path.display()
                ),
            ));
        }
        // Whether the place is allowed is decided before anything is written.
        chain::resolve_backing(
            &info.path,
            &base.path.to_string_lossy(),
            Some(base.format),
            &self.backing_policy()?,
        )
        .map_err(StorageError::from)?;
        Ok(Some(base))
    }

    /// Moves what `top` and the layers between hold into `base`, one of the
    /// layers below `top`.
    pub(crate) fn commit_image(
        &self,
        top: &ImageRef,
        base: &ImageRef,
        progress: &JobProgress<'_>,
    ) -> Result<()> {
        let policy = self.backing_policy()?;
        let layers = chain::list(&top.path, top.format, &policy).map_err(StorageError::from)?;
        let wanted = identity(&base.path);
        let depth = layers
            .iter()
            .position(|layer| identity(&layer.path) == wanted)
            .and_then(|depth| u32::try_from(depth).ok())
            .filter(|depth| *depth > 0)
            .ok_or_else(|| StorageError::Invalid {
                what: format!("'{}'", base.path.display()),
                reason: format!("it is not below '{}'", top.path.display()),
            })?;
        let image = OpenOptions::new(top.format)
            .writable_layer(depth)
            .backing(policy)
            .open(&top.path)
            .map_err(StorageError::from)?;
        ops::commit(&image, depth, progress).map_err(StorageError::from)?;
        Ok(image.close().map_err(StorageError::from)?)
    }

    /// Puts `base` below `overlay` without changing what that shows; nothing
    /// to do where it is there already.
    pub(crate) fn rebase_image(
        &self,
        overlay: &ImageRef,
        base: Option<&ImageRef>,
        progress: &JobProgress<'_>,
    ) -> Result<()> {
        if self.stands_on(overlay, base)? {
            return Ok(());
        }
        let image = self.open_image(&overlay.path, overlay.format, true)?;
        let done = match base {
            None => ops::flatten(&image, progress),
            Some(base) => {
                let below = self.open_image(&base.path, base.format, false)?;
                ops::rebase(&image, &below, &spec(base)?, progress)
            }
        };
        done.map_err(StorageError::from)?;
        Ok(image.close().map_err(StorageError::from)?)
    }

    /// Writes into the header of `overlay` that it stands on `base`.
    pub(crate) fn rename_base(&self, overlay: &ImageRef, base: Option<&ImageRef>) -> Result<()> {
        if self.stands_on(overlay, base)? {
            return Ok(());
        }
        let image = open_alone(&overlay.path, overlay.format)?;
        let spec = base.map(spec).transpose()?;
        ops::rebase_unsafe(&image, spec.as_ref()).map_err(StorageError::from)?;
        Ok(image.close().map_err(StorageError::from)?)
    }

    fn stands_on(&self, overlay: &ImageRef, base: Option<&ImageRef>) -> Result<bool> {
        let layer = self.layers().read(&overlay.path)?;
        Ok(match (&layer.backing, base) {
            (None, None) => true,
            (Some(now), Some(base)) => {
                now.path.as_deref().and_then(identity) == identity(&base.path)
                    && now.format.as_deref() == Some(base.format.as_str())
                    && Path::new(&now.written) == base.path
            }
            _ => false,
        })
    }
}

/// Opens one layer for writing, without what is below it.
pub(crate) fn open_alone(path: &Path, format: Format) -> Result<Image> {
    let policy = BackingPolicy {
        open: false,
        ..BackingPolicy::default()
    };
    let image = OpenOptions::new(format)
        .writable(true)
        .backing(policy)
        .open(path);
    Ok(image.map_err(StorageError::from)?)
}

fn spec(base: &ImageRef) -> Result<BackingSpec> {
    let path = base.path.to_str().ok_or_else(|| StorageError::Invalid {
        what: format!("'{}'", base.path.display()),
        reason: "its path is not UTF-8 and cannot stand in a header".into(),
    })?;
    Ok(BackingSpec {
        path: path.to_owned(),
        format: base.format,
    })
}
