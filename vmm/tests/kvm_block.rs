//! Disks of stock guests: file systems on them, and what other programs say of them afterwards.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use common::{Guest, Monitor};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const MIB: u64 = 1 << 20;

/// Runs a program of the lab that must succeed and gives what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{errors}"
    );
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A guest with tools, which need memory to unpack, that runs `command` with `disks`.
fn guest(command: &str, vcpus: u8, disks: Value) -> Guest {
    let mut guest = Guest::kernel("vmlinux-cloud", command, vcpus, 512 * MIB);
    guest.description["boot"]["kernel"]["initrd"] =
        json!({"path": "/lab/guest/initramfs-tools.cpio.gz"});
    guest.description["disks"] = disks;
    guest
}

/// SHA-256 of what QEMU reads through an image.
fn sum_by_qemu(format: &str, image: &Path) -> String {
    let raw = image.with_extension("read-by-qemu");
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            format,
            "-O",
            "raw",
            text(image),
            text(&raw),
        ],
    );
    let sum = run("sha256sum", &[text(&raw)]);
    std::fs::remove_file(raw).unwrap();
    sum.split_whitespace().next().unwrap().to_owned()
}

/// A qcow2 overlay on a qcow2 overlay on a raw image, each with some data of its own.
fn chain(folder: &Path) -> (PathBuf, Value) {
    let [base, middle, top] = ["base.raw", "middle.qcow2", "top.qcow2"].map(|n| folder.join(n));
    run(
        "qemu-img",
        &["create", "-q", "-f", "raw", text(&base), "96M"],
    );
    let put = |format: &str, image: &Path, what: &str| {
        run("qemu-io", &["-f", format, "-c", what, text(image)]);
    };
    put("raw", &base, "write -q -P 0x11 0 32M");
    let overlay = |format: &str, backing: &Path, image: &Path| {
        let arguments = ["create", "-q", "-f", "qcow2", "-F", format, "-b"];
        run(
            "qemu-img",
            &[&arguments[..], &[text(backing), text(image)]].concat(),
        );
    };
    overlay("raw", &base, &middle);
    put("qcow2", &middle, "write -q -P 0x22 16M 32M");
    overlay("qcow2", &middle, &top);
    let layers = json!([
        {"file": {"path": top}, "format": "qcow2"},
        {"file": {"path": middle}, "format": "qcow2"},
        {"file": {"path": base}, "format": "raw"},
    ]);
    (top, layers)
}

/// Makes a file system, writes and verifies through it, checks it, and prints sums of the disk.
const WORK: &str = "d=/dev/vda; \
    /tools/bin/mke2fs -q -t ext4 $d && mkdir -p /m && mount -t ext4 $d /m && \
    fio --name=v --directory=/m --size=24M --rw=randrw --bsrange=4k-256k --direct=1 \
        --ioengine=libaio --iodepth=16 --verify=crc32c --fsync=64 --output=/dev/null && \
    fstrim /m && umount /m && e2fsck -fn $d >/dev/null && \
    echo serial $(cat /sys/block/vda/serial) && sha256sum $d";

fn works(disk: Value) -> String {
    let guest = guest(WORK, 2, json!([disk]));
    let ended = Monitor::start(&guest, &[]).wait();
    assert_eq!(ended.cause(), "guest-power-off", "{ended:?}");
    assert!(ended.output.contains("guest: status 0"), "{}", ended.output);
    assert!(ended.output.contains("serial CENOTE-1"), "{}", ended.output);
    let line = ended
        .output
        .lines()
        .find(|line| line.contains("  /dev/vda"));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
#[ignore = "needs real KVM: cargo xtask lab --tests cenote-vmm -- kvm_block --ignored"]
fn a_file_system_on_a_raw_disk_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.raw");
    for cache in ["none", "writeback"] {
        run(
            "qemu-img",
            &["create", "-q", "-f", "raw", text(&image), "96M"],
        );
        let sum = works(json!({
            "name": "vda", "serial": "CENOTE-1", "cache": cache, "discard": "unmap",
            "chain": [{"file": {"path": image}, "format": "raw"}],
        }));
        assert_eq!(sum, sum_by_qemu("raw", &image), "{cache}");
    }
}

#[test]
#[ignore = "needs real KVM: cargo xtask lab --tests cenote-vmm -- kvm_block --ignored"]
fn a_file_system_on_a_qcow2_chain_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (top, layers) = chain(folder.path());
    let sum = works(json!({
        "name": "vda", "serial": "CENOTE-1", "discard": "unmap", "chain": layers,
    }));
    let check = run("qemu-img", &["check", "-f", "qcow2", text(&top)]);
    assert!(check.contains("No errors were found"), "{check}");
    assert_eq!(sum, sum_by_qemu("qcow2", &top));
}
