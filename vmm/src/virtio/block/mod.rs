//! The block device (section 5.2).
//!
//! Each queue has a worker with an io_uring of its own over the disk's image. Data moves between
//! the guest's memory and the host's files without a copy where alignment allows.

mod request;
mod worker;

pub use request::{ErrorPolicy, ReadErrorPolicy};

use super::{Activation, Kind, VirtioDevice, Worker, read_structure};
use crate::{
    device::{DeviceState, SavedState, StateError},
    disk::{Disk, DiskError, Layer, SECTOR},
    event::EventSink,
};
use request::Work;
use serde::{Deserialize, Serialize};
use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use worker::QueueWorker;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const CONFIG_SIZE: u32 = 60;
/// Place of the write cache's switch in the configuration.
const WRITEBACK: u32 = 32;

/// The longest serial number in bytes.
pub const LONGEST_SERIAL: usize = 20;

/// What a guest sees of a disk, beside its content.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// What the device is called in messages and events.
    pub name: String,
    /// Answer to the guest's question for an identification, at most [`LONGEST_SERIAL`] bytes.
    pub serial: String,
    /// Unused space is given back to the host.
    pub discard: bool,
    /// Bytes in a logical block, a power of two from 512 to 4096.
    pub logical_block: u32,
    /// Bytes in a physical block, a power of two from the logical block's size on.
    pub physical_block: u32,
    /// Number of queues.
    pub queues: u16,
    /// Size of each queue, a power of two.
    pub queue_size: u16,
    /// What to do when a write fails.
    pub error_policy: ErrorPolicy,
    /// What to do when a read fails.
    pub read_error_policy: ReadErrorPolicy,
}

/// What the workers share and do not change while they run.
struct Shared {
    options: BlockOptions,
    size: u64,
    read_only: bool,
    /// Each write is to be durable when it is answered.
    write_through: AtomicBool,
    events: Arc<dyn EventSink>,
    counters: Counters,
}

/// What the guest has asked for and was answered, from the device's beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCounts {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests to discard or to fill with zeroes.
    pub discards: u64,
    /// Requests that failed on the host.
    pub errors: u64,
}

/// The same, as the workers count.
#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    fn count(&self, work: &Work, failed: bool) {
        let add = |counter: &AtomicU64, amount: u64| {
            counter.fetch_add(amount, Ordering::Relaxed);
        };
        if failed {
            add(&self.errors, 1);
        }
        let bytes = |range: &Range<u64>| range.end.saturating_sub(range.start);
        match work {
            Work::Read(range) => {
                add(&self.reads, 1);
                add(&self.read_bytes, bytes(range));
            }
            Work::Write(range) => {
                add(&self.writes, 1);
                add(&self.written_bytes, bytes(range));
            }
            Work::Flush => add(&self.flushes, 1),
            Work::Discard(_) | Work::WriteZeroes(_) => add(&self.discards, 1),
            Work::Answer(_) => {}
        }
    }

    fn counts(&self) -> BlockCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockCounts {
            reads: read(&self.reads),
            read_bytes: read(&self.read_bytes),
            writes: read(&self.writes),
            written_bytes: read(&self.written_bytes),
            flushes: read(&self.flushes),
            discards: read(&self.discards),
            errors: read(&self.errors),
        }
    }
}

/// A block device.
pub struct Block {
    shared: Arc<Shared>,
    // The workers hold clones of the image, so they are dropped first.
    workers: Vec<Worker<QueueWorker>>,
    disk: Option<Disk>,
    features: u64,
    cluster: u64,
    /// The guest's switch: writes may be cached.
    writeback: bool,
    /// The cache mode leaves the guest the choice.
    cacheable: bool,
    /// Requests of a restored device that wait to be made again, per queue.
    unfinished: Vec<Vec<u16>>,
}

/// Saved state of a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// Size in bytes; a restored device must have the same.
    pub size: u64,
    /// The guest's switch of the write cache.
    pub writeback: bool,
    /// Per queue the requests, by their first descriptors, that failed on the host and are to be
    /// made again.
    pub unfinished: Vec<Vec<u16>>,
}

impl SavedState for BlockState {
    const NAME: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
}

impl Block {
    /// A device for `disk`, with its threads.
    ///
    /// # Errors
    /// If the host refuses threads or an io_uring.
    pub fn new(disk: Disk, options: BlockOptions, events: Arc<dyn EventSink>) -> io::Result<Self> {
        let read_only = disk.options().read_only;
        let cacheable = !disk.options().cache.is_synchronous();
        let mut features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
        if options.queues > 1 {
            features |= F_MQ;
        }
        if read_only {
            features |= F_RO;
        } else {
            features |= F_WRITE_ZEROES;
            if options.discard {
                features |= F_DISCARD;
            }
        }
        // Without these a driver takes every write to be durable when it is answered.
        if cacheable {
            features |= F_FLUSH | F_CONFIG_WCE;
        }
        let shared = Arc::new(Shared {
            size: disk.size(),
            read_only,
            write_through: AtomicBool::new(true),
            events,
            options,
            counters: Counters::default(),
        });
        let workers = (0..shared.options.queues)
            .map(|index| {
                let worker = QueueWorker::new(Arc::clone(&shared), disk.image())?;
                Worker::start(&format!("{}-{index}", shared.options.name), worker)
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            cluster: disk.image().cluster_size(),
            unfinished: vec![Vec::new(); workers.len()],
            workers,
            disk: Some(disk),
            features,
            writeback: true,
            cacheable,
            shared,
        })
    }

    /// What the guest has asked for so far.
    #[must_use]
    pub fn counts(&self) -> BlockCounts {
        self.shared.counters.counts()
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.options.name
    }

    /// Makes what was written durable. At rest only.
    ///
    /// # Errors
    /// Those of the host.
    pub fn flush(&self) -> Result<(), DiskError> {
        match &self.disk {
            Some(disk) if !self.shared.read_only => disk.flush(),
            _ => Ok(()),
        }
    }

    fn set_write_through(&self, features: u64) {
        let cached = if features & F_CONFIG_WCE != 0 {
            self.writeback
        } else {
            features & F_FLUSH != 0
        };
        let through = !self.cacheable || !cached;
        self.shared.write_through.store(through, Ordering::SeqCst);
    }

    fn structure(&self) -> [u8; CONFIG_SIZE as usize] {
        let options = &self.shared.options;
        let ratio = options.physical_block / options.logical_block;
        let most_sectors = request::MOST_BYTES / SECTOR;
        let align = self.cluster.clamp(4096, 1 << 21) / SECTOR;
        let mut structure = [0; CONFIG_SIZE as usize];
        let mut set =
            |at: usize, bytes: &[u8]| structure[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &(self.shared.size / SECTOR).to_le_bytes());
        set(
            12,
            &request::most_segments(options.queue_size).to_le_bytes(),
        );
        set(20, &options.logical_block.to_le_bytes());
        set(24, &[ratio.ilog2() as u8]);
        set(26, &(ratio as u16).to_le_bytes());
        set(
            WRITEBACK as usize,
            &[u8::from(self.writeback && self.cacheable)],
        );
        set(34, &options.queues.to_le_bytes());
        if self.features & F_DISCARD != 0 {
            set(36, &(most_sectors as u32).to_le_bytes());
            set(40, &(request::MOST_RANGES as u32).to_le_bytes());
            set(44, &(align as u32).to_le_bytes());
        }
        if self.features & F_WRITE_ZEROES != 0 {
            set(48, &(most_sectors as u32).to_le_bytes());
            set(52, &(request::MOST_RANGES as u32).to_le_bytes());
            set(56, &[u8::from(options.discard)]);
        }
        structure
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let options = &self.shared.options;
        vec![options.queue_size; options.queues.into()]
    }

    fn config_size(&self) -> u32 {
        CONFIG_SIZE
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) {
        read_structure(&self.structure(), offset, data);
    }

    fn config_write(&mut self, offset: u32, data: &[u8], features: u64) {
        if let (WRITEBACK, [value]) = (offset, data)
            && features & F_CONFIG_WCE != 0
        {
            self.writeback = *value != 0;
            self.set_write_through(features);
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.set_write_through(activation.features);
        for queue in activation.queues {
            let index = usize::from(queue.index);
            if let (Some(worker), Some(heads)) =
                (self.workers.get(index), self.unfinished.get_mut(index))
            {
                let memory = activation.memory.clone();
                let heads = std::mem::take(heads);
                worker.handler().activate(memory, queue, &heads)?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        for worker in &self.workers {
            worker.rest();
            worker.handler().forget();
        }
        self.writeback = true;
        self.unfinished.iter_mut().for_each(Vec::clear);
    }

    fn resume(&mut self) {
        for worker in &self.workers {
            worker.run();
        }
    }

    fn pause(&mut self) {
        for worker in &self.workers {
            worker.rest();
        }
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let workers = self.workers.iter();
        BlockState {
            size: self.shared.size,
            writeback: self.writeback,
            unfinished: workers.map(|w| w.handler().unfinished()).collect(),
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = BlockState::load(state)?;
        let invalid = |reason| StateError::Invalid {
            kind: BlockState::NAME,
            reason,
        };
        if state.size != self.shared.size {
            return Err(invalid(format!(
                "the disk had {} bytes, this one has {}",
                state.size, self.shared.size
            )));
        }
        if state.unfinished.len() != self.workers.len() {
            return Err(invalid("another number of queues".to_owned()));
        }
        self.writeback = state.writeback;
        self.unfinished = state.unfinished;
        Ok(())
    }
}

impl Block {
    /// Ends the workers and closes the disk, so that what was written is durable and its locks
    /// are given back. The device is of no use afterwards.
    ///
    /// # Errors
    /// If what was written cannot be made durable.
    pub fn close(&mut self) -> Result<(), DiskError> {
        self.workers.clear();
        match self.disk.take() {
            Some(disk) => disk.close(),
            None => Ok(()),
        }
    }
}

impl Block {
    /// Puts another chain in the disk's place, at rest; the guest notices nothing. The new chain
    /// must show what the old one did, as an overlay on it does. If it cannot be used, the old
    /// one goes on.
    ///
    /// # Errors
    /// [`DiskError`] of the new chain, or of closing the old one.
    pub fn change(&mut self, layers: Vec<Layer>) -> Result<(), DiskError> {
        let Some(old) = self.disk.take() else {
            return Err(DiskError::Lost);
        };
        let detached = self
            .workers
            .iter()
            .try_for_each(|worker| worker.handler().detach());
        let (mut retired, closed) = old.retire();
        let opened = detached
            .map_err(DiskError::from)
            .and(closed)
            .and_then(|()| retired.replace(layers));
        let changed = opened.and_then(|disk| self.adopt(disk));
        if let Err(error) = changed {
            let back = retired.reopen().and_then(|disk| self.adopt(disk));
            if let Err(lost) = back {
                let disk = &self.shared.options.name;
                tracing::error!(disk, error = %lost, "the disk cannot be opened again; its requests fail");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Takes an internal snapshot of the image on top, or deletes it if it is there, at rest; the
    /// guest notices nothing.
    ///
    /// # Errors
    /// The image cannot hold it, or has one of that name.
    pub fn snapshot(&mut self, name: &str, delete: bool) -> Result<(), DiskError> {
        let Some(disk) = &self.disk else {
            return Err(DiskError::Lost);
        };
        // What they know of the image's mapping is not to outlive the change.
        let detached = self
            .workers
            .iter()
            .try_for_each(|worker| worker.handler().detach());
        let image = disk.image();
        let changed = detached.map_err(DiskError::from).and_then(|()| {
            image.flush()?;
            if !delete {
                image.create_snapshot(name)?;
            } else if image.snapshots()?.iter().any(|found| found.name == name) {
                image.delete_snapshot(name)?;
            }
            Ok(image.flush()?)
        });
        for worker in &self.workers {
            worker.handler().attach(image)?;
        }
        changed
    }

    /// Lets the workers serve `disk`.
    fn adopt(&mut self, disk: Disk) -> Result<(), DiskError> {
        if disk.size() != self.shared.size {
            return Err(DiskError::OtherSize {
                new: disk.size(),
                old: self.shared.size,
            });
        }
        for worker in &self.workers {
            worker.handler().attach(disk.image())?;
        }
        self.disk = Some(disk);
        Ok(())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            let disk = &self.shared.options.name;
            tracing::error!(disk, %error, "the disk was not closed properly");
        }
    }
}

#[cfg(test)]
mod tests;
