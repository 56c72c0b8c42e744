//! The snapshot table: reading and writing its entries.
//!
//! Specification: `docs/interop/qcow2`, "Snapshots". All fields big-endian,
//! each entry padded to a multiple of 8 bytes.

use std::borrow::Cow;
use std::path::Path;

use crate::error::{Error, Result};
use crate::qcow2::header::{Header, MAX_L1_BYTES, MAX_SNAPSHOTS, be32, be64};
use crate::storage::Storage;

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// Extra data that this engine writes: 64-bit state size, disk size, icount.
const EXTRA_WRITTEN: usize = 24;
/// The most extra data that any known writer makes or accepts.
const EXTRA_MAX: u32 = 1024;
/// The largest table that any known writer makes or accepts.
const TABLE_MAX: u64 = 16 << 20;
/// "The guest's instruction count is not known."
const NO_INSTRUCTION_COUNT: u64 = u64::MAX;

/// One internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Unique in the image; QEMU numbers them from 1.
    pub id: String,
    /// What the user called it; not necessarily unique.
    pub name: String,
    /// When it was taken, seconds since 1970-01-01 UTC.
    pub date_sec: u32,
    /// Nanoseconds of that second.
    pub date_nsec: u32,
    /// Guest run time in nanoseconds when it was taken.
    pub vm_clock_nsec: u64,
    /// Bytes of saved machine state; 0 without one.
    pub vm_state_size: u64,
    /// Virtual disk size in bytes when it was taken.
    pub disk_size: u64,
    /// Guest instructions executed, where the writer counted them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction_count: Option<u64>,
    /// Offset of its L1 table.
    #[serde(skip)]
    pub l1_offset: u64,
    /// Entries of its L1 table.
    #[serde(skip)]
    pub l1_entries: u32,
    /// Extra data past what is known here, kept as found.
    #[serde(skip)]
    pub unknown_extra: Vec<u8>,
    /// Id or name are not UTF-8 in the image and are shown approximately.
    #[serde(skip)]
    pub is_lossy: bool,
}

/// Reads the snapshot table that `header` points to, and its length in bytes.
///
/// # Errors
/// [`Error::Corrupt`] for a table that runs past its bounds, names L1 tables
/// that cannot be, or repeats an id; [`Error::Io`].
pub(crate) fn read(
    storage: &dyn Storage,
    path: &Path,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    if header.snapshot_count > MAX_SNAPSHOTS {
        return Err(Error::corrupt(
            path,
            format!(
                "{} internal snapshots, at most {MAX_SNAPSHOTS} are valid",
                header.snapshot_count
            ),
            60,
        ));
    }
    let length = storage
        .length()
        .map_err(|e| Error::io(path, "find its length", e))?;
    for _ in 0..header.snapshot_count {
        let (snapshot, bytes) = read_entry(storage, path, header, at, length)?;
        if snapshots
            .iter()
            .any(|other: &Snapshot| other.id == snapshot.id)
        {
            let what = format!("two internal snapshots have the id '{}'", snapshot.id);
            return Err(Error::corrupt(path, what, at));
        }
        snapshots.push(snapshot);
        at += bytes;
        if at - header.snapshots_offset > TABLE_MAX {
            return Err(Error::corrupt(
                path,
                "the snapshot table is larger than 16 MiB",
                at,
            ));
        }
    }
    Ok((snapshots, at - header.snapshots_offset))
}

fn read_entry(
    storage: &dyn Storage,
    path: &Path,
    header: &Header,
    at: u64,
    length: u64,
) -> Result<(Snapshot, u64)> {
    let get = |buf: &mut [u8], offset: u64| {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > length.next_multiple_of(header.cluster_size())) {
            let what = "the snapshot table runs past the end of the file";
            return Err(Error::corrupt(path, what, at));
        }
        storage
            .read_at(buf, offset)
            .map_err(|e| Error::io(path, "read its snapshot table", e))
    };
    let mut fixed = [0; FIXED];
    get(&mut fixed, at)?;
    let (id, name) = (be16(&fixed, 12), be16(&fixed, 14));
    let extra = be32(&fixed, 36);
    if extra > EXTRA_MAX {
        let what =
            format!("a snapshot has {extra} bytes of extra data, at most {EXTRA_MAX} are valid");
        return Err(Error::corrupt(path, what, at + 36));
    }
    let extra = extra as usize;
    let mut rest = vec![0; extra + id + name];
    get(&mut rest, at + FIXED as u64)?;
    let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&rest[range]);
    let (id, name) = (text(extra..extra + id), text(extra + id..extra + id + name));
    let word = |from: usize| (extra >= from + 8).then(|| be64(&rest, from));
    let snapshot = Snapshot {
        is_lossy: matches!(id, Cow::Owned(_)) || matches!(name, Cow::Owned(_)),
        id: id.into_owned(),
        name: name.into_owned(),
        date_sec: be32(&fixed, 16),
        date_nsec: be32(&fixed, 20),
        vm_clock_nsec: be64(&fixed, 24),
        vm_state_size: word(0).unwrap_or_else(|| u64::from(be32(&fixed, 32))),
        disk_size: word(8).unwrap_or(header.size),
        instruction_count: word(16).filter(|count| *count != NO_INSTRUCTION_COUNT),
        l1_offset: be64(&fixed, 0),
        l1_entries: be32(&fixed, 8),
        unknown_extra: rest[extra.min(EXTRA_WRITTEN)..extra].to_vec(),
    };
    check_l1(path, header, &snapshot, at)?;
    let bytes = (FIXED + rest.len()).next_multiple_of(8) as u64;
    Ok((snapshot, bytes))
}

fn check_l1(path: &Path, header: &Header, snapshot: &Snapshot, at: u64) -> Result<()> {
    let name = &snapshot.name;
    if u64::from(snapshot.l1_entries) * 8 > MAX_L1_BYTES {
        let what = format!("the L1 table of snapshot '{name}' is larger than 32 MiB");
        return Err(Error::corrupt(path, what, at + 8));
    }
    let aligned = snapshot.l1_offset.is_multiple_of(header.cluster_size());
    if !aligned || (snapshot.l1_offset == 0 && snapshot.l1_entries > 0) {
        let what = format!(
            "the L1 table of snapshot '{name}' at {:#x} is not aligned to a cluster",
            snapshot.l1_offset
        );
        return Err(Error::corrupt(path, what, at));
    }
    Ok(())
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// The bytes of a table with these entries.
///
/// # Errors
/// [`Error::Invalid`] where an id or a name is longer than its length field
/// can say, or is not UTF-8 in the image and could not be kept as it is.
pub(crate) fn serialize(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for snapshot in snapshots {
        put_entry(&mut out, snapshot)?;
    }
    if out.len() as u64 > TABLE_MAX {
        return Err(Error::invalid(
            "snapshot",
            "the image's snapshot table is full (16 MiB)",
        ));
    }
    Ok(out)
}

fn put_entry(out: &mut Vec<u8>, snapshot: &Snapshot) -> Result<()> {
    if snapshot.is_lossy {
        return Err(Error::invalid(
            format!("snapshot '{}'", snapshot.name),
            "its name is not UTF-8, so the snapshot table cannot be rewritten; \
             rename it with the program that made it",
        ));
    }
    let length16 = |text: &str, what: &str| {
        u16::try_from(text.len()).map_err(|_| {
            Error::invalid(
                what,
                format!("is {} bytes long, at most 65535 fit", text.len()),
            )
        })
    };
    let id = length16(&snapshot.id, "snapshot id")?;
    let name = length16(&snapshot.name, "snapshot name")?;
    let extra = (EXTRA_WRITTEN + snapshot.unknown_extra.len()) as u32;
    let state32 = u32::try_from(snapshot.vm_state_size).unwrap_or(0);
    out.extend(snapshot.l1_offset.to_be_bytes());
    out.extend(snapshot.l1_entries.to_be_bytes());
    out.extend(id.to_be_bytes());
    out.extend(name.to_be_bytes());
    out.extend(snapshot.date_sec.to_be_bytes());
    out.extend(snapshot.date_nsec.to_be_bytes());
    out.extend(snapshot.vm_clock_nsec.to_be_bytes());
    out.extend(state32.to_be_bytes());
    out.extend(extra.to_be_bytes());
    out.extend(snapshot.vm_state_size.to_be_bytes());
    out.extend(snapshot.disk_size.to_be_bytes());
    out.extend(
        snapshot
            .instruction_count
            .unwrap_or(NO_INSTRUCTION_COUNT)
            .to_be_bytes(),
    );
    out.extend(&snapshot.unknown_extra);
    out.extend(snapshot.id.as_bytes());
    out.extend(snapshot.name.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    Ok(())
}
