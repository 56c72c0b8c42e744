//! The file or device being wiped: opened once, without following links,
//! written and read past the page cache, and watched for who it is.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cenote_image::storage::Storage;
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::buffer::{ALIGNMENT, Buffer};
use super::error::{Error, Refusal, Result};
use super::extents::{self, ExtentMap};
use super::sys::{self, BlockRequest};

/// What makes a file or device itself and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// `file` or `block-device`.
    pub kind: Kind,
    /// For a file the device of its file system, else the device itself:
    /// major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// The inode; of the device node where it is a device.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// When a file was created, nanoseconds since 1970: tells it from another
    /// that was given the same inode. None where the file system keeps none.
    pub created: Option<u64>,
    /// Serial number, world-wide name or device-mapper UUID of a device.
    pub serial: Option<String>,
}

/// The two things that can be wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// A file or block device opened for wiping.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: File,
    /// Without `O_DIRECT`, for tails shorter than a block.
    buffered: File,
    direct: bool,
    kind: Kind,
    alignment: usize,
    identity: Identity,
}

/// What became of the name and the file since they were opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Resized { from: u64, to: u64 },
    Unlinked,
    Replaced,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Resized { from, to } => {
                write!(
                    f,
                    "it was resized from {from} to {to} bytes during the wipe"
                )
            }
            Self::Unlinked => f.write_str("its name was removed during the wipe"),
            Self::Replaced => f.write_str("another file took its name during the wipe"),
        }
    }
}

impl Target {
    /// Opens `path` to be overwritten. Links, odd kinds and what cannot be
    /// written are refused; whether it is in use is not asked here.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, OFlags::RDWR)
    }

    /// Opens `path` to be read past the page cache.
    pub(super) fn open_for_reading(path: &Path) -> Result<Self> {
        Self::open_as(path, OFlags::RDONLY)
    }

    fn open_as(path: &Path, access: OFlags) -> Result<Self> {
        let seen = path
            .symlink_metadata()
            .map_err(Error::io(path, "look at"))?;
        let kind = kind_of(path, &seen)?;
        let extra = match kind {
            Kind::File => OFlags::empty(),
            // On a block device O_EXCL refuses what is mounted or claimed.
            Kind::BlockDevice if access == OFlags::RDWR => OFlags::EXCL,
            Kind::BlockDevice => OFlags::empty(),
        };
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |flags| open_patiently(path, flags);
        let (file, direct) = match open(flags | extra | OFlags::DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (
                open(flags | extra).map_err(|error| open_error(path, error))?,
                false,
            ),
            result => (result.map_err(|error| open_error(path, error))?, true),
        };
        let buffered = open(flags).map_err(|error| open_error(path, error))?;
        let mut identities = Vec::new();
        for one in [&file, &buffered] {
            let metadata = one.metadata().map_err(Error::io(path, "look at"))?;
            if (metadata.dev(), metadata.ino()) != (seen.dev(), seen.ino()) {
                return Err(refused(
                    path,
                    Refusal::InUse {
                        by: Change::Replaced.to_string(),
                    },
                ));
            }
            identities.push(identity(one, kind).map_err(Error::io(path, "look at"))?);
        }
        let alignment = alignment(&file, kind);
        let identity = identities.swap_remove(0);
        Ok(Self {
            path: path.to_owned(),
            file,
            buffered,
            direct,
            kind,
            alignment,
            identity,
        })
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File or device.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Who it was when opened.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether reads and writes pass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The description to put locks on: not the one that requests go through,
    /// which io_uring may hold for a moment after this process has died.
    pub(super) fn lock_handle(&self) -> &File {
        &self.buffered
    }

    /// Its extents now.
    pub fn map(&self) -> io::Result<ExtentMap> {
        match self.kind {
            Kind::File => extents::map_file(&self.file, self.identity.size),
            Kind::BlockDevice => Ok(extents::map_device(self.identity.size)),
        }
    }

    /// When its content last changed, in seconds and nanoseconds; none for a
    /// device, whose node does not tell.
    pub(super) fn modified(&self) -> io::Result<Option<(i64, i64)>> {
        let metadata = self.file.metadata()?;
        Ok((self.kind == Kind::File).then(|| (metadata.mtime(), metadata.mtime_nsec())))
    }

    /// Its size now.
    pub(super) fn size(&self) -> io::Result<u64> {
        match self.kind {
            Kind::File => Ok(self.file.metadata()?.len()),
            Kind::BlockDevice => sys::device_size(self.file.as_fd()),
        }
    }

    /// What has happened to it since it was opened, if anything.
    pub(super) fn change(&self) -> io::Result<Option<Change>> {
        let now = identity(&self.file, self.kind)?;
        if now.size != self.identity.size {
            return Ok(Some(Change::Resized {
                from: self.identity.size,
                to: now.size,
            }));
        }
        if self.kind == Kind::BlockDevice {
            return Ok(None);
        }
        match self.path.symlink_metadata() {
            Ok(named) if named.ino() != self.identity.inode => Ok(Some(Change::Replaced)),
            Ok(_) if self.file.metadata()?.nlink() == 0 => Ok(Some(Change::Replaced)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Change::Unlinked)),
            Err(error) => Err(error),
        }
    }

    /// Asks the device or file system to forget the range. Says by which
    /// request it agreed.
    pub(super) fn forget(&self, offset: u64, length: u64) -> io::Result<&'static str> {
        let fd = self.file.as_fd();
        if self.kind == Kind::File {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(fd, flags, offset, length)?;
            return Ok("punch hole");
        }
        let requests = [
            (BlockRequest::SecureDiscard, "BLKSECDISCARD"),
            (BlockRequest::Discard, "BLKDISCARD"),
            (BlockRequest::ZeroOut, "BLKZEROOUT"),
        ];
        let mut last = io::Error::from(io::ErrorKind::Unsupported);
        for (request, name) in requests {
            match sys::block_request(fd, request, offset, length) {
                Ok(()) => return Ok(name),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn is_aligned(&self, buffer: *const u8, length: usize, offset: u64) -> bool {
        self.direct
            && buffer.addr().is_multiple_of(ALIGNMENT)
            && length.is_multiple_of(self.alignment)
            && offset.is_multiple_of(self.alignment as u64)
    }
}

fn kind_of(path: &Path, metadata: &Metadata) -> Result<Kind> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = path.read_link().map_err(Error::io(path, "read the link"))?;
        return Err(refused(path, Refusal::SymbolicLink { target }));
    }
    if kind.is_block_device() {
        return Ok(Kind::BlockDevice);
    }
    if !kind.is_file() {
        let kind = match kind {
            kind if kind.is_dir() => "directory",
            kind if kind.is_fifo() => "named pipe",
            kind if kind.is_socket() => "socket",
            _ => "character device",
        };
        return Err(refused(path, Refusal::WrongKind { kind }));
    }
    match metadata.nlink() {
        0 | 1 => Ok(Kind::File),
        count => Err(refused(path, Refusal::HardLinks { count })),
    }
}

fn refused(path: &Path, refusal: Refusal) -> Error {
    Error::Refused {
        path: path.to_owned(),
        refusal,
    }
}

fn open_error(path: &Path, error: io::Error) -> Error {
    let how = |how: &str| {
        refused(
            path,
            Refusal::ReadOnly {
                how: how.to_owned(),
            },
        )
    };
    match error.raw_os_error() {
        Some(libc::EROFS) => how("the file system is mounted read-only"),
        Some(libc::EACCES) => how("permission denied; run as its owner or as root"),
        Some(libc::EPERM) => how("the immutable or append-only attribute; chattr -i -a"),
        Some(libc::ETXTBSY) => refused(
            path,
            Refusal::InUse {
                by: "the kernel runs it or swaps to it".to_owned(),
            },
        ),
        Some(libc::EBUSY) => refused(
            path,
            Refusal::InUse {
                by: "the kernel has the device mounted or claimed".to_owned(),
            },
        ),
        _ => Error::io(path, "open for writing")(error),
    }
}

/// Looks at a claimed device; about half a second in all.
const CLAIM_LOOKS: u32 = 25;
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// Opens `path`. Whoever sets up or looks at a device claims it for a moment,
/// as losetup does with the one it tries; only a claim that stays is a use.
fn open_patiently(path: &Path, flags: OFlags) -> io::Result<File> {
    let mut looks = CLAIM_LOOKS;
    loop {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::BUSY) if looks > 0 => looks -= 1,
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(CLAIM_PAUSE);
    }
}

fn identity(file: &File, kind: Kind) -> io::Result<Identity> {
    let metadata = file.metadata()?;
    let (device, size) = match kind {
        Kind::File => (metadata.dev(), metadata.len()),
        Kind::BlockDevice => (metadata.rdev(), sys::device_size(file.as_fd())?),
    };
    Ok(Identity {
        kind,
        major: rustix::fs::major(device),
        minor: rustix::fs::minor(device),
        inode: metadata.ino(),
        size,
        created: creation(&metadata).filter(|_| kind == Kind::File),
        serial: (kind == Kind::BlockDevice)
            .then(|| super::device::serial(device))
            .flatten(),
    })
}

/// When the file was created, nanoseconds since 1970.
pub(super) fn creation(metadata: &Metadata) -> Option<u64> {
    let time = metadata.created().ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// Multiple that direct requests must keep to, as far as the kernel tells.
fn alignment(file: &File, kind: Kind) -> usize {
    let size = match kind {
        Kind::BlockDevice => rustix::fs::ioctl_blksszget(file).ok(),
        Kind::File => rustix::fs::statx(
            file,
            "",
            rustix::fs::AtFlags::EMPTY_PATH,
            rustix::fs::StatxFlags::DIOALIGN,
        )
        .ok()
        .map(|stat| stat.stx_dio_offset_align.max(stat.stx_dio_mem_align)),
    };
    size.filter(|size| size.is_power_of_two() && *size <= 1 << 20)
        .map_or(ALIGNMENT, |size| size as usize)
}

impl Storage for Target {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.direct {
            let length = std::num::NonZeroU64::new(buf.len() as u64);
            rustix::fs::fadvise(&self.file, offset, length, Advice::DontNeed)?;
            return read_or_zero(&self.file, buf, offset);
        }
        if self.is_aligned(buf.as_ptr(), buf.len(), offset) {
            return read_or_zero(&self.file, buf, offset);
        }
        let unit = self.alignment as u64;
        let start = offset / unit * unit;
        let end = offset
            .saturating_add(buf.len() as u64)
            .next_multiple_of(unit);
        let mut bounce = Buffer::new((end - start) as usize);
        let got = read_some(&self.file, &mut bounce, start)?;
        bounce[got..].fill(0);
        let skip = (offset - start) as usize;
        buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.is_aligned(buf.as_ptr(), buf.len(), offset) {
            self.file.write_all_at(buf, offset)
        } else {
            self.buffered.write_all_at(buf, offset)
        }
    }

    fn write_zeroes_at(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.forget(offset, length).map(drop)
    }

    fn allocate_at(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.identity.size)
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.direct.then(|| self.file.as_fd())
    }
}

fn read_or_zero(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let got = read_some(file, buf, offset)?;
    buf[got..].fill(0);
    Ok(())
}

/// No file system or device has smaller blocks.
const SECTOR: usize = 512;

/// Reads until the buffer is full or the file ends. A direct read that stops
/// short of a block has met the end.
fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => {
                done += count;
                if !count.is_multiple_of(SECTOR) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
