//! Storage volumes: `<volume>`.
//!
//! See <https://libvirt.org/formatstorage.html#storage-volume-xml>. Formats are `raw` and
//! `qcow2`; libvirt's other formats and encryption are recognised and refused by name.

use crate::document::document;
use crate::error::{Error, NoteKind};
use crate::names::Name;
use crate::size::Bytes;
use crate::xml::{Reader, Value, element, values};

values! {
    /// What a volume is on its host.
    pub enum VolumeKind {
        /// A file.
        #[default]
        File = "file",
        /// A block device.
        Block = "block",
        /// A directory.
        Dir = "dir",
        /// A network resource.
        Network = "network",
        /// A directory on a network.
        Netdir = "netdir",
    }
}

values! {
    /// Format of a volume or of a disk's source.
    ///
    /// All that libvirt knows are recognised; [`Format::is_supported`] says which work.
    pub enum Format {
        /// Plain bytes.
        #[default]
        Raw = "raw",
        /// QEMU's copy-on-write format, version 2 or 3.
        Qcow2 = "qcow2",
        /// A directory.
        Dir = "dir",
        /// Bochs.
        Bochs = "bochs",
        /// Compressed loop.
        Cloop = "cloop",
        /// User-mode Linux.
        Cow = "cow",
        /// Apple's disk image.
        Dmg = "dmg",
        /// A CD image, which is raw.
        Iso = "iso",
        /// qcow version 1.
        Qcow = "qcow",
        /// QEMU's enhanced disk.
        Qed = "qed",
        /// VMware.
        Vmdk = "vmdk",
        /// Virtual PC.
        Vpc = "vpc",
        /// VirtualBox.
        Vdi = "vdi",
        /// A directory shown as FAT.
        Fat = "fat",
        /// Hyper-V.
        Vhd = "vhd",
        /// Virtuozzo.
        Ploop = "ploop",
        /// LUKS.
        Luks = "luks",
        /// To be guessed.
        Auto = "auto",
        /// Not known.
        Unknown = "unknown",
        /// None.
        None = "none",
    }
}

impl Format {
    /// Whether images of this format can be read and written.
    pub fn is_supported(self) -> bool {
        matches!(self, Self::Raw | Self::Qcow2)
    }

    /// What speaks against it, where it cannot be used.
    pub(crate) fn refusal(self) -> Option<String> {
        match self {
            Self::Raw | Self::Qcow2 => None,
            Self::Auto | Self::Unknown | Self::None => Some(format!(
                "format '{self}': formats are never guessed; say raw or qcow2"
            )),
            Self::Iso => Some("format 'iso': a CD image is plain bytes; say raw".to_owned()),
            other => Some(format!(
                "format '{other}'; convert the image to raw or qcow2 with \
                 'qemu-img convert -O qcow2'"
            )),
        }
    }
}

/// Permission bits up to 777, printed as four octal digits.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Mode(pub u32);

impl Value for Mode {
    fn parse(text: &str) -> Result<Self, String> {
        let octal = !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| octal && *mode <= 0o777)
            .map(Self)
            .ok_or_else(|| "octal permission bits up to 777 are expected".to_owned())
    }

    fn print(&self) -> String {
        format!("{:04o}", self.0)
    }
}

impl crate::xml::Present for Mode {}

/// A time in seconds since 1970 with up to nine decimals, as the text says it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(String);

impl Timestamp {
    /// From seconds and nanoseconds (below a thousand million).
    pub fn new(seconds: u64, nanoseconds: u32) -> Self {
        match nanoseconds {
            0 => Self(seconds.to_string()),
            n => Self(format!("{seconds}.{:09}", n.min(999_999_999))),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Value for Timestamp {
    fn parse(text: &str) -> Result<Self, String> {
        let (seconds, nanoseconds) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if seconds.is_empty() || !digits(seconds) || !digits(nanoseconds) || nanoseconds.len() > 9 {
            return Err("seconds since 1970, with up to nine decimals, are expected".to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

impl crate::xml::Present for Timestamp {}

element! {
    /// A storage volume.
    pub struct Volume {
        /// `type`; reported, not asked for.
        kind: Option<VolumeKind> = attribute("type"),
        /// Name in its pool, with its suffix, if any.
        name: Name = leaf("name"),
        /// What identifies it on the host; reported.
        key: Option<String> = leaf("key"),
        /// Where a logical volume lies; reported.
        source: Option<VolumeSource> = child("source"),
        /// Size the guest sees. Absent with a backing store: that of the backing store.
        capacity: Option<Bytes> = child("capacity"),
        /// Bytes to allocate at creation, and in use later. Absent: as many as `capacity` for
        /// raw, none for qcow2, as libvirt does.
        allocation: Option<Bytes> = child("allocation"),
        /// Bytes of the file; reported.
        physical: Option<Bytes> = child("physical"),
        /// What it is to be on this node.
        target: VolumeTarget = child_or_default("target"),
        /// The image that shows through where this one has nothing.
        backing_store: Option<BackingStore> = child("backingStore"),
    }
    check Volume::check;
}

document!(Volume, "volume");

element! {
    /// `<source>` of a volume.
    pub struct VolumeSource {
        /// Devices it has extents on.
        devices: Vec<ExtentDevice> = child("device"),
    }
}

element! {
    /// A device that a logical volume has extents on.
    pub struct ExtentDevice {
        /// Path of the device.
        path: String = attribute("path"),
        /// The extents.
        extents: Vec<Extent> = child("extent"),
    }
}

element! {
    /// A range of bytes.
    pub struct Extent {
        /// First byte.
        start: u64 = attribute("start"),
        /// First byte after it.
        end: u64 = attribute("end"),
    }
}

element! {
    /// `<target>` of a volume.
    pub struct VolumeTarget {
        /// Path of the file or device; reported.
        path: Option<String> = leaf("path"),
        /// Format; absent means raw.
        format: Option<FormatType> = child("format"),
        /// Permissions of the file.
        permissions: Option<Permissions> = child("permissions"),
        /// Times of the file; reported.
        timestamps: Option<Timestamps> = child("timestamps"),
        /// qcow2 version: `0.10` for 2, `1.1` for 3.
        compat: Option<Compat> = leaf("compat"),
        /// Made without copy-on-write by its file system (btrfs).
        nocow: bool = flag("nocow"),
        /// qcow2 cluster size in bytes: a power of two from 512 to 2 MiB.
        cluster_size: Option<Bytes> = child("clusterSize"),
        /// qcow2 features.
        features: Option<VolumeFeatures> = child("features"),
    }
    known {
        "encryption" => Refused("encrypted volumes; put the pool's directory on an encrypted \
            file system instead"),
    }
    check VolumeTarget::check;
}

values! {
    /// qcow2 versions, by the release of QEMU that first reads them.
    pub enum Compat {
        /// Version 2.
        V0_10 = "0.10",
        /// Version 3.
        #[default]
        V1_1 = "1.1",
    }
}

element! {
    /// `<format>`.
    pub struct FormatType {
        /// `type`.
        kind: Format = attribute("type"),
    }
}

element! {
    /// `<permissions>` of a file or directory.
    pub struct Permissions {
        /// Permission bits.
        mode: Option<Mode> = leaf("mode"),
        /// User id; absent leaves the creator's.
        owner: Option<i64> = leaf("owner"),
        /// Group id; absent leaves the creator's.
        group: Option<i64> = leaf("group"),
        /// Security label.
        label: Option<String> = leaf("label"),
    }
    check Permissions::check;
}

element! {
    /// `<timestamps>`.
    pub struct Timestamps {
        /// Last access.
        accessed: Option<Timestamp> = leaf("atime"),
        /// Last change of content.
        modified: Option<Timestamp> = leaf("mtime"),
        /// Last change of the inode.
        changed: Option<Timestamp> = leaf("ctime"),
        /// Creation.
        born: Option<Timestamp> = leaf("btime"),
    }
}

element! {
    /// `<features>` of a qcow2 volume.
    pub struct VolumeFeatures {
        /// Refcounts may lag behind while the image is open.
        lazy_refcounts: bool = flag("lazy_refcounts"),
        /// Clusters are allocated in 32 parts.
        extended_l2: bool = flag("extended_l2"),
    }
}

element! {
    /// `<backingStore>` of a volume.
    pub struct BackingStore {
        /// Path of the backing image.
        path: String = leaf("path"),
        /// Its format; never guessed.
        format: Option<FormatType> = child("format"),
        /// Its permissions; reported.
        permissions: Option<Permissions> = child("permissions"),
        /// Its times; reported.
        timestamps: Option<Timestamps> = child("timestamps"),
    }
    check BackingStore::check;
}

impl Volume {
    /// The volume's format; raw if the document leaves it open.
    pub fn format(&self) -> Format {
        self.target
            .format
            .as_ref()
            .map_or(Format::Raw, |format| format.kind)
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.capacity.is_none() && self.backing_store.is_none() {
            return Err(reader.missing("element <capacity>"));
        }
        if self.backing_store.is_some() && self.format() != Format::Qcow2 {
            return Err(reader.invalid(
                "target/format/@type",
                self.format().as_str(),
                "a volume with a backing store is qcow2",
            ));
        }
        Ok(())
    }
}

impl VolumeTarget {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        refuse_format(&self.format, reader)?;
        let qcow2 = self
            .format
            .as_ref()
            .is_some_and(|format| format.kind == Format::Qcow2);
        let version_2 = self.compat == Some(Compat::V0_10);
        let features = self
            .features
            .as_ref()
            .is_some_and(|f| f.lazy_refcounts || f.extended_l2);
        for (step, given) in [
            ("compat", self.compat.is_some()),
            ("clusterSize", self.cluster_size.is_some()),
            ("features", features),
        ] {
            if given && !qcow2 {
                return Err(reader.unsupported(step, "only qcow2 volumes have this"));
            }
        }
        if features && version_2 {
            return Err(
                reader.unsupported("features", "compat 0.10 has no features; use compat 1.1")
            );
        }
        match self.cluster_size {
            Some(Bytes(size)) if !size.is_power_of_two() || !(512..=2 << 20).contains(&size) => {
                Err(reader.invalid(
                    "clusterSize",
                    &size.to_string(),
                    "a power of two from 512 bytes to 2 MiB is expected",
                ))
            }
            _ => Ok(()),
        }
    }
}

fn refuse_format(format: &Option<FormatType>, reader: &Reader<'_>) -> Result<(), Error> {
    match format.as_ref().and_then(|format| format.kind.refusal()) {
        Some(reason) => Err(reader.unsupported("format/@type", reason)),
        None => Ok(()),
    }
}

impl BackingStore {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        refuse_format(&self.format, reader)?;
        if self.format.is_none() {
            reader.note(
                NoteKind::Security,
                "",
                "no <format>: the backing file is taken as raw, since its content could lie",
            )?;
        }
        Ok(())
    }
}

impl Permissions {
    /// `-1` means that nothing is asked for, as the absence does.
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        for (step, id) in [("owner", &mut self.owner), ("group", &mut self.group)] {
            match *id {
                Some(-1) => *id = None,
                Some(n) if !(0..i64::from(u32::MAX)).contains(&n) => {
                    return Err(reader.invalid(
                        step,
                        &n.to_string(),
                        "a numeric id, or -1 for the creator's, is expected",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
