//! What a volume is, as the rest of Cenote sees it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Names a volume: its pool and its name in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeId {
    /// Name of the pool.
    pub pool: String,
    /// Name of the volume in the pool.
    pub name: String,
}

impl VolumeId {
    /// The volume `name` of `pool`.
    pub fn new(pool: impl Into<String>, name: impl Into<String>) -> Self {
        VolumeId {
            pool: pool.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.name)
    }
}

/// What a volume is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// A regular file.
    File,
    /// A block device.
    Block,
    /// A directory found in a pool; listed, but no disk.
    Dir,
}

/// Who said what format a volume has.
///
/// Only a trusted format opens a volume (see docs/decisions on formats).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FormatOrigin {
    /// Cenote made the volume.
    Created,
    /// The user declared it (`vol-set-format`).
    Declared,
    /// Cenote looked when it first saw the file, found nothing that reaches
    /// other files, and has kept to it since.
    Adopted,
    /// Cenote looked, found a header that reaches other files, and shows it;
    /// it opens nothing before the user declares the format.
    Probed,
}

impl FormatOrigin {
    /// Whether a volume may be opened with a format of this origin.
    pub fn is_trusted(self) -> bool {
        self != FormatOrigin::Probed
    }

    /// As the state database writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            FormatOrigin::Created => "created",
            FormatOrigin::Declared => "declared",
            FormatOrigin::Adopted => "adopted",
            FormatOrigin::Probed => "probed",
        }
    }

    /// The reverse of [`FormatOrigin::as_str`].
    pub fn parse(text: &str) -> Option<FormatOrigin> {
        [Self::Created, Self::Declared, Self::Adopted, Self::Probed]
            .into_iter()
            .find(|origin| origin.as_str() == text)
    }
}

/// What lies below a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingInfo {
    /// The name as the image's header has it.
    pub written: String,
    /// The file it means, absolute; `None` where it cannot be resolved.
    pub path: Option<PathBuf>,
    /// The format the header declares for it.
    pub format: Option<String>,
    /// The volume of an active pool that file is.
    pub volume: Option<VolumeId>,
}

/// A volume as found on the host. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its pool.
    pub pool: String,
    /// Its name.
    pub name: String,
    /// Its key, unique on the host: the absolute path for files and devices.
    pub key: String,
    /// Its absolute path.
    pub path: PathBuf,
    /// What it is on the host.
    pub kind: VolumeKind,
    /// Its format: `raw`, `qcow2`, or what a foreign header says.
    pub format: String,
    /// Who said so.
    pub format_origin: FormatOrigin,
    /// Size the guest sees.
    pub capacity: u64,
    /// Space it takes on the host.
    pub allocation: u64,
    /// Length of the file or device.
    pub physical: u64,
    /// What lies below it.
    pub backing: Option<BackingInfo>,
    /// Permission bits.
    pub mode: u32,
    /// User that owns the file.
    pub owner: u32,
    /// Group of the file.
    pub group: u32,
    /// Last change of content, seconds since 1970 with nanoseconds.
    pub modified: (i64, u32),
    /// What could not be read about it, for example a damaged header.
    pub problem: Option<String>,
}

impl VolumeInfo {
    /// Its pool and name.
    pub fn id(&self) -> VolumeId {
        VolumeId::new(&self.pool, &self.name)
    }
}
