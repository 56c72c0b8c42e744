//! The kernel's side: an io_uring, and vectored calls without one.

// Entries hold raw pointers that the kernel follows.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};

use crate::queue::Direction;
use crate::queue::buffers::IoBuffer;

/// Marks the completion of the wait for the threads' event.
const EVENT: u64 = u64::MAX;

/// One vectored transfer for the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) direction: Direction,
    pub(super) file: RawFd,
    pub(super) offset: u64,
    pub(super) vectors: &'a [IoBuffer],
}

/// All that a ring is asked for.
const OPERATIONS: [u8; 5] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::PollAdd::CODE,
];

/// An io_uring whose entries carry a slot and a piece number. It can be asked
/// for reads and writes of what is open and nothing else, by whomever: in a
/// process that filters system calls it is no way around the filter.
pub(super) struct Ring {
    ring: IoUring,
    event: RawFd,
    event_armed: bool,
    queued: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// `event` becomes readable when a thread has finished work; it lives at
    /// least as long as the ring.
    pub(super) fn new(depth: u32, event: BorrowedFd<'_>) -> io::Result<Self> {
        let entries = (depth * 2).next_power_of_two().clamp(8, 4096);
        let build = |single: bool| {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(entries * 4).setup_clamp();
            builder.setup_r_disabled();
            if single {
                builder.setup_coop_taskrun();
            }
            builder.build(entries)
        };
        // Kernels before 5.19 do not know the flag.
        let ring = build(true).or_else(|_| build(false))?;
        let mut allowed = OPERATIONS.map(Restriction::sqe_op);
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        Ok(Ring {
            ring,
            event: event.as_raw_fd(),
            event_armed: false,
            queued: 0,
        })
    }

    /// Queues a transfer whose memory and vectors stay until it completes.
    pub(super) fn push(&mut self, slot: u32, piece: u32, transfer: Transfer<'_>) -> io::Result<()> {
        let file = types::Fd(transfer.file);
        let entry = match (transfer.direction, transfer.vectors) {
            (Direction::Read, [one]) if let Ok(length) = u32::try_from(one.len()) => {
                opcode::Read::new(file, one.base(), length)
                    .offset(transfer.offset)
                    .build()
            }
            (Direction::Write, [one]) if let Ok(length) = u32::try_from(one.len()) => {
                opcode::Write::new(file, one.base(), length)
                    .offset(transfer.offset)
                    .build()
            }
            (Direction::Read, many) => {
                opcode::Readv::new(file, many.as_ptr().cast(), many.len() as u32)
                    .offset(transfer.offset)
                    .build()
            }
            (Direction::Write, many) => {
                opcode::Writev::new(file, many.as_ptr().cast(), many.len() as u32)
                    .offset(transfer.offset)
                    .build()
            }
        };
        self.push_entry(&entry.user_data(u64::from(slot) << 32 | u64::from(piece)))
    }

    fn push_entry(&mut self, entry: &io_uring::squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the vectors and the memory they name live in the queue's
            // slot or with its caller until the completion was reaped; the
            // queue waits for all of them before it goes.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.queued += 1;
                return Ok(());
            }
            self.submit(0)?;
        }
    }

    /// Submits what is queued and waits for `wanted` completions.
    pub(super) fn submit(&mut self, wanted: usize) -> io::Result<()> {
        if wanted > 0 {
            self.arm_event()?;
        }
        if wanted == 0 && self.queued == 0 {
            return Ok(());
        }
        loop {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => {
                    self.queued = 0;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full: reap first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets the threads' event wake whoever waits on the ring.
    pub(super) fn arm_event(&mut self) -> io::Result<()> {
        if self.event_armed {
            return Ok(());
        }
        self.event_armed = true;
        let poll = opcode::PollAdd::new(types::Fd(self.event), libc::POLLIN as u32).build();
        self.push_entry(&poll.user_data(EVENT))
    }

    /// The next completion: slot, piece, bytes moved.
    pub(super) fn next_completion(&mut self) -> Option<(u32, u32, io::Result<usize>)> {
        loop {
            let entry = self.ring.completion().next()?;
            if entry.user_data() == EVENT {
                self.event_armed = false;
                continue;
            }
            let outcome = match usize::try_from(entry.result()) {
                Ok(bytes) => Ok(bytes),
                Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
            };
            let slot = (entry.user_data() >> 32) as u32;
            return Some((slot, entry.user_data() as u32, outcome));
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

/// Runs a transfer at once; returns the bytes moved.
pub(super) fn transfer_now(transfer: Transfer<'_>) -> io::Result<usize> {
    let vectors = transfer.vectors.as_ptr().cast();
    let count = i32::try_from(transfer.vectors.len()).unwrap_or(i32::MAX);
    let offset = i64::try_from(transfer.offset).unwrap_or(i64::MAX);
    loop {
        // SAFETY: the vectors are laid out as `struct iovec`, and the caller of
        // the queue keeps the memory they name valid.
        let moved = unsafe {
            match transfer.direction {
                Direction::Read => libc::preadv(transfer.file, vectors, count, offset),
                Direction::Write => libc::pwritev(transfer.file, vectors, count, offset),
            }
        };
        match usize::try_from(moved) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn ask(ring: &mut Ring, entry: io_uring::squeue::Entry) -> i32 {
        ring.push_entry(&entry.user_data(7)).unwrap();
        loop {
            ring.ring.submit_and_wait(1).unwrap();
            if let Some(done) = ring.ring.completion().find(|done| done.user_data() == 7) {
                return done.result();
            }
        }
    }

    #[test]
    fn a_ring_reads_and_does_not_open_connect_or_learn() {
        let event = eventfd(5, EventfdFlags::CLOEXEC).unwrap();
        let mut ring = Ring::new(4, event.as_fd()).unwrap();
        let mut word = [0u8; 8];
        let file = types::Fd(event.as_raw_fd());
        let read = opcode::Read::new(file, word.as_mut_ptr(), 8).build();
        assert_eq!(ask(&mut ring, read), 8);
        assert_eq!(u64::from_ne_bytes(word), 5);
        let path = c"/dev/null".as_ptr();
        let here = types::Fd(libc::AT_FDCWD);
        for refused in [
            opcode::OpenAt::new(here, path).build(),
            opcode::UnlinkAt::new(here, c"/nothing/there".as_ptr()).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(file, std::ptr::null(), 0).build(),
            opcode::Close::new(file).build(),
            opcode::Nop::new().build(),
        ] {
            assert_eq!(ask(&mut ring, refused), -libc::EACCES);
        }
        let again = ring.ring.submitter().register_eventfd(event.as_raw_fd());
        assert_eq!(again.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
