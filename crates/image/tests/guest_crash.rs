//! Guest I/O under crashes and host errors: at every instant the image is
//! valid or has leaks only, and what a flush covered is there.

#![allow(clippy::unwrap_used)]

mod tools;

use std::path::Path;
use std::sync::Arc;

use cenote_image::check::check_storage;
use cenote_image::create::{Compat, CreateOptions, create_in};
use cenote_image::storage::testing::{Fault, FaultKind, RecordedStorage, Recorder};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{Error, Format, Image, OpenOptions};
use tools::Numbers;

const SECTOR: usize = 512;
const KIB: u64 = 1024;

/// A disk of sectors that are each one repeated 64-bit stamp.
fn stamps(image: &Image, first: u64, count: u64) -> Vec<u64> {
    let mut bytes = vec![0u8; count as usize * SECTOR];
    image.read_at(&mut bytes, first * SECTOR as u64).unwrap();
    bytes
        .chunks(SECTOR)
        .map(|sector| {
            let stamp = u64::from_ne_bytes(*sector.first_chunk().unwrap());
            let whole = sector.chunks(8).all(|word| word == stamp.to_ne_bytes());
            assert!(whole, "a sector is torn");
            stamp
        })
        .collect()
}

fn stamped(first: u64, count: u64, seal: u64) -> Vec<u8> {
    (first..first + count)
        .flat_map(|sector| {
            (seal << 32 | sector | 1 << 63)
                .to_ne_bytes()
                .repeat(SECTOR / 8)
        })
        .collect()
}

/// The kinds of image that differ in how they write metadata.
fn kinds() -> Vec<(CreateOptions, bool)> {
    let size = 640 * KIB + 512;
    let with = |cluster_size| CreateOptions {
        cluster_size,
        ..CreateOptions::new(Format::Qcow2, size)
    };
    vec![
        (with(512), false),
        (with(512), true),
        (
            CreateOptions {
                refcount_bits: 64,
                ..with(512)
            },
            false,
        ),
        (with(4096), false),
        (with(4096), true),
        (
            CreateOptions {
                refcount_bits: 1,
                ..with(4096)
            },
            false,
        ),
        (
            CreateOptions {
                compat: Compat::V2,
                ..with(4096)
            },
            true,
        ),
        (with(65536), true),
        (
            CreateOptions {
                extended_l2: true,
                ..with(16384)
            },
            false,
        ),
        (
            CreateOptions {
                extended_l2: true,
                ..with(16384)
            },
            true,
        ),
    ]
}

/// A raw base, shorter than the disk and of odd length.
fn base() -> Image {
    let storage = MemoryStorage::default();
    storage.write_at(&stamped(0, 901, 0x7fff_ffff), 0).unwrap();
    OpenOptions::new(Format::Raw)
        .open_storage(Arc::new(storage), "base")
        .unwrap()
}

fn open(storage: Arc<dyn Storage>, writable: bool, over_base: bool) -> Result<Image, Error> {
    OpenOptions::new(Format::Qcow2)
        .writable(writable)
        .metadata_cache(64 << 10)
        .with_backing(over_base.then(base))
        .open_storage(storage, "image")
}

fn fresh(recorder: &Recorder, options: &CreateOptions) -> Arc<RecordedStorage> {
    let memory = MemoryStorage::default();
    create_in(&memory, Path::new("image"), options).unwrap();
    recorder.storage(memory)
}

/// Does something to a random range; returns the sectors touched.
fn step(image: &Image, numbers: &mut Numbers, seal: u64) -> (u64, u64, Result<bool, Error>) {
    let sectors = image.size() / SECTOR as u64;
    let count = 1 + match numbers.below(5) {
        0 => numbers.below(300),
        1 | 2 => numbers.below(40),
        _ => numbers.below(8),
    };
    let first = numbers.below(sectors);
    let count = count.min(sectors - first);
    let (offset, length) = (first * SECTOR as u64, count * SECTOR as u64);
    let outcome = match numbers.below(12) {
        0..=6 => image
            .write_at(&stamped(first, count, seal), offset)
            .map(|()| false),
        7 => image
            .write_zeroes(offset, length, numbers.below(2) == 0)
            .map(|()| false),
        8 | 9 => image.discard(offset, length).map(|()| false),
        _ => image.flush().map(|()| true),
    };
    (first, count, outcome)
}

/// What happened, by position in the log.
enum Happened {
    /// A change began here; afterwards the sectors read so.
    Change {
        began: usize,
        first: u64,
        now: Vec<u64>,
    },
    /// A flush of all that began before it ended here.
    Flush { ended: usize },
}

/// The values that each sector may have.
struct Possible {
    values: Vec<Vec<u64>>,
    next: usize,
}

impl Possible {
    fn new(start: Vec<u64>) -> Self {
        Possible {
            values: start.into_iter().map(|v| vec![v]).collect(),
            next: 0,
        }
    }

    /// Takes in all that had happened at a position of the log.
    fn advance(&mut self, history: &[Happened], position: usize) {
        while let Some(happened) = history.get(self.next) {
            match happened {
                Happened::Change { began, first, now } if *began <= position => {
                    for (i, value) in now.iter().enumerate() {
                        self.values[*first as usize + i].push(*value);
                    }
                }
                Happened::Flush { ended } if *ended <= position => {
                    for values in &mut self.values {
                        let last = *values.last().unwrap();
                        *values = vec![last];
                    }
                }
                _ => return,
            }
            self.next += 1;
        }
    }

    fn check(&self, state: MemoryStorage, over_base: bool, what: &str) {
        let report = check_storage(&state, Path::new("image")).unwrap();
        assert!(report.is_consistent(), "{what}: {report:?}");
        let image = open(Arc::new(state), false, over_base).unwrap();
        let sectors = image.size() / SECTOR as u64;
        for (sector, value) in stamps(&image, 0, sectors).iter().enumerate() {
            let allowed = &self.values[sector];
            assert!(
                allowed.contains(value),
                "{what}: sector {sector} is {value:#x}, may be {allowed:x?}"
            );
        }
    }
}

fn crash(options: &CreateOptions, over_base: bool, seed: u64, steps: u64) -> u64 {
    let recorder = Recorder::new();
    let storage = fresh(&recorder, options);
    let image = open(storage, true, over_base).unwrap();
    let mut numbers = Numbers::new(seed);
    let start = stamps(&image, 0, image.size() / SECTOR as u64);
    let mut history = Vec::new();
    for seal in 1..=steps {
        let began = recorder.position();
        let (first, count, outcome) = step(&image, &mut numbers, seal);
        if outcome.unwrap() {
            history.push(Happened::Flush {
                ended: recorder.position(),
            });
        } else {
            history.push(Happened::Change {
                began,
                first,
                now: stamps(&image, first, count),
            });
        }
    }
    image.close().unwrap();
    history.push(Happened::Flush {
        ended: recorder.position(),
    });

    let mut possible = Possible::new(start);
    let mut replay = recorder.replay();
    let mut states = 0;
    loop {
        let position = replay.position();
        possible.advance(&history, position);
        let what = format!("{options:?} seed {seed} position {position}");
        let mut judge = |state: Vec<MemoryStorage>, how: &str| {
            let state = state.into_iter().next().unwrap();
            possible.check(state, over_base, &format!("{what} {how}"));
            states += 1;
        };
        judge(replay.killed(), "killed");
        judge(replay.power_lost(seed ^ position as u64), "power lost");
        let tears = replay.tears();
        if tears > 0 {
            judge(replay.torn(numbers.below(tears as u64) as usize), "torn");
        }
        if !replay.advance() {
            return states;
        }
    }
}

#[test]
fn crashes_leave_the_image_valid_and_flushed_data_there() {
    let mut states = 0;
    for (index, (options, over_base)) in kinds().iter().enumerate() {
        states += crash(options, *over_base, index as u64 + 11, 60);
    }
    println!("{states} states replayed");
    assert!(states > 2000);
}

/// Fails one operation of the host, then goes on.
fn fault(options: &CreateOptions, over_base: bool, seed: u64, fault: Fault) -> bool {
    let recorder = Recorder::new();
    let storage = fresh(&recorder, options);
    let image = open(storage.clone(), true, over_base).unwrap();
    let mut numbers = Numbers::new(seed);
    let mut mirror = stamps(&image, 0, image.size() / SECTOR as u64);
    recorder.fail(fault);
    let mut flush_failed = false;
    for seal in 1..=40 {
        let (first, count, outcome) = step(&image, &mut numbers, seal);
        if outcome.is_err() {
            recorder.heal();
        }
        let range = first as usize..(first + count) as usize;
        let sectors = stamps(&image, first, count);
        for (i, now) in sectors.iter().enumerate() {
            let before = mirror[range.start + i];
            let fine = *now == before || *now == 0 || *now >> 32 == (seal | 1 << 31);
            assert!(
                fine,
                "{options:?} {fault:?}: sector {} is {now:#x}, was {before:#x}",
                range.start + i
            );
        }
        mirror[range].copy_from_slice(&sectors);
        if let Err(Error::Io { action, .. }) = &outcome {
            flush_failed |= action.starts_with("flush");
        }
    }
    recorder.heal();
    let sectors = mirror.len() as u64;
    assert_eq!(stamps(&image, 0, sectors), mirror, "{options:?} {fault:?}");
    let closed = image.close();
    assert!(
        closed.is_ok() || flush_failed,
        "{options:?} {fault:?}: {closed:?}"
    );
    let report = check_storage(&storage.content(), Path::new("image")).unwrap();
    assert!(report.is_consistent(), "{options:?} {fault:?}: {report:?}");
    if closed.is_ok() {
        let again = open(Arc::new(storage.content()), false, over_base).unwrap();
        assert_eq!(stamps(&again, 0, sectors), mirror, "{options:?} {fault:?}");
    }
    recorder.faults_met() > 0
}

#[test]
fn host_errors_leave_the_image_valid() {
    let mut met = 0;
    for (index, (options, over_base)) in kinds().iter().enumerate() {
        for kind in [FaultKind::Io, FaultKind::NoSpace, FaultKind::Short(1024)] {
            for after in (0..120).step_by(3) {
                for lasting in [false, true] {
                    let fault_now = Fault {
                        after: after + index as u64 % 3,
                        kind,
                        lasting,
                    };
                    met += u64::from(fault(options, *over_base, index as u64 + after, fault_now));
                }
            }
        }
    }
    assert!(met > 500, "only {met} faults were met");
}
