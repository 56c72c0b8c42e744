//! Which host extents a volume owns.
//!
//! FIEMAP names them with their place on the device, preallocated (unwritten)
//! ones among them. Where a file system has no FIEMAP, `SEEK_DATA` and
//! `SEEK_HOLE` give ranges without places, and a device is one extent.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use serde::{Deserialize, Serialize};

use super::sys;
use super::verdict::Reason;

/// `FIEMAP_EXTENT_*` of linux/fiemap.h.
mod flag {
    pub(super) const LAST: u32 = 0x1;
    pub(super) const UNKNOWN: u32 = 0x2;
    pub(super) const DELALLOC: u32 = 0x4;
    pub(super) const ENCODED: u32 = 0x8;
    pub(super) const DATA_ENCRYPTED: u32 = 0x80;
    pub(super) const DATA_INLINE: u32 = 0x200;
    pub(super) const DATA_TAIL: u32 = 0x400;
    pub(super) const UNWRITTEN: u32 = 0x800;
    pub(super) const SHARED: u32 = 0x2000;
}

/// More extents than this are not kept in memory (96 MiB of them).
const MOST_EXTENTS: usize = 4 << 20;

/// A run of bytes of a file that lies in one place of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// First byte on the file system's device, where known. btrfs gives
    /// addresses of its own logical space.
    pub physical: Option<u64>,
    /// `FIEMAP_EXTENT_*` bits, without `LAST` and `MERGED`.
    pub flags: u32,
}

impl Extent {
    /// Reasons why overwriting this extent proves nothing.
    pub fn reasons(&self) -> Vec<Reason> {
        let has = |bits| self.flags & bits != 0;
        [
            (has(flag::SHARED), Reason::SharedExtents),
            (
                has(flag::ENCODED | flag::DATA_ENCRYPTED),
                Reason::EncodedExtents,
            ),
            (
                has(flag::DATA_INLINE | flag::DATA_TAIL),
                Reason::InlineExtents,
            ),
            (has(flag::UNKNOWN | flag::DELALLOC), Reason::UnknownExtents),
        ]
        .into_iter()
        .filter_map(|(found, reason)| found.then_some(reason))
        .collect()
    }

    /// Reserved but never written: it holds whatever the blocks held before.
    pub fn is_unwritten(&self) -> bool {
        self.flags & flag::UNWRITTEN != 0
    }

    /// One past the last byte in the file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// The bits' names in lower case, as filefrag(8) prints them.
    pub fn flag_names(&self) -> Vec<&'static str> {
        [
            (flag::SHARED, "shared"),
            (flag::ENCODED, "encoded"),
            (flag::DATA_ENCRYPTED, "encrypted"),
            (flag::DATA_INLINE, "inline"),
            (flag::DATA_TAIL, "tail"),
            (flag::UNKNOWN, "unknown"),
            (flag::DELALLOC, "delalloc"),
            (flag::UNWRITTEN, "unwritten"),
        ]
        .into_iter()
        .filter_map(|(bit, name)| (self.flags & bit != 0).then_some(name))
        .collect()
    }
}

/// How the extents were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The FIEMAP ioctl.
    Fiemap,
    /// `SEEK_DATA` and `SEEK_HOLE`; no places.
    SeekData,
    /// A block device: all of it.
    Device,
}

/// All extents of a file below its end, by offset, not overlapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentMap {
    /// How they were found.
    pub source: Source,
    /// The extents.
    pub extents: Vec<Extent>,
    /// Bytes reserved past the end of the file, which no write can reach
    /// without growing it.
    pub past_end: u64,
}

impl ExtentMap {
    /// Sum of the lengths.
    pub fn length(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }

    /// Whether both name the same bytes in the same places. Whether an extent
    /// counts as written does not matter, nor where runs are split.
    pub fn same_places(&self, other: &Self) -> bool {
        let places = |map: &Self| {
            let mut runs: Vec<Extent> = Vec::new();
            for extent in &map.extents {
                push_merged(
                    &mut runs,
                    Extent {
                        flags: 0,
                        ..*extent
                    },
                );
            }
            runs
        };
        places(self) == places(other)
    }
}

/// Maps the first `size` bytes of a regular file, after writing out what is
/// still delayed.
pub fn map_file(file: &File, size: u64) -> io::Result<ExtentMap> {
    file.sync_all()?;
    match map_fiemap(file, size) {
        Err(error) if unsupported(&error) => map_seek(file, size),
        result => result,
    }
}

/// The map of a block device.
pub(super) fn map_device(size: u64) -> ExtentMap {
    let extent = Extent {
        offset: 0,
        length: size,
        physical: Some(0),
        flags: 0,
    };
    ExtentMap {
        source: Source::Device,
        extents: if size > 0 { vec![extent] } else { Vec::new() },
        past_end: 0,
    }
}

fn unsupported(error: &io::Error) -> bool {
    [libc::EOPNOTSUPP, libc::ENOTTY, libc::ENOSYS]
        .map(Some)
        .contains(&error.raw_os_error())
}

fn push_merged(into: &mut Vec<Extent>, next: Extent) {
    if let Some(last) = into.last_mut() {
        let adjoins = last.end() == next.offset && last.flags == next.flags;
        let near = match (last.physical, next.physical) {
            (Some(a), Some(b)) => a.checked_add(last.length) == Some(b),
            (None, None) => true,
            _ => false,
        };
        if adjoins && near {
            last.length += next.length;
            return;
        }
    }
    into.push(next);
}

fn too_many() -> io::Error {
    io::Error::other(format!("the file has more than {MOST_EXTENTS} extents"))
}

fn map_fiemap(file: &File, size: u64) -> io::Result<ExtentMap> {
    let mut map = ExtentMap {
        source: Source::Fiemap,
        extents: Vec::new(),
        past_end: 0,
    };
    let mut start = 0;
    loop {
        let batch = sys::fiemap(file.as_fd(), start)?;
        let Some(last) = batch.last() else {
            return Ok(map);
        };
        let next = last.logical.saturating_add(last.length);
        for found in &batch {
            add(&mut map, found, size)?;
        }
        if last.flags & flag::LAST != 0 || next <= start {
            return Ok(map);
        }
        start = next;
    }
}

fn add(map: &mut ExtentMap, found: &sys::FiemapExtent, size: u64) -> io::Result<()> {
    let end = found.logical.saturating_add(found.length);
    // The rest of the last block of a file is not past its end.
    map.past_end += end.saturating_sub(found.logical.max(size.next_multiple_of(4096)));
    if found.logical >= size {
        return Ok(());
    }
    if map.extents.len() >= MOST_EXTENTS {
        return Err(too_many());
    }
    let placeless = flag::UNKNOWN | flag::DELALLOC | flag::DATA_INLINE;
    push_merged(
        &mut map.extents,
        Extent {
            offset: found.logical,
            length: end.min(size) - found.logical,
            physical: (found.flags & placeless == 0).then_some(found.physical),
            flags: found.flags & !(flag::LAST | 0x1000),
        },
    );
    Ok(())
}

fn map_seek(file: &File, size: u64) -> io::Result<ExtentMap> {
    let mut map = ExtentMap {
        source: Source::SeekData,
        extents: Vec::new(),
        past_end: 0,
    };
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // Without SEEK_DATA all of the file counts as data.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            Err(rustix::io::Errno::INVAL) => size,
            Err(error) => return Err(error.into()),
        };
        if map.extents.len() >= MOST_EXTENTS {
            return Err(too_many());
        }
        let end = hole.min(size);
        if data >= end {
            break;
        }
        let extent = Extent {
            offset: data,
            length: end - data,
            physical: None,
            flags: 0,
        };
        push_merged(&mut map.extents, extent);
        at = end;
    }
    Ok(map)
}

/// A run of bytes to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The extents as runs that begin at multiples of `alignment` and end at one,
/// or at `size`. What an odd extent shares its block with is zeroes in a hole
/// or belongs to the next extent.
pub(super) fn spans(extents: &[Extent], alignment: u64, size: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for extent in extents {
        let start = extent.offset / alignment * alignment;
        let end = extent.end().next_multiple_of(alignment).min(size);
        if start >= end {
            continue;
        }
        match spans.last_mut() {
            Some(last) if last.offset + last.length >= start => {
                last.length = last.length.max(end - last.offset);
            }
            _ => spans.push(Span {
                offset: start,
                length: end - start,
            }),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn spans_are_aligned_merged_and_clipped() {
        let extent = |offset, length| Extent {
            offset,
            length,
            physical: None,
            flags: 0,
        };
        let found = spans(
            &[extent(5000, 100), extent(6000, 4000), extent(20_000, 500)],
            4096,
            20_480,
        );
        assert_eq!(
            found,
            [
                Span {
                    offset: 4096,
                    length: 8192
                },
                Span {
                    offset: 16_384,
                    length: 4096
                }
            ]
        );
        assert_eq!(
            spans(&[extent(0, 5000)], 4096, 5000),
            [Span {
                offset: 0,
                length: 5000
            }]
        );
        assert!(spans(&[], 4096, 5000).is_empty());
    }

    #[test]
    fn holes_and_preallocation_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(&[1; 10_000], (1 << 20) + 777).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 4 << 20, 1 << 20)
            .unwrap();
        let map = map_file(&file, 10 << 20).unwrap();
        let covers = |at: u64| map.extents.iter().any(|e| e.offset <= at && at < e.end());
        assert!(covers((1 << 20) + 777) && covers((1 << 20) + 10_776));
        assert!(
            covers(4 << 20) && covers((5 << 20) - 1),
            "preallocated: {map:?}"
        );
        assert!(!covers(0) && !covers(3 << 20) && !covers(8 << 20));
        let sought = map_seek(&file, 10 << 20).unwrap();
        assert!(sought.extents.iter().all(|e| e.physical.is_none()));
        assert!(map.same_places(&map_file(&file, 10 << 20).unwrap()));
    }
}
