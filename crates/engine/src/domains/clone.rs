//! Clones: a domain like another, with an identity and disks of its own.

use std::collections::BTreeMap;

use cenote_model::domain::{Disk, DiskDevice, DiskKind, DiskSource, Domain};
use cenote_model::{Document as _, Name};
use cenote_pools::{Error as StorageError, Progress, VolumeId, VolumeInfo};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::define::{DefineOptions, give_identity, uuid_of};
use super::error::Error as DomainError;
use super::read::parse_stored;
use super::table::{self, DomainRow};
use crate::error::{Error, Result};
use crate::journal::Operation;
use crate::journal::RepairOutcome::{self, RolledBack, RolledForward};
use crate::node::Node;
use crate::plan::Plan;
use crate::teardown::domain_subject;
use crate::volumes::{CloneSettings, NewVolume};

/// How a domain is cloned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DomainClone {
    /// Each disk is an overlay on the original's, which must not change from then on.
    pub linked: bool,
    /// Names of new volumes, by target; the others are named after the clone.
    pub volumes: BTreeMap<String, String>,
}

/// A clone that is being made (step 1: volumes are made).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cloning {
    pub(crate) source: String,
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) volumes: Vec<VolumeId>,
}

impl Cloning {
    pub(crate) fn subjects(&self) -> Vec<String> {
        let volumes = self.volumes.iter().map(VolumeId::to_string);
        std::iter::once(domain_subject(&self.name))
            .chain(volumes)
            .collect()
    }
}

/// A disk that the clone has its own of.
struct Copy {
    target: String,
    from: VolumeInfo,
    to: VolumeId,
}

impl Node {
    /// Defines a domain like one that does not run: with its own name, UUID, addresses of network
    /// cards and disks. Disks that a guest cannot write to, and drives, are shared. Answers the
    /// new volumes.
    ///
    /// # Errors
    /// The domain runs, has a managed save or firmware variables; a disk is in no running pool;
    /// the name or a volume is there already. Nothing is left then.
    pub fn domain_clone(
        &self,
        key: &str,
        name: &Name,
        wanted: &DomainClone,
        progress: &dyn Progress,
    ) -> Result<Vec<VolumeId>> {
        let (row, _lock) = self.lock_domain(key)?;
        let mut document = self.original(&row)?;
        let copies = self.copies(&row, &document, name, wanted)?;
        if let Some(taken) = table::find(self.state(), name)?.filter(|row| row.name == **name) {
            return Err(DomainError::NameTaken {
                name: taken.name,
                uuid: taken.uuid,
                document_has_uuid: true,
            }
            .into());
        }
        document.name = name.clone();
        document.set_uuid(Uuid::new_v4());
        for card in &mut document.devices.interfaces {
            card.mac = None;
        }
        give_identity(&mut document);
        if document.genid.is_some() {
            document.genid = Some(Uuid::new_v4().hyphenated().to_string());
        }
        for copy in &copies {
            let mut disks = document.devices.disks.iter_mut();
            if let Some(disk) = disks.find(|disk| disk.target.dev == copy.target) {
                go_to(disk, copy, wanted.linked);
            }
        }
        let volumes: Vec<VolumeId> = copies.iter().map(|copy| copy.to.clone()).collect();
        if self.is_read_only() {
            return Ok(volumes);
        }
        let mut operation = self.begin(Plan::DomainClone(Cloning {
            source: row.name.clone(),
            name: name.to_string(),
            uuid: uuid_of(&document),
            volumes: volumes.clone(),
        }))?;
        let result = self.make_clone(&mut operation, &document, &copies, wanted, progress);
        operation.finish(result)?;
        Ok(volumes)
    }

    /// The definition that is cloned.
    fn original(&self, row: &DomainRow) -> Result<Domain> {
        let refused = |reason: &str, hint: String| {
            Err(DomainError::invalid(&row.name, reason, Some(hint)).into())
        };
        if row.is_active() {
            let hint = format!("shut it down first: cenote shutdown {}", row.name);
            return refused("a domain that runs cannot be cloned", hint);
        }
        if self.managed_save_path(&row.uuid).exists() {
            let hint = format!("remove it first: cenote managedsave-remove {}", row.name);
            return refused("its disks belong to its managed save", hint);
        }
        let definition = self.documents_of(row)?.definition.unwrap_or_default();
        let document = parse_stored(&row.name, &definition)?;
        if document.os.nvram.is_some() {
            let hint = format!("copy the definition by hand: cenote dumpxml {}", row.name);
            return refused("firmware variables cannot be cloned yet", hint);
        }
        Ok(document)
    }

    fn copies(
        &self,
        row: &DomainRow,
        document: &Domain,
        name: &Name,
        wanted: &DomainClone,
    ) -> Result<Vec<Copy>> {
        let mut copies: Vec<Copy> = Vec::new();
        for disk in &document.devices.disks {
            if disk.device != DiskDevice::Disk || disk.readonly {
                continue;
            }
            let target = disk.target.dev.clone();
            let from = match (disk.source_volume(), disk.source_path()) {
                (Some((pool, volume)), _) => Some(self.volume(&VolumeId::new(pool, volume))?),
                (None, Some(path)) => self.volume_at(std::path::Path::new(path))?,
                (None, None) => None,
            };
            let Some(from) = from else {
                let reason = format!("disk '{target}' is in no running pool");
                let hint = "make its folder a pool: cenote pool-create-as NAME dir --target FOLDER";
                return Err(DomainError::invalid(&row.name, &reason, Some(hint.to_owned())).into());
            };
            let given = wanted.volumes.get(&target).cloned();
            let volume = given.unwrap_or_else(|| volume_name(&from.name, &row.name, name, &target));
            let to = VolumeId::new(&from.pool, volume);
            let twice = copies.iter().any(|copy| copy.to == to);
            if twice || self.is_there(&to)? {
                return Err(StorageError::VolumeExists(to).into());
            }
            copies.push(Copy { target, from, to });
        }
        for target in wanted.volumes.keys() {
            if !copies.iter().any(|copy| copy.target == *target) {
                return Err(DomainError::NoDisk {
                    domain: row.name.clone(),
                    target: target.clone(),
                }
                .into());
            }
        }
        Ok(copies)
    }

    fn is_there(&self, volume: &VolumeId) -> Result<bool> {
        match self.volume(volume) {
            Ok(_) => Ok(true),
            Err(Error::Storage(StorageError::VolumeNotFound { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn make_clone(
        &self,
        operation: &mut Operation<'_>,
        document: &Domain,
        copies: &[Copy],
        wanted: &DomainClone,
        progress: &dyn Progress,
    ) -> Result<()> {
        // Their names are this operation's from here on: what is there now is not.
        for copy in copies {
            if self.is_there(&copy.to)? {
                return Err(StorageError::VolumeExists(copy.to.clone()).into());
            }
        }
        operation.revise(1, |_| {})?;
        for copy in copies {
            let (from, to) = (copy.from.id(), &copy.to);
            operation.part(|| match wanted.linked {
                true => self.volume_clone_linked(&from, &to.pool, &to.name),
                false => {
                    let format = self.trusted_format(&copy.from)?;
                    let new = NewVolume::new(&to.name, format, copy.from.capacity);
                    let settings = CloneSettings::default();
                    let new = NewVolume {
                        allocation: Some(0),
                        ..new
                    };
                    self.volume_clone(&from, &to.pool, &new, &settings, progress)
                }
            })?;
        }
        let options = DefineOptions::default();
        self.domain_define(&document.to_xml(), options).map(drop)
    }

    /// Brings a clone that was not finished to an end.
    pub(crate) fn settle_clone(
        &self,
        cloning: &Cloning,
        step: i64,
    ) -> Result<(RepairOutcome, String)> {
        let Cloning { source, name, .. } = cloning;
        let defined = table::find(self.state(), &cloning.uuid)?;
        if defined.is_some_and(|row| row.uuid == cloning.uuid) {
            let text = format!("domain '{name}', a clone of '{source}', was complete");
            return Ok((RolledForward, text));
        }
        if step > 0 {
            for volume in &cloning.volumes {
                match self.volume_delete(volume) {
                    Err(Error::Storage(StorageError::VolumeNotFound { .. })) => {}
                    result => result?,
                }
            }
        }
        let text = format!("cloning '{source}' to '{name}' was interrupted; nothing is left of it");
        Ok((RolledBack, text))
    }
}

/// The name of a clone's volume: the original's with the clone's name in the place of the
/// domain's, else the clone's name and the disk's target.
fn volume_name(volume: &str, old: &str, new: &str, target: &str) -> String {
    if volume.contains(old) {
        return volume.replacen(old, new, 1);
    }
    match volume.rsplit_once('.') {
        Some((_, ending)) => format!("{new}-{target}.{ending}"),
        None => format!("{new}-{target}"),
    }
}

/// The disk is the copy's from now on.
fn go_to(disk: &mut Disk, copy: &Copy, linked: bool) {
    disk.backing_store = None;
    if linked {
        let driver = disk.driver.get_or_insert_default();
        driver.format = Some(cenote_model::volume::Format::Qcow2);
    }
    let source = disk.source.get_or_insert_default();
    match disk.kind {
        DiskKind::Volume => source.volume = Some(copy.to.name.clone()),
        _ => {
            let path = copy.from.path.with_file_name(&copy.to.name);
            let path = Some(path.display().to_string());
            *source = match disk.kind {
                DiskKind::Block if !linked => DiskSource {
                    dev: path,
                    ..DiskSource::default()
                },
                _ => DiskSource {
                    file: path,
                    ..DiskSource::default()
                },
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::volume_name;

    #[test]
    fn volumes_are_named_after_the_clone() {
        assert_eq!(volume_name("web.qcow2", "web", "shop", "vda"), "shop.qcow2");
        assert_eq!(
            volume_name("disk.raw", "web", "shop", "vdb"),
            "shop-vdb.raw"
        );
        assert_eq!(volume_name("disk", "web", "shop", "vda"), "shop-vda");
    }
}
