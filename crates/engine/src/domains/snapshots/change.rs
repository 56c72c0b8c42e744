//! Changes of snapshots that go forward once they are begun: going back to one, deleting some.

use std::path::{Path, PathBuf};

use cenote_model::domain::SnapshotMode;
use cenote_model::snapshot::{Snapshot, SnapshotDisk};
use cenote_pools::{Error as StorageError, crash, file};
use serde::{Deserialize, Serialize};

use super::overlay::NewOverlay;
use super::table::{self, SnapshotRow};
use super::take::remove_file;
use super::{SnapshotImage, domain_of, find, parse_snapshot};
use crate::domains::error::Error as DomainError;
use crate::domains::lifecycle::{self, Cause, Lifecycle, Subject};
use crate::domains::read::parse_stored;
use crate::domains::save;
use crate::domains::table::DomainRow;
use crate::error::{Error, Result};
use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;
use crate::state::make_private_dir;
use crate::volumes::identity;

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
    /// Images that are put in the place of those at the snapshot; known whole from step 1.
    #[serde(default)]
    pub(crate) overlays: Vec<NewOverlay>,
    /// What the snapshot keeps of the memory: gone back to, or removed with the snapshot.
    #[serde(default)]
    pub(crate) memory: Option<PathBuf>,
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
    /// There is no such domain or snapshot; the domain runs and one of them lies in files beside
    /// the images; a running domain's snapshot lies in images that it does not use any more.
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
            let document = parse_snapshot(snapshot)?;
            let (images, memory) = match options.metadata {
                true => (Vec::new(), None),
                false => (
                    self.images_of_snapshot(&row, snapshot, &document)?,
                    self.memory_of_snapshot(&row, snapshot, &document),
                ),
            };
            // Nobody else would know of it.
            let memory = memory.or_else(|| {
                let own = self.memory_dir(&row.uuid).join(&snapshot.token);
                own.exists().then_some(own)
            });
            changes.push(SnapshotChange {
                domain: row.name.clone(),
                uuid: row.uuid.clone(),
                snapshot: snapshot.id,
                name: snapshot.name.clone(),
                images,
                definition: None,
                overlays: Vec::new(),
                memory,
            });
        }
        let names = doomed
            .iter()
            .map(|snapshot| snapshot.name.clone())
            .collect();
        if !self.is_read_only() {
            for change in changes {
                self.change_snapshot(change)?;
            }
            if !options.metadata {
                self.tidy_layers(&row.uuid)?;
            }
        }
        Ok(names)
    }

    /// The images that hold a snapshot which is to be deleted.
    fn images_of_snapshot(
        &self,
        row: &DomainRow,
        snapshot: &SnapshotRow,
        document: &Snapshot,
    ) -> Result<Vec<SnapshotImage>> {
        let mode = |wanted| move |disk: &&SnapshotDisk| disk.mode == Some(wanted);
        let outside = document.disks().iter().any(|disk| disk.source.is_some());
        if row.is_active() && outside {
            let reason = format!(
                "snapshot '{}' lies in files beside the images and cannot be deleted while the \
                 domain runs",
                snapshot.name
            );
            let hint = format!(
                "shut it down first: cenote shutdown {}; or only forget the snapshot: \
                 cenote snapshot-delete {} {} --metadata",
                row.name, row.name, snapshot.name
            );
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        let mut all = self.images_to_keep(&domain_of(snapshot)?)?;
        let kept = document.disks().iter().filter(mode(SnapshotMode::Internal));
        let images: Vec<_> = kept.filter_map(|disk| all.remove(&disk.name)).collect();
        if row.is_active() {
            let live = self.documents_of(row)?.live.unwrap_or_default();
            let live = self.images_to_keep(&parse_stored(&row.name, &live)?)?;
            let elsewhere = images.iter().find(|image| {
                let now = live.get(&image.target);
                now.is_none_or(|now| identity(&now.path) != identity(&image.path))
            });
            if let Some(image) = elsewhere {
                let reason = format!(
                    "snapshot '{}' lies in '{}', which the running domain stands on",
                    snapshot.name,
                    image.path.display()
                );
                let hint = format!("shut it down first: cenote shutdown {}", row.name);
                return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
            }
        }
        Ok(images)
    }

    /// That what is gone back to is there, and that nobody else uses it.
    pub(super) fn look_through(&self, row: &DomainRow, change: &SnapshotChange) -> Result<()> {
        let missing = |what: String| {
            let hint = format!(
                "forget the snapshot: cenote snapshot-delete {} {} --metadata",
                row.name, change.name
            );
            Err(DomainError::invalid(&row.name, &what, Some(hint)).into())
        };
        if let Some(path) = &change.memory {
            save::read(path)?;
        }
        let copied = change.overlays.iter().filter_map(|overlay| {
            let image = SnapshotImage {
                target: overlay.target.clone(),
                path: overlay.base.clone(),
                format: overlay.base_format,
            };
            overlay.copy_of.as_ref().map(|_| image)
        });
        for image in change.images.iter().cloned().chain(copied) {
            if !self.internal_names(&image)?.contains(&change.name) {
                return missing(format!(
                    "the image '{}' has no snapshot '{}' any more",
                    image.path.display(),
                    change.name
                ));
            }
        }
        if row.is_active() {
            return Ok(());
        }
        // Images that are in use are found before anything is begun.
        for image in &change.images {
            let opened = self.open_image(&image.path, image.format, true)?;
            opened.close().map_err(StorageError::from)?;
        }
        Ok(())
    }

    pub(super) fn change_snapshot(&self, change: SnapshotChange) -> Result<()> {
        let mut operation = self.begin(Plan::SnapshotChange(change.clone()))?;
        let result = self.make_overlays(&change.overlays).and_then(|overlays| {
            operation.revise(1, |plan| {
                if let Plan::SnapshotChange(change) = plan {
                    change.overlays.clone_from(&overlays);
                }
            })?;
            let change = SnapshotChange { overlays, ..change };
            self.finish_snapshot_change(&change)
        });
        operation.finish(result)?;
        self.wake();
        Ok(())
    }

    fn finish_snapshot_change(&self, change: &SnapshotChange) -> Result<()> {
        for overlay in &change.overlays {
            if overlay.identity.is_none() || file::identity(&overlay.path)? != overlay.identity {
                file::publish(&overlay.temporary, &overlay.path)?;
            }
            self.record_overlay(&overlay.path)?;
        }
        match &change.definition {
            None => {
                self.drop_internal(&change.uuid, &change.images, &change.name)?;
                if let Some(path) = &change.memory {
                    remove_file(path)?;
                }
            }
            Some(_) => {
                for image in &change.images {
                    let opened = self.open_image(&image.path, image.format, true)?;
                    opened
                        .apply_snapshot(&change.name)
                        .map_err(StorageError::from)?;
                    opened.close().map_err(StorageError::from)?;
                }
                if let Some(path) = &change.memory {
                    self.offer_memory(path, &change.uuid)?;
                }
            }
        }
        self.state().write(
            "record a change of snapshots",
            |transaction| match &change.definition {
                Some(definition) => {
                    let domain = table::make_current(transaction, change.snapshot, definition)?;
                    for overlay in &change.overlays {
                        table::put_image(transaction, domain, &overlay.remembered())?;
                    }
                    let subject = Subject {
                        name: &change.domain,
                        uuid: &change.uuid,
                        id: None,
                    };
                    let event = Lifecycle::DefinedSnapshot;
                    lifecycle::append(transaction, subject, event, Cause::Command, None)
                }
                None => table::remove(transaction, change.snapshot),
            },
        )
    }

    /// Puts a snapshot's memory where the next start of the domain looks for it.
    fn offer_memory(&self, memory: &Path, uuid: &str) -> Result<()> {
        let to = self.managed_save_path(uuid);
        let dir = self.save_dir();
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                action,
                path,
                source,
            }
        };
        make_private_dir(&dir).map_err(at("make", &dir))?;
        remove_file(&to)?;
        if std::fs::hard_link(memory, &to).is_err() {
            // It lies on another file system.
            let beside = dir.join(format!(".{uuid}.save-snapshot"));
            std::fs::copy(memory, &beside)
                .and_then(|_| std::fs::File::open(&beside)?.sync_all())
                .and_then(|()| std::fs::rename(&beside, &to))
                .map_err(at("copy", memory))?;
        }
        crash::point("memory-offered");
        Ok(())
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
            for overlay in &change.overlays {
                file::remove_private(&overlay.temporary)?;
            }
            let text = format!("{done} snapshot '{name}' of domain '{domain}' was not begun");
            return Ok((RolledBack, text));
        }
        self.finish_snapshot_change(change)?;
        let text = format!("{done} snapshot '{name}' of domain '{domain}' was finished");
        Ok((RolledForward, text))
    }
}
