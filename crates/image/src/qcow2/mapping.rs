//! From guest offsets to what is there: L1, L2, subclusters.
//!
//! Specification: `docs/interop/qcow2`, "Cluster mapping".

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::entry::{COPIED, ClusterKind, L2Entry, OFFSET_MASK, SUBCLUSTERS};
use crate::qcow2::geometry::Geometry;
use crate::qcow2::header::be64;

/// What lies behind a run of guest bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunKind {
    /// The backing file, or zeroes where there is none.
    Backing,
    /// Zeroes, whatever the backing file holds; a host offset may be kept.
    Zero {
        /// Host offset that the run keeps.
        host: Option<u64>,
    },
    /// Bytes in the data storage.
    Data {
        /// Host offset of the run's first byte.
        host: u64,
        /// The clusters belong to this mapping alone and may be overwritten.
        in_place: bool,
    },
    /// A part of one compressed cluster.
    Compressed {
        /// Its descriptor.
        descriptor: u64,
    },
}

/// Guest bytes with one kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) kind: RunKind,
    pub(crate) length: u64,
}

/// Grows a run piece by piece.
#[derive(Debug)]
struct Builder {
    run: Option<Run>,
    max: u64,
}

impl Builder {
    fn left(&self) -> u64 {
        self.max - self.run.map_or(0, |r| r.length)
    }

    /// Appends a piece; false when it does not continue the run or the run is
    /// as long as wanted.
    fn push(&mut self, kind: RunKind, length: u64) -> bool {
        let length = length.min(self.left());
        match &mut self.run {
            None => self.run = Some(Run { kind, length }),
            Some(run) => {
                if !continues(run, kind) {
                    return false;
                }
                run.length += length;
            }
        }
        self.left() > 0
    }
}

fn continues(run: &Run, next: RunKind) -> bool {
    match (run.kind, next) {
        (RunKind::Backing, RunKind::Backing) => true,
        (RunKind::Zero { host: None }, RunKind::Zero { host: None }) => true,
        (RunKind::Zero { host: Some(a) }, RunKind::Zero { host: Some(b) }) => a + run.length == b,
        (
            RunKind::Data { host, in_place },
            RunKind::Data {
                host: next,
                in_place: also,
            },
        ) => host + run.length == next && in_place == also,
        _ => false,
    }
}

/// An entry that breaks the rules, with its index in the slice.
struct BadEntry {
    index: usize,
    what: &'static str,
}

/// Entry `index` of a slice.
pub(crate) fn entry_at(geo: &Geometry, words: &[u64], index: usize) -> L2Entry {
    let at = index * geo.entry_words;
    L2Entry {
        descriptor: words[at],
        bitmap: if geo.extended { words[at + 1] } else { 0 },
    }
}

/// Replaces entry `index` of a slice.
pub(crate) fn put_entry(geo: &Geometry, words: &mut [u64], index: usize, entry: L2Entry) {
    let at = index * geo.entry_words;
    words[at] = entry.descriptor;
    if geo.extended {
        words[at + 1] = entry.bitmap;
    }
}

/// Checks an entry against the specification.
pub(crate) fn check_entry(geo: &Geometry, entry: L2Entry) -> std::result::Result<(), &'static str> {
    match entry.kind(geo.extended, geo.external_data) {
        ClusterKind::Compressed => {
            if geo.external_data {
                return Err("a compressed cluster in an image with an external data file");
            }
            if entry.bitmap != 0 {
                return Err("a compressed cluster with subclusters");
            }
        }
        ClusterKind::Allocated { host } | ClusterKind::Zero { host: Some(host) } => {
            if geo.inside(host) != 0 {
                return Err("a data cluster that is not aligned to a cluster");
            }
        }
        ClusterKind::Zero { host: None } => {}
        ClusterKind::Unallocated => {
            if entry.allocated_bits() != 0 {
                return Err("an allocated subcluster without a host cluster");
            }
        }
    }
    if entry.allocated_bits() & entry.zero_bits() != 0 {
        return Err("a subcluster that is both allocated and zero");
    }
    Ok(())
}

/// Adds what a slice maps from entry `first` on, `inside` bytes into it.
/// False when the run ends here.
fn scan(
    geo: &Geometry,
    words: &[u64],
    first: usize,
    mut inside: u64,
    out: &mut Builder,
) -> std::result::Result<bool, BadEntry> {
    for index in first..geo.slice_entries as usize {
        let entry = entry_at(geo, words, index);
        if let Err(what) = check_entry(geo, entry) {
            // What came before the bad entry can still be served.
            return match out.run {
                Some(_) => Ok(false),
                None => Err(BadEntry { index, what }),
            };
        }
        if !scan_entry(geo, entry, inside, out) {
            return Ok(false);
        }
        inside = 0;
    }
    Ok(true)
}

fn scan_entry(geo: &Geometry, entry: L2Entry, mut inside: u64, out: &mut Builder) -> bool {
    let rest = geo.cluster_size - inside;
    let host = match entry.kind(geo.extended, geo.external_data) {
        ClusterKind::Compressed => {
            let kind = RunKind::Compressed {
                descriptor: entry.descriptor,
            };
            return out.push(kind, rest);
        }
        ClusterKind::Zero { host } => {
            let host = host.map(|h| h + inside);
            return out.push(RunKind::Zero { host }, rest);
        }
        ClusterKind::Unallocated if !geo.extended => return out.push(RunKind::Backing, rest),
        ClusterKind::Allocated { host } if !geo.extended => {
            let kind = RunKind::Data {
                host: host + inside,
                in_place: entry.is_copied(),
            };
            return out.push(kind, rest);
        }
        ClusterKind::Allocated { host } => Some(host),
        ClusterKind::Unallocated => None,
    };
    while inside < geo.cluster_size {
        let bit = 1u32 << (inside / geo.unit);
        let length = geo.unit - inside % geo.unit;
        let kind = match host {
            Some(host) if entry.allocated_bits() & bit != 0 => RunKind::Data {
                host: host + inside,
                in_place: entry.is_copied(),
            },
            _ if entry.zero_bits() & bit != 0 => RunKind::Zero {
                host: host.map(|h| h + inside),
            },
            _ => RunKind::Backing,
        };
        if !out.push(kind, length) {
            return false;
        }
        inside += length;
    }
    true
}

impl Qcow2 {
    /// What lies at guest `offset`, for as long as it continues, at most `max`
    /// bytes (more than zero). The caller is pinned and in range.
    pub(crate) fn lookup(&self, offset: u64, max: u64) -> Result<Run> {
        let mut out = Builder { run: None, max };
        loop {
            let at = offset + (max - out.left());
            let cluster = self.geo.cluster(at);
            let (key, index) = self.geo.slice_of(cluster);
            let inside = self.geo.inside(at);
            let scanned = self.l2.read(
                key,
                || self.load_slice(key),
                |words| scan(&self.geo, words, index, inside, &mut out),
            )?;
            let more = match scanned {
                Some(Ok(more)) => more,
                Some(Err(bad)) => return self.guard(Err(self.bad_entry(key, &bad))),
                None => out.push(RunKind::Backing, self.bytes_left_in_table(at)),
            };
            if !more {
                break;
            }
        }
        Ok(out.run.unwrap_or(Run {
            kind: RunKind::Backing,
            length: max,
        }))
    }

    /// As [`Qcow2::lookup`], without touching the disk: `None` when what it
    /// needs first is not cached; a shorter run when something later is not.
    pub(crate) fn lookup_cached(&self, offset: u64, max: u64) -> Option<Run> {
        let mut out = Builder { run: None, max };
        loop {
            let at = offset + (max - out.left());
            let cluster = self.geo.cluster(at);
            let (key, index) = self.geo.slice_of(cluster);
            let inside = self.geo.inside(at);
            let scanned = self
                .l2
                .peek(key, |words| scan(&self.geo, words, index, inside, &mut out));
            let more = match scanned {
                Some(Ok(more)) => more,
                Some(Err(_)) => return None,
                None if self.has_no_table(cluster) => {
                    out.push(RunKind::Backing, self.bytes_left_in_table(at))
                }
                None => return out.run,
            };
            if !more {
                return out.run;
            }
        }
    }

    fn has_no_table(&self, cluster: u64) -> bool {
        self.l1_entry(cluster / self.geo.l2_entries) & OFFSET_MASK == 0
    }

    fn bytes_left_in_table(&self, offset: u64) -> u64 {
        let span = self.geo.l2_entries << self.geo.cluster_bits;
        span - offset % span
    }

    pub(crate) fn l1_entry(&self, index: u64) -> u64 {
        let l1 = self.l1.read();
        usize::try_from(index)
            .ok()
            .and_then(|at| l1.entries.get(at).copied())
            .unwrap_or(0)
    }

    fn bad_entry(&self, key: u64, bad: &BadEntry) -> Error {
        let table = self.l1_entry(key / self.geo.slices_per_table()) & OFFSET_MASK;
        let at = table
            + key % self.geo.slices_per_table() * self.geo.slice_bytes()
            + (bad.index * self.geo.entry_words * 8) as u64;
        Error::corrupt(&self.path, format!("L2 entry: {}", bad.what), at)
    }

    /// Host offset of a slice; `None` where there is no L2 table.
    pub(crate) fn slice_offset(&self, key: u64) -> Result<Option<u64>> {
        let index = key / self.geo.slices_per_table();
        let table = self.l1_entry(index) & OFFSET_MASK;
        if table == 0 {
            return Ok(None);
        }
        self.check_table(index, table)?;
        Ok(Some(
            table + key % self.geo.slices_per_table() * self.geo.slice_bytes(),
        ))
    }

    fn check_table(&self, index: u64, table: u64) -> Result<()> {
        if self.geo.inside(table) != 0 {
            let at = self.l1.read().offset + index * 8;
            return Err(Error::corrupt(
                &self.path,
                format!("L2 table at {table:#x} is not aligned to a cluster"),
                at,
            ));
        }
        Ok(())
    }

    /// Reads a slice from disk.
    pub(crate) fn load_slice(&self, key: u64) -> Result<Option<Arc<[u64]>>> {
        let offset = self.slice_offset(key);
        let Some(offset) = self.guard(offset)? else {
            return Ok(None);
        };
        let mut raw = vec![0u8; self.geo.slice_bytes() as usize];
        self.storage
            .read_at(&mut raw, offset)
            .map_err(|e| Error::io(&self.path, "read an L2 table", e))?;
        Ok(Some(raw.chunks_exact(8).map(|w| be64(w, 0)).collect()))
    }

    /// The entry of a guest cluster.
    pub(crate) fn entry(&self, cluster: u64) -> Result<L2Entry> {
        let (key, index) = self.geo.slice_of(cluster);
        let found = self.l2.read(
            key,
            || self.load_slice(key),
            |words| entry_at(&self.geo, words, index),
        )?;
        let entry = found.unwrap_or_default();
        if let Err(what) = check_entry(&self.geo, entry) {
            return self.guard(Err(self.bad_entry(key, &BadEntry { index, what })));
        }
        Ok(entry)
    }

    /// Changes the entries of `count` guest clusters from `first` on, whose L2
    /// tables exist and belong to this mapping alone. `change` gets the offset
    /// in clusters from `first` and the old entry. Returns how many were
    /// changed and the error that ended it early.
    pub(crate) fn change_entries(
        &self,
        first: u64,
        count: u64,
        mut change: impl FnMut(u64, L2Entry) -> L2Entry,
    ) -> (u64, Result<()>) {
        let mut done = 0;
        while done < count {
            let (key, index) = self.geo.slice_of(first + done);
            let here = (count - done).min(self.geo.slice_entries - index as u64);
            let outcome = self.l2.modify(
                key,
                || self.load_slice(key),
                |words| {
                    for i in 0..here {
                        let at = index + i as usize;
                        let new = change(done + i, entry_at(&self.geo, words, at));
                        put_entry(&self.geo, words, at, new);
                    }
                },
            );
            match outcome {
                Ok(Some(())) => done += here,
                Ok(None) => {
                    let error = Error::corrupt(&self.path, "an L2 table vanished", 0);
                    return (done, Err(error));
                }
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// Makes sure that the L2 tables of guest clusters `first..end` exist and
    /// belong to this mapping alone.
    pub(crate) fn ensure_tables(&self, first: u64, end: u64) -> Result<()> {
        for index in first / self.geo.l2_entries..end.div_ceil(self.geo.l2_entries) {
            if self.l1_entry(index) & COPIED == 0 {
                let made = self.make_table(index);
                self.guard(made)?;
            }
        }
        Ok(())
    }

    /// Creates the L2 table of an L1 entry, or moves a shared one to a cluster
    /// of its own. The new table is whole on disk before L1 names it.
    fn make_table(&self, index: u64) -> Result<()> {
        let _change = self.l1_change.lock();
        let old = self.l1_entry(index);
        if old & COPIED != 0 {
            return Ok(());
        }
        let old_table = old & OFFSET_MASK;
        let size = self.geo.cluster_size;
        let mut content = vec![0u8; size as usize];
        if old_table != 0 {
            self.check_table(index, old_table)?;
            self.storage
                .read_at(&mut content, old_table)
                .map_err(|e| Error::io(&self.path, "read an L2 table", e))?;
        }
        let place = self.with_allocator(|a| a.allocate(1))?.first;
        let offset = place << self.geo.cluster_bits;
        if let Err(source) = self.storage.write_at(&content, offset) {
            self.with_allocator(|a| a.release(place))?;
            return Err(Error::io(&self.path, "write an L2 table", source));
        }
        self.metadata.write().insert(place);
        {
            let mut l1 = self.l1.write();
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            let Some(entry) = l1.entries.get_mut(at) else {
                return Err(Error::corrupt(&self.path, "L1 table is too short", 36));
            };
            *entry = offset | COPIED;
            l1.dirty.insert(at);
        }
        self.commit.note_write();
        if old_table != 0 {
            self.metadata.write().remove(&self.geo.cluster(old_table));
            self.commit
                .free(self.geo.cluster(old_table), 1, self.gate.epoch(), false);
        }
        Ok(())
    }

    /// Subclusters that `inside..inside + length` of a cluster touches, as a
    /// bitmap.
    pub(crate) fn touched_bits(&self, inside: u64, length: u64) -> u32 {
        if !self.geo.extended || length == 0 {
            return 0;
        }
        let first = inside / self.geo.unit;
        let last = (inside + length - 1) / self.geo.unit;
        (first..=last.min(SUBCLUSTERS - 1)).fold(0, |bits, i| bits | (1 << i))
    }
}
