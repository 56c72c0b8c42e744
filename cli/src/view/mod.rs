//! Every result a command prints, in one place: the structures that docs/schemas describes.
//!
//! Fields may be added. To remove or rename one breaks scripts and fails the schema test.

mod chain;
mod devices;
mod domain;
mod node;
mod pool;
pub mod schemas;
mod snapshot;
mod vol;
mod wipe;

pub use chain::{
    ChainItem, CheckItem, ComparisonItem, FindingItem, MapItem, MapItems, SnapshotItem,
    SnapshotItems,
};
pub use devices::{AddressItem, AddressItems, DiskStatItem, DomainStatItem, DomainStatItems};
pub use domain::{
    DomainDetail, DomainDiskItem, DomainDiskItems, DomainInterfaceItem, DomainInterfaceItems,
    DomainItem, DomainItems, DomainStateItem, VcpuCountItem, VcpuCountItems,
};
pub use node::{
    ConfigSetting, ConfigSettings, DoctorReport, ErrorPage, HostEvent, JobItem, JobItems, NodeInfo,
    ProbeResult, ProbeStatus, RepairItem, RepairItems, VersionInfo,
};
pub use pool::{PoolDetail, PoolItem, PoolItems, PoolTypeItem, PoolTypes};
pub use snapshot::{DomainSnapshotItem, DomainSnapshotItems};
pub use vol::{BackingItem, VolumeDetail, VolumeItem, VolumeItems};
pub use wipe::{CertificateItem, CertificateItems, WipeItem, WipeItems};

use schemars::JsonSchema;
use serde::Serialize;

use crate::out::{Layout, View};

/// What a changing command did.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Done {
    /// What was done, such as `created`.
    pub result: String,
    /// To what kind of thing, such as `volume`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Where it is, when it has a path.
    pub path: Option<String>,
    /// The sentence virsh would print.
    pub message: String,
}

impl Done {
    /// For example `Done::new("volume", "created", "a.img", "Vol a.img created")`.
    pub fn new(
        kind: &str,
        result: &str,
        name: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            result: result.to_owned(),
            kind: kind.to_owned(),
            name: name.into(),
            path: None,
            message: message.into(),
        }
    }

    /// Adds where it is.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }
}

impl View for Done {
    fn layout(&self) -> Layout {
        Layout::Text(format!("{}\n", self.message))
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

/// Implements [`View`] for a newtype over rows.
macro_rules! rows_view {
    ($rows:ident of $row:ident, $name:expr, [$($column:expr => $cell:expr),* $(,)?]) => {
        impl $crate::out::View for $rows {
            fn layout(&self) -> $crate::out::Layout {
                let cells: Vec<fn(&$row) -> String> = vec![$($cell),*];
                $crate::out::Layout::Table($crate::out::Table {
                    columns: vec![$($column),*],
                    rows: self.0.iter()
                        .map(|row| cells.iter().map(|cell| cell(row)).collect())
                        .collect(),
                })
            }

            fn names(&self) -> Vec<String> {
                let name: fn(&$row) -> String = $name;
                self.0.iter().map(name).collect()
            }
        }
    };
}
pub(crate) use rows_view;
