//! Commands that look into images.

use cenote_engine::{Error as Engine, ImageRepair};
use cenote_pools::Error as Pools;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::VolumeArgument;
use crate::completion;
use crate::consent::Level;
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::{parse_size, quoted};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{CheckItem, ComparisonItem, MapItem, MapItems};

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RepairChoice {
    /// Space that is held in vain; always safe
    Leaks,
    /// Everything that is wrong
    All,
}

/// Check the structure of a qcow2 volume, or repair it
#[derive(Args, Debug)]
pub(super) struct VolCheck {
    #[command(flatten)]
    volume: VolumeArgument,
    /// Repair what is found
    #[arg(long, value_name = "WHAT")]
    repair: Option<RepairChoice>,
}

impl Verb for VolCheck {
    const NAME: &'static str = "vol-check";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Is it whole? Exit code 8 when it is not",
            "cenote vol-check disk.qcow2",
        ),
        example(
            "Give back space that is held in vain",
            "cenote vol-check disk.qcow2 --repair leaks",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let report = match self.repair {
            None => node.volume_check(&volume.id())?,
            Some(choice) => {
                let path = volume.path.display().to_string();
                let mut plan = Plan::new(Self::NAME, &volume.name);
                plan = match choice {
                    RepairChoice::Leaks => plan.change("give back leaked clusters of", path),
                    RepairChoice::All => plan.change("rebuild what is wrong in", path).asks(
                        Level::Ask,
                        format!("repair the tables of volume {}", volume.id()),
                    ),
                };
                if !context.go_on(&plan)? {
                    return Ok(());
                }
                let repair = match choice {
                    RepairChoice::Leaks => ImageRepair::Leaks,
                    RepairChoice::All => ImageRepair::All,
                };
                node.volume_repair(&volume.id(), repair)?
            }
        };
        let item = CheckItem::new(volume.id().to_string(), report);
        context.print(&item)?;
        if item.clean {
            return Ok(());
        }
        let (what, repair) = if item.corruptions > 0 || item.check_errors > 0 {
            ("is damaged", "all")
        } else {
            ("holds space in vain", "leaks")
        };
        Err(
            Failure::new(Code::E0403, format!("volume {} {what}", volume.id()))
                .why(format!(
                    "{} corruptions, {} leaks, {} parts unchecked",
                    item.corruptions, item.leaks, item.check_errors
                ))
                .fix("make a copy of the file, then repair it")
                .next(format!(
                    "cenote vol-check {} --repair {repair}",
                    quoted(&volume.name)
                )),
        )
    }
}

/// Show where each part of a volume is stored
#[derive(Args, Debug)]
pub(super) struct VolMap {
    #[command(flatten)]
    volume: VolumeArgument,
    /// First byte to show
    #[arg(long, value_name = "SIZE", default_value = "0")]
    start: String,
    /// Bytes to show; all when left out
    #[arg(long, value_name = "SIZE")]
    length: Option<String>,
}

impl Verb for VolMap {
    const NAME: &'static str = "vol-map";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Which file holds what", "cenote vol-map overlay.qcow2"),
        example(
            "Only the first megabyte, with all there is to say",
            "cenote vol-map overlay.qcow2 --length 1M -o wide",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let image = node.open_volume(&volume.id(), false)?;
        let start = parse_size(&self.start)?;
        let rest = image.size().saturating_sub(start);
        let length = match &self.length {
            Some(length) => parse_size(length)?.min(rest),
            None => rest,
        };
        let failed = |error| Failure::from(Engine::Storage(Pools::Image(error)));
        let mut items = Vec::new();
        for extent in image.extents(start, length).map_err(failed)? {
            items.push(MapItem::from(extent.map_err(failed)?));
        }
        context.print(&MapItems(items))
    }
}

/// Compare what a guest would read from two volumes
#[derive(Args, Debug)]
pub(super) struct VolCompare {
    /// Name, pool/name, path or key of one volume
    #[arg(add = ArgValueCandidates::new(completion::volumes))]
    left: String,
    /// The other volume
    #[arg(add = ArgValueCandidates::new(completion::volumes))]
    right: String,
    /// Also take a difference in size for a difference
    #[arg(long)]
    strict: bool,
}

impl Verb for VolCompare {
    const NAME: &'static str = "vol-compare";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "Exit code 8 when they differ",
        "cenote vol-compare base.qcow2 overlay.qcow2",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let left = context.volume_id(&node, &self.left, None)?;
        let right = context.volume_id(&node, &self.right, None)?;
        let result = context.long(format!("comparing {left} and {right}"), |progress| {
            node.volume_compare(&left, &right, progress)
        })?;
        let item = ComparisonItem::new(left.to_string(), right.to_string(), result);
        context.print(&item)?;
        let differs = |why: String| {
            Failure::new(Code::E0411, format!("{left} and {right} differ"))
                .why(why)
                .next(format!("cenote vol-map {}", quoted(&right.to_string())))
        };
        match item.differ_at {
            Some(offset) => Err(differs(format!(
                "the first difference is at offset {offset}"
            ))),
            None if self.strict && !item.same_size => Err(differs("their sizes differ".to_owned())),
            None => Ok(()),
        }
    }
}
