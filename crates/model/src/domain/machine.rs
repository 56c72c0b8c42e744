//! What the machine of this release does not have yet.
//!
//! A domain that asks for one of these can be defined, since documents outlive releases; reading
//! it gives a note. Where the guest would miss something it needs, [`blockers`] names it, and
//! the domain is not started. This is the one place to change when the machine grows.

use crate::domain::{
    DiskDevice, Domain, Firmware, InputKind, SmbiosMode, Sysinfo, SysinfoKind, TargetBus,
};

/// A part of a domain that the machine does not have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MissingPart {
    /// Steps from the domain to it.
    pub step: String,
    /// What it is and what to use in its place.
    pub text: String,
    /// Whether the domain cannot be started without it.
    pub blocks_start: bool,
}

/// Disk buses that the machine has.
pub const DISK_BUSES: &[TargetBus] = &[TargetBus::Virtio, TargetBus::Ide];
/// Whether viewers can join the guest's screen.
pub const HAS_VIEWERS: bool = false;
/// Whether the machine has a sound card.
pub const HAS_SOUND: bool = false;
/// Whether the machine has an absolute pointer.
pub const HAS_TABLET: bool = false;
/// Whether the machine boots UEFI firmware.
pub const HAS_UEFI: bool = false;
/// Whether the machine has a memory balloon.
pub const HAS_BALLOON: bool = false;
/// Whether all that `<sysinfo>` says reaches the guest, not only its system's table.
pub const HAS_SYSINFO: bool = false;
/// Whether the machine has a watchdog.
pub const HAS_WATCHDOG: bool = false;

/// Everything in the domain that the machine does not have.
pub fn missing_parts(domain: &Domain) -> Vec<MissingPart> {
    let mut missing = disks(domain);
    let mut part = |step: &str, text: &str, blocks_start| {
        missing.push(MissingPart {
            step: step.to_owned(),
            text: text.to_owned(),
            blocks_start,
        });
    };
    let devices = &domain.devices;
    let os = &domain.os;
    let uefi = os.firmware == Some(Firmware::Efi) || os.loader.is_some() || os.nvram.is_some();
    if uefi && !HAS_UEFI {
        part(
            "os",
            "the machine boots SeaBIOS, or a kernel; other firmware (UEFI) comes later",
            true,
        );
    }
    if !HAS_VIEWERS && !devices.graphics.is_empty() {
        part(
            "devices/graphics",
            "viewers cannot join yet; see the serial console, or 'screenshot'",
            false,
        );
    }
    if !HAS_SOUND && !devices.sounds.is_empty() {
        part("devices/sound", "the machine has no sound card yet", false);
    }
    let tablet = |kind| kind == InputKind::Tablet;
    if !HAS_TABLET && devices.inputs.iter().any(|input| tablet(input.kind)) {
        part(
            "devices/input",
            "the machine has a PS/2 mouse in place of the tablet",
            false,
        );
    }
    let tables = os.smbios.as_ref().map(|smbios| smbios.mode);
    if tables == Some(SmbiosMode::Host) {
        part(
            "os/smbios",
            "the guest's SMBIOS tables say what the monitor makes up, not what the host's do",
            false,
        );
    }
    let others = |info: &Sysinfo| {
        info.bios.is_some()
            || info.chassis.is_some()
            || info.oem_strings.is_some()
            || !info.base_boards.is_empty()
    };
    if !HAS_SYSINFO && tables == Some(SmbiosMode::Sysinfo) && domain.sysinfo.iter().any(others) {
        part(
            "sysinfo",
            "of SMBIOS the guest is told the system's table only, not bios, baseBoard, chassis \
             and oemStrings",
            false,
        );
    }
    let files = |info: &Sysinfo| info.kind == SysinfoKind::Fwcfg;
    if !HAS_SYSINFO && domain.sysinfo.iter().any(files) {
        part(
            "sysinfo",
            "files for the guest (fw_cfg) are not handed over yet; use a seed image or the \
             kernel's command line",
            true,
        );
    }
    let balloon = devices.balloon.as_ref().filter(|b| b.model != "none");
    if !HAS_BALLOON && balloon.is_some() {
        part(
            "devices/memballoon",
            "the machine has no balloon yet",
            false,
        );
    }
    if !HAS_WATCHDOG && !devices.watchdogs.is_empty() {
        part(
            "devices/watchdog",
            "the machine has no watchdog yet: a guest that hangs stays as it is",
            false,
        );
    }
    missing
}

fn disks(domain: &Domain) -> Vec<MissingPart> {
    let disks = domain.devices.disks.iter().enumerate();
    disks
        .filter(|(_, disk)| !DISK_BUSES.contains(&disk.bus()))
        .map(|(index, disk)| {
            let empty = disk.source_path().is_none() && disk.source_volume().is_none();
            let number = index.saturating_add(1);
            let instead = match disk.device {
                DiskDevice::Disk => "virtio or ide",
                DiskDevice::Cdrom => "ide",
                _ => "a CD-ROM drive on ide",
            };
            MissingPart {
                step: format!("devices/disk[{number}]/target/@bus"),
                text: format!(
                    "the machine has no bus '{}' yet for '{}'; use {instead}",
                    disk.bus(),
                    disk.target.dev
                ),
                blocks_start: !empty,
            }
        })
        .collect()
}

/// What keeps the domain from being started.
pub fn blockers(domain: &Domain) -> Vec<MissingPart> {
    let mut missing = missing_parts(domain);
    missing.retain(|part| part.blocks_start);
    missing
}
