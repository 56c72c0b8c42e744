//! Taking snapshots.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cenote_image::{BackingPolicy, Format, LockPolicy, OpenOptions};
use cenote_model::domain::{DiskKind, DiskSource, Domain, SnapshotMode, TargetBus};
use cenote_model::snapshot::{
    Snapshot, SnapshotDisk, SnapshotDisks, SnapshotDomain, SnapshotDriver, SnapshotMemory,
    SnapshotMemoryMode, SnapshotState,
};
use cenote_model::{Document as _, Name};
use cenote_pools::Error as StorageError;
use cenote_pools::file::{publish, remove_private};
use serde::{Deserialize, Serialize};

use super::overlay::{NewOverlay, go_over, remove_overlay, text_of};
use super::table::{self, Begun, NewDocuments};
use super::{SnapshotImage, SnapshotOptions};
use crate::domains::define::parse;
use crate::domains::error::Error as DomainError;
use crate::domains::read::parse_stored;
use crate::domains::save;
use crate::domains::state::DomainState;
use crate::domains::table::DomainRow;
use crate::error::{Error, Result};
use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;
use crate::state::make_private_dir;
use crate::supervisor::protocol::{LiveSnapshot, Request};

/// A snapshot that is being taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotTake {
    pub(crate) domain: String,
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) overlays: Vec<NewOverlay>,
    pub(crate) internal: Vec<SnapshotImage>,
    /// Where the guest's memory is kept.
    #[serde(default)]
    pub(crate) memory: Option<PathBuf>,
}

impl Node {
    /// Takes a snapshot of a domain's disks, as its document says, and makes it the current one.
    /// Answers its name. Unless the document says otherwise, it has all disks that the guest can
    /// write to: in their images if the domain does not run and `disk_only` is not asked for,
    /// else in new files beside them.
    ///
    /// # Errors
    /// There is no such domain; the name is taken; memory is to be kept, which is not possible;
    /// an image cannot hold a snapshot, or something stands on it; a file is there already.
    /// Nothing is changed then.
    pub fn domain_snapshot_create(
        &self,
        key: &str,
        document: &Snapshot,
        options: SnapshotOptions,
    ) -> Result<String> {
        let (row, lock) = self.lock_domain(key)?;
        let made = self.snapshot_under_lock(&row, document, options)?;
        drop(lock);
        if options.halt && row.is_active() && !self.is_read_only() {
            self.domain_destroy(&row.uuid, false)?;
        }
        Ok(made)
    }

    fn snapshot_under_lock(
        &self,
        row: &DomainRow,
        wanted: &Snapshot,
        options: SnapshotOptions,
    ) -> Result<String> {
        let (memory, options) = memory_of(row, wanted, options)?;
        let documents = self.documents_of(row)?;
        let text = documents
            .live
            .as_deref()
            .or(documents.definition.as_deref());
        let document = parse_stored(&row.name, text.unwrap_or_default())?.inactive();
        let inactive_domain = match &documents.definition {
            Some(text) if row.is_active() => Some(Box::new(parse_stored(&row.name, text)?)),
            _ => None,
        };
        let created = jiff::Timestamp::now().as_second();
        let name = match &wanted.name {
            Some(name) => name.clone(),
            None => Name::new(created.to_string())
                .map_err(|error| DomainError::InvalidArgument(error.to_string()))?,
        };
        let rows = table::all(self.state(), row.id)?;
        if rows.iter().any(|snapshot| snapshot.name == name.as_str()) {
            return Err(DomainError::SnapshotExists {
                domain: row.name.clone(),
                name: name.to_string(),
            }
            .into());
        }
        let mut take = self.plan_snapshot(row, &document, wanted, options, name.as_str())?;
        take.memory = self.memory_file(row, &memory, &take.token)?;
        let snapshot = Snapshot {
            name: Some(name.clone()),
            description: wanted.description.clone(),
            state: Some(match row.state {
                _ if !row.is_active() => SnapshotState::Shutoff,
                _ if take.memory.is_none() => SnapshotState::DiskSnapshot,
                DomainState::Paused(_) => SnapshotState::Paused,
                _ => SnapshotState::Running,
            }),
            creation_time: Some(created),
            memory: Some(memory),
            disks: Some(SnapshotDisks {
                disks: said_disks(&document, &take),
                ..SnapshotDisks::default()
            }),
            domain: Some(SnapshotDomain::Full(Box::new(document.clone()))),
            inactive_domain,
            ..Snapshot::default()
        };
        if self.is_read_only() {
            return Ok(name.to_string());
        }
        let parent = rows.iter().find(|snapshot| snapshot.current);
        let images: Vec<_> = take.overlays.iter().map(NewOverlay::remembered).collect();
        let begun = Begun {
            images: &images,
            token: &take.token.clone(),
            domain: row.id,
            name: name.as_str(),
            parent: parent.map(|parent| parent.id),
            xml: &snapshot.to_xml(),
        };
        let mut operation = self.begin(Plan::SnapshotTake(take))?;
        let result = table::begin(self.state(), &begun)
            .and_then(|()| self.take(row, &document, &mut operation));
        operation.finish(result)?;
        self.wake();
        Ok(name.to_string())
    }

    /// Which images are kept, and how.
    fn plan_snapshot(
        &self,
        row: &DomainRow,
        document: &Domain,
        wanted: &Snapshot,
        options: SnapshotOptions,
        name: &str,
    ) -> Result<SnapshotTake> {
        let mut take = SnapshotTake {
            domain: row.name.clone(),
            uuid: row.uuid.clone(),
            name: name.to_owned(),
            token: uuid::Uuid::new_v4().simple().to_string(),
            overlays: Vec::new(),
            internal: Vec::new(),
            memory: None,
        };
        let mut images = self.images_to_keep(document)?;
        let named: BTreeSet<&str> = wanted
            .disks()
            .iter()
            .map(|disk| disk.name.as_str())
            .collect();
        for said in wanted.disks() {
            let disk = document.devices.disks.iter().find(|disk| {
                disk.target.dev == said.name || disk.source_path() == Some(said.name.as_str())
            });
            let Some(disk) = disk else {
                return Err(DomainError::NoDisk {
                    domain: row.name.clone(),
                    target: said.name.clone(),
                }
                .into());
            };
            let image = images.remove(&disk.target.dev);
            let usual = match options.disk_only {
                true => SnapshotMode::External,
                false => SnapshotMode::Internal,
            };
            match (said.mode.unwrap_or(usual), image) {
                (SnapshotMode::No, _) => {}
                (_, None) => {
                    let text = format!("disk '{}' is read-only: nothing is to be kept", said.name);
                    return Err(DomainError::InvalidArgument(text).into());
                }
                (SnapshotMode::External, Some(image)) => {
                    let source = said.source.as_ref();
                    let file = source.and_then(|source| source.file.as_deref());
                    let overlay = self.overlay(row, &image, name, file.map(PathBuf::from))?;
                    take.overlays.push(overlay);
                }
                (SnapshotMode::Internal, Some(image)) => take.internal.push(image),
                (SnapshotMode::Manual, _) => {
                    let text = "snapshot='manual' is for storage that takes them by itself";
                    return Err(DomainError::InvalidArgument(text.to_owned()).into());
                }
            }
        }
        for (target, image) in images {
            let disk = document
                .devices
                .disks
                .iter()
                .find(|disk| disk.target.dev == target);
            let mode = disk.and_then(|disk| disk.snapshot);
            if named.contains(target.as_str()) || mode == Some(SnapshotMode::No) {
                continue;
            }
            if options.disk_only || mode == Some(SnapshotMode::External) {
                take.overlays.push(self.overlay(row, &image, name, None)?);
            } else {
                take.internal.push(image);
            }
        }
        if take.overlays.is_empty() && take.internal.is_empty() {
            let text = "the domain has no disk that a snapshot could keep".to_owned();
            return Err(DomainError::InvalidArgument(text).into());
        }
        if row.is_active() {
            check_bus(row, document, &take)?;
        }
        if document.os.nvram.is_some() && !take.internal.is_empty() {
            let reason = "internal snapshots of a VM with pflash based firmware are not supported";
            let hint = format!(
                "keep its disks outside: cenote snapshot-create-as {} --disk-only",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        self.check_internal(row, &take)?;
        Ok(take)
    }

    /// That every image can hold the snapshot.
    fn check_internal(&self, row: &DomainRow, take: &SnapshotTake) -> Result<()> {
        for image in &take.internal {
            if image.format == Format::Raw {
                let reason = format!(
                    "internal snapshot for disk {} unsupported for storage type raw",
                    image.target
                );
                let hint = format!(
                    "keep it in a file beside it: cenote snapshot-create-as {} --disk-only",
                    row.name
                );
                return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
            }
            self.nothing_stands_on(row, &image.path)?;
            let there = self.internal_names(image)?;
            if there.contains(&take.name) {
                let text = format!(
                    "the image '{}' has a snapshot '{}' already",
                    image.path.display(),
                    take.name
                );
                return Err(DomainError::InvalidArgument(text).into());
            }
        }
        Ok(())
    }

    fn take(
        &self,
        row: &DomainRow,
        document: &Domain,
        operation: &mut crate::journal::Operation<'_>,
    ) -> Result<()> {
        let Plan::SnapshotTake(take) = operation.plan().clone() else {
            return Ok(());
        };
        let overlays = self.make_overlays(&take.overlays)?;
        operation.revise(1, |plan| {
            if let Plan::SnapshotTake(take) = plan {
                take.overlays.clone_from(&overlays);
            }
        })?;
        for overlay in &overlays {
            publish(&overlay.temporary, &overlay.path)?;
            self.record_overlay(&overlay.path)?;
        }
        let internal = take.internal.iter().filter(|_| !row.is_active());
        for image in internal {
            let opened = self.open_image(&image.path, image.format, true)?;
            opened
                .create_snapshot(&take.name)
                .map_err(StorageError::from)?;
            opened.close().map_err(StorageError::from)?;
        }
        let moved = |text: &Option<String>| -> Result<Option<String>> {
            let Some(text) = text else { return Ok(None) };
            let mut document = parse_stored(&row.name, text)?;
            for overlay in &overlays {
                go_over(&mut document, overlay);
            }
            Ok(Some(parse(&document.to_xml())?.to_xml()))
        };
        let documents = self.documents_of(row)?;
        let definition = moved(&documents.definition)?;
        if row.is_active() {
            let mut live = document.clone();
            for overlay in &overlays {
                go_over(&mut live, overlay);
            }
            let request = Request::TakeSnapshot(LiveSnapshot {
                token: take.token.clone(),
                name: take.name.clone(),
                document: live.to_xml(),
                definition,
                overlaid: overlays
                    .iter()
                    .map(|overlay| overlay.target.clone())
                    .collect(),
                internal: take
                    .internal
                    .iter()
                    .map(|image| image.target.clone())
                    .collect(),
                memory: take.memory,
            });
            return self.ask_row(row, "take a snapshot of", &request);
        }
        let documents = NewDocuments {
            live: None,
            definition: definition.as_deref(),
        };
        let committed = self.state().write("record a snapshot", |transaction| {
            table::commit(transaction, &take.token, documents)
        })?;
        match committed {
            true => Ok(()),
            false => Err(DomainError::Busy(row.name.clone()).into()),
        }
    }

    /// Brings a snapshot that was not finished to an end.
    pub(crate) fn settle_snapshot(&self, take: &SnapshotTake) -> Result<(RepairOutcome, String)> {
        let SnapshotTake { name, domain, .. } = take;
        let images: Vec<_> = take
            .overlays
            .iter()
            .map(|made| text_of(&made.path))
            .collect();
        if !table::give_up(self.state(), &take.token, &images)? {
            let text = format!("snapshot '{name}' of domain '{domain}' was complete");
            return Ok((RolledForward, text));
        }
        for overlay in &take.overlays {
            remove_private(&overlay.temporary)?;
            remove_overlay(overlay)?;
        }
        self.drop_internal(&take.uuid, &take.internal, name)?;
        if let Some(path) = &take.memory {
            save::remove_unfinished(path);
            remove_file(path)?;
        }
        let text = format!(
            "snapshot '{name}' of domain '{domain}' was not finished; nothing is left of it"
        );
        Ok((RolledBack, text))
    }

    /// Where the memory is to be kept; nothing is there yet.
    fn memory_file(
        &self,
        row: &DomainRow,
        memory: &SnapshotMemory,
        token: &str,
    ) -> Result<Option<PathBuf>> {
        let path = match (memory.mode, &memory.file) {
            (Some(SnapshotMemoryMode::Internal), _) => {
                let dir = self.memory_dir(&row.uuid);
                if !self.is_read_only() {
                    make_private_dir(&dir).map_err(|source| Error::Io {
                        action: "make",
                        path: dir.clone(),
                        source,
                    })?;
                }
                dir.join(token)
            }
            (Some(SnapshotMemoryMode::External), Some(file)) => PathBuf::from(file),
            _ => return Ok(None),
        };
        if std::fs::symlink_metadata(&path).is_ok() {
            let reason = format!("memory file '{}' exists already", path.display());
            let hint = "name another one: --memspec file=/PATH".to_owned();
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        Ok(Some(path))
    }

    /// The internal snapshots in an image, which a running monitor may have open.
    pub(super) fn internal_names(&self, image: &SnapshotImage) -> Result<Vec<String>> {
        let opened = OpenOptions::new(image.format)
            .lock(LockPolicy::Off)
            .backing(BackingPolicy {
                open: false,
                ..BackingPolicy::default()
            })
            .open(&image.path)
            .map_err(StorageError::from)?;
        let found = opened.snapshots().map_err(StorageError::from)?;
        Ok(found.into_iter().map(|snapshot| snapshot.name).collect())
    }

    /// Deletes an internal snapshot where it is, by the monitor if that has the images open.
    pub(super) fn drop_internal(
        &self,
        uuid: &str,
        images: &[SnapshotImage],
        name: &str,
    ) -> Result<()> {
        let row = crate::domains::table::find(self.state(), uuid)?;
        if let Some(row) = row.filter(DomainRow::is_active)
            && !images.is_empty()
        {
            let request = Request::DropSnapshot {
                name: name.to_owned(),
                targets: images.iter().map(|image| image.target.clone()).collect(),
            };
            match self.ask_row(&row, "delete a snapshot of", &request) {
                // It has ended meanwhile.
                Err(Error::Domain(DomainError::InvalidOperation { .. })) => {}
                result => return result,
            }
        }
        for image in images.iter().filter(|image| image.path.exists()) {
            let opened = self.open_image(&image.path, image.format, true)?;
            let there = opened.snapshots().map_err(StorageError::from)?;
            if there.iter().any(|snapshot| snapshot.name == name) {
                opened.delete_snapshot(name).map_err(StorageError::from)?;
            }
            opened.close().map_err(StorageError::from)?;
        }
        Ok(())
    }
}

/// What becomes of the memory, and how the disks are kept then.
fn memory_of(
    row: &DomainRow,
    wanted: &Snapshot,
    options: SnapshotOptions,
) -> Result<(SnapshotMemory, SnapshotOptions)> {
    let said = wanted.memory.clone().unwrap_or_default();
    let wants = match (said.mode, row.is_active() && !options.disk_only) {
        (None, true) => SnapshotMemoryMode::Internal,
        (mode, true) => mode.unwrap_or_default(),
        (None | Some(SnapshotMemoryMode::No), false) => SnapshotMemoryMode::No,
        (Some(_), false) => {
            let reason = "memory state cannot be saved with offline or disk-only snapshot";
            let hint = format!(
                "leave the memory out, or start the domain first: cenote start {}",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
    };
    if wants == SnapshotMemoryMode::Internal && !row.persistent {
        let reason = "a transient domain is forgotten with its snapshots' memory";
        let hint = "keep it in a file of your own: --memspec file=/PATH".to_owned();
        return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
    }
    if wants != SnapshotMemoryMode::No && row.autodestroy {
        let reason = "domain is marked for auto destroy";
        return Err(DomainError::invalid(&row.name, reason, None).into());
    }
    let disk_only = options.disk_only || row.is_active() && wants != SnapshotMemoryMode::Internal;
    let memory = SnapshotMemory {
        mode: Some(wants),
        file: said.file,
        ..SnapshotMemory::default()
    };
    Ok((
        memory,
        SnapshotOptions {
            disk_only,
            ..options
        },
    ))
}

/// That all disks can be changed under the running guest.
fn check_bus(row: &DomainRow, document: &Domain, take: &SnapshotTake) -> Result<()> {
    let overlaid = take.overlays.iter().map(|overlay| &overlay.target);
    let internal = take.internal.iter().map(|image| &image.target);
    let targets: BTreeSet<&String> = overlaid.chain(internal).collect();
    let disks = document.devices.disks.iter();
    let mut meant = disks.filter(|disk| targets.contains(&disk.target.dev));
    let Some(disk) = meant.find(|disk| disk.bus() != TargetBus::Virtio) else {
        return Ok(());
    };
    let reason = format!(
        "disk '{}' is not on the virtio bus and cannot be kept while the domain runs",
        disk.target.dev
    );
    let hint = format!(
        "shut it down first: cenote shutdown {}; or leave the disk out: --diskspec {},snapshot=no",
        row.name, disk.target.dev
    );
    Err(DomainError::invalid(&row.name, &reason, Some(hint)).into())
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// What the snapshot's document says of each disk.
fn said_disks(document: &Domain, take: &SnapshotTake) -> Vec<SnapshotDisk> {
    let disks = document.devices.disks.iter();
    disks
        .map(|disk| {
            let target = &disk.target.dev;
            let overlay = take
                .overlays
                .iter()
                .find(|overlay| overlay.target == *target);
            let internal = take.internal.iter().any(|image| image.target == *target);
            let mode = match (overlay, internal) {
                (Some(_), _) => SnapshotMode::External,
                (None, true) => SnapshotMode::Internal,
                (None, false) => SnapshotMode::No,
            };
            SnapshotDisk {
                name: target.clone(),
                mode: Some(mode),
                kind: overlay.map(|_| DiskKind::File),
                driver: overlay.map(|_| SnapshotDriver {
                    format: Some(cenote_model::volume::Format::Qcow2),
                    ..SnapshotDriver::default()
                }),
                source: overlay.map(|overlay| DiskSource {
                    file: Some(overlay.path.display().to_string()),
                    ..DiskSource::default()
                }),
                ..SnapshotDisk::default()
            }
        })
        .collect()
}
