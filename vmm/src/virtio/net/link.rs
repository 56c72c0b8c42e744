//! The host's side of a pair of queues: a socket with frames, or a queue of a tap.

#![allow(unsafe_code)] // The kernel reads guest memory, and ioctl sets taps up.

use super::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_UFO, F_HOST_ECN,
    F_HOST_TSO4, F_HOST_TSO6, F_HOST_UFO, HEADER,
};
use crate::{
    memory::GuestMemory,
    virtio::{Chain, host_range, parts},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SocketType, recv, sockopt},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

/// Why a descriptor cannot be a link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It is no socket of the right kind.
    #[error("it is no Unix socket of type SEQPACKET")]
    Socket(#[source] io::Error),
    /// It is no tap of the right kind.
    #[error("it is no tap with virtio headers (IFF_TAP, IFF_NO_PI and IFF_VNET_HDR)")]
    Tap(#[source] io::Error),
}

/// What a tap does for the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums and TCP segmentation.
    tcp: bool,
    /// UDP fragmentation.
    udp: bool,
}

impl Offloads {
    /// The features that a device can offer with it.
    pub(super) fn features(self) -> u64 {
        let mut features = 0;
        if self.tcp {
            features |= F_CSUM
                | F_GUEST_CSUM
                | F_GUEST_TSO4
                | F_GUEST_TSO6
                | F_GUEST_ECN
                | F_HOST_TSO4
                | F_HOST_TSO6
                | F_HOST_ECN;
        }
        if self.udp {
            features |= F_GUEST_UFO | F_HOST_UFO;
        }
        features
    }
}

/// A link.
#[derive(Debug)]
pub struct Link {
    descriptor: OwnedFd,
    kind: Kind,
    offloads: Offloads,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Frames,
    Tap,
}

/// What became of a packet of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way.
    Passed,
    /// The host does not want it.
    Dropped,
    /// There is no room for now.
    Full,
    /// The host's side has closed.
    Gone,
}

/// What came from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// A packet; header and data are that long together.
    Packet(usize),
    /// One that is too long or too short; it is lost.
    Unfit,
    /// Nothing for now.
    Nothing,
    /// The host's side has closed.
    Gone,
}

impl Link {
    /// A Unix socket of type SEQPACKET, one Ethernet frame in each message.
    ///
    /// # Errors
    /// [`LinkError::Socket`].
    pub fn frames(socket: OwnedFd) -> Result<Self, LinkError> {
        let check = || {
            let fits = sockopt::socket_domain(&socket)? == AddressFamily::UNIX
                && sockopt::socket_type(&socket)? == SocketType::SEQPACKET;
            fits.then_some(())
                .ok_or_else(|| io::Error::other("another kind of socket"))
        };
        check().map_err(LinkError::Socket)?;
        Ok(Self {
            descriptor: socket,
            kind: Kind::Frames,
            offloads: Offloads::default(),
        })
    }

    /// A queue of a tap.
    ///
    /// # Errors
    /// [`LinkError::Tap`].
    pub fn tap(queue: OwnedFd) -> Result<Self, LinkError> {
        let mut link = Self {
            descriptor: queue,
            kind: Kind::Tap,
            offloads: Offloads::default(),
        };
        link.set_up_tap().map_err(LinkError::Tap)?;
        // What the kernel takes now it takes later too.
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        link.offloads.tcp = link.set_flags(tcp).is_ok();
        link.offloads.udp = link.offloads.tcp && link.set_flags(tcp | libc::TUN_F_UFO).is_ok();
        link.set_flags(0).map_err(LinkError::Tap)?;
        Ok(link)
    }

    fn set_up_tap(&self) -> io::Result<()> {
        // SAFETY: all of it are numbers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an `ifreq`.
        check(unsafe {
            libc::ioctl(
                self.descriptor.as_raw_fd(),
                libc::TUNGETIFF,
                &raw mut request,
            )
        })?;
        // SAFETY: TUNGETIFF has filled it in.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(io::Error::other(format!("its flags are {flags:#x}")));
        }
        let length = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe {
            libc::ioctl(
                self.descriptor.as_raw_fd(),
                libc::TUNSETVNETHDRSZ,
                &raw const length,
            )
        })?;
        let flags = rustix::fs::fcntl_getfl(&self.descriptor)?;
        rustix::fs::fcntl_setfl(&self.descriptor, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(())
    }

    /// What the host does for the guest.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Tells the host what the driver can receive.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        if self.kind == Kind::Frames {
            return Ok(());
        }
        let wanted = [
            (F_GUEST_CSUM, libc::TUN_F_CSUM),
            (F_GUEST_TSO4, libc::TUN_F_TSO4),
            (F_GUEST_TSO6, libc::TUN_F_TSO6),
            (F_GUEST_ECN, libc::TUN_F_TSO_ECN),
            (F_GUEST_UFO, libc::TUN_F_UFO),
        ];
        let flags = wanted
            .iter()
            .filter(|(feature, _)| features & feature != 0)
            .fold(0, |all, (_, flag)| all | flag);
        // All of them need the first; a driver that wants them without it gets none.
        let flags = if flags & libc::TUN_F_CSUM == 0 {
            0
        } else {
            flags
        };
        self.set_flags(flags)
    }

    fn set_flags(&self, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number.
        check(unsafe {
            libc::ioctl(
                self.descriptor.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
    }

    /// Lets the host give packets to this queue of a tap, or not.
    pub(super) fn take_part(&self, takes_part: bool) {
        if self.kind == Kind::Frames {
            return;
        }
        // SAFETY: all of it are numbers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if takes_part {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: TUNSETQUEUE reads an `ifreq`.
        let done = check(unsafe {
            libc::ioctl(
                self.descriptor.as_raw_fd(),
                libc::TUNSETQUEUE,
                &raw mut request,
            )
        });
        // The kernel refuses what is so already.
        if let Err(error) = done {
            tracing::trace!(%error, takes_part, "a tap's queue stays as it is");
        }
    }

    /// Sends a packet of the guest's, `length` bytes with its header.
    pub(super) fn send(&self, memory: &GuestMemory, chain: &Chain, length: u64) -> Sent {
        let start = match self.kind {
            Kind::Frames => HEADER as u64,
            Kind::Tap => 0,
        };
        let mut vector = Vec::with_capacity(chain.readable.len());
        for part in parts(&chain.readable, start..length) {
            let Some((base, length)) = host_range(memory, part) else {
                return Sent::Dropped;
            };
            vector.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: length,
            });
        }
        let fd = self.descriptor.as_raw_fd();
        let result = match self.kind {
            Kind::Frames => {
                // SAFETY: all of it are numbers and pointers, for which zero is a value.
                let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                message.msg_iov = vector.as_mut_ptr();
                message.msg_iovlen = vector.len();
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: the vector's ranges lie in guest memory, which is mapped for as long as
                // `memory` lives; what is there may change, which the kernel copes with.
                unsafe { libc::sendmsg(fd, &raw const message, flags) }
            }
            // SAFETY: as above.
            Kind::Tap => unsafe { libc::writev(fd, vector.as_ptr(), vector.len() as libc::c_int) },
        };
        if result >= 0 {
            return Sent::Passed;
        }
        match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Sent::Full,
            Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Sent::Gone,
            Some(Errno::BADFD) if self.kind == Kind::Tap => Sent::Gone,
            // A header that the kernel cannot make sense of, or an interface that is down.
            _ => Sent::Dropped,
        }
    }

    /// Receives a packet into `buffer`, behind a header.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        let result = match self.kind {
            Kind::Frames => {
                let Some((header, frame)) = buffer.split_at_mut_checked(HEADER) else {
                    return Received::Unfit;
                };
                header.fill(0);
                let most = frame.len();
                match recv(
                    &self.descriptor,
                    frame,
                    RecvFlags::DONTWAIT | RecvFlags::TRUNC,
                ) {
                    Ok((_, 0)) => return Received::Gone,
                    Ok((_, length)) if length > most => return Received::Unfit,
                    Ok((_, length)) => Ok(HEADER + length),
                    Err(error) => Err(error),
                }
            }
            Kind::Tap => rustix::io::read(&self.descriptor, buffer),
        };
        match result {
            Ok(length) if length > HEADER => Received::Packet(length),
            Ok(_) => Received::Unfit,
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            // The interface is down, which may change.
            Err(Errno::IO) => Received::Nothing,
            Err(error) => {
                tracing::debug!(%error, "a link cannot be read");
                Received::Gone
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
