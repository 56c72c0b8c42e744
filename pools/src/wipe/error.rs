//! What can stop a wipe before or while it runs. A wipe that ran and found
//! that bytes are left is no error: its report says `failed`.

use std::io;
use std::path::{Path, PathBuf};

use super::verdict::Reason;
use crate::ErrorKind;

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a wipe was not begun or not finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no method.
    #[error(
        "unknown wiping algorithm '{name}'; known are zero, nnsa, dod, bsi, gutmann, schneier, \
         pfitzner7, pfitzner33, random and trim"
    )]
    UnknownAlgorithm {
        /// As given.
        name: String,
    },
    /// A drive's own sanitize command.
    #[error(
        "'{name}' is a command of a drive's firmware and erases the whole drive; Cenote does not \
         send it. Use the drive vendor's tool, nvme-cli or hdparm on a drive that holds nothing \
         else, or overwrite the volume (--algorithm random)"
    )]
    FirmwareCommand {
        /// As given.
        name: String,
    },
    /// A verification mode that does not parse.
    #[error("'{text}' is no verification mode; use all, none or sample:N% with N from 1 to 100")]
    BadVerify {
        /// As given.
        text: String,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system's random generator failed: {reason}")]
    NoRandomness {
        /// What it said.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// On what.
        path: PathBuf,
        /// Doing what.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Wiping would harm someone else's data or cannot reach the volume's own.
    #[error("'{}' is not wiped: {refusal}", path.display())]
    Refused {
        /// The volume's file or device.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// An overwrite here would prove nothing.
    #[error(
        "'{}' can be overwritten, but not provably: {}. To overwrite it all the same, and have \
         the report say so, use --best-effort",
        path.display(), join(reasons)
    )]
    NotProvable {
        /// The volume's file or device.
        path: PathBuf,
        /// All reasons, most general first.
        reasons: Vec<Reason>,
    },
    /// The caller could not tell who needs the volume.
    #[error("who uses '{}' cannot be told: {reason}", path.display())]
    UsageUnknown {
        /// The volume's file or device.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The image engine could not read or rebuild the volume.
    #[error(transparent)]
    Image(#[from] cenote_image::Error),
    /// A wipe of this volume is under way with other settings.
    #[error(
        "an interrupted wipe of '{}' (id {id}, algorithm {algorithm}) is on record; finish it with \
         'cenote wipe-resume {id}'", path.display()
    )]
    Pending {
        /// The volume's file or device.
        path: PathBuf,
        /// Id of the record.
        id: String,
        /// What it was doing.
        algorithm: String,
    },
    /// No record of that id.
    #[error("no interrupted wipe has the id '{id}'; 'cenote wipe-list' shows them")]
    NoSuchWipe {
        /// As given.
        id: String,
    },
    /// The journal holds what this version cannot read.
    #[error("the record of an interrupted wipe, '{id}', cannot be used: {reason}")]
    BadRecord {
        /// Id of the record.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// The journal could not be kept.
    #[error("the wipe's progress cannot be recorded: {reason}")]
    Journal {
        /// What failed.
        reason: String,
    },
    /// The caller asked to stop; the record is kept.
    #[error(
        "the wipe of '{}' was stopped; its progress is kept, 'cenote wipe-resume {id}' goes on",
        path.display()
    )]
    Cancelled {
        /// The volume's file or device.
        path: PathBuf,
        /// Id of the record.
        id: String,
    },
    /// The certificate could not be made; the wipe itself is complete.
    #[error(transparent)]
    Certificate(#[from] crate::certificate::Error),
}

impl Error {
    /// The class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownAlgorithm { .. } | Self::BadVerify { .. } => ErrorKind::Invalid,
            Self::FirmwareCommand { .. } => ErrorKind::Unsupported,
            Self::NoSuchWipe { .. } => ErrorKind::NotFound,
            Self::Refused { .. } | Self::NotProvable { .. } | Self::Pending { .. } => {
                ErrorKind::InvalidState
            }
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::NoRandomness { .. } => ErrorKind::Host,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::UsageUnknown { .. }
            | Self::Image(_)
            | Self::BadRecord { .. }
            | Self::Journal { .. }
            | Self::Certificate(_) => ErrorKind::Failed,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}

fn join(reasons: &[Reason]) -> String {
    reasons
        .iter()
        .map(Reason::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Why a volume is left alone. No option overrides these: they protect data
/// that is not the volume's, or a volume that someone is using.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The path is a symbolic link.
    #[error("it is a symbolic link to '{}'; name the file it points to", target.display())]
    SymbolicLink {
        /// Where it points.
        target: PathBuf,
    },
    /// Other names exist for the same file.
    #[error(
        "the file has {count} names (hard links), and what is reached by the others would be lost; \
         find them with 'find DIR -samefile FILE'"
    )]
    HardLinks {
        /// All of them.
        count: u64,
    },
    /// Neither a regular file nor a block device.
    #[error("it is a {kind}, neither a regular file nor a block device")]
    WrongKind {
        /// What it is.
        kind: &'static str,
    },
    /// It cannot be written.
    #[error("it is read-only ({how})")]
    ReadOnly {
        /// By what: permissions, mount, device, attribute.
        how: String,
    },
    /// A process holds the image's locks.
    #[error("it is in use: {by}")]
    InUse {
        /// Who, as far as can be seen.
        by: String,
    },
    /// The device, or a partition of it, is mounted.
    #[error("'{}' is mounted on '{}'; unmount it first", device.display(), mount_point.display())]
    Mounted {
        /// The device.
        device: PathBuf,
        /// Where.
        mount_point: PathBuf,
    },
    /// A loop device lies on the file.
    #[error("'{}' lies on it; detach it first (losetup -d)", device.display())]
    LoopDevice {
        /// The loop device.
        device: PathBuf,
    },
    /// The kernel swaps to it.
    #[error("it is in use as swap; swapoff first")]
    Swap,
    /// Other devices are built on the device.
    #[error("other block devices are built on it: {}", holders.join(", "))]
    Holders {
        /// Their names under `/sys/class/block`.
        holders: Vec<String>,
    },
    /// Other volumes read through this one.
    #[error("it is the backing file of {}", dependents.join(", "))]
    BackingFile {
        /// Every volume that would lose data.
        dependents: Vec<String>,
    },
    /// Domains have it among their disks.
    #[error("it belongs to the chain of {}", users.join(", "))]
    Domains {
        /// Each of them.
        users: Vec<String>,
    },
    /// A file on record is not the one that is there.
    #[error("{what}; if its wipe is no longer wanted: 'cenote wipe-resume {id} --forget'")]
    Changed {
        /// In which way.
        what: String,
        /// Id of the record.
        id: String,
    },
    /// The image's header does not tell what must be rebuilt.
    #[error("{what}")]
    Image {
        /// What is wrong.
        what: String,
    },
}
