//! What SeaBIOS boots from, and what it makes of media that are not what they seem.
//!
//! It is 16- and 32-bit code, so these tests run on every `/dev/kvm`, but for triple faults, which
//! KVM's emulator does not survive often enough.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use common::{
    Guest, Monitor,
    code::{self, GO_ON, POWER_OFF, out_and_halt, printing},
    wait_for,
};
use serde_json::{Value, json};
use std::{fs::File, os::fd::AsFd as _};

const NOTHING: &str = "No bootable device.";

/// Writes `content` to a file of the guest's folder.
fn file(guest: &Guest, name: &str, content: &[u8]) -> Value {
    let path = guest.folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    json!({"path": path})
}

fn disk(guest: &Guest, name: &str, content: &[u8], index: u32) -> Value {
    let file = file(guest, name, content);
    json!({"disk": {"file": file, "format": "raw", "boot_index": index}})
}

fn cdrom(guest: &Guest, name: &str, content: &[u8], index: u32) -> Value {
    json!({"cdrom": {"file": file(guest, name, content), "boot_index": index}})
}

/// Runs a guest with these drives to its end, and gives what it printed.
fn boots(drives: impl FnOnce(&Guest) -> Value) -> String {
    let mut guest = Guest::firmware();
    guest.description["ide"] = drives(&guest);
    let monitor = Monitor::start(&guest, &[]);
    let mut over = false;
    wait_for("an end", || {
        over = monitor.debug().contains(NOTHING);
        over || guest
            .folder
            .path()
            .join("report")
            .metadata()
            .is_ok_and(|m| m.len() > 0)
    });
    if over {
        monitor.call("quit", json!(null));
        let ended = monitor.wait();
        return ended.output + "nothing";
    }
    let ended = monitor.wait();
    assert_eq!(ended.cause(), "guest-power-off", "{ended:?}");
    ended.output
}

#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn a_boot_sector_starts_from_every_position() {
    let code = |text: &str| code::disk(&printing(text.as_bytes(), POWER_OFF), 2048);
    for position in [
        "primary-master",
        "primary-slave",
        "secondary-master",
        "secondary-slave",
    ] {
        let output = boots(|guest| json!({position: disk(guest, "disk", &code(position), 0)}));
        assert_eq!(output, position);
    }
}

#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn a_disc_starts_by_el_torito() {
    let disc = code::disc(&printing(b"disc", POWER_OFF));
    assert_eq!(
        boots(|guest| json!({"secondary-master": cdrom(guest, "disc", &disc, 0)})),
        "disc"
    );
}

/// The order is that of the indexes, whatever the positions are.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn devices_are_tried_in_their_order() {
    let first = code::disk(&printing(b"1", GO_ON), 2048);
    let second = code::disc(&printing(b"2", GO_ON));
    let third = code::disc(&printing(b"3", POWER_OFF));
    let output = boots(|guest| {
        json!({
            "primary-master": cdrom(guest, "third", &third, 30),
            "primary-slave": disk(guest, "first", &first, 10),
            "secondary-slave": cdrom(guest, "second", &second, 20),
        })
    });
    assert_eq!(output, "123");
}

/// An installation: the blank disk falls through to the disc; when something has been written to
/// the disk, the same machine boots that, and the disc is not asked.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn a_blank_disk_falls_through_to_the_disc_until_it_is_written() {
    let sector = code::disk(&printing(b"installed ", POWER_OFF), 1);
    let installer = code::installer(&sector);
    let disc = code::disc(&printing(b"installer ", &installer));
    let output = boots(|guest| {
        json!({
            "primary-master": disk(guest, "disk", &vec![0; 2048 * 512], 0),
            "secondary-master": cdrom(guest, "disc", &disc, 1),
        })
    });
    assert_eq!(output, "installer installed ");
}

fn reboots(again: &[u8]) {
    reboot(Guest::firmware(), again);
}

fn reboot(mut guest: Guest, again: &[u8]) {
    let code = printing(b"r", &code::counting(20, again, POWER_OFF));
    guest.description["ide"] = json!({
        "primary-master": disk(&guest, "disk", &code::disk(&code, 2048), 0),
    });
    let monitor = Monitor::start(&guest, &[]);
    for start in 1..=21 {
        // Ends early if the monitor does, which the report then tells.
        let report = guest.folder.path().join("report");
        wait_for("the next start", || {
            monitor.output().len() >= start || report.metadata().is_ok_and(|m| m.len() > 0)
        });
    }
    let ended = monitor.wait();
    assert_eq!(
        (ended.cause(), ended.output.clone()),
        ("guest-power-off", "r".repeat(21))
    );
    assert_eq!(ended.report.as_ref().unwrap()["resets"], 20);
}

#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn it_reboots_twenty_times_by_the_reset_control_register() {
    let mut again = vec![0xba, 0xf9, 0x0c, 0xb0, 0x02, 0xee]; // mov dx, 0xcf9; mov al, 2; out dx, al
    again.extend(out_and_halt(0xcf9, 6));
    reboots(&again);
}

#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn it_reboots_twenty_times_by_the_keyboard_controller() {
    reboots(&out_and_halt(0x64, 0xfe));
}

#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn it_reboots_twenty_times_by_port_92() {
    reboots(&out_and_halt(0x92, 3));
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and SeaBIOS"]
fn it_reboots_twenty_times_by_a_triple_fault() {
    let mut guest = Guest::firmware();
    guest.description["on_triple_fault"] = json!("reset");
    let again = [
        0x6a, 0x00, 0x6a, 0x00, 0x6a, 0x00, // push 0, three times
        0x89, 0xe5, // mov bp, sp
        0x0f, 0x01, 0x5e, 0x00, // lidt [bp]
        0xcc, // int3
    ];
    reboot(guest, &again);
}

/// Media that are not what they seem lead to the next device.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn media_that_lie_lead_to_the_next_device() {
    let good = code::disk(&printing(b"next", POWER_OFF), 2048);
    let disc = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut disc = code::disc(&printing(b"bad", POWER_OFF));
        change(&mut disc);
        disc
    };
    let catalogue = code::CATALOGUE * 2048;
    let boot_record = code::BOOT_RECORD * 2048;
    let discs = [
        // The catalogue lies behind the end, or is none.
        disc(&|d| d[boot_record + 0x47..][..4].fill(0xff)),
        disc(&|d| d[catalogue..][..64].fill(0)),
        // The code lies behind the end.
        disc(&|d| d[catalogue + 40..][..4].fill(0xff)),
        disc(&|d| d[catalogue + 40..][..4].copy_from_slice(&24u32.to_le_bytes())),
        // The entry is not for booting.
        disc(&|d| d[catalogue + 32] = 0),
        // Cut off within the boot record's neighbours.
        disc(&|d| d.truncate(18 * 2048)),
        disc(&|d| d.truncate(2048)),
    ];
    for (number, disc) in discs.iter().enumerate() {
        let output = boots(|guest| {
            json!({
                "primary-master": cdrom(guest, "disc", disc, 0),
                "secondary-master": disk(guest, "disk", &good, 1),
            })
        });
        assert_eq!(output, "next", "disc {number}");
    }
    let blank = vec![0; 2048 * 512];
    let tiny = vec![0; 512];
    // Of several disks SeaBIOS tries the first, so a disc comes next.
    let good = code::disc(&printing(b"next", POWER_OFF));
    for first in [&blank, &tiny] {
        let output = boots(|guest| {
            json!({
                "primary-master": disk(guest, "first", first, 0),
                "secondary-master": cdrom(guest, "disc", &good, 1),
            })
        });
        assert_eq!(output, "next");
    }
    let output = boots(|guest| json!({"primary-master": disk(guest, "blank", &blank, 0)}));
    assert_eq!(output, "nothing");
}

/// A boot sector of noise does what it does; the monitor goes on answering, or says why the guest
/// cannot go on (where KVM emulates, some instructions end there).
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn a_boot_sector_of_noise_does_not_harm_the_monitor() {
    let mut guest = Guest::firmware();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let noise: Vec<u8> = (0..440)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    guest.description["ide"] = json!({
        "primary-master": disk(&guest, "noise", &code::disk(&noise, 2048), 0),
    });
    let monitor = Monitor::start(&guest, &[]);
    wait_for("the attempt", || {
        monitor.debug().contains("Booting from 0000:7c00")
    });
    let answers = (0..20).all(|_| monitor.request("status", json!({}), &[]).is_ok());
    if answers && monitor.request("quit", json!({}), &[]).is_ok() {
        assert_eq!(monitor.wait().cause(), "quit");
        return;
    }
    let ended = monitor.wait();
    let report = ended.report.as_ref().unwrap();
    assert!(
        matches!(ended.cause(), "monitor-error" | "triple-fault"),
        "{report}"
    );
    assert!(
        !report["detail"].as_str().unwrap_or_default().is_empty(),
        "{report}"
    );
}

/// A disc that is put in while the machine runs is booted by the next start; a display shows it.
#[test]
#[ignore = "needs /dev/kvm and SeaBIOS"]
fn a_disc_is_changed_and_the_screen_is_seen() {
    let mut guest = Guest::firmware();
    guest.description["ide"] = json!({"secondary-master": {"cdrom": {}}});
    guest.description["display"] = json!({});
    let disc = code::disc(&printing(b"disc", POWER_OFF));
    let path = guest.folder.path().join("disc");
    std::fs::write(&path, disc).unwrap();
    let monitor = Monitor::start(&guest, &[]);
    wait_for(NOTHING, || monitor.debug().contains(NOTHING));
    let picture = guest.folder.path().join("picture.png");
    let file = File::create(&picture).unwrap();
    monitor
        .request("screenshot", json!({}), &[file.as_fd()])
        .unwrap();
    let png = std::fs::read(&picture).unwrap();
    assert!(png.starts_with(b"\x89PNG"));
    if let Some(folder) = std::env::var_os("CENOTE_KEEP") {
        std::fs::write(std::path::Path::new(&folder).join("picture.png"), &png).unwrap();
    }
    let refused = monitor.request("change-medium", json!({"drive": "primary-slave"}), &[]);
    assert!(refused.unwrap_err().contains("no CD-ROM drive"));
    let file = File::open(&path).unwrap();
    let drive = json!({"drive": "secondary-master"});
    monitor
        .request("change-medium", drive, &[file.as_fd()])
        .unwrap();
    monitor.call("reset", json!(null));
    let ended = monitor.wait();
    assert_eq!(
        (ended.cause(), ended.output.as_str()),
        ("guest-power-off", "disc")
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn what_cannot_be_used_is_said() {
    let refused = |change: &dyn Fn(&mut Guest)| {
        let mut guest = Guest::firmware();
        change(&mut guest);
        let output = guest.run(&[]);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = refused(&|guest| {
        guest.description["ide"] = json!({"primary-master": cdrom(guest, "d", &[0; 3000], 0)});
    });
    assert!(
        text.contains("3000 bytes") && text.contains("cut off"),
        "{text}"
    );
    let text = refused(&|guest| {
        let rom = file(guest, "rom", &[0x55, 0xaa, 200, 0]);
        guest.description["display"] = json!({"rom": rom});
    });
    assert!(text.contains("no option ROM"), "{text}");
    let text = refused(&|guest| {
        let drives = json!({
            "primary-master": disk(guest, "a", &[0; 512], 1),
            "primary-slave": disk(guest, "b", &[0; 512], 1),
        });
        guest.description["ide"] = drives;
    });
    assert!(text.contains("boot index 1"), "{text}");
}
