//! One pass over the spans of a file: writing it, and reading it back.
//!
//! Position means bytes from the first span on, gaps not counted: a pass is at
//! a position when all before it is written. The generator of random data and
//! the comparison run on threads of their own, so that requests stay in flight.

mod verify;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cenote_image::storage::Storage;

use super::algorithm::Pass;
use super::buffer::{Buffer, Memory};
use super::error::{Error, Result};
use super::extents::Span;
use super::keystream::PassKey;

pub(super) use verify::{Portion, verify};
pub(super) use write::write;

/// How much memory and depth a pass takes.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Bytes of one request; a multiple of 4096.
    pub chunk: usize,
    /// Requests in flight.
    pub depth: u32,
    /// How often what is written is synced and recorded.
    pub checkpoint: Duration,
}

impl Default for Tuning {
    /// A request is a huge page, and all memory together stays in a processor's shared cache:
    /// with twice the memory, passes and verification were a tenth slower.
    fn default() -> Self {
        Self {
            chunk: 2 << 20,
            depth: 3,
            checkpoint: Duration::from_secs(1),
        }
    }
}

impl Tuning {
    /// Buffers that a random pass or a verification holds at most: those in flight, and those
    /// that are filled or compared meanwhile.
    fn buffers(&self) -> u16 {
        u16::try_from(self.depth.saturating_add(2).clamp(3, 64)).unwrap_or(64)
    }

    /// The memory for a wipe, touched: see [`Memory`].
    pub(super) fn memory(&self) -> Memory {
        Memory::touched(self.buffers(), self.chunk)
    }

    /// Shared among `volumes` wiped side by side, so that memory stays bounded.
    #[must_use]
    pub fn shared_among(&self, volumes: usize) -> Self {
        let volumes = volumes.clamp(1, 64);
        let chunk = (self.chunk / volumes).max(64 << 10) / 4096 * 4096;
        Self {
            chunk,
            ..self.clone()
        }
    }
}

/// What the pass asks of its owner.
pub(super) trait Hooks {
    /// All before `position` is transferred. `Stop` ends the pass in order.
    fn advanced(&mut self, position: u64) -> Result<Flow>;
    /// All before `position` is on stable storage.
    fn durable(&mut self, position: u64) -> Result<()>;
    /// A range could not be transferred, or read back wrong.
    fn failed(&mut self, fault: Fault) -> Result<Flow>;
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Stop,
}

/// A range with a fault.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) kind: FaultKind,
}

#[derive(Debug)]
pub(super) enum FaultKind {
    Write(io::Error),
    Read(io::Error),
    /// What was read is not what was written, first at this offset.
    Mismatch(u64),
}

impl FaultKind {
    /// Whether the error is one of the medium at that place; the rest of the
    /// file can still be reached. Anything else concerns the whole file.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Mismatch(_) => true,
            Self::Write(error) | Self::Read(error) => matches!(
                error.raw_os_error(),
                Some(
                    libc::EIO
                        | libc::ENODATA
                        | libc::EILSEQ
                        | libc::EREMOTEIO
                        | libc::ETIMEDOUT
                        | libc::EBADMSG
                        | libc::EUCLEAN
                )
            ),
        }
    }
}

/// A pass over a file.
pub(super) struct PassRun<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) spans: &'a [Span],
    pub(super) content: Content,
    pub(super) tuning: &'a Tuning,
    pub(super) limiter: &'a Limiter,
    pub(super) memory: &'a Memory,
}

/// What a pass writes, ready to be made.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Pattern(&'static [u8]),
    Random(PassKey),
}

impl Content {
    pub(super) fn new(pass: Pass, key: impl FnOnce() -> PassKey) -> Self {
        match pass {
            Pass::Pattern(bytes) => Self::Pattern(bytes),
            Pass::Random => Self::Random(key()),
        }
    }
}

/// A piece of a span, at most a request long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    position: u64,
    offset: u64,
    length: usize,
}

/// The chunks of `spans` from `start` on. Only the last of a file can be no
/// multiple of `alignment`, and that odd rest stands alone.
fn chunks(
    spans: &[Span],
    start: u64,
    size: usize,
    alignment: usize,
) -> impl Iterator<Item = Chunk> {
    let mut base = 0;
    let (size, alignment) = (size as u64, alignment as u64);
    let starts = spans.iter().map(move |span| {
        let position = base;
        base += span.length;
        (position, *span)
    });
    starts
        .filter(move |(position, span)| position + span.length > start)
        .flat_map(move |(position, span)| {
            let mut done = start.saturating_sub(position);
            std::iter::from_fn(move || {
                let left = span.length - done;
                if left == 0 {
                    return None;
                }
                let whole = left.min(size);
                let length = if whole < alignment {
                    whole
                } else {
                    whole / alignment * alignment
                };
                let chunk = Chunk {
                    position: position + done,
                    offset: span.offset + done,
                    length: length as usize,
                };
                done += length;
                Some(chunk)
            })
        })
}

/// Constant patterns in memory: one buffer for each place an offset can have
/// within the pattern.
struct Constant(Vec<Arc<Buffer>>);

impl Constant {
    fn new(pattern: &[u8], set: Vec<Buffer>) -> Self {
        debug_assert_eq!(pattern.len(), set.len());
        let phases = set.into_iter().map(|mut buffer| {
            let mut bytes = pattern.iter().cycle().skip(buffer.index.into());
            if let [byte] = pattern {
                buffer.fill(*byte);
            } else {
                buffer
                    .iter_mut()
                    .zip(&mut bytes)
                    .for_each(|(to, from)| *to = *from);
            }
            Arc::new(buffer)
        });
        Self(phases.collect())
    }

    fn at(&self, offset: u64) -> &Arc<Buffer> {
        // At most three phases; never empty, as no table has an empty pattern.
        &self.0[(offset % self.0.len() as u64) as usize]
    }
}

/// Positions in flight, and so how far all is done.
struct Watermark {
    flying: BTreeSet<u64>,
    next: u64,
}

impl Watermark {
    fn position(&self) -> u64 {
        self.flying.first().copied().unwrap_or(self.next)
    }

    fn began(&mut self, chunk: Chunk) {
        self.flying.insert(chunk.position);
        self.next = chunk.position + chunk.length as u64;
    }
}

/// Joins neighbouring faults before they are reported.
#[derive(Default)]
struct Faults(Option<Fault>);

impl Faults {
    fn add(
        &mut self,
        offset: u64,
        length: u64,
        kind: FaultKind,
        hooks: &mut dyn Hooks,
    ) -> Result<Flow> {
        match &mut self.0 {
            Some(last) if last.offset + last.length == offset => last.length += length,
            _ => {
                let flow = std::mem::take(self).finish(hooks)?;
                self.0 = Some(Fault {
                    offset,
                    length,
                    kind,
                });
                return Ok(flow);
            }
        }
        Ok(Flow::Continue)
    }

    fn finish(self, hooks: &mut dyn Hooks) -> Result<Flow> {
        self.0
            .map_or(Ok(Flow::Continue), |fault| hooks.failed(fault))
    }
}

fn ring_error(source: io::Error) -> Error {
    Error::Io {
        path: "io_uring".into(),
        action: "submit requests to",
        source,
    }
}

/// Keeps the rate below a number of bytes per second.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: Option<u64>,
    free_at: Mutex<Instant>,
}

/// Longest sleep between two looks at whether to stop.
const NAP: Duration = Duration::from_millis(100);

impl Limiter {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self {
            rate: rate.filter(|rate| *rate > 0),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Sleeps until `bytes` more may go; `awake` is asked between naps.
    fn wait(&self, bytes: usize, mut awake: impl FnMut() -> Result<Flow>) -> Result<Flow> {
        let Some(rate) = self.rate else {
            return Ok(Flow::Continue);
        };
        loop {
            let now = Instant::now();
            let mut next = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let free_at = *next;
            if free_at <= now {
                // Time that went by unused is not saved up.
                *next = now + Duration::from_secs_f64(bytes as f64 / rate as f64);
                return Ok(Flow::Continue);
            }
            drop(next);
            if awake()? == Flow::Stop {
                return Ok(Flow::Stop);
            }
            std::thread::sleep((free_at - now).min(NAP));
        }
    }
}

#[cfg(test)]
mod tests;
