//! A guest's network: libslirp, with our own DHCP and TFTP servers before it.

use crate::{
    config::Description,
    dhcp::{self, DhcpServer, Lease},
    frame::{self, Datagram, ETHERNET},
    port::{FramePort, Traffic},
    slirp::{Complaints, Slirp, Surroundings},
    tftp::{self, Store, StoreError, TftpServer, Transfer},
};
use libc::pollfd;
use std::{
    io,
    rc::Rc,
    time::{Duration, Instant},
};

/// Most bytes that a frame has beyond the largest packet: its header and a VLAN tag.
const FRAME_OVERHEAD: usize = ETHERNET + 4;

/// Something worth telling whoever watches the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client has an address.
    Lease(Lease),
    /// A transfer over TFTP ended.
    Transfer(Transfer),
}

/// Counters, from the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// Frames that the guest sent.
    pub from_guest: Traffic,
    /// Frames that the guest was sent.
    pub to_guest: Traffic,
    /// Leases that were given or renewed.
    pub leases: u64,
    /// Transfers over TFTP that ended, however they did.
    pub transfers: u64,
    /// Complaints of libslirp about the guest.
    pub guest_errors: u64,
}

/// Why a network cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// libslirp refuses.
    #[error("the user-mode network cannot be made")]
    Slirp(#[source] io::Error),
    /// A port of the host cannot be opened.
    #[error("{protocol} port {host} of the host cannot be opened: is it in use?")]
    Forward {
        /// TCP or UDP.
        protocol: crate::config::Protocol,
        /// The host's side.
        host: std::net::SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A service cannot be given.
    #[error("the service at {address} cannot be given")]
    Service {
        /// Its address in the network.
        address: std::net::SocketAddrV4,
        /// What is wrong.
        source: io::Error,
    },
    /// TFTP cannot serve something.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A network with one guest.
pub struct Network {
    slirp: Slirp,
    dhcp: DhcpServer,
    tftp: TftpServer,
    port: Rc<FramePort>,
    complaints: Rc<Complaints>,
    longest: usize,
    from_guest: Traffic,
    leases: u64,
    transfers: u64,
    events: Vec<Event>,
}

struct Outside {
    port: Rc<FramePort>,
    complaints: Rc<Complaints>,
}

impl Surroundings for Outside {
    fn send(&self, frame: &[u8]) {
        self.port.send(frame);
    }

    fn guest_error(&self, text: &str) {
        if self.complaints.count() {
            tracing::warn!(
                text,
                total = self.complaints.total(),
                "the guest misbehaved"
            );
        }
    }
}

impl Network {
    /// Makes the network and opens the host's ports.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn new(description: &Description, port: Rc<FramePort>) -> Result<Self, NetworkError> {
        let network = &description.network;
        let complaints = Rc::new(Complaints::default());
        let outside = Outside {
            port: Rc::clone(&port),
            complaints: Rc::clone(&complaints),
        };
        let mut slirp = Slirp::new(
            network,
            description.restricted,
            description.host_loopback,
            Box::new(outside),
        )
        .map_err(NetworkError::Slirp)?;
        for forward in &description.forwards {
            slirp
                .forward(forward)
                .map_err(|source| NetworkError::Forward {
                    protocol: forward.protocol,
                    host: forward.host,
                    source,
                })?;
        }
        for service in &description.services {
            slirp
                .service(service.address, &service.unix)
                .map_err(|source| NetworkError::Service {
                    address: service.address,
                    source,
                })?;
        }
        let store = description.tftp.as_ref().map(Store::open).transpose()?;
        Ok(Self {
            slirp,
            dhcp: DhcpServer::new(
                network,
                description.boot.as_ref(),
                description.restricted,
                network.gateway_mac(),
                description.mac,
            ),
            tftp: TftpServer::new(store.unwrap_or_default(), network.gateway, network.mtu),
            port,
            complaints,
            longest: usize::from(network.mtu) + FRAME_OVERHEAD,
            from_guest: Traffic::default(),
            leases: 0,
            transfers: 0,
            events: Vec::new(),
        })
    }

    /// Handles a frame from the guest; `length` is what it had when it was sent, of which
    /// `frame` holds what fits into the receiver's buffer.
    pub fn frame(&mut self, frame: &[u8], length: usize, now: Instant) {
        if length > self.longest || length > frame.len() || length < ETHERNET {
            self.from_guest.dropped += 1;
            return;
        }
        let frame = &frame[..length];
        self.from_guest.frames += 1;
        self.from_guest.bytes += length as u64;
        match frame::udp_target(frame) {
            Some((_, dhcp::SERVER_PORT)) => self.ask_dhcp(frame),
            Some((address, port)) if self.tftp.is_addressed(address, port) => {
                match Datagram::parse(frame) {
                    Some(datagram) => {
                        let output = self.tftp.handle(&datagram, now);
                        self.answer_tftp(output);
                    }
                    None => self.from_guest.dropped += 1,
                }
            }
            _ => self.slirp.input(frame),
        }
    }

    fn ask_dhcp(&mut self, frame: &[u8]) {
        let Some(datagram) = Datagram::parse(frame) else {
            self.from_guest.dropped += 1;
            return;
        };
        let answer = self.dhcp.handle(&datagram);
        if let Some(frame) = answer.frame {
            self.port.send(&frame);
        }
        if let Some(lease) = answer.lease {
            self.leases += 1;
            self.events.push(Event::Lease(lease));
        }
    }

    fn answer_tftp(&mut self, output: tftp::Output) {
        for frame in output.frames {
            self.port.send(&frame);
        }
        self.transfers += output.ended.len() as u64;
        self.events
            .extend(output.ended.into_iter().map(Event::Transfer));
    }

    /// Appends what is to be polled for, and shortens `timeout` to when there is something to
    /// do.
    pub fn fill(&mut self, polled: &mut Vec<pollfd>, timeout: &mut Duration) {
        self.slirp.fill(polled, timeout);
    }

    /// When [`Network::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.tftp.deadline()
    }

    /// Acts on what poll found; `polled` is what [`Network::fill`] was given last.
    pub fn dispatch(&mut self, polled: &[pollfd]) {
        self.slirp.dispatch(polled);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        let output = self.tftp.tick(now);
        self.answer_tftp(output);
    }

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            from_guest: self.from_guest,
            to_guest: self.port.sent(),
            leases: self.leases,
            transfers: self.transfers,
            guest_errors: self.complaints.total(),
        }
    }
}
