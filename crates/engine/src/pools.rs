//! Pools of the node: their definitions in the database, their life on the
//! host.

use std::path::{Path, PathBuf};

use cenote_pools::backend::{self, Backend, LogicalVolumes};
use cenote_pools::{BuildMode, Error as StorageError, PoolDefinition, Source, Space};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::events;
use crate::node::Node;
use crate::plan::{Plan, PoolVerb};

/// State of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolState {
    /// Not started.
    Inactive,
    /// Started.
    Running,
    /// Started, but what it stands on is not there any more.
    Inaccessible,
}

/// A pool and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its type: `dir`, `fs`, `netfs` or `logical`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How it stands.
    pub state: PoolState,
    /// Whether its definition is kept when it is stopped.
    pub persistent: bool,
    /// Whether it is started with the node.
    pub autostart: bool,
    /// Directory of its volumes.
    pub target: PathBuf,
    /// Bytes in all; only of a running pool.
    pub capacity: Option<u64>,
    /// Bytes used.
    pub allocation: Option<u64>,
    /// Bytes free.
    pub available: Option<u64>,
    /// Why it is inaccessible.
    pub problem: Option<String>,
}

/// What a refresh found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRefresh {
    /// Number of volumes.
    pub volumes: usize,
    /// Volumes whose format was fixed now, at first sight: name and format.
    pub adopted: Vec<(String, String)>,
    /// Entries that are not volumes, and why.
    pub skipped: Vec<(String, String)>,
}

/// A pool as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct PoolRow {
    pub(crate) id: i64,
    pub(crate) persistent: bool,
    pub(crate) autostart: bool,
    pub(crate) active: bool,
    pub(crate) mounted: bool,
    pub(crate) definition: PoolDefinition,
}

const COLUMNS: &str = "id, name, xml, persistent, autostart, active, mounted";

impl PoolRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<(String, RawRow)> {
        let raw = RawRow {
            id: row.get(0)?,
            xml: row.get(2)?,
            persistent: row.get(3)?,
            autostart: row.get(4)?,
            active: row.get(5)?,
            mounted: row.get(6)?,
        };
        Ok((row.get(1)?, raw))
    }

    pub(crate) fn name(&self) -> &str {
        &self.definition.spec.name
    }

    pub(crate) fn backend(&self) -> Box<dyn Backend> {
        backend::backend(&self.definition.spec)
    }

    /// The volume group of a logical pool.
    pub(crate) fn logical(&self) -> Result<LogicalVolumes> {
        match &self.definition.spec.source {
            Source::VolumeGroup { name, devices } => {
                Ok(LogicalVolumes::new(self.name(), name, devices))
            }
            _ => Err(Error::BadRecord {
                what: format!("the definition of pool '{}'", self.name()),
                reason: "it is not a logical pool any more".into(),
            }),
        }
    }
}

struct RawRow {
    id: i64,
    xml: String,
    persistent: bool,
    autostart: bool,
    active: bool,
    mounted: bool,
}

impl RawRow {
    fn parse(self, name: &str) -> Result<PoolRow> {
        let definition = PoolDefinition::from_xml(&self.xml).map_err(|error| Error::BadRecord {
            what: format!("the definition of pool '{name}'"),
            reason: error.to_string(),
        })?;
        Ok(PoolRow {
            id: self.id,
            persistent: self.persistent,
            autostart: self.autostart,
            active: self.active,
            mounted: self.mounted,
            definition,
        })
    }
}

/// Reading.
impl Node {
    /// All pools by name, running or not.
    ///
    /// # Errors
    /// The database cannot be read. A pool whose directory is gone is no error
    /// here, its state says so.
    pub fn pools(&self) -> Result<Vec<PoolInfo>> {
        Ok(self
            .pool_rows()?
            .iter()
            .map(|row| self.info_of(row))
            .collect())
    }

    /// One pool, by name or UUID.
    ///
    /// # Errors
    /// There is no such pool.
    pub fn pool(&self, name: &str) -> Result<PoolInfo> {
        Ok(self.info_of(&self.pool_row(name)?))
    }

    /// The pool's document, with its present space if it runs; the stored
    /// definition alone with `inactive`.
    ///
    /// # Errors
    /// There is no such pool.
    pub fn pool_xml(&self, name: &str, inactive: bool) -> Result<String> {
        let row = self.pool_row(name)?;
        let space = if row.active && !inactive {
            row.backend().space().ok()
        } else {
            None
        };
        Ok(row.definition.to_xml(space))
    }

    fn info_of(&self, row: &PoolRow) -> PoolInfo {
        let (state, space, problem) = if row.active {
            let backend = row.backend();
            match backend.check().and_then(|()| backend.space()) {
                Ok(space) => (PoolState::Running, Some(space), None),
                Err(error) => (PoolState::Inaccessible, None, Some(error.to_string())),
            }
        } else {
            (PoolState::Inactive, None, None)
        };
        let part = |field: fn(&Space) -> u64| space.as_ref().map(field);
        PoolInfo {
            name: row.name().to_owned(),
            uuid: row.definition.uuid.clone(),
            kind: row.definition.kind().to_owned(),
            state,
            persistent: row.persistent,
            autostart: row.autostart,
            target: row.definition.spec.target.clone(),
            capacity: part(|space| space.capacity),
            allocation: part(|space| space.allocation),
            available: part(|space| space.available),
            problem,
        }
    }

    pub(crate) fn pool_rows(&self) -> Result<Vec<PoolRow>> {
        let raw = self.state().read("read pools", |connection| {
            connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM pools ORDER BY name"))?
                .query_map([], PoolRow::read)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        raw.into_iter()
            .map(|(name, raw)| raw.parse(&name))
            .collect()
    }

    /// A pool by name or UUID; the name goes first.
    pub(crate) fn pool_row(&self, name: &str) -> Result<PoolRow> {
        let raw = self.state().read("read pools", |connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM pools WHERE name = ?1 OR uuid = lower(?1)
                     ORDER BY name = ?1 DESC LIMIT 1"
                ))?
                .query_row([name], PoolRow::read)
                .optional()
        })?;
        let (found, raw) = raw.ok_or_else(|| StorageError::PoolNotFound(name.to_owned()))?;
        raw.parse(&found)
    }

    /// A pool that is started and reachable.
    pub(crate) fn running_pool(&self, name: &str) -> Result<PoolRow> {
        let row = self.pool_row(name)?;
        if !row.active {
            return Err(StorageError::PoolInactive(row.name().to_owned()).into());
        }
        if !self.is_unmade(&row) {
            row.backend().check()?;
        }
        Ok(row)
    }

    /// Whether it is the node's own pool, whose folder is not there yet because nothing is made
    /// here: it is empty then.
    pub(crate) fn is_unmade(&self, row: &PoolRow) -> bool {
        let folder = &row.definition.spec.target;
        let own = self.is_read_only() && *folder == self.state_dir().join("images");
        own && !folder.exists()
    }
}

/// Definitions.
impl Node {
    /// Defines a pool, or changes the definition of one that is not running.
    ///
    /// # Errors
    /// The document is wrong or its type is not supported; the name or the
    /// UUID belongs to another pool; another pool stands on the same
    /// directory.
    pub fn pool_define(&self, xml: &str) -> Result<PoolInfo> {
        let definition = PoolDefinition::from_xml(xml)?;
        self.insert_pool(&definition, true)?;
        self.pool(&definition.spec.name)
    }

    /// Starts a pool that is forgotten when it is stopped.
    ///
    /// # Errors
    /// As [`Node::pool_define`] and [`Node::pool_start`]; on failure the pool
    /// is not kept.
    pub fn pool_create(&self, xml: &str, build: Option<BuildMode>) -> Result<PoolInfo> {
        let definition = PoolDefinition::from_xml(xml)?;
        let name = definition.spec.name.clone();
        self.insert_pool(&definition, false)?;
        if let Err(error) = self.pool_start(&name, build) {
            self.forget_pool(&name, "pool-undefined")?;
            return Err(error);
        }
        self.pool(&name)
    }

    fn insert_pool(&self, definition: &PoolDefinition, persistent: bool) -> Result<()> {
        let spec = &definition.spec;
        for other in self.pool_rows()? {
            let (name, uuid) = (other.name().to_owned(), other.definition.uuid.clone());
            let same_name = name == spec.name;
            if same_name != (uuid == definition.uuid) {
                return Err(StorageError::PoolExists { name, uuid }.into());
            }
            if same_name {
                if other.active || !persistent {
                    return Err(StorageError::PoolActive(name).into());
                }
                continue;
            }
            if same_place(&other.definition.spec.target, &spec.target) {
                let path = spec.target.clone();
                return Err(StorageError::PoolOverlaps { other: name, path }.into());
            }
        }
        let xml = definition.to_xml(None);
        self.state().write("store a pool", |transaction| {
            transaction.execute(
                "INSERT INTO pools (name, uuid, xml, persistent) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET xml = ?3, persistent = ?4",
                params![spec.name, definition.uuid, xml, persistent],
            )?;
            events::append(transaction, "pool-defined", &spec.name, &json!({}))
        })?;
        self.wake();
        Ok(())
    }

    /// Removes the definition of a stopped pool. Its volumes stay as they are.
    ///
    /// # Errors
    /// There is no such pool, or it runs.
    pub fn pool_undefine(&self, name: &str) -> Result<()> {
        let row = self.pool_row(name)?;
        if row.active {
            return Err(StorageError::PoolActive(row.name().to_owned()).into());
        }
        let operation = self.begin(Plan::Pool {
            verb: PoolVerb::Undefine,
            pool: row.name().into(),
        })?;
        let result = self.forget_pool(row.name(), "pool-undefined");
        operation.finish(result)
    }

    /// Marks a pool to be started with the node, or not.
    ///
    /// # Errors
    /// There is no such pool, or it is transient.
    pub fn pool_autostart(&self, name: &str, autostart: bool) -> Result<()> {
        let row = self.pool_row(name)?;
        if !row.persistent {
            return Err(StorageError::PoolTransient(row.name().to_owned()).into());
        }
        self.state().write("store a pool", |transaction| {
            transaction.execute(
                "UPDATE pools SET autostart = ?2 WHERE id = ?1",
                params![row.id, autostart],
            )
        })?;
        Ok(())
    }

    fn forget_pool(&self, name: &str, event: &str) -> Result<()> {
        self.state().write("forget a pool", |transaction| {
            transaction.execute("DELETE FROM pools WHERE name = ?1", [name])?;
            events::append(transaction, event, name, &json!({}))
        })?;
        self.wake();
        Ok(())
    }
}

/// Life.
impl Node {
    /// Makes what a stopped pool stands on: its directory, its file system
    /// with [`BuildMode::NoOverwrite`] or [`BuildMode::Overwrite`], its volume
    /// group.
    ///
    /// # Errors
    /// The pool runs, or the host refuses.
    pub fn pool_build(&self, name: &str, mode: BuildMode) -> Result<()> {
        let row = self.pool_row(name)?;
        if row.active {
            return Err(StorageError::PoolActive(row.name().to_owned()).into());
        }
        let operation = self.begin(Plan::Pool {
            verb: PoolVerb::Build,
            pool: row.name().into(),
        })?;
        let result = row.backend().build(mode).map_err(Error::from);
        operation.finish(result)
    }

    /// Starts a pool, building it first if asked to.
    ///
    /// # Errors
    /// It runs already, or what it stands on is not there.
    pub fn pool_start(&self, name: &str, build: Option<BuildMode>) -> Result<()> {
        let row = self.pool_row(name)?;
        if row.active {
            return Err(StorageError::PoolActive(row.name().to_owned()).into());
        }
        if let Some(mode) = build {
            self.pool_build(row.name(), mode)?;
        }
        self.start_row(&row)
    }

    pub(crate) fn start_row(&self, row: &PoolRow) -> Result<()> {
        let operation = self.begin(Plan::Pool {
            verb: PoolVerb::Start,
            pool: row.name().into(),
        })?;
        let result = row
            .backend()
            .start()
            .map_err(Error::from)
            .and_then(|started| self.set_active(row.name(), true, started.mounted));
        operation.finish(result)
    }

    /// Stops a pool: unmounts what starting it mounted. A transient pool is
    /// forgotten. Its volumes stay as they are.
    ///
    /// # Errors
    /// It does not run, or a volume of it is in use so that it cannot be
    /// unmounted.
    pub fn pool_stop(&self, name: &str) -> Result<()> {
        let row = self.pool_row(name)?;
        if !row.active {
            return Err(StorageError::PoolInactive(row.name().to_owned()).into());
        }
        let operation = self.begin(Plan::Pool {
            verb: PoolVerb::Stop,
            pool: row.name().into(),
        })?;
        let result = row
            .backend()
            .stop(row.mounted)
            .map_err(Error::from)
            .and_then(|()| {
                if row.persistent {
                    self.set_active(row.name(), false, false)
                } else {
                    self.forget_pool(row.name(), "pool-stopped")
                }
            });
        operation.finish(result)
    }

    /// Removes what a stopped pool stands on, unless volumes are left in it.
    /// The definition stays.
    ///
    /// # Errors
    /// The pool runs or is not empty.
    pub fn pool_delete(&self, name: &str) -> Result<()> {
        let row = self.pool_row(name)?;
        if row.active {
            return Err(StorageError::PoolActive(row.name().to_owned()).into());
        }
        let operation = self.begin(Plan::Pool {
            verb: PoolVerb::Delete,
            pool: row.name().into(),
        })?;
        let result = row.backend().delete().map_err(Error::from);
        operation.finish(result)
    }

    pub(crate) fn set_active(&self, name: &str, active: bool, mounted: bool) -> Result<()> {
        self.state().write("store a pool", |transaction| {
            transaction.execute(
                "UPDATE pools SET active = ?2, mounted = ?3 WHERE name = ?1",
                params![name, active, mounted],
            )?;
            let event = if active {
                "pool-started"
            } else {
                "pool-stopped"
            };
            events::append(transaction, event, name, &json!({}))
        })?;
        self.wake();
        Ok(())
    }

    /// Brings a pool operation whose process died to an end.
    pub(crate) fn recover_pool(
        &self,
        verb: PoolVerb,
        name: &str,
    ) -> Result<(crate::RepairOutcome, String)> {
        use crate::RepairOutcome::{RolledBack, RolledForward};
        let row = match self.pool_row(name) {
            Ok(row) => row,
            Err(Error::Storage(StorageError::PoolNotFound(_))) => {
                return Ok((RolledForward, format!("pool '{name}' is gone")));
            }
            Err(error) => return Err(error),
        };
        match verb {
            PoolVerb::Start => match row.backend().start() {
                Ok(started) => {
                    // What the dead process mounted looks as if it had been
                    // mounted before; this pool's own mount is taken to be it.
                    let mounted = started.mounted || row.definition.mounts();
                    self.set_active(name, true, mounted)?;
                    Ok((
                        RolledForward,
                        format!("pool '{name}' was half started and now runs"),
                    ))
                }
                Err(error) => Ok((
                    RolledBack,
                    format!("pool '{name}' was not started: {error}"),
                )),
            },
            PoolVerb::Stop => {
                row.backend().stop(row.mounted)?;
                if row.persistent {
                    self.set_active(name, false, false)?;
                } else {
                    self.forget_pool(name, "pool-stopped")?;
                }
                Ok((
                    RolledForward,
                    format!("pool '{name}' was half stopped and is now stopped"),
                ))
            }
            PoolVerb::Build => Ok((
                RolledBack,
                format!(
                    "building pool '{name}' was interrupted; build it again: cenote pool-build \
                     {name}"
                ),
            )),
            PoolVerb::Delete => Ok((
                RolledBack,
                format!(
                    "deleting pool '{name}' was interrupted; delete it again: cenote pool-delete \
                     {name}"
                ),
            )),
            PoolVerb::Undefine => Ok((
                RolledBack,
                format!("pool '{name}' was not undefined; it is as it was"),
            )),
        }
    }
}

/// A fresh node and a fresh boot.
impl Node {
    /// Makes the pool `default` on a node that never had pools.
    pub(crate) fn make_default_pool(&self) -> Result<()> {
        let target = self.state_dir().join("images");
        let definition = PoolDefinition::directory("default", &target)?;
        let xml = definition.to_xml(None);
        if !self.is_read_only() {
            std::fs::create_dir_all(&target).map_err(|source| Error::Io {
                action: "create the directory of pool 'default'",
                path: target.clone(),
                source,
            })?;
        }
        self.state().write("make the default pool", |transaction| {
            let made = transaction.execute(
                "INSERT OR IGNORE INTO node (key, value) VALUES ('default-pool', 'made')",
                [],
            )?;
            if made == 0 {
                return Ok(());
            }
            transaction.execute(
                "INSERT OR IGNORE INTO pools (name, uuid, xml, autostart, active)
                 VALUES ('default', ?1, ?2, 1, 1)",
                params![definition.uuid, xml],
            )?;
            events::append(transaction, "pool-started", "default", &json!({}))
        })
    }

    /// After the host booted nothing is mounted any more: pools are stopped,
    /// transient ones forgotten, those marked for it started again.
    pub(crate) fn note_boot(&self, boot_id: &str) -> Result<()> {
        let fresh = self.state().write("note the boot", |transaction| {
            let known: Option<String> = transaction
                .query_row("SELECT value FROM node WHERE key = 'boot'", [], |row| {
                    row.get(0)
                })
                .optional()?;
            if known.as_deref() == Some(boot_id) {
                return Ok(false);
            }
            transaction.execute(
                "INSERT INTO node (key, value) VALUES ('boot', ?1)
                 ON CONFLICT (key) DO UPDATE SET value = ?1",
                [boot_id],
            )?;
            if known.is_some() {
                transaction.execute("DELETE FROM pools WHERE persistent = 0", [])?;
                transaction.execute("UPDATE pools SET active = 0, mounted = 0", [])?;
                transaction.execute("DELETE FROM node WHERE key = 'domain-id'", [])?;
            }
            Ok(known.is_some())
        })?;
        if !fresh {
            return Ok(());
        }
        for row in self
            .pool_rows()?
            .iter()
            .filter(|row| row.autostart && !row.active)
        {
            if let Err(error) = self.start_row(row) {
                tracing::warn!(pool = row.name(), %error, "cannot autostart a pool");
            }
        }
        self.note_boot_of_domains()
    }
}

/// Whether two targets are one directory; what does not exist yet is compared
/// by name.
fn same_place(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
