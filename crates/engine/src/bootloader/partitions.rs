//! The places on a disk where a file system may be: its partitions, or all of it.

use super::Disk;

const SECTOR: u64 = 512;
/// The partitions that are looked at, of either kind.
const MOST: usize = 128;
/// A chain of logical partitions is followed this far.
const MOST_LOGICAL: usize = 60;
/// Types of a partition that holds others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type of the one partition of a disk that has a GPT.
const PROTECTIVE: u8 = 0xee;

/// A range of the disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `partition 1`, or `the whole disk`.
    pub(super) name: String,
    pub(super) start: u64,
    pub(super) length: u64,
}

/// An entry of an MBR's table.
#[derive(Debug, Clone, Copy)]
struct Slot {
    kind: u8,
    start: u64,
    length: u64,
}

/// The places in the order of their numbers.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn find(disk: &impl Disk) -> Result<Vec<Place>, String> {
    let size = disk.size();
    let whole = Place {
        name: "the whole disk".to_owned(),
        start: 0,
        length: size,
    };
    let Some(slots) = table(disk, 0)? else {
        return Ok(vec![whole]);
    };
    let found = if slots.iter().any(|slot| slot.kind == PROTECTIVE) {
        gpt(disk)?
    } else {
        mbr(disk, &slots)?
    };
    let inside = found
        .into_iter()
        .filter(|place| {
            let end = place.start.checked_add(place.length);
            place.length > 0 && end.is_some_and(|end| end <= size)
        })
        .take(MOST);
    let places: Vec<_> = inside.collect();
    // A boot sector without partitions, as before a file system on the bare disk.
    Ok(if places.is_empty() {
        vec![whole]
    } else {
        places
    })
}

/// The four entries of the table in the sector at `at`; nothing if that is no boot record.
fn table(disk: &impl Disk, at: u64) -> Result<Option<[Slot; 4]>, String> {
    let mut sector = [0; SECTOR as usize];
    if at.checked_add(SECTOR).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    disk.read(&mut sector, at)?;
    if sector[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    Ok(Some([0, 1, 2, 3].map(|number| {
        let entry = &sector[446 + 16 * number..][..16];
        let long = |at: usize| {
            let bytes = [entry[at], entry[at + 1], entry[at + 2], entry[at + 3]];
            u64::from(u32::from_le_bytes(bytes)) * SECTOR
        };
        Slot {
            kind: entry[4],
            start: long(8),
            length: long(12),
        }
    })))
}

fn mbr(disk: &impl Disk, slots: &[Slot; 4]) -> Result<Vec<Place>, String> {
    let mut places = Vec::new();
    let mut add = |number: usize, start: u64, length: u64| {
        places.push(Place {
            name: format!("partition {number}"),
            start,
            length,
        });
    };
    for (slot, number) in slots.iter().zip(1..) {
        if slot.kind != 0 && !EXTENDED.contains(&slot.kind) {
            add(number, slot.start, slot.length);
        }
    }
    let Some(extended) = slots.iter().find(|slot| EXTENDED.contains(&slot.kind)) else {
        return Ok(places);
    };
    // Each logical partition has a table with itself, from there, and the next, from the first.
    let mut at = extended.start;
    for number in 5..5 + MOST_LOGICAL {
        let Some([logical, next, ..]) = table(disk, at)? else {
            break;
        };
        if logical.kind != 0 {
            add(number, at.saturating_add(logical.start), logical.length);
        }
        if !EXTENDED.contains(&next.kind) || next.start == 0 {
            break;
        }
        at = extended.start.saturating_add(next.start);
    }
    Ok(places)
}

/// UEFI specification, chapter 5.3.
fn gpt(disk: &impl Disk) -> Result<Vec<Place>, String> {
    let mut header = [0; SECTOR as usize];
    disk.read(&mut header, SECTOR)?;
    let long = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |b| u64::from_le_bytes(*b))
    };
    let word = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |b| u32::from_le_bytes(*b))
    };
    let (count, size) = (word(80) as usize, u64::from(word(84)));
    if !header.starts_with(b"EFI PART") || !(128..=4096).contains(&size) {
        return Err("its GPT is damaged".to_owned());
    }
    let mut places = Vec::new();
    for index in 0..count.min(MOST) {
        let at = long(72)
            .checked_mul(SECTOR)
            .and_then(|table| table.checked_add(index as u64 * size));
        let mut entry = [0; 48];
        match at {
            Some(at) if at.checked_add(48).is_some_and(|end| end <= disk.size()) => {
                disk.read(&mut entry, at)?;
            }
            _ => break,
        }
        let sector = |at: usize| {
            entry[at..]
                .first_chunk()
                .map_or(0, |b| u64::from_le_bytes(*b))
        };
        let (first, last) = (sector(32), sector(40));
        let used = entry[..16] != [0; 16];
        if let (true, Some(length)) = (used, last.checked_sub(first)) {
            places.push(Place {
                name: format!("partition {}", index + 1),
                start: first.saturating_mul(SECTOR),
                length: length.saturating_add(1).saturating_mul(SECTOR),
            });
        }
    }
    Ok(places)
}
