//! The qcow2 engine, versions 2 and 3, from the published specification
//! (`docs/interop/qcow2` of the QEMU project).
//!
//! # How it stays right
//! - A request holds a pin (module `gate`) while it uses what the mapping told it;
//!   clusters freed meanwhile are not reused before it ends.
//! - A request that changes the mapping of a guest cluster holds that cluster
//!   in flight; others that want to change it wait. A new mapping is visible
//!   only after its data was written.
//! - Metadata is changed in memory and written by a `commit` in an order that
//!   leaves the file valid, or with leaks only, at every instant.

pub(crate) mod allocator;
mod bitmaps;
pub(crate) mod cache;
pub(crate) mod commit;
pub(crate) mod compressed;
pub(crate) mod create;
pub mod entry;
pub mod extension;
pub(crate) mod gate;
pub(crate) mod geometry;
pub mod header;
pub(crate) mod mapping;
mod read;
pub mod refcount;
pub(crate) mod transaction;
pub(crate) mod write;
mod zero;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::storage::Storage;
use allocator::{Allocator, MetadataMap};
use cache::{L2Cache, NumberSet};
use commit::CommitState;
use compressed::DecompressedCache;
use gate::{Gate, InFlight};
use geometry::Geometry;
use header::{Compression, Header, autoclear, incompatible};

/// The active L1 table.
#[derive(Debug)]
pub(crate) struct L1 {
    pub(crate) entries: Vec<u64>,
    pub(crate) offset: u64,
    /// Indices whose entry on disk is older.
    pub(crate) dirty: BTreeSet<usize>,
}

/// How a layer is opened.
#[derive(Debug)]
pub(crate) struct LayerOptions {
    pub(crate) writable: bool,
    /// Bytes of the L2 cache.
    pub(crate) metadata_cache: usize,
    /// Flushes do not reach the host.
    pub(crate) ignore_flush: bool,
}

/// One open qcow2 layer.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    pub(crate) path: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
    /// The external data file.
    pub(crate) data_file: Option<Arc<dyn Storage>>,
    pub(crate) geo: Geometry,
    pub(crate) header: Arc<Mutex<Header>>,
    pub(crate) size: AtomicU64,
    pub(crate) backing: Option<Image>,
    pub(crate) l1: RwLock<L1>,
    /// Held while an L2 table is created or moved.
    l1_change: Mutex<()>,
    pub(crate) l2: L2Cache,
    pub(crate) allocator: Mutex<Option<Allocator>>,
    pub(crate) metadata: MetadataMap,
    pub(crate) gate: Gate,
    pub(crate) in_flight: InFlight,
    pub(crate) commit: CommitState,
    decompressed: DecompressedCache,
    compression: Compression,
    /// A backing file is named but was not opened.
    backing_closed: bool,
    writable: bool,
    /// Damage was met: no more writes.
    broken: AtomicBool,
    /// Enabled bitmaps are marked as out of date on disk.
    bitmaps_marked: AtomicBool,
    bitmaps_lock: Mutex<()>,
}

impl Qcow2 {
    /// Opens the layer in `storage` whose header was read before.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        path: &Path,
        header: Header,
        data_file: Option<Arc<dyn Storage>>,
        backing: Option<Image>,
        options: &LayerOptions,
    ) -> Result<Self> {
        let geo = Geometry::new(&header);
        if header.has_data_file() != data_file.is_some() {
            return Err(Error::invalid(
                path.display().to_string(),
                "the image keeps its data in an external file, which must be opened with it",
            ));
        }
        if options.writable {
            refuse_unsafe_writing(&header, path)?;
        }
        let l1 = read_l1(storage.as_ref(), path, &header)?;
        let mut known = NumberSet::default();
        let overlap = collect_metadata(&mut known, &geo, &header, &l1);
        if let Some(offset) = overlap.filter(|_| options.writable) {
            return Err(Error::corrupt(
                path,
                "two metadata structures overlap",
                offset,
            ));
        }
        let metadata: MetadataMap = Arc::new(RwLock::new(known));
        let size = header.size;
        let compression = header.compression;
        let backing_closed = header.backing_name.is_some() && backing.is_none();
        let has_bitmaps = header.extensions.bitmaps.is_some();
        let header = Arc::new(Mutex::new(header));
        let slices = options.metadata_cache as u64 / geo.slice_bytes();
        let image = Qcow2 {
            path: path.to_owned(),
            data_file,
            geo,
            size: AtomicU64::new(size),
            backing,
            l1: RwLock::new(l1),
            l1_change: Mutex::new(()),
            l2: L2Cache::new(usize::try_from(slices).unwrap_or(usize::MAX)),
            allocator: Mutex::new(None),
            metadata,
            gate: Gate::default(),
            in_flight: InFlight::default(),
            commit: CommitState::new(options.ignore_flush),
            decompressed: DecompressedCache::default(),
            compression,
            backing_closed,
            writable: options.writable,
            broken: AtomicBool::new(false),
            bitmaps_marked: AtomicBool::new(!has_bitmaps),
            bitmaps_lock: Mutex::new(()),
            storage,
            header,
        };
        if options.writable {
            image.open_allocator()?;
            image.clear_unknown_autoclear()?;
        }
        Ok(image)
    }

    fn open_allocator(&self) -> Result<()> {
        let allocator = Allocator::open(
            Arc::clone(&self.storage),
            self.path.clone(),
            Arc::clone(&self.header),
            Arc::clone(&self.metadata),
        )?;
        let mut metadata = self.metadata.write();
        for block in allocator.refcounts.table() {
            if *block != 0 && !metadata.insert(self.geo.cluster(*block)) {
                return Err(Error::corrupt(
                    &self.path,
                    "a refcount block overlaps other metadata",
                    *block,
                ));
            }
        }
        drop(metadata);
        *self.allocator.lock() = Some(allocator);
        Ok(())
    }

    /// A writer that does not know an autoclear feature clears its bit.
    fn clear_unknown_autoclear(&self) -> Result<()> {
        let unknown = self.header.lock().autoclear & !autoclear::KNOWN != 0;
        if unknown {
            self.update_header(|h| h.autoclear &= autoclear::KNOWN)?;
        }
        Ok(())
    }

    /// The storage that holds guest clusters.
    pub(crate) fn data(&self) -> &Arc<dyn Storage> {
        self.data_file.as_ref().unwrap_or(&self.storage)
    }

    /// Virtual size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Runs `f` on the allocator, which a writable image has.
    pub(crate) fn with_allocator<R>(
        &self,
        f: impl FnOnce(&mut Allocator) -> Result<R>,
    ) -> Result<R> {
        match self.allocator.lock().as_mut() {
            Some(allocator) => f(allocator),
            None => Err(Error::ReadOnly {
                path: self.path.clone(),
            }),
        }
    }

    /// Fails when no write may happen.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly {
                path: self.path.clone(),
            });
        }
        if self.broken.load(Ordering::Acquire) {
            return Err(Error::corrupt(
                &self.path,
                "an earlier failure left its structure in doubt; close it and open it again",
                72,
            ));
        }
        Ok(())
    }

    /// Ends writing through this handle after a change of structure failed half
    /// way. The file says that it is dirty; opening it again repairs it.
    pub(crate) fn stop_writing(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Passes an outcome on. Damage met in a writable image sets the corrupt
    /// bit (version 3) and ends writing, so that it is not made worse.
    pub(crate) fn guard<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(Error::Corrupt { path, .. }) = &outcome
            && self.writable
            && path == &self.path
            && !self.broken.swap(true, Ordering::AcqRel)
        {
            tracing::error!(path = %self.path.display(), "image is corrupt, writing ends");
            if self.geo.version >= 3
                && let Err(error) = self.update_header(|h| h.incompatible |= incompatible::CORRUPT)
            {
                tracing::error!(%error, "cannot set the corrupt bit");
            }
        }
        outcome
    }

    /// Changes header fields and writes the fixed part, in one sector write,
    /// then makes it durable. The backing file name and the extensions are
    /// left alone.
    pub(crate) fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = self.header.lock();
        let mut changed = header.clone();
        change(&mut changed);
        self.storage
            .write_at(&changed.fixed_bytes(), 0)
            .map_err(|e| Error::io(&self.path, "write its header", e))?;
        *header = changed;
        drop(header);
        self.sync_storage()
    }

    /// Whether the image stands alone.
    pub(crate) fn has_no_backing(&self) -> bool {
        self.backing.is_none() && !self.backing_closed
    }

    /// Forgets decompressed clusters.
    pub(crate) fn forget_decompressed(&self) {
        self.decompressed.clear();
    }

    /// Ends use of the layer: everything durable, the dirty bit clear.
    pub(crate) fn close(&self) -> Result<()> {
        if !self.writable || self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        self.flush()?;
        // What the first commit freed is written by the second.
        for _ in 0..3 {
            if !self.has_uncommitted() {
                break;
            }
            self.flush()?;
        }
        Ok(())
    }
}

fn refuse_unsafe_writing(header: &Header, path: &Path) -> Result<()> {
    if header.incompatible & incompatible::CORRUPT != 0 {
        return Err(Error::corrupt(
            path,
            "the corrupt bit is set; open it read-only or repair it",
            72,
        ));
    }
    if header.incompatible & incompatible::DIRTY != 0 {
        return Err(Error::corrupt(
            path,
            "the dirty bit is set (it was not closed), its refcounts need a repair",
            72,
        ));
    }
    Ok(())
}

fn read_l1(storage: &dyn Storage, path: &Path, header: &Header) -> Result<L1> {
    // The header check bounds this to 32 MiB.
    let mut raw = vec![0u8; header.l1_entries as usize * 8];
    if !raw.is_empty() {
        storage
            .read_at(&mut raw, header.l1_offset)
            .map_err(|e| Error::io(path, "read its L1 table", e))?;
    }
    let entries = raw
        .chunks_exact(8)
        .map(|word| header::be64(word, 0))
        .collect();
    Ok(L1 {
        entries,
        offset: header.l1_offset,
        dirty: BTreeSet::new(),
    })
}

/// Notes the host clusters of all tables that the header and L1 lead to.
/// Returns the offset of the first that is named twice.
fn collect_metadata(
    known: &mut NumberSet,
    geo: &Geometry,
    header: &Header,
    l1: &L1,
) -> Option<u64> {
    let mut overlap = None;
    let mut add = |offset: u64, bytes: u64| {
        let first = geo.cluster(offset);
        for cluster in first..first + bytes.div_ceil(geo.cluster_size) {
            if !known.insert(cluster) {
                overlap.get_or_insert(cluster << geo.cluster_bits);
            }
        }
    };
    add(0, 1);
    add(header.l1_offset, u64::from(header.l1_entries) * 8);
    add(
        header.refcount_table_offset,
        u64::from(header.refcount_table_clusters) << geo.cluster_bits,
    );
    if header.snapshot_count > 0 {
        add(header.snapshots_offset, 1);
    }
    if header.autoclear & autoclear::BITMAPS != 0
        && let Some(bitmaps) = header.extensions.bitmaps
    {
        add(
            bitmaps.directory_offset & entry::OFFSET_MASK,
            bitmaps.directory_size.min(1 << 26),
        );
    }
    for word in &l1.entries {
        let offset = word & entry::OFFSET_MASK;
        if offset != 0 {
            add(offset, 1);
        }
    }
    overlap
}
