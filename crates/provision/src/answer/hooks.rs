//! Lines added to an answer file that report how the install went.
//!
//! A report is one line with a token of this install. It goes to a virtio port that the domain
//! has in its first phase, else to the first serial line.

use thiserror::Error as ThisError;

use super::preseed::after_fields;

/// Name of the virtio port that reports are written to.
pub const MARKER_PORT: &str = "org.cenote.install.0";

/// A token that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[error("a token has 8 to 64 letters and digits")]
pub struct TokenError;

/// What reports of an install look like.
#[derive(Clone, PartialEq, Eq)]
pub struct Hooks {
    token: String,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks(…)")
    }
}

impl Hooks {
    /// Reports with a token.
    ///
    /// # Errors
    /// [`TokenError`] unless it has 8 to 64 letters and digits.
    pub fn new(token: &str) -> Result<Self, TokenError> {
        let plain = token.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain || !(8..=64).contains(&token.len()) {
            return Err(TokenError);
        }
        Ok(Self {
            token: token.to_owned(),
        })
    }

    /// The line that reports success.
    pub fn success(&self) -> String {
        format!("CENOTE-INSTALL {} success", self.token)
    }

    /// The line that reports failure.
    pub fn failure(&self) -> String {
        format!("CENOTE-INSTALL {} failure", self.token)
    }

    /// A shell command that writes a line to the first place there is. It has no quotes, so
    /// that it stands in any file; a port that nobody reads must not hold the installer up,
    /// which is why it is opened for reading too.
    fn command(line: &str) -> String {
        format!(
            "for p in /dev/virtio-ports/{MARKER_PORT} /dev/ttyS0; do \
             if [ -c $p ]; then echo {line} 1<>$p; break; fi; done"
        )
    }

    fn success_command(&self) -> String {
        Self::command(&self.success())
    }

    fn failure_command(&self) -> String {
        Self::command(&self.failure())
    }

    /// The kickstart file with reports added, in sections at its end: the last `%post` runs
    /// after all others.
    #[must_use]
    pub fn add_to_kickstart(&self, text: &str) -> String {
        let end = if text.ends_with('\n') || text.is_empty() {
            ""
        } else {
            "\n"
        };
        format!(
            "{text}{end}\n%onerror\n{}\n%end\n\n%post --nochroot --erroronfail\n{}\n%end\n",
            self.failure_command(),
            self.success_command(),
        )
    }

    /// The preseed file with reports added. The late command is one answer: what the file has
    /// runs first, and only its success is reported as one.
    #[must_use]
    pub fn add_to_preseed(&self, text: &str) -> String {
        const QUESTION: &str = "preseed/late_command";
        let mut kept = String::new();
        let mut own = String::new();
        let mut joining = false;
        for line in text.lines() {
            let late = line.split_whitespace().nth(1) == Some(QUESTION)
                && !line.trim_start().starts_with('#');
            if !joining && !late {
                kept.push_str(line);
                kept.push('\n');
                continue;
            }
            let continued = line.trim_end().strip_suffix('\\');
            let part = continued.unwrap_or(line);
            if joining {
                own.push(' ');
                own.push_str(part.trim());
            } else {
                // A later answer replaces an earlier one.
                own = after_fields(part, 3).trim_end().to_owned();
            }
            joining = continued.is_some();
        }
        let own = own.trim().trim_end_matches(';').trim_end();
        let (success, failure) = (self.success_command(), self.failure_command());
        let command = match own {
            "" => success,
            own => format!("if ( {own} ); then {success}; else {failure}; exit 1; fi"),
        };
        format!("{kept}d-i {QUESTION} string {command}\n")
    }
}
