//! A submission queue over an image: what a virtio-blk queue or a benchmark
//! drives, one per thread.
//!
//! Mapped clusters go straight between the caller's memory and the data file,
//! by io_uring under `O_DIRECT` and for reads, without a copy in between. A
//! write that allocates whole clusters is one large request whose mapping is
//! published when its data has arrived. What needs more than that (copying
//! around a write, compressed clusters, metadata that is not cached, flushes,
//! discards) runs on a few threads of the queue's own and completes like the
//! rest. The order rules are those of [`Image`]: a request that completed is
//! covered by a flush submitted afterwards, requests in flight have no order.
//!
//! ```no_run
//! # fn main() -> cenote_image::Result<()> {
//! # use cenote_image::{Format, OpenOptions};
//! # let image = OpenOptions::new(Format::Qcow2).writable(true).open("d".as_ref())?;
//! let mut queue = image.queue(64)?;
//! let buffer = queue.buffer(4096);
//! queue.write(1, buffer, 0)?;
//! queue.flush(2)?;
//! queue.submit()?;
//! while queue.in_flight() > 0 {
//!     for done in queue.wait()? {
//!         done.result?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod allocate;
mod buffers;
mod plan;
mod pool;
mod ring;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

pub use buffers::IoBuffer;

use crate::error::{Error, Result};
use crate::image::{Driver, Image, OpenOptions};
use crate::options::Format;
use crate::qcow2::gate::Ticket;
use crate::qcow2::write::Target;
use crate::storage::{AlignedBuffer, MemoryStorage, Storage};
use buffers::Buffers;
use plan::Piece;
use pool::Pool;
use ring::Ring;

/// The most requests a queue holds.
const MAX_DEPTH: u32 = 1024;

const PAGE: usize = 4096;

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// The caller's number for it.
    pub tag: u64,
    /// What came of it.
    pub result: Result<()>,
    /// The buffer given with [`Queue::read`] or [`Queue::write`].
    pub buffer: Option<AlignedBuffer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// One request in flight.
#[derive(Debug, Default)]
struct Slot {
    tag: u64,
    /// The caller's memory, in the order of the disk's bytes.
    buffers: Buffers,
    pieces: Vec<Piece>,
    /// Vectors of the pieces; not moved while the kernel has them.
    vectors: Vec<IoBuffer>,
    pending: u32,
    error: Option<Error>,
    owned: Option<AlignedBuffer>,
    ticket: Option<Ticket>,
    allocating: Option<Allocating>,
    is_write: bool,
}

/// A write whose new clusters are published when its data has arrived.
#[derive(Debug, Clone, Copy)]
struct Allocating {
    target: Target,
    offset: u64,
    length: u64,
    held: (u64, u64),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Queue {
    image: Image,
    ring: Ring,
    pool: Pool,
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<Completion>,
    /// Requests put off until another of this queue has ended.
    waiting: Vec<(usize, u64, u64)>,
    in_flight: usize,
    /// What addresses, lengths and offsets must be multiples of to go straight
    /// to the kernel.
    alignment: usize,
    /// The page cache is bypassed.
    direct: bool,
    /// Every layer can be reached by the kernel itself.
    straight: bool,
}

impl Image {
    /// Opens a submission queue for up to `depth` requests in flight (1 to
    /// 1024). Each thread has its own.
    ///
    /// Its io_uring can be asked for reads and writes of open files alone.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a depth out of range; [`Error::Io`] when the
    /// kernel has no io_uring for us.
    pub fn queue(&self, depth: u32) -> Result<Queue> {
        if depth == 0 || depth > MAX_DEPTH {
            return Err(Error::invalid(
                format!("queue depth {depth}"),
                format!("must be 1 to {MAX_DEPTH}"),
            ));
        }
        // Linux before 5.10 cannot restrict one.
        let failed = |e| Error::io(self.path(), "open an io_uring", e);
        let pool = Pool::new().map_err(failed)?;
        let ring = Ring::new(depth, pool.event()).map_err(failed)?;
        let (alignment, straight) = reach(self);
        Ok(Queue {
            image: self.clone(),
            ring,
            pool,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
            ready: VecDeque::new(),
            waiting: Vec::new(),
            in_flight: 0,
            alignment,
            direct: self.cache_mode().is_direct(),
            straight,
        })
    }
}

/// The strictest alignment in a chain, and whether the kernel can be pointed
/// at all its files.
fn reach(image: &Image) -> (usize, bool) {
    let mut alignment = 1;
    let mut straight = true;
    let mut layer = Some(image);
    while let Some(image) = layer {
        let storage: &Arc<dyn Storage> = match image.driver() {
            Driver::Raw(raw) => &raw.storage,
            Driver::Qcow2(qcow2) => qcow2.data(),
        };
        alignment = alignment.max(storage.alignment());
        straight &= storage.as_fd().is_some();
        let clusters = image.cluster_size();
        if clusters > 1 && clusters < alignment as u64 {
            // Parts of a block belong to different clusters.
            straight = false;
        }
        layer = image.backing();
    }
    (alignment, straight)
}

impl Queue {
    /// Lets go of the image: nothing of it is used any more when this returns,
    /// so that it can be closed. What the kernel and the system hold for the
    /// queue stays; [`Queue::attach`] gives it an image again. Until then the
    /// queue is one over an empty disk.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a request is in flight.
    pub fn detach(&mut self) -> Result<()> {
        let empty =
            OpenOptions::new(Format::Raw).open_storage(Arc::new(MemoryStorage::new()), "-")?;
        self.attach(&empty)?;
        self.pool.end_threads();
        Ok(())
    }

    /// Serves `image` from now on. No more is needed of the system than memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a request is in flight.
    pub fn attach(&mut self, image: &Image) -> Result<()> {
        if self.in_flight > 0 {
            return Err(Error::invalid(
                "submission queue",
                "has requests in flight: collect their completions first",
            ));
        }
        (self.alignment, self.straight) = reach(image);
        self.direct = image.cache_mode().is_direct();
        self.image = image.clone();
        Ok(())
    }

    /// Requests submitted whose completion was not handed out yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether another request can be taken.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.slots.len()
    }

    /// A zeroed buffer that suits the image's alignment. It begins with a
    /// page, so that the host can pass it on in the fewest pieces.
    pub fn buffer(&self, length: usize) -> AlignedBuffer {
        AlignedBuffer::new(length, self.alignment.max(PAGE))
    }

    /// Becomes readable when [`Queue::poll`] has something to collect; for
    /// epoll. Requests must have been submitted.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Reads into a buffer, which the completion gives back.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Invalid`] when the queue is full.
    pub fn read(&mut self, tag: u64, mut buffer: AlignedBuffer, offset: u64) -> Result<()> {
        let place = IoBuffer::of(buffer.as_mut());
        self.transfer(tag, &[place], offset, Direction::Read, Some(buffer))
    }

    /// Writes a buffer, which the completion gives back.
    ///
    /// # Errors
    /// As [`Queue::read`]; [`Error::ReadOnly`].
    pub fn write(&mut self, tag: u64, mut buffer: AlignedBuffer, offset: u64) -> Result<()> {
        let place = IoBuffer::of(buffer.as_mut());
        self.transfer(tag, &[place], offset, Direction::Write, Some(buffer))
    }

    fn transfer(
        &mut self,
        tag: u64,
        places: &[IoBuffer],
        offset: u64,
        direction: Direction,
        owned: Option<AlignedBuffer>,
    ) -> Result<()> {
        let length = places.iter().map(|b| b.len() as u64).sum();
        self.image.check_range(offset, length)?;
        if direction == Direction::Write && !self.image.is_writable() {
            return Err(Error::ReadOnly {
                path: self.image.path().to_owned(),
            });
        }
        let at = self.take_slot(tag)?;
        let slot = &mut self.slots[at];
        slot.buffers.set(places);
        slot.owned = owned;
        slot.is_write = direction == Direction::Write;
        let started = match direction {
            _ if length == 0 => Ok(true),
            Direction::Read => self.start_read(at, offset, length),
            Direction::Write => self.start_write(at, offset, length),
        };
        self.started(at, offset, length, direction, started);
        Ok(())
    }

    /// Goes on after a start: done already, in flight, to be run aside, or
    /// failed.
    fn started(
        &mut self,
        at: usize,
        offset: u64,
        length: u64,
        direction: Direction,
        started: Result<bool>,
    ) {
        match started {
            Ok(true) if self.slots[at].pending == 0 => self.finish(at),
            Ok(true) => {}
            Ok(false) => self.run_aside(at, offset, length, direction),
            Err(error) => {
                self.slots[at].error = Some(error);
                if self.slots[at].pending == 0 {
                    self.finish(at);
                }
            }
        }
    }

    fn take_slot(&mut self, tag: u64) -> Result<usize> {
        let free = if self.has_room() {
            self.free.pop()
        } else {
            None
        };
        let Some(at) = free else {
            return Err(Error::invalid(
                "submission queue",
                "is full; collect completions first",
            ));
        };
        let slot = &mut self.slots[at as usize];
        slot.tag = tag;
        slot.pending = 0;
        slot.error = None;
        slot.pieces.clear();
        slot.vectors.clear();
        self.in_flight += 1;
        Ok(at as usize)
    }

    /// Runs a transfer on the queue's threads, through a buffer of its own.
    fn run_aside(&mut self, at: usize, offset: u64, length: u64, direction: Direction) {
        self.slots[at].pending = 1;
        let image = self.image.clone();
        let places = self.slots[at].buffers.clone();
        let alignment = self.alignment.max(PAGE);
        self.pool.run(at as u32, move || {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let mut bounce = AlignedBuffer::new(length, alignment);
            if direction == Direction::Write {
                places.copy_to(bounce.as_mut());
                return image.write_at(&bounce, offset);
            }
            image.read_at(bounce.as_mut(), offset)?;
            places.copy_from(&bounce);
            Ok(())
        });
    }

    fn run(
        &mut self,
        tag: u64,
        work: impl FnOnce(Image) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let at = self.take_slot(tag)?;
        self.slots[at].pending = 1;
        self.slots[at].buffers.set(&[]);
        self.slots[at].is_write = false;
        let image = self.image.clone();
        self.pool.run(at as u32, move || work(image));
        Ok(())
    }

    /// Makes durable what completed before this call.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the queue is full.
    pub fn flush(&mut self, tag: u64) -> Result<()> {
        self.run(tag, |image| image.flush())
    }

    /// Makes a range read as zeroes; see [`Image::write_zeroes`].
    ///
    /// # Errors
    /// As [`Queue::write`].
    pub fn write_zeroes(&mut self, tag: u64, offset: u64, length: u64, unmap: bool) -> Result<()> {
        self.image.check_range(offset, length)?;
        self.run(tag, move |image| image.write_zeroes(offset, length, unmap))
    }

    /// Gives space back to the host; see [`Image::discard`].
    ///
    /// # Errors
    /// As [`Queue::write`].
    pub fn discard(&mut self, tag: u64, offset: u64, length: u64) -> Result<()> {
        self.image.check_range(offset, length)?;
        self.run(tag, move |image| image.discard(offset, length))
    }

    /// Hands what was queued to the kernel.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub fn submit(&mut self) -> Result<()> {
        // What the threads finish must show at `event` too.
        let armed = self.ring.arm_event();
        let submitted = armed.and_then(|()| self.ring.submit(0));
        submitted.map_err(|e| Error::io(self.image.path(), "submit requests", e))
    }

    /// Collects what has completed, without waiting.
    ///
    /// # Errors
    /// As [`Queue::submit`].
    pub fn poll(&mut self) -> Result<impl Iterator<Item = Completion> + '_> {
        self.submit()?;
        self.reap()?;
        Ok(self.hand_out())
    }

    /// As [`Queue::poll`], but waits for at least one completion if any
    /// request is in flight.
    ///
    /// # Errors
    /// As [`Queue::submit`].
    pub fn wait(&mut self) -> Result<impl Iterator<Item = Completion> + '_> {
        self.reap()?;
        while self.ready.is_empty() && self.in_flight > 0 {
            let waited = self.ring.submit(1);
            waited.map_err(|e| Error::io(self.image.path(), "wait for requests", e))?;
            self.reap()?;
        }
        // New requests go out before the caller works on the old ones.
        self.submit()?;
        Ok(self.hand_out())
    }

    fn hand_out(&mut self) -> impl Iterator<Item = Completion> + '_ {
        self.in_flight -= self.ready.len();
        self.ready.drain(..)
    }

    /// Takes completions from the kernel and from the threads.
    fn reap(&mut self) -> Result<()> {
        while let Some((at, piece, outcome)) = self.ring.next_completion() {
            self.piece_done(at as usize, piece as usize, outcome)?;
        }
        for (at, outcome) in self.pool.take_done() {
            let slot = &mut self.slots[at as usize];
            slot.pending -= 1;
            if let Err(error) = outcome {
                slot.error.get_or_insert(error);
            }
            if slot.pending == 0 {
                self.finish(at as usize);
            }
        }
        if !self.waiting.is_empty() {
            self.retry_waiting();
        }
        Ok(())
    }

    /// Ends a request whose last part has come back.
    fn finish(&mut self, at: usize) {
        self.end_mapping(at);
        let slot = &mut self.slots[at];
        let result = match slot.error.take() {
            Some(error) => Err(error),
            None => Ok(()),
        };
        self.ready.push_back(Completion {
            tag: slot.tag,
            result,
            buffer: slot.owned.take(),
        });
        self.free.push(at as u32);
    }
}

impl Drop for Queue {
    /// Waits for all requests: the kernel may be writing to their memory.
    fn drop(&mut self) {
        while self.slots.len() > self.free.len() {
            if let Err(error) = self.ring.submit(1) {
                tracing::error!(%error, "cannot wait for requests in flight");
            }
            if let Err(error) = self.reap() {
                tracing::error!(%error, "cannot collect requests in flight");
            }
        }
    }
}
