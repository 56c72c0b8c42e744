//! qcow2 volumes, checked with qemu-img; documents, checked with libvirt's
//! own tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cenote_engine::{
    Compression, ErrorKind, Format, FormatOrigin, NewBacking, NewVolume, Node, NodeOptions,
    Preallocation, VolumeId,
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

fn run(program: &str, package: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} of package {package}: {error}"))
}

fn qemu_img(arguments: &[&str]) -> String {
    let output = run("qemu-img", "qemu-utils", arguments);
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn info(path: &Path) -> serde_json::Value {
    let text = qemu_img(&["info", "--output=json", text(path)]);
    serde_json::from_str(&text).expect("qemu-img prints JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn options_reach_the_image() {
    let s = setup();
    let mut new = NewVolume::new("a.qcow2", Format::Qcow2, 64 << 20);
    new.qcow2.cluster_size = Some(4096);
    new.qcow2.refcount_bits = Some(8);
    new.qcow2.lazy_refcounts = true;
    new.qcow2.compression = Some(Compression::Zstd);
    let made = s.node.volume_create("default", &new).unwrap();
    assert_eq!(
        (made.format.as_str(), made.format_origin),
        ("qcow2", FormatOrigin::Created)
    );
    assert_eq!(made.capacity, 64 << 20);
    let info = info(&made.path);
    let data = &info["format-specific"]["data"];
    assert_eq!(info["virtual-size"], 64 << 20);
    assert_eq!(info["cluster-size"], 4096);
    assert_eq!(data["refcount-bits"], 8);
    assert_eq!(data["lazy-refcounts"], true);
    assert_eq!(data["compression-type"], "zstd");
    qemu_img(&["check", text(&made.path)]);

    let mut new = NewVolume::new("old.qcow2", Format::Qcow2, 1 << 20);
    new.qcow2.version_2 = true;
    let made = s.node.volume_create("default", &new).unwrap();
    assert_eq!(
        self::info(&made.path)["format-specific"]["data"]["compat"],
        "0.10"
    );

    let mut new = NewVolume::new("full.qcow2", Format::Qcow2, 8 << 20);
    new.preallocation = Some(Preallocation::Falloc);
    let made = s.node.volume_create("default", &new).unwrap();
    assert!(made.allocation >= 8 << 20);
    qemu_img(&["check", text(&made.path)]);
}

#[test]
fn options_that_contradict_are_refused_and_leave_nothing() {
    let s = setup();
    let mut odd_cluster = NewVolume::new("x", Format::Qcow2, 1 << 20);
    odd_cluster.qcow2.cluster_size = Some(5000);
    let mut raw_cluster = NewVolume::new("x", Format::Raw, 1 << 20);
    raw_cluster.qcow2.cluster_size = Some(4096);
    let mut partial = NewVolume::new("x", Format::Qcow2, 1 << 20);
    partial.allocation = Some(4096);
    let mut lazy_v2 = NewVolume::new("x", Format::Qcow2, 1 << 20);
    (lazy_v2.qcow2.version_2, lazy_v2.qcow2.lazy_refcounts) = (true, true);
    let mut both = NewVolume::new("x", Format::Raw, 1 << 20);
    (both.allocation, both.preallocation) = (Some(0), Some(Preallocation::Full));
    for new in [odd_cluster, raw_cluster, partial, lazy_v2, both] {
        let error = s.node.volume_create("default", &new).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let huge = NewVolume::new("x", Format::Qcow2, u64::MAX);
    assert!(s.node.volume_create("default", &huge).is_err());
    assert_eq!(fs::read_dir(&s.images).unwrap().count(), 0);
    assert!(s.node.volumes("default").unwrap().is_empty());
}

#[test]
fn overlays_show_their_base_and_keep_it() {
    let s = setup();
    s.node
        .volume_create("default", &NewVolume::new("base", Format::Qcow2, 1 << 20))
        .unwrap();
    let linked = s
        .node
        .volume_clone_linked(&id("base"), "default", "clone")
        .unwrap();
    assert_eq!(linked.capacity, 1 << 20);
    assert_eq!(
        linked.backing.as_ref().unwrap().path.as_deref(),
        Some(&*s.images.join("base"))
    );
    let info = info(&linked.path);
    assert_eq!(info["backing-filename-format"], "qcow2");
    let listed = s.node.volumes("default").unwrap();
    let clone = listed.iter().find(|info| info.name == "clone").unwrap();
    assert_eq!(clone.backing.as_ref().unwrap().volume, Some(id("base")));
    assert_eq!(
        s.node.volume_dependents(&id("base")).unwrap(),
        [id("clone")]
    );
    let error = s.node.volume_delete(&id("base")).unwrap_err();
    assert!(error.to_string().contains("'default/clone'"), "{error}");
    // A raw base keeps its format in the overlay's header.
    s.node
        .volume_create("default", &NewVolume::new("disk", Format::Raw, 1 << 20))
        .unwrap();
    let over_raw = s
        .node
        .volume_clone_linked(&id("disk"), "default", "over-raw")
        .unwrap();
    assert_eq!(self::info(&over_raw.path)["backing-filename-format"], "raw");
}

#[test]
fn backing_images_outside_the_pools_need_leave() {
    let s = setup();
    let outside = s.dir.path().join("outside.raw");
    fs::write(&outside, vec![1; 1 << 20]).unwrap();
    let backing = |format| NewBacking {
        image: text(&outside).to_owned(),
        format,
    };
    let no_format = NewVolume::overlay("x", backing(None));
    let error = s.node.volume_create("default", &no_format).unwrap_err();
    assert!(error.to_string().contains("never guessed"), "{error}");
    let new = NewVolume::overlay("x", backing(Some(Format::Raw)));
    let error = s.node.volume_create("default", &new).unwrap_err();
    assert!(error.to_string().contains("outside"), "{error}");
    assert!(!error.to_string().contains(".cenote-"), "{error}");
    assert_eq!(fs::read_dir(&s.images).unwrap().count(), 0);
    let mut options = NodeOptions::in_dir(s.dir.path());
    options.backing_dirs = vec![s.dir.path().to_owned()];
    let node = Node::open(&options).unwrap();
    node.volume_create("default", &new).unwrap();
    let missing = NewBacking {
        image: text(&s.images.join("none")).into(),
        format: Some(Format::Raw),
    };
    let error = node
        .volume_create("default", &NewVolume::overlay("y", missing))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn a_chain_of_64_reads_through_and_lists() {
    let s = setup();
    s.node
        .volume_create("default", &NewVolume::new("l0", Format::Qcow2, 1 << 20))
        .unwrap();
    for depth in 1..64 {
        let below = id(&format!("l{}", depth - 1));
        s.node
            .volume_clone_linked(&below, "default", &format!("l{depth}"))
            .unwrap();
    }
    assert_eq!(s.node.volume_dependents(&id("l0")).unwrap().len(), 63);
    qemu_img(&["check", text(&s.images.join("l63"))]);
    let chain = qemu_img(&[
        "info",
        "--backing-chain",
        "--output=json",
        text(&s.images.join("l63")),
    ]);
    let chain: serde_json::Value = serde_json::from_str(&chain).unwrap();
    assert_eq!(chain.as_array().unwrap().len(), 64);
}

#[test]
fn documents_validate_and_libvirt_takes_them() {
    let s = setup();
    let mut new = NewVolume::new("base", Format::Qcow2, 1 << 20);
    new.qcow2.lazy_refcounts = true;
    s.node.volume_create("default", &new).unwrap();
    s.node
        .volume_clone_linked(&id("base"), "default", "over")
        .unwrap();
    s.node
        .volume_create("default", &NewVolume::new("disk", Format::Raw, 1 << 20))
        .unwrap();
    for name in ["base", "over", "disk"] {
        let xml = s.node.volume_xml(&id(name)).unwrap();
        let file = s.dir.path().join("volume.xml");
        fs::write(&file, &xml).unwrap();
        let output = run(
            "virt-xml-validate",
            "libvirt-clients",
            &[text(&file), "storagevol"],
        );
        assert!(
            output.status.success(),
            "{xml}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let virsh = [
            "-c",
            "test:///default",
            "vol-create",
            "default-pool",
            text(&file),
        ];
        let output = run("virsh", "libvirt-clients", &virsh);
        assert!(
            output.status.success(),
            "{xml}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // What we print we take back: the same volume under another name.
        let mut again = NewVolume::from_xml(&xml).unwrap();
        again.name = format!("{name}-again");
        let copy = s.node.volume_create("default", &again).unwrap();
        let original = s.node.volume(&id(name)).unwrap();
        assert_eq!(
            (copy.capacity, copy.format),
            (original.capacity, original.format)
        );
    }
    let xml = s.node.pool_xml("default", false).unwrap();
    let file = s.dir.path().join("pool.xml");
    fs::write(&file, &xml).unwrap();
    let output = run(
        "virt-xml-validate",
        "libvirt-clients",
        &[text(&file), "storagepool"],
    );
    assert!(
        output.status.success(),
        "{xml}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let virsh = ["-c", "test:///default", "pool-define", text(&file)];
    let output = run("virsh", "libvirt-clients", &virsh);
    assert!(
        output.status.success(),
        "{xml}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_document_of_the_wiki_makes_a_volume() {
    let s = setup();
    let xml = "<volume><name>new_volume</name><capacity unit='G'>10</capacity>\
               <allocation>0</allocation></volume>";
    let made = s
        .node
        .volume_create("default", &NewVolume::from_xml(xml).unwrap())
        .unwrap();
    assert_eq!(info(&made.path)["virtual-size"], 10u64 << 30);
    let fragment = "<name>x</name><capacity>1</capacity>";
    let error = NewVolume::from_xml(fragment).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("expecting root element of 'volume'"),
        "{error}"
    );
}

#[test]
fn the_tree_of_a_chain_shows_every_branch() {
    let s = setup();
    s.node
        .volume_create("default", &NewVolume::new("base", Format::Qcow2, 1 << 20))
        .unwrap();
    for (below, name) in [("base", "left"), ("base", "right"), ("left", "leaf")] {
        s.node
            .volume_clone_linked(&id(below), "default", name)
            .unwrap();
    }
    let root = s.node.volume_chain(&id("left")).unwrap();
    let name = |node: &cenote_engine::ChainNode| node.volume.as_ref().unwrap().name.clone();
    assert_eq!(name(&root), "base");
    assert_eq!(
        root.overlays.iter().map(name).collect::<Vec<_>>(),
        ["left", "right"]
    );
    assert!(root.overlays[0].selected && !root.overlays[1].selected && !root.selected);
    assert_eq!(name(&root.overlays[0].overlays[0]), "leaf");
    // A base outside the pools, under an overlay outside the pools.
    let outside = |name: &str| s.dir.path().join(name);
    qemu_img(&["create", "-q", "-f", "raw", text(&outside("o.raw")), "1M"]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&outside("o.raw")),
        "-F",
        "raw",
        text(&outside("o.qcow2")),
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&outside("o.qcow2")),
        "-F",
        "qcow2",
        text(&s.images.join("top")),
    ]);
    let root = s.node.volume_chain(&id("top")).unwrap();
    assert_eq!(root.path, outside("o.raw"));
    assert_eq!(root.overlays[0].path, outside("o.qcow2"));
    assert_eq!(name(&root.overlays[0].overlays[0]), "top");
    // A loop is told, not followed.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        text(&s.images.join("a")),
        "1M",
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "a",
        "-F",
        "qcow2",
        text(&s.images.join("b")),
    ]);
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "b",
        "-F",
        "qcow2",
        text(&s.images.join("a")),
    ]);
    let root = s.node.volume_chain(&id("a")).unwrap();
    assert!(root.problem.unwrap().contains("itself"));
    s.node.volume_set_format(&id("a"), Format::Qcow2).unwrap();
    let error = s.node.open_volume(&id("a"), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
}

#[test]
fn data_files_are_volumes_of_their_own() {
    let s = setup();
    let mut new = NewVolume::new("image", Format::Qcow2, 1 << 20);
    new.qcow2.data_file = Some("image.data".into());
    new.qcow2.data_file_raw = true;
    s.node.volume_create("default", &new).unwrap();
    let info = info(&s.images.join("image"));
    assert_eq!(
        info["format-specific"]["data"]["data-file"],
        text(&s.images.join("image.data"))
    );
    qemu_img(&["check", text(&s.images.join("image"))]);
    let data = s.node.volume(&id("image.data")).unwrap();
    assert_eq!(
        (data.format.as_str(), data.format_origin),
        ("raw", FormatOrigin::Created)
    );
    let error = s.node.volume_delete(&id("image.data")).unwrap_err();
    assert!(error.to_string().contains("'default/image'"), "{error}");
    // A taken name of either leaves both as they are.
    new.name = "other".into();
    let error = s.node.volume_create("default", &new).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
    assert_eq!(fs::read_dir(&s.images).unwrap().count(), 2);
    s.node.volume_delete(&id("image")).unwrap();
    s.node.volume_delete(&id("image.data")).unwrap();
}
