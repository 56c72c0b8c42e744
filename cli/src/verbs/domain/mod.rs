//! Commands on domains.

mod console;
mod define;
mod devices;
mod edit;
mod install;
mod life;
mod read;
mod save;
mod snapshot;
mod teardown;
mod words;

use cenote_engine::Scope;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::completion;
use crate::verb::Entry;

pub(super) const ENTRIES: &[Entry] = &[
    Entry::of::<install::Install>(),
    Entry::of::<read::List>(),
    Entry::of::<read::DomInfo>(),
    Entry::of::<read::DomState>(),
    Entry::of::<read::DumpXml>(),
    Entry::of::<read::DomId>(),
    Entry::of::<read::DomName>(),
    Entry::of::<read::DomUuid>(),
    Entry::of::<read::DomBlkList>(),
    Entry::of::<read::DomIfList>(),
    Entry::of::<devices::DomBlkStat>(),
    Entry::of::<devices::DomIfAddr>(),
    Entry::of::<devices::DomStats>(),
    Entry::of::<read::VcpuCount>(),
    Entry::of::<life::Start>(),
    Entry::of::<life::Create>(),
    Entry::of::<life::Shutdown>(),
    Entry::of::<life::Reboot>(),
    Entry::of::<life::Reset>(),
    Entry::of::<life::Stop>(),
    Entry::of::<life::Destroy>(),
    Entry::of::<life::Suspend>(),
    Entry::of::<life::Resume>(),
    Entry::of::<console::ConsoleVerb>(),
    Entry::of::<console::Logs>(),
    Entry::of::<save::Save>(),
    Entry::of::<save::Restore>(),
    Entry::of::<save::ManagedSave>(),
    Entry::of::<save::ManagedSaveRemove>(),
    Entry::of::<save::ManagedSaveDumpXml>(),
    Entry::of::<save::ManagedSaveDefine>(),
    Entry::of::<save::ManagedSaveEdit>(),
    Entry::of::<save::SaveImageDumpXml>(),
    Entry::of::<save::SaveImageDefine>(),
    Entry::of::<save::SaveImageEdit>(),
    Entry::of::<devices::ChangeMedia>(),
    Entry::of::<devices::AttachDisk>(),
    Entry::of::<devices::DetachDisk>(),
    Entry::of::<devices::Screenshot>(),
    Entry::of::<devices::SendKey>(),
    Entry::of::<snapshot::SnapshotCreate>(),
    Entry::of::<snapshot::SnapshotCreateAs>(),
    Entry::of::<snapshot::SnapshotList>(),
    Entry::of::<snapshot::SnapshotCurrent>(),
    Entry::of::<snapshot::SnapshotParent>(),
    Entry::of::<snapshot::SnapshotInfoVerb>(),
    Entry::of::<snapshot::SnapshotDumpXml>(),
    Entry::of::<snapshot::SnapshotRevert>(),
    Entry::of::<snapshot::SnapshotDeleteVerb>(),
    Entry::of::<define::Define>(),
    Entry::of::<define::Undefine>(),
    Entry::of::<teardown::Teardown>(),
    Entry::of::<define::DomRename>(),
    Entry::of::<define::CloneVerb>(),
    Entry::of::<define::Autostart>(),
    Entry::of::<edit::Edit>(),
    Entry::of::<words::Desc>(),
    Entry::of::<words::MetadataVerb>(),
    Entry::of::<define::SetMem>(),
    Entry::of::<define::SetMaxMem>(),
    Entry::of::<define::SetVcpus>(),
];

// The domain that a command is about.
#[derive(Args, Clone, Debug)]
#[allow(
    missing_docs,
    reason = "clap would make a doc comment the description of every such command"
)]
struct Target {
    /// Name, UUID, or id while it runs, of the domain
    #[arg(add = ArgValueCandidates::new(completion::domains))]
    domain: String,
}

// Which of its documents.
#[derive(Args, Clone, Copy, Debug, Default)]
#[allow(
    missing_docs,
    reason = "clap would make a doc comment the description of every such command"
)]
struct ScopeChoice {
    /// The definition, which the next start uses
    #[arg(long)]
    config: bool,
    /// What runs
    #[arg(long)]
    live: bool,
    /// What runs if it runs, else the definition; this is the default
    #[arg(long, conflicts_with_all = ["config", "live"])]
    current: bool,
}

impl ScopeChoice {
    /// The one document that is shown.
    fn scope_to_read(self) -> Scope {
        match self.scope() {
            Scope::Both => Scope::Live,
            other => other,
        }
    }

    fn scope(self) -> Scope {
        match (self.config, self.live) {
            (true, true) => Scope::Both,
            (true, false) => Scope::Config,
            (false, true) => Scope::Live,
            (false, false) => Scope::Current,
        }
    }
}
