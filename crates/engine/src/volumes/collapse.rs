//! Taking layers out of chains: commit and removal from the middle.
//!
//! Both have three phases. First the data moves: down into the base (commit)
//! or up into the overlays (removal); what every image shows stays the same
//! all the while. Then the overlays are told their new base. Then the layers
//! nobody needs any more are deleted. An interruption in the first phase is
//! undone by doing nothing, later ones are finished.

use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_pools::file::{private_sibling, remove_private, retire};
use cenote_pools::{Error as StorageError, Progress, VolumeId, VolumeInfo};
use serde::{Deserialize, Serialize};

use super::guard::identity;
use crate::error::{Error, Result};
use crate::journal::Operation;
use crate::node::Node;
use crate::plan::Plan;
use crate::records;

/// A layer that goes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    pub(crate) volume: VolumeId,
    pub(crate) path: PathBuf,
    /// Its name on the way out.
    pub(crate) trash: PathBuf,
}

/// An image with its format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRef {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

/// The layers that change places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Collapse {
    /// Whether data moves down (commit) or up (removal).
    pub(crate) down: bool,
    /// The layer whose data moves.
    pub(crate) volume: VolumeId,
    pub(crate) image: ImageRef,
    /// What the overlays stand on afterwards; `None`: on nothing.
    pub(crate) base: Option<ImageRef>,
    /// All other volumes that are touched.
    pub(crate) others: Vec<VolumeId>,
    /// Images that stand on the layer directly.
    pub(crate) overlays: Vec<ImageRef>,
    /// Layers that are deleted in the end.
    pub(crate) removed: Vec<Removed>,
}

/// What a commit does with the layers that are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterCommit {
    /// They are deleted; what stood on them stands on the base.
    #[default]
    Delete,
    /// They stay and show what they showed.
    Keep,
}

impl Node {
    /// Writes what `volume` (and the layers between) has into `base`, by
    /// default the layer right below it.
    ///
    /// # Errors
    /// `base` is not below `volume`; something else stands on a layer that
    /// would change; a layer is in use.
    pub fn volume_commit(
        &self,
        volume: &VolumeId,
        base: Option<&VolumeId>,
        after: AfterCommit,
        progress: &dyn Progress,
    ) -> Result<()> {
        let top = self.volume(volume)?;
        let below = self.layers_below(&top)?;
        let depth = match base {
            None => 0,
            Some(base) => below
                .iter()
                .position(|info| info.id() == *base)
                .ok_or_else(|| {
                    invalid(
                        &top.id(),
                        format!("volume '{base}' is not in the chain below it"),
                    )
                })?,
        };
        let (between, base) = match below.get(..=depth) {
            Some([between @ .., base]) => (between, base),
            _ => {
                return Err(invalid(
                    &top.id(),
                    "it has no backing volume to commit into".into(),
                ));
            }
        };
        let overlays = self.direct_overlays(&top)?;
        let mut ours: Vec<VolumeId> = self.dependents_of(&top.path)?;
        ours.push(top.id());
        ours.extend(between.iter().map(|info| info.id()));
        for info in std::iter::once(base).chain(between) {
            self.ensure_changeable(info, &ours)?;
        }
        self.ensure_unused(&top)?;
        for overlay in &overlays {
            self.ensure_unused(overlay)?;
        }
        let keep = after == AfterCommit::Keep;
        // Behind the end of the top an overlay reads zeroes; behind the end of
        // a longer base it would read what the base has there.
        let longer = overlays.iter().find(|overlay| {
            overlay.capacity > top.capacity && base.capacity > top.capacity && !keep
        });
        if let Some(longer) = longer {
            return Err(invalid(
                &top.id(),
                format!(
                    "it is shorter than '{}' below and '{}' above it, which would then show other \
                     content at its end; resize it first, or flatten '{}'",
                    base.id(),
                    longer.id(),
                    longer.id()
                ),
            ));
        }
        let merged: Vec<&VolumeInfo> = std::iter::once(&top).chain(between).collect();
        let collapse = Collapse {
            down: true,
            volume: top.id(),
            image: self.image_ref(&top)?,
            base: Some(self.image_ref(base)?),
            others: ours
                .into_iter()
                .filter(|id| *id != top.id())
                .chain([base.id()])
                .collect(),
            overlays: if keep {
                Vec::new()
            } else {
                self.image_refs(&overlays)?
            },
            removed: if keep {
                Vec::new()
            } else {
                merged.into_iter().map(removal).collect()
            },
        };
        self.collapse(collapse, progress)
    }

    /// Deletes a volume from the middle of its chain: the overlays that stand
    /// on it take over what they need of it and stand on its backing file.
    ///
    /// # Errors
    /// It or an overlay is in use, or an overlay's format is not trusted.
    pub fn volume_remove_layer(&self, volume: &VolumeId, progress: &dyn Progress) -> Result<()> {
        let layer = self.volume(volume)?;
        let overlays = self.direct_overlays(&layer)?;
        if overlays.is_empty() {
            return self.volume_delete(volume);
        }
        let dependents = self.dependents_of(&layer.path)?;
        self.ensure_changeable(&layer, &dependents)?;
        for overlay in &overlays {
            self.ensure_unused(overlay)?;
        }
        self.refuse_snapshots(&layer)?;
        let base = match &layer.backing {
            Some(_) => Some(self.backing_ref(&layer)?),
            None => None,
        };
        let collapse = Collapse {
            down: false,
            volume: layer.id(),
            image: self.image_ref(&layer)?,
            base,
            others: overlays.iter().map(|info| info.id()).collect(),
            overlays: self.image_refs(&overlays)?,
            removed: vec![removal(&layer)],
        };
        self.collapse(collapse, progress)
    }

    /// Internal snapshots go with the file that holds them; that is never a
    /// side effect of taking a layer out.
    fn refuse_snapshots(&self, info: &VolumeInfo) -> Result<()> {
        let snapshots = self.open_image(&info.path, self.trusted_format(info)?, false)?;
        let names = snapshots.snapshots().map_err(StorageError::from)?;
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = names
            .iter()
            .map(|snap| format!("'{}'", snap.name))
            .collect();
        Err(invalid(
            &info.id(),
            format!(
                "its internal snapshots {} would be lost; delete them first: cenote \
                 vol-snapshot-delete {} NAME",
                names.join(", "),
                info.id()
            ),
        ))
    }

    fn collapse(&self, collapse: Collapse, progress: &dyn Progress) -> Result<()> {
        let mut operation = self.begin(Plan::Collapse(collapse.clone()))?;
        let result = self
            .move_data(&operation, &collapse, progress)
            .and_then(|()| operation.revise(1, |_| {}))
            .and_then(|()| self.finish_collapse(&collapse));
        operation.finish(result)
    }

    fn move_data(
        &self,
        operation: &Operation<'_>,
        collapse: &Collapse,
        progress: &dyn Progress,
    ) -> Result<()> {
        let progress = operation.progress(progress);
        if collapse.down {
            let Some(base) = &collapse.base else {
                return Ok(());
            };
            return self.commit_image(&collapse.image, base, &progress);
        }
        for overlay in &collapse.overlays {
            self.rebase_image(overlay, collapse.base.as_ref(), &progress)?;
        }
        Ok(())
    }

    /// The last two phases, whatever part of them is done already.
    pub(crate) fn finish_collapse(&self, collapse: &Collapse) -> Result<()> {
        for overlay in &collapse.overlays {
            self.rename_base(overlay, collapse.base.as_ref())?;
        }
        for removed in &collapse.removed {
            if removed.path.exists() {
                retire(&removed.path, &removed.trash)?;
            }
            remove_private(&removed.trash)?;
            records::remove(self.state(), &removed.volume)?;
        }
        Ok(())
    }

    /// The volumes below `info`, nearest first. Ends at the bottom or at an
    /// image that is no volume.
    pub(crate) fn layers_below(&self, info: &VolumeInfo) -> Result<Vec<VolumeInfo>> {
        let mut found = Vec::new();
        let mut next = info.backing.clone().and_then(|backing| backing.path);
        while let Some(path) = next {
            let Some(volume) = self.volume_at(&path)? else {
                break;
            };
            let again = found
                .iter()
                .any(|known: &VolumeInfo| known.path == volume.path);
            if again || volume.path == info.path {
                break;
            }
            next = volume.backing.clone().and_then(|backing| backing.path);
            found.push(volume);
        }
        Ok(found)
    }

    /// The volumes that name `info` as their backing file.
    pub(crate) fn direct_overlays(&self, info: &VolumeInfo) -> Result<Vec<VolumeInfo>> {
        let wanted = identity(&info.path);
        let mut overlays = Vec::new();
        for id in self.dependents_of(&info.path)? {
            let overlay = self.volume(&id)?;
            let below = overlay
                .backing
                .as_ref()
                .and_then(|backing| backing.path.as_deref());
            if below.and_then(identity) == wanted {
                overlays.push(overlay);
            }
        }
        Ok(overlays)
    }

    /// The volume whose file is `path`, in any running pool.
    pub(crate) fn volume_at(&self, path: &Path) -> Result<Option<VolumeInfo>> {
        let wanted = identity(path);
        for row in self.pool_rows()?.iter().filter(|row| row.active) {
            let Ok(listing) = row.backend().check().and_then(|()| row.backend().list()) else {
                continue;
            };
            let found = listing
                .volumes
                .into_iter()
                .find(|found| found.path == path || identity(&found.path) == wanted);
            if let Some(found) = found {
                return self
                    .volume(&VolumeId::new(row.name(), found.name))
                    .map(Some);
            }
        }
        Ok(None)
    }

    pub(crate) fn ensure_unused(&self, info: &VolumeInfo) -> Result<()> {
        let users = self.users_of(&info.path)?;
        if users.is_empty() {
            return Ok(());
        }
        Err(StorageError::VolumeInUse {
            volume: info.id().to_string(),
            users,
        }
        .into())
    }

    pub(crate) fn image_ref(&self, info: &VolumeInfo) -> Result<ImageRef> {
        Ok(ImageRef {
            path: info.path.clone(),
            format: self.trusted_format(info)?,
        })
    }

    fn image_refs(&self, infos: &[VolumeInfo]) -> Result<Vec<ImageRef>> {
        infos.iter().map(|info| self.image_ref(info)).collect()
    }

    /// What `info` stands on, as its header declares it.
    pub(crate) fn backing_ref(&self, info: &VolumeInfo) -> Result<ImageRef> {
        let backing = info
            .backing
            .as_ref()
            .ok_or_else(|| invalid(&info.id(), "it has no backing file".into()))?;
        let format = backing
            .format
            .as_deref()
            .and_then(|format| format.parse().ok());
        match (&backing.path, format) {
            (Some(path), Some(format)) => Ok(ImageRef {
                path: path.clone(),
                format,
            }),
            (None, _) => Err(invalid(
                &info.id(),
                format!(
                    "its backing file '{}' is none on this host",
                    backing.written
                ),
            )),
            (_, None) => Err(invalid(
                &info.id(),
                "its header does not declare the format of its backing file; set it with: cenote \
                 vol-rebase --unsafe"
                    .into(),
            )),
        }
    }
}

pub(crate) fn invalid(volume: &VolumeId, reason: String) -> Error {
    StorageError::Invalid {
        what: format!("volume '{volume}'"),
        reason,
    }
    .into()
}

fn removal(info: &VolumeInfo) -> Removed {
    Removed {
        volume: info.id(),
        path: info.path.clone(),
        trash: private_sibling(&info.path, "old"),
    }
}
