//! The socket that joins the network to the monitor.
//!
//! It is a Unix socket of type SEQPACKET, one Ethernet frame per message. A stream would need
//! lengths, and a reader that trusts them; datagram sockets keep silent when the other end has
//! died. SEQPACKET keeps frames apart and ends.

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, sockopt},
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

/// Bytes waiting for the guest from which on nothing more is taken from the host's sockets.
const FULL: usize = 512 * 1024;
/// Bytes waiting from which on frames are dropped.
const OVERFULL: usize = 4 * FULL;

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that were not passed on: malformed, too long, or nobody took them.
    pub dropped: u64,
}

/// The end of the socket.
#[derive(Debug)]
pub struct FramePort {
    socket: OwnedFd,
    waiting: RefCell<Waiting>,
    sent: Cell<Traffic>,
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// What came from the other end.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame of that length. It can be longer than the buffer; then it is cut off.
    Frame(usize),
    /// Nothing for now.
    Nothing,
    /// The other end is closed.
    End,
}

impl FramePort {
    /// Takes the socket over.
    ///
    /// # Errors
    /// If it is no Unix socket of type SEQPACKET.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let fits = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
            && sockopt::socket_type(&socket)? == SocketType::SEQPACKET;
        if !fits {
            return Err(io::Error::other(
                "it is no Unix socket of type SEQPACKET (make the pair with socketpair)",
            ));
        }
        Ok(Self {
            socket,
            waiting: RefCell::default(),
            sent: Cell::default(),
        })
    }

    /// The descriptor, for polling.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Receives a frame without waiting.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        match recv(&self.socket, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Received::End),
            Ok((_, length)) => Ok(Received::Frame(length)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame, or keeps it until [`FramePort::flush`].
    pub fn send(&self, frame: &[u8]) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.frames.is_empty() && self.try_send(frame) {
            return;
        }
        if waiting.bytes.saturating_add(frame.len()) > OVERFULL {
            let mut sent = self.sent.get();
            sent.dropped += 1;
            self.sent.set(sent);
            return;
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(frame.to_vec());
    }

    /// Sends what waits, as far as the other end takes it.
    pub fn flush(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(frame) = waiting.frames.front() {
            if !self.try_send(frame) {
                return;
            }
            waiting.bytes -= frame.len();
            waiting.frames.pop_front();
        }
    }

    /// Whether frames wait, so that the socket is to be polled for room.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.borrow().frames.is_empty()
    }

    /// Whether so much waits that nothing more should be made.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.borrow().bytes >= FULL
    }

    /// What was sent so far.
    #[must_use]
    pub fn sent(&self) -> Traffic {
        self.sent.get()
    }

    /// Whether the frame is done with: sent, or lost because the other end has gone, which the
    /// next [`FramePort::receive`] tells.
    fn try_send(&self, frame: &[u8]) -> bool {
        let mut sent = self.sent.get();
        match send(
            &self.socket,
            frame,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) => {
                sent.frames += 1;
                sent.bytes += frame.len() as u64;
            }
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => return false,
            Err(_) => sent.dropped += 1,
        }
        self.sent.set(sent);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SocketFlags, socketpair};

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn frames_wait_for_a_slow_reader_in_order_and_without_end_they_are_dropped() {
        let (ours, theirs) = pair(SocketType::SEQPACKET);
        let (ours, theirs) = (
            FramePort::new(ours).unwrap(),
            FramePort::new(theirs).unwrap(),
        );
        let frame = |number: u32| [&number.to_be_bytes()[..], &[0; 60_000]].concat();
        for number in 0..100 {
            ours.send(&frame(number));
        }
        assert!(ours.is_waiting() && ours.is_full());
        let dropped = ours.sent().dropped;
        assert!(dropped > 0);
        let mut buffer = vec![0; 65_536];
        for expected in 0..100 - dropped as u32 {
            ours.flush();
            assert_eq!(
                theirs.receive(&mut buffer).unwrap(),
                Received::Frame(60_004)
            );
            assert_eq!(buffer[..4], expected.to_be_bytes());
        }
        assert_eq!(theirs.receive(&mut buffer).unwrap(), Received::Nothing);
        assert!(!ours.is_waiting());
    }

    #[test]
    fn the_end_is_seen_and_a_long_frame_is_told_by_its_length() {
        let (ours, theirs) = pair(SocketType::SEQPACKET);
        let ours = FramePort::new(ours).unwrap();
        send(&theirs, &[1; 3000], SendFlags::empty()).unwrap();
        drop(theirs);
        let mut buffer = [0; 1500];
        assert_eq!(ours.receive(&mut buffer).unwrap(), Received::Frame(3000));
        assert_eq!(ours.receive(&mut buffer).unwrap(), Received::End);
        ours.send(&[0; 60]);
        assert_eq!(ours.sent().dropped, 1);
    }

    #[test]
    fn other_sockets_are_refused() {
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            assert!(FramePort::new(pair(kind).0).is_err());
        }
    }
}
