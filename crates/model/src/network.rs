//! Networks of a node: `<network>`.
//!
//! See <https://libvirt.org/formatnetwork.html>. NAT, routed, open and isolated networks on a
//! bridge of their own, and bridges that the host has; DHCP, DNS, TFTP and network boot on them.

use std::net::IpAddr;

use uuid::Uuid;

use crate::document::document;
use crate::domain::MacAddress;
use crate::error::{Error, NoteKind};
use crate::names::Name;
use crate::xml::{Metadata, OnOff, Present, Reader, Value, YesNo, element, values};

values! {
    /// How a network is joined to what lies beyond the host.
    pub enum ForwardMode {
        /// With the host's address (masquerading).
        #[default]
        Nat = "nat",
        /// Not at all.
        None = "none",
        /// With the guests' own addresses.
        Route = "route",
        /// With the guests' own addresses, and no rules of the firewall.
        Open = "open",
        /// By a bridge that the host has.
        Bridge = "bridge",
        /// Refused: macvtap.
        Private = "private",
        /// Refused: macvtap.
        Vepa = "vepa",
        /// Refused: macvtap.
        Passthrough = "passthrough",
        /// Refused: devices of the host.
        Hostdev = "hostdev",
    }
}

/// An IP address; the unspecified one in documents made field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Ip(pub IpAddr);

impl Default for Ip {
    fn default() -> Self {
        Self(IpAddr::from([0, 0, 0, 0]))
    }
}

impl Value for Ip {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| "an IP address is expected".to_owned())
    }

    fn print(&self) -> String {
        self.0.to_string()
    }
}

impl Present for Ip {}

element! {
    /// A network.
    pub struct Network {
        /// Number of guests on it; reported.
        connections: Option<u32> = attribute("connections"),
        /// Whether guests reach each other by IPv6 without a gateway.
        ipv6: Option<YesNo> = attribute("ipv6"),
        /// Name.
        name: Name = leaf("name"),
        /// Identity; given by the node when absent.
        uuid: Option<Uuid> = leaf("uuid"),
        /// What other programs keep here.
        metadata: Option<Metadata> = child("metadata"),
        /// How it is joined to what lies beyond; absent means not at all.
        forward: Option<Forward> = child("forward"),
        /// Its bridge.
        bridge: Option<NetworkBridge> = child("bridge"),
        /// Largest packet.
        mtu: Option<NetworkMtu> = child("mtu"),
        /// Address of the bridge.
        mac: Option<NetworkMac> = child("mac"),
        /// DNS domain.
        domain: Option<NetworkDomain> = child("domain"),
        /// DNS server.
        dns: Option<Dns> = child("dns"),
        /// Addresses of the host on it.
        ips: Vec<NetworkIp> = child("ip"),
    }
    known {
        "bandwidth" => Inert("traffic is not limited"),
        "title" => Inert("kept for people"),
        "description" => Inert("kept for people"),
        "@trustGuestRxFilters" => Inert("the host's filters are not the guest's to set"),
        "portgroup" => Refused("port groups; define a network for each"),
        "virtualport" => Refused("ports of virtual switches (Open vSwitch, 802.1Qbg, 802.1Qbh); \
            use a Linux bridge"),
        "vlan" => Refused("VLAN tags; use a bridge that is in the VLAN"),
        "port" => Refused("isolated ports, since guests without isolation would reach each other"),
        "route" => Refused("static routes; add them to the host"),
        "dnsmasq:options" => Refused("options for dnsmasq; what DHCP and DNS do is said by <dhcp> \
            and <dns>"),
    }
    check Network::check;
}

document!(Network, "network");

element! {
    /// `<forward>`.
    pub struct Forward {
        /// Only through this device of the host.
        dev: Option<String> = attribute("dev"),
        /// How.
        mode: ForwardMode = attribute_or_default("mode"),
        /// Addresses and ports of NAT.
        nat: Option<Nat> = child("nat"),
        /// Devices of the host.
        interfaces: Vec<ForwardInterface> = child("interface"),
    }
    known {
        "pf" => Refused("devices of the host"),
        "address" => Refused("devices of the host"),
        "driver" => Refused("devices of the host"),
        "@managed" => Refused("devices of the host"),
    }
    check Forward::check;
}

element! {
    /// `<nat>`.
    pub struct Nat {
        /// Whether IPv6 is masqueraded too.
        ipv6: Option<YesNo> = attribute("ipv6"),
        /// Addresses to use.
        address: Option<NatAddress> = child("address"),
        /// Ports to use.
        port: Option<NatPort> = child("port"),
    }
}

element! {
    /// `<address>` of NAT.
    pub struct NatAddress {
        /// First.
        start: Ip = attribute("start"),
        /// Last.
        end: Ip = attribute("end"),
    }
}

element! {
    /// `<port>` of NAT.
    pub struct NatPort {
        /// First.
        start: u16 = attribute("start"),
        /// Last.
        end: u16 = attribute("end"),
    }
    check NatPort::check;
}

element! {
    /// `<interface>` of a forward.
    pub struct ForwardInterface {
        /// Device of the host.
        dev: String = attribute("dev"),
        /// Number of guests on it; reported.
        connections: Option<u32> = attribute("connections"),
    }
}

element! {
    /// `<bridge>`.
    pub struct NetworkBridge {
        /// Name; given by the node when absent.
        name: Option<String> = attribute("name"),
        /// Zone of firewalld.
        zone: Option<String> = attribute("zone"),
        /// Spanning tree.
        stp: Option<OnOff> = attribute("stp"),
        /// Seconds until a new port forwards.
        delay: Option<u32> = attribute("delay"),
        /// Who fills its address table.
        mac_table_manager: Option<String> = attribute("macTableManager"),
    }
    known {
        "@zone" => Inert("firewalld is not told; rules are nftables' own"),
        "@macTableManager" => Inert("the bridge learns addresses itself"),
    }
    check NetworkBridge::check;
}

element! {
    /// `<mtu>` of a network.
    pub struct NetworkMtu {
        /// Bytes.
        size: u32 = attribute("size"),
    }
}

element! {
    /// `<mac>` of a network.
    pub struct NetworkMac {
        /// Address.
        address: MacAddress = attribute("address"),
    }
}

element! {
    /// `<domain>` of a network.
    pub struct NetworkDomain {
        /// Name.
        name: String = attribute("name"),
        /// Whether names in it are never asked for elsewhere.
        local_only: Option<YesNo> = attribute("localOnly"),
        /// Whether the host's resolver is told.
        register: Option<YesNo> = attribute("register"),
    }
    known {
        "@register" => Inert("the host's resolver is not told"),
    }
}

element! {
    /// `<dns>`.
    pub struct Dns {
        /// `no` turns it off.
        enable: Option<YesNo> = attribute("enable"),
        /// Whether names without dots are asked for elsewhere.
        forward_plain_names: Option<YesNo> = attribute("forwardPlainNames"),
        /// Who is asked.
        forwarders: Vec<DnsForwarder> = child("forwarder"),
        /// TXT records.
        texts: Vec<DnsText> = child("txt"),
        /// Names of addresses.
        hosts: Vec<DnsHost> = child("host"),
        /// SRV records.
        services: Vec<DnsService> = child("srv"),
    }
}

element! {
    /// `<forwarder>`.
    pub struct DnsForwarder {
        /// For names in this domain only.
        domain: Option<String> = attribute("domain"),
        /// Address of the server.
        address: Option<Ip> = attribute("addr"),
    }
}

element! {
    /// `<txt>`.
    pub struct DnsText {
        /// Name.
        name: String = attribute("name"),
        /// Text.
        value: String = attribute("value"),
    }
}

element! {
    /// `<host>` of DNS.
    pub struct DnsHost {
        /// Address.
        ip: Ip = attribute("ip"),
        /// Names.
        names: Vec<String> = leaf("hostname"),
    }
}

element! {
    /// `<srv>`.
    pub struct DnsService {
        /// Service.
        service: String = attribute("service"),
        /// Protocol.
        protocol: String = attribute("protocol"),
        /// Domain.
        domain: Option<String> = attribute("domain"),
        /// Host.
        target: Option<String> = attribute("target"),
        /// Port.
        port: Option<u16> = attribute("port"),
        /// Priority.
        priority: Option<u16> = attribute("priority"),
        /// Weight.
        weight: Option<u16> = attribute("weight"),
    }
}

element! {
    /// `<ip>` of a network.
    pub struct NetworkIp {
        /// `ipv4` or `ipv6`; absent means what the address is.
        family: Option<String> = attribute("family"),
        /// The host's address.
        address: Ip = attribute("address"),
        /// Mask of IPv4.
        netmask: Option<Ip> = attribute("netmask"),
        /// Length of the network's prefix.
        prefix: Option<u8> = attribute("prefix"),
        /// Whether PTR queries stay here.
        local_ptr: Option<YesNo> = attribute("localPtr"),
        /// TFTP server.
        tftp: Option<Tftp> = child("tftp"),
        /// DHCP server.
        dhcp: Option<Dhcp> = child("dhcp"),
    }
    check NetworkIp::check;
}

element! {
    /// `<tftp>`.
    pub struct Tftp {
        /// Directory that is served.
        root: String = attribute("root"),
    }
    check Tftp::check;
}

element! {
    /// `<dhcp>`.
    pub struct Dhcp {
        /// Addresses given out.
        ranges: Vec<DhcpRange> = child("range"),
        /// Addresses kept for guests.
        hosts: Vec<DhcpHost> = child("host"),
        /// Network boot.
        bootp: Option<Bootp> = child("bootp"),
    }
}

element! {
    /// `<range>` of DHCP.
    pub struct DhcpRange {
        /// First.
        start: Ip = attribute("start"),
        /// Last.
        end: Ip = attribute("end"),
        /// How long.
        lease: Option<Lease> = child("lease"),
    }
}

element! {
    /// `<host>` of DHCP.
    pub struct DhcpHost {
        /// Address of its card.
        mac: Option<MacAddress> = attribute("mac"),
        /// Its identifier in IPv6.
        id: Option<String> = attribute("id"),
        /// Name.
        name: Option<String> = attribute("name"),
        /// Address it gets.
        ip: Ip = attribute("ip"),
        /// How long.
        lease: Option<Lease> = child("lease"),
    }
    check DhcpHost::check;
}

element! {
    /// `<lease>`.
    pub struct Lease {
        /// Time, 0 for ever.
        expiry: u32 = attribute("expiry"),
        /// `seconds`, `minutes` or `hours`; default minutes.
        unit: Option<String> = attribute("unit"),
    }
}

element! {
    /// `<bootp>`.
    pub struct Bootp {
        /// File.
        file: String = attribute("file"),
        /// Server, if not this one.
        server: Option<String> = attribute("server"),
    }
}

impl Forward {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.mode {
            ForwardMode::Private
            | ForwardMode::Vepa
            | ForwardMode::Passthrough
            | ForwardMode::Hostdev => Err(reader.unsupported(
                "@mode",
                format!(
                    "networks of mode '{}'; supported are nat, route, open, bridge and none",
                    self.mode
                ),
            )),
            mode if self.nat.is_some() && mode != ForwardMode::Nat => {
                Err(reader.invalid("nat", mode.as_str(), "it belongs to mode 'nat'"))
            }
            _ => Ok(()),
        }
    }
}

impl NatPort {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.start == 0 || self.end < self.start {
            return Err(reader.invalid(
                "",
                &format!("{}-{}", self.start, self.end),
                "ports from 1, the last not below the first, are expected",
            ));
        }
        Ok(())
    }
}

impl NetworkBridge {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        match &self.name {
            Some(name) if name.is_empty() || name.len() > 15 || name.contains(odd) => Err(reader
                .invalid(
                    "@name",
                    name,
                    "a device name of 1 to 15 bytes without slashes and spaces is expected",
                )),
            _ => Ok(()),
        }
    }
}

impl Tftp {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.root.starts_with('/') {
            return Ok(());
        }
        Err(reader.invalid("@root", &self.root, "an absolute path is expected"))
    }
}

impl DhcpHost {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.mac.is_none() && self.id.is_none() && self.name.is_none() {
            return Err(reader.missing("one of the attributes 'mac', 'id' and 'name'"));
        }
        Ok(())
    }
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

impl NetworkIp {
    /// Length of the network's prefix; `None` if the netmask is none.
    pub fn prefix_length(&self) -> Option<u32> {
        let (_, width) = bits(self.address.0);
        if let Some(prefix) = self.prefix {
            return Some(u32::from(prefix)).filter(|prefix| *prefix <= width);
        }
        match self.netmask {
            Some(Ip(IpAddr::V4(mask))) if width == 32 => {
                let ones = mask.to_bits().leading_ones();
                (mask.to_bits().count_ones() == ones).then_some(ones)
            }
            Some(_) => None,
            None => default_prefix(self.address.0),
        }
    }

    /// Whether an address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, width) = bits(self.address.0);
        let (other, other_width) = bits(address);
        let Some(prefix) = self.prefix_length() else {
            return false;
        };
        let shift = width.saturating_sub(prefix);
        let network = |n: u128| n.checked_shr(shift).unwrap_or(0);
        width == other_width && network(own) == network(other)
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.prefix.is_some() && self.netmask.is_some() {
            return Err(reader.invalid(
                "@prefix",
                "prefix",
                "netmask and prefix exclude each other",
            ));
        }
        if self.prefix_length().is_none() {
            let given = self.netmask.map_or_else(
                || self.prefix.unwrap_or_default().to_string(),
                |mask| mask.print(),
            );
            return Err(reader.invalid(
                "@netmask",
                &given,
                "a netmask of IPv4, or a prefix that is no longer than the address, is expected",
            ));
        }
        let ranges = self.dhcp.iter().flat_map(|dhcp| &dhcp.ranges);
        for range in ranges {
            self.check_address(range.start.0, "dhcp/range/@start", reader)?;
            self.check_address(range.end.0, "dhcp/range/@end", reader)?;
            if bits(range.start.0).0 > bits(range.end.0).0 {
                return Err(reader.invalid(
                    "dhcp/range",
                    &format!("{}-{}", range.start.0, range.end.0),
                    "the last address is below the first",
                ));
            }
        }
        let mut kept = std::collections::HashSet::new();
        for host in self.dhcp.iter().flat_map(|dhcp| &dhcp.hosts) {
            self.check_address(host.ip.0, "dhcp/host/@ip", reader)?;
            if !kept.insert(host.ip) {
                return Err(reader.invalid(
                    "dhcp/host/@ip",
                    &host.ip.print(),
                    "an address is kept for one guest",
                ));
            }
        }
        Ok(())
    }

    fn check_address(&self, address: IpAddr, step: &str, reader: &Reader<'_>) -> Result<(), Error> {
        if self.contains(address) {
            return Ok(());
        }
        Err(reader.invalid(
            step,
            &address.to_string(),
            format!(
                "an address in the network of {} is expected",
                self.address.0
            ),
        ))
    }
}

/// Prefixes of the old address classes, as libvirt takes them.
fn default_prefix(address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V6(_) => Some(64),
        IpAddr::V4(address) => match address.octets() {
            [0..=127, ..] => Some(8),
            [128..=191, ..] => Some(16),
            [192..=223, ..] => Some(24),
            _ => None,
        },
    }
}

impl Network {
    /// How it is joined to what lies beyond the host.
    pub fn forward_mode(&self) -> ForwardMode {
        self.forward
            .as_ref()
            .map_or(ForwardMode::None, |forward| forward.mode)
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.forward_mode() == ForwardMode::None && self.forward.take().is_some() {
            reader.note(
                NoteKind::Mapped,
                "forward",
                "mode 'none' is said by leaving <forward> out",
            )?;
        }
        let dhcp = self.ips.iter().filter(|ip| ip.dhcp.is_some());
        let (fourth, sixth): (Vec<_>, Vec<_>) = dhcp.partition(|ip| ip.address.0.is_ipv4());
        if fourth.len() > 1 || sixth.len() > 1 {
            return Err(reader.invalid("ip/dhcp", "dhcp", "one for each family is expected"));
        }
        if self.forward_mode() == ForwardMode::Bridge {
            if self
                .bridge
                .as_ref()
                .is_none_or(|bridge| bridge.name.is_none())
            {
                return Err(reader.missing("<bridge name='...'/>"));
            }
            if !self.ips.is_empty() || self.dns.is_some() || self.domain.is_some() {
                return Err(reader.invalid(
                    "ip",
                    "bridge",
                    "the host's bridge has its own addresses, DHCP and DNS",
                ));
            }
        }
        Ok(())
    }
}
