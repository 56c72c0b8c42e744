//! Every operation that needs room, at every fill level of its disk: it works, or says that there
//! is no space left and loses nothing; with room again it works.

// Helpers outside of test functions unwrap, too.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use cenote_engine::{
    AfterCommit, CloneSettings, Format, NewBacking, NewVolume, NoProgress, Node, NodeOptions,
    Resize, Result, Transfer, VolumeId,
};

/// Size of each volume, and of the file system that they are on.
const SIZE: u64 = 4 << 20;
const DISK: &str = "size=32m";

/// Bytes left on the disk when an operation begins. Some are less than a cluster, some end it at
/// its first, its middle or its last one, and with the most it has room.
const LEFT: [u64; 12] = [
    0,
    4 << 10,
    60 << 10,
    64 << 10,
    128 << 10,
    192 << 10,
    256 << 10,
    384 << 10,
    640 << 10,
    1 << 20,
    2 << 20,
    12 << 20,
];

/// A small file system, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting a small file system needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "none"])
            .arg(dir.path())
            .status();
        assert!(mount.expect("mount of package mount").success());
        Some(Self(dir))
    }

    /// Takes all room but `left` bytes, until the file is removed.
    fn fill(&self, left: u64) {
        let stat = rustix::fs::statvfs(self.0.path()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let filler = File::create(self.filler()).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        if free > left {
            rustix::fs::fallocate(&filler, flags, 0, free - left).unwrap();
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn id(name: &str) -> VolumeId {
    VolumeId::new("small", name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} of package qemu-utils: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// base <- mid <- top on a disk of their own.
struct Chain {
    node: Node,
    dir: tempfile::TempDir,
    disk: Disk,
}

const VOLUMES: [&str; 3] = ["base", "mid", "top"];

impl Chain {
    fn new() -> Option<Self> {
        let disk = Disk::new()?;
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
        let xml = format!(
            "<pool type='dir'><name>small</name><target><path>{}</path></target></pool>",
            disk.0.path().display()
        );
        node.pool_create(&xml, None).unwrap();
        let chain = Self { node, dir, disk };
        let node = &chain.node;
        node.volume_create("small", &NewVolume::new("base", Format::Qcow2, SIZE))
            .unwrap();
        chain.write("base", &["write -P 1 0 1M", "write -P 2 3M 64k"]);
        node.volume_clone_linked(&id("base"), "small", "mid")
            .unwrap();
        chain.write("mid", &["write -P 3 512k 1M", "write -z 3M 4k"]);
        node.volume_clone_linked(&id("mid"), "small", "top")
            .unwrap();
        chain.write("top", &["write -P 4 1M 4k", "write -P 5 2M 300k"]);
        for name in VOLUMES {
            let kept = text(&chain.kept(name)).to_owned();
            let from = chain.path(name);
            let convert = ["convert", "-f", "qcow2", "-O", "raw", text(&from), &kept];
            assert_eq!(run("qemu-img", &convert).0, Some(0));
        }
        Some(chain)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.0.path().join(name)
    }

    fn kept(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("kept-{name}"))
    }

    fn write(&self, name: &str, commands: &[&str]) {
        let path = self.path(name);
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(text(&path));
        let (code, said) = run("qemu-io", &arguments);
        assert_eq!(code, Some(0), "{said}");
    }

    /// The volume is sound, or has clusters too many at the worst where an operation failed, and
    /// shows what it showed at first.
    fn assert_shows(&self, name: &str, failed: bool) {
        let path = self.path(name);
        let (code, said) = run("qemu-img", &["check", text(&path)]);
        const LEAKS: i32 = 3;
        assert!(code == Some(0) || failed && code == Some(LEAKS), "{said}");
        let kept = self.kept(name);
        // A larger one shows zeroes beyond the end of what was kept.
        let words = ["compare", "-f", "qcow2", "-F", "raw"];
        let words = [&words[..], &[text(&path), text(&kept)]].concat();
        let (code, said) = run("qemu-img", &words);
        assert_eq!(code, Some(0), "{name}: {said}");
    }
}

/// Tries `operate` at every fill level. `same` are the volumes that show what they showed in
/// between, `after` those that do when it has worked. Gives how often there was no space.
fn sweep(
    same: &[&str],
    after: &[&str],
    made: Option<&str>,
    operate: impl Fn(&Chain) -> Result<()>,
) -> usize {
    let mut refused = 0;
    for left in LEFT {
        let Some(chain) = Chain::new() else { return 1 };
        chain.disk.fill(left);
        let outcome = operate(&chain);
        if let Err(error) = &outcome {
            refused += 1;
            let said = error.to_string();
            assert!(said.contains("no space left"), "{left} bytes left: {said}");
            let disk = text(chain.disk.0.path());
            assert!(said.contains(disk), "{left} bytes left: {said}");
            same.iter().for_each(|name| chain.assert_shows(name, true));
            if let Some(made) = made {
                assert!(!chain.path(made).exists(), "{left} bytes left");
            }
            fs::remove_file(chain.disk.filler()).unwrap();
            operate(&chain).unwrap_or_else(|error| panic!("{left} bytes left, then room: {error}"));
        }
        for name in after {
            chain.assert_shows(name, outcome.is_err());
        }
        assert_eq!(chain.node.pool("small").unwrap().problem, None);
    }
    refused
}

#[test]
fn commit() {
    // The layer that is written into takes over what the one above has, as far as it came.
    let refused = sweep(&["base", "top"], &["base", "top"], None, |chain| {
        chain
            .node
            .volume_commit(&id("top"), None, AfterCommit::Keep, &NoProgress)
    });
    assert!(refused > 0);
}

#[test]
fn flatten() {
    let refused = sweep(&VOLUMES, &VOLUMES, None, |chain| {
        chain.node.volume_flatten(&id("top"), &NoProgress)
    });
    assert!(refused > 0);
}

#[test]
fn rebase() {
    let refused = sweep(&VOLUMES, &VOLUMES, None, |chain| {
        let base = NewBacking {
            image: "base".into(),
            format: None,
        };
        chain
            .node
            .volume_rebase(&id("top"), Some(&base), &NoProgress)
    });
    assert!(refused > 0);
}

#[test]
fn remove_a_layer() {
    let refused = sweep(&VOLUMES, &["base", "top"], None, |chain| {
        chain.node.volume_remove_layer(&id("mid"), &NoProgress)
    });
    assert!(refused > 0);
}

#[test]
fn clone() {
    for format in [Format::Qcow2, Format::Raw] {
        let refused = sweep(&VOLUMES, &VOLUMES, Some("copy"), |chain| {
            let mut new = NewVolume::new("copy", format, 0);
            new.capacity = None;
            let settings = CloneSettings::default();
            let node = &chain.node;
            let made = node.volume_clone(&id("top"), "small", &new, &settings, &NoProgress);
            made.map(drop)
        });
        assert!(refused > 0);
    }
}

#[test]
fn linked_clone() {
    let refused = sweep(&VOLUMES, &VOLUMES, Some("copy"), |chain| {
        let made = chain.node.volume_clone_linked(&id("top"), "small", "copy");
        made.map(drop)
    });
    assert!(refused > 0);
}

#[test]
fn internal_snapshot_and_revert() {
    let refused = sweep(&VOLUMES, &VOLUMES, None, |chain| {
        let made = chain.node.volume_snapshot_create(&id("top"), "one");
        made.map(drop)
    });
    assert!(refused > 0);
    sweep(&VOLUMES, &VOLUMES, None, |chain| {
        let node = &chain.node;
        if node.volume_snapshots(&id("top"))?.is_empty() {
            node.volume_snapshot_create(&id("top"), "one")?;
        }
        node.volume_snapshot_revert(&id("top"), "one")
    });
}

#[test]
fn resize() {
    let refused = sweep(&VOLUMES, &VOLUMES, None, |chain| {
        // So large that the table of tables has to move.
        let resize = Resize {
            size: 1 << 40,
            delta: false,
            shrink: false,
            allocate: false,
        };
        chain.node.volume_resize(&id("top"), &resize).map(drop)
    });
    assert!(refused > 0);
}

#[test]
fn upload() {
    let refused = sweep(&VOLUMES, &VOLUMES, None, |chain| {
        let node = &chain.node;
        if node.volume(&id("disk")).is_err() {
            node.volume_create("small", &NewVolume::new("disk", Format::Raw, SIZE))?;
        }
        let mut source = File::open(chain.kept("mid")).unwrap();
        let transfer = Transfer::default();
        node.volume_upload(&id("disk"), &mut source, &transfer, &NoProgress)?;
        assert!(fs::read(chain.path("disk")).unwrap() == fs::read(chain.kept("mid")).unwrap());
        Ok(())
    });
    assert!(refused > 0);
}
