//! Reads and writes: fixed counts of requests of one size against `qemu-img bench`.

use super::image::{Programs, qemu_img, text};
use super::measure::{self, number_after};
use super::report::{Row, Series, Unit};
use super::{Scratch, Wanted};
use crate::shell::{Outcome, program, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// The size of the images.
const SIZE: u64 = 1024 * MIB;

/// How many layers the long chain has.
const CHAIN: usize = 64;

/// What the image is like when a case begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// All clusters written, in the page cache.
    Written,
    /// No cluster allocated.
    Empty,
    /// An empty overlay over the written image.
    Overlay,
    /// The top of a chain, each layer of which holds every 64th cluster.
    Chain,
}

struct Case {
    name: &'static str,
    begin: Begin,
    write: bool,
    direct: bool,
    size: u64,
    /// From one request's start to the next, modulo the size of the image.
    step: u64,
    count: u64,
    depth: u32,
    goal: f64,
}

const fn case(name: &'static str, begin: Begin, size: u64, count: u64) -> Case {
    Case {
        name,
        begin,
        write: false,
        direct: false,
        size,
        step: size,
        count,
        depth: 1,
        goal: 1.0,
    }
}

const fn write(case: Case) -> Case {
    Case {
        write: true,
        ..case
    }
}

const fn direct(case: Case) -> Case {
    Case {
        direct: true,
        ..case
    }
}

const fn depth(depth: u32, case: Case) -> Case {
    Case { depth, ..case }
}

const fn step(step: u64, case: Case) -> Case {
    Case { step, ..case }
}

/// An odd number of 4 KiB blocks, so that a step of it visits each block once in an order
/// that no read-ahead follows.
const SCATTER: u64 = 4096 * 40_507;

const CASES: &[Case] = {
    use Begin::{Chain, Empty, Overlay, Written};
    &[
        write(case("buffered 1 MiB write, new", Empty, MIB, 1024)),
        write(case("buffered 1 MiB overwrite", Written, MIB, 4096)),
        case("buffered 1 MiB read", Written, MIB, 4096),
        case("buffered 4 KiB read", Written, 4096, 100_000),
        write(case("buffered 4 KiB overwrite", Written, 4096, 100_000)),
        step(
            65536,
            write(case("buffered 4 KiB copy-on-write", Overlay, 4096, 16384)),
        ),
        direct(write(case("direct 1 MiB write, new", Empty, MIB, 1024))),
        direct(write(case("direct 1 MiB overwrite", Written, MIB, 1024))),
        direct(case("direct 1 MiB read", Written, MIB, 1024)),
        direct(step(
            65536,
            write(case("direct 4 KiB copy-on-write", Overlay, 4096, 4096)),
        )),
        depth(
            16,
            direct(case("direct 4 KiB read, depth 16", Written, 4096, 60_000)),
        ),
        depth(
            16,
            direct(write(case(
                "direct 4 KiB write, depth 16",
                Written,
                4096,
                60_000,
            ))),
        ),
        step(
            SCATTER,
            case("4 KiB random read, chain of 64", Chain, 4096, 50_000),
        ),
    ]
};

/// Prepares the images and measures the cases that are wanted.
pub(super) fn measure_all(
    wanted: &Wanted,
    programs: &Programs,
    scratch: &Scratch,
) -> Outcome<Vec<Row>> {
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| wanted.wants(case.name))
        .collect();
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let files = Files::prepare(scratch)?;
    let mut rows: Vec<Row> = cases.iter().map(|case| row(case)).collect();
    for round in 1..=wanted.rounds {
        for (case, row) in cases.iter().zip(&mut rows) {
            println!("round {round}: {}", case.name);
            for peer in &mut row.peers {
                let image = files.begin(case.begin, scratch)?;
                let measured = measure::run(&qemu(case, &peer.name, &image))?;
                let seconds = number_after(&measured.output, "completed in")?;
                peer.add(rate(case, seconds), measured.peak_rss);
            }
            let image = files.begin(case.begin, scratch)?;
            let measured = measure::run(&cenote(case, programs, &image))?;
            let seconds = number_after(&measured.output, "seconds")?;
            row.ours.add(rate(case, seconds), measured.peak_rss);
        }
    }
    files.judge()?;
    Ok(rows)
}

fn row(case: &Case) -> Row {
    let mut peers = vec![Series::new("threads"), Series::new("io_uring")];
    if case.direct {
        peers.push(Series::new("native"));
    }
    Row {
        case: case.name.into(),
        unit: Unit::MebibytesPerSecond,
        ours: Series::new("cenote"),
        peers,
        goal: case.goal,
        at_most: None,
    }
}

fn rate(case: &Case, seconds: f64) -> f64 {
    (case.count * case.size) as f64 / MIB as f64 / seconds
}

fn numbers(case: &Case) -> [(&'static str, String); 4] {
    [
        ("-c", case.count.to_string()),
        ("-d", case.depth.to_string()),
        ("-s", case.size.to_string()),
        ("-S", case.step.to_string()),
    ]
}

fn qemu(case: &Case, aio: &str, image: &Path) -> Command {
    let cache = if case.direct { "none" } else { "writeback" };
    let mut command = qemu_img(&["bench", "-f", "qcow2", "-t", cache, "-i", aio]);
    command.args(["--pattern", "165"]);
    for (option, value) in numbers(case) {
        command.arg(option).arg(value);
    }
    if case.write {
        command.arg("-w");
    }
    command.arg(image);
    command
}

fn cenote(case: &Case, programs: &Programs, image: &Path) -> Command {
    let cache = if case.direct { "none" } else { "writeback" };
    let mut command = programs.ours(&["io", "-f", "qcow2", "-t", cache]);
    for (option, value) in numbers(case) {
        command.arg(option).arg(value);
    }
    if case.write {
        command.arg("-w");
    }
    command.arg(image);
    command
}

/// The images of the cases.
struct Files {
    written: PathBuf,
    empty: PathBuf,
    overlay: PathBuf,
    chain: PathBuf,
}

impl Files {
    fn prepare(scratch: &Scratch) -> Outcome<Self> {
        let files = Self {
            written: scratch.file("written.qcow2"),
            empty: scratch.file("empty.qcow2"),
            overlay: scratch.file("overlay.qcow2"),
            chain: scratch.file(&format!("layer-{CHAIN}.qcow2")),
        };
        println!("preparing images");
        create(&files.written, SIZE)?;
        fill(&files.written, 0, MIB, MIB, SIZE / MIB)?;
        for layer in 1..=CHAIN {
            let file = scratch.file(&format!("layer-{layer}.qcow2"));
            if layer == 1 {
                create(&file, SIZE)?;
            } else {
                let below = scratch.file(&format!("layer-{}.qcow2", layer - 1));
                overlay(&file, &below)?;
            }
            let cluster = 65536;
            let stride = cluster * CHAIN as u64;
            let first = (layer as u64 - 1) * cluster;
            fill(&file, first, cluster, stride, SIZE / stride)?;
        }
        Ok(files)
    }

    /// Brings the image to the state in which the case begins, and gives it.
    fn begin(&self, begin: Begin, scratch: &Scratch) -> Outcome<PathBuf> {
        match begin {
            Begin::Empty => create(&self.empty, SIZE)?,
            Begin::Overlay => overlay(&self.overlay, &self.written)?,
            Begin::Written | Begin::Chain => {}
        }
        // What others wrote is on the disk, what will be read in the cache, for each program
        // alike.
        run(program("sync", ["-f"]).arg(&self.written))?;
        let image = match begin {
            Begin::Written => &self.written,
            Begin::Empty => &self.empty,
            Begin::Overlay => &self.overlay,
            Begin::Chain => &self.chain,
        };
        if matches!(begin, Begin::Empty | Begin::Overlay) {
            scratch.warm_page_cache()?;
        }
        if matches!(begin, Begin::Written | Begin::Overlay) {
            run(program("dd", ["of=/dev/null", "bs=1M", "status=none"])
                .arg(format!("if={}", text(&self.written))))?;
        }
        Ok(image.clone())
    }

    /// The images are still right after everyone wrote to them.
    fn judge(&self) -> Outcome<()> {
        for file in [&self.written, &self.empty, &self.overlay] {
            if file.exists() {
                run(&mut qemu_img(&["check", "-q", "-f", "qcow2", text(file)]))?;
            }
        }
        Ok(())
    }
}

/// A new empty qcow2 image.
pub(super) fn create(file: &Path, size: u64) -> Outcome<()> {
    let size = size.to_string();
    run(&mut qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(file),
        &size,
    ]))
}

/// A new overlay over a qcow2 image.
pub(super) fn overlay(file: &Path, below: &Path) -> Outcome<()> {
    let options = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    run(qemu_img(&options).arg(below).arg(file))
}

/// Writes `count` pieces of `size` bytes, `step` bytes apart, from `first` on.
pub(super) fn fill(file: &Path, first: u64, size: u64, step: u64, count: u64) -> Outcome<()> {
    let mut command = qemu_img(&["bench", "-q", "-w", "-f", "qcow2", "--pattern", "165"]);
    for (option, value) in [("-o", first), ("-s", size), ("-S", step), ("-c", count)] {
        command.arg(option).arg(value.to_string());
    }
    command.arg(file).stdout(std::process::Stdio::null());
    run(&mut command)
}
