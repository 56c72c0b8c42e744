//! The monitor beside Debian's QEMU, all on the KVM of one run of the lab.
//!
//! `vmm.py` measures inside; here its values become the table. Nothing the lab measures says how
//! fast anything is on a real machine: only the ratios count.

use super::Wanted;
use super::guests::{self, Case};
use super::report::Unit;
use crate::shell::Outcome;

const PEER: &str = "Debian's QEMU with KVM, in the lab";
const Q35: &str = "QEMU q35";
const MICROVM: &str = "QEMU microvm";

const CASES: &[Case] = &[
    Case {
        name: "start to init",
        unit: Unit::Seconds,
        peers: &[Q35],
        goal: 2.0,
        at_most: None,
    },
    Case {
        name: "start to init",
        unit: Unit::Seconds,
        peers: &[MICROVM],
        goal: 1.0,
        at_most: None,
    },
    Case {
        name: "own memory",
        unit: Unit::Mebibytes,
        peers: &[Q35, MICROVM],
        goal: 1.0,
        at_most: Some(5.0),
    },
    Case {
        name: "own memory, a disk and a network card",
        unit: Unit::Mebibytes,
        peers: &[Q35],
        goal: 1.0,
        at_most: Some(5.0),
    },
    Case {
        name: "save 1 GiB, CPU",
        unit: Unit::CpuMilliseconds,
        peers: &[Q35],
        goal: 1.0,
        at_most: None,
    },
    Case {
        name: "restore 1 GiB, CPU",
        unit: Unit::CpuMilliseconds,
        peers: &[Q35],
        goal: 1.0,
        at_most: Some(100.0),
    },
    Case {
        name: "restore 1 GiB",
        unit: Unit::Seconds,
        peers: &[Q35],
        goal: 1.0,
        at_most: None,
    },
    requests("disk raw, 4 KiB random read, depth 1"),
    requests("disk raw, 4 KiB random write, depth 1"),
    requests("disk raw, 4 KiB random read, depth 32"),
    requests("disk raw, 4 KiB random write, depth 32"),
    stream("disk raw, 1 MiB read"),
    stream("disk raw, 1 MiB write"),
    requests("disk qcow2, 4 KiB random read, depth 1"),
    requests("disk qcow2, 4 KiB random write, depth 1"),
    requests("disk qcow2, 4 KiB random read, depth 32"),
    requests("disk qcow2, 4 KiB random write, depth 32"),
    stream("disk qcow2, 1 MiB read"),
    stream("disk qcow2, 1 MiB write"),
    stream("network, TCP guest to host"),
    stream("network, TCP host to guest"),
    requests("network, TCP request and response"),
];

/// A case of a device that is to be as fast as QEMU's.
const fn device(name: &'static str, unit: Unit) -> Case {
    Case {
        name,
        unit,
        peers: &[Q35],
        goal: 1.0,
        at_most: None,
    }
}

const fn requests(name: &'static str) -> Case {
    device(name, Unit::RequestsPerSecond)
}

const fn stream(name: &'static str) -> Case {
    device(name, Unit::MebibytesPerSecond)
}

/// Runs `cargo xtask bench vmm`.
pub(super) fn run(wanted: &Wanted) -> Outcome<()> {
    guests::run(wanted, "vmm", PEER, CASES)
}
