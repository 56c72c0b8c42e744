//! Disks in the machine description.

use super::{DescriptionError, FileSource};
use crate::{
    disk::{Disk, DiskError, DiskOptions, Layer},
    virtio::{
        LARGEST_QUEUE,
        block::{BlockOptions, ErrorPolicy, LONGEST_SERIAL, ReadErrorPolicy},
    },
};
use cenote_image::{CacheMode, Format};
use serde::{Deserialize, Serialize};
use std::{
    fs::{File, OpenOptions},
    os::fd::OwnedFd,
};

/// The most queues of a disk.
pub const MOST_QUEUES: u16 = 32;
/// As many queues as a disk has unless told otherwise, if there are as many vCPUs.
const USUAL_QUEUES: u16 = 4;
const USUAL_QUEUE_SIZE: u16 = 256;
/// The longest name, so that threads can be told apart by it.
const LONGEST_NAME: usize = 12;
/// The slots that a device may be given; those below are the board's.
const SLOTS: std::ops::RangeInclusive<u8> = 2..=31;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDescription {
    /// Its name, by which it is changed while the machine runs: 1 to 12 letters, digits, `-`, `_`.
    pub name: String,
    /// The images, the one that is written first, each followed by its backing file.
    pub chain: Vec<LayerDescription>,
    /// Whether the guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// How the host caches.
    #[serde(default)]
    pub cache: CacheMode,
    /// What becomes of space that the guest does not use any more.
    #[serde(default)]
    pub discard: Discard,
    /// Serial number, at most 20 printable ASCII characters.
    #[serde(default)]
    pub serial: String,
    /// Number of queues, 1 to 32; as many as vCPUs, at most 4, unless given.
    #[serde(default)]
    pub queues: Option<u16>,
    /// Size of a queue, a power of two from 4 to 1024.
    #[serde(default = "usual_queue_size")]
    pub queue_size: u16,
    /// What follows an error of the host in a write.
    #[serde(default)]
    pub error_policy: ErrorPolicy,
    /// What follows an error of the host in a read.
    #[serde(default)]
    pub read_error_policy: ReadErrorPolicy,
    /// Bytes in a logical block: 512, 1024, 2048 or 4096.
    #[serde(default = "usual_block")]
    pub logical_block_size: u32,
    /// Bytes in a physical block, a power of two up to 1 MiB, not less than a logical one.
    #[serde(default = "usual_block")]
    pub physical_block_size: u32,
    /// Slot on the PCI bus, 2 to 31; the next free one unless given.
    #[serde(default)]
    pub slot: Option<u8>,
    /// Its turn when firmware looks for something to boot; those without come last.
    #[serde(default)]
    pub boot_index: Option<u32>,
}

/// One image of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerDescription {
    /// The image.
    pub file: FileSource,
    /// Its format, which is never guessed.
    pub format: Format,
    /// The external data file of a qcow2 image that has one.
    #[serde(default)]
    pub data_file: Option<FileSource>,
}

/// What becomes of space that the guest does not use any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discard {
    /// It stays allocated; the guest is not offered to give it back.
    #[default]
    Ignore,
    /// It is given back to the host.
    Unmap,
}

fn usual_queue_size() -> u16 {
    USUAL_QUEUE_SIZE
}

fn usual_block() -> u32 {
    512
}

/// What is wrong with a disk in the description.
#[derive(Debug, thiserror::Error)]
pub enum DiskDescriptionError {
    /// The name is no name.
    #[error("disk name '{0}' is impossible: give 1 to 12 letters, digits, '-' or '_'")]
    Name(String),
    /// Two disks have one name.
    #[error("two disks are called '{0}': give each its own name")]
    Twice(String),
    /// Two devices have one slot.
    #[error("disk '{name}': PCI slot {slot} is impossible or taken: give another, or none")]
    Slot {
        /// The disk.
        name: String,
        /// Its slot.
        slot: u8,
    },
    /// A value is out of its range.
    #[error("disk '{name}': {what}")]
    Value {
        /// The disk.
        name: String,
        /// Which, and what would do.
        what: &'static str,
    },
    /// A file cannot be opened.
    #[error("disk '{name}'")]
    Open {
        /// The disk.
        name: String,
        /// Which file, and why.
        source: DescriptionError,
    },
    /// The chain cannot be used.
    #[error("disk '{name}'")]
    Disk {
        /// The disk.
        name: String,
        /// Why.
        source: DiskError,
    },
}

/// Checks all disks of a machine, without looking at their files.
///
/// # Errors
/// [`DiskDescriptionError`].
pub fn check(disks: &[DiskDescription]) -> Result<(), DiskDescriptionError> {
    for (index, disk) in disks.iter().enumerate() {
        disk.check()?;
        let before = &disks[..index];
        if before.iter().any(|other| other.name == disk.name) {
            return Err(DiskDescriptionError::Twice(disk.name.clone()));
        }
        if let Some(slot) = disk.slot
            && (!SLOTS.contains(&slot) || before.iter().any(|other| other.slot == disk.slot))
        {
            let name = disk.name.clone();
            return Err(DiskDescriptionError::Slot { name, slot });
        }
    }
    Ok(())
}

impl DiskDescription {
    fn check(&self) -> Result<(), DiskDescriptionError> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let length = 1..=LONGEST_NAME;
        if !length.contains(&self.name.len()) || !self.name.chars().all(fine) {
            return Err(DiskDescriptionError::Name(self.name.clone()));
        }
        let wrong = |what| {
            let name = self.name.clone();
            Err(DiskDescriptionError::Value { name, what })
        };
        let printable = |c: char| c.is_ascii_graphic() || c == ' ';
        if self.chain.is_empty() {
            return wrong("its chain is empty: give at least one image");
        }
        if self.serial.len() > LONGEST_SERIAL || !self.serial.chars().all(printable) {
            return wrong("give a serial number of at most 20 printable ASCII characters");
        }
        if !(1..=MOST_QUEUES).contains(&self.queues.unwrap_or(1)) {
            return wrong("give 1 to 32 queues");
        }
        let (size, most) = (self.queue_size, LARGEST_QUEUE.min(1024));
        if !size.is_power_of_two() || !(4..=most).contains(&size) {
            return wrong("give a queue size that is a power of two from 4 to 1024");
        }
        let (logical, physical) = (self.logical_block_size, self.physical_block_size);
        if !logical.is_power_of_two() || !(512..=4096).contains(&logical) {
            return wrong("give a logical block size of 512, 1024, 2048 or 4096 bytes");
        }
        if !physical.is_power_of_two() || !(logical..=1 << 20).contains(&physical) {
            return wrong(
                "give a physical block size that is a power of two, from the logical block size to 1048576",
            );
        }
        Ok(())
    }

    /// How the guest sees the disk in a machine with that many vCPUs.
    #[must_use]
    pub fn options(&self, vcpus: u8) -> BlockOptions {
        BlockOptions {
            name: self.name.clone(),
            serial: self.serial.clone(),
            discard: self.discard == Discard::Unmap,
            logical_block: self.logical_block_size,
            physical_block: self.physical_block_size,
            queues: self.queues.unwrap_or(USUAL_QUEUES.min(vcpus.into())),
            queue_size: self.queue_size,
            error_policy: self.error_policy,
            read_error_policy: self.read_error_policy,
        }
    }

    /// Opens the files that are named by paths and puts their descriptors in the paths' place.
    pub(super) fn keep_open(&mut self) -> Result<(), DescriptionError> {
        for (layer, depth) in self.chain.iter_mut().zip(0..) {
            layer.keep_open(depth == 0 && !self.read_only)?;
        }
        Ok(())
    }

    /// Opens the chain as the machine is to use it.
    ///
    /// # Errors
    /// [`DiskDescriptionError`], naming the file.
    pub fn open(&self) -> Result<Disk, DiskDescriptionError> {
        self.open_with(self.read_only, true)
    }

    /// Opens the chain for reading, without locks, and closes it again: whether it could be used.
    ///
    /// # Errors
    /// [`DiskDescriptionError`], naming the file.
    pub fn try_open(&self) -> Result<(), DiskDescriptionError> {
        self.open_with(true, false).map(drop)
    }

    fn open_with(&self, read_only: bool, lock: bool) -> Result<Disk, DiskDescriptionError> {
        let layers: Result<Vec<Layer>, DescriptionError> = self
            .chain
            .iter()
            .zip(0..)
            .map(|(layer, depth)| layer.open(depth == 0 && !self.read_only))
            .collect();
        let layers = layers.map_err(|source| DiskDescriptionError::Open {
            name: self.name.clone(),
            source,
        })?;
        let options = DiskOptions {
            read_only,
            cache: self.cache,
            flushed_by_user: true,
            lock,
        };
        Disk::open(layers, options).map_err(|source| DiskDescriptionError::Disk {
            name: self.name.clone(),
            source,
        })
    }
}

impl LayerDescription {
    fn options(writable: bool) -> OpenOptions {
        let mut options = File::options();
        options.read(true).write(writable);
        options
    }

    /// Opens the files that are named by paths and puts their descriptors in the paths' place.
    pub(super) fn keep_open(&mut self, writable: bool) -> Result<(), DescriptionError> {
        let options = Self::options(writable);
        for file in [Some(&mut self.file), self.data_file.as_mut()]
            .into_iter()
            .flatten()
        {
            file.keep_open_with("image", &options)?;
        }
        Ok(())
    }

    /// Opens the image.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub fn open(&self, writable: bool) -> Result<Layer, DescriptionError> {
        let options = Self::options(writable);
        let open = |file: &FileSource| -> Result<OwnedFd, DescriptionError> {
            Ok(file.open_with("image", &options)?.into())
        };
        let label = match &self.file {
            FileSource::Path(path) => path.display().to_string(),
            FileSource::Fd(fd) => format!("image in descriptor {fd}"),
        };
        Ok(Layer {
            label,
            file: open(&self.file)?,
            format: self.format,
            data_file: self.data_file.as_ref().map(open).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(more: &str) -> Result<DiskDescription, serde_json::Error> {
        serde_json::from_str(&format!(
            r#"{{"name": "sda", "chain": [{{"file": {{"path": "/d"}}, "format": "raw"}}]{more}}}"#
        ))
    }

    #[test]
    fn a_format_is_always_given() {
        let missing = r#"{"name": "a", "chain": [{"file": {"path": "/d"}}]}"#;
        let error = serde_json::from_str::<DiskDescription>(missing).unwrap_err();
        assert!(error.to_string().contains("`format`"), "{error}");
        assert!(disk(r#", "cache": "directsync", "error_policy": "stop""#).is_ok());
        assert!(disk(r#", "cache": "fast""#).is_err());
        assert!(disk(r#", "read_error_policy": "enospace""#).is_err());
    }

    #[test]
    fn impossible_disks_have_their_own_messages() {
        for (more, message) in [
            (r#", "serial": "123456789012345678901""#, "at most 20"),
            (r#", "queues": 0"#, "1 to 32 queues"),
            (r#", "queues": 33"#, "1 to 32 queues"),
            (r#", "queue_size": 100"#, "power of two"),
            (r#", "queue_size": 2048"#, "power of two"),
            (
                r#", "logical_block_size": 520"#,
                "logical block size of 512",
            ),
            (r#", "logical_block_size": 4096"#, "physical block size"),
            (r#", "slot": 1"#, "slot 1"),
            (r#", "slot": 32"#, "slot 32"),
        ] {
            let error = check(&[disk(more).unwrap()]).unwrap_err().to_string();
            assert!(error.contains(message), "{more}: {error}");
        }
        let mut nameless = disk("").unwrap();
        for name in ["", "a/b", "thirteenchars", "ü"] {
            nameless.name = name.to_owned();
            assert!(matches!(
                nameless.check(),
                Err(DiskDescriptionError::Name(_))
            ));
        }
        let twice = [disk("").unwrap(), disk("").unwrap()];
        assert!(check(&twice).unwrap_err().to_string().contains("two disks"));
        let mut second = disk(r#", "slot": 5"#).unwrap();
        second.name = "b".to_owned();
        let clash = [disk(r#", "slot": 5"#).unwrap(), second];
        assert!(check(&clash).unwrap_err().to_string().contains("slot 5"));
    }
}
