//! The way of a request to its image and back.
//!
//! A channel has at most one request under way. It puts a [`Job`] into its lane and goes on
//! answering the guest (which sees a busy drive); the channel's thread does the work without the
//! device's lock, leaves the [`Outcome`] in the lane and calls the device. Whoever holds the device
//! can wait for the outcome itself: to pause, or to reset.
//!
//! Guest memory is touched by jobs only while they are worked on, so that nothing reaches it after
//! [`Lane::settle`].

use crate::memory::GuestMemory;
use cenote_image::Image;
use parking_lot::{Condvar, Mutex};
use vm_memory::{Bytes as _, GuestAddress};

/// How much of an image is read or written at once.
const CHUNK: usize = 256 << 10;

/// What is to be done.
pub(super) enum Work {
    /// Read into a buffer.
    Read { length: usize },
    /// Read and forget.
    Verify { length: u64 },
    /// Write a buffer.
    Write { data: Vec<u8> },
    /// Read into pieces of guest memory.
    ToMemory { pieces: Vec<Piece> },
    /// Write pieces of guest memory.
    FromMemory { pieces: Vec<Piece> },
    /// Only what `flush` says.
    Nothing,
}

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) length: u32,
}

pub(super) struct Job {
    pub(super) image: Image,
    pub(super) offset: u64,
    pub(super) work: Work,
    /// Make it durable afterwards.
    pub(super) flush: bool,
    pub(super) memory: GuestMemory,
}

/// What became of a job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The data that was read, or nothing.
    Done(Vec<u8>),
    /// The image could not be read or written.
    MediumError,
    /// A piece of guest memory is none.
    MemoryError,
}

#[derive(Default)]
enum State {
    #[default]
    Empty,
    Waiting(Job),
    Working,
    Finished(Outcome),
    Ended,
}

#[derive(Default)]
pub(super) struct Lane {
    state: Mutex<State>,
    changed: Condvar,
}

impl Lane {
    /// Hands a job to the thread. The lane is empty.
    pub(super) fn put(&self, job: Job) {
        *self.state.lock() = State::Waiting(job);
        self.changed.notify_all();
    }

    /// The outcome, if there is one.
    pub(super) fn take(&self) -> Option<Outcome> {
        let mut state = self.state.lock();
        match std::mem::take(&mut *state) {
            State::Finished(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Waits until no job is under way. One that has not begun is done here.
    pub(super) fn settle(&self) -> Option<Outcome> {
        let mut state = self.state.lock();
        loop {
            match std::mem::take(&mut *state) {
                State::Finished(outcome) => return Some(outcome),
                State::Waiting(job) => {
                    *state = State::Empty;
                    drop(state);
                    return Some(job.carry_out(&mut Vec::new()));
                }
                State::Working => {
                    *state = State::Working;
                    self.changed.wait(&mut state);
                }
                other => {
                    *state = other;
                    return None;
                }
            }
        }
    }

    /// Gives up the job: one that has not begun is not done, one that is worked on is waited for.
    pub(super) fn cancel(&self) {
        let mut state = self.state.lock();
        while matches!(*state, State::Working) {
            self.changed.wait(&mut state);
        }
        if !matches!(*state, State::Ended) {
            *state = State::Empty;
        }
    }

    /// Waits for a job and does it; `false` when there will be none any more. For the thread, which
    /// keeps `buffer` from job to job: making and clearing one costs as much as reading into it.
    pub(super) fn work(&self, buffer: &mut Vec<u8>) -> bool {
        let mut state = self.state.lock();
        let job = loop {
            match std::mem::take(&mut *state) {
                State::Waiting(job) => break job,
                State::Ended => {
                    *state = State::Ended;
                    return false;
                }
                other => {
                    *state = other;
                    self.changed.wait(&mut state);
                }
            }
        };
        *state = State::Working;
        drop(state);
        let outcome = job.carry_out(buffer);
        let mut state = self.state.lock();
        if !matches!(*state, State::Ended) {
            *state = State::Finished(outcome);
        }
        self.changed.notify_all();
        true
    }

    /// No more jobs will come.
    pub(super) fn end(&self) {
        *self.state.lock() = State::Ended;
        self.changed.notify_all();
    }
}

impl Job {
    fn carry_out(self, buffer: &mut Vec<u8>) -> Outcome {
        let mut data = Vec::new();
        let mut outcome = match &self.work {
            Work::Read { length } => {
                data.resize(*length, 0);
                self.note("read", self.image.read_at(&mut data, self.offset))
            }
            Work::Write { data } => self.note("write", self.image.write_at(data, self.offset)),
            Work::Verify { length } => self.verify(*length),
            Work::ToMemory { pieces } => self.move_pieces(pieces, true, buffer),
            Work::FromMemory { pieces } => self.move_pieces(pieces, false, buffer),
            Work::Nothing => None,
        };
        if outcome.is_none() && self.flush {
            outcome = self.note("flush", self.image.flush());
        }
        outcome.unwrap_or(Outcome::Done(data))
    }

    fn note(&self, action: &str, result: cenote_image::Result<()>) -> Option<Outcome> {
        let error = result.err()?;
        tracing::warn!(%error, offset = self.offset, "an IDE drive cannot {action} its image");
        Some(Outcome::MediumError)
    }

    fn verify(&self, length: u64) -> Option<Outcome> {
        let mut buffer = vec![0; CHUNK.min(length as usize)];
        let mut at = 0;
        while at < length {
            let count = (length - at).min(CHUNK as u64) as usize;
            let read = self.image.read_at(&mut buffer[..count], self.offset + at);
            if let Some(outcome) = self.note("read", read) {
                return Some(outcome);
            }
            at += count as u64;
        }
        None
    }

    /// Moves data between the image and memory, by way of a buffer.
    fn move_pieces(
        &self,
        pieces: &[Piece],
        to_memory: bool,
        buffer: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let total: u64 = pieces.iter().map(|piece| u64::from(piece.length)).sum();
        let room = CHUNK.min(total as usize);
        if buffer.len() < room {
            buffer.resize(room, 0);
        }
        let mut pieces = pieces.iter().copied();
        let mut current = Piece {
            address: 0,
            length: 0,
        };
        let mut at = 0;
        while at < total {
            let count = (total - at).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..count];
            if to_memory {
                let read = self.image.read_at(chunk, self.offset + at);
                if let Some(outcome) = self.note("read", read) {
                    return Some(outcome);
                }
            }
            let mut moved = 0;
            while moved < count {
                if current.length == 0 {
                    current = pieces.next()?;
                    continue;
                }
                let step = (count - moved).min(current.length as usize);
                let part = &mut chunk[moved..moved + step];
                let address = GuestAddress(current.address);
                let result = if to_memory {
                    self.memory.write_slice(part, address)
                } else {
                    self.memory.read_slice(part, address)
                };
                if result.is_err() {
                    return Some(Outcome::MemoryError);
                }
                current.address = current.address.wrapping_add(step as u64);
                current.length -= step as u32;
                moved += step;
            }
            if !to_memory {
                let written = self.image.write_at(chunk, self.offset + at);
                if let Some(outcome) = self.note("write", written) {
                    return Some(outcome);
                }
            }
            at += count as u64;
        }
        None
    }
}
