//! The block device requests that have no safe wrapper: size, discard and
//! zeroing (`linux/fs.h`).
#![allow(unsafe_code)] // ioctl arguments are typed by the request number only

use std::os::fd::AsFd;

use rustix::io::Result;
use rustix::ioctl::{Getter, Setter, ioctl, opcode};

const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: rustix::ioctl::Opcode = opcode::none(0x12, 127);

/// The size of a block device in bytes.
pub(super) fn device_size(device: impl AsFd) -> Result<u64> {
    // SAFETY: BLKGETSIZE64 stores one u64 at the pointer, whatever the word
    // size its number encodes.
    unsafe { ioctl(device, Getter::<BLKGETSIZE64, u64>::new()) }
}

/// Discards a range; both ends are multiples of the logical block size.
pub(super) fn discard(device: impl AsFd, offset: u64, length: u64) -> Result<()> {
    // SAFETY: BLKDISCARD reads two u64, start and length, from the pointer.
    unsafe {
        ioctl(
            device,
            Setter::<BLKDISCARD, [u64; 2]>::new([offset, length]),
        )
    }
}

/// Zeroes a range; both ends are multiples of the logical block size.
pub(super) fn zero_out(device: impl AsFd, offset: u64, length: u64) -> Result<()> {
    // SAFETY: BLKZEROOUT reads two u64, start and length, from the pointer.
    unsafe {
        ioctl(
            device,
            Setter::<BLKZEROOUT, [u64; 2]>::new([offset, length]),
        )
    }
}
