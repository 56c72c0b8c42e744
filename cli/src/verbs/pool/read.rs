//! Commands that show pools.

use cenote_model::pool::{PoolFormat, PoolKind};
use clap::Args;
use clap_complete::ArgValueCandidates;
use uuid::Uuid;

use crate::completion;
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{PoolDetail, PoolItem, PoolItems, PoolTypeItem, PoolTypes};

/// List pools
#[derive(Args, Debug)]
pub(super) struct PoolList {
    /// Inactive pools only
    #[arg(long)]
    inactive: bool,
    /// Inactive and active pools
    #[arg(long)]
    all: bool,
    /// Transient pools only
    #[arg(long)]
    transient: bool,
    /// Persistent pools only
    #[arg(long)]
    persistent: bool,
    /// Pools with autostart only
    #[arg(long)]
    autostart: bool,
    /// Pools without autostart only
    #[arg(long)]
    no_autostart: bool,
    /// Pools of these types only, separated by commas
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    kind: Vec<PoolKind>,
    /// Also show persistence and space
    #[arg(long)]
    details: bool,
    /// Print UUIDs only
    #[arg(long, conflicts_with = "name")]
    uuid: bool,
    /// Print names only
    #[arg(long)]
    name: bool,
}

impl PoolList {
    fn shows(&self, pool: &PoolItem) -> bool {
        let state = self.all || pool.active != self.inactive;
        let persistence =
            (!self.transient && !self.persistent) || pool.persistent == self.persistent;
        let both = self.transient && self.persistent;
        let autostart = (!self.autostart && !self.no_autostart) || pool.autostart == self.autostart;
        let any_autostart = self.autostart && self.no_autostart;
        let kind = self.kind.is_empty() || self.kind.iter().any(|kind| kind.as_str() == pool.kind);
        state && (persistence || both) && (autostart || any_autostart) && kind
    }
}

impl Verb for PoolList {
    const NAME: &'static str = "pool-list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example(
            "All pools, with their space",
            "cenote pool-list --all --details",
        ),
        example(
            "The names of pools that are not started",
            "cenote pool-list --inactive --name",
        ),
        example("For a script", "cenote pool-list -o json"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let pools = context.node()?.pools()?.into_iter().map(PoolItem::from);
        let pools: Vec<PoolItem> = pools.filter(|pool| self.shows(pool)).collect();
        if self.uuid {
            return out::write(
                &pools
                    .iter()
                    .map(|pool| format!("{}\n", pool.uuid))
                    .collect::<String>(),
            );
        }
        if self.name {
            return out::write(
                &pools
                    .iter()
                    .map(|pool| format!("{}\n", pool.name))
                    .collect::<String>(),
            );
        }
        context.print(&PoolItems {
            pools,
            details: self.details,
        })
    }
}

/// Show a pool's state and space
#[derive(Args, Debug)]
pub(super) struct PoolInfoVerb {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// Print sizes in bytes
    #[arg(long)]
    bytes: bool,
}

impl Verb for PoolInfoVerb {
    const NAME: &'static str = "pool-info";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("State and space of a pool", "cenote pool-info default"),
        example(
            "Free bytes, for a script",
            "cenote pool-info default -o json --columns available",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let pool = context.pool(&context.node()?, &self.pool)?;
        context.print(&PoolDetail {
            pool: pool.into(),
            bytes: self.bytes,
        })
    }
}

/// Print a pool's document
#[derive(Args, Debug)]
pub(super) struct PoolDumpxml {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// The stored definition, without the present space
    #[arg(long)]
    inactive: bool,
    /// Print only what this XPath expression selects
    #[arg(long, value_name = "XPATH")]
    xpath: Option<String>,
    /// Put the selected nodes into one root element
    #[arg(long, requires = "xpath")]
    wrap: bool,
}

impl Verb for PoolDumpxml {
    const NAME: &'static str = "pool-dumpxml";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example("The whole document", "cenote pool-dumpxml default"),
        example(
            "Only the folder",
            "cenote pool-dumpxml default --xpath '//target/path/text()'",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let text = node.pool_xml(&pool.name, self.inactive)?;
        out::write(&document::select(text, self.xpath.as_deref(), self.wrap)?)
    }
}

/// Print the name of the pool with a UUID
#[derive(Args, Debug)]
pub(super) struct PoolName {
    /// UUID of the pool
    uuid: String,
}

impl Verb for PoolName {
    const NAME: &'static str = "pool-name";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "Name of a pool",
        "cenote pool-name 0d1c9aa4-2f4b-4c21-9a54-5f3f4f2f3f01",
    )];

    fn run(self, context: &Context) -> Result<()> {
        if Uuid::try_parse(&self.uuid).is_err() {
            return Err(
                Failure::new(Code::E0308, format!("'{}' is not a UUID", self.uuid))
                    .fix("give the pool's UUID")
                    .next("cenote pool-list --all -o wide"),
            );
        }
        let pool = context.pool(&context.node()?, &self.uuid)?;
        out::write(&format!("{}\n", pool.name))
    }
}

/// Print the UUID of a pool
#[derive(Args, Debug)]
pub(super) struct PoolUuid {
    /// Name of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
}

impl Verb for PoolUuid {
    const NAME: &'static str = "pool-uuid";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example("UUID of a pool", "cenote pool-uuid default")];

    fn run(self, context: &Context) -> Result<()> {
        let pool = context.pool(&context.node()?, &self.pool)?;
        out::write(&format!("{}\n", pool.uuid))
    }
}

/// List the types of pools and what each supports
#[derive(Args, Debug)]
pub(super) struct PoolCapabilities {}

impl Verb for PoolCapabilities {
    const NAME: &'static str = "pool-capabilities";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "Every type libvirt has, and whether Cenote has it",
        "cenote pool-capabilities",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let types = PoolKind::ALL.iter().map(|kind| pool_type(*kind)).collect();
        context.print(&PoolTypes(types))
    }
}

fn pool_type(kind: PoolKind) -> PoolTypeItem {
    let supported = PoolKind::SUPPORTED.contains(&kind);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let volume_formats = match kind {
        PoolKind::Logical => words(&["raw"]),
        _ if supported => words(&["raw", "qcow2"]),
        _ => Vec::new(),
    };
    let suiting = PoolFormat::ALL
        .iter()
        .filter(|format| supported && format.suits(kind));
    PoolTypeItem {
        kind: kind.as_str().to_owned(),
        supported,
        source_formats: suiting.map(|format| format.as_str().to_owned()).collect(),
        volume_formats,
        instead: (!supported).then(|| instead(kind).to_owned()),
    }
}

/// What to use in place of a type that Cenote does not have.
fn instead(kind: PoolKind) -> &'static str {
    match kind {
        PoolKind::Disk | PoolKind::Scsi | PoolKind::Mpath => {
            "a volume group on the device: type logical"
        }
        PoolKind::Iscsi | PoolKind::IscsiDirect | PoolKind::Rbd => {
            "attach the device to the host, then type logical or fs"
        }
        PoolKind::Gluster | PoolKind::Vstorage => "mount it, then type dir or netfs",
        _ => "a mounted file system, then type dir",
    }
}
