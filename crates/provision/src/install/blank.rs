//! Whether a disk is blank.
//!
//! Only a disk that is blank for certain may stand before the install media in the boot order:
//! firmware falls through it once, and boots it ever after.

use std::io;

use crate::iso::ReadAt;

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contents {
    /// Nothing that a boot loader, a partition table or a file system begins with.
    Blank,
    /// Code or a table that firmware looks for.
    Bootable(&'static str),
    /// Data that firmware does not look for; an install would destroy them.
    Data(&'static str),
}

impl Contents {
    /// Whether nothing would be lost.
    pub fn is_blank(self) -> bool {
        self == Self::Blank
    }
}

/// Marks of what is no boot sector: offset, bytes, name.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (1080, b"\x53\xef", "an ext file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID"),
    (0, b"QFI\xfb", "a qcow2 image in a raw disk"),
];

/// Looks at the first 68 KiB and the last sector of a disk, as the guest would see it: what
/// an image has not allocated reads as zeroes.
///
/// # Errors
/// What reading says.
pub fn contents(disk: &impl ReadAt) -> io::Result<Contents> {
    const HEAD: usize = 68 << 10;
    let size = disk.size()?;
    let mut head = vec![0; HEAD.min(usize::try_from(size).unwrap_or(HEAD))];
    disk.read_exact_at(&mut head, 0)?;
    let at = |offset: usize, mark: &[u8]| head.get(offset..offset + mark.len()) == Some(mark);
    if at(512, b"EFI PART") || at(4096, b"EFI PART") {
        return Ok(Contents::Bootable("a GUID partition table"));
    }
    if at(510, b"\x55\xaa") {
        return Ok(Contents::Bootable("a boot sector"));
    }
    if let Some((_, _, name)) = MARKS.iter().find(|(offset, mark, _)| at(*offset, mark)) {
        return Ok(Contents::Data(name));
    }
    let mut last = [0; 512];
    if size >= 1024 && size.is_multiple_of(512) {
        disk.read_exact_at(&mut last, size - 512)?;
    }
    if last.starts_with(b"EFI PART") {
        return Ok(Contents::Data("the copy of a GUID partition table"));
    }
    Ok(Contents::Blank)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_disk_without_marks_is_blank() {
        let blank = vec![0; 1 << 20];
        assert_eq!(contents(&blank).unwrap(), Contents::Blank);
        assert_eq!(contents(&Vec::new()).unwrap(), Contents::Blank);
        for (offset, mark, name) in MARKS {
            let mut disk = blank.clone();
            disk[*offset..*offset + mark.len()].copy_from_slice(mark);
            assert_eq!(contents(&disk).unwrap(), Contents::Data(name));
        }
        let mut disk = blank.clone();
        disk[510..512].copy_from_slice(b"\x55\xaa");
        assert!(matches!(contents(&disk).unwrap(), Contents::Bootable(_)));
        let mut disk = blank.clone();
        disk[512..520].copy_from_slice(b"EFI PART");
        assert!(matches!(contents(&disk).unwrap(), Contents::Bootable(_)));
        let mut disk = blank;
        let at = disk.len() - 512;
        disk[at..at + 8].copy_from_slice(b"EFI PART");
        assert!(matches!(contents(&disk).unwrap(), Contents::Data(_)));
    }
}
