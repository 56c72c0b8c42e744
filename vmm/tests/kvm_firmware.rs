//! SeaBIOS on KVM: what it finds of the machine, and what it boots.
//!
//! It is 16- and 32-bit code, so these tests run on every `/dev/kvm`.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use common::{Guest, Monitor, wait_for};
use serde_json::json;

const NOTHING: &str = "No bootable device.";

/// All that the machine tells is understood, and nothing is missing or set up twice.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn seabios_knows_the_machine_and_finds_nothing_to_boot() {
    let mut guest = Guest::firmware();
    guest.description["vcpus"] = json!(2);
    guest.description["boot"]["firmware"]["serial_console"] = json!(true);
    guest.description["product"] = json!({"uuid": "01234567-89ab-cdef-0123-456789abcdef"});
    let monitor = Monitor::start(&guest, &[]);
    wait_for(NOTHING, || monitor.debug().contains(NOTHING));
    let debug = monitor.debug();
    for text in [
        "SeaBIOS (version 1.16",
        "Running on QEMU (i440fx)",
        "Running on KVM",
        "QEMU fw_cfg DMA interface supported",
        "addr 0x0000000000000000 len 0x0000000004000000 [RAM]",
        "Moving pm_base to 0x600",
        "elcr=00 0c",
        "Found 2 cpu(s) max supported 2 cpu(s)",
        "Copying SMBIOS from",
        "(via xsdt)",
        "ACPI: parse DSDT at",
        "Found 1 serial ports",
        "PS2 keyboard initialized",
        "Machine UUID 01234567-89ab-cdef-0123-456789abcdef",
        "Boot failed: could not read the boot disk",
    ] {
        assert!(debug.contains(text), "{text} is missing:\n{debug}");
    }
    for text in ["WARNING", "Unable"] {
        assert!(!debug.contains(text), "{text}:\n{debug}");
    }
    wait_for("text on the serial port", || {
        monitor.output().contains(NOTHING)
    });
    monitor.call("quit", json!(null));
    monitor.wait();
}

/// A reset writes the firmware anew and it finds the same machine again.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn a_reset_starts_the_firmware_again() {
    let guest = Guest::firmware();
    let monitor = Monitor::start(&guest, &[]);
    let starts = |count| {
        wait_for("another start", || {
            monitor.debug().matches(NOTHING).count() == count
        });
    };
    starts(1);
    monitor.call("reset", json!(null));
    starts(2);
    let debug = monitor.debug();
    let second = &debug[debug.match_indices("BUILD:").nth(1).unwrap().0..];
    let first = &debug[debug.find("BUILD:").unwrap()..];
    // The addresses of tables and the memory map are the same, so nothing was left over.
    for start in ["Relocating init", "table(50434146)", "Space available"] {
        let line = |text: &str| {
            text[text.find(start).unwrap()..]
                .lines()
                .next()
                .map(str::to_owned)
        };
        assert_eq!(line(first), line(second));
    }
    monitor.call("quit", json!(null));
    assert_eq!(monitor.wait().cause(), "quit");
}

/// The saved firmware goes on, and can still be reset.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn saved_firmware_goes_on() {
    let guest = Guest::firmware();
    let monitor = Monitor::start(&guest, &[]);
    wait_for("the menu of devices", || {
        monitor.debug().contains("PCI device probing")
    });
    let file = guest.folder.path().join("saved");
    monitor.client().save(&file, true).unwrap();
    monitor.wait();
    let monitor = Monitor::start(&guest, &["--restore", file.to_str().unwrap()]);
    wait_for(NOTHING, || monitor.debug().contains(NOTHING));
    monitor.call("reset", json!(null));
    wait_for("another start", || {
        monitor.debug().matches(NOTHING).count() == 2
    });
    monitor.call("quit", json!(null));
    assert_eq!(monitor.wait().cause(), "quit");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn files_that_are_no_firmware_are_refused() {
    let mut guest = Guest::firmware();
    let image = guest.folder.path().join("image");
    std::fs::write(&image, [0; 1000]).unwrap();
    guest.description["boot"]["firmware"]["image"] = json!({"path": image});
    let refused = guest.run(&[]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("the firmware has 1000 bytes"), "{text}");
}
