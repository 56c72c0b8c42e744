//! Every example of every `--help` is run.

mod common;

use cenote::verbs;
use common::{fixture, snapshots};

/// `tests/kvm_domains.rs` runs these for real.
const NEED_A_RUNNING_DOMAIN: [&str; 14] = [
    "send-key",
    "screenshot",
    "domblkstat",
    "domifaddr",
    "shutdown",
    "reboot",
    "reset",
    "stop",
    "destroy",
    "suspend",
    "resume",
    "console",
    "save",
    "managedsave",
];
const NEED_A_SAVED_DOMAIN: [&str; 7] = [
    "restore",
    "managedsave-dumpxml",
    "managedsave-define",
    "managedsave-edit",
    "save-image-dumpxml",
    "save-image-define",
    "save-image-edit",
];

#[test]
fn every_example_works() {
    for entry in verbs::all() {
        assert!(!entry.examples.is_empty(), "{} has no example", entry.name);
        for example in entry.examples {
            let cenote = fixture();
            if entry.name.starts_with("snapshot-") {
                snapshots(&cenote);
            }
            assert!(
                example.line.contains(entry.name) || spaced(entry, example.line),
                "{example:?}"
            );
            // No example starts a monitor.
            let line = format!("export CENOTE_PROGRAMS=/nonexistent; {}", example.line);
            let run = cenote.shell(&line);
            let fine = match entry.name {
                // A build machine need not be a good host, nor have LVM.
                "doctor" => run.code == 0 || (run.code == 6 && run.stderr.contains("E0106")),
                name if name.starts_with("find-storage") => {
                    run.code == 0 || (run.code == 6 && run.stderr.contains("lvm2"))
                }
                // Nothing runs and nothing is saved in the fixture.
                name if NEED_A_RUNNING_DOMAIN.contains(&name) => {
                    run.code == 5 && run.stderr.contains("E0603")
                }
                name if NEED_A_SAVED_DOMAIN.contains(&name) => {
                    [1, 3, 5].contains(&run.code) && run.stderr.contains("save")
                }
                // There is no monitor; other things may be missing first.
                "start" | "create" => {
                    run.code != 0
                        && ["E0110", "E0604", "E0605"]
                            .iter()
                            .any(|e| run.stderr.contains(e))
                }
                _ => run.code == 0,
            };
            assert!(fine, "{}\n{run:#?}", example.line);
        }
    }
}

fn spaced(entry: &cenote::verb::Entry, line: &str) -> bool {
    entry
        .spaced()
        .is_some_and(|(noun, action)| line.contains(&format!("{noun} {action}")))
}
