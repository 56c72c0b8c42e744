//! Turning requests into transfers that the kernel can do on its own.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::error::{Error, Result};
use crate::image::{Driver, Image};
use crate::qcow2::gate::{Gate, Ticket};
use crate::qcow2::mapping::RunKind;
use crate::queue::buffers::advance;
use crate::queue::ring::{Transfer, transfer_now};
use crate::queue::{Direction, Queue};
use crate::storage::Storage;

/// More pieces than this are left to the threads.
const MAX_PIECES: usize = 64;

/// A part of a request that is contiguous in one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) file: RawFd,
    pub(super) offset: u64,
    /// Where it begins in the request.
    pub(super) start: usize,
    pub(super) length: usize,
    /// Its vectors in the slot.
    pub(super) first_vector: usize,
    pub(super) vectors: usize,
}

/// Where a request's bytes are, as far as caches tell.
#[derive(Debug, Default)]
struct Plan {
    pieces: Vec<Piece>,
    zeroes: Vec<(usize, usize)>,
}

impl Plan {
    fn add(&mut self, storage: &dyn Storage, offset: u64, start: usize, length: u64) -> bool {
        let Some(file) = storage.as_fd() else {
            return false;
        };
        self.pieces.push(Piece {
            file: file.as_raw_fd(),
            offset,
            start,
            length: length as usize,
            first_vector: 0,
            vectors: 0,
        });
        self.pieces.len() <= MAX_PIECES
    }

    /// Plans a read; false when it needs more than transfers.
    fn read(&mut self, image: &Image, offset: u64, start: usize, length: u64) -> bool {
        let qcow2 = match image.driver() {
            Driver::Raw(raw) => return self.add(raw.storage.as_ref(), offset, start, length),
            Driver::Qcow2(qcow2) => qcow2,
        };
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let begin = start + done as usize;
            let Some(run) = qcow2.lookup_cached(at, length - done) else {
                return false;
            };
            let fine = match run.kind {
                RunKind::Data { host, .. } => {
                    self.add(qcow2.data().as_ref(), host, begin, run.length)
                }
                RunKind::Zero { .. } => {
                    self.zeroes.push((begin, run.length as usize));
                    true
                }
                RunKind::Backing => self.read_below(image, at, begin, run.length),
                RunKind::Compressed { .. } => false,
            };
            if !fine {
                return false;
            }
            done += run.length;
        }
        true
    }

    fn read_below(&mut self, image: &Image, at: u64, begin: usize, length: u64) -> bool {
        let Some(backing) = image.backing() else {
            let alone = image.qcow2().is_some_and(|q| q.has_no_backing());
            self.zeroes.push((begin, length as usize));
            return alone;
        };
        let there = backing.size().saturating_sub(at).min(length);
        if there < length {
            self.zeroes
                .push((begin + there as usize, (length - there) as usize));
        }
        // Without a pin, only a mapping that never changes can be relied on.
        there == 0 || (!backing.is_writable() && self.read(backing, at, begin, there))
    }
}

impl Queue {
    /// Begins a request on the mapping. Whoever has the image exclusively may
    /// be waiting for requests of this queue, which this thread must collect:
    /// then this does not wait, and gives `None`.
    fn enter(&self, gate: &Gate) -> Option<Ticket> {
        gate.try_enter().or_else(|| {
            let own = self.slots.iter().any(|slot| slot.ticket.is_some());
            (!own).then(|| gate.enter())
        })
    }

    /// Starts a request again when another of this queue has ended.
    pub(super) fn put_off(&mut self, at: usize, offset: u64, length: u64) {
        self.slots[at].pending = 1;
        self.waiting.push((at, offset, length));
    }

    fn is_straight(&self, at: usize, offset: u64) -> bool {
        self.straight
            && offset.is_multiple_of(self.alignment as u64)
            && self.slots[at].buffers.are_aligned(self.alignment)
    }

    /// Starts a read; false when it must run aside.
    pub(super) fn start_read(&mut self, at: usize, offset: u64, length: u64) -> Result<bool> {
        if !self.is_straight(at, offset) {
            return Ok(false);
        }
        if self.image.is_writable()
            && let Driver::Qcow2(qcow2) = self.image.driver()
        {
            match self.enter(&qcow2.gate) {
                Some(ticket) => self.slots[at].ticket = Some(ticket),
                None => {
                    self.put_off(at, offset, length);
                    return Ok(true);
                }
            }
        }
        let mut plan = Plan {
            pieces: std::mem::take(&mut self.slots[at].pieces),
            zeroes: Vec::new(),
        };
        let planned = plan.read(&self.image, offset, 0, length) && self.are_aligned(&plan.pieces);
        self.slots[at].pieces = plan.pieces;
        if !planned {
            self.leave(at);
            return Ok(false);
        }
        for (start, length) in plan.zeroes {
            self.slots[at].buffers.zero(start, length);
        }
        self.start_pieces(at, Direction::Read)?;
        Ok(true)
    }

    /// Under `O_DIRECT` subclusters, or the end of a raw backing file, may cut
    /// a block.
    fn are_aligned(&self, pieces: &[Piece]) -> bool {
        self.alignment == 1
            || pieces.iter().all(|p| {
                p.offset.is_multiple_of(self.alignment as u64)
                    && p.length.is_multiple_of(self.alignment)
                    && p.start.is_multiple_of(self.alignment)
            })
    }

    /// Starts a write; false when it must run aside.
    pub(super) fn start_write(&mut self, at: usize, offset: u64, length: u64) -> Result<bool> {
        if !self.is_straight(at, offset) {
            return Ok(false);
        }
        let image = self.image.clone();
        let qcow2 = match image.driver() {
            Driver::Raw(raw) => {
                let mut plan = Plan::default();
                if !plan.add(raw.storage.as_ref(), offset, 0, length) {
                    return Ok(false);
                }
                self.slots[at].pieces = plan.pieces;
                self.start_pieces(at, Direction::Write)?;
                return Ok(true);
            }
            Driver::Qcow2(qcow2) => qcow2,
        };
        qcow2.check_writable()?;
        qcow2.mark_bitmaps()?;
        let Some(ticket) = self.enter(&qcow2.gate) else {
            self.put_off(at, offset, length);
            return Ok(true);
        };
        self.slots[at].ticket = Some(ticket);
        let mut plan = Plan {
            pieces: std::mem::take(&mut self.slots[at].pieces),
            zeroes: Vec::new(),
        };
        let mut done = 0;
        let mut allocates = false;
        while done < length {
            match qcow2.lookup_cached(offset + done, length - done) {
                Some(run)
                    if let RunKind::Data {
                        host,
                        in_place: true,
                    } = run.kind =>
                {
                    let checked = qcow2.check_not_metadata(host, run.length);
                    qcow2.guard(checked)?;
                    if !plan.add(qcow2.data().as_ref(), host, done as usize, run.length) {
                        break;
                    }
                    done += run.length;
                }
                Some(_) => {
                    allocates = done == 0;
                    break;
                }
                None => break,
            }
        }
        self.slots[at].pieces = plan.pieces;
        if done == length && self.are_aligned(&self.slots[at].pieces) {
            self.start_pieces(at, Direction::Write)?;
            return Ok(true);
        }
        self.slots[at].pieces.clear();
        if allocates && self.start_allocating(at, qcow2, offset, length)? {
            return Ok(true);
        }
        self.leave(at);
        Ok(false)
    }

    /// Cuts the request's vectors by pieces and hands them to the kernel.
    pub(super) fn start_pieces(&mut self, at: usize, direction: Direction) -> Result<()> {
        let slot = &mut self.slots[at];
        slot.vectors.clear();
        for piece in &mut slot.pieces {
            piece.first_vector = slot.vectors.len();
            slot.buffers
                .slice(piece.start, piece.length, &mut slot.vectors);
            piece.vectors = slot.vectors.len() - piece.first_vector;
        }
        // Buffered writes do not wait for the device: the kernel would hand
        // them to a thread of its own, which costs more than the copy.
        let now = direction == Direction::Write && !self.direct;
        for index in 0..self.slots[at].pieces.len() {
            if now {
                self.transfer_here(at, index, direction)?;
            } else {
                self.push_piece(at, index, direction)?;
                self.slots[at].pending += 1;
            }
        }
        Ok(())
    }

    fn transfer_here(&mut self, at: usize, index: usize, direction: Direction) -> Result<()> {
        loop {
            let slot = &mut self.slots[at];
            let piece = &mut slot.pieces[index];
            if piece.length == 0 {
                return Ok(());
            }
            let vectors = &mut slot.vectors[piece.first_vector..piece.first_vector + piece.vectors];
            let moved = transfer_now(Transfer {
                direction,
                file: piece.file,
                offset: piece.offset,
                vectors,
            });
            let moved = moved.map_err(|e| Error::io(self.image.path(), "write", e))?;
            if moved == 0 {
                let source = io::Error::from(io::ErrorKind::WriteZero);
                return Err(Error::io(self.image.path(), "write", source));
            }
            advance(vectors, moved);
            piece.offset += moved as u64;
            piece.length -= moved.min(piece.length);
        }
    }

    fn push_piece(&mut self, at: usize, index: usize, direction: Direction) -> Result<()> {
        let slot = &self.slots[at];
        let piece = &slot.pieces[index];
        let transfer = Transfer {
            direction,
            file: piece.file,
            offset: piece.offset,
            vectors: &slot.vectors[piece.first_vector..piece.first_vector + piece.vectors],
        };
        self.ring
            .push(at as u32, index as u32, transfer)
            .map_err(|e| Error::io(self.image.path(), "submit requests", e))
    }

    /// Takes the completion of a piece; a short one goes on where it stopped.
    pub(super) fn piece_done(
        &mut self,
        at: usize,
        index: usize,
        outcome: io::Result<usize>,
    ) -> Result<()> {
        let slot = &mut self.slots[at];
        let direction = if slot.is_write {
            Direction::Write
        } else {
            Direction::Read
        };
        let piece = &mut slot.pieces[index];
        let again = match outcome {
            Ok(moved) if moved >= piece.length => false,
            // Past the end of the file: zeroes.
            Ok(0) if direction == Direction::Read => {
                let (start, length) = (piece.start, piece.length);
                slot.buffers.zero(start, length);
                false
            }
            Ok(0) => {
                let source = io::Error::from(io::ErrorKind::WriteZero);
                slot.error
                    .get_or_insert(Error::io(self.image.path(), "write", source));
                false
            }
            Ok(moved) => {
                let from = piece.first_vector;
                advance(&mut slot.vectors[from..from + piece.vectors], moved);
                piece.offset += moved as u64;
                piece.start += moved;
                piece.length -= moved;
                true
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => true,
            Err(error) => {
                let action = if slot.is_write { "write" } else { "read" };
                slot.error
                    .get_or_insert(Error::io(self.image.path(), action, error));
                false
            }
        };
        if again {
            // Under O_DIRECT the rest may not be aligned any more (a read that
            // met the end of the file): then it is past the end.
            if direction == Direction::Read && self.is_past_end(at, index) {
                let piece = &self.slots[at].pieces[index];
                self.slots[at].buffers.zero(piece.start, piece.length);
            } else {
                return self.push_piece(at, index, direction);
            }
        }
        let slot = &mut self.slots[at];
        slot.pending -= 1;
        if slot.pending == 0 {
            self.finish(at);
        }
        Ok(())
    }

    fn is_past_end(&self, at: usize, index: usize) -> bool {
        let piece = &self.slots[at].pieces[index];
        self.alignment > 1 && !piece.offset.is_multiple_of(self.alignment as u64)
    }
}
