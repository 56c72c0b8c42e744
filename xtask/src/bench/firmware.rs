//! Firmware and IDE drives beside QEMU's `pc` with the same SeaBIOS, on the KVM of one run of the
//! lab. `firmware.py` measures inside.

use super::Wanted;
use super::guests::{self, Case};
use super::report::Unit;
use crate::shell::Outcome;

const PEER: &str = "Debian's QEMU pc with KVM, in the lab";

const CASES: &[Case] = &[
    case("start to boot sector", Unit::Seconds),
    case("reset to boot sector", Unit::Seconds),
    case("disc, 200 MiB through ATAPI DMA", Unit::MebibytesPerSecond),
    case("disk, 200 MiB through IDE DMA", Unit::MebibytesPerSecond),
];

const fn case(name: &'static str, unit: Unit) -> Case {
    Case {
        name,
        unit,
        peers: &["QEMU pc"],
        goal: 1.0,
        at_most: None,
    }
}

/// Runs `cargo xtask bench firmware`.
pub(super) fn run(wanted: &Wanted) -> Outcome<()> {
    guests::run(wanted, "firmware", PEER, CASES)
}
