//! Volumes: listing, moving content, deleting.

mod common;

use common::{small as fixture, text, tool};

#[test]
fn listing_is_laid_out_as_virsh_has_it() {
    let cenote = fixture();
    let path = cenote.state().join("images/disk.raw").display().to_string();
    let rule = "-".repeat(1 + 8 + 2 + 1 + path.len() + 2);
    let space = " ".repeat(path.len() - 4);
    assert_eq!(
        cenote.ok("vol-list default"),
        format!(" Name       Path\n{rule}\n disk.raw   {path}\n")
    );
    assert_eq!(
        cenote.ok("vol-list default --details"),
        format!(
            " Name       Path{space}   Type   Capacity   Allocation\n{rule}{}\n \
             disk.raw   {path}   file   1.00 MiB   0.00 B\n",
            "-".repeat(7 + 11 + 13)
        )
    );
    assert_eq!(
        cenote.ok("vol-info disk.raw"),
        "Name:           disk.raw\nType:           file\nCapacity:       1.00 MiB\n\
         Allocation:     0.00 B\n"
    );
    for line in [
        "vol-path disk.raw",
        "vol-key disk.raw",
        "vol-path default/disk.raw",
    ] {
        assert_eq!(cenote.ok(line), format!("{path}\n"));
    }
    assert_eq!(cenote.ok(&format!("vol-name {path}")), "disk.raw\n");
    assert_eq!(cenote.ok(&format!("vol-pool {path}")), "default\n");
    assert_eq!(
        cenote.ok(&format!("vol-pool {path} --uuid")),
        cenote.ok("pool-uuid default")
    );
}

#[test]
fn one_name_in_two_pools_must_be_told_apart() {
    let cenote = fixture();
    cenote.ok("pool-start images");
    std::fs::write(cenote.path("images/disk.raw"), [1; 512]).expect("written");
    let run = cenote.run("vol-info disk.raw").fails(4, "E0303");
    assert!(
        run.stderr.contains("default/disk.raw, images/disk.raw"),
        "{run:?}"
    );
    assert!(
        run.stderr
            .contains("next: cenote vol-info disk.raw --pool default"),
        "{run:?}"
    );
    assert!(
        cenote
            .ok("vol-info disk.raw --pool images --bytes")
            .contains("512 bytes")
    );
}

#[test]
fn content_goes_in_and_out_byte_for_byte() {
    let cenote = fixture();
    // The volume is blank, so that nothing can be lost and nobody is asked.
    cenote.ok("vol-upload disk.raw image.raw");
    // Now it is not.
    cenote
        .run("vol-upload disk.raw image.raw")
        .fails(9, "overwrite");
    cenote.ok("vol-download disk.raw copy.raw");
    let (from, to) = (cenote.path("image.raw"), cenote.path("copy.raw"));
    tool("cmp", "diffutils", &[text(&from), text(&to)]).ok();
    cenote
        .run("vol-download disk.raw copy.raw")
        .fails(9, "overwrite");
    cenote
        .shell("cenote vol-download disk.raw - | cmp - image.raw")
        .ok();
    cenote
        .shell("head -c 4096 /dev/zero | cenote vol-upload disk.raw - --offset 4K --yes")
        .ok();
    let part =
        cenote.shell("cenote vol-download disk.raw - --offset 4095 --length 2 | od -An -tx1");
    assert_eq!(part.ok().stdout.trim(), "07 00");
}

#[test]
fn a_failed_download_leaves_no_half_file() {
    let cenote = fixture();
    cenote
        .run("vol-download disk.raw part.raw --offset 512K --length 1M")
        .fails(2, "past");
    assert!(!cenote.path("part.raw").exists());
}

#[test]
fn progress_is_json_lines_that_end_with_a_result() {
    let cenote = fixture();
    let run = cenote
        .run("vol-upload disk.raw image.raw --progress jsonl")
        .ok();
    let lines: Vec<serde_json::Value> = run
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is a document"))
        .collect();
    let last = lines.last().expect("at least one line");
    assert_eq!(last["result"], "ok");
    assert!(
        lines
            .iter()
            .any(|line| line["done"] == 1 << 20 && line["total"] == 1 << 20),
        "{lines:?}"
    );
    let failed = cenote.run("vol-download disk.raw x --offset 512K --length 1M --progress jsonl");
    let last = failed
        .stderr
        .lines()
        .find(|line| line.contains("\"result\""))
        .expect("a result");
    assert!(last.contains("\"failed\""), "{last}");
    let quiet = cenote.run("vol-upload disk.raw image.raw --yes -q").ok();
    assert!(
        quiet.stdout.is_empty() && quiet.stderr.is_empty(),
        "{quiet:?}"
    );
    let piped = cenote.run("vol-upload disk.raw image.raw --yes").ok();
    assert!(
        !piped.stderr.contains('\r') && piped.stderr.is_empty(),
        "{piped:?}"
    );
}

#[test]
fn a_volume_in_use_is_neither_deleted_nor_written() {
    let cenote = fixture();
    let path = cenote.state().join("images/disk.raw");
    let mut child = std::process::Command::new("qemu-io")
        .args(["-f", "raw", text(&path)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("qemu-io, of the package qemu-utils");
    wait_for_lock(&path);
    for command in [
        "vol-delete disk.raw --yes",
        "vol-upload disk.raw image.raw --yes",
    ] {
        cenote.run(command).fails(4, "in use");
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    cenote.ok("vol-delete disk.raw --yes");
    assert!(!path.exists());
}

/// Waits until some process holds a lock on the file.
fn wait_for_lock(path: &std::path::Path) {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", std::fs::metadata(path).expect("there").ino());
    let started = std::time::Instant::now();
    while !std::fs::read_to_string("/proc/locks")
        .expect("read")
        .contains(&inode)
    {
        assert!(started.elapsed().as_secs() < 60, "nobody locked {path:?}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn printed_documents_are_valid_for_libvirt() {
    let cenote = fixture();
    for (line, schema) in [
        ("vol-dumpxml disk.raw", "storagevol"),
        ("pool-dumpxml default", "storagepool"),
        ("pool-dumpxml images --inactive", "storagepool"),
    ] {
        let path = cenote.path("document.xml");
        std::fs::write(&path, cenote.ok(line)).expect("written");
        tool(
            "virt-xml-validate",
            "libvirt-clients",
            &[text(&path), schema],
        )
        .ok();
    }
}

#[test]
fn ctrl_c_stops_a_long_operation_and_says_so() {
    use std::io::{BufRead as _, Write as _};
    let cenote = fixture();
    cenote.ok("vol-create-as default big.raw 64G --allocation 0");
    let mut child = cenote
        .command()
        .args(["vol-upload", "big.raw", "-", "--progress", "jsonl"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut input = child.stdin.take().expect("piped");
    // Zeroes without end, until nobody reads them any more.
    let feeder = std::thread::spawn(move || while input.write_all(&[0; 65536]).is_ok() {});
    let mut lines = std::io::BufReader::new(child.stderr.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert!(first.contains("\"done\""), "{first}");
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("signalled");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("ended").code(), Some(130), "{rest:?}");
    feeder.join().expect("ended");
    assert!(
        rest.iter()
            .any(|line| line.contains("\"result\":\"failed\"")),
        "{rest:?}"
    );
    assert!(rest.iter().any(|line| line.contains("E0009")), "{rest:?}");
    cenote.ok("fsck");
}

#[test]
fn a_backing_file_outside_the_pools_must_be_allowed() {
    let cenote = fixture();
    let base = cenote.path("outside.qcow2");
    tool(
        "qemu-img",
        "qemu-utils",
        &["create", "-q", "-f", "qcow2", text(&base), "1M"],
    )
    .ok();
    let line = format!(
        "vol-create-as default top.qcow2 1M --format qcow2 --backing-vol {} --backing-vol-format qcow2",
        base.display()
    );
    cenote.run(&line).fails(5, "E0409");
    let allowed = format!("--backing-dirs {} ", cenote.work().display());
    cenote.ok(&format!("{allowed}{line}"));
    cenote.run("vol-map top.qcow2").fails(5, "E0409");
    cenote.ok(&format!("{allowed}vol-map top.qcow2"));
}
