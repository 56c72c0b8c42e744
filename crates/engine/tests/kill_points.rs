//! `kill -9` at every durable step of every journalled operation.
//!
//! The parent runs an operation in a child process that dies at its first,
//! second, third, ... kill point until one run survives. After each death the
//! node is opened again: the operation must have happened whole or not at all,
//! nothing half made may be left, and a second opening has nothing to repair.
//! The repair itself is killed in the same way.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cenote_engine::installs::{
    InstallDisk, InstallRequest, InstallSource, InstallWatch, OnFailure, Told,
};
use cenote_engine::{
    AfterCommit, BuildMode, CloneSettings, DefineOptions, DomainClone, Format, NewVolume,
    NoProgress, Node, NodeOptions, PoolState, Progress, Resize, Resumption, SnapshotDelete,
    SnapshotOptions, TeardownOptions, Transfer, VolumeId,
};
use cenote_model::{Memory, Name};
use cenote_pools::crash;

/// Defines the domain `g` with a qcow2 disk.
fn with_domain(node: &Node) {
    let new = NewVolume::new("disk", Format::Qcow2, 1 << 20);
    node.volume_create("default", &new).expect("create");
    let xml = "<domain type='kvm'><name>g</name><memory>65536</memory><os><type>hvm</type></os>\
               <devices><disk type='volume'><driver type='qcow2'/>\
               <source pool='default' volume='disk'/><target dev='vda'/></disk></devices>\
               </domain>";
    node.domain_define(xml, DefineOptions::default())
        .expect("define");
}

fn snapshot(node: &Node, name: &str, disk_only: bool) {
    let wanted = cenote_model::snapshot::Snapshot {
        name: Some(cenote_model::Name::new(name).expect("a name")),
        ..Default::default()
    };
    let options = SnapshotOptions {
        disk_only,
        ..SnapshotOptions::default()
    };
    node.domain_snapshot_create("g", &wanted, options)
        .expect("snapshot");
}

fn revert(node: &Node, name: &str) {
    node.domain_snapshot_revert("g", name, Resumption::AsSaved)
        .expect("revert");
}

/// The volume that the domain's disk is, which opens with all it stands on.
fn disk_of_domain(node: &Node) -> String {
    let document = node.domain_document("g", true).expect("a document");
    let disk = document.devices.disks.first().expect("a disk");
    let name = disk.source_volume().expect("a volume").1.to_owned();
    let id = VolumeId::new("default", &name);
    node.open_volume(&id, true).expect("it opens");
    name
}

fn snapshot_names(node: &Node) -> Vec<String> {
    let all = node.domain_snapshots("g").expect("snapshots");
    all.into_iter().map(|snapshot| snapshot.name).collect()
}

/// The snapshots that are in the image.
fn internal_names(node: &Node) -> Vec<String> {
    let id = VolumeId::new("default", "disk");
    let all = node.volume_snapshots(&id).expect("snapshots");
    all.into_iter().map(|snapshot| snapshot.name).collect()
}

fn clone_domain(node: &Node, linked: bool) {
    let name = Name::new("h").expect("a name");
    let wanted = DomainClone {
        linked,
        ..DomainClone::default()
    };
    node.domain_clone("g", &name, &wanted, &NoProgress)
        .expect("clone");
}

fn clone_happened(node: &Node) -> bool {
    let happened = node.domain("h").is_ok();
    match happened {
        true => assert_eq!(volume_names(node), ["disk", "h-vda"]),
        false => assert_eq!(volume_names(node), ["disk"]),
    }
    happened
}

/// An operation with its two allowed outcomes.
struct Scenario {
    name: &'static str,
    /// Prepares the node, in the parent.
    before: fn(&Node),
    /// The operation, in the child that dies.
    run: fn(&Node),
    /// Answers whether the operation happened; panics on a state in between.
    happened: fn(&Node) -> bool,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "snapshot-internal",
        before: with_domain,
        run: |node| snapshot(node, "s", false),
        happened: |node| {
            let names = snapshot_names(node);
            assert_eq!(names, internal_names(node));
            assert_eq!(volume_names(node), ["disk"]);
            !names.is_empty()
        },
    },
    Scenario {
        name: "snapshot-external",
        before: with_domain,
        run: |node| snapshot(node, "s", true),
        happened: |node| {
            let document = node.domain_document("g", true).expect("a document");
            let volume = document.devices.disks[0]
                .source_volume()
                .expect("a volume")
                .1;
            assert!(internal_names(node).is_empty());
            match (snapshot_names(node).as_slice(), volume) {
                ([], "disk") => {
                    assert_eq!(volume_names(node), ["disk"]);
                    false
                }
                ([one], "disk.s") if one == "s" => {
                    assert_eq!(volume_names(node), ["disk", "disk.s"]);
                    let id = VolumeId::new("default", "disk.s");
                    assert!(
                        node.volume(&id)
                            .expect("a volume")
                            .format_origin
                            .is_trusted()
                    );
                    node.open_volume(&id, true).expect("it opens");
                    true
                }
                other => panic!("{other:?}"),
            }
        },
    },
    Scenario {
        name: "snapshot-revert",
        before: |node| {
            with_domain(node);
            snapshot(node, "s", false);
            snapshot(node, "t", false);
        },
        run: |node| revert(node, "s"),
        happened: |node| {
            assert_eq!(snapshot_names(node), ["s", "t"]);
            assert_eq!(internal_names(node), ["s", "t"]);
            let current = node.domain_snapshot_current("g").expect("snapshots");
            current.expect("one is current").name == "s"
        },
    },
    Scenario {
        name: "domain-clone",
        before: with_domain,
        run: |node| clone_domain(node, false),
        happened: clone_happened,
    },
    Scenario {
        name: "domain-clone-linked",
        before: with_domain,
        run: |node| clone_domain(node, true),
        happened: clone_happened,
    },
    Scenario {
        name: "snapshot-revert-external",
        before: |node| {
            with_domain(node);
            snapshot(node, "s", true);
        },
        run: |node| revert(node, "s"),
        happened: |node| {
            assert_eq!(snapshot_names(node), ["s"]);
            let disk = disk_of_domain(node);
            match disk.as_str() {
                "disk.s" => assert_eq!(volume_names(node), ["disk", "disk.s"]),
                // What is not needed any more is a change of its own.
                "disk.s-1" => assert!(
                    volume_names(node) == ["disk", "disk.s-1"]
                        || volume_names(node) == ["disk", "disk.s", "disk.s-1"]
                ),
                other => panic!("{other}"),
            }
            disk == "disk.s-1"
        },
    },
    Scenario {
        name: "snapshot-revert-copy",
        before: |node| {
            with_domain(node);
            snapshot(node, "s", false);
            snapshot(node, "t", true);
        },
        run: |node| revert(node, "s"),
        happened: |node| {
            assert_eq!(snapshot_names(node), ["s", "t"]);
            assert_eq!(internal_names(node), ["s"]);
            let disk = disk_of_domain(node);
            match disk.as_str() {
                "disk.t" => assert_eq!(volume_names(node), ["disk", "disk.t"]),
                "disk.s-1" => {
                    let copy = node.volume_snapshots(&VolumeId::new("default", "disk.s-1"));
                    assert!(copy.expect("snapshots").is_empty());
                }
                other => panic!("{other}"),
            }
            disk == "disk.s-1"
        },
    },
    Scenario {
        name: "snapshot-delete-external",
        before: |node| {
            with_domain(node);
            snapshot(node, "s", true);
            snapshot(node, "t", true);
        },
        run: |node| {
            for name in ["s", "t"] {
                node.domain_snapshot_delete("g", name, SnapshotDelete::default())
                    .expect("delete");
            }
        },
        happened: |node| {
            let disk = disk_of_domain(node);
            let all = snapshot_names(node);
            match (all.as_slice(), disk.as_str()) {
                ([_, _] | [_], "disk.t") => assert!(volume_names(node).contains(&disk)),
                // The merges are changes of their own.
                ([], "disk.t" | "disk.s" | "disk") => {}
                other => panic!("{other:?}"),
            }
            assert!(!volume_names(node).iter().any(|name| name.starts_with('.')));
            all.is_empty()
        },
    },
    Scenario {
        name: "snapshot-delete",
        before: |node| {
            with_domain(node);
            snapshot(node, "s", false);
            snapshot(node, "t", false);
        },
        run: |node| {
            node.domain_snapshot_delete("g", "s", SnapshotDelete::default())
                .expect("delete");
        },
        happened: |node| {
            let names = snapshot_names(node);
            assert_eq!(names, internal_names(node));
            let last = node.domain_snapshot("g", "t").expect("it stays");
            assert_eq!(last.parent.is_none(), names.len() == 1);
            assert!(last.current);
            names.len() == 1
        },
    },
    Scenario {
        name: "create",
        before: |_| {},
        run: |node| {
            let new = NewVolume::new("disk", Format::Raw, 1 << 20);
            node.volume_create("default", &new).expect("create");
        },
        happened: |node| match volume_names(node).as_slice() {
            [] => false,
            [name] => {
                assert_eq!(name, "disk");
                let info = node
                    .volume(&VolumeId::new("default", "disk"))
                    .expect("info");
                assert_eq!(info.capacity, 1 << 20);
                assert!(info.format_origin.is_trusted());
                true
            }
            other => panic!("{other:?}"),
        },
    },
    Scenario {
        name: "create-with-data-file",
        before: |_| {},
        run: |node| {
            let mut new = NewVolume::new("image", Format::Qcow2, 1 << 20);
            new.qcow2.data_file = Some("image.data".into());
            node.volume_create("default", &new).expect("create");
        },
        happened: |node| match volume_names(node).as_slice() {
            [] => false,
            [image, data] => {
                assert_eq!((image.as_str(), data.as_str()), ("image", "image.data"));
                node.open_volume(&VolumeId::new("default", "image"), true)
                    .expect("it opens");
                true
            }
            other => panic!("{other:?}"),
        },
    },
    Scenario {
        name: "delete",
        before: |node| {
            let new = NewVolume::new("disk", Format::Raw, 1 << 20);
            node.volume_create("default", &new).expect("create");
        },
        run: |node| {
            node.volume_delete(&VolumeId::new("default", "disk"))
                .expect("delete")
        },
        happened: |node| volume_names(node).is_empty(),
    },
    Scenario {
        name: "upload",
        before: |node| {
            let new = NewVolume::new("disk", Format::Raw, 3 << 20);
            node.volume_create("default", &new).expect("create");
            fs::write(node.state_dir().join("source"), vec![7; 3 << 20]).expect("source");
        },
        run: |node| {
            let mut source = fs::File::open(node.state_dir().join("source")).expect("source");
            let id = VolumeId::new("default", "disk");
            node.volume_upload(&id, &mut source, &Transfer::default(), &NoProgress)
                .expect("upload");
        },
        happened: |node| {
            let info = node
                .volume(&VolumeId::new("default", "disk"))
                .expect("info");
            assert_eq!(info.physical, 3 << 20);
            fs::read(info.path)
                .expect("content")
                .iter()
                .all(|byte| *byte == 7)
        },
    },
    Scenario {
        name: "clone",
        before: make_chain,
        run: |node| {
            let new = NewVolume {
                capacity: None,
                ..NewVolume::new("copy", Format::Qcow2, 0)
            };
            let settings = CloneSettings {
                threads: 1,
                ..CloneSettings::default()
            };
            node.volume_clone(&id("top"), "default", &new, &settings, &NoProgress)
                .expect("clone");
        },
        happened: |node| {
            assert_shows(node, "top", "top");
            let there = volume_names(node).contains(&"copy".to_owned());
            if there {
                assert_shows(node, "copy", "top");
            }
            there
        },
    },
    Scenario {
        name: "commit",
        before: make_chain,
        run: |node| {
            node.volume_commit(&id("mid"), None, AfterCommit::Delete, &NoProgress)
                .expect("commit");
        },
        happened: |node| {
            assert_shows(node, "top", "top");
            let gone = !volume_names(node).contains(&"mid".to_owned());
            assert_shows(node, if gone { "base" } else { "mid" }, "mid");
            gone
        },
    },
    Scenario {
        name: "remove-layer",
        before: make_chain,
        run: |node| {
            node.volume_remove_layer(&id("mid"), &NoProgress)
                .expect("remove")
        },
        happened: |node| {
            assert_shows(node, "top", "top");
            assert_shows(node, "base", "base");
            let gone = !volume_names(node).contains(&"mid".to_owned());
            if !gone {
                assert_shows(node, "mid", "mid");
            }
            gone
        },
    },
    Scenario {
        name: "flatten",
        before: make_chain,
        run: |node| {
            node.volume_flatten(&id("top"), &NoProgress)
                .expect("flatten")
        },
        happened: |node| {
            assert_shows(node, "top", "top");
            node.volume(&id("top")).expect("info").backing.is_none()
        },
    },
    Scenario {
        name: "resize",
        before: make_chain,
        run: |node| {
            let resize = Resize {
                size: 8 << 20,
                ..Resize::default()
            };
            node.volume_resize(&id("top"), &resize).expect("resize");
        },
        happened: |node| {
            assert_shows(node, "top", "top");
            node.volume(&id("top")).expect("info").capacity == 8 << 20
        },
    },
    Scenario {
        name: "snapshot",
        before: make_chain,
        run: |node| {
            node.volume_snapshot_create(&id("top"), "now")
                .expect("snapshot");
        },
        happened: |node| {
            assert_shows(node, "top", "top");
            !node
                .volume_snapshots(&id("top"))
                .expect("snapshots")
                .is_empty()
        },
    },
    Scenario {
        name: "install",
        before: |_| {},
        // What is no kernel is not started, so that nothing may be left.
        run: |node| {
            let prepared = node.install_prepare(&install(node)).expect("a plan");
            node.install(prepared, &Nobody).expect_err("no kernel");
        },
        happened: |node| {
            assert!(volume_names(node).is_empty());
            assert!(node.domains().expect("domains").is_empty());
            let folder = fs::read_dir(node.state_dir().join("installs"));
            assert_eq!(folder.map_or(0, Iterator::count), 0);
            true
        },
    },
    Scenario {
        name: "teardown",
        before: make_domain,
        run: |node| {
            let options = TeardownOptions::default();
            let done = node.domain_teardown("web", &options, &NoProgress);
            done.expect("teardown");
        },
        happened: domain_is_gone,
    },
    Scenario {
        name: "pool-start",
        before: |node| {
            node.pool_stop("default").expect("stop");
        },
        run: |node| {
            node.pool_start("default", Some(BuildMode::Plain))
                .expect("start")
        },
        happened: |node| node.pool("default").expect("pool").state == PoolState::Running,
    },
    Scenario {
        name: "pool-stop",
        before: |_| {},
        run: |node| node.pool_stop("default").expect("stop"),
        happened: |node| node.pool("default").expect("pool").state == PoolState::Inactive,
    },
    Scenario {
        name: "pool-undefine",
        before: |node| node.pool_stop("default").expect("stop"),
        run: |node| node.pool_undefine("default").expect("undefine"),
        happened: |node| node.pool("default").is_err(),
    },
];

struct Nobody;

impl Progress for Nobody {
    fn update(&self, _: u64, _: u64) -> std::ops::ControlFlow<()> {
        std::ops::ControlFlow::Continue(())
    }
}

impl InstallWatch for Nobody {
    fn tell(&self, _: &Told) {}
}

/// An install whose kernel is none.
fn install(node: &Node) -> InstallRequest {
    let file = |name: &str| {
        let path = node.state_dir().join(name);
        fs::write(&path, b"no kernel").expect("written");
        path.display().to_string()
    };
    let location = format!("kernel={},initrd={}", file("kernel"), file("initrd"));
    InstallRequest {
        name: Name::new("db").expect("a name"),
        memory: Memory::from_bytes(64 << 20),
        install_memory: None,
        vcpus: 1,
        source: InstallSource::Location(location.parse().expect("a location")),
        disks: vec![InstallDisk::New {
            pool: "default".to_owned(),
            name: "db.raw".to_owned(),
            format: Format::Raw,
            capacity: 1 << 20,
        }],
        networks: Vec::new(),
        inject: Vec::new(),
        extra_arguments: String::new(),
        answer: None,
        osinfo: None,
        transient: false,
        noreboot: false,
        timeout: Duration::from_secs(60),
        silence: Duration::from_secs(60),
        on_failure: OnFailure::Keep,
    }
}

/// A domain with a volume, a managed save and a log.
fn make_domain(node: &Node) {
    let new = NewVolume::new("disk", Format::Raw, 1 << 20);
    let disk = node.volume_create("default", &new).expect("create");
    let xml = format!(
        "<domain type='kvm'><name>web</name><memory>8192</memory><os><type>hvm</type></os>\
         <devices><disk type='file'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vda'/></disk></devices></domain>",
        disk.path.display()
    );
    let info = node
        .domain_define(&xml, DefineOptions::default())
        .expect("define");
    let save = node.state_dir().join("save");
    fs::create_dir_all(&save).expect("a folder");
    fs::write(save.join(format!("{}.save", info.uuid)), b"memory").expect("a save");
    let logs = node.domain_log_dir("web");
    fs::create_dir_all(&logs).expect("a folder");
    fs::write(logs.join("console.log"), b"login:").expect("a log");
}

/// All of it is there, or nothing.
fn domain_is_gone(node: &Node) -> bool {
    let gone = node.domain("web").is_err();
    assert_eq!(volume_names(node).is_empty(), gone);
    assert_eq!(!node.domain_log_dir("web").exists(), gone);
    let saves = fs::read_dir(node.state_dir().join("save")).expect("a folder");
    assert_eq!(saves.count() == 0, gone);
    gone
}

fn id(name: &str) -> VolumeId {
    VolumeId::new("default", name)
}

fn qemu(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} of package qemu-utils: {error}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {out}{err}"
    );
}

fn kept(node: &Node, name: &str) -> String {
    node.state_dir()
        .join(format!("kept-{name}"))
        .display()
        .to_string()
}

/// base <- mid <- top, each with data of its own, and what each shows.
fn make_chain(node: &Node) {
    node.volume_create("default", &NewVolume::new("base", Format::Qcow2, 4 << 20))
        .expect("base");
    node.volume_clone_linked(&id("base"), "default", "mid")
        .expect("mid");
    node.volume_clone_linked(&id("mid"), "default", "top")
        .expect("top");
    for (name, command) in [
        ("base", "write -P 1 0 3M"),
        ("mid", "write -P 2 1M 1M"),
        ("top", "write -P 3 1536k 64k"),
    ] {
        let path = node
            .state_dir()
            .join("images")
            .join(name)
            .display()
            .to_string();
        qemu("qemu-io", &["-f", "qcow2", "-c", command, &path]);
        qemu(
            "qemu-img",
            &[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                &path,
                &kept(node, name),
            ],
        );
    }
}

/// `volume` is valid and shows what `original` showed in the beginning.
fn assert_shows(node: &Node, volume: &str, original: &str) {
    let path = node
        .volume(&id(volume))
        .expect("info")
        .path
        .display()
        .to_string();
    qemu("qemu-img", &["check", "-q", "-r", "leaks", &path]);
    let kept = kept(node, original);
    qemu(
        "qemu-img",
        &["compare", "-q", "-f", "qcow2", "-F", "raw", &path, &kept],
    );
}

fn volume_names(node: &Node) -> Vec<String> {
    node.volumes("default")
        .expect("volumes")
        .into_iter()
        .map(|info| info.name)
        .collect()
}

/// Not a test: what the child processes run.
#[test]
#[ignore = "run by the kill-point tests in a process of its own"]
fn child() {
    let variable = |name: &str| std::env::var(name).expect("set by the parent");
    let dir = variable("KILL_POINT_DIR");
    let point: u64 = variable("KILL_POINT").parse().expect("a number");
    let name = variable("KILL_POINT_SCENARIO");
    if name == "repair" {
        crash::arm(point);
        Node::open(&NodeOptions::in_dir(dir)).expect("open");
        return;
    }
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .expect("a scenario");
    let node = Node::open(&NodeOptions::in_dir(dir)).expect("open");
    crash::arm(point);
    (scenario.run)(&node);
}

/// Runs the child; answers whether it died at its point.
fn dies(dir: &Path, scenario: &str, point: u64) -> bool {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "child",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("KILL_POINT_DIR", dir)
        .env("KILL_POINT", point.to_string())
        .env("KILL_POINT_SCENARIO", scenario)
        .output()
        .expect("the child starts");
    if output.status.signal() == Some(9) {
        return true;
    }
    assert!(
        output.status.success(),
        "{scenario} at point {point}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

fn open(dir: &Path) -> Node {
    Node::open(&NodeOptions::in_dir(dir)).expect("the node opens after a crash")
}

fn assert_clean(node: &Node, what: &str) {
    for entry in fs::read_dir(node.state_dir().join("images"))
        .expect("the pool")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!name.starts_with(".cenote-"), "{what}: {name} is left");
    }
    let locks = fs::read_dir(node.state_dir().join("operations"))
        .expect("the locks")
        .count();
    assert_eq!(locks, 0, "{what}: locks are left");
}

/// A directory in memory where there is one: death by a signal loses nothing
/// that was written, so that waiting for a disk would prove nothing more.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

/// Prepares a node and lets the operation die at `point`.
fn crashed(scenario: &Scenario, point: u64) -> (tempfile::TempDir, bool) {
    let dir = directory();
    (scenario.before)(&open(dir.path()));
    let died = dies(dir.path(), scenario.name, point);
    (dir, died)
}

#[test]
fn every_operation_survives_death_at_every_point() {
    for scenario in SCENARIOS {
        let mut outcomes = Vec::new();
        for point in 1.. {
            let what = format!("{} at point {point}", scenario.name);
            let (dir, died) = crashed(scenario, point);
            let node = open(dir.path());
            if !died {
                assert!((scenario.happened)(&node), "{what} survived without effect");
                assert!(node.repairs().is_empty(), "{what}: {:?}", node.repairs());
                break;
            }
            let happened = (scenario.happened)(&node);
            for repair in node.repairs() {
                assert!(!repair.message.is_empty());
                assert_ne!(
                    repair.outcome,
                    cenote_engine::RepairOutcome::Pending,
                    "{repair:?}"
                );
            }
            assert_clean(&node, &what);
            drop(node);
            let again = open(dir.path());
            assert!(
                again.repairs().is_empty(),
                "{what}: repaired twice {:?}",
                again.repairs()
            );
            assert_eq!((scenario.happened)(&again), happened, "{what}");
            outcomes.push(happened);
        }
        assert!(
            outcomes.len() >= 2,
            "{} has only {} points",
            scenario.name,
            outcomes.len()
        );
        println!(
            "{}: {} kill points, outcomes {outcomes:?}",
            scenario.name,
            outcomes.len()
        );
    }
}

#[test]
fn repair_survives_death_at_every_point() {
    for scenario in SCENARIOS {
        for point in 1.. {
            let (probe, died) = crashed(scenario, point);
            drop(probe);
            if !died {
                break;
            }
            // The long ones are told apart by their last points alone.
            if point > 6 && !point.is_multiple_of(3) {
                continue;
            }
            for within in 1.. {
                let (dir, _) = crashed(scenario, point);
                let died = dies(dir.path(), "repair", within);
                let node = open(dir.path());
                (scenario.happened)(&node);
                assert_clean(
                    &node,
                    &format!("{} {point}, repair {within}", scenario.name),
                );
                if !died {
                    break;
                }
            }
        }
    }
}

#[test]
fn an_operation_under_way_is_left_alone_and_keeps_others_off() {
    use cenote_engine::ErrorKind;
    use std::ops::ControlFlow;
    use std::sync::Barrier;

    /// Stops in the middle of an upload until told to go on.
    struct Wait<'a>(&'a Barrier, &'a Barrier);
    impl Progress for Wait<'_> {
        fn update(&self, done: u64, total: u64) -> ControlFlow<()> {
            if done > 0 && done < total {
                self.0.wait();
                self.1.wait();
            }
            ControlFlow::Continue(())
        }
    }

    let dir = tempfile::tempdir().expect("a directory");
    let node = open(dir.path());
    let id = VolumeId::new("default", "disk");
    node.volume_create("default", &NewVolume::new("disk", Format::Raw, 2 << 20))
        .expect("create");
    let source = dir.path().join("source");
    fs::write(&source, vec![1; 2 << 20]).expect("source");
    let (reached, go_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut source = fs::File::open(&source).expect("source");
            let progress = Wait(&reached, &go_on);
            node.volume_upload(&id, &mut source, &Transfer::default(), &progress)
                .expect("upload");
        });
        reached.wait();
        let other = open(dir.path());
        assert!(other.repairs().is_empty(), "{:?}", other.repairs());
        let error = other
            .volume_delete(&id)
            .expect_err("the volume is being written");
        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
        let error = other
            .pool_stop("default")
            .expect_err("a volume of it is being written");
        assert!(error.to_string().contains("busy"), "{error}");
        let running: Vec<_> = other.jobs().expect("jobs");
        assert!(running.iter().any(|job| job.kind == "volume-upload"));
        go_on.wait();
    });
    node.volume_delete(&id).expect("free again");
}
