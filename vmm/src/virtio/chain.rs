//! A request as the guest described it: buffers that the device reads, then buffers that it
//! writes.

use crate::memory::GuestMemory;
use std::ops::Range;
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, VolatileSlice,
    bitmap::{BitmapSlice, MS},
};

/// A piece of guest memory, inside one region of RAM, not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// A request taken from a queue. Its descriptors were read once and checked: all segments lie in
/// RAM, and they are not more than a queue can hold.
#[derive(Debug, Default, Clone)]
pub struct Chain {
    /// The first descriptor, by which the request is given back.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Segment>,
    /// What the device writes.
    pub writable: Vec<Segment>,
}

/// Bytes in `segments`.
#[must_use]
pub fn length(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.length)).sum()
}

/// The parts of `segments` that make up `range` of their bytes.
pub fn parts(segments: &[Segment], range: Range<u64>) -> impl Iterator<Item = Segment> + '_ {
    let mut start = 0u64;
    segments.iter().filter_map(move |segment| {
        let first = range.start.max(start);
        let last = range.end.min(start + u64::from(segment.length));
        let skipped = first.saturating_sub(start);
        start += u64::from(segment.length);
        (first < last).then(|| Segment {
            address: segment.address + skipped,
            // At most the segment's own length.
            length: (last - first) as u32,
        })
    })
}

type Slice<'m> = VolatileSlice<'m, MS<'m, GuestMemory>>;

fn slice<'m>(memory: &'m GuestMemory, segment: Segment) -> Option<Slice<'m>> {
    // Segments were found to lie in one region when the chain was read, and regions never go.
    memory
        .get_slice(GuestAddress(segment.address), segment.length as usize)
        .ok()
}

impl Chain {
    /// Bytes that the device can read.
    #[must_use]
    pub fn readable_length(&self) -> u64 {
        length(&self.readable)
    }

    /// Bytes that the device can write.
    #[must_use]
    pub fn writable_length(&self) -> u64 {
        length(&self.writable)
    }

    /// Copies from byte `offset` of the readable part on and says how much there was.
    pub fn read(&self, memory: &GuestMemory, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        let end = offset.saturating_add(data.len() as u64);
        for part in parts(&self.readable, offset..end) {
            let to = &mut data[done..done + part.length as usize];
            done += slice(memory, part).map_or(0, |from| from.copy_to(to));
        }
        done
    }

    /// Copies to byte `offset` of the writable part on and says how much found room.
    pub fn write(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        let end = offset.saturating_add(data.len() as u64);
        for part in parts(&self.writable, offset..end) {
            let from = &data[done..done + part.length as usize];
            if let Some(to) = slice(memory, part) {
                to.copy_from(from);
                done += from.len();
            }
        }
        done
    }
}

/// Where a segment lies in this process, for the kernel to read or write. The pointer is good for
/// as long as `memory` is mapped. Whoever lets the kernel write there calls [`mark_written`].
#[must_use]
pub fn host_range(memory: &GuestMemory, segment: Segment) -> Option<(*mut u8, usize)> {
    let slice = slice(memory, segment)?;
    Some((slice.ptr_guard_mut().as_ptr(), slice.len()))
}

/// Notes that the first `written` bytes of `segments` were written behind the memory's back.
pub fn mark_written(memory: &GuestMemory, segments: &[Segment], written: u64) {
    for part in parts(segments, 0..written) {
        if let Some(slice) = slice(memory, part) {
            mark(&slice);
        }
    }
}

fn mark<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) {
    slice.bitmap().mark_dirty(0, slice.len());
}

/// Reads an object at `address`, which may lie anywhere.
pub(super) fn peek<T: vm_memory::ByteValued>(memory: &GuestMemory, address: u64) -> Option<T> {
    memory.read_obj(GuestAddress(address)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLayout;
    use vm_memory::bitmap::Bitmap as _;

    fn segment(address: u64, length: u32) -> Segment {
        Segment { address, length }
    }

    #[test]
    fn parts_are_cut_at_both_ends() {
        let all = [segment(100, 10), segment(500, 5), segment(900, 20)];
        let cut: Vec<_> = parts(&all, 8..18).collect();
        assert_eq!(cut, [segment(108, 2), segment(500, 5), segment(900, 3)]);
        assert_eq!(parts(&all, 35..99).count(), 0);
        assert_eq!(parts(&all, 0..u64::MAX).count(), 3);
        assert_eq!(length(&all), 35);
    }

    #[test]
    fn copies_cross_segments_and_mark_pages() {
        let memory = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
        let chain = Chain {
            head: 0,
            readable: vec![segment(0x1ffe, 4), segment(0x5000, 8)],
            writable: vec![segment(0x1ffe, 4), segment(0x5000, 8)],
        };
        assert_eq!(chain.write(&memory, 2, b"abcdefgh"), 8);
        let mut back = [0; 12];
        assert_eq!(chain.read(&memory, 0, &mut back), 12);
        assert_eq!(&back, b"\0\0abcdefgh\0\0");
        assert_eq!(chain.write(&memory, 10, b"abcd"), 2);
        assert_eq!(chain.read(&memory, 12, &mut back), 0);
        let dirty = |address| {
            let (region, at) = memory.to_region_addr(GuestAddress(address)).unwrap();
            region
                .get_mmap()
                .bitmap()
                .dirty_at(vm_memory::Address::raw_value(&at) as usize)
        };
        assert!(dirty(0x2000) && dirty(0x5000) && !dirty(0x1000) && !dirty(0x3000));
        mark_written(&memory, &[segment(0x8000, 4096), segment(0x9000, 1)], 4096);
        assert!(dirty(0x8000) && !dirty(0x9000));
    }
}
