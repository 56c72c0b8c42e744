//! The choices a caller makes when it opens an image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::storage::CacheMode;

/// The format of an image. It is always given by the caller or by the header
/// of an overlay, never guessed from content that a guest could have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes and nothing else.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

impl Format {
    /// The name that QEMU and libvirt use.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            other => Err(Error::invalid(
                format!("image format '{other}'"),
                "not supported; use raw or qcow2",
            )),
        }
    }
}

impl FromStr for CacheMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "writeback" => Ok(CacheMode::Writeback),
            "none" => Ok(CacheMode::None),
            "writethrough" => Ok(CacheMode::Writethrough),
            "directsync" => Ok(CacheMode::DirectSync),
            "unsafe" => Ok(CacheMode::Unsafe),
            other => Err(Error::invalid(
                format!("cache mode '{other}'"),
                "use writeback, none, writethrough, directsync or unsafe",
            )),
        }
    }
}

/// Which locks are taken on the image file (QEMU's byte ranges).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockPolicy {
    /// As a writer: nobody else may write or resize, nor read consistently.
    Exclusive,
    /// As a reader: nobody may write.
    Shared,
    /// None. For callers that hold a lock by other means.
    Off,
}

/// Which backing and data files an image may pull in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingPolicy {
    /// Folders (and what is below them) that may hold backing and data files;
    /// `None` means anywhere.
    pub allowed_dirs: Option<Vec<PathBuf>>,
    /// The longest chain, in layers below the top.
    pub max_depth: usize,
    /// Whether backing files are opened at all. When not, clusters that the
    /// image leaves to its backing file cannot be read.
    pub open: bool,
}

impl Default for BackingPolicy {
    fn default() -> Self {
        BackingPolicy {
            allowed_dirs: None,
            max_depth: 200,
            open: true,
        }
    }
}
