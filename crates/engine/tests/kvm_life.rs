//! Domains that run: their life with tiny guests on any `/dev/kvm`. Row numbers are those of the
//! feature table. The monitor's program is built with `cargo build -p cenote-vmm`.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

#[allow(dead_code, reason = "each suite uses its part")]
#[path = "../../../fixtures/guests.rs"]
#[allow(unreachable_pub, reason = "a module of several suites")]
mod guests;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cenote_engine::{
    Cause, DefineOptions, DomainError, DomainState, Error, ErrorKind, Node, NodeOptions,
    Resumption, RunningReason, ShutOffReason, StartOptions, UndefineOptions,
};

/// Longer than anything takes on a busy machine that emulates.
const PATIENCE: Duration = Duration::from_secs(120);

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

struct Bench {
    dir: tempfile::TempDir,
    node: Node,
}

impl Drop for Bench {
    /// Nothing outlives a test, whatever became of it.
    fn drop(&mut self) {
        for domain in self.node.domains().unwrap_or_default() {
            if domain.id.is_some() {
                let _ = self.node.domain_destroy(&domain.uuid, false);
            }
        }
    }
}

fn options(dir: &Path) -> NodeOptions {
    // In the lab the programs' own test harnesses lie beside this one, under the same names.
    let programs = match std::env::var_os("CENOTE_LAB") {
        Some(_) => Some(Path::new("/lab/bin")),
        None => Path::new(env!("CARGO_BIN_EXE_cenote-supervisor")).parent(),
    };
    NodeOptions {
        programs: programs.map(Path::to_owned),
        allow_emulation: true,
        ..NodeOptions::in_dir(dir.join("state"))
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let node = Node::open(&options(dir.path())).unwrap();
        Bench { dir, node }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A document of a domain that runs `guest`, with more elements.
    fn document(&self, name: &str, guest: &[u8], more: &str) -> String {
        let kernel = self.path(&format!("{name}.kernel"));
        std::fs::write(&kernel, guest).unwrap();
        format!(
            "<domain type='kvm'><name>{name}</name><memory>8192</memory>\
             <os><type>hvm</type><kernel>{}</kernel></os>{more}\
             <devices><serial type='pty'/></devices></domain>",
            kernel.display()
        )
    }

    fn define(&self, name: &str, guest: &[u8], more: &str) {
        let xml = self.document(name, guest, more);
        self.node
            .domain_define(&xml, DefineOptions::default())
            .unwrap();
    }

    fn start(&self, name: &str) -> u32 {
        self.node
            .domain_start(name, StartOptions::default())
            .unwrap()
            .id
    }

    /// What the guest has said since the domain was first run.
    fn said(&self, name: &str) -> String {
        let log = self.node.domain_log_dir(name).join("console.log");
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    fn state(&self, name: &str) -> DomainState {
        self.node.domain(name).unwrap().state
    }

    fn wait_off(&self, name: &str) -> ShutOffReason {
        let mut reason = None;
        wait_for("the end", || match self.state(name) {
            DomainState::ShutOff(found) => {
                reason = Some(found);
                true
            }
            _ => false,
        });
        reason.unwrap()
    }

    /// Life-cycle and reboot events as virsh words them, with their causes.
    fn events(&self) -> Vec<(String, Cause)> {
        let events = self.node.events(0).unwrap().into_iter();
        events
            .filter(|event| event.kind == "lifecycle" || event.kind == "reboot")
            .map(|event| {
                let word = |key: &str| event.detail[key].as_str().unwrap_or_default().to_owned();
                let text = match event.kind.as_str() {
                    "reboot" => "reboot".to_owned(),
                    _ => format!("{} {}", word("event"), word("detail")),
                };
                let cause = serde_json::from_value(event.detail["cause"].clone()).unwrap();
                (text, cause)
            })
            .collect()
    }

    fn event_words(&self) -> Vec<String> {
        self.events().into_iter().map(|(text, _)| text).collect()
    }
}

/// The counters that a heartbeat printed.
fn beats(text: &str) -> Vec<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .filter_map(|line| u64::from_str_radix(line.strip_prefix("HB ")?, 16).ok())
        .collect()
}

fn refused<T: std::fmt::Debug>(result: cenote_engine::Result<T>, says: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    assert!(error.to_string().contains(says), "{error}");
}

/// Processes whose command line has `word` in it.
fn processes_with(word: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            found.push(pid);
        }
    }
    found
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Rows 24, 32, 33, 44, 47, 48, 50, 64, 72.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_domain_starts_pauses_goes_on_and_is_destroyed() {
    let bench = Bench::new();
    bench.define("g", &guests::heartbeat(true), "");
    let id = bench.start("g");
    assert_eq!(id, 1);
    assert_eq!(
        bench.state("g"),
        DomainState::Running(RunningReason::Booted)
    );
    assert_eq!(bench.node.domain("1").unwrap().name, "g");
    let uuid = bench.node.domain("g").unwrap().uuid;
    assert_eq!(processes_with(&format!("g.{uuid}")).len(), 2);
    refused(
        bench.node.domain_start("g", StartOptions::default()),
        "domain is already active",
    );
    wait_for("beats", || beats(&bench.said("g")).len() > 3);
    bench.node.domain_suspend("g").unwrap();
    let stats = bench.node.domain_run_stats("g").unwrap();
    bench.node.domain_suspend("g").unwrap();
    assert_eq!(bench.state("g").to_string(), "paused");
    assert_eq!(bench.state("g").reason(), "user");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(bench.node.domain_run_stats("g").unwrap(), stats);
    let before = beats(&bench.said("g")).len();
    bench.node.domain_resume("g").unwrap();
    assert_eq!(bench.state("g").reason(), "unpaused");
    refused(bench.node.domain_resume("g"), "domain is already running");
    wait_for("more beats", || beats(&bench.said("g")).len() > before + 3);
    let all = beats(&bench.said("g"));
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{all:?}");
    bench.node.domain_destroy("g", false).unwrap();
    assert_eq!(
        bench.state("g"),
        DomainState::ShutOff(ShutOffReason::Destroyed)
    );
    refused(bench.node.domain_suspend("g"), "domain is not running");
    assert_eq!(
        bench.event_words(),
        [
            "Defined Added",
            "Started Booted",
            "Suspended Paused",
            "Resumed Unpaused",
            "Stopped Destroyed"
        ]
    );
    assert_eq!(bench.start("g"), 2);
    wait_for("processes to go", || {
        bench.node.domain_destroy("g", true).is_ok()
    });
    wait_for("no process", || {
        processes_with(&format!("g.{uuid}")).is_empty()
    });
}

/// Rows 12, 43, 45, 46 and 49: a transient domain, made persistent and transient again.
#[test]
#[ignore = "needs /dev/kvm"]
fn transient_and_persistent() {
    let bench = Bench::new();
    let xml = bench.document("g", &guests::heartbeat(true), "");
    let started = bench
        .node
        .domain_create(&xml, StartOptions::default())
        .unwrap();
    let info = bench.node.domain("g").unwrap();
    assert!(!info.persistent);
    refused(
        bench.node.domain_autostart("g", true),
        "cannot set autostart for transient domain",
    );
    refused(
        bench.node.domain_undefine("g", UndefineOptions::default()),
        "cannot undefine transient domain",
    );
    refused(
        bench.node.domain_managed_save("g", Resumption::AsSaved),
        "cannot do managed save for transient domain",
    );
    let own = bench.node.domain_xml("g", Default::default()).unwrap();
    bench
        .node
        .domain_define(&own, DefineOptions::default())
        .unwrap();
    let now = bench.node.domain("g").unwrap();
    assert!(now.persistent && now.id == Some(started.id));
    bench
        .node
        .domain_undefine("g", UndefineOptions::default())
        .unwrap();
    assert!(!bench.node.domain("g").unwrap().persistent);
    bench.node.domain_shutdown("g").unwrap();
    wait_for("the end", || bench.node.domain("g").is_err());
    let events = bench.events();
    let words: Vec<&str> = events.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(
        words,
        [
            "Started Booted",
            "Defined Added",
            "Undefined Removed",
            "Shutdown Finished after host request",
            "Stopped Shutdown"
        ]
    );
    assert_eq!(events[4].1, Cause::PowerButton);
}

/// Rows 56 and 114 to 116: how a guest ends, under each policy, with the cause.
#[test]
#[ignore = "needs /dev/kvm"]
fn guests_end_as_their_documents_want() {
    let bench = Bench::new();
    let table = [
        (
            "off",
            guests::off(),
            "",
            ShutOffReason::Shutdown,
            Cause::GuestPowerOff,
        ),
        (
            "reset",
            guests::reset(),
            "<on_reboot>destroy</on_reboot>",
            ShutOffReason::Shutdown,
            Cause::GuestReset,
        ),
        (
            "panic",
            guests::panic(),
            "",
            ShutOffReason::Crashed,
            Cause::GuestPanic,
        ),
    ];
    for (name, guest, more, reason, cause) in table {
        bench.define(name, &guest, more);
        bench.start(name);
        assert_eq!(bench.wait_off(name), reason, "{name}");
        assert_eq!(bench.said(name), "up\n");
        assert_eq!(bench.events().pop().unwrap().1, cause);
    }
    for policy in ["on_poweroff", "on_reboot", "on_crash"] {
        let (guest, says) = match policy {
            "on_poweroff" => (guests::off(), "paused"),
            "on_reboot" => (guests::reset(), "paused"),
            _ => (guests::panic(), "crashed"),
        };
        let kept = format!("kept-{policy}");
        bench.define(&kept, &guest, &format!("<{policy}>preserve</{policy}>"));
        let id = bench.start(&kept);
        wait_for("the kept state", || bench.state(&kept).to_string() == says);
        assert_eq!(bench.node.domain(&kept).unwrap().id, Some(id));
        refused(bench.node.domain_resume(&kept), "domain is not running");
        bench.node.domain_destroy(&kept, false).unwrap();
        let again = format!("again-{policy}");
        bench.define(&again, &guest, &format!("<{policy}>restart</{policy}>"));
        let id = bench.start(&again);
        wait_for("three starts", || bench.said(&again).len() > 9);
        let info = bench.node.domain(&again).unwrap();
        assert_eq!(
            (info.id, info.state.to_string().as_str()),
            (Some(id), "running")
        );
        bench.node.domain_destroy(&again, false).unwrap();
    }
}

/// Rows 68 and 69: the id stays, for either kind of domain.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_reboot_keeps_the_id() {
    let bench = Bench::new();
    let xml = bench.document("g", &guests::heartbeat(true), "");
    let started = bench
        .node
        .domain_create(&xml, StartOptions::default())
        .unwrap();
    let firsts = || beats(&bench.said("g")).iter().filter(|n| **n == 0).count();
    wait_for("beats", || beats(&bench.said("g")).len() > 2);
    bench.node.domain_reboot("g").unwrap();
    wait_for("a second start", || firsts() == 2);
    bench.node.domain_reset("g").unwrap();
    wait_for("a third start", || firsts() == 3);
    let info = bench.node.domain("g").unwrap();
    assert_eq!(info.id, Some(started.id));
    assert_eq!(bench.event_words(), ["Started Booted", "reboot", "reboot"]);
}

/// Rows 14, 34, 51 to 53 and 73.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_saved_domain_goes_on_as_often_as_one_likes() {
    let bench = Bench::new();
    let xml = bench.document("g", &guests::heartbeat(true), "");
    bench
        .node
        .domain_create(&xml, StartOptions::default())
        .unwrap();
    wait_for("beats", || beats(&bench.said("g")).len() > 3);
    let file = bench.path("saved");
    bench
        .node
        .domain_save("g", &file, Resumption::AsSaved, None)
        .unwrap();
    assert!(
        bench.node.domain("g").is_err(),
        "a transient domain is gone"
    );
    let before = std::fs::read(&file).unwrap();
    for _ in 0..3 {
        let length = bench.said("g").len();
        let known = beats(&bench.said("g")).len();
        bench
            .node
            .domain_restore(&file, Resumption::AsSaved, None)
            .unwrap();
        assert_eq!(bench.state("g").reason(), "restored");
        wait_for("beats", || beats(&bench.said("g")).len() > known + 4);
        bench.node.domain_destroy("g", false).unwrap();
        let said = bench.said("g");
        let fresh = beats(&said[length..]);
        assert!(
            fresh.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{fresh:?}"
        );
        assert!(fresh[0] > 0, "{fresh:?}");
    }
    assert!(std::fs::read(&file).unwrap() == before, "the file changed");
    bench
        .node
        .domain_restore(&file, Resumption::Paused, None)
        .unwrap();
    assert_eq!(bench.state("g").to_string(), "paused");
    let words = bench.event_words();
    let tail: Vec<&str> = words.iter().rev().take(2).map(String::as_str).collect();
    assert_eq!(tail, ["Suspended Restored", "Started Restored"]);
    let error = bench
        .node
        .domain_restore(Path::new("/etc/passwd"), Resumption::AsSaved, None)
        .unwrap_err();
    assert!(error.to_string().contains("no saved domain"), "{error}");
}

/// Rows 65 and 74.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_managed_save_is_consumed_by_the_next_start() {
    let bench = Bench::new();
    bench.define("g", &guests::heartbeat(true), "");
    bench.start("g");
    wait_for("beats", || beats(&bench.said("g")).len() > 3);
    bench.node.domain_suspend("g").unwrap();
    bench
        .node
        .domain_managed_save("g", Resumption::Running)
        .unwrap();
    let info = bench.node.domain("g").unwrap();
    assert!(info.managed_save);
    assert_eq!(info.state, DomainState::ShutOff(ShutOffReason::Saved));
    refused(
        bench.node.domain_undefine("g", UndefineOptions::default()),
        "managed save image exists",
    );
    let known = beats(&bench.said("g"));
    bench.start("g");
    assert!(!bench.node.domain("g").unwrap().managed_save);
    wait_for("beats", || beats(&bench.said("g")).len() > known.len() + 3);
    assert_eq!(bench.state("g").reason(), "restored");
    let all = beats(&bench.said("g"));
    assert_eq!(all.iter().filter(|n| **n == 0).count(), 1, "{all:?}");
    bench
        .node
        .domain_managed_save("g", Resumption::AsSaved)
        .unwrap();
    let boot = StartOptions {
        force_boot: true,
        ..StartOptions::default()
    };
    bench.node.domain_start("g", boot).unwrap();
    wait_for("a clean boot", || {
        beats(&bench.said("g")).iter().filter(|n| **n == 0).count() == 2
    });
}

/// Rows 35, 37 and 55: whoever is killed, the truth is found, nothing is left, and the next
/// start works.
#[test]
#[ignore = "needs /dev/kvm"]
fn killed_processes_leave_the_truth() {
    let bench = Bench::new();
    bench.define("g", &guests::heartbeat(true), "");
    let uuid = bench.node.domain("g").unwrap().uuid;
    for (program, cause) in [
        ("cenote-vmm", Cause::MonitorDied),
        ("cenote-supervisor", Cause::SupervisorDied),
    ] {
        for paused in [false, true] {
            bench.start("g");
            if paused {
                bench.node.domain_suspend("g").unwrap();
            }
            let pids = processes_with(&format!("g.{uuid}"));
            let victim = pids.iter().copied().find(|pid| {
                let program_of = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
                program_of.file_name().unwrap() == program
            });
            kill(victim.unwrap());
            assert_eq!(bench.wait_off("g"), ShutOffReason::Crashed);
            assert_eq!(
                bench.events().pop().unwrap(),
                ("Stopped Failed".to_owned(), cause)
            );
            wait_for("no orphan", || {
                processes_with(&format!("g.{uuid}")).is_empty()
            });
        }
    }
    bench.start("g");
    let xml = bench.document("t", &guests::heartbeat(true), "");
    bench
        .node
        .domain_create(&xml, StartOptions::default())
        .unwrap();
    let uuid = bench.node.domain("t").unwrap().uuid;
    for pid in processes_with(&format!("t.{uuid}")) {
        kill(pid);
    }
    wait_for("the transient one to be forgotten", || {
        bench.node.domain("t").is_err()
    });
    assert_eq!(bench.state("g").to_string(), "running");
}

/// Rows 66, 146, 147 and 148.
#[test]
#[ignore = "needs /dev/kvm"]
fn an_autodestroyed_domain_ends_with_its_connection() {
    let bench = Bench::new();
    let xml = bench.document("g", &guests::heartbeat(true), "");
    let wish = StartOptions {
        paused: true,
        autodestroy: true,
        ..StartOptions::default()
    };
    let started = bench.node.domain_create(&xml, wish).unwrap();
    assert_eq!(bench.state("g").to_string(), "paused");
    assert_eq!(bench.said("g"), "");
    refused(
        bench
            .node
            .domain_save("g", &bench.path("s"), Resumption::AsSaved, None),
        "marked for auto destroy",
    );
    bench.node.domain_resume("g").unwrap();
    wait_for("beats", || !beats(&bench.said("g")).is_empty());
    drop(started);
    wait_for("its end", || bench.node.domain("g").is_err());
    assert_eq!(bench.events().pop().unwrap().1, Cause::ConnectionClosed);
}

/// Row 128: the console is attached to, taken over, typed into and left; its log is kept.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_console_is_one_mans() {
    let bench = Bench::new();
    bench.define("g", &guests::heartbeat(false), "");
    bench.start("g");
    let mut first = bench.node.domain_console("g", false).unwrap();
    let mut heard = [0; 12];
    first.stream.read_exact(&mut heard).unwrap();
    refused(
        bench.node.domain_console("g", false),
        "Active console session exists for this domain",
    );
    let mut second = bench.node.domain_console("g", true).unwrap();
    let mut rest = Vec::new();
    first.stream.read_to_end(&mut rest).unwrap();
    second.stream.write_all(b"o").unwrap();
    second.stream.read_to_end(&mut rest).unwrap();
    assert_eq!(bench.wait_off("g"), ShutOffReason::Shutdown);
    assert!(bench.said("g").contains("HB "));
    refused(
        bench.node.domain_console("g", false),
        "domain is not running",
    );
}

/// Row 17: what is missing is named, and nothing is started.
#[test]
#[ignore = "needs /dev/kvm"]
fn missing_parts_are_named_before_anything_starts() {
    let bench = Bench::new();
    bench.define("g", &guests::off(), "");
    std::fs::remove_file(bench.path("g.kernel")).unwrap();
    let error = bench
        .node
        .domain_start("g", StartOptions::default())
        .unwrap_err();
    assert!(
        matches!(error, Error::Domain(DomainError::ComponentMissing { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("g.kernel"), "{error}");
    assert!(error.hint().unwrap().contains("cenote edit g"));
    // A kernel that is none fails in the monitor, and its words reach the user.
    std::fs::write(bench.path("g.kernel"), vec![0; 4096]).unwrap();
    let error = bench
        .node
        .domain_start("g", StartOptions::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("neither a bzImage nor an ELF"),
        "{error}"
    );
    assert_eq!(
        bench.state("g"),
        DomainState::ShutOff(ShutOffReason::Failed)
    );
    std::fs::write(bench.path("g.kernel"), guests::off()).unwrap();
    bench.start("g");
    bench.wait_off("g");
}

/// Row 59: callers race; the end is legal, nothing is left over, the events are a path.
#[test]
#[ignore = "needs /dev/kvm"]
fn racing_callers_are_serialised_or_refused() {
    let bench = Bench::new();
    bench.define("g", &guests::heartbeat(true), "");
    let rounds = 6;
    thread::scope(|scope| {
        for racer in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                let node = Node::open(&options(bench.dir.path())).unwrap();
                for round in 0..rounds {
                    // Whether it is refused depends on who came first.
                    let _ = match (racer + round) % 4 {
                        0 => node.domain_start("g", StartOptions::default()).map(drop),
                        1 => node.domain_destroy("g", false).map(drop),
                        2 => node.domain_suspend("g").map(drop),
                        _ => node.domain_resume("g").map(drop),
                    };
                }
            });
        }
    });
    let mut now = "off";
    for word in bench.event_words().iter().skip(1) {
        now = match (now, word.as_str()) {
            ("off", "Started Booted") => "running",
            ("running", "Suspended Paused") => "paused",
            ("paused", "Resumed Unpaused") => "running",
            ("running" | "paused", "Stopped Destroyed") => "off",
            other => panic!("no such step: {other:?} in {:?}", bench.event_words()),
        };
    }
    let active = bench.node.domain("g").unwrap().id.is_some();
    assert_eq!(active, now != "off");
    if active {
        bench.node.domain_destroy("g", false).unwrap();
    }
    let uuid = bench.node.domain("g").unwrap().uuid;
    wait_for("no process", || {
        processes_with(&format!("g.{uuid}")).is_empty()
    });
}

/// Row 57: domains that are marked for it start with the node, after the host has booted.
#[test]
#[ignore = "needs /dev/kvm"]
fn marked_domains_start_with_the_node() {
    let bench = Bench::new();
    bench.define("g", &guests::heartbeat(true), "");
    bench.define("h", &guests::heartbeat(true), "");
    bench.node.domain_autostart("g", true).unwrap();
    let database = bench.dir.path().join("state/node.db");
    rusqlite::Connection::open(database)
        .unwrap()
        .execute("UPDATE node SET value = 'another' WHERE key = 'boot'", [])
        .unwrap();
    let node = Node::open(&options(bench.dir.path())).unwrap();
    assert_eq!(node.domain("g").unwrap().state.to_string(), "running");
    assert_eq!(node.domain("h").unwrap().state.to_string(), "shut off");
    assert_eq!(bench.events().pop().unwrap().1, Cause::Autostart);
}
