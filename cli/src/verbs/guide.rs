//! `help`, `explain`, `completions` and `man`.

use std::path::PathBuf;

use clap::Args;

use crate::completion;
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::help::{self, TOPICS};
use crate::verb::{Example, Kind, Verb, example};
use crate::view::ErrorPage;
use crate::{man, out, suggest, verbs};

/// Show help for a command or a topic
#[derive(Args, Debug)]
pub(super) struct Help {
    /// A command in either spelling, or a topic
    #[arg(value_name = "COMMAND-OR-TOPIC")]
    words: Vec<String>,
}

impl Verb for Help {
    const NAME: &'static str = "help";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example("What the words mean", "cenote help terms"),
        example("What the exit codes mean", "cenote help exit-codes"),
        example("Help for a command", "cenote help config show"),
    ];

    fn run(self, _context: &Context) -> Result<()> {
        if self.words.is_empty() {
            let text = crate::command().render_help().to_string();
            return out::write(&text);
        }
        let name = self.words.join("-");
        if let Some(text) = help::topic(&name) {
            return out::write(&text);
        }
        let mut root = crate::command();
        root.build();
        let path: Vec<&str> = match verbs::find(&name) {
            Some(_) => vec![&name],
            None => self.words.iter().map(String::as_str).collect(),
        };
        let mut command = &mut root;
        for word in path {
            command = match command.find_subcommand_mut(word) {
                Some(command) => command,
                None => return Err(unknown_topic(&name)),
            };
        }
        let text = command.render_help().to_string();
        out::write(&text)
    }
}

fn unknown_topic(name: &str) -> Failure {
    let topics = TOPICS.iter().map(|(topic, _)| *topic);
    let commands = verbs::all().iter().map(|entry| entry.name);
    let failure = Failure::new(Code::E0010, format!("there is no help on '{name}'"));
    let failure = match suggest::did_you_mean(name, topics.chain(commands)) {
        Some(near) => failure.why(near),
        None => failure,
    };
    let topics: Vec<&str> = TOPICS.iter().map(|(topic, _)| *topic).collect();
    failure
        .fix(format!(
            "the topics are: {}; every command has --help",
            topics.join(", ")
        ))
        .next("cenote --help")
}

/// Explain an error code
#[derive(Args, Debug)]
pub(super) struct Explain {
    /// The code, such as E0301
    code: String,
}

impl Verb for Explain {
    const NAME: &'static str = "explain";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "What an error means and what to do",
        "cenote explain E0301",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let Some(code) = Code::parse(&self.code) else {
            let first = Code::ALL
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            let last = Code::ALL
                .last()
                .map(ToString::to_string)
                .unwrap_or_default();
            return Err(
                Failure::new(Code::E0010, format!("there is no error '{}'", self.code))
                    .why(format!("the codes go from {first} to {last}"))
                    .fix("copy the code from the message, between the brackets")
                    .next("cenote explain E0010"),
            );
        };
        context.print(&ErrorPage {
            code: code.to_string(),
            exit: code.exit().code(),
            title: code.title().to_owned(),
            text: code.page().to_owned(),
        })
    }
}

/// Print the completion script of a shell
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// bash, zsh or fish
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

impl Verb for Completions {
    const NAME: &'static str = "completions";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[
        example(
            "For bash, in ~/.bashrc: source <(cenote completions bash)",
            "cenote completions bash",
        ),
        example(
            "For zsh, in ~/.zshrc: source <(cenote completions zsh)",
            "cenote completions zsh",
        ),
    ];

    fn run(self, _context: &Context) -> Result<()> {
        out::write(&completion::script(&self.shell)?)
    }
}

/// Write the man pages into a folder
#[derive(Args, Debug)]
pub(super) struct ManPages {
    /// The folder; it is made when it does not exist
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    folder: PathBuf,
}

impl Verb for ManPages {
    const NAME: &'static str = "man";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "Write the pages, then read one: man -l man1/cenote.1",
        "cenote man man1",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let pages = man::write_pages(&self.folder).map_err(|error| {
            let folder = self.folder.display();
            Failure::new(
                Code::E0101,
                format!("cannot write man pages into '{folder}'"),
            )
            .fix("name a folder you may write")
            .next("cenote man ./man1")
            .source(error)
        })?;
        let folder = self.folder.display();
        context.note(&format!("{} pages written into {folder}", pages.len()));
        Ok(())
    }
}
