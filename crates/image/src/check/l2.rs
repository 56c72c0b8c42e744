//! L2 tables: each is read once, in the order in which they lie in the file.
//!
//! Specification: `docs/interop/qcow2`, "L2 table entry" and "Extended L2
//! Entries".

use super::owner::Owner;
use super::scan::Scan;
use crate::qcow2::entry::{COMPRESSED, COPIED, ClusterKind, CompressedExtent, L2Entry};

/// Bits of a standard descriptor that must be zero, bit 0 left aside.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Small tables are read this many bytes at a time.
const WINDOW: u64 = 64 << 10;

/// A table's weight in the counts.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    /// L1 entries of any L1 table that name it.
    references: u32,
    /// Whether the active L1 table is among them.
    active: bool,
}

/// Host cluster after that of the entry before, to see fragmentation.
#[derive(Default)]
struct Neighbour(Option<u64>);

/// Counts what all L2 tables refer to.
pub(super) fn read_tables(scan: &mut Scan<'_>) {
    let list = std::mem::take(&mut scan.l2_tables);
    let size = scan.header.cluster_size();
    let mut window = vec![0; WINDOW.max(size) as usize];
    let mut read: Option<(u64, u64)> = None;
    list.for_each(|cluster, references| {
        let table = Table {
            offset: cluster << scan.header.cluster_bits,
            references,
            active: scan.active_l2_tables.get(cluster) > 0,
        };
        let inside =
            read.is_some_and(|(start, end)| table.offset >= start && table.offset + size <= end);
        if !inside {
            read = scan
                .read(table.offset, &mut window, Owner::L2)
                .then_some((table.offset, table.offset + window.len() as u64));
        }
        if let Some((start, _)) = read {
            let at = (table.offset - start) as usize;
            read_table(scan, table, &window[at..at + size as usize]);
        }
    });
    scan.l2_tables = list;
}

fn read_table(scan: &mut Scan<'_>, table: Table, bytes: &[u8]) {
    let mut neighbour = Neighbour::default();
    if scan.header.is_extended_l2() {
        for (index, entry) in bytes.as_chunks::<16>().0.iter().enumerate() {
            let word = u128::from_be_bytes(*entry);
            if word != 0 {
                let entry = L2Entry {
                    descriptor: (word >> 64) as u64,
                    bitmap: word as u64,
                };
                take(
                    scan,
                    table,
                    entry,
                    table.offset + index as u64 * 16,
                    &mut neighbour,
                );
            }
        }
    } else {
        for (index, entry) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let descriptor = u64::from_be_bytes(*entry);
            if descriptor != 0 {
                let entry = L2Entry {
                    descriptor,
                    bitmap: 0,
                };
                take(
                    scan,
                    table,
                    entry,
                    table.offset + index as u64 * 8,
                    &mut neighbour,
                );
            }
        }
    }
}

/// One entry; `place` is its own offset in the file.
fn take(scan: &mut Scan<'_>, table: Table, entry: L2Entry, place: u64, next: &mut Neighbour) {
    let extended = scan.header.is_extended_l2();
    let word = entry.descriptor;
    if word & COMPRESSED == 0 {
        check_standard_bits(scan, entry, place);
    }
    match entry.kind(extended, scan.header.has_data_file()) {
        ClusterKind::Unallocated => {
            if entry.allocated_bits() != 0 {
                scan.corruption(place, || {
                    "unallocated cluster with allocated subclusters".into()
                });
            }
        }
        ClusterKind::Zero { host: None } => {}
        ClusterKind::Zero { host: Some(host) } | ClusterKind::Allocated { host } => {
            take_allocated(scan, table, entry, host, place, next);
        }
        ClusterKind::Compressed => take_compressed(scan, table, entry, place),
    }
}

fn check_standard_bits(scan: &mut Scan<'_>, entry: L2Entry, place: u64) {
    let word = entry.descriptor;
    let extended = scan.header.is_extended_l2();
    if word & RESERVED != 0 || (extended && word & 1 != 0) {
        scan.missed(place, || {
            format!("L2 entry {word:#x} has reserved bits set")
        });
    }
    if scan.header.version == 2 && word & 1 != 0 {
        scan.corruption(place, || "zero cluster in a version 2 image".into());
    }
    if entry.allocated_bits() & entry.zero_bits() != 0 {
        scan.corruption(place, || "subclusters are both allocated and zero".into());
    }
}

fn take_allocated(
    scan: &mut Scan<'_>,
    table: Table,
    entry: L2Entry,
    host: u64,
    place: u64,
    next: &mut Neighbour,
) {
    let size = scan.header.cluster_size();
    if table.active {
        scan.report.allocated_clusters += 1;
        if next.0.is_some_and(|expected| expected != host) {
            scan.report.fragmented_clusters += 1;
        }
        next.0 = host.checked_add(size);
    }
    if !scan.is_aligned(host) {
        scan.missed(place, || {
            format!("guest data at {host:#x} is not aligned to a cluster")
        });
        return;
    }
    if scan.header.has_data_file() {
        if table.active && !entry.is_copied() {
            scan.wrong_copied("data file cluster", host, place, 1);
        }
        return;
    }
    if scan.is_beyond(host, size) {
        scan.missed(place, || {
            format!("guest data at {host:#x} lies beyond the end of the file")
        });
        return;
    }
    let cluster = scan.cluster_of(host);
    scan.refer_to_data(cluster, table.references);
    if table.active {
        let refcount = scan.stored.get(cluster);
        if (refcount == 1) != entry.is_copied() {
            scan.wrong_copied("guest data", host, place, refcount);
        }
    }
}

fn take_compressed(scan: &mut Scan<'_>, table: Table, entry: L2Entry, place: u64) {
    if entry.descriptor & COPIED != 0 {
        scan.corruption(place, || "compressed cluster with the COPIED flag".into());
    }
    if scan.header.has_data_file() {
        scan.corruption(place, || {
            "compressed cluster in an image with a data file".into()
        });
        return;
    }
    if entry.bitmap != 0 {
        scan.corruption(place, || {
            "compressed cluster with a subcluster bitmap".into()
        });
    }
    if table.active {
        scan.report.allocated_clusters += 1;
        scan.report.compressed_clusters += 1;
        scan.report.fragmented_clusters += 1;
    }
    let extent = CompressedExtent::decode(entry.descriptor, scan.header.cluster_bits);
    if scan.is_beyond(extent.offset, extent.length) {
        scan.missed(place, || {
            format!(
                "compressed data at {:#x} lies beyond the end of the file",
                extent.offset
            )
        });
        return;
    }
    let (first, last) = extent.clusters(scan.header.cluster_bits);
    for cluster in first..=last {
        scan.refer_to_data(cluster, table.references);
    }
}
