//! Shell completion with the names of real pools and volumes.
//!
//! The script that `cenote completions bash` prints calls the program back with `COMPLETE=bash`;
//! the program then answers with the words that fit. It only reads the node: a key press must not
//! change anything, so nothing is made, started or repaired.

use std::ffi::OsStr;
use std::path::PathBuf;

use cenote_engine::{Node, NodeOptions};
use clap_complete::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};

use crate::explain::Code;
use crate::failure::{Failure, Result};

/// The variable by which the script asks.
const VARIABLE: &str = "COMPLETE";

/// Answers and ends the program when a shell asks for completions; else returns.
pub fn answer_shell() {
    if std::env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(crate::command)
            .var(VARIABLE)
            .bin("cenote")
            .complete();
    }
}

/// The script that a shell sources.
///
/// # Errors
/// The shell is unknown.
pub fn script(shell: &str) -> Result<String> {
    let shells = Shells::builtins();
    let unknown = || {
        Failure::new(
            Code::E0002,
            format!("there are no completions for '{shell}'"),
        )
        .fix("use one of: bash, zsh, fish")
        .next("cenote completions bash")
    };
    let completer = shells.completer(shell).ok_or_else(unknown)?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "cenote", "cenote", "cenote", &mut script)
        .map_err(|error| Failure::new(Code::E0101, "cannot write the script").source(error))?;
    String::from_utf8(script)
        .map_err(|error| Failure::new(Code::E0001, "the script is not text").source(error))
}

/// Names of all pools.
#[must_use]
pub fn pools() -> Vec<CompletionCandidate> {
    let Some(node) = node() else {
        return Vec::new();
    };
    let pools = node.pools().unwrap_or_default();
    pools
        .into_iter()
        .map(|pool| candidate(pool.name, pool.kind))
        .collect()
}

/// Names of all domains.
#[must_use]
pub fn domains() -> Vec<CompletionCandidate> {
    let Some(node) = node() else {
        return Vec::new();
    };
    let domains = node.domains().unwrap_or_default();
    domains
        .into_iter()
        .map(|domain| candidate(domain.name, domain.state.to_string()))
        .collect()
}

/// Names of all volumes in active pools, or in the pool that the line names.
#[must_use]
pub fn volumes() -> Vec<CompletionCandidate> {
    let Some(node) = node() else {
        return Vec::new();
    };
    let wanted = option_on_line("--pool");
    let mut found = Vec::new();
    for pool in node.pools().unwrap_or_default() {
        if wanted
            .as_deref()
            .is_some_and(|wanted| OsStr::new(&pool.name) != wanted)
        {
            continue;
        }
        for volume in node.volumes(&pool.name).unwrap_or_default() {
            found.push(candidate(volume.name, format!("in {}", pool.name)));
        }
    }
    found
}

fn candidate(name: String, help: String) -> CompletionCandidate {
    CompletionCandidate::new(name).help(Some(help.into()))
}

/// The node of the line being completed, only if it exists.
fn node() -> Option<Node> {
    let state_dir = option_on_line("--state-dir")
        .or_else(|| std::env::var_os("CENOTE_STATE_DIR"))
        .map(PathBuf::from);
    let options = NodeOptions {
        state_dir,
        read_only: true,
        ..NodeOptions::default()
    };
    Node::open(&options).ok()
}

/// The value of an option among the words that the shell passed on.
fn option_on_line(option: &str) -> Option<std::ffi::OsString> {
    let words: Vec<_> = std::env::args_os().collect();
    let with_equals = format!("{option}=");
    words.iter().enumerate().find_map(|(index, word)| {
        if word == option {
            return words.get(index + 1).cloned();
        }
        let value = word.to_str()?.strip_prefix(&with_equals)?;
        Some(value.into())
    })
}
