//! Zeroing and discarding guest ranges.

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::entry::{COPIED, ClusterKind, L2Entry, OFFSET_MASK, ZERO};
use crate::qcow2::mapping::{Run, RunKind};

/// Zeroes written at once where no flag can say it.
const PIECE: usize = 256 << 10;
static ZEROES: [u8; PIECE] = [0; PIECE];

/// What becomes of whole clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Read as zeroes, host clusters kept.
    ZeroKeep,
    /// Read as zeroes, host clusters freed.
    ZeroFree,
    /// No mapping left.
    Unmap,
}

impl Qcow2 {
    /// Makes guest bytes read as zeroes; the range lies inside the disk. With
    /// `unmap` host clusters may be freed.
    pub(crate) fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        self.check_writable()?;
        self.mark_bitmaps()?;
        let outcome = {
            let _pin = self.gate.pin();
            if self.geo.data_raw {
                self.zero_data_file(offset, length, unmap)
            } else {
                self.zero_pinned(offset, length, unmap)
            }
        };
        self.guard(outcome)
    }

    /// Tells that the content of a range no longer matters. Whole clusters
    /// read as zeroes afterwards; a backing file never shows through.
    pub(crate) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.mark_bitmaps()?;
        let outcome = {
            let _pin = self.gate.pin();
            if self.geo.data_raw {
                self.zero_data_file(offset, length, true)
            } else {
                self.discard_pinned(offset, length)
            }
        };
        self.guard(outcome)
    }

    /// A raw external data file must itself read as the guest does.
    fn zero_data_file(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        self.data()
            .write_zeroes_at(offset, length, unmap)
            .map_err(|e| Error::io(&self.path, "zero its data file", e))?;
        self.commit.note_write();
        Ok(())
    }

    /// The end of a range, rounded up over the unused tail of the last
    /// cluster where the range ends with the disk.
    fn rounded_end(&self, end: u64) -> u64 {
        if end == self.size() {
            end.next_multiple_of(self.geo.cluster_size)
        } else {
            end
        }
    }

    fn zero_pinned(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        let real_end = offset + length;
        let end = self.rounded_end(real_end);
        let unit = self.geo.unit;
        let mut at = offset;
        while at < real_end {
            let whole = (end - end % unit).saturating_sub(at);
            if !at.is_multiple_of(unit) || whole == 0 {
                let stop = (at - at % unit + unit).min(real_end);
                self.zero_by_writing(at, stop - at)?;
                at = stop;
                continue;
            }
            let run = self.lookup(at, whole)?;
            let length = run.length - run.length % unit;
            // A compressed run may end inside a unit only at a cluster's end.
            let length = if length == 0 { unit } else { length };
            at += if self.is_zero_already(&run, unmap) {
                length
            } else {
                self.zero_whole(at, length, &run, unmap, real_end)?
            };
        }
        Ok(())
    }

    fn is_zero_already(&self, run: &Run, unmap: bool) -> bool {
        match run.kind {
            RunKind::Zero { host } => host.is_none() || !unmap,
            RunKind::Backing => self.has_no_backing(),
            _ => false,
        }
    }

    /// Zeroes whole units of one run; returns how many bytes.
    fn zero_whole(
        &self,
        at: u64,
        length: u64,
        run: &Run,
        unmap: bool,
        real_end: u64,
    ) -> Result<u64> {
        if self.geo.version >= 3 {
            let fate = if unmap {
                Fate::ZeroFree
            } else {
                Fate::ZeroKeep
            };
            return self.change_fate(at, length, fate, unmap);
        }
        if self.has_no_backing() && unmap {
            return self.change_fate(at, length, Fate::Unmap, true);
        }
        let written = length.min(real_end - at);
        match run.kind {
            RunKind::Data {
                host,
                in_place: true,
            } => {
                self.check_not_metadata(host, written)?;
                self.data()
                    .write_zeroes_at(host, written, false)
                    .map_err(|e| Error::io(&self.path, "write zeroes", e))?;
                self.commit.note_write();
            }
            _ => self.write_zero_bytes(at, written)?,
        }
        Ok(length)
    }

    /// Zeroes less than a unit, as data unless it reads as zeroes already.
    fn zero_by_writing(&self, at: u64, length: u64) -> Result<()> {
        if self.reads_as_zero(at, length)? {
            return Ok(());
        }
        self.write_zero_bytes(at, length)
    }

    fn write_zero_bytes(&self, mut at: u64, length: u64) -> Result<()> {
        let end = at + length;
        while at < end {
            let take = (end - at).min(PIECE as u64);
            self.write_pinned(&ZEROES[..take as usize], at)?;
            at += take;
        }
        Ok(())
    }

    fn discard_pinned(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.geo.cluster_size;
        let mut at = offset.next_multiple_of(size);
        let end = self.rounded_end(offset + length);
        let end = end - end % size;
        let alone = self.has_no_backing();
        if self.geo.version < 3 && !alone {
            // Version 2 has no zero clusters: unmapping would let the backing
            // file show through.
            return Ok(());
        }
        let fate = if alone { Fate::Unmap } else { Fate::ZeroFree };
        while at < end {
            let run = self.lookup(at, end - at)?;
            let nothing = match run.kind {
                RunKind::Backing => true,
                RunKind::Zero { host } => host.is_none(),
                _ => false,
            };
            let length = run.length.next_multiple_of(size).min(end - at);
            at += if nothing && run.length.is_multiple_of(size) {
                length
            } else {
                self.change_fate(at, length, fate, true)?
            };
        }
        Ok(())
    }

    /// Changes the mapping of whole units up to the end of an L2 slice;
    /// returns how many bytes were done.
    fn change_fate(&self, at: u64, length: u64, fate: Fate, punch: bool) -> Result<u64> {
        let first = self.geo.cluster(at);
        let in_slice = self.geo.slice_entries - first % self.geo.slice_entries;
        let stop = (at + length).min((first + in_slice) << self.geo.cluster_bits);
        let end = self.geo.cluster(stop - 1) + 1;
        let mut compressed = None;
        {
            let _held = self.in_flight.hold(first, end);
            self.ensure_tables(first, end)?;
            if self.geo.external_data && fate != Fate::ZeroKeep {
                self.punch_data_file(at, stop - at);
            }
            let mut freed = Vec::new();
            let (_, outcome) = self.change_entries(first, end - first, |i, old| {
                let base = (first + i) << self.geo.cluster_bits;
                let from = base.max(at);
                let to = (base + self.geo.cluster_size).min(stop);
                let bits = self.touched_bits(from - base, to - from);
                let whole = to - from == self.geo.cluster_size;
                if !whole && old.kind(self.geo.extended, false) == ClusterKind::Compressed {
                    compressed = Some((from, to - from));
                    return old;
                }
                let (new, frees) = self.fated(old, fate, whole, bits);
                if frees {
                    freed.push(old);
                }
                new
            });
            for old in freed {
                self.free_entry(old, punch);
            }
            outcome?;
        }
        if let Some((from, length)) = compressed {
            self.write_zero_bytes(from, length)?;
        }
        self.commit_if_crowded(first)?;
        Ok(stop - at)
    }

    /// Makes bytes past the end of the disk read as zeroes, before a larger
    /// size shows them: those of stale clusters, and the first `shown` bytes
    /// of the backing file, which is longer than the disk was.
    pub(crate) fn zero_beyond_end(&self, end: u64, shown: u64) -> Result<()> {
        let _pin = self.gate.pin();
        let outcome = self.zero_beyond_end_pinned(end, shown);
        self.guard(outcome)
    }

    fn zero_beyond_end_pinned(&self, end: u64, shown: u64) -> Result<()> {
        let unit = self.geo.unit;
        let mut at = self.size();
        while at < end {
            let run = self.lookup(at, end - at)?;
            let nothing = match run.kind {
                RunKind::Backing => at >= shown,
                RunKind::Zero { .. } => true,
                RunKind::Data { .. } | RunKind::Compressed { .. } => false,
            };
            let inside = at % unit;
            at += if nothing {
                run.length
            } else if inside > 0 || run.length < unit || self.geo.version < 3 {
                let length = run.length.min(unit - inside);
                self.write_zero_bytes(at, length)?;
                length
            } else {
                self.change_fate(at, run.length - run.length % unit, Fate::ZeroFree, true)?
            };
        }
        Ok(())
    }

    /// Space of a discarded range; without effect on what the guest reads.
    fn punch_data_file(&self, at: u64, length: u64) {
        if let Err(error) = self.data().discard_at(at, length) {
            tracing::debug!(%error, "host does not take back space");
        }
        self.commit.note_write();
    }

    /// The entry after zeroing all (`whole`) or some subclusters of it, and
    /// whether the old one's host clusters are freed.
    fn fated(&self, old: L2Entry, fate: Fate, whole: bool, bits: u32) -> (L2Entry, bool) {
        let kind = old.kind(self.geo.extended, self.geo.external_data);
        let has_host = !matches!(
            kind,
            ClusterKind::Unallocated | ClusterKind::Zero { host: None }
        );
        if self.geo.extended && !whole {
            let new = L2Entry {
                descriptor: old.descriptor,
                bitmap: L2Entry::join_bits(old.allocated_bits() & !bits, old.zero_bits() | bits),
            };
            return (new, false);
        }
        let keep = fate == Fate::ZeroKeep && has_host && kind != ClusterKind::Compressed;
        let descriptor = match fate {
            _ if keep && self.geo.extended => old.descriptor,
            _ if keep => (old.descriptor & (OFFSET_MASK | COPIED)) | ZERO,
            Fate::Unmap => 0,
            _ if self.geo.extended => 0,
            _ => ZERO,
        };
        let bitmap = if self.geo.extended && fate != Fate::Unmap {
            L2Entry::join_bits(0, u32::MAX)
        } else {
            0
        };
        (L2Entry { descriptor, bitmap }, has_host && !keep)
    }
}
