//! The two documents of an install: what they say, that libvirt's schemas accept them, and how
//! they compare with virt-install's.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use cenote_model::domain::{
    BootDevice, DiskDevice, Domain, Firmware, LifecycleAction, MacAddress, TargetBus,
};
use cenote_model::volume::Format;
use cenote_model::{Document, Element, Memory, Name, ReadOptions, parse};
use cenote_provision::install::{
    Contents, Disk, DiskSource, Display, Drive, InstallPaths, Method, Network, NetworkSource,
    Order, OrderError, Phases, Print, Request, RequestError, choose_order, install_memory, phases,
};
use cenote_provision::media::osinfo::Resources;
use common::{ok, run};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn direct() -> Method {
    Method::Direct {
        kernel: "/run/cenote/i/linux".into(),
        initrd: "/run/cenote/i/initrd".into(),
        command_line: "auto=true priority=critical --- console=ttyS0 <&\"'>".into(),
        media: None,
    }
}

fn cdrom() -> Method {
    Method::Cdrom {
        media: "/iso/debian & co.iso".into(),
    }
}

fn request(method: Method) -> Request {
    Request {
        disks: vec![Disk {
            source: DiskSource::File("/pool/g.qcow2".into()),
            format: Format::Qcow2,
            bus: TargetBus::Virtio,
        }],
        networks: vec![Network {
            source: NetworkSource::User,
            mac: MacAddress([0x52, 0x54, 0, 0x9c, 0x94, 0x3b]),
            model: "virtio".into(),
        }],
        install_memory: Memory::from_bytes(2048 * MIB),
        paths: InstallPaths {
            serial_log: Some("/run/cenote/i/serial.log".into()),
            installer_log: Some("/run/cenote/i/anaconda.log".into()),
            marker: Some("/run/cenote/i/marker".into()),
        },
        ..Request::new(
            Name::try_from("guest".to_owned()).unwrap(),
            Uuid::from_u128(0x1234_5678),
            Memory::from_bytes(512 * MIB),
            method,
        )
    }
}

fn validate(xml: &str) {
    ok(
        "virt-xml-validate",
        "libvirt-clients",
        &["-", "domain"],
        xml.as_bytes(),
    );
}

/// Both documents, validated, and stable when they are read again.
fn made(request: &Request) -> Phases {
    let made = phases(request).unwrap();
    for domain in made.one.iter().chain([&made.two]) {
        let xml = domain.to_xml();
        validate(&xml);
        let again = Domain::from_xml(&xml, &ReadOptions::default()).unwrap();
        assert_eq!(again.document.to_xml(), xml);
    }
    made
}

fn boots(domain: &Domain) -> Vec<BootDevice> {
    domain.os.boot.iter().map(|boot| boot.device).collect()
}

fn drives(domain: &Domain) -> Vec<(&str, Option<&str>)> {
    let disks = domain.devices.disks.iter();
    disks
        .filter(|disk| disk.device == DiskDevice::Cdrom)
        .map(|disk| (disk.target.dev.as_str(), disk.source_path()))
        .collect()
}

#[test]
fn direct_boot_leaves_nothing_of_the_installer_behind() {
    let request = Request {
        seed: Some("/run/cenote/i/seed.iso".into()),
        ..request(direct())
    };
    let made = made(&request);
    let one = made.one.as_ref().unwrap();
    assert!(made.one_is_transient && made.two_is_persistent && made.start_two);
    assert_eq!(one.os.kernel.as_deref(), Some("/run/cenote/i/linux"));
    assert_eq!(
        one.os.cmdline.as_deref(),
        Some("auto=true priority=critical --- console=ttyS0 <&\"'>")
    );
    assert_eq!(one.on_reboot, LifecycleAction::Destroy);
    assert_eq!(one.memory, Memory::from_bytes(2048 * MIB));
    assert_eq!(drives(one), [("hda", Some("/run/cenote/i/seed.iso"))]);
    assert_eq!(one.devices.channels.len(), 2);
    let two = &made.two;
    assert_eq!(
        (&two.os.kernel, &two.os.initrd, &two.os.cmdline),
        (&None, &None, &None)
    );
    assert_eq!(two.on_reboot, LifecycleAction::Restart);
    assert_eq!(two.memory, Memory::from_bytes(512 * MIB));
    assert_eq!(boots(two), [BootDevice::Hd]);
    assert!(drives(two).is_empty() && two.devices.channels.is_empty());
    assert!(!two.to_xml().contains("/run/cenote/i"), "{}", two.to_xml());
    assert_eq!((one.uuid, &one.name), (two.uuid, &two.name));
    assert_eq!(one.devices.interfaces, two.devices.interfaces);
}

#[test]
fn media_are_first_once_and_then_gone_from_their_drive() {
    let made = made(&request(cdrom()));
    let one = made.one.as_ref().unwrap();
    assert_eq!(boots(one), [BootDevice::Cdrom, BootDevice::Hd]);
    assert_eq!(drives(one), [("hda", Some("/iso/debian & co.iso"))]);
    assert_eq!(drives(&made.two), [("hda", None)]);
    assert_eq!(boots(&made.two), [BootDevice::Hd]);
    let device = Request {
        method: Method::Cdrom {
            media: "/dev/sr0".into(),
        },
        drives: vec![Drive {
            media: Some("/iso/tools.iso".into()),
        }],
        ..request(cdrom())
    };
    let made = self::made(&device);
    let expected = [("hda", Some("/iso/tools.iso")), ("hdb", Some("/dev/sr0"))];
    assert_eq!(drives(made.one.as_ref().unwrap()), expected);
    assert_eq!(
        drives(&made.two),
        [("hda", Some("/iso/tools.iso")), ("hdb", None)]
    );
}

#[test]
fn the_three_orders_of_media_and_network() {
    let with = |method, order| Request {
        order,
        ..request(method)
    };
    for (method, device) in [
        (cdrom(), BootDevice::Cdrom),
        (Method::Pxe, BootDevice::Network),
    ] {
        let two_step = made(&with(method.clone(), Order::TwoStep));
        assert!(two_step.one_is_transient);
        let media_first = made(&with(method.clone(), Order::MediaFirst));
        assert!(!media_first.one_is_transient);
        for phases in [&two_step, &media_first] {
            let one = phases.one.as_ref().unwrap();
            assert_eq!(boots(one), [device, BootDevice::Hd]);
            assert_eq!(one.on_reboot, LifecycleAction::Destroy);
            assert_eq!(boots(&phases.two), [BootDevice::Hd]);
        }
        // One document, which changes nothing after the install.
        let disk_first = made(&with(method.clone(), Order::DiskFirst));
        assert!(disk_first.one.is_none());
        assert_eq!(boots(&disk_first.two), [BootDevice::Hd, device]);
        assert_eq!(disk_first.two.on_reboot, LifecycleAction::Restart);
        if device == BootDevice::Cdrom {
            assert_eq!(
                drives(&disk_first.two),
                [("hda", Some("/iso/debian & co.iso"))]
            );
        }
    }
    assert_eq!(
        choose_order(&cdrom(), Contents::Blank, None),
        Ok(Order::TwoStep)
    );
    let first = Some(Order::DiskFirst);
    assert_eq!(
        choose_order(&Method::Pxe, Contents::Blank, first),
        Ok(Order::DiskFirst)
    );
    let old = choose_order(&cdrom(), Contents::Bootable("a boot sector"), first);
    assert_eq!(old, Err(OrderError::NotBlank("a boot sector")));
    assert!(choose_order(&cdrom(), Contents::Data("swap space"), first).is_err());
    assert_eq!(
        choose_order(&direct(), Contents::Blank, first),
        Err(OrderError::NoChoice)
    );
    let seeded = Request {
        seed: Some("/seed.iso".into()),
        ..with(cdrom(), Order::DiskFirst)
    };
    assert!(matches!(phases(&seeded), Err(RequestError::Conflict(_))));
}

#[test]
fn an_imported_disk_has_a_phase_of_its_own_only_for_its_answers() {
    let plain = made(&request(Method::Import));
    assert!(plain.one.is_none());
    assert!(plain.print(Print::One).is_ok());
    assert_eq!(plain.print(Print::Two), Err(RequestError::NoPhase(2)));
    let seeded = made(&Request {
        smbios_serial: Some("ds=nocloud-net;s=http://10.0.2.2/i/token/".into()),
        ..request(Method::Import)
    });
    let one = seeded.one.as_ref().unwrap();
    assert!(
        one.to_xml()
            .contains("ds=nocloud-net;s=http://10.0.2.2/i/token/")
    );
    assert_eq!(boots(one), [BootDevice::Hd]);
    assert!(!seeded.two.to_xml().contains("nocloud"));
    let all = seeded.print(Print::All).unwrap();
    assert_eq!(all.matches("<domain ").count(), 2);
}

#[test]
fn every_sort_of_request_gives_documents_that_validate() {
    let full = Request {
        title: Some("A <title>".into()),
        description: Some("two\nlines".into()),
        osinfo: Some("http://debian.org/debian/12".into()),
        vcpus: 4,
        display: Display::Vnc {
            listen: None,
            port: None,
        },
        disks: vec![
            Disk {
                source: DiskSource::Volume {
                    pool: Name::try_from("default".to_owned()).unwrap(),
                    volume: Name::try_from("g".to_owned()).unwrap(),
                },
                format: Format::Qcow2,
                bus: TargetBus::Virtio,
            },
            Disk {
                source: DiskSource::Block("/dev/vg/data".into()),
                format: Format::Raw,
                bus: TargetBus::Ide,
            },
        ],
        networks: vec![
            Network {
                source: NetworkSource::Network("default".into()),
                mac: MacAddress::of_guest([1, 2, 3]),
                model: "virtio".into(),
            },
            Network {
                source: NetworkSource::Bridge("br0".into()),
                mac: MacAddress::of_guest([1, 2, 4]),
                model: "virtio".into(),
            },
        ],
        seed: Some("/seed.iso".into()),
        ..request(direct())
    };
    let phases = made(&full);
    assert!(phases.two.to_xml().contains("http://debian.org/debian/12"));
    assert_eq!(
        drives(phases.one.as_ref().unwrap()),
        [("hdb", Some("/seed.iso"))]
    );
    for (display, firmware) in [
        (
            Display::Vnc {
                listen: Some("0.0.0.0".into()),
                port: Some(5905),
            },
            None,
        ),
        (Display::None, Some(Firmware::Efi)),
    ] {
        made(&Request {
            display,
            firmware,
            ..full.clone()
        });
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let none = Request {
        disks: vec![],
        ..request(cdrom())
    };
    assert_eq!(phases(&none), Err(RequestError::NoDisk));
    let alone = Request {
        networks: vec![],
        ..request(Method::Pxe)
    };
    assert_eq!(phases(&alone), Err(RequestError::NoNetwork));
    let gone = Request {
        transient: true,
        noreboot: true,
        ..request(cdrom())
    };
    assert!(matches!(phases(&gone), Err(RequestError::Conflict(_))));
    let full = Request {
        drives: vec![Drive { media: None }; 4],
        ..request(cdrom())
    };
    assert_eq!(
        phases(&full),
        Err(RequestError::BusFull {
            bus: TargetBus::Ide,
            limit: 4
        })
    );
    let odd = Request {
        seed: Some(PathBuf::from("/a\nb")),
        ..request(direct())
    };
    assert!(matches!(phases(&odd), Err(RequestError::Path(_))));
    let none = Request {
        vcpus: 0,
        ..request(cdrom())
    };
    assert!(matches!(phases(&none), Err(RequestError::Document(_))));
    let transient = phases(&Request {
        transient: true,
        ..request(cdrom())
    })
    .unwrap();
    assert!(!transient.two_is_persistent);
}

#[test]
fn an_installer_gets_the_memory_that_it_needs() {
    let mib = |n: u64| Memory::from_bytes(n * MIB);
    let needs = Resources {
        minimum_memory: Some(1024 * MIB),
        ..Resources::default()
    };
    let (memory, note) = install_memory(mib(512), None, needs);
    assert_eq!(memory, mib(1024));
    assert!(note.unwrap().contains("the domain then has 512 MiB"));
    assert_eq!(install_memory(mib(2048), None, needs), (mib(2048), None));
    let (memory, note) = install_memory(mib(512), Some(mib(600)), needs);
    assert!(memory == mib(600) && note.unwrap().contains("less than the 1024 MiB"));
    assert_eq!(
        install_memory(mib(512), None, Resources::default()),
        (mib(512), None)
    );
}

/// What both virt-install's document and ours must say, in words that compare.
fn shape(domain: &Element) -> Vec<String> {
    let child = |element: &Element, name: &str| element.child(name).cloned();
    let text = |element: &Element, path: &[&str]| {
        let mut here = Some(element.clone());
        for name in path {
            here = here.and_then(|element| child(&element, name));
        }
        here.map(|element| element.text().trim().to_owned())
    };
    let mut shape = Vec::new();
    let kib: u64 = text(domain, &["memory"]).unwrap().parse().unwrap();
    shape.push(format!("memory {kib}"));
    shape.push(format!("vcpu {}", text(domain, &["vcpu"]).unwrap()));
    let os = child(domain, "os").unwrap();
    let kernel = os.child("kernel").is_some();
    for element in os.elements() {
        match element.name.as_str() {
            // Beside a kernel it says nothing; libvirt and we fill it in, virt-install does not.
            "boot" if kernel => {}
            "boot" => shape.push(format!("boot {}", element.get("dev").unwrap())),
            "kernel" | "initrd" => shape.push(element.name.clone()),
            "cmdline" => shape.push(format!("cmdline {}", element.text())),
            _ => {}
        }
    }
    // libvirt's default is left out by virt-install.
    let on_reboot = text(domain, &["on_reboot"]).unwrap_or("restart".into());
    shape.push(format!("on_reboot {on_reboot}"));
    let devices = child(domain, "devices").unwrap();
    for element in devices.elements() {
        let of = |name: &str, attribute: &str| {
            let child = child(element, name)?;
            child.get(attribute).map(str::to_owned)
        };
        match element.name.as_str() {
            "disk" => shape.push(format!(
                "disk {} {} {} {:?} readonly={}",
                element.get("device").unwrap(),
                of("target", "dev").unwrap(),
                of("target", "bus").unwrap(),
                of("source", "file"),
                element.child("readonly").is_some(),
            )),
            "interface" => shape.push(format!(
                "interface {} {} {}",
                element.get("type").unwrap(),
                of("mac", "address").unwrap(),
                of("model", "type").unwrap()
            )),
            "graphics" => shape.push(format!("graphics {}", element.get("type").unwrap())),
            "video" => shape.push(format!("video {}", of("model", "type").unwrap())),
            _ => {}
        }
    }
    shape
}

/// The documents that virt-install prints, one after the other.
fn virt_install(arguments: &[&str]) -> Vec<Element> {
    let mut words = vec![
        "--connect",
        "test:///default",
        "--name",
        "guest",
        "--memory",
        "512",
        "--vcpus",
        "2",
        "--graphics",
        "vnc",
        "--video",
        "vga",
        "--network",
        "user,model=virtio,mac=52:54:00:9c:94:3b",
        "--osinfo",
        "debian11",
        "--check",
        "all=off",
        "--noautoconsole",
        "--print-xml",
        "all",
    ];
    words.extend(arguments);
    let output = run("virt-install", "virtinst", &words, b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    let documents = text
        .split_inclusive("</domain>")
        .filter(|part| part.contains("<domain"));
    documents
        .map(|part| parse(part.trim(), &ReadOptions::default()).unwrap())
        .collect()
}

#[test]
fn documents_have_the_shape_of_virt_installs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["linux", "initrd", "media.iso"] {
        fs::write(path(name), name).unwrap();
    }
    ok(
        "qemu-img",
        "qemu-utils",
        &["create", "-q", "-f", "qcow2", &path("g.qcow2"), "8G"],
        b"",
    );
    let disk = format!("path={},bus=virtio", path("g.qcow2"));
    let location = format!("kernel={},initrd={}", path("linux"), path("initrd"));
    let media = path("media.iso");
    let method = |method: Method| Request {
        vcpus: 2,
        display: Display::Vnc {
            listen: None,
            port: None,
        },
        install_memory: Memory::from_bytes(512 * MIB),
        disks: vec![Disk {
            source: DiskSource::File(path("g.qcow2").into()),
            format: Format::Qcow2,
            bus: TargetBus::Virtio,
        }],
        ..request(method)
    };
    let cases: [(&[&str], Method); 4] = [
        (
            &["--install", &location, "--extra-args", "console=ttyS0"],
            Method::Direct {
                kernel: path("linux").into(),
                initrd: path("initrd").into(),
                command_line: "console=ttyS0".into(),
                media: None,
            },
        ),
        (
            &["--cdrom", &media],
            Method::Cdrom {
                media: media.clone().into(),
            },
        ),
        (&["--pxe"], Method::Pxe),
        (&["--import"], Method::Import),
    ];
    for (arguments, method_of_ours) in cases {
        let mut words = arguments.to_vec();
        words.extend(["--disk", &disk]);
        let theirs = virt_install(&words);
        let made = made(&method(method_of_ours));
        let ours: Vec<&Domain> = made.one.iter().chain([&made.two]).collect();
        assert_eq!(ours.len(), theirs.len(), "{arguments:?}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let ours = parse(&ours.to_xml(), &ReadOptions::default()).unwrap();
            assert_eq!(shape(&ours), shape(theirs), "{arguments:?}");
        }
    }
}
