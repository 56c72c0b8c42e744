//! Which requests are under way: epochs for the reuse of freed clusters, and
//! a way to have the image to oneself.
//!
//! A request holds a [`Pin`] from before it looks at the mapping until its
//! last byte has moved. A cluster freed in epoch `e` may still be the target
//! of requests pinned in `e` or earlier; once the epoch is `e + 2` all of them
//! have ended, because the epoch only advances to `n + 1` when nobody is
//! pinned in `n - 1`.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

const LANES: usize = 8;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    pinned: [AtomicUsize; 2],
}

/// Counts requests by epoch.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    epoch: AtomicU64,
    lanes: [Lane; LANES],
    closed: AtomicBool,
    /// Whether the image is held exclusively.
    held: Mutex<bool>,
    changed: Condvar,
}

/// Where a request is counted; give it back with [`Gate::leave`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    epoch: u64,
    lane: usize,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    gate: &'a Gate,
    ticket: Ticket,
}

/// The image to oneself.
#[derive(Debug)]
pub(crate) struct Exclusive<'a> {
    gate: &'a Gate,
}

fn lane() -> usize {
    use std::cell::Cell;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % LANES);
    }
    LANE.with(Cell::get)
}

impl Gate {
    /// Begins a request; waits while somebody has the image exclusively.
    pub(crate) fn pin(&self) -> Pin<'_> {
        Pin {
            gate: self,
            ticket: self.enter(),
        }
    }

    /// Begins a request whose end is told by [`Gate::leave`]; waits while
    /// somebody has the image exclusively.
    pub(crate) fn enter(&self) -> Ticket {
        loop {
            if let Some(ticket) = self.try_enter() {
                return ticket;
            }
            let mut held = self.held.lock();
            while *held {
                self.changed.wait(&mut held);
            }
        }
    }

    /// As [`Gate::enter`], but `None` instead of waiting: for a thread whose
    /// own requests the holder may be waiting for.
    pub(crate) fn try_enter(&self) -> Option<Ticket> {
        let lane = lane();
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let ticket = Ticket { epoch, lane };
            let counter = &self.lanes[lane].pinned[(epoch & 1) as usize];
            counter.fetch_add(1, Ordering::SeqCst);
            if self.closed.load(Ordering::SeqCst) {
                self.leave(ticket);
                return None;
            }
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return Some(ticket);
            }
            self.leave(ticket);
        }
    }

    /// Ends a request.
    pub(crate) fn leave(&self, ticket: Ticket) {
        self.lanes[ticket.lane].pinned[(ticket.epoch & 1) as usize].fetch_sub(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            // The lock orders this against the holder's check and wait.
            drop(self.held.lock());
            self.changed.notify_all();
        }
    }

    /// The epoch to note with a cluster freed now.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Advances the epoch as far as requests under way allow (at most twice)
    /// and returns it. Not to be called by two threads at once.
    pub(crate) fn advance(&self) -> u64 {
        for _ in 0..2 {
            let epoch = self.epoch.load(Ordering::SeqCst);
            if self.pinned((epoch + 1) & 1) != 0 {
                break;
            }
            self.epoch.store(epoch + 1, Ordering::SeqCst);
        }
        self.epoch.load(Ordering::SeqCst)
    }

    fn pinned(&self, parity: u64) -> usize {
        self.lanes
            .iter()
            .map(|l| l.pinned[(parity & 1) as usize].load(Ordering::SeqCst))
            .sum()
    }

    /// Keeps new requests out and waits until those under way have ended. The
    /// caller must not be pinned itself.
    pub(crate) fn exclusive(&self) -> Exclusive<'_> {
        let mut held = self.held.lock();
        while *held {
            self.changed.wait(&mut held);
        }
        *held = true;
        self.closed.store(true, Ordering::SeqCst);
        while self.pinned(0) + self.pinned(1) != 0 {
            self.changed.wait(&mut held);
        }
        Exclusive { gate: self }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.gate.leave(self.ticket);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        let mut held = self.gate.held.lock();
        self.gate.closed.store(false, Ordering::SeqCst);
        *held = false;
        drop(held);
        self.gate.changed.notify_all();
    }
}

/// Guest clusters whose mapping a request is changing.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    ranges: Mutex<Vec<(u64, u64)>>,
    left: Condvar,
}

/// Holds a range of guest clusters until dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    table: &'a InFlight,
    range: (u64, u64),
}

impl InFlight {
    /// Waits until no other request is changing the mapping of clusters
    /// `first..end`, then holds them. A request holds one range at a time, so
    /// nobody waits in a circle.
    pub(crate) fn hold(&self, first: u64, end: u64) -> Held<'_> {
        let mut ranges = self.ranges.lock();
        while overlaps(&ranges, first, end) {
            self.left.wait(&mut ranges);
        }
        ranges.push((first, end));
        Held {
            table: self,
            range: (first, end),
        }
    }

    /// Holds the range if nobody else does; release it with
    /// [`InFlight::release`].
    pub(crate) fn try_hold(&self, first: u64, end: u64) -> bool {
        let mut ranges = self.ranges.lock();
        let free = !overlaps(&ranges, first, end);
        if free {
            ranges.push((first, end));
        }
        free
    }

    /// Gives back a range taken with [`InFlight::try_hold`].
    pub(crate) fn release(&self, first: u64, end: u64) {
        let mut ranges = self.ranges.lock();
        if let Some(at) = ranges.iter().position(|r| *r == (first, end)) {
            ranges.swap_remove(at);
        }
        drop(ranges);
        self.left.notify_all();
    }
}

fn overlaps(ranges: &[(u64, u64)], first: u64, end: u64) -> bool {
    ranges.iter().any(|(a, b)| first < *b && *a < end)
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.table.release(self.range.0, self.range.1);
    }
}
