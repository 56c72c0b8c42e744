//! Chains, snapshots and copies of volumes, judged by qemu-img.

mod common;

use common::{Cenote, Run, fixture, text, tool};

fn image(cenote: &Cenote, name: &str) -> std::path::PathBuf {
    cenote.state().join("images").join(name)
}

/// qemu-img on a volume, its format given.
fn qemu_img(cenote: &Cenote, verb: &[&str], name: &str) -> Run {
    let path = image(cenote, name);
    let mut arguments = verb.to_vec();
    arguments.push(text(&path));
    tool("qemu-img", "qemu-utils", &arguments)
}

fn write(cenote: &Cenote, name: &str, pattern: u8, offset: &str) {
    let path = image(cenote, name);
    let command = format!("write -P {pattern} {offset} 64k");
    let arguments = ["-f", "qcow2", "-c", &command, text(&path)];
    tool("qemu-io", "qemu-utils", &arguments).ok();
}

fn clean(cenote: &Cenote, name: &str) {
    qemu_img(cenote, &["check", "-f", "qcow2"], name).ok();
}

#[test]
fn volumes_are_made_as_asked() {
    let cenote = fixture();
    let made = cenote.ok(
        "vol-create-as default a.qcow2 10G --format qcow2 --cluster-size 4K --compat 1.1 \
         --lazy-refcounts --refcount-bits 64",
    );
    assert_eq!(made, "Vol a.qcow2 created\n");
    let info = qemu_img(
        &cenote,
        &["info", "--output=json", "-f", "qcow2"],
        "a.qcow2",
    )
    .ok()
    .json();
    assert_eq!(info["virtual-size"], 10_u64 << 30);
    assert_eq!(info["cluster-size"], 4096);
    assert_eq!(info["format-specific"]["data"]["lazy-refcounts"], true);
    assert_eq!(info["format-specific"]["data"]["refcount-bits"], 64);
    clean(&cenote, "a.qcow2");
    // virsh's spelling with every positional named.
    cenote
        .ok("vol-create-as --pool default --name b.raw --capacity 8M --allocation 0 --format raw");
    let listed = cenote.run("vol-info b.raw -o json").ok().json();
    assert_eq!(listed["capacity"], 8 << 20);
    assert_eq!(listed["allocation"], 0);
    cenote
        .run("vol-create-as default b.raw 1M")
        .fails(4, "E0302");
    cenote
        .run("vol-create-as default c.raw 1M --format vmdk")
        .fails(2, "vmdk");
    cenote
        .run("vol-create-as default ../c.raw 1M")
        .fails(2, "E0308");
    cenote
        .run("vol-create-as default c.raw 9E")
        .fails(2, "E0011");
}

#[test]
fn a_document_makes_the_volume_it_describes() {
    let cenote = fixture();
    let xml = "<volume><name>new_volume</name><capacity unit='G'>10</capacity>\
               <target><format type='qcow2'/></target></volume>";
    std::fs::write(cenote.path("new_volume.xml"), xml).expect("written");
    let made = cenote.ok("vol-create default new_volume.xml");
    assert_eq!(made, "Vol new_volume created from new_volume.xml\n");
    let info = qemu_img(
        &cenote,
        &["info", "--output=json", "-f", "qcow2"],
        "new_volume",
    );
    assert_eq!(info.ok().json()["virtual-size"], 10_u64 << 30);
    std::fs::write(
        cenote.path("part.xml"),
        "<name>x</name><capacity>1</capacity>",
    )
    .expect("written");
    cenote
        .run("vol-create default part.xml")
        .fails(1, "expecting root element of 'volume'");
    let printed = cenote.ok(
        "vol-create-as default p.qcow2 1M --format qcow2 --cluster-size 64K --backing-vol /b \
         --backing-vol-format raw --print-xml",
    );
    let path = cenote.path("printed.xml");
    std::fs::write(&path, printed).expect("written");
    tool(
        "virt-xml-validate",
        "libvirt-clients",
        &[text(&path), "storagevol"],
    )
    .ok();
}

#[test]
fn a_chain_is_shown_committed_rebased_and_flattened() {
    let cenote = fixture();
    write(&cenote, "base.qcow2", 1, "0");
    cenote.ok("vol-overlay overlay.qcow2 top.qcow2");
    write(&cenote, "overlay.qcow2", 2, "64k");
    write(&cenote, "top.qcow2", 3, "128k");
    let tree = cenote.ok("vol-chain top.qcow2");
    let names: Vec<&str> = tree
        .lines()
        .map(|line| line.split("  (").next().unwrap_or(""))
        .collect();
    assert_eq!(
        names,
        [
            "default/base.qcow2",
            "└── default/overlay.qcow2",
            "    └── default/top.qcow2 *"
        ]
    );
    let flat = image(&cenote, "top.qcow2").with_extension("mirror");
    let top = image(&cenote, "top.qcow2");
    let arguments = [
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(&top),
        text(&flat),
    ];
    tool("qemu-img", "qemu-utils", &arguments).ok();
    let same = |name: &str| {
        let path = image(&cenote, name);
        let arguments = [
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            text(&flat),
            text(&path),
        ];
        tool("qemu-img", "qemu-utils", &arguments).ok();
        clean(&cenote, name);
    };
    // A backing volume is protected.
    for line in [
        "vol-delete base.qcow2 --yes",
        "vol-resize base.qcow2 2M",
        "vol-upload base.qcow2 image.raw --yes",
        "vol-snapshot-create base.qcow2 s",
    ] {
        cenote.run(line).fails(4, "E0305");
    }
    cenote.ok("vol-rebase top.qcow2 --backing base.qcow2");
    same("top.qcow2");
    cenote.ok("vol-delete overlay.qcow2 --yes");
    cenote.run("vol-commit top.qcow2").fails(9, "--yes");
    cenote.ok("vol-commit top.qcow2 --keep --yes");
    same("base.qcow2");
    same("top.qcow2");
    cenote.ok("vol-flatten top.qcow2");
    same("top.qcow2");
    cenote.ok("vol-delete base.qcow2 --yes");
    same("top.qcow2");
    cenote
        .run("vol-commit top.qcow2 --yes")
        .fails(2, "no backing");
}

#[test]
fn a_layer_leaves_the_middle_of_its_chain() {
    let cenote = fixture();
    write(&cenote, "overlay.qcow2", 2, "64k");
    cenote.ok("vol-overlay overlay.qcow2 top.qcow2");
    let plan = cenote.ok("vol-remove-layer overlay.qcow2 --dry-run");
    assert!(plan.contains("default/top.qcow2"), "{plan}");
    cenote.ok("vol-remove-layer overlay.qcow2 --yes");
    clean(&cenote, "top.qcow2");
    let path = image(&cenote, "top.qcow2");
    let read = ["-f", "qcow2", "-c", "read -P 2 64k 64k", text(&path)];
    let run = tool("qemu-io", "qemu-utils", &read).ok();
    assert!(
        !run.stdout.contains("Pattern verification failed"),
        "{run:?}"
    );
    cenote.run("vol-info overlay.qcow2").fails(3, "E0301");
}

#[test]
fn copies_show_the_same_and_differences_are_found() {
    let cenote = fixture();
    write(&cenote, "overlay.qcow2", 9, "256k");
    cenote.ok("vol-clone overlay.qcow2 copy.qcow2");
    cenote.ok("vol-clone overlay.qcow2 linked.qcow2 --linked");
    cenote.ok("vol-convert overlay.qcow2 flat.raw --format raw");
    cenote.ok("vol-convert flat.raw small.qcow2 --format qcow2 --compress");
    for name in ["copy.qcow2", "linked.qcow2", "flat.raw", "small.qcow2"] {
        assert_eq!(
            cenote.ok(&format!("vol-compare overlay.qcow2 {name}")),
            "Volumes are identical\n"
        );
    }
    clean(&cenote, "small.qcow2");
    write(&cenote, "copy.qcow2", 1, "512k");
    let run = cenote
        .run("vol-compare overlay.qcow2 copy.qcow2")
        .fails(8, "E0411");
    assert_eq!(run.stdout, "Content differs at offset 524288\n");
    let map = cenote.run("vol-map linked.qcow2 -o json").ok().json();
    let data: Vec<_> = map
        .as_array()
        .expect("ranges")
        .iter()
        .filter(|range| range["data"] == true)
        .collect();
    assert_eq!(data.len(), 1);
    assert_eq!(data[0]["start"], 256 << 10);
    assert_eq!(data[0]["depth"], 1);
    cenote
        .run("vol-clone disk.raw x.raw --reflink")
        .fails(1, "--linked");
}

#[test]
fn sizes_change_and_data_is_not_cut_off_unasked() {
    let cenote = fixture();
    let size = || cenote.run("vol-info disk.qcow2 -o json").ok().json()["capacity"].as_u64();
    cenote.ok("vol-resize disk.qcow2 8M");
    assert_eq!(size(), Some(8 << 20));
    cenote.ok("vol-resize disk.qcow2 2M --delta");
    assert_eq!(size(), Some(10 << 20));
    cenote.ok("vol-resize disk.qcow2 +1M");
    assert_eq!(size(), Some(11 << 20));
    for line in ["vol-resize disk.qcow2 1M", "vol-resize disk.qcow2 -1M"] {
        cenote.run(line).fails(5, "E0306");
    }
    cenote
        .run("vol-resize disk.qcow2 1M --shrink")
        .fails(9, "--yes");
    cenote.ok("vol-resize disk.qcow2 --shrink --yes -- -1M");
    assert_eq!(size(), Some(10 << 20));
    cenote.ok("vol-resize disk.qcow2 1M --shrink --yes");
    assert_eq!(size(), Some(1 << 20));
    clean(&cenote, "disk.qcow2");
}

#[test]
fn snapshots_are_kept_listed_restored_and_deleted() {
    let cenote = fixture();
    write(&cenote, "snap.qcow2", 5, "0");
    assert_eq!(
        cenote.ok("vol-snapshot-create snap.qcow2 second"),
        "Snapshot second of vol snap.qcow2 created\n"
    );
    write(&cenote, "snap.qcow2", 6, "0");
    assert_eq!(
        cenote.ok("vol-snapshot-list snap.qcow2 -o name"),
        "first\nsecond\n"
    );
    let seen = qemu_img(&cenote, &["snapshot", "-l"], "snap.qcow2")
        .ok()
        .stdout;
    assert!(seen.contains("first") && seen.contains("second"), "{seen}");
    cenote
        .run("vol-snapshot-create snap.qcow2 second")
        .fails(4, "E0413");
    cenote
        .run("vol-snapshot-revert snap.qcow2 secnd --yes")
        .fails(3, "did you mean 'second'?");
    cenote
        .run("vol-snapshot-revert snap.qcow2 second")
        .fails(9, "--yes");
    cenote.ok("vol-snapshot-revert snap.qcow2 second --yes");
    let path = image(&cenote, "snap.qcow2");
    let read = ["-f", "qcow2", "-c", "read -P 5 0 64k", text(&path)];
    let run = tool("qemu-io", "qemu-utils", &read).ok();
    assert!(
        !run.stdout.contains("Pattern verification failed"),
        "{run:?}"
    );
    cenote.ok("vol-snapshot-delete snap.qcow2 first --yes");
    assert_eq!(
        cenote.ok("vol-snapshot-list snap.qcow2 -o name"),
        "second\n"
    );
    clean(&cenote, "snap.qcow2");
    cenote.run("vol-snapshot-create disk.raw s").fails(1, "raw");
}

#[test]
fn damage_is_found_and_leaks_are_given_back() {
    let cenote = fixture();
    assert!(
        cenote
            .ok("vol-check disk.qcow2")
            .contains("Clean:          yes")
    );
    write(&cenote, "disk.qcow2", 1, "0");
    // A cluster that nothing refers to: count the first unused one as used.
    let path = image(&cenote, "disk.qcow2");
    let script = format!(
        "python3 - <<'E'\nimport struct\nf = open('{}', 'r+b')\n\
         table = struct.unpack('>Q', f.read(56)[48:56])[0]\nf.seek(table)\n\
         block = struct.unpack('>Q', f.read(8))[0]\nf.seek(0, 2)\nend = f.tell() // 65536\n\
         f.truncate((end + 1) * 65536)\nf.seek(block + 2 * end)\nf.write(b'\\0\\1')\nE",
        path.display()
    );
    cenote.shell(&script).ok();
    let found = cenote
        .run("vol-check disk.qcow2 -o json")
        .fails(8, "--repair leaks");
    assert_eq!(found.json()["leaks"], 1);
    cenote.ok("vol-check disk.qcow2 --repair leaks");
    clean(&cenote, "disk.qcow2");
    cenote
        .run("vol-check disk.qcow2 --repair all")
        .fails(9, "--yes");
    cenote.run("vol-check disk.raw").fails(2, "raw");
}

#[test]
fn dry_runs_of_all_this_touch_nothing() {
    let cenote = fixture();
    let before = cenote.state_sum();
    for line in [
        "vol-create default volume.xml",
        "vol-create-as default x.raw 1M",
        "vol-create-from default larger.xml disk.qcow2",
        "vol-clone disk.qcow2 x.qcow2",
        "vol-clone disk.qcow2 x.qcow2 --linked",
        "vol-convert disk.qcow2 x.raw --format raw",
        "vol-resize disk.qcow2 2M",
        "vol-overlay disk.qcow2 x.qcow2",
        "vol-commit overlay.qcow2",
        "vol-rebase overlay.qcow2 --backing disk.qcow2",
        "vol-rebase overlay.qcow2 --backing disk.qcow2 --unsafe",
        "vol-flatten overlay.qcow2",
        "vol-remove-layer base.qcow2",
        "vol-check disk.qcow2 --repair all",
        "vol-snapshot-create snap.qcow2 x",
        "vol-snapshot-revert snap.qcow2 first",
        "vol-snapshot-delete snap.qcow2 first",
    ] {
        let plan = cenote.run(&format!("{line} --dry-run")).ok();
        assert!(
            plan.stdout.contains("Nothing was changed."),
            "{line}: {plan:?}"
        );
        assert_eq!(cenote.state_sum(), before, "{line}");
    }
}

/// Waits until the socket of a server is there.
fn wait_for(path: &std::path::Path) {
    let started = std::time::Instant::now();
    while !path.exists() {
        assert!(started.elapsed().as_secs() < 60, "{path:?} never came");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn volumes_and_layers_are_served_to_foreign_clients() {
    let cenote = fixture();
    write(&cenote, "base.qcow2", 4, "0");
    write(&cenote, "overlay.qcow2", 5, "0");
    for (options, pattern) in [("--read-only", 5), ("--layer 1", 4)] {
        let socket = cenote.path(&format!("{pattern}.sock"));
        let mut server = cenote
            .command()
            .args([
                "vol-serve",
                "overlay.qcow2",
                "--exit-with-client",
                "--socket",
                text(&socket),
            ])
            .args(options.split(' '))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("started");
        wait_for(&socket);
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let command = format!("read -P {pattern} 0 64k");
        let arguments = ["-r", "-f", "raw", "-c", &command, &uri];
        let run = tool("qemu-io", "qemu-utils", &arguments).ok();
        assert!(
            !run.stdout.contains("Pattern verification failed"),
            "{run:?}"
        );
        assert!(server.wait().expect("ended").success());
        assert!(!socket.exists());
    }
    cenote
        .run("vol-serve overlay.qcow2 --layer 2 --timeout 1s")
        .fails(2, "no layer 2");
    cenote
        .run("vol-serve base.qcow2 --timeout 1s")
        .fails(4, "E0305");
}

#[test]
fn a_signal_ends_a_server_cleanly() {
    let cenote = fixture();
    let socket = cenote.path("disk.sock");
    let mut server = cenote
        .command()
        .args(["vol-serve", "disk.qcow2", "--socket", text(&socket)])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("started");
    wait_for(&socket);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let arguments = ["-f", "raw", "-c", "write -P 7 0 64k", &uri];
    tool("qemu-io", "qemu-utils", &arguments).ok();
    let id = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("signalled");
    assert!(server.wait().expect("ended").success());
    assert!(!socket.exists());
    clean(&cenote, "disk.qcow2");
    let path = image(&cenote, "disk.qcow2");
    let read = ["-f", "qcow2", "-c", "read -P 7 0 64k", text(&path)];
    let run = tool("qemu-io", "qemu-utils", &read).ok();
    assert!(
        !run.stdout.contains("Pattern verification failed"),
        "{run:?}"
    );
}
