//! Operations that change an image's structure, interrupted everywhere: each
//! is recorded once and replayed to every state that a killed process, a torn
//! write or a power cut can leave, and run again with a failing disk.
//!
//! In each state the image opens (repaired where it says that it is dirty),
//! has lost clusters at worst, and reads as before the operation or as after
//! it, never anything else.

#![allow(clippy::unwrap_used)]

mod tools;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cenote_image::check::{Repair, Severity, check_storage, repair_storage};
use cenote_image::create::{Compat, CreateOptions, create_in};
use cenote_image::ops;
use cenote_image::storage::testing::{Fault, FaultKind, Recorder, Replay};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{BackingSpec, Format, Image, OpenOptions, Result};
use tools::Numbers;

/// Power cuts tried after each operation on the storage.
const CUTS: u64 = 12;

/// A kind of image: what differs in how its metadata is laid out.
fn kinds() -> Vec<(&'static str, CreateOptions)> {
    let plain = |cluster_size| CreateOptions {
        cluster_size,
        ..CreateOptions::new(Format::Qcow2, 0)
    };
    vec![
        ("512 B clusters", plain(512)),
        ("4 KiB clusters", plain(4096)),
        (
            "version 2",
            CreateOptions {
                compat: Compat::V2,
                ..plain(1024)
            },
        ),
        (
            "subclusters",
            CreateOptions {
                extended_l2: true,
                ..plain(16384)
            },
        ),
        (
            "wide reference counts, postponed",
            CreateOptions {
                refcount_bits: 64,
                lazy_refcounts: true,
                ..plain(2048)
            },
        ),
    ]
}

fn write_mode() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).writable(true)
}

fn open(storage: Arc<dyn Storage>, name: &str, backing: Option<Image>) -> Result<Image> {
    write_mode()
        .with_backing(backing)
        .open_storage(storage, name)
}

fn open_copy(content: &MemoryStorage, name: &str, backing: Option<Image>) -> Image {
    open(Arc::new(content.fork()), name, backing).unwrap()
}

fn read_all(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// A new image of this kind; an overlay where `backing` names a file.
fn new_image(options: &CreateOptions, size: u64, backing: Option<&str>) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let options = CreateOptions {
        size: Some(size),
        backing: backing.map(spec),
        ..options.clone()
    };
    create_in(&storage, Path::new("image"), &options).unwrap();
    storage
}

fn spec(name: &str) -> BackingSpec {
    BackingSpec {
        path: name.to_owned(),
        format: Format::Qcow2,
    }
}

/// Random writes, zeroes and discards through our engine.
fn scribble(image: &Image, numbers: &mut Numbers, count: u64) {
    for _ in 0..count {
        let sectors = image.size() / 512;
        let start = numbers.below(sectors) * 512;
        let length = (1 + numbers.below(24)) * 512;
        let length = length.min(image.size() - start);
        match numbers.below(7) {
            0 => image.write_zeroes(start, length, true).unwrap(),
            1 => image.discard(start, length).unwrap(),
            _ => image
                .write_at(&numbers.bytes(length as usize), start)
                .unwrap(),
        }
    }
    image.flush().unwrap();
}

/// Fails unless the check finds lost clusters at worst. A dirty image says
/// itself that its counts are not to be trusted; opening it has repaired it.
fn assert_sound(content: &MemoryStorage, place: &str) {
    let report = check_storage(content, Path::new("image")).unwrap();
    assert!(report.is_consistent(), "{place}: {report:?}");
}

type Run<'a> = dyn Fn(&[Arc<dyn Storage>]) -> Result<()> + Sync + 'a;
type Verify<'a> = dyn Fn(&[MemoryStorage], &str) + Sync + 'a;

/// Visits every state of a recorded operation; returns how many.
fn replay(recorder: &Recorder, verify: &Verify<'_>) -> u64 {
    let mut replay: Replay = recorder.replay();
    let mut states = 0;
    loop {
        let at = replay.position();
        verify(&replay.killed(), &format!("killed at {at}"));
        let tears = replay.tears();
        for tear in (0..tears).step_by(tears.div_ceil(10).max(1)) {
            verify(&replay.torn(tear), &format!("torn at {at}.{tear}"));
            states += 1;
        }
        for cut in 0..CUTS {
            let seed = if cut == 0 { 0 } else { at as u64 * CUTS + cut };
            verify(
                &replay.power_lost(seed),
                &format!("power lost at {at}, seed {seed}"),
            );
            states += 1;
        }
        states += 1;
        if !replay.advance() {
            return states;
        }
    }
}

/// What one operation is tried on.
struct Case<'a> {
    /// Files that the operation may change, as they are before.
    files: Vec<MemoryStorage>,
    /// Opens them and runs the operation.
    run: &'a Run<'a>,
    verify: &'a Verify<'a>,
}

impl Case<'_> {
    fn record(&self, fault: Option<Fault>) -> (Recorder, Vec<MemoryStorage>, Result<()>) {
        let recorder = Recorder::new();
        let recorded: Vec<_> = self
            .files
            .iter()
            .map(|file| recorder.storage(file.fork()))
            .collect();
        let storages: Vec<Arc<dyn Storage>> = recorded
            .iter()
            .map(|storage| storage.clone() as Arc<dyn Storage>)
            .collect();
        if let Some(fault) = fault {
            recorder.fail(fault);
        }
        let outcome = (self.run)(&storages);
        let after = recorded.iter().map(|storage| storage.content()).collect();
        (recorder, after, outcome)
    }

    /// Replays and injects faults; returns how many states were verified.
    fn explore(&self, name: &str) -> u64 {
        let (recorder, after, outcome) = self.record(None);
        outcome.unwrap();
        (self.verify)(&after, "completed");
        let mut states = replay(&recorder, self.verify);
        let steps = recorder.position() as u64;
        for after in (0..steps).step_by((steps / 100).max(1) as usize) {
            for kind in [FaultKind::Io, FaultKind::NoSpace, FaultKind::Short(700)] {
                let fault = Fault {
                    after,
                    kind,
                    lasting: true,
                };
                let (_, left, _) = self.record(Some(fault));
                (self.verify)(&left, &format!("{kind:?} from {after} on"));
                states += 1;
            }
        }
        println!("{name}: {steps} storage operations, {states} states");
        states
    }
}

/// Runs `explore` for every kind and a few seeds; prints the total.
fn for_all_kinds(
    operation: &str,
    seeds: u64,
    explore: impl Fn(&str, &CreateOptions, &mut Numbers) -> u64,
) {
    let mut total = 0;
    for (name, options) in kinds() {
        for seed in 0..seeds {
            let mut numbers = Numbers::new(seed * 77 + 5);
            total += explore(&format!("{operation}, {name}"), &options, &mut numbers);
        }
    }
    println!("{operation}: {total} states, none corrupt, none lost");
    assert!(total > 500, "{operation}: only {total} states were tried");
}

const SIZE: u64 = 160 << 10;

#[test]
fn create() {
    for_all_kinds("create", 1, |name, options, _| {
        let run = |files: &[Arc<dyn Storage>]| {
            let options = CreateOptions {
                size: Some(SIZE),
                backing: Some(spec("base")),
                ..options.clone()
            };
            create_in(files[0].as_ref(), Path::new("image"), &options)
        };
        let base = new_image(options, SIZE, None);
        let base = open_copy(&base, "base", None);
        base.write_at(&[3; 5000], 700).unwrap();
        // A file that is not complete yet is no image; one that opens is.
        let verify = |files: &[MemoryStorage], place: &str| {
            let Ok(image) = open(Arc::new(files[0].fork()), "image", Some(base.clone())) else {
                assert_ne!(place, "completed");
                return;
            };
            assert!(read_all(&image) == read_all(&base), "{place}");
            assert_sound(&files[0], place);
        };
        let mut states = 0;
        for _ in 0..4 {
            let case = Case {
                files: vec![MemoryStorage::new()],
                run: &run,
                verify: &verify,
            };
            states += case.explore(name);
        }
        states
    });
}

#[test]
fn commit() {
    for_all_kinds("commit", 4, |name, options, numbers| {
        let base = new_image(options, SIZE - 8192, None);
        scribble(
            &open(Arc::new(base.fork()), "base", None).unwrap(),
            numbers,
            0,
        );
        let base = scribbled(base, "base", None, numbers, 25);
        let over = open_copy(&base, "base", None);
        let top = scribbled(
            new_image(options, SIZE, Some("base")),
            "top",
            Some(over.clone()),
            numbers,
            25,
        );
        let mirror = read_all(&open_copy(&top, "top", Some(over)));
        let run = |files: &[Arc<dyn Storage>]| {
            let base = open(files[0].clone(), "base", None)?;
            let chain = open(Arc::new(top.fork()), "top", Some(base))?;
            ops::commit(&chain, 1, &()).map(drop)
        };
        let verify = |files: &[MemoryStorage], place: &str| {
            let content = files[0].fork();
            let base = open(Arc::new(content.fork()), "base", None).unwrap();
            let seen = read_all(&open_copy(&top, "top", Some(base.clone())));
            assert!(seen == mirror, "{place}: the top reads otherwise");
            if place == "completed" {
                assert!(read_all(&base) == mirror, "the base holds something else");
            }
            sound_after_opening(&files[0], place);
        };
        Case {
            files: vec![base],
            run: &run,
            verify: &verify,
        }
        .explore(name)
    });
}

/// The image with random content, closed properly.
fn scribbled(
    content: MemoryStorage,
    name: &str,
    backing: Option<Image>,
    numbers: &mut Numbers,
    count: u64,
) -> MemoryStorage {
    let content = Arc::new(content);
    let image = open(content.clone(), name, backing).unwrap();
    scribble(&image, numbers, count);
    image.close().unwrap();
    content.fork()
}

/// As it lies there, or, where it says that it is dirty, once a writer opened
/// it.
fn sound_after_opening(content: &MemoryStorage, place: &str) {
    let content = Arc::new(content.fork());
    if !is_dirty(&content) {
        assert_sound(&content, place);
    }
    let image = open(content.clone(), "image", None).unwrap();
    image.close().unwrap();
    assert!(!is_dirty(&content), "{place}: still dirty");
    assert_sound(&content, place);
}

/// As [`sound_after_opening`], for changes of reference counts. Version 2 has
/// no dirty bit: there a crash between the counts and the flags that follow
/// from them leaves flags that contradict the counts. Writing goes on safely
/// all the same, since the counts are never too small, and a repair mends it.
fn sound_or_flags_stale(content: &MemoryStorage, place: &str) {
    let report = check_storage(content, Path::new("image")).unwrap();
    if content_version(content) == 3 || report.is_consistent() {
        return sound_after_opening(content, place);
    }
    let only_flags = report
        .findings
        .iter()
        .all(|finding| finding.severity == Severity::Leak || finding.what.starts_with("COPIED"));
    assert!(
        only_flags && report.check_errors == 0,
        "{place}: {report:?}"
    );

    let written = Arc::new(content.fork());
    let image = open(written.clone(), "image", None).unwrap();
    let mut mirror = read_all(&image);
    mirror[4000..9000].fill(0x77);
    image.write_at(&[0x77; 5000], 4000).unwrap();
    assert!(
        read_all(&image) == mirror,
        "{place}: a write hit more than it should"
    );
    image.close().unwrap();

    let mended = content.fork();
    let name = Path::new("image");
    repair_storage(&mended, name, Repair::All).unwrap();
    assert!(
        check_storage(&mended, name).unwrap().is_clean(),
        "{place}: not mended"
    );
}

fn content_version(content: &MemoryStorage) -> u8 {
    let mut header = [0; 8];
    content.read_at(&mut header, 0).unwrap();
    header[7]
}

fn is_dirty(content: &MemoryStorage) -> bool {
    let mut header = [0; 80];
    content.read_at(&mut header, 0).unwrap();
    header[7] == 3 && header[79] & 1 != 0
}

/// The backing file that a header names.
fn backing_name(content: &MemoryStorage) -> Option<String> {
    let header = cenote_image::qcow2::header::Header::read(content, Path::new("image")).unwrap();
    header.backing_name
}

#[test]
fn rebase_and_flatten() {
    for_all_kinds("rebase", 2, |name, options, numbers| {
        let base = scribbled(
            new_image(options, SIZE - 4096, None),
            "base",
            None,
            numbers,
            20,
        );
        let on_base = || Some(open_copy(&base, "base", None));
        let middle = new_image(options, SIZE - 12288, Some("base"));
        let middle = scribbled(middle, "middle", on_base(), numbers, 20);
        let on_middle = || Some(open_copy(&middle, "middle", on_base()));
        let top = new_image(options, SIZE, Some("middle"));
        let top = scribbled(top, "top", on_middle(), numbers, 20);
        let mirror = read_all(&open_copy(&top, "top", on_middle()));
        let verify = |files: &[MemoryStorage], place: &str| {
            let below = match backing_name(&files[0]).as_deref() {
                Some("middle") => on_middle(),
                Some("base of another, longer name") => on_base(),
                None => None,
                other => panic!("{place}: backing file {other:?}"),
            };
            let image = open_copy(&files[0], "top", below);
            assert!(read_all(&image) == mirror, "{place}: reads otherwise");
            sound_after_opening(&files[0], place);
        };
        let mut states = 0;
        let onto_base = |files: &[Arc<dyn Storage>]| {
            let overlay = open(files[0].clone(), "top", on_middle())?;
            let new = overlay.layer(2).unwrap().clone();
            ops::rebase(&overlay, &new, &spec("base of another, longer name"), &()).map(drop)
        };
        let flatten = |files: &[Arc<dyn Storage>]| {
            let overlay = open(files[0].clone(), "top", on_middle())?;
            ops::flatten(&overlay, &()).map(drop)
        };
        let operations: [&Run<'_>; 2] = [&onto_base, &flatten];
        for run in operations {
            let files = vec![top.fork()];
            let verify = &verify;
            states += Case { files, run, verify }.explore(name);
        }
        states
    });
}

#[test]
fn resize() {
    for_all_kinds("resize", 2, |name, options, numbers| {
        let base = scribbled(
            new_image(options, SIZE + 65536, None),
            "base",
            None,
            numbers,
            20,
        );
        let on_base = || Some(open_copy(&base, "base", None));
        let top = new_image(options, SIZE, Some("base"));
        let top = scribbled(top, "top", on_base(), numbers, 25);
        let mirror = read_all(&open_copy(&top, "top", on_base()));
        let mut states = 0;
        for size in [SIZE + 40960 + 512, SIZE - 50000 / 512 * 512, 40 << 20] {
            let run = |files: &[Arc<dyn Storage>]| {
                let image = open(files[0].clone(), "top", on_base())?;
                ops::resize(&image, size, true)
            };
            let verify = |files: &[MemoryStorage], place: &str| {
                let image = open_copy(&files[0], "top", on_base());
                assert!(
                    image.size() == SIZE || image.size() == size,
                    "{place}: {}",
                    image.size()
                );
                let kept = size.min(SIZE) as usize;
                let mut seen = vec![0; kept];
                image.read_at(&mut seen, 0).unwrap();
                assert!(seen == mirror[..kept], "{place}: content changed");
                if image.size() > SIZE {
                    let mut new = vec![1; (image.size() - SIZE).min(1 << 17) as usize];
                    image.read_at(&mut new, SIZE).unwrap();
                    assert!(
                        new.iter().all(|&byte| byte == 0),
                        "{place}: new bytes are not zero"
                    );
                }
                sound_after_opening(&files[0], place);
            };
            let files = vec![top.fork()];
            let case = Case {
                files,
                run: &run,
                verify: &verify,
            };
            states += case.explore(name);
        }
        states
    });
}

/// What an image with snapshots `a` and `b` holds, and the image.
struct Frozen {
    content: MemoryStorage,
    active: Vec<u8>,
    a: Vec<u8>,
    b: Vec<u8>,
}

fn with_two_snapshots(options: &CreateOptions, numbers: &mut Numbers) -> Frozen {
    let content = Arc::new(new_image(options, SIZE, None));
    let image = open(content.clone(), "image", None).unwrap();
    scribble(&image, numbers, 15);
    let a = read_all(&image);
    image.create_snapshot("a").unwrap();
    scribble(&image, numbers, 15);
    let b = read_all(&image);
    image.create_snapshot("b").unwrap();
    scribble(&image, numbers, 15);
    let active = read_all(&image);
    image.close().unwrap();
    Frozen {
        content: content.fork(),
        active,
        a,
        b,
    }
}

/// The names of all snapshots, each applied to a copy and found to hold what
/// `expected` says.
fn verified_snapshots(
    content: &MemoryStorage,
    expected: impl Fn(&str) -> Vec<u8>,
    place: &str,
) -> Vec<String> {
    let names: Vec<String> = open_copy(content, "image", None)
        .snapshots()
        .unwrap()
        .into_iter()
        .map(|snapshot| snapshot.name)
        .collect();
    for name in &names {
        let copy = open_copy(content, "image", None);
        copy.apply_snapshot(name).unwrap();
        assert!(
            read_all(&copy) == expected(name),
            "{place}: snapshot {name} changed"
        );
    }
    names
}

#[test]
fn internal_snapshots() {
    let counted = AtomicU64::new(0);
    for_all_kinds("internal snapshots", 3, |name, options, numbers| {
        let frozen = with_two_snapshots(options, numbers);
        let held = |name: &str| match name {
            "a" => frozen.a.clone(),
            "b" => frozen.b.clone(),
            _ => frozen.active.clone(),
        };
        let check = |files: &[MemoryStorage], place: &str, may: &[&[&str]], reverted: bool| {
            counted.fetch_add(1, Ordering::Relaxed);
            let image = open_copy(&files[0], "image", None);
            let seen = read_all(&image);
            let ok = seen == frozen.active || (reverted && seen == frozen.a);
            assert!(ok, "{place}: the disk reads otherwise");
            let names = verified_snapshots(&files[0], held, place);
            assert!(
                may.iter().any(|may| *may == names),
                "{place}: snapshots {names:?}"
            );
            sound_or_flags_stale(&files[0], place);
        };
        let with = |files: &[Arc<dyn Storage>]| open(files[0].clone(), "image", None);
        let create = |files: &[Arc<dyn Storage>]| with(files)?.create_snapshot("c").map(drop);
        let apply = |files: &[Arc<dyn Storage>]| with(files)?.apply_snapshot("a");
        let delete = |files: &[Arc<dyn Storage>]| with(files)?.delete_snapshot("a");
        let created = |files: &[MemoryStorage], place: &str| {
            check(files, place, &[&["a", "b"], &["a", "b", "c"]], false);
        };
        let applied = |files: &[MemoryStorage], place: &str| {
            check(files, place, &[&["a", "b"]], true);
        };
        let deleted = |files: &[MemoryStorage], place: &str| {
            check(files, place, &[&["a", "b"], &["b"]], false);
        };
        let mut states = 0;
        let explore = |run, verify| {
            let files = vec![frozen.content.fork()];
            Case { files, run, verify }.explore(name)
        };
        states += explore(&create, &created);
        states += explore(&apply, &applied);
        states += explore(&delete, &deleted);
        states
    });
    println!("{} states verified", counted.into_inner());
}
