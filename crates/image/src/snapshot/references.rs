//! Who refers to which host cluster: reference counts of a whole mapping and
//! the COPIED flags that follow from them.

use crate::error::{Error, Result};
use crate::qcow2::entry::{COPIED, ClusterKind, CompressedExtent, L2Entry, OFFSET_MASK};
use crate::qcow2::geometry::Geometry;
use crate::qcow2::transaction::Transaction;

/// An L1 table whose L2 tables somebody else refers to as well.
pub(super) fn copied_cleared(l1: &[u64]) -> Vec<u64> {
    l1.iter().map(|entry| entry & !COPIED).collect()
}

/// First and last host cluster that an L2 entry refers to.
fn clusters_of(geo: &Geometry, entry: L2Entry) -> Option<(u64, u64)> {
    match entry.kind(geo.extended, false) {
        ClusterKind::Allocated { host } | ClusterKind::Zero { host: Some(host) } => {
            Some((geo.cluster(host), geo.cluster(host)))
        }
        ClusterKind::Compressed => {
            let extent = CompressedExtent::decode(entry.descriptor, geo.cluster_bits);
            Some(extent.clusters(geo.cluster_bits))
        }
        ClusterKind::Zero { host: None } | ClusterKind::Unallocated => None,
    }
}

/// The L2 tables that an L1 table names, as offsets.
fn tables(tx: &Transaction<'_>, l1: &[u64]) -> Result<Vec<u64>> {
    let geo = tx.geometry();
    l1.iter()
        .map(|entry| entry & OFFSET_MASK)
        .filter(|offset| *offset != 0)
        .map(|offset| match geo.inside(offset) {
            0 => Ok(offset),
            _ => {
                let what = "an L1 entry names an L2 table that is not aligned to a cluster";
                Err(Error::corrupt(tx.path(), what, offset))
            }
        })
        .collect()
}

fn entries(geo: &Geometry, words: &[u64]) -> impl Iterator<Item = L2Entry> {
    let width = geo.entry_words;
    let extended = geo.extended;
    words.chunks_exact(width).map(move |words| L2Entry {
        descriptor: words[0],
        bitmap: if extended { words[1] } else { 0 },
    })
}

fn read_l2(tx: &Transaction<'_>, offset: u64) -> Result<Vec<u64>> {
    let geo = tx.geometry();
    tx.read_table(offset, (geo.cluster_size / 8) as usize)
}

/// Calls `visit(host cluster, holds compressed data)` for every reference that
/// a mapping holds: each L2 table and each data cluster, shared compressed
/// clusters as often as they are named.
fn for_each(
    tx: &Transaction<'_>,
    l1: &[u64],
    mut visit: impl FnMut(u64, bool) -> Result<()>,
) -> Result<()> {
    let geo = tx.geometry();
    for offset in tables(tx, l1)? {
        for entry in entries(&geo, &read_l2(tx, offset)?) {
            if let Some((first, last)) = clusters_of(&geo, entry) {
                let compressed = matches!(entry.kind(geo.extended, false), ClusterKind::Compressed);
                (first..=last).try_for_each(|cluster| visit(cluster, compressed))?;
            }
        }
        visit(geo.cluster(offset), false)?;
    }
    Ok(())
}

/// Fails unless every reference count can grow as [`add_references`] needs.
pub(super) fn check_room(tx: &Transaction<'_>, l1: &[u64]) -> Result<()> {
    let geo = tx.geometry();
    let most = geo.refcount_max();
    for_each(tx, l1, |cluster, compressed| {
        let count = tx.refcount(cluster)?;
        if count == 0 {
            return Err(Error::corrupt(
                tx.path(),
                "a cluster in use has refcount 0",
                cluster << geo.cluster_bits,
            ));
        }
        // Several compressed clusters of this mapping may share a host
        // cluster: its count may double, but no more.
        let grown = count.saturating_add(if compressed { count } else { 1 });
        if grown > most {
            return Err(Error::unsupported(
                tx.path(),
                format!(
                    "one more snapshot with {}-bit reference counts (a cluster has {count} of at \
                     most {most}); convert it to an image with wider ones (refcount_bits=16), or \
                     delete a snapshot",
                    1_u32 << geo.refcount_order
                ),
            ));
        }
        Ok(())
    })
}

/// Adds one reference for each that the mapping holds.
pub(super) fn add_references(tx: &Transaction<'_>, l1: &[u64]) -> Result<()> {
    for_each(tx, l1, |cluster, _| tx.reference(cluster).map(drop))
}

/// Takes back one reference for each that the mapping holds. Nothing durable
/// names this mapping any more.
pub(super) fn drop_references(tx: &Transaction<'_>, l1: &[u64]) -> Result<()> {
    for_each(tx, l1, |cluster, _| tx.release(cluster).map(drop))
}

/// Makes the COPIED flags of the active mapping, and of the L2 tables it leads
/// to, say what the reference counts say. The counts are durable.
pub(super) fn settle_copied(tx: &Transaction<'_>, mut l1: Vec<u64>) -> Result<()> {
    tx.flush_refcounts()?;
    let geo = tx.geometry();
    for entry in &mut l1 {
        let offset = *entry & OFFSET_MASK;
        if offset == 0 {
            continue;
        }
        settle_table(tx, &geo, offset)?;
        let alone = tx.refcount(geo.cluster(offset))? == 1;
        *entry = flagged(*entry, alone);
    }
    tx.sync()?;
    tx.write_l1(&l1)
}

fn settle_table(tx: &Transaction<'_>, geo: &Geometry, offset: u64) -> Result<()> {
    let mut words = read_l2(tx, offset)?;
    let mut changed = false;
    for at in (0..words.len()).step_by(geo.entry_words) {
        let entry = L2Entry {
            descriptor: words[at],
            bitmap: if geo.extended { words[at + 1] } else { 0 },
        };
        if matches!(entry.kind(geo.extended, false), ClusterKind::Compressed) {
            continue;
        }
        let Some((cluster, _)) = clusters_of(geo, entry) else {
            continue;
        };
        let new = flagged(entry.descriptor, tx.refcount(cluster)? == 1);
        changed |= new != words[at];
        words[at] = new;
    }
    if changed {
        tx.write_table(offset, &words)?;
    }
    Ok(())
}

fn flagged(entry: u64, copied: bool) -> u64 {
    if copied {
        entry | COPIED
    } else {
        entry & !COPIED
    }
}
