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
    pub(crate) token: String,
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
            token: row.get(5)?,
        })
    }
}

/// The snapshots of a domain, oldest first.
pub(crate) fn all(state: &State, domain: i64) -> Result<Vec<SnapshotRow>> {
    state.read("read snapshots", |connection| {
        connection
            .prepare_cached(
                "SELECT id, name, parent, current, xml, token FROM snapshots
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
    /// The images that are made for it.
    pub(crate) images: &'a [NewImage],
}

/// An image that is made for a snapshot, and what it stands on.
pub(crate) type NewImage = (String, Option<String>);

/// Remembers that an image was made for the domain's snapshots.
pub(crate) fn put_image(
    transaction: &Transaction<'_>,
    domain: i64,
    image: &NewImage,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT OR REPLACE INTO snapshot_images (domain, path, base) VALUES (?1, ?2, ?3)",
        params![domain, image.0, image.1],
    )?;
    Ok(())
}

/// The images that were made for a domain's snapshots.
pub(crate) fn images(state: &State, domain: i64) -> Result<Vec<NewImage>> {
    state.read("read snapshots", |connection| {
        connection
            .prepare_cached(
                "SELECT path, base FROM snapshot_images WHERE domain = ?1 ORDER BY rowid",
            )?
            .query_map([domain], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    })
}

/// Forgets an image; what stood on it stands on `base`.
pub(crate) fn forget_image(
    transaction: &Transaction<'_>,
    domain: i64,
    path: &str,
    base: Option<&str>,
) -> rusqlite::Result<()> {
    transaction.execute(
        "DELETE FROM snapshot_images WHERE domain = ?1 AND path = ?2",
        params![domain, path],
    )?;
    transaction.execute(
        "UPDATE snapshot_images SET base = ?3 WHERE domain = ?1 AND base = ?2",
        params![domain, path, base],
    )?;
    Ok(())
}

/// Puts another document in a snapshot's place.
pub(crate) fn set_document(
    transaction: &Transaction<'_>,
    id: i64,
    xml: &str,
) -> rusqlite::Result<()> {
    transaction.execute(
        "UPDATE snapshots SET xml = ?2 WHERE id = ?1",
        params![id, xml],
    )?;
    Ok(())
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
        // Those of a snapshot that is given up are no files.
        for image in begun.images {
            put_image(transaction, begun.domain, image)?;
        }
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

/// Gives a snapshot up that was begun, and the images that were made for it. `false` if it is
/// there by now.
pub(crate) fn give_up(state: &State, token: &str, images: &[String]) -> Result<bool> {
    state.write("give up a snapshot", |transaction| {
        for image in images {
            transaction.execute(
                "DELETE FROM snapshot_images WHERE path = ?2 AND domain =
                 (SELECT domain FROM snapshots WHERE token = ?1 AND pending)",
                params![token, image],
            )?;
        }
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

/// Makes a snapshot the current one, along with the domain's new definition. Answers the domain.
pub(crate) fn make_current(
    transaction: &Transaction<'_>,
    id: i64,
    definition: &str,
) -> rusqlite::Result<i64> {
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
    transaction.query_row("SELECT domain FROM snapshots WHERE id = ?1", [id], |row| {
        row.get(0)
    })
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
