//! Commands that start, pause and end domains.

use std::path::PathBuf;
use std::time::Duration;

use cenote_engine::{DomainInfo, Node, StartOptions, Started};
use cenote_model::domain::Domain;
use clap::{Args, ValueEnum};

use super::{Target, console};
use crate::consent::Level;
use crate::context::Context;
use crate::document;
use crate::duration;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::quoted;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

// What `start` and `create` have in common.
#[derive(Args, Clone, Copy, Debug)]
#[allow(
    missing_docs,
    reason = "clap would make a doc comment the description of both commands"
)]
struct StartChoice {
    /// Attach to the console; Ctrl-] leaves it
    #[arg(long)]
    console: bool,
    /// Leave the guest standing until 'resume'
    #[arg(long)]
    paused: bool,
    /// End the domain when this command ends, which then waits for it
    #[arg(long)]
    autodestroy: bool,
    /// Renew the firmware's variables; refused until machines have such firmware
    #[arg(long)]
    reset_nvram: bool,
}

impl StartChoice {
    fn options(self) -> Result<StartOptions> {
        if self.reset_nvram {
            return Err(Failure::new(Code::E0605, "the machine has no firmware variables")
                .why("only UEFI firmware keeps variables, and the machine boots SeaBIOS or a kernel")
                .fix("leave --reset-nvram out"));
        }
        Ok(StartOptions {
            paused: self.paused,
            autodestroy: self.autodestroy,
            ..StartOptions::default()
        })
    }

    /// Says that the domain was started, and stays with it where that was asked for.
    fn follow(self, context: &Context, node: &Node, started: Started, done: &Done) -> Result<()> {
        for note in &started.notes {
            context.note(&format!("note: {note}"));
        }
        context.done(done)?;
        if self.console {
            console::attach(context, node, &started.uuid, false)?;
        } else if let Some(mut hold) = started.hold {
            hold.wait();
        }
        Ok(())
    }
}

/// Start a defined domain, from its managed save if it has one
#[derive(Args, Debug)]
pub(super) struct Start {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    choice: StartChoice,
    /// Throw a managed save away and start from nothing
    #[arg(long)]
    force_boot: bool,
    /// Accepted; the memory of a save is read as the guest needs it
    #[arg(long)]
    bypass_cache: bool,
}

impl Verb for Start {
    const NAME: &'static str = "start";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Start a domain", "cenote start web"),
        example("And watch it boot", "cenote start web --console"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let options = StartOptions {
            force_boot: self.force_boot,
            ..self.choice.options()?
        };
        let from = if info.managed_save && !self.force_boot {
            "from its managed save"
        } else {
            "from nothing"
        };
        let mut plan = Plan::new(Self::NAME, &info.name);
        if info.managed_save && self.force_boot {
            plan = plan
                .change("throw away the managed save of domain", &info.name)
                .asks(
                    Level::Ask,
                    format!("throw away the saved memory of '{}'", info.name),
                );
        }
        if context.consent.dry_run {
            node.domain_start(&info.uuid, options.clone())?;
        }
        if !context.go_on(&plan.change_with("start domain", &info.name, from))? {
            return Ok(());
        }
        let started = node.domain_start(&info.uuid, options)?;
        let message = format!("Domain '{}' started", info.name);
        let done = Done::new("domain", "started", &info.name, message);
        self.choice.follow(context, &node, started, &done)
    }
}

/// Start a transient domain from a document; it is forgotten when it ends
#[derive(Args, Debug)]
pub(super) struct Create {
    /// The document; - is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Refuse what is not known instead of keeping it without effect
    #[arg(long, visible_alias = "strict")]
    validate: bool,
    #[command(flatten)]
    choice: StartChoice,
}

impl Verb for Create {
    const NAME: &'static str = "create";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] =
        &[example("Run a document once", "cenote create mail.xml")];

    fn run(self, context: &Context) -> Result<()> {
        let text = document::read(&self.file)?;
        let domain: Domain = document::parse(context, &text, self.validate)?;
        let name = domain.name.as_str();
        let node = context.node()?;
        let options = self.choice.options()?;
        if context.consent.dry_run {
            node.domain_create(&text, options.clone())?;
        }
        let plan = Plan::new(Self::NAME, name).change("start transient domain", name);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let started = node.domain_create(&text, options)?;
        let message = format!("Domain '{name}' created from {}", self.file.display());
        let done = Done::new("domain", "created", name, message);
        self.choice.follow(context, &node, started, &done)
    }
}

/// How a guest is asked to switch itself off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// By the power button.
    Acpi,
    /// Refused.
    Agent,
    /// Refused.
    Initctl,
    /// Refused.
    Signal,
    /// Refused.
    Paravirt,
}

fn check_modes(modes: &[Mode], verb: &str, target: &Target) -> Result<()> {
    if modes.is_empty() || modes.contains(&Mode::Acpi) {
        return Ok(());
    }
    Err(Failure::new(
        Code::E0605,
        "the guest can only be asked by its power button",
    )
    .why("there is no agent in the guest, and it is no container")
    .fix("use --mode acpi, or leave --mode out")
    .next(format!("cenote {verb} {}", quoted(&target.domain))))
}

/// Ask the guest to switch itself off, by the power button
#[derive(Args, Debug)]
pub(super) struct Shutdown {
    #[command(flatten)]
    target: Target,
    /// How to ask; only acpi can be used
    #[arg(long, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Wait until it is off
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this, such as 90, 30s or 5m; a bare number is seconds
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,
}

impl Verb for Shutdown {
    const NAME: &'static str = "shutdown";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Push the power button", "cenote shutdown web"),
        example("And wait", "cenote shutdown web --wait --timeout 2m"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        check_modes(&self.mode, Self::NAME, &self.target)?;
        let (action, said) = ("push the power button of domain", "is being shutdown");
        let simple = Simple::new(Self::NAME, action, "shutting-down", said);
        let done = simple.run(context, &self.target, |node, info| {
            node.domain_shutdown(&info.uuid).map(drop)
        })?;
        let Some((node, info)) = done else {
            return Ok(());
        };
        if !(self.wait || self.timeout.is_some())
            || node.domain_wait_off(&info.uuid, self.timeout)?
        {
            return Ok(());
        }
        Err(still_running(&info))
    }
}

fn still_running(info: &DomainInfo) -> Failure {
    let name = quoted(&info.name);
    Failure::new(
        Code::E0012,
        format!("domain '{}' did not switch itself off in time", info.name),
    )
    .why("what follows the power button is up to the guest")
    .fix("wait longer, or pull the plug")
    .next(format!("cenote stop {name} --force"))
}

/// Shut a domain down and wait for it; pull the plug when it takes too long
#[derive(Args, Debug)]
pub(super) struct Stop {
    #[command(flatten)]
    target: Target,
    /// Wait this long, such as 90, 30s or 5m; a bare number is seconds
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "90s")]
    timeout: Duration,
    /// Pull the plug then
    #[arg(long)]
    force: bool,
}

impl Verb for Stop {
    const NAME: &'static str = "stop";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Off within a minute",
        "cenote stop web --timeout 1m --force",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let mut plan =
            Plan::new(Self::NAME, &info.name).change("push the power button of domain", &info.name);
        if self.force {
            plan = plan.change_with("end domain", &info.name, "if it takes too long");
        }
        if context.consent.dry_run {
            node.domain_shutdown(&info.uuid)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let asked = node.domain_shutdown(&info.uuid).map(drop);
        // A guest that stands still hears no button; pulling the plug was asked for.
        let paused = node
            .domain(&info.uuid)
            .is_ok_and(|now| now.state.as_str() == "paused");
        if !(self.force && paused) {
            asked?;
            if node.domain_wait_off(&info.uuid, Some(self.timeout))? {
                let message = format!("Domain '{}' stopped", info.name);
                return context.done(&Done::new("domain", "stopped", &info.name, message));
            }
        }
        if !self.force {
            return Err(still_running(&info));
        }
        node.domain_destroy(&info.uuid, false)?;
        let message = format!("Domain '{}' destroyed", info.name);
        context.done(&Done::new("domain", "destroyed", &info.name, message))
    }
}

/// Ask the guest to switch itself off, and start it again when it has
#[derive(Args, Debug)]
pub(super) struct Reboot {
    #[command(flatten)]
    target: Target,
    /// How to ask; only acpi can be used
    #[arg(long, value_delimiter = ',')]
    mode: Vec<Mode>,
}

/// Reset a domain at once, as a reset button does
#[derive(Args, Debug)]
pub(super) struct Reset {
    #[command(flatten)]
    target: Target,
}

/// End a domain at once, as pulling the plug does; its images stay
#[derive(Args, Debug)]
pub(super) struct Destroy {
    #[command(flatten)]
    target: Target,
    /// Do not kill a monitor that does not end
    #[arg(long)]
    graceful: bool,
    /// Remove its logs
    #[arg(long)]
    remove_logs: bool,
}

/// Stop a domain's processors; its memory stays
#[derive(Args, Debug)]
pub(super) struct Suspend {
    #[command(flatten)]
    target: Target,
}

/// Let a suspended domain go on
#[derive(Args, Debug)]
pub(super) struct Resume {
    #[command(flatten)]
    target: Target,
}

/// A command that asks a running domain for one thing.
struct Simple {
    verb: &'static str,
    action: &'static str,
    result: &'static str,
    said: &'static str,
}

impl Simple {
    fn new(
        verb: &'static str,
        action: &'static str,
        result: &'static str,
        said: &'static str,
    ) -> Self {
        Self {
            verb,
            action,
            result,
            said,
        }
    }

    /// Answers node and domain, unless it was a dry run.
    fn run(
        &self,
        context: &Context,
        target: &Target,
        ask: impl Fn(&Node, &DomainInfo) -> cenote_engine::Result<()>,
    ) -> Result<Option<(Node, DomainInfo)>> {
        let node = context.node()?;
        let info = context.domain(&node, &target.domain)?;
        if context.consent.dry_run {
            ask(&node, &info)?;
        }
        let plan = Plan::new(self.verb, &info.name).change(self.action, &info.name);
        if !context.go_on(&plan)? {
            return Ok(None);
        }
        ask(&node, &info)?;
        let message = format!("Domain '{}' {}", info.name, self.said);
        context.done(&Done::new("domain", self.result, &info.name, message))?;
        Ok(Some((node, info)))
    }
}

impl Verb for Reboot {
    const NAME: &'static str = "reboot";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example("Boot it again", "cenote reboot web")];

    fn run(self, context: &Context) -> Result<()> {
        check_modes(&self.mode, Self::NAME, &self.target)?;
        let simple = Simple::new(
            Self::NAME,
            "reboot domain",
            "rebooting",
            "is being rebooted",
        );
        let ask = |node: &Node, info: &DomainInfo| node.domain_reboot(&info.uuid).map(drop);
        simple.run(context, &self.target, ask).map(drop)
    }
}

impl Verb for Reset {
    const NAME: &'static str = "reset";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example("Push the reset button", "cenote reset web")];

    fn run(self, context: &Context) -> Result<()> {
        let simple = Simple::new(Self::NAME, "reset domain", "reset", "was reset");
        let ask = |node: &Node, info: &DomainInfo| node.domain_reset(&info.uuid).map(drop);
        simple.run(context, &self.target, ask).map(drop)
    }
}

impl Verb for Destroy {
    const NAME: &'static str = "destroy";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Pull the plug", "cenote destroy web"),
        example("But let images be closed", "cenote destroy web --graceful"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let simple = Simple::new(Self::NAME, "end domain", "destroyed", "destroyed");
        let done = simple.run(context, &self.target, |node, info| {
            node.domain_destroy(&info.uuid, self.graceful).map(drop)
        })?;
        if let (Some((node, info)), true) = (done, self.remove_logs) {
            node.domain_remove_logs(&info.name)?;
        }
        Ok(())
    }
}

impl Verb for Suspend {
    const NAME: &'static str = "suspend";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example("Make it stand still", "cenote suspend web")];

    fn run(self, context: &Context) -> Result<()> {
        let simple = Simple::new(Self::NAME, "suspend domain", "suspended", "suspended");
        let ask = |node: &Node, info: &DomainInfo| node.domain_suspend(&info.uuid).map(drop);
        simple.run(context, &self.target, ask).map(drop)
    }
}

impl Verb for Resume {
    const NAME: &'static str = "resume";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example("Let it go on", "cenote resume web")];

    fn run(self, context: &Context) -> Result<()> {
        let simple = Simple::new(Self::NAME, "resume domain", "resumed", "resumed");
        let ask = |node: &Node, info: &DomainInfo| node.domain_resume(&info.uuid).map(drop);
        simple.run(context, &self.target, ask).map(drop)
    }
}
