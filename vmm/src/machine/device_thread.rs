//! The thread that serves slow devices: timers, and input for character devices.

use super::{clock::MachineClock, console::Frontend, timers::Timers};
use crate::{
    clock::Clock as _,
    sandbox::{self, Class},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use vmm_sys_util::eventfd::EventFd;

/// Control-], which ends the monitor when it comes from a terminal, as it leaves virsh's console.
const ESCAPE: u8 = 0x1d;

/// An input of characters.
pub(super) struct Input {
    source: OwnedFd,
    frontend: Frontend,
    /// Called when the escape character comes, which then does not reach the device.
    escape: Option<Box<dyn FnMut() + Send>>,
    /// Read but not taken by the device.
    waiting: Vec<u8>,
    ended: bool,
}

impl Input {
    pub(super) fn new(
        source: OwnedFd,
        frontend: Frontend,
        escape: Option<Box<dyn FnMut() + Send>>,
    ) -> Self {
        Self {
            source,
            frontend,
            escape,
            waiting: Vec::new(),
            ended: false,
        }
    }

    fn offer(&mut self) {
        if !self.waiting.is_empty() {
            let taken = self.frontend.lock().receive(&self.waiting);
            self.waiting.drain(..taken.min(self.waiting.len()));
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 256];
        match rustix::io::read(&self.source, &mut buffer) {
            Ok(0) => self.ended = true,
            Ok(length) => {
                let mut bytes = &buffer[..length];
                if let Some(escape) = &mut self.escape
                    && let Some(at) = bytes.iter().position(|byte| *byte == ESCAPE)
                {
                    bytes = &bytes[..at];
                    escape();
                }
                self.waiting.extend_from_slice(bytes);
                self.offer();
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "character input cannot be read any more");
                self.ended = true;
            }
        }
    }
}

/// The running thread; ends when dropped.
pub(super) struct DeviceThread {
    wake: EventFd,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    wake: EventFd,
    stop: Arc<AtomicBool>,
    clock: Arc<MachineClock>,
    timers: Arc<Timers>,
    inputs: Vec<Input>,
}

impl DeviceThread {
    pub(super) fn start(
        wake: EventFd,
        clock: Arc<MachineClock>,
        timers: Arc<Timers>,
        inputs: Vec<Input>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work {
            wake: wake.try_clone()?,
            stop: Arc::clone(&stop),
            clock,
            timers,
            inputs,
        };
        let thread = thread::Builder::new()
            .name("devices".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || work.run())?;
        Ok(Self {
            wake,
            stop,
            thread: Some(thread),
        })
    }

    /// Makes the thread look at deadlines and waiting input again.
    pub(super) fn wake(&self) {
        // A full counter means that the thread is awake already.
        let _ = self.wake.write(1);
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its thread.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn run(mut self) {
        sandbox::restrict_thread(Class::Device);
        while !self.stop.load(Ordering::SeqCst) {
            let readable = self.wait();
            if self.clock.is_running() {
                self.timers.expire(self.clock.running());
            }
            for (input, readable) in self.inputs.iter_mut().zip(readable) {
                if readable {
                    input.read();
                } else {
                    input.offer();
                }
            }
        }
    }

    /// Waits for the next deadline, a wake-up or input; says which inputs have some.
    fn wait(&self) -> Vec<bool> {
        let timeout = self.timeout();
        let listening: Vec<bool> = self
            .inputs
            .iter()
            .map(|input| !input.ended && input.waiting.is_empty())
            .collect();
        let mut fds = vec![PollFd::from_borrowed_fd(
            borrowed(&self.wake),
            PollFlags::IN,
        )];
        for (input, listening) in self.inputs.iter().zip(&listening) {
            if *listening {
                fds.push(PollFd::new(&input.source, PollFlags::IN));
            }
        }
        if let Err(error) = poll(&mut fds, timeout.as_ref())
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "the device thread cannot wait");
        }
        let mut ready = fds.iter().skip(1).map(|fd| !fd.revents().is_empty());
        let readable = listening
            .iter()
            .map(|listening| *listening && ready.next().unwrap_or(false))
            .collect();
        if !fds[0].revents().is_empty() {
            // Empty when somebody else was faster.
            let _ = self.wake.read();
        }
        readable
    }

    fn timeout(&self) -> Option<Timespec> {
        if !self.clock.is_running() {
            return None;
        }
        let deadline = self.timers.earliest()?;
        let left = deadline.saturating_sub(self.clock.running());
        // Deadlines beyond an hour are looked at again then.
        Timespec::try_from(left.min(Duration::from_secs(3600))).ok()
    }
}

#[allow(unsafe_code)] // The event's type does not lend its descriptor safely.
fn borrowed(event: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open for as long as the event is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
