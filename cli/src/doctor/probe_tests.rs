//! Each probe, failing and working, on machines that exist only here.

use std::path::PathBuf;

use super::super::facts::Folder;
use super::*;

fn good() -> Facts {
    Facts {
        kernel: "6.1.0".to_owned(),
        kvm: KvmDevice::Usable {
            api: 12,
            create: None,
        },
        hardware_virtualization: true,
        io_uring: Ok(()),
        state_dir: Folder {
            path: PathBuf::from("/state"),
            mode: Some(0o700),
            writable: Ok(()),
            free: Some(1 << 40),
        },
        node: Ok(()),
        pools: vec![PoolFacts {
            name: "default".to_owned(),
            path: PathBuf::from("/pool"),
            active: true,
            filesystem: Some(FileSystem {
                name: "ext4".to_owned(),
                copy_on_write: false,
                reflink: Some(false),
                free: 1 << 40,
                total: 1 << 41,
            }),
        }],
        interrupted: Vec::new(),
        stale_locks: Vec::new(),
        firmware: vec![FirmwareComponent {
            purpose: "BIOS",
            file: "bios-256k.bin",
            package: "seabios",
            found: Some(PathBuf::from("/bios")),
        }],
        missing_lvm: Vec::new(),
    }
}

#[test]
fn a_good_machine_is_healthy() {
    let report = judge(&good());
    assert!(report.healthy);
    for probe in &report.probes {
        assert_eq!(probe.status, ProbeStatus::Ok, "{probe:?}");
        assert!(probe.fix.is_none(), "{probe:?}");
    }
}

/// One broken machine: which probe must say so, how, and whether the machine still serves.
struct Case {
    name: &'static str,
    breaks: fn(&mut Facts),
    probe: &'static str,
    status: ProbeStatus,
    healthy: bool,
    fix: &'static str,
}

const fn case(
    name: &'static str,
    breaks: fn(&mut Facts),
    probe: &'static str,
    status: ProbeStatus,
    healthy: bool,
    fix: &'static str,
) -> Case {
    Case {
        name,
        breaks,
        probe,
        status,
        healthy,
        fix,
    }
}

fn no_access(group: Option<&str>) -> KvmDevice {
    KvmDevice::NoAccess {
        error: "Permission denied (os error 13)".to_owned(),
        group: group.map(str::to_owned),
    }
}

fn filesystem(facts: &mut Facts) -> &mut FileSystem {
    facts.pools[0]
        .filesystem
        .as_mut()
        .expect("the good machine has one")
}

use ProbeStatus::{Fail, Warn};

const CASES: [Case; 23] = [
    case(
        "state unwritable",
        |f| f.state_dir.writable = Err("EROFS".into()),
        "state-dir",
        Fail,
        false,
        "--state-dir",
    ),
    case(
        "state open to others",
        |f| f.state_dir.mode = Some(0o777),
        "state-dir",
        Fail,
        false,
        "chmod go-w /state",
    ),
    case(
        "state full",
        |f| f.state_dir.free = Some(1),
        "state-space",
        Fail,
        false,
        "free some space",
    ),
    case(
        "state space unknown",
        |f| f.state_dir.free = None,
        "state-space",
        Warn,
        true,
        "df /state",
    ),
    case(
        "node broken",
        |f| f.node = Err("newer".into()),
        "node",
        Fail,
        false,
        "cenote fsck",
    ),
    case(
        "operation left",
        |f| f.interrupted = vec!["7 volume-clone".into()],
        "journal",
        Warn,
        true,
        "cenote repair",
    ),
    case(
        "lock left",
        |f| f.stale_locks = vec!["/l".into()],
        "locks",
        Warn,
        true,
        "cenote repair",
    ),
    case(
        "no kvm",
        |f| f.kvm = KvmDevice::Missing,
        "kvm",
        Fail,
        false,
        "modprobe",
    ),
    case(
        "kvm forbidden",
        |f| f.kvm = no_access(Some("kvm")),
        "kvm",
        Fail,
        false,
        "usermod -aG kvm",
    ),
    case(
        "kvm of root",
        |f| f.kvm = no_access(Some("root")),
        "kvm",
        Fail,
        false,
        "usermod -aG kvm",
    ),
    case(
        "kvm of virt",
        |f| f.kvm = no_access(Some("virt")),
        "kvm",
        Fail,
        false,
        "usermod -aG virt",
    ),
    case(
        "kvm ancient",
        |f| {
            f.kvm = KvmDevice::Usable {
                api: 10,
                create: None,
            }
        },
        "kvm",
        Fail,
        false,
        "kernel",
    ),
    case(
        "kvm makes nothing",
        |f| {
            f.kvm = KvmDevice::Usable {
                api: 12,
                create: Some("EBUSY".into()),
            }
        },
        "kvm",
        Fail,
        false,
        "dmesg",
    ),
    case(
        "kvm emulates",
        |f| f.hardware_virtualization = false,
        "kvm-hardware",
        Warn,
        true,
        "vmx or svm",
    ),
    case(
        "no io_uring",
        |f| f.io_uring = Err("EPERM".into()),
        "io-uring",
        Warn,
        true,
        "io_uring_disabled",
    ),
    case(
        "pool stopped",
        |f| f.pools[0].active = false,
        "pool default",
        Warn,
        true,
        "cenote pool-start default",
    ),
    case(
        "pool unreadable",
        |f| f.pools[0].filesystem = None,
        "pool default",
        Warn,
        true,
        "pool-refresh",
    ),
    case(
        "pool full",
        |f| filesystem(f).free = 1,
        "pool default",
        Warn,
        true,
        "delete volumes",
    ),
    case(
        "pool on btrfs",
        |f| filesystem(f).copy_on_write = true,
        "pool default wipe",
        Warn,
        true,
        "ext4 or xfs",
    ),
    case(
        "pool untried",
        |f| filesystem(f).reflink = None,
        "pool default wipe",
        Warn,
        true,
        "writable",
    ),
    case(
        "no firmware",
        |f| f.firmware[0].found = None,
        "firmware bios-256k.bin",
        Warn,
        true,
        "apt-get install seabios",
    ),
    case(
        "no lvm",
        |f| f.missing_lvm = vec!["vgs"],
        "lvm",
        Warn,
        true,
        "apt-get install lvm2",
    ),
    case(
        "no kvm, no vmx",
        |f| {
            f.kvm = KvmDevice::Missing;
            f.hardware_virtualization = false;
        },
        "kvm-hardware",
        Warn,
        false,
        "firmware",
    ),
];

#[test]
fn every_broken_machine_is_recognised_and_told_what_to_do() {
    for case in &CASES {
        let mut facts = good();
        (case.breaks)(&mut facts);
        let report = judge(&facts);
        let probe = report.probes.iter().find(|probe| probe.probe == case.probe);
        let probe = probe.unwrap_or_else(|| panic!("{}: no probe {}", case.name, case.probe));
        assert_eq!(probe.status, case.status, "{}: {probe:?}", case.name);
        let fix = probe.fix.as_deref().unwrap_or_default();
        assert!(fix.contains(case.fix), "{}: {fix}", case.name);
        assert_eq!(report.healthy, case.healthy, "{}", case.name);
    }
}

#[test]
fn every_probe_has_a_case_in_which_it_fails() {
    for probe in judge(&good()).probes {
        let covered = CASES.iter().any(|case| case.probe == probe.probe);
        assert!(covered, "no failing case for {}", probe.probe);
    }
}

#[test]
fn shared_blocks_are_a_remark_and_no_warning() {
    let mut facts = good();
    filesystem(&mut facts).reflink = Some(true);
    let report = judge(&facts);
    let probe = report
        .probes
        .iter()
        .find(|probe| probe.probe == "pool default wipe");
    assert!(probe.is_some_and(|probe| probe.found.contains("shared ones")));
}
