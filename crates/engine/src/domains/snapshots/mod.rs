//! Snapshots of domains: of their disks alone, or with the memory of a running one.
//!
//! An internal snapshot lies in the image of each disk. An external one leaves the disks' images
//! as they are and puts an overlay on each, which the domain uses from then on. Either has all
//! disks of the domain or is not there at all, however its maker ends. Memory lies in a file: one
//! that was named, else one of the node's own.

mod change;
mod layers;
mod overlay;
mod revert;
pub(crate) mod table;
mod take;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_model::domain::{Disk, DiskDevice, Domain};
use cenote_model::snapshot::{Snapshot, SnapshotDomain};
use cenote_model::{Document as _, ReadOptions};
use serde::{Deserialize, Serialize};

pub(crate) use self::change::SnapshotChange;
pub use self::change::SnapshotDelete;
pub(crate) use self::layers::LayerChange;
use self::table::SnapshotRow;
pub(crate) use self::take::SnapshotTake;
use super::error::Error as DomainError;
use super::read::parse_stored;
use super::table::DomainRow;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::volumes::identity;

/// A snapshot of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// The snapshot before it.
    pub parent: Option<String>,
    /// How many snapshots come right after it.
    pub children: usize,
    /// Whether the domain's disks go on from it.
    pub current: bool,
    /// When it was taken, in seconds since 1970.
    pub created: i64,
    /// libvirt's word for the domain's state then: `shutoff` or `disk-snapshot`.
    pub state: String,
    /// Whether it lies in files beside the disks' images, not in these.
    pub external: bool,
    /// For people.
    pub description: Option<String>,
}

/// How a snapshot is taken, beyond its document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Of the disks alone, in files beside their images.
    pub disk_only: bool,
    /// The domain ends with it.
    pub halt: bool,
}

/// Looking at snapshots.
impl Node {
    /// The snapshots of a domain, oldest first.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn domain_snapshots(&self, key: &str) -> Result<Vec<SnapshotInfo>> {
        let row = self.domain_row(key)?;
        let rows = table::all(self.state(), row.id)?;
        rows.iter()
            .map(|snapshot| info_of(snapshot, &rows))
            .collect()
    }

    /// One snapshot of a domain.
    ///
    /// # Errors
    /// There is no such domain or snapshot.
    pub fn domain_snapshot(&self, key: &str, name: &str) -> Result<SnapshotInfo> {
        let row = self.domain_row(key)?;
        let rows = table::all(self.state(), row.id)?;
        info_of(find(&row, &rows, name)?, &rows)
    }

    /// The snapshot that the domain's disks go on from, if there is one.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn domain_snapshot_current(&self, key: &str) -> Result<Option<SnapshotInfo>> {
        let all = self.domain_snapshots(key)?;
        Ok(all.into_iter().find(|snapshot| snapshot.current))
    }

    /// The document of a snapshot, with passwords if `secure`.
    ///
    /// # Errors
    /// There is no such domain or snapshot.
    pub fn domain_snapshot_xml(&self, key: &str, name: &str, secure: bool) -> Result<String> {
        let row = self.domain_row(key)?;
        let rows = table::all(self.state(), row.id)?;
        let snapshot = find(&row, &rows, name)?;
        let mut document = parse_snapshot(snapshot)?;
        document.parent =
            match parent_of(snapshot, &rows) {
                None => None,
                Some(parent) => parse_snapshot(parent)?.name.map(|name| {
                    cenote_model::snapshot::SnapshotParent {
                        name,
                        ..Default::default()
                    }
                }),
            };
        if let (false, Some(SnapshotDomain::Full(domain))) = (secure, &mut document.domain) {
            **domain = domain.without_secrets();
        }
        Ok(document.to_xml())
    }
}

fn info_of(snapshot: &SnapshotRow, rows: &[SnapshotRow]) -> Result<SnapshotInfo> {
    let document = parse_snapshot(snapshot)?;
    let disks = document.disks();
    Ok(SnapshotInfo {
        name: snapshot.name.clone(),
        parent: parent_of(snapshot, rows).map(|parent| parent.name.clone()),
        children: rows
            .iter()
            .filter(|row| row.parent == Some(snapshot.id))
            .count(),
        current: snapshot.current,
        created: document.creation_time.unwrap_or_default(),
        state: document.state.unwrap_or_default().to_string(),
        external: disks.iter().any(|disk| disk.source.is_some()),
        description: document.description.clone(),
    })
}

fn parent_of<'a>(snapshot: &SnapshotRow, rows: &'a [SnapshotRow]) -> Option<&'a SnapshotRow> {
    rows.iter().find(|row| Some(row.id) == snapshot.parent)
}

fn find<'a>(row: &DomainRow, rows: &'a [SnapshotRow], name: &str) -> Result<&'a SnapshotRow> {
    rows.iter()
        .find(|snapshot| snapshot.name == name)
        .ok_or_else(|| {
            DomainError::NoSnapshot {
                domain: row.name.clone(),
                name: name.to_owned(),
            }
            .into()
        })
}

fn parse_snapshot(row: &SnapshotRow) -> Result<Snapshot> {
    let parsed = Snapshot::from_xml(&row.xml, &ReadOptions::default());
    let parsed = parsed.map_err(|error| Error::BadRecord {
        what: format!("the document of snapshot '{}'", row.name),
        reason: error.to_string(),
    })?;
    Ok(parsed.document)
}

/// The domain as it was at a snapshot.
fn domain_of(snapshot: &SnapshotRow) -> Result<Domain> {
    match parse_snapshot(snapshot)?.domain {
        Some(SnapshotDomain::Full(domain)) => Ok(*domain),
        _ => Err(Error::BadRecord {
            what: format!("the document of snapshot '{}'", snapshot.name),
            reason: "it has no domain".to_owned(),
        }),
    }
}

/// An image that a snapshot is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotImage {
    pub(crate) target: String,
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
}

impl Node {
    /// A domain as it was at each of its snapshots.
    pub(crate) fn documents_of_snapshots(&self, row: &DomainRow) -> Result<Vec<Domain>> {
        let rows = table::all(self.state(), row.id)?;
        rows.iter().map(domain_of).collect()
    }

    /// The images on top of a domain's disks that a guest can write to, by target.
    fn images_to_keep(&self, document: &Domain) -> Result<BTreeMap<String, SnapshotImage>> {
        let mut images = BTreeMap::new();
        for disk in &document.devices.disks {
            if disk.device != DiskDevice::Disk || disk.readonly {
                continue;
            }
            let (path, format) = self.top_image(disk)?;
            let target = disk.target.dev.clone();
            let image = SnapshotImage {
                target: target.clone(),
                path,
                format,
            };
            images.insert(target, image);
        }
        Ok(images)
    }

    fn top_image(&self, disk: &Disk) -> Result<(PathBuf, Format)> {
        if let Some((pool, volume)) = disk.source_volume() {
            let info = self.volume(&cenote_pools::VolumeId::new(pool, volume))?;
            let format = self.trusted_format(&info)?;
            return Ok((info.path, format));
        }
        let format = match disk.format() {
            cenote_model::volume::Format::Qcow2 => Format::Qcow2,
            _ => Format::Raw,
        };
        let path = disk.source_path().unwrap_or_default();
        Ok((PathBuf::from(path), format))
    }

    /// That no image of any domain or snapshot stands on `path`, whose content is to change.
    fn nothing_stands_on(&self, row: &DomainRow, path: &Path) -> Result<()> {
        let refused = |who: &str| {
            let reason = format!("'{}' cannot be changed: {who} stands on it", path.display());
            let hint = format!(
                "see what stands on what: cenote snapshot-list {} --tree",
                row.name
            );
            Err(DomainError::invalid(&row.name, &reason, Some(hint)).into())
        };
        let wanted = identity(path);
        if let Some(volume) = self.dependents_of(path)?.first() {
            return refused(&format!("volume '{volume}'"));
        }
        for other in self.domain_rows()? {
            let documents = self.documents_of(&other)?;
            let mut found = Vec::new();
            for text in documents.definition.iter().chain(&documents.live) {
                found.push((
                    parse_stored(&other.name, text)?,
                    format!("domain '{}'", other.name),
                ));
            }
            for snapshot in table::all(self.state(), other.id)? {
                let who = format!("snapshot '{}' of domain '{}'", snapshot.name, other.name);
                found.push((domain_of(&snapshot)?, who));
            }
            for (document, who) in found {
                for disk in &document.devices.disks {
                    let Ok((top, format)) = self.top_image(disk) else {
                        continue;
                    };
                    let below = self.layers().ancestors(&top, format);
                    if wanted.is_some() && below.iter().any(|path| identity(path) == wanted) {
                        return refused(&who);
                    }
                }
            }
        }
        Ok(())
    }
}
