use super::*;
use crate::{
    device::Device as _,
    virtio::testing::{BUFFERS, Driver, DriverQueue, guest_memory, wait_for},
};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
};

const TO_DRIVER: usize = 2;
const TO_DEVICE: usize = 3;

struct Guest {
    driver: Driver<Console>,
    queues: Vec<DriverQueue>,
}

fn port(name: &str, host: HostSide) -> PortOptions {
    PortOptions {
        name: name.to_owned(),
        console: name.is_empty(),
        host,
    }
}

impl Guest {
    fn new(ports: Vec<PortOptions>, features: u64) -> Self {
        let mut driver = Driver::new(Console::new("test", ports).unwrap(), guest_memory());
        let queues = driver.start(features, 64);
        let mut guest = Self { driver, queues };
        if features & F_MULTIPORT != 0 {
            for head in 0..32 {
                guest.room(TO_DRIVER, head, 64);
            }
        }
        guest
    }

    fn place(queue: usize, head: u16) -> u64 {
        BUFFERS + queue as u64 * 0x4_0000 + u64::from(head) * 0x1000
    }

    /// Gives the device room for input.
    fn room(&mut self, queue: usize, head: u16, length: u32) {
        self.queues[queue].chain(head, &[], &[(Self::place(queue, head), length)]);
        self.queues[queue].offer(head);
        self.driver.notify(queue as u16);
    }

    /// Takes what the device gave.
    fn input(&mut self, queue: usize) -> Vec<u8> {
        let (head, length) = self.queues[queue].wait_used();
        let place = Self::place(queue, head as u16);
        self.driver.bytes(place, length as usize)
    }

    fn output(&mut self, queue: usize, data: &[u8]) {
        let place = Self::place(queue, 0);
        self.driver.fill(place, data);
        self.queues[queue].chain(0, &[(place, data.len() as u32)], &[]);
        self.queues[queue].offer(0);
        self.driver.notify(queue as u16);
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.output(TO_DEVICE, &bytes);
        self.queues[TO_DEVICE].wait_used();
    }

    /// The next message: port, event, value, name.
    fn told(&mut self) -> (u32, u16, u16, String) {
        let bytes = self.input(TO_DRIVER);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let name = String::from_utf8(bytes[8..].to_vec()).unwrap();
        (word(0).into(), word(4), word(6), name)
    }
}

fn pair() -> (HostSide, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (HostSide::socket(ours.into()).unwrap(), theirs)
}

fn reads(stream: &mut UnixStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn ports_are_announced_with_names_and_carry_data_both_ways() {
    let (host, mut program) = pair();
    let ports = vec![port("", HostSide::Null), port("org.test.0", host)];
    let mut guest = Guest::new(ports, F_MULTIPORT);
    assert_eq!(guest.driver.read(0x2004, 4), 2);
    guest.say(0, 0, 1);
    assert_eq!(guest.told(), (0, 1, 1, String::new()));
    assert_eq!(guest.told(), (1, 1, 1, String::new()));
    guest.say(1, 3, 1);
    assert_eq!(guest.told(), (1, 7, 1, "org.test.0".to_owned()));
    assert_eq!(guest.told(), (1, 6, 1, String::new()));
    guest.say(0, 3, 1);
    assert_eq!(guest.told(), (0, 4, 1, String::new()), "a console");
    assert_eq!(guest.told(), (0, 6, 1, String::new()));

    guest.output(5, b"hello host");
    assert_eq!(reads(&mut program, 10), b"hello host");
    // Input waits until a program of the guest opens the port.
    program.write_all(b"hello guest").unwrap();
    guest.room(4, 0, 6);
    guest.room(4, 1, 100);
    guest.say(1, 6, 1);
    assert_eq!(guest.input(4), b"hello ");
    assert_eq!(guest.input(4), b"guest");
    drop(program);
    guest.room(4, 2, 100);
    assert_eq!(
        guest.told(),
        (1, 6, 0, String::new()),
        "the host's side went"
    );
    guest.output(5, b"to nobody");
    guest.queues[5].wait_used();
    guest.queues[5].wait_used();
}

#[test]
fn without_names_the_first_port_works_alone() {
    let (host, mut program) = pair();
    let mut guest = Guest::new(vec![port("", host)], 0);
    guest.output(1, b"plain");
    assert_eq!(reads(&mut program, 5), b"plain");
    guest.room(0, 0, 10);
    program.write_all(b"input").unwrap();
    assert_eq!(guest.input(0), b"input");
}

#[test]
fn clients_come_and_go_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let host = HostSide::socket(listener.into()).unwrap();
    let mut guest = Guest::new(vec![port("p", host)], F_MULTIPORT);
    guest.say(0, 0, 1);
    guest.told();
    guest.say(0, 3, 1);
    assert_eq!(guest.told().1, 7);
    guest.say(0, 6, 1);
    for round in 0..3u8 {
        let mut program = UnixStream::connect(&path).unwrap();
        assert_eq!(guest.told(), (0, 6, 1, String::new()));
        program.write_all(&[round]).unwrap();
        if round == 0 {
            guest.room(0, 0, 1);
        } else {
            // Beside the room that is left.
            guest.room(0, 20 + u16::from(round), 1);
        }
        assert_eq!(guest.input(0), [round]);
        guest.output(1, &[round; 3]);
        guest.queues[1].wait_used();
        assert_eq!(reads(&mut program, 3), [round; 3]);
        drop(program);
        // It is noticed when there is room for more; the room stays for the next client.
        if round == 0 {
            guest.room(0, 10, 1);
        }
        assert_eq!(guest.told(), (0, 6, 0, String::new()));
    }
}

#[test]
fn output_that_nobody_reads_holds_the_guest_back_and_survives_saving() {
    let (host, mut program) = pair();
    let mut guest = Guest::new(vec![port("", host)], 0);
    let large: Vec<u8> = (0..400_000u32).map(|i| (i / 3) as u8).collect();
    let place = BUFFERS + 0x10_0000;
    guest.driver.fill(place, &large);
    // In two requests, of which the second is taken in part at most.
    guest.queues[1].chain(0, &[(place, 1000)], &[]);
    guest.queues[1].offer(0);
    guest.queues[1].chain(1, &[(place + 1000, 399_000)], &[]);
    guest.queues[1].offer(1);
    guest.driver.notify(1);
    assert_eq!(guest.queues[1].wait_used(), (0, 0));
    wait_for("a full buffer", || {
        guest.driver.function.pause();
        let state = guest.driver.function.save().unwrap();
        guest.driver.function.resume();
        state.data["device"]["data"]["ports"][0]["taken"] != 0
    });
    assert_eq!(guest.queues[1].take_used(), None);
    guest.driver.function.pause();
    let state = guest.driver.function.save().unwrap();
    assert_eq!(guest.driver.function.save().unwrap(), state);

    // Another machine goes on with the same peer.
    let (second, mut other) = pair();
    let mut function = Driver::new(
        Console::new("test", vec![port("", second)]).unwrap(),
        guest.driver.memory.clone(),
    );
    function.function.pause();
    function.function.restore(&state).unwrap();
    function.function.resume();
    program.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let _ = program.read_to_end(&mut got);
    let mut rest = vec![0; 400_000 - got.len()];
    other.read_exact(&mut rest).unwrap();
    got.extend(rest);
    assert!(got == large, "every byte once, in order");
    assert_eq!(guest.queues[1].wait_used(), (1, 0));
}

#[test]
fn a_driver_that_talks_without_listening_is_not_listened_to() {
    let mut guest = Guest::new(vec![port("name", HostSide::Null)], 0);
    // As with several ports, but with no room for messages.
    guest.queues = guest.driver.start(F_MULTIPORT, 64);
    let place = BUFFERS;
    guest.driver.fill(place, &[0, 0, 0, 0, 3, 0, 1, 0]);
    for round in 0..400u16 {
        let head = round % 64;
        guest.queues[TO_DEVICE].describe(head, place, 8, 0, 0);
        guest.queues[TO_DEVICE].offer(head);
        guest.driver.notify(TO_DEVICE as u16);
        if round < 100 {
            guest.queues[TO_DEVICE].wait_used();
        } else if round > 200 {
            break;
        }
    }
    guest.driver.function.pause();
    let state = guest.driver.function.save().unwrap();
    let waiting = state.data["device"]["data"]["messages"]
        .as_array()
        .unwrap()
        .len();
    assert!((200..=260).contains(&waiting), "{waiting}");
}

#[test]
fn words_about_ports_that_do_not_exist_are_ignored() {
    let mut guest = Guest::new(vec![port("a", HostSide::Null)], F_MULTIPORT);
    for event in 0..20 {
        for port in [1, 31, 1 << 31, u32::MAX] {
            if event != 0 {
                guest.say(port, event, 1);
            }
        }
    }
    guest.say(0, 0, 1);
    assert_eq!(guest.told(), (0, 1, 1, String::new()));
    assert!(Console::new("none", Vec::new()).is_err());
}
