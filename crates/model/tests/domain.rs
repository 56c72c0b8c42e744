//! Domains part by part: FEATURES 100 to 129, defaults, refusals and limits.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod common;

use cenote_model::domain::machine::{blockers, missing_parts};
use cenote_model::domain::{
    BootDevice, CharacterKind, ClockAdjustment, ClockOffset, DiskDevice, Domain, DomainKind,
    InputBus, InterfaceKind, LifecycleAction, MacAddress, SnapshotMode, TargetBus, target_index,
};
use cenote_model::volume::Format;
use cenote_model::{Document, Error, Memory, NoteKind, ReadOptions};
use common::{error, read, stable, validate};
use proptest::prelude::*;

/// A domain with these elements beside name, memory and type, and these devices.
fn with(elements: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm'>\n<name>g</name>\n<memory>262144</memory>\n\
         <os><type>hvm</type></os>\n{elements}\n<devices>\n{devices}\n</devices>\n</domain>\n"
    )
}

fn domain(elements: &str, devices: &str) -> Domain {
    let parsed = read::<Domain>(&with(elements, devices));
    validate("domain", &stable(&parsed.document));
    parsed.document
}

fn refusal(elements: &str, devices: &str) -> String {
    error::<Domain>(&with(elements, devices))
}

fn notes(elements: &str, devices: &str) -> Vec<String> {
    let parsed = read::<Domain>(&with(elements, devices));
    parsed.notes.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn contains(text: &str, expected: &str) {
    assert!(text.contains(expected), "'{expected}' is not in: {text}");
}

#[test]
fn row_100_and_101_types() {
    assert_eq!(domain("", "").kind, DomainKind::Kvm);
    let qemu = with("", "").replace("'kvm'", "'qemu'");
    let parsed = read::<Domain>(&qemu);
    assert_eq!(parsed.notes.len(), 1);
    contains(
        &parsed.notes[0].to_string(),
        "/domain/@type (line 1, column 1): runs on the built-in",
    );
    contains(&parsed.document.to_xml(), "<domain type='qemu'>");
    for kind in DomainKind::ALL
        .iter()
        .filter(|k| !matches!(k, DomainKind::Kvm | DomainKind::Qemu))
    {
        let text = with("", "").replace("'kvm'", &format!("'{kind}'"));
        contains(
            &error::<Domain>(&text),
            &format!("domains of type '{kind}'"),
        );
    }
    let none = with("", "").replace(" type='kvm'", "");
    contains(
        &error::<Domain>(&none),
        "/domain (line 1, column 1): attribute 'type' is missing",
    );
}

#[test]
fn row_102_and_103_names_and_what_is_kept() {
    let text = "<uuid>C7A5FDBDCDAF9455926AD65C16DB1809</uuid><title>a</title>\
                <description>two\nlines &amp; more</description>\
                <metadata><x:y xmlns:x='urn:x' k='1'> <x:z/> </x:y></metadata>";
    let domain = domain(text, "");
    assert_eq!(
        domain.uuid.unwrap().to_string(),
        "c7a5fdbd-cdaf-9455-926a-d65c16db1809"
    );
    assert_eq!(domain.description.as_deref(), Some("two\nlines & more"));
    contains(
        &domain.to_xml(),
        "    <x:y xmlns:x='urn:x' k='1'> <x:z/> </x:y>\n",
    );
    contains(&refusal("<title>a\nb</title>", ""), "a title is one line");
    contains(&refusal("<uuid>1234</uuid>", ""), "32 hexadecimal digits");
    let named =
        |name: &str| error::<Domain>(&with("", "").replace("<name>g<", &format!("<name>{name}<")));
    contains(
        &named("a/b"),
        "/domain/name (line 2, column 1): 'a/b' is not valid: a name cannot contain '/'",
    );
    contains(&named("a\nb"), "a line feed");
    contains(&named(""), "cannot be empty");
    contains(&named(".."), "means a directory");
    contains(
        &named(&"x".repeat(300)),
        "at most 255 bytes; this one has 300",
    );
}

#[test]
fn row_104_and_105_memory() {
    let memory = |text: &str| {
        let text = with("", "").replace("<memory>262144</memory>", text);
        Domain::from_xml(&text, &ReadOptions::default()).map(|p| p.document.memory)
    };
    for (text, kib) in [
        ("<memory>500000</memory>", 500_000),
        ("<memory unit='b'>1048577</memory>", 1025),
        ("<memory unit='bytes'>1048576</memory>", 1024),
        ("<memory unit='KB'>1024</memory>", 1000),
        ("<memory unit='k'>7</memory>", 7),
        ("<memory unit='KiB'>8388608</memory>", 8_388_608),
        ("<memory unit='MB'>1</memory>", 977),
        ("<memory unit='M'>512</memory>", 524_288),
        ("<memory unit='MiB'>512</memory>", 524_288),
        ("<memory unit='G'>1</memory>", 1_048_576),
        ("<memory unit='GiB'>1</memory>", 1_048_576),
        ("<memory unit='T'>1</memory>", 1 << 30),
    ] {
        assert_eq!(memory(text), Ok(Memory { kib }), "{text}");
    }
    for (text, expected) in [
        ("", "element <memory> is missing"),
        ("<memory>0</memory>", "above nothing"),
        ("<memory unit='X'>1</memory>", "unknown unit 'X'"),
        ("<memory unit='E'>99</memory>", "2^64"),
        ("<memory>lots</memory>", "not a size"),
        (
            "<memory>1</memory><memory>2</memory>",
            "given more than once",
        ),
    ] {
        contains(&memory(text).unwrap_err().to_string(), expected);
    }
    let current = domain("<currentMemory unit='MiB'>128</currentMemory>", "");
    assert_eq!(current.current_memory, Some(Memory { kib: 131_072 }));
    assert_eq!(domain("", "").current_memory, Some(Memory { kib: 262_144 }));
    contains(
        &refusal("<currentMemory>262145</currentMemory>", ""),
        "cannot be more than <memory>",
    );
}

#[test]
fn row_106_processors() {
    assert_eq!(domain("", "").vcpu.maximum(), 1);
    let vcpu = domain("<vcpu placement='static' current='2'>4</vcpu>", "").vcpu;
    assert_eq!((vcpu.maximum(), vcpu.present()), (4, 2));
    for (text, expected) in [
        ("<vcpu>0</vcpu>", "from 1 to 4096"),
        ("<vcpu>-1</vcpu>", "from 1 to 4096"),
        ("<vcpu>5000</vcpu>", "from 1 to 4096"),
        ("<vcpu current='5'>4</vcpu>", "from 1 to 4 can be present"),
        ("<vcpu placement='here'>4</vcpu>", "one of static, auto"),
        (
            "<vcpu>3</vcpu><cpu><topology sockets='1' cores='2' threads='2'/></cpu>",
            "must multiply to <vcpu>, 3",
        ),
        (
            "<vcpu>3</vcpu><cpu><topology sockets='4294967295' cores='4294967295' threads='2'/></cpu>",
            "at least 1 each",
        ),
    ] {
        contains(&refusal(text, ""), expected);
    }
}

#[test]
fn row_107_and_108_machines() {
    let of = |kind: &str| with("", "").replace("<type>hvm", kind);
    let filled = domain("", "").os.kind;
    assert_eq!(
        (filled.arch.as_deref(), filled.machine.as_deref()),
        (Some("x86_64"), Some("pc"))
    );
    for (kind, expected) in [
        ("<type arch='x86_64' machine='pc-i440fx-9.2'>hvm", ""),
        ("<type machine='q35'>hvm", "i440FX (pc), not a Q35"),
        ("<type machine='pc-q35-7.2'>hvm", "i440FX (pc), not a Q35"),
        ("<type arch='i686'>hvm", "64-bit ones"),
    ] {
        let parsed = read::<Domain>(&of(kind));
        let notes: String = parsed.notes.iter().map(ToString::to_string).collect();
        assert_eq!(expected.is_empty(), notes.is_empty(), "{notes}");
        contains(&notes, expected);
    }
    for (kind, expected) in [
        ("<type arch='aarch64'>hvm", "architecture 'aarch64'"),
        ("<type machine='microvm'>hvm", "machine 'microvm'"),
        ("<type machine='isapc'>hvm", "machine 'isapc'"),
        ("<type>xen", "Xen not supported"),
        ("<type>linux", "Xen not supported"),
        ("<type>exe", "not machines"),
        ("<type>vms", "one of hvm, xen"),
    ] {
        contains(&error::<Domain>(&of(kind)), expected);
    }
    let none = with("", "").replace("<os><type>hvm</type></os>", "");
    contains(&error::<Domain>(&none), "element <os> is missing");
}

#[test]
fn row_109_to_111_boot() {
    let os =
        |inner: &str| with("", "").replace("<type>hvm</type>", &format!("<type>hvm</type>{inner}"));
    let order = read::<Domain>(&os(
        "<boot dev='hd'/><boot dev='cdrom'/><boot dev='network'/>",
    ));
    let order: Vec<_> = order.document.os.boot_devices().collect();
    assert_eq!(
        order,
        [BootDevice::Hd, BootDevice::Cdrom, BootDevice::Network]
    );
    assert_eq!(
        domain("", "").os.boot_devices().next(),
        Some(BootDevice::Hd)
    );
    let line = " ro  root=/dev/vda 'quoted' &amp; \"more\"  ";
    let direct = read::<Domain>(&os(&format!(
        "<kernel>\n /boot/vmlinuz </kernel><initrd>/boot/initrd</initrd><cmdline>{line}</cmdline>"
    )));
    let direct = stable(&direct.document);
    let again = read::<Domain>(&direct).document.os;
    assert_eq!(again.kernel.as_deref(), Some("/boot/vmlinuz"));
    assert_eq!(
        again.cmdline.as_deref(),
        Some(" ro  root=/dev/vda 'quoted' & \"more\"  ")
    );
    contains(
        &error::<Domain>(&os("<initrd>/a</initrd>")),
        "element <kernel>",
    );
    contains(
        &error::<Domain>(&os("<kernel>vmlinuz</kernel>")),
        "an absolute path",
    );
    contains(
        &error::<Domain>(&os("<boot dev='usb'/>")),
        "one of hd, cdrom, network, fd",
    );
    let ordered =
        "<disk type='file'><source file='/a'/><target dev='vda'/><boot order='1'/></disk>";
    assert_eq!(domain("", ordered).os.boot.len(), 0);
    let both = os("<boot dev='hd'/>").replace("<devices>", &format!("<devices>{ordered}"));
    contains(&error::<Domain>(&both), "exclude each other");
    let twice = format!("{ordered}{}", ordered.replace("vda", "vdb"));
    contains(&refusal("", &twice), "same boot order");
    let boot = notes("<bootloader>/usr/bin/pygrub</bootloader>", "");
    contains(&boot.join("\n"), "/domain/bootloader (line 5, column 1)");
    contains(&boot.join("\n"), "idea of Xen");
}

#[test]
fn row_112_to_116_features_clock_and_life_cycle() {
    let features = domain("<features><acpi/><apic/><pae/></features>", "")
        .features
        .unwrap();
    assert!(features.acpi && features.pae && features.apic.is_some());
    assert_eq!(domain("", "").clock.offset, ClockOffset::Utc);
    let clock = domain(
        "<clock offset='variable' adjustment='-7' basis='localtime'/>",
        "",
    )
    .clock;
    assert_eq!(clock.adjustment, Some(ClockAdjustment::Seconds(-7)));
    let clock = domain("<clock offset='utc' adjustment='reset'/>", "").clock;
    assert_eq!(clock.adjustment, Some(ClockAdjustment::Reset));
    contains(
        &refusal("<clock offset='timezone'/>", ""),
        "attribute 'timezone'",
    );
    contains(
        &refusal("<clock offset='absolute'/>", ""),
        "attribute 'start'",
    );
    contains(
        &refusal("<clock offset='moon'/>", ""),
        "one of utc, localtime",
    );
    contains(
        &refusal("<clock><timer name='sundial'/></clock>", ""),
        "one of rtc, pit",
    );
    let timers = notes(
        "<clock><timer name='hpet' present='yes'/><timer name='hpet' present='no'/></clock>",
        "",
    );
    assert_eq!(
        timers,
        ["/domain/clock/timer[1] (line 5, column 8): the machine has no such timer"]
    );
    let plain = domain("", "");
    assert_eq!(
        (plain.on_poweroff, plain.on_reboot, plain.on_crash),
        (
            LifecycleAction::Destroy,
            LifecycleAction::Restart,
            LifecycleAction::Destroy
        )
    );
    let other = domain(
        "<on_poweroff>preserve</on_poweroff><on_reboot>destroy</on_reboot><on_crash>restart</on_crash>",
        "",
    );
    assert_eq!(
        (other.on_poweroff, other.on_reboot, other.on_crash),
        (
            LifecycleAction::Preserve,
            LifecycleAction::Destroy,
            LifecycleAction::Restart
        )
    );
    contains(
        &refusal("<on_crash>coredump-restart</on_crash>", ""),
        "/domain/on_crash",
    );
    contains(
        &refusal("<on_reboot>rename-restart</on_reboot>", ""),
        "idea of Xen",
    );
}

fn disk(attributes: &str, inner: &str) -> String {
    format!("<disk {attributes}>{inner}</disk>")
}

#[test]
fn row_118_to_123_disks() {
    let file = domain(
        "",
        &disk("type='file'", "<source file='/a'/><target dev='sdb'/>"),
    );
    let file = &file.devices.disks[0];
    assert_eq!(
        (file.device, file.bus(), file.format()),
        (DiskDevice::Disk, TargetBus::Scsi, Format::Raw)
    );
    assert_eq!(file.source_path(), Some("/a"));
    let block = domain(
        "",
        &disk(
            "type='block' snapshot='no'",
            "<driver name='qemu' type='qcow2'/><source dev='/dev/sdz'/><target dev='hda'/>",
        ),
    );
    let block = &block.devices.disks[0];
    assert_eq!(
        (block.bus(), block.format()),
        (TargetBus::Ide, Format::Qcow2)
    );
    assert_eq!(
        (block.source_path(), block.snapshot),
        (Some("/dev/sdz"), Some(SnapshotMode::No))
    );
    let volume = domain(
        "",
        &disk(
            "type='volume'",
            "<source pool='p' volume='v'/><target dev='vda'/>",
        ),
    );
    assert_eq!(volume.devices.disks[0].source_volume(), Some(("p", "v")));
    let empty = domain(
        "",
        &disk("type='file' device='cdrom'", "<target dev='hdc'/>"),
    );
    assert!(empty.devices.disks[0].readonly);
    for (attributes, inner, expected) in [
        (
            "type='network'",
            "<source protocol='nbd' name='x'/><target dev='vda'/>",
            "type 'network' (nbd)",
        ),
        ("type='nvme'", "<target dev='vda'/>", "type 'nvme'"),
        (
            "type='dir'",
            "<target dev='vda'/>",
            "directories shown as a disk",
        ),
        (
            "type='block' device='lun'",
            "<source dev='/dev/sda'/><target dev='sda'/>",
            "(lun)",
        ),
        (
            "type='file'",
            "<target dev='vda'/>",
            "<source file='...'/> (source of 'vda') is missing",
        ),
        (
            "type='block'",
            "<source file='/a'/><target dev='vda'/>",
            "<source dev='...'/>",
        ),
        (
            "type='volume'",
            "<source pool='p'/><target dev='vda'/>",
            "<source pool='...' volume='...'/>",
        ),
        (
            "type='file'",
            "<source file='a.img'/><target dev='vda'/>",
            "an absolute path",
        ),
        (
            "type='file'",
            "<source file='/a'/>",
            "element <target> is missing",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='disk1'/>",
            "a disk name is expected",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='vda' bus='nvme'/>",
            "one of virtio, ide",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='xvda'/>",
            "bus 'xen'",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='fda'/>",
            "floppy drives, and only they",
        ),
        (
            "type='file' device='cdrom'",
            "<target dev='vda'/>",
            "cannot be on bus 'virtio'",
        ),
        (
            "type='file'",
            "<driver type='vmdk'/><source file='/a'/><target dev='vda'/>",
            "qemu-img convert",
        ),
        (
            "type='file'",
            "<driver type='auto'/><source file='/a'/><target dev='vda'/>",
            "never guessed",
        ),
        (
            "type='file' device='cdrom'",
            "<driver type='qcow2'/><target dev='hdc'/>",
            "another format than raw",
        ),
        (
            "type='file'",
            "<encryption format='luks'/><source file='/a'/><target dev='vda'/>",
            "/domain/devices/disk/encryption",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='vda'/><transient/>",
            "disks that forget",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='vda'/><serial>\u{e9}</serial>",
            "ASCII",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='vda'/><boot order='0'/>",
            "a turn from 1",
        ),
        (
            "type='file'",
            "<source file='/a'/><target dev='vda'/><address type='pci' slot='0x20'/>",
            "at most 0x1f",
        ),
    ] {
        contains(&refusal("", &disk(attributes, inner)), expected);
    }
    let two = disk("type='file'", "<source file='/a'/><target dev='vda'/>").repeat(2);
    contains(
        &refusal("", &two),
        "target duplicated for disk sources '/a' and '/a'",
    );
    let undeclared = notes(
        "",
        &disk("type='file'", "<source file='/a'/><target dev='vda'/>"),
    );
    contains(&undeclared.join(""), "taken as raw");
    let reckless = disk(
        "type='file'",
        "<driver type='raw' cache='unsafe'/><source file='/a'/><target dev='vda'/>",
    );
    contains(&notes("", &reckless).join(""), "loses data");
}

#[test]
fn disk_names_are_numbers_of_26_letters() {
    for (name, expected) in [
        ("vda", Some((0, TargetBus::Virtio))),
        ("hdc", Some((2, TargetBus::Ide))),
        ("sdz", Some((25, TargetBus::Scsi))),
        ("sdaa", Some((26, TargetBus::Scsi))),
        ("vdzz", Some((701, TargetBus::Virtio))),
        ("hda1", Some((0, TargetBus::Ide))),
        ("xvdb", Some((1, TargetBus::Xen))),
        ("vd", None),
        ("vdA", None),
        ("vd1a", None),
        ("nvme0n1", None),
        ("vdzzzzzzzzzzzzzzzzzz", None),
    ] {
        assert_eq!(target_index(name), expected, "{name}");
    }
}

#[test]
fn row_124_and_125_network_cards() {
    let card = domain(
        "",
        "<interface type='network'><mac address='52:54:0:9C:94:3b'/><source network='default'/>\
         <model type='virtio'/></interface>",
    );
    let card = &card.devices.interfaces[0];
    assert_eq!(
        card.mac.as_ref().unwrap().address,
        MacAddress([0x52, 0x54, 0, 0x9c, 0x94, 0x3b])
    );
    assert_eq!(
        (card.kind, card.network()),
        (InterfaceKind::Network, Some("default"))
    );
    for (inner, expected) in [
        (
            "<interface type='network'/>",
            "<source network='...'/> is missing",
        ),
        (
            "<interface type='bridge'/>",
            "<source bridge='...'/> is missing",
        ),
        (
            "<interface type='direct'><source dev='eth0'/></interface>",
            "type 'direct'",
        ),
        ("<interface type='hostdev'/>", "type 'hostdev'"),
        (
            "<interface type='user'><mac address='52:54:00:9c:94'/></interface>",
            "six pairs",
        ),
        (
            "<interface type='user'><mac address='52:54:00:9c:94:zz'/></interface>",
            "six pairs",
        ),
        (
            "<interface type='user'><mac address='03:54:00:9c:94:3b'/></interface>",
            "multicast",
        ),
        (
            "<interface type='user'><mac address='00:00:00:00:00:00'/></interface>",
            "all zeroes",
        ),
        (
            "<interface type='user'><vlan><tag id='4'/></vlan></interface>",
            "wrong network",
        ),
        (
            "<interface type='user'><script path='/x'/></interface>",
            "scripts are never run",
        ),
        (
            "<interface type='bridge'><source bridge='a-name-that-is-too-long'/></interface>",
            "1 to 15 bytes",
        ),
        (
            "<interface type='bridge'><source bridge='br0'/><portForward proto='tcp'><range start='1'/></portForward></interface>",
            "user-mode network",
        ),
        (
            "<interface type='user'><portForward proto='tcp' address='home'/></interface>",
            "an IP address",
        ),
        (
            "<interface type='user'><portForward proto='tcp'><range start='9' end='8'/></portForward></interface>",
            "ports from 1",
        ),
        (
            "<interface type='user'><portForward proto='tcp'><range start='1' end='9' to='65530'/></portForward></interface>",
            "ports from 1",
        ),
    ] {
        contains(&refusal("", inner), expected);
    }
    let twice = "<interface type='user'><mac address='52:54:00:00:00:01'/></interface>".repeat(2);
    contains(&refusal("", &twice), "cannot have one address");
    let others = notes(
        "",
        "<interface type='user'><model type='rtl8139'/></interface>",
    );
    contains(&others.join(""), "virtio one in place of 'rtl8139'");
}

#[test]
fn row_126_to_129_input_screens_consoles_and_sound() {
    let text = "<input type='mouse'/><input type='tablet'/><graphics type='vnc' port='-1'/>\
                <console type='pty'/><sound model='ac97'/><video><model type='cirrus'/></video>";
    let domain = domain("", text);
    let buses: Vec<_> = domain
        .devices
        .inputs
        .iter()
        .map(|input| input.bus)
        .collect();
    assert_eq!(buses, [Some(InputBus::Ps2), Some(InputBus::Usb)]);
    contains(
        &domain.to_xml(),
        "<graphics type='vnc' port='-1' autoport='yes'/>",
    );
    let serial = &domain.devices.serials[0];
    assert_eq!(
        (serial.kind, domain.devices.consoles.len()),
        (CharacterKind::Pty, 1)
    );
    assert_eq!(domain.terminals().count(), 1);
    let missing: Vec<_> = missing_parts(&domain)
        .into_iter()
        .map(|part| part.step)
        .collect();
    assert_eq!(
        missing,
        ["devices/graphics", "devices/sound", "devices/input"]
    );
    assert!(blockers(&domain).is_empty());
    let spoken = notes("", text).join("\n");
    contains(&spoken, "bochs-display) in place of 'cirrus'");
    contains(&spoken, "the machine has no sound card yet; kept");
    let open = "<graphics type='vnc' listen='0.0.0.0' passwd='123'/>";
    let spoken = notes("", open).join("\n");
    contains(&spoken, "anyone who reaches 0.0.0.0");
    contains(&spoken, "password");
    let parsed = read::<Domain>(&with("", open)).document;
    contains(&parsed.to_xml(), "passwd='123'");
    let hidden = parsed.without_secrets();
    assert!(parsed.has_secrets() && !hidden.has_secrets());
    assert!(!hidden.to_xml().contains("123"));
    for (inner, expected) in [
        ("<graphics type='sdl'/>", "screens of type 'sdl'"),
        ("<graphics type='vnc' port='70000'/>", "a port, or -1"),
        (
            "<graphics type='vnc' listen='127.0.0.1'><listen type='address' address='::1'/></graphics>",
            "must match",
        ),
        (
            "<input type='evdev'><source dev='/dev/input/event0'/></input>",
            "input devices of the host",
        ),
        ("<input type='tablet' bus='ps2'/>", "usb or virtio"),
        ("<serial type='stdio'/>", "use pty"),
        ("<serial type='file'/>", "<source path='...'/>"),
        (
            "<serial type='tcp'><source mode='bind' host='x'/></serial>",
            "<source service='...'/>",
        ),
        (
            "<serial type='tcp'><source mode='bind' service='1'/><protocol type='telnet'/></serial>",
            "use raw",
        ),
        (
            "<serial type='unix'><source mode='listen' path='/a'/></serial>",
            "bind or connect",
        ),
        (
            "<channel type='unix'><target type='guestfwd' address='10.0.2.1' port='4600'/></channel>",
            "guestfwd",
        ),
        (
            "<rng model='virtio'><backend model='egd' type='tcp'/></rng>",
            "(egd)",
        ),
        (
            "<rng model='virtio'><backend model='random'>/etc/passwd</backend></rng>",
            "/dev/urandom",
        ),
    ] {
        contains(&refusal("", inner), expected);
    }
}

#[test]
fn what_the_machine_lacks_keeps_a_domain_from_starting_by_name() {
    let scsi = domain(
        "",
        "<disk><source file='/a'/><target dev='sda'/></disk><disk device='cdrom'><target dev='sdb' bus='sata'/></disk>",
    );
    let all = missing_parts(&scsi);
    assert_eq!(all.len(), 2);
    let blocking = blockers(&scsi);
    assert_eq!(blocking.len(), 1);
    assert_eq!(blocking[0].step, "devices/disk[1]/target/@bus");
    contains(&blocking[0].text, "no bus 'scsi' yet for 'sda'");
    let uefi = read::<Domain>(&with("", "").replace("<os>", "<os firmware='efi'>")).document;
    contains(&blockers(&uefi)[0].text, "UEFI");
    let files = domain(
        "<sysinfo type='fwcfg'><entry name='opt/a'>b</entry></sysinfo>",
        "",
    );
    contains(&blockers(&files)[0].text, "fw_cfg");
}

#[test]
fn unknown_siblings_are_noted_with_their_path_and_refused_when_strict() {
    let text = with(
        "<os2/><features><acpi/><warp speed='9'/></features>",
        "<disk type='file' color='red'><driver type='raw'/><source file='/a'/><target dev='vda'/></disk><flux/>",
    );
    let parsed = read::<Domain>(&text);
    let places: Vec<_> = parsed
        .notes
        .iter()
        .filter(|note| note.kind == NoteKind::Unknown)
        .map(|note| note.place.path.as_str())
        .collect();
    assert_eq!(
        places,
        [
            "/domain/features/warp",
            "/domain/devices/disk/@color",
            "/domain/devices/flux",
            "/domain/os2"
        ]
    );
    let printed = stable(&parsed.document);
    contains(&printed, "    <warp speed='9'/>\n");
    contains(&printed, "<disk type='file' device='disk' color='red'>");
    assert!(matches!(
        Domain::from_xml(&text, &ReadOptions::strict()),
        Err(Error::Unknown { place }) if place.path == "/domain/features/warp"
    ));
    let known = with(
        "<cputune><shares>1</shares></cputune>",
        "<video><model type='vga'/></video>",
    );
    assert!(
        Domain::from_xml(&known, &ReadOptions::strict()).is_ok(),
        "known parts pass"
    );
}

#[test]
fn smbios_repeats_the_identity() {
    let info = |uuid: &str| {
        format!(
            "<sysinfo type='smbios'><system><entry name='uuid'>{uuid}</entry></system></sysinfo>"
        )
    };
    let a = "c7a5fdbd-cdaf-9455-926a-d65c16db1809";
    let mut taken = domain(&info(a), "");
    assert_eq!(taken.uuid.unwrap().to_string(), a);
    taken.set_uuid(uuid::Uuid::from_u128(7));
    stable(&taken);
    contains(
        &taken.to_xml(),
        "<entry name='uuid'>00000000-0000-0000-0000-000000000007</entry>",
    );
    let differs = format!(
        "<uuid>{a}</uuid>{}",
        info("00000000-0000-0000-0000-000000000007")
    );
    contains(&refusal(&differs, ""), "must be that of the domain");
}

#[test]
fn secrets_and_isolation_are_not_given_up_in_silence() {
    for (elements, devices, place) in [
        ("<launchSecurity type='sev'/>", "", "/domain/launchSecurity"),
        ("<keywrap/>", "", "/domain/keywrap"),
        ("<idmap/>", "", "/domain/idmap"),
        (
            "",
            "<hostdev mode='subsystem' type='usb'/>",
            "/domain/devices/hostdev",
        ),
        (
            "",
            "<filesystem type='mount'/>",
            "/domain/devices/filesystem",
        ),
        ("", "<tpm model='tpm-tis'/>", "/domain/devices/tpm"),
        ("", "<lease/>", "/domain/devices/lease"),
        ("", "<shmem name='a'/>", "/domain/devices/shmem"),
        ("", "<vsock model='virtio'/>", "/domain/devices/vsock"),
        ("", "<memory model='dimm'/>", "/domain/devices/memory"),
        ("", "<crypto model='virtio'/>", "/domain/devices/crypto"),
    ] {
        let message = refusal(elements, devices);
        contains(&message, place);
        contains(&message, "not supported: ");
    }
    let commandline = with(
        "<qemu:commandline><qemu:arg value='-s'/></qemu:commandline>",
        "",
    )
    .replace(
        "<domain ",
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ",
    );
    contains(&error::<Domain>(&commandline), "/domain/qemu:commandline");
}

proptest! {
    #[test]
    fn mutilated_documents_are_read_or_refused(cut in 0usize..5000, put in "[<>/a-z'= &]{0,6}", at in 0usize..5000) {
        let text = include_str!("../../../fixtures/xml/domain/libvirt-dump.xml");
        let mut text = text.replacen('\u{0}', "", 1);
        let at = at.min(text.len());
        text.insert_str(at, &put);
        let end = cut.min(text.len());
        if cut % 3 == 0 {
            text.replace_range(end..(end + 7).min(text.len()), "");
        }
        if let Ok(parsed) = Domain::from_xml(&text, &ReadOptions::default()) {
            stable(&parsed.document);
        }
    }

    #[test]
    fn addresses_of_cards_survive(bytes: [u8; 6]) {
        let mac = MacAddress(bytes);
        match mac.to_string().parse::<MacAddress>() {
            Ok(again) => prop_assert_eq!(again, mac),
            Err(_) => prop_assert!(bytes[0] & 1 == 1 || bytes == [0; 6]),
        }
    }
}
