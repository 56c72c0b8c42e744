//! What a check found.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// How many findings are kept with their text; all are counted.
const KEPT: usize = 1000;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Data may be wrong, or further writes may damage it.
    Corruption,
    /// Space is lost, nothing else.
    Leak,
    /// A part could not be checked.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Byte offset in the file of what is wrong.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// The result of a check, and of a repair with what is left after it.
///
/// Serialises to the fields of `qemu-img check --output=json`, where counts of
/// zero are left out the same way, and to `findings` beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// The image file.
    pub filename: PathBuf,
    /// Always `qcow2`.
    pub format: &'static str,
    /// Parts that could not be checked.
    pub check_errors: u64,
    /// End of the last host cluster in use, in bytes.
    pub image_end_offset: u64,
    /// Things that are wrong with the image.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions: u64,
    /// Clusters that hold space in vain.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks: u64,
    /// Things that a repair has put right.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions_fixed: u64,
    /// Clusters that a repair has given back.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks_fixed: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Guest clusters with a host cluster of their own.
    #[serde(skip_serializing_if = "is_zero")]
    pub allocated_clusters: u64,
    /// Of these, those that do not follow the one before.
    #[serde(skip_serializing_if = "is_zero")]
    pub fragmented_clusters: u64,
    /// Of these, those that are compressed.
    #[serde(skip_serializing_if = "is_zero")]
    pub compressed_clusters: u64,
    /// The first thousand findings.
    pub findings: Vec<Finding>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl CheckReport {
    pub(super) fn new(path: &Path, total_clusters: u64) -> Self {
        Self {
            filename: path.to_owned(),
            format: "qcow2",
            check_errors: 0,
            image_end_offset: 0,
            corruptions: 0,
            leaks: 0,
            corruptions_fixed: 0,
            leaks_fixed: 0,
            total_clusters,
            allocated_clusters: 0,
            fragmented_clusters: 0,
            compressed_clusters: 0,
            findings: Vec::new(),
        }
    }

    /// Nothing wrong at all.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    /// Everything was checked and nothing is wrong but leaks.
    pub fn is_consistent(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0
    }

    pub(super) fn add(&mut self, severity: Severity, offset: u64, what: impl FnOnce() -> String) {
        *match severity {
            Severity::Corruption => &mut self.corruptions,
            Severity::Leak => &mut self.leaks,
            Severity::Error => &mut self.check_errors,
        } += 1;
        if self.findings.len() < KEPT {
            self.findings.push(Finding {
                severity,
                offset,
                what: what(),
            });
        }
    }
}
