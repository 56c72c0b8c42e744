//! The host's side of a port. Nothing here waits.

use rustix::{
    event::PollFlags,
    fs::{FileType, OFlags},
    io::Errno,
    net::{RecvFlags, SendFlags, SocketFlags},
};
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

/// Where a port's characters go and come from.
#[derive(Debug)]
pub enum HostSide {
    /// Output is lost, there is no input.
    Null,
    /// Output goes to a file, there is no input.
    File(OwnedFd),
    /// A connected stream socket.
    Stream(Option<OwnedFd>),
    /// A listening stream socket; one client at a time is served.
    Listener {
        /// The socket.
        socket: OwnedFd,
        /// Who is connected.
        client: Option<OwnedFd>,
    },
}

impl HostSide {
    /// Output to `file`, which may be anything that can be written to.
    ///
    /// # Errors
    /// Those of the host.
    pub fn file(file: OwnedFd) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind != FileType::RegularFile {
            let flags = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self::File(file))
    }

    /// A stream socket, connected or listening.
    ///
    /// # Errors
    /// If it is something else.
    pub fn socket(socket: OwnedFd) -> io::Result<Self> {
        if rustix::net::sockopt::socket_type(&socket)? != rustix::net::SocketType::STREAM {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is no stream socket",
            ));
        }
        if !rustix::net::sockopt::socket_acceptconn(&socket)? {
            return Ok(Self::Stream(Some(socket)));
        }
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        Ok(Self::Listener {
            socket,
            client: None,
        })
    }

    /// Whether somebody is there to talk to.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match self {
            Self::Null | Self::File(_) => true,
            Self::Stream(stream) => stream.is_some(),
            Self::Listener { client, .. } => client.is_some(),
        }
    }

    fn stream(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Null | Self::File(_) => None,
            Self::Stream(stream) => stream.as_ref().map(OwnedFd::as_fd),
            Self::Listener { client, .. } => client.as_ref().map(OwnedFd::as_fd),
        }
    }

    /// What to wait for, given whether input is welcome and output waits.
    pub(super) fn waits_for(
        &self,
        input: bool,
        output: bool,
    ) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        if output {
            flags |= PollFlags::OUT;
        }
        match self {
            Self::Null => None,
            Self::File(file) => output.then(|| (file.as_fd(), flags)),
            Self::Listener {
                socket,
                client: None,
            } => Some((socket.as_fd(), PollFlags::IN)),
            // A peer that hangs up is noticed when input is welcome again: waiting for it all
            // the time would be waiting for nothing, since it is always ready then.
            Self::Stream(_) | Self::Listener { .. } => {
                if input {
                    flags |= PollFlags::IN;
                }
                (!flags.is_empty())
                    .then(|| self.stream().map(|stream| (stream, flags)))
                    .flatten()
            }
        }
    }

    /// Lets a waiting client in, if there is none.
    pub(super) fn accept(&mut self) {
        if let Self::Listener { socket, client } = self
            && client.is_none()
        {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&*socket, flags) {
                Ok(stream) => *client = Some(stream),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => tracing::warn!(%error, "a port's client was not let in"),
            }
        }
    }

    /// Reads what has come; `None` if nothing has. A peer that is gone is let go.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let stream = self.stream()?;
        match rustix::net::recv(stream, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) if length > 0 => Some(length),
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(_) | Err(_) => {
                self.disconnect();
                None
            }
        }
    }

    /// Writes what fits and says how much that was. What nobody is there for is lost.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let written = match self {
            Self::Null => return data.len(),
            Self::File(file) => rustix::io::write(&*file, data),
            Self::Stream(_) | Self::Listener { .. } => match self.stream() {
                None => return data.len(),
                Some(stream) => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    rustix::net::send(stream, data, flags)
                }
            },
        };
        match written {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => {
                if matches!(self, Self::File(_)) {
                    tracing::warn!(%error, "a port's output cannot be written and is lost");
                }
                self.disconnect();
                data.len()
            }
        }
    }

    fn disconnect(&mut self) {
        match self {
            Self::Null | Self::File(_) => {}
            Self::Stream(stream) => *stream = None,
            Self::Listener { client, .. } => *client = None,
        }
    }
}
