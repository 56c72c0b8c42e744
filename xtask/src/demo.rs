//! `cargo xtask demo`: a walk through the storage part on a node of its own, with the commands
//! a user would type and what they print, ended by qemu-img's judgement.

use crate::setup::{self, Group};
use crate::shell::{Context, Outcome, cargo, fail, output, program, run, target};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask demo

Installs what is missing, builds, and shows pools, volumes, chains and snapshots on a
temporary node. Fails if any step does not do what it says.";

/// What a step is to end with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Well,
    /// The command refuses, and its message has this text.
    Refused(&'static str),
}

/// Lines of shell and what they show.
struct Step {
    says: &'static str,
    line: &'static str,
    ends: Ends,
}

const fn step(says: &'static str, line: &'static str) -> Step {
    Step {
        says,
        line,
        ends: Ends::Well,
    }
}

const fn refused(says: &'static str, line: &'static str, text: &'static str) -> Step {
    Step {
        says,
        line,
        ends: Ends::Refused(text),
    }
}

/// The walk. `expected.qcow2` is what qemu-img alone makes of the same writes.
const STEPS: &[Step] = &[
    step("A fresh node has one pool.", "cenote pool-list --all"),
    step(
        "A volume: qcow2, 256 MiB.",
        "cenote vol-create-as default debian 256M --format qcow2",
    ),
    step(
        "Any NBD client can write to a volume that cenote serves; here it is qemu-io.",
        "write debian 'write -P 0x11 0 8M'",
    ),
    step(
        "Two overlays on it: what they write stays theirs.",
        "cenote vol-overlay debian web\n\
         cenote vol-overlay debian database\n\
         write web 'write -P 0x22 2M 4M'",
    ),
    step(
        "An internal snapshot, then a mistake, then back.",
        "cenote vol-snapshot-create web before-upgrade\n\
         write web 'write -P 0xee 0 64M'\n\
         cenote vol-snapshot-list web\n\
         cenote vol-snapshot-revert web before-upgrade --yes\n\
         cenote vol-snapshot-delete web before-upgrade --yes",
    ),
    step("The chain as a tree.", "cenote vol-chain debian"),
    refused(
        "What others stand on is not deleted, and the refusal says who stands on it.",
        "cenote vol-delete debian --yes",
        "web",
    ),
    step(
        "One overlay takes over what it needs and stands alone; the other goes into the base.",
        "cenote vol-flatten database\n\
         cenote vol-commit web --yes\n\
         cenote vol-list default --details",
    ),
    step(
        "Our check of the tables, and QEMU's.",
        "cenote vol-check debian\n\
         qemu-img check \"$(cenote vol-path debian)\"",
    ),
    step(
        "The proof: the same writes by QEMU's tools alone read the same.",
        "qemu-img create -q -f qcow2 expected.qcow2 256M\n\
         qemu-io -f qcow2 -c 'write -P 0x11 0 8M' expected.qcow2 > /dev/null\n\
         qemu-img compare \"$(cenote vol-path database)\" expected.qcow2\n\
         qemu-io -f qcow2 -c 'write -P 0x22 2M 4M' expected.qcow2 > /dev/null\n\
         qemu-img compare \"$(cenote vol-path debian)\" expected.qcow2",
    ),
];

/// What `write VOLUME WORDS` in the steps does; it is shown once, before the walk.
const WRITE: &str = r#"write() {
    cenote vol-serve "$1" --socket nbd.sock --exit-with-client --timeout 5m &
    until [ -S nbd.sock ]; do kill -0 $!; sleep 0.1; done
    qemu-io -f raw -c "$2" -c flush 'nbd+unix:///?socket=nbd.sock' > /dev/null
    wait $!
    rm -f nbd.sock
}"#;

/// Runs `cargo xtask demo`.
pub(crate) fn command(arguments: &[String]) -> Outcome<ExitCode> {
    match arguments.first().map(String::as_str) {
        None => {}
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(other) => return fail(format_args!("demo: unknown argument `{other}`\n\n{USAGE}")),
    }
    setup::ensure(&[Group::Test])?;
    println!("building cenote");
    run(&mut cargo(["build", "--quiet", "--package", "cenote"]))?;
    println!("\n{WRITE}");
    let node = Node::new()?;
    for step in STEPS {
        node.take(step)?;
    }
    println!("\nAll of it held. The node is removed; nothing else was touched.");
    Ok(ExitCode::SUCCESS)
}

/// A node in a folder of its own, removed with everything in it.
struct Node {
    folder: PathBuf,
}

impl Node {
    fn new() -> Outcome<Self> {
        let folder = output(&mut program("mktemp", ["-d", "-t", "cenote-demo.XXXXXX"]))?;
        Ok(Self {
            folder: PathBuf::from(folder.trim_end()),
        })
    }

    fn take(&self, step: &Step) -> Outcome<()> {
        println!("\n# {}", step.says);
        for line in step.line.lines() {
            println!("$ {line}");
            let mut shell = self.shell(line)?;
            let failed = || fail(format_args!("this step failed: {}", step.says));
            match step.ends {
                Ends::Well if shell.status().context("bash")?.success() => {}
                Ends::Well => return failed(),
                Ends::Refused(text) => {
                    let result = shell.output().context("bash")?;
                    let message = String::from_utf8_lossy(&result.stderr);
                    print!("{message}");
                    if result.status.success() || !message.contains(text) {
                        return failed();
                    }
                }
            }
        }
        Ok(())
    }

    fn shell(&self, line: &str) -> Outcome<Command> {
        let programs = fs::canonicalize(target().join("debug")).context(target().display())?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &format!("{WRITE}\n{line}")])
            .current_dir(&self.folder)
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("CENOTE_STATE_DIR", Path::new(&self.folder).join("node"));
        Ok(shell)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
