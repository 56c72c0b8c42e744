//! What a certificate of a whole domain says: every part of it, by the certificate of its wipe.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::document::Certificate;

/// A domain that was taken away, part by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainReport {
    /// Unique id of the deed.
    pub id: String,
    /// The domain's name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// When all was done, RFC 3339.
    pub finished: String,
    /// What was its own, and is overwritten and removed.
    pub parts: Vec<DomainPart>,
    /// Files of its own that held nothing to overwrite, and are removed.
    pub empty: Vec<PathBuf>,
    /// What others have a share in, and stays.
    pub kept: Vec<KeptPart>,
    /// What can be said of all parts together.
    pub verdict: String,
}

/// One volume or file of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainPart {
    /// Where it was.
    pub path: PathBuf,
    /// The volume, as `pool/name`, if it was one.
    pub volume: Option<String>,
    /// Number of the certificate of its wipe, in the same chain.
    pub certificate: u64,
    /// SHA-256 of that certificate's file.
    pub digest: String,
    /// What that certificate claims.
    pub verdict: String,
}

/// Something that a teardown left where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptPart {
    /// A volume or a path.
    pub what: String,
    /// Why.
    pub why: String,
}

impl DomainPart {
    /// The part whose wipe a certificate is of; `None` for one that is of no wipe.
    pub fn of(certificate: &Certificate, digest: String) -> Option<Self> {
        let report = certificate.report.as_ref()?;
        Some(Self {
            path: report.request.path.clone(),
            volume: report.request.volume.clone(),
            certificate: certificate.sequence,
            digest,
            verdict: report.verdict.to_string(),
        })
    }
}

impl DomainReport {
    /// The weakest of what the parts' certificates claim: one word for all only where all say
    /// the same.
    pub fn verdict_of(parts: &[DomainPart]) -> String {
        let Some(first) = parts.first() else {
            return "nothing was there to overwrite".to_owned();
        };
        let same = parts
            .iter()
            .filter(|part| part.verdict == first.verdict)
            .count();
        if same == parts.len() {
            return first.verdict.clone();
        }
        let weaker: Vec<_> = parts
            .iter()
            .filter(|part| part.verdict != "overwritten and verified")
            .collect();
        let example = weaker.first().unwrap_or(&first);
        format!(
            "{} of {} parts: {}",
            weaker.len(),
            parts.len(),
            example.verdict
        )
    }
}
