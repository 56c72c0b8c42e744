//! `<interface>`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::domain::{Address, Alias, DeviceBoot};
use crate::error::{Error, NoteKind};
use crate::xml::{Element, Present, Reader, Value, YesNo, element, values};

values! {
    /// What a network card is joined to.
    pub enum InterfaceKind {
        /// User-mode network: NAT, DHCP and DNS without rights.
        #[default]
        User = "user",
        /// A network of the node.
        Network = "network",
        /// A bridge of the host.
        Bridge = "bridge",
        /// A tap device.
        Ethernet = "ethernet",
        /// Refused: macvtap.
        Direct = "direct",
        /// Refused: a device of the host.
        Hostdev = "hostdev",
        /// Refused.
        VhostUser = "vhostuser",
        /// Refused.
        Vdpa = "vdpa",
        /// Refused.
        Mcast = "mcast",
        /// Refused.
        Server = "server",
        /// Refused.
        Client = "client",
        /// Refused.
        Udp = "udp",
        /// Refused.
        Internal = "internal",
        /// Refused.
        Null = "null",
        /// Refused.
        Vds = "vds",
    }
}

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// One of QEMU's range `52:54:00`, with the last three bytes given.
    pub fn of_guest(last: [u8; 3]) -> Self {
        let [a, b, c] = last;
        Self([0x52, 0x54, 0x00, a, b, c])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "six pairs of hexadecimal digits with colons are expected".to_owned();
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(expected)?;
            if !matches!(part.len(), 1 | 2) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(expected());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| expected())?;
        }
        let [first, ..] = bytes;
        if parts.next().is_some() {
            Err(expected())
        } else if first & 1 == 1 {
            Err("a unicast address is expected, this is a multicast one".to_owned())
        } else if bytes == [0; 6] {
            Err("an address other than all zeroes is expected".to_owned())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl Value for MacAddress {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Present for MacAddress {}

impl serde::Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

element! {
    /// `<interface>`.
    pub struct Interface {
        /// What it is joined to.
        kind: InterfaceKind = attribute("type"),
        /// Address; made up by the node when absent.
        mac: Option<InterfaceMac> = child("mac"),
        /// Which network or bridge.
        source: Option<InterfaceSource> = child("source"),
        /// Limits.
        bandwidth: Option<Element> = child("bandwidth"),
        /// Ports of the host led to the guest (user-mode network).
        port_forwards: Vec<PortForward> = child("portForward"),
        /// Device on the host.
        target: Option<InterfaceTarget> = child("target"),
        /// Model of the card.
        model: Option<InterfaceModel> = child("model"),
        /// Options of its driver.
        driver: Option<InterfaceDriver> = child("driver"),
        /// Back end's own options.
        backend: Option<Element> = child("backend"),
        /// Filter of its traffic.
        filter: Option<Element> = child("filterref"),
        /// State of the link.
        link: Option<Link> = child("link"),
        /// Largest packet.
        mtu: Option<Mtu> = child("mtu"),
        /// Turn in the boot order.
        boot: Option<DeviceBoot> = child("boot"),
        /// Option ROM.
        rom: Option<Element> = child("rom"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "bandwidth" => Inert("traffic is not limited"),
        "backend" => Inert("the back end is Cenote's own"),
        "rom" => Inert("the card has the firmware's own network boot ROM"),
        "tune" => Inert("buffers are sized by the host"),
        "coalesce" => Inert("interrupts are not gathered"),
        "guest" => Inert("belongs to containers"),
        "ip" => Inert("the guest configures itself, or is told by DHCP"),
        "route" => Inert("the guest configures itself, or is told by DHCP"),
        "acpi" => Inert("ACPI indices are not given"),
        "script" => Refused("scripts are never run; use a bridge or a network of the node"),
        "downscript" => Refused("scripts are never run; use a bridge or a network of the node"),
        "backenddomain" => Refused("a feature of Xen"),
        "vlan" => Refused("VLAN tags; use a bridge that is in the VLAN, since a guest without \
            its tag would be in the wrong network"),
        "virtualport" => Refused("ports of virtual switches (Open vSwitch, 802.1Qbg, 802.1Qbh); \
            use a Linux bridge"),
        "port" => Refused("isolated ports, since a guest without isolation would reach its \
            neighbours"),
        "teaming" => Refused("teaming with a device of the host"),
        "@trustGuestRxFilters" => Inert("the host's filters are not the guest's to set"),
        "@managed" => Inert("belongs to devices of the host"),
    }
    check Interface::check;
}

element! {
    /// `<mac>` of a network card.
    pub struct InterfaceMac {
        /// Address.
        address: MacAddress = attribute("address"),
    }
    known {
        "@type" => Inert("belongs to VMware"),
        "@check" => Inert("belongs to VMware"),
    }
}

element! {
    /// `<source>` of a network card.
    pub struct InterfaceSource {
        /// Network of the node.
        network: Option<String> = attribute("network"),
        /// Group of its ports.
        portgroup: Option<String> = attribute("portgroup"),
        /// Port id; reported.
        portid: Option<String> = attribute("portid"),
        /// Bridge of the host.
        bridge: Option<String> = attribute("bridge"),
        /// Device of the host.
        dev: Option<String> = attribute("dev"),
        /// How a macvtap is joined.
        mode: Option<String> = attribute("mode"),
    }
    known {
        "@portgroup" => Inert("networks have no port groups"),
    }
}

element! {
    /// `<target>` of a network card.
    pub struct InterfaceTarget {
        /// Name of the device on the host.
        dev: String = attribute("dev"),
        /// `no`: the device exists, and is not made.
        managed: Option<YesNo> = attribute("managed"),
    }
}

element! {
    /// `<model>` of a network card.
    pub struct InterfaceModel {
        /// `virtio`, `e1000`, `rtl8139` and others.
        kind: String = attribute("type"),
    }
}

element! {
    /// `<driver>` of a network card.
    pub struct InterfaceDriver {
        /// `qemu` or `vhost`.
        name: Option<String> = attribute("name"),
        /// Pairs of queues.
        queues: Option<u16> = attribute("queues"),
        /// Descriptors in a receive queue.
        rx_queue_size: Option<u32> = attribute("rx_queue_size"),
        /// Descriptors in a transmit queue.
        tx_queue_size: Option<u32> = attribute("tx_queue_size"),
    }
    known {
        "@name" => Inert("the back end is Cenote's own"),
        "@txmode" => Inert("packets are sent as they come"),
        "@ioeventfd" => Inert("requests are always signalled by ioeventfd"),
        "@event_idx" => Inert("the guest's driver chooses"),
        "@rss" => Inert("the guest does not spread its queues by hash"),
        "@rss_hash_report" => Inert("the guest does not spread its queues by hash"),
        "@iommu" => Inert("the machine has no IOMMU"),
        "@ats" => Inert("the machine has no IOMMU"),
        "@packed" => Inert("queues are split ones"),
        "@page_per_vq" => Inert("queues are signalled in one page"),
        "host" => Inert("offloads are negotiated with the guest"),
        "guest" => Inert("offloads are negotiated with the guest"),
    }
}

values! {
    /// State of a link.
    pub enum LinkState {
        /// The cable is in.
        #[default]
        Up = "up",
        /// The cable is out.
        Down = "down",
    }
}

element! {
    /// `<link>`.
    pub struct Link {
        /// State.
        state: LinkState = attribute("state"),
    }
}

element! {
    /// `<mtu>`.
    pub struct Mtu {
        /// Bytes.
        size: u32 = attribute("size"),
    }
}

values! {
    /// Protocol of a forwarded port.
    pub enum PortForwardProtocol {
        /// TCP.
        #[default]
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

element! {
    /// `<portForward>`.
    pub struct PortForward {
        /// Protocol.
        protocol: PortForwardProtocol = attribute("proto"),
        /// Address of the host to listen on; absent means all.
        address: Option<String> = attribute("address"),
        /// Device of the host to listen on.
        dev: Option<String> = attribute("dev"),
        /// Ports.
        ranges: Vec<PortRange> = child("range"),
    }
    check PortForward::check;
}

element! {
    /// `<range>` of forwarded ports.
    pub struct PortRange {
        /// First port on the host.
        start: u16 = attribute("start"),
        /// Last port; absent means the first.
        end: Option<u16> = attribute("end"),
        /// First port in the guest; absent means the same.
        to: Option<u16> = attribute("to"),
        /// Whether these are left out.
        exclude: Option<YesNo> = attribute("exclude"),
    }
}

impl PortForward {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if let Some(address) = &self.address
            && address.parse::<IpAddr>().is_err()
        {
            return Err(reader.invalid("@address", address, "an IP address is expected"));
        }
        for range in &self.ranges {
            let end = range.end.unwrap_or(range.start);
            let length = end.checked_sub(range.start);
            let fits = length.is_some_and(|n| range.to.unwrap_or(1).checked_add(n).is_some());
            if range.start == 0 || !fits {
                return Err(reader.invalid(
                    "range",
                    &format!("{}-{end}", range.start),
                    "ports from 1, the last not below the first, are expected",
                ));
            }
        }
        Ok(())
    }
}

impl Interface {
    /// The network of the node it is joined to.
    pub fn network(&self) -> Option<&str> {
        self.source.as_ref()?.network.as_deref()
    }

    /// The bridge of the host it is joined to.
    pub fn bridge(&self) -> Option<&str> {
        self.source.as_ref()?.bridge.as_deref()
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let supported = [
            InterfaceKind::User,
            InterfaceKind::Network,
            InterfaceKind::Bridge,
            InterfaceKind::Ethernet,
        ];
        if !supported.contains(&self.kind) {
            return Err(reader.unsupported(
                "@type",
                format!(
                    "network cards of type '{}'; supported are user, network, bridge and ethernet",
                    self.kind
                ),
            ));
        }
        match self.kind {
            InterfaceKind::Network if self.network().is_none_or(str::is_empty) => {
                return Err(reader.missing("<source network='...'/>"));
            }
            InterfaceKind::Bridge if self.bridge().is_none_or(str::is_empty) => {
                return Err(reader.missing("<source bridge='...'/>"));
            }
            _ => {}
        }
        if !self.port_forwards.is_empty() && self.kind != InterfaceKind::User {
            return Err(reader.unsupported(
                "portForward",
                "ports are forwarded by the user-mode network (type='user') only",
            ));
        }
        if self.filter.is_some() {
            reader.note(
                NoteKind::Security,
                "filterref",
                "traffic is not filtered: the guest may send with any address",
            )?;
        }
        self.check_names(reader)?;
        self.note_model(reader)
    }

    fn check_names(&self, reader: &Reader<'_>) -> Result<(), Error> {
        let device = self
            .target
            .as_ref()
            .map(|target| ("target/@dev", target.dev.as_str()));
        let bridge = self.bridge().map(|bridge| ("source/@bridge", bridge));
        for (step, name) in device.into_iter().chain(bridge) {
            let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
            if name.is_empty() || name.len() > 15 || name.contains(odd) {
                return Err(reader.invalid(
                    step,
                    name,
                    "a device name of 1 to 15 bytes without slashes and spaces is expected",
                ));
            }
        }
        Ok(())
    }

    fn note_model(&self, reader: &Reader<'_>) -> Result<(), Error> {
        let model = self.model.as_ref().map(|model| model.kind.as_str());
        match model {
            Some("virtio" | "virtio-non-transitional") => Ok(()),
            None => reader.note(NoteKind::Filled, "model", "no model given: a virtio card"),
            Some(other) => reader.note(
                NoteKind::Mapped,
                "model/@type",
                format!("the card is a virtio one in place of '{other}'"),
            ),
        }
    }
}
