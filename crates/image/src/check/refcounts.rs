//! The refcounts that an image stores: reading, and the bits of a block.
//!
//! Specification: `docs/interop/qcow2`, "Host cluster management".

use super::owner::Owner;
use super::scan::Scan;
use crate::qcow2::header::Header;

/// Bits 9-63 of a refcount table entry: offset of a refcount block.
pub(super) const BLOCK_OFFSET: u64 = !0x1ff;

/// The refcount at `index` of a block, refcounts being `1 << order` bits wide.
pub(super) fn get(block: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..3 => {
            let bits = 1 << order;
            let bit = index << order;
            u64::from(block[bit / 8] >> (bit % 8)) & ((1 << bits) - 1)
        }
        _ => {
            let bytes = 1 << (order - 3);
            block[index * bytes..(index + 1) * bytes]
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

/// Stores a refcount, which must fit.
pub(super) fn set(block: &mut [u8], order: u32, index: usize, value: u64) {
    match order {
        0..3 => {
            let bits = 1 << order;
            let bit = index << order;
            let mask = ((1u8 << bits) - 1) << (bit % 8);
            let byte = &mut block[bit / 8];
            *byte = *byte & !mask | (value as u8) << (bit % 8) & mask;
        }
        _ => {
            let bytes = 1 << (order - 3);
            let value = value.to_be_bytes();
            block[index * bytes..(index + 1) * bytes].copy_from_slice(&value[8 - bytes..]);
        }
    }
}

/// The largest refcount that the image's width holds.
pub(super) fn largest(header: &Header) -> u64 {
    u64::MAX >> (64 - header.refcount_bits())
}

/// Reads the refcount table, which [`Header::read`] has found to be of valid
/// size.
pub(super) fn read_table(scan: &mut Scan<'_>) -> Option<Vec<u64>> {
    let length = u64::from(scan.header.refcount_table_clusters) << scan.header.cluster_bits;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let offset = scan.header.refcount_table_offset;
    scan.read(offset, &mut bytes, Owner::RefcountTable)
        .then(|| {
            bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|entry| u64::from_be_bytes(*entry))
                .collect()
        })
}

/// Reads all refcounts, and counts the structures that hold them.
pub(super) fn read_stored(scan: &mut Scan<'_>) {
    let offset = scan.header.refcount_table_offset;
    let length = u64::from(scan.header.refcount_table_clusters) << scan.header.cluster_bits;
    let usable = scan.claim(offset, length, Owner::RefcountTable);
    let Some(table) = usable.then(|| read_table(scan)).flatten() else {
        scan.rebuild = true;
        return;
    };
    let mut block = vec![0; scan.header.cluster_size() as usize];
    for (index, &entry) in table.iter().enumerate() {
        if entry != 0 {
            let place = offset + index as u64 * 8;
            if !read_block(scan, index as u64, entry, place, &mut block) {
                scan.rebuild = true;
            }
        }
    }
}

fn read_block(scan: &mut Scan<'_>, index: u64, entry: u64, place: u64, block: &mut [u8]) -> bool {
    let offset = entry & BLOCK_OFFSET;
    if entry & !BLOCK_OFFSET != 0 {
        scan.corruption(place, || {
            format!("refcount table entry {entry:#x} has reserved bits set")
        });
    }
    if !scan.is_aligned(offset) || offset >= 1 << 56 || scan.is_beyond(offset, block.len() as u64) {
        scan.corruption(place, || {
            format!("refcount block at {offset:#x} is not aligned or lies beyond the file's end")
        });
        return false;
    }
    // A block that overlaps other metadata says nothing about references.
    let incomplete = scan.incomplete;
    let free = scan.claim(offset, block.len() as u64, Owner::RefcountBlock);
    scan.incomplete = incomplete;
    if !free || !scan.read(offset, block, Owner::RefcountBlock) {
        return false;
    }
    let order = scan.header.refcount_order;
    let per_block = scan.header.refcounts_per_block();
    let first = index * per_block;
    // Refcounts of clusters that the file does not reach hold no space.
    let in_file = scan.file_length.div_ceil(scan.header.cluster_size()) + 1;
    let count = in_file.saturating_sub(first).min(per_block) as usize;
    for at in 0..count {
        let value = get(block, order, at);
        if value != 0 {
            scan.stored
                .set(first + at as u64, u32::try_from(value).unwrap_or(u32::MAX));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_come_back() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let count = (512 * 8) >> order;
            let largest = u64::MAX >> (64 - (1u32 << order));
            let value = |index: u64| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15)) & largest;
            for index in 0..count {
                set(&mut block, order, index, value(index as u64));
            }
            for index in 0..count {
                assert_eq!(get(&block, order, index), value(index as u64));
            }
        }
        // "1 bit: cluster 0 is the least significant bit of byte 0."
        assert_eq!(get(&[0b0000_0001], 0, 0), 1);
        assert_eq!(get(&[0b0010_0000], 1, 2), 2);
        assert_eq!(get(&[0x12, 0x34], 4, 0), 0x1234);
    }
}
