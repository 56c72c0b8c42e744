//! Writing changed metadata in an order that survives a crash at any point.
//!
//! 1. dirty refcount slices (they hold the increments that new mappings need);
//!    new refcount blocks enter the refcount table after a sync;
//! 2. sync: data, copies, new L2 tables and refcounts are durable;
//! 3. L2 slices and L1 entries as they were when the commit began;
//! 4. sync: the new mapping is durable;
//! 5. references of clusters that the mapping no longer names are taken back
//!    in memory, once no request that began before can still use them. The
//!    next commit writes these decrements.
//!
//! Steps with nothing to do cost nothing: flushing in-place overwrites is one
//! sync.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;

/// Freed clusters that wait before a request commits on its own account.
const MANY_FREED: usize = 4096;

/// Host clusters that lost a reference.
#[derive(Debug, Clone, Copy)]
struct Freed {
    first: u64,
    count: u64,
    epoch: u64,
    punch: bool,
}

/// What a commit needs to remember.
#[derive(Debug)]
pub(crate) struct CommitState {
    running: Mutex<()>,
    started: AtomicU64,
    /// Number of the last commit that succeeded.
    finished: AtomicU64,
    /// Something was written since the last sync.
    unsynced: AtomicBool,
    /// A sync failed: what it should have covered may be lost, so no later
    /// flush may report success.
    sync_failed: AtomicBool,
    freed: Mutex<Vec<Freed>>,
    ignore_flush: bool,
}

impl CommitState {
    pub(crate) fn new(ignore_flush: bool) -> Self {
        CommitState {
            running: Mutex::new(()),
            started: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            unsynced: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            freed: Mutex::new(Vec::new()),
            ignore_flush,
        }
    }

    /// Notes that the storage was written, before the request returns.
    pub(crate) fn note_write(&self) {
        if !self.unsynced.load(Ordering::Relaxed) {
            self.unsynced.store(true, Ordering::SeqCst);
        }
    }

    /// Notes that the mapping in memory no longer names `count` host clusters
    /// from `first` on. `punch` gives their space back to the host too.
    pub(crate) fn free(&self, first: u64, count: u64, epoch: u64, punch: bool) {
        let mut freed = self.freed.lock();
        if let Some(last) = freed.last_mut()
            && last.first + last.count == first
            && last.punch == punch
        {
            last.count += count;
            last.epoch = epoch;
            return;
        }
        freed.push(Freed {
            first,
            count,
            epoch,
            punch,
        });
    }

    pub(crate) fn many_freed(&self) -> bool {
        self.freed.lock().len() > MANY_FREED
    }
}

impl Qcow2 {
    /// Makes everything that completed before this call durable.
    pub(crate) fn flush(&self) -> Result<()> {
        if !self.is_writable() {
            return Ok(());
        }
        let arrived = self.commit.started.load(Ordering::SeqCst);
        let _running = self.commit.running.lock();
        // A commit that began after this call has done the work already.
        if self.commit.finished.load(Ordering::SeqCst) > arrived {
            return Ok(());
        }
        let number = self.commit.started.fetch_add(1, Ordering::SeqCst) + 1;
        let outcome = self.commit_now();
        let outcome = self.guard(outcome);
        if outcome.is_ok() {
            self.commit.finished.store(number, Ordering::SeqCst);
        }
        outcome
    }

    /// Commits if so much waits that caches or lists would grow.
    pub(crate) fn commit_if_crowded(&self, guest_cluster: u64) -> Result<()> {
        if self.is_commit_due(guest_cluster) {
            self.flush()?;
        }
        Ok(())
    }

    /// Whether so much waits that a commit is due.
    pub(crate) fn is_commit_due(&self, guest_cluster: u64) -> bool {
        let (key, _) = self.geo.slice_of(guest_cluster);
        self.l2.is_crowded(key) || self.commit.many_freed()
    }

    /// Whether a flush would have metadata to write.
    pub(crate) fn has_uncommitted(&self) -> bool {
        !self.commit.freed.lock().is_empty()
            || self.l2.dirty_count() > 0
            || !self.l1.read().dirty.is_empty()
            || self
                .allocator
                .lock()
                .as_ref()
                .is_some_and(|a| a.refcounts.is_dirty())
    }

    /// Waits until the metadata storage is durable.
    pub(crate) fn sync_storage(&self) -> Result<()> {
        if self.commit.ignore_flush {
            return Ok(());
        }
        self.storage.sync().map_err(|e| self.sync_error(e))
    }

    fn sync_error(&self, source: std::io::Error) -> Error {
        self.commit.sync_failed.store(true, Ordering::SeqCst);
        Error::io(&self.path, "flush", source)
    }

    fn sync_all(&self) -> Result<()> {
        if !self.commit.unsynced.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        if self.commit.ignore_flush {
            return Ok(());
        }
        if let Some(data) = &self.data_file {
            data.sync().map_err(|e| self.sync_error(e))?;
        }
        self.sync_storage()
    }

    fn commit_now(&self) -> Result<()> {
        if self.commit.sync_failed.load(Ordering::SeqCst) {
            return Err(Error::io(
                &self.path,
                "flush (an earlier flush failed and data may be lost)",
                std::io::Error::from_raw_os_error(5),
            ));
        }
        // In this order: what is freed was unmapped before, so the tables
        // taken afterwards no longer name it; and refcounts taken last cover
        // all that the tables name.
        let freed = std::mem::take(&mut *self.commit.freed.lock());
        let outcome = self.write_mapping();
        if outcome.is_err() {
            self.commit.freed.lock().extend(freed);
            return outcome;
        }
        self.take_back(freed)
    }

    fn write_mapping(&self) -> Result<()> {
        let l1 = self.take_l1();
        let l2 = self.l2.take_dirty();
        let outcome = self.write_mapping_of(&l1, &l2);
        for (key, _) in &l2 {
            self.l2.written(*key, outcome.is_ok());
        }
        if outcome.is_err() {
            self.l1.write().dirty.extend(l1.iter().map(|(at, _)| *at));
        }
        outcome
    }

    fn write_mapping_of(&self, l1: &[(usize, u64)], l2: &[(u64, Arc<[u64]>)]) -> Result<()> {
        self.write_refcounts()?;
        self.sync_all()?;
        if l1.is_empty() && l2.is_empty() {
            return Ok(());
        }
        self.write_slices(l2)?;
        self.write_l1(l1)?;
        self.commit.note_write();
        self.sync_all()
    }

    fn take_l1(&self) -> Vec<(usize, u64)> {
        if self.l1.read().dirty.is_empty() {
            return Vec::new();
        }
        let mut l1 = self.l1.write();
        let dirty = std::mem::take(&mut l1.dirty);
        dirty.into_iter().map(|at| (at, l1.entries[at])).collect()
    }

    fn write_refcounts(&self) -> Result<()> {
        let (slices, offsets, new_blocks) = {
            let mut guard = self.allocator.lock();
            let Some(allocator) = guard.as_mut() else {
                return Ok(());
            };
            let slices = allocator.refcounts.take_dirty();
            let offsets: Vec<Option<u64>> = slices
                .iter()
                .map(|(key, _)| allocator.refcounts.offset_of(*key))
                .collect();
            (slices, offsets, allocator.refcounts.has_dirty_table())
        };
        if slices.is_empty() && !new_blocks {
            return Ok(());
        }
        self.commit.note_write();
        let mut outcome = Ok(());
        for ((_, bytes), offset) in slices.iter().zip(&offsets) {
            let Some(offset) = offset else { continue };
            outcome = self
                .storage
                .write_at(bytes, *offset)
                .map_err(|e| Error::io(&self.path, "write a refcount block", e));
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() && new_blocks {
            outcome = self.sync_storage();
        }
        self.with_allocator(|allocator| {
            for (key, _) in &slices {
                allocator.refcounts.written(*key, outcome.is_ok());
            }
            if new_blocks && outcome.is_ok() {
                allocator.refcounts.write_table_entries()?;
            }
            outcome
        })
    }

    fn write_slices(&self, slices: &[(u64, Arc<[u64]>)]) -> Result<()> {
        let mut bytes = Vec::with_capacity(self.geo.slice_bytes() as usize);
        let mut at = 0;
        while at < slices.len() {
            let Some(offset) = self.slice_offset(slices[at].0)? else {
                return Err(Error::corrupt(&self.path, "an L2 table vanished", 0));
            };
            bytes.clear();
            // Neighbours in one table go out in one write.
            let table = slices[at].0 / self.geo.slices_per_table();
            let start = slices[at].0;
            while let Some((key, words)) = slices.get(at)
                && *key / self.geo.slices_per_table() == table
                && (*key - start) * self.geo.slice_bytes() == bytes.len() as u64
            {
                bytes.extend(words.iter().flat_map(|w| w.to_be_bytes()));
                at += 1;
            }
            self.storage
                .write_at(&bytes, offset)
                .map_err(|e| Error::io(&self.path, "write an L2 table", e))?;
        }
        Ok(())
    }

    fn write_l1(&self, entries: &[(usize, u64)]) -> Result<()> {
        let offset = self.l1.read().offset;
        for (at, entry) in entries {
            self.storage
                .write_at(&entry.to_be_bytes(), offset + *at as u64 * 8)
                .map_err(|e| Error::io(&self.path, "write its L1 table", e))?;
        }
        Ok(())
    }

    /// Takes back the references of freed clusters that no request under way
    /// can reach; the rest waits for the next commit.
    fn take_back(&self, freed: Vec<Freed>) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        let epoch = self.gate.advance();
        let mut wait = Vec::new();
        let mut outcome = Ok(());
        for item in freed {
            if outcome.is_err() || item.epoch + 2 > epoch {
                wait.push(item);
                continue;
            }
            self.decompressed.clear();
            outcome = self.take_back_one(item);
        }
        self.commit.freed.lock().extend(wait);
        outcome
    }

    fn take_back_one(&self, item: Freed) -> Result<()> {
        if item.punch {
            self.punch(item);
        }
        self.with_allocator(|allocator| {
            for cluster in item.first..item.first + item.count {
                if allocator.release(cluster)? == 0 {
                    let mut metadata = self.metadata.write();
                    metadata.remove(&cluster);
                }
            }
            Ok(())
        })
    }

    /// Gives space back to the host before the clusters can be handed out.
    /// A host that cannot loses nothing but the space.
    fn punch(&self, item: Freed) {
        let mut start = item.first;
        let mut at = item.first;
        let end = item.first + item.count;
        let punch = |first: u64, end: u64| {
            let bits = self.geo.cluster_bits;
            if first < end
                && let Err(error) = self
                    .storage
                    .discard_at(first << bits, (end - first) << bits)
            {
                tracing::debug!(%error, "host does not take back space");
            }
        };
        while at < end {
            let alone = self
                .with_allocator(|a| a.refcounts.get(at))
                .is_ok_and(|count| count == 1);
            if !alone {
                punch(start, at);
                start = at + 1;
            }
            at += 1;
        }
        punch(start, end);
    }
}
