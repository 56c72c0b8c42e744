//! `cargo xtask bench wipe`: overwriting beside a plain write and beside shred and scrub. The
//! measuring is an example of the pools crate, built for speed.

use super::{Scratch, Wanted};
use crate::shell::{self, Outcome};

/// Size of the file that is wiped.
const GIBIBYTES: &str = "2";

pub(super) fn run(wanted: &Wanted) -> Outcome<()> {
    if wanted.only.is_some() {
        return shell::fail("bench wipe: all cases stand beside each other; --only is not taken");
    }
    let scratch = Scratch::new(&wanted.folder)?;
    let folder = scratch.file("wipe").display().to_string();
    let arguments = [
        "run",
        "--release",
        "-q",
        "-p",
        "cenote-pools",
        "--example",
        "wipe_bench",
        "--",
    ];
    let rounds = wanted.rounds.to_string();
    let words = arguments
        .into_iter()
        .chain([folder.as_str(), GIBIBYTES, rounds.as_str()]);
    shell::run(&mut shell::cargo(words))
}
