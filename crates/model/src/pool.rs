//! Storage pools: `<pool>`.
//!
//! Complete for the types `dir`, `fs`, `netfs` and `logical`; the others are recognised and
//! refused by name. See <https://libvirt.org/formatstorage.html#storage-pool-xml>.

use uuid::Uuid;

use crate::document::document;
use crate::error::{Error, NoteKind};
use crate::names::Name;
use crate::size::Bytes;
use crate::volume::Permissions;
use crate::xml::{Reader, YesNo, element, values};

values! {
    /// Where a pool's volumes are.
    pub enum PoolKind {
        /// Files in a directory.
        #[default]
        Dir = "dir",
        /// Files in a file system on a block device.
        Fs = "fs",
        /// Files in a network file system.
        Netfs = "netfs",
        /// Logical volumes of an LVM volume group.
        Logical = "logical",
        /// Partitions of a disk; refused.
        Disk = "disk",
        /// An iSCSI target through the kernel; refused.
        Iscsi = "iscsi",
        /// An iSCSI target through libiscsi; refused.
        IscsiDirect = "iscsi-direct",
        /// A SCSI host adapter; refused.
        Scsi = "scsi",
        /// Multipath devices; refused.
        Mpath = "mpath",
        /// A Ceph pool; refused.
        Rbd = "rbd",
        /// A Sheepdog cluster; refused.
        Sheepdog = "sheepdog",
        /// A Gluster volume; refused.
        Gluster = "gluster",
        /// A ZFS pool; refused.
        Zfs = "zfs",
        /// Virtuozzo storage; refused.
        Vstorage = "vstorage",
    }
}

impl PoolKind {
    /// The kinds that work.
    pub const SUPPORTED: &'static [Self] = &[Self::Dir, Self::Fs, Self::Netfs, Self::Logical];
}

values! {
    /// Format of a pool's source.
    pub enum PoolFormat {
        /// As the kernel finds it.
        #[default]
        Auto = "auto",
        /// Not known (logical pools of old).
        Unknown = "unknown",
        /// ext2.
        Ext2 = "ext2",
        /// ext3.
        Ext3 = "ext3",
        /// ext4.
        Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// UFS.
        Ufs = "ufs",
        /// ISO 9660.
        Iso9660 = "iso9660",
        /// UDF.
        Udf = "udf",
        /// GFS.
        Gfs = "gfs",
        /// GFS2.
        Gfs2 = "gfs2",
        /// FAT with long names.
        Vfat = "vfat",
        /// HFS+.
        HfsPlus = "hfs+",
        /// OCFS2.
        Ocfs2 = "ocfs2",
        /// VMFS.
        Vmfs = "vmfs",
        /// NFS.
        Nfs = "nfs",
        /// CIFS.
        Cifs = "cifs",
        /// GlusterFS, mounted.
        Glusterfs = "glusterfs",
        /// An LVM2 volume group.
        Lvm2 = "lvm2",
    }
}

impl PoolFormat {
    /// Whether a pool of that kind can have this format.
    pub fn suits(self, kind: PoolKind) -> bool {
        match self {
            Self::Lvm2 | Self::Unknown => kind == PoolKind::Logical,
            Self::Nfs | Self::Cifs | Self::Glusterfs => kind == PoolKind::Netfs,
            Self::Auto => matches!(kind, PoolKind::Fs | PoolKind::Netfs),
            _ => kind == PoolKind::Fs,
        }
    }
}

element! {
    /// A storage pool.
    pub struct Pool {
        /// `type`.
        kind: PoolKind = attribute("type"),
        /// Name; a logical pool without one is named as its volume group.
        name: Name = leaf_or_default("name"),
        /// Identity; given by the node when absent.
        uuid: Option<Uuid> = leaf("uuid"),
        /// Bytes in the pool; reported, not asked for.
        capacity: Option<Bytes> = child("capacity"),
        /// Bytes in use; reported.
        allocation: Option<Bytes> = child("allocation"),
        /// Bytes free; reported.
        available: Option<Bytes> = child("available"),
        /// Features.
        features: Option<PoolFeatures> = child("features"),
        /// Where it comes from.
        source: Option<PoolSource> = child("source"),
        /// Where it is on this node.
        target: PoolTarget = child_or_default("target"),
    }
    known {
        "fs:mount_opts" => Refused("mount options are not passed on; mount the file system with \
            them yourself, and use a pool of type 'dir' on its directory"),
        "refresh" => Inert("volumes report their real allocation; no default is needed"),
    }
    check Pool::check;
}

document!(Pool, "pool");

element! {
    /// `<features>` of a pool.
    pub struct PoolFeatures {
        /// `<cow>`: copy-on-write of the directory's file system.
        cow: Option<CowState> = child("cow"),
    }
}

element! {
    /// `<cow>`.
    pub struct CowState {
        /// `no` turns copy-on-write off for new files (btrfs).
        state: YesNo = attribute("state"),
    }
}

element! {
    /// `<source>` of a pool.
    pub struct PoolSource {
        /// Servers of a network file system.
        hosts: Vec<SourceHost> = child("host"),
        /// Block devices.
        devices: Vec<SourceDevice> = child("device"),
        /// Exported directory.
        dir: Option<SourceDir> = child("dir"),
        /// Volume group.
        name: Option<String> = leaf("name"),
        /// Format.
        format: Option<SourceFormat> = child("format"),
        /// Vendor of the storage; for people.
        vendor: Option<SourceLabel> = child("vendor"),
        /// Product; for people.
        product: Option<SourceLabel> = child("product"),
        /// Version of the file system's protocol.
        protocol: Option<SourceProtocol> = child("protocol"),
    }
    known {
        "adapter" => Refused("SCSI host adapters are not a source that Cenote pools have"),
        "initiator" => Refused("iSCSI is not a source that Cenote pools have"),
        "auth" => Refused("sources with a login are not supported; mount the file system \
            yourself, and use a pool of type 'dir' on its directory"),
    }
}

element! {
    /// `<host>`.
    pub struct SourceHost {
        /// Name or address.
        name: String = attribute("name"),
        /// Port, if not the protocol's own.
        port: Option<u16> = attribute("port"),
    }
}

element! {
    /// `<device>` of a pool.
    pub struct SourceDevice {
        /// Path of the block device.
        path: String = attribute("path"),
        /// Whether partitions are named with a `p`.
        part_separator: Option<YesNo> = attribute("part_separator"),
    }
    known {
        "freeExtent" => Inert("reported by whoever wrote this; free space is looked up anew"),
    }
}

element! {
    /// `<dir>`.
    pub struct SourceDir {
        /// Path on the server.
        path: String = attribute("path"),
    }
}

element! {
    /// `<format>` of a pool's source.
    pub struct SourceFormat {
        /// `type`.
        kind: PoolFormat = attribute("type"),
    }
}

element! {
    /// `<vendor>` or `<product>`.
    pub struct SourceLabel {
        /// Name.
        name: String = attribute("name"),
    }
}

element! {
    /// `<protocol>`.
    pub struct SourceProtocol {
        /// Version, as `4` or `4.2` for NFS.
        version: String = attribute("ver"),
    }
}

element! {
    /// `<target>` of a pool.
    pub struct PoolTarget {
        /// Directory of the volumes, absolute. A logical pool's default is `/dev/` and the group.
        path: Option<String> = leaf("path"),
        /// Permissions of the directory, when it is built.
        permissions: Option<Permissions> = child("permissions"),
    }
    known {
        "timestamps" => Inert("reported by whoever wrote this; not a property that is set"),
        "encryption" => Refused("pools do not encrypt their volumes"),
    }
}

impl Pool {
    /// The volume group of a logical pool.
    pub fn volume_group(&self) -> Option<&str> {
        if self.kind != PoolKind::Logical {
            return None;
        }
        let named = self.source.as_ref().and_then(|s| s.name.as_deref());
        Some(named.unwrap_or(&self.name))
    }

    /// Whether new files are to be made without copy-on-write (`<cow state='no'/>`).
    pub fn without_cow(&self) -> bool {
        self.features
            .as_ref()
            .and_then(|features| features.cow.as_ref())
            .is_some_and(|cow| cow.state == YesNo::No)
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if !PoolKind::SUPPORTED.contains(&self.kind) {
            return Err(reader.unsupported(
                "@type",
                format!(
                    "pools of type '{}'; supported are dir, fs, netfs and logical",
                    self.kind
                ),
            ));
        }
        self.check_name(reader)?;
        self.check_source(reader)?;
        self.check_target(reader)?;
        let cow = self.features.as_ref().is_some_and(|f| f.cow.is_some());
        if cow && !matches!(self.kind, PoolKind::Dir | PoolKind::Fs) {
            return Err(reader.unsupported(
                "features/cow",
                "copy-on-write can be turned off for pools of type dir and fs only",
            ));
        }
        Ok(())
    }

    fn check_name(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if reader.element().child("name").is_some() {
            return Ok(());
        }
        let group = self.source.as_ref().and_then(|s| s.name.clone());
        match (self.kind, group) {
            (PoolKind::Logical, Some(group)) => {
                self.name = Name::new(group.clone())
                    .map_err(|e| reader.invalid("source/name", &group, e.to_string()))?;
                reader.note(
                    NoteKind::Filled,
                    "name",
                    format!("named '{group}', as its volume group"),
                )
            }
            _ => Err(reader.missing("element <name>")),
        }
    }

    fn check_source(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let source = self.source.clone().unwrap_or_default();
        match self.kind {
            PoolKind::Fs if source.devices.is_empty() => {
                return Err(reader.missing("<source><device path='...'/></source>"));
            }
            PoolKind::Fs if source.devices.len() > 1 => {
                return Err(reader.invalid(
                    "source/device[2]",
                    source.devices.get(1).map_or("", |d| d.path.as_str()),
                    "a pool of type fs is one device",
                ));
            }
            PoolKind::Netfs if source.hosts.is_empty() => {
                return Err(reader.missing("<source><host name='...'/></source>"));
            }
            PoolKind::Netfs if source.dir.is_none() => {
                return Err(reader.missing("<source><dir path='...'/></source>"));
            }
            _ => {}
        }
        for device in &source.devices {
            if !device.path.starts_with('/') {
                return Err(reader.invalid(
                    "source/device/@path",
                    &device.path,
                    "an absolute path is expected",
                ));
            }
        }
        if let Some(format) = &source.format
            && !format.kind.suits(self.kind)
        {
            return Err(reader.invalid(
                "source/format/@type",
                format.kind.as_str(),
                format!("a pool of type '{}' cannot have that format", self.kind),
            ));
        }
        if let (PoolKind::Logical, Some(group)) = (self.kind, &source.name) {
            Name::new(group.clone())
                .map_err(|e| reader.invalid("source/name", group, e.to_string()))?;
        }
        Ok(())
    }

    fn check_target(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.target.path.as_deref().is_none_or(str::is_empty) {
            let Some(group) = self.volume_group() else {
                return Err(reader.missing("<target><path>...</path></target>"));
            };
            self.target.path = Some(format!("/dev/{group}"));
        }
        let path = self.target.path.clone().unwrap_or_default();
        if !path.starts_with('/') || path.contains(['\n', '\0']) {
            return Err(reader.invalid("target/path", &path, "an absolute path is expected"));
        }
        self.target.path = Some(plain_path(&path));
        Ok(())
    }
}

/// The path with repeated and trailing slashes taken out.
pub(crate) fn plain_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        out.push('/');
        out.push_str(part);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}
