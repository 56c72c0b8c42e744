//! Taking snapshots.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cenote_image::create::{CreateOptions, create};
use cenote_image::{Format, chain};
use cenote_model::domain::{Disk, DiskKind, DiskSource, Domain, SnapshotMode};
use cenote_model::snapshot::{
    Snapshot, SnapshotDisk, SnapshotDisks, SnapshotDomain, SnapshotDriver, SnapshotMemory,
    SnapshotMemoryMode, SnapshotState,
};
use cenote_model::{Document as _, Name};
use cenote_pools::file::{FileIdentity, identity, private_sibling, publish, remove_private};
use cenote_pools::{Error as StorageError, FormatOrigin, VolumeId};
use serde::{Deserialize, Serialize};

use super::table::{self, Begun, NewDocuments};
use super::{SnapshotImage, SnapshotOptions};
use crate::domains::define::parse;
use crate::domains::error::Error as DomainError;
use crate::domains::read::parse_stored;
use crate::domains::table::DomainRow;
use crate::error::{Error, Result};
use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;
use crate::records;
use crate::supervisor::protocol::Request;

/// An overlay that is made for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewOverlay {
    pub(crate) target: String,
    pub(crate) base: PathBuf,
    pub(crate) base_format: Format,
    /// Its private name until it is whole.
    pub(crate) temporary: PathBuf,
    pub(crate) path: PathBuf,
    /// The finished file; known from step 1.
    pub(crate) identity: Option<FileIdentity>,
}

/// A snapshot that is being taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotTake {
    pub(crate) domain: String,
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) overlays: Vec<NewOverlay>,
    pub(crate) internal: Vec<SnapshotImage>,
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
        let memory = wanted.memory.as_ref().and_then(|memory| memory.mode);
        let with_memory = matches!(
            memory,
            Some(SnapshotMemoryMode::Internal | SnapshotMemoryMode::External)
        );
        if with_memory || (row.is_active() && !options.disk_only) {
            let reason = "snapshots do not keep a running guest's memory yet";
            let hint = format!(
                "keep its disks alone: cenote snapshot-create-as {} --disk-only",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let documents = self.documents_of(row)?;
        let text = documents
            .live
            .as_deref()
            .or(documents.definition.as_deref());
        let document = parse_stored(&row.name, text.unwrap_or_default())?.inactive();
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
        let take = self.plan_snapshot(row, &document, wanted, options, name.as_str())?;
        let snapshot = Snapshot {
            name: Some(name.clone()),
            description: wanted.description.clone(),
            state: Some(match row.is_active() {
                true => SnapshotState::DiskSnapshot,
                false => SnapshotState::Shutoff,
            }),
            creation_time: Some(created),
            memory: Some(SnapshotMemory {
                mode: Some(SnapshotMemoryMode::No),
                ..SnapshotMemory::default()
            }),
            disks: Some(SnapshotDisks {
                disks: said_disks(&document, &take),
                ..SnapshotDisks::default()
            }),
            domain: Some(SnapshotDomain::Full(Box::new(document.clone()))),
            ..Snapshot::default()
        };
        if self.is_read_only() {
            return Ok(name.to_string());
        }
        let parent = rows.iter().find(|snapshot| snapshot.current);
        let begun = Begun {
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
        self.check_internal(row, &take)?;
        Ok(take)
    }

    /// That every image can hold the snapshot.
    fn check_internal(&self, row: &DomainRow, take: &SnapshotTake) -> Result<()> {
        if row.is_active() && !take.internal.is_empty() {
            let reason = "internal snapshots are taken of domains that do not run";
            let hint = format!(
                "keep its disks in files beside them: cenote snapshot-create-as {} --disk-only",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
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
            let opened = self.open_image(&image.path, image.format, false)?;
            let there = opened.snapshots().map_err(StorageError::from)?;
            if there.iter().any(|snapshot| snapshot.name == take.name) {
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

    /// Where the overlay of an image is to be.
    pub(super) fn overlay(
        &self,
        row: &DomainRow,
        image: &SnapshotImage,
        name: &str,
        file: Option<PathBuf>,
    ) -> Result<NewOverlay> {
        let is_file = std::fs::metadata(&image.path).is_ok_and(|metadata| metadata.is_file());
        let path = match file {
            Some(file) => file,
            None if is_file => beside(&image.path, name),
            None => {
                let text = format!(
                    "disk '{}' is no file: name the file of its overlay \
                     (--diskspec {},file=/PATH)",
                    image.target, image.target
                );
                return Err(DomainError::InvalidArgument(text).into());
            }
        };
        if std::fs::symlink_metadata(&path).is_ok() {
            let reason = format!(
                "external snapshot file for disk {} already exists: '{}'",
                image.target,
                path.display()
            );
            let hint = format!(
                "choose another name: cenote snapshot-create-as {} NAME --disk-only",
                row.name
            );
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        Ok(NewOverlay {
            target: image.target.clone(),
            base: std::fs::canonicalize(&image.path).unwrap_or_else(|_| image.path.clone()),
            base_format: image.format,
            temporary: private_sibling(&path, "new"),
            path,
            identity: None,
        })
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
        for image in &take.internal {
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
            let request = Request::TakeSnapshot {
                token: take.token.clone(),
                document: live.to_xml(),
                definition,
                targets: overlays
                    .iter()
                    .map(|overlay| overlay.target.clone())
                    .collect(),
            };
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

    /// Makes overlays under their private names.
    pub(super) fn make_overlays(&self, wanted: &[NewOverlay]) -> Result<Vec<NewOverlay>> {
        let mut made = Vec::new();
        for overlay in wanted {
            let base = overlay.base.to_str().ok_or_else(|| {
                let text = format!("'{}' is no text", overlay.base.display());
                Error::from(DomainError::InvalidArgument(text))
            })?;
            let policy = self.backing_policy()?;
            let mut options = CreateOptions::overlay(base, overlay.base_format);
            options.policy = policy.clone();
            create(&overlay.temporary, &options).map_err(StorageError::from)?;
            // What could not be started from is not gone over to.
            chain::list(&overlay.temporary, Format::Qcow2, &policy).map_err(StorageError::from)?;
            keep_rights(&overlay.base, &overlay.temporary)?;
            let identity = identity(&overlay.temporary)?;
            made.push(NewOverlay {
                identity,
                ..overlay.clone()
            });
        }
        Ok(made)
    }

    /// An overlay in a pool's directory is a volume whose format is known.
    pub(super) fn record_overlay(&self, path: &Path) -> Result<()> {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        let name = path.file_name().and_then(|name| name.to_str());
        let (Some(folder), Some(name)) = (folder, name) else {
            return Ok(());
        };
        for row in self.pool_rows()? {
            let target = &row.definition.spec.target;
            if row.logical().is_err() && target.canonicalize().is_ok_and(|at| at == folder) {
                let volume = VolumeId::new(row.name(), name);
                records::put(self.state(), &volume, "qcow2", FormatOrigin::Created)?;
            }
        }
        Ok(())
    }

    /// Brings a snapshot that was not finished to an end.
    pub(crate) fn settle_snapshot(&self, take: &SnapshotTake) -> Result<(RepairOutcome, String)> {
        let SnapshotTake { name, domain, .. } = take;
        if !table::give_up(self.state(), &take.token)? {
            let text = format!("snapshot '{name}' of domain '{domain}' was complete");
            return Ok((RolledForward, text));
        }
        for overlay in &take.overlays {
            remove_private(&overlay.temporary)?;
            remove_overlay(overlay)?;
        }
        for image in &take.internal {
            self.drop_internal(image, name)?;
        }
        let text = format!(
            "snapshot '{name}' of domain '{domain}' was not finished; nothing is left of it"
        );
        Ok((RolledBack, text))
    }

    /// Deletes an internal snapshot, if it is there.
    pub(super) fn drop_internal(&self, image: &SnapshotImage, name: &str) -> Result<()> {
        if !image.path.exists() {
            return Ok(());
        }
        let opened = self.open_image(&image.path, image.format, true)?;
        let there = opened.snapshots().map_err(StorageError::from)?;
        if there.iter().any(|snapshot| snapshot.name == name) {
            opened.delete_snapshot(name).map_err(StorageError::from)?;
        }
        opened.close().map_err(StorageError::from)?;
        Ok(())
    }
}

/// Removes an overlay that nothing uses, if the file is the one that was made.
pub(super) fn remove_overlay(overlay: &NewOverlay) -> Result<()> {
    if overlay.identity.is_some() && identity(&overlay.path)? == overlay.identity {
        std::fs::remove_file(&overlay.path).map_err(|source| Error::Io {
            action: "remove",
            path: overlay.path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// An overlay is its base's owner's, with the same mode.
fn keep_rights(base: &Path, overlay: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let failed = |source| Error::Io {
        action: "give its base's rights to",
        path: overlay.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(base).map_err(failed)?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(overlay, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(failed)?;
    }
    let mode = metadata.mode() & 0o666;
    std::fs::set_permissions(overlay, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// libvirt's name of an overlay: the image's without what follows its last dot, then the
/// snapshot's.
fn beside(image: &Path, name: &str) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    image.with_file_name(format!("{stem}.{name}"))
}

/// The disk's image is the overlay from now on.
pub(super) fn go_over(document: &mut Domain, overlay: &NewOverlay) {
    let disks = document.devices.disks.iter_mut();
    for disk in disks.filter(|disk| disk.target.dev == overlay.target) {
        set_source(disk, &overlay.path);
    }
}

fn set_source(disk: &mut Disk, path: &Path) {
    let driver = disk.driver.get_or_insert_default();
    driver.format = Some(cenote_model::volume::Format::Qcow2);
    // What lay below the image lies below the overlay's base.
    disk.backing_store = None;
    let source = disk.source.get_or_insert_default();
    let beside = path.file_name().and_then(|name| name.to_str());
    if let (DiskKind::Volume, Some(name)) = (disk.kind, beside) {
        source.volume = Some(name.to_owned());
        return;
    }
    disk.kind = DiskKind::File;
    *source = DiskSource {
        file: Some(path.display().to_string()),
        ..DiskSource::default()
    };
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
