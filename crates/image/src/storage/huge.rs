//! Huge pages under large buffers.
//!
//! A direct request names its memory to the disk in physically contiguous
//! pieces, and a disk takes a bounded number of them: 254 is usual for
//! virtio, while 1 MiB of ordinary pages is 256 pieces and so two requests.
#![allow(unsafe_code)] // madvise concerns memory by its address

use rustix::mm::{Advice, madvise};

/// Size and alignment of a huge page where most machines have one; elsewhere
/// the advice has no effect.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages under `bytes[start..start + length]`, both multiples of
/// [`HUGE_PAGE`] as addresses. Only a hint: nothing depends on it.
pub(super) fn advise(bytes: &mut [u8], start: usize, length: usize) {
    let Some(range) = bytes.get_mut(start..start.saturating_add(length)) else {
        return;
    };
    // SAFETY: the range is memory that this exclusive borrow covers, and the
    // advice changes neither its content nor whether it is mapped.
    let _ = unsafe {
        madvise(
            range.as_mut_ptr().cast(),
            range.len(),
            Advice::LinuxHugepage,
        )
    };
}
