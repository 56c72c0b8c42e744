//! Stock Debian kernels, booted directly on real KVM.
//!
//! The kernels are the lab's: `cargo xtask lab --tests cenote-vmm --memory 6144 -- kvm_boot
//! --ignored --test-threads=1`.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use common::{Guest, Monitor, wait_for};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Makes a kernel panic; with `panic=-1` it then restarts at once.
const CRASH: &str = "echo c >/proc/sysrq-trigger";

fn runs(image: &str, vcpus: u8, memory: u64) {
    let command = "nproc; grep MemTotal /proc/meminfo; cat /proc/cmdline";
    let guest = Guest::kernel(image, command, vcpus, memory);
    let line = guest.description["boot"]["kernel"]["command_line"].clone();
    let ended = Monitor::start(&guest, &[]).wait();
    assert_eq!(ended.cause(), "guest-power-off", "{ended:?}");
    let lines: Vec<&str> = ended.output.lines().map(str::trim_end).collect();
    assert!(
        lines.contains(&vcpus.to_string().as_str()),
        "{}",
        ended.output
    );
    assert!(lines.contains(&line.as_str().unwrap()), "{}", ended.output);
    let total = lines
        .iter()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .unwrap();
    let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib * 1024 > memory * 3 / 4, "{total} of {memory}");
    assert!(lines.contains(&"guest: status 0"), "{}", ended.output);
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn the_cloud_kernel_boots_from_a_bzimage() {
    runs("vmlinuz-cloud", 1, 256 * MIB);
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn the_cloud_kernel_boots_by_pvh_with_two_processors() {
    runs("vmlinux-cloud", 2, 256 * MIB);
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn the_generic_kernel_boots_in_both_forms() {
    runs("vmlinuz-generic", 2, 256 * MIB);
    runs("vmlinux-generic", 1, 256 * MIB);
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_kernel_that_panics_says_so() {
    // The initramfs has the driver of pvpanic, which reports before the kernel restarts.
    let guest = Guest::kernel("vmlinux-cloud", CRASH, 1, 256 * MIB);
    let ended = Monitor::start(&guest, &[]).wait();
    assert!(ended.output.contains("Kernel panic"), "{}", ended.output);
    assert_eq!((ended.cause(), ended.status), ("guest-panic", Some(3)));
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_kernel_that_panics_and_restarts_is_a_reset() {
    let mut guest = Guest::kernel("vmlinux-cloud", CRASH, 1, 256 * MIB);
    guest.description["pvpanic"] = json!(false);
    guest.description["on_reset"] = json!("exit");
    let ended = Monitor::start(&guest, &[]).wait();
    assert!(ended.output.contains("Kernel panic"), "{}", ended.output);
    assert_eq!((ended.cause(), ended.status), ("guest-reset", Some(0)));
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_reboot_starts_the_kernel_again() {
    let guest = Guest::kernel("vmlinux-cloud", "reboot -f", 1, 256 * MIB);
    let monitor = Monitor::start(&guest, &[]);
    wait_for("the second start", || {
        monitor.output().matches("guest: ready").count() == 2
    });
    monitor.call("quit", json!(null));
    assert_eq!(monitor.wait().cause(), "quit");
}

/// A guest counts; the count goes on after pause, after save, and after each of three restores.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_saved_kernel_goes_on_counting_three_times() {
    let command = "i=0; while :; do echo count $i; i=$((i+1)); sleep 0.1; done";
    let guest = Guest::kernel("vmlinux-cloud", command, 2, 256 * MIB);
    let counts = |output: &str| -> Vec<u32> {
        // A line without its end may be half of a number.
        let whole = output
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'));
        whole
            .filter_map(|line| line.trim_end().strip_prefix("count ")?.parse().ok())
            .collect()
    };
    let monitor = Monitor::start(&guest, &[]);
    wait_for("counting", || counts(&monitor.output()).len() > 5);
    monitor.call("pause", json!(null));
    monitor.call("resume", json!(null));
    let file = guest.folder.path().join("saved");
    monitor.client().save(&file, true).unwrap();
    let ended = monitor.wait();
    let before = counts(&ended.output);
    assert_eq!(before, (0..before.len() as u32).collect::<Vec<_>>());
    for _ in 0..3 {
        let monitor = Monitor::start(&guest, &["--restore", file.to_str().unwrap()]);
        wait_for("counting after the restore", || {
            counts(&monitor.output()).len() > 5
        });
        monitor.kill_and_wait(|output| {
            // The line in which the guest was saved may be cut in two.
            let after = counts(output);
            let first = after[1];
            assert!(
                first.abs_diff(before.len() as u32) <= 2,
                "{before:?} {after:?}"
            );
            let expected: Vec<_> = (first..first + after.len() as u32 - 1).collect();
            assert_eq!(after[1..], expected);
        });
    }
}

/// Memory goes on beyond the PCI hole, and the kernel uses it.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn more_than_4_gib_of_memory_is_used() {
    runs("vmlinux-cloud", 2, 5 << 30);
}

/// The kernel is told of the power button by its interrupt.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn the_power_button_reaches_the_guest() {
    // The driver, a module of the initramfs, has enabled the button; the file counts its events.
    let command = "f=/sys/firmware/acpi/interrupts/ff_pwr_btn; cat $f; echo armed; \
                   until grep -q '^ *[1-9]' $f; do sleep 0.1; done; echo pushed";
    let guest = Guest::kernel("vmlinux-cloud", command, 1, 256 * MIB);
    let monitor = Monitor::start(&guest, &[]);
    wait_for("the guest", || monitor.output().contains("armed\r"));
    monitor.call("shutdown", json!(null));
    let ended = monitor.wait();
    assert!(ended.output.contains("pushed\r"), "{}", ended.output);
    assert_eq!(ended.cause(), "guest-power-off");
}

/// An exception without a table to deliver it from, which ends in the processor's shutdown.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_triple_fault_is_its_own_cause() {
    let code = [
        0x0f, 0x01, 0x1e, 0x00, 0x80, // lidt [0x8000], where there are zeros
        0xcc, // int3
    ];
    let ended = Monitor::start(&Guest::real_mode(&code), &[]).wait();
    assert_eq!((ended.cause(), ended.status), ("triple-fault", Some(4)));
}
