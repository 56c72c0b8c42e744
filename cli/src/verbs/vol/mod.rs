//! Commands on volumes.

mod read;
mod remove;
mod transfer;

use cenote_engine::{Node, VolumeInfo};
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::completion;
use crate::context::Context;
use crate::failure::Result;
use crate::verb::Entry;

pub(super) const ENTRIES: &[Entry] = &[
    Entry::of::<read::VolList>(),
    Entry::of::<read::VolInfo>(),
    Entry::of::<read::VolDumpxml>(),
    Entry::of::<read::VolPath>(),
    Entry::of::<read::VolKey>(),
    Entry::of::<read::VolName>(),
    Entry::of::<read::VolPool>(),
    Entry::of::<transfer::VolUpload>(),
    Entry::of::<transfer::VolDownload>(),
    Entry::of::<remove::VolSetFormat>(),
    Entry::of::<remove::VolDelete>(),
];

/// Which volume.
#[derive(Args, Clone, Debug)]
struct VolumeArgument {
    /// Name, pool/name, path or key of the volume
    #[arg(add = ArgValueCandidates::new(completion::volumes))]
    vol: String,
    /// Pool of the volume, by name or UUID
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    pool: Option<String>,
}

impl VolumeArgument {
    fn find(&self, context: &Context, node: &Node) -> Result<VolumeInfo> {
        context.volume(node, &self.vol, self.pool.as_deref())
    }
}
