//! One backend per type of pool.

mod directory;
mod logical;
mod mounted;

use std::path::PathBuf;

use crate::error::Result;
use crate::file::FileIdentity;
use crate::spec::{BuildMode, PoolSpec, Source, Space};
use crate::volume::VolumeKind;

pub use logical::LogicalVolumes;

/// What [`Backend::start`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Started {
    /// It mounted something, which [`Backend::stop`] has to unmount.
    pub mounted: bool,
}

/// An entry of a pool that is a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Name of the volume.
    pub name: String,
    /// Its absolute path.
    pub path: PathBuf,
    /// What it is.
    pub kind: VolumeKind,
    /// Which file it is, links followed.
    pub identity: FileIdentity,
    /// Length in bytes.
    pub length: u64,
    /// Space taken in bytes.
    pub allocation: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owning user.
    pub owner: u32,
    /// Owning group.
    pub group: u32,
    /// Last change of content.
    pub modified: (i64, u32),
}

/// What is in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Its volumes by name.
    pub volumes: Vec<Found>,
    /// Entries that are no volumes but look like some, and why.
    pub skipped: Vec<(String, String)>,
}

/// How a type of pool is handled on the host. All methods may be called again
/// after they were interrupted.
pub trait Backend: Send + Sync {
    /// Makes what the pool stands on.
    fn build(&self, mode: BuildMode) -> Result<()>;
    /// Makes the volumes reachable; fine if they are.
    fn start(&self) -> Result<Started>;
    /// Makes them unreachable again; `mounted` is what start said.
    fn stop(&self, mounted: bool) -> Result<()>;
    /// Removes what the pool stands on, unless volumes are left in it.
    fn delete(&self) -> Result<()>;
    /// Fails, saying what is missing, if a started pool is not reachable.
    fn check(&self) -> Result<()>;
    /// Its space.
    fn space(&self) -> Result<Space>;
    /// What is in it.
    fn list(&self) -> Result<Listing>;
}

/// The backend of a pool.
pub fn backend(spec: &PoolSpec) -> Box<dyn Backend> {
    match &spec.source {
        Source::Directory => Box::new(directory::Directory::new(spec.clone())),
        Source::FileSystem { .. } | Source::Network { .. } => {
            Box::new(mounted::Mounted::new(spec.clone()))
        }
        Source::VolumeGroup { name, devices } => {
            Box::new(LogicalVolumes::new(&spec.name, name, devices))
        }
    }
}
