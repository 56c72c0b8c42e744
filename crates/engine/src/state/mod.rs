//! The node's database: one SQLite file in WAL mode.
//!
//! Every write is one transaction, synced before it returns
//! (`synchronous=FULL`), so that a definition or a journal entry that a
//! function reported survives a power cut. Several processes share the file; a
//! writer waits up to [`BUSY_TIMEOUT`] for another.

mod schema;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Result};

/// How long a writer waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a copy of the database consists of; the shared-memory index is made anew.
const DATABASE_FILES: [&str; 2] = ["node.db-wal", "node.db"];

/// How often a copy is begun again because a writer changed the original meanwhile.
const COPY_TRIES: usize = 100;

/// The open database of a node.
#[derive(Debug)]
pub(crate) struct State {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl State {
    /// Opens the database in `dir`, making both where they are missing and
    /// bringing an older schema up to date.
    pub(crate) fn open(dir: &Path) -> Result<State> {
        make_private_dir(dir).map_err(|source| Error::StateNotWritable {
            path: dir.to_owned(),
            source,
        })?;
        let path = dir.join("node.db");
        let writable = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).and_then(|()| {
            match rustix::fs::access(&path, rustix::fs::Access::WRITE_OK) {
                Err(rustix::io::Errno::NOENT) => Ok(()),
                other => other,
            }
        });
        if let Err(errno) = writable {
            return Err(Error::StateNotWritable {
                path: dir.to_owned(),
                source: errno.into(),
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags)
            .map_err(|source| not_writable_or(dir, &path, "open", source))?;
        connection
            .busy_timeout(BUSY_TIMEOUT)
            .and_then(|()| connection.pragma_update(None, "journal_mode", "wal"))
            .and_then(|()| connection.pragma_update(None, "synchronous", "full"))
            .and_then(|()| connection.pragma_update(None, "foreign_keys", true))
            .map_err(|source| not_writable_or(dir, &path, "open", source))?;
        schema::migrate(&mut connection, &path)?;
        // Definitions may hold secrets: the database is the owner's alone.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(|source| {
            Error::StateNotWritable {
                path: dir.to_owned(),
                source,
            }
        })?;
        Ok(State {
            path,
            connection: Mutex::new(connection),
        })
    }

    /// Opens a copy of the database of `dir` in `scratch`; an empty one where
    /// `dir` has none.
    pub(crate) fn open_copy(dir: &Path, scratch: &Path) -> Result<State> {
        // Opening the original, even for reading, would make files beside it.
        for _ in 0..COPY_TRIES {
            let before = fingerprint(dir);
            for name in DATABASE_FILES {
                copy_if_there(&dir.join(name), &scratch.join(name))?;
            }
            if fingerprint(dir) == before {
                return State::open(scratch);
            }
        }
        Err(Error::Io {
            action: "copy the busy database",
            path: dir.join("node.db"),
            source: io::Error::from(io::ErrorKind::ResourceBusy),
        })
    }

    /// Runs `body` on the connection, outside a transaction: for reads and
    /// single statements.
    pub(crate) fn read<T>(
        &self,
        action: &'static str,
        body: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let connection: MutexGuard<'_, Connection> = self.connection.lock();
        body(&connection).map_err(|source| self.error(action, source))
    }

    /// Runs `body` in a write transaction that is committed, and synced, when
    /// it returns `Ok`.
    pub(crate) fn write<T>(
        &self,
        action: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection.lock();
        let run = |connection: &mut Connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run(&mut connection).map_err(|source| self.error(action, source))
    }

    fn error(&self, action: &'static str, source: rusqlite::Error) -> Error {
        match self.path.parent() {
            Some(dir) => not_writable_or(dir, &self.path, action, source),
            None => Error::Database {
                action,
                path: self.path.clone(),
                source,
            },
        }
    }
}

/// Lengths and times of the database's files.
fn fingerprint(dir: &Path) -> Vec<Option<(u64, i64, i64)>> {
    DATABASE_FILES
        .iter()
        .map(|name| {
            let metadata = fs::metadata(dir.join(name)).ok()?;
            Some((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
        })
        .collect()
}

/// Copies a file, or removes the copy where the original is not there.
fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    let copied = match fs::copy(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::remove_file(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        other => other.map(drop),
    };
    copied.map_err(|source| Error::Io {
        action: "copy the database",
        path: from.to_owned(),
        source,
    })
}

/// Makes `dir` (mode 0700 where it is new) with its parents.
pub(crate) fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// A database on a read-only file system is a matter of the directory, and the
/// user is told so.
fn not_writable_or(
    dir: &Path,
    path: &Path,
    action: &'static str,
    source: rusqlite::Error,
) -> Error {
    use rusqlite::ErrorCode;
    match source.sqlite_error_code() {
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            Error::StateNotWritable {
                path: dir.to_owned(),
                source: io::Error::other(source.to_string()),
            }
        }
        Some(ErrorCode::DiskFull) => Error::StateNotWritable {
            path: dir.to_owned(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        },
        _ => Error::Database {
            action,
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_schema_is_refused_by_version() {
        let dir = tempfile::tempdir().unwrap();
        drop(State::open(dir.path()).unwrap());
        let connection = Connection::open(dir.path().join("node.db")).unwrap();
        connection
            .pragma_update(None, "user_version", 9999)
            .unwrap();
        drop(connection);
        let error = State::open(dir.path()).unwrap_err();
        assert!(
            matches!(error, Error::NewerState { found: 9999, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("9999"), "{error}");
    }

    #[test]
    fn database_is_the_owners_alone_and_durable() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join("node.db"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let (journal, synchronous, keys) = state
            .read("read its settings", |connection| {
                Ok((
                    connection
                        .pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0))?,
                    connection
                        .pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))?,
                    connection
                        .pragma_query_value(None, "foreign_keys", |row| row.get::<_, i64>(0))?,
                ))
            })
            .unwrap();
        assert_eq!((journal.as_str(), synchronous, keys), ("wal", 2, 1));
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        fs::write(&file, b"").unwrap();
        let error = State::open(&file).unwrap_err();
        assert!(
            error.to_string().contains(&*file.to_string_lossy()),
            "{error}"
        );
    }
}
