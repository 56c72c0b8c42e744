//! What a user reads when a command fails: what happened, why, how to fix it and what to type next.

use std::error::Error as StdError;
use std::fmt::Write as _;

use anstream::adapter::strip_str;
use serde::Serialize;

use crate::exit::Exit;
use crate::explain::Code;

/// A failed command, ready to be shown.
///
/// Every failure carries a [`Code`], whose page `cenote explain` prints and which fixes the exit
/// code, so that one mistake always ends the same way.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    what: String,
    why: Option<String>,
    fix: Option<String>,
    next: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    exit: Option<Exit>,
}

/// The same as data, for callers that asked for JSON or YAML.
#[derive(Serialize)]
struct Data<'a> {
    error: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    code: &'a str,
    exit: u8,
    what: &'a str,
    why: Option<&'a str>,
    fix: Option<&'a str>,
    next: Option<&'a str>,
}

impl Failure {
    /// A failure that says only what happened; add the rest with the other methods.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            why: None,
            fix: None,
            next: None,
            source: None,
            exit: None,
        }
    }

    /// The reason.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// What the user can change so that it works.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// The command to type next, complete.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// The error below, shown as the reason when none was given, and in full by `--debug`.
    #[must_use]
    pub fn source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Another exit code than the error code's, where the cause decides it.
    #[must_use]
    pub const fn exit_with(mut self, exit: Exit) -> Self {
        self.exit = Some(exit);
        self
    }

    /// The error code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// The exit code, by default the one that belongs to the error code.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.exit.unwrap_or_else(|| self.code.exit())
    }

    /// What happened, in one line.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The message for a person, in colour; `debug` adds the chain of causes.
    #[must_use]
    pub fn render(&self, debug: bool) -> String {
        let mut text = String::new();
        let (red, bold, plain) = ("\u{1b}[1;31m", "\u{1b}[1m", "\u{1b}[0m");
        let _ = writeln!(
            text,
            "{red}error[{}]{plain}: {bold}{}{plain}",
            self.code,
            clean(&self.what)
        );
        let why = self.why.clone().or_else(|| {
            let source = self.source.as_ref()?;
            Some(source.to_string()).filter(|why| !self.what.contains(why.as_str()))
        });
        let rest = [("why", &why), ("fix", &self.fix), ("next", &self.next)];
        for (label, value) in rest {
            if let Some(value) = value {
                let value = clean(value).replace('\n', "\n        ");
                let _ = writeln!(text, "  {bold}{label}{plain}: {value}");
            }
        }
        if debug {
            let mut cause: Option<&(dyn StdError + 'static)> =
                self.source.as_ref().map(|source| source.as_ref() as _);
            let mut depth = 0_u32;
            while let Some(error) = cause {
                let _ = writeln!(text, "  cause {depth}: {}", clean(&error.to_string()));
                cause = error.source();
                depth = depth.saturating_add(1);
            }
        }
        let _ = writeln!(text, "  (more: cenote explain {})", self.code);
        text
    }

    /// The same as a JSON document in one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        let source = self.source.as_ref().map(ToString::to_string);
        let data = Data {
            error: Fields {
                code: self.code.as_str(),
                exit: self.exit().code(),
                what: &self.what,
                why: self.why.as_deref().or(source.as_deref()),
                fix: self.fix.as_deref(),
                next: self.next.as_deref(),
            },
        };
        serde_json::to_string(&data).unwrap_or_default()
    }
}

/// Takes terminal control sequences out of text that may come from a file name or a document.
fn clean(text: &str) -> String {
    let stripped = strip_str(text).to_string();
    stripped
        .chars()
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// The result of everything that can end a command.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_fix_and_next() {
        let failure = Failure::new(Code::E0301, "no volume 'x'")
            .why("pool 'default' has none of that name")
            .fix("use one of its volumes")
            .next("cenote vol-list default");
        let text = strip_str(&failure.render(false)).to_string();
        assert_eq!(
            text,
            "error[E0301]: no volume 'x'\n  why: pool 'default' has none of that name\n  \
             fix: use one of its volumes\n  next: cenote vol-list default\n  \
             (more: cenote explain E0301)\n"
        );
    }

    #[test]
    fn names_cannot_send_control_sequences_to_the_terminal() {
        let failure = Failure::new(Code::E0301, "no volume '\u{1b}[2Jx\u{7}'");
        let text = strip_str(&failure.render(false)).to_string();
        assert!(!text.contains('\u{7}'), "{text:?}");
        assert!(!failure.render(false).contains("[2J"));
    }

    #[test]
    fn debug_shows_each_cause() {
        let inner = std::io::Error::other("disk on fire");
        let text = Failure::new(Code::E0101, "cannot read")
            .source(inner)
            .render(true);
        assert!(text.contains("cause 0: disk on fire"), "{text}");
    }
}
