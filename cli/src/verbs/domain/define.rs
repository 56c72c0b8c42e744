//! Commands that change definitions of domains.

use std::path::PathBuf;

use cenote_engine::{
    Amount, DefineOptions, DomainClone, DomainInfo, NoProgress, UndefineOptions, VolumeId,
};
use cenote_model::domain::Domain;
use cenote_model::{Name, Size};
use clap::Args;

use super::{ScopeChoice, Target};
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::quoted;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Define a domain from a document, or change the definition of one
#[derive(Args, Debug)]
pub(super) struct Define {
    /// The document; - is standard input; several are defined in turn
    #[arg(value_hint = clap::ValueHint::FilePath, required = true)]
    file: Vec<PathBuf>,
    /// Refuse what is not known instead of keeping it without effect
    #[arg(long, visible_alias = "strict")]
    validate: bool,
    /// A document without UUID replaces the definition of the domain of its name
    #[arg(long)]
    replace: bool,
}

impl Verb for Define {
    const NAME: &'static str = "define";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Define a domain", "cenote define mail.xml"),
        example(
            "Check a document without defining anything",
            "cenote define mail.xml --validate --dry-run",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let options = DefineOptions {
            replace: self.replace,
        };
        for file in &self.file {
            let text = document::read(file)?;
            let domain: Domain = document::parse(context, &text, self.validate)?;
            let name = domain.name.as_str();
            let action = match node.domain(name) {
                Ok(_) => "replace the definition of domain",
                Err(_) => "define domain",
            };
            // The dry run defines it too, in a copy of the node's state that is thrown away, so
            // that it fails where the command would.
            node.domain_define(&text, options)?;
            if !context.go_on(&Plan::new(Self::NAME, name).change(action, name))? {
                continue;
            }
            let message = format!("Domain '{name}' defined from {}", file.display());
            context.done(&Done::new("domain", "defined", name, message))?;
        }
        Ok(())
    }
}

/// Remove the definition of a domain; its images stay as they are
#[derive(Args, Debug)]
pub(super) struct Undefine {
    #[command(flatten)]
    target: Target,
    /// Remove its managed save, too
    #[arg(long)]
    managed_save: bool,
    /// Remove the file of its firmware's variables, too
    #[arg(long, conflicts_with = "keep_nvram")]
    nvram: bool,
    /// Keep the file of its firmware's variables
    #[arg(long)]
    keep_nvram: bool,
    /// Forget its snapshots; internal ones stay in the images
    #[arg(long)]
    snapshots_metadata: bool,
    /// Remove its checkpoints' metadata; accepted, since there are no checkpoints
    #[arg(long)]
    checkpoints_metadata: bool,
    /// Remove its TPM's state; accepted, since no machine has a TPM
    #[arg(long, conflicts_with = "keep_tpm")]
    tpm: bool,
    /// Keep its TPM's state; accepted, since no machine has a TPM
    #[arg(long)]
    keep_tpm: bool,
    /// Remove these of its images, too; refused: see 'teardown'
    #[arg(long, value_name = "TARGET,...")]
    storage: Option<String>,
    /// Remove all of its images, too; refused: see 'teardown'
    #[arg(long)]
    remove_all_storage: bool,
    /// Wipe what is removed; refused: see 'teardown'
    #[arg(long)]
    wipe_storage: bool,
}

impl Verb for Undefine {
    const NAME: &'static str = "undefine";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Forget a domain", "cenote undefine web"),
        example(
            "See what would be forgotten",
            "cenote undefine web --dry-run",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        if self.remove_all_storage || self.wipe_storage || self.storage.is_some() {
            let target = &self.target.domain;
            return Err(Failure::new(Code::E0605, "undefine does not remove images")
                .why("an image may be another's backing file, or hold what nobody else has")
                .fix("take the domain away with all that is its own, or wipe and delete each image")
                .next(format!("cenote teardown {} --dry-run", quoted(target))));
        }
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let mut plan =
            Plan::new(Self::NAME, &info.name).change("remove the definition of domain", &info.name);
        if info.state.is_active() {
            plan = plan.change("make transient the running domain", &info.name);
        }
        if self.managed_save && info.managed_save {
            plan = plan.change("remove the managed save of domain", &info.name);
        }
        let nvram = match (self.nvram, self.keep_nvram) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        let options = UndefineOptions {
            managed_save: self.managed_save,
            nvram,
            snapshots_metadata: self.snapshots_metadata,
        };
        if context.consent.dry_run {
            node.domain_undefine(&info.uuid, options)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let undefined = node.domain_undefine(&info.uuid, options)?;
        for image in &undefined.images {
            let image = quoted(image);
            context.note(&format!(
                "kept: {image} (wipe and delete it: cenote vol-wipe {image}, cenote vol-delete {image})"
            ));
        }
        let message = format!("Domain '{}' has been undefined", undefined.name);
        context.done(&Done::new("domain", "undefined", undefined.name, message))
    }
}

/// Give a domain that does not run another name
#[derive(Args, Debug)]
pub(super) struct DomRename {
    #[command(flatten)]
    target: Target,
    /// Its new name
    new_name: String,
}

impl Verb for DomRename {
    const NAME: &'static str = "domrename";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] =
        &[example("Call it otherwise", "cenote domrename web shop")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        if context.consent.dry_run {
            node.domain_rename(&info.uuid, &self.new_name)?;
        }
        let plan = Plan::new(Self::NAME, &info.name).change_with(
            "rename domain",
            &info.name,
            format!("to {}", self.new_name),
        );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.domain_rename(&info.uuid, &self.new_name)?;
        context.done(&Done::new(
            "domain",
            "renamed",
            self.new_name,
            "Domain successfully renamed",
        ))
    }
}

/// Start a domain with the node, or no longer
#[derive(Args, Debug)]
pub(super) struct Autostart {
    #[command(flatten)]
    target: Target,
    /// No longer start it with the node
    #[arg(long)]
    disable: bool,
}

impl Verb for Autostart {
    const NAME: &'static str = "autostart";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Start a domain with the node", "cenote autostart web"),
        example("No longer", "cenote autostart web --disable"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let (action, result) = if self.disable {
            ("clear the autostart mark of domain", "unmarked")
        } else {
            ("set the autostart mark of domain", "marked")
        };
        if context.consent.dry_run {
            node.domain_autostart(&info.uuid, !self.disable)?;
        }
        if !context.go_on(&Plan::new(Self::NAME, &info.name).change(action, &info.name))? {
            return Ok(());
        }
        node.domain_autostart(&info.uuid, !self.disable)?;
        let message = format!("Domain '{}' {result} as autostarted", info.name);
        context.done(&Done::new("domain", result, &info.name, message))
    }
}

/// Set the memory that a domain has from its next start on
#[derive(Args, Debug)]
pub(super) struct SetMem {
    #[command(flatten)]
    target: Target,
    /// The memory; without a unit, in KiB
    size: String,
    #[command(flatten)]
    scope: ScopeChoice,
}

/// Set the most memory that a domain can have from its next start on
#[derive(Args, Debug)]
pub(super) struct SetMaxMem {
    #[command(flatten)]
    target: Target,
    /// The memory; without a unit, in KiB
    size: String,
    #[command(flatten)]
    scope: ScopeChoice,
}

/// Memory as virsh reads it: KiB unless a unit is given.
fn kib(text: &str) -> Result<u64> {
    let bytes = Size::parse(text, 1024).map(Size::bytes).map_err(|error| {
        Failure::new(Code::E0011, format!("'{text}' is no amount of memory"))
            .why(error.to_string())
            .fix("write a number with a unit, such as 512M or 2G; without one it is KiB")
            .next("cenote help names")
    })?;
    Ok(bytes.div_ceil(1024))
}

fn set_memory(
    context: &Context,
    verb: &str,
    target: &Target,
    scope: ScopeChoice,
    (amount, size): (Amount, &str),
) -> Result<()> {
    let kib = kib(size)?;
    change(
        context,
        verb,
        target,
        &format!("{kib} KiB of memory"),
        |node, info| Ok(node.domain_set_memory(&info.uuid, scope.scope(), amount, kib)?),
    )
}

/// Makes a change to a definition, or plans it.
fn change(
    context: &Context,
    verb: &str,
    target: &Target,
    what: &str,
    apply: impl Fn(&cenote_engine::Node, &DomainInfo) -> Result<()>,
) -> Result<()> {
    let node = context.node()?;
    let info = context.domain(&node, &target.domain)?;
    let plan = Plan::new(verb, &info.name).change_with("change domain", &info.name, what);
    if context.consent.dry_run {
        apply(&node, &info)?;
    }
    if !context.go_on(&plan)? {
        return Ok(());
    }
    apply(&node, &info)?;
    let message = format!("Domain '{}' changed: {what}", info.name);
    context.done(&Done::new("domain", "changed", &info.name, message))
}

impl Verb for SetMem {
    const NAME: &'static str = "setmem";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Less at the next start",
        "cenote setmem web 256M --config",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let wanted = (Amount::Current, self.size.as_str());
        set_memory(context, Self::NAME, &self.target, self.scope, wanted)
    }
}

impl Verb for SetMaxMem {
    const NAME: &'static str = "setmaxmem";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Allow more from the next start on",
        "cenote setmaxmem web 2G --config",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let wanted = (Amount::Maximum, self.size.as_str());
        set_memory(context, Self::NAME, &self.target, self.scope, wanted)
    }
}

/// Set how many processors a domain has from its next start on
#[derive(Args, Debug)]
pub(super) struct SetVcpus {
    #[command(flatten)]
    target: Target,
    /// The number
    count: u32,
    /// Set the most it can have
    #[arg(long)]
    maximum: bool,
    #[command(flatten)]
    scope: ScopeChoice,
    /// Ask the guest's agent; refused
    #[arg(long)]
    guest: bool,
    /// Let added processors be taken out again; refused
    #[arg(long)]
    hotpluggable: bool,
}

impl Verb for SetVcpus {
    const NAME: &'static str = "setvcpus";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Allow four", "cenote setvcpus web 4 --maximum --config"),
        example("Start with one", "cenote setvcpus web 1 --config"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        if self.guest || self.hotpluggable {
            return Err(
                Failure::new(Code::E0605, "processors cannot be plugged while it runs")
                    .why("the machine has the processors it was started with")
                    .fix("set the number for the next start with --config alone")
                    .next(format!(
                        "cenote setvcpus {} {} --config",
                        quoted(&self.target.domain),
                        self.count
                    )),
            );
        }
        let amount = if self.maximum {
            Amount::Maximum
        } else {
            Amount::Current
        };
        let what = match amount {
            Amount::Maximum => format!("at most {} processors", self.count),
            Amount::Current => format!("{} processors", self.count),
        };
        change(context, Self::NAME, &self.target, &what, |node, info| {
            Ok(node.domain_set_vcpus(&info.uuid, self.scope.scope(), amount, self.count)?)
        })
    }
}

/// Define a domain like one that does not run, with its own name, UUID, addresses and disks
#[derive(Args, Debug)]
pub(super) struct CloneVerb {
    #[command(flatten)]
    target: Target,
    /// The clone's name
    #[arg(value_name = "NEWNAME")]
    name: Name,
    /// Disks are overlays on the original's, which cannot be started while there are any
    #[arg(long)]
    linked: bool,
    /// Name of the new volume of a disk: vda=NAME; may be repeated
    #[arg(long, value_name = "TARGET=NAME")]
    disk: Vec<String>,
}

impl Verb for CloneVerb {
    const NAME: &'static str = "clone";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("A copy with disks of its own", "cenote clone web shop"),
        example(
            "At once, on what the original holds now",
            "cenote clone web web2 --linked",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let mut wanted = DomainClone {
            linked: self.linked,
            ..DomainClone::default()
        };
        for spec in &self.disk {
            let Some((target, volume)) = spec.split_once('=') else {
                return Err(Failure::new(Code::E0608, format!("--disk '{spec}'"))
                    .fix("write it as vda=NAME")
                    .next("cenote help clone"));
            };
            wanted.volumes.insert(target.to_owned(), volume.to_owned());
        }
        let name = &self.name;
        // A dry run works on a copy of the node's state, and only looks.
        let shown = |plan: Plan, volumes: &[VolumeId]| {
            volumes.iter().fold(plan, |plan, volume| {
                let how = if self.linked {
                    "on the original's"
                } else {
                    "as a copy"
                };
                plan.change_with("create volume", volume.to_string(), how.to_owned())
            })
        };
        let mut plan = Plan::new(Self::NAME, name.as_str());
        if context.consent.dry_run {
            let volumes = node.domain_clone(&info.uuid, name, &wanted, &NoProgress)?;
            plan = shown(plan, &volumes);
        }
        let how = format!("like {}", info.name);
        plan = plan.change_with("define domain", name.as_str(), how);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        context.long(format!("cloning {}", info.name), |progress| {
            node.domain_clone(&info.uuid, name, &wanted, progress)
        })?;
        let message = format!("Domain '{name}' cloned from '{}'", info.name);
        context.done(&Done::new("domain", "cloned", name.to_string(), message))
    }
}
