//! `edit`.

use cenote_engine::{DefineOptions, XmlOptions};
use cenote_model::domain::Domain;
use clap::Args;

use super::Target;
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::quoted;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Edit the definition of a domain in $VISUAL, $EDITOR or vi
#[derive(Args, Debug)]
pub(super) struct Edit {
    #[command(flatten)]
    target: Target,
    /// Keep without effect what is not known, instead of asking to edit again
    #[arg(long)]
    skip_validate: bool,
}

impl Verb for Edit {
    const NAME: &'static str = "edit";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Edit a domain; a running one changes at its next start",
            "cenote edit web",
        ),
        example(
            "Change memory by a script",
            "EDITOR='sed -i s/524288/786432/' cenote edit web",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let info = context.domain(&node, &self.target.domain)?;
        let plan = Plan::new(Self::NAME, &info.name).change(
            "open in an editor, then replace, the definition of domain",
            &info.name,
        );
        if !context.go_on(&plan)? {
            return Ok(());
        }
        if !info.persistent {
            return Err(
                cenote_engine::Error::from(cenote_engine::DomainError::InvalidOperation {
                    domain: info.name.clone(),
                    reason: "transient domains do not have any persistent config".to_owned(),
                    hint: None,
                })
                .into(),
            );
        }
        let options = XmlOptions {
            inactive: true,
            secure: true,
            ..XmlOptions::default()
        };
        let original = node.domain_xml(&info.uuid, options)?;
        let edited = document::edit_or_force(&original, |text, forced| {
            let strict = !self.skip_validate && !forced;
            let document: Domain = document::parse(context, text, strict)?;
            let same = document
                .uuid
                .is_none_or(|uuid| uuid.to_string() == info.uuid);
            if document.name.as_str() != info.name || !same {
                return Err(Failure::new(
                    Code::E0502,
                    "the name or UUID of a domain cannot be edited",
                )
                .fix("rename it, or define another one")
                .next(format!("cenote domrename {} NEW-NAME", quoted(&info.name))));
            }
            Ok(node.domain_define(text, DefineOptions { replace: true })?)
        })?;
        let (result, message) = match edited {
            Some(_) => (
                "edited",
                format!("Domain '{}' XML configuration edited.", info.name),
            ),
            None => (
                "unchanged",
                format!("Domain '{}' XML configuration not changed.", info.name),
            ),
        };
        context.done(&Done::new("domain", result, &info.name, message))
    }
}
