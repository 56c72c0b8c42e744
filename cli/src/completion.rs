//! Shell completion.
//!
//! The script that `cenote completions bash` prints calls the program back with `COMPLETE=bash`;
//! the program then answers with the words that fit.

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
