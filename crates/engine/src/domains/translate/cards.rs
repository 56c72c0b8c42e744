//! Network cards: `<interface>`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cenote_model::YesNo;
use cenote_model::domain::{
    BootDevice, Interface, InterfaceKind, LinkState, PortForward, PortForwardProtocol, PortRange,
};
use cenote_net::config::{self, Forward, Protocol};
use cenote_net::tap::TapOptions;
use cenote_vmm::machine::{DescriptorNumber, NicBackend, NicDescription};
use serde::{Deserialize, Serialize};

use super::Translation;
use crate::domains::error::Error as DomainError;

/// The most ports of the host that lead to one card.
const MOST_FORWARDS: usize = 1024;
/// Who processes become that root starts: nobody, of nogroup.
const NOBODY: u32 = 65534;
/// Stands for a descriptor until there is one.
const LATER: i32 = 0;

/// What the user-mode network of a domain's first card of that type offers beyond the usual, for
/// those who install guests. It holds until the domain ends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkServices {
    /// Services inside the network that Unix sockets of the host give.
    pub services: Vec<config::Service>,
    /// What the guest is told to boot from the network.
    pub boot: Option<config::Boot>,
    /// What is served over TFTP. Its files are texts and paths.
    pub tftp: Option<config::Tftp>,
    /// Whether the guest reaches nothing but these.
    pub restricted: bool,
}

impl NetworkServices {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a card is joined to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Joined {
    /// A user-mode network. The descriptors of its description are to be filled in.
    User(Box<config::Description>),
    /// A tap of the host.
    Tap(TapOptions),
}

impl Translation<'_> {
    /// The cards, and for each what it is joined to. Descriptors are to be filled in.
    pub(super) fn cards(
        &mut self,
        services: &NetworkServices,
    ) -> Result<(Vec<NicDescription>, Vec<Joined>), DomainError> {
        let (mut cards, mut joined) = (Vec::new(), Vec::new());
        let mut turns = self.card_turns();
        let document = self.document;
        let mut services = Some(services).filter(|services| !services.is_empty());
        for (index, card) in document.devices.interfaces.iter().enumerate() {
            let place = format!("devices/interface[{}]", index + 1);
            let Some(mac) = card.mac.as_ref().map(|mac| mac.address.0) else {
                return Err(self.lacks(&place, "a card without an address"));
            };
            let mtu = match card.mtu.as_ref().map(|mtu| u16::try_from(mtu.size)) {
                None => None,
                Some(Ok(mtu)) => Some(mtu),
                Some(Err(_)) => {
                    let text = "packets of more than 65535 bytes";
                    return Err(self.lacks(&format!("{place}/mtu"), text));
                }
            };
            joined.push(match card.kind {
                InterfaceKind::User => {
                    let network = self.user_network(&place, card, mac, mtu, services.take())?;
                    Joined::User(Box::new(network))
                }
                InterfaceKind::Bridge | InterfaceKind::Ethernet => {
                    Joined::Tap(self.tap(&place, card, mtu)?)
                }
                other => {
                    let text = format!(
                        "a card of type '{other}': the node has no networks of its own yet; use \
                         type='user', or type='bridge' with a bridge of the host"
                    );
                    return Err(self.lacks(&format!("{place}/@type"), &text));
                }
            });
            cards.push(NicDescription {
                name: format!("net{index}"),
                mac,
                backend: NicBackend::Socket(DescriptorNumber { fd: LATER }),
                mtu,
                link: card
                    .link
                    .as_ref()
                    .is_none_or(|link| link.state == LinkState::Up),
                slot: self.slot(&place, card.address.as_ref()),
                boot_index: turns.remove(&index),
                rom: None,
            });
        }
        match services {
            None => Ok((cards, joined)),
            Some(_) => Err(self.lacks(
                "devices/interface",
                "what is served to the guest needs a card with type='user'",
            )),
        }
    }

    /// The turns of cards at booting, by their places in the document: their own, and that of
    /// the class for the first card. Nothing has one where a kernel is booted.
    fn card_turns(&self) -> BTreeMap<usize, u32> {
        let document = self.document;
        let mut turns = BTreeMap::new();
        if self.is_direct() {
            return turns;
        }
        let cards = &document.devices.interfaces;
        for (index, card) in cards.iter().enumerate() {
            if let Some(boot) = &card.boot {
                turns.insert(index, boot.order);
            }
        }
        let mut classes = document.os.boot_devices().zip(1..);
        if let Some((_, turn)) = classes.find(|(class, _)| *class == BootDevice::Network)
            && !cards.is_empty()
        {
            turns.entry(0).or_insert(turn);
        }
        turns
    }

    /// Whether some card has a turn.
    pub(super) fn boots_from_network(&self) -> bool {
        !self.card_turns().is_empty()
    }

    fn user_network(
        &mut self,
        place: &str,
        card: &Interface,
        mac: [u8; 6],
        mtu: Option<u16>,
        services: Option<&NetworkServices>,
    ) -> Result<config::Description, DomainError> {
        let mut network = config::Description::new(LATER);
        network.control = Some(LATER + 1);
        network.mac = Some(mac);
        if let Some(mtu) = mtu {
            network.network.mtu = mtu;
        }
        for forward in &card.port_forwards {
            let guest = IpAddr::V4(network.network.guest);
            self.forwards(place, forward, guest, &mut network.forwards)?;
        }
        if card.driver.as_ref().is_some_and(|d| d.queues > Some(1)) {
            self.note(place, "a card of type 'user' has one pair of queues");
        }
        if let Some(services) = services {
            network.services.clone_from(&services.services);
            network.boot.clone_from(&services.boot);
            network.tftp.clone_from(&services.tftp);
            network.restricted = services.restricted;
        }
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (NOBODY, NOBODY);
            network.user = Some(config::User { uid, gid });
        }
        match network.check() {
            Ok(()) => Ok(network),
            Err(error) => Err(self.lacks(place, &error.to_string())),
        }
    }

    fn forwards(
        &self,
        place: &str,
        forward: &PortForward,
        guest: IpAddr,
        forwards: &mut Vec<Forward>,
    ) -> Result<(), DomainError> {
        let place = format!("{place}/portForward");
        if forward.dev.is_some() {
            let text = "a device of the host to listen on; name an address of it";
            return Err(self.lacks(&format!("{place}/@dev"), text));
        }
        let address = match &forward.address {
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(address) => address
                .parse()
                .map_err(|_| self.lacks(&place, "an address that is none"))?,
        };
        let protocol = match forward.protocol {
            PortForwardProtocol::Tcp => Protocol::Tcp,
            PortForwardProtocol::Udp => Protocol::Udp,
        };
        let is_out = |range: &PortRange| range.exclude == Some(YesNo::Yes);
        let last = |range: &PortRange| range.end.unwrap_or(range.start);
        let (out, ranges): (Vec<_>, Vec<_>) = forward.ranges.iter().partition(|r| is_out(r));
        if ranges.is_empty() {
            return Err(self.lacks(&place, "all ports of the host; name them with <range>"));
        }
        for range in ranges {
            for port in range.start..=last(range) {
                if out
                    .iter()
                    .any(|out| (out.start..=last(out)).contains(&port))
                {
                    continue;
                }
                let to = range.to.unwrap_or(range.start);
                let inside = to.saturating_add(port.saturating_sub(range.start));
                if forwards.len() >= MOST_FORWARDS {
                    let text = format!("more than {MOST_FORWARDS} ports");
                    return Err(self.lacks(&place, &text));
                }
                forwards.push(Forward {
                    protocol,
                    host: SocketAddr::new(address, port),
                    guest: SocketAddr::new(guest, inside),
                });
            }
        }
        Ok(())
    }

    fn tap(
        &self,
        place: &str,
        card: &Interface,
        mtu: Option<u16>,
    ) -> Result<TapOptions, DomainError> {
        let bridge = card.bridge().map(str::to_owned);
        if card.kind == InterfaceKind::Ethernet
            && card
                .target
                .as_ref()
                .is_some_and(|t| t.managed == Some(YesNo::No))
            && !std::path::Path::new("/dev/net/tun").exists()
        {
            return Err(self.lacks(place, "the host's kernel has no taps (module tun)"));
        }
        if let Some(bridge) = &bridge
            && !std::path::Path::new("/sys/class/net")
                .join(bridge)
                .join("bridge")
                .exists()
        {
            return Err(DomainError::ComponentMissing {
                domain: self.document.name.to_string(),
                component: format!("{place}: there is no bridge '{bridge}' on this host"),
                remedy: format!(
                    "make it (ip link add {bridge} type bridge), or use <interface type='user'/>: \
                     cenote edit {}",
                    self.document.name
                ),
            });
        }
        Ok(TapOptions {
            // libvirt's names, which it gives where the document leaves them open.
            name: Some(
                card.target
                    .as_ref()
                    .map_or("vnet%d".to_owned(), |t| t.dev.clone()),
            ),
            queues: card
                .driver
                .as_ref()
                .and_then(|driver| driver.queues)
                .unwrap_or(1),
            mtu,
            mac: None,
            bridge,
        })
    }
}
