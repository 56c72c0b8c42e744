//! The plans of journalled operations and how each is brought to an end after
//! its process died.
//!
//! A plan holds all that repair needs, because nobody is left to ask. Repair
//! looks at the disk rather than trusting the last recorded step: a step may
//! have been taken without being recorded.

mod recover;

use std::path::PathBuf;

use cenote_image::Format;
use cenote_pools::VolumeId;
use cenote_pools::file::FileIdentity;
use serde::{Deserialize, Serialize};

use crate::domains::clone::Cloning;
use crate::domains::snapshots::{LayerChange, SnapshotChange, SnapshotTake};
use crate::installs::Install;
use crate::teardown::Teardown;
use crate::volumes::Collapse;

/// What an operation is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Plan {
    /// Make the file in the private `directory`, then give it its name.
    VolumeCreate {
        verb: Verb,
        volume: VolumeId,
        path: PathBuf,
        directory: PathBuf,
        /// The finished file; known from step 1.
        identity: Option<FileIdentity>,
        format: String,
        data: Option<DataPart>,
    },
    /// Make a logical volume that bears a tag, then take the tag away.
    LogicalCreate {
        verb: Verb,
        volume: VolumeId,
        tag: String,
    },
    /// Remove a logical volume.
    LogicalDelete { volume: VolumeId },
    /// Overwrite a volume's content in place.
    VolumeUpload { volume: VolumeId },
    /// Overwrite volumes. What repair needs is in the wipes' own records, which
    /// the database could not keep.
    VolumeWipe { subjects: Vec<String> },
    /// Change an image in place, in a way the image engine makes safe.
    ImageChange {
        change: Change,
        volume: VolumeId,
        path: PathBuf,
        format: Format,
    },
    /// Take a layer out of a chain.
    Collapse(Collapse),
    /// Take a snapshot of a domain's disks.
    SnapshotTake(SnapshotTake),
    /// Go back to a snapshot of a domain, or delete it.
    SnapshotChange(SnapshotChange),
    /// Take an image out that a domain's snapshots do not need any more.
    LayerChange(LayerChange),
    /// Clone a domain.
    DomainClone(Cloning),
    /// One step on a pool.
    Pool { verb: PoolVerb, pool: String },
    /// Install a domain.
    Install(Box<Install>),
    /// Take a domain away.
    Teardown(Teardown),
    /// Rename `path` to `trash`, then remove that.
    VolumeDelete {
        volume: VolumeId,
        path: PathBuf,
        trash: PathBuf,
    },
}

/// The external data file of a new volume, a volume of its own. Its name
/// stands in the image's header and must be absolute, so that it is made under
/// that name at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataPart {
    pub(crate) volume: VolumeId,
    pub(crate) path: PathBuf,
    /// Its name on the way out.
    pub(crate) trash: PathBuf,
    /// The finished file; known from step 1.
    pub(crate) identity: Option<FileIdentity>,
}

/// How a new volume comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verb {
    Create,
    Clone,
}

/// What is done to an image in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    Resize,
    Repair,
    Rebase,
    Flatten,
    SnapshotCreate,
    SnapshotRevert,
    SnapshotDelete,
}

impl Change {
    fn kind(self) -> &'static str {
        match self {
            Change::Resize => "volume-resize",
            Change::Repair => "volume-repair",
            Change::Rebase => "volume-rebase",
            Change::Flatten => "volume-flatten",
            Change::SnapshotCreate => "snapshot-create",
            Change::SnapshotRevert => "snapshot-revert",
            Change::SnapshotDelete => "snapshot-delete",
        }
    }
}

/// What is done to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PoolVerb {
    Build,
    Start,
    Stop,
    Delete,
    Undefine,
}

impl PoolVerb {
    fn kind(self) -> &'static str {
        match self {
            PoolVerb::Build => "pool-build",
            PoolVerb::Start => "pool-start",
            PoolVerb::Stop => "pool-stop",
            PoolVerb::Delete => "pool-delete",
            PoolVerb::Undefine => "pool-undefine",
        }
    }
}

impl Plan {
    /// The kind as the journal, jobs and events call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Plan::VolumeCreate { verb, .. } | Plan::LogicalCreate { verb, .. } => match verb {
                Verb::Create => "volume-create",
                Verb::Clone => "volume-clone",
            },
            Plan::VolumeDelete { .. } | Plan::LogicalDelete { .. } => "volume-delete",
            Plan::VolumeUpload { .. } => "volume-upload",
            Plan::VolumeWipe { .. } => "volume-wipe",
            Plan::ImageChange { change, .. } => change.kind(),
            Plan::Collapse(collapse) if collapse.down => "volume-commit",
            Plan::Collapse(_) => "volume-remove-layer",
            Plan::Pool { verb, .. } => verb.kind(),
            Plan::Install(_) => "install",
            Plan::Teardown(_) => "domain-teardown",
            Plan::SnapshotTake(_) => "domain-snapshot-create",
            Plan::SnapshotChange(change) if change.definition.is_some() => "domain-snapshot-revert",
            Plan::SnapshotChange(_) => "domain-snapshot-delete",
            Plan::LayerChange(_) => "domain-snapshot-tidy",
            Plan::DomainClone(_) => "domain-clone",
        }
    }

    /// What it works on. Two live operations never share a subject, and none
    /// works on a pool while another works on a volume of it.
    pub(crate) fn subjects(&self) -> Vec<String> {
        match self {
            Plan::VolumeCreate { volume, data, .. } => {
                let data = data.iter().map(|data| data.volume.to_string());
                std::iter::once(volume.to_string()).chain(data).collect()
            }
            Plan::VolumeDelete { volume, .. }
            | Plan::LogicalCreate { volume, .. }
            | Plan::VolumeUpload { volume }
            | Plan::LogicalDelete { volume } => vec![volume.to_string()],
            Plan::ImageChange { volume, .. } => vec![volume.to_string()],
            Plan::VolumeWipe { subjects } => subjects.clone(),
            Plan::Collapse(collapse) => std::iter::once(&collapse.volume)
                .chain(&collapse.others)
                .map(|volume| volume.to_string())
                .collect(),
            Plan::Pool { pool, .. } => vec![pool.clone()],
            Plan::Install(install) => install.subjects(),
            Plan::Teardown(teardown) => teardown.subjects(),
            Plan::SnapshotTake(take) => vec![format!("domain {}", take.domain)],
            Plan::SnapshotChange(change) => vec![format!("domain {}", change.domain)],
            Plan::LayerChange(change) => vec![format!("domain {}", change.domain)],
            Plan::DomainClone(cloning) => cloning.subjects(),
        }
    }
}
