//! Wiping from the command line.

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use common::{Cenote, fixture, text, tool};

/// The fixture with a megabyte of secrets in `disk.raw`.
fn with_secrets() -> (Cenote, std::path::PathBuf) {
    let cenote = fixture();
    let disk = cenote.state().join("images/disk.raw");
    std::fs::write(&disk, vec![b'S'; 1 << 20]).expect("written");
    (cenote, disk)
}

#[test]
fn a_wiped_volume_has_a_certificate_that_holds() {
    let (cenote, disk) = with_secrets();
    let before = std::fs::read(&disk).expect("read");
    cenote.run("vol-wipe disk.raw").fails(9, "E0008");
    let plan = cenote.run("vol-wipe disk.raw --dry-run").ok();
    assert!(plan.stdout.contains("1048576 bytes"), "{plan:#?}");
    assert_eq!(std::fs::read(&disk).expect("read"), before);

    let run = cenote
        .run("vol-wipe disk.raw --best-effort --yes --algorithm dod")
        .ok();
    assert!(
        run.stdout.contains("Vol disk.raw wiped: overwritten"),
        "{run:#?}"
    );
    assert!(
        std::fs::read(&disk)
            .expect("read")
            .iter()
            .all(|byte| *byte == 0xff)
    );
    let list = cenote
        .run("verify-certificate --reread -o json")
        .ok()
        .json();
    assert_eq!(list[0]["volume"], "default/disk.raw");
    assert_eq!(list[0]["key_is_trusted"], true);
    assert_eq!(list[0]["disk"], "as the wipe left it");

    let file = list[0]["file"].as_str().expect("a file");
    let head = std::path::Path::new(file).with_file_name("head.json");
    cenote
        .run_words(&["verify-certificate", &head.display().to_string()])
        .fails(8, "is the head of a chain of certificates, no certificate");
    let text = std::fs::read_to_string(file).expect("read");
    std::fs::write(&disk, vec![b'N'; 1 << 20]).expect("written");
    cenote
        .run("verify-certificate --reread")
        .fails(8, "not as the wipe left it");
    std::fs::write(file, text.replace("\"dod\"", "\"bsi\"")).expect("written");
    cenote.run("verify-certificate").fails(8, "E0314");
}

#[test]
fn what_others_stand_on_is_refused_by_name() {
    let (cenote, disk) = with_secrets();
    for name in ["one.qcow2", "two.qcow2"] {
        let path = disk.with_file_name(name);
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk.raw"])
            .arg(&path)
            .status()
            .expect("this test needs the package 'qemu-utils'");
        assert!(made.success());
    }
    cenote.run("pool-refresh default").ok();
    let run = cenote
        .run("vol-wipe disk.raw --best-effort --yes")
        .fails(4, "E0305");
    assert!(
        run.stderr.contains("default/one.qcow2, default/two.qcow2"),
        "{run:#?}"
    );
    assert!(
        std::fs::read(&disk)
            .expect("read")
            .iter()
            .all(|byte| *byte == b'S')
    );
}

#[test]
fn methods_of_firmware_and_of_fancy_are_usage_errors() {
    let (cenote, _) = with_secrets();
    cenote
        .run("vol-wipe disk.raw --algorithm nvme-sanitize")
        .fails(2, "firmware");
    cenote
        .run("vol-wipe disk.raw --algorithm shred")
        .fails(2, "pfitzner33");
    cenote
        .run("vol-wipe disk.raw --verify sample:0%")
        .fails(2, "sample:N%");
    cenote.run("wipe-resume 1234 --yes").fails(3, "E0313");
}

#[test]
fn delete_with_wipe_leaves_a_certificate_alone() {
    let (cenote, disk) = with_secrets();
    cenote
        .run("vol-delete disk.raw --wipe=zero --best-effort --yes")
        .ok();
    assert!(!disk.exists());
    assert_eq!(cenote.run("vol-info disk.raw").code, 3);
    let list = cenote
        .run("verify-certificate --reread -o json")
        .ok()
        .json();
    assert!(
        list[0]["disk"].as_str().expect("said").contains("removed"),
        "{list}"
    );
}

/// A wipe of `disk.raw` that takes its time, and has begun.
fn slow_wipe(cenote: &Cenote) -> Child {
    let mut child = cenote
        .command()
        .args([
            "vol-wipe",
            "disk.raw",
            "--best-effort",
            "--yes",
            "--algorithm",
            "zero",
        ])
        .args(["--limit", "2M", "--progress", "jsonl"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    for line in lines.by_ref() {
        let line: serde_json::Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        if line["done"].as_u64().is_some_and(|done| done > 0) {
            break;
        }
    }
    // Nobody listens any more, but the pipe stays open.
    std::thread::spawn(move || lines.count());
    child
}

#[test]
fn a_wipe_is_a_job_that_can_be_cancelled() {
    let (cenote, disk) = with_secrets();
    std::fs::write(&disk, vec![b'S'; 64 << 20]).expect("written");
    let mut child = slow_wipe(&cenote);
    let jobs = cenote.run("job-list -o json").ok().json();
    assert_eq!(jobs[0]["kind"], "volume-wipe", "{jobs}");
    assert_eq!(jobs[0]["subject"], "default/disk.raw");
    assert_eq!(jobs[0]["pid"], child.id());
    let number = jobs[0]["id"].to_string();
    // Nothing else begins on the volume meanwhile.
    cenote
        .run("vol-upload disk.raw /dev/null --yes")
        .fails(4, "disk.raw");
    cenote.run(&format!("job-cancel {number} --yes")).ok();
    assert!(!child.wait().expect("ended").success());

    assert_eq!(
        cenote.run("job-list -o json").ok().json(),
        serde_json::json!([])
    );
    let past = cenote.run("job-list --all -o json").ok().json();
    let past = past.as_array().expect("a list");
    let job = past.iter().find(|job| job["kind"] == "volume-wipe");
    assert_eq!(job.expect("remembered")["state"], "failed", "{past:?}");
    let list = cenote.run("wipe-list -o json").ok().json();
    assert_eq!(list[0]["volume"], "default/disk.raw", "{list}");
    let content = std::fs::read(&disk).expect("read");
    assert!(content.ends_with(b"SSSS"), "it stopped on the way");
}

#[test]
fn a_killed_wipe_is_no_running_job_and_is_taken_up() {
    let (cenote, disk) = with_secrets();
    std::fs::write(&disk, vec![b'S'; 16 << 20]).expect("written");
    let mut child = slow_wipe(&cenote);
    child.kill().expect("killed");
    child.wait().expect("ended");
    // Whoever opens the node next is told where to go on.
    let run = cenote.run("vol-list default").ok();
    assert!(run.stderr.contains("wipe-resume"), "{run:#?}");
    assert_eq!(
        cenote.run("job-list -o json").ok().json(),
        serde_json::json!([])
    );
    cenote.run("wipe-resume --yes").ok();
    let content = std::fs::read(&disk).expect("read");
    assert!(content.iter().all(|byte| *byte == 0));
    let past = cenote.run("job-list --all -o json").ok().json();
    let states: Vec<_> = past
        .as_array()
        .expect("a list")
        .iter()
        .filter(|job| job["kind"] == "volume-wipe")
        .map(|job| job["state"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(states, ["rolled-back", "done"]);
}

#[test]
fn an_interrupted_wipe_is_listed_and_taken_up() {
    let (cenote, disk) = with_secrets();
    std::fs::write(&disk, vec![b'S'; 16 << 20]).expect("written");
    let mut child = slow_wipe(&cenote);
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    let status = child.wait().expect("ended");
    assert_eq!(status.code(), Some(130));
    let list = cenote.run("wipe-list -o json").ok().json();
    assert_eq!(list[0]["volume"], "default/disk.raw");
    let id = list[0]["id"].as_str().expect("an id");
    cenote
        .run("vol-wipe disk.raw --best-effort --yes")
        .fails(4, "E0312");
    cenote.run(&format!("wipe-resume {id} --yes")).ok();
    assert!(
        std::fs::read(&disk)
            .expect("read")
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(
        cenote.run("wipe-list -o json").ok().json(),
        serde_json::json!([])
    );
}

/// What `qemu-img` says of an image.
fn info(path: &std::path::Path) -> serde_json::Value {
    let run = tool(
        "qemu-img",
        "qemu-utils",
        &["info", "--output=json", text(path)],
    );
    run.ok().json()
}

fn in_pool(cenote: &Cenote, arguments: &[&str]) {
    let run = Command::new("qemu-img")
        .args(arguments)
        .current_dir(cenote.state().join("images"))
        .output()
        .expect("this test needs the package 'qemu-utils'");
    assert!(run.status.success(), "{run:?}");
}

fn write_secrets(path: &std::path::Path) {
    let run = tool(
        "qemu-io",
        "qemu-utils",
        &["-f", "qcow2", "-c", "write -P 0x53 0 1M", text(path)],
    );
    run.ok();
}

fn holds_secrets(path: &std::path::Path) -> bool {
    let content = std::fs::read(path).expect("read");
    content.windows(64).any(|run| run == [b'S'; 64])
}

#[test]
fn an_external_data_file_is_wiped_and_made_anew() {
    let (cenote, disk) = with_secrets();
    let image = disk.with_file_name("image.qcow2");
    let data = disk.with_file_name("image.data");
    let options = format!("data_file={},cluster_size=16k", data.display());
    in_pool(
        &cenote,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            "image.qcow2",
            "4M",
        ],
    );
    write_secrets(&image);
    assert!(holds_secrets(&data) && !holds_secrets(&image));
    cenote.run("pool-refresh default").ok();
    // Files that came from elsewhere and reach others are not believed.
    cenote.run("vol-set-format image.qcow2 qcow2 --yes").ok();
    // The data file by itself is part of another volume.
    cenote
        .run("vol-wipe image.data --best-effort --yes")
        .fails(4, "default/image.qcow2");
    assert!(holds_secrets(&data));
    let before = info(&image);
    let plan = cenote.run("vol-wipe image.qcow2 --dry-run").ok();
    assert!(plan.stdout.contains("image.data"), "{plan:#?}");
    cenote
        .run("vol-wipe image.qcow2 --algorithm zero --best-effort --yes")
        .ok();
    assert!(!holds_secrets(&data), "the data file is overwritten too");
    let after = info(&image);
    for part in ["format", "virtual-size", "cluster-size"] {
        assert_eq!(after[part], before[part], "{part}");
    }
    assert_eq!(
        after["format-specific"]["data"]["data-file"],
        before["format-specific"]["data"]["data-file"]
    );
    tool("qemu-img", "qemu-utils", &["check", "-q", text(&image)]).ok();
    let read = tool(
        "qemu-io",
        "qemu-utils",
        &["-f", "qcow2", "-c", "read -P 0 0 4M", text(&image)],
    );
    let read = read.ok();
    assert!(!read.stdout.contains("failed"), "{read:#?}");
    let list = cenote
        .run("verify-certificate --reread -o json")
        .ok()
        .json();
    let file = list[0]["file"].as_str().expect("a file");
    let certificate = std::fs::read_to_string(file).expect("read");
    assert!(certificate.contains("image.data") && certificate.contains("image.qcow2"));
}

#[test]
fn with_chain_the_layers_that_only_this_volume_uses() {
    let (cenote, disk) = with_secrets();
    for (name, base, format) in [
        ("shared.qcow2", "disk.raw", "raw"),
        ("own.qcow2", "shared.qcow2", "qcow2"),
        ("top.qcow2", "own.qcow2", "qcow2"),
        ("other.qcow2", "shared.qcow2", "qcow2"),
    ] {
        in_pool(
            &cenote,
            &[
                "create", "-q", "-f", "qcow2", "-F", format, "-b", base, name,
            ],
        );
        write_secrets(&disk.with_file_name(name));
    }
    cenote.run("pool-refresh default").ok();
    for name in ["shared", "own", "top", "other"] {
        cenote
            .run(&format!("vol-set-format {name}.qcow2 qcow2 --yes"))
            .ok();
    }
    cenote
        .run("vol-wipe own.qcow2 --best-effort --yes")
        .fails(4, "default/top.qcow2");
    let run = cenote
        .run("vol-wipe top.qcow2 --chain --algorithm zero --best-effort --yes")
        .ok();
    for (name, left) in [
        ("top.qcow2", false),
        ("own.qcow2", false),
        ("shared.qcow2", true),
        ("other.qcow2", true),
        ("disk.raw", true),
    ] {
        let path = disk.with_file_name(name);
        assert_eq!(holds_secrets(&path), left, "{name}: {run:#?}");
        if name.ends_with("qcow2") {
            tool("qemu-img", "qemu-utils", &["check", "-q", text(&path)]).ok();
        }
    }
    let top = info(&disk.with_file_name("top.qcow2"));
    assert_eq!(top["virtual-size"], 1 << 20);
    assert!(top["backing-filename"].is_null(), "{top}");
    let list = cenote.run("verify-certificate -o json").ok().json();
    let file = list[0]["file"].as_str().expect("a file");
    let certificate = std::fs::read_to_string(file).expect("read");
    assert!(
        certificate.contains("shared.qcow2"),
        "the report names the layer that was left"
    );
}
