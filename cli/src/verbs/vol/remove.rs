//! `vol-delete` and `vol-set-format`.

use cenote_engine::{Format, Node, VolumeId, VolumeInfo, WipeOptions};
use cenote_pools::wipe::{Algorithm, Verify};
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{VolumeArgument, wipe};
use crate::completion;
use crate::consent::Level;
use crate::context::Context;
use crate::failure::Result;
use crate::out::{human, parse_size};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Delete volumes; their content is overwritten with --wipe only
#[derive(Args, Debug)]
pub(super) struct VolDelete {
    /// Names, pool/names, paths or keys of volumes
    #[arg(required = true, add = ArgValueCandidates::new(completion::volumes))]
    vol: Vec<String>,
    /// Pool of the volumes, by name or UUID
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    pool: Option<String>,
    /// Overwrite the content first and prove it; =zero or another method instead of random
    #[arg(
        long,
        value_name = "METHOD",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "random",
        value_parser = wipe::algorithm
    )]
    wipe: Option<Algorithm>,
    /// How much of it to read back: all, none or sample:N%
    #[arg(long, value_name = "PART", requires = "wipe", value_parser = wipe::verification)]
    verify: Option<Verify>,
    /// Overwrite also where nothing can be proved, and say so
    #[arg(long, requires = "wipe")]
    best_effort: bool,
    /// Most bytes a second, such as 200M
    #[arg(long, value_name = "SIZE", requires = "wipe")]
    limit: Option<String>,
    /// Also the backing files that only this volume uses
    #[arg(long, requires = "wipe")]
    chain: bool,
}

impl VolDelete {
    /// How to overwrite, if that was asked for.
    fn wiping(&self) -> Result<Option<WipeOptions>> {
        let Some(algorithm) = self.wipe else {
            return Ok(None);
        };
        Ok(Some(WipeOptions {
            algorithm,
            verify: self.verify.unwrap_or_default(),
            best_effort: self.best_effort,
            limit: self.limit.as_deref().map(parse_size).transpose()?,
            chain: self.chain,
            delete: true,
        }))
    }
}

impl Verb for VolDelete {
    const NAME: &'static str = "vol-delete";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See what would be deleted",
            "cenote vol-delete disk.raw --dry-run",
        ),
        example(
            "Overwrite it before it goes",
            "cenote vol-delete disk.raw --wipe --best-effort --yes",
        ),
        example(
            "Delete it",
            "cenote vol-delete disk.raw --pool default --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let find = |name: &String| context.volume(&node, name, self.pool.as_deref());
        // All are looked at before the first is deleted.
        let volumes = self.vol.iter().map(find).collect::<Result<Vec<_>>>()?;
        let ids: Vec<VolumeId> = volumes.iter().map(VolumeInfo::id).collect();
        for id in &ids {
            node.volume_ensure_changeable(id, &ids)?;
        }
        if let Some(options) = self.wiping()? {
            let volumes = upper_first(&node, volumes)?;
            let plan = wipe::plan(Self::NAME, "wipe and delete", &node, &volumes, &options)?;
            if !context.go_on(&plan)? {
                return Ok(());
            }
            // One after the other: a lower volume is free when the upper one is gone.
            return wipe::wipe_volumes(context, &node, &volumes, &options, 1);
        }
        let names: Vec<String> = volumes
            .iter()
            .map(|volume| volume.id().to_string())
            .collect();
        let mut plan = Plan::new(
            Self::NAME,
            volumes.first().map_or("", |volume| &volume.name),
        )
        .asks(Level::Ask, format!("delete {}", names.join(", ")));
        for volume in &volumes {
            let detail = format!("{} of {}", human(volume.allocation), volume.format);
            plan = plan.change_with("delete", volume.path.display().to_string(), detail);
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        for volume in upper_first(&node, volumes)? {
            node.volume_delete(&volume.id())?;
            let message = format!("Vol {} deleted", volume.name);
            let path = volume.path.display().to_string();
            context.done(&Done::new("volume", "deleted", &volume.name, message).at(path))?;
        }
        Ok(())
    }
}

/// The volumes in an order in which each has nothing standing on it when its turn comes.
fn upper_first(node: &Node, volumes: Vec<VolumeInfo>) -> Result<Vec<VolumeInfo>> {
    let mut counted = Vec::with_capacity(volumes.len());
    for volume in volumes {
        // A lower volume has all the dependents of those above it, and these.
        counted.push((node.volume_dependents(&volume.id())?.len(), volume));
    }
    counted.sort_by_key(|(dependents, _)| *dependents);
    Ok(counted.into_iter().map(|(_, volume)| volume).collect())
}

/// Declare the format of a volume that others made
#[derive(Args, Debug)]
pub(super) struct VolSetFormat {
    #[command(flatten)]
    volume: VolumeArgument,
    /// raw or qcow2
    format: Format,
}

impl Verb for VolSetFormat {
    const NAME: &'static str = "vol-set-format";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "A disk image that was copied into the pool by hand",
        "cenote vol-set-format disk.raw raw",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let plan = Plan::new(Self::NAME, &volume.name).change_with(
            "note the format of",
            volume.path.display().to_string(),
            format!("{} instead of {}", self.format, volume.format),
        );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.volume_set_format(&volume.id(), self.format)?;
        let message = format!("Vol {} has format {}", volume.name, self.format);
        context.done(&Done::new("volume", "declared", &volume.name, message))
    }
}
