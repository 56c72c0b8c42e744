//! `cargo xtask bench wipe`: one run of Cenote's wipe beside a plain `O_DIRECT`
//! write and read and beside the programs users have, on one file of one disk.
//!
//! Ratios are the result; rates belong to the machine. Exits with 1 where a
//! promised ratio is missed.

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

struct Row {
    name: &'static str,
    /// GB/s; none where the program is missing.
    rate: Option<f64>,
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
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("wipe-bench-{}.raw", std::process::id()));
    let result = measure(&path, &folder, gigabytes << 30);
    // Whatever happened, the file is large.
    std::fs::remove_file(&path)?;
    let (rows, promises) = result?;
    Ok(print(&rows, &promises))
}

fn measure(path: &Path, folder: &Path, size: u64) -> Outcome<(Vec<Row>, Vec<Promise>)> {
    fill(path, size)?;
    // Cenote first, so that its memory is this process's peak so far.
    let zero = wipe(path, folder, Algorithm::Zero)?;
    let random = wipe(path, folder, Algorithm::Random)?;
    let memory = peak_memory()?;
    let write = plain_write(path, size)?;
    let read = plain_read(path, size)?;
    let shred = peer(path, size, "shred", &["-n1"])?;
    let scrub_random = peer(path, size, "scrub", &["-f", "-S", "-p", "random"])?;
    let scrub_zero = peer(path, size, "scrub", &["-f", "-S", "-p", "fillzero"])?;
    let dd = dd(path, size)?;

    let ours_zero = rate(size, zero.passes[0].milliseconds);
    let ours_random = rate(size, random.passes[0].milliseconds);
    let verified = |report: &FileReport| {
        report
            .verification
            .as_ref()
            .map_or(0.0, |done| rate(done.bytes, done.milliseconds))
    };
    let (check_zero, check_random) = (verified(&zero), verified(&random));
    let rows = vec![
        Row {
            name: "plain O_DIRECT write, 4 MiB",
            rate: Some(write),
        },
        Row {
            name: "dd zero, direct",
            rate: dd,
        },
        Row {
            name: "cenote zero",
            rate: Some(ours_zero),
        },
        Row {
            name: "cenote random",
            rate: Some(ours_random),
        },
        Row {
            name: "shred -n1",
            rate: shred,
        },
        Row {
            name: "scrub -p random (virsh runs it)",
            rate: scrub_random,
        },
        Row {
            name: "scrub -p fillzero",
            rate: scrub_zero,
        },
        Row {
            name: "plain O_DIRECT read, 4 MiB",
            rate: Some(read),
        },
        Row {
            name: "cenote verify zero",
            rate: Some(check_zero),
        },
        Row {
            name: "cenote verify random",
            rate: Some(check_random),
        },
    ];
    let over = |ours: f64, theirs: Option<f64>| theirs.map(|theirs| ours / theirs);
    let promises = vec![
        Promise {
            what: "zero / plain write",
            ratio: over(ours_zero, Some(write)),
            least: 0.95,
        },
        Promise {
            what: "random / plain write",
            ratio: over(ours_random, Some(write)),
            least: 0.95,
        },
        Promise {
            what: "random / shred -n1",
            ratio: over(ours_random, shred),
            least: 4.0,
        },
        Promise {
            what: "random / scrub random",
            ratio: over(ours_random, scrub_random),
            least: 5.0,
        },
        Promise {
            what: "zero / scrub fillzero",
            ratio: over(ours_zero, scrub_zero),
            least: 1.0,
        },
        Promise {
            what: "verify zero / plain read",
            ratio: over(check_zero, Some(read)),
            least: 0.9,
        },
        Promise {
            what: "verify random / plain read",
            ratio: over(check_random, Some(read)),
            least: 0.9,
        },
        Promise {
            what: "64 MiB / peak memory",
            ratio: Some((64 << 10) as f64 / memory.max(1) as f64),
            least: 1.0,
        },
    ];
    Ok((rows, promises))
}

fn print(rows: &[Row], promises: &[Promise]) -> bool {
    println!("{:<34} {:>8}", "", "GB/s");
    for row in rows {
        match row.rate {
            Some(rate) => println!("{:<34} {rate:>8.2}", row.name),
            None => println!("{:<34} not installed", row.name),
        }
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

/// Memory at an address that is a multiple of 4096, as `O_DIRECT` wants it.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new() -> Self {
        let memory = vec![0; CHUNK + 4096];
        let skip = memory.as_ptr().align_offset(4096);
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

fn plain_write(path: &Path, size: u64) -> Outcome<f64> {
    let file = direct(path)?;
    let mut buffer = Aligned::new();
    let begun = Instant::now();
    for at in (0..size).step_by(CHUNK) {
        file.write_all_at(buffer.slice(), at)?;
    }
    file.sync_data()?;
    Ok(rate(size, begun.elapsed().as_millis() as u64))
}

fn plain_read(path: &Path, size: u64) -> Outcome<f64> {
    let file = direct(path)?;
    let mut buffer = Aligned::new();
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
