//! What a finished wipe did, for people, certificates and exit codes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::algorithm::{Algorithm, Pass};
use super::environment::Environment;
use super::extents::Extent;
use super::hex;
use super::journal::{
    Failure, FileProgress, FileRecord, Interruption, PassReport, Progress, Record,
};
use super::journal::{Role, Verification};
use super::keystream::Secret;
use super::plan;
use super::request::{Afterwards, WipeRequest};
use super::target::{Identity, Kind};
use super::verdict::{Reason, Verdict};

/// An extent and what may be said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtentReport {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// First byte on the device, where known.
    pub physical: Option<u64>,
    /// FIEMAP's flags by name.
    pub flags: Vec<String>,
    /// What may be said of it.
    pub verdict: Verdict,
}

/// Extents listed in a report; the digest covers all.
pub const MOST_EXTENTS: usize = 4096;

/// What the file holds after the last pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Content {
    /// Byte `o` is byte `o` modulo its length of this.
    Pattern {
        /// Hexadecimal.
        bytes: String,
    },
    /// Byte `o` is byte `o` of the AES-256-CTR key stream with a zero initial
    /// counter block.
    #[serde(rename = "aes-256-ctr")]
    KeyStream {
        /// Hexadecimal. The key of the last pass alone: it tells what the
        /// disk must hold, and nothing of what it held.
        key: String,
    },
    /// Whatever the device answers after a trim.
    Unspecified,
}

/// What became of a file after it was wiped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// It is there with the content of the last pass.
    Kept,
    /// An empty image of the same options took its place.
    Rebuilt,
    /// It was unlinked.
    Removed,
    /// It was to be rebuilt or removed, and was not.
    LeftInPlace {
        /// Why.
        because: String,
    },
}

/// One file or device of the volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileReport {
    /// Its name.
    pub path: PathBuf,
    /// What it is to the volume.
    pub role: Role,
    /// `raw` or `qcow2`.
    pub format: cenote_image::Format,
    /// Who it is.
    pub identity: Identity,
    /// Where it lies.
    pub environment: Environment,
    /// Bytes in all extents.
    pub extent_bytes: u64,
    /// Extents in all.
    pub extent_count: u64,
    /// SHA-256 of `offset length physical flags` of every extent, one a line.
    pub extent_digest: String,
    /// The first of them, at most [`MOST_EXTENTS`].
    pub extents: Vec<ExtentReport>,
    /// Passes in order.
    pub passes: Vec<PassReport>,
    /// Reading back; none where it was not done.
    pub verification: Option<Verification>,
    /// Ranges that failed, perhaps not all.
    pub failures: Vec<Failure>,
    /// All that failed.
    pub failure_count: u64,
    /// What the extents hold now.
    pub content: Content,
    /// What became of it.
    pub outcome: Outcome,
    /// What may be said of it.
    pub verdict: Verdict,
}

/// A finished wipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WipeReport {
    /// Unique id of the wipe.
    pub id: String,
    /// What was asked for.
    pub request: WipeRequest,
    /// Where the method comes from.
    pub source: String,
    /// RFC 3339.
    pub started: String,
    /// RFC 3339.
    pub finished: String,
    /// Its files.
    pub files: Vec<FileReport>,
    /// Times when it ended early.
    pub interruptions: Vec<Interruption>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// What may be said of the volume: the worst of its files.
    pub verdict: Verdict,
}

impl WipeReport {
    /// Puts together what record and progress tell of a wipe that has run.
    pub(super) fn new(record: &Record, progress: &Progress) -> Self {
        let request = &record.request;
        let secret = record.secret.parse::<Secret>().ok();
        let files: Vec<FileReport> = record
            .files
            .iter()
            .zip(&progress.files)
            .enumerate()
            .map(|(index, (file, done))| {
                file_report(request, secret.as_ref(), index as u32, file, done)
            })
            .collect();
        let verdict = files
            .iter()
            .map(|file| file.verdict.clone())
            .reduce(Verdict::and)
            .unwrap_or(Verdict::OverwrittenAndVerified);
        Self {
            id: record.id.clone(),
            request: request.clone(),
            source: request.algorithm.source().to_owned(),
            started: record.started.clone(),
            finished: progress.finished.clone().unwrap_or_default(),
            files,
            interruptions: progress.interruptions.clone(),
            notes: record.notes.clone(),
            verdict,
        }
    }
}

/// What may be said of a file, from what is recorded.
pub(super) fn file_verdict(
    request: &WipeRequest,
    file: &FileRecord,
    done: &FileProgress,
) -> Verdict {
    let mut failed = done.fatal.clone();
    failed.extend(done.failures.iter().map(describe));
    if done.failure_count > done.failures.len() as u64 {
        failed.push(format!("{} ranges failed in all", done.failure_count));
    }
    if !failed.is_empty() {
        return Verdict::Failed { reasons: failed };
    }
    let mut reasons = plan::reasons(request, std::slice::from_ref(file));
    // What was found counts, not what was feared.
    reasons.retain(|reason| !matches!(reason, Reason::TrimOnly { .. }));
    reasons.extend(plan::chosen_reasons(request));
    for reason in &done.reasons {
        if !reasons.contains(reason) {
            reasons.push(reason.clone());
        }
    }
    Verdict::from_reasons(reasons)
}

fn describe(failure: &Failure) -> String {
    format!(
        "{} bytes at {}: {}",
        failure.length, failure.offset, failure.what
    )
}

fn extent_verdict(
    extent: &Extent,
    whole: &Verdict,
    file: &FileRecord,
    done: &FileProgress,
    request: &WipeRequest,
) -> Verdict {
    let hit: Vec<String> = done
        .failures
        .iter()
        .filter(|failure| {
            failure.offset < extent.end()
                && extent.offset < failure.offset.saturating_add(failure.length)
        })
        .map(describe)
        .collect();
    if !hit.is_empty() || !done.fatal.is_empty() || done.failure_count > done.failures.len() as u64
    {
        let mut reasons = done.fatal.clone();
        reasons.extend(hit);
        return match (reasons.is_empty(), whole) {
            (true, whole) => whole.clone(),
            (false, _) => Verdict::Failed { reasons },
        };
    }
    let mut reasons = file.environment.reasons.clone();
    reasons.extend(extent.reasons());
    reasons.extend(plan::chosen_reasons(request));
    reasons.extend(done.reasons.iter().cloned());
    reasons.dedup();
    Verdict::from_reasons(reasons)
}

fn file_report(
    request: &WipeRequest,
    secret: Option<&Secret>,
    index: u32,
    file: &FileRecord,
    done: &FileProgress,
) -> FileReport {
    let verdict = file_verdict(request, file, done);
    let extents = file
        .map
        .extents
        .iter()
        .take(MOST_EXTENTS)
        .map(|extent| ExtentReport {
            offset: extent.offset,
            length: extent.length,
            physical: extent.physical,
            flags: extent.flag_names().into_iter().map(str::to_owned).collect(),
            verdict: extent_verdict(extent, &verdict, file, done, request),
        });
    FileReport {
        path: file.path.clone(),
        role: file.role,
        format: file.format,
        identity: file.identity.clone(),
        environment: file.environment.clone(),
        extent_bytes: file.map.length(),
        extent_count: file.map.extents.len() as u64,
        extent_digest: digest(&file.map.extents),
        extents: extents.collect(),
        passes: done.passes.clone(),
        verification: done.verification.clone(),
        failures: done.failures.clone(),
        failure_count: done.failure_count,
        content: content(request.algorithm, secret, index),
        outcome: outcome(request, file, done, &verdict),
        verdict,
    }
}

fn digest(extents: &[Extent]) -> String {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for extent in extents {
        let physical = extent
            .physical
            .map_or_else(|| "-".to_owned(), |at| at.to_string());
        let Extent {
            offset,
            length,
            flags,
            ..
        } = extent;
        hash.update(format!("{offset} {length} {physical} {flags}\n"));
    }
    hex::encode(&hash.finalize())
}

fn content(algorithm: Algorithm, secret: Option<&Secret>, file: u32) -> Content {
    let passes = algorithm.passes();
    match (passes.last(), secret) {
        (Some(Pass::Pattern(bytes)), _) => Content::Pattern {
            bytes: hex::encode(bytes),
        },
        (Some(Pass::Random), Some(secret)) => {
            let last = (passes.len() - 1) as u32;
            Content::KeyStream {
                key: secret.pass_key(file, last).to_hex(),
            }
        }
        _ => Content::Unspecified,
    }
}

/// Whether anything is to be done to the file after its wipe.
pub(super) fn wants_finish(request: &WipeRequest, file: &FileRecord) -> bool {
    match request.afterwards {
        Afterwards::Remove => file.identity.kind == Kind::File,
        Afterwards::Keep => file.rebuild.is_some() || file.role == Role::DataFile,
    }
}

fn outcome(
    request: &WipeRequest,
    file: &FileRecord,
    done: &FileProgress,
    verdict: &Verdict,
) -> Outcome {
    if !wants_finish(request, file) {
        return Outcome::Kept;
    }
    if done.finished {
        return match request.afterwards {
            Afterwards::Remove => Outcome::Removed,
            Afterwards::Keep => Outcome::Rebuilt,
        };
    }
    let because = if verdict.is_failed() {
        "bytes may be left in it; cutting it would put them out of reach"
    } else {
        "another file of the volume could not be wiped"
    };
    Outcome::LeftInPlace {
        because: because.to_owned(),
    }
}
