//! Making volumes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cenote_image::create::{BackingSpec, Compat, CreateOptions, create};
use cenote_image::{BackingPolicy, Format};
use cenote_pools::file::{
    create_private_dir, identity, private_sibling, publish, remove_private_dir, sync_file,
};
use cenote_pools::{
    Error as StorageError, FormatOrigin, Permissions, Progress, Source, VolumeId, VolumeInfo,
    check_volume_name,
};

pub use cenote_image::create::{Compression, Preallocation};

use crate::error::{Error, Result};
use crate::jobs::JobProgress;
use crate::journal::Operation;
use crate::node::Node;
use crate::plan::{DataPart, Plan, Verb};
use crate::pools::PoolRow;
use crate::records;

/// Mode of a volume for which nothing else is asked, as libvirt's.
const DEFAULT_MODE: u32 = 0o600;

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
    /// Name of a further volume of the pool, made with this one, that holds
    /// its data.
    pub data_file: Option<String>,
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
    /// libvirt has it. A qcow2 volume can have none or all.
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

    /// A qcow2 volume of the size of `backing`, showing its content.
    pub fn overlay(name: impl Into<String>, backing: NewBacking) -> Self {
        NewVolume {
            capacity: None,
            backing: Some(backing),
            ..NewVolume::new(name, Format::Qcow2, 0)
        }
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        let (what, reason) = (format!("volume '{}'", self.name), reason.into());
        StorageError::Invalid { what, reason }.into()
    }

    /// Refuses options that the format does not have.
    fn check(&self) -> Result<()> {
        check_volume_name(&self.name)?;
        if let Some(data_file) = &self.qcow2.data_file {
            check_volume_name(data_file)?;
            if *data_file == self.name {
                return Err(self.refuse("its data file needs a name of its own"));
            }
        }
        match self.format {
            Format::Raw if self.qcow2 != Qcow2Settings::default() => {
                Err(self.refuse("only qcow2 volumes have these options"))
            }
            Format::Raw if self.backing.is_some() => {
                Err(self.refuse("only qcow2 volumes have a backing image"))
            }
            Format::Raw if self.preallocation == Some(Preallocation::Metadata) => {
                Err(self.refuse("a raw volume has no metadata to preallocate"))
            }
            _ if self.preallocation.is_some() && self.allocation.is_some() => {
                Err(self.refuse("give an allocation or a preallocation, not both"))
            }
            _ if self.capacity.is_none() && self.backing.is_none() => {
                Err(self.refuse("a volume without backing image needs a capacity"))
            }
            _ => Ok(()),
        }
    }

    /// What the image engine is told. The second value is the space to
    /// reserve in a raw file afterwards.
    fn options(
        &self,
        backing: Option<BackingSpec>,
        policy: BackingPolicy,
    ) -> Result<(CreateOptions, u64)> {
        let mut options = CreateOptions::new(self.format, 0);
        options.size = self.capacity;
        options.policy = policy;
        options.backing = backing;
        options.preallocation = self.preallocation.unwrap_or_default();
        let capacity = self.capacity.unwrap_or(0);
        if self.format == Format::Raw {
            let reserve = match (self.preallocation, self.allocation) {
                (Some(_), _) => 0,
                (None, Some(allocation)) => allocation.min(capacity),
                (None, None) => capacity,
            };
            return Ok((options, reserve));
        }
        match self.allocation {
            None | Some(0) => {}
            Some(allocation) if allocation >= capacity && self.capacity.is_some() => {
                options.preallocation = Preallocation::Falloc;
            }
            Some(_) => {
                return Err(self.refuse(
                    "a qcow2 volume is allocated not at all (0) or wholly (its capacity)",
                ));
            }
        }
        let qcow2 = &self.qcow2;
        if qcow2.version_2 {
            options.compat = Compat::V2;
        }
        options.cluster_size = qcow2.cluster_size.unwrap_or(options.cluster_size);
        options.refcount_bits = qcow2.refcount_bits.unwrap_or(options.refcount_bits);
        options.lazy_refcounts = qcow2.lazy_refcounts;
        options.extended_l2 = qcow2.extended_l2;
        options.compression = qcow2.compression.unwrap_or(options.compression);
        options.data_file = qcow2.data_file.clone();
        options.data_file_raw = qcow2.data_file_raw;
        Ok((options, 0))
    }
}

/// What the filling of a new volume may ask of the operation it is part of.
pub(crate) struct JobContext<'o, 'n> {
    operation: &'o Operation<'n>,
}

impl JobContext<'_, '_> {
    /// Progress that also shows in `job-list` and hears `job-cancel`.
    pub(crate) fn progress<'a>(&self, caller: &'a dyn Progress) -> JobProgress<'a> {
        self.operation.progress(caller)
    }
}

impl Node {
    /// Makes a volume in a running pool.
    ///
    /// # Errors
    /// The name is taken or none, an option cannot be honoured, the pool is
    /// full, ...; nothing is left of the volume then.
    pub fn volume_create(&self, pool: &str, new: &NewVolume) -> Result<VolumeInfo> {
        self.create(pool, new, Verb::Create)
    }

    /// Makes a qcow2 volume that shows `source` and keeps what is written to
    /// it for itself. `source` must not change from then on, which deleting,
    /// resizing and writing volumes respects.
    ///
    /// # Errors
    /// As [`Node::volume_create`].
    pub fn volume_clone_linked(
        &self,
        source: &VolumeId,
        pool: &str,
        name: &str,
    ) -> Result<VolumeInfo> {
        let backing = NewBacking {
            image: self.volume(source)?.key,
            format: None,
        };
        self.create(pool, &NewVolume::overlay(name, backing), Verb::Clone)
    }

    fn create(&self, pool: &str, new: &NewVolume, verb: Verb) -> Result<VolumeInfo> {
        let row = self.running_pool(pool)?;
        if matches!(row.definition.spec.source, Source::VolumeGroup { .. }) {
            return self.create_logical(&row, new, verb, |_, _| Ok(()));
        }
        self.create_with(&row, new, verb, |_, _| Ok(()))
    }

    /// Makes a file volume; `fill` writes into the fresh image before anybody
    /// can see it.
    pub(crate) fn create_with(
        &self,
        row: &PoolRow,
        new: &NewVolume,
        verb: Verb,
        fill: impl FnOnce(&Path, &JobContext<'_, '_>) -> Result<()>,
    ) -> Result<VolumeInfo> {
        new.check()?;
        let backing = match &new.backing {
            Some(backing) => Some(self.backing_spec(new, backing)?),
            None => None,
        };
        let (mut options, reserved) = new.options(backing, self.backing_policy()?)?;
        if let Some(name) = options.data_file.take() {
            let path = row.definition.spec.target.join(name);
            options.data_file = Some(
                path.to_str()
                    .map(str::to_owned)
                    .ok_or_else(|| new.refuse("the path of its data file is not UTF-8"))?,
            );
        }
        self.create_file(row, new, verb, |temporary, job| {
            create(temporary, &options).map_err(StorageError::from)?;
            reserve(temporary, reserved)?;
            fill(temporary, job)
        })
    }

    /// The backing image as it is written into the header: by its absolute
    /// path, so that it does not matter from where it is looked at.
    pub(crate) fn backing_spec(
        &self,
        new: &NewVolume,
        backing: &NewBacking,
    ) -> Result<BackingSpec> {
        let volume = match self.resolve_volume(&backing.image, None) {
            Ok(id) => Some(self.volume(&id)?),
            Err(Error::Storage(StorageError::VolumeNotFound { .. })) => None,
            Err(error) => return Err(error),
        };
        let (path, format) = match volume {
            Some(info) => {
                let known = self.trusted_format(&info)?;
                if backing.format.is_some_and(|given| given != known) {
                    return Err(new.refuse(format!(
                        "backing volume '{}' has format {known}; change it with: cenote \
                         vol-set-format {}",
                        info.id(),
                        info.id(),
                    )));
                }
                (info.path, known)
            }
            None => {
                let path = fs::canonicalize(&backing.image).map_err(|source| {
                    StorageError::at("open the backing image", Path::new(&backing.image), source)
                })?;
                let format = backing.format.ok_or_else(|| {
                    new.refuse(format!(
                        "the format of backing image '{}' must be given, it is never guessed",
                        backing.image
                    ))
                })?;
                (path, format)
            }
        };
        let path = path
            .to_str()
            .ok_or_else(|| new.refuse("the path of its backing image is not UTF-8"))?
            .to_owned();
        Ok(BackingSpec { path, format })
    }

    /// The journalled way of a new file into a pool: `fill` makes the whole
    /// file (and its data file) inside a private directory.
    pub(crate) fn create_file(
        &self,
        row: &PoolRow,
        new: &NewVolume,
        verb: Verb,
        fill: impl FnOnce(&Path, &JobContext<'_, '_>) -> Result<()>,
    ) -> Result<VolumeInfo> {
        let target = &row.definition.spec.target;
        let volume = VolumeId::new(row.name(), &new.name);
        let path = target.join(&new.name);
        let data = new.qcow2.data_file.as_ref().map(|name| DataPart {
            volume: VolumeId::new(row.name(), name),
            path: target.join(name),
            trash: private_sibling(&target.join(name), "old"),
            identity: None,
        });
        let parts = std::iter::once((&volume, &path))
            .chain(data.iter().map(|data| (&data.volume, &data.path)));
        for (volume, path) in parts {
            if identity(path)?.is_some() {
                return Err(StorageError::VolumeExists(volume.clone()).into());
            }
        }
        let directory = private_sibling(&path, "new");
        let operation = self.begin(Plan::VolumeCreate {
            verb,
            volume: volume.clone(),
            path,
            directory,
            identity: None,
            format: new.format.as_str().into(),
            data,
        })?;
        self.run_creation(operation, new, fill)?;
        self.volume(&volume)
    }

    /// The steps of a creation that stands in the journal.
    fn run_creation(
        &self,
        mut operation: Operation<'_>,
        new: &NewVolume,
        fill: impl FnOnce(&Path, &JobContext<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        let Plan::VolumeCreate {
            volume,
            path,
            directory,
            data,
            ..
        } = operation.plan().clone()
        else {
            return Ok(());
        };
        let temporary = directory.join(&volume.name);
        let result = (|| {
            create_private_dir(&directory)?;
            fill(
                &temporary,
                &JobContext {
                    operation: &operation,
                },
            )
            .map_err(|error| named_for(error, &temporary, &path))?;
            let data_path = data.as_ref().map(|data| &data.path);
            for file in std::iter::once(&temporary).chain(data_path) {
                set_permissions(file, &new.permissions)?;
                sync_file(file)?;
            }
            let made = identity(&temporary)?;
            let made_data = match data_path {
                Some(file) => identity(file)?,
                None => None,
            };
            operation.revise(1, |plan| {
                if let Plan::VolumeCreate { identity, data, .. } = plan {
                    *identity = made;
                    if let Some(data) = data {
                        data.identity = made_data;
                    }
                }
            })?;
            if let Some(data) = &data {
                records::put(self.state(), &data.volume, "raw", FormatOrigin::Created)?;
            }
            publish(&temporary, &path).map_err(|error| match error {
                StorageError::FileExists { .. } => StorageError::VolumeExists(volume.clone()),
                other => other,
            })?;
            let format = new.format.as_str();
            records::put(self.state(), &volume, format, FormatOrigin::Created)?;
            Ok(remove_private_dir(&directory, &[])?)
        })();
        operation.finish(result)
    }

    pub(crate) fn create_logical(
        &self,
        row: &PoolRow,
        new: &NewVolume,
        verb: Verb,
        fill: impl FnOnce(&Path, &JobContext<'_, '_>) -> Result<()>,
    ) -> Result<VolumeInfo> {
        new.check()?;
        let refuse = |what: &str, reason: &str| {
            let (pool, what) = (row.name().to_owned(), what.to_owned());
            Err(StorageError::PoolCannot {
                pool,
                what,
                reason: reason.to_owned(),
            }
            .into())
        };
        if new.format != Format::Raw {
            return refuse(
                "hold qcow2 volumes",
                "its volumes are devices, which are raw",
            );
        }
        let capacity = new.capacity.unwrap_or(0);
        if new
            .allocation
            .is_some_and(|allocation| allocation < capacity)
        {
            return refuse(
                "make sparse volumes",
                "logical volumes are allocated wholly",
            );
        }
        if new.permissions != Permissions::default() {
            return refuse(
                "set owner or mode",
                "device nodes belong to udev; write a rule for it",
            );
        }
        let volume = VolumeId::new(row.name(), &new.name);
        let group = row.logical()?;
        let tag = format!("cenote-new-{:016x}", rand::random::<u64>());
        let operation = self.begin(Plan::LogicalCreate {
            verb,
            volume: volume.clone(),
            tag: tag.clone(),
        })?;
        let result = group
            .create(&new.name, capacity, &tag)
            .map_err(Error::from)
            .and_then(|()| {
                fill(
                    &group.device(&new.name),
                    &JobContext {
                        operation: &operation,
                    },
                )?;
                records::put(self.state(), &volume, "raw", FormatOrigin::Created)?;
                Ok(group.accept(&new.name, &tag)?)
            });
        operation.finish(result)?;
        self.volume(&volume)
    }
}

/// Errors about the private file are about the volume, for the user.
fn named_for(error: Error, temporary: &Path, path: &Path) -> Error {
    use cenote_image::Error as Image;
    let here = |found: PathBuf| {
        if found == temporary {
            path.to_owned()
        } else {
            found
        }
    };
    let Error::Storage(error) = error else {
        return error;
    };
    Error::Storage(match error {
        StorageError::Image(Image::Io {
            path,
            action,
            source,
        }) => StorageError::Image(Image::Io {
            path: here(path),
            action,
            source,
        }),
        StorageError::Image(Image::NoSpace { path, action }) => {
            StorageError::Image(Image::NoSpace {
                path: here(path),
                action,
            })
        }
        StorageError::Image(Image::Unsupported { path, feature }) => {
            StorageError::Image(Image::Unsupported {
                path: here(path),
                feature,
            })
        }
        StorageError::Image(Image::BackingMissing { path, backing }) => {
            StorageError::Image(Image::BackingMissing {
                path: here(path),
                backing,
            })
        }
        StorageError::Image(Image::BackingOutside { path, backing }) => {
            StorageError::Image(Image::BackingOutside {
                path: here(path),
                backing,
            })
        }
        StorageError::NoSpace { action, path } => StorageError::NoSpace {
            action,
            path: here(path),
        },
        StorageError::Io {
            action,
            path,
            source,
        } => StorageError::Io {
            action,
            path: here(path),
            source,
        },
        other => other,
    })
}

pub(super) fn reserve(path: &Path, length: u64) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| Ok(rustix::fs::fallocate(file, flags, 0, length)?))
        .map_err(|source| StorageError::at("reserve space for", path, source).into())
}

fn set_permissions(path: &Path, permissions: &Permissions) -> Result<()> {
    let at = |action| move |source| Error::from(StorageError::at(action, path, source));
    if permissions.owner.is_some() || permissions.group.is_some() {
        std::os::unix::fs::chown(path, permissions.owner, permissions.group)
            .map_err(at("set the owner of"))?;
    }
    // After the owner, which clears the set-id bits.
    let mode = permissions.mode.unwrap_or(DEFAULT_MODE);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of"))
}
