//! What can go wrong with an image, always with the file and the place.

use std::io;
use std::path::{Path, PathBuf};

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed image operation.
///
/// Each variant names the file it happened on, and where in it, so that a
/// message can be acted on without a debugger.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused or failed an operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as it reads after "cannot".
        action: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The file does not begin with a qcow2 header.
    #[error(
        "{}: not a qcow2 image (no QFI magic at offset 0); if it is a raw image, give format raw",
        path.display()
    )]
    NotQcow2 {
        /// The file.
        path: PathBuf,
    },
    /// The image asks for something that this engine does not do.
    #[error("{}: {feature} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, by the name users know it by.
        feature: String,
    },
    /// The image contradicts itself or the specification.
    #[error("{}: corrupt at offset {offset:#x}: {what}; `vol-check` lists all damage", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// Byte offset in the file of the offending field or structure.
        offset: u64,
    },
    /// A request reaches past the end of the virtual disk.
    #[error(
        "{}: {length} bytes at offset {offset} reach past the end of the disk ({size} bytes)",
        path.display()
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Size of the virtual disk in bytes.
        size: u64,
    },
    /// A change was asked of an image that was opened for reading.
    #[error("{}: opened read-only", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// Another process uses the image in a way that excludes this one.
    #[error("{}: in use by another process ({by}); stop it or wait for it", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
        /// Which lock stood in the way.
        by: String,
    },
    /// A chain of backing files comes back to a file that is already in it.
    #[error("{}: its backing chain contains the file itself", path.display())]
    BackingLoop {
        /// The file met for the second time.
        path: PathBuf,
    },
    /// A chain of backing files is longer than allowed.
    #[error("{}: its backing chain is deeper than {limit} layers", path.display())]
    BackingTooDeep {
        /// The layer at which the limit was met.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A backing file is not there.
    #[error(
        "{}: its backing file {} does not exist; restore it, or change the name with an unsafe rebase",
        path.display(),
        backing.display()
    )]
    BackingMissing {
        /// The overlay.
        path: PathBuf,
        /// The backing file as resolved.
        backing: PathBuf,
    },
    /// A backing or data file lies outside the folders it may lie in.
    #[error(
        "{}: its backing file {} lies outside the allowed folders",
        path.display(),
        backing.display()
    )]
    BackingOutside {
        /// The overlay.
        path: PathBuf,
        /// The backing file as resolved.
        backing: PathBuf,
    },
    /// An argument or option cannot be honoured.
    #[error("{what}: {reason}")]
    Invalid {
        /// The argument, or the file it applies to.
        what: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// The host file system or the image's address space is full.
    #[error("{}: no space left to {action}; the image is still valid", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What was tried, as it reads after "to".
        action: String,
    },
    /// The caller's progress function asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Wraps a host error; a full disk or quota becomes [`Error::NoSpace`].
    pub fn io(path: &Path, action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
                path: path.to_owned(),
                action,
            },
            _ => Error::Io {
                path: path.to_owned(),
                action,
                source,
            },
        }
    }

    /// Damage in `path` at `offset`.
    pub fn corrupt(path: &Path, what: impl Into<String>, offset: u64) -> Self {
        Error::Corrupt {
            path: path.to_owned(),
            what: what.into(),
            offset,
        }
    }

    /// A feature of `path` that is refused by name.
    pub fn unsupported(path: &Path, feature: impl Into<String>) -> Self {
        Error::Unsupported {
            path: path.to_owned(),
            feature: feature.into(),
        }
    }

    /// An argument that cannot be honoured.
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Invalid {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// The host's error number that a guest or a remote client is told.
    pub fn errno(&self) -> i32 {
        const EPERM: i32 = 1;
        const EIO: i32 = 5;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        match self {
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(EIO),
            Error::OutOfRange { .. } | Error::Invalid { .. } => EINVAL,
            Error::ReadOnly { .. } => EPERM,
            Error::NoSpace { .. } => ENOSPC,
            _ => EIO,
        }
    }
}
