//! Disks of the host behind the guest's block devices: a chain of images, opened from files that
//! the monitor was given.
//!
//! The chain is what the machine description says, layer by layer with formats. Names in image
//! headers are never followed; where a header disagrees with the description, the disk is refused.

use cenote_image::{
    Format, Image, LockPolicy, OpenOptions,
    lock::FileLock,
    storage::{CacheMode, FileStorage, Storage},
};
use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

/// The most layers of a chain.
pub const MOST_LAYERS: usize = 200;
/// The unit of a disk's size, in bytes.
pub const SECTOR: u64 = 512;

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    /// What the layer is called in messages.
    pub label: String,
    /// The image, open for reading, the top of a writable disk for writing too.
    pub file: OwnedFd,
    /// Its format.
    pub format: Format,
    /// The external data file of a qcow2 image that has one.
    pub data_file: Option<OwnedFd>,
}

/// How a chain is used.
#[derive(Debug, Clone, Copy)]
pub struct DiskOptions {
    /// Nothing is written.
    pub read_only: bool,
    /// How the host caches.
    pub cache: CacheMode,
    /// Who uses the image keeps what a write-through mode promises, by flushes of its own; else
    /// every write is made durable here.
    pub flushed_by_user: bool,
    /// Take QEMU's locks; without them the caller must hold them.
    pub lock: bool,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no layer, or there are too many.
    #[error("{0} layers are impossible: give 1 to {MOST_LAYERS}")]
    Layers(usize),
    /// A layer that others stand on cannot be found in a raw image.
    #[error("{label} is raw and cannot have a backing file: leave out what follows it")]
    RawBacking {
        /// The layer.
        label: String,
    },
    /// The header says that there is a backing file, or that there is none.
    #[error("{label} {header}, but the chain that was given {given}")]
    Chain {
        /// The layer.
        label: String,
        /// What its header says.
        header: String,
        /// What was given.
        given: String,
    },
    /// The disk has no whole number of sectors.
    #[error("{label} has {size} bytes, which is no multiple of {SECTOR}: resize it")]
    Size {
        /// The layer.
        label: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A disk that is to take another's place has another size.
    #[error("the new disk has {new} bytes, the running one {old}: give one of the same size")]
    OtherSize {
        /// The new size in bytes.
        new: u64,
        /// The size in bytes that the guest knows.
        old: u64,
    },
    /// The disk could not be opened again after a failed change.
    #[error("the disk was lost in an earlier change")]
    Lost,
    /// The host's file cannot be used.
    #[error("{label} cannot be used")]
    File {
        /// The layer.
        label: String,
        /// What the host said.
        source: io::Error,
    },
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] cenote_image::Error),
}

/// An open chain.
#[derive(Debug)]
pub struct Disk {
    // Dropped in this order: locks are given back after the image is closed.
    image: Image,
    locks: Vec<FileLock>,
    layers: Vec<Layer>,
    options: DiskOptions,
}

impl Disk {
    /// Opens a chain, top first.
    ///
    /// # Errors
    /// [`DiskError`]; nothing stays locked then.
    pub fn open(layers: Vec<Layer>, options: DiskOptions) -> Result<Self, DiskError> {
        if layers.is_empty() || layers.len() > MOST_LAYERS {
            return Err(DiskError::Layers(layers.len()));
        }
        let mut below: Option<Image> = None;
        let mut locks = Vec::new();
        for (depth, layer) in layers.iter().enumerate().rev() {
            let writable = depth == 0 && !options.read_only;
            if layer.format == Format::Raw && below.is_some() {
                return Err(DiskError::RawBacking {
                    label: layer.label.clone(),
                });
            }
            below = Some(layer.open(writable, options, below, &mut locks)?);
        }
        let Some(image) = below else {
            return Err(DiskError::Layers(0));
        };
        Ok(Self {
            locks,
            layers,
            ..Self::from_image(image, options)?
        })
    }

    /// A disk of an image that is open already. Its locks are the caller's.
    ///
    /// # Errors
    /// [`DiskError::Size`].
    pub fn from_image(image: Image, options: DiskOptions) -> Result<Self, DiskError> {
        let size = image.size();
        if !size.is_multiple_of(SECTOR) {
            let label = image.path().display().to_string();
            return Err(DiskError::Size { label, size });
        }
        Ok(Self {
            image,
            locks: Vec::new(),
            layers: Vec::new(),
            options,
        })
    }

    /// The image on top.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Size in bytes, a multiple of [`SECTOR`].
    #[must_use]
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// How the chain is used.
    #[must_use]
    pub fn options(&self) -> DiskOptions {
        self.options
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// Those of the host.
    pub fn flush(&self) -> Result<(), DiskError> {
        Ok(self.image.flush()?)
    }

    /// Closes the chain. Every clone of the image must be gone.
    ///
    /// # Errors
    /// If what was written cannot be made durable; the locks are given back all the same.
    pub fn close(self) -> Result<(), DiskError> {
        self.retire().1
    }

    /// Closes the chain, but keeps its files, locked as by a reader, so that nobody else writes to
    /// them meanwhile.
    pub fn retire(self) -> (Retired, Result<(), DiskError>) {
        let closed = self.image.close().map_err(DiskError::from);
        let mut locks = self.locks;
        let shared = locks
            .iter_mut()
            .try_for_each(|lock| lock.change(LockPolicy::Shared));
        let retired = Retired {
            layers: self.layers,
            options: self.options,
            locks,
        };
        (retired, closed.and(shared.map_err(DiskError::from)))
    }
}

/// A chain that is closed but could be opened again.
#[derive(Debug)]
pub struct Retired {
    layers: Vec<Layer>,
    options: DiskOptions,
    locks: Vec<FileLock>,
}

impl Retired {
    /// Opens another chain, used alike. Where that one is to write to a file that this one read,
    /// the locks here give way.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn replace(&mut self, layers: Vec<Layer>) -> Result<Disk, DiskError> {
        let again: io::Result<Vec<_>> = layers.iter().map(Layer::try_clone).collect();
        match Disk::open(layers, self.options) {
            Err(DiskError::Image(cenote_image::Error::InUse { .. })) if !self.locks.is_empty() => {
                self.locks.clear();
                let again = again.map_err(|source| DiskError::File {
                    label: "new chain".to_owned(),
                    source,
                })?;
                Disk::open(again, self.options)
            }
            opened => opened,
        }
    }

    /// Opens the chain again.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn reopen(self) -> Result<Disk, DiskError> {
        Disk::open(self.layers, self.options)
    }
}

impl Layer {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            label: self.label.clone(),
            file: self.file.try_clone()?,
            format: self.format,
            data_file: self
                .data_file
                .as_ref()
                .map(OwnedFd::try_clone)
                .transpose()?,
        })
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> DiskError + '_ {
        |source| DiskError::File {
            label: self.label.clone(),
            source,
        }
    }

    fn open(
        &self,
        writable: bool,
        options: DiskOptions,
        below: Option<Image>,
        locks: &mut Vec<FileLock>,
    ) -> Result<Image, DiskError> {
        let name = Path::new(&self.label);
        let policy = if writable {
            LockPolicy::Exclusive
        } else {
            LockPolicy::Shared
        };
        let cache = match options.cache {
            CacheMode::Writethrough if options.flushed_by_user => CacheMode::Writeback,
            CacheMode::DirectSync if options.flushed_by_user => CacheMode::None,
            cache => cache,
        };
        let mut storage = |file: &OwnedFd| -> Result<Arc<dyn Storage>, DiskError> {
            if options.lock {
                locks.push(FileLock::acquire(file, name, policy)?);
            }
            let file = file.try_clone().map_err(self.failed())?;
            let storage = FileStorage::from_fd(file, writable, cache).map_err(self.failed())?;
            Ok(Arc::new(storage))
        };
        let data = self.data_file.as_ref().map(&mut storage).transpose()?;
        let given = below.as_ref().map(Image::format);
        let image = OpenOptions::new(self.format)
            .writable(writable)
            .cache(cache)
            .with_backing(below)
            .with_data_file(data)
            .open_storage(storage(&self.file)?, &self.label)?;
        self.check(&image, given)?;
        Ok(image)
    }

    /// Compares what the header says with what was given.
    fn check(&self, image: &Image, given: Option<Format>) -> Result<(), DiskError> {
        let differ = |header: String, given: &str| DiskError::Chain {
            label: self.label.clone(),
            header,
            given: given.to_owned(),
        };
        let info = image.info()?;
        match (&info.backing_filename, given) {
            (Some(name), None) => {
                return Err(differ(format!("has a backing file ('{name}')"), "has none"));
            }
            (None, Some(_)) => {
                return Err(differ("has no backing file".to_owned(), "has one"));
            }
            (_, Some(format)) => {
                if let Some(declared) = &info.backing_filename_format
                    && declared != format.as_str()
                {
                    let header = format!("declares its backing file as {declared}");
                    return Err(differ(header, &format!("has it as {format}")));
                }
            }
            (None, None) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cenote_image::create::{BackingSpec, CreateOptions, create};
    use std::fs::File;
    use tempfile::TempDir;

    const SIZE: u64 = 1 << 20;

    fn layer(folder: &TempDir, name: &str, format: Format) -> Layer {
        let path = folder.path().join(name);
        let file = File::options().read(true).write(true).open(path).unwrap();
        Layer {
            label: name.to_owned(),
            file: file.into(),
            format,
            data_file: None,
        }
    }

    fn options(read_only: bool) -> DiskOptions {
        DiskOptions {
            flushed_by_user: true,
            read_only,
            cache: CacheMode::Writeback,
            lock: true,
        }
    }

    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let raw = File::create(path("base")).unwrap();
        raw.set_len(SIZE).unwrap();
        let mut overlay = CreateOptions::new(Format::Qcow2, SIZE);
        overlay.backing = Some(BackingSpec {
            path: "base".to_owned(),
            format: Format::Raw,
        });
        create(&path("top"), &overlay).unwrap();
        create(&path("alone"), &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
        folder
    }

    #[test]
    fn a_chain_is_read_through_and_written_on_top() {
        let folder = folder();
        std::fs::write(folder.path().join("base"), vec![7; SIZE as usize]).unwrap();
        let chain = || {
            vec![
                layer(&folder, "top", Format::Qcow2),
                layer(&folder, "base", Format::Raw),
            ]
        };
        let disk = Disk::open(chain(), options(false)).unwrap();
        disk.image().write_at(&[9; 512], 0).unwrap();
        disk.close().unwrap();
        let disk = Disk::open(chain(), options(true)).unwrap();
        let mut bytes = [0; 1024];
        disk.image().read_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[600]), (9, 7));
        assert!(!disk.image().is_writable());
    }

    #[test]
    fn a_header_that_disagrees_is_refused() {
        let folder = folder();
        let refused =
            |layers: Vec<Layer>| Disk::open(layers, options(false)).unwrap_err().to_string();
        let top = || layer(&folder, "top", Format::Qcow2);
        assert!(refused(vec![top()]).contains("has a backing file ('base')"));
        let other = refused(vec![top(), layer(&folder, "alone", Format::Qcow2)]);
        assert!(
            other.contains("declares its backing file as raw"),
            "{other}"
        );
        let none = refused(vec![
            layer(&folder, "alone", Format::Qcow2),
            layer(&folder, "base", Format::Raw),
        ]);
        assert!(none.contains("has no backing file"), "{none}");
        let raw = refused(vec![layer(&folder, "base", Format::Raw), top()]);
        assert!(
            raw.contains("backing file ('base')") || raw.contains("is raw"),
            "{raw}"
        );
        let mut data = layer(&folder, "alone", Format::Qcow2);
        data.data_file = Some(layer(&folder, "base", Format::Raw).file);
        let data = refused(vec![data]);
        assert!(data.contains("external file"), "{data}");
        assert!(refused(Vec::new()).contains("0 layers"));
    }

    #[test]
    fn odd_sizes_and_disks_in_use_are_refused() {
        let folder = folder();
        let odd = File::create(folder.path().join("odd")).unwrap();
        odd.set_len(1000).unwrap();
        let refused = Disk::open(vec![layer(&folder, "odd", Format::Raw)], options(false));
        assert!(refused.unwrap_err().to_string().contains("1000 bytes"));
        let held =
            Disk::open(vec![layer(&folder, "alone", Format::Qcow2)], options(false)).unwrap();
        let again = Disk::open(vec![layer(&folder, "alone", Format::Qcow2)], options(true));
        assert!(matches!(
            again,
            Err(DiskError::Image(cenote_image::Error::InUse { .. }))
        ));
        drop(held);
        Disk::open(vec![layer(&folder, "alone", Format::Qcow2)], options(true)).unwrap();
    }
}
