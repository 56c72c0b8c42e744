//! Threads that serve queues.
//!
//! A worker is made with its device, before the guest runs, and waits until there is something
//! to serve. At rest its handler belongs to the device, otherwise to the thread.

use crate::sandbox::{self, Class};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const REST: u8 = 0;
const RUN: u8 = 1;
const END: u8 = 2;

/// Stack of a worker; only what is touched costs memory.
const STACK: usize = 256 * 1024;

/// What a worker does.
pub trait Handler: Send + 'static {
    /// The descriptors to wait for, asked anew before each wait.
    fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// Does what there is to do, without waiting for the guest or for a peer. `ready` says which
    /// of the descriptors are; after a rest it says all, whatever they are.
    fn work(&mut self, ready: &Ready);

    /// Whether [`Handler::work`] is to be called again at once, without waiting.
    fn wants_turn(&self) -> bool {
        false
    }

    /// Comes to rest: requests in flight are completed or kept.
    fn rest(&mut self) {}

    /// What the thread may do in a sandbox.
    fn class(&self) -> Class {
        Class::Worker
    }

    /// Called on the worker's thread before anything else, once.
    fn begin(&mut self) {}
}

/// Which descriptors are ready, by their place in [`Handler::waits_for`].
#[derive(Debug, Default)]
pub struct Ready {
    places: Vec<bool>,
    all: bool,
}

impl Ready {
    /// Whether the descriptor at `place` is ready.
    #[must_use]
    pub fn has(&self, place: usize) -> bool {
        self.all || self.places.get(place).copied().unwrap_or(false)
    }
}

struct Shared<H> {
    wanted: AtomicU8,
    resting: Mutex<bool>,
    changed: Condvar,
    wake: EventFd,
    handler: Mutex<H>,
}

/// A thread and its handler.
pub struct Worker<H: Handler> {
    shared: Arc<Shared<H>>,
    thread: Option<JoinHandle<()>>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread called `name` (at most 15 bytes are shown), at rest.
    ///
    /// # Errors
    /// If the host refuses a thread or a descriptor.
    pub fn start(name: &str, handler: H) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: AtomicU8::new(REST),
            resting: Mutex::new(false),
            changed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            handler: Mutex::new(handler),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || own.serve())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Lets the thread serve.
    pub fn run(&self) {
        self.shared.want(RUN);
    }

    /// Brings the thread to rest and waits until it is.
    pub fn rest(&self) {
        self.shared.want(REST);
        let mut resting = self.shared.resting.lock();
        // A thread that is gone has panicked, and rests for good.
        while !*resting && self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            let second = std::time::Duration::from_secs(1);
            self.shared.changed.wait_for(&mut resting, second);
        }
    }

    /// The handler, at rest. While the worker runs this waits for it to rest.
    pub fn handler(&self) -> MutexGuard<'_, H> {
        self.shared.handler.lock()
    }
}

impl<H: Handler> Drop for Worker<H> {
    fn drop(&mut self) {
        self.shared.want(END);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its thread.
            let _ = thread.join();
        }
    }
}

impl<H: Handler> Shared<H> {
    fn want(&self, wanted: u8) {
        let resting = self.resting.lock();
        self.wanted.store(wanted, Ordering::SeqCst);
        drop(resting);
        self.changed.notify_all();
        // A full counter means that the thread is awake already.
        let _ = self.wake.write(1);
    }

    fn wanted(&self) -> u8 {
        self.wanted.load(Ordering::SeqCst)
    }

    fn serve(&self) {
        let class = self.handler.lock().class();
        sandbox::restrict_thread(class);
        self.handler.lock().begin();
        while self.pass() {
            let mut handler = self.handler.lock();
            let mut ready = Ready {
                places: Vec::new(),
                all: true,
            };
            while self.wanted() == RUN {
                handler.work(&ready);
                ready.all = false;
                ready.places.clear();
                if !handler.wants_turn() {
                    self.wait(&*handler, &mut ready);
                }
            }
            handler.rest();
        }
    }

    /// Waits until there is something to serve; false at the end.
    fn pass(&self) -> bool {
        let mut resting = self.resting.lock();
        loop {
            match self.wanted() {
                RUN => break,
                END => return false,
                _ => {
                    *resting = true;
                    self.changed.notify_all();
                    self.changed.wait(&mut resting);
                }
            }
        }
        *resting = false;
        true
    }

    fn wait(&self, handler: &H, ready: &mut Ready) {
        let sources = handler.waits_for();
        let mut fds = Vec::with_capacity(sources.len() + 1);
        fds.push(PollFd::from_borrowed_fd(
            borrowed(&self.wake),
            PollFlags::IN,
        ));
        fds.extend(
            sources
                .iter()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
        );
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return,
            Err(error) => {
                // Only a shortage of the kernel's memory leads here; going on is all there is.
                tracing::error!(%error, "a worker cannot wait");
                ready.all = true;
                return;
            }
        }
        if !fds[0].revents().is_empty() {
            // Empty when somebody else was faster.
            let _ = self.wake.read();
        }
        ready
            .places
            .extend(fds[1..].iter().map(|fd| !fd.revents().is_empty()));
    }
}

/// An event's descriptor.
#[allow(unsafe_code)] // The event's type does not lend its descriptor safely.
#[must_use]
pub fn borrowed(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as the event is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Counter {
        event: EventFd,
        seen: mpsc::Sender<(u64, bool)>,
        rests: usize,
    }

    impl Handler for Counter {
        fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
            vec![(borrowed(&self.event), PollFlags::IN)]
        }

        fn work(&mut self, ready: &Ready) {
            if ready.has(0) {
                let value = self.event.read().unwrap_or(0);
                self.seen.send((value, ready.all)).unwrap();
            }
        }

        fn rest(&mut self) {
            self.rests += 1;
        }
    }

    #[test]
    fn a_worker_serves_rests_and_goes_on() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let (seen, notes) = mpsc::channel();
        let handler = Counter {
            event: event.try_clone().unwrap(),
            seen,
            rests: 0,
        };
        let worker = Worker::start("test", handler).unwrap();
        event.write(1).unwrap();
        worker.rest();
        assert!(notes.try_recv().is_err(), "nothing is served before run");
        worker.run();
        assert_eq!(notes.recv().unwrap(), (1, true));
        event.write(5).unwrap();
        assert_eq!(notes.recv().unwrap(), (5, false));
        worker.rest();
        assert_eq!(worker.handler().rests, 1);
        event.write(7).unwrap();
        worker.rest();
        worker.run();
        assert_eq!(notes.recv().unwrap(), (7, true));
        drop(worker);
        assert!(notes.recv().is_err());
    }
}
