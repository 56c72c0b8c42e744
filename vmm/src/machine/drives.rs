//! IDE drives and the display in the machine description.

use super::{DescriptionError, FileSource, LayerDescription};
use crate::{
    devices::ide::{Attach, DriveIdentity, HardDisk, Optical, Position},
    disk::{Disk, DiskError, DiskOptions},
    firmware,
    pci::OptionRomError,
};
use cenote_image::{
    Format, Image, OpenOptions,
    storage::{CacheMode, FileStorage},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs::File, io, sync::Arc};

/// Unit of a disc's size, in bytes.
const DISC_SECTOR: u64 = 2048;
/// The longest serial number and model, as IDENTIFY has room for them.
const LONGEST_SERIAL: usize = 20;
const LONGEST_MODEL: usize = 40;

/// The drives by their positions.
pub type DriveDescriptions = BTreeMap<Position, DriveDescription>;

/// An IDE drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DriveDescription {
    /// A hard disk.
    Disk(IdeDiskDescription),
    /// A CD-ROM drive.
    Cdrom(CdromDescription),
}

/// An IDE hard disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdeDiskDescription {
    /// The image.
    pub file: FileSource,
    /// Its format, which is never guessed.
    pub format: Format,
    /// The images that it stands on, the nearest first, each with its format.
    #[serde(default)]
    pub backing: Vec<LayerDescription>,
    /// The external data file of a qcow2 image that has one.
    #[serde(default)]
    pub data_file: Option<FileSource>,
    /// Whether the guest cannot write; it is told by errors, as ATA has no read-only disks.
    #[serde(default)]
    pub read_only: bool,
    /// How the host caches.
    #[serde(default)]
    pub cache: CacheMode,
    /// Serial number, at most 20 printable ASCII characters; made from the position unless given.
    #[serde(default)]
    pub serial: Option<String>,
    /// Model, at most 40 printable ASCII characters.
    #[serde(default)]
    pub model: Option<String>,
    /// Its turn when firmware looks for something to boot; those without come last.
    #[serde(default)]
    pub boot_index: Option<u32>,
}

/// An IDE CD-ROM drive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdromDescription {
    /// The medium, an ISO image or a device of the host; the drive is empty without.
    #[serde(default)]
    pub file: Option<FileSource>,
    /// As for a disk.
    #[serde(default)]
    pub boot_index: Option<u32>,
}

/// The display.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisplayDescription {
    /// Its option ROM; with firmware, SeaVGABIOS where distributions put it unless given.
    #[serde(default)]
    pub rom: Option<FileSource>,
}

/// Why a drive or the display cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// A file cannot be opened.
    #[error(transparent)]
    Open(#[from] DescriptionError),
    /// A value is out of its range.
    #[error("IDE drive {position:?}: {what}")]
    Value {
        /// The drive.
        position: Position,
        /// Which, and what would do.
        what: &'static str,
    },
    /// A disc has no whole number of sectors.
    #[error(
        "the disc has {0} bytes, which is no multiple of {DISC_SECTOR}: it is cut off, or no ISO image"
    )]
    Disc(u64),
    /// The host's file cannot be used.
    #[error("the image of IDE drive {position:?} cannot be used")]
    File {
        /// The drive.
        position: Position,
        /// What the host said.
        source: io::Error,
    },
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] cenote_image::Error),
    /// The chain cannot be used.
    #[error(transparent)]
    Chain(#[from] DiskError),
    /// The option ROM cannot be used.
    #[error(transparent)]
    OptionRom(#[from] OptionRomError),
}

impl DisplayDescription {
    /// The option ROM: the one that is given, or with firmware the one that is installed.
    ///
    /// # Errors
    /// [`DescriptionError::NoDisplayRom`].
    pub fn source(&self, with_firmware: bool) -> Result<Option<FileSource>, DescriptionError> {
        if self.rom.is_some() || !with_firmware {
            return Ok(self.rom.clone());
        }
        let path = firmware::locate().display;
        let path = path.ok_or(DescriptionError::NoDisplayRom)?;
        Ok(Some(FileSource::Path(path)))
    }
}

impl IdeDiskDescription {
    /// All of its images, the one that is written first.
    fn layers(&self) -> impl Iterator<Item = LayerDescription> {
        let top = LayerDescription {
            file: self.file.clone(),
            format: self.format,
            data_file: self.data_file.clone(),
        };
        std::iter::once(top).chain(self.backing.iter().cloned())
    }

    /// Opens what is named by paths, and names the descriptors instead.
    fn keep_open(&mut self) -> Result<(), DescriptionError> {
        let mut layers: Vec<_> = self.layers().collect();
        for (depth, layer) in layers.iter_mut().enumerate() {
            layer.keep_open(depth == 0 && !self.read_only)?;
        }
        let mut layers = layers.into_iter();
        if let Some(top) = layers.next() {
            (self.file, self.data_file) = (top.file, top.data_file);
        }
        self.backing = layers.collect();
        Ok(())
    }

    /// Opens the chain.
    fn open_chain(&self, read_only: bool, lock: bool) -> Result<Disk, DriveError> {
        let layers = self
            .layers()
            .enumerate()
            .map(|(depth, layer)| layer.open(depth == 0 && !self.read_only));
        let options = DiskOptions {
            read_only,
            cache: self.cache,
            flushed_by_user: false,
            lock,
        };
        Ok(Disk::open(layers.collect::<Result<_, _>>()?, options)?)
    }
}

impl DriveDescription {
    /// Opens what is named by a path, and names the descriptor instead.
    pub(super) fn keep_open(&mut self) -> Result<(), DescriptionError> {
        match self {
            Self::Disk(disk) => disk.keep_open(),
            Self::Cdrom(cdrom) => match &mut cdrom.file {
                Some(file) => file.keep_open("disc"),
                None => Ok(()),
            },
        }
    }

    /// The drive's turn at booting.
    #[must_use]
    pub fn boot_index(&self) -> Option<u32> {
        match self {
            Self::Disk(disk) => disk.boot_index,
            Self::Cdrom(cdrom) => cdrom.boot_index,
        }
    }

    /// Opens the images for reading, without locks, and closes them again: whether they could be
    /// used.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn try_open(&self, position: Position) -> Result<(), DriveError> {
        match self {
            Self::Disk(disk) => disk.open_chain(true, false).map(drop),
            Self::Cdrom(cdrom) => match &cdrom.file {
                Some(file) => open_disc(file.open("disc")?, position).map(drop),
                None => Ok(()),
            },
        }
    }

    /// Checks what the shape does not say.
    ///
    /// # Errors
    /// [`DriveError::Value`].
    pub fn check(&self, position: Position) -> Result<(), DriveError> {
        let Self::Disk(disk) = self else {
            return Ok(());
        };
        let fits = |text: &Option<String>, most: usize| {
            text.as_ref().is_none_or(|text| {
                text.len() <= most && text.chars().all(|c| c.is_ascii_graphic() || c == ' ')
            })
        };
        let wrong = |what| Err(DriveError::Value { position, what });
        if !fits(&disk.serial, LONGEST_SERIAL) {
            return wrong("give a serial number of at most 20 printable ASCII characters");
        }
        if !fits(&disk.model, LONGEST_MODEL) {
            return wrong("give a model of at most 40 printable ASCII characters");
        }
        Ok(())
    }

    /// Opens the images and makes the drive.
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn open(&self, position: Position) -> Result<Attach, DriveError> {
        let (channel, drive) = position.numbers();
        let serial = format!("CN{:05}", channel * 2 + drive);
        Ok(match self {
            Self::Disk(disk) => {
                let identity = DriveIdentity {
                    model: disk.model.clone().unwrap_or("Cenote disk".to_owned()),
                    serial: disk.serial.clone().unwrap_or(serial),
                };
                let disk = disk.open_chain(disk.read_only, true)?;
                Attach::Disk(HardDisk::new(
                    disk.image().clone(),
                    identity,
                    Box::new(disk),
                ))
            }
            Self::Cdrom(cdrom) => {
                let identity = DriveIdentity {
                    model: "Cenote CD-ROM".to_owned(),
                    serial,
                };
                let medium = cdrom
                    .file
                    .as_ref()
                    .map(|file| open_disc(file.open("disc")?, position))
                    .transpose()?;
                Attach::Optical(Optical::new(medium, identity))
            }
        })
    }
}

/// A disc in an open file. Discs are not locked: they are never written here, and often lie where
/// nobody may lock.
///
/// # Errors
/// [`DriveError`].
pub(super) fn open_disc(file: File, position: Position) -> Result<Image, DriveError> {
    let storage = FileStorage::from_fd(file.into(), false, CacheMode::Writeback)
        .map_err(|source| DriveError::File { position, source })?;
    let image = OpenOptions::new(Format::Raw)
        .open_storage(Arc::new(storage), &format!("disc in {position:?}"))?;
    let size = image.size();
    if size == 0 || !size.is_multiple_of(DISC_SECTOR) {
        return Err(DriveError::Disc(size));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn drive(text: &str) -> Result<DriveDescription, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn drives_are_described_by_their_positions() {
        let text = r#"{
            "primary-master": {"disk": {"file": {"path": "/d"}, "format": "qcow2", "boot_index": 2}},
            "secondary-slave": {"cdrom": {}}
        }"#;
        let drives: DriveDescriptions = serde_json::from_str(text).unwrap();
        assert_eq!(drives[&Position::PrimaryMaster].boot_index(), Some(2));
        assert_eq!(drives[&Position::SecondarySlave].boot_index(), None);
        assert!(serde_json::from_str::<DriveDescriptions>(r#"{"third": {"cdrom": {}}}"#).is_err());
        assert!(
            drive(r#"{"disk": {"file": {"path": "/d"}}}"#).is_err(),
            "a format is given"
        );
        assert!(drive(r#"{"cdrom": {"colour": 1}}"#).is_err());
    }

    #[test]
    fn impossible_names_and_discs_have_their_own_messages() {
        let position = Position::PrimaryMaster;
        for (field, length, message) in [("serial", 21, "serial number"), ("model", 41, "model")] {
            let text = "x".repeat(length);
            let disk = format!(
                r#"{{"disk": {{"file": {{"path": "/d"}}, "format": "raw", "{field}": "{text}"}}}}"#
            );
            let error = drive(&disk).unwrap().check(position).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
        for size in [0usize, 2047, 5000] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![0; size]).unwrap();
            let error = open_disc(file, position).unwrap_err();
            assert!(matches!(error, DriveError::Disc(s) if s == size as u64));
        }
    }
}
