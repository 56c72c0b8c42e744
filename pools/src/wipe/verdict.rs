//! What a wipe may claim, and why it may not claim more.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why an overwrite here does not prove that the old bytes are gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Reason {
    /// Writes go elsewhere; the old blocks stay until reused.
    CopyOnWrite {
        /// Which file system, and what of it.
        file_system: String,
    },
    /// FIEMAP: another file, a reflink or a snapshot holds the same blocks.
    SharedExtents,
    /// FIEMAP: compressed or encrypted, so written elsewhere.
    EncodedExtents,
    /// FIEMAP: the data lies in metadata, which is journalled or copied.
    InlineExtents,
    /// FIEMAP: the place on the device is not known.
    UnknownExtents,
    /// The file system writes data to its journal first.
    JournaledData,
    /// The server decides where bytes go.
    NetworkFileSystem {
        /// Its name.
        file_system: String,
    },
    /// A user-space program decides where bytes go.
    UserSpaceFileSystem,
    /// The file may have been copied up from a lower layer, which keeps it.
    OverlayFileSystem,
    /// Memory may have been written to swap.
    MemoryFileSystem {
        /// Its name.
        file_system: String,
    },
    /// Not one of those known to overwrite in place.
    UnknownFileSystem {
        /// Its name, or the number statfs(2) gives.
        file_system: String,
    },
    /// The file system cannot tell where its blocks lie.
    NoExtentMap {
        /// Its name.
        file_system: String,
    },
    /// The device remaps writes to other cells.
    Flash {
        /// Its name.
        device: String,
    },
    /// The device allocates on write and may keep snapshots.
    ThinProvisioned {
        /// Its name and how it is known.
        device: String,
    },
    /// A device of which nothing is known but that it is reached by network
    /// or by another program.
    RemoteDevice {
        /// Its name.
        device: String,
    },
    /// No device could be found below the file system.
    UnknownDevice {
        /// The number stat(2) gives, as major:minor.
        device: String,
    },
    /// What lies below a loop device is itself not provable.
    Below {
        /// The file under the loop device.
        file: PathBuf,
        /// Its own reason.
        because: Box<Reason>,
    },
    /// The file system refuses direct I/O; what was read back may be a cache.
    NoDirectIo,
    /// Afterwards the file's extents lie elsewhere than before.
    Moved,
    /// Read back only in part.
    Sampled {
        /// How much, of what was overwritten.
        percent: u8,
    },
    /// Not read back.
    NotVerified,
    /// A discard is a request; old cells may be kept.
    TrimOnly {
        /// What the device or file system answered when read.
        answers: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CopyOnWrite { file_system } => {
                write!(
                    f,
                    "{file_system} writes copies elsewhere and the old blocks stay"
                )
            }
            Self::SharedExtents => {
                f.write_str("extents are shared with another file or a snapshot, which keeps them")
            }
            Self::EncodedExtents => f.write_str("extents are compressed or encrypted"),
            Self::InlineExtents => f.write_str("data lies inline in file system metadata"),
            Self::UnknownExtents => f.write_str("the place of extents on the device is not known"),
            Self::JournaledData => {
                f.write_str("the file system journals data, and its journal keeps old copies")
            }
            Self::NetworkFileSystem { file_system } => {
                write!(
                    f,
                    "{file_system} is a network file system; its server decides"
                )
            }
            Self::UserSpaceFileSystem => f.write_str("a FUSE file system; its program decides"),
            Self::OverlayFileSystem => {
                f.write_str("overlayfs; a lower layer may keep the original")
            }
            Self::MemoryFileSystem { file_system } => {
                write!(
                    f,
                    "{file_system} lives in memory and may have been swapped out"
                )
            }
            Self::UnknownFileSystem { file_system } => {
                write!(f, "{file_system} is not known to overwrite in place")
            }
            Self::NoExtentMap { file_system } => {
                write!(f, "{file_system} does not tell where its blocks lie")
            }
            Self::Flash { device } => {
                write!(
                    f,
                    "{device} is flash, which remaps writes and may keep old cells"
                )
            }
            Self::ThinProvisioned { device } => {
                write!(f, "{device} is thinly provisioned or has snapshots")
            }
            Self::RemoteDevice { device } => {
                write!(
                    f,
                    "{device} is a remote or user-space device; its server decides"
                )
            }
            Self::UnknownDevice { device } => write!(f, "nothing is known of device {device}"),
            Self::Below { file, because } => {
                write!(f, "below the loop device, '{}': {because}", file.display())
            }
            Self::NoDirectIo => {
                f.write_str("no direct I/O here, so reading back cannot pass the page cache")
            }
            Self::Moved => f.write_str("the file system moved the extents while they were written"),
            Self::Sampled { percent } => write!(f, "only {percent} % was read back"),
            Self::NotVerified => f.write_str("nothing was read back"),
            Self::TrimOnly { answers } => {
                write!(
                    f,
                    "trim only asks for blocks to be forgotten; reading now gives {answers}"
                )
            }
        }
    }
}

/// What a report says of an extent, a file or a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verdict {
    /// Every byte was overwritten in place and read back from the device.
    /// Clear in the sense of NIST SP 800-88r2, never Purge.
    OverwrittenAndVerified,
    /// Every byte was written, but that proves nothing here.
    OverwrittenNotProvable {
        /// All reasons.
        reasons: Vec<Reason>,
    },
    /// Bytes may be left.
    Failed {
        /// What happened, with places.
        reasons: Vec<String>,
    },
}

impl Verdict {
    /// The stronger claim is lost: failures beat reasons, reasons beat proof.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        use Verdict::{Failed, OverwrittenAndVerified, OverwrittenNotProvable};
        match (self, other) {
            (Failed { mut reasons }, Failed { reasons: more }) => {
                merge(&mut reasons, more);
                Failed { reasons }
            }
            (failed @ Failed { .. }, _) | (_, failed @ Failed { .. }) => failed,
            (OverwrittenNotProvable { mut reasons }, OverwrittenNotProvable { reasons: more }) => {
                merge(&mut reasons, more);
                OverwrittenNotProvable { reasons }
            }
            (weak @ OverwrittenNotProvable { .. }, OverwrittenAndVerified)
            | (OverwrittenAndVerified, weak @ OverwrittenNotProvable { .. }) => weak,
            (OverwrittenAndVerified, OverwrittenAndVerified) => OverwrittenAndVerified,
        }
    }

    /// Provable unless there is a reason.
    pub fn from_reasons(reasons: Vec<Reason>) -> Self {
        if reasons.is_empty() {
            Self::OverwrittenAndVerified
        } else {
            Self::OverwrittenNotProvable { reasons }
        }
    }

    /// Whether bytes may be left although they were meant to be overwritten.
    pub fn is_failed(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    /// Whether all is overwritten, read back and provable.
    pub fn is_proven(&self) -> bool {
        matches!(self, Self::OverwrittenAndVerified)
    }
}

fn merge<T: PartialEq>(into: &mut Vec<T>, more: Vec<T>) {
    for item in more {
        if !into.contains(&item) {
            into.push(item);
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverwrittenAndVerified => f.write_str("overwritten and verified"),
            Self::OverwrittenNotProvable { reasons } => {
                f.write_str("overwritten, not provable: ")?;
                list(f, reasons)
            }
            Self::Failed { reasons } => {
                f.write_str("failed: ")?;
                list(f, reasons)
            }
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            f.write_str("; ")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}
