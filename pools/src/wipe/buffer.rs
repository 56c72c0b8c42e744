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
use std::sync::Arc;

/// Alignment of every buffer: the largest logical block size in use, and a page.
pub(super) const ALIGNMENT: usize = 4096;

/// Size and alignment of a huge page; where they are larger or off, nothing
/// but speed is lost.
const HUGE: usize = 2 << 20;

/// An anonymous mapping.
struct Mapping {
    memory: NonNull<u8>,
    length: usize,
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
            Some(memory) if memory.as_ptr().cast() != libc::MAP_FAILED => Self { memory, length },
            _ => std::alloc::handle_alloc_error(
                std::alloc::Layout::array::<u8>(length)
                    .unwrap_or(std::alloc::Layout::new::<[u8; ALIGNMENT]>()),
            ),
        }
    }

    /// A mapping, and the place in it where `length` bytes begin at a huge page.
    fn huge(length: usize) -> (Self, NonNull<u8>) {
        let length = length.next_multiple_of(HUGE);
        // What is before and after the huge pages is never touched.
        let mapping = Self::new(length + HUGE);
        let skip = mapping.memory.as_ptr().align_offset(HUGE);
        debug_assert!(skip <= HUGE);
        // SAFETY: `skip` is less than the HUGE bytes mapped beyond `length`.
        let start = unsafe { mapping.memory.add(skip) };
        // SAFETY: advice on mapped memory of our own; a kernel without huge
        // pages refuses it, and small ones serve.
        unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        (mapping, start)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no buffer is left.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length) };
    }
}

/// Zeroed memory at a page boundary.
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
        let total = stride * usize::from(count);
        // Small sets stay small: many volumes may be wiped side by side.
        let (mapping, start) = if total >= HUGE || length >= HUGE / 4 {
            Mapping::huge(total)
        } else {
            let mapping = Mapping::new(total);
            let start = mapping.memory;
            (mapping, start)
        };
        let mapping = Arc::new(mapping);
        (0..count)
            .map(|index| Self {
                // SAFETY: `count` pieces of `stride` bytes are within the mapping,
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
}
