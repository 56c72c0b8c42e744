//! Commands on volumes.

mod chain;
mod copy;
mod create;
mod document;
mod read;
mod remove;
mod resize;
mod serve;
mod snapshot;
mod structure;
mod transfer;
pub(super) mod wipe;

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
    Entry::of::<create::VolCreate>(),
    Entry::of::<create::VolCreateAs>(),
    Entry::of::<copy::VolCreateFrom>(),
    Entry::of::<copy::VolClone>(),
    Entry::of::<copy::VolConvert>(),
    Entry::of::<resize::VolResize>(),
    Entry::of::<transfer::VolUpload>(),
    Entry::of::<transfer::VolDownload>(),
    Entry::of::<remove::VolSetFormat>(),
    Entry::of::<serve::VolServe>(),
    Entry::of::<remove::VolDelete>(),
    Entry::of::<wipe::VolWipe>(),
];

pub(super) const CHAIN_ENTRIES: &[Entry] = &[
    Entry::of::<chain::VolChain>(),
    Entry::of::<chain::VolOverlay>(),
    Entry::of::<chain::VolCommit>(),
    Entry::of::<chain::VolRebase>(),
    Entry::of::<chain::VolFlatten>(),
    Entry::of::<chain::VolRemoveLayer>(),
    Entry::of::<structure::VolCheck>(),
    Entry::of::<structure::VolMap>(),
    Entry::of::<structure::VolCompare>(),
    Entry::of::<snapshot::VolSnapshotList>(),
    Entry::of::<snapshot::VolSnapshotCreate>(),
    Entry::of::<snapshot::VolSnapshotRevert>(),
    Entry::of::<snapshot::VolSnapshotDelete>(),
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
