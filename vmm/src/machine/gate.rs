//! The gate that vCPU threads pass before they enter the guest.

use crate::kvm::Kicker;
use parking_lot::{Condvar, Mutex};
use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

const RUN: u8 = 0;
const HOLD: u8 = 1;
const END: u8 = 2;

/// What is wanted of the vCPUs, and who has come to rest.
pub(super) struct Gate {
    wanted: AtomicU8,
    parked: Mutex<usize>,
    changed: Condvar,
    kickers: Vec<Arc<Kicker>>,
}

/// What a vCPU thread is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Run,
    End,
}

impl Gate {
    /// A closed gate for the vCPUs of `kickers`.
    pub(super) fn new(kickers: Vec<Arc<Kicker>>) -> Arc<Self> {
        Arc::new(Self {
            wanted: AtomicU8::new(HOLD),
            parked: Mutex::new(0),
            changed: Condvar::new(),
            kickers,
        })
    }

    /// Whether a vCPU may enter the guest now.
    pub(super) fn is_open(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) == RUN
    }

    /// Called by a vCPU's thread, at rest: waits until it may run or is to end.
    pub(super) fn pass(&self) -> Pass {
        let mut parked = self.parked.lock();
        *parked += 1;
        self.changed.notify_all();
        loop {
            match self.wanted.load(Ordering::SeqCst) {
                RUN => {
                    *parked -= 1;
                    return Pass::Run;
                }
                END => return Pass::End,
                _ => self.changed.wait(&mut parked),
            }
        }
    }

    pub(super) fn open(&self) {
        self.want(RUN);
    }

    /// Closes the gate without waiting; may be called from a vCPU's thread. Does not call back
    /// those that are to end.
    pub(super) fn close(&self) {
        let lock = self.parked.lock();
        let before = self
            .wanted
            .compare_exchange(RUN, HOLD, Ordering::SeqCst, Ordering::SeqCst);
        drop(lock);
        if before.is_ok() {
            self.kick();
        }
    }

    /// Waits until all vCPUs stand still at the closed gate.
    pub(super) fn wait_closed(&self) {
        let mut parked = self.parked.lock();
        while *parked < self.kickers.len() {
            self.changed.wait(&mut parked);
        }
    }

    /// Makes all vCPU threads end.
    pub(super) fn end(&self) {
        self.want(END);
        self.kick();
    }

    fn want(&self, wanted: u8) {
        let lock = self.parked.lock();
        self.wanted.store(wanted, Ordering::SeqCst);
        drop(lock);
        self.changed.notify_all();
    }

    fn kick(&self) {
        for kicker in &self.kickers {
            kicker.kick();
        }
    }
}
