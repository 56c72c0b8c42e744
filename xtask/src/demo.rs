//! `cargo xtask demo`: a walk through what Cenote does on a node of its own, with the commands
//! a user would type and what they print: storage, ended by qemu-img's judgement, then a whole
//! install, and its end.

use crate::setup::{self, Group};
use crate::shell::{Context, Failure, Outcome, cargo, fail, output, program, run, target, time};
use crate::{installer, lab, test};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const USAGE: &str = "\
Usage: cargo xtask demo [storage|install]

Installs what is missing, builds, and shows on a temporary node: pools, volumes, chains and
snapshots; then how Debian is installed by a kickstart file on a qcow2 volume, boots from its
own disk, is brought back by a snapshot, and is torn down with a certificate. With `storage` or
`install` only that part. Fails if any step does not do what it says.

The install needs a /dev/kvm that runs 64-bit kernels. Where the machine has none it runs in the
lab (docs/lab.md), which emulates one: some ten minutes on two quiet processors.";

/// How long the install may take in the lab.
const LAB_TIME: Duration = Duration::from_secs(3600);

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

/// The install and its end. `$MEDIA` is where the installer's disc is.
const INSTALL: &[Step] = &[
    step(
        "An answer file is looked over before anything boots.",
        "cenote install --name debian --memory 1024 --disk size=3G --network none \\\n    \
         --location $MEDIA/debian.iso --kickstart $MEDIA/debian.ks --dry-run",
    ),
    step(
        "One command, from the install disc to a domain that runs from its own disk.",
        "cenote install --name debian --memory 1024 --disk size=3G --network none \\\n    \
         --location $MEDIA/debian.iso --kickstart $MEDIA/debian.ks",
    ),
    step(
        "The installed Debian booted from its disk.",
        "says 'db login:'\n\
         cenote domblklist debian",
    ),
    step(
        "A snapshot; then a mistake that takes the boot sector and all behind it.",
        "cenote destroy debian\n\
         cenote snapshot-create-as debian fresh\n\
         write debian.qcow2 'write -P 0xee 0 64M'",
    ),
    step(
        "Back to the snapshot, and it boots again.",
        "cenote snapshot-revert debian fresh --yes\n\
         : >\"$CENOTE_STATE_DIR/log/debian/console.log\"\n\
         cenote start debian\n\
         says 'db login:'",
    ),
    step(
        "Away with it: the guest, its disk with the snapshot, its logs, overwritten and certified, \
         as far as the host's disk lets an overwrite be proved.",
        "cenote teardown debian --wipe=zero --best-effort --confirm debian",
    ),
    step(
        "What is left: the certificates, which hold.",
        "cenote verify-certificate\n\
         find \"$CENOTE_STATE_DIR\" -name 'debian*'",
    ),
];

/// What `says TEXT` in the steps does.
const SAYS: &str = r#"says() {
    until cenote logs debian | grep -ao "$1"; do
        [ "$(cenote domstate debian)" = running ]; sleep 2
    done
}"#;

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
    let (mut storage, mut install) = (true, true);
    match arguments.first().map(String::as_str) {
        None => {}
        Some("storage") => install = false,
        Some("install") => storage = false,
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(other) => return fail(format_args!("demo: unknown argument `{other}`\n\n{USAGE}")),
    }
    setup::ensure(&[Group::Test])?;
    println!("building cenote");
    run(&mut cargo(["build", "--quiet", "--workspace", "--bins"]))?;
    if storage {
        println!("\n{WRITE}");
        let node = Node::new()?;
        for step in STEPS {
            node.take(step)?;
        }
    }
    if install {
        show_install()?;
    }
    println!("\nAll of it held. The node is removed; nothing else was touched.");
    Ok(ExitCode::SUCCESS)
}

/// The install: on this machine's KVM where that is real, else in the lab.
fn show_install() -> Outcome<()> {
    let installer = installer::ready()?;
    let begun = Instant::now();
    if let Err(why) = test::real_kvm() {
        println!("\nthe install runs in the lab: {why}");
        let script = format!(
            "export CENOTE_PROGRAMS=/lab/bin CENOTE_STATE_DIR=/var/tmp/demo\n\
             export MEDIA=/lab/payload/with/ks-installer\ncd /var/tmp\n{}",
            install_script()
        );
        let run = lab::Run {
            command: vec!["bash".into(), "-c".into(), script],
            programs: lab::Programs {
                extra: vec![installer],
                ..lab::Programs::default()
            },
            timeout: LAB_TIME,
            ..lab::Run::default()
        };
        match run.run()? {
            0 => {}
            status => {
                return fail(format_args!(
                    "the install did not go as it says (status {status})"
                ));
            }
        }
    } else {
        let node = Node::new()?;
        let script = format!(
            "export MEDIA={}\n{}",
            crate::shell::quoted(&installer.display().to_string()),
            install_script()
        );
        let ended = node.shell(&script)?.status().context("bash")?;
        if !ended.success() {
            return Err(Failure("the install did not go as it says".into()));
        }
    }
    println!("\nThe install and its end took {}.", time(begun.elapsed()));
    Ok(())
}

/// The install's steps as one script, which shows each line before it runs it.
fn install_script() -> String {
    let mut script = format!("set -euo pipefail\n{WRITE}\n{SAYS}\n");
    for step in INSTALL {
        script.push_str(&format!(
            "printf '\\n# %s\\n' {}\n",
            crate::shell::quoted(step.says)
        ));
        // A line that a backslash joins to the next is one command.
        for line in step.line.replace("\\\n", "\u{1}").lines() {
            let line = line.replace('\u{1}', "\\\n");
            let shown = crate::shell::quoted(&line);
            script.push_str(&format!("printf '$ %s\\n' {shown}\n{line}\n"));
        }
    }
    script
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
