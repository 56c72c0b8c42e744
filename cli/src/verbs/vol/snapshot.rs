//! Internal snapshots of qcow2 volumes.

use cenote_engine::{Node, VolumeInfo};
use clap::Args;

use super::VolumeArgument;
use crate::consent::Level;
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::quoted;
use crate::plan::Plan;
use crate::suggest;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{Done, SnapshotItem, SnapshotItems};

/// Finds out early, and with a suggestion, that a snapshot does not exist.
fn ensure_snapshot(node: &Node, volume: &VolumeInfo, wanted: &str) -> Result<()> {
    let all = node.volume_snapshots(&volume.id())?;
    if all
        .iter()
        .any(|snapshot| snapshot.name == wanted || snapshot.id == wanted)
    {
        return Ok(());
    }
    let failure = Failure::new(
        Code::E0412,
        format!("volume {} has no snapshot '{wanted}'", volume.id()),
    )
    .fix("use the name or number of one of its snapshots")
    .next(format!("cenote vol-snapshot-list {}", quoted(&volume.name)));
    Err(
        match suggest::did_you_mean(wanted, all.iter().map(|snapshot| snapshot.name.as_str())) {
            Some(near) => failure.why(near),
            None => failure,
        },
    )
}

/// List the internal snapshots of a volume
#[derive(Args, Debug)]
pub(super) struct VolSnapshotList {
    #[command(flatten)]
    volume: VolumeArgument,
}

impl Verb for VolSnapshotList {
    const NAME: &'static str = "vol-snapshot-list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "What states are kept",
        "cenote vol-snapshot-list snap.qcow2",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let snapshots = node.volume_snapshots(&volume.id())?;
        context.print(&SnapshotItems(
            snapshots.into_iter().map(SnapshotItem::from).collect(),
        ))
    }
}

/// Keep the present state of a volume inside it
#[derive(Args, Debug)]
pub(super) struct VolSnapshotCreate {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Name of the snapshot
    name: String,
}

impl Verb for VolSnapshotCreate {
    const NAME: &'static str = "vol-snapshot-create";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Keep the state before an update",
        "cenote vol-snapshot-create snap.qcow2 before-update",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        node.volume_ensure_changeable(&volume.id(), &[])?;
        let there = node.volume_snapshots(&volume.id())?;
        if there.iter().any(|snapshot| snapshot.name == self.name) {
            return Err(Failure::new(
                Code::E0413,
                format!("volume {} has a snapshot '{}'", volume.id(), self.name),
            )
            .fix("choose another name, or delete that one")
            .next(format!(
                "cenote vol-snapshot-delete {} {}",
                quoted(&volume.name),
                quoted(&self.name)
            )));
        }
        let plan = Plan::new(Self::NAME, &volume.name).change_with(
            "keep the present state in",
            volume.path.display().to_string(),
            format!("as snapshot {}", self.name),
        );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.volume_snapshot_create(&volume.id(), &self.name)?;
        let message = format!("Snapshot {} of vol {} created", self.name, volume.name);
        context.done(&Done::new("snapshot", "created", self.name, message))
    }
}

/// Make a volume show again what it showed at a snapshot
#[derive(Args, Debug)]
pub(super) struct VolSnapshotRevert {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Name or number of the snapshot
    snapshot: String,
}

impl Verb for VolSnapshotRevert {
    const NAME: &'static str = "vol-snapshot-revert";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Go back; what was written since is lost",
        "cenote vol-snapshot-revert snap.qcow2 first --yes",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        ensure_snapshot(&node, &volume, &self.snapshot)?;
        node.volume_ensure_changeable(&volume.id(), &[])?;
        let path = volume.path.display().to_string();
        let plan = Plan::new(Self::NAME, &volume.name)
            .change_with("go back in", path, format!("to snapshot {}", self.snapshot))
            .asks(
                Level::Ask,
                format!(
                    "lose what was written to {} since snapshot {}",
                    volume.id(),
                    self.snapshot
                ),
            );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.volume_snapshot_revert(&volume.id(), &self.snapshot)?;
        let message = format!("Vol {} reverted to snapshot {}", volume.name, self.snapshot);
        context.done(&Done::new("snapshot", "reverted", self.snapshot, message))
    }
}

/// Delete an internal snapshot; the volume and its other snapshots stay as they are
#[derive(Args, Debug)]
pub(super) struct VolSnapshotDelete {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Name or number of the snapshot
    snapshot: String,
}

impl Verb for VolSnapshotDelete {
    const NAME: &'static str = "vol-snapshot-delete";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Delete a snapshot",
        "cenote vol-snapshot-delete snap.qcow2 first --yes",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        ensure_snapshot(&node, &volume, &self.snapshot)?;
        node.volume_ensure_changeable(&volume.id(), &[])?;
        let path = volume.path.display().to_string();
        let plan = Plan::new(Self::NAME, &volume.name)
            .change_with("delete from", path, format!("snapshot {}", self.snapshot))
            .asks(
                Level::Ask,
                format!("delete snapshot {} of {}", self.snapshot, volume.id()),
            );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.volume_snapshot_delete(&volume.id(), &self.snapshot)?;
        let message = format!("Snapshot {} of vol {} deleted", self.snapshot, volume.name);
        context.done(&Done::new("snapshot", "deleted", self.snapshot, message))
    }
}
