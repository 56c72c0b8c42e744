#![allow(clippy::single_range_in_vec_init)] // Lists of damaged ranges.

use std::ops::Range;

use cenote_image::storage::MemoryStorage;
use cenote_image::storage::testing::{Event, Operation, Recorder};

use super::super::algorithm::Algorithm;
use super::super::keystream::Secret;
use super::*;

/// Notes all that the pass tells its owner.
#[derive(Default)]
struct Notes {
    positions: Vec<u64>,
    durable: Vec<u64>,
    faults: Vec<Fault>,
    stop_at: Option<u64>,
}

impl Hooks for Notes {
    fn advanced(&mut self, position: u64) -> Result<Flow> {
        self.positions.push(position);
        let stop = self.stop_at.is_some_and(|at| position >= at);
        Ok(if stop { Flow::Stop } else { Flow::Continue })
    }

    fn durable(&mut self, position: u64) -> Result<()> {
        self.durable.push(position);
        Ok(())
    }

    fn failed(&mut self, fault: Fault) -> Result<Flow> {
        let local = fault.kind.is_local();
        self.faults.push(fault);
        Ok(if local { Flow::Continue } else { Flow::Stop })
    }
}

/// Memory in which some ranges cannot be read or written.
#[derive(Debug)]
struct Damaged {
    memory: MemoryStorage,
    unreadable: Vec<Range<u64>>,
    unwritable: Vec<Range<u64>>,
    errno: i32,
    alignment: usize,
}

impl Damaged {
    fn meets(&self, bad: &[Range<u64>], offset: u64, length: usize) -> io::Result<()> {
        let end = offset + length as u64;
        match bad
            .iter()
            .any(|range| range.start < end && offset < range.end)
        {
            true => Err(io::Error::from_raw_os_error(self.errno)),
            false => Ok(()),
        }
    }
}

impl Storage for Damaged {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.meets(&self.unreadable, offset, buf.len())?;
        self.memory.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.meets(&self.unwritable, offset, buf.len())?;
        self.memory.write_at(buf, offset)
    }
    fn write_zeroes_at(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.memory.write_zeroes_at(offset, length, unmap)
    }
    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.discard_at(offset, length)
    }
    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.memory.allocate_at(offset, length)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.memory.set_length(length)
    }
    fn alignment(&self) -> usize {
        self.alignment
    }
}

const SIZE: u64 = 3 * (64 << 10) + 777;

/// Two runs with a hole between, the second ending at an odd offset.
const SPANS: [Span; 2] = [
    Span {
        offset: 0,
        length: 72 << 10,
    },
    Span {
        offset: 128 << 10,
        length: SIZE - (128 << 10),
    },
];

fn tuning() -> Tuning {
    Tuning {
        chunk: 16 << 10,
        depth: 4,
        checkpoint: Duration::ZERO,
    }
}

fn old_content() -> Vec<u8> {
    (0..SIZE).map(|at| (at * 7 % 251) as u8).collect()
}

/// What one pass must leave: its content in the spans, the old bytes elsewhere.
fn after(pass: Pass, key: &PassKey, before: &[u8]) -> Vec<u8> {
    let mut image = before.to_vec();
    for span in SPANS {
        let range = span.offset as usize..(span.offset + span.length) as usize;
        match pass {
            Pass::Random => key.stream().fill(&mut image[range], span.offset),
            Pass::Pattern(bytes) => {
                for at in range {
                    image[at] = bytes[at % bytes.len()];
                }
            }
        }
    }
    image
}

/// Each method's writes, recorded by the storage beneath the engine, are its
/// pass table: the order of passes, every byte, and nothing besides.
#[test]
fn recorded_writes_equal_the_pass_table() {
    let secret = Secret::generate().unwrap();
    let tuning = tuning();
    let limiter = Limiter::new(None);
    for algorithm in Algorithm::ALL {
        let recorder = Recorder::new();
        let storage = recorder.storage(MemoryStorage::from_bytes(&old_content()));
        let mut expected = old_content();
        for (number, pass) in algorithm.passes().iter().enumerate() {
            let from = recorder.position();
            let key = secret.pass_key(0, number as u32);
            let content = Content::new(*pass, || key.clone());
            let run = PassRun {
                storage: &*storage,
                spans: &SPANS,
                content,
                tuning: &tuning,
                limiter: &limiter,
                memory: &Memory::default(),
            };
            let mut notes = Notes::default();
            assert_eq!(write(&run, 0, &mut notes).unwrap(), Flow::Continue);
            expected = after(*pass, &key, &expected);
            let (flow, read) = verify(&run, 0, Portion::All, &mut notes).unwrap();
            assert_eq!(
                (flow, read),
                (Flow::Continue, SPANS.iter().map(|s| s.length).sum())
            );
            assert!(notes.faults.is_empty(), "{algorithm}: {:?}", notes.faults);

            let mut replay = recorder.replay();
            let mut written = 0;
            let mut synced = false;
            while let Some(Event { operation, .. }) = replay.next_event().cloned() {
                if replay.position() >= from {
                    match operation {
                        Operation::Write { offset, data } => {
                            let range = offset as usize..offset as usize + data.len();
                            assert!(expected[range] == data[..], "{algorithm}, pass {number}");
                            written += data.len() as u64;
                            synced = false;
                        }
                        Operation::Sync => synced = true,
                        other => panic!("{algorithm} did {other:?}"),
                    }
                }
                replay.advance();
            }
            assert_eq!(
                written,
                SPANS.iter().map(|s| s.length).sum::<u64>(),
                "{algorithm}"
            );
            assert!(synced, "a pass ends with a sync");
        }
        let mut content = vec![0; SIZE as usize];
        storage.read_at(&mut content, 0).unwrap();
        assert!(content == expected, "{algorithm}: final content");
    }
}

fn damaged(
    unwritable: &[Range<u64>],
    unreadable: &[Range<u64>],
    errno: i32,
    alignment: usize,
) -> Damaged {
    Damaged {
        memory: MemoryStorage::from_bytes(&old_content()),
        unreadable: unreadable.to_vec(),
        unwritable: unwritable.to_vec(),
        errno,
        alignment,
    }
}

#[test]
fn bad_sectors_cost_their_blocks_alone() {
    // Devices of 512-byte and of 4096-byte blocks.
    for alignment in [512, 4096] {
        for content in [
            Content::Pattern(&[0x92, 0x49, 0x24]),
            Content::Random(Secret::generate().unwrap().pass_key(0, 0)),
        ] {
            let storage = damaged(
                &[20_000..20_001, 140_000..141_000],
                &[],
                libc::EIO,
                alignment,
            );
            let (tuning, limiter) = (tuning(), Limiter::new(None));
            let run = PassRun {
                storage: &storage,
                spans: &SPANS,
                content,
                tuning: &tuning,
                limiter: &limiter,
                memory: &Memory::default(),
            };
            let mut notes = Notes::default();
            assert_eq!(write(&run, 0, &mut notes).unwrap(), Flow::Continue);
            let unit = alignment as u64;
            let blocks =
                |range: Range<u64>| (range.start / unit * unit, range.end.next_multiple_of(unit));
            let found: Vec<_> = notes
                .faults
                .iter()
                .map(|fault| (fault.offset, fault.offset + fault.length))
                .collect();
            assert_eq!(found, [blocks(20_000..20_001), blocks(140_000..141_000)]);
            let mut reading = Notes::default();
            verify(&run, 0, Portion::All, &mut reading).unwrap();
            assert_eq!(
                reading.faults.len(),
                2,
                "the rest of the chunks was written"
            );
            for (fault, (start, end)) in reading.faults.iter().zip(&found) {
                assert!(
                    matches!(fault.kind, FaultKind::Mismatch(at) if (*start..*end).contains(&at))
                );
            }
        }
    }
}

#[test]
fn unreadable_sectors_are_named_and_the_rest_is_compared() {
    let storage = damaged(&[], &[30_000..30_001], libc::EIO, 512);
    let (tuning, limiter) = (tuning(), Limiter::new(None));
    let content = Content::Pattern(&[0]);
    let run = PassRun {
        storage: &storage,
        spans: &SPANS,
        content,
        tuning: &tuning,
        limiter: &limiter,
        memory: &Memory::default(),
    };
    let mut notes = Notes::default();
    write(&run, 0, &mut notes).unwrap();
    storage.memory.write_at(&[1], 150_000).unwrap();
    verify(&run, 0, Portion::All, &mut notes).unwrap();
    assert_eq!(notes.faults.len(), 2, "{:?}", notes.faults);
    assert!(
        notes
            .faults
            .iter()
            .any(|f| matches!(f.kind, FaultKind::Read(_)) && f.offset == 29_696 && f.length == 512)
    );
    assert!(
        notes
            .faults
            .iter()
            .any(|f| matches!(f.kind, FaultKind::Mismatch(150_000)))
    );
}

#[test]
fn what_concerns_the_whole_file_ends_the_pass() {
    for errno in [
        libc::ENOSPC,
        libc::EPERM,
        libc::EROFS,
        libc::EDQUOT,
        libc::ENODEV,
    ] {
        let storage = damaged(&[40_000..40_001], &[], errno, 4096);
        let (tuning, limiter) = (tuning(), Limiter::new(None));
        let content = Content::Random(Secret::generate().unwrap().pass_key(0, 0));
        let run = PassRun {
            storage: &storage,
            spans: &SPANS,
            content,
            tuning: &tuning,
            limiter: &limiter,
            memory: &Memory::default(),
        };
        let mut notes = Notes::default();
        assert_eq!(write(&run, 0, &mut notes).unwrap(), Flow::Stop);
        assert_eq!(notes.faults.len(), 1);
        assert!(
            matches!(&notes.faults[0].kind, FaultKind::Write(e) if e.raw_os_error() == Some(errno))
        );
    }
}

#[test]
fn a_stopped_pass_goes_on_from_what_was_durable() {
    let key = Secret::generate().unwrap().pass_key(0, 0);
    let (tuning, limiter) = (tuning(), Limiter::new(None));
    let recorder = Recorder::new();
    let storage = recorder.storage(MemoryStorage::from_bytes(&old_content()));
    let content = Content::Random(key.clone());
    let run = PassRun {
        storage: &*storage,
        spans: &SPANS,
        content,
        tuning: &tuning,
        limiter: &limiter,
        memory: &Memory::default(),
    };
    let mut notes = Notes {
        stop_at: Some(32 << 10),
        ..Notes::default()
    };
    assert_eq!(write(&run, 0, &mut notes).unwrap(), Flow::Stop);
    let durable = *notes.durable.last().unwrap();
    assert!((32 << 10..SIZE).contains(&durable), "{durable}");
    assert!(notes.durable.is_sorted() && notes.positions.is_sorted());
    assert_eq!(
        write(&run, durable, &mut Notes::default()).unwrap(),
        Flow::Continue
    );
    let mut content = vec![0; SIZE as usize];
    storage.read_at(&mut content, 0).unwrap();
    assert!(content == after(Pass::Random, &key, &old_content()));
}

#[test]
fn a_sample_reads_a_part_with_both_ends() {
    let storage = MemoryStorage::from_bytes(&vec![0; 64 << 20]);
    let spans = [Span {
        offset: 0,
        length: 64 << 20,
    }];
    let (tuning, limiter) = (
        Tuning {
            chunk: 1 << 20,
            ..tuning()
        },
        Limiter::new(None),
    );
    let content = Content::Pattern(&[0]);
    let run = PassRun {
        storage: &storage,
        spans: &spans,
        content,
        tuning: &tuning,
        limiter: &limiter,
        memory: &Memory::default(),
    };
    let mut notes = Notes::default();
    let (_, read) = verify(&run, 0, Portion::Sample(10), &mut notes).unwrap();
    // 1024 pieces, 10 %: a fifth or none is out of reach of chance.
    assert!((1 << 20..13 << 20).contains(&read), "{read}");
    storage.write_at(&[9], (64 << 20) - 1).unwrap();
    verify(&run, 0, Portion::Sample(1), &mut notes).unwrap();
    assert!(matches!(
        notes.faults[..],
        [Fault {
            kind: FaultKind::Mismatch(_),
            ..
        }]
    ));
}

#[test]
fn the_limiter_keeps_the_rate() {
    let limiter = Limiter::new(Some(1 << 20));
    let mut naps = 0;
    let begun = Instant::now();
    for _ in 0..4 {
        limiter
            .wait(64 << 10, || {
                naps += 1;
                Ok(Flow::Continue)
            })
            .unwrap();
    }
    // Four times a sixteenth of a second, the first of them at once.
    assert!(begun.elapsed() >= Duration::from_millis(187) && naps >= 3);
    assert_eq!(limiter.wait(1, || Ok(Flow::Stop)).unwrap(), Flow::Stop);
}

#[test]
fn chunks_cover_spans_from_any_start() {
    let spans = [
        Span {
            offset: 0,
            length: 10_240,
        },
        Span {
            offset: 65_536,
            length: 4096 + 100,
        },
    ];
    let total = 10_240 + 4196;
    for start in [0, 4096, 8192, 10_240, 14_336, total] {
        let mut position = start;
        for chunk in chunks(&spans, start, 8192, 4096) {
            assert_eq!(chunk.position, position);
            position += chunk.length as u64;
        }
        assert_eq!(position, total);
    }
    let lengths: Vec<_> = chunks(&spans, 0, 8192, 4096)
        .map(|c| (c.offset, c.length))
        .collect();
    assert_eq!(
        lengths,
        [(0, 8192), (8192, 2048), (65_536, 4096), (69_632, 100)]
    );
}
