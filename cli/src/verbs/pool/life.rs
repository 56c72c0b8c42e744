//! Commands that change the state of a pool.

use clap::Args;
use clap_complete::ArgValueCandidates;

use super::{BuildChoice, plan_build, target_of};
use crate::completion;
use crate::consent::Level;
use crate::context::Context;
use crate::failure::Result;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Make what a pool stands on: its folder, file system or volume group
#[derive(Args, Debug)]
pub(super) struct PoolBuild {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    #[command(flatten)]
    choice: BuildChoice,
}

impl Verb for PoolBuild {
    const NAME: &'static str = "pool-build";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Make the folder of a pool", "cenote pool-build images"),
        example(
            "See first what would be made",
            "cenote pool-build images --dry-run",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let mode = self.choice.mode();
        let plan = Plan::new(Self::NAME, &pool.name);
        if !context.go_on(&plan_build(plan, &pool.name, &target_of(&pool), mode))? {
            return Ok(());
        }
        node.pool_build(&pool.name, mode)?;
        let message = format!("Pool {} built", pool.name);
        context.done(&Done::new("pool", "built", &pool.name, message).at(target_of(&pool)))
    }
}

/// Start a pool, so that its volumes can be used
#[derive(Args, Debug)]
pub(super) struct PoolStart {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// Build it first
    #[arg(long)]
    build: bool,
    #[command(flatten)]
    choice: BuildChoice,
}

impl Verb for PoolStart {
    const NAME: &'static str = "pool-start";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Start a pool", "cenote pool-start images"),
        example(
            "Make its folder and start it",
            "cenote pool-start images --build",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let mode = self.choice.if_asked(self.build);
        let mut plan = Plan::new(Self::NAME, &pool.name);
        if let Some(mode) = mode {
            plan = plan_build(plan, &pool.name, &target_of(&pool), mode);
        }
        if !context.go_on(&plan.change_with("start pool", &pool.name, target_of(&pool)))? {
            return Ok(());
        }
        node.pool_start(&pool.name, mode)?;
        let message = format!("Pool {} started", pool.name);
        context.done(&Done::new("pool", "started", &pool.name, message))
    }
}

/// Start a pool with the node, or no longer
#[derive(Args, Debug)]
pub(super) struct PoolAutostart {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
    /// No longer start it with the node
    #[arg(long)]
    disable: bool,
}

impl Verb for PoolAutostart {
    const NAME: &'static str = "pool-autostart";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Start a pool with the node", "cenote pool-autostart images"),
        example("No longer", "cenote pool-autostart images --disable"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let (action, result, virsh) = if self.disable {
            (
                "clear the autostart mark of pool",
                "unmarked",
                "unmarked as autostarted",
            )
        } else {
            (
                "set the autostart mark of pool",
                "marked",
                "marked as autostarted",
            )
        };
        if !context.go_on(&Plan::new(Self::NAME, &pool.name).change(action, &pool.name))? {
            return Ok(());
        }
        node.pool_autostart(&pool.name, !self.disable)?;
        context.done(&Done::new(
            "pool",
            result,
            &pool.name,
            format!("Pool {} {virsh}", pool.name),
        ))
    }
}

/// Look for volumes that others added or removed
#[derive(Args, Debug)]
pub(super) struct PoolRefresh {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
}

impl Verb for PoolRefresh {
    const NAME: &'static str = "pool-refresh";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Look through a pool again",
        "cenote pool-refresh default",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let plan = Plan::new(Self::NAME, &pool.name)
            .change_with("look through pool", &pool.name, target_of(&pool))
            .change("note the formats of new volumes in", "the node's state");
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let refresh = node.pool_refresh(&pool.name)?;
        for (name, format) in &refresh.adopted {
            context.note(&format!("new volume {name}: taken as {format}"));
        }
        for (name, reason) in &refresh.skipped {
            context.note(&format!("not a volume: {name}: {reason}"));
        }
        let message = format!("Pool {} refreshed", pool.name);
        context.done(&Done::new("pool", "refreshed", &pool.name, message))
    }
}

/// Stop a pool; its volumes stay as they are
#[derive(Args, Debug)]
pub(super) struct PoolDestroy {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
}

impl Verb for PoolDestroy {
    const NAME: &'static str = "pool-destroy";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Stop a pool; nothing in it is deleted",
        "cenote pool-destroy default",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let mut plan = Plan::new(Self::NAME, &pool.name).change("stop pool", &pool.name);
        if !pool.persistent {
            plan = plan.change("forget the definition of transient pool", &pool.name);
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.pool_stop(&pool.name)?;
        let message = format!("Pool {} destroyed", pool.name);
        context.done(&Done::new("pool", "destroyed", &pool.name, message))
    }
}

/// Remove the definition of a stopped pool; its volumes stay as they are
#[derive(Args, Debug)]
pub(super) struct PoolUndefine {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
}

impl Verb for PoolUndefine {
    const NAME: &'static str = "pool-undefine";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example("Forget a pool", "cenote pool-undefine images")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let plan =
            Plan::new(Self::NAME, &pool.name).change("remove the definition of pool", &pool.name);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.pool_undefine(&pool.name)?;
        let message = format!("Pool {} has been undefined", pool.name);
        context.done(&Done::new("pool", "undefined", &pool.name, message))
    }
}

/// Remove what a stopped, empty pool stands on; its definition stays
#[derive(Args, Debug)]
pub(super) struct PoolDelete {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
}

impl Verb for PoolDelete {
    const NAME: &'static str = "pool-delete";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See what would be removed",
            "cenote pool-delete scratch --dry-run",
        ),
        example(
            "Remove the empty folder of a pool",
            "cenote pool-delete scratch --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let target = target_of(&pool);
        let plan = Plan::new(Self::NAME, &pool.name)
            .change_with("remove", &target, "only if no volume is in it")
            .asks(
                Level::Ask,
                format!("remove {target}, the place of pool '{}'", pool.name),
            );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.pool_delete(&pool.name)?;
        let message = format!("Pool {} deleted", pool.name);
        context.done(&Done::new("pool", "deleted", &pool.name, message).at(target))
    }
}
