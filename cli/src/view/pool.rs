//! Results about pools.

use cenote_engine::{PoolInfo, PoolState};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::rows_view;
use crate::out::{Column, Field, Layout, Table, View, human, yes_no};

/// A pool, in `pool-list` and `pool-info`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PoolItem {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its type: `dir`, `fs`, `netfs` or `logical`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `inactive`, `running` or `inaccessible`.
    pub state: String,
    /// Whether it is started.
    pub active: bool,
    /// Whether its definition is kept when it is stopped.
    pub persistent: bool,
    /// Whether it is started with the node.
    pub autostart: bool,
    /// Folder of its volumes.
    pub target: String,
    /// Bytes in all; only of a running pool.
    pub capacity: Option<u64>,
    /// Bytes used.
    pub allocation: Option<u64>,
    /// Bytes free.
    pub available: Option<u64>,
    /// Why it is inaccessible.
    pub problem: Option<String>,
}

impl From<PoolInfo> for PoolItem {
    fn from(info: PoolInfo) -> Self {
        let state = match info.state {
            PoolState::Inactive => "inactive",
            PoolState::Running => "running",
            PoolState::Inaccessible => "inaccessible",
        };
        Self {
            name: info.name,
            uuid: info.uuid,
            kind: info.kind,
            state: state.to_owned(),
            active: info.state != PoolState::Inactive,
            persistent: info.persistent,
            autostart: info.autostart,
            target: info.target.display().to_string(),
            capacity: info.capacity,
            allocation: info.allocation,
            available: info.available,
            problem: info.problem,
        }
    }
}

/// `pool-list`.
#[derive(Clone, Debug)]
pub struct PoolItems {
    /// The pools.
    pub pools: Vec<PoolItem>,
    /// Whether the table has the columns of `--details`.
    pub details: bool,
}

impl Serialize for PoolItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pools.serialize(serializer)
    }
}

fn size(bytes: Option<u64>) -> String {
    bytes.map(human).unwrap_or_default()
}

impl View for PoolItems {
    fn layout(&self) -> Layout {
        let more = if self.details {
            Column::new
        } else {
            Column::wide
        };
        let row = |pool: &PoolItem| {
            let plain = if pool.active { "active" } else { "inactive" };
            let state = if self.details || pool.problem.is_some() {
                &pool.state
            } else {
                plain
            };
            vec![
                pool.name.clone(),
                state.to_owned(),
                yes_no(pool.autostart).to_owned(),
                yes_no(pool.persistent).to_owned(),
                size(pool.capacity),
                size(pool.allocation),
                size(pool.available),
                pool.kind.clone(),
                pool.uuid.clone(),
                pool.target.clone(),
            ]
        };
        Layout::Table(Table {
            columns: vec![
                Column::new("name", "Name"),
                Column::new("state", "State"),
                Column::new("autostart", "Autostart"),
                more("persistent", "Persistent"),
                more("capacity", "Capacity"),
                more("allocation", "Allocation"),
                more("available", "Available"),
                Column::wide("type", "Type"),
                Column::wide("uuid", "UUID"),
                Column::wide("target", "Target"),
            ],
            rows: self.pools.iter().map(row).collect(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.pools.iter().map(|pool| pool.name.clone()).collect()
    }
}

/// `pool-info`.
#[derive(Clone, Debug)]
pub struct PoolDetail {
    /// The pool.
    pub pool: PoolItem,
    /// Whether sizes are bytes.
    pub bytes: bool,
}

impl Serialize for PoolDetail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.pool.serialize(serializer)
    }
}

impl View for PoolDetail {
    fn layout(&self) -> Layout {
        let pool = &self.pool;
        let size = |bytes: Option<u64>| match bytes {
            Some(bytes) if self.bytes => bytes.to_string(),
            bytes => size(bytes),
        };
        let mut fields = vec![
            Field::new("name", "Name", &pool.name),
            Field::new("uuid", "UUID", &pool.uuid),
            Field::new("state", "State", &pool.state),
            Field::new("persistent", "Persistent", yes_no(pool.persistent)),
            Field::new("autostart", "Autostart", yes_no(pool.autostart)),
        ];
        if pool.capacity.is_some() {
            fields.extend([
                Field::new("capacity", "Capacity", size(pool.capacity)),
                Field::new("allocation", "Allocation", size(pool.allocation)),
                Field::new("available", "Available", size(pool.available)),
            ]);
        }
        if let Some(problem) = &pool.problem {
            fields.push(Field::new("problem", "Problem", problem));
        }
        fields.extend([
            Field::wide("type", "Type", &pool.kind),
            Field::wide("target", "Target", &pool.target),
        ]);
        Layout::Record(fields)
    }

    fn names(&self) -> Vec<String> {
        vec![self.pool.name.clone()]
    }
}

/// One pool type of `pool-capabilities`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PoolTypeItem {
    /// libvirt's name of the type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether Cenote has it.
    pub supported: bool,
    /// Formats of the pool's source, the default first.
    pub source_formats: Vec<String>,
    /// Formats of volumes, the default first.
    pub volume_formats: Vec<String>,
    /// What to use instead of an unsupported type.
    pub instead: Option<String>,
}

/// `pool-capabilities`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct PoolTypes(pub Vec<PoolTypeItem>);

rows_view!(PoolTypes of PoolTypeItem, |row| row.kind.clone(), [
    Column::new("type", "Type") => |row| row.kind.clone(),
    Column::new("supported", "Supported") => |row| yes_no(row.supported).to_owned(),
    Column::new("volume_formats", "Volumes") => |row| row.volume_formats.join(", "),
    Column::new("instead", "Instead") => |row| row.instead.clone().unwrap_or_default(),
    Column::wide("source_formats", "Sources") => |row| row.source_formats.join(", "),
]);
