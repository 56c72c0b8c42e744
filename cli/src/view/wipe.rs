//! Results about wipes.

use std::path::Path;

use cenote_pools::certificate::Verified;
use cenote_pools::wipe::Pending;
use schemars::JsonSchema;
use serde::Serialize;

use super::rows_view;
use crate::out::{Column, human};

/// An interrupted wipe, in `wipe-list`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct WipeItem {
    /// Id to resume it by.
    pub id: String,
    /// The volume, as `pool/name`.
    pub volume: Option<String>,
    /// Its path.
    pub path: String,
    /// The method.
    pub algorithm: String,
    /// What it was doing: `overwrite`, `verify`, `finish` or `certify`.
    pub stage: String,
    /// Pass, from 1.
    pub pass: u32,
    /// Passes of the method.
    pub passes: u32,
    /// Bytes of the pass recorded as done.
    pub position: u64,
    /// Bytes of a pass.
    pub total: u64,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// When it was last recorded, RFC 3339 in UTC.
    pub recorded: String,
}

impl From<Pending> for WipeItem {
    fn from(wipe: Pending) -> Self {
        Self {
            id: wipe.id,
            volume: wipe.volume,
            path: wipe.path.display().to_string(),
            algorithm: wipe.algorithm.to_string(),
            stage: wipe.stage.to_string(),
            pass: wipe.pass,
            passes: wipe.passes,
            position: wipe.position,
            total: wipe.total,
            started: wipe.started,
            recorded: wipe.recorded,
        }
    }
}

/// A certificate that holds, in `verify-certificate`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CertificateItem {
    /// Its place in the node's chain.
    pub sequence: u64,
    /// Its file.
    pub file: String,
    /// SHA-256 of the file.
    pub digest: String,
    /// The volume, as `pool/name`.
    pub volume: Option<String>,
    /// Its path; of a whole domain `domain NAME`.
    pub path: String,
    /// What the certificate claims of it.
    pub verdict: String,
    /// When it was issued, RFC 3339 in UTC.
    pub issued: String,
    /// The node that issued it.
    pub node: String,
    /// The key that signed it.
    pub key: String,
    /// Whether that is the key that was asked for, or this node's.
    pub key_is_trusted: bool,
    /// Certificates in its chain.
    pub chain_length: Option<u64>,
    /// What the disk holds, with `--reread`.
    pub disk: Option<String>,
}

impl CertificateItem {
    /// What `verified` from `file` says; `disk` is what reading again found.
    #[must_use]
    pub fn new(file: &Path, verified: Verified, disk: Option<String>) -> Self {
        let certificate = verified.certificate;
        let (volume, path, verdict) = match (certificate.report, certificate.domain) {
            (Some(report), _) => {
                let path = report.request.path.display().to_string();
                (report.request.volume, path, report.verdict.to_string())
            }
            (None, Some(domain)) => (None, format!("domain {}", domain.name), domain.verdict),
            // Such a certificate is refused before.
            (None, None) => (None, String::new(), String::new()),
        };
        Self {
            sequence: certificate.sequence,
            file: file.display().to_string(),
            digest: verified.digest,
            volume,
            path,
            verdict,
            issued: certificate.issued,
            node: certificate.node.name,
            key: certificate.public_key,
            key_is_trusted: verified.key_is_trusted,
            chain_length: verified.chain_length,
            disk,
        }
    }
}

/// The rows of `wipe-list`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct WipeItems(pub Vec<WipeItem>);

rows_view!(WipeItems of WipeItem, |row| row.id.clone(), [
    Column::new("id", "Id") => |row| row.id.clone(),
    Column::new("volume", "Volume") => |row| row.volume.clone().unwrap_or_else(|| row.path.clone()),
    Column::new("algorithm", "Algorithm") => |row| row.algorithm.clone(),
    Column::new("pass", "Pass") => |row| format!("{} of {}", row.pass, row.passes.max(1)),
    Column::new("position", "Done") => |row| format!("{} of {}", human(row.position), human(row.total)),
    Column::new("recorded", "Recorded") => |row| row.recorded.clone(),
    Column::wide("stage", "Stage") => |row| row.stage.clone(),
    Column::wide("started", "Started") => |row| row.started.clone(),
    Column::wide("path", "Path") => |row| row.path.clone(),
]);

/// The rows of `verify-certificate`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct CertificateItems(pub Vec<CertificateItem>);

rows_view!(CertificateItems of CertificateItem, |row| row.file.clone(), [
    Column::new("sequence", "Number") => |row| row.sequence.to_string(),
    Column::new("volume", "Volume") => |row| row.volume.clone().unwrap_or_else(|| row.path.clone()),
    Column::new("verdict", "Verdict") => |row| row.verdict.clone(),
    Column::new("issued", "Issued") => |row| row.issued.clone(),
    Column::new("disk", "Disk") => |row| row.disk.clone().unwrap_or_else(|| "not read".to_owned()),
    Column::wide("node", "Node") => |row| row.node.clone(),
    Column::wide("key", "Key") => |row| row.key.clone(),
    Column::wide("key_is_trusted", "Trusted") => |row| row.key_is_trusted.to_string(),
    Column::wide("file", "File") => |row| row.file.clone(),
    Column::wide("digest", "Digest") => |row| row.digest.clone(),
]);
