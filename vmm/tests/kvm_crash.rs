//! Monitors that are killed under write load: what a guest has flushed is on its disk.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use common::{Guest, Monitor, wait_for};
use serde_json::{Value, json};
use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

const MIB: u64 = 1 << 20;
/// Bytes from one numbered block to the next: each needs a cluster of its own.
const STEP: u64 = 400 * 512;
/// Sets how often the monitor is killed.
const ROUNDS: &str = "CENOTE_CRASH_ROUNDS";
const USUAL_ROUNDS: u32 = 10;

/// Two loops write and flush anywhere in the upper half of the disk. A third writes its counter
/// into a block of its own, flushes, and then says so.
const WORK: &str = "d=/dev/vda; \
    load() { while :; do dd if=/dev/urandom of=$d bs=64k count=3 \
        seek=$((4096+$RANDOM%4000)) conv=fsync,notrunc 2>/dev/null; done; }; \
    load & load & i=0; \
    while :; do i=$((i+1)); \
        printf %0512d $i | dd of=$d bs=512 seek=$((i*400)) conv=fsync,notrunc 2>/dev/null && \
        echo done $i; done";

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        // 3: there are lost clusters, which the report says too.
        matches!(output.status.code(), Some(0 | 3)),
        "{program} {arguments:?}: {text}{errors}"
    );
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The numbers that a guest has reported.
fn reported(output: &str) -> Vec<u64> {
    let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("done ")?.parse().ok())
        .collect()
}

/// QEMU finds no damage, and reads every block that was reported.
fn check(top: &Path, numbers: &[u64]) {
    let report = run(
        "qemu-img",
        &["check", "-f", "qcow2", "--output=json", text(top)],
    );
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["check-errors"], 0, "{report}");
    assert!(report["corruptions"].as_u64().unwrap_or(0) == 0, "{report}");
    let raw = top.with_extension("raw");
    run(
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", text(top), text(&raw)],
    );
    let file = File::open(&raw).unwrap();
    for number in numbers {
        let mut block = [0; 512];
        file.read_exact_at(&mut block, number * STEP).unwrap();
        let found = String::from_utf8_lossy(&block).into_owned();
        assert_eq!(
            found,
            format!("{number:0512}"),
            "block {number} of {numbers:?}"
        );
    }
    std::fs::remove_file(raw).unwrap();
}

fn images(folder: &Path) -> (PathBuf, Value) {
    let (base, top) = (folder.join("base"), folder.join("top.qcow2"));
    run(
        "qemu-img",
        &["create", "-q", "-f", "raw", text(&base), "512M"],
    );
    let overlay = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        text(&base),
        text(&top),
    ];
    run("qemu-img", &overlay);
    let disk = json!({"name": "vda", "chain": [
        {"file": {"path": top}, "format": "qcow2"},
        {"file": {"path": base}, "format": "raw"},
    ]});
    (top, disk)
}

/// A guest is saved in the middle of its work together with its disk; then it goes on from there
/// again and again, and is killed at another moment each time.
#[test]
#[ignore = "needs real KVM: cargo xtask lab --tests cenote-vmm -- kvm_crash --ignored"]
fn what_a_guest_has_flushed_survives_the_monitor() {
    let rounds = std::env::var(ROUNDS).map_or(USUAL_ROUNDS, |text| text.parse().unwrap());
    let mut guest = Guest::kernel("vmlinux-cloud", WORK, 2, 256 * MIB);
    let (top, disk) = images(guest.folder.path());
    guest.description["disks"] = json!([disk]);
    let saved = guest.folder.path().join("saved");
    let kept = guest.folder.path().join("kept.qcow2");

    let monitor = Monitor::start(&guest, &[]);
    wait_for("the first blocks", || {
        reported(&monitor.output()).len() >= 3
    });
    monitor.client().save(&saved, true).unwrap();
    let before = reported(&monitor.wait().output);
    check(&top, &before);
    std::fs::copy(&top, &kept).unwrap();

    let mut flushed = 0;
    for round in 0..rounds {
        std::fs::copy(&kept, &top).unwrap();
        let mut monitor = Monitor::start(&guest, &["--restore", text(&saved)]);
        let wanted = 1 + (round % 4) as usize;
        wait_for("further blocks", || {
            reported(&monitor.output()).len() >= wanted
        });
        // Not always at the same point of the guest's work.
        thread::sleep(Duration::from_millis(u64::from(round * 37 % 150)));
        monitor.kill();
        let numbers = reported(&monitor.wait().output);
        assert!(numbers.len() >= wanted, "round {round}: {numbers:?}");
        flushed += numbers.len();
        let all: Vec<u64> = before.iter().chain(&numbers).copied().collect();
        check(&top, &all);
    }
    println!("{rounds} monitors killed, {flushed} flushed blocks all there");
}
