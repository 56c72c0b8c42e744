//! What the database knows of a volume beyond its file: its format and who
//! said so.

use cenote_pools::{FormatOrigin, VolumeId};
use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::state::State;

/// The format of a volume and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeRecord {
    pub(crate) format: String,
    pub(crate) origin: FormatOrigin,
}

/// Remembers the format of a volume. Does nothing where the pool is gone.
pub(crate) fn put(
    state: &State,
    volume: &VolumeId,
    format: &str,
    origin: FormatOrigin,
) -> Result<()> {
    state.write("record a volume", |transaction| {
        transaction.execute(
            "INSERT INTO volumes (pool, name, format, origin)
             SELECT id, ?2, ?3, ?4 FROM pools WHERE name = ?1
             ON CONFLICT (pool, name) DO UPDATE SET format = ?3, origin = ?4",
            params![volume.pool, volume.name, format, origin.as_str()],
        )
    })?;
    Ok(())
}

/// Forgets a volume.
pub(crate) fn remove(state: &State, volume: &VolumeId) -> Result<()> {
    state.write("forget a volume", |transaction| {
        transaction.execute(
            "DELETE FROM volumes WHERE name = ?2
             AND pool = (SELECT id FROM pools WHERE name = ?1)",
            params![volume.pool, volume.name],
        )
    })?;
    Ok(())
}

/// What is known of a volume.
pub(crate) fn get(state: &State, volume: &VolumeId) -> Result<Option<VolumeRecord>> {
    state.read("read a volume's record", |connection| {
        connection
            .query_row(
                "SELECT v.format, v.origin FROM volumes v JOIN pools p ON p.id = v.pool
                 WHERE p.name = ?1 AND v.name = ?2",
                params![volume.pool, volume.name],
                |row| {
                    let origin: String = row.get(1)?;
                    Ok(VolumeRecord {
                        format: row.get(0)?,
                        // What cannot be read is not trusted.
                        origin: FormatOrigin::parse(&origin).unwrap_or(FormatOrigin::Probed),
                    })
                },
            )
            .optional()
    })
}

/// What is known of all volumes of a pool, by name.
pub(crate) fn all(state: &State, pool: i64) -> Result<Vec<(String, VolumeRecord)>> {
    state.read("read volumes' records", |connection| {
        connection
            .prepare_cached("SELECT name, format, origin FROM volumes WHERE pool = ?1")?
            .query_map([pool], |row| {
                let origin: String = row.get(2)?;
                let origin = FormatOrigin::parse(&origin).unwrap_or(FormatOrigin::Probed);
                Ok((
                    row.get(0)?,
                    VolumeRecord {
                        format: row.get(1)?,
                        origin,
                    },
                ))
            })?
            .collect()
    })
}

/// Remembers formats found at first sight, except where somebody was faster.
pub(crate) fn adopt(state: &State, pool: i64, found: &[(String, String)]) -> Result<()> {
    state.write("record volumes", |transaction| {
        let mut statement = transaction.prepare(
            "INSERT OR IGNORE INTO volumes (pool, name, format, origin) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (name, format) in found {
            statement.execute(params![pool, name, format, FormatOrigin::Adopted.as_str()])?;
        }
        Ok(())
    })
}
