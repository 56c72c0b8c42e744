//! Changes of snapshots that go forward once they are begun: going back to one, deleting some.

use cenote_model::Document as _;
use cenote_model::domain::Domain;
use cenote_pools::Error as StorageError;
use serde::{Deserialize, Serialize};

use super::table::{self, SnapshotRow};
use super::{SnapshotImage, domain_of, find, parse_snapshot};
use crate::domains::error::Error as DomainError;
use crate::domains::table::DomainRow;
use crate::error::Result;
use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;

/// A change that is finished once it is begun (step 1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotChange {
    pub(crate) domain: String,
    pub(crate) uuid: String,
    /// The snapshot's row and name.
    pub(crate) snapshot: i64,
    pub(crate) name: String,
    /// Images with an internal snapshot of that name.
    pub(crate) images: Vec<SnapshotImage>,
    /// The domain's definition afterwards, where it goes back; else the snapshot is deleted.
    pub(crate) definition: Option<String>,
}

/// What becomes of a snapshot's children when it is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotDelete {
    /// The snapshots that come after it are deleted too.
    pub children: bool,
    /// Only those are deleted.
    pub children_only: bool,
    /// The images stay as they are; that there was a snapshot is forgotten.
    pub metadata: bool,
}

impl Node {
    /// Deletes a snapshot, and those after it if that is wanted. Answers the names of the
    /// snapshots that are gone.
    ///
    /// # Errors
    /// There is no such domain or snapshot; the domain runs; one of them lies in files beside the
    /// images, which have to be merged first.
    pub fn domain_snapshot_delete(
        &self,
        key: &str,
        name: &str,
        options: SnapshotDelete,
    ) -> Result<Vec<String>> {
        let (row, _lock) = self.lock_domain(key)?;
        let rows = table::all(self.state(), row.id)?;
        let meant = find(&row, &rows, name)?;
        let mut doomed: Vec<&SnapshotRow> = vec![meant];
        if options.children || options.children_only {
            let mut at = 0;
            while let Some(parent) = doomed.get(at).map(|snapshot| snapshot.id) {
                doomed.extend(
                    rows.iter()
                        .filter(|snapshot| snapshot.parent == Some(parent)),
                );
                at = at.saturating_add(1);
            }
        }
        if options.children_only {
            doomed.remove(0);
        }
        // The last first, so that whatever happens a tree is left.
        doomed.reverse();
        let mut changes = Vec::new();
        for snapshot in &doomed {
            let images = match options.metadata {
                true => Vec::new(),
                false => self.images_of_snapshot(&row, snapshot, "deleted")?,
            };
            changes.push(SnapshotChange {
                domain: row.name.clone(),
                uuid: row.uuid.clone(),
                snapshot: snapshot.id,
                name: snapshot.name.clone(),
                images,
                definition: None,
            });
        }
        let names = doomed
            .iter()
            .map(|snapshot| snapshot.name.clone())
            .collect();
        if !self.is_read_only() {
            for change in changes {
                self.change_snapshot(&row, change)?;
            }
        }
        Ok(names)
    }

    /// The images that an internal snapshot lies in, none of which anything else stands on.
    pub(super) fn images_of_snapshot(
        &self,
        row: &DomainRow,
        snapshot: &SnapshotRow,
        what: &str,
    ) -> Result<Vec<SnapshotImage>> {
        let document = parse_snapshot(snapshot)?;
        if document.disks().iter().any(|disk| disk.source.is_some()) {
            let reason = format!(
                "snapshot '{}' lies in files beside the images and cannot be {what} so",
                snapshot.name
            );
            let hint = format!(
                "merge the overlays with 'vol-commit', then forget it: \
                 cenote snapshot-delete {} {} --metadata",
                row.name, snapshot.name
            );
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        if row.is_active() {
            let reason = format!("a snapshot cannot be {what} while the domain runs");
            let hint = format!("shut it down first: cenote shutdown {}", row.name);
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        let domain = domain_of(snapshot)?;
        let kept = document.disks().iter();
        let kept =
            kept.filter(|disk| disk.mode == Some(cenote_model::domain::SnapshotMode::Internal));
        let mut all = self.images_to_keep(&domain)?;
        let images: Vec<_> = kept.filter_map(|disk| all.remove(&disk.name)).collect();
        for image in &images {
            self.nothing_stands_on(row, &image.path)?;
        }
        Ok(images)
    }

    pub(super) fn change_snapshot(&self, row: &DomainRow, change: SnapshotChange) -> Result<()> {
        // Images that are in use are found before anything is begun.
        for image in &change.images {
            let opened = self.open_image(&image.path, image.format, true)?;
            let there = opened.snapshots().map_err(StorageError::from)?;
            let missing = !there.iter().any(|snapshot| snapshot.name == change.name);
            opened.close().map_err(StorageError::from)?;
            if missing && change.definition.is_some() {
                let reason = format!(
                    "the image '{}' has no snapshot '{}' any more",
                    image.path.display(),
                    change.name
                );
                let hint = format!(
                    "forget the snapshot: cenote snapshot-delete {} {} --metadata",
                    row.name, change.name
                );
                return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
            }
        }
        let mut operation = self.begin(Plan::SnapshotChange(change.clone()))?;
        let result = operation
            .revise(1, |_| {})
            .and_then(|()| self.finish_snapshot_change(&change));
        operation.finish(result)?;
        self.wake();
        Ok(())
    }

    fn finish_snapshot_change(&self, change: &SnapshotChange) -> Result<()> {
        for image in &change.images {
            match &change.definition {
                Some(_) => {
                    let opened = self.open_image(&image.path, image.format, true)?;
                    opened
                        .apply_snapshot(&change.name)
                        .map_err(StorageError::from)?;
                    opened.close().map_err(StorageError::from)?;
                }
                None => self.drop_internal(image, &change.name)?,
            }
        }
        self.state().write(
            "record a change of snapshots",
            |transaction| match &change.definition {
                Some(definition) => table::make_current(transaction, change.snapshot, definition),
                None => table::remove(transaction, change.snapshot),
            },
        )
    }

    /// Finishes what was begun.
    pub(crate) fn settle_snapshot_change(
        &self,
        change: &SnapshotChange,
        step: i64,
    ) -> Result<(RepairOutcome, String)> {
        let SnapshotChange { name, domain, .. } = change;
        let done = match change.definition {
            Some(_) => "going back to",
            None => "deleting",
        };
        if step == 0 {
            let text = format!("{done} snapshot '{name}' of domain '{domain}' was not begun");
            return Ok((RolledBack, text));
        }
        self.finish_snapshot_change(change)?;
        let text = format!("{done} snapshot '{name}' of domain '{domain}' was finished");
        Ok((RolledForward, text))
    }
}

/// The definition that a domain has when it goes back to `snapshot`.
pub(super) fn definition_of(snapshot: &SnapshotRow) -> Result<Domain> {
    Ok(domain_of(snapshot)?.inactive())
}

pub(super) fn text_of(document: &Domain) -> String {
    document.to_xml()
}
