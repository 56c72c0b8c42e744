//! The supervisor's socket: requests of commands, one connection each.

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use cenote_vmm::machine::Notice;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};

use super::console::Console;
use super::monitor::{End, Killer, Monitor};
use super::protocol::{self, Reply, Request};
use crate::domains::Cause;

/// How long a monitor that is to end may take before it is killed: it has images to close.
const GRACE: Duration = Duration::from_secs(10);

/// How long a supervisor stays for those who do not take their answer.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the supervisor's own thread hears of.
pub(crate) enum Message {
    /// A command wants something.
    Request(Request, Sender<Reply>),
    /// The monitor ended.
    Ended(End),
    /// Something happened to the machine.
    Noticed(Notice),
}

/// What threads of connections share with the supervisor's own.
#[derive(Default)]
pub(crate) struct Shared {
    /// Kills the present monitor.
    killer: Mutex<Option<Killer>>,
    /// Connections that have asked and were not answered yet.
    unanswered: Mutex<usize>,
    answered: Condvar,
}

impl Shared {
    /// There is another monitor, or none.
    pub(crate) fn set_monitor(&self, monitor: Option<&Monitor>) {
        let killer = monitor.and_then(|monitor| monitor.killer().ok());
        *self.killer.lock() = killer;
    }

    /// Waits until everybody who asked has the answer.
    pub(crate) fn finish(&self) {
        let deadline = Instant::now()
            .checked_add(FAREWELL)
            .unwrap_or_else(Instant::now);
        let mut unanswered = self.unanswered.lock();
        while *unanswered > 0 {
            if self
                .answered
                .wait_until(&mut unanswered, deadline)
                .timed_out()
            {
                return;
            }
        }
    }

    fn kill(&self) {
        if let Some(killer) = &*self.killer.lock() {
            killer.kill();
        }
    }
}

/// Serves the socket from threads of its own for as long as the process lives.
pub(crate) fn listen(
    listener: UnixListener,
    sender: Sender<Message>,
    console: Option<Arc<Console>>,
    monitor: &Monitor,
) -> io::Result<Arc<Shared>> {
    let shared = Arc::new(Shared::default());
    shared.set_monitor(Some(monitor));
    let given = Arc::clone(&shared);
    thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        thread::sleep(Duration::from_millis(100));
                        continue;
                    }
                };
                let connection = Connection {
                    stream,
                    sender: sender.clone(),
                    console: console.clone(),
                    shared: Arc::clone(&given),
                };
                let served = thread::Builder::new()
                    .name("connection".to_owned())
                    .stack_size(256 * 1024)
                    .spawn(move || connection.serve());
                if let Err(error) = served {
                    tracing::warn!(%error, "a connection cannot be served");
                }
            }
        })?;
    Ok(shared)
}

struct Connection {
    stream: UnixStream,
    sender: Sender<Message>,
    console: Option<Arc<Console>>,
    shared: Arc<Shared>,
}

impl Connection {
    fn serve(self) {
        if let Err(error) = self.serve_one() {
            tracing::debug!(%error, "a connection broke");
        }
    }

    fn serve_one(&self) -> io::Result<()> {
        let mut reader = BufReader::new(&self.stream);
        let Some(request) = protocol::receive::<Request>(&mut reader)? else {
            return Ok(());
        };
        match request {
            Request::Console { force } => self.attach(force),
            request @ Request::Destroy { graceful, .. } => {
                let patience = (!graceful).then_some(GRACE);
                self.answer(|| self.ask(request, patience))
            }
            request => self.answer(|| self.ask(request, None)),
        }
    }

    /// Sends an answer, for which the supervisor stays.
    fn answer(&self, reply: impl FnOnce() -> Reply) -> io::Result<()> {
        *self.shared.unanswered.lock() += 1;
        let sent = protocol::send(&mut &self.stream, &reply());
        *self.shared.unanswered.lock() -= 1;
        self.shared.answered.notify_all();
        sent
    }

    /// Asks the supervisor's own thread and waits for its answer.
    fn ask(&self, request: Request, patience: Option<Duration>) -> Reply {
        let gone = || Reply::Failed {
            reason: "the domain has ended".to_owned(),
        };
        let (reply, answer) = mpsc::channel();
        if self.sender.send(Message::Request(request, reply)).is_err() {
            return gone();
        }
        let Some(patience) = patience else {
            return answer.recv().unwrap_or_else(|_| gone());
        };
        match answer.recv_timeout(patience) {
            Ok(reply) => reply,
            Err(mpsc::RecvTimeoutError::Disconnected) => gone(),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.shared.kill();
                answer.recv().unwrap_or_else(|_| gone())
            }
        }
    }

    fn attach(&self, force: bool) -> io::Result<()> {
        let Some(console) = &self.console else {
            let reason = "the domain has no console".to_owned();
            return protocol::send(&mut &self.stream, &Reply::Invalid { reason });
        };
        let accept = || protocol::send(&mut &self.stream, &Reply::Done);
        if console.attach(&self.stream, force, accept)? {
            return Ok(());
        }
        let reason = "Active console session exists for this domain".to_owned();
        protocol::send(&mut &self.stream, &Reply::Invalid { reason })
    }
}

/// Ends the domain when the command that started it goes away: that reads standard output, and
/// keeps it open for as long as it wants the domain.
pub(crate) fn tie_to_caller(sender: Sender<Message>, shared: Arc<Shared>) -> io::Result<()> {
    thread::Builder::new()
        .name("tie".to_owned())
        .spawn(move || {
            let stdout = io::stdout();
            loop {
                // Nothing is asked for: the end of the pipe's reader is told in any case.
                let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
                match poll(&mut fds, None) {
                    Ok(0) | Err(rustix::io::Errno::INTR) => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::error!(%error, "the command that started the domain is lost");
                        break;
                    }
                }
            }
            let (reply, answer) = mpsc::channel();
            let cause = Cause::ConnectionClosed;
            let request = Request::Destroy {
                graceful: false,
                cause,
                for_snapshot: false,
            };
            if sender.send(Message::Request(request, reply)).is_ok()
                && answer.recv_timeout(GRACE) == Err(mpsc::RecvTimeoutError::Timeout)
            {
                shared.kill();
            }
        })?;
    Ok(())
}
