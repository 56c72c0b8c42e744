//! Logical pools on a real volume group. Needs root, lvm2 and device-mapper:
//! `cargo xtask lab --tests cenote-engine -- lab_lvm --ignored`.

use std::fs;
use std::path::Path;
use std::process::Command;

use cenote_engine::{
    BuildMode, ErrorKind, Format, NewVolume, NoProgress, Node, NodeOptions, Transfer, VolumeId,
    VolumeKind,
};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

struct Loop(String);

impl Loop {
    fn new(dir: &Path, name: &str) -> Self {
        let file = dir.join(name);
        fs::File::create(&file)
            .and_then(|file| file.set_len(256 << 20))
            .expect("a sparse file");
        Loop(run(
            "losetup",
            &["--find", "--show", file.to_str().expect("UTF-8")],
        ))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}

#[test]
#[ignore = "needs device-mapper: run in the lab"]
fn life_of_a_logical_pool() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (
        Loop::new(dir.path(), "first"),
        Loop::new(dir.path(), "second"),
    );
    let node = Node::open(&NodeOptions::in_dir(dir.path().join("state"))).unwrap();
    let xml = format!(
        "<pool type='logical'><name>lvm</name><source><device path='{}'/><device path='{}'/>\
         <name>cenote-test</name></source></pool>",
        first.0, second.0
    );
    node.pool_define(&xml).unwrap();
    let error = node.pool_start("lvm", None).unwrap_err();
    assert!(error.hint().unwrap().contains("pool-build lvm"), "{error}");
    node.pool_build("lvm", BuildMode::NoOverwrite).unwrap();
    assert!(
        node.pool_build("lvm", BuildMode::NoOverwrite).is_err(),
        "the devices are not blank"
    );
    node.pool_start("lvm", None).unwrap();
    let info = node.pool("lvm").unwrap();
    assert!(info.capacity.unwrap() > 400 << 20, "{info:?}");

    let made = node
        .volume_create("lvm", &NewVolume::new("disk", Format::Raw, 10 << 20))
        .unwrap();
    assert_eq!(
        (made.kind, made.capacity),
        (VolumeKind::Block, 12 << 20),
        "whole extents"
    );
    assert_eq!(made.path, Path::new("/dev/cenote-test/disk"));
    let id = VolumeId::new("lvm", "disk");
    assert_eq!(
        node.resolve_volume("/dev/cenote-test/disk", None).unwrap(),
        id
    );
    assert_eq!(
        run(
            "lvs",
            &["--noheadings", "-o", "lv_tags", "cenote-test/disk"]
        ),
        ""
    );
    let again = node.volume_create("lvm", &NewVolume::new("disk", Format::Raw, 1 << 20));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
    let too_large = node.volume_create("lvm", &NewVolume::new("huge", Format::Raw, 1 << 40));
    assert_eq!(too_large.unwrap_err().kind(), ErrorKind::Host);
    let qcow2 = node.volume_create("lvm", &NewVolume::new("image", Format::Qcow2, 1 << 20));
    assert_eq!(qcow2.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(node.volumes("lvm").unwrap().len(), 1);

    let content: Vec<u8> = (0..5 << 20).map(|i| (i % 251) as u8).collect();
    let source = dir.path().join("source");
    fs::write(&source, &content).unwrap();
    let mut file = fs::File::open(&source).unwrap();
    node.volume_upload(&id, &mut file, &Transfer::default(), &NoProgress)
        .unwrap();
    let target = dir.path().join("target");
    let mut out = fs::File::create(&target).unwrap();
    let part = Transfer {
        length: Some(content.len() as u64),
        ..Transfer::default()
    };
    node.volume_download(&id, &mut out, &part, &NoProgress)
        .unwrap();
    assert!(fs::read(&target).unwrap() == content);

    let mount = dir.path().join("mnt");
    fs::create_dir(&mount).unwrap();
    run("mkfs.ext4", &["-q", "/dev/cenote-test/disk"]);
    run("mount", &["/dev/cenote-test/disk", mount.to_str().unwrap()]);
    let error = node.volume_delete(&id).unwrap_err();
    run("umount", &[mount.to_str().unwrap()]);
    assert!(error.to_string().contains("in use"), "{error}");

    node.pool_stop("lvm").unwrap();
    assert!(
        node.pool_delete("lvm")
            .unwrap_err()
            .to_string()
            .contains("not empty")
    );
    node.pool_start("lvm", None).unwrap();
    node.volume_delete(&id).unwrap();
    assert!(node.volumes("lvm").unwrap().is_empty());
    node.pool_stop("lvm").unwrap();
    node.pool_delete("lvm").unwrap();
    let groups = run("vgs", &["--noheadings", "-o", "vg_name"]);
    assert!(!groups.contains("cenote-test"), "{groups}");
    node.pool_undefine("lvm").unwrap();
}
