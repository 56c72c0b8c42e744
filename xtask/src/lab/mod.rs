//! `cargo xtask lab -- COMMAND…`: runs a command on an emulated host with a real `/dev/kvm`.
//!
//! QEMU's TCG plays an AMD machine with nested paging; Debian's cloud kernel runs on it with a
//! Debian user land. The host ("base") is built once and cached; each run gets a copy-on-write
//! layer over it, a disk with the project's programs and sources, and an empty disk for
//! results. `docs/lab.md` tells users how to work with it.

mod base;
mod machine;
mod media;
mod payload;

pub(crate) use base::hash;
pub(crate) use payload::Programs;

use crate::setup::{self, Group};
use crate::shell::{Context, Outcome, fail, program, run, target};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
Usage: cargo xtask lab [OPTION…] -- COMMAND…
       cargo xtask lab --build

Runs COMMAND on an emulated host with a real /dev/kvm, in a copy of the workspace, with the
project's programs on the path. The status is COMMAND's; files that it leaves in /lab/out are
in target/lab/last/out afterwards, the host's console in target/lab/last/console.log.

  --build                 build the emulated host anew
  --release               take the project's programs from the release profile
  --tests PACKAGE         put the test programs of PACKAGE on the path, by target name
  --example PACKAGE:NAME  put an example of PACKAGE on the path
  --with PATH             copy a file or folder to /lab/payload/with/ (may be repeated)
  --media                 put boot media of Debian's boot loaders into /lab/payload/with/media
  --user                  run COMMAND as the user `lab` instead of root
  --cpus N                virtual CPUs of the emulated host (1)
  --memory MIB            its memory (4096)
  --timeout SECONDS       end it after this time with status 124 (1200)";

/// The status of a run that was ended because its time was over, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// How many runs' logs and results are kept.
const KEPT_RUNS: usize = 8;

/// One command to run in the lab.
pub(crate) struct Run {
    /// The command and its arguments.
    pub(crate) command: Vec<String>,
    /// What of the project is put on the path.
    pub(crate) programs: Programs,
    /// Whether the emulated host is built even where it is cached.
    pub(crate) rebuild: bool,
    /// Whether boot media come along.
    pub(crate) media: bool,
    /// Whether the command runs as user 1000 instead of root.
    pub(crate) as_user: bool,
    /// Virtual CPUs of the emulated host. One is the default: with two, QEMU's emulation of
    /// nested paging corrupts memory now and then (docs/lab.md).
    pub(crate) cpus: u32,
    /// Memory of the emulated host in MiB.
    pub(crate) memory: u32,
    /// How long the command may take.
    pub(crate) timeout: Duration,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            programs: Programs::default(),
            rebuild: false,
            media: false,
            as_user: false,
            cpus: 1,
            memory: 4096,
            timeout: Duration::from_secs(1200),
        }
    }
}

/// Runs `cargo xtask lab ARGUMENTS`.
pub(crate) fn command(arguments: &[String]) -> Outcome<ExitCode> {
    let mut wanted = Run::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || match words.next() {
            Some(value) => Ok(value.clone()),
            None => fail(format_args!("lab: {word} needs a value\n\n{USAGE}")),
        };
        match word.as_str() {
            "--build" => wanted.rebuild = true,
            "--release" => wanted.programs.release = true,
            "--tests" => wanted.programs.tests.push(value()?),
            "--example" => wanted.programs.examples.push(value()?),
            "--media" => wanted.media = true,
            "--with" => wanted.programs.extra.push(PathBuf::from(value()?)),
            "--user" => wanted.as_user = true,
            "--cpus" => wanted.cpus = number(word, &value()?)?,
            "--memory" => wanted.memory = number(word, &value()?)?,
            "--timeout" => {
                wanted.timeout = Duration::from_secs(number(word, &value()?)?.into());
            }
            "--" => {
                wanted.command = words.cloned().collect();
                break;
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            other => return fail(format_args!("lab: unknown argument `{other}`\n\n{USAGE}")),
        }
    }
    if wanted.command.is_empty() && !wanted.rebuild {
        return fail(format_args!("lab: no command\n\n{USAGE}"));
    }
    setup::ensure_quietly(&[Group::Lab])?;
    wanted.run().map(ExitCode::from)
}

fn number(option: &str, value: &str) -> Outcome<u32> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => fail(format_args!(
            "lab: {option} takes a positive number, not `{value}`"
        )),
    }
}

impl Run {
    /// Runs the command; gives its exit status, [`TIMED_OUT`] when its time was over. Output
    /// is passed on as it comes. With no command, only builds the emulated host.
    pub(crate) fn run(&self) -> Outcome<u8> {
        let folder = base::folder();
        fs::create_dir_all(&folder).context(folder.display())?;
        let base = base::ready(&folder, self.rebuild)?;
        if self.command.is_empty() {
            return Ok(0);
        }
        let directory = run_directory()?;
        let mut payload = self.payload(&base)?;
        if self.media {
            let media = media::ready(&folder, &base)?;
            payload.files.push((media, PathBuf::from("with/media")));
        }
        let disks = machine::Disks::prepare(&directory, &base, &payload)?;
        let outcome = machine::run(&directory, &base, &disks, self);
        let results = disks.results(&directory.join("out"));
        disks.remove();
        let status = outcome?;
        results?;
        Ok(status)
    }

    fn payload(&self, base: &base::Base) -> Outcome<payload::Payload> {
        let mut payload = self.programs.collect(base)?;
        payload.command = Some(payload::script(&self.command, self.as_user));
        Ok(payload)
    }
}

/// A new folder for this run's files; `target/lab/last` points to it.
fn run_directory() -> Outcome<PathBuf> {
    let runs = target().join("lab").join("runs");
    fs::create_dir_all(&runs).context(runs.display())?;
    // Two runs may start at once; who prunes and links does it alone.
    let lock = File::create(runs.join(".lock")).context(runs.display())?;
    lock.lock().context(runs.display())?;
    let mut earlier: Vec<u64> = fs::read_dir(&runs)
        .context(runs.display())?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    earlier.sort_unstable();
    let excess = earlier.len().saturating_sub(KEPT_RUNS);
    for old in &earlier[..excess] {
        let folder = runs.join(old.to_string());
        // A run that still goes on keeps its folder.
        if !folder.join(machine::RUNNING).exists() {
            fs::remove_dir_all(&folder).context(folder.display())?;
        }
    }
    let number = earlier.last().copied().unwrap_or(0).saturating_add(1);
    let folder = runs.join(number.to_string());
    fs::create_dir(&folder).context(folder.display())?;
    let last = target().join("lab").join("last");
    run(program("ln", ["-sfn"])
        .arg(format!("runs/{number}"))
        .arg(&last))?;
    Ok(folder)
}
