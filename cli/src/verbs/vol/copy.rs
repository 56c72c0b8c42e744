//! Commands that copy volumes.

use std::path::PathBuf;

use cenote_engine::{CloneSettings, Format, NewVolume, Node, PoolInfo, Preallocation, VolumeInfo};
use cenote_model::volume::Volume;
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::VolumeArgument;
use super::create::{Qcow2Options, ensure_free, path_in};
use super::document::document_of;
use crate::completion;
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::human;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// `--reflink` of virsh: blocks shared by the file system.
fn refuse_reflink() -> Failure {
    Failure::new(Code::E0307, "--reflink cannot be honoured")
        .why("volumes that share blocks of the host's file system could not be wiped one by one")
        .fix("leave it out for a copy of its own, or share by --linked, which the node knows of")
        .next("cenote vol-clone --help")
}

fn planned(
    context: &Context,
    node: &Node,
    verb: &str,
    source: &VolumeInfo,
    pool: &PoolInfo,
    new: &NewVolume,
) -> Result<bool> {
    ensure_free(node, pool, &new.name)?;
    let detail = format!(
        "{}, {}",
        new.format,
        human(new.capacity.unwrap_or(source.capacity))
    );
    let plan = Plan::new(verb, &new.name)
        .change_with("create", path_in(pool, &new.name), detail)
        .change(
            "fill it with what is shown by",
            source.path.display().to_string(),
        );
    context.go_on(&plan)
}

/// Copy a volume into a new one, whole or linked
#[derive(Args, Debug)]
pub(super) struct VolClone {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Name of the copy
    #[arg(value_name = "NEWNAME")]
    newname: String,
    /// Share what there is: the copy stands on the volume, which may not change any more
    #[arg(long)]
    linked: bool,
    /// Allocate the tables of a qcow2 copy at once
    #[arg(long, conflicts_with = "linked")]
    prealloc_metadata: bool,
    /// Share blocks of the file system; refused, see --linked
    #[arg(long)]
    reflink: bool,
    /// Print the copy's document and do nothing
    #[arg(long)]
    print_xml: bool,
}

impl Verb for VolClone {
    const NAME: &'static str = "vol-clone";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "A copy of its own",
            "cenote vol-clone disk.qcow2 copy.qcow2",
        ),
        example(
            "A copy that shares what there is, at once",
            "cenote vol-clone base.qcow2 guest1.qcow2 --linked",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        if self.reflink {
            return Err(refuse_reflink());
        }
        let node = context.node()?;
        let source = self.volume.find(context, &node)?;
        let pool = context.pool(&node, &source.pool)?;
        let new = if self.linked {
            let backing = cenote_engine::NewBacking {
                image: source.key.clone(),
                format: None,
            };
            NewVolume::overlay(&self.newname, backing)
        } else {
            let format = node.trusted_format(&source)?;
            let mut new = NewVolume::new(&self.newname, format, source.capacity);
            if self.prealloc_metadata {
                new.preallocation = Some(Preallocation::Metadata);
            }
            new
        };
        if self.print_xml {
            return crate::out::write(&document_of(&new)?);
        }
        if !planned(context, &node, Self::NAME, &source, &pool, &new)? {
            return Ok(());
        }
        let made = if self.linked {
            node.volume_clone_linked(&source.id(), &pool.name, &self.newname)?
        } else {
            context.long(format!("cloning {}", source.name), |progress| {
                node.volume_clone(
                    &source.id(),
                    &pool.name,
                    &new,
                    &CloneSettings::default(),
                    progress,
                )
            })?
        };
        let message = format!("Vol {} cloned from {}", made.name, source.name);
        let path = made.path.display().to_string();
        context.done(&Done::new("volume", "cloned", made.name, message).at(path))
    }
}

/// Make a volume from a document, with the content of another volume
#[derive(Args, Debug)]
pub(super) struct VolCreateFrom {
    /// Name or UUID of the pool for the new volume
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// The document; - is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Name, pool/name, path or key of the volume to copy
    #[arg(add = ArgValueCandidates::new(completion::volumes))]
    vol: String,
    /// Pool of the volume to copy
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    inputpool: Option<String>,
    /// Allocate the tables of a qcow2 volume at once
    #[arg(long)]
    prealloc_metadata: bool,
    /// Share blocks of the file system; refused, see vol-clone --linked
    #[arg(long)]
    reflink: bool,
}

impl Verb for VolCreateFrom {
    const NAME: &'static str = "vol-create-from";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Copy, with the shape of a document",
        "cenote vol-create-from default larger.xml disk.qcow2",
    )];

    fn run(self, context: &Context) -> Result<()> {
        if self.reflink {
            return Err(refuse_reflink());
        }
        let text = document::read(&self.file)?;
        let volume: Volume = document::parse(context, &text, false)?;
        let mut new = NewVolume::from_document(&volume)?;
        if self.prealloc_metadata {
            new.preallocation = Some(Preallocation::Metadata);
        }
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let source = context.volume(&node, &self.vol, self.inputpool.as_deref())?;
        if !planned(context, &node, Self::NAME, &source, &pool, &new)? {
            return Ok(());
        }
        let made = context.long(format!("copying {}", source.name), |progress| {
            node.volume_clone(
                &source.id(),
                &pool.name,
                &new,
                &CloneSettings::default(),
                progress,
            )
        })?;
        let message = format!("Vol {} created from input vol {}", made.name, source.name);
        let path = made.path.display().to_string();
        context.done(&Done::new("volume", "created", made.name, message).at(path))
    }
}

/// Copy a volume into a new one of another format
#[derive(Args, Debug)]
pub(super) struct VolConvert {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Name of the new volume
    newname: String,
    /// raw or qcow2
    #[arg(long)]
    format: Format,
    /// Pool for the new volume; by default that of the volume
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    to_pool: Option<String>,
    /// Compress the clusters of a qcow2 copy
    #[arg(long)]
    compress: bool,
    /// Threads; by default as many as suit this machine
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    qcow2: Qcow2Options,
}

impl Verb for VolConvert {
    const NAME: &'static str = "vol-convert";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "A raw copy of what the guest sees",
            "cenote vol-convert disk.qcow2 flat.raw --format raw",
        ),
        example(
            "A small copy to keep",
            "cenote vol-convert disk.raw kept.qcow2 --format qcow2 --compress --compression zstd",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let source = self.volume.find(context, &node)?;
        let pool = context.pool(&node, self.to_pool.as_deref().unwrap_or(&source.pool))?;
        if self.compress && self.format == Format::Raw {
            return Err(
                Failure::new(Code::E0410, "a raw volume cannot be compressed")
                    .fix("use --format qcow2, or leave --compress out")
                    .next("cenote vol-convert --help"),
            );
        }
        let mut new = NewVolume::new(&self.newname, self.format, source.capacity);
        self.qcow2.apply(&mut new)?;
        let settings = CloneSettings {
            compress: self.compress,
            threads: self.threads,
        };
        if !planned(context, &node, Self::NAME, &source, &pool, &new)? {
            return Ok(());
        }
        let made = context.long(format!("converting {}", source.name), |progress| {
            node.volume_clone(&source.id(), &pool.name, &new, &settings, progress)
        })?;
        let message = format!("Vol {} converted from {}", made.name, source.name);
        let path = made.path.display().to_string();
        context.done(&Done::new("volume", "converted", made.name, message).at(path))
    }
}
