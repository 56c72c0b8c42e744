//! For tests: storage that logs what is done to it, fails on demand, and can
//! be replayed to what a crash would have left.
//!
//! A [`Recorder`] wraps any number of files in one log. [`Recorder::replay`]
//! then walks the log; at each position a [`Replay`] gives the files as they
//! would be found
//! - after the process was killed there ([`Replay::killed`]),
//! - after it was killed within the next write ([`Replay::torn`]),
//! - after a power cut there ([`Replay::power_lost`]): what a file's last sync
//!   covered is kept, and of everything later each 512-byte sector is kept or
//!   lost on its own.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{MemoryStorage, Storage};

/// The unit that a power cut keeps or loses as a whole.
pub const SECTOR: usize = 512;

/// What was done to a file.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Bytes written at an offset.
    Write {
        /// In bytes.
        offset: u64,
        /// The bytes.
        data: Arc<[u8]>,
    },
    /// A range zeroed.
    Zero {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// A range discarded; it reads as zeroes afterwards.
    Discard {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// A range reserved; only the length can change.
    Allocate {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// The file cut or grown.
    SetLength(u64),
    /// Everything before is durable.
    Sync,
}

/// One operation on one file.
#[derive(Debug, Clone)]
pub struct Event {
    /// The file's number, in the order of [`Recorder::storage`] calls.
    pub file: usize,
    /// What was done.
    pub operation: Operation,
}

/// How an injected fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing is done, EIO.
    Io,
    /// Nothing is done, ENOSPC (on operations that can need space).
    NoSpace,
    /// A write does this many of its bytes at most, then EIO.
    Short(usize),
}

/// A fault to come.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// How many changing operations (syncs included) still succeed.
    pub after: u64,
    /// What then happens.
    pub kind: FaultKind,
    /// Whether it goes on until [`Recorder::heal`].
    pub lasting: bool,
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Event>,
    bases: Vec<MemoryStorage>,
    fault: Option<Fault>,
    faults_met: u64,
}

/// Collects the operations on a set of files, in one order.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    log: Arc<Mutex<Log>>,
}

/// A file of a [`Recorder`].
#[derive(Debug)]
pub struct RecordedStorage {
    file: usize,
    content: MemoryStorage,
    log: Arc<Mutex<Log>>,
}

impl Recorder {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file whose content so far counts as durable.
    pub fn storage(&self, base: MemoryStorage) -> Arc<RecordedStorage> {
        let mut log = self.log.lock();
        let file = log.bases.len();
        log.bases.push(base.fork());
        Arc::new(RecordedStorage {
            file,
            content: base,
            log: self.log.clone(),
        })
    }

    /// The number of operations logged so far: the position that a replay has
    /// when it has applied them all.
    pub fn position(&self) -> usize {
        self.log.lock().events.len()
    }

    /// Arms a fault; replaces one armed before.
    pub fn fail(&self, fault: Fault) {
        self.log.lock().fault = Some(fault);
    }

    /// Disarms the fault.
    pub fn heal(&self) {
        self.log.lock().fault = None;
    }

    /// How many operations have failed by injection.
    pub fn faults_met(&self) -> u64 {
        self.log.lock().faults_met
    }

    /// A replay of what was logged so far, standing at its beginning.
    pub fn replay(&self) -> Replay {
        let log = self.log.lock();
        let fork = |bases: &[MemoryStorage]| bases.iter().map(MemoryStorage::fork).collect();
        Replay {
            events: log.events.clone(),
            position: 0,
            applied: fork(&log.bases),
            durable: fork(&log.bases),
            synced_at: vec![0; log.bases.len()],
        }
    }
}

impl Log {
    /// The fault that meets this operation, if any.
    fn meet(&mut self, operation: &Operation) -> Option<FaultKind> {
        let fault = self.fault.as_mut()?;
        if fault.kind == FaultKind::NoSpace
            && matches!(operation, Operation::Sync | Operation::Discard { .. })
        {
            return None;
        }
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        let kind = fault.kind;
        if !fault.lasting {
            self.fault = None;
        }
        self.faults_met += 1;
        Some(kind)
    }
}

impl RecordedStorage {
    /// A copy of the present content.
    pub fn content(&self) -> MemoryStorage {
        self.content.fork()
    }

    fn perform(&self, operation: Operation) -> io::Result<()> {
        let mut log = self.log.lock();
        match log.meet(&operation) {
            None => {}
            Some(FaultKind::NoSpace) => return Err(rustix::io::Errno::NOSPC.into()),
            Some(FaultKind::Io) => return Err(rustix::io::Errno::IO.into()),
            Some(FaultKind::Short(most)) => {
                if let Operation::Write { offset, data } = &operation {
                    let data: Arc<[u8]> = data[..most.min(data.len())].into();
                    let short = Operation::Write {
                        offset: *offset,
                        data,
                    };
                    apply(&self.content, &short)?;
                    log.events.push(Event {
                        file: self.file,
                        operation: short,
                    });
                }
                return Err(rustix::io::Errno::IO.into());
            }
        }
        apply(&self.content, &operation)?;
        log.events.push(Event {
            file: self.file,
            operation,
        });
        Ok(())
    }
}

fn apply(content: &MemoryStorage, operation: &Operation) -> io::Result<()> {
    match *operation {
        Operation::Write { offset, ref data } => content.write_at(data, offset),
        Operation::Zero { offset, length } => content.write_zeroes_at(offset, length, true),
        Operation::Discard { offset, length } => content.discard_at(offset, length),
        Operation::Allocate { offset, length } => content.allocate_at(offset, length),
        Operation::SetLength(length) => content.set_length(length),
        Operation::Sync => Ok(()),
    }
}

impl Storage for RecordedStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.content.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.perform(Operation::Write {
            offset,
            data: buf.into(),
        })
    }

    fn write_zeroes_at(&self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.perform(Operation::Zero { offset, length })
    }

    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.perform(Operation::Discard { offset, length })
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.perform(Operation::Allocate { offset, length })
    }

    fn sync(&self) -> io::Result<()> {
        self.perform(Operation::Sync)
    }

    fn length(&self) -> io::Result<u64> {
        self.content.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.perform(Operation::SetLength(length))
    }
}

/// How the machine or the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Between two operations.
    Killed,
    /// Within a write, at a sector boundary: see [`Replay::torn`].
    Torn(usize),
    /// By a power cut: see [`Replay::power_lost`].
    PowerLost(u64),
}

/// A walk through a log. The states it gives share their pages with it: each
/// costs its own writes only.
#[derive(Debug)]
pub struct Replay {
    events: Vec<Event>,
    position: usize,
    /// All operations before `position`.
    applied: Vec<MemoryStorage>,
    /// Per file, all operations up to its last sync before `position`.
    durable: Vec<MemoryStorage>,
    /// Per file, the position after that sync.
    synced_at: Vec<usize>,
}

impl Replay {
    /// How many operations the log holds.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing was logged.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How many operations have been applied.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The operation that [`Self::advance`] would apply.
    pub fn next_event(&self) -> Option<&Event> {
        self.events.get(self.position)
    }

    /// Applies one more operation; false at the end of the log.
    pub fn advance(&mut self) -> bool {
        let Some(event) = self.events.get(self.position) else {
            return false;
        };
        self.position += 1;
        if matches!(event.operation, Operation::Sync) {
            self.durable[event.file] = self.applied[event.file].fork();
            self.synced_at[event.file] = self.position;
        } else {
            // What succeeded on the recorded storage succeeds on its copy.
            let _ = apply(&self.applied[event.file], &event.operation);
        }
        true
    }

    /// Walks to the end. At each position `visit` gets the files as a kill
    /// leaves them, as `tears` tears of the next write do (spread evenly where
    /// there are more), and as `cuts` power cuts do; with the position and the
    /// kind of crash. Returns the number of states visited.
    pub fn for_each_crash(
        &mut self,
        tears: usize,
        cuts: u64,
        mut visit: impl FnMut(usize, Crash, Vec<MemoryStorage>),
    ) -> u64 {
        let mut visited = 0;
        loop {
            let at = self.position;
            let mut crashes = vec![Crash::Killed];
            let possible = self.tears();
            let step = possible.div_ceil(tears.max(1)).max(1);
            let torn = (0..possible).skip(at % step).step_by(step).take(tears);
            crashes.extend(torn.map(Crash::Torn));
            // Seed 0, which loses everything, every few positions only.
            let first = u64::from(!at.is_multiple_of(8));
            crashes.extend((0..cuts).map(|cut| match first + cut {
                0 => Crash::PowerLost(0),
                cut => Crash::PowerLost((at as u64) << 8 | cut),
            }));
            for crash in crashes {
                let files = match crash {
                    Crash::Killed => self.killed(),
                    Crash::Torn(tear) => self.torn(tear),
                    Crash::PowerLost(seed) => self.power_lost(seed),
                };
                visit(at, crash, files);
                visited += 1;
            }
            if !self.advance() {
                return visited;
            }
        }
    }

    /// The files if the process is killed here.
    pub fn killed(&self) -> Vec<MemoryStorage> {
        self.applied.iter().map(MemoryStorage::fork).collect()
    }

    /// How many states [`Self::torn`] has here: the sector boundaries inside
    /// the next write.
    pub fn tears(&self) -> usize {
        match self.next_event().map(|event| &event.operation) {
            Some(Operation::Write { offset, data }) => {
                let first = SECTOR - (*offset % SECTOR as u64) as usize;
                data.len().saturating_sub(first).div_ceil(SECTOR)
            }
            _ => 0,
        }
    }

    /// The files if the process is killed when the next write has got to its
    /// sector boundary number `tear`, counted from 0 to [`Self::tears`].
    pub fn torn(&self, tear: usize) -> Vec<MemoryStorage> {
        let files = self.killed();
        if let Some(Event {
            file,
            operation: Operation::Write { offset, data },
        }) = self.next_event()
        {
            let first = SECTOR - (*offset % SECTOR as u64) as usize;
            let take = data.len().min(first + tear * SECTOR);
            let _ = files[*file].write_at(&data[..take], *offset);
        }
        files
    }

    /// The files after a power cut here. The operation that comes next may be
    /// under way already. The seed decides what is kept; seed 0 keeps nothing
    /// that is not durable.
    pub fn power_lost(&self, seed: u64) -> Vec<MemoryStorage> {
        let files: Vec<MemoryStorage> = self.durable.iter().map(MemoryStorage::fork).collect();
        if seed == 0 {
            return files;
        }
        let mut coins = Coins(SmallRng::seed_from_u64(seed));
        let first = self
            .synced_at
            .iter()
            .copied()
            .min()
            .unwrap_or(self.position);
        let last = self.events.len().min(self.position + 1);
        for (at, event) in self.events[..last].iter().enumerate().skip(first) {
            if at >= self.synced_at[event.file] {
                coins.apply(&files[event.file], &event.operation);
            }
        }
        files
    }
}

struct Coins(SmallRng);

impl Coins {
    fn keeps(&mut self) -> bool {
        self.0.random()
    }

    fn apply(&mut self, content: &MemoryStorage, operation: &Operation) {
        // As in `advance`: what succeeded once succeeds on the copy.
        let _ = match *operation {
            Operation::Write { offset, ref data } => {
                self.sectors(offset, data.len() as u64, |at, length| {
                    let start = (at - offset) as usize;
                    content.write_at(&data[start..start + length as usize], at)
                })
            }
            Operation::Zero { offset, length } => self.sectors(offset, length, |at, length| {
                content.write_zeroes_at(at, length, true)
            }),
            Operation::Discard { offset, length } => {
                // A file may end before the range does.
                let end = content.length().unwrap_or(0);
                let length = end.saturating_sub(offset).min(length);
                self.sectors(offset, length, |at, length| content.discard_at(at, length))
            }
            Operation::Sync => Ok(()),
            ref other if self.keeps() => apply(content, other),
            _ => Ok(()),
        };
    }

    /// Runs `keep` on the sectors of a range that the coin keeps; neighbours
    /// with the same luck in one call. Large ranges are tossed in 4096 pieces
    /// at most.
    fn sectors(
        &mut self,
        offset: u64,
        length: u64,
        keep: impl Fn(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + length;
        let unit = (length / 4096)
            .next_multiple_of(SECTOR as u64)
            .max(SECTOR as u64);
        let mut kept_from = None;
        let mut at = offset;
        while at < end {
            if self.keeps() {
                kept_from.get_or_insert(at);
            } else if let Some(start) = kept_from.take() {
                keep(start, at - start)?;
            }
            at = (at - at % unit + unit).min(end);
        }
        kept_from.map_or(Ok(()), |start| keep(start, end - start))
    }
}
