//! Definitions of domains on a node. Row numbers are those of the feature table.

use std::path::Path;

use cenote_engine::{
    Amount, DefineOptions, DomainClone, DomainError, DomainState, Error, ErrorKind, Format,
    NewVolume, NoProgress, Node, NodeOptions, Scope, ShutOffReason, StartOptions, UndefineOptions,
    VolumeId, XmlOptions,
};

fn node(dir: &Path) -> Node {
    Node::open(&NodeOptions::in_dir(dir)).expect("a node in a temporary directory opens")
}

fn document(name: &str, more: &str) -> String {
    format!(
        "<domain type='kvm'><name>{name}</name>{more}<memory>65536</memory>\
         <os><type>hvm</type></os></domain>"
    )
}

/// Rows 13 and 31.
#[test]
fn a_definition_outlives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let made = node(dir.path())
        .domain_define(&document("g", ""), DefineOptions::default())
        .unwrap();
    let node = node(dir.path());
    let found = node.domain("g").unwrap();
    assert_eq!(found, made);
    assert_eq!(found.state, DomainState::ShutOff(ShutOffReason::Unknown));
    assert!(found.persistent && !found.autostart && found.id.is_none());
    assert_eq!(node.domain(&found.uuid.to_uppercase()).unwrap(), made);
    assert!(matches!(
        node.domain("1").unwrap_err(),
        Error::Domain(DomainError::NoSuchId(_))
    ));
}

/// Row 102: what the document leaves open is given once and stays.
#[test]
fn identity_is_given_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let card = "<devices><interface type='user'/></devices>";
    let xml = document("g", "").replace("</domain>", &format!("{card}</domain>"));
    let made = node.domain_define(&xml, DefineOptions::default()).unwrap();
    let first = node.domain_xml("g", XmlOptions::default()).unwrap();
    assert!(first.contains(&made.uuid), "{first}");
    assert!(first.contains("<mac address='52:54:00:"), "{first}");
    node.domain_define(&first, DefineOptions::default())
        .unwrap();
    assert_eq!(node.domain_xml("g", XmlOptions::default()).unwrap(), first);
}

#[test]
fn passwords_are_for_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let screen = "<devices><graphics type='vnc' passwd='secret'/></devices>";
    let xml = document("g", "").replace("</domain>", &format!("{screen}</domain>"));
    node.domain_define(&xml, DefineOptions::default()).unwrap();
    let plain = node.domain_xml("g", XmlOptions::default()).unwrap();
    assert!(!plain.contains("secret"));
    let secure = XmlOptions {
        secure: true,
        ..XmlOptions::default()
    };
    assert!(node.domain_xml("g", secure).unwrap().contains("secret"));
}

#[test]
fn changes_are_refused_where_there_is_nothing_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    node.domain_define(&document("g", ""), DefineOptions::default())
        .unwrap();
    let error = node
        .domain_set_memory("g", Scope::Live, Amount::Current, 1024)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert_eq!(
        error.to_string(),
        "Requested operation is not valid: domain is not running"
    );
    let error = node
        .domain_set_memory("g", Scope::Config, Amount::Current, 0)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = node
        .domain_set_title("g", Scope::Config, Some("two\nlines"))
        .unwrap_err();
    assert!(error.to_string().contains("one line"), "{error}");
}

/// Row 81: what would be lost along with a definition is named first.
#[test]
fn a_managed_save_holds_a_definition() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let made = node
        .domain_define(&document("g", ""), DefineOptions::default())
        .unwrap();
    let save = dir.path().join("save");
    std::fs::create_dir(&save).unwrap();
    let file = save.join(format!("{}.save", made.uuid));
    std::fs::write(&file, "x").unwrap();
    assert!(node.domain("g").unwrap().managed_save);
    assert!(node.domains().unwrap()[0].managed_save);
    let error = node
        .domain_undefine("g", UndefineOptions::default())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.hint().unwrap().contains("--managed-save"));
    let with = UndefineOptions {
        managed_save: true,
        ..UndefineOptions::default()
    };
    node.domain_undefine("g", with).unwrap();
    assert!(!file.exists());
    assert!(node.domains().unwrap().is_empty());
}

/// Two processes define at once: each name and UUID is taken once.
#[test]
fn racing_definitions_are_serialised() {
    let dir = tempfile::tempdir().unwrap();
    drop(node(dir.path()));
    let defined: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let node = node(dir.path());
                    let define = |name: &str| {
                        node.domain_define(&document(name, ""), DefineOptions::default())
                    };
                    (0..10).filter(|n| define(&format!("g{n}")).is_ok()).count()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(defined, 10);
    assert_eq!(node(dir.path()).domains().unwrap().len(), 10);
}

/// What the start of a domain with these devices fails with: kind, message, remedy.
fn start_fails(node: &Node, devices: &str) -> (ErrorKind, String, String) {
    let xml = format!(
        "<domain type='kvm'><name>parts</name><memory>65536</memory><os><type>hvm</type>\
         <kernel>/nonexistent/kernel</kernel></os><devices>{devices}</devices></domain>"
    );
    if node.domain("parts").is_ok() {
        node.domain_undefine("parts", UndefineOptions::default())
            .expect("a defined domain can be undefined");
    }
    node.domain_define(&xml, DefineOptions::default())
        .expect("the document is good");
    let error = node
        .domain_start("parts", StartOptions::default())
        .expect_err("a part is missing");
    let hint = error.hint().unwrap_or_default();
    (error.kind(), error.to_string(), hint)
}

/// Row 17: what a domain needs is looked at before anything is started, and named with the
/// command that brings it.
#[test]
fn missing_parts_are_named_with_the_next_command() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let disk = |more: &str, source: &str, target: &str| {
        format!("<disk type='file' {more}>{source}<target dev='{target}'/></disk>")
    };
    let file = |name: &str| format!("<source file='{}'/>", path(name));
    std::fs::write(dir.path().join("disk.raw"), [0; 4096]).unwrap();
    let qcow2 = "<driver type='qcow2'/>";
    let table = [
        (
            disk("", &file("none.raw"), "vda"),
            "none.raw': No such file",
            "cenote edit parts",
        ),
        (
            disk("", &format!("{qcow2}{}", file("disk.raw")), "vda"),
            "disk 'vda': ",
            "qemu-img info",
        ),
        (
            disk("device='cdrom'", &file("none.iso"), "hdc"),
            "none.iso': No such file",
            "cenote edit parts",
        ),
        (
            disk("", &file("disk.raw"), "hde"),
            "past the four places",
            "cenote edit parts",
        ),
        (
            disk("", &format!("{}<shareable/>", file("disk.raw")), "vda"),
            "several guests write to",
            "cenote edit parts",
        ),
        (
            "<disk type='volume'><source pool='default' volume='none'/><target dev='vda'/></disk>"
                .to_owned(),
            "disk 'vda': ",
            "cenote vol-list",
        ),
        (
            "<disk type='volume'><source pool='none' volume='none'/><target dev='vda'/></disk>"
                .to_owned(),
            "disk 'vda': ",
            "cenote pool-list",
        ),
        (
            "<interface type='network'><source network='default'/></interface>".to_owned(),
            "devices/interface[1]/@type: a card of type 'network'",
            "cenote edit parts",
        ),
        (
            "<interface type='bridge'><source bridge='nobridge0'/></interface>".to_owned(),
            "there is no bridge 'nobridge0'",
            "ip link add nobridge0",
        ),
        (
            "<interface type='user'><portForward proto='tcp'/></interface>".to_owned(),
            "all ports of the host",
            "cenote edit parts",
        ),
        (
            "<interface type='user'><portForward proto='udp' address='127.0.0.1'>\
             <range start='5353' to='53'/></portForward></interface>"
                .to_owned(),
            "host_loopback",
            "cenote edit parts",
        ),
        (
            "<channel type='pty'><target type='virtio' name='a'/></channel>".to_owned(),
            "a port of type 'pty'",
            "cenote edit parts",
        ),
        (
            disk("", &file("disk.raw"), "vda").replace(
                "</disk>",
                "<serial>a serial number too long</serial></disk>",
            ),
            "at most 20",
            "cenote edit parts",
        ),
        (
            disk("", &file("disk.raw"), "vda"),
            "kernel '/nonexistent/kernel'",
            "cenote edit parts",
        ),
    ];
    for (devices, says, remedy) in table {
        let (kind, message, hint) = start_fails(&node, &devices);
        assert!(message.contains(says), "{message}");
        assert!(hint.contains(remedy), "{message}: {hint}");
        assert!(
            matches!(kind, ErrorKind::InvalidState | ErrorKind::Unsupported),
            "{kind:?}: {message}"
        );
    }
    assert_eq!(
        node.domain("parts").unwrap().state,
        DomainState::ShutOff(ShutOffReason::Unknown)
    );
}

/// An image that another program has open is not started from.
#[test]
fn images_in_use_are_named_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, [0; 4096]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let policy = cenote_image::LockPolicy::Shared;
    let lock = cenote_image::lock::FileLock::acquire(&file, &path, policy).unwrap();
    let disk = |more: &str| {
        format!(
            "<disk type='file'><source file='{}'/><target dev='vda'/>{more}</disk>",
            path.display()
        )
    };
    let (kind, message, hint) = start_fails(&node, &disk(""));
    assert_eq!(kind, ErrorKind::InvalidState);
    assert!(message.contains("disk 'vda': "), "{message}");
    assert!(message.contains("disk.raw"), "{message}");
    assert!(hint.contains("cenote edit parts"), "{hint}");
    // Whoever reads beside others does not disturb them.
    let (_, message, _) = start_fails(&node, &disk("<readonly/>"));
    assert!(message.contains("nonexistent/kernel"), "{message}");
    drop(lock);
    let (_, message, _) = start_fails(&node, &disk(""));
    assert!(message.contains("nonexistent/kernel"), "{message}");
}

/// Rows of `change-media`, `attach-disk` and `detach-disk` for the next start.
#[test]
fn disks_and_discs_of_the_next_start() {
    use cenote_engine::MediumChange;
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let xml = document("g", "").replace(
        "</domain>",
        "<devices><disk type='file' device='cdrom'><target dev='hdc'/></disk></devices></domain>",
    );
    node.domain_define(&xml, DefineOptions::default()).unwrap();
    let change = |drive: &str, change: MediumChange| {
        node.domain_change_media("g", Scope::Config, drive, &change, false)
    };
    let says = || node.domain_xml("g", XmlOptions::default()).unwrap();
    let error = change("hdc", MediumChange::Eject).unwrap_err().to_string();
    assert!(error.contains("doesn't have media"), "{error}");
    change("hdc", MediumChange::Insert("/a.iso".into())).unwrap();
    assert!(says().contains("<source file='/a.iso'/>"));
    let again = change("hdc", MediumChange::Insert("/b.iso".into()));
    let error = again.unwrap_err().to_string();
    assert!(error.contains("already has media"), "{error}");
    change("/a.iso", MediumChange::Update("/b.iso".into())).unwrap();
    assert!(says().contains("<source file='/b.iso'/>"));
    change("hdc", MediumChange::Eject).unwrap();
    assert!(!says().contains("<source file="));
    let error = change("vda", MediumChange::Eject).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // Disks.
    let mut disk = cenote_model::domain::Disk::default();
    disk.target.dev = "vdb".to_owned();
    disk.source = Some(cenote_model::domain::DiskSource {
        file: Some("/data.raw".to_owned()),
        ..Default::default()
    });
    let attach = |scope| node.domain_attach_disk("g", scope, &disk);
    attach(Scope::Config).unwrap();
    assert!(says().contains("<source file='/data.raw'/>"));
    let error = attach(Scope::Current).unwrap_err().to_string();
    assert!(error.contains("target vdb already exists"), "{error}");
    assert_eq!(
        attach(Scope::Live).unwrap_err().kind(),
        ErrorKind::InvalidState
    );
    let detach = || node.domain_detach_disk("g", Scope::Config, "vdb");
    assert_eq!(detach().unwrap().as_deref(), Some("/data.raw"));
    assert!(!says().contains("vdb"));
    assert_eq!(detach().unwrap_err().kind(), ErrorKind::NotFound);
    // What a domain that does not run has.
    let stats = node.domain_stats("g").unwrap();
    assert_eq!((stats.state, stats.memory_kib), ((5, 0), (65536, 65536)));
    assert_eq!(stats.disks.len(), 1);
    assert!(node.domain_disk_stats("g").is_err());
}

/// A clone has its own name, UUID, addresses and disks, and shares what nobody writes to.
#[test]
fn a_clone_has_an_identity_and_disks_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
    for (name, format) in [("g.qcow2", Format::Qcow2), ("data", Format::Raw)] {
        let new = NewVolume::new(name, format, 1 << 20);
        node.volume_create("default", &new).unwrap();
    }
    let images = dir.path().join("images");
    std::fs::write(images.join("media.iso"), [0; 2048]).unwrap();
    let write = |name: &str, format: &str, pattern: &str| {
        let command = format!("write -q -P {pattern} 0 64k");
        let path = images.join(name);
        let arguments = ["-f", format, "-c", &command, path.to_str().unwrap()];
        let status = std::process::Command::new("qemu-io")
            .args(arguments)
            .status();
        assert!(status.unwrap().success());
    };
    write("g.qcow2", "qcow2", "7");
    write("data", "raw", "8");
    let at = |name: &str| images.join(name).display().to_string();
    let xml = format!(
        "<domain type='kvm'><name>g</name><memory>65536</memory><os><type>hvm</type></os><devices>\
         <disk type='volume'><driver type='qcow2'/><source pool='default' volume='g.qcow2'/>\
         <target dev='vda'/></disk>\
         <disk type='file'><driver type='raw'/><source file='{}'/><target dev='vdb'/></disk>\
         <disk type='file' device='cdrom'><driver type='raw'/><source file='{}'/>\
         <target dev='hda'/><readonly/></disk><interface type='user'/></devices></domain>",
        at("data"),
        at("media.iso")
    );
    node.domain_define(&xml, DefineOptions::default()).unwrap();
    let clone = |name: &str, wanted: &DomainClone| {
        let name = cenote_model::Name::new(name).unwrap();
        node.domain_clone("g", &name, wanted, &NoProgress)
    };
    let made = clone("h", &DomainClone::default()).unwrap();
    let names: Vec<_> = made.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["h.qcow2", "h-vdb"]);
    let linked = DomainClone {
        linked: true,
        volumes: [("vda".to_owned(), "system".to_owned())].into(),
    };
    clone("i", &linked).unwrap();
    let document = |name: &str| node.domain_document(name, true).unwrap();
    let (g, h, i) = (document("g"), document("h"), document("i"));
    for clone in [&h, &i] {
        assert_ne!(clone.uuid, g.uuid);
        let mac = |domain: &cenote_model::domain::Domain| domain.devices.interfaces[0].mac.clone();
        assert!(mac(clone).is_some() && mac(clone) != mac(&g));
        assert_eq!(
            clone.devices.disks[2], g.devices.disks[2],
            "media are shared"
        );
    }
    // What is written to the original afterwards is not the copy's.
    write("g.qcow2", "qcow2", "1");
    let shows = |name: &str, format: &str, pattern: &str| {
        let command = format!("read -q -P {pattern} 0 64k");
        let arguments = ["-f", format, "-c", &command, &at(name)];
        let output = std::process::Command::new("qemu-io")
            .args(arguments)
            .output();
        let output = output.unwrap();
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{name}"
        );
    };
    shows("h.qcow2", "qcow2", "7");
    shows("h-vdb", "raw", "8");
    shows("system", "qcow2", "1");
    let copy = node.volume(&VolumeId::new("default", "h.qcow2")).unwrap();
    assert!(copy.backing.is_none(), "a full copy stands alone");
    // The original may not change under its linked clone.
    let error = node.domain_start("g", Default::default()).unwrap_err();
    assert!(error.to_string().contains("default/system"), "{error}");
    assert!(error.hint().unwrap().contains("vol-flatten"));
    // Whatever is there already is refused by name, and nothing is made.
    let error = clone("i", &DomainClone::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    let taken = DomainClone {
        volumes: [("vdb".to_owned(), "h-vdb".to_owned())].into(),
        ..DomainClone::default()
    };
    assert_eq!(clone("j", &taken).unwrap_err().kind(), ErrorKind::Exists);
    assert!(node.domain("j").is_err());
    let unknown = DomainClone {
        volumes: [("vdz".to_owned(), "x".to_owned())].into(),
        ..DomainClone::default()
    };
    assert_eq!(
        clone("j", &unknown).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(node.volumes("default").unwrap().len(), 7);
}
