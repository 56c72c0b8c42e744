//! Whole operations: convert, commit, rebase, flatten, check, and making overlays, each timed
//! from the start of the process to its end.

use super::image::{Programs, qemu_img, text};
use super::measure;
use super::report::{Row, Series, Unit};
use super::transfer::{create, fill, overlay};
use super::{Scratch, Wanted};
use crate::shell::{Outcome, program, quoted, run};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The virtual size of the images that are converted and merged; half of it is written.
const SIZE: u64 = 2 * GIB;

/// Overlays made per measured process, so that their CPU time is more than a clock tick.
const OVERLAYS: u64 = 50;

/// What a good user of qemu-img would set.
const CONVERT: &[&[&str]] = &[&[], &["-W", "-m", "16"]];
/// The same where the result is to be on the disk at the end, which is not the default.
const CONVERT_DURABLE: &[&[&str]] = &[
    &["-t", "writeback"],
    &["-W", "-m", "16", "-t", "writeback"],
    &["-W", "-m", "16", "-t", "none", "-T", "none"],
];
const REWRITE: &[&[&str]] = &[&[], &["-t", "none", "-T", "none"]];
const COMMIT: &[&[&str]] = &[&[], &["-t", "none"]];

/// Measures the operations that are wanted.
pub(super) fn measure_all<'a>(
    wanted: &'a Wanted,
    programs: &'a Programs,
    scratch: &'a Scratch,
) -> Outcome<Vec<Row>> {
    let bench = Operations {
        wanted,
        programs,
        scratch,
    };
    let cases: [(&str, Measure<'a>); 10] = [
        ("convert raw to qcow2", Operations::convert_in),
        ("convert qcow2 to raw", Operations::convert_out),
        ("convert raw to qcow2, durable", Operations::convert_in),
        ("convert qcow2 to raw, durable", Operations::convert_out),
        ("commit", Operations::commit),
        ("rebase", Operations::rebase),
        ("flatten", Operations::flatten),
        ("check 1 TiB, 64 GiB mapped", Operations::check),
        ("overlay on 1 GiB", Operations::overlay_small),
        ("overlay on 1 TiB", Operations::overlay_large),
    ];
    let mut rows = Vec::new();
    for (name, measure) in cases {
        if wanted.wants(name) {
            println!("{name}");
            rows.push(measure(&bench, name)?);
        }
    }
    Ok(rows)
}

/// One operation's measurement.
type Measure<'a> = fn(&Operations<'a>, &str) -> Outcome<Row>;

/// What the cases work with.
struct Operations<'a> {
    wanted: &'a Wanted,
    programs: &'a Programs,
    scratch: &'a Scratch,
}

impl Operations<'_> {
    /// Measures ours and each of the peer's variants in turn; `before` sets the files up for
    /// each run and is not timed.
    fn rounds(
        &self,
        row: &mut Row,
        ours: &Command,
        peers: &[Command],
        before: impl Fn() -> Outcome<()>,
    ) -> Outcome<()> {
        for _ in 0..self.wanted.rounds {
            for (series, command) in row.peers.iter_mut().zip(peers) {
                before()?;
                let measured = measure::run(command)?;
                series.add(value(row.unit, &measured), measured.peak_rss);
            }
            before()?;
            let measured = measure::run(ours)?;
            row.ours.add(value(row.unit, &measured), measured.peak_rss);
        }
        Ok(())
    }

    /// Has what was written before on the disk and memory for what will be written at hand, so
    /// that nobody's run pays for either.
    fn settle(&self, file: &Path) -> Outcome<()> {
        run(program("sync", ["-f"]).arg(file))?;
        self.scratch.warm_page_cache()
    }

    /// A qcow2 image with every other MiB written.
    fn half_written(&self, name: &str) -> Outcome<PathBuf> {
        let file = self.scratch.file(name);
        if !file.exists() {
            create(&file, SIZE)?;
            fill(&file, 0, MIB, 2 * MIB, SIZE / (2 * MIB))?;
        }
        Ok(file)
    }

    fn convert_in(&self, name: &str) -> Outcome<Row> {
        let source = self.half_written("half.qcow2")?;
        let raw = self.scratch.file("half.raw");
        run(&mut qemu_img(&[
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            text(&source),
            text(&raw),
        ]))?;
        self.convert(name, ("raw", &raw), ("qcow2", "in.qcow2"))
    }

    fn convert_out(&self, name: &str) -> Outcome<Row> {
        let source = self.half_written("half.qcow2")?;
        self.convert(name, ("qcow2", &source), ("raw", "out.raw"))
    }

    fn convert(
        &self,
        name: &str,
        (format, source): (&str, &Path),
        (to, result): (&str, &str),
    ) -> Outcome<Row> {
        let result = self.scratch.file(result);
        let words = ["-f", format, "-O", to, text(source), text(&result)];
        let (variants, cache): (_, &[&str]) = match name.ends_with("durable") {
            true => (CONVERT_DURABLE, &[]),
            false => (CONVERT, &["-t", "unsafe"]),
        };
        let mut row = row(name, variants, 1.3);
        let peers = with_options("convert", variants, &words);
        let ours = [&["convert"], cache, &words].concat();
        let ours = self.programs.ours(&ours);
        self.rounds(&mut row, &ours, &peers, || {
            let _ = std::fs::remove_file(&result);
            self.settle(source)
        })?;
        run(&mut qemu_img(&[
            "compare",
            "-q",
            "-f",
            format,
            "-F",
            to,
            text(source),
            text(&result),
        ]))?;
        Ok(row)
    }

    /// A base, another base with other content, and an overlay with a quarter of its own.
    fn chain(&self) -> Outcome<(PathBuf, PathBuf, PathBuf)> {
        let base = self.half_written("base.qcow2")?;
        let other = self.scratch.file("other.qcow2");
        if !other.exists() {
            create(&other, SIZE)?;
            fill(&other, MIB, MIB, 3 * MIB, SIZE / (3 * MIB))?;
        }
        let top = self.scratch.file("top.master.qcow2");
        if !top.exists() {
            overlay(&top, &base)?;
            fill(&top, 0, 256 << 10, MIB, SIZE / MIB)?;
        }
        Ok((base, other, top))
    }

    fn commit(&self, name: &str) -> Outcome<Row> {
        let (base, _, top) = self.chain()?;
        let (base_copy, top_copy) = (
            self.scratch.file("commit.base.qcow2"),
            self.scratch.file("commit.top.qcow2"),
        );
        let words = ["-f", "qcow2", "-d", text(&top_copy)];
        let mut row = row(name, COMMIT, 1.3);
        let peers = with_options("commit", COMMIT, &prefixed("-q", &words));
        let ours = self.programs.ours(&prefixed("commit", &words));
        self.rounds(&mut row, &ours, &peers, || {
            copy(&base, &base_copy)?;
            copy(&top, &top_copy)?;
            repoint(&top_copy, &base_copy)?;
            self.settle(&base_copy)
        })?;
        self.same(&top, &base_copy)?;
        Ok(row)
    }

    fn rebase(&self, name: &str) -> Outcome<Row> {
        let (_, other, _) = self.chain()?;
        let words = ["-b", text(&other), "-F", "qcow2"];
        self.rewrite(name, &words)
    }

    fn flatten(&self, name: &str) -> Outcome<Row> {
        self.rewrite(name, &["-b", ""])
    }

    fn rewrite(&self, name: &str, new_base: &[&str]) -> Outcome<Row> {
        let (_, _, top) = self.chain()?;
        let copied = self.scratch.file("rewrite.qcow2");
        let mut words = vec!["-f", "qcow2"];
        words.extend(new_base);
        words.push(text(&copied));
        let mut row = row(name, REWRITE, 1.3);
        let peers = with_options("rebase", REWRITE, &prefixed("-q", &words));
        let ours = self.programs.ours(&prefixed("rebase", &words));
        self.rounds(&mut row, &ours, &peers, || {
            copy(&top, &copied)?;
            self.settle(&copied)
        })?;
        self.same(&top, &copied)?;
        Ok(row)
    }

    /// Both qcow2 images read the same, and the second one's tables are right.
    fn same(&self, one: &Path, other: &Path) -> Outcome<()> {
        run(&mut qemu_img(&[
            "compare",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            text(one),
            text(other),
        ]))?;
        run(&mut qemu_img(&["check", "-q", "-f", "qcow2", text(other)]))
    }

    fn check(&self, name: &str) -> Outcome<Row> {
        let image = self.terabyte()?;
        let mut row = row(name, &[&[]], 1.0);
        let words = ["check", "-f", "qcow2", text(&image)];
        let ours = self.programs.ours(&words);
        self.rounds(&mut row, &ours, &[qemu_img(&words)], || Ok(()))?;
        Ok(row)
    }

    /// An image of 1 TiB with the first 64 GiB mapped to clusters that are holes in the file.
    fn terabyte(&self) -> Outcome<PathBuf> {
        let image = self.scratch.file("terabyte.qcow2");
        if !image.exists() {
            let options = [
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "preallocation=metadata",
            ];
            run(qemu_img(&options).arg(&image).arg("64G"))?;
            run(&mut qemu_img(&[
                "resize",
                "-q",
                "-f",
                "qcow2",
                text(&image),
                "1T",
            ]))?;
        }
        Ok(image)
    }

    fn overlay_small(&self, name: &str) -> Outcome<Row> {
        let base = self.half_written("base.qcow2")?;
        self.overlays(name, &base)
    }

    fn overlay_large(&self, name: &str) -> Outcome<Row> {
        let base = self.terabyte()?;
        self.overlays(name, &base)
    }

    fn overlays(&self, name: &str, base: &Path) -> Outcome<Row> {
        let overlay = self.scratch.file("new.qcow2");
        let words = ["create", "-f", "qcow2", "-F", "qcow2", "-b"];
        let words = [&words[..], &[text(base), text(&overlay)]].concat();
        let mut row = row(name, &[&[]], 1.0);
        row.unit = Unit::CpuMilliseconds;
        row.at_most = Some(10.0);
        let peer = repeated(&qemu_img(&prefixed("create", &prefixed("-q", &words[1..]))));
        let ours = repeated(&self.programs.ours(&words));
        self.rounds(&mut row, &ours, &[peer], || Ok(()))?;
        Ok(row)
    }
}

fn row(name: &str, variants: &[&[&str]], goal: f64) -> Row {
    let peers = variants.iter().map(|options| match options {
        [] => Series::new("default"),
        options => Series::new(options.join(" ")),
    });
    Row {
        case: name.into(),
        unit: Unit::Seconds,
        ours: Series::new("cenote"),
        peers: peers.collect(),
        goal,
        at_most: None,
    }
}

/// What counts of a run.
fn value(unit: Unit, measured: &measure::Measured) -> f64 {
    match unit {
        Unit::CpuMilliseconds => measured.cpu * 1000.0 / OVERLAYS as f64,
        Unit::Seconds | Unit::MebibytesPerSecond | Unit::RequestsPerSecond => measured.seconds,
        Unit::Mebibytes => measured.peak_rss as f64 / 1024.0,
    }
}

/// `first` before `words`.
fn prefixed<'a>(first: &'a str, words: &[&'a str]) -> Vec<&'a str> {
    [&[first], words].concat()
}

/// `qemu-img VERB OPTIONS WORDS` for each set of options.
fn with_options(verb: &str, variants: &[&[&str]], words: &[&str]) -> Vec<Command> {
    variants
        .iter()
        .map(|options| qemu_img(&[&[verb], *options, words].concat()))
        .collect()
}

/// The command, [`OVERLAYS`] times in one shell.
fn repeated(command: &Command) -> Command {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    let script = format!(
        "i=0; while [ $i -lt {OVERLAYS} ]; do {} >/dev/null || exit; i=$((i + 1)); done",
        words.join(" ")
    );
    program("sh", ["-c", &script])
}

/// A sparse copy.
fn copy(from: &Path, to: &Path) -> Outcome<()> {
    run(program("cp", ["--sparse=always", "--reflink=never"])
        .arg(from)
        .arg(to))
}

/// Names another backing file of the same content.
fn repoint(overlay: &Path, base: &Path) -> Outcome<()> {
    let options = ["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
    run(qemu_img(&options).arg(base).arg(overlay))
}
