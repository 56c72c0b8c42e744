//! Putting refcounts and COPIED flags right.
//!
//! The order makes every instant at least as good as the one before: refcounts
//! that are too low rise first, then flags that promise too much go, then
//! refcounts that are too high fall, then flags that are missing come. In a
//! version 3 image the dirty bit stands meanwhile.

use std::path::Path;

use super::scan::{Refcounts, Scan};
use super::{CheckReport, Repair, rebuild, refcounts};
use crate::qcow2::entry::{COMPRESSED, COPIED, ClusterKind, L2Entry, OFFSET_MASK};
use crate::qcow2::header::{Header, incompatible};
use crate::storage::Storage;
use crate::{Error, Result};

/// Tables are read and written this many bytes at a time.
const WINDOW: u64 = 64 << 10;

/// Which refcounts a pass changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Raise,
    Lower,
}

/// Which COPIED flags a pass changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    Clear,
    Set,
}

pub(super) fn run(storage: &dyn Storage, path: &Path, mode: Repair) -> Result<CheckReport> {
    let mut scan = Scan::run(storage, path, Refcounts::Kept)?;
    let before = scan.report.clone();
    let marks = scan.header.incompatible & (incompatible::DIRTY | incompatible::CORRUPT);
    if before.is_clean() && marks == 0 {
        return Ok(before);
    }
    if mode == Repair::Leaks {
        if before.leaks > 0 && !scan.incomplete && !scan.rebuild {
            write_refcounts(&mut scan, path, Direction::Lower)?;
            sync(storage, path)?;
            // What fell to one reference now lacks the flag that says so.
            write_flags(&mut scan, path, Flags::Set)?;
            sync(storage, path)?;
        }
        return finish(storage, path, &before, false);
    }
    if !before.is_clean() {
        repair_all(&mut scan, storage, path)?;
    }
    finish(storage, path, &before, true)
}

fn repair_all<'a>(scan: &mut Scan<'a>, storage: &'a dyn Storage, path: &Path) -> Result<()> {
    mark(storage, path, &mut scan.header, incompatible::DIRTY, 0)?;
    if scan.rebuild || refcounts_lack_a_block(scan) {
        *scan = rebuild::run(storage, path)?;
        write_flags(scan, path, Flags::Clear)?;
        sync(storage, path)?;
    } else {
        write_refcounts(scan, path, Direction::Raise)?;
        sync(storage, path)?;
        write_flags(scan, path, Flags::Clear)?;
        sync(storage, path)?;
        if !scan.incomplete {
            write_refcounts(scan, path, Direction::Lower)?;
            sync(storage, path)?;
        }
    }
    write_flags(scan, path, Flags::Set)?;
    sync(storage, path)
}

/// Checks again, and takes the marks away when nothing is left.
fn finish(
    storage: &dyn Storage,
    path: &Path,
    before: &CheckReport,
    clear_marks: bool,
) -> Result<CheckReport> {
    let mut scan = Scan::run(storage, path, Refcounts::Kept)?;
    let mut report = scan.report.clone();
    report.corruptions_fixed = before.corruptions.saturating_sub(report.corruptions);
    report.leaks_fixed = before.leaks.saturating_sub(report.leaks);
    if clear_marks && report.is_consistent() {
        sync(storage, path)?;
        let marks = incompatible::DIRTY | incompatible::CORRUPT;
        mark(storage, path, &mut scan.header, 0, marks)?;
        sync(storage, path)?;
    }
    Ok(report)
}

/// Sets and clears incompatible feature bits; version 2 has none.
fn mark(
    storage: &dyn Storage,
    path: &Path,
    header: &mut Header,
    set: u64,
    clear: u64,
) -> Result<()> {
    let marks = (header.incompatible | set) & !clear;
    if header.version < 3 || marks == header.incompatible {
        return Ok(());
    }
    header.incompatible = marks;
    write(storage, path, &header.fixed_bytes(), 0)?;
    sync(storage, path)
}

pub(super) fn write(storage: &dyn Storage, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    storage
        .write_at(bytes, offset)
        .map_err(|error| Error::io(path, "repair", error))
}

pub(super) fn sync(storage: &dyn Storage, path: &Path) -> Result<()> {
    storage
        .sync()
        .map_err(|error| Error::io(path, "sync the repair of", error))
}

fn read(storage: &dyn Storage, path: &Path, bytes: &mut [u8], offset: u64) -> Result<()> {
    storage
        .read_at(bytes, offset)
        .map_err(|error| Error::io(path, "read for repair", error))
}

/// Whether a cluster in use has no refcount block, so that a new one would
/// have to be found for it.
fn refcounts_lack_a_block(scan: &mut Scan<'_>) -> bool {
    let Some(table) = refcounts::read_table(scan) else {
        return true;
    };
    let per_block = scan.header.refcounts_per_block();
    let mut lacking = false;
    scan.references.for_each(|cluster, _| {
        let entry = usize::try_from(cluster / per_block)
            .ok()
            .and_then(|at| table.get(at));
        lacking |= entry.is_none_or(|entry| entry & refcounts::BLOCK_OFFSET == 0);
    });
    lacking
}

/// Writes counted references over stored refcounts that are lower (or higher).
fn write_refcounts(scan: &mut Scan<'_>, path: &Path, direction: Direction) -> Result<()> {
    let Some(table) = refcounts::read_table(scan) else {
        return Err(Error::corrupt(
            path,
            "the refcount table cannot be read",
            scan.header.refcount_table_offset,
        ));
    };
    let order = scan.header.refcount_order;
    let per_block = scan.header.refcounts_per_block();
    let in_file = scan.file_length.div_ceil(scan.header.cluster_size()) + 1;
    let mut block = vec![0; scan.header.cluster_size() as usize];
    for (index, entry) in table.into_iter().enumerate() {
        let first = index as u64 * per_block;
        let count = in_file.saturating_sub(first).min(per_block) as usize;
        if entry & refcounts::BLOCK_OFFSET == 0 || count == 0 {
            continue;
        }
        read(
            scan.storage,
            path,
            &mut block,
            entry & refcounts::BLOCK_OFFSET,
        )?;
        let mut changed = false;
        for at in 0..count {
            let stored = refcounts::get(&block, order, at);
            let wanted = u64::from(scan.references.get(first + at as u64));
            let due = match direction {
                Direction::Raise => wanted > stored,
                Direction::Lower => wanted < stored,
            };
            if due {
                check_width(&scan.header, path, first + at as u64, wanted)?;
                refcounts::set(&mut block, order, at, wanted);
                let known = u32::try_from(wanted).unwrap_or(u32::MAX);
                scan.stored.set(first + at as u64, known);
                changed = true;
            }
        }
        if changed {
            write(scan.storage, path, &block, entry & refcounts::BLOCK_OFFSET)?;
        }
    }
    Ok(())
}

/// Refuses a count that the image's refcount width cannot hold.
pub(super) fn check_width(header: &Header, path: &Path, cluster: u64, count: u64) -> Result<()> {
    if count <= refcounts::largest(header) {
        return Ok(());
    }
    Err(Error::corrupt(
        path,
        format!(
            "cluster {cluster} has {count} references, more than its refcount of {} bits can say; \
             convert the image to a new one",
            header.refcount_bits()
        ),
        cluster << header.cluster_bits,
    ))
}

/// Puts the COPIED flags of the active tables right by the stored refcounts,
/// which [`write_refcounts`] keeps up to date.
fn write_flags(scan: &mut Scan<'_>, path: &Path, flags: Flags) -> Result<()> {
    let l1_length = u64::from(scan.header.l1_entries) * 8;
    write_table(
        scan,
        path,
        scan.header.l1_offset,
        l1_length,
        |scan, words| {
            fix_l1_word(scan, flags, words);
        },
    )?;
    let mut tables = Vec::new();
    let mut known = std::mem::take(&mut scan.l2_tables);
    scan.active_l2_tables.for_each(|cluster, _| {
        if known.get(cluster) > 0 {
            tables.push(cluster);
        }
    });
    scan.l2_tables = known;
    for cluster in tables {
        let offset = cluster << scan.header.cluster_bits;
        write_table(
            scan,
            path,
            offset,
            scan.header.cluster_size(),
            |scan, words| {
                fix_l2_word(scan, flags, words);
            },
        )?;
    }
    Ok(())
}

/// Runs `fix` over the entries of a table and writes the windows that change.
fn write_table(
    scan: &mut Scan<'_>,
    path: &Path,
    offset: u64,
    length: u64,
    fix: impl Fn(&mut Scan<'_>, &mut [u8]),
) -> Result<()> {
    let entry_size = if length == scan.header.cluster_size() && offset != scan.header.l1_offset {
        scan.header.l2_entry_size() as usize
    } else {
        8
    };
    let mut done = 0;
    while done < length {
        let take = (length - done).min(WINDOW) as usize;
        let mut window = vec![0; take];
        read(scan.storage, path, &mut window, offset + done)?;
        let before = window.clone();
        for entry in window.chunks_exact_mut(entry_size) {
            fix(scan, entry);
        }
        if window != before {
            write(scan.storage, path, &window, offset + done)?;
        }
        done += take as u64;
    }
    Ok(())
}

/// Gives the flag its right value if this pass changes it that way.
fn fixed(word: u64, copied: bool, flags: Flags) -> u64 {
    match (flags, copied) {
        (Flags::Clear, false) => word & !COPIED,
        (Flags::Set, true) => word | COPIED,
        _ => word,
    }
}

fn first_word(entry: &[u8]) -> u64 {
    entry
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn put_first_word(entry: &mut [u8], word: u64) {
    if let Some(bytes) = entry.first_chunk_mut::<8>() {
        *bytes = word.to_be_bytes();
    }
}

fn fix_l1_word(scan: &mut Scan<'_>, flags: Flags, entry: &mut [u8]) {
    let word = first_word(entry);
    let table = word & OFFSET_MASK;
    if table != 0 && scan.is_aligned(table) {
        let copied = scan.stored.get(scan.cluster_of(table)) == 1;
        put_first_word(entry, fixed(word, copied, flags));
    }
}

fn fix_l2_word(scan: &mut Scan<'_>, flags: Flags, entry: &mut [u8]) {
    let word = first_word(entry);
    if word & COMPRESSED != 0 {
        put_first_word(entry, fixed(word, false, flags));
        return;
    }
    let external = scan.header.has_data_file();
    let parsed = L2Entry {
        descriptor: word,
        bitmap: 0,
    };
    let host = match parsed.kind(scan.header.is_extended_l2(), external) {
        ClusterKind::Zero { host: Some(host) } | ClusterKind::Allocated { host } => host,
        _ => return,
    };
    if scan.is_aligned(host) {
        let copied = external || scan.stored.get(scan.cluster_of(host)) == 1;
        put_first_word(entry, fixed(word, copied, flags));
    }
}
