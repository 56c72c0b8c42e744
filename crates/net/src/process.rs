//! The process of a network: descriptors in, a loop until the monitor's end closes.

use crate::{
    config::Description,
    control::Control,
    descriptor,
    network::{Network, NetworkError},
    port::{FramePort, Received},
    sandbox::{self, SandboxError},
};
use libc::pollfd;
use std::{
    io,
    os::fd::RawFd,
    rc::Rc,
    time::{Duration, Instant},
};

/// Frames taken from the guest in one turn of the loop, so that none of its sides starves.
const BATCH: usize = 64;
/// Longest sleep; nothing depends on it.
const SLEEP: Duration = Duration::from_secs(60);

/// Why a network process ended, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A descriptor is not what it should be.
    #[error("descriptor {fd} ({what}) cannot be used")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it is for.
        what: &'static str,
        /// What is wrong.
        source: io::Error,
    },
    /// The network cannot be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The sandbox cannot be closed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The socket to the monitor failed.
    #[error("the connection to the monitor failed")]
    Port(#[source] io::Error),
    /// Waiting failed.
    #[error("waiting for events failed")]
    Poll(#[source] io::Error),
}

/// Makes everything that the description asks for, and lets go of it again.
///
/// # Errors
/// As [`run`].
pub fn check(description: &Description) -> Result<(), ProcessError> {
    let (port, control) = descriptors(description)?;
    Network::new(description, Rc::new(port))?;
    drop(control);
    Ok(())
}

/// Runs the network until the monitor's end of the socket closes.
///
/// The process is confined before the first frame is read.
///
/// # Errors
/// If it cannot be started, or a descriptor fails.
pub fn run(description: &Description) -> Result<(), ProcessError> {
    let (port, control) = descriptors(description)?;
    let port = Rc::new(port);
    let network = Network::new(description, Rc::clone(&port))?;
    sandbox::close(description)?;
    let mut process = Process {
        port,
        network,
        control,
        buffer: vec![0; 1 << 16],
        polled: Vec::new(),
    };
    if let Some(control) = &mut process.control {
        control.ready();
    }
    while process.turn()? {}
    Ok(())
}

fn descriptors(description: &Description) -> Result<(FramePort, Option<Control>), ProcessError> {
    let take = |fd, what| {
        descriptor::duplicate(fd).map_err(|source| ProcessError::Descriptor { fd, what, source })
    };
    let monitor = take(description.monitor, "monitor")?;
    let port = FramePort::new(monitor).map_err(|source| ProcessError::Descriptor {
        fd: description.monitor,
        what: "monitor",
        source,
    })?;
    let control = description
        .control
        .map(|fd| take(fd, "control").map(Control::new))
        .transpose()?;
    Ok((port, control))
}

struct Process {
    port: Rc<FramePort>,
    network: Network,
    control: Option<Control>,
    buffer: Vec<u8>,
    polled: Vec<pollfd>,
}

impl Process {
    /// Waits once and does what there is to do; `false` at the end.
    fn turn(&mut self) -> Result<bool, ProcessError> {
        let mut timeout = SLEEP;
        self.polled.clear();
        self.polled
            .push(entry(self.port.descriptor(), true, self.port.is_waiting()));
        // Without a control connection the place is kept by an entry that poll ignores.
        self.polled.push(match &self.control {
            Some(control) => entry(control.descriptor(), true, control.is_waiting()),
            None => entry(-1, false, false),
        });
        // What the guest does not take is not asked for: its senders wait, nothing is dropped.
        let slirp = !self.port.is_full();
        if slirp {
            self.network.fill(&mut self.polled, &mut timeout);
        }
        if let Some(deadline) = self.network.deadline() {
            timeout = timeout.min(deadline.saturating_duration_since(Instant::now()));
        }
        poll(&mut self.polled, timeout).map_err(ProcessError::Poll)?;
        let now = Instant::now();
        if self.polled[0].revents & libc::POLLOUT != 0 {
            self.port.flush();
        }
        if self.polled[0].revents & !libc::POLLOUT != 0 && !self.receive(now)? {
            return Ok(false);
        }
        if slirp {
            self.network.dispatch(&self.polled);
        }
        self.network.tick(now);
        self.talk();
        Ok(true)
    }

    /// Takes frames from the guest; `false` when the monitor has gone.
    fn receive(&mut self, now: Instant) -> Result<bool, ProcessError> {
        for _ in 0..BATCH {
            let received = self.port.receive(&mut self.buffer);
            match received.map_err(ProcessError::Port)? {
                Received::Frame(length) => self.network.frame(&self.buffer, length, now),
                Received::Nothing => break,
                Received::End => return Ok(false),
            }
        }
        Ok(true)
    }

    fn talk(&mut self) {
        let events = self.network.take_events();
        let Some(control) = &mut self.control else {
            return;
        };
        let revents = self.polled[1].revents;
        control.flush();
        for event in &events {
            control.event(event);
        }
        // Whoever watched may leave; the guest keeps its network.
        if revents & !libc::POLLOUT != 0 && !control.serve(|| self.network.statistics()) {
            self.control = None;
        }
    }
}

fn entry(fd: RawFd, read: bool, write: bool) -> pollfd {
    let mut events = 0;
    if read {
        events |= libc::POLLIN;
    }
    if write {
        events |= libc::POLLOUT;
    }
    pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// Waits until something happens or `timeout` is over, rounded up to a millisecond.
#[allow(unsafe_code)] // The stack gives descriptors by number.
fn poll(polled: &mut [pollfd], timeout: Duration) -> io::Result<()> {
    let milliseconds = timeout.as_micros().div_ceil(1000);
    let milliseconds = i32::try_from(milliseconds).unwrap_or(i32::MAX);
    // SAFETY: the kernel writes the slice's entries only.
    let result = unsafe {
        libc::poll(
            polled.as_mut_ptr(),
            polled.len() as libc::nfds_t,
            milliseconds,
        )
    };
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() != io::ErrorKind::Interrupted {
        return Err(error);
    }
    for entry in polled {
        entry.revents = 0;
    }
    Ok(())
}
