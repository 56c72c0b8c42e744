//! DHCP and TFTP of the user-mode network under anything that a guest sends.
#![no_main]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use cenote_fuzz::source::Source;
use cenote_net::config::{Boot, FileSource, Network, Tftp};
use cenote_net::dhcp::{self, DhcpServer};
use cenote_net::frame::{self, BROADCAST, Datagram, Route};
use cenote_net::tftp::{self, Store, TftpServer};
use libfuzzer_sys::fuzz_target;

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
/// The most frames that one datagram or tick leads to: a window for each transfer.
const MOST_FRAMES: usize = 16 * 64 + 16;

fn files() -> Store {
    let text = |length| FileSource::Text("t".repeat(length));
    let files = [("empty", 0), ("short", 5), ("block", 512), ("long", 70_000)];
    let tftp = Tftp {
        root: None,
        files: files
            .map(|(name, length)| (name.to_owned(), text(length)))
            .into(),
    };
    Store::open(&tftp).expect("texts are always there")
}

/// A request for a file with options, most of them meant seriously.
fn read_request(source: &mut Source<'_>) -> Vec<u8> {
    let names: [&[u8]; 6] = [b"empty", b"short", b"block", b"long", b"none", b"/../long"];
    let options: [&[u8]; 6] = [
        b"blksize",
        b"tsize",
        b"timeout",
        b"windowsize",
        b"WindowSize",
        b"odd",
    ];
    let mut bytes = vec![0, 1];
    bytes.extend(names[usize::from(source.byte()) % names.len()]);
    bytes.extend(b"\0octet\0");
    for _ in 0..source.byte() % 5 {
        bytes.extend(options[usize::from(source.byte()) % options.len()]);
        bytes.push(0);
        let value = u64::from(source.short());
        let value = if source.byte() == 0xff {
            source.word()
        } else {
            value
        };
        bytes.extend(value.to_string().bytes());
        bytes.push(0);
    }
    bytes
}

/// A message that begins as DHCP's do.
fn dhcp_message(source: &mut Source<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[10] = source.byte();
    bytes[12..16].copy_from_slice(&[10, 0, 2, source.byte() & 0x1f]);
    if source.byte() & 1 == 0 {
        bytes[12..16].fill(0);
    }
    bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, source.byte() % 24]);
    bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, source.byte() % 10]);
    for _ in 0..source.byte() % 6 {
        let code = [0, 12, 50, 52, 54, 55, 61, 77, 93, 175, 255];
        bytes.push(code[usize::from(source.byte()) % code.len()]);
        let length = source.byte();
        bytes.push(length);
        bytes.extend(source.bytes(usize::from(length % 40)));
    }
    bytes
}

fn route(source: &mut Source<'_>, port: u16) -> Route {
    let client = 1024 + u16::from(source.byte() % 24);
    Route {
        source_mac: GUEST,
        destination_mac: BROADCAST,
        source: Ipv4Addr::new(10, 0, 2, 15),
        destination: Ipv4Addr::new(10, 0, 2, 2),
        source_port: client,
        destination_port: port,
    }
}

/// Anything that is answered can be taken apart again.
fn check(frames: &[Vec<u8>], mtu: u16) {
    assert!(frames.len() <= MOST_FRAMES, "{} frames", frames.len());
    for frame in frames {
        assert!(Datagram::parse(frame).is_some());
        assert!(frame.len() <= frame::ETHERNET + usize::from(mtu));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut source = Source::new(input);
    let network = Network {
        mtu: 576 + source.short() % 1000,
        hostname: Some("guest".to_owned()),
        search: vec!["example.org".to_owned()],
        ..Network::default()
    };
    let boot = Boot {
        file: Some("pxelinux.0".to_owned()),
        ipxe_file: Some("http://10.0.2.4/boot.ipxe".to_owned()),
        ..Boot::default()
    };
    let mac = network.gateway_mac();
    let mut dhcp = DhcpServer::new(&network, Some(&boot), false, mac, Some(GUEST));
    let mut tftp = TftpServer::new(files(), network.gateway, network.mtu);
    let mut now = Instant::now();
    while !source.is_empty() {
        let what = source.byte();
        let (port, payload) = match what % 8 {
            0 => (tftp::SERVER_PORT, read_request(&mut source)),
            1 | 2 => {
                let port = 50_000 + u16::from(source.byte() % 32);
                (port, vec![0, 4, source.byte() & 1, source.byte()])
            }
            3 => (50_000 + u16::from(source.byte() % 32), vec![0, 5, 0, 0]),
            4 => (dhcp::SERVER_PORT, dhcp_message(&mut source)),
            5 => {
                let ports = [tftp::SERVER_PORT, dhcp::SERVER_PORT, 50_000];
                let port = ports[usize::from(source.byte()) % 3];
                let length = usize::from(source.byte());
                (port, source.bytes(length).to_vec())
            }
            6 => {
                now += Duration::from_millis(source.short().into());
                check(&tftp.tick(now).frames, network.mtu);
                continue;
            }
            _ => {
                // A frame that need not be one.
                let length = usize::from(source.byte());
                let bytes = source.bytes(length);
                let _ = frame::udp_target(bytes);
                let _ = Datagram::parse(bytes);
                continue;
            }
        };
        let Some(frame) = frame::build(&route(&mut source, port), &payload) else {
            continue;
        };
        let datagram = Datagram::parse(&frame).expect("what is built can be parsed");
        if port == dhcp::SERVER_PORT {
            let answer = dhcp.handle(&datagram);
            check(answer.frame.as_slice(), u16::MAX);
            if let Some(lease) = answer.lease {
                assert!(network.contains(lease.address));
            }
        } else if tftp.is_addressed(datagram.route.destination, port) {
            check(&tftp.handle(&datagram, now).frames, network.mtu);
        }
    }
});
