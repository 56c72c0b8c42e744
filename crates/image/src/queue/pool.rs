//! A few threads for what would block the queue's own.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Result};

/// Enough to keep a device busy with copies around small writes.
const MAX_THREADS: usize = 16;

type Work = Box<dyn FnOnce() -> Result<()> + Send>;

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(Option<u32>, Work)>,
    idle: usize,
    closing: bool,
}

struct Shared {
    jobs: Mutex<Jobs>,
    arrived: Condvar,
    done: Mutex<Vec<(u32, Result<()>)>>,
    event: OwnedFd,
    /// Unreported work is under way.
    background: AtomicBool,
}

/// Threads that are started when work waits, up to a limit.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Pool {
            shared: Arc::new(Shared {
                jobs: Mutex::default(),
                arrived: Condvar::new(),
                done: Mutex::default(),
                event,
                background: AtomicBool::new(false),
            }),
            threads: Vec::new(),
        })
    }

    /// Readable when work has been done.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Runs `work` on a thread and reports it under `slot`.
    pub(super) fn run(&mut self, slot: u32, work: impl FnOnce() -> Result<()> + Send + 'static) {
        self.queue(Some(slot), Box::new(work));
    }

    /// Runs `work` on a thread, at most one such at a time.
    pub(super) fn run_unreported(&mut self, work: impl FnOnce() + Send + 'static) {
        if self.shared.background.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let work = move || {
            work();
            shared.background.store(false, Ordering::Release);
            Ok(())
        };
        self.queue(None, Box::new(work));
    }

    fn queue(&mut self, slot: Option<u32>, work: Work) {
        let mut jobs = self.shared.jobs.lock();
        jobs.waiting.push_back((slot, work));
        let crowded = jobs.waiting.len() > jobs.idle && self.threads.len() < MAX_THREADS;
        drop(jobs);
        self.shared.arrived.notify_one();
        if crowded {
            self.start_thread();
        }
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("image-queue".to_owned())
            .spawn(move || shared.serve());
        match started {
            Ok(thread) => self.threads.push(thread),
            // Those that run already do the work; without any, do it here.
            Err(error) if self.threads.is_empty() => {
                tracing::warn!(%error, "cannot start a thread, requests run in turn");
                self.shared.serve_waiting();
            }
            Err(_) => {}
        }
    }

    /// What has been done since the last call.
    pub(super) fn take_done(&mut self) -> Vec<(u32, Result<()>)> {
        let done = std::mem::take(&mut *self.shared.done.lock());
        if !done.is_empty() {
            let mut count = [0u8; 8];
            // Fails only when nothing is there to read.
            let _ = rustix::io::read(&self.shared.event, &mut count);
            // What arrived between the two steps must not be slept over.
            if !self.shared.done.lock().is_empty() {
                self.shared.signal();
            }
        }
        done
    }
}

impl Shared {
    fn serve(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some((slot, work)) = jobs.waiting.pop_front() {
                drop(jobs);
                self.perform(slot, work);
                jobs = self.jobs.lock();
            } else if jobs.closing {
                return;
            } else {
                jobs.idle += 1;
                self.arrived.wait(&mut jobs);
                jobs.idle -= 1;
            }
        }
    }

    fn serve_waiting(&self) {
        loop {
            let next = self.jobs.lock().waiting.pop_front();
            let Some((slot, work)) = next else { return };
            self.perform(slot, work);
        }
    }

    fn perform(&self, slot: Option<u32>, work: Work) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
            .unwrap_or_else(|_| Err(Error::invalid("request", "its thread panicked")));
        if let Some(slot) = slot {
            self.done.lock().push((slot, outcome));
            self.signal();
        }
    }

    fn signal(&self) {
        // Full only after 2^64 signals that nobody read.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl Pool {
    /// Waits for all work and ends the threads; they are started again when
    /// there is more.
    pub(super) fn end_threads(&mut self) {
        self.shared.jobs.lock().closing = true;
        self.shared.arrived.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the queue panicked");
            }
        }
        self.shared.jobs.lock().closing = false;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end_threads();
    }
}
