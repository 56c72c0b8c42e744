//! The caller's memory: raw vectors, which may be guest memory.
//!
//! Guest memory changes under our hands, so no reference to it is ever made:
//! bytes move by the kernel or by raw copies.

// Raw pointers to the caller's memory are dereferenced here.
#![allow(unsafe_code)]

use crate::error::Result;
use crate::queue::{Direction, Queue};

/// A range of memory, laid out as `struct iovec`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct IoBuffer {
    base: *mut u8,
    length: usize,
}

impl IoBuffer {
    /// A range that starts at `base`. Nothing is read or written through it
    /// before it is given to one of the queue's unsafe methods.
    pub fn new(base: *mut u8, length: usize) -> Self {
        IoBuffer { base, length }
    }

    pub(super) fn of(bytes: &mut [u8]) -> Self {
        IoBuffer {
            base: bytes.as_mut_ptr(),
            length: bytes.len(),
        }
    }

    /// First byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The part from `start` on, at most `length` bytes.
    fn part(&self, start: usize, length: usize) -> Self {
        let start = start.min(self.length);
        IoBuffer {
            base: self.base.wrapping_add(start),
            length: length.min(self.length - start),
        }
    }
}

/// The memory of one request.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Vec<IoBuffer>);

// SAFETY: the pointers are only followed while the request is in flight, for
// which time the queue's unsafe methods demand that the memory is valid and
// may be accessed from any thread.
unsafe impl Send for Buffers {}

// SAFETY: as for `Buffers`; a vector alone gives no access.
unsafe impl Send for IoBuffer {}

impl Buffers {
    pub(super) fn set(&mut self, places: &[IoBuffer]) {
        self.0.clear();
        self.0.extend(places.iter().filter(|b| !b.is_empty()));
    }

    /// Whether addresses and lengths are multiples of `alignment`.
    pub(super) fn are_aligned(&self, alignment: usize) -> bool {
        self.0
            .iter()
            .all(|b| b.base.addr().is_multiple_of(alignment) && b.length.is_multiple_of(alignment))
    }

    /// Appends the vectors of bytes `start..start + length` to `out`.
    pub(super) fn slice(&self, mut start: usize, mut length: usize, out: &mut Vec<IoBuffer>) {
        for place in &self.0 {
            if length == 0 {
                break;
            }
            if start >= place.length {
                start -= place.length;
                continue;
            }
            let part = place.part(start, length);
            start = 0;
            length -= part.length;
            out.push(part);
        }
    }

    /// Fills bytes `start..start + length` with zeroes.
    pub(super) fn zero(&self, start: usize, length: usize) {
        let mut parts = Vec::new();
        self.slice(start, length, &mut parts);
        for part in parts {
            zero(part);
        }
    }

    /// Copies out of the memory.
    pub(super) fn copy_to(&self, out: &mut [u8]) {
        let mut at = 0;
        for place in &self.0 {
            let take = place.length.min(out.len() - at);
            // SAFETY: the caller of the queue keeps the memory valid for the
            // time of the request; `out` has room for `take` bytes at `at`.
            unsafe { std::ptr::copy(place.base, out[at..].as_mut_ptr(), take) };
            at += take;
        }
    }

    /// Copies into the memory.
    pub(super) fn copy_from(&self, bytes: &[u8]) {
        let mut at = 0;
        for place in &self.0 {
            let take = place.length.min(bytes.len() - at);
            // SAFETY: as in `copy_to`, the other way.
            unsafe { std::ptr::copy(bytes[at..].as_ptr(), place.base, take) };
            at += take;
        }
    }
}

/// Fills one vector with zeroes.
pub(super) fn zero(place: IoBuffer) {
    // SAFETY: the caller of the queue keeps the memory valid for the time of
    // the request.
    unsafe { std::ptr::write_bytes(place.base, 0, place.length) };
}

/// Drops the first `done` bytes of a vector list.
pub(super) fn advance(vectors: &mut [IoBuffer], mut done: usize) {
    for vector in vectors {
        let take = done.min(vector.length);
        *vector = vector.part(take, usize::MAX);
        done -= take;
        if done == 0 {
            break;
        }
    }
}

impl Queue {
    /// Reads into memory given by raw vectors, such as a guest's.
    ///
    /// # Errors
    /// As [`Queue::read`].
    ///
    /// # Safety
    /// The memory stays valid, for reading and writing from any thread, until
    /// the completion with this tag was handed out or the queue was dropped,
    /// and no reference to it exists meanwhile.
    pub unsafe fn read_vectored(
        &mut self,
        tag: u64,
        places: &[IoBuffer],
        offset: u64,
    ) -> Result<()> {
        self.transfer(tag, places, offset, Direction::Read, None)
    }

    /// Writes memory given by raw vectors, such as a guest's. What the guest
    /// changes meanwhile may or may not be written.
    ///
    /// # Errors
    /// As [`Queue::write`].
    ///
    /// # Safety
    /// As [`Queue::read_vectored`].
    pub unsafe fn write_vectored(
        &mut self,
        tag: u64,
        places: &[IoBuffer],
        offset: u64,
    ) -> Result<()> {
        self.transfer(tag, places, offset, Direction::Write, None)
    }
}
