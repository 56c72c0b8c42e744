//! `kill -9` at any moment of a wipe, and going on.
//!
//! The victim is this very test binary, run again for its one ignored test. It
//! prints a line for each event; the test kills it after a random number of
//! lines, starts it again, and so on until it ends by itself.

#![allow(clippy::unwrap_used)] // Also in the helpers of the tests.

mod wipe_support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cenote_image::Format;
use cenote_pools::certificate::{Chain, Issuer, NodeIdentity, verify};
use cenote_pools::wipe::{
    Afterwards, Algorithm, FileJournal, NoOthers, Outcome, Tuning, WipeEvent, WipeRequest, Wiper,
};
use wipe_support::*;

const FOLDER: &str = "CENOTE_TEST_WIPE_FOLDER";
const SIZE: u64 = 768 << 10;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Raw,
    Qcow2,
    Removed,
}

fn kind_of(folder: &Path) -> Kind {
    match fs::read_to_string(folder.join("kind")).unwrap().as_str() {
        "raw" => Kind::Raw,
        "qcow2" => Kind::Qcow2,
        _ => Kind::Removed,
    }
}

fn request(folder: &Path) -> WipeRequest {
    let kind = kind_of(folder);
    let format = if kind == Kind::Qcow2 {
        Format::Qcow2
    } else {
        Format::Raw
    };
    let afterwards = if kind == Kind::Removed {
        Afterwards::Remove
    } else {
        Afterwards::Keep
    };
    WipeRequest {
        algorithm: Algorithm::Nnsa,
        best_effort: true,
        afterwards,
        ..WipeRequest::new(folder.join("pool/volume"), format)
    }
}

#[test]
#[ignore = "the process that the next test kills"]
fn victim() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let journal = FileJournal::open(&folder.join("wipes")).unwrap();
    let issuer = issuer(&folder);
    // Every write is a checkpoint, so that there are many places to die.
    let tuning = Tuning {
        chunk: 64 << 10,
        depth: 4,
        checkpoint: Duration::ZERO,
    };
    let wiper = Wiper::new(&journal, &NoOthers)
        .with_notary(&issuer)
        .with_tuning(tuning);
    let observer = |event: &WipeEvent<'_>| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "event {event:?}").unwrap();
        ControlFlow::Continue(())
    };
    let pending = wiper.pending().unwrap();
    match pending.first() {
        // By its id every other time, by the same command else.
        Some(pending) if pending.position % (128 << 10) == 0 => {
            wiper.resume(&pending.id, &observer).unwrap();
        }
        _ => {
            wiper.wipe(&request(&folder), &observer).unwrap();
        }
    }
    println!("event end");
}

fn issuer(folder: &Path) -> Issuer {
    let node = NodeIdentity {
        name: "test".to_owned(),
        id: "0".to_owned(),
    };
    Issuer::open(&folder.join("certificates"), &folder.join("node.key"), node).unwrap()
}

/// Runs the victim and kills it after `lines` events. Gives the lines seen,
/// and whether it came to its end.
fn run_victim(folder: &Path, lines: usize) -> (usize, bool) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "victim",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut seen = 0;
    let mut ended = false;
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        seen += usize::from(line.contains("event "));
        ended |= line.contains("event end");
        if seen >= lines && !ended {
            victim.kill().unwrap();
            break;
        }
    }
    let status = victim.wait().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
    assert!(
        killed || ended && status.success(),
        "the victim failed by itself: {status}"
    );
    (seen, ended)
}

/// Whether a wipe is on record: then an end now is an interruption.
fn is_recorded(folder: &Path) -> bool {
    let Ok(listing) = fs::read_dir(folder.join("wipes")) else {
        return false;
    };
    listing.flatten().any(|entry| {
        entry.path().extension().is_some_and(|kind| kind == "wipe")
            && fs::read(entry.path())
                .unwrap()
                .first()
                .is_some_and(|byte| *byte == b'{')
    })
}

fn make_volume(folder: &Path, kind: Kind) {
    fs::create_dir_all(folder.join("pool")).unwrap();
    let path = folder.join("pool/volume");
    let at = path.to_str().unwrap();
    match kind {
        Kind::Qcow2 => {
            qemu_img(&[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "cluster_size=4k",
                at,
                "768k",
            ]);
            qemu_io(&path, "qcow2", &["write -P 0x41 0 512k"]);
            fs::write(folder.join("kind"), "qcow2").unwrap();
        }
        _ => {
            fs::write(&path, vec![b'A'; SIZE as usize]).unwrap();
            fs::write(
                folder.join("kind"),
                if kind == Kind::Raw { "raw" } else { "removed" },
            )
            .unwrap();
        }
    }
}

fn check_end(folder: &Path, kind: Kind, interruptions: usize) {
    let path = folder.join("pool/volume");
    let left: Vec<_> = fs::read_dir(folder.join("pool"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), usize::from(kind != Kind::Removed), "{left:?}");
    match kind {
        Kind::Raw => {
            let content = fs::read(&path).unwrap();
            assert!(content.len() as u64 == SIZE && content.iter().all(|byte| *byte == 0));
        }
        Kind::Qcow2 => {
            let at = path.to_str().unwrap();
            qemu_img(&["check", "-q", at]);
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "--output=json", at])).unwrap();
            assert_eq!(
                (&info["virtual-size"], &info["cluster-size"]),
                (&SIZE.into(), &4096.into())
            );
            let read = qemu_io(&path, "qcow2", &["read -P 0 0 768k"]);
            assert!(!read.contains("verification failed"), "{read}");
        }
        Kind::Removed => {}
    }
    assert_eq!(
        fs::read_dir(folder.join("wipes")).unwrap().count(),
        0,
        "no record is left"
    );
    let certificates: Vec<PathBuf> = fs::read_dir(folder.join("certificates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("0000")
        })
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .collect();
    assert_eq!(certificates.len(), 1, "one wipe, one certificate");
    let key = issuer(folder).public_key();
    let verified = verify(&certificates[0], Chain::Whole, Some(&key)).unwrap();
    let report = verified.certificate.report.as_ref().unwrap();
    assert!(!report.verdict.is_failed(), "{}", report.verdict);
    assert_eq!(
        report.interruptions.len(),
        interruptions,
        "{:?}",
        report.interruptions
    );
    assert!(
        report
            .interruptions
            .iter()
            .all(|one| one.restarted.is_none()),
        "{report:?}"
    );
    let outcome = match kind {
        Kind::Raw => Outcome::Kept,
        Kind::Qcow2 => Outcome::Rebuilt,
        Kind::Removed => Outcome::Removed,
    };
    assert_eq!(report.files[0].outcome, outcome);
    assert_eq!(report.files[0].passes.len(), 3);
}

/// A hundred deaths, spread over wipes of three kinds of volume.
#[test]
fn killed_at_a_hundred_moments_it_ends_the_same() {
    let mut deaths = 0;
    let mut rounds = 0;
    while deaths < 100 {
        let kind = [Kind::Raw, Kind::Qcow2, Kind::Removed][rounds % 3];
        rounds += 1;
        let folder = tempfile::tempdir().unwrap();
        make_volume(folder.path(), kind);
        let mut interruptions = 0;
        loop {
            let (_, ended) = run_victim(folder.path(), rand::random_range(1..60));
            if ended {
                break;
            }
            deaths += 1;
            // What comes after the certificate cannot be in it.
            let counts = is_recorded(folder.path()) && !is_certified(folder.path());
            interruptions += usize::from(counts);
            let over = !is_recorded(folder.path()) && is_certified(folder.path());
            if over {
                break;
            }
        }
        // A victim killed between its certificate and its last word is done,
        // but may have left files that the next opening sweeps.
        drop(FileJournal::open(&folder.path().join("wipes")).unwrap());
        check_end(folder.path(), kind, interruptions);
    }
    println!("{deaths} deaths in {rounds} wipes");
}

fn is_certified(folder: &Path) -> bool {
    fs::read_dir(folder.join("certificates")).is_ok_and(|listing| {
        listing.flatten().any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with("0000") && name.ends_with(".json")
        })
    })
}
