//! Trees of snapshots of mixed kinds, built, gone back through at random and taken down, beside a
//! mirror that qemu-img and qemu-io keep. `CENOTE_SEEDS=20` for many; `CENOTE_SEED=N` for the one.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cenote_engine::{
    DefineOptions, Node, NodeOptions, Resumption, SnapshotDelete, SnapshotOptions,
};
use cenote_model::domain::SnapshotMode;
use cenote_model::snapshot::{Snapshot, SnapshotDisk, SnapshotDisks};

const SNAPSHOTS: usize = 30;
const TARGETS: [&str; 2] = ["vda", "vdb"];
/// Of a disk, in units of 64 KiB.
const UNITS: u64 = 32;

/// Marsaglia's xorshift64: the same numbers for a seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {said}{error}"
    );
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a snapshot is to hold: of each disk that it has, the mirror's copy.
type Held = BTreeMap<&'static str, PathBuf>;

struct Bench {
    dir: tempfile::TempDir,
    node: Node,
    random: Random,
    held: BTreeMap<String, Held>,
    made: usize,
    kinds: BTreeMap<&'static str, usize>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
        let bench = Bench {
            dir,
            node,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            held: BTreeMap::new(),
            made: 0,
            kinds: BTreeMap::new(),
        };
        let mut disks = String::new();
        for target in TARGETS {
            let image = bench
                .dir
                .path()
                .join("images")
                .join(format!("{target}.qcow2"));
            run(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", text(&image), "2M"],
            );
            run(
                "qemu-img",
                &[
                    "create",
                    "-q",
                    "-f",
                    "raw",
                    text(&bench.mirror(target)),
                    "2M",
                ],
            );
            disks += &format!(
                "<disk type='file'><driver type='qcow2'/><source file='{}'/>\
                 <target dev='{target}'/></disk>",
                image.display()
            );
        }
        let xml = format!(
            "<domain type='kvm'><name>g</name><memory>65536</memory><os><type>hvm</type></os>\
             <devices>{disks}</devices></domain>"
        );
        let options = DefineOptions::default();
        bench.node.domain_define(&xml, options).unwrap();
        bench
    }

    fn mirror(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("mirror-{name}"))
    }

    /// The domain's images, by target.
    fn tops(&self) -> BTreeMap<&'static str, PathBuf> {
        let document = self.node.domain_document("g", true).unwrap();
        let disks = document.devices.disks.iter().zip(TARGETS);
        disks
            .map(|(disk, target)| (target, PathBuf::from(disk.source_path().unwrap())))
            .collect()
    }

    /// Writes the same to a disk and its mirror.
    fn write(&mut self) {
        let target = *self.random.one_of(&TARGETS);
        let top = self.tops()[target].clone();
        let mirror = self.mirror(target);
        let mut commands = Vec::new();
        for _ in 0..3 {
            let at = self.random.below(UNITS as usize - 4);
            let length = 1 + self.random.below(4);
            let what = match self.random.below(8) {
                0 => "write -q -z".to_owned(),
                pattern => format!("write -q -P {}", pattern * 31),
            };
            commands.push(format!("{what} {}k {}k", at * 64, length * 64));
        }
        for (image, format) in [(&top, "qcow2"), (&mirror, "raw")] {
            let mut arguments = vec!["-f", format];
            for command in &commands {
                arguments.extend(["-c", command]);
            }
            arguments.push(text(image));
            run("qemu-io", &arguments);
        }
    }

    /// QEMU finds both disks whole, with the mirror's content.
    fn compare(&self, after: &str) {
        for (target, top) in self.tops() {
            run("qemu-img", &["check", "-q", "-f", "qcow2", text(&top)]);
            let mirror = self.mirror(target);
            let arguments = [
                "compare",
                "-f",
                "qcow2",
                "-F",
                "raw",
                text(&top),
                text(&mirror),
            ];
            let said = run("qemu-img", &arguments);
            assert!(said.contains("identical"), "{target} after {after}: {said}");
        }
    }

    fn take(&mut self) {
        let name = format!("s{}", self.made);
        self.made += 1;
        let modes = [
            SnapshotMode::Internal,
            SnapshotMode::External,
            SnapshotMode::No,
        ];
        // At least one disk is kept.
        let mut chosen = [
            *self.random.one_of(&modes[..2]),
            *self.random.one_of(&modes),
        ];
        if self.random.below(2) == 0 {
            chosen.reverse();
        }
        let mut held = Held::new();
        let mut disks = Vec::new();
        for (target, mode) in TARGETS.into_iter().zip(chosen) {
            disks.push(SnapshotDisk {
                name: target.to_owned(),
                mode: Some(mode),
                ..SnapshotDisk::default()
            });
            let kind = match mode {
                SnapshotMode::Internal => "internal",
                SnapshotMode::External => "external",
                _ => "left out",
            };
            *self.kinds.entry(kind).or_default() += 1;
            if mode != SnapshotMode::No {
                let copy = self.mirror(&format!("{target}-{name}"));
                let (from, to) = (self.mirror(target), text(&copy).to_owned());
                run(
                    "qemu-img",
                    &["convert", "-f", "raw", "-O", "raw", text(&from), &to],
                );
                held.insert(target, copy);
            }
        }
        let wanted = Snapshot {
            name: Some(cenote_model::Name::new(&name).unwrap()),
            disks: Some(SnapshotDisks {
                disks,
                ..SnapshotDisks::default()
            }),
            ..Snapshot::default()
        };
        let options = SnapshotOptions::default();
        let taken = self.node.domain_snapshot_create("g", &wanted, options);
        taken.unwrap();
        self.held.insert(name, held);
    }

    fn revert(&mut self) {
        let names: Vec<String> = self.held.keys().cloned().collect();
        let name = self.random.one_of(&names).clone();
        let as_saved = Resumption::AsSaved;
        let reverted = self.node.domain_snapshot_revert("g", &name, as_saved);
        reverted.unwrap_or_else(|error| panic!("{name}: {error}"));
        for (target, copy) in &self.held[&name] {
            let (from, to) = (text(copy), self.mirror(target));
            run(
                "qemu-img",
                &["convert", "-f", "raw", "-O", "raw", from, text(&to)],
            );
        }
        self.compare(&format!("going back to {name}"));
    }

    fn delete(&mut self) {
        let names: Vec<String> = self.held.keys().cloned().collect();
        let name = self.random.one_of(&names).clone();
        let options = SnapshotDelete {
            children: self.random.below(12) == 0,
            ..SnapshotDelete::default()
        };
        let gone = self.node.domain_snapshot_delete("g", &name, options);
        for name in gone.unwrap_or_else(|error| panic!("{name}: {error}")) {
            self.held.remove(&name);
        }
        self.compare(&format!("deleting {name}"));
    }

    /// Every file beside the first images is needed by the domain or a snapshot.
    fn look_for_leftovers(&self) {
        let mut needed: BTreeSet<PathBuf> = TARGETS
            .iter()
            .map(|target| {
                self.dir
                    .path()
                    .join("images")
                    .join(format!("{target}.qcow2"))
            })
            .collect();
        for top in self.tops().values() {
            let arguments = ["info", "--backing-chain", "--output=json", text(top)];
            let chain = run("qemu-img", &arguments);
            let chain: serde_json::Value = serde_json::from_str(&chain).unwrap();
            for layer in chain.as_array().unwrap() {
                needed.insert(PathBuf::from(layer["filename"].as_str().unwrap()));
            }
        }
        let found = std::fs::read_dir(self.dir.path().join("images")).unwrap();
        let found: BTreeSet<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        assert!(
            found.is_subset(&needed),
            "left over: {:?}",
            found.difference(&needed)
        );
    }
}

fn grow_and_fell(seed: u64) {
    let mut bench = Bench::new(seed);
    while bench.made < SNAPSHOTS {
        bench.write();
        bench.take();
        if bench.random.below(3) == 0 {
            bench.write();
            bench.revert();
        }
    }
    for _ in 0..20 {
        bench.write();
        bench.revert();
    }
    let (mut deleted, mut reverted) = (0, 20);
    while !bench.held.is_empty() {
        bench.delete();
        deleted += 1;
        if deleted % 3 == 0 && !bench.held.is_empty() {
            bench.write();
            bench.revert();
            reverted += 1;
        }
    }
    assert!(bench.node.domain_snapshots("g").unwrap().is_empty());
    bench.look_for_leftovers();
    for kind in ["internal", "external", "left out"] {
        assert!(bench.kinds.contains_key(kind), "no disk was {kind}");
    }
    let kinds = &bench.kinds;
    println!(
        "seed {seed}: {SNAPSHOTS} snapshots {kinds:?}, {reverted} reverts and more, contents equal"
    );
}

#[test]
fn trees_of_snapshots_equal_their_mirror() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("CENOTE_SEED") {
        return grow_and_fell(seed);
    }
    for seed in 1..=number("CENOTE_SEEDS").unwrap_or(2) {
        grow_and_fell(seed);
    }
}
