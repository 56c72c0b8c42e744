use super::{request::MOST_BYTES, *};
use crate::{
    device::Device as _,
    disk::DiskOptions,
    event::{MachineEvent, testing::RecordedEvents},
    memory::GuestMemory,
    virtio::{
        F_EVENT_INDEX, F_INDIRECT, F_VERSION_1,
        testing::{BUFFERS, Driver, DriverQueue, guest_memory},
    },
};
use cenote_image::{
    CacheMode, Format, Image, OpenOptions,
    create::{CreateOptions, create_in},
    storage::{
        MemoryStorage,
        testing::{Fault, FaultKind, Operation, Recorder},
    },
};
use std::{os::unix::fs::FileExt as _, path::Path};

const SIZE: u64 = 4 << 20;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const STATUS: u64 = BUFFERS - 1;
const HEADER: u64 = BUFFERS - 0x100;
const ALL: u64 = F_EVENT_INDEX | F_INDIRECT;

fn options() -> BlockOptions {
    BlockOptions {
        name: "sda".to_owned(),
        serial: "S-123".to_owned(),
        discard: true,
        logical_block: 512,
        physical_block: 4096,
        queues: 2,
        queue_size: 64,
        error_policy: ErrorPolicy::default(),
        read_error_policy: ReadErrorPolicy::default(),
    }
}

fn disk_options(cache: CacheMode) -> DiskOptions {
    DiskOptions {
        flushed_by_user: true,
        read_only: false,
        cache,
        lock: true,
    }
}

struct Guest {
    driver: Driver<Block>,
    queues: Vec<DriverQueue>,
    events: Arc<RecordedEvents>,
}

impl Guest {
    fn new(disk: Disk, options: BlockOptions) -> Self {
        Self::on(guest_memory(), disk, options)
    }

    fn on(memory: GuestMemory, disk: Disk, options: BlockOptions) -> Self {
        let events = Arc::new(RecordedEvents::default());
        let block = Block::new(disk, options, events.clone()).unwrap();
        Self {
            driver: Driver::new(block, memory),
            queues: Vec::new(),
            events,
        }
    }

    fn start(mut self, features: u64) -> Self {
        self.queues = self.driver.start(features, 64);
        self
    }

    /// Makes a request available: what the device reads beyond the header, and what it writes
    /// before the status.
    fn offer(
        &mut self,
        queue: usize,
        kind: u32,
        sector: u64,
        read: &[(u64, u32)],
        write: &[(u64, u32)],
    ) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.driver.fill(HEADER, &header);
        self.driver.fill(STATUS, &[0xff]);
        let read: Vec<_> = [(HEADER, 16)]
            .into_iter()
            .chain(read.iter().copied())
            .collect();
        let write: Vec<_> = write.iter().copied().chain([(STATUS, 1)]).collect();
        self.queues[queue].chain(0, &read, &write);
        self.queues[queue].offer(0);
        self.driver.notify(queue as u16);
    }

    /// Makes a request and waits for its status.
    fn request(&mut self, kind: u32, sector: u64, read: &[(u64, u32)], write: &[(u64, u32)]) -> u8 {
        self.offer(0, kind, sector, read, write);
        self.queues[0].wait_used();
        self.driver.bytes(STATUS, 1)[0]
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.driver.fill(BUFFERS, data);
        self.request(WRITE, sector, &[(BUFFERS, data.len() as u32)], &[])
    }

    fn read(&mut self, sector: u64, length: usize) -> Vec<u8> {
        self.driver.fill(BUFFERS, &vec![0xee; length]);
        assert_eq!(
            self.request(READ, sector, &[], &[(BUFFERS, length as u32)]),
            0
        );
        self.driver.bytes(BUFFERS, length)
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(count.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.driver.fill(BUFFERS, &bytes);
        self.request(kind, 0, &[(BUFFERS, bytes.len() as u32)], &[])
    }
}

/// An image of `format` in memory whose operations are recorded.
fn recorded(format: Format, cache: CacheMode) -> (Recorder, Image) {
    let base = MemoryStorage::new();
    create_in(&base, Path::new("disk"), &CreateOptions::new(format, SIZE)).unwrap();
    let recorder = Recorder::new();
    let image = OpenOptions::new(format)
        .writable(true)
        .cache(cache)
        .open_storage(recorder.storage(base), "disk")
        .unwrap();
    (recorder, image)
}

fn in_memory(format: Format, cache: CacheMode, options: BlockOptions) -> (Recorder, Guest) {
    let (recorder, image) = recorded(format, cache);
    let disk = Disk::from_image(image, disk_options(cache)).unwrap();
    (recorder, Guest::new(disk, options).start(ALL | F_FLUSH))
}

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| seed.wrapping_add((i / 7) as u8))
        .collect()
}

/// On files, so that requests go through io_uring; in every cache mode that the file system has.
#[test]
fn what_is_written_is_read_and_lies_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (format, cache) in [Format::Raw, Format::Qcow2].into_iter().flat_map(|format| {
        [
            CacheMode::Writeback,
            CacheMode::None,
            CacheMode::Writethrough,
            CacheMode::DirectSync,
            CacheMode::Unsafe,
        ]
        .map(|cache| (format, cache))
    }) {
        let path = folder.path().join("disk");
        let _ = std::fs::remove_file(&path);
        cenote_image::create::create(&path, &CreateOptions::new(format, SIZE)).unwrap();
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let layer = crate::disk::Layer {
            label: "disk".to_owned(),
            file: file.into(),
            format,
            data_file: None,
        };
        let disk = match Disk::open(vec![layer], disk_options(cache)) {
            Ok(disk) => disk,
            // Some file systems have no O_DIRECT.
            Err(DiskError::File { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let flush = if cache.is_synchronous() { 0 } else { F_FLUSH };
        let mut guest = Guest::new(disk, options()).start(ALL | flush);
        // In pieces that are not aligned to anything, of 5 MiB in all with the header.
        let data = pattern(3, 3 << 20);
        guest.driver.fill(BUFFERS + 0x1003, &data);
        let cuts = [
            (BUFFERS + 0x1003, 1000),
            (BUFFERS + 0x1003 + 1000, (3 << 20) - 1000),
        ];
        assert_eq!(
            guest.request(WRITE, 16, &cuts, &[]),
            0,
            "{format} {cache:?}"
        );
        assert_eq!(guest.request(FLUSH, 0, &[], &[]), 0);
        guest.driver.fill(BUFFERS + 0x1003, &vec![0; 3 << 20]);
        assert_eq!(guest.request(READ, 16, &[], &cuts), 0);
        assert_eq!(guest.driver.bytes(BUFFERS + 0x1003, 3 << 20), data);
        assert_eq!(guest.read(0, 8192), [0; 8192]);
        drop(guest);
        let image = OpenOptions::new(format).open(&path).unwrap();
        let mut back = vec![0; 3 << 20];
        image.read_at(&mut back, 16 * 512).unwrap();
        assert_eq!(back, data, "{format} {cache:?}");
        if format == Format::Raw {
            let mut byte = [0];
            std::fs::File::open(&path)
                .unwrap()
                .read_exact_at(&mut byte, 16 * 512)
                .unwrap();
            assert_eq!(byte[0], data[0]);
        }
    }
}

#[test]
fn the_configuration_describes_the_disk() {
    let (_, mut guest) = in_memory(Format::Qcow2, CacheMode::Writeback, options());
    let mut at = |offset: u64, length| guest.driver.read(0x2000 + offset, length);
    assert_eq!(at(0, 8), SIZE / 512);
    assert_eq!(at(12, 4), 62, "segments");
    assert_eq!(at(20, 4), 512);
    assert_eq!(
        (at(24, 1), at(26, 2)),
        (3, 8),
        "eight logical blocks in a physical one"
    );
    assert_eq!((at(32, 1), at(34, 2)), (1, 2));
    assert_eq!(
        (at(36, 4), at(40, 4), at(44, 4)),
        (MOST_BYTES / 512, 32, 128)
    );
    assert_eq!((at(48, 4), at(52, 4), at(56, 1)), (MOST_BYTES / 512, 32, 1));
}

#[test]
fn the_serial_number_is_told() {
    let (_, mut guest) = in_memory(Format::Raw, CacheMode::Writeback, options());
    guest.driver.fill(BUFFERS, &[0xee; 32]);
    assert_eq!(guest.request(GET_ID, 0, &[], &[(BUFFERS, 20)]), 0);
    assert_eq!(
        &guest.driver.bytes(BUFFERS, 22),
        b"S-123\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xee\xee"
    );
    assert_eq!(guest.request(GET_ID, 0, &[], &[(BUFFERS, 3)]), 0, "cut");
}

#[test]
fn requests_beyond_the_disk_or_of_parts_of_blocks_are_errors() {
    let sectors = SIZE / 512;
    let (recorder, mut guest) = in_memory(Format::Raw, CacheMode::Writeback, options());
    let before = recorder.position();
    for (sector, length) in [
        (sectors, 512),
        (sectors - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
        (0, 513),
    ] {
        for kind in [READ, WRITE] {
            let data = [(BUFFERS, length)];
            let (read, write): (&[_], &[_]) = if kind == READ {
                (&[], &data)
            } else {
                (&data, &[])
            };
            assert_eq!(
                guest.request(kind, sector, read, write),
                1,
                "{sector} {length}"
            );
        }
    }
    assert_eq!(guest.request(99, 0, &[], &[]), 2, "unknown");
    assert_eq!(guest.request(READ, 0, &[], &[]), 0, "nothing to read");
    assert_eq!(recorder.position(), before);
    let mut large = options();
    large.logical_block = 4096;
    let (_, mut guest) = in_memory(Format::Raw, CacheMode::Writeback, large);
    assert_eq!(guest.write(0, &[1; 512]), 1);
    assert_eq!(guest.write(1, &[1; 4096]), 1);
    assert_eq!(guest.write(8, &[1; 4096]), 0);
}

#[test]
fn a_request_without_header_or_room_for_its_status_breaks_the_queue() {
    for (read, write) in [
        (&[(HEADER, 15)][..], &[(STATUS, 1)][..]),
        (&[(HEADER, 16)], &[]),
    ] {
        let (_, mut guest) = in_memory(Format::Raw, CacheMode::Writeback, options());
        guest.queues[1].chain(0, read, write);
        guest.queues[1].offer(0);
        guest.driver.notify(1);
        guest.driver.wait_needs_reset();
        let mut guest = guest.start(ALL);
        assert_eq!(guest.write(0, &[7; 512]), 0, "a reset mends it");
    }
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    for format in [Format::Raw, Format::Qcow2] {
        let (recorder, mut guest) = in_memory(format, CacheMode::Writeback, options());
        assert_eq!(guest.write(0, &pattern(1, 1 << 20)), 0);
        assert_eq!(guest.ranges(WRITE_ZEROES, &[(2, 4, 0), (100, 1, 1)]), 0);
        let mut expected = pattern(1, 1 << 20);
        expected[1024..3072].fill(0);
        expected[51200..51712].fill(0);
        assert_eq!(guest.read(0, 1 << 20), expected);
        let before = recorder.position();
        assert_eq!(guest.ranges(DISCARD, &[(0, 256, 0), (1024, 256, 0)]), 0);
        assert!(recorder.position() > before || format == Format::Qcow2);
        assert_eq!(guest.read(0, 128 << 10), vec![0; 128 << 10]);
        for (kind, ranges, status) in [
            (DISCARD, &[(0, 8, 1)][..], 2),
            (WRITE_ZEROES, &[(0, 8, 2)], 2),
            (DISCARD, &[(SIZE / 512, 1, 0)], 1),
            (WRITE_ZEROES, &[(u64::MAX, u32::MAX, 0)], 1),
            (DISCARD, &[(0, 1, 0); 33], 1),
            (DISCARD, &[], 1),
            (WRITE_ZEROES, &[(5, 0, 0)], 0),
        ] {
            assert_eq!(guest.ranges(kind, ranges), status, "{kind} {ranges:?}");
        }
    }
    let mut kept = options();
    kept.discard = false;
    let (_, mut guest) = in_memory(Format::Raw, CacheMode::Writeback, kept);
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, 0)]), 2);
    assert_eq!(
        guest.driver.offered() & (F_DISCARD | F_WRITE_ZEROES),
        F_WRITE_ZEROES
    );
}

#[test]
fn a_read_only_disk_is_not_written() {
    let image = OpenOptions::new(Format::Raw)
        .open_storage(
            Arc::new(MemoryStorage::from_bytes(&pattern(9, SIZE as usize))),
            "disk",
        )
        .unwrap();
    let options_only = DiskOptions {
        read_only: true,
        ..disk_options(CacheMode::Writeback)
    };
    let disk = Disk::from_image(image, options_only).unwrap();
    let mut guest = Guest::new(disk, options()).start(F_RO);
    assert_eq!(
        guest.driver.offered() & (F_RO | F_DISCARD | F_WRITE_ZEROES),
        F_RO
    );
    assert_eq!(guest.write(0, &[1; 512]), 1);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 1, 0)]), 1);
    assert_eq!(guest.request(FLUSH, 0, &[], &[]), 0);
    assert_eq!(guest.read(0, 512), pattern(9, 512));
}

fn syncs(recorder: &Recorder) -> usize {
    let mut replay = recorder.replay();
    let mut syncs = 0;
    while let Some(event) = replay.next_event() {
        syncs += usize::from(matches!(event.operation, Operation::Sync));
        replay.advance();
    }
    syncs
}

/// A write is durable when it is answered, unless driver and cache mode agree that it need not be.
#[test]
fn writes_go_through_where_they_must() {
    for (cache, features, through) in [
        (CacheMode::Writeback, F_FLUSH, false),
        (CacheMode::Writeback, 0, true),
        (CacheMode::Writethrough, 0, true),
        (CacheMode::Writeback, F_FLUSH | F_CONFIG_WCE, false),
    ] {
        let (recorder, image) = recorded(Format::Raw, CacheMode::Writeback);
        let disk = Disk::from_image(image, disk_options(cache)).unwrap();
        let mut guest = Guest::new(disk, options()).start(features);
        let before = syncs(&recorder);
        assert_eq!(guest.write(0, &[1; 512]), 0);
        assert_eq!(
            syncs(&recorder) - before,
            usize::from(through),
            "{cache:?} {features:#x}"
        );
        if features & F_CONFIG_WCE != 0 {
            guest.driver.write(0x2000 + 32, 1, 0);
            assert_eq!(guest.write(0, &[2; 512]), 0);
            assert_eq!(
                syncs(&recorder) - before,
                1,
                "the guest switched the cache off"
            );
        }
        let offered = guest.driver.offered() & (F_FLUSH | F_CONFIG_WCE);
        assert_eq!(offered == 0, cache.is_synchronous());
    }
}

fn failing_writes(recorder: &Recorder, kind: FaultKind) {
    recorder.fail(Fault {
        kind,
        after: 0,
        lasting: true,
    });
}

#[test]
fn errors_are_reported_ignored_or_stop_the_machine() {
    let policy = |error_policy| BlockOptions {
        error_policy,
        ..options()
    };
    let (recorder, mut guest) = in_memory(
        Format::Raw,
        CacheMode::Writeback,
        policy(ErrorPolicy::Report),
    );
    failing_writes(&recorder, FaultKind::Io);
    assert_eq!(guest.write(0, &[1; 512]), 1);
    assert_eq!(guest.read(0, 512), [0; 512]);

    let (recorder, mut guest) = in_memory(
        Format::Raw,
        CacheMode::Writeback,
        policy(ErrorPolicy::Ignore),
    );
    failing_writes(&recorder, FaultKind::Io);
    assert_eq!(guest.write(0, &[1; 512]), 0);
    assert!(guest.events.take().is_empty());
}

/// A request that stopped the machine is made again when it goes on, by another machine too.
#[test]
fn a_request_that_stopped_the_machine_is_made_again() {
    let (recorder, mut guest) = in_memory(Format::Raw, CacheMode::Writeback, options());
    failing_writes(&recorder, FaultKind::NoSpace);
    guest.driver.fill(BUFFERS, &pattern(5, 1024));
    guest.offer(1, WRITE, 8, &[(BUFFERS, 1024)], &[]);
    crate::virtio::testing::wait_for("the event", || {
        guest.events.take().contains(&MachineEvent::IoError)
    });
    guest.driver.function.pause();
    assert_eq!(guest.queues[1].take_used(), None);
    // It fails again, and waits again.
    guest.driver.function.resume();
    crate::virtio::testing::wait_for("the event", || {
        guest.events.take().contains(&MachineEvent::IoError)
    });
    guest.driver.function.pause();
    let state = guest.driver.function.save().unwrap();
    let stored = &state.data["device"]["data"]["unfinished"];
    assert_eq!(*stored, serde_json::json!([[], [0]]));

    let (_, image) = recorded(Format::Raw, CacheMode::Writeback);
    let disk = Disk::from_image(image.clone(), disk_options(CacheMode::Writeback)).unwrap();
    let mut other = Guest::on(guest.driver.memory.clone(), disk, options());
    other.driver.function.pause();
    other.driver.function.restore(&state).unwrap();
    assert_eq!(other.driver.function.save().unwrap(), state);
    other.driver.function.resume();
    assert_eq!(guest.queues[1].wait_used(), (0, 1));
    let mut back = [0; 1024];
    image.read_at(&mut back, 4096).unwrap();
    assert_eq!(back[..], pattern(5, 1024));

    recorder.heal();
    guest.driver.function.resume();
    crate::virtio::testing::wait_for("the write", || {
        guest
            .driver
            .function
            .at_rest(|block| block.disk().unwrap().image().read_at(&mut back, 4096))
            .unwrap();
        back[..] == pattern(5, 1024)
    });
    let mut wrong = state;
    wrong.data["device"]["data"]["size"] = 5.into();
    let refused = other.driver.function.restore(&wrong).unwrap_err();
    assert!(refused.to_string().contains("4194304"), "{refused}");
}

/// Resets and rests at any moment of many requests; afterwards the device works.
#[test]
fn a_reset_in_the_middle_of_requests_leaves_a_working_device() {
    for round in 0..20 {
        let (_, mut guest) = in_memory(Format::Qcow2, CacheMode::Writeback, options());
        for head in 0..16u16 {
            let base = BUFFERS + u64::from(head) * 0x1_0000;
            let mut header = [0; 16];
            header[0] = 1;
            header[8] = head as u8;
            guest.driver.fill(base, &header);
            guest.queues[0].chain(
                head * 3,
                &[(base, 16), (base + 4096, 4096)],
                &[(base + 16, 1)],
            );
            guest.queues[0].offer(head * 3);
        }
        guest.driver.notify(0);
        if round % 2 == 0 {
            guest.driver.function.pause();
            let done = guest.queues[0].used_index();
            guest.driver.function.save().unwrap();
            assert_eq!(guest.queues[0].used_index(), done);
            guest.driver.function.resume();
        }
        guest.driver.set_status(0);
        let used = guest.queues[0].used_index();
        assert!(used <= 16);
        let mut guest = guest.start(F_VERSION_1);
        assert_eq!(guest.write(100, &[round; 512]), 0);
        assert_eq!(guest.read(100, 512), [round; 512]);
    }
}

mod change {
    use super::*;
    use crate::disk::Layer;
    use cenote_image::create::create;
    use std::fs::File;
    use tempfile::TempDir;

    fn layer(folder: &TempDir, name: &str, format: Format) -> Layer {
        let path = folder.path().join(name);
        let file = File::options().read(true).write(true).open(path).unwrap();
        Layer {
            label: name.to_owned(),
            file: file.into(),
            format,
            data_file: None,
        }
    }

    fn guest(folder: &TempDir) -> Guest {
        let path = |name: &str| folder.path().join(name);
        create(&path("base"), &CreateOptions::new(Format::Qcow2, SIZE)).unwrap();
        let overlay = CreateOptions::overlay("base", Format::Qcow2);
        create(&path("top"), &overlay).unwrap();
        create(&path("small"), &CreateOptions::new(Format::Raw, SIZE / 2)).unwrap();
        let base = vec![layer(folder, "base", Format::Qcow2)];
        let disk = Disk::open(base, disk_options(CacheMode::Writeback)).unwrap();
        Guest::new(disk, options()).start(ALL | F_FLUSH)
    }

    fn change(guest: &mut Guest, layers: Vec<Layer>) -> Result<(), DiskError> {
        guest.driver.function.at_rest(|block| block.change(layers))
    }

    fn bytes(folder: &TempDir, name: &str) -> [u8; 512] {
        let path = folder.path().join(name);
        let image = OpenOptions::new(Format::Qcow2).open(&path).unwrap();
        let mut bytes = [0; 512];
        image.read_at(&mut bytes, 512).unwrap();
        bytes
    }

    #[test]
    fn an_overlay_takes_the_writes_and_gives_them_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut guest = guest(&folder);
        assert_eq!(guest.write(0, &[1; 1024]), 0);
        let chain = || {
            vec![
                layer(&folder, "top", Format::Qcow2),
                layer(&folder, "base", Format::Qcow2),
            ]
        };
        change(&mut guest, chain()).unwrap();
        assert_eq!(guest.read(0, 512), [1; 512]);
        assert_eq!(guest.write(1, &[2; 512]), 0);
        assert_eq!(guest.read(1, 512), [2; 512]);
        // The base is read-only for everybody now, so it can be read.
        assert_eq!(bytes(&folder, "base"), [1; 512]);
        // Back to the base, as after a commit; it was locked as a backing file.
        change(&mut guest, vec![layer(&folder, "base", Format::Qcow2)]).unwrap();
        assert_eq!(guest.read(1, 512), [1; 512]);
        assert_eq!(guest.write(1, &[3; 512]), 0);
        drop(guest);
        assert_eq!(bytes(&folder, "base"), [3; 512]);
    }

    #[test]
    fn a_chain_that_does_not_fit_is_refused_and_the_old_one_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut guest = guest(&folder);
        let refused = |guest: &mut Guest, layers| change(guest, layers).unwrap_err().to_string();
        let small = refused(&mut guest, vec![layer(&folder, "small", Format::Raw)]);
        assert!(small.contains("2097152 bytes"), "{small}");
        let alone = refused(&mut guest, vec![layer(&folder, "top", Format::Qcow2)]);
        assert!(alone.contains("has a backing file"), "{alone}");
        let raw = refused(&mut guest, vec![layer(&folder, "small", Format::Qcow2)]);
        assert!(raw.contains("small"), "{raw}");
        assert!(refused(&mut guest, Vec::new()).contains("0 layers"));
        assert_eq!(guest.write(1, &[9; 512]), 0);
        assert_eq!(guest.read(1, 512), [9; 512]);
        // The old one is still locked for writing.
        let other = OpenOptions::new(Format::Qcow2).open(&folder.path().join("base"));
        assert!(matches!(other, Err(cenote_image::Error::InUse { .. })));
    }

    /// Requests that arrive while the disk is changed are answered from the new chain.
    #[test]
    fn requests_go_on_across_the_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut guest = guest(&folder);
        let layers = vec![
            layer(&folder, "top", Format::Qcow2),
            layer(&folder, "base", Format::Qcow2),
        ];
        guest.driver.fill(BUFFERS, &[7; 512]);
        guest.driver.function.pause();
        guest.offer(0, WRITE, 1, &[(BUFFERS, 512)], &[]);
        change(&mut guest, layers).unwrap();
        guest.driver.function.resume();
        guest.queues[0].wait_used();
        drop(guest);
        assert_eq!(bytes(&folder, "top"), [7; 512]);
        assert_eq!(bytes(&folder, "base"), [0; 512]);
    }
}
