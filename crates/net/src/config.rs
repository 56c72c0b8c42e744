//! The description of a network process: JSON, complete, strict. Unknown fields are refused.
//!
//! `docs/networks.md` has the table of fields.

use crate::frame::Mac;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    os::fd::RawFd,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The version of the description's shape.
pub const VERSION: u32 = 1;
/// The largest description that is read, in bytes. Texts served over TFTP are part of it.
const LARGEST: u64 = 16 << 20;
/// The smallest MTU, in bytes: every IPv4 host accepts such datagrams (RFC 791).
pub const SMALLEST_MTU: u16 = 576;
/// The largest MTU, in bytes, that libslirp takes.
pub const LARGEST_MTU: u16 = 65_521;
/// The longest boot file name or URL, in bytes: a DHCP option's length.
const LONGEST_OPTION: usize = 255;
/// Most bytes of names in an answer of DHCP, so that it fits into one frame of the smallest MTU.
const LONGEST_NAMES: usize = 160;
/// The first port that any user may open.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// A network of one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version of the description's shape: 1.
    pub version: u32,
    /// The descriptor that frames come from and go to: a Unix socket of type SEQPACKET, one
    /// frame per message, without a header.
    pub monitor: RawFd,
    /// A connected Unix stream socket for events and questions, if there is to be one.
    #[serde(default)]
    pub control: Option<RawFd>,
    /// The guest's Ethernet address, if it is known.
    #[serde(default, with = "mac_text")]
    pub mac: Option<Mac>,
    /// Addresses and names.
    #[serde(default)]
    pub network: Network,
    /// Whether the guest reaches nothing but the services of this process.
    #[serde(default)]
    pub restricted: bool,
    /// Whether the guest reaches the host's loopback addresses through the gateway's.
    #[serde(default)]
    pub host_loopback: bool,
    /// What the guest boots from the network.
    #[serde(default)]
    pub boot: Option<Boot>,
    /// What is served over TFTP at the gateway's address.
    #[serde(default)]
    pub tftp: Option<Tftp>,
    /// Ports of the host that lead to the guest.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// Services inside the network that Unix sockets of the host give.
    #[serde(default)]
    pub services: Vec<Service>,
    /// User and group to become where the process was started as root.
    #[serde(default)]
    pub user: Option<User>,
}

/// Addresses and names of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Its addresses.
    pub subnet: Subnet,
    /// The gateway: the host as the guest sees it, and our services.
    pub gateway: Ipv4Addr,
    /// The name server; what comes there goes to the host's.
    pub dns: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// A prefix of 64 bits for IPv6; without one there is no IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// The guest's name.
    pub hostname: Option<String>,
    /// The guest's domain.
    pub domain: Option<String>,
    /// Domains to search.
    pub search: Vec<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            subnet: Subnet {
                address: Ipv4Addr::new(10, 0, 2, 0),
                prefix: 24,
            },
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: Ipv4Addr::new(10, 0, 2, 15),
            ipv6: None,
            mtu: 1500,
            hostname: None,
            domain: None,
            search: Vec::new(),
        }
    }
}

impl Network {
    /// The network mask.
    #[must_use]
    pub fn mask(&self) -> Ipv4Addr {
        self.subnet.mask()
    }

    /// Whether a host in the network can have this address.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        let (value, base) = (u32::from(address), u32::from(self.subnet.address));
        value & mask == base && value != base && value != base | !mask
    }

    /// Addresses for clients: the guest's, then those after it, `most` at most.
    pub(crate) fn pool(&self, most: usize) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let first = u32::from(self.guest);
        (0..256u32)
            .filter_map(move |step| first.checked_add(step))
            .map(Ipv4Addr::from)
            .filter(|address| {
                self.contains(*address) && *address != self.gateway && *address != self.dns
            })
            .take(most)
    }

    /// The gateway's Ethernet address, as libslirp makes it from its IPv4 address.
    #[must_use]
    pub fn gateway_mac(&self) -> Mac {
        let [a, b, c, d] = self.gateway.octets();
        [0x52, 0x55, a, b, c, d]
    }
}

/// An IPv4 network, `10.0.2.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The network's address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The network mask.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX << (32 - u32::from(self.prefix)))
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            Some((
                address.parse::<Ipv4Addr>().ok()?,
                prefix.parse::<u8>().ok()?,
            ))
        });
        let Some((address, prefix)) = parsed else {
            return Err(format!("'{text}' is not a network such as 10.0.2.0/24"));
        };
        if !(8..=29).contains(&prefix) {
            return Err(format!("{text}: the prefix must be 8 to 29 bits long"));
        }
        let subnet = Self { address, prefix };
        if u32::from(address) & !u32::from(subnet.mask()) != 0 {
            return Err(format!("{text} has bits set beyond its prefix"));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// What DHCP tells a client that boots from the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Boot file for a BIOS, and for iPXE where it has none of its own.
    pub file: Option<String>,
    /// Boot file for UEFI.
    pub uefi_file: Option<String>,
    /// Boot file or URL for iPXE.
    pub ipxe_file: Option<String>,
    /// The server with the boot file; the gateway if not given.
    pub next_server: Option<Ipv4Addr>,
    /// That server's name.
    pub server_name: Option<String>,
}

/// What is served over TFTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tftp {
    /// A folder; nothing outside it is served, whatever links in it say.
    pub root: Option<PathBuf>,
    /// Files by the name that the guest asks for; they come before those of `root`.
    pub files: BTreeMap<String, FileSource>,
}

/// A file that is served under a name of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSource {
    /// The content itself.
    Text(String),
    /// A path.
    Path(PathBuf),
    /// An inherited descriptor.
    Fd(RawFd),
}

/// A port of the host that leads to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: Protocol,
    /// The host's side.
    pub host: SocketAddr,
    /// The guest's side.
    pub guest: SocketAddr,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A TCP service inside the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Where the guest finds it: an address of the network that is nobody else's.
    pub address: SocketAddrV4,
    /// The Unix socket that each connection is made to.
    pub unix: PathBuf,
}

/// Numbers of a user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The file cannot be read.
    #[error("network description {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("network description {path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        source: serde_json::Error,
    },
    /// The version is not known.
    #[error("the network description has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// A value is impossible.
    #[error("{field}: {reason}")]
    Value {
        /// Which field.
        field: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

impl Description {
    /// A description with nothing but the usual: frames through descriptor `monitor`.
    #[must_use]
    pub fn new(monitor: RawFd) -> Self {
        Self {
            version: VERSION,
            monitor,
            control: None,
            mac: None,
            network: Network::default(),
            restricted: false,
            host_loopback: false,
            boot: None,
            tftp: None,
            forwards: Vec::new(),
            services: Vec::new(),
            user: None,
        }
    }

    /// Reads and checks a description.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn read(path: &Path) -> Result<Self, DescriptionError> {
        let read = |source| DescriptionError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LARGEST).read_to_end(&mut text))
            .map_err(read)?;
        let description: Self =
            serde_json::from_slice(&text).map_err(|source| DescriptionError::Syntax {
                path: path.to_owned(),
                source,
            })?;
        description.check()?;
        Ok(description)
    }

    /// Checks what the shape does not say.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn check(&self) -> Result<(), DescriptionError> {
        if self.version != VERSION {
            return Err(DescriptionError::Version(self.version));
        }
        if self.monitor < 0 || self.control.is_some_and(|fd| fd < 0 || fd == self.monitor) {
            return wrong("monitor, control", "give two different open descriptors");
        }
        if self.mac.is_some_and(|mac| mac[0] & 1 != 0) {
            return wrong("mac", "a group's address cannot be a network card's");
        }
        self.check_network()?;
        self.check_boot()?;
        for (index, forward) in self.forwards.iter().enumerate() {
            self.check_forward(&format!("forwards[{index}]"), forward)?;
        }
        for (index, service) in self.services.iter().enumerate() {
            self.check_service(index, service)?;
        }
        if let Some(tftp) = &self.tftp {
            for name in tftp.files.keys() {
                if name.is_empty() || name.starts_with('/') || name.contains('\0') {
                    let reason = "give a name without a leading slash";
                    return wrong(&format!("tftp.files.{name:?}"), reason);
                }
            }
        }
        Ok(())
    }

    fn check_network(&self) -> Result<(), DescriptionError> {
        let network = &self.network;
        let addresses = [
            ("network.gateway", network.gateway),
            ("network.dns", network.dns),
            ("network.guest", network.guest),
        ];
        for (index, (field, address)) in addresses.iter().enumerate() {
            if !network.contains(*address) {
                return wrong(
                    field,
                    &format!("{address} is no host of {}", network.subnet),
                );
            }
            if addresses[..index].iter().any(|(_, other)| other == address) {
                return wrong(field, &format!("{address} is used twice"));
            }
        }
        if !(SMALLEST_MTU..=LARGEST_MTU).contains(&network.mtu) {
            let reason = format!("give {SMALLEST_MTU} to {LARGEST_MTU} bytes");
            return wrong("network.mtu", &reason);
        }
        if let Some(prefix) = network.ipv6
            && (prefix.is_multicast() || u128::from(prefix) << 64 != 0)
        {
            return wrong(
                "network.ipv6",
                "give a prefix of 64 bits, such as fd00:ce::",
            );
        }
        let names: Vec<_> = [&network.hostname, &network.domain]
            .into_iter()
            .flatten()
            .chain(&network.search)
            .collect();
        if names.iter().any(|name| !is_name(name)) {
            return wrong("network.hostname, domain, search", "give DNS names");
        }
        if names.iter().map(|name| name.len() + 2).sum::<usize>() > LONGEST_NAMES {
            let reason = format!("more than {LONGEST_NAMES} bytes do not fit into a DHCP answer");
            return wrong("network.hostname, domain, search", &reason);
        }
        Ok(())
    }

    fn check_boot(&self) -> Result<(), DescriptionError> {
        let Some(boot) = &self.boot else {
            return Ok(());
        };
        let names = [&boot.file, &boot.uefi_file, &boot.ipxe_file];
        if names.iter().all(|name| name.is_none()) {
            return wrong("boot", "name at least one of file, uefi_file, ipxe_file");
        }
        for name in names.into_iter().chain([&boot.server_name]).flatten() {
            if name.is_empty() || name.len() > LONGEST_OPTION || name.contains('\0') {
                return wrong("boot", &format!("names have 1 to {LONGEST_OPTION} bytes"));
            }
        }
        Ok(())
    }

    fn check_forward(&self, field: &str, forward: &Forward) -> Result<(), DescriptionError> {
        if forward.host.port() == 0 || forward.guest.port() == 0 {
            return wrong(field, "port 0 cannot be forwarded");
        }
        if forward.host.port() < FIRST_UNPRIVILEGED && !rustix::process::geteuid().is_root() {
            let reason = format!(
                "port {} of the host needs root: choose one from {FIRST_UNPRIVILEGED} on",
                forward.host.port()
            );
            return wrong(field, &reason);
        }
        if forward.protocol == Protocol::Udp {
            // libslirp sends a guest's answers like any of its datagrams.
            if self.restricted {
                return wrong(field, "UDP cannot be forwarded into a restricted network");
            }
            if forward.host.ip().is_loopback() && !self.host_loopback {
                let reason = "answers to the host's loopback need host_loopback to be true";
                return wrong(field, reason);
            }
        }
        let inside = match forward.guest.ip() {
            IpAddr::V4(address) => self.network.contains(address) && forward.host.is_ipv4(),
            IpAddr::V6(address) => {
                forward.host.is_ipv6()
                    && self
                        .network
                        .ipv6
                        .is_some_and(|prefix| u128::from(prefix) >> 64 == u128::from(address) >> 64)
            }
        };
        if !inside {
            let reason = format!(
                "{} is no address of this network in the family of {}",
                forward.guest, forward.host
            );
            return wrong(field, &reason);
        }
        Ok(())
    }

    fn check_service(&self, index: usize, service: &Service) -> Result<(), DescriptionError> {
        let field = format!("services[{index}]");
        let network = &self.network;
        let address = *service.address.ip();
        if !network.contains(address) || service.address.port() == 0 {
            let reason = format!(
                "{} is no host's port in {}",
                service.address, network.subnet
            );
            return wrong(&field, &reason);
        }
        // libslirp gives no service at its own addresses.
        if [network.gateway, network.dns, network.guest].contains(&address) {
            return wrong(
                &field,
                &format!("{address} is in use: choose a free address"),
            );
        }
        if self.services[..index]
            .iter()
            .any(|other| other.address == service.address)
        {
            return wrong(&field, &format!("{} is used twice", service.address));
        }
        if !service.unix.is_absolute() || service.unix.as_os_str().len() > 107 {
            return wrong(
                &field,
                "give the socket's absolute path of at most 107 bytes",
            );
        }
        Ok(())
    }
}

fn wrong<T>(field: &str, reason: &str) -> Result<T, DescriptionError> {
    Err(DescriptionError::Value {
        field: field.to_owned(),
        reason: reason.to_owned(),
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

/// An Ethernet address in text, `52:54:00:12:34:56`.
///
/// # Errors
/// If the text is something else.
pub fn parse_mac(text: &str) -> Result<Mac, String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| format!("'{text}' is not an address such as 52:54:00:12:34:56"))?;
    }
    match parts.next() {
        None => Ok(mac),
        Some(_) => Err(format!("'{text}' has more than six bytes")),
    }
}

/// The text of an Ethernet address.
#[must_use]
pub fn format_mac(mac: &Mac) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

mod mac_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        mac: &Option<Mac>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        mac.as_ref().map(format_mac).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Mac>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| parse_mac(&text).map_err(de::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"version": 1, "monitor": 3}"#;

    const WHOLE: &str = r#"{
        "version": 1, "monitor": 3, "control": 4, "mac": "52:54:00:12:34:56",
        "network": {"subnet": "192.168.7.0/24", "gateway": "192.168.7.1", "dns": "192.168.7.2",
            "guest": "192.168.7.10", "ipv6": "fd00:ce::", "mtu": 9000, "hostname": "guest",
            "domain": "example.org", "search": ["example.org"]},
        "restricted": false, "host_loopback": true,
        "boot": {"file": "pxelinux.0", "ipxe_file": "http://192.168.7.4/boot.ipxe"},
        "tftp": {"root": "/srv/tftp", "files": {"hello": {"text": "hi"}, "vmlinuz": {"fd": 5}}},
        "forwards": [{"host": "127.0.0.1:2222", "guest": "192.168.7.10:22"},
            {"protocol": "udp", "host": "[::1]:5353", "guest": "[fd00:ce::15]:53"}],
        "services": [{"address": "192.168.7.4:80", "unix": "/run/http.sock"}],
        "user": {"uid": 1000, "gid": 1000}
    }"#;

    fn parse(text: &str) -> Description {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn small_and_whole_descriptions_are_read_and_written() {
        for text in [SMALL, WHOLE] {
            let description = parse(text);
            description.check().unwrap();
            let again = serde_json::to_string(&description).unwrap();
            assert_eq!(parse(&again), description);
        }
        assert_eq!(parse(SMALL), Description::new(3));
    }

    #[test]
    fn unknown_fields_and_wrong_texts_are_refused() {
        for (from, to) in [
            (r#""control""#, r#""color": 1, "control""#),
            (r#""subnet""#, r#""color": 1, "subnet""#),
            (r#""root""#, r#""color": 1, "root""#),
            (r#""text""#, r#""url""#),
            (r#""udp""#, r#""sctp""#),
            ("192.168.7.0/24", "192.168.7.1/24"),
            ("192.168.7.0/24", "192.168.7.0/31"),
            ("52:54:00:12:34:56", "52:54:00:12:34"),
        ] {
            let changed = WHOLE.replacen(from, to, 1);
            assert!(
                serde_json::from_str::<Description>(&changed).is_err(),
                "{to}"
            );
        }
    }

    #[test]
    fn impossible_values_are_named() {
        for (from, to, expected) in [
            (r#""version": 1"#, r#""version": 2"#, "version 2"),
            (
                "192.168.7.10\",",
                "192.168.8.10\",",
                "network.guest: 192.168.8.10 is no host",
            ),
            (
                "192.168.7.10\",",
                "192.168.7.255\",",
                "network.guest: 192.168.7.255 is no host",
            ),
            (
                "\"dns\": \"192.168.7.2",
                "\"dns\": \"192.168.7.1",
                "used twice",
            ),
            ("9000", "100", "network.mtu: give 576 to 65521"),
            ("fd00:ce::\"", "fd00:ce::1\"", "prefix of 64 bits"),
            (
                "127.0.0.1:2222",
                "[::1]:2222",
                "no address of this network in the family",
            ),
            (
                "192.168.7.10:22",
                "10.0.2.15:22",
                "no address of this network",
            ),
            (":2222", ":0", "port 0"),
            (
                "\"restricted\": false",
                "\"restricted\": true",
                "UDP cannot be forwarded",
            ),
            (
                "\"host_loopback\": true",
                "\"host_loopback\": false",
                "need host_loopback",
            ),
            ("192.168.7.4:80", "192.168.7.1:80", "192.168.7.1 is in use"),
            ("/run/http.sock", "http.sock", "absolute path"),
            ("52:54", "53:54", "group's address"),
            (r#""control": 4"#, r#""control": 3"#, "two different"),
            (r#""hello""#, r#""/hello""#, "leading slash"),
            (
                r#""hostname": "guest""#,
                r#""hostname": "gu est""#,
                "DNS names",
            ),
        ] {
            let changed = WHOLE.replacen(from, to, 1);
            assert_ne!(changed, WHOLE, "{from}");
            let error = serde_json::from_str::<Description>(&changed)
                .map_err(|error| error.to_string())
                .and_then(|description| description.check().map_err(|error| error.to_string()));
            assert!(
                error.as_ref().is_err_and(|text| text.contains(expected)),
                "{to}: {error:?}"
            );
        }
    }

    #[test]
    fn the_pool_begins_with_the_guest_and_spares_what_is_taken() {
        let network = Network {
            guest: Ipv4Addr::new(10, 0, 2, 1),
            ..Network::default()
        };
        let pool: Vec<_> = network.pool(4).map(|address| address.octets()[3]).collect();
        assert_eq!(pool, [1, 4, 5, 6]);
    }
}
