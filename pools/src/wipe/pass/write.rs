//! Writing a pass: generator threads ahead of the requests in flight.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::super::buffer::Buffer;
use super::super::error::Result;
use super::super::keystream::KeyStream;
use super::super::queue::{self, Lease, Queue, Request};
use super::{
    Chunk, Constant, Content, Fault, FaultKind, Faults, Flow, Hooks, PassRun, Watermark, chunks,
    ring_error,
};

/// Chunks ready to be written, in order.
enum Supply<'a> {
    Constant(Constant, Box<dyn Iterator<Item = Chunk> + 'a>),
    Generated(Generated),
}

/// What the generators have made. They end chunks in any order; what is
/// written before a position must have no gaps, so they are put in order here.
struct Generated {
    ready: Receiver<(Buffer, Chunk)>,
    free: Sender<Buffer>,
    early: BTreeMap<u64, (Buffer, Chunk)>,
    /// Position of the chunk whose turn it is.
    turn: u64,
}

impl Generated {
    fn next(&mut self, wait: bool) -> Option<(Buffer, Chunk)> {
        loop {
            if let Some((buffer, chunk)) = self.early.remove(&self.turn) {
                self.turn += chunk.length as u64;
                return Some((buffer, chunk));
            }
            // Whoever makes that chunk has its buffer already: it will come.
            let (buffer, chunk) = if wait {
                self.ready.recv().ok()?
            } else {
                self.ready.try_recv().ok()?
            };
            self.early.insert(chunk.position, (buffer, chunk));
        }
    }
}

impl Supply<'_> {
    /// The next chunk; with `wait` only `None` at the end, else also when the
    /// generators have not finished it.
    fn next(&mut self, wait: bool) -> Option<(Lease, Chunk)> {
        match self {
            Self::Constant(constant, chunks) => {
                let chunk = chunks.next()?;
                Some((Lease::Shared(constant.at(chunk.offset).clone()), chunk))
            }
            Self::Generated(generated) => {
                let (buffer, chunk) = generated.next(wait)?;
                Some((Lease::Own(buffer), chunk))
            }
        }
    }

    fn take_back(&self, lease: Lease) {
        if let (Self::Generated(Generated { free, .. }), Lease::Own(buffer)) = (self, lease) {
            // The generators are gone when all is generated.
            let _ = free.send(buffer);
        }
    }
}

/// One generator makes about as much as the fastest disks take and gets in
/// its own way when the memory it fills was just read by a device; two keep up.
const GENERATORS: usize = 2;

/// What is still to be made, and the memory for it.
struct Work<I> {
    chunks: I,
    free: Receiver<Buffer>,
}

/// Fills buffers with the key stream until the chunks or the takers end.
fn generate<I: Iterator<Item = Chunk>>(
    stream: &KeyStream,
    work: &Mutex<Work<I>>,
    ready: &Sender<(Buffer, Chunk)>,
) {
    loop {
        let (mut buffer, chunk) = {
            let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
            // Memory first: a chunk taken is a chunk that will be made.
            let Ok(buffer) = work.free.recv() else { return };
            let Some(chunk) = work.chunks.next() else {
                return;
            };
            (buffer, chunk)
        };
        stream.fill(&mut buffer[..chunk.length], chunk.offset);
        if ready.send((buffer, chunk)).is_err() {
            return;
        }
    }
}

/// Writes the pass from `start` on and syncs it. `Stop` where a hook asked.
pub(in super::super) fn write(
    run: &PassRun<'_>,
    start: u64,
    hooks: &mut dyn Hooks,
) -> Result<Flow> {
    let PassRun {
        storage,
        spans,
        tuning,
        memory,
        ..
    } = *run;
    let alignment = storage.alignment();
    let all = chunks(spans, start, tuning.chunk, alignment);
    match &run.content {
        Content::Pattern(pattern) => {
            let constant = Constant::new(pattern, memory.take(pattern.len() as u16, tuning.chunk));
            let buffers: Vec<&Buffer> = constant.0.iter().map(AsRef::as_ref).collect();
            let queue = queue::open(storage, tuning.depth, &buffers);
            Writer::new(run, queue, start).run(Supply::Constant(constant, Box::new(all)), hooks)
        }
        Content::Random(key) => {
            let (free, to_fill) = channel();
            let (filled, ready) = channel();
            let buffers = memory.take(tuning.buffers(), tuning.chunk);
            let queue = queue::open(storage, tuning.depth, &buffers.iter().collect::<Vec<_>>());
            for buffer in buffers {
                let _ = free.send(buffer);
            }
            let stream = key.stream();
            let work = Mutex::new(Work {
                chunks: all,
                free: to_fill,
            });
            let supply = Supply::Generated(Generated {
                ready,
                free,
                early: BTreeMap::new(),
                turn: start,
            });
            std::thread::scope(|scope| {
                for _ in 0..GENERATORS {
                    let filled = filled.clone();
                    let (stream, work) = (&stream, &work);
                    scope.spawn(move || generate(stream, work, &filled));
                }
                drop(filled);
                Writer::new(run, queue, start).run(supply, hooks)
            })
        }
    }
}

struct Writer<'a> {
    run: &'a PassRun<'a>,
    queue: Box<dyn Queue + 'a>,
    mark: Watermark,
    /// Where each chunk in flight begins, by offset.
    positions: HashMap<u64, u64>,
    checkpoint: Instant,
}

impl<'a> Writer<'a> {
    fn new(run: &'a PassRun<'a>, queue: Box<dyn Queue + 'a>, start: u64) -> Self {
        let mark = Watermark {
            flying: BTreeSet::new(),
            next: start,
        };
        let positions = HashMap::new();
        Self {
            run,
            queue,
            mark,
            positions,
            checkpoint: Instant::now(),
        }
    }

    fn run(mut self, mut supply: Supply<'_>, hooks: &mut dyn Hooks) -> Result<Flow> {
        let mut flow = hooks.advanced(self.mark.position())?;
        loop {
            while flow == Flow::Continue && self.queue.in_flight() < self.run.tuning.depth as usize
            {
                let Some((lease, chunk)) = supply.next(self.queue.in_flight() == 0) else {
                    break;
                };
                flow = self.begin(lease, chunk, &supply, hooks)?;
            }
            if self.queue.in_flight() == 0 {
                break;
            }
            if self.end_one(&supply, hooks)? == Flow::Stop {
                flow = Flow::Stop;
            }
        }
        self.sync(hooks)?;
        Ok(flow)
    }

    fn begin(
        &mut self,
        lease: Lease,
        chunk: Chunk,
        supply: &Supply<'_>,
        hooks: &mut dyn Hooks,
    ) -> Result<Flow> {
        let position = self.mark.position();
        if self
            .run
            .limiter
            .wait(chunk.length, || hooks.advanced(position))?
            == Flow::Stop
        {
            return Ok(Flow::Stop);
        }
        let request = Request {
            lease,
            offset: chunk.offset,
            length: chunk.length,
            write: true,
        };
        if chunk.length.is_multiple_of(self.run.storage.alignment()) {
            self.mark.began(chunk);
            self.positions.insert(chunk.offset, chunk.position);
            self.queue.submit(request).map_err(ring_error)?;
            return Ok(Flow::Continue);
        }
        // The odd rest of a file, past any alignment a ring could write. It goes
        // through the page cache, where the page it makes dirty may reach back
        // over blocks that are still being written directly; the kernel would
        // report that clash at the next sync as lost data.
        while self.queue.in_flight() > 0 {
            if self.end_one(supply, hooks)? == Flow::Stop {
                supply.take_back(request.lease);
                return Ok(Flow::Stop);
            }
        }
        self.mark.next = chunk.position + chunk.length as u64;
        let result = match &request.lease {
            Lease::Own(buffer) => self
                .run
                .storage
                .write_at(&buffer[..chunk.length], chunk.offset),
            Lease::Shared(buffer) => self
                .run
                .storage
                .write_at(&buffer[..chunk.length], chunk.offset),
        };
        let flow = match result {
            Ok(()) => Flow::Continue,
            Err(error) => self.isolate(&request, error, hooks)?,
        };
        supply.take_back(request.lease);
        Ok(flow)
    }

    fn end_one(&mut self, supply: &Supply<'_>, hooks: &mut dyn Hooks) -> Result<Flow> {
        let done = self.queue.complete().map_err(ring_error)?;
        let mut flow = Flow::Continue;
        if let Err(error) = done.result {
            flow = self.isolate(&done.request, error, hooks)?;
        }
        if let Some(position) = self.positions.remove(&done.request.offset) {
            self.mark.flying.remove(&position);
        }
        supply.take_back(done.request.lease);
        if hooks.advanced(self.mark.position())? == Flow::Stop {
            flow = Flow::Stop;
        }
        if self.checkpoint.elapsed() >= self.run.tuning.checkpoint {
            self.sync(hooks)?;
        }
        Ok(flow)
    }

    fn sync(&mut self, hooks: &mut dyn Hooks) -> Result<()> {
        let position = self.mark.position();
        match self.run.storage.sync() {
            Ok(()) => hooks.durable(position)?,
            // What did not reach the medium is not known: all of it is in doubt.
            Err(error) => {
                let length = self
                    .run
                    .spans
                    .last()
                    .map_or(0, |span| span.offset + span.length);
                let kind = FaultKind::Write(error);
                hooks.failed(Fault {
                    offset: 0,
                    length,
                    kind,
                })?;
            }
        }
        self.checkpoint = Instant::now();
        Ok(())
    }

    /// Writes a failed chunk block by block, so that only what the medium
    /// refuses is lost.
    fn isolate(&self, request: &Request, error: io::Error, hooks: &mut dyn Hooks) -> Result<Flow> {
        let Request { offset, length, .. } = *request;
        let kind = FaultKind::Write(error);
        if !kind.is_local() {
            hooks.failed(Fault {
                offset,
                length: length as u64,
                kind,
            })?;
            return Ok(Flow::Stop);
        }
        let buffer: &Buffer = match &request.lease {
            Lease::Own(buffer) => buffer,
            Lease::Shared(buffer) => buffer,
        };
        let block = self.run.storage.alignment().clamp(512, 4096);
        let mut aligned = Buffer::new(block);
        let mut faults = Faults::default();
        for (number, part) in buffer[..length].chunks(block).enumerate() {
            let at = offset + (number * block) as u64;
            aligned[..part.len()].copy_from_slice(part);
            if let Err(error) = self.run.storage.write_at(&aligned[..part.len()], at) {
                let kind = FaultKind::Write(error);
                if faults.add(at, part.len() as u64, kind, hooks)? == Flow::Stop {
                    return Ok(Flow::Stop);
                }
            }
        }
        faults.finish(hooks)
    }
}
