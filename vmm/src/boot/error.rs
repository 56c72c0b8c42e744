//! Why a kernel cannot be booted.

use std::io;

/// Why a kernel cannot be booted directly.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file could not be read.
    #[error("the kernel cannot be read")]
    KernelRead(#[source] io::Error),
    /// Neither bzImage nor ELF.
    #[error(
        "the kernel is neither a bzImage nor an ELF file: name a file like /boot/vmlinuz-VERSION"
    )]
    KernelUnknown,
    /// The file ends too early.
    #[error("the kernel is cut off: {need} bytes are needed, the file has {size}")]
    KernelTruncated {
        /// Bytes that its headers speak of.
        need: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// The bzImage is too old or has no 64-bit entry point.
    #[error(
        "the kernel cannot be entered in 64-bit mode (boot protocol {major}.{minor:02}): use a 64-bit kernel of version 3.8 or later"
    )]
    KernelNot64 {
        /// Protocol version.
        major: u8,
        /// Protocol version.
        minor: u8,
    },
    /// The ELF file is not an x86-64 executable.
    #[error("the kernel is an ELF file but no executable for x86-64")]
    KernelMachine,
    /// PVH was asked for and is not there.
    #[error("the kernel has no PVH entry point: use protocol 'auto' or 'linux64'")]
    NoPvh,
    /// A header field that cannot be.
    #[error("the kernel's headers are damaged: {0}")]
    KernelDamaged(&'static str),
    /// The kernel does not fit.
    #[error(
        "the kernel needs memory from {start:#x} to {end:#x}, which the guest does not have: give the guest more memory"
    )]
    KernelLarge {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
    /// The initrd could not be read.
    #[error("the initrd cannot be read")]
    InitrdRead(#[source] io::Error),
    /// The initrd does not fit.
    #[error(
        "the initrd of {size} bytes does not fit, there is room for {room}: give the guest more memory or use a smaller initrd"
    )]
    InitrdLarge {
        /// Its length.
        size: u64,
        /// Room between the kernel and the limit.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {length} bytes, the kernel takes {limit}: shorten it")]
    CommandLineLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The command line has a zero byte, where the kernel would end it.
    #[error("the command line contains a zero byte")]
    CommandLineZero,
    /// Guest memory could not be written.
    #[error("guest memory cannot be written")]
    Memory(#[from] vm_memory::GuestMemoryError),
}
