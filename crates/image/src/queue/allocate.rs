//! Writes that need new clusters.

use std::os::fd::AsRawFd;

use crate::error::Result;
use crate::image::Driver;
use crate::qcow2::Qcow2;
use crate::qcow2::write::Target;
use crate::queue::plan::Piece;
use crate::queue::{Allocating, Direction, Queue};

impl Queue {
    /// Starts a write into new clusters; false when it must run aside.
    pub(super) fn start_allocating(
        &mut self,
        at: usize,
        qcow2: &Qcow2,
        offset: u64,
        length: u64,
    ) -> Result<bool> {
        let held = (
            qcow2.geo.cluster(offset),
            qcow2.geo.cluster(offset + length - 1) + 1,
        );
        let Some(file) = qcow2.data().as_fd().map(|fd| fd.as_raw_fd()) else {
            return Ok(false);
        };
        if !qcow2.in_flight.try_hold(held.0, held.1) {
            return Ok(self.wait_for_own(at, offset, length, held));
        }
        let prepared = prepare_whole(qcow2, offset, length);
        let target = match qcow2.guard(prepared) {
            Ok(Some(target)) => target,
            other => {
                qcow2.in_flight.release(held.0, held.1);
                return other.map(|_| false);
            }
        };
        self.slots[at].allocating = Some(Allocating {
            target,
            offset,
            length,
            held,
        });
        if target.head != 0 || target.tail != 0 {
            self.copy_around(at, qcow2, target, offset, length)?;
            return Ok(true);
        }
        self.slots[at].pieces.push(Piece {
            file,
            offset: target.host + qcow2.geo.inside(offset),
            start: 0,
            length: length as usize,
            first_vector: 0,
            vectors: 0,
        });
        self.start_pieces(at, Direction::Write)?;
        Ok(true)
    }

    /// Puts a write off while another of this queue changes the mapping of
    /// the same clusters. False when somebody else does.
    fn wait_for_own(&mut self, at: usize, offset: u64, length: u64, held: (u64, u64)) -> bool {
        let own = self.slots.iter().any(|slot| {
            slot.allocating
                .is_some_and(|a| a.held.0 < held.1 && held.0 < a.held.1)
        });
        if own {
            self.leave(at);
            self.put_off(at, offset, length);
        }
        own
    }

    /// Starts the requests that were put off again.
    pub(super) fn retry_waiting(&mut self) {
        for (at, offset, length) in std::mem::take(&mut self.waiting) {
            self.slots[at].pending = 0;
            let (direction, started) = if self.slots[at].is_write {
                (Direction::Write, self.start_write(at, offset, length))
            } else {
                (Direction::Read, self.start_read(at, offset, length))
            };
            self.started(at, offset, length, direction, started);
        }
    }

    /// Writes clusters of which only a part comes from the request.
    fn copy_around(
        &mut self,
        at: usize,
        qcow2: &Qcow2,
        target: Target,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let places = self.slots[at].buffers.clone();
        let length = length as usize;
        if !self.direct {
            return qcow2.write_around(&target, offset, length, |bytes| places.copy_to(bytes));
        }
        self.slots[at].pending = 1;
        let image = self.image.clone();
        self.pool.run(at as u32, move || match image.qcow2() {
            Some(qcow2) => {
                qcow2.write_around(&target, offset, length, |bytes| places.copy_to(bytes))
            }
            None => Ok(()),
        });
        Ok(())
    }

    /// Publishes or gives back the clusters of a finished request, and ends
    /// its use of the mapping.
    pub(super) fn end_mapping(&mut self, at: usize) {
        let image = self.image.clone();
        let qcow2 = match image.driver() {
            Driver::Raw(raw) => {
                if self.slots[at].is_write {
                    raw.note_write();
                }
                return;
            }
            Driver::Qcow2(qcow2) => qcow2,
        };
        let slot = &mut self.slots[at];
        if slot.is_write {
            qcow2.commit.note_write();
        }
        if let Some(allocating) = slot.allocating.take() {
            let outcome = if slot.error.is_none() {
                qcow2.publish(&allocating.target, allocating.offset, allocating.length)
            } else {
                qcow2.abandon(&allocating.target)
            };
            if let Err(error) = qcow2.guard(outcome) {
                slot.error.get_or_insert(error);
            }
            qcow2
                .in_flight
                .release(allocating.held.0, allocating.held.1);
            self.leave(at);
            self.commit_aside(allocating.held.0);
        }
        self.leave(at);
    }

    /// Has a thread commit when much metadata waits.
    fn commit_aside(&mut self, guest_cluster: u64) {
        let Some(qcow2) = self.image.qcow2() else {
            return;
        };
        if qcow2.is_commit_due(guest_cluster) {
            let image = self.image.clone();
            self.pool.run_unreported(move || {
                if let Some(qcow2) = image.qcow2()
                    && let Err(error) = qcow2.commit_if_crowded(guest_cluster)
                {
                    // The next flush meets the same error and reports it.
                    tracing::error!(%error, "cannot write metadata");
                }
            });
        }
    }

    pub(super) fn leave(&mut self, at: usize) {
        if let Some(ticket) = self.slots[at].ticket.take()
            && let Some(qcow2) = self.image.qcow2()
        {
            qcow2.gate.leave(ticket);
        }
    }
}

/// Chooses clusters for a whole write; `None` when one target does not do.
fn prepare_whole(qcow2: &Qcow2, offset: u64, length: u64) -> Result<Option<Target>> {
    let Some(target) = qcow2.prepare(offset, length)? else {
        return Ok(None);
    };
    if qcow2.length_in(&target, offset, length) == length {
        return Ok(Some(target));
    }
    qcow2.abandon(&target)?;
    Ok(None)
}
