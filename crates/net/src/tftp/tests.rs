//! Transfers, driven packet by packet.

use super::*;
use crate::config::{FileSource, Tftp};
use proptest::prelude::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

fn server(files: &[(&str, String)]) -> TftpServer {
    let files = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), FileSource::Text(text.clone())))
        .collect();
    let store = Store::open(&Tftp { root: None, files }).unwrap();
    TftpServer::new(store, SERVER, 1500)
}

fn letters(count: usize) -> String {
    (0..count)
        .map(|index| char::from(b'a' + (index % 26) as u8))
        .collect()
}

fn route(port: u16) -> Route {
    Route {
        source_mac: [2; 6],
        destination_mac: [4; 6],
        source: CLIENT,
        destination: SERVER,
        source_port: 2000,
        destination_port: port,
    }
}

fn ask(server: &mut TftpServer, port: u16, payload: &[u8], now: Instant) -> Output {
    server.handle(
        &Datagram {
            route: route(port),
            payload,
        },
        now,
    )
}

fn read_request(options: &str) -> Vec<u8> {
    [b"\0\x01", options.as_bytes()].concat()
}

fn acknowledgement(number: u16) -> Vec<u8> {
    [[0, 4], number.to_be_bytes()].concat()
}

/// The payloads of the output, and the port that they came from.
fn packets(output: &Output) -> Vec<(u16, Vec<u8>)> {
    let parse = |frame: &Vec<u8>| {
        let datagram = Datagram::parse(frame).unwrap();
        assert_eq!(datagram.route.destination_port, 2000);
        (datagram.route.source_port, datagram.payload.to_vec())
    };
    output.frames.iter().map(parse).collect()
}

/// Fetches a file as a client without faults does; `greeted` says that options are asked for.
fn fetch(server: &mut TftpServer, request: &str, greeted: bool) -> (Vec<u8>, Vec<u8>, Transfer) {
    let now = Instant::now();
    let mut output = ask(server, SERVER_PORT, &read_request(request), now);
    let (mut options, mut file) = (Vec::new(), Vec::new());
    if greeted {
        let (port, packet) = packets(&output).remove(0);
        assert_eq!(packet[..2], [0, 6]);
        options = packet[2..].to_vec();
        output = ask(server, port, &acknowledgement(0), now);
    }
    let mut expected = 1u16;
    loop {
        let received = packets(&output);
        let (port, _) = received[0];
        for (_, packet) in received {
            assert_eq!(packet[..2], [0, 3]);
            assert_eq!(packet[2..4], expected.to_be_bytes());
            expected = expected.wrapping_add(1);
            file.extend_from_slice(&packet[4..]);
        }
        output = ask(
            server,
            port,
            &acknowledgement(expected.wrapping_sub(1)),
            now,
        );
        if let Some(transfer) = output.ended.pop() {
            assert!(output.frames.is_empty());
            return (file, options, transfer);
        }
    }
}

#[test]
fn files_of_all_lengths_arrive() {
    for length in [0, 1, 511, 512, 513, 1024, 40_000] {
        let text = letters(length);
        let mut server = server(&[("f", text.clone())]);
        let (file, _, transfer) = fetch(&mut server, "f\0octet\0", false);
        assert_eq!(file, text.as_bytes());
        assert_eq!(
            (transfer.bytes, transfer.outcome),
            (length as u64, Outcome::Complete)
        );
        assert_eq!(server.deadline(), None);
    }
}

#[test]
fn options_are_granted_as_far_as_the_network_goes() {
    let text = letters(50_000);
    for (asked, granted) in [("1408", "1408"), ("60000", "1468"), ("8", "8")] {
        let mut server = server(&[("f", text.clone())]);
        let request =
            format!("f\0octet\0tsize\x000\0blksize\0{asked}\0windowsize\x007\0timeout\x003\0");
        let (file, options, _) = fetch(&mut server, &request, true);
        assert_eq!(file, text.as_bytes());
        let expected =
            format!("blksize\0{granted}\0tsize\x0050000\0timeout\x003\0windowsize\x007\0");
        assert_eq!(String::from_utf8(options).unwrap(), expected);
    }
}

#[test]
fn block_numbers_begin_again_in_long_files() {
    let text = letters(8 * 65_536 + 100);
    let mut server = server(&[("f", text.clone())]);
    let (file, _, _) = fetch(
        &mut server,
        "f\0octet\0blksize\x008\0windowsize\x0064\0",
        true,
    );
    assert!(file == text.as_bytes());
}

#[test]
fn lost_blocks_are_sent_again_and_a_silent_client_is_given_up() {
    let mut server = server(&[("f", letters(2000))]);
    let start = Instant::now();
    let first = ask(&mut server, SERVER_PORT, &read_request("f\0octet\0"), start);
    assert!(server.tick(start).frames.is_empty());
    let mut now = start;
    for _ in 0..REPEATS {
        now = server.deadline().unwrap();
        assert!(now > start);
        assert_eq!(packets(&server.tick(now)), packets(&first));
    }
    let given_up = server.tick(server.deadline().unwrap().max(now));
    assert_eq!(given_up.ended[0].outcome, Outcome::Lost);
    assert_eq!(server.deadline(), None);
}

#[test]
fn acknowledgements_that_are_old_or_of_the_future_change_nothing() {
    let mut server = server(&[("f", letters(2000))]);
    let now = Instant::now();
    let first = ask(&mut server, SERVER_PORT, &read_request("f\0octet\0"), now);
    let port = packets(&first)[0].0;
    for number in [0, 2, 3, 65_535] {
        let output = ask(&mut server, port, &acknowledgement(number), now);
        assert!(
            output.frames.is_empty() && output.ended.is_empty(),
            "{number}"
        );
    }
    assert_eq!(
        packets(&ask(&mut server, port, &acknowledgement(1), now))[0].1[2..4],
        [0, 2]
    );
    // The same again is not answered again.
    assert!(
        ask(&mut server, port, &acknowledgement(1), now)
            .frames
            .is_empty()
    );
}

#[test]
fn a_client_can_stop_after_the_size_and_others_cannot_meddle() {
    let mut server = server(&[("f", letters(2000))]);
    let now = Instant::now();
    let greeting = ask(
        &mut server,
        SERVER_PORT,
        &read_request("f\0octet\0tsize\x000\0"),
        now,
    );
    let port = packets(&greeting)[0].0;
    assert!(server.is_addressed(SERVER, port) && !server.is_addressed(SERVER, port + 1));
    assert!(!server.is_addressed(CLIENT, port));
    let mut other = route(port);
    other.source_port = 2001;
    let refused = server.handle(
        &Datagram {
            route: other,
            payload: &acknowledgement(0),
        },
        now,
    );
    assert_eq!(
        Datagram::parse(&refused.frames[0]).unwrap().payload[..4],
        [0, 5, 0, 5]
    );
    let ended = ask(&mut server, port, b"\0\x05\0\0done\0", now);
    assert_eq!(ended.ended[0].outcome, Outcome::Aborted);
}

#[test]
fn what_is_not_there_is_refused_by_its_code() {
    let mut server = server(&[("f", letters(2000))]);
    let now = Instant::now();
    for (request, code, outcome) in [
        ("none\0octet\0", 1, Some(Outcome::NotFound)),
        ("../f\0octet\0", 1, Some(Outcome::NotFound)),
        ("f\0netascii\0", 4, None),
    ] {
        let output = ask(&mut server, SERVER_PORT, &read_request(request), now);
        assert_eq!(packets(&output)[0].1[..4], [0, 5, 0, code]);
        assert_eq!(
            output.ended.first().map(|transfer| transfer.outcome),
            outcome
        );
    }
    let write = ask(&mut server, SERVER_PORT, b"\0\x02f\0octet\0", now);
    assert_eq!(packets(&write)[0].1[..4], [0, 5, 0, 2]);
}

#[test]
fn transfers_are_bounded() {
    let mut server = server(&[("f", letters(2000))]);
    let now = Instant::now();
    let mut lost = 0;
    for port in 0..100 {
        let mut route = route(SERVER_PORT);
        route.source_port = 3000 + port;
        let request = read_request("f\0octet\0");
        lost += server
            .handle(
                &Datagram {
                    route,
                    payload: &request,
                },
                now,
            )
            .ended
            .len();
    }
    assert_eq!(server.sessions.len(), MOST_SESSIONS);
    assert_eq!(lost, 100 - MOST_SESSIONS);
}

proptest! {
    #[test]
    fn no_sequence_makes_it_panic_or_talk_without_end(
        packets in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..30), 0u8..7), 0..40),
    ) {
        let mut server = server(&[("f", letters(3000))]);
        let mut now = Instant::now();
        for (request, bytes, opcode) in packets {
            let port = if request { SERVER_PORT } else { FIRST_PORT };
            let payload = [&[0, opcode], &bytes[..]].concat();
            let output = ask(&mut server, port, &payload, now);
            prop_assert!(output.frames.len() <= 64);
            let output = ask(&mut server, SERVER_PORT, &read_request("f\0octet\0windowsize\x0064\0"), now);
            prop_assert!(output.frames.len() <= 64);
            now += Duration::from_millis(700);
            server.tick(now);
        }
    }
}
