//! The guest's memory: where it lies, and the mapping of it.
//!
//! ```text
//! 0x0000_0000  RAM, 640 KiB
//! 0x000a_0000  legacy video window, no RAM
//! 0x000c_0000  RAM (ROM shadow up to 0x10_0000) up to the size or 3 GiB
//! 0xc000_0000  PCI windows
//! 0xfec0_0000  I/O APIC
//! 0xfee0_0000  local APICs
//! 0xfeff_c000  pages that KVM needs for itself (identity map, TSS)
//! 0xfffc_0000  firmware ROM
//! 0x1_0000_0000 RAM beyond 3 GiB
//! above RAM    PCI windows for 64-bit BARs
//! ```

mod mapping;

use serde::{Deserialize, Serialize};
use std::{io, ops::Range};
use vm_memory::{
    Bytes as _, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionMmap,
    MemoryRegionAddress,
};

pub use mapping::WrittenPages;

/// Guest memory with a bitmap of the pages that the monitor's devices wrote. Accesses through
/// `vm-memory` mark pages by themselves; whoever lets the kernel write there (`readv`, io_uring)
/// marks them by hand.
pub type GuestMemory = GuestMemoryMmap<WrittenPages>;

/// Start and end of the legacy video window.
pub const VIDEO_WINDOW: Range<u64> = 0xa_0000..0xc_0000;
/// End of RAM below 4 GiB at most, where the PCI hole begins.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// The windows below 4 GiB that BARs may lie in.
pub const PCI_WINDOW: Range<u64> = LOW_MEMORY_END..0xfec0_0000;
/// The I/O APIC's registers.
pub const IO_APIC: u64 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// One page for KVM's identity map, followed by three for its task state segment.
pub const KVM_PAGES: u64 = 0xfeff_c000;
/// Start of RAM beyond the hole.
pub const HIGH_MEMORY: u64 = 1 << 32;
/// Size of a page.
pub const PAGE_SIZE: u64 = 4096;

/// The smallest memory that a machine can have, in bytes.
pub const SMALLEST: u64 = 2 << 20;
/// The largest memory that a machine can have, in bytes.
pub const LARGEST: u64 = 1 << 42;
/// Alignment and least size of the window for 64-bit BARs.
const HIGH_PCI_ALIGN: u64 = 1 << 30;
const HIGH_PCI_SIZE: u64 = 1 << 38;

/// Why memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is out of range or no whole number of pages.
    #[error(
        "memory of {0} bytes is impossible: give a multiple of 4096 from {SMALLEST} to {LARGEST} bytes"
    )]
    Size(u64),
    /// The host does not map that much.
    #[error(
        "the host cannot map {size} bytes of guest memory: give the guest less, or the host more"
    )]
    Map {
        /// Bytes asked for.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where the memory of a machine of a given size lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLayout {
    size: u64,
}

impl MemoryLayout {
    /// The layout for `size` bytes of memory. The 128 KiB behind the video window are not given
    /// back elsewhere, as on the real board.
    ///
    /// # Errors
    /// [`MemoryError::Size`].
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        if !size.is_multiple_of(PAGE_SIZE) || !(SMALLEST..=LARGEST).contains(&size) {
            return Err(MemoryError::Size(size));
        }
        Ok(Self { size })
    }

    /// Size in bytes as it was asked for.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the RAM below 4 GiB.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.size.min(LOW_MEMORY_END)
    }

    /// The RAM beyond 4 GiB, possibly empty.
    #[must_use]
    pub fn high(&self) -> Range<u64> {
        HIGH_MEMORY..HIGH_MEMORY + (self.size - self.low_end())
    }

    /// The ranges that are RAM, in order, none empty.
    #[must_use]
    pub fn ram(&self) -> Vec<Range<u64>> {
        [
            0..VIDEO_WINDOW.start,
            VIDEO_WINDOW.end..self.low_end(),
            self.high(),
        ]
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect()
    }

    /// The window for 64-bit BARs: above all RAM.
    #[must_use]
    pub fn high_pci_window(&self) -> Range<u64> {
        let start = self.high().end.next_multiple_of(HIGH_PCI_ALIGN);
        start..start + HIGH_PCI_SIZE
    }

    /// Maps fresh, zeroed memory. Nothing is reserved until it is touched.
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    pub fn map(&self) -> Result<GuestMemory, MemoryError> {
        let map = |source| MemoryError::Map {
            size: self.size,
            source,
        };
        let regions = mapping::map(&self.ram()).map_err(map)?;
        GuestMemory::from_regions(regions).map_err(|error| map(io::Error::other(error)))
    }
}

/// Makes all of the memory zero, as after power-on.
///
/// # Errors
/// If the host refuses to take pages back.
pub fn clear(memory: &GuestMemory) -> io::Result<()> {
    for region in memory.iter() {
        if region.file_offset().is_none() {
            discard(region)?;
        } else {
            // Discarding pages of a file's mapping would bring the file's content back.
            let chunk = [0; PAGE_SIZE as usize];
            for at in (0..region.len()).step_by(chunk.len()) {
                region
                    .write_slice(&chunk, MemoryRegionAddress(at))
                    .map_err(io::Error::other)?;
            }
        }
        region.get_mmap().bitmap().mark(0, region.len() as usize);
    }
    Ok(())
}

/// Gives an anonymous region's pages back to the host; they read as zero from then on.
#[allow(unsafe_code)] // The kernel is given the address of the mapping.
fn discard(region: &GuestRegionMmap<WrittenPages>) -> io::Result<()> {
    let length = region.len() as usize;
    // SAFETY: the range is exactly this private anonymous mapping, whose content is the guest's
    // and may change at any time.
    unsafe {
        rustix::mm::madvise(
            region.as_ptr().cast(),
            length,
            rustix::mm::Advice::LinuxDontNeed,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn small_memory_lies_below_the_hole() {
        let layout = MemoryLayout::new(256 << 20).unwrap();
        assert_eq!(layout.ram(), [0..0xa_0000, 0xc_0000..256 << 20]);
        assert!(layout.high().is_empty());
        assert_eq!(layout.high_pci_window().start, 1 << 32);
    }

    #[test]
    fn large_memory_goes_on_above_4_gib() {
        let layout = MemoryLayout::new(5 << 30).unwrap();
        assert_eq!(layout.low_end(), 3 << 30);
        assert_eq!(layout.high(), 4 << 30..6 << 30);
        assert_eq!(layout.high_pci_window().start, 6 << 30);
        let memory = layout.map().unwrap();
        memory.write_obj(7u8, GuestAddress((6 << 30) - 1)).unwrap();
        for hole in [0xa_0000, 0xb_ffff, 0xc000_0000, 6 << 30] {
            assert!(memory.read_obj::<u8>(GuestAddress(hole)).is_err());
        }
        assert_eq!(memory.num_regions(), 3);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 4096, (2 << 20) + 1, LARGEST + PAGE_SIZE, u64::MAX] {
            assert!(matches!(MemoryLayout::new(size), Err(MemoryError::Size(s)) if s == size));
        }
    }
}
