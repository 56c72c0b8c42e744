//! The TFTP server of a guest's private network, read-only (RFC 1350) with the options that
//! firmware asks for: block size, transfer size, timeout, window size (RFC 2347, 2348, 2349,
//! 7440).
//!
//! It answers frames inside this process; no port of the host is involved. libslirp has a TFTP
//! server too, but that follows symbolic links out of its folder, serves no entries in memory,
//! never sends a lost block again and tells nobody what was fetched.
//!
//! Sessions are bounded in number, and one that is quiet ends by itself.

mod request;
mod store;

pub use store::{Store, StoreError};

use crate::frame::{self, Datagram, IPV4, Route, UDP};
use request::{DEFAULT_BLOCK, ErrorCode, Packet, ReadRequest};
use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use store::{Content, Missing};

/// Port of the server.
pub const SERVER_PORT: u16 = 69;
/// Most transfers at a time; beyond, the oldest one ends.
const MOST_SESSIONS: usize = 16;
/// Ports that transfers are answered from.
const FIRST_PORT: u16 = 50_000;
const PORTS: u16 = 10_000;
/// How long an acknowledgement is waited for, unless the client says.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a block is sent again.
const REPEATS: u32 = 5;
/// Length of a block's header in bytes.
const HEADER: usize = 4;

/// The server.
#[derive(Debug)]
pub struct TftpServer {
    store: Store,
    address: Ipv4Addr,
    mtu: u16,
    sessions: VecDeque<Session>,
    next_port: u16,
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The name that was asked for.
    pub name: String,
    /// Bytes of the file that the client has confirmed.
    pub bytes: u64,
    /// What happened.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The client has all of it.
    Complete,
    /// The client ended it; clients do so when they only wanted to know the size.
    Aborted,
    /// The client fell silent, or there were too many transfers.
    Lost,
    /// There is no file of that name.
    NotFound,
    /// The name leads out of the folder, or to something that is no file or cannot be read.
    Forbidden,
}

/// What the server has to say after a datagram or a while.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames for the guest.
    pub frames: Vec<Vec<u8>>,
    /// Transfers that ended.
    pub ended: Vec<Transfer>,
}

#[derive(Debug)]
struct Session {
    /// From the server to the client.
    route: Route,
    name: String,
    content: Content,
    block: u16,
    window: u16,
    patience: Duration,
    /// The options to be confirmed before the first block, if there were any.
    greeting: Option<Vec<u8>>,
    /// Blocks that the client has confirmed.
    confirmed: u64,
    repeats: u32,
    deadline: Instant,
}

impl TftpServer {
    /// A server of `store` at `address`, in a network whose packets have up to `mtu` bytes.
    #[must_use]
    pub fn new(store: Store, address: Ipv4Addr, mtu: u16) -> Self {
        Self {
            store,
            address,
            mtu,
            sessions: VecDeque::new(),
            next_port: 0,
        }
    }

    /// Whether a datagram belongs to the server: a new request, or one of its transfers.
    #[must_use]
    pub fn is_addressed(&self, destination: Ipv4Addr, port: u16) -> bool {
        destination == self.address
            && (port == SERVER_PORT
                || self
                    .sessions
                    .iter()
                    .any(|session| session.route.source_port == port))
    }

    /// Handles a datagram for which [`TftpServer::is_addressed`] is true.
    pub fn handle(&mut self, datagram: &Datagram<'_>, now: Instant) -> Output {
        let mut output = Output::default();
        let packet = Packet::parse(datagram.payload);
        if datagram.route.destination_port == SERVER_PORT {
            match packet {
                Packet::Read(request) => self.begin(datagram, &request, now, &mut output),
                Packet::Refused(code, text) => refuse(&datagram.route, code, text, &mut output),
                Packet::Acknowledge(_) | Packet::Error => {}
            }
            return output;
        }
        let back = datagram.route.reversed();
        let Some(at) = self.sessions.iter().position(|session| {
            session.route.source_port == back.source_port
                && session.route.destination_port == back.destination_port
                && session.route.destination == back.destination
        }) else {
            let text = "no such transfer";
            refuse(
                &datagram.route,
                ErrorCode::UnknownTransfer,
                text,
                &mut output,
            );
            return output;
        };
        match packet {
            Packet::Acknowledge(number) => self.acknowledged(at, number, now, &mut output),
            Packet::Error => self.end(at, Outcome::Aborted, &mut output),
            Packet::Read(_) | Packet::Refused(..) => {}
        }
        output
    }

    /// When [`TftpServer::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.sessions.iter().map(|session| session.deadline).min()
    }

    /// Sends again what was not confirmed in time, and ends transfers of silent clients.
    pub fn tick(&mut self, now: Instant) -> Output {
        let mut output = Output::default();
        let mut at = 0;
        while let Some(session) = self.sessions.get_mut(at) {
            if session.deadline > now {
                at += 1;
            } else if session.repeats >= REPEATS {
                self.end(at, Outcome::Lost, &mut output);
            } else {
                session.repeats += 1;
                self.send(at, now, &mut output);
                at += 1;
            }
        }
        output
    }

    fn begin(
        &mut self,
        datagram: &Datagram<'_>,
        request: &ReadRequest,
        now: Instant,
        output: &mut Output,
    ) {
        let content = match self.store.find(&request.name) {
            Ok(content) => content,
            Err(missing) => {
                let (code, text, outcome) = match missing {
                    Missing::NotFound => (ErrorCode::NotFound, "file not found", Outcome::NotFound),
                    Missing::Forbidden => (
                        ErrorCode::AccessViolation,
                        "access violation",
                        Outcome::Forbidden,
                    ),
                };
                refuse(&datagram.route, code, text, output);
                output.ended.push(Transfer {
                    name: request.name.clone(),
                    bytes: 0,
                    outcome,
                });
                return;
            }
        };
        let mut route = datagram.route.reversed();
        // A client that asks again has not seen the answer: its old transfer is over.
        if let Some(at) = self.sessions.iter().position(|session| {
            session.route.destination == route.destination
                && session.route.destination_port == route.destination_port
        }) {
            self.end(at, Outcome::Lost, output);
        }
        if self.sessions.len() >= MOST_SESSIONS {
            self.end(0, Outcome::Lost, output);
        }
        route.source_port = self.port();
        let session = Session::new(route, request, content, self.mtu, now);
        self.sessions.push_back(session);
        self.send(self.sessions.len() - 1, now, output);
    }

    /// A port that no transfer uses.
    fn port(&mut self) -> u16 {
        loop {
            let port = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % PORTS;
            if !self
                .sessions
                .iter()
                .any(|session| session.route.source_port == port)
            {
                return port;
            }
        }
    }

    fn acknowledged(&mut self, at: usize, number: u16, now: Instant, output: &mut Output) {
        let Some(session) = self.sessions.get_mut(at) else {
            return;
        };
        if session.greeting.is_some() {
            if number != 0 {
                return;
            }
            session.greeting = None;
        } else {
            // How far the number is ahead, modulo 2^16. One that was confirmed already is not
            // answered (RFC 1123, 4.2.3.1); one of the middle of a window asks for the rest.
            let ahead = number.wrapping_sub(session.confirmed as u16);
            let in_flight = session.last_in_flight() - session.confirmed;
            if ahead == 0 || u64::from(ahead) > in_flight {
                return;
            }
            session.confirmed += u64::from(ahead);
        }
        session.repeats = 0;
        if session.confirmed == session.blocks() {
            self.end(at, Outcome::Complete, output);
        } else {
            self.send(at, now, output);
        }
    }

    /// Sends what comes after the confirmed blocks.
    fn send(&mut self, at: usize, now: Instant, output: &mut Output) {
        let Some(session) = self.sessions.get_mut(at) else {
            return;
        };
        session.deadline = now + session.patience;
        if let Some(greeting) = &session.greeting {
            output.frames.extend(frame::build(&session.route, greeting));
            return;
        }
        for number in session.confirmed + 1..=session.last_in_flight() {
            let block = usize::from(session.block);
            match session
                .content
                .read((number - 1) * u64::from(session.block), block)
            {
                Ok(bytes) => {
                    let packet = request::data(number, &bytes);
                    output.frames.extend(frame::build(&session.route, &packet));
                }
                Err(error) => {
                    tracing::warn!(name = session.name, %error, "a file cannot be read on");
                    let packet = request::error(ErrorCode::Undefined, "the file cannot be read");
                    output.frames.extend(frame::build(&session.route, &packet));
                    self.end(at, Outcome::Forbidden, output);
                    return;
                }
            }
        }
    }

    fn end(&mut self, at: usize, outcome: Outcome, output: &mut Output) {
        if let Some(session) = self.sessions.remove(at) {
            let bytes = session.confirmed.saturating_mul(session.block.into());
            output.ended.push(Transfer {
                bytes: bytes.min(session.content.size()),
                name: session.name,
                outcome,
            });
        }
    }
}

impl Session {
    fn new(route: Route, request: &ReadRequest, content: Content, mtu: u16, now: Instant) -> Self {
        // A block is never sent in fragments: firmware rarely puts them together.
        let largest = usize::from(mtu).saturating_sub(IPV4 + UDP + HEADER);
        let largest = u16::try_from(largest).unwrap_or(DEFAULT_BLOCK);
        let block = request.block_size.map(|size| size.min(largest));
        let mut options = Vec::new();
        if let Some(block) = block {
            options.push(("blksize", u64::from(block)));
        }
        if request.size {
            options.push(("tsize", content.size()));
        }
        if let Some(timeout) = request.timeout {
            options.push(("timeout", timeout.into()));
        }
        if let Some(window) = request.window {
            options.push(("windowsize", window.into()));
        }
        Self {
            route,
            name: request.name.clone(),
            content,
            block: block.unwrap_or(DEFAULT_BLOCK),
            window: request.window.unwrap_or(1),
            patience: request
                .timeout
                .map_or(PATIENCE, |seconds| Duration::from_secs(seconds.into())),
            greeting: (!options.is_empty()).then(|| request::option_acknowledgement(&options)),
            confirmed: 0,
            repeats: 0,
            deadline: now,
        }
    }

    /// Number of blocks; the last one is shorter than the others, and may be empty.
    fn blocks(&self) -> u64 {
        self.content.size() / u64::from(self.block) + 1
    }

    fn last_in_flight(&self) -> u64 {
        self.confirmed
            .saturating_add(self.window.into())
            .min(self.blocks())
    }
}

fn refuse(asked: &Route, code: ErrorCode, text: &str, output: &mut Output) {
    output
        .frames
        .extend(frame::build(&asked.reversed(), &request::error(code, text)));
}

#[cfg(test)]
mod tests;
