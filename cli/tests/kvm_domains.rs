//! Domains that run, from the command line, with tiny guests on any `/dev/kvm`. Row numbers are
//! those of the feature table. The other programs are built with `cargo build --bins`.

mod common;
#[allow(dead_code, reason = "each suite uses its part")]
#[path = "../../fixtures/guests.rs"]
#[allow(unreachable_pub, reason = "a module of several suites")]
mod guests;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Cenote, Run, run};

/// Longer than anything takes on a busy machine that emulates.
const PATIENCE: Duration = Duration::from_secs(120);

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A node whose domains end with it.
struct Node(Cenote);

impl Drop for Node {
    fn drop(&mut self) {
        let running = self.run("list --name").stdout;
        for name in running.lines() {
            self.run(&format!("destroy {name}"));
        }
    }
}

impl Node {
    fn new() -> Self {
        let cenote = Cenote::new();
        for (file, guest) in [
            ("beat", guests::heartbeat(true)),
            ("deaf", guests::heartbeat(false)),
            ("off", guests::off()),
            ("reset", guests::reset()),
        ] {
            std::fs::write(cenote.path(file), guest).expect("written");
        }
        Node(cenote)
    }

    fn command(&self) -> Command {
        let mut command = self.0.command();
        command.env("CENOTE_ALLOW_EMULATION", "1");
        command
    }

    fn run(&self, line: &str) -> Run {
        run(self.command().args(line.split_whitespace()))
    }

    fn ok(&self, line: &str) -> String {
        self.run(line).ok().stdout
    }

    /// A document of a domain that runs `guest`.
    fn write(&self, name: &str, guest: &str, more: &str) {
        let uuid = format!("<uuid>{}</uuid>", uuid_of(name));
        let xml = format!(
            "<domain type='kvm'><name>{name}</name>{uuid}<memory>8192</memory>\
             <os><type>hvm</type><kernel>{}</kernel></os>{more}\
             <devices><serial type='pty'/></devices></domain>",
            self.0.path(guest).display()
        );
        std::fs::write(self.0.path(&format!("{name}.xml")), xml).expect("written");
    }

    fn state(&self, name: &str) -> String {
        let run = self.run(&format!("domstate {name} --reason"));
        match run.code {
            0 => run.stdout.trim().to_owned(),
            3 => "undefined".to_owned(),
            _ => panic!("{run:?}"),
        }
    }

    fn wait_state(&self, name: &str, state: &str) {
        wait_for(state, || self.state(name) == state);
    }

    /// What `event` prints of everything so far.
    fn events(&self) -> String {
        self.ok("event --after 0 --loop --timeout 0 --event lifecycle --event reboot")
    }
}

/// A UUID that follows from the name, so that a document finds its domain again.
fn uuid_of(name: &str) -> String {
    let sum = name
        .bytes()
        .fold(7_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    format!("00000000-0000-4000-8000-0000{sum:08x}")
}

/// Row 58: every verb in every state. `ok` is a legal edge, and what follows is the state it
/// leads to; everything else is a refusal, which changes nothing.
#[test]
#[ignore = "needs /dev/kvm"]
fn every_verb_in_every_state() {
    const STATES: [&str; 5] = ["undefined", "shut off", "running", "paused", "saved"];
    const VERBS: [&str; 14] = [
        "define FILE",
        "undefine DOMAIN",
        "create FILE",
        "start DOMAIN",
        "shutdown DOMAIN",
        "reboot DOMAIN",
        "reset DOMAIN",
        "destroy DOMAIN",
        "suspend DOMAIN",
        "resume DOMAIN",
        "save DOMAIN saved",
        "managedsave DOMAIN",
        "managedsave-remove DOMAIN",
        "autostart DOMAIN",
    ];
    const NONE: &str = "3 domain not found";
    const OFF: &str = "5 domain is not running";
    const ON: &str = "5 domain is already active";
    #[rustfmt::skip]
    const GOLDEN: [[&str; 5]; 14] = [
        // undefined             shut off                    running                     paused                      saved
        ["shut off (unknown)",   "shut off (unknown)",       "running (booted)",         "paused (user)",            "shut off (saved)"],
        [NONE,                   "undefined",                "running (booted)",         "paused (user)",            "5 Refusing to undefine while domain managed save image exists"],
        ["running (booted)",     "running (booted)",         ON,                         ON,                         "running (booted)"],
        [NONE,                   "running (booted)",         ON,                         ON,                         "running (restored)"],
        [NONE,                   OFF,                        "shut off (shutdown)",      OFF,                        OFF],
        [NONE,                   OFF,                        "running (booted)",         OFF,                        OFF],
        [NONE,                   OFF,                        "running (booted)",         "paused (user)",            OFF],
        [NONE,                   OFF,                        "shut off (destroyed)",     "shut off (destroyed)",     OFF],
        [NONE,                   OFF,                        "paused (user)",            "paused (user)",            OFF],
        [NONE,                   OFF,                        "5 domain is already running", "running (unpaused)",    OFF],
        [NONE,                   OFF,                        "shut off (saved)",         "shut off (saved)",         OFF],
        [NONE,                   OFF,                        "shut off (saved)",         "shut off (saved)",         OFF],
        [NONE,                   "shut off (unknown)",       "running (booted)",         "paused (user)",            "shut off (saved)"],
        [NONE,                   "shut off (unknown)",       "running (booted)",         "paused (user)",            "shut off (saved)"],
    ];
    let node = Node::new();
    for (state, column) in STATES.iter().zip(0..) {
        for (verb, row) in VERBS.iter().zip(&GOLDEN) {
            let name = format!("d{column}-{}", verb.split(' ').next().unwrap_or_default());
            node.write(&name, "beat", "");
            if *state != "undefined" {
                node.ok(&format!("define {name}.xml"));
            }
            match *state {
                "running" => drop(node.ok(&format!("start {name}"))),
                "paused" => {
                    node.ok(&format!("start {name}"));
                    node.ok(&format!("suspend {name}"));
                }
                "saved" => {
                    node.ok(&format!("start {name}"));
                    node.ok(&format!("managedsave {name}"));
                }
                _ => {}
            }
            let before = node.state(&name);
            let line = verb
                .replace("FILE", &format!("{name}.xml"))
                .replace("DOMAIN", &name);
            let run = node.run(&line);
            let expected = row[column];
            match expected.split_once(' ') {
                Some((code @ ("3" | "5"), says)) => {
                    assert_eq!(run.code.to_string(), code, "{state}: {line}: {run:?}");
                    assert!(run.stderr.contains(says), "{state}: {line}: {run:?}");
                    if code == "5" {
                        let prefix = "Requested operation is not valid: ";
                        assert!(run.stderr.contains(prefix), "{state}: {line}: {run:?}");
                    }
                    assert_eq!(node.state(&name), before, "{state}: {line}");
                }
                _ => {
                    assert_eq!(run.code, 0, "{state}: {line}: {run:?}");
                    wait_for(&format!("{expected} after {line} in {state}"), || {
                        node.state(&name) == expected
                    });
                }
            }
            node.run(&format!("destroy {name}"));
        }
    }
}

/// The whole life of one domain, as virsh words it.
#[test]
#[ignore = "needs /dev/kvm"]
fn life_of_a_domain() {
    let node = Node::new();
    node.write("g", "beat", "");
    for (line, says) in [
        ("define g.xml", "Domain 'g' defined from g.xml"),
        ("start g", "Domain 'g' started"),
        ("suspend g", "Domain 'g' suspended"),
        ("resume g", "Domain 'g' resumed"),
        ("reset g", "Domain 'g' was reset"),
        ("save g g.save", "Domain 'g' saved to g.save"),
        ("restore g.save", "Domain restored from g.save"),
        ("managedsave g", "Domain 'g' state saved"),
        ("start g --paused", "Domain 'g' started"),
        ("destroy g", "Domain 'g' destroyed"),
        (
            "managedsave-remove g",
            "Domain 'g' has no manage save image; removal skipped",
        ),
        ("create g.xml", "Domain 'g' created from g.xml"),
        ("shutdown g --wait", "Domain 'g' is being shutdown"),
        ("undefine g", "Domain 'g' has been undefined"),
    ] {
        assert_eq!(node.ok(line), format!("{says}\n"), "{line}");
    }
    let log = node.events();
    let words: Vec<&str> = log
        .lines()
        .map(|line| {
            line.strip_prefix("event 'lifecycle' for domain 'g': ")
                .unwrap_or(line)
        })
        .collect();
    assert_eq!(
        words,
        [
            "Defined Added",
            "Started Booted",
            "Suspended Paused",
            "Resumed Unpaused",
            "event 'reboot' for domain 'g'",
            "Stopped Saved",
            "Started Restored",
            "Stopped Saved",
            "Started Restored",
            "Suspended Restored",
            "Stopped Destroyed",
            "Started Booted",
            "Shutdown Finished after host request",
            "Stopped Shutdown",
            "Undefined Removed",
        ]
    );
    let last = node
        .run("event --after 0 --loop --timeout 0 --event lifecycle -o json")
        .ok();
    let mut sequence = 0;
    for line in last.stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let now = event["sequence"].as_i64().expect("a number");
        assert!(now > sequence, "{line}");
        sequence = now;
        assert_eq!(event["subject"], "g");
        for key in ["uuid", "event", "detail", "cause"] {
            assert!(event["detail"][key].is_string(), "{line}");
        }
    }
}

/// Saved domains show and change what they are; dry runs do nothing to what runs.
#[test]
#[ignore = "needs /dev/kvm"]
fn saved_documents_and_dry_runs() {
    let node = Node::new();
    node.write("g", "beat", "");
    node.ok("define g.xml");
    node.ok("start g");
    for line in [
        "shutdown g",
        "reboot g",
        "reset g",
        "stop g --force",
        "destroy g",
        "suspend g",
        "save g dry.save",
        "managedsave g",
        "managedsave-remove g",
    ] {
        let plan = node.run(&format!("{line} --dry-run")).ok();
        assert!(plan.stdout.contains("Nothing was changed."), "{plan:?}");
        assert_eq!(node.state("g"), "running (booted)", "{line}");
    }
    assert!(!node.0.path("dry.save").exists());
    node.ok("save g g.save");
    node.ok("start g");
    node.ok("managedsave g --paused");
    let document = node.ok("save-image-dumpxml g.save");
    assert_eq!(node.ok("managedsave-dumpxml g"), document);
    assert!(document.contains("<name>g</name>"), "{document}");
    let titled = document.replace("</uuid>", "</uuid><title>new</title>");
    std::fs::write(node.0.path("titled.xml"), titled).expect("written");
    std::fs::write(node.0.path("other.xml"), document.replace(">g<", ">h<")).expect("written");
    node.run("save-image-define g.save other.xml")
        .fails(2, "another name");
    for line in [
        "save-image-define g.save titled.xml",
        "managedsave-define g titled.xml --running",
        "save-image-edit g.save",
        "managedsave-edit g",
        "restore g.save",
        "start g",
    ] {
        node.run(&format!("{line} --dry-run")).ok();
    }
    assert_eq!(node.ok("save-image-dumpxml g.save"), document);
    node.ok("save-image-define g.save titled.xml");
    node.ok("managedsave-define g titled.xml --running");
    let mut edit = node.command();
    edit.args(["save-image-edit", "g.save"])
        .env("EDITOR", "sed -i s/new/newer/");
    run(&mut edit).ok();
    let mut edit = node.command();
    edit.args(["managedsave-edit", "g"])
        .env("EDITOR", "sed -i s/new/newer/");
    run(&mut edit).ok();
    assert!(
        node.ok("save-image-dumpxml g.save")
            .contains("<title>newer</title>")
    );
    node.ok("start g");
    assert_eq!(node.state("g"), "running (restored)");
    assert!(node.ok("dumpxml g").contains("<title>newer</title>"));
}

/// Rows 67 and 71.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_deaf_guest_is_waited_for_and_then_destroyed() {
    let node = Node::new();
    node.write("g", "deaf", "");
    node.ok("create g.xml");
    assert_eq!(node.ok("shutdown g"), "Domain 'g' is being shutdown\n");
    node.run("shutdown g --wait --timeout 1s")
        .fails(7, "cenote stop g --force");
    node.run("shutdown g --mode agent").fails(1, "E0605");
    node.run("destory g").fails(2, "did you mean 'destroy'?");
    assert_eq!(node.state("g"), "running (booted)");
    assert_eq!(
        node.ok("stop g --timeout 1s --force"),
        "Domain 'g' destroyed\n"
    );
    assert_eq!(node.state("g"), "undefined");
}

/// Rows 26 and 169: a change is shown without anybody asking for it.
#[test]
#[ignore = "needs /dev/kvm"]
fn watchers_are_told_at_once() {
    let node = Node::new();
    node.write("g", "beat", "");
    node.ok("define g.xml");
    let mut watcher = node
        .command()
        .args([
            "event",
            "--loop",
            "--timeout",
            "100",
            "--event",
            "lifecycle",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stdout = watcher.stdout.take().expect("piped");
    // It watches once it waits in the kernel for its descriptors.
    let wait = format!("/proc/{}/wchan", watcher.id());
    let stat = format!("/proc/{}/syscall", watcher.id());
    wait_for("the watcher", || {
        let sleeps = std::fs::read_to_string(&wait).unwrap_or_default();
        let call = std::fs::read_to_string(&stat).unwrap_or_default();
        // ppoll and poll.
        sleeps.contains("poll") || call.starts_with("271 ") || call.starts_with("7 ")
    });
    let (told, hear) = std::sync::mpsc::channel();
    thread::spawn(move || {
        use std::io::BufRead as _;
        for line in std::io::BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
        {
            let _ = told.send(line);
        }
    });
    node.ok("start g");
    assert_eq!(
        hear.recv_timeout(PATIENCE).expect("an event"),
        "event 'lifecycle' for domain 'g': Started Booted"
    );
    node.ok("destroy g");
    assert_eq!(
        hear.recv_timeout(PATIENCE).expect("an event"),
        "event 'lifecycle' for domain 'g': Stopped Destroyed"
    );
    watcher.kill().expect("killed");
    watcher.wait().expect("gone");
}

/// Rows 66 and 147: a domain tied to a command ends with it, also if that is killed.
#[test]
#[ignore = "needs /dev/kvm"]
fn an_autodestroyed_domain_ends_with_its_command() {
    let node = Node::new();
    node.write("g", "beat", "");
    let mut command = node
        .command()
        .args(["create", "g.xml", "--autodestroy"])
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    node.wait_state("g", "running (booted)");
    command.kill().expect("killed");
    command.wait().expect("gone");
    node.wait_state("g", "undefined");
}

/// Row 128, and the log that outlives a transient domain.
#[test]
#[ignore = "needs /dev/kvm"]
fn the_console_is_followed_to_the_end() {
    let node = Node::new();
    node.write("g", "off", "");
    let console = node
        .command()
        .args(["create", "g.xml", "--console", "--paused"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    node.wait_state("g", "paused (user)");
    wait_for("the console", || {
        node.run("console g")
            .stderr
            .contains("Active console session exists")
    });
    node.ok("resume g");
    let shown = common::of(console.wait_with_output().expect("it ends")).ok();
    assert_eq!(shown.stdout, "Domain 'g' created from g.xml\nup\n");
    assert!(
        shown.stderr.contains("Connected to domain 'g'"),
        "{shown:?}"
    );
    node.wait_state("g", "undefined");
    assert_eq!(node.ok("logs g"), "up\n");
    node.run("logs h").fails(3, "E0601");
}

/// What is counted and shown of the devices of a running domain, and its snapshots.
#[test]
#[ignore = "needs /dev/kvm"]
fn devices_of_a_running_domain() {
    let node = Node::new();
    let disk = node.0.path("disk.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
    node.write("g", "beat", "");
    let file = node.0.path("g.xml");
    let more = format!(
        "<devices><disk type='file'><driver type='raw'/><source file='{}'/><target dev='vda'/>\
         </disk><disk type='file' device='cdrom'><target dev='hdc'/></disk>\
         <interface type='user'/>",
        disk.display()
    );
    let xml = std::fs::read_to_string(&file).expect("read");
    std::fs::write(&file, xml.replace("<devices>", &more)).expect("written");
    node.ok(&format!("define {}", file.display()));
    node.ok("start g");
    assert!(node.ok("domblkstat g vda").contains("vda rd_req 0\n"));
    node.run("domblkstat g hdc").fails(2, "E0608");
    // The guest asks for no address.
    assert!(node.ok("domifaddr g").contains("MAC address"));
    let stats = node.ok("domstats g --block --interface");
    for line in [
        "  net.count=1\n",
        "  block.0.name=vda\n",
        "  block.0.capacity=1048576\n",
    ] {
        assert!(stats.contains(line), "{stats}");
    }
    assert!(!stats.contains("vcpu"), "{stats}");
    node.run("screenshot g picture.png").fails(1, "E0606");
    node.run("attach-disk g /b.raw vdb").fails(5, "E0603");
    node.ok("attach-disk g /b.raw vdb --config");
    node.ok("detach-disk g vdb --config");
    node.run("snapshot-create-as g one").fails(5, "E0603");
    let cenote = |line: &str| node.run(line);
    let taken = cenote("snapshot-create-as g one --disk-only");
    // A base outside of all pools could not be started from again.
    taken.fails(5, "E0409");
    assert_eq!(node.ok("snapshot-list g --name"), "");
    assert!(node.ok("domblklist g").contains("disk.raw"));
    node.ok("destroy g");
}
