//! Memory for direct I/O, owned by whoever fills or checks it and lent to the
//! kernel for the time of a request.
//!
//! A block driver is handed one segment for each physically contiguous piece
//! of a request, and on virtual disks the segments are most of a request's
//! price: 1 MiB in pages of 4 KiB is 256 of them and more than the 254 of
//! virtio-blk's usual limit, in huge pages it is one. So buffers are cut from
//! one mapping that asks for huge pages.
#![allow(unsafe_code)] // O_DIRECT needs memory that Vec cannot promise.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of every buffer: the largest logical block size in use, and a page.
pub(super) const ALIGNMENT: usize = 4096;

/// Size and alignment of a huge page; where they are larger or off, nothing
/// but speed is lost.
const HUGE: usize = 2 << 20;

/// An anonymous mapping.
struct Mapping {
    memory: NonNull<u8>,
    length: usize,
    /// Bytes before the first buffer, up to a huge page.
    skip: usize,
}

// SAFETY: a mapping is used through the buffers cut from it, which do not
// overlap; what it does itself is to be unmapped by its last owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory. As with any allocation, being out of it ends the process.
    fn new(length: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, at a place the kernel chooses.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        match NonNull::new(memory.cast::<u8>()) {
            Some(memory) if memory.as_ptr().cast() != libc::MAP_FAILED => Self {
                memory,
                length,
                skip: 0,
            },
            _ => std::alloc::handle_alloc_error(
                std::alloc::Layout::array::<u8>(length)
                    .unwrap_or(std::alloc::Layout::new::<[u8; ALIGNMENT]>()),
            ),
        }
    }

    /// Memory for `total` bytes of buffers of `length` bytes each.
    fn for_buffers(total: usize, length: usize) -> Self {
        if Self::wants_huge(total, length) {
            Self::huge(total)
        } else {
            Self::new(total)
        }
    }

    /// Small sets stay small: many volumes may be wiped side by side.
    fn wants_huge(total: usize, length: usize) -> bool {
        total >= HUGE || length >= HUGE / 4
    }

    /// A mapping with `length` bytes that begin at a huge page.
    fn huge(length: usize) -> Self {
        let length = length.next_multiple_of(HUGE);
        // What is before and after the huge pages is never touched.
        let mut mapping = Self::new(length + HUGE);
        mapping.skip = mapping.memory.as_ptr().align_offset(HUGE);
        debug_assert!(mapping.skip <= HUGE);
        // SAFETY: advice on mapped memory of our own, as `skip` is at most the HUGE bytes
        // mapped beyond `length`; a kernel without huge pages refuses it, and small ones serve.
        unsafe { libc::madvise(mapping.start().as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        mapping
    }

    /// Where the first buffer begins.
    fn start(&self) -> NonNull<u8> {
        // SAFETY: `skip` is within the mapping.
        unsafe { self.memory.add(self.skip) }
    }

    /// Whether `total` bytes of buffers of `length` bytes each go into it, on the pages they
    /// would get in a mapping of their own.
    fn serves(&self, total: usize, length: usize) -> bool {
        // One without huge pages is shorter than any with them.
        let huge = self.length > HUGE;
        self.length - self.skip >= total && (huge || !Self::wants_huge(total, length))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no buffer is left.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length) };
    }
}

/// Memory at a page boundary: zeroed, or left over from an earlier use in the same wipe.
pub(super) struct Buffer {
    memory: NonNull<u8>,
    length: usize,
    /// Place in the set handed to [`super::queue`] for registration.
    pub(super) index: u16,
    /// What the memory is part of.
    _mapping: Arc<Mapping>,
}

// SAFETY: the memory belongs to this value alone, as a Box's does.
unsafe impl Send for Buffer {}
// SAFETY: shared access gives `&[u8]` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `count` buffers of `length` bytes each, numbered from 0.
    pub(super) fn set(count: u16, length: usize) -> Vec<Self> {
        debug_assert!(count > 0 && length > 0 && length <= 1 << 30);
        let stride = length.next_multiple_of(ALIGNMENT);
        let mapping = Mapping::for_buffers(stride * usize::from(count), length);
        Self::cut(&Arc::new(mapping), count, length)
    }

    /// The first `count` pieces of a mapping of which nothing else is in use.
    fn cut(mapping: &Arc<Mapping>, count: u16, length: usize) -> Vec<Self> {
        let stride = length.next_multiple_of(ALIGNMENT);
        let start = mapping.start();
        assert!(stride * usize::from(count) <= mapping.length - mapping.skip);
        (0..count)
            .map(|index| Self {
                // SAFETY: `count` pieces of `stride` bytes are within the mapping (asserted),
                // and no two of them overlap.
                memory: unsafe { start.add(usize::from(index) * stride) },
                length,
                index,
                _mapping: mapping.clone(),
            })
            .collect()
    }

    /// One buffer that stands alone.
    pub(super) fn new(length: usize) -> Self {
        Self::set(1, length).swap_remove(0)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes, alive as long as `self`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.length) }
    }
}

/// The memory that passes and their verification take in turn.
///
/// On a virtual machine the first touch of a page can be the host's business: a pass that begins
/// with fresh memory has that to wait for, every time. So a wipe keeps what it has once touched.
#[derive(Default)]
pub(super) struct Memory(Mutex<Option<Arc<Mapping>>>);

impl Memory {
    /// Memory for `count` buffers of `length` bytes, touched here and now.
    pub(super) fn touched(count: u16, length: usize) -> Self {
        let memory = Self::default();
        for mut buffer in memory.take(count, length) {
            buffer.fill(0);
        }
        memory
    }

    /// `count` buffers of `length` bytes each, numbered from 0. What is in them is left over.
    pub(super) fn take(&self, count: u16, length: usize) -> Vec<Buffer> {
        let total = length.next_multiple_of(ALIGNMENT) * usize::from(count);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another owner is a buffer still in use, by a pass or, after an error, by the kernel.
        if let Some(mapping) = &mut *kept
            && Arc::get_mut(mapping).is_some_and(|mapping| mapping.serves(total, length))
        {
            return Buffer::cut(mapping, count, length);
        }
        let mapping = Arc::new(Mapping::for_buffers(total, length));
        let buffers = Buffer::cut(&mapping, count, length);
        *kept = Some(mapping);
        buffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_a_set_are_aligned_zeroed_and_apart() {
        for (count, length) in [
            (1, 512),
            (3, 5000),
            (16, 64 << 10),
            (3, 1 << 20),
            (16, 1 << 20),
        ] {
            let mut set = Buffer::set(count, length);
            for buffer in &mut set {
                assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
                assert_eq!(buffer.len(), length);
                assert!(buffer.iter().all(|byte| *byte == 0));
                let mark = buffer.index as u8 + 1;
                buffer.fill(mark);
            }
            // Each keeps the memory alive, whichever go first.
            while let Some(buffer) = set.pop() {
                assert!(buffer.iter().all(|byte| *byte == buffer.index as u8 + 1));
            }
        }
    }

    #[test]
    fn memory_is_taken_again_when_it_is_free_and_never_twice_at_once() {
        let memory = Memory::touched(5, 2 << 20);
        let place = |set: &[Buffer]| set[0].as_ptr().addr();
        let first = memory.take(5, 2 << 20);
        let at = place(&first);
        drop(first);
        let mut smaller = memory.take(3, 64 << 10);
        assert_eq!(
            place(&smaller),
            at,
            "the same memory serves smaller buffers"
        );
        smaller[0].fill(7);
        let mut other = memory.take(3, 64 << 10);
        assert_ne!(place(&other), at, "it is in use");
        other[0].fill(9);
        assert!(smaller[0].iter().all(|byte| *byte == 7));
        drop((smaller, other));
        let larger = memory.take(6, 2 << 20);
        assert_eq!(larger.len(), 6);
        assert_eq!(larger[5].as_ptr().align_offset(HUGE), 0);
    }
}
