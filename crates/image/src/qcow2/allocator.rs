//! Finding free host clusters, and growing what counts them.
//!
//! The allocator works under one lock. It never hands out a cluster that the
//! table of known metadata holds: an image whose refcounts lie is reported as
//! corrupt instead of being overwritten.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::qcow2::cache::NumberSet;
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::Header;
use crate::qcow2::refcount::Refcounts;
use crate::storage::Storage;

/// Bytes of the refcount cache.
const CACHE_BYTES: usize = 2 << 20;

/// Newly allocated host clusters, contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// First host cluster.
    pub(crate) first: u64,
    /// How many.
    pub(crate) count: u64,
    /// They lie past everything ever written and read as zeroes.
    pub(crate) fresh: bool,
}

/// Host cluster numbers of the metadata known so far.
pub(crate) type MetadataMap = Arc<RwLock<NumberSet>>;

/// Hands out host clusters.
#[derive(Debug)]
pub(crate) struct Allocator {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    geo: Geometry,
    header: Arc<Mutex<Header>>,
    metadata: MetadataMap,
    pub(crate) refcounts: Refcounts,
    /// No cluster before this one is free.
    cursor: u64,
    /// Clusters from here on were never written.
    fresh_from: u64,
    /// Next free byte in a partly used cluster of compressed data.
    compressed_next: Option<u64>,
}

impl Allocator {
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        path: PathBuf,
        header: Arc<Mutex<Header>>,
        metadata: MetadataMap,
    ) -> Result<Self> {
        let (geo, refcounts) = {
            let header = header.lock();
            let geo = Geometry::new(&header);
            let refcounts =
                Refcounts::open(Arc::clone(&storage), path.clone(), &header, CACHE_BYTES)?;
            (geo, refcounts)
        };
        let length = storage
            .length()
            .map_err(|e| Error::io(&path, "find its length", e))?;
        Ok(Allocator {
            storage,
            path,
            geo,
            header,
            metadata,
            refcounts,
            cursor: 0,
            fresh_from: length.div_ceil(geo.cluster_size),
            compressed_next: None,
        })
    }

    /// Allocates up to `wanted` contiguous clusters, at least one.
    pub(crate) fn allocate(&mut self, wanted: u64) -> Result<Allocation> {
        let first = self.find_free()?;
        let mut count = 0;
        while count < wanted {
            match self.refcounts.free_run(first + count, wanted - count)? {
                None | Some(0) => break,
                Some(run) => count += run,
            }
        }
        self.take(first, count.max(1), 1)
    }

    /// Allocates exactly `count` contiguous clusters (tables).
    pub(crate) fn allocate_contiguous(&mut self, count: u64) -> Result<Allocation> {
        if count <= 1 {
            return self.allocate(1);
        }
        let mut first = self.find_free()?;
        let mut run = 0;
        while run < count {
            match self.refcounts.free_run(first + run, count - run)? {
                Some(0) => {
                    first += run;
                    first += self.refcounts.used_run(first)?;
                    run = 0;
                }
                Some(more) => run += more,
                None => {
                    let start = self.extend(count)?;
                    return Ok(self.note_fresh(start, count));
                }
            }
        }
        let cursor = self.cursor;
        let taken = self.take(first, count, 1)?;
        if cursor < first {
            self.cursor = cursor;
        }
        Ok(taken)
    }

    /// The first free cluster at or after the cursor, covered by a block.
    fn find_free(&mut self) -> Result<u64> {
        loop {
            match self.refcounts.free_run(self.cursor, 1)? {
                Some(0) => self.cursor += self.refcounts.used_run(self.cursor)?,
                Some(_) => return Ok(self.cursor),
                None => self.cover(self.cursor)?,
            }
        }
    }

    /// Gives the range around `cluster` a refcount block. The block takes the
    /// first cluster of the range it counts, which is free because nothing
    /// counted it before.
    fn cover(&mut self, cluster: u64) -> Result<()> {
        let block = cluster / self.geo.block_entries;
        if block >= self.refcounts.table_capacity() {
            self.extend(0)?;
            return Ok(());
        }
        let place = block * self.geo.block_entries;
        self.check_not_metadata(place, 1)?;
        self.refcounts.add_block(block, place)?;
        if let Err(error) = self.refcounts.set(place, 1) {
            let capacity = self.refcounts.table_capacity();
            self.refcounts.shrink_back(capacity, block);
            return Err(error);
        }
        self.metadata.write().insert(place);
        self.fresh_from = self.fresh_from.max(place + 1);
        Ok(())
    }

    /// Covers a new region past all blocks, with `payload` allocated clusters
    /// at its start, then a larger refcount table if one is needed, then the
    /// blocks. Returns the first cluster of the payload.
    fn extend(&mut self, payload: u64) -> Result<u64> {
        let old_blocks = self.refcounts.blocks_end();
        let old_capacity = self.refcounts.table_capacity();
        let start = old_blocks * self.geo.block_entries;
        let mut blocks = 1;
        let mut table = 0;
        loop {
            let total = payload + table + blocks;
            let needed = total.div_ceil(self.geo.block_entries);
            let table_now = if old_blocks + needed > old_capacity {
                self.refcounts.grown_table_clusters(old_blocks + needed)?
            } else {
                0
            };
            if needed <= blocks && table_now <= table {
                break;
            }
            blocks = blocks.max(needed);
            table = table.max(table_now);
        }
        let total = payload + table + blocks;
        if (start + total) << self.geo.cluster_bits >= 1 << 56 {
            return Err(self.full());
        }
        self.check_not_metadata(start, total)?;
        self.fresh_from = self.fresh_from.max(start);
        let built = self.build_region(start, payload, table, blocks, old_blocks);
        if built.is_err()
            && self.refcounts.table_place().0 != (start + payload) << self.geo.cluster_bits
        {
            self.refcounts.shrink_back(old_capacity, old_blocks);
            self.refcounts.forget_from(old_blocks);
        }
        built?;
        Ok(start)
    }

    fn build_region(
        &mut self,
        start: u64,
        payload: u64,
        table: u64,
        blocks: u64,
        old_blocks: u64,
    ) -> Result<()> {
        let table_at = start + payload;
        let blocks_at = table_at + table;
        if table > 0 {
            self.refcounts.enlarge(table);
        }
        for i in 0..blocks {
            self.refcounts.add_block(old_blocks + i, blocks_at + i)?;
        }
        for cluster in start..blocks_at + blocks {
            self.refcounts.set(cluster, 1)?;
        }
        self.metadata.write().extend(table_at..blocks_at + blocks);
        self.fresh_from = self.fresh_from.max(blocks_at + blocks);
        if table > 0 {
            self.switch_table(table_at, table)?;
        }
        Ok(())
    }

    /// Writes the larger table and points the header to it, durably.
    fn switch_table(&mut self, table_at: u64, clusters: u64) -> Result<()> {
        let sync = |storage: &Arc<dyn Storage>| {
            storage
                .sync()
                .map_err(|e| Error::io(&self.path, "flush a larger refcount table", e))
        };
        let offset = table_at << self.geo.cluster_bits;
        self.refcounts.write_dirty()?;
        self.refcounts.write_table_at(offset)?;
        sync(&self.storage)?;
        let (old_offset, old_clusters) = self.refcounts.table_place();
        {
            let mut header = self.header.lock();
            let before = header.clone();
            header.refcount_table_offset = offset;
            header.refcount_table_clusters = clusters as u32;
            let written = self
                .storage
                .write_at(&header.fixed_bytes(), 0)
                .map_err(|e| Error::io(&self.path, "write its header", e));
            if written.is_err() {
                *header = before;
            }
            written?;
        }
        self.refcounts.table_moved(offset, clusters as u32);
        sync(&self.storage)?;
        let old = self.geo.cluster(old_offset);
        for cluster in old..old + u64::from(old_clusters) {
            self.release(cluster)?;
            self.metadata.write().remove(&cluster);
        }
        Ok(())
    }

    fn take(&mut self, first: u64, count: u64, value: u64) -> Result<Allocation> {
        if (first + count) << self.geo.cluster_bits >= 1 << 56 {
            return Err(self.full());
        }
        self.check_not_metadata(first, count)?;
        for done in 0..count {
            if let Err(error) = self.refcounts.set(first + done, value) {
                for cluster in first..first + done {
                    self.refcounts.set(cluster, 0)?;
                }
                return Err(error);
            }
        }
        self.cursor = self.cursor.max(first + count);
        Ok(self.note_fresh(first, count))
    }

    fn note_fresh(&mut self, first: u64, count: u64) -> Allocation {
        let fresh = first >= self.fresh_from;
        self.fresh_from = self.fresh_from.max(first + count);
        Allocation {
            first,
            count,
            fresh,
        }
    }

    fn full(&self) -> Error {
        Error::NoSpace {
            path: self.path.clone(),
            action: "allocate a cluster".to_owned(),
        }
    }

    fn check_not_metadata(&self, first: u64, count: u64) -> Result<()> {
        let metadata = self.metadata.read();
        match (first..first + count).find(|c| metadata.contains(c)) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(
                &self.path,
                "a metadata cluster has refcount 0",
                cluster << self.geo.cluster_bits,
            )),
        }
    }

    /// Takes one reference off a cluster. At zero it may be handed out again.
    pub(crate) fn release(&mut self, cluster: u64) -> Result<u64> {
        let count = self.refcounts.get(cluster)?;
        let Some(left) = count.checked_sub(1) else {
            return Err(Error::corrupt(
                &self.path,
                "a cluster in use has refcount 0",
                cluster << self.geo.cluster_bits,
            ));
        };
        self.refcounts.set(cluster, left)?;
        if left == 0 {
            self.cursor = self.cursor.min(cluster);
            if self.compressed_next.map(|at| self.geo.cluster(at)) == Some(cluster) {
                self.compressed_next = None;
            }
        }
        Ok(left)
    }

    /// Adds one reference to a cluster.
    pub(crate) fn reference(&mut self, cluster: u64) -> Result<u64> {
        let count = self.refcounts.get(cluster)?;
        if count == 0 {
            return Err(Error::corrupt(
                &self.path,
                "a cluster in use has refcount 0",
                cluster << self.geo.cluster_bits,
            ));
        }
        self.refcounts.set(cluster, count.saturating_add(1))?;
        Ok(count + 1)
    }

    /// Finds room for `length` bytes of compressed data (at most a cluster),
    /// sharing a host cluster with earlier ones where refcounts allow, and
    /// adds a reference to each cluster touched. Returns the host offset.
    pub(crate) fn allocate_bytes(&mut self, length: u64) -> Result<u64> {
        let size = self.geo.cluster_size;
        if let Some(next) = self.compressed_next {
            let cluster = self.geo.cluster(next);
            let room = size - self.geo.inside(next);
            let shareable = self.refcounts.get(cluster)? < self.geo.refcount_max();
            if shareable && length <= room {
                self.reference(cluster)?;
                self.compressed_next = (length < room).then_some(next + length);
                return Ok(next);
            }
            if shareable && self.refcounts.free_run(cluster + 1, 1)? == Some(1) {
                self.take(cluster + 1, 1, 1)?;
                if let Err(error) = self.reference(cluster) {
                    self.release(cluster + 1)?;
                    return Err(error);
                }
                let end = next + length;
                self.compressed_next = (self.geo.inside(end) != 0).then_some(end);
                return Ok(next);
            }
        }
        let offset = self.allocate(1)?.first << self.geo.cluster_bits;
        self.compressed_next = (length < size).then_some(offset + length);
        Ok(offset)
    }
}
