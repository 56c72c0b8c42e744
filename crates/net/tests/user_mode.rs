//! The user-mode network as a guest sees it, and as the host does. The servers are the
//! standard library's sockets on loopback.

#![allow(unsafe_code)] // A child gets descriptors.
#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod guest;

use guest::{Card, GATEWAY, Guest, MAC, Network, PATIENCE, at, checksum, pair};
use serde_json::json;
use std::{
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    thread,
    time::Instant,
};

/// A server that answers one request with `body`, as HTTP/1.0 does.
fn serve_http<S: std::io::Read + std::io::Write>(mut stream: S, body: &[u8]) {
    let mut request = Vec::new();
    let mut part = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut part).unwrap();
        assert_ne!(length, 0, "half a request");
        request.extend_from_slice(&part[..length]);
    }
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
}

const GET: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

fn body(answer: &[u8]) -> &[u8] {
    let start = answer
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .unwrap()
        + 4;
    assert!(answer.starts_with(b"HTTP/1.0 200"));
    &answer[start..]
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port of the host that is free for now.
fn free_port() -> u16 {
    listener().1
}

/// Nobody has connected to the listener.
fn untouched(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_guest_gets_its_address_and_the_parent_is_told() {
    let (mut network, socket) = Network::start(json!({
        "mac": "52:54:00:12:34:56",
        "boot": {"file": "pxelinux.0"},
    }));
    let mut guest = Guest::new(socket);
    let lease = guest.dhcp();
    assert_eq!(lease.address, Ipv4Addr::new(10, 0, 2, 15));
    assert_eq!(lease.option(3).unwrap(), GATEWAY.octets());
    assert_eq!(lease.option(6).unwrap(), [10, 0, 2, 3]);
    assert_eq!(lease.option(67).unwrap(), b"pxelinux.0");
    let event = network.event("lease");
    assert_eq!(event["mac"], "52:54:00:12:34:56");
    assert_eq!(event["address"], "10.0.2.15");
    assert_eq!(event["boot_file"], "pxelinux.0");
}

#[test]
fn a_guest_reaches_a_server_of_the_hosts_loopback_where_that_is_allowed() {
    let (server, port) = listener();
    let content: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    let expected = content.clone();
    let server = thread::spawn(move || serve_http(server.accept().unwrap().0, &content));
    let (mut network, socket) = Network::start(json!({"host_loopback": true}));
    let mut guest = Guest::configured(socket);
    let connection = guest
        .connect(SocketAddrV4::new(GATEWAY, port), 40_000)
        .expect("a connection");
    let answer = guest.ask(connection, GET);
    assert!(body(&answer) == expected, "{} bytes", answer.len());
    server.join().unwrap();
    let statistics = network.statistics();
    assert!(statistics["to_guest"]["bytes"].as_u64().unwrap() > 3_000_000);
    assert_eq!(statistics["to_guest"]["dropped"], 0);
}

#[test]
fn the_hosts_loopback_is_closed_unless_it_is_asked_for() {
    let (server, port) = listener();
    let (_network, socket) = Network::start(json!({"tftp": {"files": {"f": {"text": "x"}}}}));
    let mut guest = Guest::configured(socket);
    let connection = guest.begin(SocketAddrV4::new(GATEWAY, port), 40_000);
    // What is answered later was handled later.
    assert_eq!(tftp(&mut guest, 2000, "f", 512), Ok(b"x".to_vec()));
    assert!(!guest.connection(connection).established);
    untouched(&server);
}

#[test]
fn a_restricted_network_reaches_its_services_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http");
    let service = UnixListener::bind(&path).unwrap();
    let service = thread::spawn(move || {
        for _ in 0..2 {
            serve_http(service.accept().unwrap().0, b"answer file");
        }
    });
    let (server, port) = listener();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (_network, socket) = Network::start(json!({
        "restricted": true, "host_loopback": true,
        "services": [{"address": "10.0.2.4:80", "unix": path}],
        "tftp": {"files": {"f": {"text": "served"}}},
    }));
    let mut guest = Guest::new(socket);
    let lease = guest.dhcp();
    assert_eq!((lease.option(3), lease.option(6)), (None, None));

    assert!(
        guest
            .connect(SocketAddrV4::new(GATEWAY, port), 40_000)
            .is_none()
    );
    assert!(guest.connect(at([10, 0, 2, 4], 81), 40_001).is_none());
    let udp_port = datagrams.local_addr().unwrap().port();
    guest.send_to(1000, SocketAddrV4::new(GATEWAY, udp_port), b"out");
    // What comes after has been handled after it.
    for local in [40_002, 40_003] {
        let connection = guest
            .connect(at([10, 0, 2, 4], 80), local)
            .expect("the service");
        assert_eq!(body(&guest.ask(connection, GET)), b"answer file");
    }
    assert_eq!(tftp(&mut guest, 2000, "f", 512), Ok(b"served".to_vec()));
    service.join().unwrap();
    untouched(&server);
    datagrams.set_nonblocking(true).unwrap();
    assert_eq!(
        datagrams.recv(&mut [0; 16]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn ports_of_the_host_lead_to_the_guest() {
    let (tcp, udp) = (free_port(), free_port());
    let (_network, socket) = Network::start(json!({"host_loopback": true, "forwards": [
        {"host": format!("127.0.0.1:{tcp}"), "guest": "10.0.2.15:22"},
        {"protocol": "udp", "host": format!("127.0.0.1:{udp}"), "guest": "10.0.2.15:53"},
    ]}));
    let mut guest = Guest::configured(socket);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).unwrap();
        greeting
    });
    let connection = guest.accept(22);
    guest.write(connection, b"hello");
    guest.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(&client.join().unwrap(), b"hello");

    let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
    outside.set_read_timeout(Some(PATIENCE)).unwrap();
    outside.send_to(b"question", ("127.0.0.1", udp)).unwrap();
    let (from, question) = guest.receive(53);
    assert_eq!(question, b"question");
    guest.send_to(53, from, b"answer");
    let mut answer = [0; 16];
    let (length, _) = outside.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"answer");
}

/// Fetches a file over TFTP with the options that firmware uses. The error is the code.
fn tftp(guest: &mut Guest, port: u16, name: &str, block: usize) -> Result<Vec<u8>, u8> {
    let request = format!("\0\x01{name}\0octet\0tsize\x000\0blksize\0{block}\0");
    guest.send_to(port, SocketAddrV4::new(GATEWAY, 69), request.as_bytes());
    let (server, greeting) = guest.receive(port);
    if greeting[..2] == [0, 5] {
        return Err(greeting[3]);
    }
    assert_eq!(greeting[..2], [0, 6]);
    let options = String::from_utf8(greeting[2..].to_vec()).unwrap();
    let options: Vec<&str> = options.split('\0').collect();
    let value = |name| {
        let at = options.iter().position(|option| *option == name).unwrap();
        options[at + 1].parse::<usize>().unwrap()
    };
    let (block, size) = (value("blksize"), value("tsize"));
    guest.send_to(port, server, b"\0\x04\0\0");
    let mut file = Vec::new();
    loop {
        let (_, packet) = guest.receive(port);
        assert_eq!(packet[..2], [0, 3]);
        file.extend_from_slice(&packet[4..]);
        guest.send_to(port, server, &[0, 4, packet[2], packet[3]]);
        if packet.len() < block + 4 {
            assert_eq!(file.len(), size);
            return Ok(file);
        }
    }
}

#[test]
fn files_are_served_over_tftp_and_nothing_outside_the_folder_is() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("pxelinux.cfg")).unwrap();
    let kernel: Vec<u8> = (0..300_000u32).map(|index| (index % 253) as u8).collect();
    std::fs::write(root.join("vmlinuz"), &kernel).unwrap();
    std::fs::write(root.join("pxelinux.cfg/default"), "default linux").unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    symlink("../secret", root.join("link")).unwrap();
    symlink("/etc/passwd", root.join("passwd")).unwrap();
    let (mut network, socket) = Network::start(json!({
        "tftp": {"root": root, "files": {"boot.ipxe": {"text": "#!ipxe\nshell\n"}}},
    }));
    let mut guest = Guest::configured(socket);
    assert_eq!(tftp(&mut guest, 2000, "vmlinuz", 1408), Ok(kernel));
    let event = network.event("transfer");
    assert_eq!(
        (event["name"].as_str(), event["bytes"].as_u64()),
        (Some("vmlinuz"), Some(300_000))
    );
    assert_eq!(event["outcome"], "complete");
    assert_eq!(
        tftp(&mut guest, 2001, "/pxelinux.cfg/default", 9000),
        Ok(b"default linux".to_vec())
    );
    assert_eq!(
        tftp(&mut guest, 2002, "boot.ipxe", 512),
        Ok(b"#!ipxe\nshell\n".to_vec())
    );
    for (port, name) in ["../secret", "pxelinux.cfg/../../secret", "link", "passwd"]
        .iter()
        .enumerate()
    {
        assert_eq!(
            tftp(&mut guest, 2100 + port as u16, name, 512),
            Err(2),
            "{name}"
        );
        let event = loop {
            let event = network.event("transfer");
            if event["outcome"] != "complete" {
                break event;
            }
        };
        assert_eq!(event["outcome"], "forbidden");
    }
    for (port, name) in ["secret", "/etc/passwd"].iter().enumerate() {
        assert_eq!(
            tftp(&mut guest, 2200 + port as u16, name, 512),
            Err(1),
            "{name}"
        );
    }
}

#[test]
fn a_guest_that_asks_with_ipv6_finds_a_router() {
    let (_network, socket) = Network::start(json!({"network": {"ipv6": "fd00:ce::"}}));
    let card = Card(socket);
    // A neighbour solicitation (RFC 4861, 4.3) for the gateway, fd00:ce::2.
    let source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);
    let target = Ipv6Addr::new(0xfd00, 0xce, 0, 0, 0, 0, 0, 2);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1]);
    message.extend(MAC);
    let mut pseudo = [source.octets(), group.octets()].concat();
    pseudo.extend([0, 0, 0, message.len() as u8, 0, 0, 0, 58]);
    let sum = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = [0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    let frame = [
        &[0x33, 0x33, 0xff, 0, 0, 2][..],
        &MAC,
        &[0x86, 0xdd],
        &header,
        &source.octets(),
        &group.octets(),
        &message,
    ]
    .concat();
    card.send(&frame);
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "no neighbour advertisement");
        match card.next() {
            // ICMPv6 type 136 with the target's address.
            Some(frame) if frame[54] == 136 && frame[62..78] == target.octets() => return,
            Some(_) => {}
            None => thread::yield_now(),
        }
    }
}

#[test]
fn hostile_frames_are_dropped_and_the_network_goes_on() {
    let (mut network, socket) = Network::start(json!({"tftp": {"files": {"f": {"text": "x"}}}}));
    let guest = Guest::configured(socket);
    let mut noise = 0x1234_5678_u32;
    let mut random = || {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        noise
    };
    for length in [
        1, 13, 14, 20, 33, 34, 42, 59, 60, 300, 1518, 1519, 9000, 60_000,
    ] {
        for ethertype in [0x0800_u16, 0x0806, 0x86dd, 0x8100, 0xffff] {
            let mut frame: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            if length >= 14 {
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            }
            if length > 23 && ethertype == 0x0800 {
                frame[14] = 0x45;
                frame[23] = [1, 6, 17][random() as usize % 3];
            }
            guest.card.send(&frame);
        }
    }
    let mut guest = guest;
    assert_eq!(tftp(&mut guest, 2000, "f", 512), Ok(b"x".to_vec()));
    let statistics = network.statistics();
    // Two lengths below a header, three above what the network carries.
    assert_eq!(
        statistics["from_guest"]["dropped"].as_u64().unwrap() / 25,
        1,
        "{statistics}"
    );
}

#[test]
fn the_process_ends_when_the_monitor_does_and_the_monitor_sees_when_it_dies() {
    let (network, socket) = Network::start(json!({}));
    drop(socket);
    assert!(network.wait());

    let (mut network, socket) = Network::start(json!({}));
    network.kill();
    let mut buffer = [0; 16];
    let end = rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty());
    assert!(
        matches!(end, Ok((0, _)) | Err(rustix::io::Errno::CONNRESET)),
        "{end:?}"
    );
}

#[test]
fn no_port_of_the_host_is_open_that_was_not_asked_for() {
    let port = free_port();
    let (network, _socket) = Network::start(json!({
        "forwards": [{"host": format!("127.0.0.1:{port}"), "guest": "10.0.2.15:22"}],
        "tftp": {"files": {"f": {"text": "x"}}},
        "boot": {"file": "f"},
    }));
    let descriptors = format!("/proc/{}/fd", network.pid());
    // The process hides from its user; root sees it.
    let Ok(entries) = std::fs::read_dir(&descriptors) else {
        assert!(!rustix::process::geteuid().is_root());
        return;
    };
    let sockets: Vec<String> = entries
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            let name = link.to_str()?;
            Some(name.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let mut bound = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"] {
        let table = format!("/proc/{}/net/{table}", network.pid());
        let Ok(text) = std::fs::read_to_string(Path::new(&table)) else {
            continue;
        };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if sockets.iter().any(|inode| fields.contains(&inode.as_str())) {
                bound.push(fields[1].to_owned());
            }
        }
    }
    assert_eq!(bound, [format!("0100007F:{port:04X}")]);
}

#[test]
fn what_cannot_be_started_says_why() {
    let (held, port) = listener();
    let folder = tempfile::tempdir().unwrap();
    let run = |description: serde_json::Value, check: bool| {
        let file = folder.path().join("network.json");
        std::fs::write(&file, description.to_string()).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cenote-net"));
        command.arg("--network").arg(&file);
        if check {
            command.arg("--check");
        }
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    for check in [true, false] {
        let (status, text) = run(json!({"version": 1, "monitor": 77}), check);
        assert_eq!(status, Some(1));
        assert!(
            text.contains("descriptor 77 (monitor) cannot be used"),
            "{text}"
        );
        let (_, text) = run(json!({"version": 1, "monitor": 2}), check);
        assert!(
            text.contains("SEQPACKET") || text.contains("non-socket"),
            "{text}"
        );
    }
    let (_, text) = run(json!({"version": 1, "monitor": 3, "mtu": 9}), true);
    assert!(text.contains("unknown field `mtu`"), "{text}");
    let forward = json!([{"host": format!("127.0.0.1:{port}"), "guest": "10.0.2.15:22"}]);
    let text = check_with_socket(
        &json!({"version": 1, "monitor": 0, "forwards": forward}),
        folder.path(),
    );
    assert!(
        text.contains(&format!(
            "tcp port 127.0.0.1:{port} of the host cannot be opened"
        )),
        "{text}"
    );
    let text = check_with_socket(
        &json!({"version": 1, "monitor": 0, "tftp": {"root": "/nonexistent"}}),
        folder.path(),
    );
    assert!(
        text.contains("/nonexistent cannot be served over TFTP"),
        "{text}"
    );
    let text = check_with_socket(&json!({"version": 1, "monitor": 0}), folder.path());
    assert!(text.contains("the network can be started"), "{text}");
    drop(held);
}

/// Runs `--check` with a socket as standard input; gives what it printed.
fn check_with_socket(description: &serde_json::Value, folder: &Path) -> String {
    let (ours, theirs) = pair();
    let file = folder.join("network.json");
    std::fs::write(&file, description.to_string()).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_cenote-net"))
        .arg("--network")
        .arg(&file)
        .arg("--check")
        .stdin(theirs)
        .output()
        .unwrap();
    drop(ours);
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}
