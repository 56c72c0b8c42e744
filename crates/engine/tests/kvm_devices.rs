//! Domains with disks, drives and network cards, run with stock kernels and with SeaBIOS. The
//! kernels are the lab's: `cargo xtask lab --tests cenote-engine -- kvm_devices --ignored`. The
//! tests of firmware run on any `/dev/kvm`.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

#[allow(dead_code, reason = "each suite uses its part")]
#[path = "../../../fixtures/guests.rs"]
#[allow(unreachable_pub, reason = "a module of several suites")]
mod guests;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use cenote_engine::{
    DefineOptions, DomainState, ErrorKind, MediumChange, Node, NodeOptions, Resumption, Scope,
    ShutOffReason, SnapshotDelete, SnapshotOptions, StartOptions, XmlOptions,
};
use cenote_model::Document as _;

/// Longer than anything takes on a busy machine that emulates.
const PATIENCE: Duration = Duration::from_secs(300);

struct Bench {
    dir: tempfile::TempDir,
    node: Node,
}

impl Drop for Bench {
    /// Nothing outlives a test, whatever became of it.
    fn drop(&mut self) {
        for domain in self.node.domains().unwrap_or_default() {
            if domain.id.is_some() {
                let _ = self.node.domain_destroy(&domain.uuid, false);
            }
        }
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // In the lab the programs' own test harnesses lie beside this one, under the same names.
        let programs = match std::env::var_os("CENOTE_LAB") {
            Some(_) => Some(Path::new("/lab/bin")),
            None => Path::new(env!("CARGO_BIN_EXE_cenote-supervisor")).parent(),
        };
        let node = Node::open(&NodeOptions {
            programs: programs.map(Path::to_owned),
            allow_emulation: true,
            backing_dirs: vec![dir.path().to_owned()],
            ..NodeOptions::in_dir(dir.path().join("state"))
        })
        .unwrap();
        Bench { dir, node }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn define(&self, xml: &str) {
        let options = DefineOptions::default();
        self.node.domain_define(xml, options).unwrap();
    }

    fn start(&self, name: &str) {
        let options = StartOptions::default();
        self.node.domain_start(name, options).unwrap();
    }

    /// What the guest has said since the domain was first run.
    fn said(&self, name: &str) -> String {
        let log = self.node.domain_log_dir(name).join("console.log");
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    fn wait_said(&self, name: &str, text: &str) {
        let begun = Instant::now();
        while !self.said(name).contains(text) {
            let said = self.said(name);
            assert!(begun.elapsed() < PATIENCE, "no {text:?} in {said}");
            let state = self.node.domain(name).unwrap().state;
            assert!(
                !matches!(state, DomainState::ShutOff(_)),
                "{state:?} {said}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_off(&self, name: &str) -> ShutOffReason {
        let begun = Instant::now();
        loop {
            if let DomainState::ShutOff(reason) = self.node.domain(name).unwrap().state {
                return reason;
            }
            assert!(begun.elapsed() < PATIENCE, "{}", self.said(name));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Runs a program that must succeed.
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

/// A domain of a stock kernel whose first process runs `command`.
fn stock(name: &str, command: &str, devices: &str) -> String {
    let command = command
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<domain type='kvm'><name>{name}</name><memory unit='MiB'>512</memory>\
         <os><type>hvm</type><kernel>/lab/guest/vmlinux-cloud</kernel>\
         <initrd>/lab/guest/initramfs-tools.cpio.gz</initrd>\
         <cmdline>console=ttyS0 quiet panic=-1 GUEST=\"{command}\"</cmdline></os>\
         <devices>{devices}<serial type='pty'/></devices></domain>"
    )
}

/// Makes a file system at the first start, and starts again; at the second start finds it whole,
/// has an address given, and waits for a line before it ends.
const WORK: &str = "d=/dev/vda; if ! e2fsck -fn $d >/dev/null 2>&1; then \
    /tools/bin/mke2fs -q -t ext4 $d && mkdir -p /m && mount -t ext4 $d /m && \
    dd if=/dev/urandom of=/m/file bs=64k count=64 2>/dev/null && \
    (cd /m && sha256sum file >sum) && umount /m && reboot -f; fi; \
    mkdir -p /m && mount -t ext4 $d /m && (cd /m && sha256sum -c sum) && umount /m && \
    echo serial $(cat /sys/block/vda/serial) && ip link set eth0 up && \
    echo mac $(cat /sys/class/net/eth0/address) && udhcpc -i eth0 -f -n -q && \
    echo over to you && read line && echo heard $line";

/// Rows 118 to 125: a qcow2 overlay whose guest writes to it, across a restart of the guest, and
/// a card of the user-mode network.
#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_guest_writes_to_its_overlay_and_is_given_an_address() {
    let bench = Bench::new();
    let [base, overlay] = ["base.raw", "overlay.qcow2"].map(|name| bench.path(name));
    run(
        "qemu-img",
        &["create", "-q", "-f", "raw", text(&base), "96M"],
    );
    let arguments = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    run(
        "qemu-img",
        &[&arguments[..], &[text(&base), text(&overlay)]].concat(),
    );
    let devices = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' \
         discard='unmap'/><source file='{}'/><target dev='vda' bus='virtio'/>\
         <serial>CENOTE-1</serial></disk>\
         <interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/>\
         </interface><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
        overlay.display()
    );
    bench.define(&stock("g", WORK, &devices));
    bench.define(&stock("h", WORK, &devices));
    bench.start("g");
    bench.wait_said("g", "over to you");
    let cards = bench.node.domain_cards("g", Scope::Live).unwrap();
    let [card] = cards.as_slice() else {
        panic!("{cards:?}");
    };
    assert_eq!(card.mac.as_deref(), Some("52:54:00:12:34:56"));
    let [lease] = card.leases.as_slice() else {
        panic!("{card:?}");
    };
    assert_eq!(
        (lease.mac.as_str(), lease.address.as_str()),
        ("52:54:00:12:34:56", "10.0.2.15")
    );
    assert!(card.traffic.unwrap().from_guest.frames > 0, "{card:?}");
    // Another domain cannot have the image meanwhile.
    let refused = bench.node.domain_start("h", StartOptions::default());
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(
        error.to_string().contains("is in use by domain 'g'"),
        "{error}"
    );
    let mut console = bench.node.domain_console("g", false).unwrap().stream;
    console.write_all(b"go\n").unwrap();
    assert_eq!(bench.wait_off("g"), ShutOffReason::Shutdown);
    let said = bench.said("g");
    assert!(said.contains("serial CENOTE-1"), "{said}");
    assert!(said.contains("file: OK"), "{said}");
    assert!(said.contains("mac 52:54:00:12:34:56"), "{said}");
    assert!(
        said.contains("lease of 10.0.2.15 obtained from 10.0.2.2"),
        "{said}"
    );
    assert!(said.contains("heard go"), "{said}");
    assert!(said.contains("guest: status 0"), "{said}");
    // Programs of others find the images whole and the base untouched.
    run("qemu-img", &["check", "-q", text(&overlay)]);
    let raw = bench.path("flat.raw");
    run(
        "qemu-img",
        &["convert", "-O", "raw", text(&overlay), text(&raw)],
    );
    run("e2fsck", &["-fn", text(&raw)]);
    let base_content = std::fs::read(&base).unwrap();
    assert!(base_content.iter().all(|byte| *byte == 0));
}

/// A boot sector that says one letter on COM1 and stops.
fn boot_sector(letter: u8) -> Vec<u8> {
    let mut sector = vec![
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, letter, // mov al, letter
        0xee,   // out dx, al
        0xb0, b'\n', // mov al, '\n'
        0xee,  // out dx, al
        0xf4,  // hlt
        0xeb, 0xfd, // jmp to the halt
    ];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // More than one cylinder, or SeaBIOS passes it over.
    sector.resize(1 << 20, 0);
    sector
}

/// What a running domain shows and counts, and another disc in its drive.
fn look_at_devices(bench: &Bench, name: &str) {
    let picture = bench.path("screen.png");
    bench.node.domain_screenshot(name, &picture).unwrap();
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    let disks = bench.node.domain_disk_stats(name).unwrap();
    let vda = disks.iter().find(|disk| disk.target == "vda").unwrap();
    let status = vda.status.as_ref().unwrap();
    assert_eq!(status.size, 1 << 20);
    assert!(status.counts.reads > 0 && status.counts.read_bytes >= 512);
    let disc = bench.path("disc.iso");
    std::fs::write(&disc, vec![0; 1 << 20]).unwrap();
    let change = |change: MediumChange| {
        let node = &bench.node;
        node.domain_change_media(name, Scope::Live, "hdc", &change, false)
    };
    change(MediumChange::Insert(text(&disc).to_owned())).unwrap();
    let live = || bench.node.domain_xml(name, XmlOptions::default()).unwrap();
    assert!(live().contains("disc.iso"), "{}", live());
    let missing = change(MediumChange::Update("/nonexistent.iso".to_owned()));
    let error = missing.unwrap_err().to_string();
    assert!(error.contains("/nonexistent.iso"), "{error}");
    assert!(live().contains("disc.iso"), "{}", live());
    change(MediumChange::Eject).unwrap();
    assert!(!live().contains("disc.iso"), "{}", live());
    let definition = XmlOptions {
        inactive: true,
        ..XmlOptions::default()
    };
    let defined = bench.node.domain_xml(name, definition).unwrap();
    assert!(!defined.contains("disc.iso") && !defined.contains("tray"));
}

/// Row 109: firmware boots what the document names first, from either bus.
#[test]
#[ignore = "needs /dev/kvm"]
fn firmware_boots_in_the_documents_order() {
    let bench = Bench::new();
    let [virtio, ide, blank] = ["virtio.raw", "ide.qcow2", "blank.raw"].map(|n| bench.path(n));
    std::fs::write(&virtio, boot_sector(b'V')).unwrap();
    let raw = bench.path("ide.raw");
    std::fs::write(&raw, boot_sector(b'I')).unwrap();
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&ide)],
    );
    std::fs::write(&blank, vec![0; 1 << 20]).unwrap();
    let disk = |file: &Path, format: &str, dev: &str, boot: &str| {
        format!(
            "<disk type='file'><driver type='{format}'/><source file='{}'/>\
             <target dev='{dev}'/>{boot}</disk>",
            file.display()
        )
    };
    let order = |order: u32| format!("<boot order='{order}'/>");
    let table = [
        (
            "v",
            disk(&virtio, "raw", "vda", &order(1)) + &disk(&ide, "qcow2", "hda", &order(2)),
            "V\n",
        ),
        (
            "i",
            disk(&virtio, "raw", "vda", &order(2)) + &disk(&ide, "qcow2", "hda", &order(1)),
            "I\n",
        ),
        ("c", disk(&virtio, "raw", "vda", ""), "V\n"),
    ];
    for (name, disks, says) in table {
        bench.define(&format!(
            "<domain type='kvm'><name>{name}</name><memory unit='MiB'>64</memory>\
             <os><type>hvm</type></os><devices>{disks}<disk type='file' device='cdrom'>\
             <target dev='hdc'/></disk><video><model type='vga'/></video>\
             <serial type='pty'/></devices></domain>"
        ));
        bench.start(name);
        bench.wait_said(name, says);
        if name == "v" {
            look_at_devices(&bench, name);
        }
        bench.node.domain_destroy(name, false).unwrap();
        assert_eq!(bench.said(name), says);
    }
}

/// Processes whose command line has `word` in it.
fn processes_with(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let line = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
    let lines = entries.filter_map(line);
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(word))
        .count()
}

fn wait_gone(word: &str) {
    let begun = Instant::now();
    while processes_with(word) > 0 {
        assert!(begun.elapsed() < PATIENCE, "a process stays");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The network of a card comes and goes with its monitor, and a port of the host that is taken is
/// named.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_network_lives_as_long_as_its_machine() {
    let bench = Bench::new();
    let kernel = bench.path("kernel");
    std::fs::write(&kernel, guests::heartbeat(true)).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let said = bench.path("port.log");
    let define = |name: &str| {
        bench.define(&format!(
            "<domain type='kvm'><name>{name}</name><memory>8192</memory>\
             <os><type>hvm</type><kernel>{}</kernel></os><devices><interface type='user'>\
             <portForward proto='tcp' address='127.0.0.1'><range start='{port}' to='22'/>\
             </portForward></interface><serial type='pty'/>\
             <channel type='unix'><target type='virtio' name='org.example.0'/></channel>\
             <channel type='file'><source path='{}'/><target type='virtio' name='log'/></channel>\
             </devices></domain>",
            kernel.display(),
            said.display()
        ));
        bench.node.domain(name).unwrap().uuid
    };
    let uuid = define("g");
    let networks = || processes_with(&format!("g.{uuid}/network0.json"));
    let start = || bench.node.domain_start("g", StartOptions::default());
    let error = start().unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    wait_gone(&uuid);
    drop(taken);
    start().unwrap();
    assert_eq!(networks(), 1);
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let live = bench.node.domain_xml("g", Default::default()).unwrap();
    let (_, socket) = live.split_once("<source mode='bind' path='").unwrap();
    let (socket, _) = socket.split_once('\'').unwrap();
    std::os::unix::net::UnixStream::connect(socket).unwrap();
    assert!(said.exists());
    // A guest that is started again has a network again, at the same port.
    let starts = || {
        let said = bench.said("g");
        let counts = said.lines().filter_map(|line| line.strip_prefix("HB "));
        counts
            .filter(|count| count.bytes().all(|byte| byte == b'0'))
            .count()
    };
    let wait_starts = |wanted| {
        let begun = Instant::now();
        while starts() < wanted {
            assert!(begun.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(5));
        }
    };
    wait_starts(1);
    bench.node.domain_reboot("g").unwrap();
    wait_starts(2);
    assert_eq!(networks(), 1);
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    bench.node.domain_destroy("g", false).unwrap();
    wait_gone(&uuid);
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}

/// A boot sector that fills the sector whose number is a letter's code with that letter, for each
/// letter that comes on COM1, and then sends the letter back.
fn writing_sector() -> Vec<u8> {
    let mut sector = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // xor ax, ax; mov ds, ax; mov es, ax
        0x8e, 0xd0, 0xbc, 0x00, 0x7c, // mov ss, ax; mov sp, 0x7c00
        0x88, 0x16, 0x00, 0x7e, // mov [0x7e00], dl: the drive
        0xba, 0xf8, 0x03, 0xb0, b'>', 0xee, // mov dx, 0x3f8; mov al, '>'; out dx, al
        // 0x1a: wait for a letter
        0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, 0xa8, 0x01, // in al, dx; test al, 1
        0x74, 0xfb, // jz to the input
        0xba, 0xf8, 0x03, 0xec, // mov dx, 0x3f8; in al, dx
        0x88, 0xc3, // mov bl, al
        0xbf, 0x00, 0x80, 0xb9, 0x00, 0x02, // mov di, 0x8000; mov cx, 512
        0xfc, 0xf3, 0xaa, // cld; rep stosb
        0x88, 0x1e, 0x88, 0x7c, // mov [0x7c88], bl: the sector's number
        0xbe, 0x80, 0x7c, // mov si, 0x7c80: the packet
        0xb8, 0x00, 0x43, // mov ax, 0x4300: write
        0x8a, 0x16, 0x00, 0x7e, // mov dl, [0x7e00]
        0xcd, 0x13, // int 0x13
        0x73, 0x02, // jnc over the next
        0xb3, b'!', // mov bl, '!'
        0x88, 0xd8, // mov al, bl
        0xba, 0xf8, 0x03, 0xee, // mov dx, 0x3f8; out dx, al
    ];
    let loop_at: usize = 0x15;
    let back = i8::try_from(loop_at as isize - (sector.len() as isize + 2)).unwrap();
    sector.extend([0xeb, back.cast_unsigned()]);
    assert!(sector.len() <= 0x80);
    sector.resize(0x80, 0);
    // One sector, from 0x0000:0x8000.
    sector.extend([0x10, 0, 1, 0, 0x00, 0x80, 0, 0]);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    sector
}

/// A domain whose guest writes each letter that is typed to the sector of its number, and says it
/// then; it says `>` when it has started.
fn writer() -> Bench {
    let bench = Bench::new();
    let raw = bench.path("disk.raw");
    std::fs::write(&raw, writing_sector()).unwrap();
    let disk = bench.path("disk.qcow2");
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&disk)],
    );
    bench.define(&format!(
        "<domain type='kvm'><name>g</name><memory unit='MiB'>64</memory><os><type>hvm</type></os>\
         <devices><disk type='file'><driver type='qcow2'/><source file='{}'/>\
         <target dev='vda'/></disk><serial type='pty'/></devices></domain>",
        disk.display()
    ));
    bench
}

/// QEMU finds the image whole, with those letters written and no others of A to H.
fn holds(image: &Path, written: &str) {
    run("qemu-img", &["check", "-q", "-f", "qcow2", text(image)]);
    for letter in b'A'..=b'H' {
        let at = u64::from(letter) * 512;
        let filled = written.as_bytes().contains(&letter);
        let pattern = if filled { letter } else { 0 };
        let command = format!("read -q -P {pattern} {at} 512");
        let said = run("qemu-io", &["-f", "qcow2", "-c", &command, text(image)]);
        assert!(
            said.is_empty(),
            "{} {}: {said}",
            image.display(),
            char::from(letter)
        );
    }
}

/// Snapshots of a running domain: what the guest writes afterwards is in the overlay, what it
/// wrote before in the image below, and the next start goes on with both.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_snapshot_of_a_running_guest_splits_its_writes() {
    let bench = writer();
    bench.start("g");
    bench.wait_said("g", ">");
    let mut console = bench.node.domain_console("g", false).unwrap().stream;
    let mut write = |letters: &str, said: &str| {
        console.write_all(letters.as_bytes()).unwrap();
        bench.wait_said("g", said);
    };
    write("AB", ">AB");
    let options = SnapshotOptions {
        disk_only: true,
        ..SnapshotOptions::default()
    };
    let take = |name: &str| {
        let wanted = cenote_model::snapshot::Snapshot {
            name: Some(cenote_model::Name::new(name).unwrap()),
            ..Default::default()
        };
        bench.node.domain_snapshot_create("g", &wanted, options)
    };
    take("one").unwrap();
    write("BC", ">ABBC");
    take("two").unwrap();
    write("D", ">ABBCD");
    for inactive in [false, true] {
        let options = XmlOptions {
            inactive,
            ..XmlOptions::default()
        };
        let xml = bench.node.domain_xml("g", options).unwrap();
        assert!(xml.contains("disk.two'"), "{xml}");
    }
    // A snapshot that cannot be taken changes nothing, and the guest goes on.
    std::fs::write(bench.path("disk.three"), "mine").unwrap();
    take("three").unwrap_err();
    write("E", ">ABBCDE");
    let all = bench.node.domain_snapshots("g").unwrap();
    let states: Vec<_> = all
        .iter()
        .map(|s| (s.name.as_str(), s.state.as_str()))
        .collect();
    assert_eq!(states, [("one", "disk-snapshot"), ("two", "disk-snapshot")]);
    bench.node.domain_destroy("g", false).unwrap();
    let images = ["disk.qcow2", "disk.one", "disk.two"].map(|name| bench.path(name));
    for (image, written) in images.iter().zip(["AB", "ABC", "ABCDE"]) {
        holds(image, written);
    }
    // The next start goes on from the overlay.
    bench.start("g");
    bench.wait_said("g", ">ABBCDE>");
}

/// Rows 75 to 79: memory and disks go back together, as often as one likes, from any state.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_snapshot_with_memory_is_gone_back_to() {
    let bench = writer();
    bench.start("g");
    bench.wait_said("g", ">");
    let write = |letters: &str| {
        let before = bench.said("g");
        let mut console = bench.node.domain_console("g", true).unwrap().stream;
        console.write_all(letters.as_bytes()).unwrap();
        bench.wait_said("g", &format!("{before}{letters}"));
    };
    let top = || {
        let document = bench.node.domain_document("g", true).unwrap();
        PathBuf::from(document.devices.disks[0].source_path().unwrap())
    };
    let take = |wanted: &str| {
        let wanted = format!("<domainsnapshot>{wanted}</domainsnapshot>");
        let options = cenote_model::ReadOptions::default();
        let wanted = cenote_model::snapshot::Snapshot::from_xml(&wanted, &options).unwrap();
        let options = SnapshotOptions::default();
        bench
            .node
            .domain_snapshot_create("g", &wanted.document, options)
            .unwrap()
    };
    let revert = |name: &str, resumption| {
        bench
            .node
            .domain_snapshot_revert("g", name, resumption)
            .unwrap();
    };
    let stands = || {
        let state = bench.node.domain("g").unwrap().state;
        format!("{state} ({})", state.reason())
    };
    write("AB");
    take("<name>inside</name>");
    assert_eq!(stands(), "running (booted)");
    write("C");
    bench.node.domain_suspend("g").unwrap();
    let memory = bench.path("memory");
    let file = memory.display();
    take(&format!("<name>outside</name><memory file='{file}'/>"));
    assert_eq!(stands(), "paused (user)");
    bench.node.domain_resume("g").unwrap();
    write("D");
    let all = bench.node.domain_snapshots("g").unwrap();
    let states: Vec<_> = all
        .iter()
        .map(|s| (s.name.as_str(), s.state.as_str()))
        .collect();
    assert_eq!(states, [("inside", "running"), ("outside", "paused")]);
    revert("inside", Resumption::AsSaved);
    assert_eq!(stands(), "running (from snapshot)");
    write("E");
    assert_eq!(
        bench.said("g").matches('>').count(),
        1,
        "it was not booted again"
    );
    bench.node.domain_destroy("g", false).unwrap();
    holds(&top(), "ABE");
    revert("outside", Resumption::AsSaved);
    assert_eq!(stands(), "paused (from snapshot)");
    bench.node.domain_resume("g").unwrap();
    write("F");
    revert("inside", Resumption::Paused);
    assert_eq!(stands(), "paused (from snapshot)");
    let words: Vec<_> = bench.node.events(0).unwrap();
    let words: Vec<_> = words
        .iter()
        .filter(|event| event.kind == "lifecycle")
        .map(|event| {
            format!("{} {}", event.detail["event"], event.detail["detail"]).replace('"', "")
        })
        .collect();
    let last = words.len() - 4;
    assert_eq!(
        words[last..],
        [
            "Stopped Snapshot",
            "Defined Snapshot",
            "Started Snapshot",
            "Suspended Snapshot"
        ]
    );
    bench.node.domain_resume("g").unwrap();
    write("G");
    // One that lies in the running domain's own image is deleted under it.
    take("<name>last</name>");
    write("H");
    let delete = |name: &str| {
        let options = SnapshotDelete::default();
        bench.node.domain_snapshot_delete("g", name, options)
    };
    delete("last").unwrap();
    write("A");
    let error = delete("outside").unwrap_err();
    assert!(
        error.hint().unwrap().contains("cenote shutdown g"),
        "{error}"
    );
    bench.node.domain_destroy("g", false).unwrap();
    holds(&top(), "ABGH");
    delete("inside").unwrap();
    delete("outside").unwrap();
    holds(&top(), "ABGH");
    assert!(!memory.exists());
    let uuid = bench.node.domain("g").unwrap().uuid;
    let kept = bench.path("state/snapshots").join(uuid);
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 0);
    let said = run("qemu-img", &["snapshot", "-l", text(&top())]);
    assert!(said.trim().is_empty(), "{said}");
}

/// Keys go through the keyboard controller and SeaBIOS to a guest that prints them.
#[test]
#[ignore = "needs /dev/kvm"]
fn pressed_keys_reach_the_guest() {
    let bench = Bench::new();
    let mut sector = vec![0; 512];
    let code = [
        0xfb, // sti
        0xba, 0xf8, 0x03, 0xb0, b'>', 0xee, // mov dx, 0x3f8; mov al, '>'; out dx, al
        0x31, 0xc0, 0xcd, 0x16, // xor ax, ax; int 0x16
        0xba, 0xf8, 0x03, 0xee, // mov dx, 0x3f8; out dx, al
        0xeb, 0xf6, // jmp to the xor
    ];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = bench.path("disk.raw");
    std::fs::write(&disk, [sector, vec![0; 1 << 20]].concat()).unwrap();
    bench.define(&format!(
        "<domain type='kvm'><name>g</name><memory unit='MiB'>64</memory><os><type>hvm</type></os>\
         <devices><disk type='file'><driver type='raw'/><source file='{}'/>\
         <target dev='vda'/></disk><serial type='pty'/></devices></domain>",
        disk.display()
    ));
    let press = |keys: &[&str]| {
        let codes: Vec<u8> = keys
            .iter()
            .map(|key| cenote_engine::scan_code(key).unwrap())
            .collect();
        bench
            .node
            .domain_send_keys("g", &codes, Duration::from_millis(20))
    };
    let error = press(&["KEY_A"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    bench.start("g");
    bench.wait_said("g", ">");
    press(&["KEY_A"]).unwrap();
    bench.wait_said("g", ">a");
    press(&["KEY_LEFTSHIFT", "KEY_B"]).unwrap();
    press(&["KEY_C"]).unwrap();
    bench.wait_said("g", ">aBc");
}
