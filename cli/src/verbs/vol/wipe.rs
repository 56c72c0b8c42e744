//! `vol-wipe`, and what `vol-delete --wipe` shares with it.

use cenote_engine::{Error as Engine, Node, VolumeId, VolumeInfo, WipeError, WipeOptions};
use cenote_pools::wipe::{self, Algorithm, Outcome, Verdict, Verify, Wiped};
use clap::Args;
use clap_complete::ArgValueCandidates;

use crate::completion;
use crate::consent::Level;
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::parse_size;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Extents that a plan lists one by one.
const MOST_EXTENTS: usize = 1000;

/// How to overwrite.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Wiping")]
struct WipeArguments {
    /// How often and with what to overwrite: zero, random, nnsa, dod, bsi, gutmann, schneier,
    /// pfitzner7, pfitzner33 or trim
    #[arg(long, value_name = "NAME", default_value = "random", value_parser = algorithm)]
    algorithm: Algorithm,
    /// How much to read back: all, none or sample:N%
    #[arg(long, value_name = "PART", default_value = "all", value_parser = verification)]
    verify: Verify,
    /// Overwrite also where nothing can be proved, and say so
    #[arg(long)]
    best_effort: bool,
    /// Most bytes a second, such as 200M
    #[arg(long, value_name = "SIZE")]
    limit: Option<String>,
    /// Also the backing files that only this volume uses
    #[arg(long)]
    chain: bool,
    /// Volumes wiped at a time
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
}

pub(in crate::verbs) fn algorithm(text: &str) -> std::result::Result<Algorithm, String> {
    text.parse().map_err(|error: wipe::Error| error.to_string())
}

pub(in crate::verbs) fn verification(text: &str) -> std::result::Result<Verify, String> {
    text.parse().map_err(|error: wipe::Error| error.to_string())
}

impl WipeArguments {
    fn options(&self) -> Result<WipeOptions> {
        Ok(WipeOptions {
            algorithm: self.algorithm,
            verify: self.verify,
            best_effort: self.best_effort,
            limit: self.limit.as_deref().map(parse_size).transpose()?,
            chain: self.chain,
            delete: false,
        })
    }
}

/// Overwrite volumes and prove it
#[derive(Args, Debug)]
pub(super) struct VolWipe {
    /// Names, pool/names, paths or keys of volumes
    #[arg(required = true, add = ArgValueCandidates::new(completion::volumes))]
    vol: Vec<String>,
    /// Pool of the volumes, by name or UUID
    #[arg(long, value_name = "POOL", add = ArgValueCandidates::new(completion::pools))]
    pool: Option<String>,
    #[command(flatten)]
    how: WipeArguments,
}

impl Verb for VolWipe {
    const NAME: &'static str = "vol-wipe";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "See which extents would be overwritten, and what that would prove",
            "cenote vol-wipe disk.raw --dry-run",
        ),
        example(
            "Overwrite with random data and read all of it back",
            "cenote vol-wipe disk.raw --best-effort --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let find = |name: &String| context.volume(&node, name, self.pool.as_deref());
        let volumes = self.vol.iter().map(find).collect::<Result<Vec<_>>>()?;
        let options = self.how.options()?;
        let plan = plan(Self::NAME, "overwrite", &node, &volumes, &options)?;
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let parallel = usize::from(self.how.parallel);
        wipe_volumes(context, &node, &volumes, &options, parallel)
    }
}

/// What would be done to each extent, and the verdict it could end in.
pub(super) fn plan(
    command: &str,
    deed: &str,
    node: &Node,
    volumes: &[VolumeInfo],
    options: &WipeOptions,
) -> Result<Plan> {
    let names: Vec<String> = volumes
        .iter()
        .map(|volume| volume.id().to_string())
        .collect();
    let name = volumes.first().map_or("", |volume| &volume.name);
    let mut plan =
        Plan::new(command, name).asks(Level::Ask, format!("{deed} {}", names.join(", ")));
    for volume in volumes {
        let found = node.volume_wipe_plan(&volume.id(), options)?;
        for file in &found.files {
            let detail = format!(
                "{} bytes in {} extents, {} passes of {}; at best {}",
                file.map.length(),
                file.map.extents.len(),
                options.algorithm.passes().len(),
                options.algorithm,
                found.expected
            );
            plan = plan.change_with("overwrite", file.path.display().to_string(), detail);
            for extent in file.map.extents.iter().take(MOST_EXTENTS) {
                let own = extent.reasons();
                let verdict = if own.is_empty() {
                    found.expected.clone()
                } else {
                    Verdict::from_reasons(own)
                };
                let target = format!("{}+{}", extent.offset, extent.length);
                plan = plan.change_with("  extent", target, verdict.to_string());
            }
        }
        for note in &found.notes {
            plan = plan.change("  note:", note.clone());
        }
    }
    Ok(plan)
}

/// Wipes the volumes and reports on each; fails if one of them did.
pub(super) fn wipe_volumes(
    context: &Context,
    node: &Node,
    volumes: &[VolumeInfo],
    options: &WipeOptions,
    parallel: usize,
) -> Result<()> {
    let ids: Vec<VolumeId> = volumes.iter().map(VolumeInfo::id).collect();
    let names: Vec<String> = ids.iter().map(VolumeId::to_string).collect();
    let results = context.long(format!("wiping {}", names.join(", ")), |progress| {
        let mut results = node.volumes_wipe(&ids, options, parallel, progress)?;
        // One that was stopped ends the command as stopped.
        let stopped = |result: &cenote_engine::Result<Wiped>| {
            matches!(result, Err(Engine::Wipe(WipeError::Cancelled { .. })))
        };
        if let Some(index) = results.iter().position(stopped)
            && let Err(error) = results.swap_remove(index)
        {
            return Err(error);
        }
        Ok(results)
    })?;
    let mut failure = None;
    for (volume, result) in volumes.iter().zip(results) {
        match result
            .map_err(Failure::from)
            .and_then(|wiped| report(context, &volume.name, &wiped))
        {
            Ok(()) => {}
            Err(error) if failure.is_none() => failure = Some(error),
            Err(error) => context.note(error.what()),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Says what became of a volume.
pub(in crate::verbs) fn report(context: &Context, name: &str, wiped: &Wiped) -> Result<()> {
    let verdict = &wiped.report.verdict;
    let certificate = wiped
        .certificate
        .as_ref()
        .map(|path| path.display().to_string());
    if verdict.is_failed() {
        let next = match &certificate {
            Some(path) => format!("cenote verify-certificate {path}"),
            None => format!("cenote explain {}", Code::E0310),
        };
        return Err(Failure::new(
            Code::E0310,
            format!("volume '{name}' is not wiped: {verdict}"),
        )
        .fix("the rest of it is overwritten; look at the drive, then wipe it again")
        .next(next));
    }
    let removed = wiped
        .report
        .files
        .iter()
        .any(|file| file.outcome == Outcome::Removed);
    let deed = if removed {
        "wiped and deleted"
    } else {
        "wiped"
    };
    let mut message = format!("Vol {name} {deed}: {verdict}");
    if let Some(path) = &certificate {
        message.push_str(&format!("\nCertificate: {path}"));
    }
    let done = Done::new("volume", "wiped", name, message);
    context.done(&done.at(wiped.report.request.path.display().to_string()))
}
