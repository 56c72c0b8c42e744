//! What `doctor` found on the machine, before anyone judges it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cenote_engine::{FirmwareComponent, locate_firmware};
use rustix::fs::{OFlags, ioctl_ficlone, statfs, statvfs};

use super::host::{Host, KvmDevice, kernel};

/// Everything the probes judge.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the kernel.
    pub kernel: String,
    /// `/dev/kvm`.
    pub kvm: KvmDevice,
    /// Whether the processor says it has virtualization.
    pub hardware_virtualization: bool,
    /// Why io_uring cannot be used, if it cannot.
    pub io_uring: Result<(), String>,
    /// The folder of the node's state.
    pub state_dir: Folder,
    /// Why the node cannot be opened, if it cannot.
    pub node: Result<(), String>,
    /// The pools.
    pub pools: Vec<PoolFacts>,
    /// Operations whose process is gone: number, kind and subject.
    pub interrupted: Vec<String>,
    /// Lock files that no living operation holds.
    pub stale_locks: Vec<PathBuf>,
    /// Firmware and option ROMs, found where domains look for them or not.
    pub firmware: Vec<FirmwareComponent>,
    /// Programs for LVM pools that are missing.
    pub missing_lvm: Vec<&'static str>,
}

/// A folder and what can be done with it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// Permission bits; absent when it does not exist yet.
    pub mode: Option<u32>,
    /// Why nothing can be written there, if so.
    pub writable: Result<(), String>,
    /// Free bytes of its file system.
    pub free: Option<u64>,
}

/// A pool's folder.
#[derive(Clone, Debug)]
pub struct PoolFacts {
    /// The pool's name.
    pub name: String,
    /// Where its volumes are.
    pub path: PathBuf,
    /// Whether it is active.
    pub active: bool,
    /// Its file system; absent when it cannot be read.
    pub filesystem: Option<FileSystem>,
}

/// A file system, as far as storage cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name, such as `ext4`.
    pub name: String,
    /// Whether it writes changes elsewhere, so that overwriting proves nothing.
    pub copy_on_write: bool,
    /// Whether files can share blocks, by trying it; `None` when it could not be tried.
    pub reflink: Option<bool>,
    /// Free bytes.
    pub free: u64,
    /// Size in bytes.
    pub total: u64,
}

/// The firmware of UEFI machines, under either of its names.
const UEFI: [&str; 2] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
];

/// The programs that LVM pools need.
const LVM: [&str; 5] = ["vgs", "lvs", "pvs", "lvcreate", "lvremove"];

impl Facts {
    /// Looks at the machine; the node's own facts are added by the caller.
    #[must_use]
    pub fn of_machine(host: &Host, state_dir: &Path) -> Self {
        Self {
            kernel: kernel(),
            kvm: host.kvm(),
            hardware_virtualization: host.has_hardware_virtualization(),
            io_uring: io_uring(),
            state_dir: Folder::look(state_dir),
            node: Ok(()),
            pools: Vec::new(),
            interrupted: Vec::new(),
            stale_locks: Vec::new(),
            firmware: firmware(),
            missing_lvm: LVM.into_iter().filter(|name| !on_path(name)).collect(),
        }
    }
}

fn firmware() -> Vec<FirmwareComponent> {
    let mut components = locate_firmware().components().to_vec();
    components.push(FirmwareComponent {
        purpose: "UEFI",
        file: "OVMF_CODE_4M.fd",
        package: "ovmf",
        found: UEFI.iter().map(PathBuf::from).find(|path| path.is_file()),
    });
    components
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .any(|folder| folder.join(program).is_file())
}

/// Sets up a ring and drops it again.
fn io_uring() -> Result<(), String> {
    let ring = io_uring::IoUring::new(8);
    ring.map(drop).map_err(|error| error.to_string())
}

impl Folder {
    /// Looks at a folder; one that does not exist yet is judged by its nearest parent.
    #[must_use]
    pub fn look(path: &Path) -> Self {
        let existing = path.ancestors().find(|folder| folder.is_dir());
        let metadata = std::fs::metadata(path).ok();
        let writable = match existing {
            None => Err("no folder above it exists".to_owned()),
            Some(folder) => rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)
                .map_err(|error| io::Error::from(error).to_string()),
        };
        let space = existing.and_then(|folder| statvfs(folder).ok());
        Self {
            path: path.to_path_buf(),
            mode: metadata.map(|metadata| metadata.mode() & 0o7777),
            writable,
            free: space.map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
        }
    }
}

impl FileSystem {
    /// Looks at the file system of a folder. A nameless temporary file tells whether blocks can
    /// be shared; it disappears by itself.
    #[must_use]
    pub fn of(folder: &Path) -> Option<Self> {
        let space = statvfs(folder).ok()?;
        let magic = u64::try_from(statfs(folder).ok()?.f_type).ok()?;
        let (name, copy_on_write) = known(magic);
        Some(Self {
            name,
            copy_on_write,
            reflink: reflink(folder).ok(),
            free: space.f_bavail.saturating_mul(space.f_frsize),
            total: space.f_blocks.saturating_mul(space.f_frsize),
        })
    }
}

/// Name of a file system by its magic number (statfs(2)) and whether it is copy-on-write.
fn known(magic: u64) -> (String, bool) {
    let (name, copy_on_write) = match magic & 0xffff_ffff {
        0xef53 => ("ext4", false),
        0x5846_5342 => ("xfs", false),
        0x9123_683e => ("btrfs", true),
        0x2fc1_2fc1 => ("zfs", true),
        0xca45_1a4e => ("bcachefs", true),
        0xf2f5_2010 => ("f2fs", true),
        0x794c_7630 => ("overlay", true),
        0x0102_1994 => ("tmpfs", false),
        0x6969 => ("nfs", false),
        0xff53_4d42 | 0xfe53_4d42 => ("cifs", false),
        0x6573_5546 => ("fuse", false),
        other => return (format!("type {other:#x}"), false),
    };
    (name.to_owned(), copy_on_write)
}

fn reflink(folder: &Path) -> io::Result<bool> {
    let nameless = || -> io::Result<File> {
        let flags = OFlags::TMPFILE.bits();
        OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(i32::try_from(flags).unwrap_or_default())
            .open(folder)
    };
    let (source, target) = (nameless()?, nameless()?);
    source.set_len(65_536)?;
    io::Write::write_all(&mut &source, &[1; 65_536])?;
    Ok(ioctl_ficlone(&target, &source).is_ok())
}
