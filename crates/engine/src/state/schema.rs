//! The tables and how an older database becomes a newer one.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Error, Result};

/// One entry per schema version; entry `n` brings version `n` to `n + 1`.
/// Entries that were released are never edited, only added to.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE node (
        key   TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;

    -- Definitions are kept as the XML text the user gave.
    CREATE TABLE pools (
        id         INTEGER PRIMARY KEY,
        name       TEXT NOT NULL UNIQUE,
        uuid       TEXT NOT NULL UNIQUE,
        xml        TEXT NOT NULL,
        persistent INTEGER NOT NULL DEFAULT 1,
        autostart  INTEGER NOT NULL DEFAULT 0,
        active     INTEGER NOT NULL DEFAULT 0,
        -- Whether starting it mounted its file system.
        mounted    INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    -- What is known of a volume beyond its file. 'origin' says who named the
    -- format: created, declared, or adopted at first sight.
    CREATE TABLE volumes (
        pool   INTEGER NOT NULL REFERENCES pools(id) ON DELETE CASCADE,
        name   TEXT NOT NULL,
        format TEXT NOT NULL,
        origin TEXT NOT NULL,
        PRIMARY KEY (pool, name)
    ) STRICT;

    -- One row per multi-step operation, written before its first step.
    CREATE TABLE journal (
        id       INTEGER PRIMARY KEY AUTOINCREMENT,
        kind     TEXT NOT NULL,
        subject  TEXT NOT NULL,
        plan     TEXT NOT NULL,
        step     INTEGER NOT NULL DEFAULT 0,
        state    TEXT NOT NULL,
        started  TEXT NOT NULL,
        finished TEXT,
        pid      INTEGER NOT NULL,
        error    TEXT
    ) STRICT;
    CREATE INDEX journal_running ON journal(state) WHERE state = 'running';

    -- What an operation works on; two live operations never share a subject.
    CREATE TABLE journal_subjects (
        operation INTEGER NOT NULL REFERENCES journal(id) ON DELETE CASCADE,
        subject   TEXT NOT NULL,
        PRIMARY KEY (operation, subject)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX journal_subject ON journal_subjects(subject);

    CREATE TABLE jobs (
        id        INTEGER PRIMARY KEY REFERENCES journal(id) ON DELETE CASCADE,
        done      INTEGER NOT NULL DEFAULT 0,
        total     INTEGER NOT NULL DEFAULT 0,
        cancel    INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        time     TEXT NOT NULL,
        kind     TEXT NOT NULL,
        subject  TEXT NOT NULL,
        detail   TEXT NOT NULL
    ) STRICT;
",
    "
    -- Documents are libvirt's XML. A transient domain has no definition, one
    -- that does not run has no live document.
    CREATE TABLE domains (
        id          INTEGER PRIMARY KEY,
        name        TEXT NOT NULL UNIQUE,
        uuid        TEXT NOT NULL UNIQUE,
        title       TEXT,
        definition  TEXT,
        live        TEXT,
        autostart   INTEGER NOT NULL DEFAULT 0,
        -- libvirt's numbers.
        state       INTEGER NOT NULL DEFAULT 5,
        reason      INTEGER NOT NULL DEFAULT 0,
        -- The id while it runs.
        run         INTEGER UNIQUE,
        -- Ends with the connection that started it.
        autodestroy INTEGER NOT NULL DEFAULT 0,
        CHECK (definition IS NOT NULL OR live IS NOT NULL),
        CHECK ((live IS NULL) = (run IS NULL))
    ) STRICT;
",
    "
    -- One that is pending is being taken, by the operation whose plan has its token.
    CREATE TABLE snapshots (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        token   TEXT NOT NULL UNIQUE,
        domain  INTEGER NOT NULL REFERENCES domains(id) ON DELETE CASCADE,
        name    TEXT NOT NULL,
        parent  INTEGER REFERENCES snapshots(id) ON DELETE SET NULL,
        current INTEGER NOT NULL DEFAULT 0,
        pending INTEGER NOT NULL,
        xml     TEXT NOT NULL,
        UNIQUE (domain, name)
    ) STRICT;
",
    "
    -- Images that were made for a domain's snapshots, with what they were put
    -- on; without that they hold what they need of it themselves.
    CREATE TABLE snapshot_images (
        domain INTEGER NOT NULL REFERENCES domains(id) ON DELETE CASCADE,
        path   TEXT NOT NULL,
        base   TEXT,
        PRIMARY KEY (domain, path)
    ) STRICT;
",
];

/// Brings the schema to the newest version, all steps in one transaction.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let supported = MIGRATIONS.len() as i64;
    let error = |source| Error::Database {
        action: "update its schema",
        path: path.to_owned(),
        source,
    };
    if version(connection).map_err(error)? == supported {
        return Ok(());
    }
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(error)?;
    // Read again: another process may have been faster.
    let found = version(&transaction).map_err(error)?;
    if found > supported || found < 0 {
        return Err(Error::NewerState {
            path: path.to_owned(),
            found,
            supported,
        });
    }
    for step in MIGRATIONS.iter().skip(found as usize) {
        transaction.execute_batch(step).map_err(error)?;
    }
    transaction
        .pragma_update(None, "user_version", supported)
        .map_err(error)?;
    transaction.commit().map_err(error)
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}
