//! Ethernet frames with IPv4 and UDP inside, as far as our own services need them: taking apart
//! what a guest sent, and building answers.
//!
//! Everything read here was written by a guest. A frame that is not a whole, unfragmented UDP
//! datagram is no [`Datagram`]; checksums are verified where they are given (RFC 791, RFC 768).

use std::net::Ipv4Addr;

/// Length of an Ethernet header in bytes.
pub const ETHERNET: usize = 14;
/// Length of the IPv4 header that is built here, in bytes.
pub const IPV4: usize = 20;
/// Length of a UDP header in bytes.
pub const UDP: usize = 8;
/// The shortest frame that a wire carries, without its check sequence.
pub const SHORTEST: usize = 60;

const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_UDP: u8 = 17;
/// Time to live of what is built here.
const TTL: u8 = 64;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The address of every station.
pub const BROADCAST: Mac = [0xff; 6];

/// Where a datagram comes from and goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Sender's Ethernet address.
    pub source_mac: Mac,
    /// Receiver's Ethernet address.
    pub destination_mac: Mac,
    /// Sender's IPv4 address.
    pub source: Ipv4Addr,
    /// Receiver's IPv4 address.
    pub destination: Ipv4Addr,
    /// Sender's UDP port.
    pub source_port: u16,
    /// Receiver's UDP port.
    pub destination_port: u16,
}

impl Route {
    /// The way back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A UDP datagram inside a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Its addresses and ports.
    pub route: Route,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Takes a frame apart; `None` if it is not a whole UDP datagram over IPv4.
    #[must_use]
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let ethernet = frame.get(..ETHERNET)?;
        if word(ethernet, 12)? != ETHERTYPE_IPV4 {
            return None;
        }
        let ip = frame.get(ETHERNET..)?;
        let first = *ip.first()?;
        let header_length = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_length < IPV4 {
            return None;
        }
        let header = ip.get(..header_length)?;
        let total = usize::from(word(header, 2)?);
        // More fragments, or not the first one.
        let fragmented = word(header, 6)? & 0x3fff != 0;
        if fragmented || *header.get(9)? != PROTOCOL_UDP || sum(header, 0) != 0 {
            return None;
        }
        let udp = ip.get(header_length..total)?;
        let length = usize::from(word(udp, 4)?);
        let udp = udp.get(..length)?;
        let source = address(header, 12)?;
        let destination = address(header, 16)?;
        if word(udp, 6)? != 0 && udp_sum(source, destination, udp) != 0 {
            return None;
        }
        Some(Self {
            route: Route {
                source_mac: ethernet.get(6..12)?.try_into().ok()?,
                destination_mac: ethernet.get(..6)?.try_into().ok()?,
                source,
                destination,
                source_port: word(udp, 0)?,
                destination_port: word(udp, 2)?,
            },
            payload: udp.get(UDP..)?,
        })
    }
}

/// Builds the frame of a datagram; `None` if the payload does not fit into one (65,507 bytes).
#[must_use]
pub fn build(route: &Route, payload: &[u8]) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(payload.len().checked_add(UDP)?).ok()?;
    let total = udp_length.checked_add(IPV4 as u16)?;
    let mut frame = Vec::with_capacity(ETHERNET + usize::from(total));
    frame.extend_from_slice(&route.destination_mac);
    frame.extend_from_slice(&route.source_mac);
    frame.extend_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    // Version 4, five words; no service class; no identification, must not be fragmented.
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&total.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, TTL, PROTOCOL_UDP, 0, 0]);
    frame.extend_from_slice(&route.source.octets());
    frame.extend_from_slice(&route.destination.octets());
    let header = sum(&frame[ETHERNET..], 0);
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header.to_be_bytes());
    let udp = frame.len();
    frame.extend_from_slice(&route.source_port.to_be_bytes());
    frame.extend_from_slice(&route.destination_port.to_be_bytes());
    frame.extend_from_slice(&udp_length.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    // A sum of zero is sent as its other form; zero would mean that there is none.
    let checksum = match udp_sum(route.source, route.destination, &frame[udp..]) {
        0 => 0xffff,
        checksum => checksum,
    };
    frame[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
    Some(frame)
}

/// The frame's IPv4 destination and UDP destination port, without judging the rest; what a
/// service of ours is meant for must not reach another one when it is malformed.
#[must_use]
pub fn udp_target(frame: &[u8]) -> Option<(Ipv4Addr, u16)> {
    if word(frame, 12)? != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = frame.get(ETHERNET..)?;
    if *ip.get(9)? != PROTOCOL_UDP || word(ip, 6)? & 0x1fff != 0 {
        return None;
    }
    let header_length = usize::from(*ip.first()? & 0x0f) * 4;
    Some((address(ip, 16)?, word(ip, header_length + 2)?))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

/// The Internet checksum (RFC 1071) of `bytes`, beginning with `start`. Over a range that holds
/// its own right checksum it is zero.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = u64::from(start);
    for pair in bytes.chunks(2) {
        let high = u64::from(pair[0]) << 8;
        total += high + pair.get(1).copied().map_or(0, u64::from);
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn udp_sum(source: Ipv4Addr, destination: Ipv4Addr, udp: &[u8]) -> u16 {
    let mut start = u32::from(PROTOCOL_UDP) + udp.len() as u32;
    for address in [source, destination] {
        let value = u32::from(address);
        start += (value >> 16) + (value & 0xffff);
    }
    sum(udp, start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route() -> Route {
        Route {
            source_mac: [0x52, 0x54, 0, 1, 2, 3],
            destination_mac: BROADCAST,
            source: Ipv4Addr::new(10, 0, 2, 15),
            destination: Ipv4Addr::new(10, 0, 2, 2),
            source_port: 68,
            destination_port: 67,
        }
    }

    /// The example of RFC 1071, section 3.
    #[test]
    fn checksums_are_the_internets() {
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&example, 0), !0xddf2);
        assert_eq!(sum(&[0xab], 0), !0xab00);
    }

    #[test]
    fn headers_are_where_others_look_for_them() {
        let frame = build(&route(), b"odd").unwrap();
        assert_eq!(
            frame[..14],
            [255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 1, 2, 3, 8, 0]
        );
        assert_eq!(frame[14..24], [0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17]);
        assert_eq!(frame[26..34], [10, 0, 2, 15, 10, 0, 2, 2]);
        assert_eq!(frame[34..40], [0, 68, 0, 67, 0, 11]);
        assert_eq!(&frame[42..], b"odd");
    }

    #[test]
    fn damage_is_not_a_datagram() {
        let good = build(&route(), b"payload").unwrap();
        assert_eq!(Datagram::parse(&good).unwrap().payload, b"payload");
        for at in [14, 16, 20, 23, 24, 38, 44] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(Datagram::parse(&bad), None, "byte {at}");
        }
        for length in 0..good.len() {
            assert_eq!(Datagram::parse(&good[..length]), None);
        }
    }

    #[test]
    fn padding_after_the_datagram_is_not_part_of_it() {
        let mut frame = build(&route(), b"x").unwrap();
        frame.resize(SHORTEST, 0xaa);
        assert_eq!(Datagram::parse(&frame).unwrap().payload, b"x");
    }

    #[test]
    fn a_payload_that_cannot_be_sent_is_refused() {
        assert!(build(&route(), &vec![0; 65_507]).is_some());
        assert!(build(&route(), &vec![0; 65_508]).is_none());
    }

    proptest! {
        #[test]
        fn what_is_built_is_parsed(payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let frame = build(&route(), &payload).unwrap();
            let parsed = Datagram::parse(&frame).unwrap();
            prop_assert_eq!(parsed.route, route());
            prop_assert_eq!(parsed.payload, &payload[..]);
            prop_assert_eq!(udp_target(&frame), Some((route().destination, 67)));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Datagram::parse(&bytes);
            let _ = udp_target(&bytes);
        }
    }
}
