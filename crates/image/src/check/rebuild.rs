//! New refcount structures at the end of the file, for an image whose own are
//! beyond use. They take effect with one write of the header's first sector.

use std::collections::BTreeSet;
use std::path::Path;

use super::refcounts;
use super::repair::{check_width, sync, write};
use super::scan::{Refcounts, Scan};
use crate::qcow2::header::MAX_REFCOUNT_TABLE_BYTES;
use crate::storage::Storage;
use crate::{Error, Result};

/// The longest file in clusters that is kept as a whole where it cannot be told
/// what is in use (64 TiB in clusters of 64 KiB, 128 MiB of counts).
const KEPT_MAX: u64 = 1 << 30;

/// Where the new structures go: refcount blocks first, then the table.
struct Layout {
    /// First cluster.
    start: u64,
    /// The refcount blocks that are needed, by their index.
    blocks: BTreeSet<u64>,
    table_clusters: u64,
}

impl Layout {
    fn end(&self) -> u64 {
        self.start + self.blocks.len() as u64 + self.table_clusters
    }

    /// Finds room for the structures that also count themselves.
    fn plan(scan: &Scan<'_>, start: u64) -> Self {
        let per_block = scan.header.refcounts_per_block();
        let mut layout = Self {
            start,
            blocks: BTreeSet::new(),
            table_clusters: 1,
        };
        scan.references.for_each(|cluster, _| {
            layout.blocks.insert(cluster / per_block);
        });
        loop {
            let before = layout.end();
            layout
                .blocks
                .extend(start / per_block..=(before - 1) / per_block);
            let entries = layout.blocks.last().map_or(0, |last| last + 1);
            layout.table_clusters = (entries * 8).div_ceil(scan.header.cluster_size());
            if layout.end() == before {
                return layout;
            }
        }
    }
}

/// Writes them, and returns a fresh scan of the image.
pub(super) fn run<'a>(storage: &'a dyn Storage, path: &Path) -> Result<Scan<'a>> {
    let mut scan = Scan::run(storage, path, Refcounts::Replaced)?;
    let in_file = scan.file_length.div_ceil(scan.header.cluster_size());
    let mut start = in_file;
    scan.references
        .for_each(|cluster, _| start = start.max(cluster + 1));
    if scan.incomplete {
        keep_everything(&mut scan, path, in_file)?;
    }
    let layout = Layout::plan(&scan, start);
    if layout.table_clusters << scan.header.cluster_bits > MAX_REFCOUNT_TABLE_BYTES {
        return Err(Error::corrupt(
            path,
            "the file is too long for a refcount table; convert the image to a new one",
            scan.header.refcount_table_offset,
        ));
    }
    for cluster in start..layout.end() {
        scan.references.set(cluster, 1);
    }
    write_structures(&mut scan, path, &layout)?;
    sync(storage, path)?;
    scan.header.refcount_table_offset =
        (start + layout.blocks.len() as u64) << scan.header.cluster_bits;
    scan.header.refcount_table_clusters = u32::try_from(layout.table_clusters)
        .map_err(|_| Error::corrupt(path, "the refcount table has too many clusters", 56))?;
    write(storage, path, &scan.header.fixed_bytes(), 0)?;
    sync(storage, path)?;
    Scan::run(storage, path, Refcounts::Kept)
}

/// Some table could not be read: what it refers to must not be handed out.
fn keep_everything(scan: &mut Scan<'_>, path: &Path, in_file: u64) -> Result<()> {
    if in_file > KEPT_MAX {
        return Err(Error::corrupt(
            path,
            "neither refcounts nor references can be told for so long a file; \
             convert the image to a new one",
            scan.header.refcount_table_offset,
        ));
    }
    for cluster in 0..in_file {
        if scan.references.get(cluster) == 0 {
            scan.references.set(cluster, 1);
        }
    }
    Ok(())
}

fn write_structures(scan: &mut Scan<'_>, path: &Path, layout: &Layout) -> Result<()> {
    let size = scan.header.cluster_size() as usize;
    let per_block = scan.header.refcounts_per_block();
    let order = scan.header.refcount_order;
    let mut table = vec![0u8; (layout.table_clusters as usize).saturating_mul(size)];
    let mut cluster = layout.start;
    for &index in &layout.blocks {
        let mut block = vec![0; size];
        for at in 0..per_block {
            let count = u64::from(scan.references.get(index * per_block + at));
            if count != 0 {
                check_width(&scan.header, path, index * per_block + at, count)?;
                refcounts::set(&mut block, order, at as usize, count);
            }
        }
        let offset = cluster << scan.header.cluster_bits;
        write(scan.storage, path, &block, offset)?;
        let place = index as usize * 8;
        table[place..place + 8].copy_from_slice(&offset.to_be_bytes());
        cluster += 1;
    }
    write(
        scan.storage,
        path,
        &table,
        cluster << scan.header.cluster_bits,
    )
}
