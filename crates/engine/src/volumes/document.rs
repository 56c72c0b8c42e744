//! Volumes as libvirt's documents, in and out.

use std::path::Path;

use cenote_image::Format;
use cenote_model::volume::{
    BackingStore, Compat, Format as DocumentFormat, FormatType, Mode, Permissions as Owner,
    Timestamp, Timestamps, Volume, VolumeFeatures, VolumeKind as DocumentKind, VolumeTarget,
};
use cenote_model::{Bytes, Document, Name, ReadOptions};
use cenote_pools::{Error as StorageError, Permissions, VolumeId, VolumeInfo, VolumeKind};

use super::{NewBacking, NewVolume, Qcow2Settings};
use crate::error::{Error, Result};
use crate::node::Node;

impl NewVolume {
    /// What a `<volume>` document asks for. What it merely reports (key, path,
    /// times) is not asked for.
    ///
    /// # Errors
    /// The document asks for what Cenote does not do.
    pub fn from_document(document: &Volume) -> Result<Self> {
        let name = document.name.to_string();
        let bad = |reason: String| {
            Error::from(StorageError::BadDefinition {
                what: format!("volume '{name}'"),
                reason,
            })
        };
        let target = &document.target;
        let format = image_format(document.format()).map_err(&bad)?;
        if target.nocow {
            let reason = "copy-on-write of the file system is turned off for a whole pool, by \
                          <features><cow state='no'/></features> of the pool";
            return Err(bad(reason.into()));
        }
        let permissions = match &target.permissions {
            Some(permissions) if permissions.label.is_some() => {
                return Err(bad("security labels are not supported".into()));
            }
            Some(permissions) => Permissions {
                mode: permissions.mode.map(|mode| mode.0),
                owner: permissions.owner.and_then(|id| u32::try_from(id).ok()),
                group: permissions.group.and_then(|id| u32::try_from(id).ok()),
            },
            None => Permissions::default(),
        };
        let features = target.features.clone().unwrap_or_default();
        let capacity = document.capacity.map(|bytes| bytes.0);
        let allocation = document.allocation.map(|bytes| bytes.0);
        Ok(NewVolume {
            format,
            capacity,
            // Documents of existing qcow2 volumes report what they have grown
            // to; libvirt takes that as no request either.
            allocation: allocation.filter(|_| format == Format::Raw),
            preallocation: None,
            qcow2: Qcow2Settings {
                version_2: target.compat == Some(Compat::V0_10),
                cluster_size: target.cluster_size.map(|bytes| bytes.0),
                lazy_refcounts: features.lazy_refcounts,
                extended_l2: features.extended_l2,
                ..Qcow2Settings::default()
            },
            backing: match &document.backing_store {
                Some(store) => Some(NewBacking {
                    image: store.path.clone(),
                    format: match &store.format {
                        Some(format) => Some(image_format(format.kind).map_err(&bad)?),
                        None => None,
                    },
                }),
                None => None,
            },
            permissions,
            name,
        })
    }

    /// Reads a `<volume>` document.
    ///
    /// # Errors
    /// It is none, or asks for what Cenote does not do.
    pub fn from_xml(xml: &str) -> Result<Self> {
        let parsed = Volume::from_xml(xml, &ReadOptions::default()).map_err(StorageError::from)?;
        Self::from_document(&parsed.document)
    }
}

fn image_format(format: DocumentFormat) -> std::result::Result<Format, String> {
    match format {
        DocumentFormat::Raw => Ok(Format::Raw),
        DocumentFormat::Qcow2 => Ok(Format::Qcow2),
        other => Err(format!(
            "format '{other}' is not supported; use raw or qcow2"
        )),
    }
}

impl Node {
    /// The `<volume>` document of a volume.
    ///
    /// # Errors
    /// There is no such volume.
    pub fn volume_xml(&self, volume: &VolumeId) -> Result<String> {
        Ok(self.volume_document(&self.volume(volume)?)?.to_xml())
    }

    /// The document of a volume, as a value.
    ///
    /// # Errors
    /// Its name is none (which a listed volume's is).
    pub fn volume_document(&self, info: &VolumeInfo) -> Result<Volume> {
        let name = Name::new(info.name.clone()).map_err(|error| Error::BadRecord {
            what: format!("volume '{}'", info.id()),
            reason: error.to_string(),
        })?;
        let mut target = VolumeTarget {
            path: Some(info.path.display().to_string()),
            format: Some(FormatType {
                kind: document_format(&info.format),
                ..Default::default()
            }),
            permissions: Some(Owner {
                mode: Some(Mode(info.mode)),
                owner: Some(i64::from(info.owner)),
                group: Some(i64::from(info.group)),
                ..Owner::default()
            }),
            timestamps: Some(times(&info.path)),
            ..VolumeTarget::default()
        };
        if info.format == "qcow2"
            && let Ok(layer) = self.layers().read(&info.path)
        {
            target.compat = Some(if layer.version < 3 {
                Compat::V0_10
            } else {
                Compat::V1_1
            });
            target.cluster_size = Some(Bytes(layer.cluster_size));
            target.features = (layer.version >= 3).then(|| VolumeFeatures {
                lazy_refcounts: layer.lazy_refcounts,
                extended_l2: layer.extended_l2,
                ..VolumeFeatures::default()
            });
        }
        Ok(Volume {
            kind: Some(match info.kind {
                VolumeKind::File => DocumentKind::File,
                VolumeKind::Block => DocumentKind::Block,
                VolumeKind::Dir => DocumentKind::Dir,
            }),
            name,
            key: Some(info.key.clone()),
            capacity: Some(Bytes(info.capacity)),
            allocation: Some(Bytes(info.allocation)),
            physical: Some(Bytes(info.physical)),
            target,
            backing_store: info.backing.as_ref().map(|backing| BackingStore {
                path: match &backing.path {
                    Some(path) => path.display().to_string(),
                    None => backing.written.clone(),
                },
                format: backing.format.as_ref().map(|format| FormatType {
                    kind: document_format(format),
                    ..FormatType::default()
                }),
                ..BackingStore::default()
            }),
            ..Volume::default()
        })
    }
}

fn document_format(name: &str) -> DocumentFormat {
    DocumentFormat::ALL
        .iter()
        .copied()
        .find(|format| format.as_str() == name)
        .unwrap_or(DocumentFormat::Unknown)
}

fn times(path: &Path) -> Timestamps {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::metadata(path) else {
        return Timestamps::default();
    };
    let time = |seconds: i64, nanoseconds: i64| {
        let seconds = u64::try_from(seconds).ok()?;
        Some(Timestamp::new(seconds, u32::try_from(nanoseconds).ok()?))
    };
    Timestamps {
        accessed: time(metadata.atime(), metadata.atime_nsec()),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        changed: time(metadata.ctime(), metadata.ctime_nsec()),
        ..Timestamps::default()
    }
}
