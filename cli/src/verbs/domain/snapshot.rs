//! Commands on snapshots of domains.

use std::path::PathBuf;

use cenote_engine::{DomainInfo, Node, Resumption, SnapshotDelete, SnapshotInfo, SnapshotOptions};
use cenote_model::domain::{DiskSource, SnapshotMode};
use cenote_model::snapshot::{
    Snapshot, SnapshotDisk, SnapshotDisks, SnapshotMemory, SnapshotMemoryMode,
};
use cenote_model::{Document as _, Name};
use clap::Args;

use super::Target;
use crate::consent::Level;
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::{self, quoted};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{DomainSnapshotItem, DomainSnapshotItems, Done};

/// Takes a snapshot, after it has been said what would be done.
fn take(
    context: &Context,
    verb: &'static str,
    target: &Target,
    wanted: &Snapshot,
    options: SnapshotOptions,
) -> Result<()> {
    let node = context.node()?;
    let info = context.domain(&node, &target.domain)?;
    let shown = wanted
        .name
        .as_ref()
        .map_or("named by its time", Name::as_str);
    let runs = info.state.is_active();
    let kept = match runs && !options.disk_only {
        true => "keep memory and disks of domain",
        false => "keep the disks of domain",
    };
    let mut plan =
        Plan::new(verb, &info.name).change_with(kept, &info.name, format!("as snapshot {shown}"));
    if options.halt && info.state.is_active() {
        plan = plan.change("end domain", &info.name);
    }
    if context.consent.dry_run {
        node.domain_snapshot_create(&info.uuid, wanted, options)?;
    }
    if !context.go_on(&plan)? {
        return Ok(());
    }
    let name = node.domain_snapshot_create(&info.uuid, wanted, options)?;
    let message = format!("Domain snapshot {name} created");
    context.done(&Done::new("snapshot", "created", name, message))
}

// What both commands that take snapshots can be told.
#[derive(Args, Clone, Copy, Debug)]
#[allow(
    missing_docs,
    reason = "clap would make a doc comment the description of every such command"
)]
struct TakeChoice {
    /// Without the memory, in files beside the images, which the domain goes on with
    #[arg(long)]
    disk_only: bool,
    /// End the domain with it
    #[arg(long)]
    halt: bool,
    /// Accepted: all disks are kept, or none
    #[arg(long)]
    atomic: bool,
    /// Ask the guest to flush; refused
    #[arg(long)]
    quiesce: bool,
}

impl TakeChoice {
    fn options(self, target: &Target) -> Result<SnapshotOptions> {
        if self.quiesce {
            return Err(
                Failure::new(Code::E0605, "the guest cannot be asked to flush")
                    .why("there is no channel to an agent in the guest yet")
                    .fix("suspend it, or leave --quiesce out")
                    .next(format!("cenote suspend {}", quoted(&target.domain))),
            );
        }
        Ok(SnapshotOptions {
            disk_only: self.disk_only,
            halt: self.halt,
        })
    }
}

/// Take a snapshot of a domain: its disks, and its memory while it runs
#[derive(Args, Debug)]
pub(super) struct SnapshotCreateAs {
    #[command(flatten)]
    target: Target,
    /// Its name; the seconds since 1970 unless given
    name: Option<String>,
    /// For people
    description: Option<String>,
    /// A disk and how it is kept: vda,snapshot=external,file=/PATH (or snapshot=internal, =no)
    #[arg(long, value_name = "SPEC")]
    diskspec: Vec<String>,
    /// Where a running domain's memory is kept: file=/PATH, or snapshot=internal, =no; disks are
    /// kept in files, too, with a file
    #[arg(long, value_name = "SPEC", conflicts_with = "disk_only")]
    memspec: Option<String>,
    #[command(flatten)]
    choice: TakeChoice,
    /// Print the document and change nothing
    #[arg(long)]
    print_xml: bool,
}

impl SnapshotCreateAs {
    fn document(&self) -> Result<Snapshot> {
        let name = self.name.as_deref().map(Name::new).transpose();
        let name = name.map_err(|error| {
            Failure::new(Code::E0608, format!("snapshot name: {error}"))
                .fix("choose another name")
                .next(format!("cenote help {}", Self::NAME))
        })?;
        let disks: Result<Vec<_>> = self.diskspec.iter().map(|spec| disk(spec)).collect();
        let disks = disks?;
        let memory = self.memspec.as_deref().map(memory).transpose()?;
        Ok(Snapshot {
            name,
            memory,
            description: self.description.clone(),
            disks: (!disks.is_empty()).then(|| SnapshotDisks {
                disks,
                ..SnapshotDisks::default()
            }),
            ..Snapshot::default()
        })
    }
}

/// The memory of `--memspec`.
fn memory(spec: &str) -> Result<SnapshotMemory> {
    let wrong = |what: &str| {
        Failure::new(Code::E0608, format!("--memspec '{spec}': {what}"))
            .fix("write it as file=/PATH, or as snapshot=internal")
            .next(format!("cenote help {}", SnapshotCreateAs::NAME))
    };
    let mut memory = SnapshotMemory::default();
    for part in spec.split(',') {
        match part.split_once('=') {
            Some(("snapshot", "external")) => memory.mode = Some(SnapshotMemoryMode::External),
            Some(("snapshot", "internal")) => memory.mode = Some(SnapshotMemoryMode::Internal),
            Some(("snapshot", "no")) => memory.mode = Some(SnapshotMemoryMode::No),
            Some(("file", file)) => memory.file = Some(file.to_owned()),
            None if part.starts_with('/') => memory.file = Some(part.to_owned()),
            _ => return Err(wrong(&format!("'{part}' is not known"))),
        }
    }
    let external = SnapshotMemoryMode::External;
    match &memory.file {
        Some(file) if !file.starts_with('/') => return Err(wrong("an absolute path is expected")),
        Some(_) if *memory.mode.get_or_insert(external) != external => {
            return Err(wrong("a file is for snapshot=external"));
        }
        None if memory.mode == Some(external) => {
            return Err(wrong("memory that is kept outside needs a file"));
        }
        _ => {}
    }
    Ok(memory)
}

/// The disk of `--diskspec`.
fn disk(spec: &str) -> Result<SnapshotDisk> {
    let wrong = |what: &str| {
        Failure::new(Code::E0608, format!("--diskspec '{spec}': {what}"))
            .fix("write it as vda,snapshot=external,file=/PATH")
            .next(format!("cenote help {}", SnapshotCreateAs::NAME))
    };
    let mut parts = spec.split(',');
    let mut disk = SnapshotDisk {
        name: parts.next().unwrap_or_default().to_owned(),
        ..SnapshotDisk::default()
    };
    for part in parts {
        match part.split_once('=') {
            Some(("snapshot", "external")) => disk.mode = Some(SnapshotMode::External),
            Some(("snapshot", "internal")) => disk.mode = Some(SnapshotMode::Internal),
            Some(("snapshot", "no")) => disk.mode = Some(SnapshotMode::No),
            Some(("file", file)) => {
                disk.source = Some(DiskSource {
                    file: Some(file.to_owned()),
                    ..DiskSource::default()
                });
            }
            Some(("driver", "qcow2")) => {}
            _ => return Err(wrong(&format!("'{part}' is not known"))),
        }
    }
    if disk.source.is_some()
        && disk.mode.get_or_insert(SnapshotMode::External) != &SnapshotMode::External
    {
        return Err(wrong("a file is for snapshot=external"));
    }
    Ok(disk)
}

impl Verb for SnapshotCreateAs {
    const NAME: &'static str = "snapshot-create-as";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Keep its disks before an update, in files beside them",
            "cenote snapshot-create-as web before-update --disk-only",
        ),
        example(
            "Memory and disks of a running domain; or the disks in the images of one that is off",
            "cenote snapshot-create-as db before-update",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let wanted = self.document()?;
        if self.print_xml {
            return out::write(&wanted.to_xml());
        }
        let options = self.choice.options(&self.target)?;
        take(context, Self::NAME, &self.target, &wanted, options)
    }
}

/// Take a snapshot of a domain as a document says
#[derive(Args, Debug)]
pub(super) struct SnapshotCreate {
    #[command(flatten)]
    target: Target,
    /// The document; without one, all is left open
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    #[command(flatten)]
    choice: TakeChoice,
}

impl Verb for SnapshotCreate {
    const NAME: &'static str = "snapshot-create";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Named by its time",
        "cenote snapshot-create web --disk-only",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let wanted = match &self.file {
            None => Snapshot::default(),
            Some(file) => document::parse::<Snapshot>(context, &document::read(file)?, false)?,
        };
        let options = self.choice.options(&self.target)?;
        take(context, Self::NAME, &self.target, &wanted, options)
    }
}

/// List a domain's snapshots
#[derive(Args, Debug)]
pub(super) struct SnapshotList {
    #[command(flatten)]
    target: Target,
    /// Also show what each comes after
    #[arg(long)]
    parent: bool,
    /// Only those that come after none
    #[arg(long)]
    roots: bool,
    /// Only those that none comes after
    #[arg(long)]
    leaves: bool,
    /// Draw them as a tree
    #[arg(long, conflicts_with_all = ["parent", "roots", "leaves"])]
    tree: bool,
    /// Print names only
    #[arg(long)]
    name: bool,
}

impl Verb for SnapshotList {
    const NAME: &'static str = "snapshot-list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[
        example("Its snapshots", "cenote snapshot-list web"),
        example("What comes after what", "cenote snapshot-list web --tree"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let mut all = node.domain_snapshots(&info.uuid)?;
        all.retain(|snapshot| {
            (!self.roots || snapshot.parent.is_none()) && (!self.leaves || snapshot.children == 0)
        });
        if self.name {
            return out::write(
                &all.iter()
                    .map(|s| format!("{}\n", s.name))
                    .collect::<String>(),
            );
        }
        context.print(&DomainSnapshotItems {
            snapshots: all.into_iter().map(DomainSnapshotItem::from).collect(),
            parents: self.parent,
            tree: self.tree,
        })
    }
}

/// Print the document of the snapshot that a domain's disks go on from
#[derive(Args, Debug)]
pub(super) struct SnapshotCurrent {
    #[command(flatten)]
    target: Target,
    /// Its name only
    #[arg(long)]
    name: bool,
    /// With passwords
    #[arg(long)]
    security_info: bool,
}

impl Verb for SnapshotCurrent {
    const NAME: &'static str = "snapshot-current";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] =
        &[example("Its name", "cenote snapshot-current db --name")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let Some(current) = node.domain_snapshot_current(&info.uuid)? else {
            return Err(Failure::new(
                Code::E0412,
                format!("domain '{}' has no current snapshot", info.name),
            )
            .fix("take one, or list those it has")
            .next(format!("cenote snapshot-list {}", quoted(&info.name))));
        };
        match self.name {
            true => out::write(&format!("{}\n", current.name)),
            false => {
                let secure = self.security_info;
                out::write(&node.domain_snapshot_xml(&info.uuid, &current.name, secure)?)
            }
        }
    }
}

/// The domain and the snapshot that a command is about.
fn find(
    context: &Context,
    target: &Target,
    name: &str,
) -> Result<(Node, DomainInfo, SnapshotInfo)> {
    let node = context.node()?;
    let info = context.domain(&node, &target.domain)?;
    let snapshot = node.domain_snapshot(&info.uuid, name)?;
    Ok((node, info, snapshot))
}

/// Print the name of the snapshot before a snapshot
#[derive(Args, Debug)]
pub(super) struct SnapshotParent {
    #[command(flatten)]
    target: Target,
    /// The snapshot
    snapshot: String,
}

impl Verb for SnapshotParent {
    const NAME: &'static str = "snapshot-parent";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "What it comes after",
        "cenote snapshot-parent db second",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let (_, info, snapshot) = find(context, &self.target, &self.snapshot)?;
        let Some(parent) = snapshot.parent else {
            let text = format!("snapshot '{}' has no parent", snapshot.name);
            return Err(Failure::new(Code::E0412, text)
                .fix("it is a root of the tree")
                .next(format!(
                    "cenote snapshot-list {} --tree",
                    quoted(&info.name)
                )));
        };
        out::write(&format!("{parent}\n"))
    }
}

/// Show what is known of a snapshot
#[derive(Args, Debug)]
pub(super) struct SnapshotInfoVerb {
    #[command(flatten)]
    target: Target,
    /// The snapshot
    snapshot: String,
}

impl Verb for SnapshotInfoVerb {
    const NAME: &'static str = "snapshot-info";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "When it was taken, and how",
        "cenote snapshot-info db first",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let (_, _, snapshot) = find(context, &self.target, &self.snapshot)?;
        context.print(&DomainSnapshotItem::from(snapshot))
    }
}

/// Print a snapshot's document
#[derive(Args, Debug)]
pub(super) struct SnapshotDumpXml {
    #[command(flatten)]
    target: Target,
    /// The snapshot
    snapshot: String,
    /// With passwords
    #[arg(long)]
    security_info: bool,
}

impl Verb for SnapshotDumpXml {
    const NAME: &'static str = "snapshot-dumpxml";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "The domain as it was",
        "cenote snapshot-dumpxml db first",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let (node, info, snapshot) = find(context, &self.target, &self.snapshot)?;
        let secure = self.security_info;
        out::write(&node.domain_snapshot_xml(&info.uuid, &snapshot.name, secure)?)
    }
}

/// Make a domain what it was at a snapshot
#[derive(Args, Debug)]
pub(super) struct SnapshotRevert {
    #[command(flatten)]
    target: Target,
    /// The snapshot
    #[arg(required_unless_present = "current")]
    snapshot: Option<String>,
    /// The current one
    #[arg(long, conflicts_with = "snapshot")]
    current: bool,
    /// Let it run afterwards, however it was
    #[arg(long, conflicts_with = "paused")]
    running: bool,
    /// Start it and let it stand still, however it was
    #[arg(long)]
    paused: bool,
    /// First keep what it is now as a snapshot of that name
    #[arg(long, value_name = "NAME")]
    save_current: Option<Name>,
    /// Do not ask, although what it holds now is lost
    #[arg(long)]
    force: bool,
}

impl Verb for SnapshotRevert {
    const NAME: &'static str = "snapshot-revert";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Go back; what was written since is lost",
            "cenote snapshot-revert db first --force",
        ),
        example(
            "Go back and keep what it is now, too",
            "cenote snapshot-revert db first --save-current now",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let current = || -> Result<Option<String>> {
            let current = node.domain_snapshot_current(&info.uuid)?;
            Ok(current.map(|snapshot| snapshot.name))
        };
        let name = match self.snapshot {
            Some(name) => name,
            None => current()?.unwrap_or_default(),
        };
        let snapshot = node.domain_snapshot(&info.uuid, &name)?;
        let resumption = match (self.running, self.paused) {
            (true, _) => Resumption::Running,
            (_, true) => Resumption::Paused,
            _ => Resumption::AsSaved,
        };
        let mut plan = Plan::new(Self::NAME, &info.name);
        if let Some(present) = &self.save_current {
            let how = format!("as snapshot {present}");
            plan = plan.change_with("keep domain", &info.name, how);
        }
        let how = format!("to snapshot {name}");
        plan = plan.change_with("go back with domain", &info.name, how);
        if !self.force && self.save_current.is_none() {
            let lost = match info.state.is_active() {
                true => format!("lose what memory and disks of {} hold now", info.name),
                false => format!("lose what the disks of {} hold now", info.name),
            };
            plan = plan.asks(Level::Ask, lost);
        }
        let present = Snapshot {
            name: self.save_current.clone(),
            ..Snapshot::default()
        };
        let save = |node: &Node| match &present.name {
            Some(_) => node
                .domain_snapshot_create(&info.uuid, &present, SnapshotOptions::default())
                .map(drop),
            None => Ok(()),
        };
        if context.consent.dry_run {
            save(&node)?;
            node.domain_snapshot_revert(&info.uuid, &snapshot.name, resumption)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        save(&node)?;
        node.domain_snapshot_revert(&info.uuid, &snapshot.name, resumption)?;
        let message = format!("Domain '{}' reverted to snapshot {name}", info.name);
        context.done(&Done::new("snapshot", "reverted", name, message))
    }
}

/// Delete a snapshot; the domain's disks stay as they are
#[derive(Args, Debug)]
pub(super) struct SnapshotDeleteVerb {
    #[command(flatten)]
    target: Target,
    /// The snapshot
    snapshot: String,
    /// And those that come after it
    #[arg(long)]
    children: bool,
    /// Only those that come after it
    #[arg(long, conflicts_with = "children")]
    children_only: bool,
    /// Only forget that there was one; images stay as they are
    #[arg(long)]
    metadata: bool,
}

impl Verb for SnapshotDeleteVerb {
    const NAME: &'static str = "snapshot-delete";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "It is not needed any more",
        "cenote snapshot-delete db first --yes",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let (node, info, snapshot) = find(context, &self.target, &self.snapshot)?;
        let options = SnapshotDelete {
            children: self.children,
            children_only: self.children_only,
            metadata: self.metadata,
        };
        let name = snapshot.name;
        let plan = Plan::new(Self::NAME, &info.name)
            .change_with("delete", &name, format!("of domain {}", info.name))
            .asks(
                Level::Ask,
                format!("delete snapshot {name} of {}", info.name),
            );
        if context.consent.dry_run {
            node.domain_snapshot_delete(&info.uuid, &name, options)?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let gone = node.domain_snapshot_delete(&info.uuid, &name, options)?;
        let message = match self.children_only {
            true => format!("Domain snapshot {name} children deleted"),
            false => format!("Domain snapshot {name} deleted"),
        };
        let what = gone.join(" ");
        context.done(&Done::new("snapshot", "deleted", what, message))
    }
}
