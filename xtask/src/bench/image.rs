//! `cargo xtask bench image`: the image engine beside qemu-img on the same files.

use super::{Scratch, Wanted, operations, report, transfer};
use crate::setup::{self, Group};
use crate::shell::{Context, Outcome, cargo, output, program, run as finish, target};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs that are compared.
pub(super) struct Programs {
    /// Our engine behind a command line, `crates/image/examples/image_bench.rs`.
    ours: PathBuf,
}

impl Programs {
    /// Our program with these arguments.
    pub(super) fn ours(&self, arguments: &[&str]) -> Command {
        program(&self.ours, arguments)
    }
}

/// qemu-img with these arguments.
pub(super) fn qemu_img(arguments: &[&str]) -> Command {
    program("qemu-img", arguments)
}

/// Runs `cargo xtask bench image`.
pub(super) fn run(wanted: &Wanted) -> Outcome<()> {
    setup::ensure(&[Group::Test, Group::Bench])?;
    println!("building the engine in the release profile");
    let example = ["--package", "cenote-image", "--example", "image_bench"];
    finish(cargo(["build", "--quiet", "--release"]).args(example))?;
    let programs = Programs {
        ours: target()
            .join("release")
            .join("examples")
            .join("image_bench"),
    };
    std::fs::create_dir_all(&wanted.folder).context(wanted.folder.display())?;
    let version = output(&mut qemu_img(&["--version"]))?;
    let peer = version.lines().next().unwrap_or("qemu-img").to_string();
    let scratch = Scratch::new(&wanted.folder)?;
    let mut rows = transfer::measure_all(wanted, &programs, &scratch)?;
    rows.extend(operations::measure_all(wanted, &programs, &scratch)?);
    report::publish("image", &peer, &rows)
}

/// A path as an argument; ours are all valid text.
pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
