//! What an overwrite means where a volume lies: its file system, the devices
//! below, and what of them makes a proof impossible.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use serde::{Deserialize, Serialize};

use super::device::{self, DeviceFacts};
use super::error::{Error, Result};
use super::target::{Kind, Target};
use super::verdict::Reason;
use crate::mounts::{self, Mount};

/// Where a volume lies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Its file system; none for a block device.
    pub file_system: Option<FileSystemFacts>,
    /// The devices below, from the top down.
    pub devices: Vec<DeviceFacts>,
    /// Why an overwrite proves nothing, for the whole volume.
    pub reasons: Vec<Reason>,
    /// What a reader of the report should know besides.
    pub notes: Vec<String>,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSystemFacts {
    /// The kernel's name for it.
    pub name: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// What is mounted.
    pub source: PathBuf,
    /// Mount and superblock options.
    pub options: Vec<String>,
    /// The file's `NOCOW` attribute, where that means anything.
    pub nocow: bool,
}

/// How a file system treats an overwrite.
enum Treatment {
    InPlace,
    CopyOnWrite,
    Memory,
    Network,
    UserSpace,
    Overlay,
    Unknown,
}

fn treatment(name: &str) -> Treatment {
    match name {
        "ext2" | "ext3" | "ext4" | "xfs" | "vfat" | "msdos" | "exfat" | "jfs" | "ntfs3" => {
            Treatment::InPlace
        }
        "btrfs" | "zfs" | "bcachefs" | "f2fs" | "nilfs2" | "ubifs" | "jffs2" | "udf" => {
            Treatment::CopyOnWrite
        }
        "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs" => Treatment::Memory,
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph" | "afs" | "gfs2" | "ocfs2" | "lustre"
        | "coda" | "orangefs" | "beegfs" | "gpfs" | "virtiofs" => Treatment::Network,
        "overlay" | "aufs" | "unionfs" => Treatment::Overlay,
        name if name == "fuse" || name == "fuseblk" || name.starts_with("fuse.") => {
            Treatment::UserSpace
        }
        _ => Treatment::Unknown,
    }
}

impl Environment {
    /// Examines where `target` lies.
    pub fn of(target: &Target) -> Result<Self> {
        let mut found = Self::default();
        let failed = Error::io(target.path(), "find out where it lies");
        let result = match target.kind() {
            Kind::BlockDevice => {
                let id = target.identity();
                device::examine(id.major, id.minor, &mut found, 0)
            }
            Kind::File => of_file(target.path(), target.file(), &mut found, 0),
        };
        result.map_err(failed)?;
        if !target.is_direct() {
            found.add(Reason::NoDirectIo);
        }
        Ok(found)
    }

    pub(super) fn add(&mut self, reason: Reason) {
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }

    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Loop devices may lie on files on loop devices; this many are followed.
const DEEPEST: u32 = 8;

/// Examines an open file; `depth` counts the loop devices above it.
pub(super) fn of_file(
    path: &Path,
    file: &File,
    found: &mut Environment,
    depth: u32,
) -> io::Result<()> {
    if depth > DEEPEST {
        found.add(Reason::UnknownDevice {
            device: format!("more than {DEEPEST} loop devices"),
        });
        return Ok(());
    }
    let Some(mount) = mounts::mount_of(path)? else {
        found.add(Reason::UnknownFileSystem {
            file_system: "the file system".to_owned(),
        });
        return Ok(());
    };
    let flags = rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty());
    let nocow = flags.contains(IFlags::NOCOW);
    judge(&mount, flags, found);
    let metadata = file.metadata()?;
    if depth == 0 {
        found.file_system = Some(FileSystemFacts {
            name: mount.file_system.clone(),
            mount_point: mount.mount_point.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
            nocow,
        });
    }
    match treatment(&mount.file_system) {
        Treatment::Memory | Treatment::Network | Treatment::UserSpace | Treatment::Overlay => {
            Ok(())
        }
        _ if mount.file_system == "zfs" => Ok(()),
        _ => below(&mount, metadata.dev(), found, depth),
    }
}

fn judge(mount: &Mount, flags: IFlags, found: &mut Environment) {
    let file_system = mount.file_system.clone();
    match treatment(&file_system) {
        Treatment::InPlace => {}
        // NOCOW files are overwritten in place; FIEMAP's shared flag tells of
        // snapshots, which make the next write a copy all the same.
        Treatment::CopyOnWrite if file_system == "btrfs" && flags.contains(IFlags::NOCOW) => {}
        Treatment::CopyOnWrite => found.add(Reason::CopyOnWrite { file_system }),
        Treatment::Memory => found.add(Reason::MemoryFileSystem { file_system }),
        Treatment::Network => found.add(Reason::NetworkFileSystem { file_system }),
        Treatment::UserSpace => found.add(Reason::UserSpaceFileSystem),
        Treatment::Overlay => found.add(Reason::OverlayFileSystem),
        Treatment::Unknown => found.add(Reason::UnknownFileSystem { file_system }),
    }
    if flags.contains(IFlags::COMPRESSED) {
        found.add(Reason::EncodedExtents);
    }
    if journals_data(mount, flags) {
        found.add(Reason::JournaledData);
    }
    if mount.file_system == "xfs" && xfs_always_copies(mount) {
        found.add(Reason::CopyOnWrite {
            file_system: "xfs (always_cow or zoned)".to_owned(),
        });
    }
}

fn journals_data(mount: &Mount, flags: IFlags) -> bool {
    if !matches!(mount.file_system.as_str(), "ext3" | "ext4") {
        return false;
    }
    // The superblock's default is not among the mount's options, but ext4
    // prints every option in force to proc.
    let device = mount.source.canonicalize().ok();
    let in_force = device
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| Path::new("/proc/fs/ext4").join(name).join("options"))
        .and_then(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default();
    let option = "data=journal";
    flags.contains(IFlags::JOURNALING)
        || mount.options.iter().any(|given| given == option)
        || in_force.lines().any(|line| line.trim() == option)
}

fn xfs_always_copies(mount: &Mount) -> bool {
    let debug = std::fs::read_to_string("/sys/fs/xfs/debug/always_cow").unwrap_or_default();
    debug.trim() == "1"
        || mount
            .options
            .iter()
            .any(|option| option.starts_with("max_open_zones=") || option == "zoned")
}

fn below(mount: &Mount, device: u64, found: &mut Environment, depth: u32) -> io::Result<()> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if major != 0 {
        return device::examine(major, minor, found, depth);
    }
    // btrfs and others have device numbers of their own; the source names one
    // real device, and btrfs lists the rest of them.
    let Ok(source) = mount.source.metadata() else {
        found.add(Reason::UnknownDevice {
            device: mount.source.display().to_string(),
        });
        return Ok(());
    };
    let first = (
        rustix::fs::major(source.rdev()),
        rustix::fs::minor(source.rdev()),
    );
    let mut all = device::btrfs_siblings(first);
    if !all.contains(&first) {
        all.push(first);
    }
    for (major, minor) in all {
        device::examine(major, minor, found, depth)?;
    }
    Ok(())
}
