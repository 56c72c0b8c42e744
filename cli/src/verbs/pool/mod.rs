//! Commands on pools.

mod define;
mod edit;
mod life;
mod read;
mod sources;

use cenote_engine::{BuildMode, PoolInfo};
use clap::Args;

use crate::consent::Level;
use crate::plan::Plan;
use crate::verb::Entry;

pub(super) const ENTRIES: &[Entry] = &[
    Entry::of::<read::PoolList>(),
    Entry::of::<read::PoolInfoVerb>(),
    Entry::of::<read::PoolDumpxml>(),
    Entry::of::<read::PoolName>(),
    Entry::of::<read::PoolUuid>(),
    Entry::of::<read::PoolCapabilities>(),
    Entry::of::<define::PoolDefine>(),
    Entry::of::<define::PoolDefineAs>(),
    Entry::of::<define::PoolCreate>(),
    Entry::of::<define::PoolCreateAs>(),
    Entry::of::<edit::PoolEdit>(),
    Entry::of::<life::PoolBuild>(),
    Entry::of::<life::PoolStart>(),
    Entry::of::<life::PoolAutostart>(),
    Entry::of::<life::PoolRefresh>(),
    Entry::of::<life::PoolDestroy>(),
    Entry::of::<life::PoolUndefine>(),
    Entry::of::<life::PoolDelete>(),
    Entry::of::<sources::FindSources>(),
    Entry::of::<sources::FindSourcesAs>(),
];

/// Whether and how a pool is built.
#[derive(Args, Clone, Copy, Debug)]
struct BuildChoice {
    /// Make a file system unless something is on the device
    #[arg(long, conflicts_with = "overwrite")]
    no_overwrite: bool,

    /// Make a file system whatever is on the device, destroying it
    #[arg(long)]
    overwrite: bool,
}

impl BuildChoice {
    fn mode(self) -> BuildMode {
        match (self.no_overwrite, self.overwrite) {
            (_, true) => BuildMode::Overwrite,
            (true, false) => BuildMode::NoOverwrite,
            (false, false) => BuildMode::Plain,
        }
    }

    /// The mode, if the pool is to be built at all.
    fn if_asked(self, build: bool) -> Option<BuildMode> {
        (build || self.overwrite || self.no_overwrite).then(|| self.mode())
    }
}

/// Adds the building of a pool to a plan; overwriting wants the name typed.
fn plan_build(plan: Plan, name: &str, target: &str, mode: BuildMode) -> Plan {
    match mode {
        BuildMode::Plain => plan.change("make the place of pool", target),
        BuildMode::NoOverwrite => plan.change_with(
            "format the source of pool",
            name,
            "unless something is on it",
        ),
        BuildMode::Overwrite => plan
            .change_with("format the source of pool", name, "whatever is on it")
            .asks(
                Level::TypeName,
                format!("destroy what is on the source of pool '{name}'"),
            ),
    }
}

fn target_of(pool: &PoolInfo) -> String {
    pool.target.display().to_string()
}
