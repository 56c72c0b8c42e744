//! Names of domains, pools, volumes, networks and snapshots.
//!
//! One rule for all, since each of them becomes the name of a file: 1 to 255 bytes of UTF-8,
//! without `/`, without line feeds and other control characters, and not `.` or `..`.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use crate::xml::{Present, Value};

/// Longest name in bytes, as file systems have it.
pub const MAX_NAME: usize = 255;

/// Why a text is no name. Each says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum NameError {
    /// Nothing there.
    #[error("a name cannot be empty")]
    Empty,
    /// Over [`MAX_NAME`] bytes.
    #[error("a name has at most {MAX_NAME} bytes; this one has {0}")]
    TooLong(usize),
    /// `.` or `..`.
    #[error("'{0}' cannot be a name: it means a directory")]
    Directory(String),
    /// A character that cannot be in a name.
    #[error(
        "a name cannot contain {}; allowed are all characters but '/' and control characters",
        shown(.0)
    )]
    Character(char),
}

fn shown(c: &char) -> String {
    match c {
        '\n' => "a line feed".to_owned(),
        '\0' => "a NUL".to_owned(),
        c if c.is_control() => format!("the control character U+{:04X}", u32::from(*c)),
        c if matches!(c, '\u{fffe}' | '\u{ffff}') => format!("U+{:04X}", u32::from(*c)),
        c => format!("'{c}'"),
    }
}

/// Whether `name` can name an object.
///
/// # Errors
/// [`NameError`], the first rule that is broken.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(name.len()));
    }
    if matches!(name, "." | "..") {
        return Err(NameError::Directory(name.to_owned()));
    }
    match name
        .chars()
        .find(|c| *c == '/' || c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
    {
        Some(c) => Err(NameError::Character(c)),
        None => Ok(()),
    }
}

/// A text that keeps the rule of names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Default for Name {
    /// `unnamed`, for documents made field by field.
    fn default() -> Self {
        Self("unnamed".to_owned())
    }
}

impl Name {
    /// Checks and wraps.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check_name(&name)?;
        Ok(Self(name))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl Value for Name {
    fn parse(text: &str) -> Result<Self, String> {
        Self::new(text).map_err(|error| error.to_string())
    }

    /// Names are taken as they are: white space is part of them.
    fn parse_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    fn print(&self) -> String {
        self.0.clone()
    }
}

impl Present for Name {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_holds_at_its_edges() {
        for name in [
            "a",
            "web 1",
            "ünïcode",
            "...",
            "a.b",
            "-x",
            &"x".repeat(255),
        ] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_name(""), Err(NameError::Empty));
        assert_eq!(check_name("."), Err(NameError::Directory(".".into())));
        assert_eq!(check_name(".."), Err(NameError::Directory("..".into())));
        assert_eq!(check_name("a/b"), Err(NameError::Character('/')));
        assert_eq!(check_name("a\nb"), Err(NameError::Character('\n')));
        assert_eq!(check_name("a\0"), Err(NameError::Character('\0')));
        assert_eq!(check_name("a\u{85}"), Err(NameError::Character('\u{85}')));
        assert_eq!(check_name(&"x".repeat(300)), Err(NameError::TooLong(300)));
        assert_eq!(
            check_name(&"ü".repeat(128)),
            Err(NameError::TooLong(256)),
            "bytes count, not characters"
        );
        let message = check_name("a/b").unwrap_err().to_string();
        assert!(message.contains("'/'") && message.contains("allowed"));
        assert!(serde_json::from_str::<Name>("\"a/b\"").is_err());
    }
}
