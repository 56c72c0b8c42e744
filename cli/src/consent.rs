//! Before something is destroyed: who has to agree, and how.
//!
//! Three levels. Most commands ask nothing. Those that lose data that exists nowhere else ask
//! `[y/N]`. Those that leave nothing to recover want the object's name typed. Without a terminal
//! they refuse, unless the command line carries the agreement.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;

use crate::explain::Code;
use crate::failure::{Failure, Result};

/// How much agreement a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// None.
    None,
    /// `[y/N]`, or `--yes`.
    Ask,
    /// The name typed, or `--confirm NAME`.
    TypeName,
}

// What the command line says about agreement; part of every command that changes something.
#[allow(
    missing_docs,
    reason = "clap would make a doc comment the description of every such command"
)]
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Change options")]
pub struct Consent {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Answer yes where the command would ask
    #[arg(short = 'y', long)]
    pub yes: bool,

    /// Agree to a command that wants a name typed, by giving that name
    #[arg(long, value_name = "NAME")]
    pub confirm: Option<String>,
}

impl Consent {
    /// Returns when the user agrees to `deed` (such as "delete volume a.img") on `name`.
    ///
    /// # Errors
    /// The user declined, or there was no terminal to ask on.
    pub fn require(&self, level: Level, deed: &str, name: &str) -> Result<()> {
        if let Some(given) = &self.confirm {
            return if given == name {
                Ok(())
            } else {
                Err(declined(deed).why(format!("--confirm says '{given}', the name is '{name}'")))
            };
        }
        match level {
            Level::None => Ok(()),
            Level::Ask if self.yes => Ok(()),
            Level::Ask => {
                let answer = ask(
                    deed,
                    "add --yes",
                    &format!("About to {deed}. Go on? [y/N] "),
                )?;
                match answer.trim().to_lowercase().as_str() {
                    "y" | "yes" => Ok(()),
                    _ => Err(declined(deed).why("the answer was not yes")),
                }
            }
            Level::TypeName => {
                let prompt =
                    format!("About to {deed}. This cannot be undone.\nType '{name}' to go on: ");
                let remedy = format!("add --confirm {}", crate::out::quoted(name));
                let answer = ask(deed, &remedy, &prompt)?;
                if answer.trim_end_matches(['\n', '\r']) == name {
                    Ok(())
                } else {
                    Err(declined(deed).why("what was typed is not the name"))
                }
            }
        }
    }
}

fn declined(deed: &str) -> Failure {
    Failure::new(Code::E0007, format!("did not {deed}"))
        .fix("nothing was changed; run it again to be asked again")
        .next("run the same command with --dry-run to see what it would do")
}

/// Asks on the terminal.
fn ask(deed: &str, remedy: &str, prompt: &str) -> Result<String> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(
            Failure::new(Code::E0008, format!("will not {deed} without confirmation"))
                .why("there is no terminal to ask on")
                .fix(format!("{remedy} if that is what you want"))
                .next("run the same command with --dry-run to see what it would do"),
        );
    }
    let mut stderr = io::stderr();
    let mut answer = String::new();
    let read = write!(stderr, "{prompt}")
        .and_then(|()| stderr.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    match read {
        Ok(_) => Ok(answer),
        Err(error) => Err(declined(deed).source(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consent(yes: bool, confirm: Option<&str>) -> Consent {
        Consent {
            dry_run: false,
            yes,
            confirm: confirm.map(str::to_owned),
        }
    }

    #[test]
    fn three_levels() {
        // A test has no terminal on standard input and error alike, so nothing can be asked.
        let table = [
            (Level::None, false, None, true),
            (Level::None, false, Some("other"), false),
            (Level::Ask, false, None, false),
            (Level::Ask, true, None, true),
            (Level::Ask, false, Some("disk"), true),
            (Level::Ask, true, Some("other"), false),
            (Level::TypeName, false, None, false),
            (Level::TypeName, true, None, false),
            (Level::TypeName, false, Some("disk"), true),
            (Level::TypeName, true, Some("other"), false),
        ];
        for (level, yes, confirm, agreed) in table {
            if level != Level::None && confirm.is_none() && io::stdin().is_terminal() {
                continue;
            }
            let result = consent(yes, confirm).require(level, "wipe disk", "disk");
            assert_eq!(result.is_ok(), agreed, "{level:?} {yes} {confirm:?}");
            if let Err(failure) = result {
                assert_eq!(failure.exit(), crate::exit::Exit::Declined);
            }
        }
    }
}
