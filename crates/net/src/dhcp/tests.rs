//! The server, message by message. Clients that no one here wrote are in `tests/kvm_net.rs`.

use super::*;
use proptest::prelude::*;

/// Options by code.
type Options<'a> = &'a [(u8, &'a [u8])];

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

const GUEST: Mac = [0x52, 0x54, 0, 0, 0, 1];
const GATEWAY: Mac = [0x52, 0x55, 10, 0, 2, 2];

fn server(boot: Option<Boot>) -> DhcpServer {
    DhcpServer::new(&Network::default(), boot.as_ref(), false, GATEWAY, None)
}

fn boot() -> Boot {
    Boot {
        file: Some("pxelinux.0".into()),
        uefi_file: Some("grubx64.efi".into()),
        ipxe_file: Some("http://10.0.2.4/boot.ipxe".into()),
        ..Boot::default()
    }
}

fn message(kind: u8, mac: Mac, requested: Option<[u8; 4]>, extra: Options<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    bytes[9] = 3;
    bytes[28..34].copy_from_slice(&mac);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    let requested = requested.as_ref().map(|address| (50, &address[..]));
    let own: [(u8, &[u8]); 2] = [(53, &[kind]), (55, &[1, 3, 6, 66, 67])];
    for (code, value) in own
        .into_iter()
        .chain(requested)
        .chain(extra.iter().copied())
    {
        bytes.extend([code, value.len() as u8]);
        bytes.extend(value);
    }
    bytes.push(0xff);
    bytes
}

fn exchange(server: &mut DhcpServer, payload: &[u8]) -> Answer {
    let route = Route {
        source_mac: GUEST,
        destination_mac: BROADCAST,
        source: Ipv4Addr::UNSPECIFIED,
        destination: Ipv4Addr::BROADCAST,
        source_port: 68,
        destination_port: 67,
    };
    server.handle(&Datagram { route, payload })
}

/// The reply's payload and where it was sent.
fn reply(answer: &Answer) -> (Route, Vec<u8>) {
    let frame = answer.frame.as_ref().expect("an answer");
    let datagram = Datagram::parse(frame).expect("a datagram");
    (datagram.route, datagram.payload.to_vec())
}

fn option_of(payload: &[u8], code: u8) -> Option<Vec<u8>> {
    let mut rest = &payload[240..];
    loop {
        let (&found, after) = rest.split_first()?;
        if found == 0xff {
            return None;
        }
        let (&length, after) = after.split_first()?;
        let (value, after) = after.split_at(length.into());
        if found == code {
            return Some(value.to_vec());
        }
        rest = after;
    }
}

#[test]
fn discover_and_request_give_the_guest_its_address() {
    let mut server = server(Some(boot()));
    let offer = exchange(&mut server, &message(DISCOVER, GUEST, None, &[]));
    assert_eq!(offer.lease, None);
    let (route, payload) = reply(&offer);
    assert_eq!(route.destination_mac, GUEST);
    assert_eq!(route.destination, Ipv4Addr::new(10, 0, 2, 15));
    assert_eq!(payload[..3], [2, 1, 6]);
    assert_eq!(payload[4..8], 0x1234_5678u32.to_be_bytes());
    assert_eq!(payload[16..20], [10, 0, 2, 15]);
    assert_eq!(payload[20..24], [10, 0, 2, 2]);
    assert_eq!(payload[28..34], GUEST);
    assert_eq!(payload[108..119], *b"pxelinux.0\0");
    for (code, expected) in [
        (1, &[255, 255, 255, 0][..]),
        (3, &[10, 0, 2, 2]),
        (6, &[10, 0, 2, 3]),
        (26, &[5, 220]),
        (51, &[0, 1, 0x51, 0x80]),
        (53, &[OFFER]),
        (54, &[10, 0, 2, 2]),
        (66, b"10.0.2.2"),
        (67, b"pxelinux.0"),
    ] {
        assert_eq!(
            option_of(&payload, code).unwrap(),
            expected,
            "option {code}"
        );
    }

    let wanted = Some([10, 0, 2, 15]);
    let ack = exchange(&mut server, &message(REQUEST, GUEST, wanted, &[]));
    let (_, payload) = reply(&ack);
    assert_eq!(option_of(&payload, 53).unwrap(), [ACK]);
    let lease = ack.lease.unwrap();
    assert_eq!(
        (lease.mac, lease.address),
        (GUEST, Ipv4Addr::new(10, 0, 2, 15))
    );
    assert_eq!(lease.boot_file.as_deref(), Some("pxelinux.0"));
}

#[test]
fn each_firmware_gets_its_boot_file() {
    let mut server = server(Some(boot()));
    let cases: [(Options<'_>, &str); 4] = [
        (&[], "pxelinux.0"),
        (&[(93, &[0, 0])], "pxelinux.0"),
        (&[(93, &[0, 7])], "grubx64.efi"),
        (&[(77, b"iPXE"), (93, &[0, 7])], "http://10.0.2.4/boot.ipxe"),
    ];
    for (options, expected) in cases {
        let offer = exchange(&mut server, &message(DISCOVER, GUEST, None, options));
        let (_, payload) = reply(&offer);
        assert_eq!(option_of(&payload, 67).unwrap(), expected.as_bytes());
    }
}

#[test]
fn a_wrong_address_is_refused_to_everyone() {
    let mut server = server(None);
    let wrong = Some([192, 168, 1, 5]);
    let nak = exchange(&mut server, &message(REQUEST, GUEST, wrong, &[]));
    let (route, payload) = reply(&nak);
    assert_eq!(route.destination, Ipv4Addr::BROADCAST);
    assert_eq!(option_of(&payload, 53).unwrap(), [6]);
    assert_eq!(nak.lease, None);
}

#[test]
fn another_servers_client_is_left_alone() {
    let mut server = server(None);
    let other: [(u8, &[u8]); 1] = [(54, &[10, 0, 2, 77])];
    let wanted = Some([10, 0, 2, 15]);
    let none = exchange(&mut server, &message(REQUEST, GUEST, wanted, &other));
    assert_eq!(none, Answer::default());
}

#[test]
fn the_guests_address_is_kept_for_its_mac_and_leases_are_bounded() {
    let network = Network::default();
    let mut server = DhcpServer::new(&network, None, false, GATEWAY, Some(GUEST));
    let mut seen = Vec::new();
    for index in 0..100u8 {
        let mac = [2, 0, 0, 0, 0, index];
        let offer = exchange(&mut server, &message(DISCOVER, mac, None, &[]));
        let (route, _) = reply(&offer);
        assert_ne!(route.destination, network.guest);
        assert!(network.contains(route.destination));
        seen.push(route.destination);
    }
    assert!(server.leases.len() <= MOST_LEASES);
    let offer = exchange(&mut server, &message(DISCOVER, GUEST, None, &[]));
    assert_eq!(reply(&offer).0.destination, network.guest);
}

#[test]
fn a_restricted_network_names_neither_router_nor_name_server() {
    let mut server = DhcpServer::new(&Network::default(), None, true, GATEWAY, None);
    let offer = exchange(&mut server, &message(DISCOVER, GUEST, None, &[]));
    let (_, payload) = reply(&offer);
    assert_eq!(option_of(&payload, 3), None);
    assert_eq!(option_of(&payload, 6), None);
    assert!(option_of(&payload, 1).is_some());
}

#[test]
fn a_search_list_is_encoded_as_dns_names() {
    assert_eq!(
        search_list(&["a.bc".to_owned(), "d".to_owned()]),
        b"\x01a\x02bc\x00\x01d\x00"
    );
}

#[test]
fn damaged_messages_are_not_answered() {
    let mut server = server(None);
    let good = message(DISCOVER, GUEST, None, &[]);
    assert!(exchange(&mut server, &good).frame.is_some());
    for (at, value) in [(0, 2), (1, 6), (2, 200), (236, 0), (28, 0x01)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(exchange(&mut server, &bad), Answer::default(), "byte {at}");
    }
    for length in 0..240 {
        assert_eq!(exchange(&mut server, &good[..length]), Answer::default());
    }
    // An option that goes beyond the message.
    let mut bad = good[..240].to_vec();
    bad.extend_from_slice(&[53, 1, 1, 12, 200, b'x']);
    assert_eq!(exchange(&mut server, &bad), Answer::default());
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(
        options in proptest::collection::vec(any::<u8>(), 0..200),
        byte in any::<u8>(), at in 0usize..240,
    ) {
        let mut server = server(Some(boot()));
        let mut bytes = message(REQUEST, GUEST, None, &[]);
        bytes.truncate(240);
        bytes[at] = byte;
        bytes.extend_from_slice(&options);
        let answer = exchange(&mut server, &bytes);
        if let Some(frame) = answer.frame {
            prop_assert!(Datagram::parse(&frame).is_some());
        }
    }
}
