//! What Debian's boot loaders start, from media made as users make them.
//!
//! The media are those of `cargo xtask lab --media`. With `CENOTE_BESIDE_QEMU=1` each boot is done
//! by QEMU's `pc` as well, with the same SeaBIOS and iPXE, and what comes over the serial line must
//! be the same but for what [`told`] leaves out:
//!
//! `CENOTE_BESIDE_QEMU=1 cargo xtask lab --media --tests cenote-vmm -- kvm_firmware_media --ignored
//! --test-threads=1`
//!
//! What each guest printed is in `target/lab/last/out/media` afterwards. By default only the boot
//! sectors are compared: the rest would double the time.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use common::{
    Guest, Monitor,
    code::{self, POWER_OFF, printing},
    network::{MAC, Network},
    pc::Pc,
    wait_for,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    thread,
};

/// Where the lab has the media.
const MEDIA: &str = "/lab/payload/with/media";
/// Enough for a kernel, an initramfs of Debian and its user land.
const MEMORY: u64 = 512 << 20;
/// Of both machines, as firmware shows it.
const UUID: &str = "3d8cbde0-8d59-4a5c-a3c2-6b4f4a0f3f01";

fn media(name: &str) -> PathBuf {
    Path::new(MEDIA).join(name)
}

/// A guest with firmware that also writes to the serial line.
fn guest() -> Guest {
    let mut guest = Guest::firmware();
    guest.description["boot"] = json!({"firmware": {"serial_console": true, "only_listed": true}});
    guest.description["product"] = json!({"uuid": UUID});
    guest.description["memory"] = json!(MEMORY);
    guest.description["allow_emulation"] = json!(false);
    guest
}

/// What the guest prints until it switches itself off, or until all of `last` have come.
fn ours(guest: &Guest, last: &[&str]) -> String {
    let monitor = Monitor::start(guest, &[]);
    if !last.is_empty() {
        let report = guest.folder.path().join("report");
        wait_for(&last.join(", "), || {
            let output = monitor.output();
            last.iter().all(|last| output.contains(last))
                || report.metadata().is_ok_and(|m| m.len() > 0)
        });
        monitor.call("quit", json!(null));
        let ended = monitor.wait();
        assert_eq!(ended.cause(), "quit", "{ended:?}");
        return ended.output;
    }
    let ended = monitor.wait();
    assert_eq!(ended.cause(), "guest-power-off", "{ended:?}");
    ended.output
}

/// Boots `guest`, where it is asked for also QEMU with these devices, and gives what both say.
fn alike(name: &str, guest: &Guest, devices: &str, last: &[&str]) -> String {
    let ours = ours(guest, last);
    keep(name, "cenote", &ours);
    if std::env::var_os("CENOTE_BESIDE_QEMU").is_some() || name.starts_with("sector") {
        let devices = devices.split(' ').map(str::to_owned);
        let words: Vec<_> = ["-uuid", UUID]
            .map(str::to_owned)
            .into_iter()
            .chain(devices)
            .collect();
        let theirs = Pc::start(guest, &words).until(last);
        keep(name, "qemu", &theirs);
        assert_eq!(told(&ours), told(&theirs), "{name}: ours first");
        eprintln!(
            "{name}: {} lines are the same as on QEMU",
            told(&ours).len()
        );
    }
    told(&ours).join("\n")
}

fn keep(name: &str, whose: &str, output: &str) {
    if std::env::var_os("CENOTE_LAB").is_some() {
        let folder = Path::new("/lab/out/media");
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(format!("{name}.{whose}")), output).unwrap();
    }
}

/// The lines of a console as a reader sees them. Left out are what depends on the moment: what the
/// kernel says, with its times; orders to the terminal (SeaBIOS moves its cursor on a timer);
/// systemd's animation; how many dots iPXE has waited; and where SeaBIOS has put iPXE in memory.
/// systemd's lines come in whatever order its jobs end, so they are sorted.
fn told(output: &str) -> Vec<String> {
    let text = without_orders(output).replace('\r', "\n");
    // Others write to the same line.
    let text = text.replace(" login: ", " login:\n");
    let lines = text.lines().map(|line| calm(&typed(line)));
    let (mut jobs, mut told): (Vec<_>, Vec<_>) = lines
        .filter(|line| !line.is_empty() && !is_of_the_moment(line))
        .partition(|line| line.starts_with("[  OK  ]") || line.starts_with("         Starting"));
    jobs.sort();
    told.append(&mut jobs);
    told
}

/// A line as a printer shows it that can go back.
fn typed(line: &str) -> String {
    let (mut shown, mut at) = (Vec::new(), 0);
    for character in line.chars() {
        if character == '\u{8}' {
            at = usize::saturating_sub(at, 1);
            continue;
        }
        match shown.get_mut(at) {
            Some(place) => *place = character,
            None => shown.push(character),
        }
        at += 1;
    }
    String::from_iter(shown).trim_end().to_owned()
}

/// A line without how long something took and where something lies.
fn calm(line: &str) -> String {
    let words = line.split(' ').map(|word| match word {
        _ if word.starts_with("PMM+") => "PMM",
        _ if word.ends_with("....") => word.trim_end_matches('.'),
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A line of the kernel, `[    7.303273] …`, or of systemd's animation, `[**    ] …`.
fn is_of_the_moment(line: &str) -> bool {
    let behind = line.strip_prefix('[').map(str::trim_start);
    behind.is_some_and(|text| text.starts_with(|c: char| c.is_ascii_digit() || c == '*'))
}

/// The text without the control sequences of ECMA-48 and of SeaBIOS.
fn without_orders(output: &str) -> String {
    let mut text = String::new();
    let mut characters = output.chars();
    while let Some(character) = characters.next() {
        if character != '\u{1b}' {
            text.push(character);
            continue;
        }
        // `ESC [ … letter`, or `ESC` and one character.
        if characters.next() == Some('[') {
            characters.by_ref().find(char::is_ascii_alphabetic);
        }
    }
    text
}

/// QEMU's drive with a disc as the second channel's master.
fn disc_of_pc(path: &Path) -> String {
    let path = path.display();
    format!(
        "-drive if=none,id=disc,media=cdrom,format=raw,readonly=on,file={path} \
         -device ide-cd,bus=ide.1,unit=0,drive=disc,bootindex=0"
    )
}

fn boots_a_disc(name: &str, path: &Path) -> String {
    let mut guest = guest();
    guest.description["ide"] = json!({
        "secondary-master": {"cdrom": {"file": {"path": path}, "boot_index": 0}},
    });
    alike(name, &guest, &disc_of_pc(path), &[])
}

fn assert_lines(output: &str, lines: &[&str]) {
    for line in lines {
        assert!(output.contains(line), "'{line}' is missing:\n{output}");
    }
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and boot media"]
fn isolinux_starts_linux() {
    let output = boots_a_disc("isolinux", &media("isolinux.iso"));
    let lines = [
        "ISOLINUX",
        "loaded by isolinux",
        "disk sr0",
        "guest: status 0",
    ];
    assert_lines(&output, &lines);
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and boot media"]
fn grub_starts_linux_from_a_disc() {
    let output = boots_a_disc("grub", &media("grub.iso"));
    let lines = [
        "GRUB starts Linux",
        "loaded by grub",
        "disk sr0",
        "guest: status 0",
    ];
    assert_lines(&output, &lines);
}

/// Boots from the network with this boot file, served from the media's folder.
fn boots_from_the_network(name: &str, boot: Value, file: &str, folder: &Path) -> String {
    let mut guest = guest();
    let settings = json!({"restricted": true, "boot": boot, "tftp": {"root": folder}});
    let _network = Network::start(&mut guest, settings, 0);
    // QEMU has the controller always, we only with a drive.
    guest.description["ide"] = json!({"secondary-master": {"cdrom": {}}});
    let devices = format!(
        "-netdev user,id=net0,restrict=on,ipv6=off,tftp={},bootfile={file} \
         -device virtio-net-pci,netdev=net0,mac={MAC},bootindex=0,addr=3,disable-legacy=on \
         -device ide-cd,bus=ide.1",
        folder.display()
    );
    alike(name, &guest, &devices, &[])
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and boot media"]
fn pxelinux_starts_linux() {
    let boot = json!({"file": "pxelinux.0"});
    let output = boots_from_the_network("pxelinux", boot, "pxelinux.0", &media("tftp"));
    let lines = [
        "PXELINUX",
        "loaded by pxelinux",
        "card eth0",
        "guest: status 0",
    ];
    assert_lines(&output, &lines);
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and boot media"]
fn ipxe_starts_linux() {
    let boot = json!({"ipxe_file": "boot.ipxe"});
    let output = boots_from_the_network("ipxe", boot, "boot.ipxe", &media("tftp"));
    assert_lines(&output, &["loaded by ipxe", "card eth0", "guest: status 0"]);
}

/// iPXE takes its script, and the boot program that this names, from a service of the network.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and iPXE"]
fn ipxe_boots_over_http() {
    let mut guest = guest();
    guest.description["boot"] = json!({"firmware": {"only_listed": true}});
    let socket = guest.folder.path().join("http");
    let service = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in service.incoming().flatten() {
            serve(stream);
        }
    });
    let settings = json!({
        "restricted": true,
        "boot": {"ipxe_file": "http://10.0.2.4/boot.ipxe"},
        "services": [{"address": "10.0.2.4:80", "unix": socket}],
    });
    let _network = Network::start(&mut guest, settings, 0);
    assert_eq!(ours(&guest, &[]), "over http");
}

/// Answers one request as HTTP/1.0 does.
fn serve(mut stream: UnixStream) {
    let mut request = String::new();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let _ = lines.read_line(&mut request);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    let body = match request.split(' ').nth(1) {
        Some("/boot.ipxe") => b"#!ipxe\nchain start.0\n".to_vec(),
        Some("/start.0") => printing(b"over http", POWER_OFF),
        _ => Vec::new(),
    };
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
}

/// A disk of Debian with GRUB, to where it asks for a name.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and boot media"]
fn debian_comes_to_its_login_prompt() {
    let base = media("debian.qcow2");
    let mut guest = guest();
    let overlay = |name: &str| {
        let path = guest.folder.path().join(name);
        let status = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&base)
            .arg(&path)
            .status();
        assert!(status.unwrap().success());
        path
    };
    let (our_disk, their_disk) = (overlay("ours"), overlay("theirs"));
    guest.description["disks"] = json!([{
        "name": "vda", "boot_index": 0,
        "chain": [
            {"file": {"path": our_disk}, "format": "qcow2"},
            {"file": {"path": base}, "format": "qcow2"},
        ],
    }]);
    let devices = format!(
        "-drive if=none,id=disk,format=qcow2,file={} \
         -device virtio-blk-pci,drive=disk,bootindex=0,addr=3,disable-legacy=on",
        their_disk.display()
    );
    let output = alike(
        "debian",
        &guest,
        &devices,
        &["debian login:", "Record Runlevel Change in UTMP."],
    );
    assert_lines(&output, &["GRUB starts Debian", "debian login:"]);
}

/// The project's own boot sector, from either kind of disk.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and boot media"]
fn a_boot_sector_starts() {
    // SeaBIOS writes to the serial line on its timer: it is given eight ticks to come to the end.
    let mut code = vec![0xfb, 0xb9, 0x08, 0x00, 0xf4, 0xe2, 0xfd]; // sti; mov cx, 8; hlt; loop
    code.extend(printing(b"boot sector", POWER_OFF));
    let disk = code::disk(&code, 2048);
    let file = |guest: &Guest| {
        let path = guest.folder.path().join("disk");
        std::fs::write(&path, &disk).unwrap();
        path
    };
    let mut with_ide = guest();
    let path = file(&with_ide);
    with_ide.description["ide"] = json!({"primary-master": {
        "disk": {"file": {"path": path}, "format": "raw", "boot_index": 0},
    }});
    let drive = format!("-drive if=none,id=disk,format=raw,file={}", path.display());
    let devices = format!("{drive} -device ide-hd,bus=ide.0,unit=0,drive=disk,bootindex=0");
    let output = alike("sector-ide", &with_ide, &devices, &[]);
    assert_lines(&output, &["boot sector"]);
    let mut with_virtio = guest();
    let path = file(&with_virtio);
    with_virtio.description["disks"] = json!([{
        "name": "vda", "boot_index": 0,
        "chain": [{"file": {"path": path}, "format": "raw"}],
    }]);
    let drive = format!("-drive if=none,id=disk,format=raw,file={}", path.display());
    let devices =
        format!("{drive} -device virtio-blk-pci,drive=disk,bootindex=0,addr=3,disable-legacy=on");
    let output = alike("sector-virtio", &with_virtio, &devices, &[]);
    assert_lines(&output, &["boot sector"]);
}

/// An installation from the network: the blank disk falls through to it; when something has been
/// written to the disk, the same machine boots that, and the network is not asked.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, and iPXE"]
fn a_blank_disk_falls_through_to_the_network_until_it_is_written() {
    let mut guest = guest();
    let folder = guest.folder.path().to_path_buf();
    let disk = folder.join("disk");
    std::fs::write(&disk, vec![0; 2048 * 512]).unwrap();
    let installer = code::installer(&code::disk(&printing(b"installed ", POWER_OFF), 1));
    let tftp = folder.join("tftp");
    std::fs::create_dir(&tftp).unwrap();
    std::fs::write(tftp.join("start.0"), printing(b"installer ", &installer)).unwrap();
    let boot = json!({"restricted": true, "boot": {"file": "start.0"}, "tftp": {"root": tftp}});
    let _network = Network::start(&mut guest, boot, 1);
    guest.description["boot"] = json!({"firmware": {"only_listed": true}});
    guest.description["disks"] = json!([{
        "name": "vda", "boot_index": 0,
        "chain": [{"file": {"path": disk}, "format": "raw"}],
    }]);
    assert_eq!(ours(&guest, &[]), "installer installed ");
    // The definition is the one from before.
    assert_eq!(ours(&guest, &[]), "installed ");
}

/// A block device of the host as the disc.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels, boot media and root"]
fn a_block_device_of_the_host_is_a_disc() {
    let attach = std::process::Command::new("losetup")
        .args(["--find", "--show", "--read-only"])
        .arg(media("isolinux.iso"))
        .output()
        .unwrap();
    assert!(attach.status.success(), "{attach:?}");
    let device = PathBuf::from(String::from_utf8(attach.stdout).unwrap().trim());
    let mut guest = guest();
    guest.description["ide"] = json!({
        "secondary-master": {"cdrom": {"file": {"path": device}, "boot_index": 0}},
    });
    let output = ours(&guest, &["loaded by isolinux"]);
    let detached = std::process::Command::new("losetup")
        .arg("--detach")
        .arg(&device)
        .status();
    assert!(detached.unwrap().success());
    assert_lines(&output, &["loaded by isolinux"]);
}
