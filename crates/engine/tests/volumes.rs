//! Volumes of directory pools.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cenote_engine::{
    ErrorKind, Format, FormatOrigin, NewVolume, NoProgress, Node, NodeOptions, Transfer, VolumeId,
    VolumeKind,
};

struct Setup {
    node: Node,
    images: PathBuf,
    dir: tempfile::TempDir,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::open(&NodeOptions::in_dir(dir.path())).expect("a fresh node opens");
    let images = dir.path().join("images");
    Setup { node, images, dir }
}

fn id(name: &str) -> VolumeId {
    VolumeId::new("default", name)
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img of package qemu-utils");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn raw_volumes_are_sparse_or_preallocated_as_asked() {
    let s = setup();
    let mut new = NewVolume::new("sparse", Format::Raw, 64 << 20);
    new.allocation = Some(0);
    let info = s.node.volume_create("default", &new).unwrap();
    assert_eq!(
        (info.capacity, info.format_origin),
        (64 << 20, FormatOrigin::Created)
    );
    assert!(info.allocation < 1 << 20, "{info:?}");
    assert_eq!(info.mode, 0o600);
    let new = NewVolume::new("full", Format::Raw, 8 << 20);
    let info = s.node.volume_create("default", &new).unwrap();
    assert!(info.allocation >= 8 << 20, "{info:?}");
    assert_eq!(info.key, text(&s.images.join("full")));
}

#[test]
fn nothing_is_overwritten() {
    let s = setup();
    fs::write(s.images.join("taken"), "precious").unwrap();
    let new = NewVolume::new("taken", Format::Raw, 1 << 20);
    let error = s.node.volume_create("default", &new).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    symlink("/nonexistent", s.images.join("dangling")).unwrap();
    let new = NewVolume::new("dangling", Format::Raw, 1 << 20);
    let error = s.node.volume_create("default", &new).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert_eq!(fs::read(s.images.join("taken")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(&s.images).unwrap().count(), 2);
}

#[test]
fn bad_names_and_sizes_are_refused() {
    let s = setup();
    for name in ["a/b", "..", "a\nb", "", &"x".repeat(300)] {
        let new = NewVolume::new(name, Format::Raw, 1 << 20);
        let error = s.node.volume_create("default", &new).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name:?}: {error}");
    }
    let new = NewVolume::new("huge", Format::Raw, u64::MAX);
    assert!(s.node.volume_create("default", &new).is_err());
    assert_eq!(fs::read_dir(&s.images).unwrap().count(), 0);
}

#[test]
fn names_are_resolved_however_they_are_written() {
    let s = setup();
    let second = s.dir.path().join("second");
    let xml = format!(
        "<pool type='dir'><name>second</name><target><path>{}</path></target></pool>",
        second.display()
    );
    s.node.pool_define(&xml).unwrap();
    s.node
        .pool_start("second", Some(Default::default()))
        .unwrap();
    for (pool, name) in [("default", "only"), ("default", "both"), ("second", "both")] {
        let new = NewVolume::new(name, Format::Raw, 4096);
        s.node.volume_create(pool, &new).unwrap();
    }
    let path = s.images.join("only");
    for spelled in [
        "only",
        "default/only",
        text(&path),
        text(&s.images.join("../images/only")),
    ] {
        assert_eq!(
            s.node.resolve_volume(spelled, None).unwrap(),
            id("only"),
            "{spelled}"
        );
    }
    for spelled in ["only", "default/only", text(&path)] {
        let found = s.node.resolve_volume(spelled, Some("default")).unwrap();
        assert_eq!(found, id("only"), "{spelled}");
    }
    let error = s.node.resolve_volume("both", None).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("'default/both'") && message.contains("'second/both'"),
        "{message}"
    );
    assert_eq!(
        s.node.resolve_volume("both", Some("second")).unwrap().pool,
        "second"
    );
    for missing in ["none", "default/none", "/nonexistent/file"] {
        let error = s.node.resolve_volume(missing, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{missing}: {error}");
    }
    // A stopped pool's volumes are not meant by a bare name.
    s.node.pool_stop("second").unwrap();
    assert_eq!(s.node.resolve_volume("both", None).unwrap(), id("both"));
}

#[test]
fn foreign_files_are_listed_and_their_format_is_fixed_at_first_sight() {
    let s = setup();
    let path = |name: &str| s.images.join(name);
    fs::write(path("plain"), [1; 4096]).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&path("alone.qcow2")),
        "16M",
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&path("alone.qcow2")),
        "-F",
        "qcow2",
        text(&path("overlay.qcow2")),
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "vmdk",
        text(&path("foreign.vmdk")),
        "16M",
    ]);
    fs::create_dir(path("directory")).unwrap();
    let refresh = s.node.pool_refresh("default").unwrap();
    assert_eq!(refresh.volumes, 5);
    assert_eq!(refresh.adopted.len(), 2, "{refresh:?}");
    let format = |name: &str| {
        let info = s.node.volume(&id(name)).unwrap();
        (info.format, info.format_origin)
    };
    assert_eq!(format("plain"), ("raw".into(), FormatOrigin::Adopted));
    assert_eq!(
        format("alone.qcow2"),
        ("qcow2".into(), FormatOrigin::Adopted)
    );
    assert_eq!(
        format("overlay.qcow2"),
        ("qcow2".into(), FormatOrigin::Probed)
    );
    assert_eq!(format("foreign.vmdk").0, "vmdk");
    assert_eq!(
        s.node.volume(&id("directory")).unwrap().kind,
        VolumeKind::Dir
    );
    assert_eq!(
        s.node.volume(&id("alone.qcow2")).unwrap().capacity,
        16 << 20
    );
    let overlay = s.node.volume(&id("overlay.qcow2")).unwrap();
    assert_eq!(
        overlay.backing.as_ref().unwrap().path.as_deref(),
        Some(&*path("alone.qcow2"))
    );
    let error = s.node.trusted_format(&overlay).unwrap_err();
    assert!(
        error
            .hint()
            .unwrap()
            .contains("vol-set-format default/overlay.qcow2 qcow2")
    );
    s.node
        .volume_set_format(&id("overlay.qcow2"), Format::Qcow2)
        .unwrap();
    assert_eq!(
        format("overlay.qcow2"),
        ("qcow2".into(), FormatOrigin::Declared)
    );
    let vmdk = s.node.volume(&id("foreign.vmdk")).unwrap();
    assert_eq!(
        s.node.trusted_format(&vmdk).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

/// A guest that writes an image header into its raw disk gains nothing.
#[test]
fn a_header_written_by_a_guest_does_not_change_the_format() {
    let s = setup();
    let secret = s.dir.path().join("secret");
    fs::write(&secret, "not for guests").unwrap();
    let evil = s.dir.path().join("evil.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        text(&secret),
        "-F",
        "raw",
        text(&evil),
        "1M",
    ]);
    let new = NewVolume::new("created", Format::Raw, 1 << 20);
    s.node.volume_create("default", &new).unwrap();
    fs::write(s.images.join("adopted"), vec![0; 1 << 20]).unwrap();
    s.node.pool_refresh("default").unwrap();
    for name in ["created", "adopted"] {
        use std::os::unix::fs::FileExt;
        let disk = File::options()
            .write(true)
            .open(s.images.join(name))
            .unwrap();
        disk.write_all_at(&fs::read(&evil).unwrap(), 0).unwrap();
        s.node.pool_refresh("default").unwrap();
        let info = s.node.volume(&id(name)).unwrap();
        assert_eq!(
            (info.format.as_str(), info.backing.as_ref()),
            ("raw", None),
            "{name}"
        );
        assert_eq!(s.node.trusted_format(&info).unwrap(), Format::Raw);
    }
    // The same bytes uploaded into a qcow2 volume are not trusted either.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&s.images.join("image.qcow2")),
        "1M",
    ]);
    s.node.pool_refresh("default").unwrap();
    let mut source = File::open(&evil).unwrap();
    let volume = id("image.qcow2");
    s.node
        .volume_upload(&volume, &mut source, &Transfer::default(), &NoProgress)
        .unwrap();
    let info = s.node.volume(&volume).unwrap();
    assert_eq!(info.format_origin, FormatOrigin::Probed);
    assert!(s.node.trusted_format(&info).is_err());
}

#[test]
fn links_that_leave_the_pool_are_not_volumes() {
    let s = setup();
    let outside = s.dir.path().join("outside");
    fs::write(&outside, [0; 512]).unwrap();
    symlink(&outside, s.images.join("out")).unwrap();
    fs::write(s.images.join("inside"), [0; 512]).unwrap();
    symlink(s.images.join("inside"), s.images.join("in")).unwrap();
    let refresh = s.node.pool_refresh("default").unwrap();
    assert_eq!(refresh.volumes, 2);
    assert_eq!(refresh.skipped.len(), 1);
    assert!(
        refresh.skipped[0].1.contains("leaves the pool"),
        "{refresh:?}"
    );
    assert_eq!(
        s.node.volume(&id("out")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn what_backs_another_or_is_in_use_is_not_deleted() {
    let s = setup();
    let path = |name: &str| s.images.join(name);
    qemu_img(&["create", "-q", "-f", "qcow2", text(&path("base")), "1M"]);
    for (over, under) in [("middle", "base"), ("top", "middle")] {
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            under,
            "-F",
            "qcow2",
            text(&path(over)),
        ]);
    }
    let error = s.node.volume_delete(&id("base")).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("'default/middle'") && message.contains("'default/top'"),
        "{message}"
    );
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    // A hard link is the same file under another name.
    fs::hard_link(path("base"), path("alias")).unwrap();
    assert!(s.node.volume_delete(&id("alias")).is_err());
    let lock_holder = File::open(path("top")).unwrap();
    let lock = cenote_image::lock::FileLock::acquire(
        &lock_holder,
        &path("top"),
        cenote_image::LockPolicy::Shared,
    )
    .unwrap();
    let error = s.node.volume_delete(&id("top")).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    drop(lock);
    drop(lock_holder);
    for name in ["top", "middle"] {
        s.node.volume_delete(&id(name)).unwrap();
        assert!(!path(name).exists());
    }
}

#[test]
fn users_the_engine_is_told_about_keep_a_volume() {
    struct Domain(PathBuf);
    impl cenote_engine::Usage for Domain {
        fn users(&self, path: &Path) -> Vec<String> {
            if path == self.0 {
                vec!["domain 'web'".into()]
            } else {
                Vec::new()
            }
        }
    }
    let mut s = setup();
    s.node
        .volume_create("default", &NewVolume::new("disk", Format::Raw, 512))
        .unwrap();
    let real = fs::canonicalize(s.images.join("disk")).unwrap();
    s.node.add_usage(std::sync::Arc::new(Domain(real)));
    let error = s.node.volume_delete(&id("disk")).unwrap_err();
    assert!(error.to_string().contains("domain 'web'"), "{error}");
}

#[test]
fn uploads_and_downloads_compare_equal() {
    let s = setup();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    let source = s.dir.path().join("source");
    fs::write(&source, &content).unwrap();
    s.node
        .volume_create("default", &NewVolume::new("disk", Format::Raw, 4 << 20))
        .unwrap();
    let transfer = Transfer {
        offset: 1000,
        ..Transfer::default()
    };
    let moved = s
        .node
        .volume_upload(
            &id("disk"),
            &mut File::open(&source).unwrap(),
            &transfer,
            &NoProgress,
        )
        .unwrap();
    assert_eq!(moved, content.len() as u64);
    let target = s.dir.path().join("target");
    let mut file = File::create(&target).unwrap();
    let transfer = Transfer {
        length: Some(moved),
        ..transfer
    };
    s.node
        .volume_download(&id("disk"), &mut file, &transfer, &NoProgress)
        .unwrap();
    assert!(fs::read(&target).unwrap() == content);
    let too_large = Transfer {
        offset: 2 << 20,
        ..Transfer::default()
    };
    let error = s
        .node
        .volume_upload(
            &id("disk"),
            &mut File::open(&source).unwrap(),
            &too_large,
            &NoProgress,
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(s.node.jobs().unwrap().iter().any(|job| job.error.is_some()));
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting a small file system needs root");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "none"])
            .arg(dir.path())
            .status()
            .expect("mount of package mount");
        assert!(status.success());
        Some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let s = setup();
    let Some(disk) = SmallDisk::new() else { return };
    let xml = format!(
        "<pool type='dir'><name>small</name><target><path>{}</path></target></pool>",
        disk.0.path().display()
    );
    s.node.pool_create(&xml, None).unwrap();
    let new = NewVolume::new("large", Format::Raw, 64 << 20);
    let error = s.node.volume_create("small", &new).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Host, "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(error.to_string().contains(text(disk.0.path())), "{error}");
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);
    // And the retry with a size that fits works.
    let new = NewVolume::new("large", Format::Raw, 1 << 20);
    let info = s.node.volume_create("small", &new).unwrap();
    assert_eq!(fs::metadata(info.path).unwrap().size(), 1 << 20);
    s.node.pool_stop("small").unwrap();
}
