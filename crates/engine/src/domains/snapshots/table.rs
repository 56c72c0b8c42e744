//! Snapshots in the database.
//!
//! A snapshot that is being taken is *pending*: it is there for its maker and for repair alone.
//! Whoever has made it whole commits it together with the domain's new documents; whoever gives it
//! up removes it. Both are one transaction, so that never both happen.

use rusqlite::{Row, Transaction, params};

use crate::error::Result;
use crate::state::State;

/// A snapshot.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotRow {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) parent: Option<i64>,
    pub(crate) current: bool,
    pub(crate) xml: String,
}

impl SnapshotRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            parent: row.get(2)?,
            current: row.get(3)?,
            xml: row.get(4)?,
        })
    }
}

/// The snapshots of a domain, oldest first.
pub(crate) fn all(state: &State, domain: i64) -> Result<Vec<SnapshotRow>> {
    state.read("read snapshots", |connection| {
        connection
            .prepare_cached(
                "SELECT id, name, parent, current, xml FROM snapshots
                 WHERE domain = ?1 AND NOT pending ORDER BY id",
            )?
            .query_map([domain], SnapshotRow::read)?
            .collect()
    })
}

/// How many snapshots a domain has.
pub(crate) fn count(state: &State, domain: i64) -> Result<u32> {
    state.read("read snapshots", |connection| {
        connection.query_row(
            "SELECT count(*) FROM snapshots WHERE domain = ?1 AND NOT pending",
            [domain],
            |row| row.get(0),
        )
    })
}

/// A snapshot that is begun.
pub(crate) struct Begun<'a> {
    pub(crate) token: &'a str,
    pub(crate) domain: i64,
    pub(crate) name: &'a str,
    pub(crate) parent: Option<i64>,
    pub(crate) xml: &'a str,
}

/// Begins a snapshot.
pub(crate) fn begin(state: &State, begun: &Begun<'_>) -> Result<()> {
    state.write("begin a snapshot", |transaction| {
        transaction.execute(
            "INSERT INTO snapshots (token, domain, name, parent, xml, pending)
             VALUES (?1, ?2, ?3, ?4, ?5, 1)",
            params![
                begun.token,
                begun.domain,
                begun.name,
                begun.parent,
                begun.xml
            ],
        )?;
        Ok(())
    })
}

/// The documents of a domain that change with its snapshots; those that are not given stay.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NewDocuments<'a> {
    pub(crate) live: Option<&'a str>,
    pub(crate) definition: Option<&'a str>,
}

/// Makes a snapshot that was begun one that is there, and the current one, along with the
/// domain's new documents. `false` if it was given up meanwhile; nothing is changed then.
pub(crate) fn commit(
    transaction: &Transaction<'_>,
    token: &str,
    documents: NewDocuments<'_>,
) -> rusqlite::Result<bool> {
    let changed = transaction.execute(
        "UPDATE snapshots SET pending = 0 WHERE token = ?1 AND pending",
        [token],
    )?;
    if changed == 0 {
        return Ok(false);
    }
    transaction.execute(
        "UPDATE snapshots SET current = (token = ?1)
         WHERE domain = (SELECT domain FROM snapshots WHERE token = ?1)",
        [token],
    )?;
    transaction.execute(
        "UPDATE domains SET
             live = CASE WHEN live IS NULL THEN NULL ELSE coalesce(?2, live) END,
             definition = CASE WHEN definition IS NULL THEN NULL ELSE coalesce(?3, definition) END
         WHERE id = (SELECT domain FROM snapshots WHERE token = ?1)",
        params![token, documents.live, documents.definition],
    )?;
    Ok(true)
}

/// Gives a snapshot up that was begun. `false` if it is there by now.
pub(crate) fn give_up(state: &State, token: &str) -> Result<bool> {
    state.write("give up a snapshot", |transaction| {
        transaction.execute(
            "DELETE FROM snapshots WHERE token = ?1 AND pending",
            [token],
        )?;
        let there: bool = transaction.query_row(
            "SELECT EXISTS (SELECT 1 FROM snapshots WHERE token = ?1)",
            [token],
            |row| row.get(0),
        )?;
        Ok(!there)
    })
}

/// Makes a snapshot the current one, along with the domain's new definition.
pub(crate) fn make_current(
    transaction: &Transaction<'_>,
    id: i64,
    definition: &str,
) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE snapshots SET current = (id = ?1)
         WHERE domain = (SELECT domain FROM snapshots WHERE id = ?1)",
        [id],
    )?;
    transaction.execute(
        "UPDATE domains SET definition = ?2
         WHERE id = (SELECT domain FROM snapshots WHERE id = ?1) AND definition IS NOT NULL",
        params![id, definition],
    )?;
    Ok(())
}

/// Forgets a snapshot. Its children are its parent's then, which is the current one if it was.
pub(crate) fn remove(transaction: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE snapshots SET parent = (SELECT parent FROM snapshots WHERE id = ?1)
         WHERE parent = ?1",
        [id],
    )?;
    transaction.execute(
        "UPDATE snapshots SET current = 1
         WHERE id = (SELECT parent FROM snapshots WHERE id = ?1 AND current)",
        [id],
    )?;
    transaction.execute("DELETE FROM snapshots WHERE id = ?1", [id])?;
    Ok(())
}
