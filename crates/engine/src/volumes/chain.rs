//! Chains as trees: what stands on what, over all pools.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cenote_image::{Format, Image, OpenOptions};
use cenote_pools::{Error as StorageError, VolumeId, VolumeInfo};
use serde::{Deserialize, Serialize};

use super::guard::{Identity, identity};
use crate::error::Result;
use crate::node::Node;

/// Deepest tree that is drawn.
const MAX_DEPTH: usize = 512;

/// An image and the images that stand on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainNode {
    /// The volume the file is, if it is one of a pool.
    pub volume: Option<VolumeId>,
    /// The file.
    pub path: PathBuf,
    /// Its format; as the image above declares it where it is no volume.
    pub format: Option<String>,
    /// Size the guest sees, in bytes; `None` where it cannot be read.
    pub capacity: Option<u64>,
    /// Space it takes, in bytes.
    pub allocation: Option<u64>,
    /// Number of its internal snapshots.
    pub snapshots: u32,
    /// Whether this is the volume asked for.
    pub selected: bool,
    /// What is wrong with it, for example that its file is missing.
    pub problem: Option<String>,
    /// The images that have it as their backing file.
    pub overlays: Vec<ChainNode>,
}

/// All images of the reachable pools and the edges between them.
struct Family {
    volumes: HashMap<Identity, VolumeInfo>,
    overlays: HashMap<Identity, Vec<Identity>>,
}

impl Node {
    /// The whole tree a volume is in: from the lowest image below it to every
    /// image that stands on that.
    ///
    /// # Errors
    /// There is no such volume, or a pool cannot be read.
    pub fn volume_chain(&self, volume: &VolumeId) -> Result<ChainNode> {
        let info = self.volume(volume)?;
        let family = self.family()?;
        let mut root = ChainNode {
            selected: true,
            ..self.chain_node(&info)
        };
        root.overlays = self.overlays_of(&family, &info.path, &info.path, 0);
        // Upwards from the root every branch is drawn; the way down is one.
        let mut below = info.backing.clone();
        let mut seen = vec![identity(&info.path)];
        while let Some(backing) = below {
            let Some(path) = backing.path else {
                root = unresolved(&backing.written, backing.format, root);
                break;
            };
            let id = identity(&path);
            if id.is_some() && seen.contains(&id) {
                root.problem = Some("its backing chain leads back to itself".into());
                break;
            }
            seen.push(id);
            let known = id.and_then(|id| family.volumes.get(&id));
            let mut node = match known {
                Some(info) => self.chain_node(info),
                None => self.foreign_node(&path, backing.format.as_deref()),
            };
            below = match known {
                Some(info) => info.backing.clone(),
                None => self.backing_of(&path, backing.format.as_deref()),
            };
            node.overlays = self.overlays_of(&family, &path, &info.path, 0);
            // An overlay outside the pools is known only from above.
            if !node
                .overlays
                .iter()
                .any(|overlay| overlay.path == root.path)
            {
                node.overlays.push(root);
            }
            root = node;
        }
        Ok(root)
    }

    fn family(&self) -> Result<Family> {
        let mut family = Family {
            volumes: HashMap::new(),
            overlays: HashMap::new(),
        };
        for row in self.pool_rows()? {
            if row.backend().check().is_err() {
                continue;
            }
            for info in self.scan(&row)?.volumes {
                let Some(id) = identity(&info.path) else {
                    continue;
                };
                if let Some(below) = info
                    .backing
                    .as_ref()
                    .and_then(|backing| backing.path.as_deref())
                    && let Some(below) = identity(below)
                {
                    family.overlays.entry(below).or_default().push(id);
                }
                family.volumes.insert(id, info);
            }
        }
        Ok(family)
    }

    fn overlays_of(
        &self,
        family: &Family,
        path: &Path,
        selected: &Path,
        depth: usize,
    ) -> Vec<ChainNode> {
        let Some(id) = identity(path).filter(|_| depth < MAX_DEPTH) else {
            return Vec::new();
        };
        let mut overlays: Vec<ChainNode> = family
            .overlays
            .get(&id)
            .into_iter()
            .flatten()
            .filter_map(|overlay| family.volumes.get(overlay))
            .map(|info| ChainNode {
                selected: info.path == selected,
                overlays: self.overlays_of(family, &info.path, selected, depth + 1),
                ..self.chain_node(info)
            })
            .collect();
        overlays.sort_by(|a, b| a.path.cmp(&b.path));
        overlays
    }

    fn chain_node(&self, info: &VolumeInfo) -> ChainNode {
        let layer = if info.format == "qcow2" {
            self.layers().read(&info.path).ok()
        } else {
            None
        };
        ChainNode {
            volume: Some(info.id()),
            path: info.path.clone(),
            format: Some(info.format.clone()),
            capacity: Some(info.capacity),
            allocation: Some(info.allocation),
            snapshots: layer.map_or(0, |layer| layer.snapshots),
            selected: false,
            problem: info.problem.clone(),
            overlays: Vec::new(),
        }
    }

    fn foreign_node(&self, path: &Path, format: Option<&str>) -> ChainNode {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path);
        let layer = (format == Some("qcow2")).then(|| self.layers().read(path));
        let problem = match (&metadata, &layer) {
            (Err(error), _) => Some(error.to_string()),
            (_, Some(Err(error))) => Some(error.to_string()),
            _ => None,
        };
        let metadata = metadata.ok();
        let layer = layer.and_then(|layer| layer.ok());
        ChainNode {
            volume: None,
            path: path.to_owned(),
            format: format.map(str::to_owned),
            capacity: match &layer {
                Some(layer) => Some(layer.size),
                None => metadata.as_ref().map(|metadata| metadata.len()),
            },
            allocation: metadata.map(|metadata| metadata.blocks().saturating_mul(512)),
            snapshots: layer.map_or(0, |layer| layer.snapshots),
            selected: false,
            problem,
            overlays: Vec::new(),
        }
    }

    fn backing_of(&self, path: &Path, format: Option<&str>) -> Option<cenote_pools::BackingInfo> {
        let layer = (format == Some("qcow2"))
            .then(|| self.layers().read(path))
            .and_then(|l| l.ok())?;
        layer
            .backing
            .as_ref()
            .map(|backing| cenote_pools::BackingInfo {
                written: backing.written.clone(),
                path: backing.path.clone(),
                format: backing.format.clone(),
                volume: None,
            })
    }

    /// Opens a volume with its chain, backing files read-only and only inside
    /// the pools' directories.
    ///
    /// # Errors
    /// Its format is not trusted, it is in use, for writing others stand on
    /// it, or a layer is damaged, missing or outside the pools.
    pub fn open_volume(&self, volume: &VolumeId, writable: bool) -> Result<Image> {
        let info = self.volume(volume)?;
        let format = self.trusted_format(&info)?;
        if writable {
            self.ensure_changeable(&info, &[])?;
        }
        self.open_image(&info.path, format, writable)
    }

    pub(crate) fn open_image(&self, path: &Path, format: Format, writable: bool) -> Result<Image> {
        Ok(OpenOptions::new(format)
            .writable(writable)
            .backing(self.backing_policy()?)
            .open(path)
            .map_err(StorageError::from)?)
    }
}

fn unresolved(written: &str, format: Option<String>, above: ChainNode) -> ChainNode {
    ChainNode {
        volume: None,
        path: PathBuf::from(written),
        format,
        capacity: None,
        allocation: None,
        snapshots: 0,
        selected: false,
        problem: Some("this name is none of a file on this host".into()),
        overlays: vec![above],
    }
}
