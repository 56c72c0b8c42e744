//! What a domain has, and what others have a share in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cenote_model::domain::{Disk, DiskDevice, Domain};
use cenote_pools::{Error as StorageError, VolumeId, VolumeInfo};

use super::{Inventory, Kept, TeardownOptions};
use crate::domains::read::parse_stored;
use crate::domains::table::DomainRow;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::volumes::guard::{Identity, identity};

/// What other domains have.
struct Others(Vec<(Identity, String)>);

impl Others {
    fn user_of(&self, path: &Path) -> Option<&str> {
        let wanted = identity(path)?;
        let found = self.0.iter().find(|(found, _)| *found == wanted);
        found.map(|(_, domain)| domain.as_str())
    }
}

/// The inventory while it is made.
struct Taking<'a> {
    node: &'a Node,
    others: Others,
    volumes: Vec<VolumeId>,
    kept: Vec<Kept>,
}

impl Node {
    /// What a domain has: what [`Node::domain_teardown`] takes away, and what it leaves.
    ///
    /// # Errors
    /// There is no such domain, or the database or a pool cannot be read.
    pub fn domain_inventory(&self, key: &str, options: &TeardownOptions) -> Result<Inventory> {
        let row = self.domain_row(key)?;
        let mut documents = self.both_documents(&row)?;
        documents.extend(self.documents_of_snapshots(&row)?);
        let mut taking = Taking {
            node: self,
            others: self.images_of_others(&row)?,
            volumes: Vec::new(),
            kept: Vec::new(),
        };
        let mut files = BTreeSet::new();
        taking.made_for_snapshots(&row, options.chain)?;
        for document in &documents {
            for disk in &document.devices.disks {
                taking.disk(disk, options.chain)?;
            }
            let nvram = document.os.nvram.as_ref();
            files.extend(nvram.map(|nvram| PathBuf::from(nvram.path.trim())));
        }
        // What was kept for a branch of a chain may have gone with another.
        let taken: Vec<String> = taking.volumes.iter().map(VolumeId::to_string).collect();
        taking.kept.retain(|kept| !taken.contains(&kept.what));
        files.insert(self.managed_save_path(&row.uuid));
        let mut files: Vec<PathBuf> = files.into_iter().filter(|path| path.exists()).collect();
        files_below(&self.memory_dir(&row.uuid), &mut files)?;
        files_below(&self.domain_log_dir(&row.name), &mut files)?;
        Ok(Inventory {
            runs: row.is_active(),
            persistent: row.persistent,
            volumes: taking.volumes,
            files,
            kept: taking.kept,
            name: row.name,
            uuid: row.uuid,
        })
    }

    fn both_documents(&self, row: &DomainRow) -> Result<Vec<Domain>> {
        let documents = self.documents_of(row)?;
        let texts = [documents.definition, documents.live].into_iter().flatten();
        texts.map(|text| parse_stored(&row.name, &text)).collect()
    }

    fn images_of_others(&self, own: &DomainRow) -> Result<Others> {
        let mut images = Vec::new();
        for row in self
            .domain_rows()?
            .iter()
            .filter(|row| row.uuid != own.uuid)
        {
            for document in self.both_documents(row)? {
                for disk in &document.devices.disks {
                    let path = self.image_of(disk)?;
                    let found = path.and_then(|path| identity(&path));
                    images.extend(found.map(|found| (found, row.name.clone())));
                }
            }
        }
        Ok(Others(images))
    }

    /// The path of a disk's image; none of an empty drive, a volume that is gone, or one of a
    /// pool that does not run.
    fn image_of(&self, disk: &Disk) -> Result<Option<PathBuf>> {
        if let Some(path) = disk.source_path() {
            return Ok(Some(PathBuf::from(path)));
        }
        let Some((pool, volume)) = disk.source_volume() else {
            return Ok(None);
        };
        let found = self.volume(&VolumeId::new(pool, volume));
        Ok(known(found)?.map(|info| info.path))
    }
}

/// A volume, or that there is none where it could be looked for.
fn known<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::Storage(
            StorageError::VolumeNotFound { .. }
            | StorageError::PoolNotFound(_)
            | StorageError::PoolInactive(_),
        )) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Taking<'_> {
    fn keep(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let kept = Kept {
            what: what.into(),
            why: why.into(),
        };
        if !self.kept.contains(&kept) {
            self.kept.push(kept);
        }
    }

    /// Takes the images that were made for the domain's snapshots, those on top first.
    fn made_for_snapshots(&mut self, row: &DomainRow, chain: bool) -> Result<()> {
        let mut left = Vec::new();
        for (path, _) in crate::domains::snapshots::table::images(self.node.state(), row.id)? {
            let path = Path::new(&path);
            if path.exists() {
                left.extend(self.volume_at(path)?);
            }
        }
        loop {
            let before = left.len();
            let mut later = Vec::new();
            for info in left {
                let dependents = self.node.dependents_of(&info.path)?;
                match dependents.iter().all(|id| self.volumes.contains(id)) {
                    true => self.volume(info, chain)?,
                    false => later.push(info),
                }
            }
            if later.len() == before {
                return Ok(());
            }
            left = later;
        }
    }

    fn disk(&mut self, disk: &Disk, chain: bool) -> Result<()> {
        let Some(path) = self.node.image_of(disk)? else {
            if let Some((pool, volume)) = disk.source_volume()
                && let Ok(row) = self.node.pool_row(pool)
                && !row.active
            {
                let why = format!("its pool does not run; start it: cenote pool-start {pool}");
                self.keep(format!("{pool}/{volume}"), why);
            }
            return Ok(());
        };
        if !path.exists() {
            return Ok(());
        }
        let shown = path.display().to_string();
        if disk.device != DiskDevice::Disk || disk.readonly {
            self.keep(shown, "it is media, or read-only");
            return Ok(());
        }
        let Some(info) = self.volume_at(&path)? else {
            self.keep(shown, "it is in no running pool");
            return Ok(());
        };
        self.volume(info, chain)
    }

    fn volume_at(&self, path: &Path) -> Result<Option<VolumeInfo>> {
        let Some(name) = path.to_str() else {
            return Ok(None);
        };
        match known(self.node.resolve_volume(name, None))? {
            Some(id) => Ok(Some(self.node.volume(&id)?)),
            None => Ok(None),
        }
    }

    /// Takes a volume if nobody else has a share in it, then with `chain` what it stands on.
    fn volume(&mut self, info: VolumeInfo, chain: bool) -> Result<()> {
        let mut next = Some(info);
        // A chain in a circle ends at the first that was taken.
        while let Some(info) = next.take() {
            let id = info.id();
            if self.volumes.contains(&id) {
                return Ok(());
            }
            if let Some(domain) = self.others.user_of(&info.path) {
                let why = format!("domain '{domain}' has it, too");
                self.keep(id.to_string(), why);
                return Ok(());
            }
            let dependents = self.node.dependents_of(&info.path)?;
            let mut foreign = dependents.iter().filter(|id| !self.volumes.contains(id));
            if let Some(first) = foreign.next() {
                let why = format!("volume '{first}' stands on it");
                self.keep(id.to_string(), why);
                return Ok(());
            }
            self.volumes.push(id);
            let Some(backing) = info.backing else {
                return Ok(());
            };
            let below = match &backing.path {
                Some(path) => self.volume_at(path)?,
                None => None,
            };
            match below {
                Some(below) if chain => next = Some(below),
                Some(below) => {
                    let why = "a backing volume; --chain takes those that nothing else uses";
                    self.keep(below.id().to_string(), why);
                }
                None => self.keep(backing.written, "a backing file in no running pool"),
            }
        }
        Ok(())
    }
}

/// All files below a folder of the node's own, which may not be there.
pub(super) fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let at = |source| Error::Io {
        action: "look through",
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(at)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at)?;
        if entry.file_type().map_err(at)?.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    files.append(&mut found);
    Ok(())
}
