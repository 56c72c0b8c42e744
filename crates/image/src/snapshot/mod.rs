//! Internal snapshots: frozen mappings of the disk kept inside a qcow2 image.
//!
//! A snapshot is a copy of the L1 table; the L2 tables and clusters it leads
//! to are shared by reference count. Every change runs in one
//! `Transaction`, and in version 3
//! images under the dirty bit: the reference counts and the COPIED flags of
//! many clusters cannot change in one write, so a crash in between leaves an
//! image that says so and that the next writer repairs on opening. The step
//! that counts, which table the header names, is one sector write. In version
//! 2 images, which have no dirty bit, references are added before anything
//! names them and taken back after nothing does, so a crash leaves lost
//! clusters at worst.
//!
//! Specification: `docs/interop/qcow2`, "Snapshots".

mod references;
pub(crate) mod table;

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::qcow2::Qcow2;
use crate::qcow2::header::{Header, incompatible};
use crate::qcow2::transaction::Transaction;
use references::{add_references, copied_cleared, drop_references, settle_copied};
pub use table::Snapshot;

/// Reads the snapshot table of an open image.
pub(crate) fn list(image: &Qcow2) -> Result<Vec<Snapshot>> {
    read(image).map(|(snapshots, _)| snapshots)
}

fn read(image: &Qcow2) -> Result<(Vec<Snapshot>, u64)> {
    let header = image.header.lock().clone();
    table::read(image.storage.as_ref(), &image.path, &header)
}

/// Finds a snapshot by name, else by id, as QEMU's tools do.
fn position(image: &Qcow2, snapshots: &[Snapshot], wanted: &str) -> Result<usize> {
    let by = |matches: fn(&Snapshot, &str) -> bool| -> Vec<usize> {
        let found = snapshots.iter().enumerate();
        found
            .filter(|(_, s)| matches(s, wanted))
            .map(|(at, _)| at)
            .collect()
    };
    let named = by(|snapshot, name| snapshot.name == name);
    match named.as_slice() {
        [at] => return Ok(*at),
        [] => {}
        several => {
            return Err(Error::invalid(
                format!("{}: snapshot '{wanted}'", image.path.display()),
                format!(
                    "{} snapshots have this name; give the id instead",
                    several.len()
                ),
            ));
        }
    }
    by(|snapshot, id| snapshot.id == id)
        .first()
        .copied()
        .ok_or_else(|| {
            let known: Vec<&str> = snapshots.iter().map(|s| s.name.as_str()).collect();
            Error::invalid(
                format!("{}: snapshot '{wanted}'", image.path.display()),
                match known.as_slice() {
                    [] => "not found; the image has no internal snapshots".to_owned(),
                    known => format!("not found; the image has {}", known.join(", ")),
                },
            )
        })
}

/// Takes a snapshot of the disk as it is, called `name`.
pub(crate) fn create(image: &Qcow2, name: &str) -> Result<Snapshot> {
    check_name(name)?;
    refuse_data_file(image)?;
    let tx = image.transaction()?;
    let (mut snapshots, length) = read(image)?;
    let old_table = Table::of(&tx, tx.header().snapshots_offset, length);
    if snapshots.iter().any(|snapshot| snapshot.name == name) {
        return Err(Error::invalid(
            format!("{}: snapshot '{name}'", image.path.display()),
            "exists already; choose another name or delete it first",
        ));
    }
    let l1 = tx.l1();
    let new = Snapshot {
        id: next_id(&snapshots),
        l1_entries: l1.len() as u32,
        ..now(name, image.size())
    };
    // All that may lack space comes first, while giving up costs nothing.
    let l1_place = allocate_table(&tx, l1.len() as u64 * 8)?;
    snapshots.push(Snapshot {
        l1_offset: l1_place.offset,
        ..new
    });
    let bytes = table::serialize(&snapshots);
    let table_place = bytes
        .as_ref()
        .map_err(|_| ())
        .and_then(|bytes| allocate_table(&tx, bytes.len() as u64).map_err(|_| ()));
    let (Ok(bytes), Ok(table_place)) = (&bytes, table_place) else {
        l1_place.release(&tx)?;
        return Err(bytes
            .err()
            .unwrap_or_else(|| no_space(image, "take a snapshot")));
    };
    if let Err(error) = references::check_room(&tx, &l1) {
        l1_place.release(&tx)?;
        table_place.release(&tx)?;
        return Err(error);
    }
    let created = snapshots[snapshots.len() - 1].clone();
    in_doubt(image, || {
        set_dirty(&tx, true)?;
        add_references(&tx, &l1)?;
        tx.write_bytes(bytes, table_place.offset)?;
        let shared = copied_cleared(&l1);
        tx.write_table(l1_place.offset, &shared)?;
        tx.flush_refcounts()?;
        // The refcounts are on disk, now the flags that follow from them.
        settle_copied(&tx, l1)?;
        switch_table(&tx, table_place.offset, snapshots.len(), false)?;
        old_table.release(&tx)?;
        tx.flush_refcounts()
    })?;
    Ok(created)
}

/// Makes the disk what the snapshot `wanted` (a name or an id) holds. What the
/// disk held before is gone unless another snapshot holds it.
pub(crate) fn apply(image: &Qcow2, wanted: &str) -> Result<()> {
    refuse_data_file(image)?;
    let tx = image.transaction()?;
    let snapshots = list(image)?;
    let snapshot = &snapshots[position(image, &snapshots, wanted)?];
    let header = tx.header();
    if snapshot.disk_size != header.size && header.extensions.bitmaps.is_some() {
        return Err(Error::unsupported(
            &image.path,
            "reverting to a snapshot of another size in an image with bitmaps",
        ));
    }
    let old_l1 = tx.l1();
    let frozen = tx.read_table(snapshot.l1_offset, snapshot.l1_entries as usize)?;
    let place = allocate_table(&tx, frozen.len() as u64 * 8)?;
    if let Err(error) = references::check_room(&tx, &frozen) {
        place.release(&tx)?;
        return Err(error);
    }
    in_doubt(image, || {
        set_dirty(&tx, true)?;
        add_references(&tx, &frozen)?;
        let new_l1 = copied_cleared(&frozen);
        tx.write_table(place.offset, &new_l1)?;
        tx.flush_refcounts()?;
        let (offset, entries) = (place.offset, new_l1.len() as u32);
        let size = snapshot.disk_size;
        tx.update_header(|header| {
            header.l1_offset = offset;
            header.l1_entries = entries;
            header.size = size;
        })?;
        tx.set_l1(offset, new_l1.clone());
        tx.set_size(size);
        drop_references(&tx, &old_l1)?;
        Table::of(&tx, header.l1_offset, old_l1.len() as u64 * 8).release(&tx)?;
        settle_copied(&tx, new_l1)?;
        set_dirty(&tx, false)
    })
}

/// Deletes the snapshot `wanted` (a name or an id) and frees what only it
/// held. The disk and the other snapshots keep their content.
pub(crate) fn delete(image: &Qcow2, wanted: &str) -> Result<()> {
    refuse_data_file(image)?;
    let tx = image.transaction()?;
    let (mut snapshots, length) = read(image)?;
    let old_table = Table::of(&tx, tx.header().snapshots_offset, length);
    let gone = snapshots.remove(position(image, &snapshots, wanted)?);
    let frozen = tx.read_table(gone.l1_offset, gone.l1_entries as usize)?;
    let bytes = table::serialize(&snapshots)?;
    let place = match bytes.len() {
        0 => Table::default(),
        length => allocate_table(&tx, length as u64)?,
    };
    in_doubt(image, || {
        set_dirty(&tx, true)?;
        tx.write_bytes(&bytes, place.offset)?;
        tx.flush_refcounts()?;
        switch_table(&tx, place.offset, snapshots.len(), true)?;
        drop_references(&tx, &frozen)?;
        Table::of(&tx, gone.l1_offset, frozen.len() as u64 * 8).release(&tx)?;
        old_table.release(&tx)?;
        settle_copied(&tx, tx.l1())?;
        set_dirty(&tx, false)
    })
}

/// Runs the part of a change that cannot be taken back. Where it fails half
/// way, the image takes no more writes through this handle: the dirty bit
/// stays set, and opening it again repairs it.
fn in_doubt(image: &Qcow2, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let outcome = change();
    if outcome.is_err() {
        image.stop_writing();
    }
    outcome
}

fn set_dirty(tx: &Transaction<'_>, dirty: bool) -> Result<()> {
    if tx.geometry().version < 3 {
        return tx.flush_refcounts();
    }
    tx.flush_refcounts()?;
    tx.update_header(|header| mark(header, dirty))
}

fn mark(header: &mut Header, dirty: bool) {
    if dirty {
        header.incompatible |= incompatible::DIRTY;
    } else {
        header.incompatible &= !incompatible::DIRTY;
    }
}

/// Points the header to another snapshot table and says whether the image is
/// still dirty, in one write.
fn switch_table(tx: &Transaction<'_>, offset: u64, count: usize, dirty: bool) -> Result<()> {
    tx.flush_refcounts()?;
    tx.update_header(|header| {
        header.snapshots_offset = offset;
        header.snapshot_count = count as u32;
        if header.version >= 3 {
            mark(header, dirty);
        }
    })
}

/// Contiguous host clusters of a table.
#[derive(Debug, Default, Clone, Copy)]
struct Table {
    offset: u64,
    clusters: u64,
}

impl Table {
    fn of(tx: &Transaction<'_>, offset: u64, bytes: u64) -> Self {
        Table {
            offset,
            clusters: bytes.div_ceil(tx.geometry().cluster_size),
        }
    }

    fn release(&self, tx: &Transaction<'_>) -> Result<()> {
        let first = tx.geometry().cluster(self.offset);
        (first..first + self.clusters).try_for_each(|cluster| tx.release(cluster).map(drop))
    }
}

fn allocate_table(tx: &Transaction<'_>, bytes: u64) -> Result<Table> {
    let clusters = bytes.div_ceil(tx.geometry().cluster_size);
    let offset = match clusters {
        0 => 0,
        count => tx.allocate(count)?,
    };
    Ok(Table { offset, clusters })
}

fn no_space(image: &Qcow2, action: &str) -> Error {
    Error::NoSpace {
        path: image.path.clone(),
        action: action.to_owned(),
    }
}

/// Snapshots would keep the mapping but not the data, which is overwritten in
/// the external file.
fn refuse_data_file(image: &Qcow2) -> Result<()> {
    if image.geo.external_data {
        return Err(Error::unsupported(
            &image.path,
            "an internal snapshot of an image with an external data file",
        ));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > 255 {
        "is longer than 255 bytes"
    } else if name.chars().any(|c| c.is_control() || c == '/') {
        "holds a control character or a slash"
    } else {
        return Ok(());
    };
    Err(Error::invalid("snapshot name", reason))
}

fn next_id(snapshots: &[Snapshot]) -> String {
    let highest = snapshots
        .iter()
        .filter_map(|s| s.id.parse::<u64>().ok())
        .max();
    highest.unwrap_or(0).saturating_add(1).to_string()
}

fn now(name: &str, disk_size: u64) -> Snapshot {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Snapshot {
        id: String::new(),
        name: name.to_owned(),
        date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nsec: now.subsec_nanos(),
        vm_clock_nsec: 0,
        vm_state_size: 0,
        disk_size,
        instruction_count: None,
        l1_offset: 0,
        l1_entries: 0,
        unknown_extra: Vec::new(),
        is_lossy: false,
    }
}

impl Image {
    /// The internal snapshots, in the order of their table; none in a raw
    /// image.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a snapshot table that cannot be.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.qcow2().map_or(Ok(Vec::new()), list)
    }

    /// Takes an internal snapshot of the disk as it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is taken or not valid;
    /// [`Error::Unsupported`] for raw images, external data files, and
    /// reference counts too narrow for one more snapshot.
    pub fn create_snapshot(&self, name: &str) -> Result<Snapshot> {
        create(self.qcow2_for_snapshots()?, name)
    }

    /// Makes the disk, its size too, what a snapshot holds (by name, else by
    /// id). What the disk held before is gone unless another snapshot holds
    /// it.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such snapshot, or several of the
    /// name; [`Error::NoSpace`].
    pub fn apply_snapshot(&self, wanted: &str) -> Result<()> {
        apply(self.qcow2_for_snapshots()?, wanted)
    }

    /// Deletes a snapshot (by name, else by id). The disk and the other
    /// snapshots keep their content.
    ///
    /// # Errors
    /// As [`Image::apply_snapshot`].
    pub fn delete_snapshot(&self, wanted: &str) -> Result<()> {
        delete(self.qcow2_for_snapshots()?, wanted)
    }

    fn qcow2_for_snapshots(&self) -> Result<&Qcow2> {
        self.qcow2().ok_or_else(|| {
            Error::unsupported(
                self.path(),
                "an internal snapshot of a raw image (convert it to qcow2)",
            )
        })
    }
}
