//! `vol-delete` and `vol-set-format`.

use cenote_engine::{Format, Node, VolumeId, VolumeInfo};
use clap::Args;
use clap_complete::ArgValueCandidates;

use super::VolumeArgument;
use crate::completion;
use crate::consent::Level;
use crate::context::Context;
use crate::failure::Result;
use crate::out::human;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Delete volumes; their content is not overwritten
#[derive(Args, Debug)]
pub(super) struct VolDelete {
    /// Names, pool/names, paths or keys of volumes
    #[arg(required = true, add = ArgValueCandidates::new(completion::volumes))]
    vol: Vec<String>,
    /// Pool of the volumes, by name or UUID
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    pool: Option<String>,
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
