//! Character back ends of the host: files and the terminal.
//!
//! Output is queued and written by a thread of its own, so that a reader who does not read holds
//! back the guest's transmitter and nothing else.

use crate::{
    devices::chardev::{CharBackend, CharFrontend},
    sandbox::{self, Class},
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Weak},
    thread::{self, JoinHandle},
};
use vmm_sys_util::eventfd::EventFd;

/// As much output as waits for its reader.
const QUEUE: usize = 64 * 1024;

/// A front end that the device thread and output threads call.
pub(super) type Frontend = Arc<Mutex<dyn CharFrontend>>;

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// Output was turned away; the front end is to be told when there is room.
    full: bool,
    closed: bool,
    /// Nothing can be written any more; output is lost.
    broken: bool,
    frontend: Option<Weak<Mutex<dyn CharFrontend>>>,
}

/// Output to a file, as a device's back end.
struct QueuedOutput {
    queue: Arc<Queue>,
    /// Signalled when the device has room for input.
    input: Option<EventFd>,
}

impl CharBackend for QueuedOutput {
    fn write(&mut self, data: &[u8]) -> usize {
        let mut state = self.queue.state.lock();
        if state.broken {
            return data.len();
        }
        let taken = data.len().min(QUEUE - state.bytes.len().min(QUEUE));
        state.bytes.extend(&data[..taken]);
        state.full |= taken < data.len();
        self.queue.changed.notify_one();
        taken
    }

    fn readable(&mut self) {
        if let Some(input) = &self.input {
            // A full counter means that the thread is awake already.
            let _ = input.write(1);
        }
    }
}

/// The writing side of a queue; closing it writes what is left.
pub(super) struct Output {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Starts a thread that writes to `sink`, and gives the back end that feeds it.
    pub(super) fn start(
        mut sink: impl Write + Send + 'static,
        input: Option<EventFd>,
    ) -> io::Result<(Self, Box<dyn CharBackend>)> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let work = Arc::clone(&queue);
        let thread = thread::Builder::new()
            .name("character-out".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                sandbox::restrict_thread(Class::Device);
                work.pump(&mut sink);
            })?;
        let backend = QueuedOutput {
            queue: Arc::clone(&queue),
            input,
        };
        let output = Self {
            queue,
            thread: Some(thread),
        };
        Ok((output, Box::new(backend)))
    }

    /// Says which device to tell of room.
    pub(super) fn attach(&self, frontend: &Frontend) {
        self.queue.state.lock().frontend = Some(Arc::downgrade(frontend));
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its thread.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn pump(&self, sink: &mut dyn Write) {
        loop {
            let mut state = self.state.lock();
            while state.bytes.is_empty() {
                if state.closed {
                    return;
                }
                self.changed.wait(&mut state);
            }
            let bytes = std::mem::take(&mut state.bytes);
            drop(state);
            let (first, second) = bytes.as_slices();
            let written = sink
                .write_all(first)
                .and_then(|()| sink.write_all(second))
                .and_then(|()| sink.flush());
            let mut state = self.state.lock();
            if let Err(error) = written {
                tracing::warn!(%error, "character output cannot be written and is lost from now on");
                state.broken = true;
                state.bytes.clear();
            }
            let told = std::mem::take(&mut state.full)
                .then(|| state.frontend.as_ref().and_then(Weak::upgrade))
                .flatten();
            drop(state);
            if let Some(frontend) = told {
                frontend.lock().writable();
            }
        }
    }
}

/// The terminal in raw mode, put back when dropped.
pub(super) struct RawTerminal(Option<rustix::termios::Termios>);

impl RawTerminal {
    /// Makes standard input raw if it is a terminal.
    pub(super) fn enter() -> Self {
        let stdin = io::stdin();
        let Ok(before) = rustix::termios::tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        // Output stays cooked, so that the monitor's own messages start at the margin.
        raw.output_modes = before.output_modes;
        let now = rustix::termios::OptionalActions::Now;
        match rustix::termios::tcsetattr(&stdin, now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl RawTerminal {
    /// Whether standard input is a terminal and is raw now.
    pub(super) fn is_raw(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let now = rustix::termios::OptionalActions::Now;
            // The terminal may have gone away.
            let _ = rustix::termios::tcsetattr(io::stdin(), now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Slow(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.lock().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Device(mpsc::Sender<()>);

    impl CharFrontend for Device {
        fn receive(&mut self, _data: &[u8]) -> usize {
            0
        }

        fn writable(&mut self) {
            self.0.send(()).unwrap();
        }
    }

    #[test]
    fn a_full_queue_turns_output_away_and_tells_of_room() {
        let (release, gate) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (output, mut backend) = Output::start(Slow(gate, seen.clone()), None).unwrap();
        let (tell, told) = mpsc::channel();
        let device: Frontend = Arc::new(Mutex::new(Device(tell)));
        output.attach(&device);
        let mut accepted = 0;
        // The thread may take one queue's worth while the next fills.
        while accepted <= 2 * QUEUE {
            match backend.write(&[b'x'; 1000]) {
                0 => break,
                taken => accepted += taken,
            }
        }
        assert!(accepted <= 2 * QUEUE);
        for _ in 0..8 {
            release.send(()).unwrap();
        }
        told.recv().unwrap();
        drop(output);
        assert_eq!(seen.lock().len(), accepted);
    }
}
