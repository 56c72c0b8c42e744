//! The node's folder of certificates: `00000001-ID.json`, `.pdf`, and
//! `head.json`, which names the last one so that the end cannot be cut off.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::document::{Certificate, Deed, NodeIdentity};
use super::domain::DomainReport;
use super::key::{NodeKey, PublicKey};
use super::{Error, canonical, io_error, pdf};
use crate::wipe::{Notary, WipeReport, replace};

/// The end of the chain, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) sequence: u64,
    pub(super) digest: String,
    pub(super) signature: String,
}

impl Head {
    fn message(sequence: u64, digest: &str) -> Vec<u8> {
        format!("cenote wipe certificate chain 1\n{sequence} {digest}\n").into_bytes()
    }

    fn sign(sequence: u64, digest: &str, key: &NodeKey) -> Self {
        let signature = key.sign(&Self::message(sequence, digest));
        Self {
            sequence,
            digest: digest.to_owned(),
            signature,
        }
    }

    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verifies(&Self::message(self.sequence, &self.digest), &self.signature)
    }

    /// Whether `bytes` are a head's, and of which number.
    pub(super) fn number_in(bytes: &[u8]) -> Option<u64> {
        let head: Self = serde_json::from_slice(bytes).ok()?;
        Some(head.sequence)
    }

    /// The head of the chain in `folder`; none where nothing was issued.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join("head.json");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(io_error(&path, "read"))?,
        };
        let malformed = |error: serde_json::Error| Error::Malformed {
            path: path.clone(),
            reason: error.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(malformed)
    }
}

/// The folder a file of a chain lies in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Certificate files in `folder` by their number.
pub(super) fn files(folder: &Path) -> Result<BTreeMap<u64, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder, "list"))? {
        let path = entry.map_err(io_error(folder, "list"))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let Some((number, rest)) = name.split_once('-') else {
            continue;
        };
        let Some(number) = (number.len() == 8)
            .then(|| number.parse::<u64>().ok())
            .flatten()
        else {
            continue;
        };
        if rest.ends_with(".json")
            && let Some(other) = found.insert(number, path.clone())
        {
            return Err(Error::BrokenChain {
                folder: folder.to_owned(),
                number,
                reason: format!(
                    "both '{}' and '{}' claim it",
                    other.display(),
                    path.display()
                ),
            });
        }
    }
    Ok(found)
}

/// Issues the certificates of a node.
#[derive(Debug)]
pub struct Issuer {
    folder: PathBuf,
    node: NodeIdentity,
    key: NodeKey,
}

impl Issuer {
    /// Issues into `folder`, which is made where needed, with the key at
    /// `key`, which is made where there is none.
    pub fn open(folder: &Path, key: &Path, node: NodeIdentity) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(io_error(folder, "create the folder"))?;
        let key = NodeKey::load_or_create(key)?;
        Ok(Self {
            folder: folder.to_owned(),
            node,
            key,
        })
    }

    /// The key that checks what this issues.
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    fn lock(&self) -> Result<File, Error> {
        let path = self.folder.join("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error(&path, "open"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| io_error(&path, "lock")(error.into()))?;
        Ok(file)
    }

    /// The last certificate, by the head or, after a crash between the two,
    /// by the one file that follows it.
    fn last(&self) -> Result<Option<(u64, String)>, Error> {
        let head = Head::read(&self.folder)?;
        if let Some(head) = &head
            && !head.is_signed_by(&self.key.public())
        {
            return Err(Error::BadSignature {
                path: self.folder.join("head.json"),
            });
        }
        let last = head.map(|head| (head.sequence, head.digest));
        let next = last.as_ref().map_or(1, |(sequence, _)| sequence + 1);
        let Some(path) = files(&self.folder)?.remove(&next) else {
            return Ok(last);
        };
        let (certificate, digest) = Certificate::read(&path)?;
        let follows = certificate.sequence == next
            && certificate.public_key == self.key.public().to_hex()
            && certificate.previous == last.map(|(_, digest)| digest);
        if !follows {
            return Err(Error::BrokenChain {
                folder: self.folder.clone(),
                number: next,
                reason: format!("'{}' does not follow the one before", path.display()),
            });
        }
        self.write_head(next, &digest)?;
        Ok(Some((next, digest)))
    }

    fn write_head(&self, sequence: u64, digest: &str) -> Result<(), Error> {
        let path = self.folder.join("head.json");
        let head = Head::sign(sequence, digest, &self.key);
        let mut bytes = canonical::to_vec(&head).map_err(|reason| Error::Unwritable { reason })?;
        bytes.push(b'\n');
        replace(&path, &bytes).map_err(io_error(&path, "write"))
    }

    fn issued_for(&self, id: &str) -> Result<Option<PathBuf>, Error> {
        let end = format!("-{id}.json");
        Ok(files(&self.folder)?
            .into_values()
            .find(|path| path.to_string_lossy().ends_with(&end)))
    }

    /// Certifies a report; the same report again gives the same certificate.
    pub fn issue(&self, report: &WipeReport) -> Result<PathBuf, Error> {
        self.issue_for(Deed::Wipe(report))
    }

    /// Certifies that a domain was taken away; the same report again gives the same certificate.
    pub fn issue_domain(&self, report: &DomainReport) -> Result<PathBuf, Error> {
        self.issue_for(Deed::Domain(report))
    }

    /// The number of the last certificate, 0 where there is none yet.
    pub fn last_number(&self) -> Result<u64, Error> {
        let _lock = self.lock()?;
        Ok(self.last()?.map_or(0, |(sequence, _)| sequence))
    }

    /// Certificates after a number, in order, each with the SHA-256 of its file.
    pub fn since(&self, number: u64) -> Result<Vec<(Certificate, String)>, Error> {
        let later = files(&self.folder)?.split_off(&number.saturating_add(1));
        later.values().map(|path| Certificate::read(path)).collect()
    }

    fn issue_for(&self, deed: Deed<'_>) -> Result<PathBuf, Error> {
        let _lock = self.lock()?;
        let last = self.last()?;
        if let Some(path) = self.issued_for(deed.id())? {
            let (certificate, _) = Certificate::read(&path)?;
            write_page(&path, &certificate)?;
            return Ok(path);
        }
        let sequence = last.as_ref().map_or(1, |(sequence, _)| sequence + 1);
        let previous = last.map(|(_, digest)| digest);
        let certificate = Certificate::sign(sequence, previous, &self.node, deed, &self.key)?;
        let path = self
            .folder
            .join(format!("{sequence:08}-{}.json", deed.id()));
        let bytes = certificate.to_bytes()?;
        replace(&path, &bytes).map_err(io_error(&path, "write"))?;
        self.write_head(sequence, &super::document::digest(&bytes))?;
        write_page(&path, &certificate)?;
        Ok(path)
    }
}

fn write_page(path: &Path, certificate: &Certificate) -> Result<(), Error> {
    let page = path.with_extension("pdf");
    replace(&page, &pdf::render(certificate)).map_err(io_error(&page, "write"))
}

impl Notary for Issuer {
    fn certify(&self, report: &WipeReport) -> Result<PathBuf, Error> {
        self.issue(report)
    }
}
