//! The DHCP server of a guest's private network (RFC 2131), with what a network boot needs:
//! next server, boot file by kind of firmware.
//!
//! libslirp's own server gives every client the same boot file, so that iPXE, once started from
//! the network, would be given itself again; this one tells iPXE, UEFI and BIOS apart.
//!
//! The network has one guest. The first client is given the guest's address, and keeps it
//! whatever it boots; further Ethernet addresses (a bridge in the guest) get the following ones.
//! Left out: BOOTP without DHCP, relays, options in `sname` and `file`.

mod message;

use crate::{
    config::{Boot, Network},
    frame::{self, BROADCAST, Datagram, Mac, Route},
};
use message::{Firmware, MessageType, Reply, Request, option};
use std::{collections::VecDeque, net::Ipv4Addr};

/// Port of the server.
pub const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long a lease holds, in seconds. Addresses are never given to others while they are held.
const LEASE: u32 = 24 * 3600;
/// Most clients with an address at a time; beyond, the one that was quiet longest loses it.
const MOST_LEASES: usize = 16;

/// The server.
#[derive(Debug)]
pub struct DhcpServer {
    network: Network,
    boot: Option<Boot>,
    restricted: bool,
    mac: Mac,
    guest: Option<Mac>,
    /// Address and holder; the one that was heard of last is at the end.
    leases: VecDeque<(Ipv4Addr, Mac)>,
}

/// A lease that was given or renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who has it.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// The client's name, if it gave one that can be shown.
    pub host_name: Option<String>,
    /// The boot file that it was told.
    pub boot_file: Option<String>,
}

/// What the server did with a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// A frame for the guest.
    pub frame: Option<Vec<u8>>,
    /// A lease that it confirms.
    pub lease: Option<Lease>,
}

impl DhcpServer {
    /// A server at the gateway's address. `mac` is the gateway's; the client with the address
    /// `guest` always gets the network's first address, without one the first client does.
    #[must_use]
    pub fn new(
        network: &Network,
        boot: Option<&Boot>,
        restricted: bool,
        mac: Mac,
        guest: Option<Mac>,
    ) -> Self {
        Self {
            network: network.clone(),
            boot: boot.cloned(),
            restricted,
            mac,
            guest,
            leases: VecDeque::new(),
        }
    }

    /// Answers a datagram to the server's port. What is malformed or not meant for this server
    /// is not answered.
    pub fn handle(&mut self, datagram: &Datagram<'_>) -> Answer {
        let Some(request) = Request::parse(datagram.payload) else {
            return Answer::default();
        };
        match request.kind {
            MessageType::Discover => self.discover(&request),
            MessageType::Request => self.request(&request),
            MessageType::Inform => self.inform(&request),
            MessageType::Release | MessageType::Decline => {
                self.leases.retain(|(_, mac)| *mac != request.mac);
                Answer::default()
            }
            MessageType::Offer | MessageType::Ack | MessageType::Nak => Answer::default(),
        }
    }

    fn discover(&mut self, request: &Request) -> Answer {
        let Some(address) = self.address_for(request.mac) else {
            return Answer::default();
        };
        let reply = self.reply(request, MessageType::Offer, address);
        self.answer(request, address, reply)
    }

    fn request(&mut self, request: &Request) -> Answer {
        if request
            .server
            .is_some_and(|chosen| chosen != self.network.gateway)
        {
            return Answer::default(); // The client took another server's offer.
        }
        let wanted = match request.requested {
            Some(address) => address,
            None if !request.current.is_unspecified() => request.current,
            None => return Answer::default(),
        };
        let Some(address) = self.address_for(request.mac) else {
            return Answer::default();
        };
        if wanted != address {
            let mut nak = Reply::new(request, MessageType::Nak, Ipv4Addr::UNSPECIFIED);
            nak.option(option::SERVER, &self.network.gateway.octets());
            let mut refused = request.clone();
            // A client with a wrong address cannot be reached there (RFC 2131, 4.3.2).
            refused.broadcast = true;
            refused.current = Ipv4Addr::UNSPECIFIED;
            return self.answer(&refused, Ipv4Addr::UNSPECIFIED, nak.finish());
        }
        let reply = self.reply(request, MessageType::Ack, address);
        let mut answer = self.answer(request, address, reply);
        answer.lease = Some(Lease {
            mac: request.mac,
            address,
            host_name: request.host_name.clone(),
            boot_file: self.boot_file(request.firmware).map(str::to_owned),
        });
        answer
    }

    /// A client that has its address from elsewhere wants to know the rest.
    fn inform(&mut self, request: &Request) -> Answer {
        if !self.network.contains(request.current) {
            return Answer::default();
        }
        let reply = self.reply(request, MessageType::Ack, Ipv4Addr::UNSPECIFIED);
        self.answer(request, request.current, reply)
    }

    /// The address that the client has or gets now.
    fn address_for(&mut self, mac: Mac) -> Option<Ipv4Addr> {
        if let Some(at) = self.leases.iter().position(|(_, holder)| *holder == mac) {
            let lease = self.leases.remove(at)?;
            self.leases.push_back(lease);
            return Some(lease.0);
        }
        let address = match self.free_address(mac) {
            Some(address) => address,
            None => {
                self.leases.pop_front()?;
                self.free_address(mac)?
            }
        };
        self.leases.push_back((address, mac));
        Some(address)
    }

    fn free_address(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.network.pool(MOST_LEASES).find(|&address| {
            let reserved =
                address == self.network.guest && self.guest.is_some_and(|guest| guest != mac);
            !reserved && !self.leases.iter().any(|(taken, _)| *taken == address)
        })
    }

    fn boot_file(&self, firmware: Firmware) -> Option<&str> {
        let boot = self.boot.as_ref()?;
        match firmware {
            Firmware::Ipxe => boot.ipxe_file.as_ref().or(boot.file.as_ref()),
            Firmware::Uefi => boot.uefi_file.as_ref(),
            Firmware::Bios => boot.file.as_ref(),
        }
        .map(String::as_str)
    }

    fn reply(&self, request: &Request, kind: MessageType, address: Ipv4Addr) -> Vec<u8> {
        let network = &self.network;
        let mut reply = Reply::new(request, kind, address);
        reply.option(option::SERVER, &network.gateway.octets());
        if !address.is_unspecified() {
            reply.option(option::LEASE_TIME, &LEASE.to_be_bytes());
        }
        reply.option(option::SUBNET_MASK, &network.mask().octets());
        // A network that leads nowhere has neither a router nor a name server.
        if !self.restricted {
            reply.option(option::ROUTER, &network.gateway.octets());
            reply.option(option::NAME_SERVER, &network.dns.octets());
        }
        reply.option(option::INTERFACE_MTU, &network.mtu.to_be_bytes());
        if let Some(name) = &network.hostname {
            reply.option(option::HOST_NAME, name.as_bytes());
        }
        if let Some(domain) = &network.domain {
            reply.option(option::DOMAIN_NAME, domain.as_bytes());
        }
        if !network.search.is_empty() {
            reply.option(option::DOMAIN_SEARCH, &search_list(&network.search));
        }
        if let (Some(boot), Some(file)) = (&self.boot, self.boot_file(request.firmware)) {
            let server = boot.next_server.unwrap_or(network.gateway);
            reply.boot(server, boot.server_name.as_deref(), file);
        }
        reply.finish()
    }

    /// Addresses the answer as RFC 2131, 4.1 has it.
    fn answer(&self, request: &Request, address: Ipv4Addr, reply: Vec<u8>) -> Answer {
        let (mac, to) = if !request.current.is_unspecified() {
            (request.mac, request.current)
        } else if request.broadcast {
            (BROADCAST, Ipv4Addr::BROADCAST)
        } else {
            (request.mac, address)
        };
        let route = Route {
            source_mac: self.mac,
            destination_mac: mac,
            source: self.network.gateway,
            destination: to,
            source_port: SERVER_PORT,
            destination_port: CLIENT_PORT,
        };
        Answer {
            frame: frame::build(&route, &reply),
            lease: None,
        }
    }
}

/// Domain names in DNS's encoding without compression (RFC 3397; every client reads that).
fn search_list(domains: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for domain in domains {
        for label in domain.split('.').filter(|label| !label.is_empty()) {
            bytes.push(label.len().min(63) as u8);
            bytes.extend_from_slice(&label.as_bytes()[..label.len().min(63)]);
        }
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests;
