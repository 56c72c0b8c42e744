//! `doctor`.

use clap::Args;

use crate::context::Context;
use crate::doctor::facts::Facts;
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
        let facts = Facts::of_machine(&Host::default(), &state_dir);
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
