//! `cenote`, the command line, as a library for its binary, its tests and the generators of man
//! pages and completions.
//!
//! # What it is for
//! It turns words into calls of [`cenote_engine`] and results into text. Each command is one
//! [`verb::Verb`] in the table of [`verbs`]; `vol-info` and `vol info` come from the same entry.
//!
//! # What it promises
//! - Data goes to standard output, messages and progress to standard error.
//! - The exit codes of [`exit::Exit`] and the error codes of [`explain::Code`] keep their meaning.
//! - Every reading command prints JSON that a schema in `docs/schemas` describes.
//! - `--dry-run` touches nothing, and nothing is destroyed without agreement.
//!
//! # What it must never do
//! Hold logic about pools, volumes or images (the engine has it), run a command that was only
//! nearly typed, or print a panic.

pub mod argv;
pub mod completion;
pub mod consent;
pub mod context;
pub mod doctor;
pub mod exit;
pub mod explain;
pub mod failure;
pub mod globals;
pub mod help;
pub mod interrupt;
pub mod man;
pub mod out;
pub mod plan;
pub mod progress;
pub mod settings;
pub mod suggest;
pub mod verb;
pub mod verbs;
pub mod view;

mod document;
mod duration;
mod engine_errors;
mod names;
mod usage;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::panic;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args as _, Command, FromArgMatches as _};

use crate::context::Context;
use crate::exit::Exit;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::globals::{Color, Globals, OutputFormat};
use crate::out::Output;
use crate::settings::{Settings, Sources};
use crate::verb::{Entry, NOUNS, Shared};

/// The whole command line, for parsing, completions and man pages.
#[must_use]
pub fn command() -> Command {
    let mut root = Globals::augment_args(Command::new("cenote"))
        .about("Keep, provision, run and wipe virtual machines")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .infer_subcommands(false)
        .help_template(help::TEMPLATE)
        .after_help(help::overview());
    for entry in verbs::all() {
        root = root.subcommand(entry.command(entry.name));
    }
    for (noun, about) in NOUNS {
        let mut group = Command::new(noun)
            .about(about)
            .subcommand_required(true)
            .arg_required_else_help(true)
            .disable_help_subcommand(true)
            .after_help(help::group_examples(noun));
        for entry in verbs::all() {
            if let Some((_, action)) = entry.spaced().filter(|(other, _)| *other == noun) {
                group = group.subcommand(entry.command(action));
            }
        }
        root = root.subcommand(group);
    }
    root
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    panic::set_hook(Box::new(|information| {
        let place = information.location().map(ToString::to_string);
        let failure = Failure::new(Code::E0001, "cenote has a bug and had to stop")
            .why(format!("an assumption failed at {}", place.unwrap_or_default()))
            .fix("report this with the command you typed; the node repairs itself at the next command")
            .next("cenote fsck");
        show(&failure, false, false);
    }));
    let outcome = panic::catch_unwind(|| {
        completion::answer_shell();
        main(std::env::args_os().collect())
    });
    outcome.unwrap_or(Exit::Failure).into()
}

/// Parses and runs one line.
fn main(line: Vec<OsString>) -> Exit {
    early_color(&line);
    if line.len() <= 1 {
        return finish(out::write(&help::brief()), false, false);
    }
    let mut command = command();
    command.build();
    let line = argv::positionals_by_name(&command, line);
    let json_errors = wants_json(&line);
    let debug = line.iter().any(|word| word == "--debug");
    let matches = match command.try_get_matches_from_mut(line) {
        Ok(matches) => matches,
        Err(error) => return stopped_by_clap(&error, json_errors, debug),
    };
    let (result, json, debug) = dispatch(&matches, debug);
    finish(result, json || json_errors, debug)
}

/// Finds the entry and runs it; also says how an error is to be shown.
fn dispatch(matches: &ArgMatches, debug: bool) -> (Result<()>, bool, bool) {
    let Some((entry, found)) = chosen(matches) else {
        return (Err(usage::unknown_command("")), false, debug);
    };
    let context = match context(entry, found) {
        Ok(context) => context,
        Err(failure) => return (Err(failure), false, debug),
    };
    apply_color(context.settings.color);
    start_log(&context.settings);
    let json = context.settings.output == OutputFormat::Json;
    let debug = context.settings.debug;
    (entry.run(found, &context), json, debug)
}

/// The entry for what was typed, in either spelling.
fn chosen(matches: &ArgMatches) -> Option<(&'static Entry, &ArgMatches)> {
    let (name, found) = matches.subcommand()?;
    if NOUNS.iter().any(|(noun, _)| *noun == name) {
        let (action, found) = found.subcommand()?;
        let entry = verbs::all()
            .iter()
            .find(|entry| entry.spaced() == Some((noun_of(name), action)))?;
        return Some((entry, found));
    }
    let entry = verbs::all().iter().find(|entry| entry.name == name)?;
    Some((entry, found))
}

fn noun_of(name: &str) -> &'static str {
    let found = NOUNS.iter().find(|(noun, _)| *noun == name);
    found.map_or("", |(noun, _)| noun)
}

fn context(entry: &Entry, matches: &ArgMatches) -> Result<Context> {
    let globals = Globals::from_arg_matches(matches).map_err(usage::failure)?;
    let shared = Shared::of(entry.kind, matches)?;
    let settings = Settings::resolve(&globals, shared.noheader, &Sources::of_process())?;
    Ok(Context {
        output: Output {
            format: settings.output,
            columns: shared.columns,
            noheader: settings.noheader,
        },
        consent: shared.consent,
        settings,
    })
}

/// Help and version end well; everything else is a usage error.
fn stopped_by_clap(error: &clap::Error, json: bool, debug: bool) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = if io::stdout().is_terminal() {
                error.render().ansi().to_string()
            } else {
                error.render().to_string()
            };
            let _ = write!(anstream::stdout(), "{text}");
            Exit::Ok
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(anstream::stderr(), "{}", error.render().ansi());
            Exit::Usage
        }
        _ => finish(Err(usage::failure_of(error)), json, debug),
    }
}

fn finish(result: Result<()>, json: bool, debug: bool) -> Exit {
    match result {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            show(&failure, json, debug);
            failure.exit()
        }
    }
}

/// Errors are for people, also in JSON mode, where the last line is the same as data.
fn show(failure: &Failure, json: bool, debug: bool) {
    let mut stderr = anstream::stderr();
    let _ = if json {
        writeln!(stderr, "{}", failure.to_json())
    } else {
        write!(stderr, "{}", failure.render(debug))
    };
}

/// Whether `-o json` was given, before the line could be parsed.
fn wants_json(line: &[OsString]) -> bool {
    let words: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
    words
        .iter()
        .any(|word| word == "-ojson" || word == "--output=json")
        || words
            .windows(2)
            .any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
}

/// `--color` counts for messages about the line itself, too.
fn early_color(line: &[OsString]) {
    let words: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
    let value = words.iter().enumerate().find_map(|(index, word)| {
        let next = words.get(index + 1).map(|word| word.to_string());
        match word.strip_prefix("--color=") {
            Some(value) => Some(value.to_owned()),
            None => next.filter(|_| word == "--color"),
        }
    });
    match value.as_deref() {
        Some("always") => apply_color(Color::Always),
        Some("never") => apply_color(Color::Never),
        _ => {}
    }
}

fn apply_color(color: Color) {
    let choice = match color {
        Color::Auto => return,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    };
    choice.write_global();
}

/// Logs go to standard error; `RUST_LOG` beats `-v`.
fn start_log(settings: &Settings) {
    use tracing_subscriber::EnvFilter;
    let level = match (settings.quiet, settings.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colored = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let built = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colored)
        .try_init();
    // A second subscriber in one process (tests) is no reason to stop.
    drop(built);
}
