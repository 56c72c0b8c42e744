//! Volumes: finding, listing, naming and protecting them.

mod chain;
mod change;
mod clone;
mod collapse;
mod create;
mod document;
pub(crate) mod guard;
mod relink;
mod remove;
mod resolve;
mod transfer;
mod wipe;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_pools::backend::{Found, Listing};
use cenote_pools::layers::Layer;
use cenote_pools::{
    BackingInfo, Error as StorageError, FormatOrigin, Looks, VolumeId, VolumeInfo, VolumeKind,
    sniff,
};

pub use chain::ChainNode;
pub use change::Resize;
pub use clone::CloneSettings;
pub use collapse::AfterCommit;
pub(crate) use collapse::{Collapse, ImageRef};
pub use create::{Compression, NewBacking, NewVolume, Preallocation, Qcow2Settings};
pub(crate) use guard::identity;

use crate::error::Result;
use crate::node::Node;
use crate::pools::{PoolRefresh, PoolRow};
use crate::records::{self, VolumeRecord};

/// All that one look at a pool finds.
pub(crate) struct Scan {
    pub(crate) volumes: Vec<VolumeInfo>,
    pub(crate) adopted: Vec<(String, String)>,
    pub(crate) skipped: Vec<(String, String)>,
}

impl Node {
    /// The volumes of a running pool, by name.
    ///
    /// # Errors
    /// The pool does not run or cannot be read.
    pub fn volumes(&self, pool: &str) -> Result<Vec<VolumeInfo>> {
        Ok(self.scan(&self.running_pool(pool)?)?.volumes)
    }

    /// One volume.
    ///
    /// # Errors
    /// There is no such volume, or its pool does not run.
    pub fn volume(&self, volume: &VolumeId) -> Result<VolumeInfo> {
        let row = self.running_pool(&volume.pool)?;
        let listing = self.listing(&row)?;
        let found = listing
            .volumes
            .into_iter()
            .find(|found| found.name == volume.name);
        let Some(found) = found else {
            return Err(StorageError::VolumeNotFound {
                name: volume.name.clone(),
                pool: Some(row.name().to_owned()),
            }
            .into());
        };
        let record = records::get(self.state(), &VolumeId::new(row.name(), &volume.name))?;
        let (info, adopted) = self.inspect(&row, found, record);
        if adopted {
            records::put(
                self.state(),
                &info.id(),
                &info.format,
                FormatOrigin::Adopted,
            )?;
        }
        Ok(info)
    }

    /// Looks through a running pool: fixes the format of files seen for the
    /// first time and tells what was skipped.
    ///
    /// # Errors
    /// The pool does not run or cannot be read.
    pub fn pool_refresh(&self, pool: &str) -> Result<PoolRefresh> {
        let scan = self.scan(&self.running_pool(pool)?)?;
        Ok(PoolRefresh {
            volumes: scan.volumes.len(),
            adopted: scan.adopted,
            skipped: scan.skipped,
        })
    }

    /// Declares what format a volume has, for files Cenote did not make.
    ///
    /// # Errors
    /// There is no such volume, or `format` is none that Cenote opens.
    pub fn volume_set_format(&self, volume: &VolumeId, format: Format) -> Result<VolumeInfo> {
        let info = self.volume(volume)?;
        if info.kind == VolumeKind::Dir {
            return Err(StorageError::NotADisk(info.id()).into());
        }
        if format == Format::Qcow2 {
            // A header that is none would lock the user out of the volume.
            self.layers().read(&info.path)?;
        }
        records::put(
            self.state(),
            &info.id(),
            format.as_str(),
            FormatOrigin::Declared,
        )?;
        self.volume(volume)
    }

    fn listing(&self, row: &PoolRow) -> Result<Listing> {
        if self.is_unmade(row) {
            return Ok(Listing::default());
        }
        Ok(row.backend().list()?)
    }

    pub(crate) fn scan(&self, row: &PoolRow) -> Result<Scan> {
        let listing = self.listing(row)?;
        let mut records: HashMap<String, VolumeRecord> =
            records::all(self.state(), row.id)?.into_iter().collect();
        let mut scan = Scan {
            volumes: Vec::new(),
            adopted: Vec::new(),
            skipped: listing.skipped,
        };
        for found in listing.volumes {
            let record = records.remove(&found.name);
            let (info, adopted) = self.inspect(row, found, record);
            if adopted {
                scan.adopted.push((info.name.clone(), info.format.clone()));
            }
            scan.volumes.push(info);
        }
        if !scan.adopted.is_empty() {
            records::adopt(self.state(), row.id, &scan.adopted)?;
        }
        let volumes: HashMap<PathBuf, VolumeId> = scan
            .volumes
            .iter()
            .map(|info| (info.path.clone(), info.id()))
            .collect();
        for backing in scan
            .volumes
            .iter_mut()
            .filter_map(|info| info.backing.as_mut())
        {
            if let Some(id) = backing.path.as_ref().and_then(|path| volumes.get(path)) {
                backing.volume = Some(id.clone());
            }
        }
        Ok(scan)
    }

    /// Describes a file of a pool; the second value says that its format is to
    /// be kept from now on.
    fn inspect(
        &self,
        row: &PoolRow,
        found: Found,
        record: Option<VolumeRecord>,
    ) -> (VolumeInfo, bool) {
        let mut info = VolumeInfo {
            pool: row.name().to_owned(),
            key: found.path.display().to_string(),
            name: found.name,
            kind: found.kind,
            format: "raw".into(),
            format_origin: FormatOrigin::Adopted,
            capacity: found.length,
            allocation: found.allocation,
            physical: found.length,
            backing: None,
            mode: found.mode,
            owner: found.owner,
            group: found.group,
            modified: found.modified,
            problem: None,
            path: found.path,
        };
        if info.kind == VolumeKind::Dir {
            info.format = "dir".into();
            return (info, false);
        }
        if info.kind == VolumeKind::Block && record.is_none() {
            // A guest owns every byte of a device: it is raw unless declared.
            return (info, true);
        }
        let adopted = match record {
            Some(record) => {
                info.format = record.format;
                info.format_origin = record.origin;
                false
            }
            None => self.first_sight(&mut info),
        };
        if info.format == "qcow2" {
            match self.layers().read(&info.path) {
                Ok(layer) => describe_layer(&mut info, &layer),
                Err(error) => info.problem = Some(error.to_string()),
            }
        }
        (info, adopted)
    }

    /// Decides the format of a file nobody told us about (see
    /// docs/decisions on formats). Answers whether it is to be kept.
    fn first_sight(&self, info: &mut VolumeInfo) -> bool {
        match sniff(&info.path) {
            // Perhaps somebody is just writing it.
            Ok(Looks::Empty) => false,
            Ok(Looks::Raw) => true,
            Ok(Looks::Format("qcow2")) => {
                info.format = "qcow2".into();
                let alone = self
                    .layers()
                    .read(&info.path)
                    .is_ok_and(|layer| layer.references().next().is_none());
                if !alone {
                    info.format_origin = FormatOrigin::Probed;
                }
                alone
            }
            // A CD image is raw, and its header leads nowhere.
            Ok(Looks::Format("iso")) => {
                info.format = "iso".into();
                true
            }
            Ok(Looks::Format(format)) => {
                info.format = format.into();
                info.format_origin = FormatOrigin::Probed;
                false
            }
            Err(error) => {
                info.format_origin = FormatOrigin::Probed;
                info.problem = Some(error.to_string());
                false
            }
        }
    }

    /// The format a volume may be opened with.
    ///
    /// # Errors
    /// It is no disk, Cenote has no engine for its format, or the format is
    /// only what a header claims that reaches other files.
    pub fn trusted_format(&self, info: &VolumeInfo) -> Result<Format> {
        if info.kind == VolumeKind::Dir {
            return Err(StorageError::NotADisk(info.id()).into());
        }
        match info.format.as_str() {
            "qcow2" if !info.format_origin.is_trusted() => Err(StorageError::FormatUntrusted {
                volume: info.id(),
                found: "qcow2".into(),
            }
            .into()),
            "qcow2" => Ok(Format::Qcow2),
            "raw" | "iso" => Ok(Format::Raw),
            other => Err(StorageError::FormatUnsupported {
                volume: info.id().to_string(),
                format: other.to_owned(),
            }
            .into()),
        }
    }
}

fn describe_layer(info: &mut VolumeInfo, layer: &Layer) {
    info.capacity = layer.size;
    info.backing = layer.backing.as_ref().map(|backing| BackingInfo {
        written: backing.written.clone(),
        path: backing.path.clone(),
        format: backing.format.clone(),
        volume: None,
    });
    let missing = layer
        .references()
        .find(|reference| !reference.path.as_deref().is_some_and(Path::exists));
    if let Some(missing) = missing {
        info.problem = Some(format!(
            "the file '{}' it stands on is missing",
            missing.written
        ));
    }
}
