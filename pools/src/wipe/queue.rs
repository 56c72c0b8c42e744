//! Requests in flight: io_uring where the storage is a kernel file, plain
//! calls everywhere else (tests' recorders and fault injectors, kernels or
//! sandboxes without io_uring).
//!
//! A request owns its buffer until [`Queue::complete`] gives it back, so that
//! memory the kernel may still touch cannot be reused.
#![allow(unsafe_code)] // Handing addresses to the kernel; the invariant is in `Ring`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use cenote_image::storage::Storage;
use io_uring::{IoUring, opcode, types};

use super::buffer::Buffer;

/// Memory of a request.
pub(super) enum Lease {
    /// To be read into, or written once.
    Own(Buffer),
    /// A constant pattern, in flight many times over.
    Shared(Arc<Buffer>),
}

impl Lease {
    fn buffer(&self) -> &Buffer {
        match self {
            Self::Own(buffer) => buffer,
            Self::Shared(buffer) => buffer,
        }
    }
}

/// One transfer between the first `length` bytes of a buffer and `offset` of
/// the storage.
pub(super) struct Request {
    pub(super) lease: Lease,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) write: bool,
}

/// A finished request and what became of it: all of `length` bytes, or an
/// error. Reads past the end of the storage give zeroes.
pub(super) struct Completion {
    pub(super) request: Request,
    pub(super) result: io::Result<()>,
}

/// Something that carries requests out.
pub(super) trait Queue {
    /// Requests submitted and not yet completed.
    fn in_flight(&self) -> usize;
    /// Takes a request; the caller keeps to the depth it asked for.
    fn submit(&mut self, request: Request) -> io::Result<()>;
    /// Waits for one request to end. Fails where none is in flight.
    fn complete(&mut self) -> io::Result<Completion>;
}

/// The queue for `storage`: a ring of `depth` where possible. `buffers` are
/// registered with the kernel if the memory lock limit allows.
pub(super) fn open<'s>(
    storage: &'s dyn Storage,
    depth: u32,
    buffers: &[&Buffer],
) -> Box<dyn Queue + 's> {
    if let Some(fd) = storage.as_fd() {
        match Ring::new(fd, depth, buffers) {
            Ok(ring) => return Box::new(ring),
            Err(error) => tracing::debug!(%error, "no io_uring; using plain calls"),
        }
    }
    Box::new(Plain {
        storage,
        done: VecDeque::new(),
    })
}

struct Plain<'s> {
    storage: &'s dyn Storage,
    done: VecDeque<Completion>,
}

impl Queue for Plain<'_> {
    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn submit(&mut self, mut request: Request) -> io::Result<()> {
        let (offset, length) = (request.offset, request.length);
        let result = match (&mut request.lease, request.write) {
            (lease, true) => self.storage.write_at(&lease.buffer()[..length], offset),
            (Lease::Own(buffer), false) => self.storage.read_at(&mut buffer[..length], offset),
            (Lease::Shared(_), false) => Err(io::ErrorKind::InvalidInput.into()),
        };
        self.done.push_back(Completion { request, result });
        Ok(())
    }

    fn complete(&mut self) -> io::Result<Completion> {
        self.done
            .pop_front()
            .ok_or_else(|| io::Error::other("nothing is in flight"))
    }
}

struct Flight {
    request: Request,
    /// Bytes transferred by earlier, short completions.
    done: usize,
}

struct Ring<'fd> {
    // Dropped first would free memory under the kernel's feet: `drop` drains.
    flights: HashMap<u64, Flight>,
    ring: IoUring,
    fd: BorrowedFd<'fd>,
    registered: bool,
    next: u64,
}

impl<'fd> Ring<'fd> {
    fn new(fd: BorrowedFd<'fd>, depth: u32, buffers: &[&Buffer]) -> io::Result<Self> {
        let entries = depth.next_power_of_two();
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        let vectors: Vec<libc::iovec> = buffers
            .iter()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_ptr().cast_mut().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        // SAFETY: the memory is live; the kernel pins its pages, so that it may
        // even outlast this ring. Buffers are used only through requests,
        // which own them.
        let registered = unsafe { ring.submitter().register_buffers(&vectors) };
        if let Err(error) = &registered {
            tracing::debug!(%error, "buffers not registered; RLIMIT_MEMLOCK may be too low");
        }
        Ok(Self {
            flights: HashMap::new(),
            ring,
            fd,
            registered: registered.is_ok(),
            next: 0,
        })
    }

    fn push(&mut self, id: u64, flight: Flight) -> io::Result<()> {
        let request = &flight.request;
        let buffer = request.lease.buffer();
        if request.length > buffer.len() || flight.done > request.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = types::Fd(self.fd.as_raw_fd());
        let memory = buffer[flight.done..].as_ptr();
        let length = (request.length - flight.done) as u32;
        let offset = request.offset + flight.done as u64;
        let index = buffer.index;
        let entry = match (request.write, self.registered) {
            (true, true) => opcode::WriteFixed::new(fd, memory, length, index)
                .offset(offset)
                .build(),
            (true, false) => opcode::Write::new(fd, memory, length)
                .offset(offset)
                .build(),
            (false, true) => opcode::ReadFixed::new(fd, memory.cast_mut(), length, index)
                .offset(offset)
                .build(),
            (false, false) => opcode::Read::new(fd, memory.cast_mut(), length)
                .offset(offset)
                .build(),
        };
        // SAFETY: the descriptor outlives `self` by lifetime; the memory lives
        // in `flights` until its completion was seen, and `Drop` waits for
        // all. A read's memory is owned by the request alone: reads into
        // shared buffers are refused in `submit`.
        unsafe { self.ring.submission().push(&entry.user_data(id)) }
            .map_err(|_| io::Error::other("more requests than the ring's depth"))?;
        self.flights.insert(id, flight);
        Ok(())
    }

    fn reap(&mut self) -> io::Result<Completion> {
        loop {
            let Some(event) = self.ring.completion().next() else {
                match self.ring.submit_and_wait(1) {
                    Ok(_) => continue,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            };
            let Some(mut flight) = self.flights.remove(&event.user_data()) else {
                continue;
            };
            let left = flight.request.length - flight.done;
            let result = match event.result() {
                code if code == -libc::EINTR || code == -libc::EAGAIN => {
                    self.push(event.user_data(), flight)?;
                    continue;
                }
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                0 if flight.request.write => Err(io::ErrorKind::WriteZero.into()),
                0 => {
                    // The end of the file: what lies beyond reads as zeroes.
                    let Flight {
                        request: Request { lease, length, .. },
                        done,
                    } = &mut flight;
                    if let Lease::Own(buffer) = lease {
                        buffer[*done..*length].fill(0);
                    }
                    Ok(())
                }
                count if (count as usize) < left => {
                    flight.done += count as usize;
                    self.push(event.user_data(), flight)?;
                    continue;
                }
                _ => Ok(()),
            };
            return Ok(Completion {
                request: flight.request,
                result,
            });
        }
    }
}

impl Queue for Ring<'_> {
    fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn submit(&mut self, request: Request) -> io::Result<()> {
        if !request.write && matches!(request.lease, Lease::Shared(_)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let id = self.next;
        self.next += 1;
        self.push(id, Flight { request, done: 0 })?;
        self.ring.submit().map(drop)
    }

    fn complete(&mut self) -> io::Result<Completion> {
        if self.flights.is_empty() {
            return Err(io::Error::other("nothing is in flight"));
        }
        self.reap()
    }
}

impl Drop for Ring<'_> {
    fn drop(&mut self) {
        while !self.flights.is_empty() {
            if let Err(error) = self.reap() {
                // The kernel may still write to this memory: leak it.
                tracing::error!(%error, "io_uring failed; leaking the buffers in flight");
                std::mem::forget(std::mem::take(&mut self.flights));
            }
        }
    }
}
