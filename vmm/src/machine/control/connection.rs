//! One connection of the control socket: lines, and the descriptors that come with them.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::{
    collections::VecDeque,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::UnixStream,
};

/// The longest request, in bytes.
const LONGEST: usize = 64 * 1024;
/// The most descriptors that wait for their request.
pub(crate) const MOST_DESCRIPTORS: usize = 64;

/// A connection, and what came on it that nobody has asked for yet.
pub(super) struct Connection {
    stream: UnixStream,
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
        }
    }

    /// The next line with its end; without, if it is the last one or too long; none at the end.
    pub(super) async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let end = self.bytes[searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let rest = self.bytes.split_off(searched + end + 1);
                return Ok(Some(std::mem::replace(&mut self.bytes, rest)));
            }
            searched = self.bytes.len();
            if searched >= LONGEST {
                return Ok(Some(std::mem::take(&mut self.bytes)));
            }
            if self.receive().await? == 0 {
                let last = std::mem::take(&mut self.bytes);
                return Ok((!last.is_empty()).then_some(last));
            }
        }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let Self {
            stream,
            bytes,
            descriptors,
        } = self;
        stream
            .async_io(Interest::READABLE, || {
                receive_now(stream, bytes, descriptors)
            })
            .await
    }

    /// The `count` oldest descriptors that came, if there are so many; else all are closed.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        if count > self.descriptors.len() {
            self.close_descriptors();
            return None;
        }
        Some(self.descriptors.drain(..count).collect())
    }

    /// Closes the descriptors that nobody has asked for.
    pub(super) fn close_descriptors(&mut self) {
        self.descriptors.clear();
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }
}

fn receive_now(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 4096];
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::Error::other(format!(
            "more than {MOST_DESCRIPTORS} descriptors came"
        )));
    }
    bytes.extend_from_slice(&buffer[..received.bytes]);
    Ok(received.bytes)
}
