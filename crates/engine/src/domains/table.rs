//! Domains in the database.
//!
//! What runs is written by the domain's supervisor alone, what is defined by commands. Each
//! change looks at the row inside its own transaction, so that a definition removed while its
//! domain ends leaves neither half a domain nor a lost one.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::lifecycle::Subject;
use super::state::{DomainState, ShutOffReason};
use crate::error::Result;
use crate::state::State;

/// A domain without its documents.
#[derive(Debug, Clone)]
pub(crate) struct DomainRow {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) title: Option<String>,
    pub(crate) persistent: bool,
    pub(crate) autostart: bool,
    pub(crate) autodestroy: bool,
    pub(crate) state: DomainState,
    pub(crate) run: Option<u32>,
}

const COLUMNS: &str =
    "id, name, uuid, title, definition IS NOT NULL, autostart, autodestroy, state, reason, run";

impl DomainRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<DomainRow> {
        let (state, reason) = (row.get(7)?, row.get(8)?);
        Ok(DomainRow {
            id: row.get(0)?,
            name: row.get(1)?,
            uuid: row.get(2)?,
            title: row.get(3)?,
            persistent: row.get(4)?,
            autostart: row.get(5)?,
            autodestroy: row.get(6)?,
            // Only a newer schema could hold others, and that is refused at open.
            state: DomainState::of_numbers(state, reason)
                .unwrap_or(DomainState::ShutOff(ShutOffReason::Unknown)),
            run: row.get(9)?,
        })
    }

    pub(crate) fn is_active(&self) -> bool {
        self.run.is_some()
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            name: &self.name,
            uuid: &self.uuid,
            id: self.run,
        }
    }
}

/// All domains, by name.
pub(crate) fn all(state: &State) -> Result<Vec<DomainRow>> {
    state.read("read domains", |connection| {
        connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM domains ORDER BY name"))?
            .query_map([], DomainRow::read)?
            .collect()
    })
}

/// The domain that `key` means: the id of a running one, a UUID or a name, as virsh tries them.
pub(crate) fn find(state: &State, key: &str) -> Result<Option<DomainRow>> {
    let run: Option<u32> = key.parse().ok();
    state.read("read domains", |connection| {
        connection
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM domains WHERE run = ?2 OR uuid = lower(?1) OR name = ?1
                 ORDER BY run IS ?2 AND ?2 IS NOT NULL DESC, uuid = lower(?1) DESC LIMIT 1"
            ))?
            .query_row(params![key, run], DomainRow::read)
            .optional()
    })
}

/// The same inside a transaction, by its row.
pub(crate) fn by_row(
    transaction: &Transaction<'_>,
    id: i64,
) -> rusqlite::Result<Option<DomainRow>> {
    transaction
        .prepare_cached(&format!("SELECT {COLUMNS} FROM domains WHERE id = ?1"))?
        .query_row([id], DomainRow::read)
        .optional()
}

/// The same inside a transaction, by name.
pub(crate) fn by_name(
    transaction: &Transaction<'_>,
    name: &str,
) -> rusqlite::Result<Option<DomainRow>> {
    transaction
        .prepare_cached(&format!("SELECT {COLUMNS} FROM domains WHERE name = ?1"))?
        .query_row([name], DomainRow::read)
        .optional()
}

/// The same inside a transaction, by UUID.
pub(crate) fn by_uuid(
    transaction: &Transaction<'_>,
    uuid: &str,
) -> rusqlite::Result<Option<DomainRow>> {
    transaction
        .prepare_cached(&format!("SELECT {COLUMNS} FROM domains WHERE uuid = ?1"))?
        .query_row([uuid], DomainRow::read)
        .optional()
}

/// A domain's documents: the definition and what runs.
#[derive(Debug, Clone)]
pub(crate) struct Documents {
    pub(crate) definition: Option<String>,
    pub(crate) live: Option<String>,
}

/// The documents of a domain; `None` if it is gone.
pub(crate) fn documents(state: &State, id: i64) -> Result<Option<Documents>> {
    state.read("read a domain", |connection| {
        connection
            .prepare_cached("SELECT definition, live FROM domains WHERE id = ?1")?
            .query_row([id], |row| {
                Ok(Documents {
                    definition: row.get(0)?,
                    live: row.get(1)?,
                })
            })
            .optional()
    })
}

/// Sets the state of a domain that runs.
pub(crate) fn set_state(
    transaction: &Transaction<'_>,
    id: i64,
    state: DomainState,
) -> rusqlite::Result<()> {
    let (state, reason) = state.numbers();
    transaction.execute(
        "UPDATE domains SET state = ?2, reason = ?3 WHERE id = ?1",
        params![id, state, reason],
    )?;
    Ok(())
}

/// The domain runs no more: a transient one is forgotten. Answers whether it was there.
pub(crate) fn set_stopped(
    transaction: &Transaction<'_>,
    id: i64,
    reason: ShutOffReason,
) -> rusqlite::Result<()> {
    transaction.execute(
        "DELETE FROM domains WHERE id = ?1 AND definition IS NULL",
        [id],
    )?;
    let (state, reason) = DomainState::ShutOff(reason).numbers();
    transaction.execute(
        "UPDATE domains SET live = NULL, run = NULL, autodestroy = 0, state = ?2, reason = ?3
         WHERE id = ?1",
        params![id, state, reason],
    )?;
    Ok(())
}

/// The next id of a running domain; counted from 1 since the host was booted.
pub(crate) fn next_run(transaction: &Transaction<'_>) -> rusqlite::Result<u32> {
    let next: u32 = transaction.query_row(
        "INSERT INTO node (key, value) VALUES ('domain-id', '1')
         ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)
         RETURNING CAST(value AS INTEGER)",
        [],
        |row| row.get(0),
    )?;
    Ok(next)
}
