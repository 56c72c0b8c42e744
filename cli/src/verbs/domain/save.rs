//! Commands on saved domains.

use std::path::{Path, PathBuf};

use cenote_engine::{Node, Resumption};
use cenote_model::domain::Domain;
use clap::Args;

use super::Target;
use crate::context::Context;
use crate::document;
use crate::failure::Result;
use crate::out;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

// Whether a restored guest is let go.
#[derive(Args, Clone, Copy, Debug)]
#[allow(
    missing_docs,
    reason = "clap would make a doc comment the description of every such command"
)]
struct ResumptionChoice {
    /// Let the guest go when it is restored
    #[arg(long, conflicts_with = "paused")]
    running: bool,
    /// Leave the guest standing when it is restored
    #[arg(long)]
    paused: bool,
    /// Accepted; files are written and read as fits them
    #[arg(long)]
    bypass_cache: bool,
}

impl ResumptionChoice {
    fn resumption(self) -> Resumption {
        match (self.running, self.paused) {
            (true, _) => Resumption::Running,
            (false, true) => Resumption::Paused,
            (false, false) => Resumption::AsSaved,
        }
    }
}

/// A document from a file, if one is named.
fn optional_document(context: &Context, file: Option<&PathBuf>) -> Result<Option<String>> {
    let Some(file) = file else { return Ok(None) };
    let text = document::read(file)?;
    document::parse::<Domain>(context, &text, false)?;
    Ok(Some(text))
}

/// Save a running domain's memory to a file, and end it
#[derive(Args, Debug)]
pub(super) struct Save {
    #[command(flatten)]
    target: Target,
    /// The file, which is replaced when all is written
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// A document to keep in the file in place of the domain's own
    #[arg(long, value_name = "FILE")]
    xml: Option<PathBuf>,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for Save {
    const NAME: &'static str = "save";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] =
        &[example("Save it and end it", "cenote save web web.save")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let document = optional_document(context, self.xml.as_ref())?;
        let file = self.file.display();
        let plan = Plan::new(Self::NAME, &info.name)
            .change_with(
                "save the memory of domain",
                &info.name,
                format!("to {file}"),
            )
            .change("end domain", &info.name);
        let resumption = self.choice.resumption();
        if context.consent.dry_run {
            node.domain_save(&info.uuid, &self.file, resumption, document.as_deref())?;
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.domain_save(&info.uuid, &self.file, resumption, document.as_deref())?;
        let message = format!("Domain '{}' saved to {file}", info.name);
        context.done(&Done::new("domain", "saved", &info.name, message).at(file.to_string()))
    }
}

/// Start a domain from a file that 'save' wrote; the file stays
#[derive(Args, Debug)]
pub(super) struct Restore {
    /// The file
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// A document to use in place of the one in the file
    #[arg(long, value_name = "FILE")]
    xml: Option<PathBuf>,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for Restore {
    const NAME: &'static str = "restore";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Go on where it was saved",
        "cenote restore web.save",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let document = optional_document(context, self.xml.as_ref())?;
        let file = self.file.display().to_string();
        let resumption = self.choice.resumption();
        let restore = || node.domain_restore(&self.file, resumption, document.as_deref());
        if context.consent.dry_run {
            restore()?;
        }
        if !context
            .go_on(&Plan::new(Self::NAME, &file).change("start the domain saved in", &file))?
        {
            return Ok(());
        }
        let started = restore()?;
        for note in &started.notes {
            context.note(&format!("note: {note}"));
        }
        let message = format!("Domain restored from {file}");
        context.done(&Done::new("domain", "restored", started.name, message))
    }
}

/// Save a running domain where its next start finds it, and end it
#[derive(Args, Debug)]
pub(super) struct ManagedSave {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for ManagedSave {
    const NAME: &'static str = "managedsave";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Put it to sleep until its next start",
        "cenote managedsave web",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let resumption = self.choice.resumption();
        if context.consent.dry_run {
            // Nothing is saved by a node that is a copy.
            node.domain_managed_save(&info.uuid, resumption)?;
        }
        let plan = Plan::new(Self::NAME, &info.name)
            .change("save the memory of domain", &info.name)
            .change("end domain", &info.name);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        node.domain_managed_save(&info.uuid, resumption)?;
        let message = format!("Domain '{}' state saved", info.name);
        context.done(&Done::new("domain", "saved", &info.name, message))
    }
}

/// Throw a managed save away; the next start is from nothing
#[derive(Args, Debug)]
pub(super) struct ManagedSaveRemove {
    #[command(flatten)]
    target: Target,
}

impl Verb for ManagedSaveRemove {
    const NAME: &'static str = "managedsave-remove";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Forget the saved memory",
        "cenote managedsave-remove web",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let plan = Plan::new(Self::NAME, &info.name)
            .change("throw away the managed save of domain", &info.name);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let (name, there) = node.domain_managed_save_remove(&info.uuid)?;
        let (result, message) = if there {
            (
                "removed",
                format!("Removed managedsave image for domain '{name}'"),
            )
        } else {
            (
                "unchanged",
                format!("Domain '{name}' has no manage save image; removal skipped"),
            )
        };
        context.done(&Done::new("domain", result, name, message))
    }
}

/// Print the document of a managed save
#[derive(Args, Debug)]
pub(super) struct ManagedSaveDumpXml {
    #[command(flatten)]
    target: Target,
    /// With passwords
    #[arg(long)]
    security_info: bool,
}

impl Verb for ManagedSaveDumpXml {
    const NAME: &'static str = "managedsave-dumpxml";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] =
        &[example("What will go on", "cenote managedsave-dumpxml web")];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let file = node.domain_managed_save_file(&info.uuid)?;
        out::write(&node.saved_document(&file, self.security_info)?)
    }
}

/// Put another document into a managed save
#[derive(Args, Debug)]
pub(super) struct ManagedSaveDefine {
    #[command(flatten)]
    target: Target,
    /// The document
    #[arg(value_hint = clap::ValueHint::FilePath)]
    xml: PathBuf,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for ManagedSaveDefine {
    const NAME: &'static str = "managedsave-define";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Let it go on paused",
        "cenote managedsave-define web web.xml --paused",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let file = node.domain_managed_save_file(&info.uuid)?;
        let saying = format!("Managed save state file of domain '{}' updated.", info.name);
        let image = Image {
            context,
            node,
            file: &file,
            name: info.name,
        };
        image.define(Self::NAME, &self.xml, self.choice.resumption(), saying)
    }
}

/// Edit the document of a managed save in $VISUAL, $EDITOR or vi
#[derive(Args, Debug)]
pub(super) struct ManagedSaveEdit {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for ManagedSaveEdit {
    const NAME: &'static str = "managedsave-edit";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Change what will go on",
        "cenote managedsave-edit web",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let file = node.domain_managed_save_file(&info.uuid)?;
        let image = Image {
            context,
            node,
            file: &file,
            name: info.name,
        };
        image.edit(Self::NAME, self.choice.resumption())
    }
}

/// Print the document of a domain saved in a file
#[derive(Args, Debug)]
pub(super) struct SaveImageDumpXml {
    /// The file
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// With passwords
    #[arg(long)]
    security_info: bool,
}

impl Verb for SaveImageDumpXml {
    const NAME: &'static str = "save-image-dumpxml";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "What a file holds",
        "cenote save-image-dumpxml web.save",
    )];

    fn run(self, context: &Context) -> Result<()> {
        out::write(
            &context
                .node()?
                .saved_document(&self.file, self.security_info)?,
        )
    }
}

/// Put another document into a file that 'save' wrote
#[derive(Args, Debug)]
pub(super) struct SaveImageDefine {
    /// The file
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// The document
    #[arg(value_hint = clap::ValueHint::FilePath)]
    xml: PathBuf,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for SaveImageDefine {
    const NAME: &'static str = "save-image-define";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Restore it paused",
        "cenote save-image-define web.save web.xml --paused",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let name = self.file.display().to_string();
        let saying = format!("State file {name} updated.");
        let image = Image {
            context,
            node: context.node()?,
            file: &self.file,
            name,
        };
        image.define(Self::NAME, &self.xml, self.choice.resumption(), saying)
    }
}

/// Edit the document in a file that 'save' wrote, in $VISUAL, $EDITOR or vi
#[derive(Args, Debug)]
pub(super) struct SaveImageEdit {
    /// The file
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    choice: ResumptionChoice,
}

impl Verb for SaveImageEdit {
    const NAME: &'static str = "save-image-edit";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Change what a file holds",
        "cenote save-image-edit web.save",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let image = Image {
            context,
            node: context.node()?,
            file: &self.file,
            name: self.file.display().to_string(),
        };
        image.edit(Self::NAME, self.choice.resumption())
    }
}

/// A saved domain whose document is to be changed.
struct Image<'a> {
    context: &'a Context,
    node: Node,
    file: &'a Path,
    name: String,
}

impl Image<'_> {
    fn define(
        &self,
        verb: &str,
        xml: &PathBuf,
        resumption: Resumption,
        saying: String,
    ) -> Result<()> {
        let text = optional_document(self.context, Some(xml))?;
        if self.context.consent.dry_run {
            self.node
                .define_saved(self.file, text.as_deref(), resumption)?;
        }
        let plan = Plan::new(verb, &self.name)
            .change("replace the document in", self.file.display().to_string());
        if !self.context.go_on(&plan)? {
            return Ok(());
        }
        self.node
            .define_saved(self.file, text.as_deref(), resumption)?;
        self.context
            .done(&Done::new("domain", "changed", &self.name, saying))
    }

    fn edit(&self, verb: &str, resumption: Resumption) -> Result<()> {
        let original = self.node.saved_document(self.file, true)?;
        let plan = Plan::new(verb, &self.name).change(
            "open in an editor, then replace, the document in",
            self.file.display().to_string(),
        );
        if !self.context.go_on(&plan)? {
            return Ok(());
        }
        let edited = document::edit(&original, |text| {
            document::parse::<Domain>(self.context, text, false)?;
            Ok(self.node.define_saved(self.file, Some(text), resumption)?)
        })?;
        let (result, message) = match edited {
            Some(()) => ("edited", "State file edited."),
            None => {
                self.node.define_saved(self.file, None, resumption)?;
                ("unchanged", "Saved image XML configuration not changed.")
            }
        };
        self.context
            .done(&Done::new("domain", result, &self.name, message))
    }
}
