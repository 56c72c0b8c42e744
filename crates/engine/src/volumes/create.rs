//! Making volumes.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_image::qcow2::header::Compression;
use cenote_pools::file::{create_new, identity, private_sibling, publish, sync_file};
use cenote_pools::{
    Error as StorageError, FormatOrigin, Permissions, Progress, VolumeId, VolumeInfo,
    check_volume_name,
};

use crate::error::{Error, Result};
use crate::node::Node;
use crate::plan::{Plan, Verb};
use crate::pools::PoolRow;
use crate::records;

/// Mode of a volume for which nothing else is asked, as libvirt's.
const DEFAULT_MODE: u32 = 0o600;

/// How much of a new volume is allocated at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// Nothing: it grows as it is written.
    #[default]
    Off,
    /// The tables of a qcow2 image, not its data.
    Metadata,
    /// All of it, reserved by the file system.
    Falloc,
    /// All of it, written with zeroes.
    Full,
}

/// Options that only qcow2 has. `None` leaves the choice to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qcow2Settings {
    /// Version 2 (`compat` 0.10) instead of 3.
    pub version_2: bool,
    /// Bytes of a cluster, a power of two from 512 to 2 MiB.
    pub cluster_size: Option<u64>,
    /// Width of a refcount: 1, 2, 4, ... 64.
    pub refcount_bits: Option<u32>,
    /// Refcounts may lag while the image is open.
    pub lazy_refcounts: bool,
    /// Clusters allocated in 32 parts.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression: Option<Compression>,
    /// Data goes into this file instead.
    pub data_file: Option<PathBuf>,
    /// The data file is itself a raw image of the disk.
    pub data_file_raw: bool,
}

/// What a new volume shows where it has nothing itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBacking {
    /// A volume (name, `pool/name`, path or key) or any other file's path.
    pub image: String,
    /// Its format; needed where it is no volume whose format is known.
    pub format: Option<Format>,
}

/// A volume to be made. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its format.
    pub format: Format,
    /// Size the guest sees; `None`: that of the backing image.
    pub capacity: Option<u64>,
    /// Space reserved at once. `None`: all for raw, none for qcow2, as
    /// libvirt has it.
    pub allocation: Option<u64>,
    /// Reservation by name instead of by size.
    pub preallocation: Option<Preallocation>,
    /// qcow2's own options.
    pub qcow2: Qcow2Settings,
    /// What lies below.
    pub backing: Option<NewBacking>,
    /// Owner and mode.
    pub permissions: Permissions,
}

impl NewVolume {
    /// A volume of `capacity` bytes with everything else left open.
    pub fn new(name: impl Into<String>, format: Format, capacity: u64) -> Self {
        NewVolume {
            name: name.into(),
            format,
            capacity: Some(capacity),
            allocation: None,
            preallocation: None,
            qcow2: Qcow2Settings::default(),
            backing: None,
            permissions: Permissions::default(),
        }
    }
}

impl Node {
    /// Makes a volume in a running pool.
    ///
    /// # Errors
    /// The name is taken or none, an option cannot be honoured, the pool is
    /// full, ...; nothing is left of the volume then.
    pub fn volume_create(
        &self,
        pool: &str,
        new: &NewVolume,
        progress: &dyn Progress,
    ) -> Result<VolumeInfo> {
        let row = self.running_pool(pool)?;
        check_options(new)?;
        self.create_file(&row, new, Verb::Create, progress, |temporary| {
            raw_file(temporary, new)
        })
    }

    /// The journalled way of a new file into a pool: `fill` makes the whole
    /// file under a private name.
    pub(crate) fn create_file(
        &self,
        row: &PoolRow,
        new: &NewVolume,
        verb: Verb,
        _progress: &dyn Progress,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<VolumeInfo> {
        check_volume_name(&new.name)?;
        let volume = VolumeId::new(row.name(), &new.name);
        let path = row.definition.spec.target.join(&new.name);
        if identity(&path)?.is_some() {
            return Err(StorageError::VolumeExists(volume).into());
        }
        let temporary = private_sibling(&path, "new");
        let mut operation = self.begin(Plan::VolumeCreate {
            verb,
            volume: volume.clone(),
            path: path.clone(),
            temporary: temporary.clone(),
            identity: None,
            format: new.format.as_str().into(),
        })?;
        let result = (|| {
            fill(&temporary)?;
            set_permissions(&temporary, &new.permissions)?;
            sync_file(&temporary)?;
            let made = identity(&temporary)?;
            operation.revise(1, |plan| {
                if let Plan::VolumeCreate { identity, .. } = plan {
                    *identity = made;
                }
            })?;
            publish(&temporary, &path).map_err(|error| match error {
                StorageError::FileExists { .. } => StorageError::VolumeExists(volume.clone()),
                other => other,
            })?;
            records::put(
                self.state(),
                &volume,
                new.format.as_str(),
                FormatOrigin::Created,
            )
        })();
        operation.finish(result)?;
        self.volume(&volume)
    }
}

/// Refuses options that the format does not have.
fn check_options(new: &NewVolume) -> Result<()> {
    let refuse = |reason: &str| {
        Err(Error::from(StorageError::Invalid {
            what: format!("volume '{}'", new.name),
            reason: reason.into(),
        }))
    };
    match new.format {
        Format::Qcow2 => refuse("the image engine of this build does not create qcow2 yet"),
        Format::Raw if new.qcow2 != Qcow2Settings::default() => {
            refuse("only qcow2 volumes have these options")
        }
        Format::Raw if new.backing.is_some() => refuse("only qcow2 volumes have a backing image"),
        Format::Raw if new.preallocation == Some(Preallocation::Metadata) => {
            refuse("a raw volume has no metadata to preallocate")
        }
        _ => Ok(()),
    }
}

fn raw_file(path: &Path, new: &NewVolume) -> Result<()> {
    let capacity = new.capacity.ok_or_else(|| StorageError::Invalid {
        what: format!("volume '{}'", new.name),
        reason: "a raw volume needs a capacity".into(),
    })?;
    let file = create_new(path, DEFAULT_MODE)?;
    let at = |action| move |source| Error::from(StorageError::at(action, path, source));
    file.set_len(capacity).map_err(at("set the size of"))?;
    reserve(&file, new.allocation.unwrap_or(capacity).min(capacity))
        .map_err(at("reserve space for"))
}

fn reserve(file: &File, length: u64) -> std::io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    Ok(rustix::fs::fallocate(
        file,
        rustix::fs::FallocateFlags::KEEP_SIZE,
        0,
        length,
    )?)
}

fn set_permissions(path: &Path, permissions: &Permissions) -> Result<()> {
    let at = |action| move |source| Error::from(StorageError::at(action, path, source));
    if permissions.owner.is_some() || permissions.group.is_some() {
        std::os::unix::fs::chown(path, permissions.owner, permissions.group)
            .map_err(at("set the owner of"))?;
    }
    // After the owner, which clears the set-id bits.
    let mode = permissions.mode.unwrap_or(DEFAULT_MODE);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(at("set the mode of"))
}
