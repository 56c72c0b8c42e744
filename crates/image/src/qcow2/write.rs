//! Writing guest data: in place where the clusters are this mapping's alone,
//! else into new clusters with what surrounds the written bytes copied.

use std::cell::Cell;

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::allocator::Allocation;
use crate::qcow2::entry::{COPIED, ClusterKind, CompressedExtent, L2Entry};
use crate::qcow2::mapping::RunKind;
use crate::storage::AlignedBuffer;

/// Where the host bytes of an allocating write come from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// First guest cluster.
    pub(crate) guest: u64,
    /// Guest clusters, contiguous on the host too.
    pub(crate) count: u64,
    /// Host offset of the first.
    pub(crate) host: u64,
    /// The clusters to give back if the write fails.
    pub(crate) allocation: Option<Allocation>,
    /// Bytes of the guest range that must be written around the request:
    /// before its first byte and after its last.
    pub(crate) head: u64,
    pub(crate) tail: u64,
}

/// Buffers larger than this are not kept.
const KEPT_SCRATCH: usize = 4 << 20;

thread_local! {
    static SCRATCH: Cell<Option<AlignedBuffer>> = const { Cell::new(None) };
}

/// Runs `f` on a buffer of this thread whose content is left over from earlier
/// uses.
fn with_scratch<R>(length: usize, alignment: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    let kept = SCRATCH.take().filter(|buffer| {
        buffer.len() >= length && buffer.as_ptr().addr().is_multiple_of(alignment)
    });
    let mut buffer = kept.unwrap_or_else(|| AlignedBuffer::new(length, alignment.max(64)));
    let outcome = f(&mut buffer.as_mut()[..length]);
    if buffer.len() <= KEPT_SCRATCH {
        SCRATCH.set(Some(buffer));
    }
    outcome
}

impl Qcow2 {
    /// Writes guest bytes; the range lies inside the disk.
    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_writable()?;
        self.mark_bitmaps()?;
        let outcome = {
            let _pin = self.gate.pin();
            self.write_pinned(buf, offset)
        };
        self.guard(outcome)
    }

    pub(crate) fn write_pinned(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let run = self.lookup(offset, buf.len() as u64)?;
            let done = match run.kind {
                RunKind::Data {
                    host,
                    in_place: true,
                } => {
                    self.check_not_metadata(host, run.length)?;
                    self.data()
                        .write_at(&buf[..run.length as usize], host)
                        .map_err(|e| Error::io(&self.path, "write", e))?;
                    self.commit.note_write();
                    run.length
                }
                _ => self.write_allocating(buf, offset)?,
            };
            buf = &buf[done as usize..];
            offset += done;
        }
        Ok(())
    }

    /// Guest data must never land on metadata, whatever the tables say.
    pub(crate) fn check_not_metadata(&self, host: u64, length: u64) -> Result<()> {
        if self.geo.external_data {
            return Ok(());
        }
        let metadata = self.metadata.read();
        let first = self.geo.cluster(host);
        let last = self.geo.cluster(host + length.max(1) - 1);
        match (first..=last).find(|c| metadata.contains(c)) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(
                &self.path,
                "a data cluster overlaps metadata",
                cluster << self.geo.cluster_bits,
            )),
        }
    }

    /// Writes the beginning of `buf` where it needs a change of the mapping.
    /// Returns how much: 0 when another request changed it meanwhile.
    fn write_allocating(&self, buf: &[u8], offset: u64) -> Result<u64> {
        let first = self.geo.cluster(offset);
        let end = self.geo.cluster(offset + buf.len() as u64 - 1) + 1;
        let done = {
            let _held = self.in_flight.hold(first, end);
            let Some(target) = self.prepare(offset, buf.len() as u64)? else {
                return Ok(0);
            };
            let length = self.length_in(&target, offset, buf.len() as u64);
            let written = self.write_target(&target, &buf[..length as usize], offset);
            if let Err(error) = written {
                self.abandon(&target)?;
                return Err(error);
            }
            self.publish(&target, offset, length)?;
            length
        };
        self.commit_if_crowded(first)?;
        Ok(done)
    }

    /// Bytes of the request that fall into the target.
    pub(crate) fn length_in(&self, target: &Target, offset: u64, length: u64) -> u64 {
        let end = (target.guest + target.count) << self.geo.cluster_bits;
        length.min(end - offset)
    }

    /// Chooses host clusters for the beginning of a write. The caller holds
    /// the guest clusters. `None` when the first byte can be written in place.
    pub(crate) fn prepare(&self, offset: u64, length: u64) -> Result<Option<Target>> {
        let run = self.lookup(offset, length)?;
        if matches!(run.kind, RunKind::Data { in_place: true, .. }) {
            return Ok(None);
        }
        let first = self.geo.cluster(offset);
        let end = self.geo.cluster(offset + length - 1) + 1;
        self.ensure_tables(first, end)?;
        let entry = self.entry(first)?;
        let target = match self.reusable(entry, first) {
            Some(host) => self.reuse(first, end, host)?,
            None => self.allocate_for(first, end)?,
        };
        Ok(Some(self.surround(target, offset, length)?))
    }

    /// Host offset that a cluster's mapping keeps and may be written to.
    fn reusable(&self, entry: L2Entry, guest: u64) -> Option<u64> {
        if self.geo.external_data {
            return Some(guest << self.geo.cluster_bits);
        }
        match entry.kind(self.geo.extended, false) {
            ClusterKind::Zero { host: Some(host) } | ClusterKind::Allocated { host }
                if entry.is_copied() =>
            {
                Some(host)
            }
            _ => None,
        }
    }

    /// Extends a target over clusters that keep contiguous host clusters.
    fn reuse(&self, first: u64, end: u64, host: u64) -> Result<Target> {
        let mut count = 1;
        while first + count < end {
            let entry = self.entry(first + count)?;
            let expected = host + (count << self.geo.cluster_bits);
            let in_place = !self.geo.extended
                && entry.is_copied()
                && matches!(
                    entry.kind(false, self.geo.external_data),
                    ClusterKind::Allocated { .. }
                );
            if in_place || self.reusable(entry, first + count) != Some(expected) {
                break;
            }
            count += 1;
        }
        self.check_not_metadata(host, count << self.geo.cluster_bits)?;
        Ok(Target {
            guest: first,
            count,
            host,
            allocation: None,
            head: 0,
            tail: 0,
        })
    }

    /// Allocates for as many clusters as need it in a row.
    fn allocate_for(&self, first: u64, end: u64) -> Result<Target> {
        let mut count = 1;
        while first + count < end
            && self
                .reusable(self.entry(first + count)?, first + count)
                .is_none()
        {
            count += 1;
        }
        let allocation = self.with_allocator(|a| a.allocate(count))?;
        Ok(Target {
            guest: first,
            count: allocation.count,
            host: allocation.first << self.geo.cluster_bits,
            allocation: Some(allocation),
            head: 0,
            tail: 0,
        })
    }

    /// Finds out what must be written around the request.
    fn surround(&self, mut target: Target, offset: u64, length: u64) -> Result<Target> {
        let outcome = self.surround_of(&target, offset, length);
        match outcome {
            Ok((head, tail)) => {
                target.head = head;
                target.tail = tail;
                Ok(target)
            }
            Err(error) => {
                self.abandon(&target)?;
                Err(error)
            }
        }
    }

    fn surround_of(&self, target: &Target, offset: u64, length: u64) -> Result<(u64, u64)> {
        let length = self.length_in(target, offset, length);
        let end = offset + length;
        let last = target.guest + target.count - 1;
        let head_unit = self.copy_unit(target.guest, target)?;
        let tail_unit = if last == target.guest {
            head_unit
        } else {
            self.copy_unit(last, target)?
        };
        let mut head = offset % head_unit;
        let mut tail = end.next_multiple_of(tail_unit) - end;
        if tail > 0 && self.stays_in_place(target, last, end)? {
            tail = 0;
        }
        if target.allocation.is_some_and(|a| a.fresh) && !self.geo.external_data {
            if head > 0 && self.reads_as_zero(offset - head, head)? {
                head = 0;
            }
            if tail > 0 && self.reads_as_zero(end, tail)? {
                tail = 0;
            }
        }
        Ok((head, tail))
    }

    /// Whether the subcluster around guest `offset` holds data where it stays.
    /// Others may be overwriting it in place, without holding the cluster:
    /// copying its bytes would undo what they write meanwhile.
    fn stays_in_place(&self, target: &Target, guest: u64, offset: u64) -> Result<bool> {
        if !self.geo.extended || target.allocation.is_some() {
            return Ok(false);
        }
        let bit = 1 << (self.geo.inside(offset) / self.geo.unit);
        Ok(self.entry(guest)?.allocated_bits() & bit != 0)
    }

    /// What a cluster is filled up in: a subcluster where the rest of the
    /// cluster keeps its mapping, the whole cluster otherwise.
    fn copy_unit(&self, guest: u64, target: &Target) -> Result<u64> {
        if !self.geo.extended {
            return Ok(self.geo.cluster_size);
        }
        if target.allocation.is_none() {
            return Ok(self.geo.unit);
        }
        let entry = self.entry(guest)?;
        let has_data = matches!(entry.kind(true, false), ClusterKind::Compressed)
            || entry.allocated_bits() != 0;
        Ok(if has_data {
            self.geo.cluster_size
        } else {
            self.geo.unit
        })
    }

    /// Whether guest bytes are known to read as zeroes without reading data.
    pub(crate) fn reads_as_zero(&self, mut offset: u64, length: u64) -> Result<bool> {
        let end = (offset + length).min(self.size());
        while offset < end {
            let run = self.lookup(offset, end - offset)?;
            let zero = match run.kind {
                RunKind::Zero { .. } => true,
                RunKind::Backing => self.is_zero_below(offset),
                _ => false,
            };
            if !zero {
                return Ok(false);
            }
            offset += run.length;
        }
        Ok(true)
    }

    /// Whether nothing shows through from `offset` on.
    fn is_zero_below(&self, offset: u64) -> bool {
        match &self.backing {
            Some(backing) => offset >= backing.size(),
            None => self.has_no_backing(),
        }
    }

    fn write_target(&self, target: &Target, buf: &[u8], offset: u64) -> Result<()> {
        if target.head != 0 || target.tail != 0 {
            let copy = |piece: &mut [u8]| piece.copy_from_slice(buf);
            return self.write_around(target, offset, buf.len(), copy);
        }
        let host = target.host + (offset - (target.guest << self.geo.cluster_bits));
        self.data()
            .write_at(buf, host)
            .map_err(|e| Error::io(&self.path, "write", e))?;
        self.commit.note_write();
        Ok(())
    }

    /// Writes `length` bytes, which `fill` provides, together with what is
    /// copied around them, in one request. The caller is pinned and holds the
    /// target.
    pub(crate) fn write_around(
        &self,
        target: &Target,
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<()> {
        let start = offset - target.head;
        let host = target.host + (start - (target.guest << self.geo.cluster_bits));
        let head = target.head as usize;
        let total = head + length + target.tail as usize;
        with_scratch(total, self.data().alignment(), |bytes| {
            let (before, rest) = bytes.split_at_mut(head);
            let (middle, after) = rest.split_at_mut(length);
            self.read_around(before, start)?;
            self.read_around(after, offset + length as u64)?;
            fill(middle);
            self.data()
                .write_at(bytes, host)
                .map_err(|e| Error::io(&self.path, "write", e))
        })?;
        self.commit.note_write();
        Ok(())
    }

    /// Reads what surrounds a write; zeroes past the end of the disk.
    fn read_around(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let there = self.size().saturating_sub(offset).min(buf.len() as u64);
        let (inside, beyond) = buf.split_at_mut(there as usize);
        beyond.fill(0);
        self.read_pinned(inside, offset)
    }

    /// Makes a written target visible and frees what it replaced.
    pub(crate) fn publish(&self, target: &Target, offset: u64, length: u64) -> Result<()> {
        let start = offset - target.head;
        let end = offset + length + target.tail;
        let base = target.guest << self.geo.cluster_bits;
        let mut replaced = Vec::new();
        let (done, outcome) = self.change_entries(target.guest, target.count, |i, old| {
            if target.allocation.is_some() && old != L2Entry::default() {
                replaced.push(old);
            }
            let from = (base + (i << self.geo.cluster_bits)).max(start);
            let to = (base + ((i + 1) << self.geo.cluster_bits)).min(end);
            self.mapped(target, i, old, from, to)
        });
        for old in replaced {
            self.free_entry(old, false);
        }
        if done < target.count
            && let Some(allocation) = target.allocation
        {
            self.with_allocator(|a| {
                (allocation.first + done..allocation.first + allocation.count)
                    .try_for_each(|c| a.release(c).map(drop))
            })?;
        }
        outcome
    }

    /// The entry of cluster `i` of a target after guest bytes `from..to` of it
    /// were written.
    fn mapped(&self, target: &Target, i: u64, old: L2Entry, from: u64, to: u64) -> L2Entry {
        let descriptor = (target.host + (i << self.geo.cluster_bits)) | COPIED;
        if !self.geo.extended {
            return L2Entry {
                descriptor,
                bitmap: 0,
            };
        }
        let written = self.touched_bits(self.geo.inside(from), to - from);
        let (allocated, zero) = if matches!(old.kind(true, false), ClusterKind::Compressed) {
            (u32::MAX, 0)
        } else {
            (old.allocated_bits() | written, old.zero_bits() & !written)
        };
        L2Entry {
            descriptor,
            bitmap: L2Entry::join_bits(allocated, zero),
        }
    }

    /// Gives back what a failed write had allocated.
    pub(crate) fn abandon(&self, target: &Target) -> Result<()> {
        let Some(allocation) = target.allocation else {
            return Ok(());
        };
        self.with_allocator(|a| {
            (allocation.first..allocation.first + allocation.count)
                .try_for_each(|c| a.release(c).map(drop))
        })
    }

    /// Notes that the mapping no longer uses an old entry.
    pub(crate) fn free_entry(&self, old: L2Entry, punch: bool) {
        if self.geo.external_data {
            return;
        }
        let epoch = self.gate.epoch();
        match old.kind(self.geo.extended, false) {
            ClusterKind::Allocated { host } | ClusterKind::Zero { host: Some(host) } => {
                self.commit.free(self.geo.cluster(host), 1, epoch, punch);
            }
            ClusterKind::Compressed => {
                let extent = CompressedExtent::decode(old.descriptor, self.geo.cluster_bits);
                let (first, last) = extent.clusters(self.geo.cluster_bits);
                self.commit.free(first, last - first + 1, epoch, false);
            }
            ClusterKind::Zero { host: None } | ClusterKind::Unallocated => {}
        }
    }
}
