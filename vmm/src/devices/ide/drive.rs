//! Drives: what stands behind a position, and the registers each drive has of its own.

use super::{
    Attach,
    sense::{NO_SENSE, POWER_ON, Sense},
};
use cenote_image::Image;
use serde::{Deserialize, Serialize};
use std::any::Any;

/// Length of a disk's sector, in bytes.
pub const SECTOR: u64 = 512;
/// Length of a CD-ROM's sector, in bytes.
pub(super) const CD_SECTOR: u64 = 2048;
/// The longest sector address plus one: 48 bits.
const MOST_SECTORS: u64 = 1 << 48;

pub(super) const BUSY: u8 = 0x80;
pub(super) const READY: u8 = 0x40;
pub(super) const SEEK_COMPLETE: u8 = 0x10;
pub(super) const DATA_REQUEST: u8 = 0x08;
pub(super) const FAILED: u8 = 0x01;

/// What a drive says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Model, at most 40 characters of ASCII are shown.
    pub model: String,
    /// Serial number, at most 20 characters of ASCII are shown.
    pub serial: String,
}

/// A hard disk.
pub struct HardDisk {
    // Closed before its lock is given back.
    pub(super) image: Image,
    _lock: Box<dyn Any + Send>,
    pub(super) identity: Identity,
    pub(super) sectors: u64,
    pub(super) state: DriveState,
}

/// A CD-ROM drive.
pub struct Optical {
    pub(super) image: Option<Image>,
    pub(super) identity: Identity,
    pub(super) state: OpticalState,
}

/// Settings of a hard disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveState {
    /// Sectors per block of READ MULTIPLE, 0 for none.
    pub multiple: u8,
    /// Whether writes may be kept from the medium for a while.
    pub write_cache: bool,
    /// The transfer mode that was set last.
    pub mode: u8,
    /// Heads of the translation that the guest has set.
    pub heads: u8,
    /// Sectors per track of that translation.
    pub track: u8,
}

/// State of a CD-ROM drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpticalState {
    /// The guest has locked the tray.
    pub locked: bool,
    /// The tray is open.
    pub tray_open: bool,
    /// The transfer mode that was set last.
    pub mode: u8,
    pub(super) sense: Sense,
    /// To be told before anything else.
    pub(super) attention: Option<Sense>,
    /// The media event that GET EVENT STATUS NOTIFICATION has not told yet.
    pub event: u8,
}

impl Default for DriveState {
    fn default() -> Self {
        Self {
            multiple: 16,
            write_cache: true,
            mode: 0,
            heads: HEADS,
            track: TRACK,
        }
    }
}

impl Default for OpticalState {
    fn default() -> Self {
        Self {
            locked: false,
            tray_open: false,
            mode: 0,
            sense: NO_SENSE,
            attention: Some(POWER_ON),
            event: 0,
        }
    }
}

/// The usual translation.
pub(super) const HEADS: u8 = 16;
pub(super) const TRACK: u8 = 63;

impl HardDisk {
    /// A disk with `image` on it, which `lock` keeps others from.
    #[must_use]
    pub fn new(image: Image, identity: Identity, lock: Box<dyn Any + Send>) -> Self {
        Self {
            _lock: lock,
            sectors: (image.size() / SECTOR).min(MOST_SECTORS),
            image,
            identity,
            state: DriveState::default(),
        }
    }
}

impl Optical {
    /// A drive, empty without `image`. Its tray is closed.
    #[must_use]
    pub fn new(image: Option<Image>, identity: Identity) -> Self {
        Self {
            image,
            identity,
            state: OpticalState::default(),
        }
    }

    /// The medium, if there is one and the tray is closed.
    pub(super) fn medium(&self) -> Option<&Image> {
        self.image.as_ref().filter(|_| !self.state.tray_open)
    }

    /// Sectors of the medium; what does not fill a sector at its end is not there.
    pub(super) fn sectors(&self) -> u32 {
        let sectors = self.medium().map_or(0, |image| image.size() / CD_SECTOR);
        u32::try_from(sectors).unwrap_or(u32::MAX)
    }
}

/// What stands at a position.
pub(super) enum Kind {
    Disk(HardDisk),
    Optical(Optical),
}

/// The registers of a drive; of those that are twice as deep for 48 bits, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registers {
    pub(super) features: [u8; 2],
    pub(super) count: [u8; 2],
    pub(super) low: [u8; 2],
    pub(super) middle: [u8; 2],
    pub(super) high: [u8; 2],
    pub(super) error: u8,
    pub(super) status: u8,
}

/// A drive.
pub(super) struct Drive {
    pub(super) kind: Kind,
    pub(super) registers: Registers,
}

/// Saved state of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum SavedDrive {
    Disk {
        registers: Registers,
        settings: DriveState,
    },
    Optical {
        registers: Registers,
        settings: OpticalState,
    },
}

impl Drive {
    pub(super) fn new(attach: Attach) -> Self {
        let mut drive = Self {
            kind: match attach {
                Attach::Disk(disk) => Kind::Disk(disk),
                Attach::Optical(optical) => Kind::Optical(optical),
            },
            registers: Registers::default(),
        };
        drive.sign();
        drive
    }

    /// Back to power-on. A tray that is open stays open.
    pub(super) fn reset(&mut self) {
        match &mut self.kind {
            Kind::Disk(disk) => disk.state = DriveState::default(),
            Kind::Optical(optical) => {
                optical.state = OpticalState {
                    tray_open: optical.state.tray_open,
                    ..OpticalState::default()
                };
            }
        }
        self.sign();
    }

    /// The registers as a reset or a diagnosis leaves them, by which a driver tells the kinds apart.
    pub(super) fn sign(&mut self) {
        let (middle, high, status) = match self.kind {
            Kind::Disk(_) => (0, 0, READY | SEEK_COMPLETE),
            Kind::Optical(_) => (0x14, 0xeb, 0),
        };
        self.registers = Registers {
            count: [1, 0],
            low: [1, 0],
            middle: [middle, 0],
            high: [high, 0],
            // The drive has passed its diagnosis.
            error: 1,
            status,
            ..Registers::default()
        };
    }

    pub(super) fn save(&self) -> SavedDrive {
        let registers = self.registers.clone();
        match &self.kind {
            Kind::Disk(disk) => SavedDrive::Disk {
                registers,
                settings: disk.state.clone(),
            },
            Kind::Optical(optical) => SavedDrive::Optical {
                registers,
                settings: optical.state.clone(),
            },
        }
    }

    pub(super) fn restore(&mut self, saved: SavedDrive) -> Result<(), String> {
        match (&mut self.kind, saved) {
            (
                Kind::Disk(disk),
                SavedDrive::Disk {
                    registers,
                    settings,
                },
            ) => {
                if settings.multiple > 16 || settings.heads == 0 || settings.track == 0 {
                    return Err("a disk's translation or block size".to_owned());
                }
                disk.state = settings;
                self.registers = registers;
            }
            (
                Kind::Optical(optical),
                SavedDrive::Optical {
                    registers,
                    settings,
                },
            ) => {
                optical.state = settings;
                self.registers = registers;
            }
            _ => return Err("a disk where a CD-ROM drive is, or the other way round".to_owned()),
        }
        Ok(())
    }
}
