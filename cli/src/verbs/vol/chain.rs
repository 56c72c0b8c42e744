//! Commands on chains of backing files.

use cenote_engine::{AfterCommit, Format, NewBacking, NewVolume};
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::VolumeArgument;
use super::create::{ensure_free, path_in};
use crate::completion;
use crate::consent::Level;
use crate::context::Context;
use crate::failure::Result;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{ChainItem, Done};

/// Show what a volume stands on and what stands on it, as a tree
#[derive(Args, Debug)]
pub(super) struct VolChain {
    #[command(flatten)]
    volume: VolumeArgument,
}

impl Verb for VolChain {
    const NAME: &'static str = "vol-chain";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "The tree a volume is in; a star marks it",
        "cenote vol-chain overlay.qcow2",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        context.print(&ChainItem::from(node.volume_chain(&volume.id())?))
    }
}

/// Make a volume that stands on another and records what differs from it
#[derive(Args, Debug)]
pub(super) struct VolOverlay {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Name of the overlay
    newname: String,
    /// Pool for the overlay; by default that of the volume
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    to_pool: Option<String>,
}

impl Verb for VolOverlay {
    const NAME: &'static str = "vol-overlay";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Try something without touching the volume",
        "cenote vol-overlay disk.qcow2 trial.qcow2",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let pool = context.pool(&node, self.to_pool.as_deref().unwrap_or(&volume.pool))?;
        ensure_free(&node, &pool, &self.newname)?;
        let base = volume.path.display().to_string();
        let plan = Plan::new(Self::NAME, &self.newname)
            .change_with("create", path_in(&pool, &self.newname), "qcow2")
            .change("let it stand on", &base);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let backing = NewBacking {
            image: volume.key.clone(),
            format: None,
        };
        let made = node.volume_create(&pool.name, &NewVolume::overlay(&self.newname, backing))?;
        let message = format!("Vol {} created on {}", made.name, volume.name);
        let path = made.path.display().to_string();
        context.done(&Done::new("volume", "created", made.name, message).at(path))
    }
}

/// Write what a volume records into a volume below it
#[derive(Args, Debug)]
pub(super) struct VolCommit {
    #[command(flatten)]
    volume: VolumeArgument,
    /// The volume below to write into; by default the one right below
    #[arg(long, value_name = "VOL", add = ArgValueCandidates::new(completion::volumes))]
    base: Option<String>,
    /// Keep the volume and those between, showing what they showed
    #[arg(long)]
    keep: bool,
}

impl Verb for VolCommit {
    const NAME: &'static str = "vol-commit";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See what would be written and deleted",
            "cenote vol-commit overlay.qcow2 --dry-run",
        ),
        example(
            "Merge it into the volume below and delete it",
            "cenote vol-commit overlay.qcow2 --yes",
        ),
        example(
            "Merge it and keep it",
            "cenote vol-commit overlay.qcow2 --base base.qcow2 --keep --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let base = match &self.base {
            Some(name) => Some(context.volume_id(&node, name, None)?),
            None => volume
                .backing
                .as_ref()
                .and_then(|backing| backing.volume.clone()),
        };
        let into = base
            .as_ref()
            .map_or_else(|| "its backing image".to_owned(), ToString::to_string);
        let mut plan = Plan::new(Self::NAME, &volume.name)
            .change_with("write into", &into, format!("what {} records", volume.id()))
            .asks(
                Level::Ask,
                format!("write what {} records into {into}", volume.id()),
            );
        if !self.keep {
            plan = plan.change(
                "delete the merged layers down from",
                volume.path.display().to_string(),
            );
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let after = if self.keep {
            AfterCommit::Keep
        } else {
            AfterCommit::Delete
        };
        context.long(format!("committing {}", volume.name), |progress| {
            node.volume_commit(&volume.id(), base.as_ref(), after, progress)
        })?;
        let message = format!("Vol {} committed into {into}", volume.name);
        context.done(&Done::new("volume", "committed", &volume.name, message))
    }
}

/// Put another image below a volume; what it shows stays the same
#[derive(Args, Debug)]
pub(super) struct VolRebase {
    #[command(flatten)]
    volume: VolumeArgument,
    /// The volume or file to stand on
    #[arg(long, value_name = "VOL", add = ArgValueCandidates::new(completion::volumes))]
    backing: String,
    /// Its format; needed when it is no volume
    #[arg(long, value_name = "FORMAT")]
    backing_format: Option<Format>,
    /// Only change the name in the header; for a backing file that was moved
    #[arg(long = "unsafe")]
    only_name: bool,
}

impl Verb for VolRebase {
    const NAME: &'static str = "vol-rebase";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Stand on another volume, taking over what differs",
            "cenote vol-rebase overlay.qcow2 --backing disk.qcow2",
        ),
        example(
            "The backing file was moved: only tell the header",
            "cenote vol-rebase overlay.qcow2 --backing base.qcow2 --unsafe --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let new = NewBacking {
            image: self.backing.clone(),
            format: self.backing_format,
        };
        let path = volume.path.display().to_string();
        let mut plan = Plan::new(Self::NAME, &volume.name);
        plan = if self.only_name {
            let deed = format!(
                "change what {} shows, where {} differs from what is below it now",
                volume.id(),
                self.backing
            );
            plan.change_with("name in the header of", &path, self.backing.clone())
                .asks(Level::Ask, deed)
        } else {
            plan.change_with("take over into", &path, "what it would lose")
                .change_with(
                    "put below it",
                    &self.backing,
                    "instead of what is there now",
                )
        };
        if !context.go_on(&plan)? {
            return Ok(());
        }
        if self.only_name {
            node.volume_rebase_unsafe(&volume.id(), Some(&new))?;
        } else {
            context.long(format!("rebasing {}", volume.name), |progress| {
                node.volume_rebase(&volume.id(), Some(&new), progress)
            })?;
        }
        let message = format!("Vol {} rebased onto {}", volume.name, self.backing);
        context.done(&Done::new("volume", "rebased", &volume.name, message))
    }
}

/// Make a volume stand alone: it takes over all it needs from below
#[derive(Args, Debug)]
pub(super) struct VolFlatten {
    #[command(flatten)]
    volume: VolumeArgument,
}

impl Verb for VolFlatten {
    const NAME: &'static str = "vol-flatten";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Take over what is below, then stand alone",
        "cenote vol-flatten overlay.qcow2",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let plan = Plan::new(Self::NAME, &volume.name).change_with(
            "copy into",
            volume.path.display().to_string(),
            "all it reads from below; then let it stand alone",
        );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        context.long(format!("flattening {}", volume.name), |progress| {
            node.volume_flatten(&volume.id(), progress)
        })?;
        let message = format!("Vol {} flattened", volume.name);
        context.done(&Done::new("volume", "flattened", &volume.name, message))
    }
}

/// Delete a volume from the middle of its chain; those above take over what they need
#[derive(Args, Debug)]
pub(super) struct VolRemoveLayer {
    #[command(flatten)]
    volume: VolumeArgument,
}

impl Verb for VolRemoveLayer {
    const NAME: &'static str = "vol-remove-layer";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See who would take over what",
            "cenote vol-remove-layer base.qcow2 --dry-run",
        ),
        example("Do it", "cenote vol-remove-layer base.qcow2 --yes"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let path = volume.path.display().to_string();
        let mut plan = Plan::new(Self::NAME, &volume.name).asks(
            Level::Ask,
            format!("delete volume {} from its chain", volume.id()),
        );
        for upper in node.volume_dependents(&volume.id())? {
            plan = plan.change_with(
                "keep what is shown by",
                upper.to_string(),
                "it takes over what it needs",
            );
        }
        if !context.go_on(&plan.change("delete", &path))? {
            return Ok(());
        }
        context.long(format!("removing {}", volume.name), |progress| {
            node.volume_remove_layer(&volume.id(), progress)
        })?;
        let message = format!("Vol {} deleted", volume.name);
        context.done(&Done::new("volume", "deleted", &volume.name, message).at(path))
    }
}
