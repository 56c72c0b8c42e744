//! Going back to a snapshot.
//!
//! Disks that were kept in their images go back in place, unless something else stands on such an
//! image: then what the snapshot holds is copied out into an image of its own. Disks that were
//! kept outside get a new overlay on what they were then, so that the snapshot itself stays. Disks
//! that were left out stay as they are. What the domain's memory held is put where its next start
//! looks for it, in the same journalled change, and that start follows at once.

use std::path::PathBuf;

use cenote_model::Document as _;
use cenote_model::domain::{Domain, SnapshotMode};
use cenote_model::snapshot::{Snapshot, SnapshotMemoryMode, SnapshotState};
use cenote_pools::file::private_sibling;

use super::change::SnapshotChange;
use super::overlay::{NewOverlay, beside, go_over};
use super::table::{self, SnapshotRow};
use super::{SnapshotImage, domain_of, find, parse_snapshot};
use crate::domains::error::Error as DomainError;
use crate::domains::life::{Resumption, StartOptions};
use crate::domains::lifecycle::Cause;
use crate::domains::read::parse_stored;
use crate::domains::table::DomainRow;
use crate::error::Result;
use crate::node::Node;
use crate::supervisor::protocol::{Request, Restore};

impl Node {
    /// Makes a domain what it was at a snapshot: its disks, its definition and, if the snapshot
    /// has it, its memory. What its disks and memory hold now is gone unless another snapshot
    /// holds it. Unless `resumption` says otherwise, it runs, stands still or is off as it was;
    /// one whose disks alone were kept is off.
    ///
    /// # Errors
    /// There is no such domain or snapshot; the domain is transient or has a managed save; a file
    /// of the snapshot is gone. Nothing is changed then.
    pub fn domain_snapshot_revert(
        &self,
        key: &str,
        name: &str,
        resumption: Resumption,
    ) -> Result<()> {
        let (row, lock) = self.lock_domain(key)?;
        if !row.persistent {
            let reason = "a transient domain is not there any more when it does not run";
            let hint = format!("define it first: cenote define {}.xml", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        if self.managed_save_path(&row.uuid).exists() {
            let reason = "its managed save would go on with other disks";
            let hint = format!("remove it first: cenote managedsave-remove {}", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let rows = table::all(self.state(), row.id)?;
        let snapshot = find(&row, &rows, name)?;
        let document = parse_snapshot(snapshot)?;
        let change = self.plan_revert(&row, snapshot, &document, &rows)?;
        self.look_through(&row, &change)?;
        if self.is_read_only() {
            return Ok(());
        }
        if row.is_active() {
            let request = Request::Destroy {
                graceful: false,
                cause: Cause::Command,
                for_snapshot: true,
            };
            self.ask_row(&row, "stop", &request)?;
        }
        let with_memory = change.memory.is_some();
        self.change_snapshot(change)?;
        let paused = match (resumption, document.state) {
            (Resumption::Paused, _) => Some(true),
            (Resumption::Running, _) => Some(false),
            (Resumption::AsSaved, Some(SnapshotState::Paused)) if with_memory => Some(true),
            (Resumption::AsSaved, _) => with_memory.then_some(false),
        };
        if let Some(paused) = paused {
            let options = StartOptions {
                paused,
                ..StartOptions::default()
            };
            let restore = with_memory.then(|| Restore {
                path: self.managed_save_path(&row.uuid),
                consume: true,
                snapshot: true,
            });
            let domain = match with_memory {
                true => domain_of(snapshot)?,
                false => self.domain_document(&row.uuid, true)?,
            };
            let documents = self.documents_of(&row)?;
            let now = parse_stored(&row.name, &documents.definition.unwrap_or_default())?;
            let domain = with_images_of(domain, &now);
            self.run_document(&domain, restore, options, Cause::Command, lock.as_ref())?;
        }
        // What nothing is left of may go; that it cannot now changes nothing about the revert.
        if let Err(error) = self.tidy_layers(&row.uuid) {
            tracing::warn!(%error, "images that nothing needs any more stay");
        }
        Ok(())
    }

    fn plan_revert(
        &self,
        row: &DomainRow,
        snapshot: &SnapshotRow,
        document: &Snapshot,
        rows: &[SnapshotRow],
    ) -> Result<SnapshotChange> {
        let then = domain_of(snapshot)?;
        let all = self.images_to_keep(&then)?;
        let mut images = Vec::new();
        let mut overlays = Vec::new();
        for said in document.disks() {
            let Some(image) = all.get(&said.name) else {
                continue;
            };
            match said.mode {
                Some(SnapshotMode::Internal) => {
                    let stays = self.holds_other_state(rows, image)
                        || self.nothing_stands_on(row, &image.path).is_err();
                    match stays {
                        false => images.push(image.clone()),
                        true => {
                            let mut copy = self.another_image(image, &snapshot.name)?;
                            copy.copy_of = Some(snapshot.name.clone());
                            overlays.push(copy);
                        }
                    }
                }
                Some(SnapshotMode::External) => {
                    overlays.push(self.another_image(image, &snapshot.name)?);
                }
                _ => {}
            }
        }
        let definition = match &document.inactive_domain {
            Some(definition) => definition.inactive(),
            None => then.inactive(),
        };
        let mut definition = with_images_of(definition, &then);
        let documents = self.documents_of(row)?;
        let now = parse_stored(&row.name, &documents.definition.unwrap_or_default())?;
        let left_out = |target: &str| {
            let mut said = document.disks().iter();
            all.contains_key(target)
                && said.any(|d| d.name == target && d.mode == Some(SnapshotMode::No))
        };
        for disk in &mut definition.devices.disks {
            let same = now
                .devices
                .disks
                .iter()
                .find(|other| other.target.dev == disk.target.dev);
            if let Some(same) = same.filter(|_| left_out(&disk.target.dev)) {
                *disk = same.clone();
            }
        }
        for overlay in &overlays {
            go_over(&mut definition, overlay);
        }
        Ok(SnapshotChange {
            domain: row.name.clone(),
            uuid: row.uuid.clone(),
            snapshot: snapshot.id,
            name: snapshot.name.clone(),
            images,
            definition: Some(definition.to_xml()),
            overlays,
            memory: self.memory_of_snapshot(row, snapshot, document),
        })
    }

    /// The file that a snapshot's memory is in.
    pub(super) fn memory_of_snapshot(
        &self,
        row: &DomainRow,
        snapshot: &SnapshotRow,
        document: &Snapshot,
    ) -> Option<PathBuf> {
        let memory = document.memory.as_ref()?;
        match (memory.mode, &memory.file) {
            (Some(SnapshotMemoryMode::Internal), _) => {
                Some(self.memory_dir(&row.uuid).join(&snapshot.token))
            }
            (Some(SnapshotMemoryMode::External), Some(file)) => Some(PathBuf::from(file)),
            _ => None,
        }
    }

    /// Whether what the image holds now is a snapshot's state.
    fn holds_other_state(&self, rows: &[SnapshotRow], image: &SnapshotImage) -> bool {
        let wanted = crate::volumes::identity(&image.path);
        rows.iter().any(|row| {
            let (Ok(document), Ok(domain)) = (parse_snapshot(row), domain_of(row)) else {
                return true;
            };
            let outside = |target: &str| {
                let mut said = document.disks().iter();
                said.any(|d| d.name == target && d.mode == Some(SnapshotMode::External))
            };
            let tops = self.images_to_keep(&domain).unwrap_or_default();
            tops.iter().any(|(target, top)| {
                outside(target) && crate::volumes::identity(&top.path) == wanted
            })
        })
    }

    /// An image in the place of `image`, under a name that is free.
    fn another_image(&self, image: &SnapshotImage, name: &str) -> Result<NewOverlay> {
        let mut path = beside(&image.path, &format!("{name}-1"));
        let mut number = 1_u32;
        while std::fs::symlink_metadata(&path).is_ok() {
            number = number.saturating_add(1);
            path = beside(&image.path, &format!("{name}-{number}"));
        }
        Ok(NewOverlay {
            target: image.target.clone(),
            base: std::fs::canonicalize(&image.path).map_err(|source| crate::Error::Io {
                action: "find the image of the snapshot,",
                path: image.path.clone(),
                source,
            })?,
            base_format: image.format,
            copy_of: None,
            temporary: private_sibling(&path, "new"),
            path,
            identity: None,
        })
    }
}

/// `document` with the images of `other`, disk by disk.
fn with_images_of(mut document: Domain, other: &Domain) -> Domain {
    for disk in &mut document.devices.disks {
        let mut others = other.devices.disks.iter();
        if let Some(same) = others.find(|same| same.target.dev == disk.target.dev) {
            disk.kind = same.kind;
            disk.source = same.source.clone();
            disk.driver = same.driver.clone();
            disk.backing_store = same.backing_store.clone();
        }
    }
    document
}
