//! `doctor`.

use cenote_engine::{Node, NodeOptions, PoolState};
use clap::Args;

use crate::context::Context;
use crate::doctor::facts::{Facts, FileSystem, Folder, PoolFacts};
use crate::doctor::host::Host;
use crate::doctor::judge;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::verb::{Example, Kind, Verb, example};
use crate::view::ProbeStatus;

/// Check whether this machine is ready, and say what to do if not
#[derive(Args, Debug)]
pub(super) struct Doctor {}

impl Verb for Doctor {
    const NAME: &'static str = "doctor";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Check the machine and the node", "cenote doctor"),
        example(
            "List only the probes that found something",
            "cenote doctor -o name",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let state_dir = context.state_dir()?;
        let mut facts = Facts::of_machine(&Host::default(), &state_dir);
        facts.node = look_at_node(context, &mut facts);
        let report = judge(&facts);
        context.print(&report)?;
        if report.healthy {
            return Ok(());
        }
        let failed = report.probes.iter();
        let failed = failed.filter(|probe| probe.essential && probe.status == ProbeStatus::Fail);
        let fixes: Vec<&str> = failed
            .clone()
            .filter_map(|probe| probe.fix.as_deref())
            .collect();
        let names: Vec<&str> = failed.map(|probe| probe.probe.as_str()).collect();
        Err(Failure::new(Code::E0106, "this machine is not ready")
            .why(format!("failed: {}", names.join(", ")))
            .fix(fixes.join("\n"))
            .next("cenote doctor"))
    }
}

/// Adds what only the node knows. It is opened as a copy: a patient is not treated while it is
/// examined.
fn look_at_node(context: &Context, facts: &mut Facts) -> Result<(), String> {
    let shown = |failure: Failure| failure.what().to_owned();
    let options = context.node_options().map_err(shown)?;
    let options = NodeOptions {
        read_only: true,
        ..options
    };
    let node = Node::open(&options).map_err(|error| error.to_string())?;
    let jobs = node.interrupted().map_err(|error| error.to_string())?;
    facts.interrupted = jobs
        .iter()
        .map(|job| format!("{} of {} ({})", job.kind, job.subject, job.id))
        .collect();
    facts.stale_locks = node.stale_locks().map_err(|error| error.to_string())?;
    if !state_exists(&facts.state_dir) {
        // The pool of a node that was never used is made with it.
        return Ok(());
    }
    let pools = node.pools().map_err(|error| error.to_string())?;
    facts.pools = pools
        .into_iter()
        .map(|pool| PoolFacts {
            active: pool.state != PoolState::Inactive,
            filesystem: FileSystem::of(&pool.target),
            name: pool.name,
            path: pool.target,
        })
        .collect();
    Ok(())
}

fn state_exists(folder: &Folder) -> bool {
    folder.path.join("node.db").exists()
}
