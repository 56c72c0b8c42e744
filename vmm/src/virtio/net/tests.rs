//! The device through its transport, with a socket pair as the network.

use super::*;
use crate::{
    device::Device as _,
    virtio::{
        F_EVENT_INDEX, F_INDIRECT,
        testing::{BUFFERS, Driver, DriverQueue, guest_memory},
    },
};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};
use std::{
    os::fd::OwnedFd,
    sync::atomic::AtomicUsize,
    time::{Duration, Instant},
};

const MAC: Mac = [0x52, 0x54, 0, 0, 0, 7];
const OTHER: Mac = [0x52, 0x54, 0, 0, 0, 8];
const PATIENCE: Duration = Duration::from_secs(60);
const CONTROL: u64 = BUFFERS + 0x8_0000;

struct Bench {
    driver: Driver<Net>,
    hosts: Vec<OwnedFd>,
    lost: Arc<AtomicUsize>,
}

fn bench(pairs: usize) -> Bench {
    bench_with(pairs, guest_memory())
}

fn bench_with(pairs: usize, memory: crate::memory::GuestMemory) -> Bench {
    let (mut links, mut hosts) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (guest, host) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        links.push(Link::frames(guest).unwrap());
        hosts.push(host);
    }
    let lost = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&lost);
    let options = NetOptions {
        mac: MAC,
        mtu: Some(1400),
        link_up: true,
        links,
    };
    let note = move || {
        noted.fetch_add(1, Ordering::SeqCst);
    };
    let net = Net::new("net", options, Box::new(note)).unwrap();
    Bench {
        driver: Driver::new(net, memory),
        hosts,
        lost,
    }
}

impl Bench {
    fn start(&mut self, features: u64) -> Vec<DriverQueue> {
        self.driver.enable_messages();
        // The control queue is smaller than the others.
        self.driver.start(features, CONTROL_SIZE)
    }

    fn next(&self, host: usize) -> Option<Vec<u8>> {
        let mut frame = vec![0; 70_000];
        match recv(&self.hosts[host], &mut frame[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => {
                frame.truncate(length);
                Some(frame)
            }
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn wait_next(&self, host: usize) -> Vec<u8> {
        wait("a frame", || self.next(host))
    }

    fn give(&self, host: usize, frame: &[u8]) {
        send(&self.hosts[host], frame, SendFlags::NOSIGNAL).unwrap();
    }

    fn config(&mut self, offset: u64, length: usize) -> u64 {
        self.driver.read(0x2000 + offset, length)
    }

    /// Sends a command and gives the device's answer.
    fn command(&mut self, queue: &mut DriverQueue, index: u16, bytes: &[u8]) -> u8 {
        self.driver.fill(CONTROL, bytes);
        self.driver.fill(CONTROL + 0x1_0000, &[0xee]);
        queue.chain(
            0,
            &[(CONTROL, bytes.len() as u32)],
            &[(CONTROL + 0x1_0000, 1)],
        );
        queue.offer(0);
        self.driver.notify(index);
        assert_eq!(queue.wait_used(), (0, 1));
        self.driver.bytes(CONTROL + 0x1_0000, 1)[0]
    }
}

fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        std::thread::yield_now();
    }
}

fn frame(to: Mac, length: usize) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend((6..length).map(|index| index as u8));
    frame
}

/// Makes the packet at `address` available as descriptors 0 and 1.
fn transmit(bench: &mut Bench, queue: &mut DriverQueue, frame: &[u8]) {
    bench.driver.fill(BUFFERS, &[0; HEADER]);
    bench.driver.fill(BUFFERS + 0x1000, frame);
    let parts = [
        (BUFFERS, HEADER as u32),
        (BUFFERS + 0x1000, frame.len() as u32),
    ];
    queue.chain(0, &parts, &[]);
    queue.offer(0);
    bench.driver.notify(1);
}

#[test]
fn the_guest_is_told_what_the_card_is() {
    let mut bench = bench(2);
    let offered = bench.driver.offered();
    for feature in [
        F_MAC,
        F_MTU,
        F_STATUS,
        F_MRG_RXBUF,
        F_CTRL_VQ,
        F_MQ,
        F_GUEST_ANNOUNCE,
    ] {
        assert_ne!(offered & feature, 0, "{feature:#x}");
    }
    // A socket with frames has no offloads.
    assert_eq!(
        offered & (F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_GUEST_TSO4),
        0
    );
    let mac: Vec<u8> = (0..6).map(|at| bench.config(at, 1) as u8).collect();
    assert_eq!(mac, MAC);
    assert_eq!(bench.config(6, 2), u64::from(STATUS_LINK_UP));
    assert_eq!(bench.config(8, 2), 2);
    assert_eq!(bench.config(10, 2), 1400);
}

#[test]
fn packets_go_out_without_their_header() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_EVENT_INDEX | F_INDIRECT | F_MAC);
    let sent = frame(OTHER, 1514);
    transmit(&mut bench, &mut queues[1], &sent);
    assert_eq!(bench.wait_next(0), sent);
    assert_eq!(queues[1].wait_used(), (0, 0));
    assert_eq!(
        bench.driver.function.device().statistics().sent,
        Traffic {
            packets: 1,
            bytes: 1514,
            dropped: 0
        }
    );
}

#[test]
fn packets_come_in_behind_a_header_and_over_several_buffers() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_MRG_RXBUF);
    for head in 0..4 {
        queues[0].chain(head, &[], &[(BUFFERS + 0x1000 * u64::from(head), 2048)]);
        queues[0].offer(head);
    }
    bench.driver.notify(0);
    let short = frame(MAC, 60);
    bench.give(0, &short);
    assert_eq!(queues[0].wait_used(), (0, 72));
    let header = bench.driver.bytes(BUFFERS, HEADER);
    assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bench.driver.bytes(BUFFERS + 12, 60), short);
    let long = frame(MAC, 5000);
    bench.give(0, &long);
    let used: Vec<_> = (0..3).map(|_| queues[0].wait_used()).collect();
    assert_eq!(used, [(1, 2048), (2, 2048), (3, 5012 - 4096)]);
    assert_eq!(bench.driver.bytes(BUFFERS + 0x1000 + 10, 2), [3, 0]);
    let mut got = bench.driver.bytes(BUFFERS + 0x1000 + 12, 2036);
    got.extend(bench.driver.bytes(BUFFERS + 0x2000, 2048));
    got.extend(bench.driver.bytes(BUFFERS + 0x3000, 916));
    assert_eq!(got, long);
    assert!(bench.driver.sent(1) > 0, "the driver is interrupted");
}

#[test]
fn what_finds_no_room_waits_for_it() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_MRG_RXBUF | F_EVENT_INDEX);
    for number in 0..3u8 {
        bench.give(0, &[&frame(MAC, 59)[..], &[number]].concat());
    }
    for number in 0..3u8 {
        assert_eq!(queues[0].take_used(), None);
        queues[0].chain(0, &[], &[(BUFFERS, 2048)]);
        queues[0].offer(0);
        bench.driver.notify(0);
        assert_eq!(queues[0].wait_used(), (0, 72));
        assert_eq!(bench.driver.bytes(BUFFERS + 12 + 59, 1), [number]);
    }
    // Too long for one buffer, and two are there only later.
    bench.give(0, &frame(MAC, 3000));
    queues[0].chain(0, &[], &[(BUFFERS, 2048)]);
    queues[0].offer(0);
    bench.driver.notify(0);
    bench.driver.function.pause();
    assert_eq!(queues[0].take_used(), None);
    bench.driver.function.resume();
    queues[0].chain(1, &[], &[(BUFFERS + 0x1000, 2048)]);
    queues[0].offer(1);
    bench.driver.notify(0);
    assert_eq!(queues[0].wait_used(), (0, 2048));
    assert_eq!(queues[0].wait_used(), (1, 3012 - 2048));
}

#[test]
fn buffers_that_are_too_few_are_not_taken_for_the_notification_of_more() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_MRG_RXBUF | F_EVENT_INDEX);
    for head in 0..3 {
        queues[0].chain(head, &[], &[(BUFFERS + 0x1000 * u64::from(head), 2048)]);
        queues[0].offer(head);
    }
    bench.driver.notify(0);
    bench.give(0, &frame(MAC, 7000));
    // A driver notifies only when it passes this index.
    wait("the wish for a fourth buffer", || {
        (queues[0].wanted_notification() == 3).then_some(())
    });
    queues[0].chain(3, &[], &[(BUFFERS + 0x3000, 2048)]);
    queues[0].offer(3);
    bench.driver.notify(0);
    let used: Vec<_> = (0..4).map(|_| queues[0].wait_used()).collect();
    assert_eq!(used[3], (3, 7012 - 3 * 2048));
}

#[test]
fn without_merging_a_packet_that_is_too_long_is_lost() {
    let mut bench = bench(1);
    let mut queues = bench.start(0);
    for head in 0..2 {
        queues[0].chain(head, &[], &[(BUFFERS + 0x1000 * u64::from(head), 1526)]);
        queues[0].offer(head);
    }
    bench.driver.notify(0);
    bench.give(0, &frame(MAC, 3000));
    bench.give(0, &frame(MAC, 70_000));
    bench.give(0, &frame(MAC, 1514));
    assert_eq!(queues[0].wait_used(), (0, 1526));
    assert_eq!(bench.driver.bytes(BUFFERS + 10, 2), [1, 0]);
    let received = bench.driver.function.device().statistics().received;
    assert_eq!((received.packets, received.dropped), (1, 2));
}

#[test]
fn the_sender_waits_for_a_slow_network_and_loses_nothing() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_EVENT_INDEX);
    let size = 60_000;
    bench.driver.fill(BUFFERS, &[0; HEADER]);
    bench.driver.fill(BUFFERS + 0x1000, &frame(OTHER, size));
    let count = CONTROL_SIZE / 2;
    for pair in 0..count {
        let parts = [(BUFFERS, HEADER as u32), (BUFFERS + 0x1000, size as u32)];
        queues[1].chain(pair * 2, &parts, &[]);
        queues[1].offer(pair * 2);
    }
    bench.driver.notify(1);
    // The socket takes a few; the rest waits until they are read.
    for _ in 0..count {
        assert_eq!(bench.wait_next(0).len(), size);
    }
    for pair in 0..count {
        assert_eq!(queues[1].wait_used(), (u32::from(pair) * 2, 0));
    }
    assert_eq!(bench.driver.function.device().statistics().sent.dropped, 0);
}

#[test]
fn the_end_of_the_network_takes_the_link_down_and_is_reported_once() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_STATUS);
    bench.driver.write(16, 2, 0);
    bench.hosts.clear();
    wait("the report", || {
        (bench.lost.load(Ordering::SeqCst) > 0).then_some(())
    });
    assert_eq!(bench.config(6, 2), 0);
    assert!(bench.driver.sent(0) > 0, "the driver is told");
    // The guest may go on talking to nobody.
    transmit(&mut bench, &mut queues[1], &frame(OTHER, 60));
    assert_eq!(queues[1].wait_used(), (0, 0));
    assert_eq!(bench.lost.load(Ordering::SeqCst), 1);
    assert_eq!(bench.driver.function.device().statistics().sent.dropped, 1);
}

#[test]
fn an_unplugged_cable_stops_both_directions() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_STATUS);
    bench.driver.function.device().set_link(false);
    assert_eq!(bench.config(6, 2), 0);
    transmit(&mut bench, &mut queues[1], &frame(OTHER, 60));
    assert_eq!(queues[1].wait_used(), (0, 0));
    assert_eq!(bench.next(0), None);
    queues[0].chain(0, &[], &[(BUFFERS, 2048)]);
    queues[0].offer(0);
    bench.driver.notify(0);
    bench.give(0, &frame(MAC, 60));
    bench.driver.function.device().set_link(true);
    assert_eq!(bench.config(6, 2), u64::from(STATUS_LINK_UP));
    assert_eq!(queues[0].wait_used(), (0, 72));
}

fn tables(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
    let mut bytes = vec![CLASS_MAC, 0];
    for table in [unicast, multicast] {
        bytes.extend((table.len() as u32).to_le_bytes());
        bytes.extend(table.iter().flatten());
    }
    bytes
}

const CLASS_MAC: u8 = 1;

#[test]
fn the_driver_chooses_what_it_receives() {
    let mut bench = bench(1);
    let mut queues = bench.start(F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR);
    let mut control = queues.remove(2);
    let mut receive = queues.remove(0);
    assert_eq!(bench.command(&mut control, 2, &[0, 0, 0]), 0);
    let group = [0x33, 0x33, 0, 0, 0, 1];
    assert_eq!(bench.command(&mut control, 2, &tables(&[], &[group])), 0);
    for head in 0..8 {
        receive.chain(head, &[], &[(BUFFERS + 0x1000 * u64::from(head), 2048)]);
        receive.offer(head);
    }
    bench.driver.notify(0);
    let mut head = 0;
    let mut expect = |bench: &mut Bench, to: Mac, taken: bool| {
        bench.give(0, &frame(to, 60));
        if !taken {
            // The next one that is taken comes into the next buffer.
            return;
        }
        assert_eq!(receive.wait_used(), (head, 72), "{to:?}");
        let at = BUFFERS + 0x1000 * u64::from(head) + 12;
        assert_eq!(bench.driver.bytes(at, 6), to);
        head += 1;
    };
    expect(&mut bench, OTHER, false);
    expect(&mut bench, [0x33, 0x33, 0, 0, 0, 2], false);
    expect(&mut bench, group, true);
    expect(&mut bench, [0xff; 6], true);
    expect(&mut bench, MAC, true);
    let address = [&[CLASS_MAC, 1], &OTHER[..]].concat();
    assert_eq!(bench.command(&mut control, 2, &address), 0);
    expect(&mut bench, MAC, false);
    expect(&mut bench, OTHER, true);
    let many: Vec<Mac> = (0..200).map(|index| [3, 0, 0, 0, 0, index]).collect();
    assert_eq!(bench.command(&mut control, 2, &tables(&[], &many)), 0);
    expect(&mut bench, [3, 0, 0, 0, 0, 250], true);

    let large = [&[CLASS_MAC, 0], &u32::MAX.to_le_bytes()[..], &[0; 4]].concat();
    let group_address = [&[CLASS_MAC, 1], &group[..]].concat();
    for wrong in [
        &[0, 0, 2][..],
        &[0, 0],
        &[0],
        &[],
        &[0, 6, 1],
        &[9, 9, 9],
        &[CLASS_MAC, 1, 2, 0, 0, 0, 0],
        &group_address,
        &large,
        &[4, 0, 1, 0],
        &[3, 0],
    ] {
        if !wrong.is_empty() {
            assert_eq!(bench.command(&mut control, 2, wrong), 1, "{wrong:?}");
        }
    }
}

#[test]
fn pairs_are_used_as_the_driver_says() {
    let mut bench = bench(2);
    let mut queues = bench.start(F_CTRL_VQ | F_MQ);
    let mut control = queues.remove(4);
    let mut second = queues.remove(2);
    second.chain(0, &[], &[(BUFFERS, 2048)]);
    second.offer(0);
    bench.driver.notify(2);
    bench.give(1, &frame(MAC, 60));
    assert_eq!(bench.command(&mut control, 4, &[4, 0, 0, 0]), 1);
    assert_eq!(bench.command(&mut control, 4, &[4, 0, 3, 0]), 1);
    assert_eq!(second.take_used(), None);
    assert_eq!(bench.command(&mut control, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(second.wait_used(), (0, 72));
}

/// A driver that does not know of pairs finds the control queue behind the first pair.
#[test]
fn the_control_queue_is_where_a_simple_driver_looks() {
    let mut bench = bench(2);
    let mut queues = bench.start(F_CTRL_VQ | F_CTRL_RX);
    let mut control = queues.remove(2);
    assert_eq!(bench.command(&mut control, 2, &[0, 0, 0]), 0);
}

#[test]
fn a_control_queue_that_was_not_agreed_on_is_left_alone() {
    for features in [F_MQ, F_MQ | F_MRG_RXBUF, 0] {
        let mut bench = bench(3);
        let mut queues = bench.start(features);
        transmit(&mut bench, &mut queues[1], &frame(OTHER, 60));
        assert_eq!(bench.wait_next(0).len(), 60);
    }
}

#[test]
fn packets_that_are_none_are_dropped() {
    let mut bench = bench(1);
    let mut queues = bench.start(0);
    for (index, length) in [1, 11, 12, 25, LONGEST as u32 + 1, 1 << 20]
        .into_iter()
        .enumerate()
    {
        queues[1].chain(0, &[(BUFFERS, length)], &[]);
        queues[1].offer(0);
        bench.driver.notify(1);
        assert_eq!(queues[1].wait_used(), (0, 0));
        let dropped = bench.driver.function.device().statistics().sent.dropped;
        assert_eq!(dropped, index as u64 + 1);
    }
    assert_eq!(bench.next(0), None);
    transmit(&mut bench, &mut queues[1], &frame(OTHER, 60));
    assert_eq!(bench.wait_next(0).len(), 60);
}

#[test]
fn broken_queues_need_a_reset_and_the_others_are_not_believed_either() {
    let breakages: [fn(&mut Bench, &mut [DriverQueue]); 5] = [
        |bench, queues| {
            // A buffer that cannot hold the header.
            queues[0].chain(0, &[], &[(BUFFERS, 11)]);
            queues[0].offer(0);
            bench.driver.notify(0);
            bench.give(0, &frame(MAC, 60));
        },
        |bench, queues| {
            // One that is to be read, not written.
            queues[0].chain(0, &[(BUFFERS, 2048)], &[]);
            queues[0].offer(0);
            bench.driver.notify(0);
            bench.give(0, &frame(MAC, 60));
        },
        |bench, queues| {
            queues[1].chain(0, &[(crate::virtio::testing::MEMORY - 5, 100)], &[]);
            queues[1].offer(0);
            bench.driver.notify(1);
        },
        |bench, queues| {
            queues[1].set_available(5000);
            bench.driver.notify(1);
        },
        |bench, queues| {
            // A command without room for the answer.
            queues[2].chain(0, &[(BUFFERS, 3)], &[]);
            queues[2].offer(0);
            bench.driver.notify(2);
        },
    ];
    for breakage in breakages {
        let mut bench = bench(1);
        let mut queues = bench.start(F_CTRL_VQ | F_CTRL_RX);
        breakage(&mut bench, &mut queues);
        bench.driver.wait_needs_reset();
        let mut queues = bench.start(F_CTRL_VQ | F_CTRL_RX);
        transmit(&mut bench, &mut queues[1], &frame(OTHER, 60));
        assert_eq!(bench.wait_next(0).len(), 60);
    }
}

#[test]
fn a_card_goes_on_in_another_machine_and_announces_itself() {
    let features = F_CTRL_VQ | F_CTRL_RX | F_GUEST_ANNOUNCE | F_STATUS | F_MQ | F_CTRL_MAC_ADDR;
    let mut first = bench(2);
    let mut queues = first.start(features);
    let mut control = queues.remove(4);
    assert_eq!(first.command(&mut control, 4, &[0, 0, 0]), 0);
    assert_eq!(first.command(&mut control, 4, &[4, 0, 2, 0]), 0);
    first.driver.function.pause();
    let mut transmitter = queues.remove(1);
    transmit(&mut first, &mut transmitter, &frame(OTHER, 60));
    let state = first.driver.function.save().unwrap();
    assert_eq!(first.next(0), None);

    let mut second = bench_with(2, first.driver.memory.clone());
    second.driver.function.pause();
    second.driver.function.restore(&state).unwrap();
    second.driver.function.resume();
    assert_eq!(second.wait_next(0).len(), 60);
    assert_eq!(transmitter.wait_used(), (0, 0));
    let up_and_announce = u64::from(STATUS_LINK_UP | STATUS_ANNOUNCE);
    assert_eq!(second.config(6, 2), up_and_announce);
    assert_eq!(second.command(&mut control, 4, &[3, 0]), 0);
    assert_eq!(second.config(6, 2), u64::from(STATUS_LINK_UP));
    let saved = second.driver.function.device().save().unwrap();
    let saved = NetState::load(&saved).unwrap();
    assert!(saved.pairs == 2 && !saved.filter.promiscuous);

    let mut smaller = bench(1);
    assert!(smaller.driver.function.restore(&state).is_err());
}

#[test]
fn links_are_checked() {
    let (stream, _other) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    assert!(matches!(Link::frames(stream), Err(LinkError::Socket(_))));
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(matches!(Link::tap(file), Err(LinkError::Tap(_))));
    let options = NetOptions {
        mac: MAC,
        mtu: None,
        link_up: true,
        links: Vec::new(),
    };
    assert!(Net::new("net", options, Box::new(|| {})).is_err());
}
