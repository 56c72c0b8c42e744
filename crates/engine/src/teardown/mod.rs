//! Taking a domain away with all that is its own.
//!
//! The inventory comes first and is shown; what others have a share in is kept and named. Then,
//! in this order: the guest is stopped, volumes are wiped if that is asked for and deleted, then
//! managed save, firmware variables, install files and logs, and last the definition. As long
//! as anything is left, so is the definition, by which a teardown that was killed finds the rest.

mod certify;
mod inventory;
mod run;

use std::path::PathBuf;

use cenote_pools::VolumeId;
use cenote_pools::wipe::{Verify, Wiped};
use serde::{Deserialize, Serialize};

use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::wipes::WipeOptions;

/// How a domain is taken away.
#[derive(Debug, Clone, Default)]
pub struct TeardownOptions {
    /// Everything is overwritten before it is deleted, in this way; `chain` and `delete` of it
    /// are not looked at.
    pub wipe: Option<WipeOptions>,
    /// Also the backing volumes that only this domain uses.
    pub chain: bool,
}

impl TeardownOptions {
    /// The options of the command line that mean this, with a blank before each.
    fn words(&self) -> String {
        let mut words = String::new();
        if self.chain {
            words.push_str(" --chain");
        }
        if let Some(wipe) = &self.wipe {
            words.push_str(&format!(" --wipe={}", wipe.algorithm));
            if wipe.verify != Verify::default() {
                words.push_str(&format!(" --verify={}", wipe.verify));
            }
            if wipe.best_effort {
                words.push_str(" --best-effort");
            }
        }
        words
    }
}

/// What a domain has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it runs.
    pub runs: bool,
    /// Whether it is defined.
    pub persistent: bool,
    /// Its own volumes, each before those that it stands on.
    pub volumes: Vec<VolumeId>,
    /// Its other files: managed save, firmware variables, files of an install, logs.
    pub files: Vec<PathBuf>,
    /// What is not its own.
    pub kept: Vec<Kept>,
}

/// Something that a teardown leaves where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// A volume or a path.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A domain that is no more.
#[derive(Debug)]
pub struct TornDown {
    /// What it had.
    pub inventory: Inventory,
    /// What wiping says of each volume and file that this call wiped, with certificates; empty
    /// where nothing was wiped.
    pub wiped: Vec<Wiped>,
    /// The certificate of the whole domain, where it was wiped: it names those of all its parts,
    /// whichever command wiped them.
    pub certificate: Option<PathBuf>,
}

/// The plan in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Teardown {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) volumes: Vec<VolumeId>,
    pub(crate) files: Vec<PathBuf>,
    /// Content is overwritten before it is deleted.
    pub(crate) wipe: bool,
    /// The options by which it was begun, as the command line has them, with a blank before each.
    #[serde(default)]
    pub(crate) options: String,
}

/// All that was to be wiped has been.
const WIPED: i64 = 1;
/// It failed, and is not gone on with by itself.
const STOPPED: i64 = 2;

impl Teardown {
    pub(crate) fn subjects(&self) -> Vec<String> {
        let volumes = self.volumes.iter().map(VolumeId::to_string);
        std::iter::once(domain_subject(&self.name))
            .chain(volumes)
            .collect()
    }

    /// Goes on with it, unless what is left has to be overwritten first: that takes long, and is
    /// for a command that shows how far it is. It never waits: the definition is there as long
    /// as anything else is.
    pub(crate) fn recover(&self, node: &Node, step: i64) -> (RepairOutcome, String) {
        let name = &self.name;
        if step < STOPPED && (!self.wipe || step >= WIPED) {
            return match self.finish(node) {
                Ok(certificate) => {
                    let proof =
                        certificate.map(|path| format!("; certificate: {}", path.display()));
                    let proof = proof.unwrap_or_default();
                    (RolledForward, format!("domain '{name}' is gone{proof}"))
                }
                Err(error) => (
                    RolledBack,
                    format!(
                        "the teardown of domain '{name}' stopped: {error}; go on with it: \
                         cenote teardown {name}"
                    ),
                ),
            };
        }
        (
            RolledBack,
            format!(
                "the teardown of domain '{name}' stopped, and what is left of it is still \
                 defined; go on with it: cenote teardown {name}{}",
                self.options
            ),
        )
    }
}

/// What operations on a domain have as their subject.
pub(crate) fn domain_subject(name: &str) -> String {
    format!("domain {name}")
}
