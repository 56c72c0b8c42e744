//! `cargo xtask bench life`: commands on domains, each with the time its process takes; defining
//! beside virsh with libvirt's test driver, which needs no daemon and keeps nothing.

use super::measure::{median, run};
use super::{Scratch, Wanted};
use crate::shell::{Context, Outcome, cargo, fail, on_path, output, program, target};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../../fixtures/guests.rs"]
#[allow(dead_code, reason = "one guest is enough here")]
#[allow(unreachable_pub, reason = "a module of several suites")]
mod guests;

const DOMAINS: usize = 1000;
/// Measured runs of short commands in each round.
const REPEATS: usize = 7;

struct Case {
    key: &'static str,
    name: &'static str,
    /// Milliseconds.
    at_most: f64,
}

const CASES: [Case; 5] = [
    Case {
        key: "list",
        name: "list of 1,000 domains",
        at_most: 30.0,
    },
    Case {
        key: "define",
        name: "define 1,000 domains",
        at_most: 5000.0,
    },
    Case {
        key: "internal",
        name: "snapshot of 1 TiB, internal",
        at_most: 50.0,
    },
    Case {
        key: "external",
        name: "snapshot of 1 TiB, external",
        at_most: 50.0,
    },
    Case {
        key: "suspend",
        name: "suspend a running domain",
        at_most: 10.0,
    },
];

type Times = BTreeMap<String, Vec<f64>>;

pub(super) fn run_all(wanted: &Wanted) -> Outcome<()> {
    if wanted.only.is_some() {
        return fail("bench life: the cases stand on each other; --only is not taken");
    }
    println!("building in the release profile");
    let packages = ["cenote", "cenote-engine", "cenote-vmm"];
    let packages = packages.iter().flat_map(|name| ["-p", name]);
    output(cargo(["build", "--quiet", "--release", "--bins"]).args(packages))?;
    let scratch = Scratch::new(&wanted.folder)?;
    documents(&scratch)?;
    let ours = cenote(&scratch, wanted.rounds)?;
    let peer = match on_path("virsh") {
        true => virsh(&scratch, wanted.rounds)?,
        false => Times::new(),
    };
    publish(&ours, &peer)
}

/// The documents that both define.
fn documents(scratch: &Scratch) -> Outcome<()> {
    let disk = scratch.file("big.qcow2");
    output(
        program("qemu-img", ["create", "-q", "-f", "qcow2"])
            .arg(&disk)
            .arg("1T"),
    )?;
    let document = |kind: &str, name: &str, os: &str, disk: &str| {
        format!(
            "<domain type='{kind}'><name>{name}</name><memory>65536</memory>\
             <os><type arch='x86_64' machine='pc'>hvm</type>{os}</os><devices>{disk}\
             <serial type='pty'/></devices></domain>"
        )
    };
    let write = |name: &str, text: String| {
        let path = scratch.file(name);
        fs::write(&path, text).context(path.display())
    };
    for number in 0..DOMAINS {
        let name = format!("d{number:04}");
        let disk = format!(
            "<disk type='file'><driver name='qemu' type='qcow2'/>\
             <source file='/images/{name}.qcow2'/><target dev='vda' bus='virtio'/></disk>"
        );
        write(
            &format!("define-{name}.xml"),
            document("test", &name, "", &disk),
        )?;
        write(
            &format!("ours-{name}.xml"),
            document("kvm", &name, "", &disk),
        )?;
    }
    let big = format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk>",
        disk.display()
    );
    write("ours-big.xml", document("kvm", "big", "", &big))?;
    fs::write(scratch.file("kernel"), guests::heartbeat(true)).context("kernel")?;
    let kernel = format!("<kernel>{}</kernel>", scratch.file("kernel").display());
    write("guest.xml", document("kvm", "guest", &kernel, ""))
}

/// A command on a node of its own.
struct Node {
    program: PathBuf,
    state: PathBuf,
    backing: PathBuf,
}

impl Node {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = program("env", ["CENOTE_ALLOW_EMULATION=1"]);
        command.arg(&self.program);
        command.arg("--backing-dirs").arg(&self.backing);
        command.arg("--state-dir").arg(&self.state);
        command.args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Outcome<()> {
        output(&mut self.command(words)).map(drop)
    }

    /// Milliseconds of the whole process.
    fn timed(&self, times: &mut Times, case: &str, words: &[&str]) -> Outcome<()> {
        let measured = run(&self.command(words))?;
        times
            .entry(case.to_owned())
            .or_default()
            .push(measured.seconds * 1000.0);
        Ok(())
    }
}

fn cenote(scratch: &Scratch, rounds: usize) -> Outcome<Times> {
    let mut times = Times::new();
    let shown = |name: String| scratch.file(&name).display().to_string();
    let files: Vec<String> = (0..DOMAINS)
        .map(|number| shown(format!("ours-d{number:04}.xml")))
        .collect();
    for round in 0..rounds {
        let node = Node {
            program: target().join("release").join("cenote"),
            state: scratch.file(&format!("state-{round}")),
            backing: scratch.file(""),
        };
        node.run(&["list", "--all"])?;
        let mut words = vec!["define"];
        words.extend(files.iter().map(String::as_str));
        node.timed(&mut times, "define", &words)?;
        for _ in 0..REPEATS {
            node.timed(&mut times, "list", &["list", "--all"])?;
        }
        node.run(&["define", &shown("ours-big.xml".to_owned())])?;
        for repeat in 0..REPEATS {
            let name = format!("i{repeat}");
            node.timed(
                &mut times,
                "internal",
                &["snapshot-create-as", "big", &name],
            )?;
            node.run(&["snapshot-delete", "big", &name, "--yes"])?;
        }
        for repeat in 0..REPEATS {
            let name = format!("e{repeat}");
            let words = ["snapshot-create-as", "big", &name, "--disk-only"];
            node.timed(&mut times, "external", &words)?;
            node.run(&["snapshot-delete", "big", &name, "--yes"])?;
        }
        if Path::new("/dev/kvm").exists() {
            node.run(&["define", &shown("guest.xml".to_owned())])?;
            node.run(&["start", "guest"])?;
            for _ in 0..REPEATS {
                node.timed(&mut times, "suspend", &["suspend", "guest"])?;
                node.run(&["resume", "guest"])?;
            }
            node.run(&["destroy", "guest"])?;
        }
    }
    Ok(times)
}

/// libvirt's test driver, which keeps definitions in memory alone: what the documents cost.
fn virsh(scratch: &Scratch, rounds: usize) -> Outcome<Times> {
    let mut script = String::new();
    for number in 0..DOMAINS {
        let file = scratch.file(&format!("define-d{number:04}.xml"));
        let _ = writeln!(script, "define {};", file.display());
    }
    let mut times = Times::new();
    for _ in 0..rounds {
        let measured = run(&program("virsh", ["-q", "-c", "test:///default", &script]))?;
        times
            .entry("define".to_owned())
            .or_default()
            .push(measured.seconds * 1000.0);
    }
    Ok(times)
}

fn publish(ours: &Times, peer: &Times) -> Outcome<()> {
    let value = |times: &Times, case: &Case| times.get(case.key).map(|values| median(values));
    let mut table = format!(
        "\nmedians of whole processes, ms\n\n{:<30}{:>10}{:>10}{:>10}{:>8}\n",
        "case", "at most", "Cenote", "virsh", "ratio"
    );
    let mut missed = Vec::new();
    let mut lines = Vec::new();
    for case in &CASES {
        let (own, other) = (value(ours, case), value(peer, case));
        let shown =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        let ratio = own.zip(other).map(|(own, other)| other / own);
        let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let (at_most, own_text) = (case.at_most, shown(own));
        let _ = writeln!(
            table,
            "{:<30}{at_most:>10.0}{own_text:>10}{:>10}{ratio:>8}",
            case.name,
            shown(other)
        );
        match own {
            Some(own) if own > case.at_most => missed.push(case.name),
            Some(_) => {}
            None => missed.push(case.name),
        }
        let number = |value: Option<f64>| value.map_or("null".to_owned(), |v| format!("{v:.3}"));
        lines.push(format!(
            "{{\"case\":\"{}\",\"at_most_ms\":{},\"cenote_ms\":{},\"virsh_ms\":{}}}",
            case.key,
            case.at_most,
            number(own),
            number(other)
        ));
    }
    print!("{table}");
    match missed.is_empty() {
        true => println!("\nEvery goal was reached."),
        false => println!("\nNot reached: {}", missed.join(", ")),
    }
    let file = target().join("bench").join("life.json");
    fs::create_dir_all(target().join("bench")).context("bench")?;
    fs::write(&file, format!("[{}]\n", lines.join(","))).context(file.display())?;
    println!("\nwritten to {}", file.display());
    Ok(())
}
