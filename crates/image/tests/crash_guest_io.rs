//! Guest I/O against crashes: random workloads are recorded, every position
//! of their logs is replayed as a kill, as torn writes and as power cuts, and
//! each state found must open, check clean (leaks aside) and hold what a guest
//! may expect.

#![allow(clippy::unwrap_used)]

mod crash;
mod tools;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cenote_image::check::{Repair, check_storage, repair_storage};
use cenote_image::create::{Compat, CreateOptions, create};
use cenote_image::qcow2::header::{Header, incompatible};
use cenote_image::storage::testing::{Crash, Fault, FaultKind, Recorder};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{BackingSpec, Format, Image, OpenOptions};
use crash::{Expectation, History, SECTOR, Value, bytes_of, read_all};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tools::{directory, qemu_img, text, try_qemu_img};

/// States seen by all tests of this process.
static STATES: AtomicU64 = AtomicU64::new(0);
/// States that QEMU has judged too.
static JUDGED: AtomicU64 = AtomicU64::new(0);

/// What lies below the image.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    Nothing,
    Raw,
    /// A qcow2 base that ends inside the overlay, in the middle of a cluster.
    ShortQcow2,
}

#[derive(Clone, Copy)]
struct Case {
    cluster_size: u64,
    refcount_bits: u32,
    version_2: bool,
    extended_l2: bool,
    lazy_refcounts: bool,
    base: Base,
    data_file: bool,
    /// Some clusters are compressed before and during the workload.
    compressed: bool,
    /// An internal snapshot holds what was there before.
    snapshot: bool,
    /// Kibibytes.
    size: usize,
    /// Kibibytes written before the recording begins.
    filled: usize,
    operations: usize,
    threads: usize,
}

const PLAIN: Case = Case {
    cluster_size: 65536,
    refcount_bits: 16,
    version_2: false,
    extended_l2: false,
    lazy_refcounts: false,
    base: Base::Nothing,
    data_file: false,
    compressed: false,
    snapshot: false,
    size: 1024,
    filled: 0,
    operations: 160,
    threads: 1,
};

/// A case with its files: recorded ones first the image, then the data file.
struct Stage {
    case: Case,
    dir: tempfile::TempDir,
    recorder: Recorder,
    files: Vec<Arc<dyn Storage>>,
    backing: Option<Image>,
}

fn open(
    case: &Case,
    files: &[Arc<dyn Storage>],
    backing: Option<&Image>,
    writable: bool,
) -> cenote_image::Result<Image> {
    OpenOptions::new(Format::Qcow2)
        .writable(writable)
        .with_backing(backing.cloned())
        .with_data_file(files.get(1).filter(|_| case.data_file).cloned())
        .open_storage(files[0].clone(), "image")
}

/// Makes the layer below, with a value of its own in every sector.
fn make_base(case: &Case, dir: &Path) -> Option<(BackingSpec, Image)> {
    let format = match case.base {
        Base::Nothing => return None,
        Base::Raw => Format::Raw,
        Base::ShortQcow2 => Format::Qcow2,
    };
    let size = match case.base {
        Base::ShortQcow2 => case.size * 1024 * 3 / 4 - 3 * SECTOR,
        _ => case.size * 1024,
    };
    let path = dir.join("base");
    create(&path, &CreateOptions::new(format, size as u64)).unwrap();
    let base = OpenOptions::new(format).writable(true).open(&path).unwrap();
    let values: Vec<Value> = (0..size / SECTOR)
        .map(|at| 0xba5e_0000 + at as u64)
        .collect();
    base.write_at(&bytes_of(&values), 0).unwrap();
    base.close().unwrap();
    let spec = BackingSpec {
        path: text(&path).to_owned(),
        format,
    };
    Some((spec, OpenOptions::new(format).open(&path).unwrap()))
}

fn stage(case: Case, seed: u64) -> Stage {
    let dir = directory();
    let base = make_base(&case, dir.path());
    let path = dir.path().join("image");
    let mut options = CreateOptions::new(Format::Qcow2, case.size as u64 * 1024);
    options.cluster_size = case.cluster_size;
    options.refcount_bits = case.refcount_bits;
    options.extended_l2 = case.extended_l2;
    options.lazy_refcounts = case.lazy_refcounts;
    options.compat = if case.version_2 {
        Compat::V2
    } else {
        Compat::V3
    };
    options.backing = base.as_ref().map(|(spec, _)| spec.clone());
    let data_path = dir.path().join("data");
    options.data_file = case.data_file.then(|| text(&data_path).to_owned());
    create(&path, &options).unwrap();
    let image = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .open(&path)
        .unwrap();
    let mut rng = SmallRng::seed_from_u64(seed);
    let values: Vec<Value> = (0..case.filled * 2).map(|_| rng.random()).collect();
    image.write_at(&bytes_of(&values), 0).unwrap();
    if case.compressed {
        let history = History::new(&Recorder::new(), &image);
        let count = case.cluster_size as usize / SECTOR;
        for cluster in 0..history.sectors() / count / 2 {
            history.write_compressed(&image, cluster * count, count);
        }
    }
    if case.snapshot {
        image.create_snapshot("before").unwrap();
    }
    image.close().unwrap();
    let recorder = Recorder::new();
    let mut files: Vec<Arc<dyn Storage>> = Vec::new();
    files.push(recorder.storage(MemoryStorage::from_bytes(&std::fs::read(&path).unwrap())));
    if case.data_file {
        files.push(recorder.storage(MemoryStorage::from_bytes(
            &std::fs::read(&data_path).unwrap(),
        )));
    }
    Stage {
        case,
        dir,
        recorder,
        files,
        backing: base.map(|(_, image)| image),
    }
}

/// Random work on the sectors from `first` to `end`.
fn work(
    history: &History,
    image: &Image,
    case: &Case,
    (first, end): (usize, usize),
    rng: &mut SmallRng,
    operations: usize,
) {
    let cluster = case.cluster_size as usize / SECTOR;
    for _ in 0..operations {
        let longest = [3, 40, cluster, 3 * cluster][rng.random_range(0..4)].max(2);
        let mut at = rng.random_range(first..end);
        let mut count = rng.random_range(1..longest.min(300)).min(end - at);
        if rng.random_range(0..4) == 0 {
            // Whole clusters.
            at = (at / cluster * cluster).max(first);
            count = (count.next_multiple_of(cluster)).min(end - at);
        }
        match rng.random_range(0..16) {
            0..7 => history.write(image, at, count),
            7 | 8 => history.zero(image, at, count, true),
            9 => history.zero(image, at, count, false),
            10..13 => history.discard(image, at, count),
            13 if case.compressed && end - at >= cluster => {
                let at = at / cluster * cluster;
                history.write_compressed(image, at, cluster);
            }
            _ => history.flush(image),
        }
    }
}

/// Records a workload; the image is opened and closed several times in it.
fn record(stage: &Stage, seed: u64) -> History {
    let case = &stage.case;
    let mut rng = SmallRng::seed_from_u64(seed);
    let image = open(case, &stage.files, stage.backing.as_ref(), true).unwrap();
    let history = History::new(&stage.recorder, &image);
    let sectors = history.sectors();
    let mut image = Some(image);
    for _ in 0..2 {
        let opened = image
            .take()
            .unwrap_or_else(|| open(case, &stage.files, stage.backing.as_ref(), true).unwrap());
        let operations = case.operations / 2;
        if case.threads == 1 {
            work(&history, &opened, case, (0, sectors), &mut rng, operations);
        } else {
            // Borders lie inside clusters, so that neighbours meet there.
            std::thread::scope(|scope| {
                for thread in 0..case.threads {
                    let (history, opened) = (&history, &opened);
                    let border = |thread: usize| {
                        let at = sectors * thread / case.threads;
                        if thread == 0 || thread == case.threads {
                            at
                        } else {
                            at + 3
                        }
                    };
                    let range = (border(thread), border(thread + 1));
                    let mut rng = SmallRng::seed_from_u64(rng.random());
                    scope.spawn(move || {
                        work(
                            history,
                            opened,
                            case,
                            range,
                            &mut rng,
                            operations / case.threads,
                        );
                    });
                }
            });
        }
        history.assert_current(&opened);
        opened.close().unwrap();
    }
    history
}

/// What one state was like.
struct Found {
    values: Vec<Value>,
}

/// Opens a state as its next user would.
fn examine(stage: &Stage, files: &[Arc<dyn Storage>]) -> Result<Found, String> {
    let name = Path::new("image");
    let storage = files[0].as_ref();
    let header = Header::read(storage, name).map_err(|error| error.to_string())?;
    if header.incompatible & incompatible::DIRTY != 0 {
        // Readable before any repair, too.
        let image = open(&stage.case, files, stage.backing.as_ref(), false)
            .map_err(|error| error.to_string())?;
        let before = read_all(&image)?;
        drop(image);
        let report =
            repair_storage(storage, name, Repair::All).map_err(|error| error.to_string())?;
        if !report.is_clean() {
            return Err(format!("after repair: {:?}", report.findings));
        }
        let image = open(&stage.case, files, stage.backing.as_ref(), false)
            .map_err(|error| error.to_string())?;
        if read_all(&image)? != before {
            return Err("the repair changed data".into());
        }
    }
    let report = check_storage(storage, name).map_err(|error| error.to_string())?;
    if !report.is_consistent() {
        return Err(format!("check: {:?}", report.findings));
    }
    let image = open(&stage.case, files, stage.backing.as_ref(), false)
        .map_err(|error| error.to_string())?;
    Ok(Found {
        values: read_all(&image)?,
    })
}

/// The state goes on living: it is written to, closed and checked again.
fn live_on(
    stage: &Stage,
    files: &[Arc<dyn Storage>],
    values: &mut [Value],
    seed: u64,
) -> Result<(), String> {
    let wrong = |error: cenote_image::Error| error.to_string();
    let image = open(&stage.case, files, stage.backing.as_ref(), true).map_err(wrong)?;
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..8 {
        let at = rng.random_range(0..values.len());
        let count = rng.random_range(1..200).min(values.len() - at);
        for value in &mut values[at..at + count] {
            *value = rng.random();
        }
        let bytes = bytes_of(&values[at..at + count]);
        image
            .write_at(&bytes, (at * SECTOR) as u64)
            .map_err(wrong)?;
    }
    image.close().map_err(wrong)?;
    let found = examine(stage, files)?;
    if found.values != values {
        return Err("writes after the crash damaged other data".into());
    }
    Ok(())
}

/// qemu-img finds the same disk, and no corruption.
fn ask_qemu(stage: &Stage, files: &[MemoryStorage], values: &[Value]) -> Result<(), String> {
    let path = stage.dir.path().join("image");
    files[0].save(&path).unwrap();
    if let Some(data) = files.get(1) {
        data.save(&stage.dir.path().join("data")).unwrap();
    }
    let raw = stage.dir.path().join("expected.raw");
    std::fs::write(&raw, bytes_of(values)).unwrap();
    // 0: clean, 3: leaks only.
    let output = try_qemu_img(&["check", "-f", "qcow2", text(&path)]);
    if !matches!(output.status.code(), Some(0 | 3)) {
        return Err(format!("qemu-img check: {output:?}"));
    }
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&path),
        text(&raw),
    ]);
    JUDGED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn judge(
    stage: &Stage,
    expectation: &mut Expectation,
    number: u64,
    at: usize,
    files: Vec<MemoryStorage>,
) -> Result<(), String> {
    let shared: Vec<Arc<dyn Storage>> = files
        .iter()
        .map(|file| Arc::new(file.fork()) as Arc<dyn Storage>)
        .collect();
    let mut found = examine(stage, &shared)?;
    expectation.judge(at, &found.values)?;
    if number % 257 == 100 {
        let dirty = Header::read(&files[0], Path::new("image"))
            .unwrap()
            .incompatible
            & incompatible::DIRTY;
        if dirty == 0 {
            ask_qemu(stage, &files, &found.values)?;
        }
    }
    if number.is_multiple_of(16) {
        live_on(stage, &shared, &mut found.values, number)?;
    }
    Ok(())
}

fn run(name: &str, case: Case, tears: usize, cuts: u64, seeds: std::ops::Range<u64>) {
    let mut states = 0;
    for seed in seeds {
        let stage = stage(case, seed);
        let history = record(&stage, seed);
        let mut expectation = history.expectation();
        stage
            .recorder
            .replay()
            .for_each_crash(tears, cuts, |at, crash: Crash, files| {
                let saved: Vec<MemoryStorage> = files.iter().map(MemoryStorage::fork).collect();
                if let Err(wrong) = judge(&stage, &mut expectation, states, at, files) {
                    let place =
                        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.qcow2"));
                    saved[0].save(&place).unwrap();
                    panic!(
                        "{name}, seed {seed}, {crash:?} at {at}: {wrong}\nthe state is in {}",
                        place.display()
                    );
                }
                states += 1;
            });
    }
    let total = STATES.fetch_add(states, Ordering::Relaxed) + states;
    let judged = JUDGED.load(Ordering::Relaxed);
    println!("{name}: {states} states; {total} so far, {judged} of them judged by qemu-img");
}

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name), $case, 2, 4, 0..seeds());
        })*
    };
}

/// Workloads per case; `CENOTE_CRASH_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("CENOTE_CRASH_SEEDS").map_or(2, |count| count.parse().unwrap())
}

cases! {
    default: PLAIN;
    clusters_512: Case { cluster_size: 512, size: 256, ..PLAIN };
    clusters_512_version_2: Case { cluster_size: 512, size: 256, version_2: true, ..PLAIN };
    clusters_512_tables_grow: Case {
        cluster_size: 512, refcount_bits: 64, size: 3072, filled: 1900, operations: 60, ..PLAIN
    };
    clusters_4k_refcount_1: Case { cluster_size: 4096, refcount_bits: 1, size: 512, ..PLAIN };
    clusters_1k_refcount_2: Case { cluster_size: 1024, refcount_bits: 2, size: 512, filled: 100, ..PLAIN };
    clusters_4k_short_base: Case { cluster_size: 4096, size: 512, base: Base::ShortQcow2, ..PLAIN };
    default_raw_base: Case { base: Base::Raw, ..PLAIN };
    version_2_raw_base: Case { version_2: true, cluster_size: 8192, base: Base::Raw, ..PLAIN };
    extended_l2: Case { extended_l2: true, filled: 200, ..PLAIN };
    extended_l2_16k_short_base: Case {
        extended_l2: true, cluster_size: 16384, size: 512, base: Base::ShortQcow2, ..PLAIN
    };
    lazy_refcounts_4k: Case { lazy_refcounts: true, cluster_size: 4096, size: 512, filled: 80, ..PLAIN };
    snapshot_2k_refcount_8: Case {
        cluster_size: 2048, refcount_bits: 8, size: 512, filled: 400, snapshot: true, ..PLAIN
    };
    snapshot_4k_short_base: Case {
        cluster_size: 4096, size: 512, filled: 200, snapshot: true, base: Base::ShortQcow2, ..PLAIN
    };
    compressed_8k: Case { cluster_size: 8192, size: 512, compressed: true, ..PLAIN };
    compressed_4k_snapshot: Case {
        cluster_size: 4096, size: 512, compressed: true, snapshot: true, refcount_bits: 32, ..PLAIN
    };
    data_file_4k: Case { cluster_size: 4096, size: 512, data_file: true, ..PLAIN };
    four_threads_4k: Case { cluster_size: 4096, size: 512, threads: 4, ..PLAIN };
    four_threads_512_raw_base: Case {
        cluster_size: 512, size: 256, threads: 4, base: Base::Raw, ..PLAIN
    };
    four_threads_extended_l2: Case {
        extended_l2: true, cluster_size: 16384, threads: 4, base: Base::Raw, ..PLAIN
    };
}

/// Storage that forgets to pass syncs on.
#[derive(Debug)]
struct WithoutBarriers(Arc<dyn Storage>);

impl Storage for WithoutBarriers {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn write_zeroes_at(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.0.write_zeroes_at(offset, length, unmap)
    }
    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.discard_at(offset, length)
    }
    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.allocate_at(offset, length)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }
}

#[test]
fn missing_barriers_are_found_out() {
    let mut stage = stage(
        Case {
            cluster_size: 4096,
            size: 512,
            ..PLAIN
        },
        1,
    );
    stage.files[0] = Arc::new(WithoutBarriers(stage.files[0].clone()));
    let history = record(&stage, 1);
    let mut expectation = history.expectation();
    let (mut corrupt, mut lost) = (0, 0);
    stage
        .recorder
        .replay()
        .for_each_crash(0, 2, |at, _, files| {
            let shared: Vec<Arc<dyn Storage>> = files
                .into_iter()
                .map(|file| Arc::new(file) as Arc<dyn Storage>)
                .collect();
            match examine(&stage, &shared) {
                Err(_) => corrupt += 1,
                Ok(found) => lost += u32::from(expectation.judge(at, &found.values).is_err()),
            }
        });
    println!("without barriers: {corrupt} states corrupt, {lost} with data lost");
    assert!(corrupt > 10 && lost > 10);
}

/// Every operation in turn fails, once or from then on. Nothing is lost that
/// was flushed, nothing is corrupt, and a disk that was full goes on when it
/// no longer is.
#[test]
fn errors_of_the_host_lose_nothing() {
    let kinds = [
        Case {
            cluster_size: 4096,
            size: 256,
            operations: 60,
            ..PLAIN
        },
        Case {
            cluster_size: 512,
            size: 128,
            operations: 60,
            base: Base::Raw,
            ..PLAIN
        },
        Case {
            extended_l2: true,
            cluster_size: 16384,
            operations: 60,
            ..PLAIN
        },
        Case {
            cluster_size: 4096,
            size: 256,
            operations: 60,
            snapshot: true,
            filled: 100,
            ..PLAIN
        },
    ];
    let faults = [
        (FaultKind::Io, false),
        (FaultKind::NoSpace, true),
        (FaultKind::Short(512), false),
    ];
    let mut met = 0;
    for (number, case) in kinds.into_iter().enumerate() {
        for (kind, lasting) in faults {
            for after in (0..).step_by(2) {
                let stage = stage(case, number as u64);
                let fault = Fault {
                    after,
                    kind,
                    lasting,
                };
                let context = format!("kind {number}, {fault:?}");
                if !fail_once(&stage, fault, &context) {
                    break;
                }
                met += 1;
            }
        }
    }
    println!("{met} faults");
    assert!(met > 400);
}

/// False when the workload ended before the fault was met.
fn fail_once(stage: &Stage, fault: Fault, context: &str) -> bool {
    let case = &stage.case;
    let image = open(case, &stage.files, stage.backing.as_ref(), true).unwrap();
    let mut history = History::new(&stage.recorder, &image);
    history.tolerate_errors();
    stage.recorder.fail(fault);
    let mut rng = SmallRng::seed_from_u64(3);
    let all = (0, history.sectors());
    work(&history, &image, case, all, &mut rng, case.operations);
    if stage.recorder.faults_met() == 0 {
        return false;
    }
    stage.recorder.heal();
    work(&history, &image, case, all, &mut rng, 20);
    let flushed = image.flush();
    if fault.kind == FaultKind::NoSpace {
        flushed.unwrap_or_else(|error| panic!("{context}: still failing: {error}"));
        history.flush(&image);
    }
    drop(image);
    let found = examine(stage, &stage.files).unwrap_or_else(|wrong| panic!("{context}: {wrong}"));
    history
        .expectation()
        .judge(usize::MAX, &found.values)
        .unwrap_or_else(|wrong| panic!("{context}: {wrong}"));
    true
}
