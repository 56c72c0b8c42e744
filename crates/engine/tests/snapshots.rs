//! Snapshots of domains that do not run, looked at by QEMU's tools.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use cenote_engine::{
    DefineOptions, ErrorKind, Node, NodeOptions, Resumption, SnapshotDelete, SnapshotOptions,
    TeardownOptions, UndefineOptions, XmlOptions,
};
use cenote_model::snapshot::Snapshot;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn fill(image: &Path, pattern: &str) {
    let command = format!("write -q -P {pattern} 0 256k");
    run(
        "qemu-io",
        &["-f", "qcow2", "-c", &command, image.to_str().unwrap()],
    );
}

/// QEMU finds the image whole, and filled with the pattern.
fn shows(image: &Path, pattern: &str) {
    let image = image.to_str().unwrap();
    run("qemu-img", &["check", "-q", "-f", "qcow2", image]);
    let command = format!("read -q -P {pattern} 0 256k");
    let said = run("qemu-io", &["-f", "qcow2", "-c", &command, image]);
    assert!(said.is_empty(), "{image} {pattern}: {said}");
}

struct Bench {
    dir: tempfile::TempDir,
    node: Node,
}

impl Bench {
    /// A domain with two qcow2 disks in the default pool's directory and a raw read-only one.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
        let bench = Bench { dir, node };
        for name in ["a.qcow2", "b.qcow2"] {
            let path = bench.path(name);
            let arguments = ["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"];
            run("qemu-img", &arguments);
        }
        std::fs::write(bench.path("c.raw"), [0; 4096]).unwrap();
        let disk = |name: &str, format: &str, dev: &str, more: &str| {
            format!(
                "<disk type='file'><driver type='{format}'/><source file='{}'/>\
                 <target dev='{dev}'/>{more}</disk>",
                bench.path(name).display()
            )
        };
        let xml = format!(
            "<domain type='kvm'><name>g</name><memory>65536</memory><os><type>hvm</type></os>\
             <devices>{}{}{}</devices></domain>",
            disk("a.qcow2", "qcow2", "vda", ""),
            disk("b.qcow2", "qcow2", "vdb", ""),
            disk("c.raw", "raw", "vdc", "<readonly/>"),
        );
        let options = DefineOptions::default();
        bench.node.domain_define(&xml, options).unwrap();
        bench
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("images").join(name)
    }

    fn take(&self, name: &str, disk_only: bool) -> cenote_engine::Result<String> {
        let wanted = Snapshot {
            name: Some(cenote_model::Name::new(name).unwrap()),
            ..Snapshot::default()
        };
        let options = SnapshotOptions {
            disk_only,
            ..SnapshotOptions::default()
        };
        self.node.domain_snapshot_create("g", &wanted, options)
    }

    fn revert(&self, name: &str) -> cenote_engine::Result<()> {
        let as_saved = Resumption::AsSaved;
        self.node.domain_snapshot_revert("g", name, as_saved)
    }

    fn fill(&self, pattern: &str) {
        fill(&self.path("a.qcow2"), pattern);
        fill(&self.path("b.qcow2"), pattern);
    }

    fn shows(&self, pattern: &str) {
        shows(&self.path("a.qcow2"), pattern);
        shows(&self.path("b.qcow2"), pattern);
    }

    /// Name and parent of each snapshot.
    fn tree(&self) -> Vec<(String, Option<String>)> {
        let all = self.node.domain_snapshots("g").unwrap().into_iter();
        all.map(|snapshot| (snapshot.name, snapshot.parent))
            .collect()
    }

    fn current(&self) -> Option<String> {
        let current = self.node.domain_snapshot_current("g").unwrap();
        current.map(|snapshot| snapshot.name)
    }
}

fn edge(name: &str, parent: Option<&str>) -> (String, Option<String>) {
    (name.to_owned(), parent.map(str::to_owned))
}

/// A tree of internal snapshots, gone through and taken down.
#[test]
fn internal_snapshots_make_a_tree() {
    let bench = Bench::new();
    bench.fill("0x11");
    bench.take("one", false).unwrap();
    bench.fill("0x22");
    bench.take("two", false).unwrap();
    bench.fill("0x33");
    bench.revert("one").unwrap();
    bench.shows("0x11");
    assert_eq!(bench.current().as_deref(), Some("one"));
    bench.fill("0x44");
    bench.take("three", false).unwrap();
    let one = Some("one");
    assert_eq!(
        bench.tree(),
        [edge("one", None), edge("two", one), edge("three", one)]
    );
    let error = bench.take("two", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    bench.revert("two").unwrap();
    bench.shows("0x22");
    // Deleting the root leaves its children's content alone.
    let delete = |name: &str, options| bench.node.domain_snapshot_delete("g", name, options);
    delete("one", SnapshotDelete::default()).unwrap();
    assert_eq!(bench.tree(), [edge("two", None), edge("three", None)]);
    bench.revert("three").unwrap();
    bench.shows("0x44");
    let refused = bench.node.domain_undefine("g", UndefineOptions::default());
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("with 2 snapshots"), "{error}");
    bench.take("four", false).unwrap();
    let children = SnapshotDelete {
        children: true,
        ..SnapshotDelete::default()
    };
    assert_eq!(delete("three", children).unwrap(), ["four", "three"]);
    assert_eq!(bench.tree(), [edge("two", None)]);
    delete("two", SnapshotDelete::default()).unwrap();
    bench.shows("0x44");
    for name in ["a.qcow2", "b.qcow2"] {
        let path = bench.path(name);
        let listed = run("qemu-img", &["snapshot", "-l", path.to_str().unwrap()]);
        assert!(listed.trim().is_empty(), "{listed}");
    }
    let error = bench.node.domain_snapshot("g", "two").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// External snapshots leave images alone and give the domain overlays, or nothing at all.
#[test]
fn external_snapshots_put_overlays_on_all_disks_or_none() {
    let bench = Bench::new();
    bench.fill("0x11");
    // The second overlay's name is taken: the first is not left behind either.
    std::fs::write(bench.path("b.late"), "mine").unwrap();
    let error = bench.take("late", true).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert!(!bench.path("a.late").exists());
    assert!(bench.tree().is_empty());
    bench.take("one", true).unwrap();
    let definition = bench.node.domain_xml("g", XmlOptions::default()).unwrap();
    for name in ["a.one", "b.one"] {
        assert!(definition.contains(&format!("{name}'")), "{definition}");
        shows(&bench.path(name), "0x11");
        fill(&bench.path(name), "0x22");
    }
    assert!(definition.contains("c.raw"), "{definition}");
    bench.shows("0x11");
    let xml = bench.node.domain_snapshot_xml("g", "one", false).unwrap();
    assert!(
        xml.contains("<name>one</name>") && xml.contains("a.qcow2"),
        "{xml}"
    );
    bench.take("two", false).unwrap();
    assert_eq!(bench.tree(), [edge("one", None), edge("two", Some("one"))]);
    fill(&bench.path("a.one"), "0x33");
    bench.revert("two").unwrap();
    shows(&bench.path("a.one"), "0x22");
    // What is known of the snapshot goes with --metadata; its images stay as they are.
    let metadata = SnapshotDelete {
        metadata: true,
        ..SnapshotDelete::default()
    };
    let delete = bench.node.domain_snapshot_delete("g", "one", metadata);
    delete.unwrap();
    assert_eq!(bench.tree(), [edge("two", None)]);
    shows(&bench.path("a.one"), "0x22");
}

/// Going back to an external snapshot leaves it alone; what nobody needs any more goes.
#[test]
fn external_snapshots_are_gone_back_to_and_deleted() {
    let bench = Bench::new();
    let tops = || {
        let document = bench.node.domain_document("g", true).unwrap();
        let disks = document.devices.disks.iter().take(2);
        let name = |path: &str| Path::new(path).file_name().unwrap().to_owned();
        disks
            .map(|disk| bench.path(name(disk.source_path().unwrap()).to_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let holds = |pattern: &str| tops().iter().for_each(|top| shows(top, pattern));
    let write = |pattern: &str| tops().iter().for_each(|top| fill(top, pattern));
    let files = || {
        let names = std::fs::read_dir(bench.dir.path().join("images")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("a.")).collect();
        names.sort();
        names
    };
    write("0x11");
    bench.take("one", true).unwrap();
    write("0x22");
    bench.revert("one").unwrap();
    holds("0x11");
    assert_eq!(bench.current().as_deref(), Some("one"));
    assert_eq!(
        files(),
        ["a.one-1", "a.qcow2"],
        "the overlay that was left is gone"
    );
    write("0x33");
    bench.take("two", true).unwrap();
    write("0x44");
    bench.revert("one").unwrap();
    holds("0x11");
    bench.revert("two").unwrap();
    holds("0x33");
    write("0x55");
    // An image that others stand on is not gone back to in place.
    bench.take("in", false).unwrap();
    bench.take("out", true).unwrap();
    write("0x66");
    bench.revert("in").unwrap();
    holds("0x55");
    write("0x77");
    bench.revert("out").unwrap();
    holds("0x55");
    // A teardown finds every image, of whatever branch.
    let options = TeardownOptions {
        chain: true,
        ..TeardownOptions::default()
    };
    let inventory = bench.node.domain_inventory("g", &options).unwrap();
    let names: BTreeSet<_> = inventory.volumes.iter().map(|id| id.name.clone()).collect();
    for name in files() {
        assert!(names.contains(&name), "{name}: {inventory:?}");
    }
    for name in ["out", "in", "one", "two"] {
        let options = SnapshotDelete::default();
        let deleted = bench.node.domain_snapshot_delete("g", name, options);
        assert_eq!(deleted.unwrap(), [name]);
        holds("0x55");
    }
    assert!(bench.tree().is_empty());
    assert_eq!(files(), ["a.qcow2"], "all is merged");
}

/// An image that holds a snapshot and nothing else is the domain's own all the same.
#[test]
fn a_teardown_takes_what_only_a_snapshot_needs() {
    let bench = Bench::new();
    bench.take("in", false).unwrap();
    bench.take("out", true).unwrap();
    bench.revert("in").unwrap();
    let options = SnapshotDelete::default();
    let deleted = bench.node.domain_snapshot_delete("g", "out", options);
    deleted.unwrap();
    let inventory = bench
        .node
        .domain_inventory("g", &TeardownOptions::default())
        .unwrap();
    let mut names: Vec<_> = inventory.volumes.iter().map(|id| &id.name).collect();
    names.sort();
    assert_eq!(names, ["a.in-1", "a.qcow2", "b.in-1", "b.qcow2"]);
}

/// What cannot be kept is named before anything is done.
#[test]
fn impossible_snapshots_are_refused() {
    let bench = Bench::new();
    let xml = bench.node.domain_xml("g", XmlOptions::default()).unwrap();
    let raw = xml.replace("<readonly/>", "");
    let options = DefineOptions::default();
    bench.node.domain_define(&raw, options).unwrap();
    let error = bench.take("one", false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("internal snapshot for disk vdc unsupported"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--disk-only"));
    let with_memory = Snapshot {
        memory: Some(cenote_model::snapshot::SnapshotMemory {
            mode: Some(cenote_model::snapshot::SnapshotMemoryMode::External),
            file: Some("/memory".to_owned()),
            ..Default::default()
        }),
        ..Snapshot::default()
    };
    let options = SnapshotOptions::default();
    let refused = bench
        .node
        .domain_snapshot_create("g", &with_memory, options);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("memory state cannot be saved"), "{error}");
    assert!(bench.tree().is_empty());
    bench.take("one", true).unwrap();
    assert!(bench.path("c.one").exists());
    // The firmware's variables would not go back with the disks.
    let xml = bench.node.domain_xml("g", XmlOptions::default()).unwrap();
    let os = "<os><type>hvm</type><loader readonly='yes' type='pflash'>/usr/share/f</loader>\
              <nvram>/var/g.fd</nvram></os>";
    let (before, after) = xml.split_once("<os>").unwrap();
    let (_, after) = after.split_once("</os>").unwrap();
    let firmware = format!("{before}{os}{after}");
    bench
        .node
        .domain_define(&firmware, DefineOptions::default())
        .unwrap();
    let error = bench.take("two", false).unwrap_err();
    assert!(error.to_string().contains("pflash"), "{error}");
}
