//! Commands that show domains.

use cenote_engine::{Scope, XmlOptions};
use clap::Args;

use super::{ScopeChoice, Target};
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{
    DomainDetail, DomainDiskItem, DomainDiskItems, DomainInterfaceItem, DomainInterfaceItems,
    DomainItem, DomainItems, DomainStateItem, VcpuCountItem, VcpuCountItems,
};

/// List domains, those that run unless told otherwise
#[derive(Args, Debug)]
pub(super) struct List {
    /// Domains that do not run
    #[arg(long)]
    inactive: bool,
    /// Domains that run and those that do not
    #[arg(long)]
    all: bool,
    /// Transient domains only
    #[arg(long)]
    transient: bool,
    /// Persistent domains only
    #[arg(long)]
    persistent: bool,
    /// Running domains
    #[arg(long)]
    state_running: bool,
    /// Paused domains
    #[arg(long)]
    state_paused: bool,
    /// Domains that are shut off
    #[arg(long)]
    state_shutoff: bool,
    /// Domains in other states
    #[arg(long)]
    state_other: bool,
    /// Domains with autostart only
    #[arg(long)]
    autostart: bool,
    /// Domains without autostart only
    #[arg(long)]
    no_autostart: bool,
    /// Domains with a managed save only
    #[arg(long)]
    with_managed_save: bool,
    /// Domains without a managed save only
    #[arg(long)]
    without_managed_save: bool,
    /// Print UUIDs only
    #[arg(long)]
    uuid: bool,
    /// Print names only
    #[arg(long)]
    name: bool,
    /// Print ids only
    #[arg(long)]
    id: bool,
    /// Print a table; this is the default
    #[arg(long, conflicts_with_all = ["uuid", "name", "id"])]
    table: bool,
    /// Say 'saved' of stopped domains with a managed save
    #[arg(long)]
    managed_save: bool,
    /// Show titles
    #[arg(long)]
    title: bool,
}

impl List {
    fn shows(&self, domain: &DomainItem) -> bool {
        // Two opposite wishes cancel each other, as in virsh.
        let either = |yes: bool, no: bool, is: bool| yes == no || yes == is;
        let states = [
            (self.state_running, domain.state == "running"),
            (self.state_paused, domain.state == "paused"),
            (self.state_shutoff, domain.state == "shut off"),
            (
                self.state_other,
                !["running", "paused", "shut off"].contains(&domain.state.as_str()),
            ),
        ];
        let by_state = states.iter().any(|(wanted, _)| *wanted);
        let activity = if by_state {
            states.iter().any(|(wanted, is)| *wanted && *is)
        } else {
            self.all || domain.id.is_some() != self.inactive
        };
        activity
            && either(self.persistent, self.transient, domain.persistent)
            && either(self.autostart, self.no_autostart, domain.autostart)
            && either(
                self.with_managed_save,
                self.without_managed_save,
                domain.managed_save,
            )
    }
}

impl Verb for List {
    const NAME: &'static str = "list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("All domains", "cenote list --all"),
        example("Those that run, with ids", "cenote list"),
        example("Names of stopped domains", "cenote list --inactive --name"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let all = context.node()?.domains()?.into_iter().map(DomainItem::from);
        let domains: Vec<DomainItem> = all.filter(|domain| self.shows(domain)).collect();
        if self.uuid || self.name || self.id {
            let lines = domains.iter().map(|domain| {
                let mut words = Vec::new();
                if self.id {
                    words.push(domain.shown_id());
                }
                if self.uuid {
                    words.push(domain.uuid.clone());
                }
                if self.name {
                    words.push(domain.name.clone());
                }
                words.join(" ") + "\n"
            });
            return out::write(&lines.collect::<String>());
        }
        context.print(&DomainItems {
            domains,
            titles: self.title,
            mark_saved: self.managed_save,
        })
    }
}

/// Show a domain's state, processors and memory
#[derive(Args, Debug)]
pub(super) struct DomInfo {
    #[command(flatten)]
    target: Target,
}

impl Verb for DomInfo {
    const NAME: &'static str = "dominfo";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example("What is known of it", "cenote dominfo web")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let document = node.domain_document(&info.uuid, false)?;
        context.print(&DomainDetail::new(info, &document))
    }
}

/// Print a domain's state
#[derive(Args, Debug)]
pub(super) struct DomState {
    #[command(flatten)]
    target: Target,
    /// And why it is in that state
    #[arg(long)]
    reason: bool,
}

impl Verb for DomState {
    const NAME: &'static str = "domstate";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] =
        &[example("State and reason", "cenote domstate web --reason")];

    fn run(self, context: &Context) -> Result<()> {
        let info = context.domain(&context.node()?, &self.target.domain)?;
        context.print(&DomainStateItem::new(info.name, info.state, self.reason))
    }
}

/// Print a domain's document: its configuration, not its memory (see 'save')
#[derive(Args, Debug)]
pub(super) struct DumpXml {
    #[command(flatten)]
    target: Target,
    /// The definition, which the next start uses
    #[arg(long)]
    inactive: bool,
    /// With passwords
    #[arg(long)]
    security_info: bool,
    /// With the processor as the host has it; the guest sees the host's in any case
    #[arg(long)]
    update_cpu: bool,
    /// Without what holds only on this host
    #[arg(long)]
    migratable: bool,
    /// Print only what this XPath expression selects
    #[arg(long, value_name = "XPATH")]
    xpath: Option<String>,
    /// Put the selected nodes into one root element
    #[arg(long, requires = "xpath")]
    wrap: bool,
}

impl Verb for DumpXml {
    const NAME: &'static str = "dumpxml";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example("The whole document", "cenote dumpxml web"),
        example(
            "Names of its disks",
            "cenote dumpxml web --xpath '//disk/target/@dev'",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let options = XmlOptions {
            inactive: self.inactive,
            migratable: self.migratable,
            secure: self.security_info || self.migratable,
        };
        let text = node.domain_xml(&info.uuid, options)?;
        out::write(&document::select(text, self.xpath.as_deref(), self.wrap)?)
    }
}

/// Print the id of a domain; '-' if it does not run
#[derive(Args, Debug)]
pub(super) struct DomId {
    #[command(flatten)]
    target: Target,
}

impl Verb for DomId {
    const NAME: &'static str = "domid";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example("Id of a domain", "cenote domid web")];

    fn run(self, context: &Context) -> Result<()> {
        let info = context.domain(&context.node()?, &self.target.domain)?;
        out::write(&format!("{}\n", DomainItem::from(info).shown_id()))
    }
}

/// Print the name of the domain with an id or UUID
#[derive(Args, Debug)]
pub(super) struct DomName {
    #[command(flatten)]
    target: Target,
}

impl Verb for DomName {
    const NAME: &'static str = "domname";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "Name of a domain",
        "cenote domname c7a5fdbd-cdaf-9455-926a-d65c16db1809",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let info = context.domain(&context.node()?, &self.target.domain)?;
        out::write(&format!("{}\n", info.name))
    }
}

/// Print the UUID of a domain
#[derive(Args, Debug)]
pub(super) struct DomUuid {
    #[command(flatten)]
    target: Target,
}

impl Verb for DomUuid {
    const NAME: &'static str = "domuuid";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example("UUID of a domain", "cenote domuuid web")];

    fn run(self, context: &Context) -> Result<()> {
        let info = context.domain(&context.node()?, &self.target.domain)?;
        out::write(&format!("{}\n", info.uuid))
    }
}

/// List a domain's disks and drives
#[derive(Args, Debug)]
pub(super) struct DomBlkList {
    #[command(flatten)]
    target: Target,
    /// Those of the definition
    #[arg(long)]
    inactive: bool,
    /// Also show types and devices
    #[arg(long)]
    details: bool,
}

impl Verb for DomBlkList {
    const NAME: &'static str = "domblklist";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "Its disks and where they are",
        "cenote domblklist web --details",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let document = node.domain_document(&info.uuid, self.inactive)?;
        let disks = document.devices.disks.iter().map(DomainDiskItem::from);
        context.print(&DomainDiskItems {
            disks: disks.collect(),
            details: self.details,
        })
    }
}

/// List a domain's network cards
#[derive(Args, Debug)]
pub(super) struct DomIfList {
    #[command(flatten)]
    target: Target,
    /// Those of the definition
    #[arg(long)]
    inactive: bool,
}

impl Verb for DomIfList {
    const NAME: &'static str = "domiflist";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "Its cards and what they are joined to",
        "cenote domiflist web",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let document = node.domain_document(&info.uuid, self.inactive)?;
        let cards = document
            .devices
            .interfaces
            .iter()
            .map(DomainInterfaceItem::from);
        context.print(&DomainInterfaceItems(cards.collect()))
    }
}

/// Print how many processors a domain has and could have
#[derive(Args, Debug)]
pub(super) struct VcpuCount {
    #[command(flatten)]
    target: Target,
    /// The most it could have
    #[arg(long)]
    maximum: bool,
    /// What it has
    #[arg(long, conflicts_with = "maximum")]
    active: bool,
    #[command(flatten)]
    scope: ScopeChoice,
    /// Ask the guest's agent, which is not supported
    #[arg(long)]
    guest: bool,
}

impl Verb for VcpuCount {
    const NAME: &'static str = "vcpucount";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("All its numbers", "cenote vcpucount web"),
        example(
            "Processors of the next start, the number alone",
            "cenote vcpucount web --active --config",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        if self.guest {
            return Err(
                Failure::new(Code::E0605, "the guest cannot be asked for its processors")
                    .why("there is no channel to an agent in the guest yet")
                    .fix("leave --guest out")
                    .next(format!("cenote vcpucount {}", self.target.domain)),
            );
        }
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let flags = [
            self.maximum,
            self.active,
            self.scope.config,
            self.scope.live,
        ];
        let bare = flags.contains(&true) || self.scope.current;
        let live = info.state.is_active();
        let mut counts = Vec::new();
        for kind in ["maximum", "current"] {
            let asked = match kind {
                "maximum" => self.maximum || !bare,
                _ => !self.maximum,
            };
            for (scope, name, there) in [
                (Scope::Config, "config", info.persistent),
                (Scope::Live, "live", live),
            ] {
                let meant = match self.scope.scope() {
                    Scope::Current if bare => (scope == Scope::Live) == live,
                    Scope::Current | Scope::Both => true,
                    only => only == scope,
                };
                if !asked || !meant || (!there && self.scope.scope() != scope) {
                    continue;
                }
                let document = node.scoped_document(&info.uuid, scope)?;
                let count = match kind {
                    "maximum" => document.vcpu.maximum(),
                    _ => document.vcpu.present(),
                };
                counts.push(VcpuCountItem {
                    kind: kind.to_owned(),
                    scope: name.to_owned(),
                    count,
                });
            }
        }
        context.print(&VcpuCountItems { counts, bare })
    }
}
