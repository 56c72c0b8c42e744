//! Reading a pass back: requests in flight, a thread that compares behind them.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use super::super::buffer::Buffer;
use super::super::error::Result;
use super::super::keystream::KeyStream;
use super::super::queue::{self, Lease, Queue, Request};
use super::{
    Chunk, Constant, Content, Fault, FaultKind, Faults, Flow, Hooks, PassRun, Tuning, Watermark,
    chunks, ring_error,
};

/// Bytes compared at a time: a whole number of every pattern, and so few that the expected ones
/// stay in the first-level cache.
const PIECE: usize = 12 << 10;

/// Compares what was read with what was written.
enum Expected {
    Constant(Constant),
    Random(Box<KeyStream>),
}

impl Expected {
    /// The offset of the first byte that differs.
    fn check(&self, buffer: &[u8], offset: u64) -> Option<u64> {
        let wrong = match self {
            Self::Random(stream) => stream.check(buffer, offset).err()?,
            Self::Constant(constant) => {
                let expected = constant.at(offset);
                let (number, piece) = buffer
                    .chunks(PIECE)
                    .enumerate()
                    .find(|(_, piece)| expected[..piece.len()] != **piece)?;
                let within = expected.iter().zip(piece).position(|(a, b)| a != b)?;
                number * PIECE + within
            }
        };
        Some(offset + wrong as u64)
    }
}

struct Checked {
    buffer: Buffer,
    chunk: Chunk,
    wrong: Option<u64>,
}

/// Which part of a pass is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Portion {
    All,
    /// Percent, 1 to 99.
    Sample(u8),
}

/// Reads the pass back from `start` on and compares. Gives the bytes read.
pub(in super::super) fn verify(
    run: &PassRun<'_>,
    start: u64,
    portion: Portion,
    hooks: &mut dyn Hooks,
) -> Result<(Flow, u64)> {
    let PassRun {
        storage,
        spans,
        tuning,
        memory,
        ..
    } = *run;
    // A sample of small pieces says more than one of large ones, and takes more of them at a time.
    let tuning = &match portion {
        Portion::All => tuning.clone(),
        Portion::Sample(_) => Tuning {
            chunk: tuning.chunk.min(64 << 10),
            depth: tuning.depth.max(8),
            ..tuning.clone()
        },
    };
    let size = tuning.chunk;
    let total: u64 = spans.iter().map(|span| span.length).sum();
    let chosen = chunks(spans, start, size, storage.alignment())
        .filter(move |chunk| chosen(portion, *chunk, total));
    let expected = match &run.content {
        Content::Pattern(pattern) => {
            debug_assert!(PIECE.is_multiple_of(pattern.len()));
            Expected::Constant(Constant::new(
                pattern,
                Buffer::set(pattern.len() as u16, PIECE),
            ))
        }
        Content::Random(key) => Expected::Random(Box::new(key.stream())),
    };
    let buffers = memory.take(tuning.buffers(), size);
    let queue = queue::open(storage, tuning.depth, &buffers.iter().collect::<Vec<_>>());
    let (to_check, work) = channel::<(Buffer, Chunk)>();
    let (give, checked) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || compare(expected, &work, &give));
        let mark = Watermark {
            flying: BTreeSet::new(),
            next: start,
        };
        Reader {
            run,
            depth: tuning.depth as usize,
            queue,
            buffers,
            to_check,
            checked,
            mark,
            checking: 0,
            read: 0,
        }
        .run(chosen, hooks)
    })
}

fn chosen(portion: Portion, chunk: Chunk, total: u64) -> bool {
    match portion {
        Portion::All => true,
        // First and last piece always: partition tables and their copies.
        Portion::Sample(percent) => {
            chunk.position == 0
                || chunk.position + chunk.length as u64 == total
                || rand::random_range(0..100) < percent
        }
    }
}

fn compare(expected: Expected, work: &Receiver<(Buffer, Chunk)>, give: &Sender<Checked>) {
    for (buffer, chunk) in work {
        let wrong = expected.check(&buffer[..chunk.length], chunk.offset);
        if give
            .send(Checked {
                buffer,
                chunk,
                wrong,
            })
            .is_err()
        {
            return;
        }
    }
}

struct Reader<'a> {
    run: &'a PassRun<'a>,
    /// Requests in flight.
    depth: usize,
    queue: Box<dyn Queue + 'a>,
    buffers: Vec<Buffer>,
    to_check: Sender<(Buffer, Chunk)>,
    checked: Receiver<Checked>,
    mark: Watermark,
    checking: usize,
    read: u64,
}

impl Reader<'_> {
    fn run(
        mut self,
        mut chunks: impl Iterator<Item = Chunk>,
        hooks: &mut dyn Hooks,
    ) -> Result<(Flow, u64)> {
        let mut flow = hooks.advanced(self.mark.position())?;
        let mut reading = HashMap::new();
        loop {
            while flow == Flow::Continue && self.queue.in_flight() < self.depth {
                let Some(buffer) = self.buffers.pop() else {
                    break;
                };
                let Some(chunk) = chunks.next() else {
                    self.buffers.push(buffer);
                    break;
                };
                self.mark.began(chunk);
                reading.insert(chunk.offset, chunk);
                if self.begin(buffer, chunk, hooks)? == Flow::Stop {
                    flow = Flow::Stop;
                }
            }
            let idle = self.queue.in_flight() == 0;
            if idle && self.checking == 0 {
                return Ok((flow, self.read));
            }
            if !idle {
                flow = stop_first(flow, self.end_one(&mut reading, hooks)?);
            }
            flow = stop_first(flow, self.results(idle, hooks)?);
        }
    }

    fn begin(&mut self, mut buffer: Buffer, chunk: Chunk, hooks: &mut dyn Hooks) -> Result<Flow> {
        let position = self.mark.position();
        if self
            .run
            .limiter
            .wait(chunk.length, || hooks.advanced(position))?
            == Flow::Stop
        {
            self.mark.flying.remove(&chunk.position);
            return Ok(Flow::Stop);
        }
        let Chunk { offset, length, .. } = chunk;
        if length.is_multiple_of(self.run.storage.alignment()) {
            let request = Request {
                lease: Lease::Own(buffer),
                offset,
                length,
                write: false,
            };
            self.queue.submit(request).map_err(ring_error)?;
            return Ok(Flow::Continue);
        }
        let result = self.run.storage.read_at(&mut buffer[..length], offset);
        self.arrived(buffer, chunk, result, hooks)
    }

    fn end_one(
        &mut self,
        reading: &mut HashMap<u64, Chunk>,
        hooks: &mut dyn Hooks,
    ) -> Result<Flow> {
        let done = self.queue.complete().map_err(ring_error)?;
        match (done.request.lease, reading.remove(&done.request.offset)) {
            (Lease::Own(buffer), Some(chunk)) => self.arrived(buffer, chunk, done.result, hooks),
            _ => Ok(Flow::Continue),
        }
    }

    fn arrived(
        &mut self,
        mut buffer: Buffer,
        chunk: Chunk,
        result: io::Result<()>,
        hooks: &mut dyn Hooks,
    ) -> Result<Flow> {
        if let Err(error) = result {
            let flow = self.isolate(&mut buffer, chunk, error, hooks)?;
            self.mark.flying.remove(&chunk.position);
            self.buffers.push(buffer);
            return Ok(flow);
        }
        self.read += chunk.length as u64;
        self.checking += 1;
        if self.to_check.send((buffer, chunk)).is_err() {
            return Err(ring_error(io::Error::other("the comparing thread ended")));
        }
        Ok(Flow::Continue)
    }

    /// Takes what the comparing thread has finished; waits for one if nothing
    /// else is going on.
    fn results(&mut self, mut wait: bool, hooks: &mut dyn Hooks) -> Result<Flow> {
        let mut flow = Flow::Continue;
        wait |= self.buffers.is_empty();
        while self.checking > 0 {
            let next = match self.checked.try_recv() {
                Err(TryRecvError::Empty) if wait => self.checked.recv().ok(),
                Err(_) => None,
                Ok(checked) => Some(checked),
            };
            let Some(Checked {
                buffer,
                chunk,
                wrong,
            }) = next
            else {
                break;
            };
            wait = false;
            self.checking -= 1;
            self.buffers.push(buffer);
            self.mark.flying.remove(&chunk.position);
            if let Some(wrong) = wrong {
                let length = chunk.offset + chunk.length as u64 - wrong;
                let fault = Fault {
                    offset: wrong,
                    length,
                    kind: FaultKind::Mismatch(wrong),
                };
                flow = stop_first(flow, hooks.failed(fault)?);
            }
            flow = stop_first(flow, hooks.advanced(self.mark.position())?);
        }
        Ok(flow)
    }

    /// Reads a failed chunk block by block. Blocks that can be read are
    /// compared by the next attempt of the caller, not here: one fault in a
    /// chunk is enough to fail it.
    fn isolate(
        &mut self,
        buffer: &mut Buffer,
        chunk: Chunk,
        error: io::Error,
        hooks: &mut dyn Hooks,
    ) -> Result<Flow> {
        let kind = FaultKind::Read(error);
        if !kind.is_local() {
            let (offset, length) = (chunk.offset, chunk.length as u64);
            hooks.failed(Fault {
                offset,
                length,
                kind,
            })?;
            return Ok(Flow::Stop);
        }
        let block = self.run.storage.alignment().clamp(512, 4096);
        let mut faults = Faults::default();
        for number in 0..chunk.length.div_ceil(block) {
            let at = chunk.offset + (number * block) as u64;
            let length = block.min(chunk.length - number * block);
            if let Err(error) = self.run.storage.read_at(&mut buffer[..length], at) {
                let kind = FaultKind::Read(error);
                if faults.add(at, length as u64, kind, hooks)? == Flow::Stop {
                    return Ok(Flow::Stop);
                }
            }
        }
        faults.finish(hooks)
    }
}

fn stop_first(a: Flow, b: Flow) -> Flow {
    if a == Flow::Stop { a } else { b }
}
