//! `event`, `job-list`, `job-cancel`, `fsck` and `repair`.

use std::time::{Duration, Instant};

use cenote_engine::{Event, Job, JobState, Node, NodeOptions, Repair, RepairOutcome};
use clap::Args;

use crate::context::Context;
use crate::duration;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::globals::OutputFormat;
use crate::out;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{Done, HostEvent, JobItem, JobItems, RepairItem, RepairItems};

/// Wait for events and print them
#[derive(Args, Debug)]
pub(super) struct EventVerb {
    /// Go on until the timeout or an interrupt, rather than ending with the first event
    #[arg(long = "loop")]
    repeat: bool,
    /// End after this time, such as 90, 30s, 5m or 2h; a bare number is seconds
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
    /// Show when each event happened
    #[arg(long)]
    timestamp: bool,
    /// Only events about this domain, pool or volume
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Events of every kind; this is the default
    #[arg(long, conflicts_with = "kinds")]
    all: bool,
    /// Only events of this kind, such as lifecycle or pool-started; may be repeated
    #[arg(long = "event", value_name = "KIND")]
    kinds: Vec<String>,
    /// Begin with the events after this number of the log, rather than with new ones
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<i64>,
}

impl Verb for EventVerb {
    const NAME: &'static str = "event";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Everything the log remembers",
            "cenote event --after 0 --loop --timeout 0",
        ),
        example(
            "Follow it for a second, as JSON lines",
            "cenote event --loop --timeout 1s -o json",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        // A UUID or id means the domain's name; one that is gone has its name in the log.
        let subject = self.domain.as_ref().map(|key| match node.domain(key) {
            Ok(info) => info.name,
            Err(_) => key.clone(),
        });
        let mut watcher = node.watch_events(self.after)?;
        let deadline = self
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let events = watcher.next(left)?;
            if events.is_empty() {
                if self.repeat {
                    return Ok(());
                }
                return Err(Failure::new(Code::E0012, "no event happened in time")
                    .fix("wait longer with a larger --timeout")
                    .next("cenote event --after 0 --loop --timeout 0"));
            }
            for event in events {
                let about = subject
                    .as_ref()
                    .is_none_or(|subject| *subject == event.subject);
                if about && (self.kinds.is_empty() || self.kinds.contains(&event.kind)) {
                    self.print(context, event)?;
                    if !self.repeat {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl EventVerb {
    fn print(&self, context: &Context, event: Event) -> Result<()> {
        let event = HostEvent {
            sequence: event.sequence,
            time: event.time,
            kind: event.kind,
            subject: event.subject,
            detail: event.detail,
        };
        let text = match context.output.format {
            OutputFormat::Json => serde_json::to_string(&event).unwrap_or_default(),
            OutputFormat::Yaml => {
                format!(
                    "---\n{}",
                    serde_norway::to_string(&event).unwrap_or_default()
                )
            }
            OutputFormat::Name => event.subject.clone(),
            OutputFormat::Table | OutputFormat::Wide => {
                let wide = context.output.format == OutputFormat::Wide;
                let time = if self.timestamp || wide {
                    format!("{}: ", event.time)
                } else {
                    String::new()
                };
                let detail = if wide {
                    format!(" {}", event.detail)
                } else {
                    String::new()
                };
                format!("{time}{}{detail}", as_virsh(&event))
            }
        };
        out::write(&(text.trim_end().to_owned() + "\n"))
    }
}

/// The words virsh has for an event of a domain, and ours for others.
fn as_virsh(event: &HostEvent) -> String {
    let HostEvent { kind, subject, .. } = event;
    let word = |key: &str| event.detail.get(key).and_then(serde_json::Value::as_str);
    match (word("uuid"), word("event"), word("detail")) {
        (Some(_), Some(event), Some(detail)) => {
            format!("event '{kind}' for domain '{subject}': {event} {detail}")
        }
        (Some(_), _, _) => format!("event '{kind}' for domain '{subject}'"),
        _ => format!("event '{kind}' for {subject}"),
    }
}

/// List long operations that are under way
#[derive(Args, Debug)]
pub(super) struct JobList {
    /// Past ones too
    #[arg(long)]
    all: bool,
}

impl Verb for JobList {
    const NAME: &'static str = "job-list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("What is under way", "cenote job-list"),
        example("How past operations ended", "cenote job-list --all -o wide"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let jobs = context.node()?.jobs()?.into_iter();
        let shown = jobs.filter(|job| self.all || job.state == JobState::Running);
        context.print(&JobItems(shown.map(job_item).collect()))
    }
}

fn job_item(job: Job) -> JobItem {
    let state = match job.state {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::RolledForward => "rolled-forward",
        JobState::RolledBack => "rolled-back",
    };
    JobItem {
        id: job.id,
        kind: job.kind,
        subject: job.subject,
        state: state.to_owned(),
        done: job.done,
        total: job.total,
        started: job.started,
        finished: job.finished,
        pid: job.pid,
        error: job.error,
    }
}

/// Ask a long operation to break off and undo itself
#[derive(Args, Debug)]
pub(super) struct JobCancel {
    /// Number of the operation
    job: i64,
}

impl Verb for JobCancel {
    const NAME: &'static str = "job-cancel";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "See what would be asked",
        "cenote job-cancel 1 --dry-run",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let name = self.job.to_string();
        if !node.jobs()?.iter().any(|job| job.id == self.job) {
            return Err(cenote_engine::Error::NoSuchJob(self.job).into());
        }
        let plan = Plan::new(Self::NAME, &name).change("ask to stop and undo job", &name);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.cancel_job(self.job)?;
        let message = format!("Job {name} was asked to stop");
        context.done(&Done::new("job", "cancelling", name, message))
    }
}

/// Look for operations that a dying process left half done, and change nothing
#[derive(Args, Debug)]
pub(super) struct Fsck {}

impl Verb for Fsck {
    const NAME: &'static str = "fsck";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example("Is anything half done?", "cenote fsck")];

    fn run(self, context: &Context) -> Result<()> {
        let node = Node::open(&NodeOptions {
            read_only: true,
            ..context.node_options()?
        })?;
        let found: Vec<RepairItem> = node
            .interrupted()?
            .into_iter()
            .map(|job| RepairItem {
                operation: job.id,
                message: format!("its process {} is gone", job.pid),
                kind: job.kind,
                subject: job.subject,
                outcome: "interrupted".to_owned(),
            })
            .collect();
        let count = found.len();
        context.print(&RepairItems(found))?;
        if count == 0 {
            context.note("Nothing is half done.");
            return Ok(());
        }
        Err(
            Failure::new(Code::E0109, format!("{count} operations are half done"))
                .why("the processes that ran them are gone")
                .fix(
                    "let them be finished or undone; every command that opens the node does so too",
                )
                .next("cenote repair"),
        )
    }
}

/// Finish or undo operations that a dying process left half done
#[derive(Args, Debug)]
pub(super) struct RepairVerb {}

impl Verb for RepairVerb {
    const NAME: &'static str = "repair";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("See what would be repaired", "cenote repair --dry-run"),
        example("Repair it", "cenote repair"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        if context.consent.dry_run {
            return self.plan(context);
        }
        let node = Node::open(&context.node_options()?)?;
        let removed = node.remove_stale_locks()?;
        for path in &removed {
            context.note(&format!("removed the lock {}", path.display()));
        }
        let items: Vec<RepairItem> = node.repairs().iter().map(repair_item).collect();
        let pending = node
            .repairs()
            .iter()
            .filter(|repair| repair.outcome == RepairOutcome::Pending);
        let pending = pending.count();
        if items.is_empty() {
            return context.done(&Done::new(
                "node",
                "clean",
                "node",
                "Nothing was half done.",
            ));
        }
        context.print(&RepairItems(items))?;
        if pending > 0 {
            return Err(Failure::new(
                Code::E0109,
                format!("{pending} operations could not be repaired"),
            )
            .why("the table says why for each")
            .fix("remove the cause, then repair again")
            .next("cenote repair"));
        }
        Ok(())
    }
}

impl RepairVerb {
    fn plan(&self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let mut plan = Plan::new(Self::NAME, "node");
        for job in node.interrupted()? {
            let detail = format!("operation {} of process {}", job.id, job.pid);
            plan = plan.change_with(
                "finish or undo",
                format!("{} of {}", job.kind, job.subject),
                detail,
            );
        }
        for path in node.stale_locks()? {
            plan = plan.change("remove the lock", path.display().to_string());
        }
        context.go_on(&plan).map(drop)
    }
}

fn repair_item(repair: &Repair) -> RepairItem {
    let outcome = match repair.outcome {
        RepairOutcome::RolledForward => "rolled-forward",
        RepairOutcome::RolledBack => "rolled-back",
        RepairOutcome::Pending => "pending",
    };
    RepairItem {
        operation: repair.operation,
        kind: repair.kind.clone(),
        subject: repair.subject.clone(),
        outcome: outcome.to_owned(),
        message: repair.message.clone(),
    }
}
