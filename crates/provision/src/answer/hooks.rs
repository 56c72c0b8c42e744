//! Lines added to an answer file that report how the install went.
//!
//! A report is one line with a token of this install. It goes to a virtio port that the domain
//! has in its first phase, else to the first serial line.

use thiserror::Error as ThisError;

use super::preseed::after_fields;
use super::yaml;
use super::{Findings, Kind, cloudinit};

/// Name of the virtio port that reports are written to.
pub const MARKER_PORT: &str = "org.cenote.install.0";

/// Why an answer file was not added to.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum InstrumentError {
    /// User data that are a script or have parts.
    #[error(
        "user data that are no cloud-config are not added to; end the script with a report of \
         your own, or take the end of the install for its success"
    )]
    NotCloudConfig,
    /// It cannot be read.
    #[error("the answer file cannot be read: {0}")]
    Unreadable(String),
    /// A token that is none.
    #[error("a token has letters and digits alone")]
    Token,
}

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
    /// [`InstrumentError::Token`] unless it has 8 to 64 letters and digits.
    pub fn new(token: &str) -> Result<Self, InstrumentError> {
        let plain = token.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain || !(8..=64).contains(&token.len()) {
            return Err(InstrumentError::Token);
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
}

/// The answer file with reports added: all that it says itself stays. YAML is written anew,
/// without its comments.
///
/// # Errors
/// [`InstrumentError`].
pub fn instrument(kind: Kind, text: &str, hooks: &Hooks) -> Result<String, InstrumentError> {
    match kind {
        Kind::Kickstart => Ok(kickstart(text, hooks)),
        Kind::Preseed => Ok(preseed(text, hooks)),
        Kind::Autoinstall => autoinstall(text, hooks),
        Kind::CloudInit => cloud_init(text, hooks),
    }
}

/// Sections at the end: the last `%post` runs after all others.
fn kickstart(text: &str, hooks: &Hooks) -> String {
    let end = if text.ends_with('\n') || text.is_empty() {
        ""
    } else {
        "\n"
    };
    format!(
        "{text}{end}\n%onerror\n{}\n%end\n\n%post --nochroot --erroronfail\n{}\n%end\n",
        hooks.failure_command(),
        hooks.success_command(),
    )
}

/// The late command is one answer: what the file has runs first, and only its success is
/// reported as one.
fn preseed(text: &str, hooks: &Hooks) -> String {
    const QUESTION: &str = "preseed/late_command";
    let mut kept = String::new();
    let mut own = String::new();
    let mut joining = false;
    for line in text.lines() {
        let late =
            line.split_whitespace().nth(1) == Some(QUESTION) && !line.trim_start().starts_with('#');
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
    let (success, failure) = (hooks.success_command(), hooks.failure_command());
    let command = match own {
        "" => success,
        own => format!("if ( {own} ); then {success}; else {failure}; exit 1; fi"),
    };
    format!("{kept}d-i {QUESTION} string {command}\n")
}

fn autoinstall(text: &str, hooks: &Hooks) -> Result<String, InstrumentError> {
    let mut document = parse(text)?;
    let section = if document.get("autoinstall").is_some() {
        document.get_mut("autoinstall")
    } else {
        Some(&mut document)
    };
    let section = section.and_then(serde_norway::Value::as_mapping_mut);
    let section = section.ok_or_else(|| InstrumentError::Unreadable("no mapping".into()))?;
    append(section, "late-commands", hooks.success_command())?;
    append(section, "error-commands", hooks.failure_command())?;
    print(&document)
}

fn cloud_init(text: &str, hooks: &Hooks) -> Result<String, InstrumentError> {
    if cloudinit::is_other(text) {
        return Err(InstrumentError::NotCloudConfig);
    }
    let mut document = parse(text)?;
    if document.is_null() {
        document = serde_norway::Value::Mapping(serde_norway::Mapping::new());
    }
    let section = document.as_mapping_mut();
    let section = section.ok_or_else(|| InstrumentError::Unreadable("no mapping".into()))?;
    append(section, "runcmd", hooks.success_command())?;
    print(&document)
}

fn parse(text: &str) -> Result<serde_norway::Value, InstrumentError> {
    // The reader with bounds goes first.
    let mut findings = Findings::default();
    if yaml::read(text, &mut findings).is_none() {
        let first = findings.0.first().map(ToString::to_string);
        return Err(InstrumentError::Unreadable(first.unwrap_or_default()));
    }
    let mut value: serde_norway::Value = serde_norway::from_str(text)
        .map_err(|error| InstrumentError::Unreadable(error.to_string()))?;
    value
        .apply_merge()
        .map_err(|error| InstrumentError::Unreadable(error.to_string()))?;
    Ok(value)
}

fn append(
    section: &mut serde_norway::Mapping,
    key: &str,
    command: String,
) -> Result<(), InstrumentError> {
    let list = section
        .entry(key.into())
        .or_insert_with(|| serde_norway::Value::Sequence(Vec::new()));
    if list.is_null() {
        *list = serde_norway::Value::Sequence(Vec::new());
    }
    let items = list
        .as_sequence_mut()
        .ok_or_else(|| InstrumentError::Unreadable(format!("'{key}' is no list")))?;
    items.push(command.into());
    Ok(())
}

/// YAML below the line by which cloud-init knows it.
pub(super) fn print(value: &serde_norway::Value) -> Result<String, InstrumentError> {
    let text = serde_norway::to_string(value)
        .map_err(|error| InstrumentError::Unreadable(error.to_string()))?;
    Ok(format!("#cloud-config\n{text}"))
}
