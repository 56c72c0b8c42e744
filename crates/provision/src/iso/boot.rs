//! El Torito boot catalogue (El Torito 1.0, section 2; UEFI 2.10, 13.3.2.1).

use super::{Error, ReadAt, SECTOR, le16, le32};

/// Most entries that are listed.
const MAX_ENTRIES: usize = 63;

/// What an entry's code runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// BIOS.
    X86,
    /// Open Firmware.
    PowerPc,
    /// Old Macs.
    Mac,
    /// UEFI.
    Efi,
    /// Another number.
    Other(u8),
}

impl From<u8> for Platform {
    fn from(id: u8) -> Self {
        match id {
            0 => Self::X86,
            1 => Self::PowerPc,
            2 => Self::Mac,
            0xef => Self::Efi,
            other => Self::Other(other),
        }
    }
}

/// What the firmware makes of an entry's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BootMedia {
    /// Code that is loaded as it is.
    NoEmulation,
    /// A floppy disk of 1.2, 1.44 or 2.88 MB.
    Floppy,
    /// A hard disk.
    HardDisk,
    /// A number that the specification does not give.
    Other(u8),
}

/// One entry of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// What it runs on.
    pub platform: Platform,
    /// Whether firmware may boot it.
    pub bootable: bool,
    /// How it is presented.
    pub media: BootMedia,
    /// Real-mode segment it is loaded at; 0 means 0x7c0.
    pub segment: u16,
    /// Number of 512-byte sectors that are loaded.
    pub sectors: u16,
    /// First byte of its code in the image.
    pub offset: u64,
}

/// Place of the catalogue, if this boot record descriptor is El Torito's.
pub(super) fn catalogue(descriptor: &[u8; SECTOR as usize]) -> Option<u64> {
    let system = descriptor.get(7..39)?;
    system
        .starts_with(b"EL TORITO SPECIFICATION")
        .then(|| u64::from(le32(descriptor, 0x47)) * SECTOR)
}

/// Reads the catalogue at `offset`: its first sector, which has room for 63 entries.
pub(super) fn read(source: &impl ReadAt, offset: u64) -> Result<Vec<BootEntry>, Error> {
    let mut sector = [0; SECTOR as usize];
    source
        .read_exact_at(&mut sector, offset)
        .map_err(|source| Error::Io { offset, source })?;
    let validation = &sector[..32];
    let sum = (0..32)
        .step_by(2)
        .fold(0u16, |sum, at| sum.wrapping_add(le16(validation, at)));
    if validation[0] != 1 || le16(validation, 30) != 0xaa55 || sum != 0 {
        return Err(Error::Damaged {
            what: "a boot catalogue whose validation entry is wrong",
            offset,
        });
    }
    let mut platform = Platform::from(validation[1]);
    let mut entries = vec![entry(&sector[32..64], platform)];
    let mut left = 0u16;
    let mut last = false;
    for bytes in sector[64..].chunks_exact(32).take(MAX_ENTRIES) {
        match bytes[0] {
            // An extension of the entry before says nothing that is shown here.
            0x44 => {}
            0x88 | 0x00 if left > 0 => {
                left -= 1;
                entries.push(entry(bytes, platform));
            }
            header @ (0x90 | 0x91) if !last => {
                platform = Platform::from(bytes[1]);
                left = le16(bytes, 2);
                last = header == 0x91;
            }
            _ => break,
        }
    }
    Ok(entries)
}

fn entry(bytes: &[u8], platform: Platform) -> BootEntry {
    BootEntry {
        platform,
        bootable: bytes[0] == 0x88,
        media: match bytes[1] & 0x0f {
            0 => BootMedia::NoEmulation,
            1..=3 => BootMedia::Floppy,
            4 => BootMedia::HardDisk,
            other => BootMedia::Other(other),
        },
        segment: le16(bytes, 2),
        sectors: le16(bytes, 6),
        offset: u64::from(le32(bytes, 8)) * SECTOR,
    }
}
