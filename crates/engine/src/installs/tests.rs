//! Installs whose command died, at every step: what the next opening makes of them. No guest
//! runs; what one would have left is written by hand.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cenote_image::Format;
use cenote_model::{Memory, Name};
use cenote_pools::VolumeId;

use super::evidence::Verdict;
use super::protocol::{DONE, FAILED, Install, STARTED};
use super::request::{InstallDisk, InstallRequest, InstallSource, OnFailure};
use crate::domains::Cause;
use crate::domains::lifecycle::{self, Lifecycle, Subject};
use crate::journal::{Repair, RepairOutcome};
use crate::node::Node;
use crate::paths::NodeOptions;
use crate::volumes::NewVolume;

const TOKEN: &str = "abcdefgh12345678";

fn open(dir: &Path) -> Node {
    // Without programs nothing is started.
    Node::open(&NodeOptions {
        programs: Some(dir.join("none")),
        ..NodeOptions::in_dir(dir.join("state"))
    })
    .unwrap()
}

fn id() -> VolumeId {
    VolumeId::new("default", "db.raw")
}

fn request(dir: &Path) -> InstallRequest {
    let (kernel, initrd) = (dir.join("kernel"), dir.join("initrd"));
    for file in [&kernel, &initrd] {
        fs::write(file, b"content").unwrap();
    }
    InstallRequest {
        name: Name::new("db").unwrap(),
        memory: Memory::from_bytes(64 << 20),
        install_memory: None,
        vcpus: 1,
        source: InstallSource::Location(
            format!("kernel={},initrd={}", kernel.display(), initrd.display())
                .parse()
                .unwrap(),
        ),
        disks: vec![InstallDisk::New {
            pool: "default".to_owned(),
            name: "db.raw".to_owned(),
            format: Format::Raw,
            capacity: 1 << 20,
        }],
        networks: Vec::new(),
        inject: Vec::new(),
        extra_arguments: String::new(),
        answer: None,
        osinfo: None,
        transient: false,
        noreboot: false,
        timeout: Duration::from_secs(3600),
        silence: Duration::from_secs(600),
        on_failure: OnFailure::Keep,
    }
}

/// What a dead command left at a step.
struct Left<'a> {
    step: i64,
    /// How phase one ended, if it was started.
    run: Option<Option<Cause>>,
    /// What its guest said.
    said: &'a str,
    on_failure: OnFailure,
    verdict: Option<Verdict>,
    /// The time is up.
    late: bool,
}

impl Default for Left<'_> {
    fn default() -> Self {
        Left {
            step: STARTED,
            run: None,
            said: "",
            on_failure: OnFailure::Keep,
            verdict: None,
            late: false,
        }
    }
}

impl Left<'_> {
    fn leave(&self, node: &Node, dir: &Path) -> Install {
        let mut install = node.install_prepare(&request(dir)).unwrap().install;
        install.token = Some(TOKEN.to_owned());
        install.on_failure = self.on_failure;
        install.verdict = self.verdict.clone();
        let mut operation = node.begin(install.plan()).unwrap();
        let new = NewVolume::new("db.raw", Format::Raw, 1 << 20);
        operation
            .part(|| node.volume_create("default", &new))
            .unwrap();
        install.own(&id(), true);
        super::files::fresh_folder(&install.folder).unwrap();
        super::files::write(&install.folder.join("initrd"), b"secret").unwrap();
        fs::create_dir_all(install.serial_log.parent().unwrap()).unwrap();
        fs::write(&install.serial_log, self.said).unwrap();
        install.since = crate::events::newest(node.state()).unwrap();
        let far = jiff::Timestamp::now().as_second() + 3600;
        install.deadline = if self.late { 1 } else { far };
        operation
            .revise(self.step, |plan| *plan = install.plan())
            .unwrap();
        if let Some(end) = self.run {
            self.events(node, &install, end);
        }
        install
    }

    fn events(&self, node: &Node, install: &Install, end: Option<Cause>) {
        let subject = Subject {
            name: &install.name,
            uuid: &install.uuid,
            id: Some(1),
        };
        let written = node.state().write("write events", |transaction| {
            let started = Lifecycle::StartedBooted;
            lifecycle::append(transaction, subject, started, Cause::Command, None)?;
            if let Some(cause) = end {
                lifecycle::append(
                    transaction,
                    subject,
                    Lifecycle::StoppedShutdown,
                    cause,
                    None,
                )?;
            }
            Ok(())
        });
        written.unwrap();
    }

    /// Leaves it, and opens the node again. Answers what was repaired, and whether domain and
    /// volume are there.
    fn found(&self) -> (Repair, bool, bool) {
        let dir = tempfile::tempdir().unwrap();
        let install = self.leave(&open(dir.path()), dir.path());
        let node = open(dir.path());
        let [repair] = node.repairs() else {
            panic!("{:?}", node.repairs());
        };
        let pending = repair.outcome == RepairOutcome::Pending;
        assert_eq!(install.folder.exists(), pending, "{repair:?}");
        let again = open(dir.path());
        assert_eq!(
            again.repairs().len(),
            usize::from(pending),
            "repaired twice"
        );
        let domain = node.domain("db").is_ok();
        let volume = node.volume(&id()).is_ok();
        (repair.clone(), domain, volume)
    }
}

fn success() -> String {
    format!("[    0.0] Linux version 6.1\nCENOTE-INSTALL {TOKEN} success\n")
}

#[test]
fn what_was_not_started_is_undone() {
    for step in [0, STARTED] {
        let left = Left {
            step,
            ..Left::default()
        };
        let (repair, domain, volume) = left.found();
        assert_eq!(repair.outcome, RepairOutcome::RolledBack);
        assert_eq!((domain, volume), (false, false), "{repair:?}");
    }
}

#[test]
fn a_finished_installer_becomes_a_domain() {
    let said = success();
    for end in [Cause::GuestReset, Cause::GuestPowerOff] {
        let left = Left {
            run: Some(Some(end)),
            said: &said,
            ..Left::default()
        };
        let (repair, domain, volume) = left.found();
        assert_eq!(repair.outcome, RepairOutcome::RolledForward, "{repair:?}");
        assert_eq!((domain, volume), (true, true));
        // There is nothing to start it with here.
        assert!(
            repair
                .message
                .contains("is installed, and it is not started")
        );
    }
}

#[test]
fn a_failed_installer_leaves_what_was_asked_for() {
    for (on_failure, kept) in [
        (OnFailure::Keep, true),
        (OnFailure::Destroy, false),
        (OnFailure::Wipe, false),
    ] {
        let left = Left {
            run: Some(Some(Cause::GuestReset)),
            said: "disk full\n",
            on_failure,
            ..Left::default()
        };
        let (repair, domain, volume) = left.found();
        assert_eq!(repair.outcome, RepairOutcome::RolledBack);
        assert_eq!((domain, volume), (kept, kept));
        for text in ["without a report", "disk full", "cenote logs db --install"] {
            assert!(repair.message.contains(text), "{text}: {repair:?}");
        }
    }
}

#[test]
fn what_somebody_stopped_is_undone() {
    let left = Left {
        run: Some(Some(Cause::Command)),
        said: "half done\n",
        ..Left::default()
    };
    let (repair, domain, volume) = left.found();
    assert!(repair.message.contains("was stopped"), "{repair:?}");
    assert_eq!((domain, volume), (false, false));
}

#[test]
fn what_runs_goes_on_until_its_time_is_up() {
    let left = Left {
        run: Some(None),
        said: "Configuring storage\n",
        ..Left::default()
    };
    let (repair, _, volume) = left.found();
    assert_eq!(repair.outcome, RepairOutcome::Pending);
    assert!(repair.message.contains("cenote console db") && volume);
    let late = Left { late: true, ..left };
    let (repair, domain, volume) = late.found();
    assert!(repair.message.contains("not done in time"), "{repair:?}");
    assert_eq!((domain, volume), (true, true));
}

#[test]
fn what_was_decided_is_done() {
    for (step, verdict, there) in [
        (DONE, Verdict::Confirmed, true),
        (DONE, Verdict::Unconfirmed, true),
        (FAILED, Verdict::Failed("it broke".into()), true),
        (FAILED, Verdict::Cancelled, false),
    ] {
        let left = Left {
            step,
            verdict: Some(verdict.clone()),
            ..Left::default()
        };
        let (repair, domain, volume) = left.found();
        assert_eq!((domain, volume), (there, there), "{verdict:?} {repair:?}");
    }
}

#[test]
fn only_its_own_volumes_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let new = NewVolume::new("db.raw", Format::Raw, 1 << 20);
    node.volume_create("default", &new).unwrap();
    let mut request = request(dir.path());
    request.disks = vec![InstallDisk::Existing(id())];
    let prepared = node.install_prepare(&request).unwrap();
    assert_eq!(prepared.overwritten, [(id(), None)]);
    // No program to start it with.
    node.install(prepared, &Nobody).unwrap_err();
    assert!(node.volume(&id()).is_ok());
    assert!(node.domain("db").is_err());
}

#[test]
fn a_name_under_install_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let prepared = node.install_prepare(&request(dir.path())).unwrap();
    let operation = node.begin(prepared.install.plan()).unwrap();
    let other = open(dir.path());
    let second = other.install_prepare(&request(dir.path())).unwrap();
    let error = other.install(second, &Nobody).unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    let new = NewVolume::new("db.raw", Format::Raw, 1 << 20);
    let error = other.volume_create("default", &new).unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
    drop(operation);
}

struct Nobody;

impl cenote_pools::Progress for Nobody {
    fn update(&self, _: u64, _: u64) -> std::ops::ControlFlow<()> {
        std::ops::ControlFlow::Continue(())
    }
}

impl super::InstallWatch for Nobody {
    fn tell(&self, _: &super::Told) {}
}
