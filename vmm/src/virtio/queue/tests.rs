use super::*;
use crate::virtio::testing::{
    BUFFERS, DriverQueue, INDIRECT, MEMORY, NEXT as NEXT_FLAG, WRITE as WRITE_FLAG, chain,
    guest_memory,
};
use proptest::prelude::*;

const ALL: u64 = F_EVENT_INDEX | F_INDIRECT;

fn pair(size: u16, features: u64) -> (GuestMemory, DriverQueue, Virtqueue) {
    let memory = guest_memory();
    let driver = DriverQueue::new(&memory, 0, size);
    let position = QueuePosition::default();
    let queue = Virtqueue::new(driver.layout, position, features, &memory).unwrap();
    (memory, driver, queue)
}

fn segment(address: u64, length: u32) -> Segment {
    Segment { address, length }
}

/// The error of the first request, which stays an error.
fn refused(memory: &GuestMemory, queue: &mut Virtqueue) -> QueueError {
    let error = queue.pop(memory, &mut chain()).unwrap_err();
    assert_eq!(queue.pop(memory, &mut chain()), Err(error));
    error
}

#[test]
fn requests_come_and_go_in_order_round_the_ring() {
    let (memory, mut driver, mut queue) = pair(4, 0);
    let mut chain = chain();
    for round in 0..70_000u32 {
        let head = (round % 4) as u16;
        driver.chain(head, &[(BUFFERS, 16)], &[(BUFFERS + 64, 8)]);
        driver.offer(head);
        assert_eq!(queue.pop(&memory, &mut chain), Ok(true));
        assert_eq!(chain.head, head);
        assert_eq!(chain.readable, [segment(BUFFERS, 16)]);
        assert_eq!(chain.writable, [segment(BUFFERS + 64, 8)]);
        assert_eq!(queue.pop(&memory, &mut Chain::default()), Ok(false));
        queue.push(&memory, head, round).unwrap();
        assert!(driver.take_used().is_none(), "not published yet");
        assert_eq!(queue.publish(&memory), Ok(true));
        assert_eq!(driver.take_used(), Some((head.into(), round)));
    }
    assert_eq!(queue.position().next_used, 70_000u32 as u16);
}

#[test]
fn a_request_put_back_comes_again() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    driver.chain(3, &[(BUFFERS, 1)], &[]);
    driver.offer(3);
    assert_eq!(queue.pop(&memory, &mut chain()), Ok(true));
    queue.put_back();
    assert_eq!(queue.has_more(&memory), Ok(true));
    let mut again = chain();
    assert_eq!(queue.pop(&memory, &mut again), Ok(true));
    assert_eq!(again.head, 3);
}

#[test]
fn indirect_tables_are_followed() {
    let (memory, mut driver, mut queue) = pair(8, ALL);
    let table = BUFFERS + 0x1001;
    driver.describe(0, BUFFERS, 32, NEXT_FLAG, 5);
    driver.describe(5, table, 3 * 16, INDIRECT, 0);
    driver.describe_in(table, 0, BUFFERS + 100, 8, NEXT_FLAG, 2);
    driver.describe_in(table, 2, BUFFERS + 200, 0, NEXT_FLAG, 1);
    driver.describe_in(table, 1, BUFFERS + 300, 9, WRITE_FLAG, 7);
    driver.offer(0);
    let mut chain = chain();
    assert_eq!(queue.pop(&memory, &mut chain), Ok(true));
    assert_eq!(
        chain.readable,
        [segment(BUFFERS, 32), segment(BUFFERS + 100, 8)]
    );
    assert_eq!(
        chain.writable,
        [segment(BUFFERS + 300, 9)],
        "empty buffers are left out"
    );
}

#[test]
fn chains_that_go_round_or_astray_are_refused() {
    type Case = (&'static str, fn(&DriverQueue), QueueError);
    let cases: [Case; 12] = [
        (
            "itself",
            |d| d.describe(0, BUFFERS, 1, NEXT_FLAG, 0),
            QueueError::Long(0),
        ),
        (
            "circle of empty buffers",
            |d| {
                d.describe(0, BUFFERS, 0, NEXT_FLAG, 1);
                d.describe(1, BUFFERS, 0, NEXT_FLAG, 0);
            },
            QueueError::Long(0),
        ),
        (
            "beyond the table",
            |d| d.describe(0, BUFFERS, 1, NEXT_FLAG, 8),
            QueueError::Descriptor(8),
        ),
        (
            "beyond memory",
            |d| d.describe(0, MEMORY - 1, 2, 0, 0),
            QueueError::Buffer {
                address: MEMORY - 1,
                length: 2,
            },
        ),
        (
            "into the video window",
            |d| d.describe(0, 0x9_ffff, 2, WRITE_FLAG, 0),
            QueueError::Buffer {
                address: 0x9_ffff,
                length: 2,
            },
        ),
        (
            "round the end of the address space",
            |d| d.describe(0, u64::MAX, 2, 0, 0),
            QueueError::Buffer {
                address: u64::MAX,
                length: 2,
            },
        ),
        (
            "huge",
            |d| d.describe(0, BUFFERS, u32::MAX, 0, 0),
            QueueError::Buffer {
                address: BUFFERS,
                length: u32::MAX,
            },
        ),
        (
            "read after write",
            |d| {
                d.describe(0, BUFFERS, 1, NEXT_FLAG | WRITE_FLAG, 1);
                d.describe(1, BUFFERS, 1, 0, 0);
            },
            QueueError::Order(0),
        ),
        (
            "a table in a table",
            |d| {
                d.describe(0, BUFFERS, 16, INDIRECT, 0);
                d.describe_in(BUFFERS, 0, BUFFERS, 16, INDIRECT, 0);
            },
            QueueError::Indirect(0),
        ),
        (
            "a table of half an entry",
            |d| d.describe(0, BUFFERS, 24, INDIRECT, 0),
            QueueError::Indirect(0),
        ),
        (
            "an empty table",
            |d| d.describe(0, BUFFERS, 0, INDIRECT, 0),
            QueueError::Indirect(0),
        ),
        (
            "a table that is not the end",
            |d| d.describe(0, BUFFERS, 16, INDIRECT | NEXT_FLAG, 1),
            QueueError::Indirect(0),
        ),
    ];
    for (what, describe, expected) in cases {
        let (memory, mut driver, mut queue) = pair(8, ALL);
        describe(&driver);
        driver.offer(0);
        assert_eq!(refused(&memory, &mut queue), expected, "{what}");
    }
}

#[test]
fn a_table_is_refused_where_none_was_agreed_on() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    driver.describe(0, BUFFERS, 16, INDIRECT, 0);
    driver.offer(0);
    assert_eq!(refused(&memory, &mut queue), QueueError::Indirect(0));
}

#[test]
fn a_chain_larger_than_4_gib_is_refused() {
    let (memory, mut driver, mut queue) = pair(1024, 0);
    // 600 times the same 8 MiB less what lies below them.
    for index in 0..600 {
        driver.describe(
            index,
            BUFFERS,
            (MEMORY - BUFFERS) as u32,
            NEXT_FLAG,
            index + 1,
        );
    }
    driver.describe(600, BUFFERS, 1, 0, 0);
    driver.offer(0);
    assert_eq!(refused(&memory, &mut queue), QueueError::Large(0));
}

#[test]
fn indices_that_jump_are_refused() {
    for jump in [9u16, 100, 0x8000, 0xffff] {
        let (memory, driver, mut queue) = pair(8, 0);
        driver.set_available(jump);
        let expected = QueueError::Available {
            found: jump,
            expected: 0,
        };
        assert_eq!(refused(&memory, &mut queue), expected);
    }
    let (memory, mut driver, mut queue) = pair(8, 0);
    driver.offer(8);
    assert_eq!(refused(&memory, &mut queue), QueueError::Descriptor(8));
}

#[test]
fn rings_must_be_aligned_and_in_memory() {
    let memory = guest_memory();
    let good = DriverQueue::new(&memory, 0, 256).layout;
    let try_layout = |change: &dyn Fn(&mut QueueLayout)| {
        let mut layout = good;
        change(&mut layout);
        Virtqueue::new(layout, QueuePosition::default(), 0, &memory).map(|_| ())
    };
    assert_eq!(try_layout(&|_| ()), Ok(()));
    for size in [0, 3, 255, 32769, u16::MAX] {
        assert_eq!(try_layout(&|l| l.size = size), Err(QueueError::Size(size)));
    }
    assert_eq!(
        try_layout(&|l| l.descriptors += 8),
        Err(QueueError::Alignment(good.descriptors + 8))
    );
    assert_eq!(
        try_layout(&|l| l.available += 1),
        Err(QueueError::Alignment(good.available + 1))
    );
    assert_eq!(
        try_layout(&|l| l.used += 2),
        Err(QueueError::Alignment(good.used + 2))
    );
    for place in [0x9_ff00, 0xa_0000, MEMORY - 0x100, !0xfff, 1 << 40] {
        assert_eq!(
            try_layout(&|l| l.descriptors = place),
            Err(QueueError::Ring(place))
        );
        assert_eq!(
            try_layout(&|l| l.available = place),
            Err(QueueError::Ring(place))
        );
        assert_eq!(
            try_layout(&|l| l.used = place),
            Err(QueueError::Ring(place))
        );
    }
}

#[test]
fn interrupts_are_sent_when_the_driver_wants_them() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    let mut serve = |driver: &mut DriverQueue| {
        driver.chain(0, &[(BUFFERS, 1)], &[]);
        driver.offer(0);
        assert_eq!(queue.pop(&memory, &mut chain()), Ok(true));
        queue.push(&memory, 0, 0).unwrap();
        queue.publish(&memory).unwrap()
    };
    assert!(serve(&mut driver));
    driver.set_available_flags(NO_INTERRUPT);
    assert!(!serve(&mut driver));

    let (memory, mut driver, mut queue) = pair(8, ALL);
    let mut serve = |driver: &mut DriverQueue, count: u16| {
        for _ in 0..count {
            driver.chain(0, &[(BUFFERS, 1)], &[]);
            driver.offer(0);
            assert_eq!(queue.pop(&memory, &mut chain()), Ok(true));
            queue.push(&memory, 0, 0).unwrap();
        }
        queue.publish(&memory).unwrap()
    };
    assert!(serve(&mut driver, 1), "the first is always told");
    driver.set_used_event(4);
    assert!(!serve(&mut driver, 1));
    assert!(!serve(&mut driver, 2));
    assert!(serve(&mut driver, 3), "crosses the wanted index");
    assert!(!serve(&mut driver, 1));
    assert!(!serve(&mut driver, 0), "nothing new");
}

#[test]
fn notifications_are_asked_for_and_spared() {
    let (memory, mut driver, mut queue) = pair(8, 0);
    let flags = |memory: &GuestMemory, driver: &DriverQueue| -> u16 {
        memory.read_obj(GuestAddress(driver.layout.used)).unwrap()
    };
    queue.spare_notifications(&memory).unwrap();
    assert_eq!(flags(&memory, &driver), NO_NOTIFY);
    assert_eq!(queue.want_notifications(&memory), Ok(false));
    assert_eq!(flags(&memory, &driver), 0);
    driver.chain(0, &[(BUFFERS, 1)], &[]);
    driver.offer(0);
    assert_eq!(queue.want_notifications(&memory), Ok(true));

    let (memory, mut driver, mut queue) = pair(8, ALL);
    driver.chain(0, &[(BUFFERS, 1)], &[]);
    driver.offer(0);
    queue.pop(&memory, &mut chain()).unwrap();
    assert_eq!(queue.want_notifications(&memory), Ok(false));
    assert_eq!(driver.wanted_notification(), 1);
    // What is there is not enough for the device: it has to hear of what comes next.
    for head in 1..4 {
        driver.chain(head, &[(BUFFERS, 1)], &[]);
        driver.offer(head);
    }
    queue.pop(&memory, &mut chain()).unwrap();
    queue.put_back();
    assert_eq!(queue.want_notifications(&memory), Ok(true));
    assert_eq!(driver.wanted_notification(), 4);
}

proptest! {
    /// Any bytes in tables and rings: every outcome is a request inside memory, none, or an error.
    #[test]
    fn any_rings_are_survived(
        size_bits in 0u32..5,
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..16, 0u16..40), 32),
        heads in prop::collection::vec(0u16..20, 0..20),
        available in any::<u16>(),
        near in any::<bool>(),
        features in 0u64..4,
    ) {
        let size = 1u16 << size_bits;
        let features = features << 28;
        let (memory, mut driver, mut queue) = pair(size, features);
        for (index, (address, length, flags, next)) in (0..).zip(&table) {
            // Most addresses and lengths lie where something is.
            let address = if near { address % MEMORY } else { *address };
            let length = if near { length % 5000 } else { *length };
            driver.describe(index % size, address, length, *flags, *next);
            driver.describe_in(BUFFERS, index, address, length, *flags, *next);
        }
        driver.describe(0, BUFFERS, 16 * 32, INDIRECT, 0);
        for head in heads {
            driver.offer(head);
        }
        if near {
            driver.set_available(available);
        }
        let mut chain = chain();
        while let Ok(true) = queue.pop(&memory, &mut chain) {
            prop_assert!(chain.readable.len() + chain.writable.len() <= MOST_SEGMENTS);
            for part in chain.readable.iter().chain(&chain.writable) {
                prop_assert!(part.length > 0);
                prop_assert!(crate::virtio::host_range(&memory, *part).is_some());
            }
            queue.push(&memory, chain.head, 1).unwrap();
            queue.publish(&memory).unwrap();
            queue.want_notifications(&memory).unwrap();
        }
    }
}
