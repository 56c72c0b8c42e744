//! Changing an image's structure: snapshots, resizing, new backing files.
//!
//! A [`Transaction`] has the image to itself: no request is under way, and
//! everything that completed before is on disk. What it does reaches the disk
//! in the order of its calls; the order that keeps the file valid throughout
//! is the caller's to choose:
//!
//! 1. allocate, take references, [`Transaction::flush_refcounts`];
//! 2. write new tables, [`Transaction::sync`];
//! 3. [`Transaction::update_header`] or [`Transaction::write_l1`] (the switch);
//! 4. release what is no longer named, [`Transaction::flush_refcounts`].
//!
//! When it ends, caches are empty and the next request reads what it left.

#![allow(dead_code)] // for the operations that change an image's structure

use std::path::Path;

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::gate::Exclusive;
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::{Header, be64};

/// Bytes that a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Exclusive access to the metadata of an open image.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    image: &'a Qcow2,
    _exclusive: Exclusive<'a>,
}

impl Qcow2 {
    /// Waits for the requests under way, keeps new ones out, and commits.
    /// The caller must not be inside a request of this image.
    pub(crate) fn transaction(&self) -> Result<Transaction<'_>> {
        self.check_writable()?;
        let exclusive = self.gate.exclusive();
        self.close()?;
        Ok(Transaction {
            image: self,
            _exclusive: exclusive,
        })
    }
}

impl Transaction<'_> {
    /// The image's path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.image.path
    }

    /// The image's fixed measures.
    pub(crate) fn geometry(&self) -> Geometry {
        self.image.geo
    }

    /// A copy of the header.
    pub(crate) fn header(&self) -> Header {
        self.image.header.lock().clone()
    }

    /// Changes fixed header fields in one sector write and makes it durable.
    /// Size and place of L1 take effect for later requests.
    pub(crate) fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.image.update_header(change)
    }

    /// Changes extensions and backing file name too. At any instant the file
    /// has the old or the new header: what does not fit the first sector is
    /// written to unused bytes first. The table of feature names, which only
    /// serves messages, is dropped where it would stand in the way.
    pub(crate) fn replace_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let image = self.image;
        let mut new = self.header();
        let old_name = new.backing_name.as_ref().map(|name| {
            let start = new.backing_name_offset as usize;
            (start, start + name.len())
        });
        change(&mut new);
        let mut area = new.serialise(&image.path)?;
        if area.len() > SECTOR {
            new.extensions.feature_names.clear();
            area = new.serialise(&image.path)?;
        }
        let mut tail = None;
        if area.len() > SECTOR
            && let Some(name) = new.backing_name.clone()
        {
            new.backing_name_offset = self.place_for(name.len(), old_name)? as u64;
            let start = area.len() - name.len();
            area.truncate(start);
            area[..new.fixed_bytes().len()].copy_from_slice(&new.fixed_bytes());
            tail = Some((new.backing_name_offset, name));
        }
        let failed = |e| Error::io(&image.path, "write its header", e);
        if let Some((offset, name)) = &tail {
            image
                .storage
                .write_at(name.as_bytes(), *offset)
                .map_err(failed)?;
            image.sync_storage()?;
        }
        area.resize(area.len().next_multiple_of(SECTOR), 0);
        image.storage.write_at(&area, 0).map_err(failed)?;
        *image.header.lock() = new;
        image.sync_storage()
    }

    /// Bytes of the header cluster, past the first sector, that the old name
    /// does not use.
    fn place_for(&self, length: usize, old: Option<(usize, usize)>) -> Result<usize> {
        let end = self.image.geo.cluster_size as usize;
        let candidates = [SECTOR, old.map_or(SECTOR, |o| o.1.next_multiple_of(SECTOR))];
        candidates
            .into_iter()
            .find(|start| {
                let stop = start + length;
                stop <= end && old.is_none_or(|(a, b)| stop <= a || *start >= b)
            })
            .ok_or_else(|| {
                Error::invalid(
                    self.image.path.display().to_string(),
                    "no room in the header cluster for a second backing file name",
                )
            })
    }

    /// The active L1 table.
    pub(crate) fn l1(&self) -> Vec<u64> {
        self.image.l1.read().entries.clone()
    }

    /// Replaces the L1 table in memory by what stands at `offset` now (after
    /// the header was switched to it).
    pub(crate) fn set_l1(&self, offset: u64, entries: Vec<u64>) {
        let mut l1 = self.image.l1.write();
        let mut metadata = self.image.metadata.write();
        let geo = &self.image.geo;
        let clusters = |offset: u64, entries: usize| {
            let first = geo.cluster(offset);
            first..first + (entries as u64 * 8).div_ceil(geo.cluster_size)
        };
        for cluster in clusters(l1.offset, l1.entries.len()) {
            metadata.remove(&cluster);
        }
        metadata.extend(clusters(offset, entries.len()));
        for entry in &entries {
            let table = entry & crate::qcow2::entry::OFFSET_MASK;
            if table != 0 {
                metadata.insert(geo.cluster(table));
            }
        }
        l1.offset = offset;
        l1.entries = entries;
        l1.dirty.clear();
    }

    /// Writes the active L1 table in place and durably.
    pub(crate) fn write_l1(&self, entries: &[u64]) -> Result<()> {
        let offset = self.image.l1.read().offset;
        self.write_table(offset, entries)?;
        self.sync()?;
        self.set_l1(offset, entries.to_vec());
        Ok(())
    }

    /// Sets the virtual size that requests see, after the header was changed.
    pub(crate) fn set_size(&self, size: u64) {
        self.image
            .size
            .store(size, std::sync::atomic::Ordering::Release);
    }

    /// Reads `words` 64-bit words of a table. The caller has bounded `words`.
    pub(crate) fn read_table(&self, offset: u64, words: usize) -> Result<Vec<u64>> {
        let mut raw = vec![0u8; words * 8];
        self.read_bytes(&mut raw, offset)?;
        Ok(raw.chunks_exact(8).map(|w| be64(w, 0)).collect())
    }

    /// Writes a table.
    pub(crate) fn write_table(&self, offset: u64, words: &[u64]) -> Result<()> {
        let raw: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
        self.write_bytes(&raw, offset)
    }

    /// Reads metadata bytes.
    pub(crate) fn read_bytes(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.image
            .storage
            .read_at(buf, offset)
            .map_err(|e| Error::io(&self.image.path, "read its metadata", e))
    }

    /// Writes metadata bytes.
    pub(crate) fn write_bytes(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.image.commit.note_write();
        self.image
            .storage
            .write_at(buf, offset)
            .map_err(|e| Error::io(&self.image.path, "write its metadata", e))
    }

    /// Allocates `count` contiguous host clusters with refcount 1; returns the
    /// offset of the first.
    pub(crate) fn allocate(&self, count: u64) -> Result<u64> {
        let place = self
            .image
            .with_allocator(|a| a.allocate_contiguous(count))?;
        Ok(place.first << self.image.geo.cluster_bits)
    }

    /// The refcount of host cluster number `cluster`.
    pub(crate) fn refcount(&self, cluster: u64) -> Result<u64> {
        self.image.with_allocator(|a| a.refcounts.get(cluster))
    }

    /// Adds a reference; returns the new refcount. A refcount that does not
    /// fit its width is an [`Error::Unsupported`], and nothing is changed.
    pub(crate) fn reference(&self, cluster: u64) -> Result<u64> {
        self.image.with_allocator(|a| a.reference(cluster))
    }

    /// Takes a reference back; returns the new refcount. The caller has made
    /// durable that nothing names the cluster any more.
    pub(crate) fn release(&self, cluster: u64) -> Result<u64> {
        let left = self.image.with_allocator(|a| a.release(cluster))?;
        if left == 0 {
            self.image.metadata.write().remove(&cluster);
        }
        Ok(left)
    }

    /// Writes changed refcounts and makes them durable.
    pub(crate) fn flush_refcounts(&self) -> Result<()> {
        self.image.flush()
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.image.flush()
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.image.l2.clear();
        self.image.forget_decompressed();
    }
}
