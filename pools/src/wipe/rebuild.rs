//! What a qcow2 header says about the image, kept so that an empty one of the
//! same options can take its place after the overwrite.

use std::path::{Path, PathBuf};

use cenote_image::qcow2::header::{Compression, Header, compatible};
use cenote_image::storage::{CacheMode, FileStorage};
use serde::{Deserialize, Serialize};

use super::error::{Error, Refusal, Result};

/// Options and virtual size of a qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebuild {
    /// 2 or 3.
    pub version: u32,
    /// Virtual size, bytes.
    pub size: u64,
    /// Bytes.
    pub cluster_size: u64,
    /// 1 to 64.
    pub refcount_bits: u32,
    /// Refcounts need not be right while the image is open.
    pub lazy_refcounts: bool,
    /// Subclusters.
    pub extended_l2: bool,
    /// Of compressed clusters.
    pub compression: Compression,
    /// External data file, as the header names it.
    pub data_file: Option<String>,
    /// The data file can be used as a raw image.
    pub data_file_raw: bool,
}

/// What a layer's header names.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) rebuild: Rebuild,
    pub(super) data_file: Option<PathBuf>,
    /// File and, where the header has it, format.
    pub(super) backing: Option<(PathBuf, Option<String>)>,
}

/// Reads the header of the qcow2 image at `path`.
pub(super) fn read_layer(path: &Path) -> Result<Layer> {
    let storage =
        FileStorage::open(path, false, CacheMode::Writeback).map_err(Error::io(path, "open"))?;
    let header = Header::read(&storage, path).map_err(|error| Error::Refused {
        path: path.to_owned(),
        refusal: Refusal::Image {
            what: format!(
                "its header cannot be used ({error}), so other files of it could be missed and it \
                 could not be rebuilt; to overwrite this one file as it is, give format raw"
            ),
        },
    })?;
    let data_name = header
        .extensions
        .data_file
        .clone()
        .filter(|_| header.has_data_file());
    if header.has_data_file() && data_name.is_none() {
        return Err(Error::Refused {
            path: path.to_owned(),
            refusal: Refusal::Image {
                what: "it has an external data file, but its header does not name it".to_owned(),
            },
        });
    }
    let data_file = data_name
        .as_deref()
        .map(|name| resolve(path, name))
        .transpose()?;
    let backing = header
        .backing_name
        .as_deref()
        .map(|name| resolve(path, name))
        .transpose()?;
    Ok(Layer {
        rebuild: Rebuild {
            version: header.version,
            size: header.size,
            cluster_size: header.cluster_size(),
            refcount_bits: header.refcount_bits(),
            lazy_refcounts: header.compatible & compatible::LAZY_REFCOUNTS != 0,
            extended_l2: header.is_extended_l2(),
            compression: header.compression,
            data_file: data_name,
            data_file_raw: header.is_data_file_raw(),
        },
        data_file,
        backing: backing.map(|path| (path, header.extensions.backing_format.clone())),
    })
}

/// A file name in a header is relative to the folder of the image that has it.
fn resolve(image: &Path, name: &str) -> Result<PathBuf> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let scheme = name.split('/').next().unwrap_or_default();
    if scheme.contains(':') {
        return Err(Error::Refused {
            path: image.to_owned(),
            refusal: Refusal::Image {
                what: format!("'{name}' in its header is no plain file name"),
            },
        });
    }
    let folder = image.parent().unwrap_or(Path::new("/"));
    Ok(folder.join(name))
}

/// Puts an empty image in the place of the wiped one.
pub(super) fn replace(
    file: &super::journal::FileRecord,
    _aside: &Path,
    _step: &dyn Fn(&'static str),
) -> Result<()> {
    Err(Error::Refused {
        path: file.path.clone(),
        refusal: Refusal::Image {
            what: "images cannot be rebuilt yet".to_owned(),
        },
    })
}
