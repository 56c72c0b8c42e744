//! DHCP messages (RFC 2131, RFC 2132): reading what a guest sent, writing answers.

use crate::frame::Mac;
use std::net::Ipv4Addr;

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Length of the fixed part with the cookie.
const FIXED: usize = 240;
/// The shortest answer; old BOOTP clients drop shorter ones (RFC 1542, 2.1).
const SHORTEST: usize = 300;
const SERVER_NAME: usize = 44;
const BOOT_FILE: usize = 108;
const BOOT_FILE_LENGTH: usize = 128;

/// Option codes.
pub(super) mod option {
    pub(in crate::dhcp) const SUBNET_MASK: u8 = 1;
    pub(in crate::dhcp) const ROUTER: u8 = 3;
    pub(in crate::dhcp) const NAME_SERVER: u8 = 6;
    pub(in crate::dhcp) const HOST_NAME: u8 = 12;
    pub(in crate::dhcp) const DOMAIN_NAME: u8 = 15;
    pub(in crate::dhcp) const INTERFACE_MTU: u8 = 26;
    pub(in crate::dhcp) const REQUESTED_ADDRESS: u8 = 50;
    pub(in crate::dhcp) const LEASE_TIME: u8 = 51;
    pub(in crate::dhcp) const MESSAGE_TYPE: u8 = 53;
    pub(in crate::dhcp) const SERVER: u8 = 54;
    pub(in crate::dhcp) const TFTP_SERVER: u8 = 66;
    pub(in crate::dhcp) const BOOT_FILE: u8 = 67;
    /// RFC 3004.
    pub(in crate::dhcp) const USER_CLASS: u8 = 77;
    /// RFC 4578: the client's architecture.
    pub(in crate::dhcp) const ARCHITECTURE: u8 = 93;
    /// RFC 3397.
    pub(in crate::dhcp) const DOMAIN_SEARCH: u8 = 119;
    /// iPXE's encapsulated options; only iPXE sends them.
    pub(in crate::dhcp) const IPXE: u8 = 175;
    pub(super) const PAD: u8 = 0;
    pub(super) const END: u8 = 255;
}

/// DHCP message types that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageType {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

impl MessageType {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
        }
    }
}

/// What a client is, as far as it decides what it boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Firmware {
    /// A BIOS, or something that does not say.
    Bios,
    /// UEFI (any architecture of RFC 4578 but 0).
    Uefi,
    /// iPXE, whatever it runs on.
    Ipxe,
}

/// A client's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    pub(super) transaction: u32,
    pub(super) seconds: u16,
    pub(super) broadcast: bool,
    /// The address that the client has (`ciaddr`).
    pub(super) current: Ipv4Addr,
    pub(super) mac: Mac,
    /// The address that it wants (option 50).
    pub(super) requested: Option<Ipv4Addr>,
    /// The server that it has chosen (option 54).
    pub(super) server: Option<Ipv4Addr>,
    pub(super) firmware: Firmware,
    pub(super) host_name: Option<String>,
}

impl Request {
    /// Reads a message; `None` if it is not a whole DHCP message of an Ethernet client.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.get(..FIXED)?;
        if fixed[0] != BOOT_REQUEST || fixed[1] != ETHERNET || fixed[2] != 6 {
            return None;
        }
        if fixed[236..240] != COOKIE {
            return None;
        }
        let mac: Mac = fixed[28..34].try_into().ok()?;
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return None; // A group's address, or none, is no client.
        }
        let mut request = Self {
            kind: MessageType::Discover,
            transaction: u32::from_be_bytes(fixed[4..8].try_into().ok()?),
            seconds: u16::from_be_bytes(fixed[8..10].try_into().ok()?),
            broadcast: fixed[10] & 0x80 != 0,
            current: address(&fixed[12..16])?,
            mac,
            requested: None,
            server: None,
            firmware: Firmware::Bios,
            host_name: None,
        };
        let mut kind = None;
        for (code, value) in Options(&bytes[FIXED..]) {
            let value = value?;
            match code {
                option::MESSAGE_TYPE => kind = MessageType::from_code(*value.first()?),
                option::REQUESTED_ADDRESS => request.requested = Some(address(value)?),
                option::SERVER => request.server = Some(address(value)?),
                option::IPXE => request.firmware = Firmware::Ipxe,
                option::USER_CLASS if has_ipxe(value) => request.firmware = Firmware::Ipxe,
                option::ARCHITECTURE
                    if request.firmware != Firmware::Ipxe && value.get(..2)? != [0, 0] =>
                {
                    request.firmware = Firmware::Uefi;
                }
                option::HOST_NAME => request.host_name = host_name(value),
                _ => {}
            }
        }
        request.kind = kind?;
        Some(request)
    }
}

/// iPXE sends its user class as plain text, not as RFC 3004's list.
fn has_ipxe(user_class: &[u8]) -> bool {
    user_class == b"iPXE" || user_class.strip_prefix(&[4]) == Some(b"iPXE")
}

/// A name that can be shown; others are left out.
fn host_name(value: &[u8]) -> Option<String> {
    let fit = !value.is_empty()
        && value
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    fit.then(|| String::from_utf8_lossy(value).into_owned())
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = bytes.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

/// Options up to the end mark; `None` for one that goes beyond the message.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&code, rest) = self.0.split_first()?;
            match code {
                option::PAD => self.0 = rest,
                option::END => return None,
                _ => {
                    let value = rest
                        .split_first()
                        .and_then(|(&length, rest)| rest.split_at_checked(length.into()));
                    self.0 = value.map_or(&[], |(_, rest)| rest);
                    return Some((code, value.map(|(value, _)| value)));
                }
            }
        }
    }
}

/// An answer being written.
pub(super) struct Reply(Vec<u8>);

impl Reply {
    /// An answer to `request` that gives it `address`.
    pub(super) fn new(request: &Request, kind: MessageType, address: Ipv4Addr) -> Self {
        let mut bytes = vec![0; FIXED];
        bytes[0] = BOOT_REPLY;
        bytes[1] = ETHERNET;
        bytes[2] = 6;
        bytes[4..8].copy_from_slice(&request.transaction.to_be_bytes());
        bytes[8..10].copy_from_slice(&request.seconds.to_be_bytes());
        bytes[10] = if request.broadcast { 0x80 } else { 0 };
        if kind == MessageType::Ack {
            bytes[12..16].copy_from_slice(&request.current.octets());
        }
        bytes[16..20].copy_from_slice(&address.octets());
        bytes[28..34].copy_from_slice(&request.mac);
        bytes[236..240].copy_from_slice(&COOKIE);
        let mut reply = Self(bytes);
        reply.option(option::MESSAGE_TYPE, &[kind.code()]);
        reply
    }

    /// Where the client boots from: `siaddr`, `sname` and `file`, and the same as options.
    pub(super) fn boot(&mut self, server: Ipv4Addr, name: Option<&str>, file: &str) {
        self.0[20..24].copy_from_slice(&server.octets());
        let name = name.map_or_else(|| server.to_string(), str::to_owned);
        if name.len() < BOOT_FILE - SERVER_NAME {
            self.0[SERVER_NAME..SERVER_NAME + name.len()].copy_from_slice(name.as_bytes());
        }
        // A longer name, such as a URL, is in the option only; the field ends with a zero byte.
        if file.len() < BOOT_FILE_LENGTH {
            self.0[BOOT_FILE..BOOT_FILE + file.len()].copy_from_slice(file.as_bytes());
        }
        self.option(option::TFTP_SERVER, name.as_bytes());
        self.option(option::BOOT_FILE, file.as_bytes());
    }

    /// Appends an option; values beyond 255 bytes are split as RFC 3396 has it.
    pub(super) fn option(&mut self, code: u8, value: &[u8]) {
        for part in value.chunks(255) {
            self.0.push(code);
            self.0.push(part.len() as u8);
            self.0.extend_from_slice(part);
        }
    }

    /// The message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.push(option::END);
        if self.0.len() < SHORTEST {
            self.0.resize(SHORTEST, option::PAD);
        }
        self.0
    }
}
