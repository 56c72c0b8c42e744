//! `desc` and `metadata`: words for people and programs in a domain's document.

use clap::Args;

use super::{ScopeChoice, Target};
use crate::context::Context;
use crate::document;
use crate::failure::Result;
use crate::out;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Show or set the description or title of a domain
#[derive(Args, Debug)]
pub(super) struct Desc {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    scope: ScopeChoice,
    /// The title instead of the description
    #[arg(long)]
    title: bool,
    /// Edit it in $VISUAL, $EDITOR or vi
    #[arg(long)]
    edit: bool,
    /// The new text; one empty word removes it
    #[arg(long = "new-desc", value_name = "TEXT")]
    option: Option<String>,
    /// The new text, word for word
    #[arg(value_name = "TEXT", conflicts_with = "option")]
    words: Vec<String>,
}

impl Verb for Desc {
    const NAME: &'static str = "desc";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example("Show the description", "cenote desc web"),
        example("Set the title", "cenote desc web --title 'The shop'"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let what = if self.title { "title" } else { "description" };
        let document = node.scoped_document(&info.uuid, self.scope.scope_to_read())?;
        let present = if self.title {
            document.title
        } else {
            document.description
        };
        let given = (!self.words.is_empty()).then(|| self.words.join(" "));
        let text = match self.option.clone().or(given) {
            Some(text) => Some(text),
            None if self.edit => {
                let original = present.clone().unwrap_or_default() + "\n";
                document::edit(&original, |text| Ok(text.trim_end().to_owned()))?
            }
            None => {
                return out::write(&match present {
                    Some(text) => format!("{text}\n"),
                    None => format!("No {what} for domain: {}\n", info.name),
                });
            }
        };
        let Some(text) = text else {
            let message = format!("Domain {what} not changed");
            return context.done(&Done::new("domain", "unchanged", &info.name, message));
        };
        let text = Some(text.as_str()).filter(|text| !text.is_empty());
        let scope = self.scope.scope();
        let apply = || {
            if self.title {
                node.domain_set_title(&info.uuid, scope, text)
            } else {
                node.domain_set_description(&info.uuid, scope, text)
            }
        };
        if context.consent.dry_run {
            apply()?;
        }
        let action = format!("set the {what} of domain");
        if !context.go_on(&Plan::new(Self::NAME, &info.name).change(&action, &info.name))? {
            return Ok(());
        }
        apply()?;
        let message = format!("Domain {what} updated successfully");
        context.done(&Done::new("domain", "changed", &info.name, message))
    }
}

/// Show, set or remove what a program keeps in a domain's document
#[derive(Args, Debug)]
pub(super) struct MetadataVerb {
    #[command(flatten)]
    target: Target,
    /// Namespace of the program
    uri: String,
    #[command(flatten)]
    scope: ScopeChoice,
    /// Edit it in $VISUAL, $EDITOR or vi
    #[arg(long, conflicts_with_all = ["set", "remove"])]
    edit: bool,
    /// Prefix that the namespace gets in the document
    #[arg(long, value_name = "PREFIX")]
    key: Option<String>,
    /// The new element
    #[arg(long, value_name = "XML", requires = "key")]
    set: Option<String>,
    /// Remove it
    #[arg(long, conflicts_with = "set")]
    remove: bool,
}

impl Verb for MetadataVerb {
    const NAME: &'static str = "metadata";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Keep something",
            "cenote metadata web http://example.org/owner --key owner --set '<owner>Ada</owner>'",
        ),
        example(
            "See what would be done",
            "cenote metadata web http://example.org/owner --key owner --set '<owner/>' --dry-run",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let scope = self.scope.scope();
        let present = || node.domain_metadata(&info.uuid, self.scope.scope_to_read(), &self.uri);
        let new = if self.edit {
            let original = present().unwrap_or_default();
            match document::edit(&original, |text| Ok(text.to_owned()))? {
                Some(text) => Some(text),
                None => {
                    let done = Done::new("domain", "unchanged", &info.name, "Metadata not changed");
                    return context.done(&done);
                }
            }
        } else if self.remove {
            None
        } else {
            match self.set.clone() {
                Some(text) => Some(text),
                None => return out::write(&present()?),
            }
        };
        let apply = || {
            let (prefix, new) = (self.key.as_deref(), new.as_deref());
            node.domain_set_metadata(&info.uuid, scope, &self.uri, prefix, new)
        };
        if context.consent.dry_run {
            apply()?;
        }
        let (action, message) = match new {
            Some(_) => ("set metadata of domain", "Metadata modified"),
            None => ("remove metadata of domain", "Metadata removed"),
        };
        let plan = Plan::new(Self::NAME, &info.name).change_with(action, &info.name, &self.uri);
        if !context.go_on(&plan)? {
            return Ok(());
        }
        apply()?;
        context.done(&Done::new("domain", "changed", &info.name, message))
    }
}
