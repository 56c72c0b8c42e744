//! Creating images.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::chain;
use crate::error::{Error, Result};
use crate::image::OpenOptions;
use crate::options::{BackingPolicy, Format, LockPolicy};
pub use crate::qcow2::header::Compression;
use crate::qcow2::{Qcow2, create as qcow2_create};
use crate::storage::{CacheMode, FileStorage, Storage};

/// The qcow2 version of a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Compat {
    /// Version 2, readable by QEMU since 0.10.
    #[serde(rename = "0.10")]
    V2,
    /// Version 3, QEMU since 1.1.
    #[default]
    #[serde(rename = "1.1")]
    V3,
}

impl Compat {
    /// Whether this is version 3.
    pub fn is_v3(self) -> bool {
        self == Compat::V3
    }
}

impl FromStr for Compat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "0.10" | "v2" => Ok(Compat::V2),
            "1.1" | "v3" => Ok(Compat::V3),
            other => Err(Error::invalid(
                format!("compat '{other}'"),
                "use 0.10 or 1.1",
            )),
        }
    }
}

/// What of a new image exists before the first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The mapping; data is sparse (qcow2 only).
    Metadata,
    /// The mapping, and space reserved by the host file system.
    Falloc,
    /// The mapping, and all data written as zeroes.
    Full,
}

impl FromStr for Preallocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Preallocation::Off),
            "metadata" => Ok(Preallocation::Metadata),
            "falloc" => Ok(Preallocation::Falloc),
            "full" => Ok(Preallocation::Full),
            other => Err(Error::invalid(
                format!("preallocation '{other}'"),
                "use off, metadata, falloc or full",
            )),
        }
    }
}

/// The backing file of a new overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingSpec {
    /// The name as it is written in the header: absolute, or relative to the
    /// folder of the new image, or `json:{..}`.
    pub path: String,
    /// Its format, written too.
    pub format: Format,
}

/// What to create. `CreateOptions::new` gives qemu-img's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Raw or qcow2.
    pub format: Format,
    /// Virtual size in bytes; `None` takes the backing file's.
    pub size: Option<u64>,
    /// Bytes, a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// The qcow2 version.
    pub compat: Compat,
    /// 1, 2, 4, 8, 16, 32 or 64; 16 in version 2.
    pub refcount_bits: u32,
    /// Let writers postpone refcounts (version 3).
    pub lazy_refcounts: bool,
    /// Clusters have 32 subclusters (version 3, clusters of 16 KiB or more).
    pub extended_l2: bool,
    /// Of compressed clusters.
    pub compression: Compression,
    /// Absolute name of an external data file, which is created too.
    pub data_file: Option<String>,
    /// Keep the data file readable as a raw image.
    pub data_file_raw: bool,
    /// What exists before the first write.
    pub preallocation: Preallocation,
    /// Make an overlay.
    pub backing: Option<BackingSpec>,
    /// Which backing files are acceptable.
    pub policy: BackingPolicy,
}

impl CreateOptions {
    /// Defaults: clusters of 64 KiB, version 3, 16-bit refcounts.
    pub fn new(format: Format, size: u64) -> Self {
        CreateOptions {
            format,
            size: Some(size),
            cluster_size: 65536,
            compat: Compat::V3,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Zlib,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            backing: None,
            policy: BackingPolicy::default(),
        }
    }

    /// An overlay of the backing file's size.
    pub fn overlay(backing: impl Into<String>, format: Format) -> Self {
        CreateOptions {
            size: None,
            backing: Some(BackingSpec {
                path: backing.into(),
                format,
            }),
            ..CreateOptions::new(Format::Qcow2, 0)
        }
    }

    fn check(&self) -> Result<()> {
        if self.format == Format::Raw {
            return self.check_raw();
        }
        let refuse = |what: String, reason: &str| Err(Error::invalid(what, reason));
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return refuse(
                format!("cluster size {}", self.cluster_size),
                "must be a power of two from 512 bytes to 2 MiB",
            );
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refuse(
                format!("refcount_bits {}", self.refcount_bits),
                "must be 1, 2, 4, 8, 16, 32 or 64",
            );
        }
        if !self.compat.is_v3() {
            let needs_v3 = [
                (self.refcount_bits != 16, "refcount widths other than 16"),
                (self.lazy_refcounts, "lazy refcounts"),
                (self.extended_l2, "extended L2 entries"),
                (self.compression != Compression::Zlib, "zstd compression"),
                (self.data_file.is_some(), "external data files"),
            ];
            if let Some((_, what)) = needs_v3.iter().find(|(wanted, _)| *wanted) {
                return refuse((*what).to_owned(), "need compat 1.1");
            }
        }
        if self.extended_l2 && self.cluster_size < 16384 {
            return refuse(
                "extended_l2".to_owned(),
                "needs a cluster size of 16 KiB or more",
            );
        }
        if let Some(name) = &self.data_file
            && !Path::new(name).is_absolute()
        {
            return refuse(
                format!("data file '{name}'"),
                "QEMU takes relative names from its working folder; use an absolute one",
            );
        }
        if self.data_file_raw && self.data_file.is_none() {
            return refuse("data_file_raw".to_owned(), "needs data_file");
        }
        if self.data_file_raw && self.backing.is_some() {
            return refuse(
                "data_file_raw".to_owned(),
                "cannot be combined with a backing file",
            );
        }
        if self.preallocation != Preallocation::Off && self.backing.is_some() {
            return refuse(
                "preallocation".to_owned(),
                "cannot be combined with a backing file",
            );
        }
        Ok(())
    }

    fn check_raw(&self) -> Result<()> {
        if self.backing.is_some() {
            return Err(Error::invalid(
                "backing file",
                "raw images have none; use format qcow2",
            ));
        }
        if self.data_file.is_some() || self.extended_l2 || self.lazy_refcounts {
            return Err(Error::invalid("qcow2 option", "given for a raw image"));
        }
        if self.preallocation == Preallocation::Metadata {
            return Err(Error::invalid(
                "preallocation 'metadata'",
                "raw images have no metadata; use off, falloc or full",
            ));
        }
        Ok(())
    }
}

/// Creates the image `path`, which must not exist yet unless it is a block
/// device. A file that could not be completed is removed again.
///
/// # Errors
/// [`Error::Invalid`] for options that contradict each other, the errors of
/// opening the backing file, and those of the host.
pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
    options.check()?;
    let size = match options.size {
        Some(size) => size,
        None => backing_size(path, options)?,
    };
    if size > i64::MAX as u64 - (4 << 20) {
        return Err(Error::invalid(
            format!("size {size}"),
            "larger than any file can be",
        ));
    }
    if let (Some(_), Some(backing)) = (options.size, &options.backing) {
        chain::resolve_backing(path, &backing.path, Some(backing.format), &options.policy)?;
    }
    let device = is_device(path);
    let storage = if device {
        FileStorage::open(path, true, CacheMode::Writeback)
    } else {
        FileStorage::create_new(path, CacheMode::Writeback)
    };
    let storage: Arc<dyn Storage> = Arc::new(storage.map_err(|e| Error::io(path, "create it", e))?);
    let mut made = vec![];
    if !device {
        made.push(path.to_owned());
    }
    let outcome =
        fill(path, &storage, options, size, device, &mut made).and_then(|()| sync_folder(path));
    if outcome.is_err() {
        for file in made {
            if let Err(error) = std::fs::remove_file(&file) {
                tracing::warn!(path = %file.display(), %error, "cannot remove an incomplete image");
            }
        }
    }
    outcome
}

/// Writes an empty image into `storage`, which reads as zeroes. Preallocation
/// and data files need [`create`].
///
/// # Errors
/// As [`create`].
pub fn create_in(storage: &dyn Storage, name: &Path, options: &CreateOptions) -> Result<()> {
    options.check()?;
    let size = options
        .size
        .ok_or_else(|| Error::invalid("size", "must be given here"))?;
    if options.preallocation != Preallocation::Off {
        return Err(Error::invalid("preallocation", "needs a file"));
    }
    if options.format == Format::Raw {
        return storage
            .set_length(size)
            .map_err(|e| Error::io(name, "set its length", e));
    }
    let mut header = qcow2_create::plan(options, size, name)?;
    qcow2_create::write(storage, &mut header, name)
}

fn backing_size(path: &Path, options: &CreateOptions) -> Result<u64> {
    let Some(backing) = &options.backing else {
        return Err(Error::invalid(
            "size",
            "must be given for an image without backing file",
        ));
    };
    let resolved =
        chain::resolve_backing(path, &backing.path, Some(backing.format), &options.policy)?;
    let image = OpenOptions::new(resolved.format)
        .lock(LockPolicy::Off)
        .backing(BackingPolicy {
            open: false,
            ..options.policy.clone()
        })
        .open(&resolved.path)?;
    Ok(image.size())
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

fn fill(
    path: &Path,
    storage: &Arc<dyn Storage>,
    options: &CreateOptions,
    size: u64,
    device: bool,
    made: &mut Vec<PathBuf>,
) -> Result<()> {
    if options.format == Format::Raw {
        return crate::raw::create(storage.as_ref(), path, size, options.preallocation);
    }
    if device && options.preallocation != Preallocation::Off {
        return Err(Error::invalid(
            "preallocation",
            "a block device is as large as it is; use off",
        ));
    }
    let mut header = qcow2_create::plan(options, size, path)?;
    let data = match &options.data_file {
        Some(name) => Some(create_data_file(path, name, options, size, made)?),
        None => None,
    };
    if device {
        // Stale content must not look like tables.
        storage
            .write_zeroes_at(0, 1 << header.cluster_bits, false)
            .map_err(|e| Error::io(path, "erase its old header", e))?;
    }
    qcow2_create::write(storage.as_ref(), &mut header, path)?;
    let preallocation = match options.preallocation {
        // Readers of the raw data file see what the guest sees only if every
        // cluster is mapped.
        Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
        other => other,
    };
    if preallocation == Preallocation::Off {
        return Ok(());
    }
    let layer = crate::qcow2::LayerOptions {
        writable: true,
        metadata_cache: 4 << 20,
        ignore_flush: false,
    };
    let image = Qcow2::open(Arc::clone(storage), path, header, data, None, &layer)?;
    image.preallocate(preallocation)?;
    image.close()
}

fn create_data_file(
    path: &Path,
    name: &str,
    options: &CreateOptions,
    size: u64,
    made: &mut Vec<PathBuf>,
) -> Result<Arc<dyn Storage>> {
    let file = chain::resolve_file(path, name, &options.policy)?;
    let storage = FileStorage::create_new(&file, CacheMode::Writeback)
        .map_err(|e| Error::io(&file, "create it", e))?;
    made.push(file.clone());
    if options.data_file_raw {
        storage
            .set_length(size)
            .map_err(|e| Error::io(&file, "set its length", e))?;
    }
    Ok(Arc::new(storage))
}

/// Makes a new name durable.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io(folder, "flush the folder", e))
}
