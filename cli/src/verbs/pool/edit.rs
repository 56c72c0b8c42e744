//! `pool-edit`.

use cenote_model::pool::Pool;
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::completion;
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Edit the definition of a pool in $VISUAL, $EDITOR or vi
#[derive(Args, Debug)]
pub(super) struct PoolEdit {
    /// Name or UUID of the pool
    #[arg(add = ArgValueCandidates::new(completion::pools))]
    pool: String,
}

impl Verb for PoolEdit {
    const NAME: &'static str = "pool-edit";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Edit a stopped pool", "cenote pool-edit images"),
        example(
            "See what would be done",
            "cenote pool-edit images --dry-run",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let pool = context.pool(&node, &self.pool)?;
        let plan = Plan::new(Self::NAME, &pool.name).change(
            "open in an editor, then replace, the definition of pool",
            &pool.name,
        );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let original = node.pool_xml(&pool.name, true)?;
        let edited = document::edit(&original, |text| {
            let document: Pool = document::parse(context, text, false)?;
            let same = document
                .uuid
                .is_none_or(|uuid| uuid.to_string() == pool.uuid);
            if document.name.as_str() != pool.name || !same {
                return Err(Failure::new(
                    Code::E0502,
                    "the name or UUID of a pool cannot be edited",
                )
                .fix("define another pool instead")
                .next(format!("cenote pool-dumpxml {} --inactive", pool.name)));
            }
            Ok(node.pool_define(text)?)
        })?;
        let (result, message) = match edited {
            Some(_) => (
                "edited",
                format!("Pool {} XML configuration edited.", pool.name),
            ),
            None => (
                "unchanged",
                format!("Pool {} XML configuration not changed.", pool.name),
            ),
        };
        context.done(&Done::new("pool", result, &pool.name, message))
    }
}
