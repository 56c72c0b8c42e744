//! The install in the journal, and how each step is brought to its end.

use std::path::PathBuf;

use cenote_pools::{Error as StorageError, NoProgress, VolumeId, crash};
use serde::{Deserialize, Serialize};

use super::evidence::{Listener, Run, Verdict};
use super::files::remove_folder;
use super::request::OnFailure;
use crate::domains::define::parse;
use crate::domains::{DefineOptions, Error as DomainError, StartOptions};
use crate::error::{Error, Result};
use crate::journal::RepairOutcome::{self, Pending, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;
use crate::teardown::domain_subject;
use crate::wipes::WipeOptions;

/// Everything is made, and phase one may be started.
pub(super) const STARTED: i64 = 1;
/// It was a success.
pub(super) const DONE: i64 = 2;
/// It was none.
pub(super) const FAILED: i64 = 3;

/// A volume of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstallVolume {
    pub(super) id: VolumeId,
    /// It was not there, and is made by this install.
    pub(super) own: bool,
}

/// An install in the journal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Install {
    pub(super) name: String,
    pub(super) uuid: String,
    /// Its work files.
    pub(super) folder: PathBuf,
    pub(super) serial_log: PathBuf,
    pub(super) installer_log: PathBuf,
    pub(super) volumes: Vec<InstallVolume>,
    /// The documents of both phases.
    pub(super) one: String,
    pub(super) two: String,
    pub(super) persistent: bool,
    pub(super) start: bool,
    /// By which its answer file reports.
    pub(super) token: Option<String>,
    /// The event before phase one.
    pub(super) since: i64,
    /// When it is given up, in seconds since 1970.
    pub(super) deadline: i64,
    /// Seconds.
    pub(super) silence: u64,
    pub(super) on_failure: OnFailure,
    /// Known from step 2.
    pub(super) verdict: Option<Verdict>,
}

impl std::fmt::Debug for Install {
    /// Without documents and token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Install({:?}, {:?})", self.name, self.verdict)
    }
}

impl Install {
    pub(crate) fn subjects(&self) -> Vec<String> {
        let volumes = self.volumes.iter().map(|volume| volume.id.to_string());
        std::iter::once(domain_subject(&self.name))
            .chain(volumes)
            .collect()
    }

    pub(super) fn plan(&self) -> Plan {
        Plan::Install(Box::new(self.clone()))
    }

    /// Notes whether a volume is made by this install.
    pub(super) fn own(&mut self, id: &VolumeId, own: bool) {
        let mut volumes = self.volumes.iter_mut();
        if let Some(volume) = volumes.find(|volume| volume.id == *id) {
            volume.own = own;
        }
    }

    /// Goes on with an install whose command died.
    pub(crate) fn recover(&self, node: &Node, step: i64) -> Result<(RepairOutcome, String)> {
        let name = &self.name;
        let undone = || {
            let text = format!(
                "the install of domain '{name}' was broken off before its installer ran; nothing \
                 is left of it"
            );
            (RolledBack, text)
        };
        match step {
            0 => {
                self.undo(node)?;
                Ok(undone())
            }
            STARTED => {
                // A supervisor that is being started has it until it has started, or not.
                drop(node.lock_uuid(&self.uuid, &self.name)?);
                let run = node.first_run(&self.uuid, self.since)?;
                let mut listener = Listener::new(self);
                listener.listen()?;
                let end = match run {
                    Run::None => {
                        self.undo(node)?;
                        return Ok(undone());
                    }
                    Run::Under if self.is_late() => Some(cenote_provision::install::End::TimeUp),
                    Run::Under => None,
                    Run::Over(end) => Some(end),
                };
                let Some(verdict) = listener.decide(self, end) else {
                    let text = format!(
                        "the installer of domain '{name}' goes on without its command; watch it \
                         with cenote console {name}, end it with cenote destroy {name}"
                    );
                    return Ok((Pending, text));
                };
                let mut decided = self.clone();
                let step = decided.decided(verdict);
                node.record_step(step, &decided.plan())?;
                decided.act(node)
            }
            _ => self.act(node),
        }
    }

    /// Notes the verdict; answers the step that follows.
    pub(super) fn decided(&mut self, verdict: Verdict) -> i64 {
        let step = if verdict.is_done() { DONE } else { FAILED };
        self.verdict = Some(verdict);
        step
    }

    /// Does what follows from the verdict, whoever noted it.
    fn act(&self, node: &Node) -> Result<(RepairOutcome, String)> {
        let name = &self.name;
        if self.verdict.as_ref().is_some_and(Verdict::is_done) {
            let note = self.complete(node)?;
            let note = note.map(|note| format!(", and {note}")).unwrap_or_default();
            return Ok((RolledForward, format!("domain '{name}' is installed{note}")));
        }
        self.clear_away(node)?;
        let text = match &self.verdict {
            Some(Verdict::Failed(reason) | Verdict::TimedOut(reason)) => format!(
                "the install of domain '{name}' failed: {reason}; see what the installer printed: \
                 cenote logs {name} --install"
            ),
            _ => format!("the install of domain '{name}' was stopped"),
        };
        Ok((RolledBack, text))
    }

    pub(super) fn is_late(&self) -> bool {
        jiff::Timestamp::now().as_second() >= self.deadline
    }

    /// Phase two: the domain as it stays. Answers what could not be done of it.
    pub(super) fn complete(&self, node: &Node) -> Result<Option<String>> {
        self.stop_phase_one(node)?;
        if self.persistent && !self.is_defined(node)? {
            node.domain_define(&self.two, DefineOptions::default())?;
            crash::point("install-defined");
        }
        let note = if self.start && !self.runs(node)? {
            let options = StartOptions::default();
            let started = if self.persistent {
                node.domain_start(&self.uuid, options)
            } else {
                node.domain_create(&self.two, options)
            };
            crash::point("install-phase-two");
            // The system is installed, whatever keeps it from being started now.
            let failed = started.err();
            failed.map(|error| format!("it is not started: {error}"))
        } else {
            None
        };
        remove_folder(&self.folder)?;
        Ok(note)
    }

    /// After a failure: domain and volumes are kept or not; secrets and guest never.
    pub(super) fn clear_away(&self, node: &Node) -> Result<()> {
        self.stop_phase_one(node)?;
        if !self.is_kept() {
            if self.on_failure == OnFailure::Wipe {
                self.wipe(node)?;
            }
            return self.undo(node);
        }
        if !self.is_defined(node)? {
            node.domain_define(&self.two, DefineOptions::default())?;
            crash::point("install-kept");
        }
        remove_folder(&self.folder)
    }

    /// Whether domain and volumes stay after what was decided.
    pub(super) fn is_kept(&self) -> bool {
        let failed = self.verdict != Some(Verdict::Cancelled);
        failed && self.on_failure == OnFailure::Keep
    }

    /// Overwrites the volumes that were made for it. Where nothing can be proved it is done all
    /// the same, and the certificate says so.
    fn wipe(&self, node: &Node) -> Result<()> {
        let options = WipeOptions {
            best_effort: true,
            delete: true,
            ..WipeOptions::default()
        };
        for volume in self.volumes.iter().filter(|volume| volume.own) {
            match node.volume(&volume.id) {
                Ok(_) => {}
                Err(Error::Storage(StorageError::VolumeNotFound { .. })) => continue,
                Err(error) => return Err(error),
            }
            let id = std::slice::from_ref(&volume.id);
            for wiped in node.volumes_wipe(id, &options, 1, &NoProgress)? {
                let verdict = wiped?.report.verdict;
                if verdict.is_failed() {
                    let what = format!("volume '{}'", volume.id);
                    let reason = format!("it is not wiped: {verdict}");
                    return Err(StorageError::Invalid { what, reason }.into());
                }
            }
            crash::point("install-volume-wiped");
        }
        Ok(())
    }

    /// Nothing but logs is left.
    pub(super) fn undo(&self, node: &Node) -> Result<()> {
        for volume in self.volumes.iter().filter(|volume| volume.own) {
            match node.volume_delete(&volume.id) {
                Ok(()) | Err(Error::Storage(StorageError::VolumeNotFound { .. })) => {}
                Err(error) => return Err(error),
            }
            crash::point("install-volume-deleted");
        }
        remove_folder(&self.folder)
    }

    fn runs(&self, node: &Node) -> Result<bool> {
        match node.domain(&self.uuid) {
            Ok(info) => Ok(info.id.is_some()),
            Err(Error::Domain(DomainError::NotFound(_))) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_defined(&self, node: &Node) -> Result<bool> {
        match node.domain(&self.uuid) {
            Ok(info) => Ok(info.persistent),
            Err(Error::Domain(DomainError::NotFound(_))) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends the domain if it is phase one that runs.
    fn stop_phase_one(&self, node: &Node) -> Result<()> {
        if !self.runs(node)? {
            return Ok(());
        }
        let live = node.domain_document(&self.uuid, false)?;
        // Only the first phase ends where its guest resets.
        if live.on_reboot != parse(&self.one)?.on_reboot {
            return Ok(());
        }
        if let Err(error) = node.domain_destroy(&self.uuid, false)
            && self.runs(node)?
        {
            return Err(error);
        }
        crash::point("install-phase-one-stopped");
        Ok(())
    }
}
