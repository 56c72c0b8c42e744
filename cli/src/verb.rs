//! One command: its name, options, examples and deed; and the table they are all in.
//!
//! `vol-wipe` and `vol wipe` are built from the same entry, so that they cannot differ.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::consent::Consent;
use crate::context::Context;
use crate::failure::Result;
use crate::globals::Globals;

/// The nouns whose verbs have a second spelling with a space.
pub const NOUNS: [(&str, &str); 4] = [
    ("pool", "Storage pools: places that hold volumes"),
    ("vol", "Volumes: disks in pools, their chains and snapshots"),
    ("job", "Long operations, running and past"),
    ("config", "Settings and where they come from"),
];

/// An example of a command, which the test suite runs.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// What it does.
    pub what: &'static str,
    /// The line, from `cenote` on.
    pub line: &'static str,
}

/// Shorthand for tables of examples.
#[must_use]
pub const fn example(what: &'static str, line: &'static str) -> Example {
    Example { what, line }
}

/// Whether a command only reads or also changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Prints a result that docs/schemas describes; takes `--columns` and `--noheader`.
    Read,
    /// Prints a document or a stream as it is.
    Stream,
    /// Changes something; takes `--dry-run`, `--yes` and `--confirm`.
    Change,
}

/// A command.
pub trait Verb: Args {
    /// The hyphenated name, as virsh has it.
    const NAME: &'static str;
    /// What kind of command it is.
    const KIND: Kind;
    /// At least one example.
    const EXAMPLES: &'static [Example];

    /// Does it.
    ///
    /// # Errors
    /// Whatever went wrong, ready to be shown.
    fn run(self, context: &Context) -> Result<()>;
}

/// A command in the table, its type erased.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The hyphenated name.
    pub name: &'static str,
    /// What kind of command it is.
    pub kind: Kind,
    /// Its examples.
    pub examples: &'static [Example],
    augment: fn(Command) -> Command,
    run: fn(&ArgMatches, &Context) -> Result<()>,
}

impl Entry {
    /// The entry of a command.
    #[must_use]
    pub const fn of<V: Verb>() -> Self {
        Self {
            name: V::NAME,
            kind: V::KIND,
            examples: V::EXAMPLES,
            augment: V::augment_args,
            run: |matches, context| {
                let verb = V::from_arg_matches(matches).map_err(crate::usage::failure)?;
                verb.run(context)
            },
        }
    }

    /// Noun and action of the spelling with a space, where there is one.
    #[must_use]
    pub fn spaced(&self) -> Option<(&'static str, &'static str)> {
        let (noun, action) = self.name.split_once('-')?;
        NOUNS
            .iter()
            .any(|(known, _)| *known == noun)
            .then_some((noun, action))
    }

    /// The command for clap, under `name`: the hyphenated name or the action alone.
    #[must_use]
    pub fn command(&self, name: &'static str) -> Command {
        let mut command = (self.augment)(Command::new(name));
        command = match self.kind {
            Kind::Read => command.args(shape_arguments()),
            Kind::Stream => command,
            Kind::Change => Consent::augment_args(command),
        };
        // Both spellings show the same usage, that of the hyphenated one.
        let named = command
            .clone()
            .name(self.name)
            .bin_name(format!("cenote {}", self.name));
        let usage = Globals::augment_args(named).render_usage().to_string();
        let usage = usage.trim_start_matches("Usage:").trim().to_owned();
        command
            .override_usage(usage)
            .after_help(examples_text(self.examples))
            .help_template(TEMPLATE)
    }

    /// Runs the command with what clap read.
    ///
    /// # Errors
    /// What the command fails with.
    pub fn run(&self, matches: &ArgMatches, context: &Context) -> Result<()> {
        (self.run)(matches, context)
    }
}

/// Examples stand before the options.
const TEMPLATE: &str = "{about-with-newline}\n{usage-heading} {usage}{after-help}\n\n{all-args}";

fn examples_text(examples: &[Example]) -> String {
    let mut text = String::from("Examples:");
    for example in examples {
        text.push_str(&format!("\n  # {}\n  {}", example.what, example.line));
    }
    text
}

/// `--columns` and `--noheader` of reading commands.
fn shape_arguments() -> [Arg; 2] {
    [
        Arg::new("columns")
            .long("columns")
            .value_name("KEY,...")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("Print only these columns, by the names the JSON document uses"),
        Arg::new("noheader")
            .long("noheader")
            .action(ArgAction::SetTrue)
            .help("Print tables without their header"),
    ]
}

/// What the shared arguments say.
pub(crate) struct Shared {
    pub(crate) consent: Consent,
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) noheader: bool,
}

impl Shared {
    pub(crate) fn of(kind: Kind, matches: &ArgMatches) -> Result<Self> {
        let mut shared = Self {
            consent: Consent::default(),
            columns: None,
            noheader: false,
        };
        match kind {
            Kind::Change => {
                shared.consent =
                    Consent::from_arg_matches(matches).map_err(crate::usage::failure)?;
            }
            Kind::Read => {
                let keys = matches.get_many::<String>("columns");
                shared.columns = keys.map(|keys| keys.cloned().collect());
                shared.noheader = matches.get_flag("noheader");
            }
            Kind::Stream => {}
        }
        Ok(shared)
    }
}
