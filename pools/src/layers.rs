//! What stands on what: the layers of images, from their headers.
//!
//! Used to protect: a file that anything names as its backing or data file is
//! not deleted, resized or written. So reading is generous (a header that
//! cannot be trusted for opening still protects what it names) and never opens
//! an image's data.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cenote_image::chain;
use cenote_image::qcow2::header::{Header, compatible};
use cenote_image::storage::FileStorage;
use cenote_image::{BackingPolicy, CacheMode, Format};

use crate::error::{Error, Result};
use crate::file::FileIdentity;
use crate::sniff::{Looks, sniff};

/// Longest chain that is followed.
const MAX_DEPTH: usize = 512;

/// Headers kept in memory.
const MAX_CACHED: usize = 16384;

/// What one image's header says about other files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// Size the guest sees, in bytes.
    pub size: u64,
    /// The backing file, as named and as found.
    pub backing: Option<Reference>,
    /// The external data file.
    pub data_file: Option<Reference>,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Refcounts may lag while the image is open.
    pub lazy_refcounts: bool,
    /// Clusters are allocated in 32 parts.
    pub extended_l2: bool,
}

impl Layer {
    /// The files this image cannot be read without.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.backing.iter().chain(&self.data_file)
    }
}

/// A file named in an image's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// As it stands in the header.
    pub written: String,
    /// The file it means; `None` where it means none on this host.
    pub path: Option<PathBuf>,
    /// Its format, where the header declares it.
    pub format: Option<String>,
}

type Key = (FileIdentity, u64, i64, i64);

/// Reads layers, keeping what has not changed since.
#[derive(Debug, Default)]
pub struct LayerCache {
    known: Mutex<HashMap<Key, Arc<Layer>>>,
}

impl LayerCache {
    /// The layer in the qcow2 file at `path`.
    ///
    /// # Errors
    /// The file cannot be read or has no valid header.
    pub fn read(&self, path: &Path) -> Result<Arc<Layer>> {
        let metadata = fs::metadata(path).map_err(|source| Error::at("examine", path, source))?;
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let key = (identity, metadata.len(), changed.0, changed.1);
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = lock().get(&key) {
            return Ok(Arc::clone(layer));
        }
        let layer = Arc::new(read_layer(path)?);
        let mut known = lock();
        if known.len() >= MAX_CACHED {
            known.clear();
        }
        known.insert(key, Arc::clone(&layer));
        Ok(layer)
    }

    /// Every file that the image at `path` stands on, directly or through
    /// others, nearest first. Ends where a header cannot be read, at a loop,
    /// and at raw files.
    pub fn ancestors(&self, path: &Path, format: Format) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut open = vec![(path.to_owned(), Some(format.as_str().to_owned()))];
        while let Some((path, format)) = open.pop() {
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if !seen.insert((metadata.dev(), metadata.ino())) || seen.len() > MAX_DEPTH {
                continue;
            }
            let is_qcow2 = match format.as_deref() {
                Some(format) => format == "qcow2",
                // Undeclared: its look is good enough to protect what it names.
                None => matches!(sniff(&path), Ok(Looks::Format("qcow2"))),
            };
            if !is_qcow2 {
                continue;
            }
            let Ok(layer) = self.read(&path) else {
                continue;
            };
            for reference in layer.references() {
                if let Some(below) = &reference.path {
                    found.push(below.clone());
                    open.push((below.clone(), reference.format.clone()));
                }
            }
        }
        found
    }
}

fn read_layer(path: &Path) -> Result<Layer> {
    let storage = FileStorage::open(path, false, CacheMode::Writeback)
        .map_err(|source| Error::at("open", path, source))?;
    let header = Header::read(&storage, path)?;
    let reference = |written: &String, format: Option<String>| Reference {
        // Where a name may lead is decided when the image is opened; here it
        // only protects what it names.
        path: chain::resolve_file(path, written, &BackingPolicy::default())
            .ok()
            .map(|file| fs::canonicalize(&file).unwrap_or(file)),
        written: written.clone(),
        format,
    };
    Ok(Layer {
        size: header.size,
        backing: header
            .backing_name
            .as_ref()
            .map(|name| reference(name, header.extensions.backing_format.clone())),
        data_file: header
            .has_data_file()
            .then_some(header.extensions.data_file.as_ref())
            .flatten()
            .map(|name| reference(name, Some("raw".into()))),
        snapshots: header.snapshot_count,
        version: header.version,
        cluster_size: header.cluster_size(),
        lazy_refcounts: header.compatible & compatible::LAZY_REFCOUNTS != 0,
        extended_l2: header.is_extended_l2(),
    })
}
