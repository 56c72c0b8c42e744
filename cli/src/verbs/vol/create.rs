//! Commands that make volumes.

use std::path::PathBuf;

use cenote_engine::{Format, NewBacking, NewVolume, Node, PoolInfo, Preallocation};
use cenote_model::volume::Volume;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::document::document_of;
use crate::completion;
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::{human, parse_size};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// How much of a new volume is allocated at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PreallocationChoice {
    /// Nothing: it grows as it is written
    Off,
    /// The tables of a qcow2 volume
    Metadata,
    /// All of it, reserved by the file system
    Falloc,
    /// All of it, written with zeroes
    Full,
}

impl From<PreallocationChoice> for Preallocation {
    fn from(choice: PreallocationChoice) -> Self {
        match choice {
            PreallocationChoice::Off => Self::Off,
            PreallocationChoice::Metadata => Self::Metadata,
            PreallocationChoice::Falloc => Self::Falloc,
            PreallocationChoice::Full => Self::Full,
        }
    }
}

/// qcow2's own options, for commands that make qcow2 volumes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "qcow2 options")]
pub(super) struct Qcow2Options {
    /// Cluster size, from 512 bytes to 2M
    #[arg(long, value_name = "SIZE")]
    cluster_size: Option<String>,
    /// Version: 0.10 or 1.1
    #[arg(long, value_name = "VERSION", value_parser = ["0.10", "1.1"])]
    compat: Option<String>,
    /// Let refcounts lag behind while the image is open
    #[arg(long)]
    lazy_refcounts: bool,
    /// Width of refcounts in bits
    #[arg(long, value_name = "BITS", value_parser = ["1", "2", "4", "8", "16", "32", "64"])]
    refcount_bits: Option<String>,
    /// Allocate clusters in 32 parts
    #[arg(long)]
    extended_l2: bool,
    /// How compressed clusters are compressed
    #[arg(long, value_name = "METHOD", value_parser = ["zlib", "zstd"])]
    compression: Option<String>,
}

impl Qcow2Options {
    pub(super) fn apply(&self, new: &mut NewVolume) -> Result<()> {
        use cenote_engine::Compression;
        let settings = &mut new.qcow2;
        settings.cluster_size = self.cluster_size.as_deref().map(parse_size).transpose()?;
        settings.version_2 = self.compat.as_deref() == Some("0.10");
        settings.lazy_refcounts = self.lazy_refcounts;
        settings.extended_l2 = self.extended_l2;
        settings.refcount_bits = self
            .refcount_bits
            .as_deref()
            .and_then(|bits| bits.parse().ok());
        settings.compression = match self.compression.as_deref() {
            Some("zstd") => Some(Compression::Zstd),
            Some(_) => Some(Compression::Zlib),
            None => None,
        };
        Ok(())
    }
}

/// Checks what can be checked before anything is made, for plans.
pub(super) fn ensure_free(node: &Node, pool: &PoolInfo, name: &str) -> Result<()> {
    let path = pool.target.join(name);
    let taken =
        node.resolve_volume(name, Some(&pool.name)).is_ok() || path.symlink_metadata().is_ok();
    if taken {
        return Err(Failure::new(
            Code::E0302,
            format!("storage vol '{}/{name}' already exists", pool.name),
        )
        .fix("choose another name, or delete it first")
        .next(format!(
            "cenote vol-delete {} --pool {}",
            crate::out::quoted(name),
            crate::out::quoted(&pool.name)
        )));
    }
    Ok(())
}

pub(super) fn path_in(pool: &PoolInfo, name: &str) -> String {
    pool.target.join(name).display().to_string()
}

fn create(
    context: &Context,
    node: &Node,
    verb: &str,
    pool: &PoolInfo,
    new: &NewVolume,
    message: String,
) -> Result<()> {
    ensure_free(node, pool, &new.name)?;
    let path = path_in(pool, &new.name);
    let size = new
        .capacity
        .map_or_else(|| "as large as its backing image".to_owned(), human);
    let mut plan =
        Plan::new(verb, &new.name).change_with("create", &path, format!("{}, {size}", new.format));
    if let Some(backing) = &new.backing {
        plan = plan.change("let it stand on", &backing.image);
    }
    if !context.go_on(&plan)? {
        return Ok(());
    }
    let volume = node.volume_create(&pool.name, new)?;
    let path = volume.path.display().to_string();
    context.done(&Done::new("volume", "created", volume.name, message).at(path))
}

/// Make a volume from a document
#[derive(Args, Debug)]
pub(super) struct VolCreate {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// The document; - is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Allocate the tables of a qcow2 volume at once
    #[arg(long)]
    prealloc_metadata: bool,
    /// Refuse what is not known instead of keeping it without effect
    #[arg(long)]
    validate: bool,
}

impl Verb for VolCreate {
    const NAME: &'static str = "vol-create";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Make what a document describes",
            "cenote vol-create default volume.xml",
        ),
        example(
            "Copy the shape of a volume",
            "cenote vol-dumpxml disk.qcow2 | sed s/disk.qcow2/new.qcow2/ | cenote vol-create default -",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let text = document::read(&self.file)?;
        let volume: Volume = document::parse(context, &text, self.validate)?;
        let mut new = NewVolume::from_document(&volume)?;
        if self.prealloc_metadata {
            new.preallocation = Some(Preallocation::Metadata);
        }
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let message = format!("Vol {} created from {}", new.name, self.file.display());
        create(context, &node, Self::NAME, &pool, &new, message)
    }
}

/// Make a volume from arguments
#[derive(Args, Debug)]
pub(super) struct VolCreateAs {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// Name of the volume, with its suffix
    name: String,
    /// Size the guest sees
    #[arg(value_name = "CAPACITY")]
    capacity: String,
    /// Space to allocate at once; by default all of a raw volume, nothing of a qcow2 one
    #[arg(long, value_name = "SIZE")]
    allocation: Option<String>,
    /// raw or qcow2
    #[arg(long, default_value = "raw")]
    format: Format,
    /// The volume or file that shows through where this one has nothing
    #[arg(long, value_name = "VOL", add = ArgValueCandidates::new(completion::volumes))]
    backing_vol: Option<String>,
    /// Its format; needed when it is no volume
    #[arg(long, value_name = "FORMAT", requires = "backing_vol")]
    backing_vol_format: Option<Format>,
    /// Allocate the tables of a qcow2 volume at once
    #[arg(long, conflicts_with = "preallocation")]
    prealloc_metadata: bool,
    /// How much is allocated at once
    #[arg(long, conflicts_with = "allocation")]
    preallocation: Option<PreallocationChoice>,
    /// Print the document and do nothing
    #[arg(long)]
    print_xml: bool,
    #[command(flatten)]
    qcow2: Qcow2Options,
}

impl VolCreateAs {
    fn new_volume(&self) -> Result<NewVolume> {
        let mut new = NewVolume::new(&self.name, self.format, parse_size(&self.capacity)?);
        new.allocation = self.allocation.as_deref().map(parse_size).transpose()?;
        new.preallocation = match (self.prealloc_metadata, self.preallocation) {
            (true, _) => Some(Preallocation::Metadata),
            (false, choice) => choice.map(Preallocation::from),
        };
        new.backing = self.backing_vol.as_ref().map(|image| NewBacking {
            image: image.clone(),
            format: self.backing_vol_format,
        });
        self.qcow2.apply(&mut new)?;
        Ok(new)
    }
}

impl Verb for VolCreateAs {
    const NAME: &'static str = "vol-create-as";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "10 GiB that grow as they are written",
            "cenote vol-create-as default new.qcow2 10G --format qcow2",
        ),
        example(
            "A raw volume that takes no space yet",
            "cenote vol-create-as default new.raw 1M --allocation 0",
        ),
        example(
            "On top of another volume",
            "cenote vol-create-as default top.qcow2 10G --format qcow2 --backing-vol base.qcow2",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let new = self.new_volume()?;
        if self.print_xml {
            return crate::out::write(&document_of(&new)?);
        }
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let message = format!("Vol {} created", new.name);
        create(context, &node, Self::NAME, &pool, &new, message)
    }
}
