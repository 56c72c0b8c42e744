//! What an image lies on: a host file, a block device, or memory in tests.
//!
//! The engine reaches its bytes through [`Storage`] alone, so that the same
//! code runs on files, on fault injectors and on the recorder whose log the
//! crash suites replay.

mod direct;
mod file;
mod huge;
mod ioctl;
mod memory;
pub mod testing;

pub use direct::AlignedBuffer;
pub use file::{CacheMode, FileStorage};
pub use memory::MemoryStorage;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

/// Byte storage that holds an image or a part of one.
///
/// All offsets and lengths are in bytes. Methods take `&self` and may be
/// called from several threads at once; two calls that overlap in range have
/// no order between them unless one returned before the other began.
///
/// Nothing is durable before [`Storage::sync`] returns: until then a power cut
/// may keep or lose each written sector on its own.
pub trait Storage: Debug + Send + Sync {
    /// Fills `buf` from `offset`. Bytes past the end of the storage read as
    /// zeroes, as qcow2 demands of a short file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, growing the storage where it ends
    /// earlier.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the range read as zeroes. With `unmap` the space behind it may be
    /// given back to the host; without it the space stays (or becomes)
    /// allocated. Grows the storage where it ends earlier.
    fn write_zeroes_at(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;

    /// Gives the space behind the range back to the host, if the host can;
    /// afterwards the range reads as zeroes or as before. Never grows.
    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Reserves space for the range, content unchanged (zero where new).
    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Waits until every write that returned before this call is on stable
    /// storage, with the metadata needed to read it back (`fdatasync`).
    fn sync(&self) -> io::Result<()>;

    /// The current length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Cuts or grows to `length`; new bytes read as zeroes.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Offsets, lengths and buffers of requests that need no bounce buffer are
    /// multiples of this: 1 for buffered storage, the logical block size (512
    /// to 4096) under `O_DIRECT`. Requests that are not are served all the
    /// same, more slowly.
    fn alignment(&self) -> usize {
        1
    }

    /// The file behind this storage where a request can be handed to the
    /// kernel without passing through these methods (io_uring).
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
