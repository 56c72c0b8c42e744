//! Every command, in the order of the overview.

mod config;
mod doctor;
mod domain;
mod guide;
mod machine;
mod node;
mod pool;
mod vol;
mod wipe;

use std::sync::OnceLock;

use crate::verb::Entry;

/// Commands under one heading of the overview.
#[derive(Debug)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// Its commands.
    pub entries: &'static [Entry],
}

/// The overview.
pub const SECTIONS: &[Section] = &[
    Section {
        title: "Domains",
        entries: domain::ENTRIES,
    },
    Section {
        title: "Pools",
        entries: pool::ENTRIES,
    },
    Section {
        title: "Volumes",
        entries: vol::ENTRIES,
    },
    Section {
        title: "Chains, structure and snapshots",
        entries: vol::CHAIN_ENTRIES,
    },
    Section {
        title: "Wiping",
        entries: wipe::ENTRIES,
    },
    Section {
        title: "Node",
        entries: &[
            Entry::of::<doctor::Doctor>(),
            Entry::of::<node::EventVerb>(),
            Entry::of::<node::JobList>(),
            Entry::of::<node::JobCancel>(),
            Entry::of::<node::Fsck>(),
            Entry::of::<node::RepairVerb>(),
            Entry::of::<machine::NodeInfoVerb>(),
            Entry::of::<machine::Version>(),
        ],
    },
    Section {
        title: "Help and setup",
        entries: &[
            Entry::of::<guide::Help>(),
            Entry::of::<guide::Explain>(),
            Entry::of::<config::ConfigShow>(),
            Entry::of::<guide::Completions>(),
            Entry::of::<guide::ManPages>(),
        ],
    },
];

/// All commands.
#[must_use]
pub fn all() -> &'static [Entry] {
    static ALL: OnceLock<Vec<Entry>> = OnceLock::new();
    ALL.get_or_init(|| {
        SECTIONS
            .iter()
            .flat_map(|section| section.entries)
            .copied()
            .collect()
    })
}

/// The command of that hyphenated name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    all().iter().find(|entry| entry.name == name)
}
