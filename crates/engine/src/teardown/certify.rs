//! One certificate for a whole domain, whatever number of commands it takes to get there.
//!
//! What the domain had is written down before the first byte is overwritten. Each part gets a
//! certificate of its wipe; when all is gone, those that were issued since are gathered in one
//! that names them. It is issued once: a teardown that died after it finds it again.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use cenote_pools::certificate::{DomainPart, DomainReport, KeptPart};
use cenote_pools::wipe;
use serde::{Deserialize, Serialize};

use super::Inventory;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::state::make_private_dir;

/// What a domain had when its teardown began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    id: String,
    name: String,
    uuid: String,
    started: String,
    /// Number of the last certificate before.
    before: u64,
    /// All volumes and files.
    paths: Vec<PathBuf>,
    /// Those of them that held nothing.
    empty: Vec<PathBuf>,
    kept: Vec<KeptPart>,
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// The file is there whole, or as it was.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

impl Node {
    fn teardown_record(&self, uuid: &str) -> PathBuf {
        let folder = self.state_dir().join("teardowns");
        folder.join(format!("{uuid}.json"))
    }

    fn read_record(&self, uuid: &str) -> Result<Option<Record>> {
        let path = self.teardown_record(uuid);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(at("read", &path))?,
        };
        let record = serde_json::from_slice(&bytes);
        record
            .map(Some)
            .map_err(|error| at("read", &path)(error.into()))
    }

    /// Writes down what the domain has; what an earlier command wrote stays, and is added to.
    pub(super) fn note_inventory(&self, inventory: &Inventory) -> Result<()> {
        let mut record = match self.read_record(&inventory.uuid)? {
            Some(record) => record,
            None => Record {
                id: uuid::Uuid::new_v4().hyphenated().to_string(),
                name: inventory.name.clone(),
                uuid: inventory.uuid.clone(),
                started: now(),
                before: self.last_certificate()?,
                paths: Vec::new(),
                empty: Vec::new(),
                kept: Vec::new(),
            },
        };
        let mut paths = Vec::new();
        for id in &inventory.volumes {
            paths.push(self.volume(id)?.path);
        }
        for path in &inventory.files {
            let filled = fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
            if filled {
                paths.push(path.clone());
            } else if !record.empty.contains(path) {
                record.empty.push(path.clone());
            }
        }
        paths.retain(|path| !record.paths.contains(path));
        record.paths.append(&mut paths);
        // What a volume that is gone by now stood on is not found any more, and is kept all the
        // same, unless it has become the domain's own.
        let taken: Vec<String> = inventory.volumes.iter().map(ToString::to_string).collect();
        let now_kept = |what: &str| inventory.kept.iter().any(|kept| kept.what == what);
        record
            .kept
            .retain(|kept| !now_kept(&kept.what) && !taken.contains(&kept.what));
        record
            .kept
            .extend(inventory.kept.iter().map(|kept| KeptPart {
                what: kept.what.clone(),
                why: kept.why.clone(),
            }));
        let path = self.teardown_record(&inventory.uuid);
        if let Some(folder) = path.parent() {
            make_private_dir(folder).map_err(at("make", folder))?;
        }
        let bytes = serde_json::to_vec(&record)
            .map_err(|error| at("write", &path)(std::io::Error::from(error)))?;
        replace(&path, &bytes).map_err(at("write", &path))
    }

    /// The certificate of a domain that is gone; `None` where nothing of it was overwritten.
    pub(super) fn certify_teardown(&self, uuid: &str) -> Result<Option<PathBuf>> {
        let Some(record) = self.read_record(uuid)? else {
            return Ok(None);
        };
        let issuer = self.issuer()?;
        let mut parts: Vec<DomainPart> = Vec::new();
        let mut finished = now();
        let since = issuer.since(record.before).map_err(wipe::Error::from)?;
        for (certificate, digest) in since {
            if let Some(domain) = &certificate.domain
                && domain.id == record.id
            {
                // Issued before a death: it is to be the same again.
                finished.clone_from(&domain.finished);
            }
            let Some(part) = DomainPart::of(&certificate, digest) else {
                continue;
            };
            if !record.paths.contains(&part.path) {
                continue;
            }
            // Of two wipes of one path the later counts.
            parts.retain(|earlier| earlier.path != part.path);
            parts.push(part);
        }
        let verdict = DomainReport::verdict_of(&parts);
        let report = DomainReport {
            id: record.id,
            name: record.name,
            uuid: record.uuid,
            started: record.started,
            finished,
            parts,
            empty: record.empty,
            kept: record.kept,
            verdict,
        };
        let certificate = issuer.issue_domain(&report).map_err(wipe::Error::from)?;
        cenote_pools::crash::point("teardown-certified");
        Ok(Some(certificate))
    }

    /// Forgets what was written down.
    pub(super) fn forget_inventory(&self, uuid: &str) -> Result<()> {
        super::run::remove_file(&self.teardown_record(uuid))
    }
}
