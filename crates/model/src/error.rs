//! What can be wrong with a document, and what there is to say about one that is right.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where in a document something stands.
///
/// `path` is an XPath of child steps, `[n]` given where siblings share a name, so that it can be
/// handed to `--xpath` as it is. Lines and columns count from 1; 0 means that the part was not
/// read from text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// XPath of the element or attribute.
    pub path: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if self.line > 0 {
            write!(f, " (line {}, column {})", self.line, self.column)?;
        }
        Ok(())
    }
}

/// Why a document was not accepted. Nothing has been changed when one of these is returned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// The text is longer than [`crate::ReadOptions::max_bytes`].
    #[error("document of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Length of the text in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A limit on shape was passed: depth, elements, attributes of one element, namespaces.
    #[error("line {line}, column {column}: document has more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// Line, from 1; 0 where the whole document is meant.
        line: u32,
        /// Column, from 1.
        column: u32,
    },
    /// The text has a document type declaration; entities are never expanded.
    #[error(
        "line {line}, column {column}: document type declarations (<!DOCTYPE>) and entities are \
         refused; write the text out in full"
    )]
    DocumentType {
        /// Line, from 1.
        line: u32,
        /// Column, from 1.
        column: u32,
    },
    /// The text is not well-formed XML.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Line, from 1.
        line: u32,
        /// Column, from 1.
        column: u32,
        /// What the parser met.
        message: String,
    },
    /// The root element is not that of the kind of document asked for.
    #[error("expecting root element of '{expected}'")]
    Root {
        /// The root element's name for this kind of document.
        expected: &'static str,
        /// What stands there, empty for a text without any element.
        found: String,
    },
    /// An element or attribute that must be there is not.
    #[error("{place}: {what} is missing")]
    Missing {
        /// The element that lacks it.
        place: Place,
        /// What it lacks, with its brackets or quotes.
        what: String,
    },
    /// A value that cannot be.
    #[error("{place}: '{value}' is not valid: {reason}")]
    Invalid {
        /// Where the value stands.
        place: Place,
        /// The value, cut to 200 characters.
        value: String,
        /// What would be valid.
        reason: String,
    },
    /// Something given more than once where there can be one.
    #[error("{place}: given more than once")]
    Repeated {
        /// The second of them.
        place: Place,
    },
    /// Something understood that Cenote does not do, and that cannot be left out unnoticed.
    #[error("{place}: not supported: {reason}")]
    Unsupported {
        /// Where it stands.
        place: Place,
        /// What it is, and what to use instead.
        reason: String,
    },
    /// Strict reading met something it does not know.
    #[error("{place}: unknown (strict reading refuses what it does not know)")]
    Unknown {
        /// Where it stands.
        place: Place,
    },
    /// An XPath expression that cannot be evaluated.
    #[error("XPath '{expression}': {message}")]
    XPath {
        /// The expression as given.
        expression: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Error {
    /// The place it speaks of, where there is one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Missing { place, .. }
            | Self::Invalid { place, .. }
            | Self::Repeated { place }
            | Self::Unsupported { place, .. }
            | Self::Unknown { place } => Some(place),
            _ => None,
        }
    }
}

/// What sort of remark a [`Note`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// Not known here; kept as it is, without effect. An error in strict reading.
    Unknown,
    /// Known, kept, without effect on a Cenote guest.
    Inert,
    /// Honoured in another way than the words say.
    Mapped,
    /// Honoured, and unsafe.
    Security,
    /// Filled in or corrected, since the document left it open.
    Filled,
}

/// A remark about an accepted document: the user should hear of it once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What sort of remark.
    pub kind: NoteKind,
    /// Where.
    pub place: Place,
    /// The remark.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}
