//! What `O_DIRECT` asks for: aligned buffers, and order between requests that
//! share a block which one of them must read, change and write back.

use std::ops::{Deref, DerefMut, Range};

use parking_lot::{Condvar, Mutex};

use super::huge::{self, HUGE_PAGE};

/// A buffer, zeroed when made, whose start is a multiple of a power of two, so
/// that `O_DIRECT` requests need no bounce buffer.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// `alignment` is a power of two, at most the page size in practice. A
    /// buffer of 1 MiB or more lies on huge pages where the host has them.
    pub fn new(length: usize, alignment: usize) -> Self {
        let huge = length >= HUGE_PAGE / 2;
        let (room, alignment) = if huge {
            let room = length.checked_next_multiple_of(HUGE_PAGE);
            (room.unwrap_or(length), alignment.max(HUGE_PAGE))
        } else {
            (length, alignment)
        };
        let mut bytes = vec![0; room.saturating_add(alignment)];
        // `align_offset` may only give up (usize::MAX) in constant evaluation.
        let start = bytes.as_ptr().align_offset(alignment).min(alignment);
        if huge {
            huge::advise(&mut bytes, start, room);
        }
        Self {
            bytes,
            start,
            length,
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// The byte ranges that writers have in flight.
///
/// A writer that replaces whole blocks enters *shared*: it may run beside any
/// other of its kind. One that must read a block, change a part and write it
/// back enters *alone*: nobody else may write these blocks meanwhile, else the
/// bytes beside its own would return to their old content.
#[derive(Debug, Default)]
pub(super) struct WritesInFlight {
    ranges: Mutex<Vec<Entry>>,
    left: Condvar,
}

#[derive(Debug)]
struct Entry {
    range: Range<u64>,
    alone: bool,
}

/// Leaves the range when dropped.
pub(super) struct InFlight<'a> {
    writes: &'a WritesInFlight,
    range: Range<u64>,
    alone: bool,
}

impl WritesInFlight {
    /// Waits until the range may be written. `range` is rounded out to blocks.
    pub(super) fn enter(&self, range: Range<u64>, alone: bool) -> InFlight<'_> {
        let mut ranges = self.ranges.lock();
        while ranges.iter().any(|entry| {
            (alone || entry.alone) && entry.range.start < range.end && range.start < entry.range.end
        }) {
            self.left.wait(&mut ranges);
        }
        ranges.push(Entry {
            range: range.clone(),
            alone,
        });
        InFlight {
            writes: self,
            range,
            alone,
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut ranges = self.writes.ranges.lock();
        if let Some(at) = ranges
            .iter()
            .position(|entry| entry.range == self.range && entry.alone == self.alone)
        {
            ranges.swap_remove(at);
        }
        drop(ranges);
        self.writes.left.notify_all();
    }
}
