//! `<disk>`.

use crate::domain::{Address, Alias, DeviceBoot};
use crate::error::{Error, NoteKind};
use crate::volume::{Format, FormatType};
use crate::xml::{Element, OnOff, Reader, element, values};

values! {
    /// What a disk's source is.
    pub enum DiskKind {
        /// A file.
        #[default]
        File = "file",
        /// A block device.
        Block = "block",
        /// A volume of a pool.
        Volume = "volume",
        /// Refused.
        Network = "network",
        /// Refused.
        Dir = "dir",
        /// Refused.
        Nvme = "nvme",
        /// Refused.
        VhostUser = "vhostuser",
        /// Refused.
        VhostVdpa = "vhostvdpa",
    }
}

values! {
    /// What the guest sees.
    pub enum DiskDevice {
        /// A disk.
        #[default]
        Disk = "disk",
        /// A CD-ROM drive: read-only, and empty if it has no source.
        Cdrom = "cdrom",
        /// A floppy drive.
        Floppy = "floppy",
        /// A SCSI device passed through; refused.
        Lun = "lun",
    }
}

values! {
    /// Bus of a disk.
    pub enum TargetBus {
        /// virtio-blk.
        #[default]
        Virtio = "virtio",
        /// PIIX3 IDE.
        Ide = "ide",
        /// virtio-scsi.
        Scsi = "scsi",
        /// AHCI.
        Sata = "sata",
        /// USB storage.
        Usb = "usb",
        /// Floppy controller.
        Fdc = "fdc",
        /// SD card.
        Sd = "sd",
        /// Xen.
        Xen = "xen",
        /// User-mode Linux.
        Uml = "uml",
    }
}

values! {
    /// How writes go through the host's cache.
    pub enum CacheMode {
        /// The node's choice.
        #[default]
        Default = "default",
        /// Past it (`O_DIRECT`), flushed when the guest says so.
        None = "none",
        /// Through it, each write flushed.
        Writethrough = "writethrough",
        /// Through it, flushed when the guest says so.
        Writeback = "writeback",
        /// Past it, each write flushed.
        Directsync = "directsync",
        /// Through it, never flushed: a crash of the host loses data.
        Unsafe = "unsafe",
    }
}

values! {
    /// What happens when the host cannot read or write.
    pub enum ErrorPolicy {
        /// The domain is paused.
        #[default]
        Stop = "stop",
        /// The guest is told.
        Report = "report",
        /// The guest is not told.
        Ignore = "ignore",
        /// The domain is paused for a full disk, else the guest is told.
        Enospace = "enospace",
    }
}

values! {
    /// How the host is asked to read and write.
    pub enum IoMode {
        /// By threads.
        #[default]
        Threads = "threads",
        /// By Linux AIO.
        Native = "native",
        /// By io_uring.
        IoUring = "io_uring",
    }
}

values! {
    /// What is done about discarded blocks.
    pub enum DiscardMode {
        /// They are given back to the host.
        #[default]
        Unmap = "unmap",
        /// Nothing.
        Ignore = "ignore",
    }
}

values! {
    /// What is done about writes of zeroes.
    pub enum DetectZeroes {
        /// They are written.
        #[default]
        Off = "off",
        /// They become zero ranges.
        On = "on",
        /// They become holes.
        Unmap = "unmap",
    }
}

values! {
    /// What happens when the source is missing at start.
    pub enum StartupPolicy {
        /// The domain does not start.
        #[default]
        Mandatory = "mandatory",
        /// It starts without the disk only where that had been so before.
        Requisite = "requisite",
        /// It starts without the disk.
        Optional = "optional",
    }
}

values! {
    /// How a snapshot treats the disk.
    pub enum SnapshotMode {
        /// In a file beside it.
        #[default]
        External = "external",
        /// In its image.
        Internal = "internal",
        /// Not.
        No = "no",
        /// By the caller.
        Manual = "manual",
    }
}

values! {
    /// Whether a drive's tray is out.
    pub enum Tray {
        /// In.
        #[default]
        Closed = "closed",
        /// Out.
        Open = "open",
    }
}

element! {
    /// `<disk>`.
    pub struct Disk {
        /// What its source is.
        kind: DiskKind = attribute_or_default("type"),
        /// What the guest sees.
        device: DiskDevice = attribute_or_default("device"),
        /// Model of a virtio disk.
        model: Option<String> = attribute("model"),
        /// How snapshots treat it.
        snapshot: Option<SnapshotMode> = attribute("snapshot"),
        /// Format, cache and policies.
        driver: Option<DiskDriver> = child("driver"),
        /// Source; none in an empty drive.
        source: Option<DiskSource> = child("source"),
        /// What lies below its image, as whoever wrote the document found it.
        backing_store: Option<DiskBackingStore> = child("backingStore"),
        /// A copy under way when the document was written.
        mirror: Option<Element> = child("mirror"),
        /// Name and bus in the guest.
        target: DiskTarget = child("target"),
        /// Limits.
        iotune: Option<Element> = child("iotune"),
        /// The guest cannot write.
        readonly: bool = flag("readonly"),
        /// Several domains may have it open.
        shareable: bool = flag("shareable"),
        /// What the guest writes is forgotten at the end.
        transient: Option<Element> = child("transient"),
        /// Serial number, up to 20 bytes for virtio.
        serial: Option<String> = leaf("serial"),
        /// World-wide name.
        wwn: Option<String> = leaf("wwn"),
        /// Vendor shown by SCSI.
        vendor: Option<String> = leaf("vendor"),
        /// Product shown by SCSI.
        product: Option<String> = leaf("product"),
        /// Turn in the boot order.
        boot: Option<DeviceBoot> = child("boot"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "encryption" => Refused("encrypted disks; encrypt inside the guest, or put the image on \
            an encrypted file system"),
        "auth" => Refused("sources with a login; disks are files, block devices and volumes"),
        "transient" => Refused("disks that forget at the end; start from an overlay and delete \
            it, or use a snapshot"),
        "mirror" => Inert("reported by whoever wrote this; no copy is under way"),
        "iotune" => Inert("disks are not throttled"),
        "geometry" => Inert("the guest finds out the geometry"),
        "blockio" => Inert("the guest sees blocks of 512 bytes"),
        "backenddomain" => Refused("a feature of Xen"),
        "wwn" => Inert("no world-wide name is shown"),
        "vendor" => Inert("the vendor shown is Cenote's"),
        "product" => Inert("the product shown is Cenote's"),
        "acpi" => Inert("ACPI indices are not given"),
        "privateData" => Inert("private to whoever wrote this"),
        "@rawio" => Refused("raw I/O rights belong to passed-through SCSI devices"),
        "@sgio" => Refused("SCSI command filters belong to passed-through SCSI devices"),
    }
    check Disk::check;
}

element! {
    /// `<driver>` of a disk.
    pub struct DiskDriver {
        /// Program that drives it; `qemu` or nothing.
        name: Option<String> = attribute("name"),
        /// Format of the image; absent means raw, never a guess.
        format: Option<Format> = attribute("type"),
        /// Host cache.
        cache: Option<CacheMode> = attribute("cache"),
        /// What happens on errors.
        error_policy: Option<ErrorPolicy> = attribute("error_policy"),
        /// What happens on read errors, if that is another thing.
        read_error_policy: Option<ErrorPolicy> = attribute("rerror_policy"),
        /// How the host is asked.
        io: Option<IoMode> = attribute("io"),
        /// Discarded blocks.
        discard: Option<DiscardMode> = attribute("discard"),
        /// I/O thread by number.
        iothread: Option<u32> = attribute("iothread"),
        /// Zero writes.
        detect_zeroes: Option<DetectZeroes> = attribute("detect_zeroes"),
        /// Number of queues.
        queues: Option<u16> = attribute("queues"),
        /// Descriptors in a queue.
        queue_size: Option<u32> = attribute("queue_size"),
    }
    known {
        "@iothread" => Mapped("each disk queue has a thread of its own"),
        "@ioeventfd" => Inert("requests are always signalled by ioeventfd"),
        "@event_idx" => Inert("the guest's driver chooses"),
        "@copy_on_read" => Inert("what is read from a backing file is not copied up"),
        "@discard_no_unref" => Inert("discarded clusters are given back"),
        "@iommu" => Inert("the machine has no IOMMU"),
        "@ats" => Inert("the machine has no IOMMU"),
        "@packed" => Inert("queues are split ones"),
        "@page_per_vq" => Inert("queues are signalled in one page"),
        "metadata_cache" => Inert("the cache's size is bounded by the monitor"),
    }
}

element! {
    /// `<source>` of a disk.
    pub struct DiskSource {
        /// Path of a file.
        file: Option<String> = attribute("file"),
        /// Path of a block device.
        dev: Option<String> = attribute("dev"),
        /// Pool of a volume.
        pool: Option<String> = attribute("pool"),
        /// Name of a volume.
        volume: Option<String> = attribute("volume"),
        /// When it is missing.
        startup_policy: Option<StartupPolicy> = attribute("startupPolicy"),
        /// Number in the chain; reported.
        index: Option<u32> = attribute("index"),
    }
    known {
        "encryption" => Refused("encrypted disks; encrypt inside the guest, or put the image on \
            an encrypted file system"),
        "auth" => Refused("sources with a login; disks are files, block devices and volumes"),
        "slices" => Refused("a slice of an image; copy it into a volume of its own"),
        "reservations" => Refused("SCSI persistent reservations"),
        "dataStore" => Inert("the image itself names its data file"),
        "seclabel" => Inert("the monitor is confined by its own sandbox, not by labels"),
        "privateData" => Inert("private to whoever wrote this"),
        "@mode" => Refused("how an iSCSI volume is reached; iSCSI is not supported"),
        "@fdgroup" => Refused("file descriptors handed in by a caller"),
    }
}

element! {
    /// `<backingStore>` of a disk; an empty one ends the chain.
    pub struct DiskBackingStore {
        /// What its source is; absent at the chain's end.
        kind: Option<DiskKind> = attribute("type"),
        /// Number in the chain; reported.
        index: Option<u32> = attribute("index"),
        /// Format.
        format: Option<FormatType> = child("format"),
        /// Source.
        source: Option<DiskSource> = child("source"),
        /// What lies below.
        backing_store: Option<Box<DiskBackingStore>> = child("backingStore"),
    }
}

element! {
    /// `<target>` of a disk.
    pub struct DiskTarget {
        /// Name: `vda`, `hdc`, `sdb`. It orders disks; the guest may call them otherwise.
        dev: String = attribute("dev"),
        /// Bus; filled in from the name if absent.
        bus: Option<TargetBus> = attribute("bus"),
        /// Tray of a drive.
        tray: Option<Tray> = attribute("tray"),
        /// Whether a USB disk is a removable one.
        removable: Option<OnOff> = attribute("removable"),
        /// Rotations per minute shown; 1 for none.
        rotation_rate: Option<u32> = attribute("rotation_rate"),
    }
    known {
        "@rotation_rate" => Inert("no rotation rate is shown"),
        "@removable" => Inert("there is no USB"),
    }
}

const PREFIXES: [(&str, TargetBus); 6] = [
    ("xvd", TargetBus::Xen),
    ("ubd", TargetBus::Uml),
    ("fd", TargetBus::Fdc),
    ("hd", TargetBus::Ide),
    ("vd", TargetBus::Virtio),
    ("sd", TargetBus::Scsi),
];

/// The number of a disk name among those of its prefix, from 0, and the bus that the prefix
/// stands for: `vda` is 0, `hdc` 2, `sdaa` 26. `None` if it is no disk name.
pub fn target_index(name: &str) -> Option<(u32, TargetBus)> {
    let (rest, bus) = PREFIXES
        .iter()
        .find_map(|(prefix, bus)| Some((name.strip_prefix(prefix)?, *bus)))?;
    let letters = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    if letters.is_empty() || !letters.bytes().all(|b| b.is_ascii_lowercase()) {
        return None;
    }
    let mut index = 0u32;
    for byte in letters.bytes() {
        let digit = u32::from(byte.checked_sub(b'a')?).checked_add(1)?;
        index = index.checked_mul(26)?.checked_add(digit)?;
    }
    Some((index.checked_sub(1)?, bus))
}

impl Disk {
    /// Format of its image; raw if the document leaves it open.
    pub fn format(&self) -> Format {
        self.driver
            .as_ref()
            .and_then(|driver| driver.format)
            .unwrap_or_default()
    }

    /// Whether the document says the format.
    pub fn has_declared_format(&self) -> bool {
        self.driver.as_ref().is_some_and(|d| d.format.is_some())
    }

    /// Path of its source on the host, if it is a file or a block device.
    pub fn source_path(&self) -> Option<&str> {
        let source = self.source.as_ref()?;
        match self.kind {
            DiskKind::File => source.file.as_deref(),
            DiskKind::Block => source.dev.as_deref(),
            _ => None,
        }
    }

    /// Pool and name of its source, if it is a volume.
    pub fn source_volume(&self) -> Option<(&str, &str)> {
        let source = self.source.as_ref()?;
        match self.kind {
            DiskKind::Volume => Some((source.pool.as_deref()?, source.volume.as_deref()?)),
            _ => None,
        }
    }

    /// The bus; that of the target's name if the document leaves it open.
    pub fn bus(&self) -> TargetBus {
        self.target
            .bus
            .or_else(|| target_index(&self.target.dev).map(|(_, bus)| bus))
            .unwrap_or_default()
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        self.check_kind(reader)?;
        self.check_source(reader)?;
        self.check_target(reader)?;
        self.check_driver(reader)?;
        if self.device == DiskDevice::Cdrom {
            self.readonly = true;
        }
        if let Some(serial) = &self.serial
            && (serial.len() > 247 || !serial.bytes().all(|b| (0x20..0x7f).contains(&b)))
        {
            return Err(reader.invalid(
                "serial",
                serial,
                "up to 247 ASCII characters are expected",
            ));
        }
        Ok(())
    }

    fn check_kind(&self, reader: &Reader<'_>) -> Result<(), Error> {
        let reason = match self.kind {
            DiskKind::File | DiskKind::Block | DiskKind::Volume => None,
            DiskKind::Network => Some(format!(
                "disks of type 'network'{}; copy the image into a volume",
                self.network_protocol(reader)
            )),
            DiskKind::Dir => Some("directories shown as a disk; make an image of it".to_owned()),
            other => Some(format!(
                "disks of type '{other}'; use file, block or volume"
            )),
        };
        if let Some(reason) = reason {
            return Err(reader.unsupported("@type", reason));
        }
        if self.device == DiskDevice::Lun {
            return Err(reader.unsupported(
                "@device",
                "SCSI devices passed through (lun); use device='disk' with type='block'",
            ));
        }
        Ok(())
    }

    fn network_protocol(&self, reader: &Reader<'_>) -> String {
        reader
            .element()
            .child("source")
            .and_then(|source| source.get("protocol"))
            .map(|protocol| format!(" ({protocol})"))
            .unwrap_or_default()
    }

    fn check_source(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        let missing =
            |what: &str| Err(reader.missing(format!("{what} (source of '{}')", self.target.dev)));
        let source = self.source.clone().unwrap_or_default();
        let (given, wanted) = match self.kind {
            DiskKind::Block => (source.dev.clone(), "<source dev='...'/>"),
            DiskKind::Volume => {
                if source.pool.is_none() != source.volume.is_none() {
                    return missing("<source pool='...' volume='...'/>");
                }
                (source.volume.clone(), "<source pool='...' volume='...'/>")
            }
            _ => (source.file.clone(), "<source file='...'/>"),
        };
        let Some(given) = given.filter(|path| !path.is_empty()) else {
            let removable = matches!(self.device, DiskDevice::Cdrom | DiskDevice::Floppy);
            return if removable { Ok(()) } else { missing(wanted) };
        };
        if self.kind != DiskKind::Volume && !given.starts_with('/') {
            return Err(reader.invalid("source", &given, "an absolute path is expected"));
        }
        Ok(())
    }

    fn check_target(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        let Some((_, by_name)) = target_index(&self.target.dev) else {
            return Err(reader.invalid(
                "target/@dev",
                &self.target.dev,
                "a disk name is expected: vda, hda, sda and so on",
            ));
        };
        let bus = match (self.target.bus, self.device) {
            (Some(bus), _) => bus,
            (None, DiskDevice::Floppy) => TargetBus::Fdc,
            (None, _) => by_name,
        };
        self.target.bus = Some(bus);
        if matches!(bus, TargetBus::Xen | TargetBus::Uml) {
            return Err(reader.unsupported(
                "target/@bus",
                format!("bus '{bus}'; use virtio or ide, with a name such as vda or hda"),
            ));
        }
        let floppy = self.device == DiskDevice::Floppy;
        if floppy != (bus == TargetBus::Fdc) {
            return Err(reader.invalid(
                "target/@bus",
                bus.as_str(),
                "floppy drives, and only they, are on bus 'fdc' and named fda or fdb",
            ));
        }
        if self.device == DiskDevice::Cdrom && bus == TargetBus::Virtio {
            return Err(reader.invalid(
                "target/@bus",
                bus.as_str(),
                "a CD-ROM drive cannot be on bus 'virtio'; use ide, with a name such as hdc",
            ));
        }
        Ok(())
    }

    fn check_driver(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        let Some(driver) = &self.driver else {
            return self.note_format(reader);
        };
        if let Some(reason) = driver.format.and_then(Format::refusal) {
            return Err(reader.unsupported("driver/@type", reason));
        }
        if self.device == DiskDevice::Cdrom && self.format() != Format::Raw {
            return Err(reader.unsupported(
                "driver/@type",
                "CD images in another format than raw; convert with 'qemu-img convert -O raw'",
            ));
        }
        if driver.cache == Some(CacheMode::Unsafe) {
            reader.note(
                NoteKind::Security,
                "driver/@cache",
                "the guest's flushes are ignored: a crash of the host loses data",
            )?;
        }
        if driver.queues == Some(0) {
            return Err(reader.invalid("driver/@queues", "0", "at least one queue is expected"));
        }
        self.note_format(reader)
    }

    fn note_format(&self, reader: &Reader<'_>) -> Result<(), Error> {
        if self.has_declared_format() || self.device != DiskDevice::Disk {
            return Ok(());
        }
        reader.note(
            NoteKind::Filled,
            "driver",
            "no format given: the image is taken as raw, since a guest could fake another; add \
             <driver type='qcow2'/> if it is that",
        )
    }
}
