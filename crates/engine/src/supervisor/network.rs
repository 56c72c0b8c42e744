//! The networks of a domain's cards: user-mode network processes, which live as long as their
//! monitor, and taps.

use std::fs;
use std::io::{self, BufReader, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cenote_net::config::Description;
use cenote_net::tap::{Tap, TapOptions};
use cenote_vmm::machine::{Description as MachineDescription, DescriptorNumber, NicBackend};
use parking_lot::Mutex;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::monitor::Setting;
use crate::domains::translate::Joined;

/// Name of the networks' log, beside the monitor's.
const LOG: &str = "network.log";
/// How long a network may take to come up, on a busy host.
const START: Duration = Duration::from_secs(120);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// An address that a guest was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The guest's Ethernet address.
    pub mac: String,
    /// Its address.
    pub address: String,
    /// The name it said it has.
    #[serde(default)]
    pub host_name: Option<String>,
}

/// What went one way through a card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Frames that were dropped.
    #[serde(default)]
    pub dropped: u64,
}

/// What went through a card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardTraffic {
    /// What the guest was given.
    pub to_guest: Traffic,
    /// What the guest sent.
    pub from_guest: Traffic,
}

/// How the network of a card stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CardReport {
    /// The host's device, where it has one.
    pub device: Option<String>,
    /// Addresses that the guest was given.
    pub leases: Vec<Lease>,
    /// What went through it, as far as its network counts.
    pub traffic: Option<CardTraffic>,
}

/// The networks of one monitor.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    cards: Vec<Card>,
    /// What the monitor is to inherit.
    ends: Vec<OwnedFd>,
}

/// A card of the machine.
#[derive(Debug)]
struct Card {
    /// The tap's name, where it has one.
    device: Option<String>,
    user: Option<UserNetwork>,
}

/// A user-mode network that runs.
#[derive(Debug)]
struct UserNetwork {
    process: OwnedFd,
    control: UnixStream,
    leases: Arc<Mutex<Vec<Lease>>>,
    answers: mpsc::Receiver<Value>,
    reader: Option<JoinHandle<()>>,
}

impl Drop for UserNetwork {
    /// The monitor has ended: nobody needs it any more.
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Descriptors that processes started meanwhile inherit. Only the supervisor's own thread starts
/// processes.
pub(crate) struct Inherited<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Inherited<'a> {
    pub(crate) fn by_children(
        descriptors: impl Iterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<Self> {
        let inherited = Self(descriptors.collect());
        for descriptor in &inherited.0 {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(inherited)
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        for descriptor in &self.0 {
            // It cannot fail for a descriptor that is open.
            let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
    }
}

impl Networks {
    /// Starts what the machine's cards are joined to, and gives the machine's description with
    /// their descriptors. All ends with what is given.
    ///
    /// # Errors
    /// What could not be had, in words.
    pub(crate) fn start(setting: &Setting<'_>) -> Result<(Self, MachineDescription), String> {
        let mut description = setting.machine.description.clone();
        let mut networks = Self::default();
        let cards = description.nics.iter_mut().zip(&setting.machine.joined);
        for (index, (nic, joined)) in cards.enumerate() {
            let place = format!("network card {}", index + 1);
            let failed = |error: String| format!("{place}: {error}");
            match joined {
                Joined::Tap(options) => {
                    let (tap, backend) = open_tap(options).map_err(failed)?;
                    nic.backend = backend;
                    networks.ends.extend(tap.queues);
                    networks.cards.push(Card {
                        device: Some(tap.name),
                        user: None,
                    });
                }
                Joined::User(network) => {
                    let (user, end) =
                        UserNetwork::start(setting, index, network).map_err(failed)?;
                    nic.backend = NicBackend::Socket(number(&end));
                    networks.ends.push(end);
                    networks.cards.push(Card {
                        device: None,
                        user: Some(user),
                    });
                }
            }
        }
        Ok((networks, description))
    }

    /// What the monitor inherits.
    pub(crate) fn monitor_ends(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ends.iter().map(AsFd::as_fd)
    }

    /// The monitor has its ends: when they close, the networks end.
    pub(crate) fn joined(mut self) -> Self {
        self.ends.clear();
        self
    }

    /// The names of the host's devices by the cards' order.
    pub(crate) fn devices(&self) -> impl Iterator<Item = Option<&str>> {
        self.cards.iter().map(|card| card.device.as_deref())
    }

    /// How the networks of all cards stand, in the cards' order.
    pub(crate) fn reports(&mut self) -> Vec<CardReport> {
        let report = |card: &mut Card| CardReport {
            device: card.device.clone(),
            leases: card
                .user
                .as_ref()
                .map(|user| user.leases.lock().clone())
                .unwrap_or_default(),
            traffic: card.user.as_mut().and_then(UserNetwork::traffic),
        };
        self.cards.iter_mut().map(report).collect()
    }
}

fn number(descriptor: &OwnedFd) -> DescriptorNumber {
    DescriptorNumber {
        fd: descriptor.as_raw_fd(),
    }
}

fn open_tap(options: &TapOptions) -> Result<(Tap, NicBackend), String> {
    let tap = Tap::open(options).map_err(|error| described(&error))?;
    let numbers = tap.queues.iter().map(number).collect();
    Ok((tap, NicBackend::Tap(numbers)))
}

fn described(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl UserNetwork {
    /// Starts the process and waits until the network is there. Gives the monitor's end.
    fn start(
        setting: &Setting<'_>,
        index: usize,
        network: &Description,
    ) -> Result<(Self, OwnedFd), String> {
        let program = setting.network.ok_or("there is no program for it")?;
        let text = |error: io::Error| error.to_string();
        let pair = |kind| {
            socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                .map_err(|error| error.to_string())
        };
        let (monitor, frames) = pair(SocketType::SEQPACKET)?;
        let (control, events) = pair(SocketType::STREAM)?;
        let mut network = network.clone();
        network.monitor = frames.as_raw_fd();
        network.control = Some(events.as_raw_fd());
        let path = setting.run_dir.join(format!("network{index}.json"));
        let description = serde_json::to_vec_pretty(&network).map_err(|error| error.to_string())?;
        fs::write(&path, description).map_err(text)?;
        let log = setting.log.with_file_name(LOG);
        let messages = super::console::open_log(&log, true).map_err(text)?;
        let child = {
            let _inherited = Inherited::by_children([frames.as_fd(), events.as_fd()].into_iter())
                .map_err(text)?;
            Command::new(program)
                .arg("--network")
                .arg(&path)
                .current_dir(setting.run_dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(messages)
                .spawn()
                .map_err(|error| format!("cannot run '{}': {error}", program.display()))?
        };
        drop((frames, events));
        let control = UnixStream::from(control);
        let user = Self::watch(child, control, &log)?;
        Ok((user, monitor))
    }

    /// Waits until the network is there, and listens to it from then on.
    fn watch(mut child: Child, control: UnixStream, log: &Path) -> Result<Self, String> {
        let text = |error: io::Error| error.to_string();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(control.try_clone().map_err(text)?);
        control.set_read_timeout(Some(START)).map_err(text)?;
        if !matches!(message(&mut lines), Some(Message::Told { method, .. }) if method == "ready") {
            let _ = child.kill();
            let _ = child.wait();
            return Err(last_line(log).unwrap_or("the network does not come up".to_owned()));
        }
        control.set_read_timeout(None).map_err(text)?;
        let leases = Arc::new(Mutex::new(Vec::new()));
        let (sender, answers) = mpsc::channel();
        let shared = Arc::clone(&leases);
        let reader = thread::Builder::new()
            .name("network".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || {
                listen(&mut lines, &shared, &sender);
                match child.wait() {
                    Ok(status) => tracing::debug!(%status, "a network ended"),
                    Err(error) => tracing::warn!(%error, "a network cannot be waited for"),
                }
            })
            .map_err(text)?;
        Ok(Self {
            process,
            control,
            leases,
            answers,
            reader: Some(reader),
        })
    }

    fn traffic(&mut self) -> Option<CardTraffic> {
        // Answers that came too late for an earlier question.
        while self.answers.try_recv().is_ok() {}
        let question = json!({"jsonrpc": "2.0", "id": 1, "method": "statistics"}).to_string();
        (&self.control)
            .write_all((question + "\n").as_bytes())
            .ok()?;
        let answer = self.answers.recv_timeout(ANSWER).ok()?;
        serde_json::from_value(answer).ok()
    }
}

/// What a network process says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Told { method: String, params: Value },
    Answer { result: Value },
}

fn message(lines: &mut impl io::BufRead) -> Option<Message> {
    let mut line = String::new();
    match lines.read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => serde_json::from_str(&line).ok(),
    }
}

/// Takes in what a network says until it ends.
fn listen(lines: &mut impl io::BufRead, leases: &Mutex<Vec<Lease>>, answers: &mpsc::Sender<Value>) {
    while let Some(message) = message(lines) {
        match message {
            Message::Told { method, params } if method == "lease" => {
                if let Ok(lease) = serde_json::from_value::<Lease>(params) {
                    let mut leases = leases.lock();
                    leases.retain(|old| old.mac != lease.mac);
                    leases.push(lease);
                }
            }
            Message::Told { .. } => {}
            // Nobody may wait for it any more.
            Message::Answer { result } => drop(answers.send(result)),
        }
    }
}

/// The last thing that is in a log.
fn last_line(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.strip_prefix("cenote-net: ").unwrap_or(line).to_owned())
}
