//! The kernel's ioctls that no crate wraps: FIEMAP and the block layer's
//! discard family (`linux/fiemap.h`, `linux/fs.h`).
#![allow(unsafe_code)] // ioctl(2) takes untyped pointers; each call below is typed once, here.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{self, Getter, Opcode, Setter, Updater, opcode};

/// Extents asked for in one FIEMAP call.
pub(super) const BATCH: usize = 512;

const FIEMAP_FLAG_SYNC: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`: bytes, and the `FIEMAP_EXTENT_*` bits.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct FiemapExtent {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    reserved64: [u64; 2],
    pub(super) flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Fiemap {
    header: FiemapHeader,
    extents: [FiemapExtent; BATCH],
}

// The opcode carries the size of the header alone: the array is flexible in C.
const FS_IOC_FIEMAP: Opcode = opcode::read_write::<FiemapHeader>(b'f', 11);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(0x12, 114);
const BLKDISCARD: Opcode = opcode::none(0x12, 119);
const BLKSECDISCARD: Opcode = opcode::none(0x12, 125);
const BLKZEROOUT: Opcode = opcode::none(0x12, 127);

/// Up to [`BATCH`] extents from `start`, after writing out what is delayed.
pub(super) fn fiemap(fd: BorrowedFd<'_>, start: u64) -> io::Result<Vec<FiemapExtent>> {
    let mut request = Box::new(Fiemap {
        header: FiemapHeader {
            start,
            length: u64::MAX - start,
            flags: FIEMAP_FLAG_SYNC,
            extent_count: BATCH as u32,
            ..FiemapHeader::default()
        },
        extents: [FiemapExtent::default(); BATCH],
    });
    // SAFETY: `Fiemap` is `repr(C)` as linux/fiemap.h lays it out, with room
    // for the `extent_count` extents that the header promises.
    unsafe { ioctl::ioctl(fd, Updater::<FS_IOC_FIEMAP, Fiemap>::new(&mut request))? };
    let mapped = (request.header.mapped_extents as usize).min(BATCH);
    Ok(request.extents[..mapped].to_vec())
}

/// The size of a block device in bytes.
pub(super) fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64, which is what usize is on the 64-bit
    // targets this crate builds for; the opcode is declared with size_t.
    let size = unsafe { ioctl::ioctl(fd, Getter::<BLKGETSIZE64, u64>::new())? };
    Ok(size)
}

/// A request of the block layer on a range of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockRequest {
    SecureDiscard,
    Discard,
    ZeroOut,
}

/// Sends `request` for the range, which must be a multiple of the logical
/// block size.
pub(super) fn block_request(
    fd: BorrowedFd<'_>,
    request: BlockRequest,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: each of these three takes a pointer to two u64, start and length.
    let done = unsafe {
        match request {
            BlockRequest::SecureDiscard => ioctl::ioctl(fd, Setter::<BLKSECDISCARD, _>::new(range)),
            BlockRequest::Discard => ioctl::ioctl(fd, Setter::<BLKDISCARD, _>::new(range)),
            BlockRequest::ZeroOut => ioctl::ioctl(fd, Setter::<BLKZEROOUT, _>::new(range)),
        }
    };
    Ok(done?)
}
