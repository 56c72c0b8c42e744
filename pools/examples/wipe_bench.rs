//! `cargo xtask bench wipe`: one run of Cenote's wipe beside a plain `O_DIRECT`
//! write and read and beside the programs users have, on one file of one disk.
//!
//! Ratios are the result; rates belong to the machine. Exits with 1 where a
//! promised ratio is missed.
#![allow(unsafe_code)] // Advice on the memory of the plain writes.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use cenote_image::Format;
use cenote_pools::wipe::{Algorithm, FileJournal, NoOthers, Silent, WipeRequest, Wiper};
use cenote_pools::wipe::{FileReport, Source, WipeReport};

type Outcome<T> = Result<T, Box<dyn Error>>;

const O_DIRECT: i32 = 0o40000;
const CHUNK: usize = 4 << 20;

/// GB/s of each case, one figure a round; empty where the program is missing.
struct Row {
    name: &'static str,
    rates: Vec<f64>,
}

impl Row {
    /// The median of the rounds.
    fn rate(&self) -> Option<f64> {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    }
}

struct Promise {
    what: &'static str,
    ratio: Option<f64>,
    least: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("wipe_bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Outcome<bool> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| ".".to_owned()));
    let gigabytes: u64 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(1), |text| text.parse())?;
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("wipe-bench-{}.raw", std::process::id()));
    let result = measure(&path, &folder, gigabytes << 30, rounds);
    // Whatever happened, the file is large.
    std::fs::remove_file(&path)?;
    let (rows, promises) = result?;
    Ok(print(&rows, &promises))
}

const WRITE: &str = "plain O_DIRECT write, 4 MiB";
const SMALL_PAGES: &str = "the same from pages of 4 KiB";
const DD: &str = "dd zero, direct, 4 MiB";
const ZERO: &str = "cenote zero";
const RANDOM: &str = "cenote random";
const SHRED: &str = "shred -n1";
const SCRUB_RANDOM: &str = "scrub -p random (virsh runs it)";
const SCRUB_ZERO: &str = "scrub -p fillzero";
const READ: &str = "plain O_DIRECT read, 4 MiB";
const CHECK_ZERO: &str = "cenote verify zero";
const CHECK_RANDOM: &str = "cenote verify random";

/// Every case on the same file, all in turn, as often as asked.
fn measure(
    path: &Path,
    folder: &Path,
    size: u64,
    rounds: usize,
) -> Outcome<(Vec<Row>, Vec<Promise>)> {
    fill(path, size)?;
    let names = [
        WRITE,
        SMALL_PAGES,
        DD,
        ZERO,
        RANDOM,
        SHRED,
        SCRUB_RANDOM,
        SCRUB_ZERO,
        READ,
        CHECK_ZERO,
        CHECK_RANDOM,
    ];
    let mut rows: Vec<Row> = names
        .map(|name| Row {
            name,
            rates: Vec::new(),
        })
        .into();
    let mut memory = 0;
    for round in 0..rounds.max(1) {
        let zero = wipe(path, folder, Algorithm::Zero)?;
        let random = wipe(path, folder, Algorithm::Random)?;
        if round == 0 {
            // Before all else, so that it is Cenote's peak and nobody's besides.
            memory = peak_memory()?;
        }
        let figures = [
            (ZERO, Some(written(&zero))),
            (CHECK_ZERO, Some(verified(&zero))),
            (RANDOM, Some(written(&random))),
            (CHECK_RANDOM, Some(verified(&random))),
            (WRITE, Some(plain_write(path, size, Pages::Huge)?)),
            (SMALL_PAGES, Some(plain_write(path, size, Pages::Small)?)),
            (READ, Some(plain_read(path, size)?)),
            (DD, dd(path, size)?),
            (SHRED, peer(path, size, "shred", &["-n1"])?),
            (
                SCRUB_RANDOM,
                peer(path, size, "scrub", &["-f", "-S", "-p", "random"])?,
            ),
            (
                SCRUB_ZERO,
                peer(path, size, "scrub", &["-f", "-S", "-p", "fillzero"])?,
            ),
        ];
        for (name, rate) in figures {
            let row = rows.iter_mut().find(|row| row.name == name);
            row.ok_or("a figure without a row")?.rates.extend(rate);
        }
    }
    let promises = promises(&rows, memory);
    Ok((rows, promises))
}

fn written(report: &FileReport) -> f64 {
    let pass = &report.passes[0];
    rate(pass.bytes, pass.milliseconds)
}

fn verified(report: &FileReport) -> f64 {
    report
        .verification
        .as_ref()
        .map_or(0.0, |done| rate(done.bytes, done.milliseconds))
}

/// The ratios that are promised; `memory` is Cenote's peak in KiB.
fn promises(rows: &[Row], memory: u64) -> Vec<Promise> {
    let of = |name| rows.iter().find(|row| row.name == name)?.rate();
    let promise = |what, ours, theirs, least| Promise {
        what,
        ratio: of(ours).zip(of(theirs)).map(|(ours, theirs)| ours / theirs),
        least,
    };
    vec![
        promise("zero / plain write", ZERO, WRITE, 0.95),
        promise("random / plain write", RANDOM, WRITE, 0.95),
        promise("zero / the same, 4 KiB pages", ZERO, SMALL_PAGES, 0.95),
        promise("random / the same, 4 KiB pages", RANDOM, SMALL_PAGES, 0.95),
        promise("random / shred -n1", RANDOM, SHRED, 4.0),
        promise("random / scrub random", RANDOM, SCRUB_RANDOM, 5.0),
        promise("zero / scrub fillzero", ZERO, SCRUB_ZERO, 1.0),
        promise("verify zero / plain read", CHECK_ZERO, READ, 0.9),
        promise("verify random / plain read", CHECK_RANDOM, READ, 0.9),
        Promise {
            what: "64 MiB / peak memory",
            ratio: Some((64 << 10) as f64 / memory.max(1) as f64),
            least: 1.0,
        },
    ]
}

fn print(rows: &[Row], promises: &[Promise]) -> bool {
    println!("{:<34} {:>8}  rounds", "median of the rounds", "GB/s");
    for row in rows {
        let Some(rate) = row.rate() else {
            println!("{:<34} not installed", row.name);
            continue;
        };
        let rounds: Vec<String> = row.rates.iter().map(|rate| format!("{rate:.2}")).collect();
        println!("{:<34} {rate:>8.2}  {}", row.name, rounds.join(" "));
    }
    println!("\n{:<34} {:>8} {:>8}", "", "ratio", "promised");
    let mut kept = true;
    for promise in promises {
        let Some(ratio) = promise.ratio else { continue };
        let word = if ratio >= promise.least {
            ""
        } else {
            "  MISSED"
        };
        kept &= ratio >= promise.least;
        println!(
            "{:<34} {ratio:>8.2} {:>8.2}{word}",
            promise.what, promise.least
        );
    }
    kept
}

fn rate(bytes: u64, milliseconds: u64) -> f64 {
    bytes as f64 / milliseconds.max(1) as f64 / 1e6
}

/// A file of written extents, so that every run overwrites in place.
fn fill(path: &Path, size: u64) -> Outcome<()> {
    let file = File::create(path)?;
    let block = vec![0x5a; CHUNK];
    for at in (0..size).step_by(CHUNK) {
        file.write_all_at(&block, at)?;
    }
    file.sync_all()?;
    let map = cenote_pools::wipe::map_file(&file, size)?;
    if map.source == Source::Fiemap {
        println!(
            "{} extents of {} MiB in all\n",
            map.extents.len(),
            map.length() >> 20
        );
    }
    Ok(())
}

fn wipe(path: &Path, folder: &Path, algorithm: Algorithm) -> Outcome<FileReport> {
    let records = folder.join(format!("wipe-bench-{}.records", std::process::id()));
    let journal = FileJournal::open(&records)?;
    let request = WipeRequest {
        algorithm,
        best_effort: true,
        ..WipeRequest::new(path, Format::Raw)
    };
    let wiped = Wiper::new(&journal, &NoOthers).wipe(&request, &Silent);
    drop(journal);
    std::fs::remove_dir_all(&records)?;
    let WipeReport { verdict, files, .. } = wiped?.report;
    if verdict.is_failed() {
        return Err(format!("the wipe failed: {verdict}").into());
    }
    files
        .into_iter()
        .next()
        .ok_or_else(|| "a report without files".into())
}

/// What the memory of a plain write consists of. A virtual disk is much faster
/// with huge pages, and a page never written to is the kernel's one page of
/// zeroes; so both kinds are measured, and both filled.
#[derive(Clone, Copy)]
enum Pages {
    Huge,
    Small,
}

/// 4 MiB at an address that is a multiple of 2 MiB, filled.
struct Aligned(Vec<u8>, usize);

/// Larger than what the C library would take from memory used before.
const RESERVE: usize = 64 << 20;
const HUGE: usize = 2 << 20;

impl Aligned {
    fn new(pages: Pages) -> Self {
        let mut memory = vec![0; RESERVE];
        let skip = memory.as_ptr().align_offset(HUGE);
        let advice = match pages {
            Pages::Huge => libc::MADV_HUGEPAGE,
            Pages::Small => libc::MADV_NOHUGEPAGE,
        };
        let place = &mut memory[skip..skip + CHUNK];
        // SAFETY: advice on whole pages of our own; they keep their content.
        unsafe { libc::madvise(place.as_mut_ptr().cast(), CHUNK, advice) };
        place.fill(0xa5);
        Self(memory, skip)
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.0[self.1..self.1 + CHUNK]
    }
}

fn direct(path: &Path) -> Outcome<File> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)?)
}

fn plain_write(path: &Path, size: u64, pages: Pages) -> Outcome<f64> {
    let file = direct(path)?;
    let mut buffer = Aligned::new(pages);
    let begun = Instant::now();
    for at in (0..size).step_by(CHUNK) {
        file.write_all_at(buffer.slice(), at)?;
    }
    file.sync_data()?;
    Ok(rate(size, begun.elapsed().as_millis() as u64))
}

fn plain_read(path: &Path, size: u64) -> Outcome<f64> {
    let file = direct(path)?;
    let mut buffer = Aligned::new(Pages::Huge);
    let begun = Instant::now();
    for at in (0..size).step_by(CHUNK) {
        file.read_exact_at(buffer.slice(), at)?;
    }
    Ok(rate(size, begun.elapsed().as_millis() as u64))
}

/// A peer with what it takes to have the data on the disk.
fn peer(path: &Path, size: u64, program: &str, arguments: &[&str]) -> Outcome<Option<f64>> {
    let begun = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        status if !status.as_ref().is_ok_and(std::process::ExitStatus::success) => {
            return Err(format!("{program}: {status:?}").into());
        }
        _ => {}
    }
    File::open(path)?.sync_data()?;
    Ok(Some(rate(size, begun.elapsed().as_millis() as u64)))
}

fn dd(path: &Path, size: u64) -> Outcome<Option<f64>> {
    let begun = Instant::now();
    let status = Command::new("dd")
        .args([
            "if=/dev/zero",
            "bs=4M",
            "oflag=direct",
            "conv=notrunc,fdatasync",
            "status=none",
        ])
        .arg(format!("of={}", path.display()))
        .arg(format!("count={}", size / CHUNK as u64))
        .status()?;
    if !status.success() {
        return Err(format!("dd: {status}").into());
    }
    Ok(Some(rate(size, begun.elapsed().as_millis() as u64)))
}

/// Peak resident memory of this process, KiB.
fn peak_memory() -> Outcome<u64> {
    let mut text = String::new();
    File::open("/proc/self/status")?.read_to_string(&mut text)?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no VmHWM in /proc/self/status")?.parse()?)
}
