//! The transmission phase: one reader, and workers that it starts as requests
//! pile up.

use std::collections::VecDeque;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::Scope;

use parking_lot::{Condvar, Mutex};

use super::device::{BlockDevice, DeviceExtent};
use super::negotiate::Agreement;
use super::protocol::{
    BASE_ALLOCATION_ID, MAX_PAYLOAD, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
    command, error, flag, invalid, state,
};
use crate::{Error, Result};

/// Requests read and not yet answered, at most.
const QUEUE_MAX: usize = 128;
/// Bytes of payload of one client in memory, at most; the largest request fits.
const BYTES_MAX: usize = MAX_PAYLOAD as usize;
/// Data moves in pieces of this size where the protocol allows pieces.
const PIECE: usize = 1 << 20;
/// Reads shorter than this are not searched for holes.
const HOLES_FROM: u32 = 64 << 10;
/// Extents of one block status reply at most.
const EXTENTS_MAX: usize = 1024;

/// One client past the handshake.
pub(super) struct Connection<'a> {
    stream: &'a UnixStream,
    /// Held while a reply is written.
    writer: Mutex<()>,
    device: &'a dyn BlockDevice,
    read_only: bool,
    structured: bool,
    allocation: bool,
    workers_max: usize,
    queue: Mutex<Queue>,
    /// A job was put in, or the queue was closed.
    filled: Condvar,
    /// A job was answered.
    drained: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Jobs in the queue or in a worker's hands, and their bytes.
    pending: usize,
    bytes: usize,
    workers: usize,
    idle: usize,
    closed: bool,
}

struct Job {
    request: Request,
    payload: Vec<u8>,
    charge: usize,
}

/// How a request ended.
enum Answer {
    /// Nothing to send but success.
    Done,
    /// The worker has sent the reply.
    Sent,
}

/// Why a request failed: the protocol's number, and a text for people.
struct Failure {
    number: u32,
    text: String,
    /// Where a read stopped.
    offset: Option<u64>,
}

impl Failure {
    fn new(number: u32, text: impl Into<String>) -> Self {
        Self {
            number,
            text: text.into(),
            offset: None,
        }
    }
}

impl From<Error> for Failure {
    fn from(failed: Error) -> Self {
        let number = match u32::try_from(failed.errno()).unwrap_or(error::IO) {
            known @ (error::PERM
            | error::IO
            | error::NOMEM
            | error::INVAL
            | error::NOSPC
            | error::OVERFLOW
            | error::NOTSUP
            | error::SHUTDOWN) => known,
            _ => error::IO,
        };
        Self::new(number, failed.to_string())
    }
}

/// The stream broke, or the request did.
enum Stop {
    Stream(io::Error),
    Request(Failure),
}

impl From<io::Error> for Stop {
    fn from(broken: io::Error) -> Self {
        Stop::Stream(broken)
    }
}

impl From<Error> for Stop {
    fn from(failed: Error) -> Self {
        Stop::Request(failed.into())
    }
}

impl From<Failure> for Stop {
    fn from(failed: Failure) -> Self {
        Stop::Request(failed)
    }
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        stream: &'a UnixStream,
        agreement: &Agreement<'a>,
        workers_max: usize,
    ) -> Self {
        Self {
            stream,
            writer: Mutex::new(()),
            device: &*agreement.export.device,
            read_only: agreement.export.is_read_only(),
            structured: agreement.structured,
            allocation: agreement.allocation,
            workers_max: workers_max.max(1),
            queue: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
        }
    }

    /// Serves until the client leaves or the stream ends; everything begun is
    /// answered then.
    pub(super) fn serve(&self) -> io::Result<()> {
        std::thread::scope(|scope| {
            let outcome = self.read_requests(scope);
            self.queue.lock().closed = true;
            self.filled.notify_all();
            outcome
        })
    }

    fn read_requests<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(64 << 10, self.stream);
        while let Some(request) = Request::read(&mut reader)? {
            if request.command == command::DISCONNECT {
                return Ok(());
            }
            let charge = self.charge_of(&request);
            if charge > BYTES_MAX {
                // Too large to keep; a write's payload must be passed over.
                if request.command == command::WRITE {
                    let payload = u64::from(request.length);
                    io::copy(&mut reader.by_ref().take(payload), &mut io::sink())?;
                }
                let text = format!("{} bytes at once, at most {MAX_PAYLOAD}", request.length);
                self.fail(&request, &Failure::new(error::INVAL, text))?;
                continue;
            }
            self.wait_for_room(charge);
            let mut payload = Vec::new();
            if request.command == command::WRITE {
                payload.resize(request.length as usize, 0);
                reader.read_exact(&mut payload)?;
            }
            self.enqueue(
                scope,
                Job {
                    request,
                    payload,
                    charge,
                },
            )?;
        }
        Ok(())
    }

    /// Memory that a request needs for its payload or reply.
    fn charge_of(&self, request: &Request) -> usize {
        let length = request.length as usize;
        let in_pieces = self.structured && request.flags & flag::DONT_FRAGMENT == 0;
        match request.command {
            command::WRITE => length,
            command::READ if !in_pieces => length,
            command::READ | command::CACHE => length.min(PIECE),
            _ => 0,
        }
    }

    fn wait_for_room(&self, charge: usize) {
        let mut queue = self.queue.lock();
        while queue.pending >= QUEUE_MAX || queue.bytes + charge > BYTES_MAX {
            self.drained.wait(&mut queue);
        }
        queue.pending += 1;
        queue.bytes += charge;
    }

    fn enqueue<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, job: Job) -> io::Result<()> {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(job);
        if queue.idle < queue.jobs.len() && queue.workers < self.workers_max {
            let spawned = std::thread::Builder::new()
                .name("nbd-worker".into())
                .spawn_scoped(scope, || self.work());
            match spawned {
                Ok(_) => queue.workers += 1,
                Err(error) if queue.workers == 0 => return Err(error),
                Err(_) => {}
            }
        }
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut scratch = Vec::new();
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                if let Err(broken) = self.answer(&job, &mut scratch) {
                    tracing::debug!(error = %broken, "NBD client went away");
                    // Wakes the reader; there is no one to answer to.
                    let _ = self.stream.shutdown(Shutdown::Both);
                }
                queue = self.queue.lock();
                queue.pending -= 1;
                queue.bytes -= job.charge;
                self.drained.notify_one();
            } else if queue.closed {
                return;
            } else {
                queue.idle += 1;
                self.filled.wait(&mut queue);
                queue.idle -= 1;
            }
        }
    }

    fn answer(&self, job: &Job, scratch: &mut Vec<u8>) -> io::Result<()> {
        let request = &job.request;
        let outcome = self
            .check(request)
            .map_err(Stop::Request)
            .and_then(|()| self.perform(request, &job.payload, scratch));
        match outcome {
            Ok(Answer::Sent) => Ok(()),
            Ok(Answer::Done) => self.send_simple(request, 0, &[]),
            Err(Stop::Request(failure)) => self.fail(request, &failure),
            Err(Stop::Stream(broken)) => Err(broken),
        }
    }

    /// Refuses what the export or the protocol does not allow.
    fn check(&self, request: &Request) -> std::result::Result<(), Failure> {
        let allowed = flag::FUA
            | match request.command {
                command::READ => flag::DONT_FRAGMENT,
                command::WRITE_ZEROES => flag::NO_HOLE,
                command::BLOCK_STATUS => flag::REQUEST_ONE,
                _ => 0,
            };
        if request.flags & !allowed != 0 {
            let text = format!("command flags {:#x} are not known here", request.flags);
            return Err(Failure::new(error::INVAL, text));
        }
        let writes = matches!(
            request.command,
            command::WRITE | command::TRIM | command::WRITE_ZEROES
        );
        if writes && self.read_only {
            return Err(Failure::new(error::PERM, "the export is read-only"));
        }
        let end = request.offset.checked_add(u64::from(request.length));
        if request.command > command::BLOCK_STATUS {
            let text = format!("command {} is not known", request.command);
            return Err(Failure::new(error::INVAL, text));
        }
        let inside = end.is_some_and(|end| end <= self.device.size());
        if !inside && request.command != command::FLUSH {
            let number = if writes { error::NOSPC } else { error::INVAL };
            return Err(Failure::new(number, "past the end of the export"));
        }
        Ok(())
    }

    fn perform(
        &self,
        request: &Request,
        payload: &[u8],
        scratch: &mut Vec<u8>,
    ) -> std::result::Result<Answer, Stop> {
        let (offset, length) = (request.offset, u64::from(request.length));
        match request.command {
            command::READ => return self.read(request, scratch),
            command::BLOCK_STATUS => return self.block_status(request),
            command::FLUSH => self.device.flush()?,
            _ if length == 0 => {}
            command::WRITE => self.device.write_at(payload, offset)?,
            command::TRIM => self.device.discard(offset, length)?,
            command::WRITE_ZEROES => {
                let unmap = request.flags & flag::NO_HOLE == 0;
                self.device.write_zeroes(offset, length, unmap)?;
            }
            command::CACHE => self.cache(offset, length, scratch)?,
            // `check` has let nothing else through.
            _ => {}
        }
        if request.flags & flag::FUA != 0 && !self.read_only {
            self.device.flush()?;
        }
        Ok(Answer::Done)
    }

    /// Reads for the host's page cache.
    fn cache(&self, offset: u64, length: u64, scratch: &mut Vec<u8>) -> Result<()> {
        let mut done = 0;
        while done < length {
            let take = (length - done).min(PIECE as u64);
            let buf = grown(scratch, take as usize);
            self.device.read_at(buf, offset + done)?;
            done += take;
        }
        Ok(())
    }

    fn read(&self, request: &Request, scratch: &mut Vec<u8>) -> std::result::Result<Answer, Stop> {
        let whole = !self.structured || request.flags & flag::DONT_FRAGMENT != 0;
        if request.length == 0 {
            if self.structured {
                self.send_chunk(request, chunk::DONE, chunk::NONE, &[], &[])?;
            } else {
                self.send_simple(request, 0, &[])?;
            }
        } else if whole {
            // Large buffers are not kept.
            let mut large = Vec::new();
            let length = request.length as usize;
            let buf = grown(if length > PIECE { &mut large } else { scratch }, length);
            self.device.read_at(buf, request.offset)?;
            if self.structured {
                let head = request.offset.to_be_bytes();
                self.send_chunk(request, chunk::DONE, chunk::OFFSET_DATA, &head, buf)?;
            } else {
                self.send_simple(request, 0, buf)?;
            }
        } else {
            self.read_in_pieces(request, scratch)?;
        }
        Ok(Answer::Sent)
    }

    fn read_in_pieces(
        &self,
        request: &Request,
        scratch: &mut Vec<u8>,
    ) -> std::result::Result<(), Stop> {
        let end = request.offset + u64::from(request.length);
        let mut at = request.offset;
        let failed_at = |at: u64| {
            move |error: Error| {
                Stop::Request(Failure {
                    offset: Some(at),
                    ..error.into()
                })
            }
        };
        while at < end {
            let extents = if request.length < HOLES_FROM {
                vec![DeviceExtent {
                    length: end - at,
                    hole: false,
                    zero: false,
                }]
            } else {
                self.extents(at, end - at).map_err(failed_at(at))?
            };
            for extent in extents {
                let mut left = extent.length.min(end - at);
                while left > 0 {
                    let take = if extent.zero {
                        left
                    } else {
                        left.min(PIECE as u64)
                    };
                    let flags = if at + take == end { chunk::DONE } else { 0 };
                    let mut head = at.to_be_bytes().to_vec();
                    if extent.zero {
                        head.extend((take as u32).to_be_bytes());
                        self.send_chunk(request, flags, chunk::OFFSET_HOLE, &head, &[])?;
                    } else {
                        let buf = grown(scratch, take as usize);
                        self.device.read_at(buf, at).map_err(failed_at(at))?;
                        self.send_chunk(request, flags, chunk::OFFSET_DATA, &head, buf)?;
                    }
                    at += take;
                    left -= take;
                }
            }
        }
        Ok(())
    }

    /// The device's extents with neighbours of one state joined. A device that
    /// returns none would stop progress.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<DeviceExtent>> {
        let mut joined: Vec<DeviceExtent> = Vec::new();
        for extent in self.device.extents(offset, length, EXTENTS_MAX)? {
            match joined.last_mut() {
                Some(last) if last.hole == extent.hole && last.zero == extent.zero => {
                    last.length = last.length.saturating_add(extent.length);
                }
                _ if extent.length > 0 => joined.push(extent),
                _ => {}
            }
        }
        if joined.is_empty() {
            joined.push(DeviceExtent {
                length,
                hole: false,
                zero: false,
            });
        }
        Ok(joined)
    }

    fn block_status(&self, request: &Request) -> std::result::Result<Answer, Stop> {
        if !self.allocation || request.length == 0 {
            let text = "no metadata context was chosen, or an empty range asked for";
            return Err(Failure::new(error::INVAL, text).into());
        }
        let one = request.flags & flag::REQUEST_ONE != 0;
        let mut extents = self.extents(request.offset, u64::from(request.length))?;
        extents.truncate(if one { 1 } else { EXTENTS_MAX });
        let mut left = u64::from(request.length);
        let mut body = Vec::with_capacity(4 + extents.len() * 8);
        body.extend(BASE_ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            if left == 0 {
                break;
            }
            let length = extent.length.min(left);
            left -= length;
            let mut bits = 0;
            if extent.hole {
                bits |= state::HOLE;
            }
            if extent.zero {
                bits |= state::ZERO;
            }
            body.extend((length as u32).to_be_bytes());
            body.extend(bits.to_be_bytes());
        }
        self.send_chunk(request, chunk::DONE, chunk::BLOCK_STATUS, &body, &[])?;
        Ok(Answer::Sent)
    }

    fn fail(&self, request: &Request, failure: &Failure) -> io::Result<()> {
        if !self.structured {
            return self.send_simple(request, failure.number, &[]);
        }
        let mut text = failure.text.as_str();
        while text.len() > 1024 {
            text = &text[..text.floor_char_boundary(1024)];
        }
        let mut body = failure.number.to_be_bytes().to_vec();
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
        let kind = match failure.offset {
            Some(offset) => {
                body.extend(offset.to_be_bytes());
                chunk::ERROR_OFFSET
            }
            None => chunk::ERROR,
        };
        self.send_chunk(request, chunk::DONE, kind, &body, &[])
    }

    fn send_simple(&self, request: &Request, number: u32, data: &[u8]) -> io::Result<()> {
        let mut head = [0; 16];
        head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head[4..8].copy_from_slice(&number.to_be_bytes());
        head[8..].copy_from_slice(&request.cookie.to_be_bytes());
        self.send(&[&head, data])
    }

    fn send_chunk(
        &self,
        request: &Request,
        flags: u16,
        kind: u16,
        head: &[u8],
        data: &[u8],
    ) -> io::Result<()> {
        let length =
            u32::try_from(head.len() + data.len()).map_err(|_| invalid("reply too long"))?;
        let mut start = [0; 20];
        start[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        start[4..6].copy_from_slice(&flags.to_be_bytes());
        start[6..8].copy_from_slice(&kind.to_be_bytes());
        start[8..16].copy_from_slice(&request.cookie.to_be_bytes());
        start[16..].copy_from_slice(&length.to_be_bytes());
        self.send(&[&start, head, data])
    }

    fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts
            .iter()
            .filter(|part| !part.is_empty())
            .map(|part| IoSlice::new(part))
            .collect();
        let mut rest = slices.as_mut_slice();
        let _writer = self.writer.lock();
        let mut stream = self.stream;
        while !rest.is_empty() {
            match stream.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The first `length` bytes of a buffer that grows and is kept.
fn grown(buf: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buf.len() < length {
        buf.resize(length, 0);
    }
    &mut buf[..length]
}
