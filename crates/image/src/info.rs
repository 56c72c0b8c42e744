//! What there is to say about an image, in qemu-img's words.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::chain;
use crate::error::{Error, Result};
use crate::image::{Driver, Image};
use crate::options::{BackingPolicy, Format};
use crate::qcow2::Qcow2;
use crate::qcow2::header::{Compression, compatible, incompatible};
use crate::storage::Storage;

/// The fields of `qemu-img info --output=json` that this engine knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The file, as it was opened.
    pub filename: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes that the file takes on the host.
    pub actual_size: u64,
    /// Bytes in a cluster.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cluster_size: Option<u64>,
    /// The dirty bit: it is open, or was not closed.
    pub dirty_flag: bool,
    /// The backing file's name as written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backing_filename: Option<String>,
    /// The backing file as resolved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub full_backing_filename: Option<PathBuf>,
    /// The backing file's format as written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backing_filename_format: Option<String>,
    /// What only qcow2 has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub format_specific: Option<FormatSpecific>,
}

/// Details by format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub enum FormatSpecific {
    /// Of a qcow2 image.
    Qcow2(Qcow2Info),
}

/// Details of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// `0.10` (version 2) or `1.1` (version 3).
    pub compat: String,
    /// Of compressed clusters.
    pub compression_type: Compression,
    /// Whether refcounts may be postponed.
    pub lazy_refcounts: bool,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// The corrupt bit.
    pub corrupt: bool,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// The external data file's name as written.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_file: Option<String>,
    /// Whether it is kept readable as a raw image.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data_file_raw: Option<bool>,
    /// Internal snapshots in it.
    pub snapshot_count: u32,
    /// Persistent bitmaps in it.
    pub bitmap_count: u32,
}

impl Image {
    /// Describes this layer.
    ///
    /// # Errors
    /// Those of the host when asked for the file's size.
    pub fn info(&self) -> Result<ImageInfo> {
        let mut info = ImageInfo {
            filename: self.path().to_owned(),
            format: self.format(),
            virtual_size: self.size(),
            actual_size: self.actual_size()?,
            cluster_size: None,
            dirty_flag: false,
            backing_filename: None,
            full_backing_filename: None,
            backing_filename_format: None,
            format_specific: None,
        };
        if let Some(qcow2) = self.qcow2() {
            self.describe_qcow2(qcow2, &mut info);
        }
        Ok(info)
    }

    fn describe_qcow2(&self, qcow2: &Qcow2, info: &mut ImageInfo) {
        let header = qcow2.header.lock().clone();
        info.cluster_size = Some(qcow2.geo.cluster_size);
        info.dirty_flag = header.incompatible & incompatible::DIRTY != 0;
        info.full_backing_filename = match (self.backing(), &header.backing_name) {
            (Some(backing), _) => Some(backing.path().to_owned()),
            (None, Some(name)) => {
                let declared = chain::declared_format(&header, self.path());
                let any = BackingPolicy::default();
                // An unusable name is shown as written only.
                declared
                    .and_then(|format| chain::resolve_backing(self.path(), name, format, &any))
                    .ok()
                    .map(|backing| backing.path)
            }
            (None, None) => None,
        };
        info.format_specific = Some(FormatSpecific::Qcow2(Qcow2Info {
            compat: if header.version == 2 { "0.10" } else { "1.1" }.to_owned(),
            compression_type: header.compression,
            lazy_refcounts: header.compatible & compatible::LAZY_REFCOUNTS != 0,
            refcount_bits: header.refcount_bits(),
            corrupt: header.incompatible & incompatible::CORRUPT != 0,
            extended_l2: header.is_extended_l2(),
            data_file_raw: header.has_data_file().then(|| header.is_data_file_raw()),
            data_file: header.extensions.data_file.clone(),
            snapshot_count: header.snapshot_count,
            bitmap_count: header.extensions.bitmaps.map_or(0, |b| b.count),
        }));
        info.backing_filename = header.backing_name;
        info.backing_filename_format = header.extensions.backing_format;
    }

    fn actual_size(&self) -> Result<u64> {
        let storage: &dyn Storage = match self.driver() {
            Driver::Raw(raw) => raw.storage.as_ref(),
            Driver::Qcow2(qcow2) => qcow2.storage.as_ref(),
        };
        let failed = |e| Error::io(self.path(), "find its size", e);
        match storage.as_fd() {
            Some(fd) => {
                let stat = rustix::fs::fstat(fd).map_err(|e| failed(e.into()))?;
                Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
            }
            None => storage.length().map_err(failed),
        }
    }
}
