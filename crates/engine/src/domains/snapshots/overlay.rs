//! Images that are made for snapshots: overlays, and copies of what an image holds inside.

use std::path::{Path, PathBuf};

use cenote_image::create::{CreateOptions, create};
use cenote_image::{Format, chain};
use cenote_model::domain::{Disk, DiskKind, DiskSource, Domain};
use cenote_pools::file::{FileIdentity, identity, private_sibling};
use cenote_pools::{Error as StorageError, FormatOrigin, VolumeId};
use serde::{Deserialize, Serialize};

use super::SnapshotImage;
use super::table::NewImage;
use crate::domains::error::Error as DomainError;
use crate::domains::table::DomainRow;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::records;

/// An overlay that is made for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewOverlay {
    pub(crate) target: String,
    pub(crate) base: PathBuf,
    pub(crate) base_format: Format,
    /// The snapshot in the base that it shows; it is a copy of the base then, and stands on what
    /// that stands on.
    #[serde(default)]
    pub(crate) copy_of: Option<String>,
    /// Its private name until it is whole.
    pub(crate) temporary: PathBuf,
    pub(crate) path: PathBuf,
    /// The finished file; known from step 1.
    pub(crate) identity: Option<FileIdentity>,
}

impl NewOverlay {
    /// What is remembered of it.
    pub(super) fn remembered(&self) -> NewImage {
        let base = self.copy_of.is_none().then(|| text_of(&self.base));
        (text_of(&self.path), base)
    }
}

pub(super) fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Node {
    /// Where the overlay of an image is to be.
    pub(super) fn overlay(
        &self,
        row: &DomainRow,
        image: &SnapshotImage,
        name: &str,
        file: Option<PathBuf>,
    ) -> Result<NewOverlay> {
        let is_file = std::fs::metadata(&image.path).is_ok_and(|metadata| metadata.is_file());
        let path = match file {
            Some(file) => file,
            None if is_file => beside(&image.path, name),
            None => {
                let text = format!(
                    "disk '{}' is no file: name the file of its overlay \
                     (--diskspec {},file=/PATH)",
                    image.target, image.target
                );
                return Err(DomainError::InvalidArgument(text).into());
            }
        };
        if std::fs::symlink_metadata(&path).is_ok() {
            let reason = format!(
                "external snapshot file for disk {} already exists: '{}'",
                image.target,
                path.display()
            );
            let hint = format!(
                "choose another name: cenote snapshot-create-as {} NAME --disk-only",
                row.name
            );
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        Ok(NewOverlay {
            target: image.target.clone(),
            base: std::fs::canonicalize(&image.path).unwrap_or_else(|_| image.path.clone()),
            base_format: image.format,
            copy_of: None,
            temporary: private_sibling(&path, "new"),
            path,
            identity: None,
        })
    }

    /// Makes overlays under their private names.
    pub(super) fn make_overlays(&self, wanted: &[NewOverlay]) -> Result<Vec<NewOverlay>> {
        let mut made = Vec::new();
        for overlay in wanted {
            if let Some(snapshot) = &overlay.copy_of {
                self.copy_out(overlay, snapshot)?;
                made.push(NewOverlay {
                    identity: identity(&overlay.temporary)?,
                    ..overlay.clone()
                });
                continue;
            }
            let base = overlay.base.to_str().ok_or_else(|| {
                let text = format!("'{}' is no text", overlay.base.display());
                Error::from(DomainError::InvalidArgument(text))
            })?;
            let policy = self.backing_policy()?;
            let mut options = CreateOptions::overlay(base, overlay.base_format);
            options.policy = policy.clone();
            create(&overlay.temporary, &options).map_err(StorageError::from)?;
            // What could not be started from is not gone over to.
            chain::list(&overlay.temporary, Format::Qcow2, &policy).map_err(StorageError::from)?;
            keep_rights(&overlay.base, &overlay.temporary)?;
            let identity = identity(&overlay.temporary)?;
            made.push(NewOverlay {
                identity,
                ..overlay.clone()
            });
        }
        Ok(made)
    }

    /// Makes an image of its own of what an internal snapshot holds.
    fn copy_out(&self, overlay: &NewOverlay, snapshot: &str) -> Result<()> {
        copy_sparse(&overlay.base, &overlay.temporary).map_err(|source| Error::Io {
            action: "copy",
            path: overlay.base.clone(),
            source,
        })?;
        keep_rights(&overlay.base, &overlay.temporary)?;
        let copy = self.open_image(&overlay.temporary, overlay.base_format, true)?;
        copy.apply_snapshot(snapshot).map_err(StorageError::from)?;
        for found in copy.snapshots().map_err(StorageError::from)? {
            copy.delete_snapshot(&found.id)
                .map_err(StorageError::from)?;
        }
        Ok(copy.close().map_err(StorageError::from)?)
    }

    /// An overlay in a pool's directory is a volume whose format is known.
    pub(super) fn record_overlay(&self, path: &Path) -> Result<()> {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(folder), Some(name)) = (folder, name) else {
            return Ok(());
        };
        for row in self.pool_rows()? {
            let target = &row.definition.spec.target;
            if row.logical().is_err() && target.canonicalize().is_ok_and(|at| at == folder) {
                let volume = VolumeId::new(row.name(), name);
                records::put(self.state(), &volume, "qcow2", FormatOrigin::Created)?;
            }
        }
        Ok(())
    }
}

/// Removes an overlay that nothing uses, if the file is the one that was made.
pub(super) fn remove_overlay(overlay: &NewOverlay) -> Result<()> {
    if overlay.identity.is_some() && identity(&overlay.path)? == overlay.identity {
        std::fs::remove_file(&overlay.path).map_err(|source| Error::Io {
            action: "remove",
            path: overlay.path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// An overlay is its base's owner's, with the same mode.
fn keep_rights(base: &Path, overlay: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let failed = |source| Error::Io {
        action: "give its base's rights to",
        path: overlay.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(base).map_err(failed)?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(overlay, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(failed)?;
    }
    let mode = metadata.mode() & 0o666;
    std::fs::set_permissions(overlay, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Copies a file with its holes.
fn copy_sparse(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut source = std::fs::File::open(from)?;
    let mut copy = std::fs::File::create_new(to)?;
    if rustix::fs::ioctl_ficlone(&copy, &source).is_ok() {
        return copy.sync_all();
    }
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        copy.seek(SeekFrom::Start(data))?;
        let mut part = source.by_ref().take(hole.saturating_sub(data));
        std::io::copy(&mut part, &mut copy)?;
        at = hole.max(data.saturating_add(1));
    }
    copy.sync_all()
}

/// libvirt's name of an overlay: the image's without what follows its last dot, then the
/// snapshot's.
pub(super) fn beside(image: &Path, name: &str) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    image.with_file_name(format!("{stem}.{name}"))
}

/// The disk's image is the overlay from now on.
pub(super) fn go_over(document: &mut Domain, overlay: &NewOverlay) {
    let disks = document.devices.disks.iter_mut();
    for disk in disks.filter(|disk| disk.target.dev == overlay.target) {
        let same_folder = overlay.base.parent() == overlay.path.parent();
        set_source(disk, &overlay.path, Format::Qcow2, same_folder);
    }
}

/// The disk's image is `path`; in the `same_folder` as its last one it stays a volume.
pub(super) fn set_source(disk: &mut Disk, path: &Path, format: Format, same_folder: bool) {
    let driver = disk.driver.get_or_insert_default();
    driver.format = Some(match format {
        Format::Qcow2 => cenote_model::volume::Format::Qcow2,
        Format::Raw => cenote_model::volume::Format::Raw,
    });
    // What lay below the image lies below the overlay's base.
    disk.backing_store = None;
    let source = disk.source.get_or_insert_default();
    let beside = path.file_name().and_then(|name| name.to_str());
    if let (DiskKind::Volume, Some(name), true) = (disk.kind, beside, same_folder) {
        source.volume = Some(name.to_owned());
        return;
    }
    disk.kind = DiskKind::File;
    *source = DiskSource {
        file: Some(path.display().to_string()),
        ..DiskSource::default()
    };
}
