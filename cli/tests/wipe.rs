//! Wiping from the command line.

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use common::{Cenote, fixture};

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

#[test]
fn an_interrupted_wipe_is_listed_and_taken_up() {
    let (cenote, disk) = with_secrets();
    std::fs::write(&disk, vec![b'S'; 16 << 20]).expect("written");
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
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        if line["done"].as_u64().is_some_and(|done| done > 0) {
            break;
        }
    }
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
