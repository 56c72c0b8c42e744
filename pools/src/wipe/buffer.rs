//! Page-aligned memory for direct I/O, owned by whoever fills or checks it and
//! lent to the kernel for the time of a request.
#![allow(unsafe_code)] // O_DIRECT needs alignment that Vec cannot promise.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer: the largest logical block size in use, and a page.
pub(super) const ALIGNMENT: usize = 4096;

/// Zeroed memory at a page boundary.
pub(super) struct Buffer {
    memory: NonNull<u8>,
    length: usize,
    /// Place in the set handed to [`super::ring`] for registration.
    pub(super) index: u16,
}

// SAFETY: the memory belongs to this value alone, as a Box's does.
unsafe impl Send for Buffer {}
// SAFETY: shared access gives `&[u8]` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length.max(1), ALIGNMENT).unwrap_or(Layout::new::<[u8; 4096]>())
    }

    /// `count` buffers of `length` bytes each, numbered from 0.
    pub(super) fn set(count: u16, length: usize) -> Vec<Self> {
        (0..count).map(|index| Self::new(length, index)).collect()
    }

    pub(super) fn new(length: usize, index: u16) -> Self {
        debug_assert!(length > 0 && length <= 1 << 30);
        let layout = Self::layout(length);
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout));
        Self {
            memory,
            length,
            index,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout(self.length)) }
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
