//! Refcounts of host clusters, in memory and on disk.
//!
//! Specification: `docs/interop/qcow2`, "Host cluster management". A refcount
//! in memory is at least what the mapping on disk needs at any time, so its
//! slices may be written whenever it suits; only increments must be durable
//! before a mapping that needs them, which the commit sees to.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::qcow2::cache::SliceMap;
use crate::qcow2::entry::OFFSET_MASK;
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use crate::storage::Storage;

/// Reads refcount number `index` from the bytes of a block or slice.
pub fn get(bytes: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..=2 => {
            let per_byte = 8 >> order;
            let shift = (index % per_byte) << order;
            let mask = (1u16 << (1 << order)) - 1;
            u64::from((u16::from(bytes[index / per_byte]) >> shift) & mask)
        }
        _ => {
            let width = 1usize << (order - 3);
            let at = index * width;
            bytes[at..at + width]
                .iter()
                .fold(0, |value, byte| (value << 8) | u64::from(*byte))
        }
    }
}

/// Writes refcount number `index`; `value` fits the width.
pub fn set(bytes: &mut [u8], order: u32, index: usize, value: u64) {
    match order {
        0..=2 => {
            let per_byte = 8 >> order;
            let shift = (index % per_byte) << order;
            let mask = (((1u16 << (1 << order)) - 1) << shift) as u8;
            let byte = &mut bytes[index / per_byte];
            *byte = (*byte & !mask) | (((value as u8) << shift) & mask);
        }
        _ => {
            let width = 1usize << (order - 3);
            let at = index * width;
            bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
}

/// Refcount slices that a commit writes: key and content.
pub(crate) type RefcountSlices = Vec<(u64, Arc<[u8]>)>;

/// The refcount table with a cache of refcount slices.
#[derive(Debug)]
pub(crate) struct Refcounts {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    geo: Geometry,
    /// Offsets of refcount blocks; 0 where there is none.
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u32,
    dirty_table: BTreeSet<usize>,
    slices: SliceMap<u8>,
}

impl Refcounts {
    /// Reads the refcount table that `header` points to.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        path: PathBuf,
        header: &Header,
        cache_bytes: usize,
    ) -> Result<Self> {
        let geo = Geometry::new(header);
        let bytes = u64::from(header.refcount_table_clusters) << geo.cluster_bits;
        let mut raw = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
        storage
            .read_at(&mut raw, header.refcount_table_offset)
            .map_err(|e| Error::io(&path, "read its refcount table", e))?;
        let mut table = Vec::with_capacity(raw.len() / 8);
        for (index, word) in raw.chunks_exact(8).enumerate() {
            let entry = crate::qcow2::header::be64(word, 0);
            let offset = entry & !0x1ff;
            if geo.inside(offset) != 0 || offset & !OFFSET_MASK != 0 {
                return Err(Error::corrupt(
                    &path,
                    format!("refcount block at {offset:#x} is not aligned to a cluster"),
                    header.refcount_table_offset + index as u64 * 8,
                ));
            }
            table.push(offset);
        }
        let capacity = cache_bytes / geo.refcount_slice as usize;
        Ok(Refcounts {
            storage,
            path,
            geo,
            table,
            table_offset: header.refcount_table_offset,
            table_clusters: header.refcount_table_clusters,
            dirty_table: BTreeSet::new(),
            slices: SliceMap::new(capacity.max(16)),
        })
    }

    /// Entries of the table in memory.
    pub(crate) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Place and size of the table on disk.
    pub(crate) fn table_place(&self) -> (u64, u32) {
        (self.table_offset, self.table_clusters)
    }

    fn block_offset(&self, block: u64) -> u64 {
        usize::try_from(block)
            .ok()
            .and_then(|at| self.table.get(at).copied())
            .unwrap_or(0)
    }

    /// Host offset of a slice, or `None` where there is no block.
    fn slice_offset(&self, key: u64) -> Option<u64> {
        let per_block = self.geo.cluster_size / self.geo.refcount_slice;
        match self.block_offset(key / per_block) {
            0 => None,
            block => Some(block + (key % per_block) * self.geo.refcount_slice),
        }
    }

    fn locate(&self, cluster: u64) -> (u64, usize) {
        let entries = self.geo.refcount_slice_entries();
        (cluster / entries, (cluster % entries) as usize)
    }

    /// Brings a slice into the cache. False where no block covers it.
    fn load(&mut self, key: u64) -> Result<bool> {
        if self.slices.get(key).is_some() {
            return Ok(true);
        }
        let Some(offset) = self.slice_offset(key) else {
            return Ok(false);
        };
        if self.slices.dirty_count() * 2 > self.slices.capacity() {
            self.write_dirty()?;
        }
        let mut bytes = vec![0u8; self.geo.refcount_slice as usize];
        self.storage
            .read_at(&mut bytes, offset)
            .map_err(|e| Error::io(&self.path, "read a refcount block", e))?;
        self.slices.insert(key, bytes.into());
        Ok(true)
    }

    /// The refcount of a host cluster; 0 where no block covers it.
    pub(crate) fn get(&mut self, cluster: u64) -> Result<u64> {
        let (key, index) = self.locate(cluster);
        if !self.load(key)? {
            return Ok(0);
        }
        let order = self.geo.refcount_order;
        Ok(self.slices.get(key).map_or(0, |b| get(b, order, index)))
    }

    /// Sets the refcount of a host cluster that a block covers.
    pub(crate) fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        let (key, index) = self.locate(cluster);
        if value > self.geo.refcount_max() {
            return Err(Error::unsupported(
                &self.path,
                format!(
                    "a refcount of {value} (at most {} with refcount_bits={}); convert to an image with wider refcounts",
                    self.geo.refcount_max(),
                    1u32 << self.geo.refcount_order
                ),
            ));
        }
        if !self.load(key)? {
            return Err(Error::corrupt(
                &self.path,
                "a cluster in use is covered by no refcount block",
                cluster << self.geo.cluster_bits,
            ));
        }
        let order = self.geo.refcount_order;
        if let Some(bytes) = self.slices.get_mut(key) {
            set(bytes, order, index, value);
        }
        Ok(())
    }

    /// Number of free clusters from `cluster` on, at most `limit`, that lie in
    /// one slice; 0 when `cluster` is in use. `None` where no block covers it.
    pub(crate) fn free_run(&mut self, cluster: u64, limit: u64) -> Result<Option<u64>> {
        let (key, index) = self.locate(cluster);
        if !self.load(key)? {
            return Ok(None);
        }
        let (order, entries) = (self.geo.refcount_order, self.geo.refcount_slice_entries());
        let Some(bytes) = self.slices.get(key) else {
            return Ok(None);
        };
        let end = entries.min((index as u64).saturating_add(limit)) as usize;
        let run = (index..end)
            .take_while(|i| get(bytes, order, *i) == 0)
            .count();
        Ok(Some(run as u64))
    }

    /// Number of clusters in use from `cluster` on in its slice.
    pub(crate) fn used_run(&mut self, cluster: u64) -> Result<u64> {
        let (key, index) = self.locate(cluster);
        if !self.load(key)? {
            return Ok(0);
        }
        let (order, entries) = (self.geo.refcount_order, self.geo.refcount_slice_entries());
        let Some(bytes) = self.slices.get(key) else {
            return Ok(0);
        };
        let run = (index..entries as usize)
            .take_while(|i| get(bytes, order, *i) != 0)
            .count();
        Ok(run as u64)
    }

    /// Adds an empty block at host cluster `place` for the range of `block`,
    /// which the table has room for. The caller sets the refcount of `place`.
    pub(crate) fn add_block(&mut self, block: u64, place: u64) -> Result<()> {
        let offset = place << self.geo.cluster_bits;
        self.storage
            .write_at(&vec![0u8; self.geo.cluster_size as usize], offset)
            .map_err(|e| Error::io(&self.path, "write a new refcount block", e))?;
        let at = usize::try_from(block).unwrap_or(usize::MAX);
        let Some(slot) = self.table.get_mut(at) else {
            return Err(Error::NoSpace {
                path: self.path.clone(),
                action: "grow its refcount table".to_owned(),
            });
        };
        *slot = offset;
        self.dirty_table.insert(at);
        Ok(())
    }

    /// Blocks that the table has room for.
    pub(crate) fn table_capacity(&self) -> u64 {
        self.table.len() as u64
    }

    /// First block after the last that exists.
    pub(crate) fn blocks_end(&self) -> u64 {
        self.table
            .iter()
            .rposition(|offset| *offset != 0)
            .map_or(0, |at| at as u64 + 1)
    }

    /// Clusters of a table that has room for `blocks` and some growth.
    pub(crate) fn grown_table_clusters(&self, blocks: u64) -> Result<u64> {
        let wanted = blocks.max(self.table_capacity() + self.table_capacity() / 2);
        let most = MAX_REFCOUNT_TABLE_BYTES >> self.geo.cluster_bits;
        let clusters = (wanted * 8).div_ceil(self.geo.cluster_size).min(most);
        if clusters * self.geo.cluster_size / 8 < blocks {
            return Err(Error::NoSpace {
                path: self.path.clone(),
                action: "address more host clusters (the refcount table is as large as it can be)"
                    .to_owned(),
            });
        }
        Ok(clusters)
    }

    /// Enlarges the table in memory, before blocks are added to it.
    pub(crate) fn enlarge(&mut self, clusters: u64) {
        let entries = clusters * self.geo.cluster_size / 8;
        self.table.resize(usize::try_from(entries).unwrap_or(0), 0);
    }

    /// Undoes [`Refcounts::enlarge`] and the blocks added at or after `block`.
    pub(crate) fn shrink_back(&mut self, entries: u64, block: u64) {
        let block = usize::try_from(block).unwrap_or(usize::MAX);
        for slot in self.table.iter_mut().skip(block) {
            *slot = 0;
        }
        self.table
            .truncate(usize::try_from(entries).unwrap_or(usize::MAX));
        self.dirty_table.retain(|at| *at < block);
    }

    /// Writes the whole table at `offset`, where the header will point next.
    pub(crate) fn write_table_at(&self, offset: u64) -> Result<()> {
        let bytes: Vec<u8> = self.table.iter().flat_map(|o| o.to_be_bytes()).collect();
        self.storage
            .write_at(&bytes, offset)
            .map_err(|e| Error::io(&self.path, "write a larger refcount table", e))
    }

    /// Tells that the header points to the table at `offset` now.
    pub(crate) fn table_moved(&mut self, offset: u64, clusters: u32) {
        self.table_offset = offset;
        self.table_clusters = clusters;
        self.dirty_table.clear();
    }

    /// What a commit has to write: dirty slices with their host offsets.
    pub(crate) fn take_dirty(&mut self) -> RefcountSlices {
        let mut out = Vec::new();
        self.slices.take_dirty(&mut out);
        out.sort_unstable_by_key(|(key, _)| *key);
        out
    }

    /// Host offset that a taken slice is written to.
    pub(crate) fn offset_of(&self, key: u64) -> Option<u64> {
        self.slice_offset(key)
    }

    /// Ends the writing of a taken slice.
    pub(crate) fn written(&mut self, key: u64, ok: bool) {
        self.slices.written(key, ok);
    }

    /// Whether blocks were added that the table on disk does not have yet.
    pub(crate) fn has_dirty_table(&self) -> bool {
        !self.dirty_table.is_empty()
    }

    /// Whether anything waits to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        self.has_dirty_table() || self.slices.dirty_count() > 0
    }

    /// Writes changed table entries. The blocks are durable already.
    pub(crate) fn write_table_entries(&mut self) -> Result<()> {
        while let Some(at) = self.dirty_table.first().copied() {
            self.storage
                .write_at(
                    &self.table[at].to_be_bytes(),
                    self.table_offset + at as u64 * 8,
                )
                .map_err(|e| Error::io(&self.path, "write its refcount table", e))?;
            self.dirty_table.remove(&at);
        }
        Ok(())
    }

    /// Writes dirty slices now, to make room in the cache.
    pub(crate) fn write_dirty(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for (key, bytes) in self.take_dirty() {
            if outcome.is_ok()
                && let Some(offset) = self.slice_offset(key)
            {
                outcome = self
                    .storage
                    .write_at(&bytes, offset)
                    .map_err(|e| Error::io(&self.path, "write a refcount block", e));
            }
            self.slices.written(key, outcome.is_ok());
        }
        outcome
    }

    /// Drops cached slices of blocks at or after `block`, which do not exist.
    pub(crate) fn forget_from(&mut self, block: u64) {
        let per_block = self.geo.cluster_size / self.geo.refcount_slice;
        self.slices.remove_from(block * per_block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_keeps_its_neighbours() {
        for order in 0..=6u32 {
            let entries = (64 * 8) >> order;
            let max = if order == 6 {
                u64::MAX
            } else {
                (1 << (1u32 << order)) - 1
            };
            let mut bytes = vec![0u8; 64];
            let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & max;
            for i in 0..entries {
                set(&mut bytes, order, i, max);
            }
            for i in (0..entries).rev() {
                set(&mut bytes, order, i, value(i));
            }
            for i in 0..entries {
                assert_eq!(get(&bytes, order, i), value(i), "order {order} entry {i}");
            }
        }
    }

    #[test]
    fn narrow_refcounts_fill_a_byte_from_its_low_bits() {
        let mut bytes = [0u8; 1];
        set(&mut bytes, 1, 0, 2);
        assert_eq!(bytes[0], 0b10);
        set(&mut bytes, 1, 3, 1);
        assert_eq!(bytes[0], 0b0100_0010);
    }
}
