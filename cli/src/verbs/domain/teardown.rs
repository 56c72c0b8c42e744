//! `teardown`: a domain with all that is its own.

use cenote_engine::{Inventory, TeardownOptions, VolumeId, WipeOptions};
use cenote_pools::wipe::{Algorithm, Verify};
use clap::Args;

use super::Target;
use crate::consent::Level;
use crate::context::Context;
use crate::failure::Result;
use crate::out::parse_size;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::verbs::vol::wipe::{algorithm, verification};
use crate::view::Done;

/// Take a domain away: the guest, its volumes, save, logs and definition
#[derive(Args, Debug)]
pub(super) struct Teardown {
    #[command(flatten)]
    target: Target,
    /// Also the backing volumes that nothing else uses
    #[arg(long)]
    chain: bool,
    /// Overwrite everything before it is deleted, and certify it: random, zero, nnsa, dod, bsi,
    /// gutmann, schneier, pfitzner7, pfitzner33 or trim
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "random",
        value_parser = algorithm
    )]
    wipe: Option<Algorithm>,
    /// How much to read back: all, none or sample:N%
    #[arg(long, value_name = "PART", default_value = "all", value_parser = verification)]
    verify: Verify,
    /// Overwrite also where nothing can be proved, and say so
    #[arg(long, requires = "wipe")]
    best_effort: bool,
    /// Most bytes a second, such as 200M
    #[arg(long, value_name = "SIZE", requires = "wipe")]
    limit: Option<String>,
}

impl Verb for Teardown {
    const NAME: &'static str = "teardown";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See what a domain has, and what of it others have a share in",
            "cenote teardown web --dry-run",
        ),
        example(
            "Overwrite and delete all of it",
            "cenote teardown web --wipe --best-effort --confirm web",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let wipe = match self.wipe {
            Some(algorithm) => Some(WipeOptions {
                algorithm,
                verify: self.verify,
                best_effort: self.best_effort,
                limit: self.limit.as_deref().map(parse_size).transpose()?,
                ..WipeOptions::default()
            }),
            None => None,
        };
        let options = TeardownOptions {
            wipe,
            chain: self.chain,
        };
        let inventory = node.domain_inventory(&info.uuid, &options)?;
        if !context.go_on(&plan(&inventory, self.wipe))? {
            return Ok(());
        }
        let name = inventory.name.clone();
        let done = context.long(format!("tearing down {name}"), |progress| {
            node.domain_teardown(&info.uuid, &options, progress)
        })?;
        for kept in &done.inventory.kept {
            context.note(&format!("kept: {} ({})", kept.what, kept.why));
        }
        for wiped in &done.wiped {
            let path = wiped.report.request.path.display();
            context.note(&format!("wiped: {path}: {}", wiped.report.verdict));
        }
        if let Some(certificate) = &done.certificate {
            context.note(&format!("certificate: {}", certificate.display()));
        }
        let deed = if self.wipe.is_some() {
            "wiped and deleted"
        } else {
            "deleted"
        };
        let message = format!(
            "Domain '{name}' has been torn down: {}, {} {deed}, nothing of its own is left",
            count(done.inventory.volumes.len(), "volume"),
            count(done.inventory.files.len(), "file"),
        );
        context.done(&Done::new("domain", "torn-down", name, message))
    }
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn plan(inventory: &Inventory, wipe: Option<Algorithm>) -> Plan {
    let name = &inventory.name;
    let mut plan = Plan::new(Teardown::NAME, name);
    if inventory.runs {
        plan = plan.change("stop at once the domain", name);
    }
    let (action, detail) = match wipe {
        Some(algorithm) => ("overwrite and delete", Some(algorithm.to_string())),
        None => ("delete", None),
    };
    let volumes = inventory.volumes.iter().map(VolumeId::to_string);
    let volumes = volumes.map(|volume| ("volume", volume));
    let files = inventory.files.iter();
    let files = files.map(|file| ("file", file.display().to_string()));
    for (kind, target) in volumes.chain(files) {
        let target = format!("{kind} {target}");
        plan = match &detail {
            Some(detail) => plan.change_with(action, target, detail),
            None => plan.change(action, target),
        };
    }
    plan = plan.change("remove the definition of domain", name);
    for kept in &inventory.kept {
        plan = plan.change_with("keep", &kept.what, &kept.why);
    }
    let what = count(inventory.volumes.len(), "volume");
    plan.asks(
        Level::TypeName,
        format!("tear down domain '{name}' with {what}"),
    )
}
