//! The snapshot table and the bitmap directory.
//!
//! Specification: `docs/interop/qcow2`, "Snapshots" and "Bitmaps".

use super::owner::Owner;
use super::scan::Scan;
use crate::qcow2::entry::OFFSET_MASK;
use crate::qcow2::header::{MAX_L1_BYTES, autoclear, be32, be64};

/// Bytes of the fixed part of a snapshot table entry.
const SNAPSHOT_FIXED: u64 = 40;
/// The longest extra data that a writer may add.
const SNAPSHOT_EXTRA_MAX: u32 = 1024;
/// Bytes of the fixed part of a bitmap directory entry.
const BITMAP_FIXED: u64 = 24;
/// The most bitmaps, and the largest directory, that any known writer makes.
const BITMAPS_MAX: u32 = 65535;
const BITMAP_DIRECTORY_MAX: u64 = 64 << 20;
/// Table entries of one bitmap at most.
const BITMAP_TABLE_MAX: u32 = 128 << 20;
/// Bits of a bitmap table entry that must be zero.
const BITMAP_TABLE_RESERVED: u64 = 0xff00_0000_0000_01fe;

/// The big-endian half word at `at`.
fn be16(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at) >> 16)
}

/// Counts the snapshot table and all that the snapshots keep.
pub(super) fn read_snapshots(scan: &mut Scan<'_>) {
    let start = scan.header.snapshots_offset;
    let mut at = start;
    let mut l1_tables = Vec::new();
    for index in 0..scan.header.snapshot_count {
        let mut fixed = [0; SNAPSHOT_FIXED as usize];
        if scan.is_beyond(at, SNAPSHOT_FIXED) {
            scan.missed(at, || {
                format!("entry {index} of the snapshot table lies beyond the end of the file")
            });
            break;
        }
        if !scan.read(at, &mut fixed, Owner::SnapshotTable) {
            break;
        }
        let extra = be32(&fixed, 36);
        if extra > SNAPSHOT_EXTRA_MAX {
            scan.missed(at, || {
                format!("snapshot {index} has {extra} bytes of extra data, at most 1024 are valid")
            });
            break;
        }
        l1_tables.push((at, be64(&fixed, 0), be32(&fixed, 8)));
        let length = SNAPSHOT_FIXED + u64::from(extra) + be16(&fixed, 12) + be16(&fixed, 14);
        at += length.next_multiple_of(8);
    }
    scan.claim(start, at - start, Owner::SnapshotTable);
    for (place, offset, entries) in l1_tables {
        read_snapshot_l1(scan, place, offset, entries);
    }
}

fn read_snapshot_l1(scan: &mut Scan<'_>, place: u64, offset: u64, entries: u32) {
    if u64::from(entries) * 8 > MAX_L1_BYTES {
        scan.missed(place, || {
            format!("a snapshot's L1 table has {entries} entries, too many")
        });
    } else if !scan.is_aligned(offset) || (offset == 0 && entries > 0) {
        scan.missed(place, || {
            format!("a snapshot's L1 table at {offset:#x} is not aligned to a cluster")
        });
    } else {
        scan.read_l1(offset, entries, false);
    }
}

/// Counts the bitmap directory and all bitmaps. Without the autoclear bit they
/// are not valid, and what they hold is lost space.
pub(super) fn read_bitmaps(scan: &mut Scan<'_>) {
    let Some(extension) = scan.header.extensions.bitmaps else {
        return;
    };
    if scan.header.autoclear & autoclear::BITMAPS == 0 {
        return;
    }
    let (start, size) = (extension.directory_offset, extension.directory_size);
    if extension.count > BITMAPS_MAX || size > BITMAP_DIRECTORY_MAX || !scan.is_aligned(start) {
        scan.missed(start, || {
            format!("bitmap directory at {start:#x} of {size} bytes is not valid")
        });
        return;
    }
    if !scan.claim(start, size, Owner::BitmapDirectory) {
        return;
    }
    let mut at = start;
    for index in 0..extension.count {
        let mut fixed = [0; BITMAP_FIXED as usize];
        if at + BITMAP_FIXED > start + size {
            scan.missed(at, || {
                format!("bitmap {index} does not fit the bitmap directory")
            });
            return;
        }
        if !scan.read(at, &mut fixed, Owner::BitmapDirectory) {
            return;
        }
        read_bitmap_table(scan, at, be64(&fixed, 0), be32(&fixed, 8));
        let length = BITMAP_FIXED + u64::from(be32(&fixed, 20)) + be16(&fixed, 18);
        at += length.next_multiple_of(8);
    }
}

fn read_bitmap_table(scan: &mut Scan<'_>, place: u64, offset: u64, entries: u32) {
    if !scan.is_aligned(offset) || entries > BITMAP_TABLE_MAX {
        scan.missed(place, || {
            format!("bitmap table at {offset:#x} with {entries} entries is not valid")
        });
        return;
    }
    let length = u64::from(entries) * 8;
    if !scan.claim(offset, length, Owner::BitmapTable) {
        return;
    }
    let mut window = vec![0; length.min(1 << 20) as usize];
    let mut done = 0;
    while done < length {
        let take = (length - done).min(window.len() as u64) as usize;
        if !scan.read(offset + done, &mut window[..take], Owner::BitmapTable) {
            return;
        }
        for (index, entry) in window[..take].as_chunks::<8>().0.iter().enumerate() {
            let place = offset + done + index as u64 * 8;
            take_bitmap_entry(scan, place, u64::from_be_bytes(*entry));
        }
        done += take as u64;
    }
}

fn take_bitmap_entry(scan: &mut Scan<'_>, place: u64, entry: u64) {
    let cluster = entry & OFFSET_MASK;
    if entry & BITMAP_TABLE_RESERVED != 0 || (cluster != 0 && entry & 1 != 0) {
        scan.corruption(place, || {
            format!("bitmap table entry {entry:#x} is not valid")
        });
    }
    if cluster == 0 {
        return;
    }
    if !scan.is_aligned(cluster) {
        scan.missed(place, || {
            format!("bitmap at {cluster:#x} is not aligned to a cluster")
        });
        return;
    }
    let size = scan.header.cluster_size();
    scan.claim(cluster, size, Owner::Bitmap);
}
