//! Commands that show volumes.

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::VolumeArgument;
use crate::completion;
use crate::context::Context;
use crate::document;
use crate::failure::Result;
use crate::out;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{VolumeDetail, VolumeItem, VolumeItems};

/// List the volumes of a pool
#[derive(Args, Debug)]
pub(super) struct VolList {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// Also show type and sizes
    #[arg(long)]
    details: bool,
}

impl Verb for VolList {
    const NAME: &'static str = "vol-list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Names and paths", "cenote vol-list default"),
        example("With sizes", "cenote vol-list default --details"),
        example(
            "What stands on what",
            "cenote vol-list default --columns name,format,backing",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let volumes = node
            .volumes(&pool.name)?
            .into_iter()
            .map(VolumeItem::from)
            .collect();
        context.print(&VolumeItems {
            volumes,
            details: self.details,
        })
    }
}

/// Show a volume's type and sizes
#[derive(Args, Debug)]
pub(super) struct VolInfo {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Print sizes in bytes
    #[arg(long)]
    bytes: bool,
    /// Show the length of the file in place of the space it takes
    #[arg(long)]
    physical: bool,
}

impl Verb for VolInfo {
    const NAME: &'static str = "vol-info";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Type and sizes", "cenote vol-info disk.raw"),
        example(
            "All there is to say about it",
            "cenote vol-info disk.raw --pool default -o wide",
        ),
        example(
            "Its capacity in bytes, for a script",
            "cenote vol-info disk.raw -o json --columns capacity",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let volume = self.volume.find(context, &context.node()?)?.into();
        context.print(&VolumeDetail {
            volume,
            bytes: self.bytes,
            physical: self.physical,
        })
    }
}

/// Print a volume's document
#[derive(Args, Debug)]
pub(super) struct VolDumpxml {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Print only what this XPath expression selects
    #[arg(long, value_name = "XPATH")]
    xpath: Option<String>,
    /// Put the selected nodes into one root element
    #[arg(long, requires = "xpath")]
    wrap: bool,
}

impl Verb for VolDumpxml {
    const NAME: &'static str = "vol-dumpxml";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example("The whole document", "cenote vol-dumpxml disk.raw"),
        example(
            "Only the format",
            "cenote vol-dumpxml disk.raw --xpath /volume/target/format/@type",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let text = node.volume_xml(&volume.id())?;
        out::write(&document::select(text, self.xpath.as_deref(), self.wrap)?)
    }
}

/// Print the path of a volume
#[derive(Args, Debug)]
pub(super) struct VolPath {
    #[command(flatten)]
    volume: VolumeArgument,
}

impl Verb for VolPath {
    const NAME: &'static str = "vol-path";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "Where a volume is",
        "cenote vol-path disk.raw --pool default",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let volume = self.volume.find(context, &context.node()?)?;
        out::write(&format!("{}\n", volume.path.display()))
    }
}

/// Print the key of a volume
#[derive(Args, Debug)]
pub(super) struct VolKey {
    #[command(flatten)]
    volume: VolumeArgument,
}

impl Verb for VolKey {
    const NAME: &'static str = "vol-key";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "What identifies a volume on this machine",
        "cenote vol-key disk.raw",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let volume = self.volume.find(context, &context.node()?)?;
        out::write(&format!("{}\n", volume.key))
    }
}

/// Print the name of the volume with a path or key
#[derive(Args, Debug)]
pub(super) struct VolName {
    /// Path or key of the volume
    vol: String,
}

impl Verb for VolName {
    const NAME: &'static str = "vol-name";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "Name of the volume at a path",
        "cenote vol-name \"$(cenote vol-path disk.raw)\"",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let volume = context.volume(&context.node()?, &self.vol, None)?;
        out::write(&format!("{}\n", volume.name))
    }
}

/// Print the pool of the volume with a path or key
#[derive(Args, Debug)]
pub(super) struct VolPool {
    /// Path or key of the volume
    vol: String,
    /// Print the pool's UUID rather than its name
    #[arg(long)]
    uuid: bool,
}

impl Verb for VolPool {
    const NAME: &'static str = "vol-pool";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "Pool of the volume at a path",
        "cenote vol-pool \"$(cenote vol-path disk.raw)\"",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = context.volume(&node, &self.vol, None)?;
        let pool = context.pool(&node, &volume.pool)?;
        let shown = if self.uuid { pool.uuid } else { pool.name };
        out::write(&format!("{shown}\n"))
    }
}
