//! A network process with a guest that consists of frames, for tests. The guest's TCP is as much
//! as a socket pair needs, which neither loses nor reorders; stock Linux guests are in `kvm_net`.

use cenote_net::frame::{self, Datagram, Mac, Route};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The guest's Ethernet address.
pub(crate) const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// The gateway's addresses.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GATEWAY_MAC: Mac = [0x52, 0x55, 10, 0, 2, 2];
/// How long anything may take. Only a failing test waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// A running network process.
pub(crate) struct Network {
    process: Child,
    control: BufReader<UnixStream>,
    _folder: tempfile::TempDir,
}

impl Network {
    /// Starts the program with the description that `settings` adds to, and waits until it is
    /// ready. Gives the monitor's end of the socket.
    pub(crate) fn start(settings: Value) -> (Self, OwnedFd) {
        let (frames, theirs) = pair();
        let (control, their_control) = UnixStream::pair().unwrap();
        let mut description = json!({"version": 1, "monitor": 200, "control": 201});
        for (name, value) in settings.as_object().unwrap() {
            description[name] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("network.json");
        std::fs::write(&file, description.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cenote-net"));
        command.arg("--network").arg(&file).stderr(Stdio::inherit());
        let descriptors = [(theirs.as_raw_fd(), 200), (their_control.as_raw_fd(), 201)];
        // SAFETY: dup2 is safe between fork and exec, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                for (from, to) in descriptors {
                    // SAFETY: both are numbers; the kernel checks them.
                    if libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let process = command.spawn().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut network = Self {
            process,
            control: BufReader::new(control),
            _folder: folder,
        };
        assert_eq!(network.message()["method"], "ready");
        (network, frames)
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line of the control connection.
    pub(crate) fn message(&mut self) -> Value {
        let mut line = String::new();
        let length = self
            .control
            .read_line(&mut line)
            .expect("a message in time");
        assert_ne!(length, 0, "the network process ended");
        serde_json::from_str(&line).unwrap()
    }

    /// The next notification of that name; others are passed over.
    pub(crate) fn event(&mut self, method: &str) -> Value {
        loop {
            let message = self.message();
            if message["method"] == method {
                return message["params"].clone();
            }
        }
    }

    /// Asks for the counters.
    pub(crate) fn statistics(&mut self) -> Value {
        let request = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"statistics\"}\n";
        self.control
            .get_mut()
            .write_all(request.as_bytes())
            .unwrap();
        loop {
            let message = self.message();
            if message["id"] == 1 {
                return message["result"].clone();
            }
        }
    }

    /// Waits for the process's end; gives whether it was a success.
    pub(crate) fn wait(mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < until, "the process does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Both ends of a socket for frames.
pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

/// The guest's network card: the socket.
pub(crate) struct Card(pub(crate) OwnedFd);

impl Card {
    /// The next frame, without waiting.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 65_536];
        match recv(&self.0, &mut frame[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(_) => None,
            Ok((length, _)) => {
                frame.truncate(length);
                Some(frame)
            }
        }
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) {
        send(&self.0, frame, SendFlags::NOSIGNAL).unwrap();
    }
}

/// A guest.
pub(crate) struct Guest {
    pub(crate) card: Card,
    pub(crate) address: Ipv4Addr,
    datagrams: VecDeque<(Route, Vec<u8>)>,
    connections: Vec<Connection>,
    listening: Option<u16>,
}

/// A TCP connection, seen from the guest.
pub(crate) struct Connection {
    local: u16,
    remote: SocketAddrV4,
    /// Sequence number of the next byte to send.
    next: u32,
    /// Sequence number of the next byte to come.
    expected: u32,
    pub(crate) established: bool,
    pub(crate) refused: bool,
    ended: bool,
    received: Vec<u8>,
}

/// What DHCP said.
pub(crate) struct Lease {
    pub(crate) address: Ipv4Addr,
    options: Vec<u8>,
}

impl Lease {
    /// The value of an option.
    pub(crate) fn option(&self, code: u8) -> Option<Vec<u8>> {
        let mut rest = &self.options[..];
        while let [found, length, value @ ..] = rest {
            if *found == 0xff {
                return None;
            }
            let (value, after) = value.split_at(usize::from(*length));
            if *found == code {
                return Some(value.to_vec());
            }
            rest = after;
        }
        None
    }
}

impl Guest {
    /// A guest without an address.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            card: Card(socket),
            address: Ipv4Addr::UNSPECIFIED,
            datagrams: VecDeque::new(),
            connections: Vec::new(),
            listening: None,
        }
    }

    /// A guest that has taken the address that DHCP gives it.
    pub(crate) fn configured(socket: OwnedFd) -> Self {
        let mut guest = Self::new(socket);
        guest.dhcp();
        guest
    }

    /// Handles what comes until `done` gives something.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            while let Some(frame) = self.card.next() {
                self.take(&frame);
            }
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < until, "{what}: nothing came in time");
            let mut polled = [rustix::event::PollFd::new(
                &self.card.0,
                rustix::event::PollFlags::IN,
            )];
            let wait = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            let _ = rustix::event::poll(&mut polled, Some(&wait));
        }
    }

    fn take(&mut self, frame: &[u8]) {
        match ([frame[12], frame[13]], frame.get(23)) {
            ([0x08, 0x06], _) => self.answer_arp(frame),
            ([0x08, 0x00], Some(17)) => {
                let datagram = Datagram::parse(frame).expect("a whole datagram");
                self.datagrams
                    .push_back((datagram.route, datagram.payload.to_vec()));
            }
            ([0x08, 0x00], Some(6)) => self.take_segment(frame),
            _ => {}
        }
    }

    fn answer_arp(&self, frame: &[u8]) {
        let mut answer = frame[..42].to_vec();
        let asked = &frame[38..42];
        if frame[20..22] == [0, 1] && asked == self.address.octets() {
            answer[..6].copy_from_slice(&frame[22..28]);
            answer[6..12].copy_from_slice(&MAC);
            answer[21] = 2;
            answer[22..28].copy_from_slice(&MAC);
            answer[28..32].copy_from_slice(asked);
            answer[32..42].copy_from_slice(&frame[22..32]);
            self.card.send(&answer);
        }
    }

    /// Asks for an address and takes it; gives what DHCP said.
    pub(crate) fn dhcp(&mut self) -> Lease {
        let mut message = vec![0; 240];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[28..34].copy_from_slice(&MAC);
        message[236..].copy_from_slice(&[99, 130, 83, 99]);
        let mut lease = None;
        for kind in [1, 3] {
            let mut message = message.clone();
            message.extend([53, 1, kind]);
            if let Some(Lease { address, .. }) = &lease {
                message.extend([50, 4]);
                message.extend(address.octets());
            }
            message.push(0xff);
            let route = Route {
                source_mac: MAC,
                destination_mac: frame::BROADCAST,
                source: Ipv4Addr::UNSPECIFIED,
                destination: Ipv4Addr::BROADCAST,
                source_port: 68,
                destination_port: 67,
            };
            self.card.send(&frame::build(&route, &message).unwrap());
            let (_, answer) = self.receive(68);
            assert_eq!(
                answer[240..243],
                [53, 1, kind + if kind == 1 { 1 } else { 2 }]
            );
            let address: [u8; 4] = answer[16..20].try_into().unwrap();
            lease = Some(Lease {
                address: address.into(),
                options: answer[240..].to_vec(),
            });
        }
        let lease = lease.unwrap();
        self.address = lease.address;
        lease
    }

    /// Sends a datagram.
    pub(crate) fn send_to(&self, from_port: u16, to: SocketAddrV4, bytes: &[u8]) {
        let route = Route {
            source_mac: MAC,
            destination_mac: GATEWAY_MAC,
            source: self.address,
            destination: *to.ip(),
            source_port: from_port,
            destination_port: to.port(),
        };
        self.card.send(&frame::build(&route, bytes).unwrap());
    }

    /// The next datagram to a port.
    pub(crate) fn receive(&mut self, port: u16) -> (SocketAddrV4, Vec<u8>) {
        self.until("a datagram", |guest| {
            let at = guest
                .datagrams
                .iter()
                .position(|(route, _)| route.destination_port == port)?;
            let (route, bytes) = guest.datagrams.remove(at)?;
            Some((SocketAddrV4::new(route.source, route.source_port), bytes))
        })
    }

    /// Begins a connection; gives its number.
    pub(crate) fn begin(&mut self, to: SocketAddrV4, from_port: u16) -> usize {
        self.connections.push(Connection {
            local: from_port,
            remote: to,
            next: 1000,
            expected: 0,
            established: false,
            refused: false,
            ended: false,
            received: Vec::new(),
        });
        let number = self.connections.len() - 1;
        self.segment(number, SYN, &[]);
        number
    }

    /// A connection; `None` if it was refused.
    pub(crate) fn connect(&mut self, to: SocketAddrV4, from_port: u16) -> Option<usize> {
        let number = self.begin(to, from_port);
        self.until("connecting", |guest| match &guest.connections[number] {
            Connection {
                established: true, ..
            } => Some(Some(number)),
            Connection { refused: true, .. } => Some(None),
            _ => None,
        })
    }

    /// Waits for a connection to a port of the guest.
    pub(crate) fn accept(&mut self, port: u16) -> usize {
        self.listening = Some(port);
        let before = self.connections.len();
        self.until("a connection to the guest", |guest| {
            let connection = guest.connections.get(before)?;
            connection.established.then_some(before)
        })
    }

    /// A connection.
    pub(crate) fn connection(&self, number: usize) -> &Connection {
        &self.connections[number]
    }

    /// Sends a little on a connection.
    pub(crate) fn write(&mut self, number: usize, bytes: &[u8]) {
        self.segment(number, ACK | PSH, bytes);
    }

    /// Sends `bytes` on a connection and reads until the other end closes.
    pub(crate) fn ask(&mut self, number: usize, bytes: &[u8]) -> Vec<u8> {
        self.write(number, bytes);
        self.until("an answer over TCP", |guest| {
            let connection = &guest.connections[number];
            assert!(!connection.refused, "the connection was reset");
            connection.ended.then_some(())
        });
        self.segment(number, FIN | ACK, &[]);
        std::mem::take(&mut self.connections[number].received)
    }

    fn segment(&mut self, number: usize, flags: u8, data: &[u8]) {
        let connection = &mut self.connections[number];
        let mut tcp = Vec::new();
        tcp.extend(connection.local.to_be_bytes());
        tcp.extend(connection.remote.port().to_be_bytes());
        tcp.extend(connection.next.to_be_bytes());
        tcp.extend(connection.expected.to_be_bytes());
        tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(data);
        let control = u32::from(flags & (SYN | FIN) != 0);
        connection.next = connection.next.wrapping_add(data.len() as u32 + control);
        let destination = *connection.remote.ip();
        let frame = ip_frame(6, self.address, destination, tcp);
        self.card.send(&frame);
    }

    fn take_segment(&mut self, frame: &[u8]) {
        let (source, total) = (
            &frame[26..30],
            usize::from(u16::from_be_bytes([frame[16], frame[17]])),
        );
        let source = Ipv4Addr::from(<[u8; 4]>::try_from(source).unwrap());
        let tcp = &frame[34..14 + total];
        let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let (remote, local, flags) = (SocketAddrV4::new(source, half(0)), half(2), tcp[13]);
        let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let known = self
            .connections
            .iter()
            .position(|connection| connection.local == local && connection.remote == remote);
        let number = match known {
            Some(number) => number,
            None if flags & SYN != 0 && self.listening == Some(local) => {
                self.connections.push(Connection {
                    local,
                    remote,
                    next: 5000,
                    expected: word(4).wrapping_add(1),
                    established: false,
                    refused: false,
                    ended: false,
                    received: Vec::new(),
                });
                return self.segment(self.connections.len() - 1, SYN | ACK, &[]);
            }
            None => return,
        };
        let connection = &mut self.connections[number];
        if flags & RST != 0 {
            connection.refused = true;
        } else if flags & SYN != 0 {
            connection.expected = word(4).wrapping_add(1);
            connection.established = true;
            self.segment(number, ACK, &[]);
        } else {
            connection.established = true;
            if word(4) != connection.expected || (data.is_empty() && flags & FIN == 0) {
                return; // Sent again, or nothing but an acknowledgement.
            }
            connection.received.extend_from_slice(data);
            connection.expected = connection.expected.wrapping_add(data.len() as u32);
            if flags & FIN != 0 {
                connection.expected = connection.expected.wrapping_add(1);
                connection.ended = true;
            }
            self.segment(number, ACK, &[]);
        }
    }
}

/// A frame to the gateway with a TCP segment, whose checksum is filled in.
fn ip_frame(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, mut tcp: Vec<u8>) -> Vec<u8> {
    let mut pseudo = [source.octets(), destination.octets()].concat();
    pseudo.extend([0, protocol]);
    pseudo.extend((tcp.len() as u16).to_be_bytes());
    pseudo.extend(&tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0];
    ip.extend((20 + tcp.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(source.octets());
    ip.extend(destination.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&GATEWAY_MAC[..], &MAC, &[8, 0], &ip, &tcp].concat()
}

/// The Internet checksum.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An address and port.
pub(crate) fn at(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address.into(), port)
}
