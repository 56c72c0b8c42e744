//! An open image of either format, and how to open one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain;
use crate::check::{self, Repair};
use crate::codec::Compressor;
use crate::error::{Error, Result};
use crate::lock::FileLock;
use crate::options::{BackingPolicy, Format, LockPolicy};
use crate::qcow2::header::{Header, incompatible};
use crate::qcow2::{LayerOptions, Qcow2};
use crate::raw::Raw;
use crate::storage::{CacheMode, FileStorage, Storage};

/// Bytes of the L2 cache unless told otherwise: 192 GiB of disk at the usual
/// cluster size.
const METADATA_CACHE: usize = 24 << 20;

/// Bytes of the L2 cache of the layer at `depth` below the top. All layers of
/// a chain of 64 together stay below 64 MiB.
fn backing_metadata_cache(depth: usize) -> usize {
    match depth {
        0..=3 => 4 << 20,
        _ => 256 << 10,
    }
}

/// How to open an image.
///
/// ```no_run
/// # fn main() -> cenote_image::Result<()> {
/// use cenote_image::{Format, OpenOptions};
/// let image = OpenOptions::new(Format::Qcow2)
///     .writable(true)
///     .open("disk.qcow2".as_ref())?;
/// image.write_at(b"hello", 0)?;
/// image.flush()?;
/// image.close()
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct OpenOptions {
    format: Format,
    writable: bool,
    cache: CacheMode,
    lock: Option<LockPolicy>,
    backing: BackingPolicy,
    metadata_cache: usize,
    writable_layer: Option<usize>,
    with_backing: Option<Image>,
    with_data_file: Option<Arc<dyn Storage>>,
}

impl OpenOptions {
    /// Read-only, through the page cache, locked, with its backing chain.
    pub fn new(format: Format) -> Self {
        OpenOptions {
            format,
            writable: false,
            cache: CacheMode::Writeback,
            lock: None,
            backing: BackingPolicy::default(),
            metadata_cache: METADATA_CACHE,
            writable_layer: None,
            with_backing: None,
            with_data_file: None,
        }
    }

    /// Whether writes are allowed. A qcow2 image that was not closed properly
    /// (dirty bit) is repaired when it is opened for writing.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// How requests reach the host; backing layers are read the same way.
    pub fn cache(mut self, cache: CacheMode) -> Self {
        self.cache = cache;
        self
    }

    /// Which locks to take on the top layer: by default as a writer or reader
    /// according to [`OpenOptions::writable`]. Backing layers are locked as a
    /// reader unless this is [`LockPolicy::Off`].
    pub fn lock(mut self, lock: LockPolicy) -> Self {
        self.lock = Some(lock);
        self
    }

    /// Which backing and data files are acceptable.
    pub fn backing(mut self, policy: BackingPolicy) -> Self {
        self.backing = policy;
        self
    }

    /// The most memory in bytes that cached L2 tables of the top layer take.
    pub fn metadata_cache(mut self, bytes: usize) -> Self {
        self.metadata_cache = bytes;
        self
    }

    /// Uses an image that is open already as the backing file, instead of
    /// what the header names. For [`OpenOptions::open_storage`].
    pub fn with_backing(mut self, backing: Option<Image>) -> Self {
        self.with_backing = backing;
        self
    }

    /// Uses this storage as the external data file, instead of what the
    /// header names. For [`OpenOptions::open_storage`].
    pub fn with_data_file(mut self, data: Option<Arc<dyn Storage>>) -> Self {
        self.with_data_file = data;
        self
    }

    /// Opens the layer at this depth (1 is the backing file) for writing too,
    /// locked against all others, as a commit into it needs.
    #[must_use]
    pub fn writable_layer(mut self, depth: u32) -> Self {
        self.writable_layer = usize::try_from(depth).ok();
        self
    }

    /// Opens an image file or device with its whole chain.
    ///
    /// # Errors
    /// Everything in [`Error`] that concerns opening; nothing was changed
    /// then, except for a repair of a dirty image.
    pub fn open(&self, path: &Path) -> Result<Image> {
        let policy = self.lock.unwrap_or(if self.writable {
            LockPolicy::Exclusive
        } else {
            LockPolicy::Shared
        });
        let layer = LayerRequest {
            path,
            format: self.format,
            writable: self.writable,
            lock: policy,
            metadata_cache: self.metadata_cache,
        };
        self.open_layer(&layer, &mut Vec::new())
    }

    /// Opens one layer that lies in `storage`. Its backing and data files are
    /// those given with [`OpenOptions::with_backing`] and
    /// [`OpenOptions::with_data_file`].
    ///
    /// # Errors
    /// As [`OpenOptions::open`].
    pub fn open_storage(&self, storage: Arc<dyn Storage>, name: &str) -> Result<Image> {
        let path = Path::new(name);
        let parts = Parts {
            storage,
            data_file: self.with_data_file.clone(),
            locks: Vec::new(),
            backing: self.with_backing.clone(),
        };
        let header = match self.format {
            Format::Raw => None,
            Format::Qcow2 => {
                let header = Header::read(parts.storage.as_ref(), path)?;
                Some(repaired(
                    header,
                    parts.storage.as_ref(),
                    path,
                    self.writable,
                )?)
            }
        };
        self.assemble(path, header, parts, self.writable, self.metadata_cache)
    }

    fn open_layer(&self, layer: &LayerRequest<'_>, seen: &mut Vec<(u64, u64)>) -> Result<Image> {
        let path = layer.path;
        let identity = chain::identity(path)?;
        if seen.contains(&identity) {
            return Err(Error::BackingLoop {
                path: path.to_owned(),
            });
        }
        if seen.len() > self.backing.max_depth {
            return Err(Error::BackingTooDeep {
                path: path.to_owned(),
                limit: self.backing.max_depth,
            });
        }
        seen.push(identity);
        let (storage, lock) = self.open_file(path, layer.writable, layer.lock)?;
        let mut parts = Parts {
            storage,
            data_file: None,
            locks: Vec::from_iter(lock),
            backing: None,
        };
        let header = match layer.format {
            Format::Raw => None,
            Format::Qcow2 => {
                let header = Header::read(parts.storage.as_ref(), path)?;
                self.open_data_file(layer, &header, &mut parts)?;
                parts.backing = self.open_backing(layer, &header, seen)?;
                Some(repaired(
                    header,
                    parts.storage.as_ref(),
                    path,
                    layer.writable,
                )?)
            }
        };
        self.assemble(path, header, parts, layer.writable, layer.metadata_cache)
    }

    fn open_file(
        &self,
        path: &Path,
        writable: bool,
        lock: LockPolicy,
    ) -> Result<(Arc<dyn Storage>, Option<FileLock>)> {
        let storage = FileStorage::open(path, writable, self.cache)
            .map_err(|e| Error::io(path, "open", e))?;
        let lock = match (lock, storage.as_fd()) {
            (LockPolicy::Off, _) | (_, None) => None,
            (policy, Some(fd)) => Some(FileLock::acquire(fd, path, policy)?),
        };
        Ok((Arc::new(storage), lock))
    }

    fn open_data_file(
        &self,
        layer: &LayerRequest<'_>,
        header: &Header,
        parts: &mut Parts,
    ) -> Result<()> {
        if !header.has_data_file() {
            return Ok(());
        }
        let Some(name) = &header.extensions.data_file else {
            return Err(Error::corrupt(
                layer.path,
                "the external data file has no name",
                72,
            ));
        };
        let file = chain::resolve_file(layer.path, name, &self.backing)?;
        let (storage, lock) = self.open_file(&file, layer.writable, layer.lock)?;
        parts.data_file = Some(storage);
        parts.locks.extend(lock);
        Ok(())
    }

    fn open_backing(
        &self,
        layer: &LayerRequest<'_>,
        header: &Header,
        seen: &mut Vec<(u64, u64)>,
    ) -> Result<Option<Image>> {
        let Some(name) = header.backing_name.as_deref().filter(|_| self.backing.open) else {
            return Ok(None);
        };
        let declared = chain::declared_format(header, layer.path)?;
        let backing = chain::resolve_backing(layer.path, name, declared, &self.backing)?;
        let writable = self.writable_layer == Some(seen.len());
        let below = LayerRequest {
            path: &backing.path,
            format: backing.format,
            writable,
            lock: match layer.lock {
                LockPolicy::Off => LockPolicy::Off,
                _ if writable => LockPolicy::Exclusive,
                _ => LockPolicy::Shared,
            },
            metadata_cache: backing_metadata_cache(seen.len()),
        };
        self.open_layer(&below, seen).map(Some)
    }

    fn assemble(
        &self,
        path: &Path,
        header: Option<Header>,
        parts: Parts,
        writable: bool,
        metadata_cache: usize,
    ) -> Result<Image> {
        let driver = match header {
            None => Driver::Raw(Raw::open(parts.storage, path, writable)?),
            Some(header) => {
                let options = LayerOptions {
                    writable,
                    metadata_cache,
                    ignore_flush: self.cache == CacheMode::Unsafe,
                };
                Driver::Qcow2(Box::new(Qcow2::open(
                    parts.storage,
                    path,
                    header,
                    parts.data_file,
                    parts.backing,
                    &options,
                )?))
            }
        };
        Ok(Image {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                driver,
                cache: self.cache,
                _locks: parts.locks,
            }),
        })
    }
}

/// One layer to open.
struct LayerRequest<'a> {
    path: &'a Path,
    format: Format,
    writable: bool,
    lock: LockPolicy,
    metadata_cache: usize,
}

/// What a layer stands on.
struct Parts {
    storage: Arc<dyn Storage>,
    data_file: Option<Arc<dyn Storage>>,
    locks: Vec<FileLock>,
    backing: Option<Image>,
}

/// Repairs an image whose refcounts may be wrong before it is written to.
fn repaired(header: Header, storage: &dyn Storage, path: &Path, writable: bool) -> Result<Header> {
    if !writable
        || header.incompatible & incompatible::DIRTY == 0
        || header.incompatible & incompatible::CORRUPT != 0
    {
        return Ok(header);
    }
    tracing::info!(path = %path.display(), "image was not closed, repairing its refcounts");
    let report = check::repair_storage(storage, path, Repair::All)?;
    match report.findings.first().filter(|_| !report.is_consistent()) {
        None => Header::read(storage, path),
        Some(left) => Err(Error::corrupt(
            path,
            format!("not closed properly and beyond repair: {}", left.what),
            left.offset,
        )),
    }
}

#[derive(Debug)]
pub(crate) enum Driver {
    Raw(Raw),
    Qcow2(Box<Qcow2>),
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    driver: Driver,
    cache: CacheMode,
    _locks: Vec<FileLock>,
}

/// An open image. Clones share it; the last one to go closes it.
#[derive(Debug, Clone)]
pub struct Image {
    inner: Arc<Inner>,
}

impl Image {
    /// Its format.
    pub fn format(&self) -> Format {
        match &self.inner.driver {
            Driver::Raw(_) => Format::Raw,
            Driver::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The file, as it was opened.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> u64 {
        match &self.inner.driver {
            Driver::Raw(raw) => raw.size(),
            Driver::Qcow2(qcow2) => qcow2.size(),
        }
    }

    /// Bytes in a cluster; 1 for raw images.
    pub fn cluster_size(&self) -> u64 {
        match &self.inner.driver {
            Driver::Raw(_) => 1,
            Driver::Qcow2(qcow2) => qcow2.geo.cluster_size,
        }
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        match &self.inner.driver {
            Driver::Raw(raw) => raw.writable,
            Driver::Qcow2(qcow2) => qcow2.is_writable(),
        }
    }

    /// The layer below.
    pub fn backing(&self) -> Option<&Image> {
        match &self.inner.driver {
            Driver::Raw(_) => None,
            Driver::Qcow2(qcow2) => qcow2.backing.as_ref(),
        }
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.inner.driver
    }

    pub(crate) fn cache_mode(&self) -> CacheMode {
        self.inner.cache
    }

    /// The qcow2 engine below, for operations that only qcow2 has.
    pub(crate) fn qcow2(&self) -> Option<&Qcow2> {
        match &self.inner.driver {
            Driver::Raw(_) => None,
            Driver::Qcow2(qcow2) => Some(qcow2),
        }
    }

    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::OutOfRange {
                path: self.inner.path.clone(),
                offset,
                length,
                size: self.size(),
            }),
        }
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<()> {
        if !self.is_writable() {
            return Err(Error::ReadOnly {
                path: self.inner.path.clone(),
            });
        }
        self.check_range(offset, length)
    }

    fn io(&self, action: &str, error: std::io::Error) -> Error {
        Error::io(&self.inner.path, action, error)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless the whole range lies inside the disk;
    /// those of the host; [`Error::Corrupt`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        match &self.inner.driver {
            Driver::Raw(raw) => raw.read_at(buf, offset).map_err(|e| self.io("read", e)),
            Driver::Qcow2(qcow2) => qcow2.read_at(buf, offset),
        }
    }

    /// Writes all of `buf` at `offset`. Two requests that overlap have no
    /// order between them unless one returned before the other began.
    ///
    /// # Errors
    /// As [`Image::read_at`]; [`Error::ReadOnly`], [`Error::NoSpace`]. After
    /// an error the range holds the old data, the new, or a mix by sectors.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        match &self.inner.driver {
            Driver::Raw(raw) => raw.write_at(buf, offset).map_err(|e| self.io("write", e))?,
            Driver::Qcow2(qcow2) => qcow2.write_at(buf, offset)?,
        }
        self.end_write()
    }

    /// Makes the range read as zeroes. With `unmap` its space may be given
    /// back to the host.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, length)?;
        match &self.inner.driver {
            Driver::Raw(raw) => raw
                .write_zeroes(offset, length, unmap)
                .map_err(|e| self.io("write zeroes", e))?,
            Driver::Qcow2(qcow2) => qcow2.write_zeroes(offset, length, unmap)?,
        }
        self.end_write()
    }

    /// Gives the space behind the range back to the host. What the range reads
    /// as afterwards is zeroes or its old content, never a backing file's.
    ///
    /// # Errors
    /// As [`Image::write_at`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_write(offset, length)?;
        match &self.inner.driver {
            Driver::Raw(raw) => raw
                .discard(offset, length)
                .map_err(|e| self.io("discard", e))?,
            Driver::Qcow2(qcow2) => qcow2.discard(offset, length)?,
        }
        self.end_write()
    }

    /// Compresses one whole cluster (at the end of the disk: what is left of
    /// it) and stores it compressed, or as it is when that gains nothing. The
    /// compressor matches [`Image::compression`].
    ///
    /// # Errors
    /// As [`Image::write_at`]; [`Error::Unsupported`] for raw images and
    /// images with an external data file.
    pub fn write_compressed(
        &self,
        buf: &[u8],
        offset: u64,
        compressor: &mut Compressor,
    ) -> Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        let Some(qcow2) = self.qcow2() else {
            return Err(Error::unsupported(
                &self.inner.path,
                "compression in a raw image",
            ));
        };
        let stored = qcow2.write_compressed(buf, offset, compressor);
        if !qcow2.guard(stored)? {
            qcow2.write_at(buf, offset)?;
        }
        self.end_write()
    }

    /// How a qcow2 image compresses clusters.
    pub fn compression(&self) -> Option<crate::create::Compression> {
        self.qcow2().map(|q| q.header.lock().compression)
    }

    fn end_write(&self) -> Result<()> {
        if self.inner.cache.is_synchronous() {
            self.flush()?;
        }
        Ok(())
    }

    /// Waits until everything that completed before this call is durable.
    ///
    /// # Errors
    /// Those of the host. After a failed flush of a qcow2 image all later ones
    /// fail too, since what the first should have covered may be lost.
    pub fn flush(&self) -> Result<()> {
        match &self.inner.driver {
            Driver::Raw(raw) => raw.flush().map_err(|e| self.io("flush", e)),
            Driver::Qcow2(qcow2) => qcow2.flush(),
        }
    }

    /// Flushes and, if no clone is left, lets go of the file and its locks.
    /// Dropping does the same and logs what fails.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn close(self) -> Result<()> {
        self.inner.close()
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        match &self.driver {
            Driver::Raw(raw) => raw.flush().map_err(|e| Error::io(&self.path, "flush", e)),
            Driver::Qcow2(qcow2) => qcow2.close(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(path = %self.path.display(), %error, "image not closed properly");
        }
    }
}
