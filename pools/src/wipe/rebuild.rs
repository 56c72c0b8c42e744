//! What a qcow2 header says about the image, kept so that an empty one of the
//! same options can take its place after the overwrite.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cenote_image::create::{self, Compat, CreateOptions};
use cenote_image::qcow2::header::{Compression, Header, compatible};
use cenote_image::storage::{CacheMode, FileStorage, Storage as _};
use cenote_image::{BackingPolicy, Format, chain};
use rustix::fs::{IFlags, XattrFlags};
use serde::{Deserialize, Serialize};

use super::error::{Error, Refusal, Result};
use super::finish::is_wiped_file;
use super::journal::{FileRecord, sync_folder};
use super::target::Kind;

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
    /// The backing file as the header names it.
    pub(super) backing: Option<String>,
    /// Its format, where the header declares one that is known.
    pub(super) backing_format: cenote_image::Result<Option<Format>>,
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
        backing: header.backing_name.clone(),
        backing_format: chain::declared_format(&header, path),
    })
}

/// The file that a name in a header means, links resolved where it exists.
fn resolve(image: &Path, name: &str) -> Result<PathBuf> {
    let everywhere = BackingPolicy::default();
    let found = chain::resolve_file(image, name, &everywhere)?;
    Ok(found.canonicalize().unwrap_or(found))
}

impl Rebuild {
    /// The options that make an empty image like the one described.
    fn options(&self, image: &Path) -> Result<CreateOptions> {
        let data_file = self
            .data_file
            .as_deref()
            .map(|name| resolve(image, name))
            .transpose()?;
        Ok(CreateOptions {
            cluster_size: self.cluster_size,
            compat: if self.version == 2 {
                Compat::V2
            } else {
                Compat::V3
            },
            refcount_bits: self.refcount_bits,
            lazy_refcounts: self.lazy_refcounts,
            extended_l2: self.extended_l2,
            compression: self.compression,
            data_file: data_file.map(|path| path.to_string_lossy().into_owned()),
            data_file_raw: self.data_file_raw,
            ..CreateOptions::new(Format::Qcow2, self.size)
        })
    }
}

/// Puts an empty image (or data file) in the place of the wiped one: made at
/// `aside`, given the same owner, mode and attributes, and renamed over it, so
/// that the name never stands for half an image.
pub(super) fn replace(file: &FileRecord, aside: &Path, step: &dyn Fn(&'static str)) -> Result<()> {
    if file.identity.kind == Kind::BlockDevice {
        if let Some(rebuild) = &file.rebuild {
            create::create(&file.path, &rebuild.options(&file.path)?)?;
            step("rebuilt");
        }
        return Ok(());
    }
    if !is_wiped_file(file, &file.path)? {
        // Renamed before a crash.
        return Ok(());
    }
    match fs::remove_file(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(aside, "remove")(error));
        }
        _ => {}
    }
    let new =
        FileStorage::create_new(aside, CacheMode::Writeback).map_err(Error::io(aside, "create"))?;
    copy_attributes(&file.path, aside)?;
    match (&file.rebuild, file.data_size) {
        (Some(rebuild), _) => create::create_in(&new, &file.path, &rebuild.options(&file.path)?)?,
        (None, size) => {
            new.set_length(size.unwrap_or(0))
                .map_err(Error::io(aside, "set the size of"))?;
        }
    }
    new.sync().map_err(Error::io(aside, "sync"))?;
    step("rebuilt aside");
    fs::rename(aside, &file.path).map_err(Error::io(&file.path, "replace"))?;
    sync_folder(aside).map_err(Error::io(aside, "sync the folder of"))?;
    step("rebuilt");
    Ok(())
}

/// Owner, mode, extended attributes (labels, access lists) and btrfs's NOCOW.
fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let old = File::open(from).map_err(Error::io(from, "open"))?;
    let new = File::options()
        .write(true)
        .open(to)
        .map_err(Error::io(to, "open"))?;
    let metadata = old.metadata().map_err(Error::io(from, "look at"))?;
    let nocow = rustix::fs::ioctl_getflags(&old).unwrap_or(IFlags::empty()) & IFlags::NOCOW;
    if !nocow.is_empty() {
        let now = rustix::fs::ioctl_getflags(&new).unwrap_or(IFlags::empty());
        rustix::fs::ioctl_setflags(&new, now | nocow)
            .map_err(|error| Error::io(to, "set NOCOW on")(error.into()))?;
    }
    let now = new.metadata().map_err(Error::io(to, "look at"))?;
    if (now.uid(), now.gid()) != (metadata.uid(), metadata.gid()) {
        std::os::unix::fs::fchown(&new, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(Error::io(to, "give to its owner"))?;
    }
    new.set_permissions(metadata.permissions())
        .map_err(Error::io(to, "set the mode of"))?;
    copy_extended(&old, &new).map_err(Error::io(to, "copy extended attributes to"))
}

/// Longest attribute the kernel has (`XATTR_SIZE_MAX`).
const LONGEST: usize = 64 << 10;

fn copy_extended(old: &File, new: &File) -> io::Result<()> {
    let mut names = vec![0; LONGEST];
    let length = match rustix::fs::flistxattr(old, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        result => result?,
    };
    let mut value = vec![0; LONGEST];
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let length = rustix::fs::fgetxattr(old, name, &mut value[..])?;
        let set = rustix::fs::fsetxattr(new, name, &value[..length], XattrFlags::empty());
        match set {
            // A label that this process may not give is given by the policy.
            Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => {
                tracing::warn!(name = %String::from_utf8_lossy(name), "attribute not copied");
            }
            result => result?,
        }
    }
    Ok(())
}
