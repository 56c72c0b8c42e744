//! Serving one queue: requests go to the image's submission queue in parts, and come back in any
//! order.

use super::{
    ErrorPolicy, ReadErrorPolicy, Shared,
    request::{IO_ERROR, OK, Work, parse},
};
use crate::{
    event::MachineEvent,
    memory::GuestMemory,
    sandbox::Class,
    virtio::{
        ActiveQueue, Chain, Handler, QueueError, Ready, Segment, borrowed, host_range,
        mark_written, parts,
    },
};
use cenote_image::{
    Error, Image,
    queue::{IoBuffer, Queue},
};
use rustix::event::PollFlags;
use std::{
    collections::VecDeque,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
};

/// The most requests of a queue in flight.
const DEPTH: u16 = 128;
/// The most bytes that are asked of the image at once. The image may need a buffer of that size.
const PART: u64 = 2 << 20;
/// Rounds of taking and answering before the thread looks at what else is wanted of it.
const ROUNDS: usize = 16;
/// Length of a request's header.
const HEADER: u64 = 16;

const KICK: usize = 0;

/// A request that was taken from the queue.
#[derive(Default)]
struct Request {
    chain: Chain,
    work: Option<Work>,
    /// Bytes or ranges that were handed to the image.
    issued: u64,
    in_flight: u32,
    error: Option<Error>,
    /// A write-through write has been flushed.
    flushed: bool,
}

/// The handler of one queue.
pub(super) struct QueueWorker {
    shared: Arc<Shared>,
    /// None while the image is being changed, and after it was lost.
    engine: Option<Queue>,
    /// The engine without an image, meanwhile: once the monitor is shut in, nobody could make
    /// another one.
    idle: Option<Queue>,
    active: Option<(GuestMemory, ActiveQueue)>,
    /// The guest has broken the queue, or the host the engine: no request is answered any more.
    broken: bool,
    requests: Vec<Request>,
    free: Vec<u16>,
    /// Requests of which something is still to be issued.
    issuing: VecDeque<u16>,
    /// Requests that failed and wait for the machine to be stopped.
    stopped: Vec<u16>,
    buffers: Vec<IoBuffer>,
    chain: Chain,
    again: bool,
}

impl QueueWorker {
    pub(super) fn new(shared: Arc<Shared>, image: &Image) -> io::Result<Self> {
        let depth = shared.options.queue_size.min(DEPTH);
        let engine = image.queue(depth.into()).map_err(io::Error::other)?;
        Ok(Self {
            engine: Some(engine),
            idle: None,
            shared,
            active: None,
            broken: false,
            requests: (0..depth).map(|_| Request::default()).collect(),
            free: (0..depth).rev().collect(),
            issuing: VecDeque::new(),
            stopped: Vec::new(),
            buffers: Vec::new(),
            chain: Chain::default(),
            again: false,
        })
    }

    /// Takes over a queue, at rest, with requests that are to be made again.
    pub(super) fn activate(
        &mut self,
        memory: GuestMemory,
        queue: ActiveQueue,
        unfinished: &[u16],
    ) -> io::Result<()> {
        self.broken = false;
        for head in unfinished {
            let mut chain = std::mem::take(&mut self.chain);
            let read = queue.queue.lock().read_chain(&memory, *head, &mut chain);
            self.chain = chain;
            read.map_err(io::Error::other)?;
            if !self.start(&memory).map_err(io::Error::other)? {
                return Err(io::Error::other("too many unfinished requests"));
            }
        }
        self.active = Some((memory, queue));
        Ok(())
    }

    /// Lets go of the image, at rest.
    pub(super) fn detach(&mut self) -> Result<(), Error> {
        let Some(mut engine) = self.engine.take() else {
            return Ok(());
        };
        // Also when it fails: requests must not go where they went.
        let detached = engine.detach();
        self.idle = Some(engine);
        detached
    }

    /// Serves `image` from now on, at rest.
    pub(super) fn attach(&mut self, image: &Image) -> Result<(), Error> {
        let mut engine = self.engine.take().or(self.idle.take()).ok_or_else(lost)?;
        let attached = engine.attach(image);
        match attached {
            Ok(()) => self.engine = Some(engine),
            Err(_) => self.idle = Some(engine),
        }
        attached
    }

    fn in_flight(&self) -> usize {
        self.engine.as_ref().map_or(0, Queue::in_flight)
    }

    /// Forgets the queue and everything of its requests, at rest.
    pub(super) fn forget(&mut self) {
        self.active = None;
        self.broken = false;
        self.again = false;
        self.stopped.clear();
        self.issuing.clear();
        self.free = (0..self.requests.len() as u16).rev().collect();
    }

    /// The first descriptors of the requests that are to be made again, at rest.
    pub(super) fn unfinished(&self) -> Vec<u16> {
        let head = |index: &u16| self.requests[usize::from(*index)].chain.head;
        self.issuing.iter().map(head).collect()
    }

    /// Takes the request in `self.chain` over; false if there is no room.
    fn start(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let work = parse(&self.shared, memory, &self.chain)?;
        let Some(index) = self.free.pop() else {
            return Ok(false);
        };
        let request = &mut self.requests[usize::from(index)];
        std::mem::swap(&mut request.chain, &mut self.chain);
        request.work = Some(work);
        request.issued = 0;
        request.in_flight = 0;
        request.error = None;
        request.flushed = false;
        self.issuing.push_back(index);
        Ok(true)
    }

    /// One turn: takes requests, hands them on, answers what has come back.
    fn turn(&mut self) -> Result<(), QueueError> {
        let Some((memory, active)) = self.active.take() else {
            return Ok(());
        };
        let outcome = self.rounds(&memory, &active);
        self.active = Some((memory, active));
        outcome
    }

    fn rounds(&mut self, memory: &GuestMemory, active: &ActiveQueue) -> Result<(), QueueError> {
        self.again = false;
        for _ in 0..ROUNDS {
            let mut moved = self.take(memory, active)?;
            self.issue(memory, active)?;
            moved += self.collect(memory, active, false)?;
            if active.queue.lock().publish(memory)? {
                active.signal.raise();
            }
            if moved == 0 {
                self.again = self.has_room() && active.queue.lock().want_notifications(memory)?;
                if !self.again {
                    return Ok(());
                }
            }
        }
        self.again = true;
        Ok(())
    }

    fn has_room(&self) -> bool {
        !self.broken && self.stopped.is_empty() && !self.free.is_empty()
    }

    fn take(&mut self, memory: &GuestMemory, active: &ActiveQueue) -> Result<usize, QueueError> {
        let mut taken = 0;
        let mut queue = active.queue.lock();
        while self.has_room() && queue.pop(memory, &mut self.chain)? {
            self.start(memory)?;
            taken += 1;
        }
        if taken > 0 {
            queue.spare_notifications(memory)?;
        }
        Ok(taken)
    }

    /// Hands parts to the image while it has room.
    fn issue(&mut self, memory: &GuestMemory, active: &ActiveQueue) -> Result<(), QueueError> {
        while let Some(index) = self.issuing.front().copied() {
            let at = usize::from(index);
            let issued = loop {
                if !self.engine.as_ref().is_none_or(Queue::has_room) {
                    return Ok(());
                }
                match self.issue_part(memory, at) {
                    Ok(true) => {}
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            self.issuing.pop_front();
            if let Err(error) = issued {
                self.requests[at].error.get_or_insert(error);
            }
            if self.requests[at].in_flight == 0 {
                self.settle(memory, active, index)?;
            }
        }
        Ok(())
    }

    /// Hands one part of a request to the image; false if there is none left.
    fn issue_part(&mut self, memory: &GuestMemory, at: usize) -> Result<bool, Error> {
        let request = &mut self.requests[at];
        let Some(engine) = &mut self.engine else {
            return match request.work {
                None | Some(Work::Answer(_)) => Ok(false),
                Some(_) => Err(lost()),
            };
        };
        let tag = at as u64;
        let done = request.issued;
        let mut step = 1;
        match &request.work {
            None | Some(Work::Answer(_)) => return Ok(false),
            Some(Work::Flush) if done > 0 => return Ok(false),
            Some(Work::Flush) => engine.flush(tag)?,
            Some(Work::Discard(spans) | Work::WriteZeroes(spans)) => {
                let Some(span) = usize::try_from(done).ok().and_then(|i| spans.get(i)) else {
                    return Ok(false);
                };
                if matches!(request.work, Some(Work::Discard(_))) {
                    engine.discard(tag, span.offset, span.length)?;
                } else {
                    engine.write_zeroes(tag, span.offset, span.length, span.unmap)?;
                }
            }
            Some(Work::Read(range) | Work::Write(range)) => {
                let offset = range.start + done;
                if offset >= range.end {
                    return Ok(false);
                }
                step = (range.end - offset).min(PART);
                let read = matches!(request.work, Some(Work::Read(_)));
                let (segments, skip) = if read {
                    (&request.chain.writable, 0)
                } else {
                    (&request.chain.readable, HEADER)
                };
                let bytes = skip + done..skip + done + step;
                fill(&mut self.buffers, memory, segments, bytes);
                transfer(engine, tag, &self.buffers, offset, read)?;
            }
        }
        request.issued += step;
        request.in_flight += 1;
        Ok(true)
    }

    /// Takes what the image has finished and says how much that was.
    fn collect(
        &mut self,
        memory: &GuestMemory,
        active: &ActiveQueue,
        wait: bool,
    ) -> Result<usize, QueueError> {
        let Some(engine) = self.engine.as_mut().filter(|engine| engine.in_flight() > 0) else {
            return Ok(0);
        };
        let completions: Result<Vec<_>, Error> = if wait {
            engine.wait().map(Iterator::collect)
        } else {
            engine.poll().map(Iterator::collect)
        };
        let completions = match completions {
            Ok(completions) => completions,
            Err(error) => {
                self.broken = true;
                active.signal.fail(&error);
                return Ok(0);
            }
        };
        let count = completions.len();
        for completion in completions {
            // Tags are numbers of requests.
            let index = completion.tag as u16;
            let request = &mut self.requests[usize::from(index)];
            request.in_flight -= 1;
            if let Err(error) = completion.result {
                request.error.get_or_insert(error);
            }
            if request.in_flight == 0 && !self.issuing.contains(&index) {
                self.settle(memory, active, index)?;
            }
        }
        Ok(count)
    }

    /// A request of which nothing is under way any more is answered, flushed, or kept.
    fn settle(
        &mut self,
        memory: &GuestMemory,
        active: &ActiveQueue,
        index: u16,
    ) -> Result<(), QueueError> {
        let request = &mut self.requests[usize::from(index)];
        let Some(work) = &request.work else {
            return Ok(());
        };
        let writes = matches!(
            work,
            Work::Write(_) | Work::Discard(_) | Work::WriteZeroes(_)
        );
        if writes
            && request.error.is_none()
            && !request.flushed
            && self.shared.write_through.load(Ordering::SeqCst)
        {
            request.flushed = true;
            let flushed = self.engine.as_mut().ok_or_else(lost);
            match flushed.and_then(|engine| engine.flush(index.into())) {
                Ok(()) => {
                    request.in_flight = 1;
                    return Ok(());
                }
                Err(error) => request.error = Some(error),
            }
        }
        if let Work::Read(range) = work {
            mark_written(memory, &request.chain.writable, range.end - range.start);
        }
        let status = match (work, &request.error) {
            (Work::Answer(status), _) => *status,
            (_, None) => OK,
            (_, Some(error)) => match judge(&self.shared, work, error) {
                Verdict::Report => IO_ERROR,
                Verdict::Ignore => OK,
                Verdict::Stop => {
                    self.stopped.push(index);
                    self.shared.events.signal(MachineEvent::IoError);
                    return Ok(());
                }
            },
        };
        self.shared.counters.count(work, request.error.is_some());
        let length = request.chain.writable_length();
        request.chain.write(memory, length - 1, &[status]);
        if !self.broken {
            // A chain describes at most 4 GiB less one byte.
            let mut queue = active.queue.lock();
            queue.push(memory, request.chain.head, length as u32)?;
        }
        request.work = None;
        self.free.push(index);
        Ok(())
    }

    /// Waits for everything under way. What is to be made again is issued after the rest.
    fn drain(&mut self) -> Result<(), QueueError> {
        let Some((memory, active)) = self.active.take() else {
            return Ok(());
        };
        let outcome = self.drain_all(&memory, &active);
        // Nothing may be under way in the guest's memory after this, whatever went wrong.
        while let Some(engine) = self.engine.as_mut().filter(|engine| engine.in_flight() > 0)
            && engine.wait().is_ok()
        {}
        self.active = Some((memory, active));
        outcome
    }

    fn drain_all(&mut self, memory: &GuestMemory, active: &ActiveQueue) -> Result<(), QueueError> {
        while !self.broken && (self.in_flight() > 0 || !self.issuing.is_empty()) {
            self.issue(memory, active)?;
            self.collect(memory, active, true)?;
        }
        if !self.broken && active.queue.lock().publish(memory)? {
            active.signal.raise();
        }
        for index in std::mem::take(&mut self.stopped) {
            let request = &mut self.requests[usize::from(index)];
            request.issued = 0;
            request.error = None;
            request.flushed = false;
            self.issuing.push_back(index);
        }
        Ok(())
    }

    fn fail(&mut self, error: QueueError) {
        self.broken = true;
        if let Some((_, active)) = &self.active {
            active.signal.fail(&error);
        }
    }
}

impl Handler for QueueWorker {
    fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let Some((_, active)) = &self.active else {
            return Vec::new();
        };
        let mut all = Vec::with_capacity(2);
        // A queue that is full, stopped or broken is not listened to.
        let flags = if self.has_room() {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        all.push((borrowed(&active.kick), flags));
        all.extend(
            self.engine
                .as_ref()
                .map(|engine| (engine.event(), PollFlags::IN)),
        );
        all
    }

    fn work(&mut self, ready: &Ready) {
        if ready.has(KICK)
            && let Some((_, active)) = &self.active
        {
            active.clear_kick();
        }
        if let Err(error) = self.turn() {
            self.fail(error);
        }
    }

    fn class(&self) -> Class {
        Class::Disk
    }

    fn wants_turn(&self) -> bool {
        self.again && !self.broken
    }

    fn rest(&mut self) {
        if let Err(error) = self.drain() {
            self.fail(error);
        }
    }
}

/// What is to be done about an error.
enum Verdict {
    Report,
    Ignore,
    Stop,
}

fn judge(shared: &Shared, work: &Work, error: &Error) -> Verdict {
    let disk = &shared.options.name;
    let no_space = matches!(error, Error::NoSpace { .. });
    let verdict = if matches!(work, Work::Read(_)) {
        match shared.options.read_error_policy {
            ReadErrorPolicy::Report => Verdict::Report,
            ReadErrorPolicy::Ignore => Verdict::Ignore,
            ReadErrorPolicy::Stop => Verdict::Stop,
        }
    } else {
        match shared.options.error_policy {
            ErrorPolicy::Report => Verdict::Report,
            ErrorPolicy::Ignore => Verdict::Ignore,
            ErrorPolicy::Stop => Verdict::Stop,
            ErrorPolicy::Enospace if no_space => Verdict::Stop,
            ErrorPolicy::Enospace => Verdict::Report,
        }
    };
    let then = match verdict {
        Verdict::Report => "the guest is told",
        Verdict::Ignore => "the guest is not told",
        Verdict::Stop => "the machine is stopped",
    };
    tracing::error!(disk, %error, then, "a request failed");
    verdict
}

fn lost() -> Error {
    Error::invalid("disk", "is not open")
}

fn fill(
    buffers: &mut Vec<IoBuffer>,
    memory: &GuestMemory,
    segments: &[Segment],
    bytes: std::ops::Range<u64>,
) {
    buffers.clear();
    buffers.extend(
        parts(segments, bytes)
            .filter_map(|part| host_range(memory, part))
            .map(|(base, length)| IoBuffer::new(base, length)),
    );
}

#[allow(unsafe_code)] // The image reads and writes guest memory by address.
fn transfer(
    engine: &mut Queue,
    tag: u64,
    buffers: &[IoBuffer],
    offset: u64,
    read: bool,
) -> Result<(), Error> {
    // SAFETY: the buffers lie in guest memory, of which the worker holds the mapping until all
    // requests have come back: it is dropped with the worker at the earliest, and `drain` waits
    // for them before the queue is forgotten. References to guest memory are never made.
    unsafe {
        if read {
            engine.read_vectored(tag, buffers, offset)
        } else {
            engine.write_vectored(tag, buffers, offset)
        }
    }
}
