//! Pools that are mounted file systems: `fs` on a loop device, `netfs` on a
//! directory that is mounted already. They need root; without it each says so
//! and ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cenote_engine::{BuildMode, ErrorKind, Format, NewVolume, Node, NodeOptions, PoolState};

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounting needs root");
    }
    root
}

fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} of package {package}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A loop device over a sparse file, with whatever is mounted from it taken
/// down when dropped.
struct Loop {
    device: String,
    mount: PathBuf,
}

impl Loop {
    fn new(dir: &Path, mount: PathBuf) -> Self {
        let file = dir.join("device.img");
        fs::File::create(&file)
            .and_then(|file| file.set_len(64 << 20))
            .expect("a sparse file");
        let device = run("losetup", "mount", &["--find", "--show", text(&file)]);
        Loop { device, mount }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mount).output();
        let _ = Command::new("losetup")
            .args(["--detach", &self.device])
            .output();
    }
}

fn fs_pool(device: &str, target: &Path) -> String {
    format!(
        "<pool type='fs'><name>fs</name><source><device path='{device}'/><format type='ext4'/>\
         </source><target><path>{}</path></target></pool>",
        target.display()
    )
}

#[test]
fn a_file_system_pool_is_made_mounted_and_left() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let target = dir.path().join("mnt");
    let device = Loop::new(dir.path(), target.clone());
    let node = Node::open(&NodeOptions::in_dir(dir.path().join("state"))).unwrap();
    node.pool_define(&fs_pool(&device.device, &target)).unwrap();
    node.pool_build("fs", BuildMode::NoOverwrite).unwrap();
    // What is there is not overwritten unless that is asked for.
    let error = node.pool_build("fs", BuildMode::NoOverwrite).unwrap_err();
    assert!(error.to_string().contains("ext4"), "{error}");
    assert!(error.hint().unwrap().contains("--overwrite"));
    node.pool_build("fs", BuildMode::Overwrite).unwrap();
    node.pool_start("fs", None).unwrap();
    let info = node.pool("fs").unwrap();
    assert_eq!(info.state, PoolState::Running);
    assert!(
        info.capacity.unwrap() < 64 << 20,
        "the capacity is the device's"
    );
    let made = node
        .volume_create("fs", &NewVolume::new("disk", Format::Raw, 1 << 20))
        .unwrap();
    assert!(made.path.exists());
    node.pool_stop("fs").unwrap();
    assert!(!made.path.exists(), "it is unmounted");
    node.pool_start("fs", None).unwrap();
    assert!(made.path.exists());
    // Somebody unmounts it behind our back: said, and nothing is forgotten.
    run("umount", "mount", &[text(&target)]);
    assert_eq!(node.pool("fs").unwrap().state, PoolState::Inaccessible);
    let error = node.volumes("fs").unwrap_err();
    assert!(error.to_string().contains("not mounted"), "{error}");
    node.pool_stop("fs").unwrap();
    node.pool_start("fs", None).unwrap();
    assert_eq!(
        node.volumes("fs")
            .unwrap()
            .iter()
            .filter(|v| v.name == "disk")
            .count(),
        1
    );
    // A volume in use keeps the pool mounted, and the error says so.
    let held = fs::File::open(&made.path).unwrap();
    let error = node.pool_stop("fs").unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    assert_eq!(node.pool("fs").unwrap().state, PoolState::Running);
    drop(held);
    node.pool_stop("fs").unwrap();
    node.pool_delete("fs").unwrap();
    assert!(!target.exists());
}

#[test]
fn a_mounted_device_is_not_formatted() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let elsewhere = dir.path().join("elsewhere");
    let device = Loop::new(dir.path(), elsewhere.clone());
    run("mkfs.ext4", "e2fsprogs", &["-q", &device.device]);
    fs::create_dir(&elsewhere).unwrap();
    run("mount", "mount", &[&device.device, text(&elsewhere)]);
    fs::write(elsewhere.join("precious"), "x").unwrap();
    let node = Node::open(&NodeOptions::in_dir(dir.path().join("state"))).unwrap();
    node.pool_define(&fs_pool(&device.device, &dir.path().join("mnt")))
        .unwrap();
    let error = node.pool_build("fs", BuildMode::Overwrite).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(elsewhere.join("precious").exists());
}

#[test]
fn a_network_pool_uses_what_is_mounted_and_leaves_it_mounted() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let target = dir.path().join("share");
    fs::create_dir(&target).unwrap();
    let node = Node::open(&NodeOptions::in_dir(dir.path().join("state"))).unwrap();
    let xml = |format: &str| {
        format!(
            "<pool type='netfs'><name>share</name><source><host name='storage.example'/>\
             <dir path='/export'/><format type='{format}'/></source>\
             <target><path>{}</path></target></pool>",
            target.display()
        )
    };
    node.pool_define(&xml("cifs")).unwrap();
    let error = node.pool_start("share", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.hint().unwrap().contains("mount it at"), "{error}");
    run(
        "mount",
        "mount",
        &["-t", "tmpfs", "-o", "size=8m", "share", text(&target)],
    );
    let started = node.pool_start("share", None);
    let state = node.pool("share").map(|info| info.state);
    let made = node.volume_create("share", &NewVolume::new("disk", Format::Raw, 1 << 20));
    let stopped = node.pool_stop("share");
    let still_there = target.join("disk").exists();
    run("umount", "mount", &[text(&target)]);
    started.unwrap();
    assert_eq!(state.unwrap(), PoolState::Running);
    made.unwrap();
    stopped.unwrap();
    assert!(still_there, "what the user mounted stays mounted");
}

/// Not a test: starts the pool in a process that dies.
#[test]
#[ignore = "run by the kill-point test in a process of its own"]
fn child() {
    let variable = |name: &str| std::env::var(name).expect("set by the parent");
    let node = Node::open(&NodeOptions::in_dir(variable("KILL_POINT_DIR"))).expect("open");
    cenote_pools::crash::arm(variable("KILL_POINT").parse().expect("a number"));
    node.pool_start("fs", None).expect("start");
}

/// What a process that died in the middle of starting a pool mounted is
/// unmounted by stopping it.
#[test]
fn an_interrupted_start_is_finished_with_its_mount() {
    use std::os::unix::process::ExitStatusExt;
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (target, state) = (dir.path().join("mnt"), dir.path().join("state"));
    let device = Loop::new(dir.path(), target.clone());
    run("mkfs.ext4", "e2fsprogs", &["-q", &device.device]);
    fs::create_dir(&target).unwrap();
    let is_mounted = || {
        fs::read_to_string("/proc/self/mounts")
            .expect("the mounts")
            .contains(text(&target))
    };
    Node::open(&NodeOptions::in_dir(&state))
        .unwrap()
        .pool_define(&fs_pool(&device.device, &target))
        .unwrap();
    for point in 1.. {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored"])
            .env("KILL_POINT_DIR", &state)
            .env("KILL_POINT", point.to_string())
            .output()
            .unwrap()
            .status;
        let node = Node::open(&NodeOptions::in_dir(&state)).unwrap();
        assert_eq!(
            node.pool("fs").unwrap().state,
            PoolState::Running,
            "point {point}"
        );
        assert!(is_mounted(), "point {point}");
        node.pool_stop("fs").unwrap();
        assert!(!is_mounted(), "point {point}");
        if status.signal() != Some(9) {
            assert!(status.success());
            assert!(point > 2, "there are kill points in starting a pool");
            break;
        }
    }
}
