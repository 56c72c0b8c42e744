//! A transcript of verbs on one domain, beside what libvirt 9.0.0 said to the same, in
//! `tests/golden/life.txt`. A tiny guest on any `/dev/kvm`; the other programs are built with
//! `cargo build --bins`.

mod common;
#[allow(dead_code, reason = "each suite uses its part")]
#[path = "../../fixtures/guests.rs"]
#[allow(unreachable_pub, reason = "a module of several suites")]
mod guests;

use common::{Cenote, Run, run};

const GOLDEN: &str = include_str!("golden/life.txt");

/// What one command is to do here.
#[derive(Debug, Default, PartialEq)]
struct Step {
    command: String,
    /// Words of the refusal; empty if it is done.
    refused: String,
    state: String,
    events: Vec<String>,
}

/// Reads the transcript as Cenote is to walk it, with the differences that are meant.
fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for line in GOLDEN
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        if let Some(command) = line.strip_prefix("> ") {
            steps.push(Step {
                command: command.to_owned(),
                ..Step::default()
            });
            continue;
        }
        let step = steps.last_mut().expect("a command first");
        let line = line.trim();
        let (who, said) = match line.split_once(' ') {
            Some(("cenote" | "+", said)) => ("cenote", said),
            Some(("libvirt" | "-", said)) => ("libvirt", said),
            _ => ("both", line),
        };
        if who == "libvirt" {
            continue;
        }
        match said.split_once(": ") {
            Some(("refused", words)) => step.refused = words.to_owned(),
            Some(("state", words)) => step.state = words.to_owned(),
            Some(("event", words)) => step.events.push(words.to_owned()),
            _ if said == "done" => step.refused.clear(),
            _ => panic!("what is {line:?}?"),
        }
    }
    steps
}

struct Node(Cenote);

impl Drop for Node {
    fn drop(&mut self) {
        self.run("destroy g");
    }
}

impl Node {
    fn run(&self, line: &str) -> Run {
        let mut command = self.0.command();
        command.env("CENOTE_ALLOW_EMULATION", "1");
        // virsh does not ask.
        let sure = match line.split_once(' ') {
            Some(("snapshot-revert", _)) => Some("--force"),
            Some(("snapshot-delete", _)) => Some("--yes"),
            _ => None,
        };
        run(command.args(line.split_whitespace()).args(sure))
    }

    fn state(&self) -> String {
        let run = self.run("domstate g --reason");
        match run.code {
            0 => run.stdout.trim().to_owned(),
            _ => "no domain".to_owned(),
        }
    }

    /// Life-cycle and reboot events.
    fn events(&self) -> Vec<String> {
        let line = "event --after 0 --loop --timeout 0 --event lifecycle --event reboot -o json";
        let said = self.run(line).ok().stdout;
        let mut events = Vec::new();
        for line in said.lines().filter(|line| !line.trim().is_empty()) {
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let word = |key: &str| event["detail"][key].as_str().unwrap_or_default();
            events.push(match event["kind"].as_str() {
                Some("reboot") => "reboot".to_owned(),
                _ => format!("{} {}", word("event"), word("detail")),
            });
        }
        events
    }
}

/// States, reasons, events and refusals are libvirt's, but for differences that are written down.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_life_is_as_libvirt_tells_it() {
    let node = Node(Cenote::new());
    std::fs::write(node.0.path("deaf"), guests::heartbeat(false)).expect("written");
    node.run("vol-create-as default d.qcow2 1M --format qcow2")
        .ok();
    let image = node.run("vol-path d.qcow2").ok().stdout;
    let xml = format!(
        "<domain type='kvm'><name>g</name><uuid>00000000-0000-4000-8000-000000000001</uuid>\
         <memory unit='MiB'>16</memory><os><type>hvm</type><kernel>{}</kernel></os><devices>\
         <disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/>\
         <target dev='vda' bus='virtio'/></disk><serial type='pty'/></devices></domain>",
        node.0.path("deaf").display(),
        image.trim()
    );
    std::fs::write(node.0.path("g.xml"), xml).expect("written");
    let steps = steps();
    assert!(steps.len() > 50, "{}", steps.len());
    let mut differ = Vec::new();
    let meant: Vec<&String> = steps.iter().flat_map(|step| &step.events).collect();
    for step in &steps {
        let run = node.run(&step.command);
        let found = Step {
            command: step.command.clone(),
            refused: match (run.code, run.stderr.contains(&step.refused)) {
                (0, _) => String::new(),
                (_, true) if !step.refused.is_empty() => step.refused.clone(),
                _ => run.stderr.clone(),
            },
            state: node.state(),
            // All together below, since each look is a process.
            events: step.events.clone(),
        };
        if found != *step {
            differ.push(format!("meant {step:#?}\nfound {found:#?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    let found = node.events();
    assert!(
        found.iter().eq(meant.iter().copied()),
        "meant {meant:#?}\nfound {found:#?}"
    );
    println!("{} commands as in the transcript", steps.len());
}
