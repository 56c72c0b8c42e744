//! What can go wrong with a node.

use std::io;
use std::path::PathBuf;

use cenote_pools::ErrorKind;

/// Result of operations on a node.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation on the node failed. Messages name the thing and the place;
/// [`Error::hint`] names the next command where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pool or volume operation failed.
    #[error(transparent)]
    Storage(#[from] cenote_pools::Error),
    /// A wipe was refused or stopped.
    #[error(transparent)]
    Wipe(#[from] cenote_pools::wipe::Error),
    /// An operation on a domain failed.
    #[error(transparent)]
    Domain(#[from] crate::domains::Error),
    /// An install was refused, or failed.
    #[error(transparent)]
    Install(#[from] crate::installs::Error),
    /// A file of the node itself could not be used.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// What was tried, to be read after "cannot".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither `HOME` nor `XDG_DATA_HOME` says where a user's state goes.
    #[error("cannot tell where the node's state lives: neither HOME nor XDG_DATA_HOME is set")]
    NoHome,
    /// The state directory cannot be written.
    #[error("the state directory '{}' cannot be written: {source}", path.display())]
    StateNotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database was written by a newer Cenote.
    #[error(
        "the state in '{}' has schema version {found}, newer than the {supported} this program knows",
        path.display()
    )]
    NewerState {
        /// The database file.
        path: PathBuf,
        /// Version in the file.
        found: i64,
        /// Newest version this program reads.
        supported: i64,
    },
    /// The database refused or is damaged.
    #[error("the node's database '{}' failed to {action}: {source}", path.display())]
    Database {
        /// What was tried, to be read after "failed to".
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Something stored in the database cannot be read back.
    #[error("the node's database holds {what} that cannot be read: {reason}")]
    BadRecord {
        /// Which record.
        what: String,
        /// Why not.
        reason: String,
    },
    /// Another live process works on the same thing.
    #[error("{subject} is busy: operation {operation} ({kind}) of process {pid} is under way")]
    Busy {
        /// What was asked for.
        subject: String,
        /// Number of the operation under way.
        operation: i64,
        /// Its kind.
        kind: String,
        /// Its process.
        pid: u32,
    },
    /// No job has this number.
    #[error("no job has number {0}")]
    NoSuchJob(i64),
    /// The job ended before it could be cancelled.
    #[error("job {0} is not running any more")]
    JobEnded(i64),
}

impl Error {
    /// The class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Storage(error) => error.kind(),
            Error::Wipe(error) => error.kind(),
            Error::Domain(error) => error.kind(),
            Error::Install(error) => error.kind(),
            Error::NoSuchJob(_) => ErrorKind::NotFound,
            Error::Busy { .. } | Error::JobEnded(_) => ErrorKind::InvalidState,
            Error::NoHome | Error::StateNotWritable { .. } | Error::NewerState { .. } => {
                ErrorKind::Host
            }
            Error::Io { source, .. } => ErrorKind::of_io(source),
            Error::Database { .. } | Error::BadRecord { .. } => ErrorKind::Failed,
        }
    }

    /// What the user can do about it, one sentence with the exact command
    /// where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Storage(error) => error.hint(),
            Error::Domain(error) => error.hint(),
            Error::Install(error) => error.hint(),
            Error::NoHome => Some("set HOME, or name a directory with --state-dir".into()),
            Error::StateNotWritable { .. } => Some(
                "run as the directory's owner, or name a directory you may write with --state-dir"
                    .into(),
            ),
            Error::NewerState { .. } => {
                Some("use the newer cenote that wrote it, or another --state-dir".into())
            }
            Error::Busy { operation, .. } => Some(format!(
                "wait for it to end, or cancel it: cenote job-cancel {operation}"
            )),
            Error::NoSuchJob(_) => Some("list the jobs: cenote job-list --all".into()),
            Error::Database { .. } | Error::BadRecord { .. } => {
                Some("check the node: cenote doctor".into())
            }
            // Its messages end with what to do.
            Error::Wipe(_) | Error::Io { .. } | Error::JobEnded(_) => None,
        }
    }
}
