//! `vol-resize`.

use cenote_engine::Resize;
use clap::Args;

use super::VolumeArgument;
use crate::consent::Level;
use crate::context::Context;
use crate::failure::Result;
use crate::out::{human, parse_delta};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Change the size that the guest sees
#[derive(Args, Debug)]
pub(super) struct VolResize {
    #[command(flatten)]
    volume: VolumeArgument,
    /// The new size; with a sign, or --delta, the difference
    #[arg(allow_hyphen_values = true)]
    capacity: String,
    /// Reserve the space of the new part at once
    #[arg(long)]
    allocate: bool,
    /// The size is a difference to the present one
    #[arg(long)]
    delta: bool,
    /// Allow it to become smaller, which cuts off its end
    #[arg(long)]
    shrink: bool,
}

impl Verb for VolResize {
    const NAME: &'static str = "vol-resize";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Make it 20 GiB", "cenote vol-resize disk.qcow2 20G"),
        example(
            "Make it 1 GiB larger",
            "cenote vol-resize disk.qcow2 1G --delta",
        ),
        example(
            "Cut off its end",
            "cenote vol-resize disk.qcow2 512K --shrink --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let signed = self.capacity.starts_with(['+', '-']);
        let (negative, size) = parse_delta(&self.capacity)?;
        let resize = Resize {
            size,
            delta: self.delta || signed,
            // A minus sign says the direction, --shrink the leave to lose data.
            shrink: self.shrink && (negative || !signed),
            allocate: self.allocate,
        };
        if negative && !self.shrink {
            let target = volume.capacity.saturating_sub(size);
            return Err(
                cenote_engine::Error::Storage(cenote_pools::Error::WouldShrink {
                    volume: volume.id(),
                    current: volume.capacity,
                    wanted: target,
                })
                .into(),
            );
        }
        let target = node.volume_resize_target(&volume.id(), &resize)?;
        node.volume_ensure_changeable(&volume.id(), &[])?;
        let detail = format!("from {} to {}", human(volume.capacity), human(target));
        let mut plan = Plan::new(Self::NAME, &volume.name).change_with(
            "resize",
            volume.path.display().to_string(),
            detail,
        );
        if target < volume.capacity {
            let lost = human(volume.capacity.saturating_sub(target));
            plan = plan.asks(
                Level::Ask,
                format!("cut {lost} off the end of volume {}", volume.id()),
            );
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let size = node.volume_resize(&volume.id(), &resize)?;
        let message = format!(
            "Size of volume '{}' successfully changed to {}",
            volume.name,
            human(size)
        );
        context.done(&Done::new("volume", "resized", &volume.name, message))
    }
}
