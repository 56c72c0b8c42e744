//! Chain operations, each result compared by qemu-img.

// Helpers outside of test functions unwrap, too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cenote_engine::{
    AfterCommit, CloneSettings, Comparison, ErrorKind, Format, NewBacking, NewVolume, NoProgress,
    Node, NodeOptions, Progress, Resize, VolumeId,
};

const SIZE: u64 = 4 << 20;

struct Setup {
    node: Node,
    images: PathBuf,
    dir: tempfile::TempDir,
}

fn id(name: &str) -> VolumeId {
    VolumeId::new("default", name)
}

fn run(program: &str, arguments: &[&str]) -> std::process::Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} of package qemu-utils: {error}"))
}

fn qemu_img(arguments: &[&str]) {
    let output = run("qemu-img", arguments);
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let node = Node::open(&NodeOptions::in_dir(dir.path())).expect("a fresh node opens");
        let images = dir.path().join("images");
        Setup { node, images, dir }
    }

    /// base <- mid <- top, each with data of its own at several places.
    fn chain() -> Self {
        let s = Setup::new();
        s.node
            .volume_create("default", &NewVolume::new("base", Format::Qcow2, SIZE))
            .unwrap();
        s.write("base", &["write -P 1 0 1M", "write -P 2 3M 64k"]);
        s.node
            .volume_clone_linked(&id("base"), "default", "mid")
            .unwrap();
        s.write("mid", &["write -P 3 512k 1M", "write -z 3M 4k"]);
        s.node
            .volume_clone_linked(&id("mid"), "default", "top")
            .unwrap();
        s.write("top", &["write -P 4 1M 4k", "write -P 5 2M 8k"]);
        s
    }

    fn path(&self, name: &str) -> PathBuf {
        self.images.join(name)
    }

    fn write(&self, name: &str, commands: &[&str]) {
        let path = self.path(name);
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(text(&path));
        assert!(run("qemu-io", &arguments).status.success());
    }

    /// What a volume shows now, kept as a raw file by qemu-img.
    fn keep(&self, name: &str) -> PathBuf {
        let kept = self.dir.path().join(format!("kept-{name}"));
        qemu_img(&[
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            text(&self.path(name)),
            text(&kept),
        ]);
        kept
    }

    fn assert_shows(&self, name: &str, kept: &Path) {
        let path = self.path(name);
        qemu_img(&["check", "-q", text(&path)]);
        qemu_img(&[
            "compare",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            text(&path),
            text(kept),
        ]);
    }

    fn backing(&self, name: &str) -> Option<PathBuf> {
        self.node
            .volume(&id(name))
            .unwrap()
            .backing
            .and_then(|backing| backing.path)
    }
}

#[test]
fn commit_takes_the_layer_out() {
    let s = Setup::chain();
    let (top, mid) = (s.keep("top"), s.keep("mid"));
    s.node
        .volume_commit(&id("mid"), None, AfterCommit::Delete, &NoProgress)
        .unwrap();
    s.assert_shows("top", &top);
    s.assert_shows("base", &mid);
    assert!(!s.path("mid").exists());
    assert_eq!(s.backing("top"), Some(s.path("base")));
    s.node
        .volume_commit(&id("top"), None, AfterCommit::Delete, &NoProgress)
        .unwrap();
    s.assert_shows("base", &top);
    assert_eq!(s.node.volumes("default").unwrap().len(), 1);
}

#[test]
fn commit_reaches_any_lower_layer() {
    let s = Setup::chain();
    let top = s.keep("top");
    let error = s
        .node
        .volume_commit(
            &id("mid"),
            Some(&id("top")),
            AfterCommit::Delete,
            &NoProgress,
        )
        .unwrap_err();
    assert!(error.to_string().contains("not in the chain"), "{error}");
    s.node
        .volume_commit(
            &id("top"),
            Some(&id("base")),
            AfterCommit::Delete,
            &NoProgress,
        )
        .unwrap();
    s.assert_shows("base", &top);
    let left: Vec<_> = s
        .node
        .volumes("default")
        .unwrap()
        .into_iter()
        .map(|v| v.name)
        .collect();
    assert_eq!(left, ["base"]);
}

#[test]
fn commit_can_keep_the_layers() {
    let s = Setup::chain();
    let top = s.keep("top");
    s.node
        .volume_commit(
            &id("top"),
            Some(&id("base")),
            AfterCommit::Keep,
            &NoProgress,
        )
        .unwrap();
    s.assert_shows("base", &top);
    s.assert_shows("top", &top);
}

#[test]
fn commit_under_another_overlay_is_refused() {
    let s = Setup::chain();
    s.node
        .volume_clone_linked(&id("base"), "default", "other")
        .unwrap();
    let (base, other) = (s.keep("base"), s.keep("other"));
    let error = s
        .node
        .volume_commit(&id("mid"), None, AfterCommit::Delete, &NoProgress)
        .unwrap_err();
    assert!(error.to_string().contains("'default/other'"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    s.assert_shows("base", &base);
    s.assert_shows("other", &other);
}

#[test]
fn a_layer_in_the_middle_is_removed_without_loss() {
    let s = Setup::chain();
    s.node
        .volume_clone_linked(&id("mid"), "default", "second")
        .unwrap();
    s.write("second", &["write -P 6 0 4k"]);
    let (top, second, base) = (s.keep("top"), s.keep("second"), s.keep("base"));
    s.node.volume_remove_layer(&id("mid"), &NoProgress).unwrap();
    s.assert_shows("top", &top);
    s.assert_shows("second", &second);
    s.assert_shows("base", &base);
    assert_eq!(s.backing("top"), Some(s.path("base")));
    assert!(!s.path("mid").exists());
    // And the bottom: its overlays stand alone then.
    s.node
        .volume_remove_layer(&id("base"), &NoProgress)
        .unwrap();
    s.assert_shows("top", &top);
    assert_eq!(s.backing("top"), None);
}

#[test]
fn rebase_and_flatten_keep_what_is_shown() {
    let s = Setup::chain();
    let (top, base) = (s.keep("top"), s.keep("base"));
    let below = |name: &str| NewBacking {
        image: name.into(),
        format: None,
    };
    s.node
        .volume_rebase(&id("top"), Some(&below("base")), &NoProgress)
        .unwrap();
    s.assert_shows("top", &top);
    assert_eq!(s.backing("top"), Some(s.path("base")));
    for loops in ["top", "base"] {
        let (volume, onto) = if loops == "top" {
            ("top", "top")
        } else {
            ("base", "top")
        };
        let error = s
            .node
            .volume_rebase(&id(volume), Some(&below(onto)), &NoProgress)
            .unwrap_err();
        assert!(error.to_string().contains("itself"), "{error}");
    }
    s.node.volume_flatten(&id("top"), &NoProgress).unwrap();
    s.assert_shows("top", &top);
    assert_eq!(s.backing("top"), None);
    s.assert_shows("base", &base);
    // An unsafe rebase only changes the name.
    fs::rename(s.path("base"), s.path("moved")).unwrap();
    s.node.pool_refresh("default").unwrap();
    assert!(
        s.node
            .volume(&id("mid"))
            .unwrap()
            .problem
            .unwrap()
            .contains("base")
    );
    s.node
        .volume_rebase_unsafe(&id("mid"), Some(&below("moved")))
        .unwrap();
    assert_eq!(s.backing("mid"), Some(s.path("moved")));
}

#[test]
fn clones_are_whole_and_leave_the_source_alone() {
    let s = Setup::chain();
    let top = s.keep("top");
    let settings = CloneSettings::default();
    let mut same = NewVolume::new("same", Format::Qcow2, 0);
    same.capacity = None;
    s.node
        .volume_clone(&id("top"), "default", &same, &settings, &NoProgress)
        .unwrap();
    s.assert_shows("same", &top);
    assert_eq!(s.backing("same"), None);
    let raw = NewVolume {
        name: "raw".into(),
        format: Format::Raw,
        ..same.clone()
    };
    let made = s
        .node
        .volume_clone(&id("top"), "default", &raw, &settings, &NoProgress)
        .unwrap();
    assert_eq!(fs::read(s.path("raw")).unwrap(), fs::read(&top).unwrap());
    assert!(made.allocation < SIZE, "holes stay holes: {made:?}");
    let packed = NewVolume {
        name: "packed".into(),
        ..same.clone()
    };
    let settings = CloneSettings {
        compress: true,
        ..settings
    };
    s.node
        .volume_clone(&id("raw"), "default", &packed, &settings, &NoProgress)
        .unwrap();
    s.assert_shows("packed", &top);
    let same_content = s
        .node
        .volume_compare(&id("packed"), &id("top"), &NoProgress)
        .unwrap();
    assert_eq!(same_content, Comparison::Identical);
    let small = NewVolume {
        name: "small".into(),
        capacity: Some(SIZE / 2),
        ..same
    };
    let error = s
        .node
        .volume_clone(&id("top"), "default", &small, &settings, &NoProgress)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(!s.path("small").exists());
}

#[test]
fn a_cancelled_clone_leaves_nothing() {
    struct Stop;
    impl Progress for Stop {
        fn update(&self, _done: u64, _total: u64) -> std::ops::ControlFlow<()> {
            std::ops::ControlFlow::Break(())
        }
    }
    let s = Setup::chain();
    let new = NewVolume {
        capacity: None,
        ..NewVolume::new("copy", Format::Raw, 0)
    };
    let settings = CloneSettings::default();
    let error = s
        .node
        .volume_clone(&id("top"), "default", &new, &settings, &Stop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(fs::read_dir(&s.images).unwrap().count(), 3);
}

#[test]
fn resize_grows_and_shrinks_only_with_leave() {
    let s = Setup::new();
    for (name, format) in [("raw", Format::Raw), ("qcow2", Format::Qcow2)] {
        s.node
            .volume_create("default", &NewVolume::new(name, format, SIZE))
            .unwrap();
        let to = |size| Resize {
            size,
            ..Resize::default()
        };
        assert_eq!(
            s.node.volume_resize(&id(name), &to(2 * SIZE)).unwrap(),
            2 * SIZE
        );
        let by = Resize {
            size: SIZE,
            delta: true,
            ..Resize::default()
        };
        assert_eq!(s.node.volume_resize(&id(name), &by).unwrap(), 3 * SIZE);
        let error = s.node.volume_resize(&id(name), &to(SIZE)).unwrap_err();
        assert!(error.hint().unwrap().contains("--shrink"), "{error}");
        assert_eq!(s.node.volume(&id(name)).unwrap().capacity, 3 * SIZE);
        let less = Resize {
            size: SIZE,
            delta: true,
            shrink: true,
            allocate: false,
        };
        assert_eq!(s.node.volume_resize(&id(name), &less).unwrap(), 2 * SIZE);
        for absurd in [u64::MAX, 0] {
            assert!(
                s.node
                    .volume_resize(
                        &id(name),
                        &Resize {
                            shrink: true,
                            ..to(absurd)
                        }
                    )
                    .is_err()
            );
        }
    }
    qemu_img(&["check", "-q", text(&s.path("qcow2"))]);
    s.node
        .volume_clone_linked(&id("qcow2"), "default", "over")
        .unwrap();
    let error = s
        .node
        .volume_resize(
            &id("qcow2"),
            &Resize {
                size: 3 * SIZE,
                ..Resize::default()
            },
        )
        .unwrap_err();
    assert!(error.to_string().contains("'default/over'"), "{error}");
}

/// The sequence of virt-manager's issue 811: an internal snapshot, then an
/// external overlay, then deleting. The base keeps every byte.
#[test]
fn mixed_internal_and_external_snapshots_harm_no_base() {
    let s = Setup::new();
    s.node
        .volume_create("default", &NewVolume::new("vm", Format::Qcow2, SIZE))
        .unwrap();
    s.write("vm", &["write -P 7 0 1M"]);
    s.node.volume_snapshot_create(&id("vm"), "before").unwrap();
    s.write("vm", &["write -P 8 0 512k"]);
    s.node
        .volume_clone_linked(&id("vm"), "default", "overlay")
        .unwrap();
    s.write("overlay", &["write -P 9 1M 64k"]);
    let bytes = fs::read(s.path("vm")).unwrap();
    for refused in [
        s.node.volume_snapshot_delete(&id("vm"), "before"),
        s.node.volume_snapshot_revert(&id("vm"), "before"),
        s.node.volume_snapshot_create(&id("vm"), "after").map(drop),
        s.node.volume_delete(&id("vm")),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(error.to_string().contains("'default/overlay'"), "{error}");
    }
    let error = s
        .node
        .volume_remove_layer(&id("vm"), &NoProgress)
        .unwrap_err();
    assert!(error.to_string().contains("'before'"), "{error}");
    s.node.volume_delete(&id("overlay")).unwrap();
    assert!(
        fs::read(s.path("vm")).unwrap() == bytes,
        "the base is unchanged"
    );
    let names: Vec<_> = s
        .node
        .volume_snapshots(&id("vm"))
        .unwrap()
        .into_iter()
        .map(|snap| snap.name)
        .collect();
    assert_eq!(names, ["before"]);
    s.node.volume_snapshot_revert(&id("vm"), "before").unwrap();
    let listed = run("qemu-img", &["snapshot", "-l", text(&s.path("vm"))]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("before"));
    s.node.volume_snapshot_delete(&id("vm"), "before").unwrap();
    qemu_img(&["check", "-q", text(&s.path("vm"))]);
    let reads = run(
        "qemu-io",
        &["-f", "qcow2", "-c", "read -P 7 0 1M", text(&s.path("vm"))],
    );
    assert!(reads.status.success());
    assert!(!String::from_utf8_lossy(&reads.stdout).contains("failed"));
}

#[test]
fn damage_is_reported_and_repaired() {
    use std::os::unix::fs::FileExt;
    let s = Setup::new();
    s.node
        .volume_create("default", &NewVolume::new("vm", Format::Qcow2, SIZE))
        .unwrap();
    s.write("vm", &["write -P 7 0 1M"]);
    assert!(s.node.volume_check(&id("vm")).unwrap().is_clean());
    // A further cluster at the end that nothing refers to, counted as used.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(s.path("vm"))
        .unwrap();
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 48).unwrap();
    let mut block = [0; 8];
    file.read_exact_at(&mut block, u64::from_be_bytes(table))
        .unwrap();
    let clusters = file.metadata().unwrap().len() / 65536;
    file.set_len((clusters + 1) * 65536).unwrap();
    let entry = u64::from_be_bytes(block) + 2 * clusters;
    file.write_all_at(&1u16.to_be_bytes(), entry).unwrap();
    drop(file);
    let report = s.node.volume_check(&id("vm")).unwrap();
    assert_eq!((report.leaks, report.corruptions), (1, 0), "{report:?}");
    let report = s
        .node
        .volume_repair(&id("vm"), cenote_engine::ImageRepair::Leaks)
        .unwrap();
    assert_eq!(report.leaks_fixed, 1, "{report:?}");
    qemu_img(&["check", "-q", text(&s.path("vm"))]);
    s.node
        .volume_create("default", &NewVolume::new("raw", Format::Raw, SIZE))
        .unwrap();
    assert!(
        s.node
            .volume_check(&id("raw"))
            .unwrap_err()
            .to_string()
            .contains("raw")
    );
}

#[test]
fn an_image_open_in_qemu_is_not_touched() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let s = Setup::chain();
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "qcow2", text(&s.path("top"))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io of package qemu-utils");
    let mut commands = qemu.stdin.take().unwrap();
    writeln!(commands, "length").unwrap();
    let mut line = String::new();
    BufReader::new(qemu.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let resize = Resize {
        size: 2 * SIZE,
        ..Resize::default()
    };
    for refused in [
        s.node.volume_resize(&id("top"), &resize).map(drop),
        s.node.volume_delete(&id("top")),
        s.node.volume_flatten(&id("top"), &NoProgress),
        s.node
            .volume_commit(&id("top"), None, AfterCommit::Delete, &NoProgress),
        s.node.volume_snapshot_create(&id("top"), "x").map(drop),
        s.node.volume_remove_layer(&id("mid"), &NoProgress),
    ] {
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    }
    drop(commands);
    qemu.wait().unwrap();
    s.node.volume_flatten(&id("top"), &NoProgress).unwrap();
}

#[test]
fn wiping_asks_the_node_who_stands_on_a_volume() {
    use cenote_pools::wipe::{Silent, Wiper};
    let s = Setup::chain();
    let journal = s.node.wipe_journal().unwrap();
    let wiper = Wiper::new(&journal, &s.node);
    let kept = s.keep("top");
    let mut request = s.node.wipe_request(&id("base")).unwrap();
    request.best_effort = true;
    let error = wiper.wipe(&request, &Silent).unwrap_err().to_string();
    assert!(
        error.contains("default/mid") && error.contains("default/top"),
        "{error}"
    );
    s.assert_shows("top", &kept);
    let mut request = s.node.wipe_request(&id("top")).unwrap();
    assert_eq!(request.format, Format::Qcow2);
    request.best_effort = true;
    wiper.wipe(&request, &Silent).unwrap();
    qemu_img(&["check", "-q", text(&s.path("top"))]);
    assert_eq!(s.node.volume(&id("top")).unwrap().capacity, SIZE);
}
