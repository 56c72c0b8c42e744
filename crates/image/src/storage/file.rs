//! Host files and block devices, through the page cache or past it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};

use super::direct::{AlignedBuffer, WritesInFlight};
use super::{Storage, ioctl};

/// How the host caches an image, named as libvirt and QEMU name it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Through the page cache; durable when flushed.
    #[default]
    Writeback,
    /// Past the page cache (`O_DIRECT`); durable when flushed.
    None,
    /// Through the page cache; each write is durable when it returns.
    Writethrough,
    /// Past the page cache, and each write is durable when it returns.
    DirectSync,
    /// Through the page cache, and flushes are ignored: a host crash may lose
    /// or damage the image. For scratch data only.
    Unsafe,
}

impl CacheMode {
    /// Whether requests bypass the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::DirectSync)
    }

    /// Whether each write is durable when it returns.
    pub fn is_synchronous(self) -> bool {
        matches!(self, Self::Writethrough | Self::DirectSync)
    }
}

/// The largest piece moved through a bounce buffer at once, and the largest
/// run of zeroes written where the host has nothing better.
const PIECE: usize = 1 << 20;

/// A regular file or a block device.
///
/// Under `O_DIRECT`, requests that are not aligned pass through a bounce
/// buffer; parts of blocks are read, changed and written back while no other
/// writer of this value may touch the block. Whoever writes to [`Self::as_fd`]
/// by other means is not seen by that guard and must write whole blocks.
#[derive(Debug)]
pub struct FileStorage {
    fd: OwnedFd,
    writable: bool,
    cache: CacheMode,
    is_device: bool,
    /// Of offsets and lengths under `O_DIRECT`; a device's logical block size;
    /// 1 for a buffered regular file.
    block: u64,
    /// Of buffers in memory.
    memory_alignment: usize,
    writes: WritesInFlight,
    /// Held while `O_DIRECT` is off for the last, partial block of a file.
    tail: Mutex<()>,
    zero: Attempts,
    unmap: Attempts,
    reserve: Attempts,
    extend: Attempts,
    punch: Attempts,
    kernel_sees_synchronous: bool,
}

/// How many ways of doing a thing this file was seen not to support: the next
/// request starts with the first that may work.
#[derive(Debug, Default)]
struct Attempts(AtomicU8);

impl Attempts {
    /// Runs the ways in order from the first not known to be unsupported.
    /// `None` when none is left.
    fn run(&self, ways: &[&dyn Fn() -> Result<(), Errno>]) -> Option<Result<(), Errno>> {
        let first = usize::from(self.0.load(Ordering::Relaxed));
        for (index, way) in ways.iter().enumerate().skip(first) {
            match retry_on_intr(way) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                    let known = u8::try_from(index + 1).unwrap_or(u8::MAX);
                    self.0.fetch_max(known, Ordering::Relaxed);
                }
                // Some file systems say so instead; it may concern this range
                // alone, so it is not remembered.
                Err(Errno::INVAL | Errno::NODEV) => {}
                other => return Some(other),
            }
        }
        None
    }
}

impl FileStorage {
    /// Opens an existing regular file or block device.
    ///
    /// # Errors
    /// Those of `open`; `Unsupported` when the file is neither, or when the
    /// file system has no `O_DIRECT` and `cache` asks for it.
    pub fn open(path: &Path, writable: bool, cache: CacheMode) -> io::Result<Self> {
        Self::open_with(path, writable, cache, OFlags::empty())
    }

    /// Creates an empty regular file that must not exist yet, writable by its
    /// owner and readable by all (less the umask).
    ///
    /// # Errors
    /// `AlreadyExists`, and those of [`Self::open`].
    pub fn create_new(path: &Path, cache: CacheMode) -> io::Result<Self> {
        Self::open_with(path, true, cache, OFlags::CREATE | OFlags::EXCL)
    }

    fn open_with(path: &Path, writable: bool, cache: CacheMode, extra: OFlags) -> io::Result<Self> {
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | extra;
        flags |= if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        if cache.is_direct() {
            flags |= OFlags::DIRECT;
        }
        if cache.is_synchronous() && writable {
            flags |= OFlags::DSYNC;
        }
        let mode = Mode::from_raw_mode(0o644);
        let fd = retry_on_intr(|| rustix::fs::open(path, flags, mode)).map_err(|errno| {
            if errno == Errno::INVAL && cache.is_direct() {
                no_direct()
            } else {
                errno.into()
            }
        })?;
        // NONBLOCK only kept the open of a FIFO from hanging.
        Self::from_fd(fd, writable, cache)
    }

    /// Takes over an open descriptor. `O_DIRECT` is switched on or off to suit
    /// `cache`.
    ///
    /// # Errors
    /// `Unsupported` when it is neither a regular file nor a block device, or
    /// has no `O_DIRECT` and `cache` asks for it; `PermissionDenied` when
    /// `writable` is asked of a descriptor that is not.
    pub fn from_fd(fd: OwnedFd, writable: bool, cache: CacheMode) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let is_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "neither a regular file nor a block device",
                ));
            }
        };
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        if writable && flags & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the descriptor is open for reading only",
            ));
        }
        let mut wanted = flags - OFlags::NONBLOCK - OFlags::APPEND;
        wanted.set(OFlags::DIRECT, cache.is_direct());
        if wanted != flags {
            rustix::fs::fcntl_setfl(&fd, wanted).map_err(|errno| match errno {
                Errno::INVAL if cache.is_direct() => no_direct(),
                other => other.into(),
            })?;
        }
        let (block, memory_alignment) = match (cache.is_direct(), is_device) {
            (true, _) => direct_alignment(fd.as_fd(), is_device),
            (false, true) => (u64::from(rustix::fs::ioctl_blksszget(&fd)?), 1),
            (false, false) => (1, 1),
        };
        Ok(Self {
            writable,
            cache,
            is_device,
            block,
            memory_alignment,
            writes: WritesInFlight::default(),
            tail: Mutex::new(()),
            zero: Attempts::default(),
            unmap: Attempts::default(),
            reserve: Attempts::default(),
            extend: Attempts::default(),
            punch: Attempts::default(),
            kernel_sees_synchronous: flags.contains(OFlags::DSYNC),
            fd,
        })
    }

    /// Whether this is a block device, whose length never changes.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The cache mode it was opened with.
    pub fn cache_mode(&self) -> CacheMode {
        self.cache
    }

    fn is_aligned(&self, buf: &[u8], offset: u64) -> bool {
        offset.is_multiple_of(self.block)
            && (buf.len() as u64).is_multiple_of(self.block)
            && buf.as_ptr().addr().is_multiple_of(self.memory_alignment)
    }

    fn round_down(&self, offset: u64) -> u64 {
        offset - offset % self.block
    }

    fn round_up(&self, offset: u64) -> io::Result<u64> {
        offset
            .checked_next_multiple_of(self.block)
            .ok_or_else(beyond_largest)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(Errno::BADF.into())
        }
    }

    /// Reads until the buffer is full or the file ends; returns the count.
    fn read_some(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let count = retry_on_intr(|| rustix::io::pread(&self.fd, &mut buf[done..], at))?;
            done += count;
            // A direct read that ends inside a block has met the end.
            if count == 0 || (self.cache.is_direct() && !(done as u64).is_multiple_of(self.block)) {
                break;
            }
        }
        Ok(done)
    }

    fn read_filled(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let done = self.read_some(buf, offset)?;
        buf[done..].fill(0);
        Ok(())
    }

    fn read_bounced(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let span = self.round_up(end)? - self.round_down(offset);
        let size = usize::try_from(span)
            .unwrap_or(PIECE)
            .min(PIECE.max(self.memory_alignment));
        let mut bounce = AlignedBuffer::new(size, self.memory_alignment);
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let start = self.round_down(at);
            let skip = (at - start) as usize;
            let take = (bounce.len() - skip).min(buf.len() - done);
            let padded = (skip + take).next_multiple_of(self.block as usize);
            let piece = &mut bounce[..padded];
            self.read_filled(piece, start)?;
            buf[done..done + take].copy_from_slice(&piece[skip..skip + take]);
            done += take;
        }
        Ok(())
    }

    fn write_all(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let flags = if self.cache.is_synchronous() {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let rest = &buf[done..];
            let count = retry_on_intr(|| {
                if flags.is_empty() {
                    rustix::io::pwrite(&self.fd, rest, at)
                } else {
                    rustix::io::pwritev2(&self.fd, &[io::IoSlice::new(rest)], at, flags)
                }
            })?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += count;
        }
        Ok(())
    }

    /// Writes a direct request that is not aligned. The caller has the blocks
    /// to itself.
    fn write_bounced(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        // A last block that reaches past the end of the file would make the
        // file longer than asked: its part goes through the page cache.
        let mut direct = buf.len();
        if !self.is_device
            && !end.is_multiple_of(self.block)
            && self.round_up(end)? > self.length()?
        {
            direct = (self.round_down(end).max(offset) - offset) as usize;
        }
        let mut bounce = AlignedBuffer::new(
            direct
                .next_multiple_of(self.block as usize)
                .saturating_add(self.block as usize)
                .min(PIECE.max(self.block as usize)),
            self.memory_alignment,
        );
        let mut done = 0;
        while done < direct {
            let at = offset + done as u64;
            let start = self.round_down(at);
            let skip = (at - start) as usize;
            let take = (bounce.len() - skip).min(direct - done);
            let padded = (skip + take).next_multiple_of(self.block as usize);
            let piece = &mut bounce[..padded];
            let block = self.block as usize;
            if skip != 0 {
                self.read_filled(&mut piece[..block], start)?;
            }
            if skip + take != padded && (skip == 0 || padded > block) {
                let last = padded - block;
                self.read_filled(&mut piece[last..], start + last as u64)?;
            }
            piece[skip..skip + take].copy_from_slice(&buf[done..done + take]);
            self.write_all(piece, start)?;
            done += take;
        }
        if direct < buf.len() {
            self.write_tail(&buf[direct..], offset + direct as u64)?;
        }
        Ok(())
    }

    /// Writes through the page cache. Direct requests that other threads make
    /// meanwhile become cached ones, which the kernel keeps coherent.
    fn write_tail(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let _tail = self.tail.lock();
        let flags = rustix::fs::fcntl_getfl(&self.fd)?;
        rustix::fs::fcntl_setfl(&self.fd, flags - OFlags::DIRECT)?;
        let written = self.write_all(buf, offset);
        rustix::fs::fcntl_setfl(&self.fd, flags)?;
        written
    }

    fn write_zero_bytes(&self, offset: u64, length: u64) -> io::Result<()> {
        let size = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
        let zeroes = AlignedBuffer::new(size, self.memory_alignment);
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let take = (end - at).min(size as u64);
            self.write_unguarded(&zeroes[..take as usize], at)?;
            at += take;
        }
        Ok(())
    }

    fn write_unguarded(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !self.cache.is_direct() || self.is_aligned(buf, offset) {
            self.write_all(buf, offset)
        } else {
            self.write_bounced(buf, offset)
        }
    }

    /// Holds the blocks of a range against writers, where that matters.
    fn enter(&self, offset: u64, length: u64) -> io::Result<Option<super::direct::InFlight<'_>>> {
        if !self.cache.is_direct() {
            return Ok(None);
        }
        let end = self.round_up(offset + length)?;
        let start = self.round_down(offset);
        let alone = start != offset || end != offset + length;
        Ok(Some(self.writes.enter(start..end, alone)))
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, length: u64) -> Result<(), Errno> {
        rustix::fs::fallocate(&self.fd, mode, offset, length)
    }

    /// Zeroes a range of whole blocks that lies inside the file.
    fn zero_inside(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let hole = || {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.fallocate(mode, offset, length)
        };
        let range = || {
            let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            self.fallocate(mode, offset, length)
        };
        let refill = || {
            hole()?;
            self.fallocate(FallocateFlags::KEEP_SIZE, offset, length)
        };
        let device = || ioctl::zero_out(&self.fd, offset, length);
        let outcome = match (self.is_device, unmap) {
            (false, false) => self.zero.run(&[&range, &refill]),
            (false, true) => self.unmap.run(&[&hole, &range]),
            (true, false) => self.zero.run(&[&range, &device]),
            (true, true) => self.unmap.run(&[&hole, &range, &device]),
        };
        match outcome {
            Some(result) => result?,
            None => self.write_zero_bytes(offset, length)?,
        }
        Ok(())
    }

    /// Makes the file at least `end` bytes long; never shortens it, whatever
    /// other threads do.
    fn grow_to(&self, end: u64) -> io::Result<()> {
        if self.length()? >= end {
            return Ok(());
        }
        if self.is_device {
            return Err(Errno::NOSPC.into());
        }
        let last = || self.fallocate(FallocateFlags::empty(), end - 1, 1);
        match self.reserve.run(&[&last]) {
            Some(result) => Ok(result?),
            None => self.write_unguarded(&[0], end - 1),
        }
    }

    fn make_durable(&self) -> io::Result<()> {
        if self.cache.is_synchronous() {
            retry_on_intr(|| rustix::fs::fdatasync(&self.fd))?;
        }
        Ok(())
    }

    fn zero_range(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let end = offset + length;
        let length_now = self.length()?;
        if self.is_device && end > length_now {
            return Err(Errno::NOSPC.into());
        }
        let inside_end = end.min(length_now);
        if offset < inside_end {
            if self.is_device
                && (!offset.is_multiple_of(self.block) || !end.is_multiple_of(self.block))
            {
                self.zero_device_edges(offset, length, unmap)?;
            } else {
                self.zero_inside(offset, inside_end - offset, unmap)?;
            }
        }
        if end > inside_end {
            let start = offset.max(inside_end);
            if !unmap {
                let new = || self.fallocate(FallocateFlags::ZERO_RANGE, start, end - start);
                let plain = || self.fallocate(FallocateFlags::empty(), start, end - start);
                match self.extend.run(&[&new, &plain]) {
                    Some(result) => result?,
                    None => self.write_zero_bytes(start, end - start)?,
                }
            }
            self.grow_to(end)?;
        }
        Ok(())
    }

    /// A device zeroes whole blocks only; parts of blocks are written.
    fn zero_device_edges(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let end = offset + length;
        let first = self.round_up(offset)?;
        let last = self.round_down(end);
        if first >= last {
            return self.write_zero_bytes(offset, length);
        }
        self.write_zero_bytes(offset, first - offset)?;
        self.zero_inside(first, last - first, unmap)?;
        self.write_zero_bytes(last, end - last)
    }
}

impl AsFd for FileStorage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Storage for FileStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(offset, buf.len() as u64)?;
        if !self.cache.is_direct() || self.is_aligned(buf, offset) {
            self.read_filled(buf, offset)
        } else {
            self.read_bounced(buf, offset)
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        check_range(offset, buf.len() as u64)?;
        let _in_flight = self.enter(offset, buf.len() as u64)?;
        self.write_unguarded(buf, offset)
    }

    fn write_zeroes_at(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.check_writable()?;
        if length == 0 {
            return Ok(());
        }
        check_range(offset, length)?;
        let _in_flight = self.enter(offset, length)?;
        self.zero_range(offset, length, unmap)?;
        self.make_durable()
    }

    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        check_range(offset, length)?;
        let end = (offset + length).min(self.length()?);
        let first = self.round_up(offset)?;
        let last = self.round_down(end);
        if first >= last {
            return Ok(());
        }
        let _in_flight = self.enter(first, last - first)?;
        let hole = || {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            self.fallocate(mode, first, last - first)
        };
        let device = || ioctl::discard(&self.fd, first, last - first);
        let outcome = if self.is_device {
            self.punch.run(&[&hole, &device])
        } else {
            self.punch.run(&[&hole])
        };
        // Nothing left to try means that the host cannot: then the range keeps
        // its content, as the contract allows.
        outcome.transpose()?;
        self.make_durable()
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        if length == 0 {
            return Ok(());
        }
        check_range(offset, length)?;
        if self.is_device {
            return self.grow_to(offset + length);
        }
        let reserve = || self.fallocate(FallocateFlags::empty(), offset, length);
        match retry_on_intr(reserve) {
            Ok(()) => self.make_durable(),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the file system cannot reserve space",
            )),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        if self.cache != CacheMode::Unsafe && self.writable {
            retry_on_intr(|| rustix::fs::fdatasync(&self.fd))?;
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        if self.is_device {
            return Ok(ioctl::device_size(&self.fd)?);
        }
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.check_writable()?;
        if self.is_device {
            return match ioctl::device_size(&self.fd)? {
                size if length <= size => Ok(()),
                _ => Err(Errno::NOSPC.into()),
            };
        }
        check_range(length, 0)?;
        retry_on_intr(|| rustix::fs::ftruncate(&self.fd, length))?;
        self.make_durable()
    }

    fn alignment(&self) -> usize {
        if self.cache.is_direct() {
            self.memory_alignment.max(self.block as usize)
        } else {
            1
        }
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        // Writes that bypass these methods must not lose their durability.
        let loses = self.writable && self.cache.is_synchronous() && !self.kernel_sees_synchronous;
        (!loses).then(|| self.fd.as_fd())
    }
}

/// Offset and length as the kernel's signed file positions hold them.
fn check_range(offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        // A page is left for rounding up to blocks.
        Some(end) if end <= i64::MAX as u64 - 65536 => Ok(()),
        _ => Err(beyond_largest()),
    }
}

fn beyond_largest() -> io::Error {
    Errno::FBIG.into()
}

fn no_direct() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the file system does not support O_DIRECT; use cache mode writeback",
    )
}

/// Alignment of offsets and of buffers under `O_DIRECT`.
fn direct_alignment(fd: BorrowedFd<'_>, is_device: bool) -> (u64, usize) {
    if let Ok(stat) = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && stat.stx_dio_offset_align.is_power_of_two()
        && stat.stx_dio_mem_align.is_power_of_two()
    {
        return (
            u64::from(stat.stx_dio_offset_align),
            stat.stx_dio_mem_align as usize,
        );
    }
    if is_device
        && let Ok(size) = rustix::fs::ioctl_blksszget(fd)
        && size.is_power_of_two()
    {
        return (u64::from(size), size as usize);
    }
    // Kernels before 6.1 do not tell; a page suits every file system.
    (4096, 4096)
}
