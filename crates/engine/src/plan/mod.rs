//! The plans of journalled operations and how each is brought to an end after
//! its process died.
//!
//! A plan holds all that repair needs, because nobody is left to ask. Repair
//! looks at the disk rather than trusting the last recorded step: a step may
//! have been taken without being recorded.

mod recover;

use std::path::PathBuf;

use cenote_pools::VolumeId;
use cenote_pools::file::FileIdentity;
use serde::{Deserialize, Serialize};

/// What an operation is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Plan {
    /// Fill the private file `temporary`, then give it its name `path`.
    VolumeCreate {
        /// Verb for the user, `volume-create` or `volume-clone`.
        verb: Verb,
        volume: VolumeId,
        path: PathBuf,
        temporary: PathBuf,
        /// The finished file; known from step 1.
        identity: Option<FileIdentity>,
        format: String,
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
    /// One step on a pool.
    Pool { verb: PoolVerb, pool: String },
    /// Rename `path` to `trash`, then remove that.
    VolumeDelete {
        volume: VolumeId,
        path: PathBuf,
        trash: PathBuf,
    },
}

/// How a new volume comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verb {
    Create,
    Clone,
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
            Plan::Pool { verb, .. } => verb.kind(),
        }
    }

    /// What it works on. Two live operations never share a subject, and none
    /// works on a pool while another works on a volume of it.
    pub(crate) fn subjects(&self) -> Vec<String> {
        match self {
            Plan::VolumeCreate { volume, .. }
            | Plan::VolumeDelete { volume, .. }
            | Plan::LogicalCreate { volume, .. }
            | Plan::VolumeUpload { volume }
            | Plan::LogicalDelete { volume } => vec![volume.to_string()],
            Plan::Pool { pool, .. } => vec![pool.clone()],
        }
    }
}
