//! `cargo xtask bench`: Cenote beside the program a user would take instead, in one run, on
//! the same files. What is reported are ratios; the times themselves belong to the machine.

mod firmware;
mod guests;
mod image;
mod life;
mod measure;
mod operations;
mod report;
mod transfer;
mod vmm;
mod wipe;

use crate::shell::{Context, Outcome, fail, target};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask bench NAME [--rounds N] [--only TEXT] [--folder FOLDER]

  image            the image engine beside qemu-img: reads, writes, convert, commit, rebase,
                   flatten, check, overlays, long chains, and the memory each takes
  life             commands on domains: list and define 1,000, snapshots of a 1 TiB disk, suspend;
                   defining beside virsh with libvirt's test driver; --only is not for it
  vmm              the monitor beside Debian's QEMU in the lab: start to init, own memory, save
                   and restore, disks, network; release builds
  firmware         SeaBIOS and IDE drives beside QEMU's pc in the lab: reset to boot sector, reading
                   a disc and a disk from Linux; release builds
  wipe             overwriting 2 GiB beside plain writes, shred and scrub; --only is not for it

  --rounds N       runs of each case, taken in turn; the median counts (3)
  --only TEXT      only cases whose name has TEXT in it
  --folder FOLDER  where the images are made (target/bench/files); its file system is measured

The table is also written to target/bench/NAME.json.";

/// What the user asked for.
pub(crate) struct Wanted {
    /// Runs of each case.
    rounds: usize,
    /// Part of the names of the cases to run.
    only: Option<String>,
    /// Where files are made.
    folder: PathBuf,
}

impl Wanted {
    /// Whether the case of this name is asked for.
    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|text| name.contains(text))
    }
}

/// Runs `cargo xtask bench ARGUMENTS`.
pub(crate) fn command(arguments: &[String]) -> Outcome<ExitCode> {
    let Some((name, rest)) = arguments.split_first() else {
        println!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    let mut wanted = Wanted {
        rounds: 3,
        only: None,
        folder: target().join("bench").join("files"),
    };
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let mut value = || match words.next() {
            Some(value) => Ok(value),
            None => fail(format_args!("bench: {word} needs a value\n\n{USAGE}")),
        };
        match word.as_str() {
            "--rounds" => wanted.rounds = value()?.parse().context("bench: --rounds")?,
            "--only" => wanted.only = Some(value()?.clone()),
            "--folder" => wanted.folder = PathBuf::from(value()?),
            other => {
                return fail(format_args!("bench: unknown argument `{other}`\n\n{USAGE}"));
            }
        }
    }
    if wanted.rounds == 0 {
        return fail("bench: --rounds takes a positive number");
    }
    match name.as_str() {
        "image" => image::run(&wanted),
        "life" => life::run_all(&wanted),
        "firmware" => firmware::run(&wanted),
        "vmm" => vmm::run(&wanted),
        "wipe" => wipe::run(&wanted),
        "--help" | "-h" => {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        other => fail(format_args!("bench: no benchmark `{other}`\n\n{USAGE}")),
    }?;
    Ok(ExitCode::SUCCESS)
}

const MIB: usize = 1 << 20;

/// What [`Scratch::warm_page_cache`] writes: a little more than any case.
const WARM_MIB: u64 = 1100;

/// An empty folder for the files of one benchmark; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Outcome<Self> {
        let folder = parent.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&folder).context(folder.display())?;
        let folder = fs::canonicalize(&folder).context(folder.display())?;
        Ok(Self(folder))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Fills and frees as much page cache as a case writes. In a virtual machine the host may
    /// have taken back memory that was free; whoever writes a file next would pay for getting
    /// it again, at several times the price of the write itself.
    fn warm_page_cache(&self) -> Outcome<()> {
        let path = self.file("warm");
        let mut file = fs::File::create(&path).context(path.display())?;
        let piece = vec![1; MIB];
        for _ in 0..WARM_MIB {
            file.write_all(&piece).context(path.display())?;
        }
        // Removed before the kernel writes it to the disk.
        fs::remove_file(&path).context(path.display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
