//! The mapping that guest memory lies in, and the bitmap that says which of its pages the
//! monitor's devices wrote.
//!
//! The processor walks a guest's memory with one entry for 2 MiB instead of 512 where a huge page
//! of the guest is a huge page of the host. Both ends have to lie alike in theirs, so all of the
//! guest's memory below 4 GiB is one stretch of addresses that begins at a huge page, with holes
//! where the guest has none.
#![allow(unsafe_code)] // Addresses are given to the kernel and to `vm-memory`.

use std::{ffi::c_void, io, ops::Range, ptr::NonNull, sync::Arc};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use vm_memory::{
    GuestAddress, GuestRegionMmap,
    bitmap::{AtomicBitmap, Bitmap, NewBitmap, RefSlice, WithBitmapSlice},
    mmap::MmapRegionBuilder,
};

/// Bytes of a huge page of x86-64.
const HUGE: u64 = 2 << 20;

/// Addresses of this process that nothing else lies in.
#[derive(Debug)]
struct Addresses {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: what lies there is reached through the regions of guest memory, which are made for
// several threads; this value only gives the addresses back.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl Addresses {
    /// `length` bytes of addresses that cannot be read or written.
    fn reserve(length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: reserved by `reserve`; every region in it holds this value, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.length) };
    }
}

/// The pages of a region that the monitor's devices wrote.
#[derive(Debug, Default)]
pub struct WrittenPages {
    bitmap: AtomicBitmap,
    /// Keeps the mapping for as long as the region, where the region does not own it.
    _addresses: Option<Arc<Addresses>>,
}

impl WrittenPages {
    /// Marks the pages of `length` bytes from `offset` on as written.
    pub fn mark(&self, offset: usize, length: usize) {
        self.bitmap.set_addr_range(offset, length);
    }

    /// One bit for each page, lowest page in the lowest bit; none is marked from then on.
    #[must_use]
    pub fn take(&self) -> Vec<u64> {
        self.bitmap.get_and_reset()
    }
}

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for WrittenPages {
    fn with_len(len: usize) -> Self {
        Self {
            bitmap: AtomicBitmap::with_len(len),
            _addresses: None,
        }
    }
}

/// Fresh, zeroed memory for the guest addresses of `ranges`, which are in order, apart, and whole
/// pages. Nothing is used until it is touched.
pub(super) fn map(ranges: &[Range<u64>]) -> io::Result<Vec<GuestRegionMmap<WrittenPages>>> {
    let mut regions = Vec::with_capacity(ranges.len());
    for stretch in stretches(ranges) {
        let begin = stretch[0].start / HUGE * HUGE;
        let end = stretch[stretch.len() - 1].end;
        let length = usize::try_from(end - begin + HUGE).map_err(io::Error::other)?;
        let addresses = Arc::new(Addresses::reserve(length)?);
        let skip = addresses.start.cast::<u8>().align_offset(HUGE as usize);
        for range in stretch {
            let at = skip + (range.start - begin) as usize;
            regions.push(region(&addresses, at, range)?);
        }
    }
    Ok(regions)
}

/// The ranges below 4 GiB and those above, each if there are any. The gap between the two is a
/// whole number of huge pages, so nothing is gained by having it in the mapping.
fn stretches(ranges: &[Range<u64>]) -> impl Iterator<Item = &[Range<u64>]> {
    let low = ranges.partition_point(|range| range.start < super::HIGH_MEMORY);
    let (low, high) = ranges.split_at(low);
    [low, high].into_iter().filter(|ranges| !ranges.is_empty())
}

/// Makes the addresses from `at` on the memory of `range`.
fn region(
    addresses: &Arc<Addresses>,
    at: usize,
    range: &Range<u64>,
) -> io::Result<GuestRegionMmap<WrittenPages>> {
    let length = (range.end - range.start) as usize;
    assert!(at + length <= addresses.length);
    // SAFETY: within the reserved addresses (asserted).
    let start = unsafe { addresses.start.byte_add(at) }.as_ptr();
    // SAFETY: these are addresses that nobody uses yet.
    unsafe { rustix::mm::mprotect(start, length, MprotectFlags::READ | MprotectFlags::WRITE)? };
    // SAFETY: advice on memory that holds nothing yet. A kernel without huge pages refuses it,
    // and small ones serve.
    let _ = unsafe { rustix::mm::madvise(start, length, Advice::LinuxHugepage) };
    let written = WrittenPages {
        _addresses: Some(Arc::clone(addresses)),
        ..WrittenPages::with_len(length)
    };
    // SAFETY: the region's bitmap keeps the mapping as long as the region is there.
    let mapping = unsafe {
        MmapRegionBuilder::new_with_bitmap(length, written)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .with_raw_mmap_pointer(start.cast())
    };
    let mapping = mapping.build().map_err(io::Error::other)?;
    GuestRegionMmap::new(mapping, GuestAddress(range.start)).ok_or_else(|| {
        let (start, end) = (range.start, range.end);
        io::Error::other(format!("no room for memory from {start:#x} to {end:#x}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes as _, GuestMemoryRegion as _, MemoryRegionAddress};

    const RANGES: [Range<u64>; 3] = [
        0..0xa_0000,
        0xc_0000..16 << 20,
        super::super::HIGH_MEMORY..super::super::HIGH_MEMORY + (4 << 20),
    ];

    #[test]
    fn guest_and_host_addresses_lie_alike_in_huge_pages() {
        for region in map(&RANGES).unwrap() {
            let guest = region.start_addr().0 % HUGE;
            assert_eq!(region.as_ptr().addr() as u64 % HUGE, guest);
        }
    }

    #[test]
    fn memory_is_there_until_its_last_region_is_dropped() {
        let mut regions = map(&RANGES).unwrap();
        let last = regions.pop().unwrap();
        let second = regions.pop().unwrap();
        drop(regions);
        for region in [&second, &last] {
            region
                .write_obj(7u64, MemoryRegionAddress(region.len() - 8))
                .unwrap();
            let last_page = region
                .get_mmap()
                .bitmap()
                .take()
                .last()
                .map(|word| word.ilog2());
            assert_eq!(last_page, Some((region.len() / 4096 - 1) as u32 % 64));
        }
        let low = Arc::downgrade(second.get_mmap().bitmap()._addresses.as_ref().unwrap());
        drop(last);
        assert!(low.upgrade().is_some());
        drop(second);
        assert!(
            low.upgrade().is_none(),
            "nobody would give the mapping back"
        );
    }
}
