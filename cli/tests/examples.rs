//! Every example of every `--help` is run.

mod common;

use cenote::verbs;
use common::fixture;

#[test]
fn every_example_works() {
    for entry in verbs::all() {
        assert!(!entry.examples.is_empty(), "{} has no example", entry.name);
        for example in entry.examples {
            let cenote = fixture();
            assert!(
                example.line.contains(entry.name) || spaced(entry, example.line),
                "{example:?}"
            );
            let run = cenote.shell(example.line);
            let fine = match entry.name {
                // A build machine need not be a good host, nor have LVM.
                "doctor" => run.code == 0 || (run.code == 6 && run.stderr.contains("E0106")),
                name if name.starts_with("find-storage") => {
                    run.code == 0 || (run.code == 6 && run.stderr.contains("lvm2"))
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
