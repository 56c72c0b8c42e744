//! Disks and drives: `<disk>`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use cenote_image::lock::FileLock;
use cenote_image::{CacheMode, Format, LockPolicy, chain};
use cenote_model::domain::{
    AddressKind, BootDevice, DetectZeroes, DiscardMode, Disk, DiskDevice, DiskDriver, ErrorPolicy,
    IoMode, StartupPolicy, TargetBus, machine, target_index,
};
use cenote_pools::{Error as StorageError, Looks, VolumeId, sniff};
use cenote_vmm::devices::ide::Position;
use cenote_vmm::machine::{
    CdromDescription, Discard, DiskDescription, DriveDescription, DriveDescriptions, FileSource,
    IdeDiskDescription, LayerDescription,
};
use cenote_vmm::virtio::block::{ErrorPolicy as WriteErrors, ReadErrorPolicy as ReadErrors};

use super::Translation;
use crate::domains::error::Error as DomainError;

/// Descriptors in a queue unless the document says it.
const QUEUE_SIZE: u16 = 256;

/// A disk's images, top first.
struct Images {
    layers: Vec<chain::Layer>,
}

impl Images {
    fn descriptions(&self) -> Vec<LayerDescription> {
        let layers = self.layers.iter();
        let described = layers.map(|layer| LayerDescription {
            file: FileSource::Path(layer.path.clone()),
            format: layer.format,
            data_file: layer.data_file.clone().map(FileSource::Path),
        });
        described.collect()
    }
}

/// What the document says of a source.
struct Source {
    path: PathBuf,
    format: Format,
}

impl Translation<'_> {
    /// All disks and drives of the machine.
    pub(super) fn disks(
        &mut self,
    ) -> Result<(Vec<DiskDescription>, DriveDescriptions), DomainError> {
        let mut turns = self.boot_turns();
        let (mut disks, mut drives) = (Vec::new(), DriveDescriptions::new());
        let document = self.document;
        for (index, disk) in document.devices.disks.iter().enumerate() {
            let place = format!("devices/disk[{}]", index + 1);
            let turn = turns.remove(disk.target.dev.as_str());
            if !machine::DISK_BUSES.contains(&disk.bus()) {
                // With a disc or an image in it, it would have been refused.
                let text = format!("drive '{}' is not there", disk.target.dev);
                self.note(&place, &text);
                continue;
            }
            if disk.device == DiskDevice::Cdrom {
                let position = self.position(&place, disk)?;
                let drive = self.cdrom(&place, disk, turn)?;
                self.put(
                    &place,
                    &mut drives,
                    position,
                    DriveDescription::Cdrom(drive),
                )?;
                continue;
            }
            let Some(images) = self.images(&place, disk)? else {
                continue;
            };
            self.remark(&place, disk);
            if disk.bus() == TargetBus::Ide {
                let position = self.position(&place, disk)?;
                let drive = self.ide_disk(&place, disk, &images, turn)?;
                self.put(&place, &mut drives, position, DriveDescription::Disk(drive))?;
            } else {
                disks.push(self.virtio_disk(&place, disk, &images, turn)?);
            }
        }
        cenote_vmm::machine::disks::check(&disks)
            .map_err(|error| self.lacks("devices/disk", &error.to_string()))?;
        Ok((disks, drives))
    }

    /// Where the CD-ROM drive `target` is, and the disc in it.
    pub(super) fn drive_and_disc(
        &self,
        target: &str,
    ) -> Result<(Position, Option<PathBuf>), DomainError> {
        let disks = self.document.devices.disks.iter().enumerate();
        let mut drives = disks.filter(|(_, disk)| disk.device == DiskDevice::Cdrom);
        let found = drives.find(|(_, disk)| disk.target.dev == target);
        let Some((index, disk)) = found else {
            return Err(DomainError::NoDisk {
                domain: self.document.name.to_string(),
                target: target.to_owned(),
            });
        };
        let place = format!("devices/disk[{}]", index + 1);
        Ok((self.position(&place, disk)?, self.disc(&place, disk)?))
    }

    /// The images of the disk `target`.
    pub(super) fn chain_of(&self, target: &str) -> Result<Vec<LayerDescription>, DomainError> {
        let disks = self.document.devices.disks.iter().enumerate();
        let mut disks = disks.filter(|(_, disk)| disk.device == DiskDevice::Disk);
        let found = disks.find(|(_, disk)| disk.target.dev == target);
        let images = match found {
            Some((index, disk)) => self.images(&format!("devices/disk[{}]", index + 1), disk)?,
            None => None,
        };
        let layers = images.map(|images| images.descriptions());
        layers.ok_or_else(|| DomainError::NoDisk {
            domain: self.document.name.to_string(),
            target: target.to_owned(),
        })
    }

    /// The disc that a drive would have in it: a file that can be read.
    fn disc(&self, place: &str, disk: &Disk) -> Result<Option<PathBuf>, DomainError> {
        let Some(source) = self.source(place, disk)? else {
            return Ok(None);
        };
        match File::open(&source.path) {
            Ok(_) => Ok(Some(source.path)),
            Err(error) => Err(self.unusable(disk, &source.path, &error.to_string())),
        }
    }

    fn cdrom(
        &mut self,
        place: &str,
        disk: &Disk,
        boot_index: Option<u32>,
    ) -> Result<CdromDescription, DomainError> {
        let file = match self.disc(place, disk) {
            Ok(file) => file,
            Err(error) if is_optional(disk) => {
                self.note(place, &format!("{error}; the drive is empty"));
                None
            }
            Err(error) => return Err(error),
        };
        Ok(CdromDescription {
            file: file.map(FileSource::Path),
            boot_index,
        })
    }

    fn virtio_disk(
        &mut self,
        place: &str,
        disk: &Disk,
        images: &Images,
        boot_index: Option<u32>,
    ) -> Result<DiskDescription, DomainError> {
        let usual = DiskDriver::default();
        let driver = disk.driver.as_ref().unwrap_or(&usual);
        let (error_policy, read_error_policy) = policies(driver);
        let queue_size = match driver.queue_size {
            None => QUEUE_SIZE,
            Some(size) => u16::try_from(size).map_err(|_| {
                let text = format!("queues of {size} descriptors; use 4 to 1024");
                self.lacks(&format!("{place}/driver/@queue_size"), &text)
            })?,
        };
        Ok(DiskDescription {
            name: disk.target.dev.clone(),
            chain: images.descriptions(),
            read_only: disk.readonly,
            cache: cache(driver),
            discard: match driver.discard {
                Some(DiscardMode::Unmap) => Discard::Unmap,
                Some(DiscardMode::Ignore) | None => Discard::Ignore,
            },
            serial: disk.serial.clone().unwrap_or_default(),
            queues: driver.queues,
            queue_size,
            error_policy,
            read_error_policy,
            logical_block_size: 512,
            physical_block_size: 512,
            slot: self.slot(place, disk.address.as_ref()),
            boot_index,
        })
    }

    fn ide_disk(
        &mut self,
        place: &str,
        disk: &Disk,
        images: &Images,
        boot_index: Option<u32>,
    ) -> Result<IdeDiskDescription, DomainError> {
        let usual = DiskDriver::default();
        let driver = disk.driver.as_ref().unwrap_or(&usual);
        let policies = (driver.error_policy, driver.read_error_policy);
        let reported = |policy| matches!(policy, None | Some(ErrorPolicy::Report));
        if !reported(policies.0) || !reported(policies.1) {
            let text = "an IDE disk tells the guest of errors; use report, or bus virtio";
            return Err(self.lacks(&format!("{place}/driver/@error_policy"), text));
        }
        if driver.discard == Some(DiscardMode::Unmap) {
            self.note(place, "an IDE disk gives nothing back; use bus virtio");
        }
        let mut layers = images.descriptions().into_iter();
        let Some(top) = layers.next() else {
            return Err(self.lacks(place, "a disk without an image"));
        };
        Ok(IdeDiskDescription {
            file: top.file,
            format: top.format,
            data_file: top.data_file,
            backing: layers.collect(),
            read_only: disk.readonly,
            cache: cache(driver),
            serial: disk.serial.clone(),
            model: None,
            boot_index,
        })
    }

    fn put(
        &self,
        place: &str,
        drives: &mut DriveDescriptions,
        position: Position,
        drive: DriveDescription,
    ) -> Result<(), DomainError> {
        match drives.insert(position, drive) {
            None => Ok(()),
            Some(_) => Err(self.lacks(place, "another drive is at the same place on the IDE bus")),
        }
    }

    /// Where a drive is: by its address, else by its name.
    fn position(&self, place: &str, disk: &Disk) -> Result<Position, DomainError> {
        position_of(disk).ok_or_else(|| {
            let text = format!(
                "'{}' is past the four places of the IDE bus, hda to hdd",
                disk.target.dev
            );
            self.lacks(&format!("{place}/target/@dev"), &text)
        })
    }

    /// What of a disk has no effect.
    fn remark(&mut self, place: &str, disk: &Disk) {
        let Some(driver) = &disk.driver else {
            return;
        };
        if let Some(io @ (IoMode::Native | IoMode::Threads)) = driver.io {
            let text = format!("io='{io}': the monitor asks the host in its own way (io_uring)");
            self.note(place, &text);
        }
        if let Some(mode @ (DetectZeroes::On | DetectZeroes::Unmap)) = driver.detect_zeroes {
            let text = format!("detect_zeroes='{mode}': zeroes are written as the guest says");
            self.note(place, &text);
        }
    }

    /// A disk's images, each there and of the format that is declared; `None` if the domain may
    /// start without the disk and has to.
    fn images(&self, place: &str, disk: &Disk) -> Result<Option<Images>, DomainError> {
        if disk.shareable && !disk.readonly {
            let text =
                "a disk that several guests write to; make it readonly, or give each its own";
            return Err(self.lacks(&format!("{place}/shareable"), text));
        }
        let Some(source) = self.source(place, disk)? else {
            return Err(self.lacks(place, "a disk without an image"));
        };
        let mut options = File::options();
        options.read(true).write(!disk.readonly);
        if let Err(error) = options.open(&source.path) {
            if is_optional(disk) {
                let text = format!("'{}': {error}; the disk is left out", source.path.display());
                self.note(place, &text);
                return Ok(None);
            }
            return Err(self.unusable(disk, &source.path, &error.to_string()));
        }
        let layers = self.layers_of(disk, &source)?;
        if !disk.has_declared_format()
            && disk.source_volume().is_none()
            && matches!(sniff(&source.path), Ok(Looks::Format("qcow2")))
        {
            let text = format!(
                "'{}' looks like qcow2 and is used as raw; if it is qcow2, say so: \
                 <driver type='qcow2'/>",
                source.path.display()
            );
            self.note(place, &text);
        }
        if self.check_use {
            self.check_locks(disk, &layers)?;
            self.check_overlays(disk, &source.path)?;
        }
        Ok(Some(Images { layers }))
    }

    fn layers_of(&self, disk: &Disk, source: &Source) -> Result<Vec<chain::Layer>, DomainError> {
        let policy = self.node.backing_policy();
        let listed = policy.and_then(|policy| {
            let layers = chain::list(&source.path, source.format, &policy);
            Ok(layers.map_err(StorageError::from)?)
        });
        listed.map_err(|error| DomainError::ComponentMissing {
            domain: self.document.name.to_string(),
            component: format!("disk '{}': {error}", disk.target.dev),
            remedy: error.hint().unwrap_or_else(|| {
                format!(
                    "look at the image: qemu-img info --backing-chain {}",
                    source.path.display()
                )
            }),
        })
    }

    /// That nobody else has the images open in a way that rules this use out. Whoever opens them
    /// later is told by the monitor, which takes the locks.
    fn check_locks(&self, disk: &Disk, layers: &[chain::Layer]) -> Result<(), DomainError> {
        for (depth, layer) in layers.iter().enumerate() {
            let policy = match depth {
                0 if !disk.readonly => LockPolicy::Exclusive,
                _ => LockPolicy::Shared,
            };
            for path in std::iter::once(&layer.path).chain(&layer.data_file) {
                let Ok(file) = File::open(path) else {
                    let text = "it cannot be opened";
                    return Err(self.unusable(disk, path, text));
                };
                if let Err(error @ cenote_image::Error::InUse { .. }) =
                    FileLock::acquire(&file, path, policy)
                {
                    return Err(self.in_use(disk, path, &error.to_string()));
                }
            }
        }
        Ok(())
    }

    /// That no volume stands on an image which the guest would write to.
    fn check_overlays(&self, disk: &Disk, path: &Path) -> Result<(), DomainError> {
        if disk.readonly {
            return Ok(());
        }
        let dependents = self.node.dependents_of(path).unwrap_or_default();
        let Some(overlay) = dependents.first() else {
            return Ok(());
        };
        Err(DomainError::ComponentMissing {
            domain: self.document.name.to_string(),
            component: format!(
                "disk '{}': volume '{overlay}' stands on '{}', which must not change",
                disk.target.dev,
                path.display()
            ),
            remedy: format!(
                "give the domain an overlay of its own, or free that volume: \
                 cenote vol-flatten {overlay}"
            ),
        })
    }

    fn in_use(&self, disk: &Disk, path: &Path, reason: &str) -> DomainError {
        let user = self.node.domain_with_image(path);
        let name = &self.document.name;
        DomainError::ComponentMissing {
            domain: name.to_string(),
            component: match &user {
                Some(user) => format!(
                    "disk '{}': '{}' is in use by domain '{user}'",
                    disk.target.dev,
                    path.display()
                ),
                None => format!("disk '{}': {reason}", disk.target.dev),
            },
            remedy: match user {
                Some(user) => format!("shut that domain down first: cenote shutdown {user}"),
                None => format!(
                    "end the program that uses it, or give the domain an image of its own: \
                     cenote edit {name}"
                ),
            },
        }
    }

    fn unusable(&self, disk: &Disk, path: &Path, reason: &str) -> DomainError {
        DomainError::ComponentMissing {
            domain: self.document.name.to_string(),
            component: format!("disk '{}': '{}': {reason}", disk.target.dev, path.display()),
            remedy: format!(
                "bring the image there, or name another: cenote edit {}",
                self.document.name
            ),
        }
    }

    /// Where a disk's bytes are; `None` in an empty drive.
    fn source(&self, place: &str, disk: &Disk) -> Result<Option<Source>, DomainError> {
        let declared = match disk.format() {
            cenote_model::volume::Format::Qcow2 => Format::Qcow2,
            cenote_model::volume::Format::Raw | cenote_model::volume::Format::Iso => Format::Raw,
            other => {
                let text = format!("format '{other}'; convert the image to raw or qcow2");
                return Err(self.lacks(&format!("{place}/driver/@type"), &text));
            }
        };
        if let Some((pool, volume)) = disk.source_volume() {
            return self.volume(disk, pool, volume, declared).map(Some);
        }
        Ok(disk.source_path().map(|path| Source {
            path: PathBuf::from(path),
            format: declared,
        }))
    }

    fn volume(
        &self,
        disk: &Disk,
        pool: &str,
        volume: &str,
        declared: Format,
    ) -> Result<Source, DomainError> {
        let missing = |component: String, remedy: String| DomainError::ComponentMissing {
            domain: self.document.name.to_string(),
            component: format!("disk '{}': {component}", disk.target.dev),
            remedy,
        };
        let found = self
            .node
            .volume(&VolumeId::new(pool, volume))
            .and_then(|info| Ok((self.node.trusted_format(&info)?, info)));
        let (format, info) = found.map_err(|error| {
            let remedy = error
                .hint()
                .unwrap_or_else(|| format!("see what is there: cenote vol-list {pool}"));
            missing(error.to_string(), remedy)
        })?;
        if disk.has_declared_format() && format != declared {
            let component =
                format!("volume '{pool}/{volume}' is {format}, the document says {declared}");
            let remedy = format!("say {format} there: cenote edit {}", self.document.name);
            return Err(missing(component, remedy));
        }
        Ok(Source {
            path: info.path,
            format,
        })
    }
}

/// Turns at booting.
impl Translation<'_> {
    /// The turns of disks and drives by their names. Nothing has one where a kernel is booted.
    fn boot_turns(&self) -> BTreeMap<String, u32> {
        let mut turns = BTreeMap::new();
        let document = self.document;
        if self.is_direct() {
            return turns;
        }
        let disks = &document.devices.disks;
        for disk in disks {
            if let Some(boot) = &disk.boot {
                turns.insert(disk.target.dev.clone(), boot.order);
            }
        }
        for (class, turn) in document.os.boot_devices().zip(1..) {
            let device = match class {
                BootDevice::Hd => DiskDevice::Disk,
                BootDevice::Cdrom => DiskDevice::Cdrom,
                BootDevice::Network | BootDevice::Fd => continue,
            };
            if let Some(disk) = disks.iter().find(|disk| disk.device == device) {
                turns.entry(disk.target.dev.clone()).or_insert(turn);
            }
        }
        turns
    }

    /// Whether some disk or drive has a turn.
    pub(super) fn boots_from_disks(&self) -> bool {
        !self.boot_turns().is_empty()
    }
}

/// Where an IDE drive is: by its address, else by its name.
fn position_of(disk: &Disk) -> Option<Position> {
    let address = disk.address.as_ref();
    let address = address.filter(|address| address.kind == AddressKind::Drive);
    let number = match address {
        Some(address) => {
            let channel = address.bus.map_or(0, |bus| bus.0);
            let unit = u64::from(address.unit.unwrap_or(0));
            channel
                .checked_mul(2)?
                .checked_add(unit)
                .filter(|_| unit < 2)?
        }
        None => u64::from(target_index(&disk.target.dev)?.0),
    };
    Some(match number {
        0 => Position::PrimaryMaster,
        1 => Position::PrimarySlave,
        2 => Position::SecondaryMaster,
        3 => Position::SecondarySlave,
        _ => return None,
    })
}

/// Whether the domain starts without what the disk has in it.
fn is_optional(disk: &Disk) -> bool {
    let policy = disk
        .source
        .as_ref()
        .and_then(|source| source.startup_policy);
    matches!(policy, Some(StartupPolicy::Optional))
}

fn cache(driver: &DiskDriver) -> CacheMode {
    use cenote_model::domain::CacheMode as Said;
    match driver.cache {
        None | Some(Said::Default | Said::Writeback) => CacheMode::Writeback,
        Some(Said::None) => CacheMode::None,
        Some(Said::Writethrough) => CacheMode::Writethrough,
        Some(Said::Directsync) => CacheMode::DirectSync,
        Some(Said::Unsafe) => CacheMode::Unsafe,
    }
}

/// What follows errors of the host, for writes and for reads. One that is said for writes alone
/// holds for reads too, but for `enospace`, which they cannot meet.
fn policies(driver: &DiskDriver) -> (WriteErrors, ReadErrors) {
    let writes = match driver.error_policy {
        None | Some(ErrorPolicy::Enospace) => WriteErrors::Enospace,
        Some(ErrorPolicy::Stop) => WriteErrors::Stop,
        Some(ErrorPolicy::Report) => WriteErrors::Report,
        Some(ErrorPolicy::Ignore) => WriteErrors::Ignore,
    };
    let reads = match driver.read_error_policy.or(driver.error_policy) {
        Some(ErrorPolicy::Stop) => ReadErrors::Stop,
        Some(ErrorPolicy::Ignore) => ReadErrors::Ignore,
        None | Some(ErrorPolicy::Report | ErrorPolicy::Enospace) => ReadErrors::Report,
    };
    (writes, reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_follow_writes_unless_told() {
        let driver = |error_policy, read_error_policy| DiskDriver {
            error_policy,
            read_error_policy,
            ..DiskDriver::default()
        };
        let table = [
            (None, None, WriteErrors::Enospace, ReadErrors::Report),
            (
                Some(ErrorPolicy::Stop),
                None,
                WriteErrors::Stop,
                ReadErrors::Stop,
            ),
            (
                Some(ErrorPolicy::Enospace),
                None,
                WriteErrors::Enospace,
                ReadErrors::Report,
            ),
            (
                Some(ErrorPolicy::Stop),
                Some(ErrorPolicy::Ignore),
                WriteErrors::Stop,
                ReadErrors::Ignore,
            ),
        ];
        for (writes, reads, expected_writes, expected_reads) in table {
            let found = policies(&driver(writes, reads));
            assert_eq!(found, (expected_writes, expected_reads));
        }
    }

    #[test]
    fn places_on_the_ide_bus_follow_addresses_then_names() {
        let mut disk = Disk::default();
        let at = |disk: &Disk| position_of(disk);
        disk.target.dev = "hdc".to_owned();
        assert_eq!(at(&disk), Some(Position::SecondaryMaster));
        disk.target.dev = "hde".to_owned();
        assert_eq!(at(&disk), None);
        disk.address = Some(cenote_model::domain::Address::drive(0, 1, 0, 1));
        assert_eq!(at(&disk), Some(Position::SecondarySlave));
        disk.address = Some(cenote_model::domain::Address::drive(0, 0, 0, 2));
        assert_eq!(at(&disk), None);
    }
}
