//! What a pool definition asks of the host, cut down from its document to what
//! the backends act on.

use std::path::PathBuf;

/// Owner and mode a definition gives its directory or volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions {
    /// Permission bits.
    pub mode: Option<u32>,
    /// User; `None` leaves it to the system.
    pub owner: Option<u32>,
    /// Group.
    pub group: Option<u32>,
}

/// What mount(8) is told beside the source of a network file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkOptions {
    /// Port of the server, if not the protocol's own.
    pub port: Option<u16>,
    /// Version of the protocol, for example `4.2`.
    pub version: Option<String>,
}

/// What a pool is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory that is simply there.
    Directory,
    /// A file system on a block device, mounted at the target.
    FileSystem {
        /// The device.
        device: PathBuf,
        /// Its type for mount(8) and mkfs(8); `auto` lets mount find out.
        format: String,
    },
    /// A network file system, mounted at the target.
    Network {
        /// The server.
        host: String,
        /// The exported directory.
        directory: String,
        /// Its protocol: `auto`, `nfs`, `glusterfs` or `cifs`.
        format: String,
        /// How it is mounted.
        options: NetworkOptions,
    },
    /// An LVM volume group.
    VolumeGroup {
        /// Name of the group.
        name: String,
        /// Devices it is built from.
        devices: Vec<PathBuf>,
    },
}

/// A pool as the backends see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Name of the pool, for messages.
    pub name: String,
    /// Directory that holds the volumes (`/dev/<group>` for LVM).
    pub target: PathBuf,
    /// For the target directory when it is built.
    pub permissions: Permissions,
    /// What it is made of.
    pub source: Source,
    /// Whether new files are made without copy-on-write (btrfs).
    pub without_cow: bool,
}

/// How `pool-build` treats what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BuildMode {
    /// Makes the directory (or the volume group); formats no file system.
    #[default]
    Plain,
    /// Formats the source unless something is on it.
    NoOverwrite,
    /// Formats the source whatever is on it.
    Overwrite,
}

/// Space of a pool in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// In all.
    pub capacity: u64,
    /// Used.
    pub allocation: u64,
    /// Free for the caller.
    pub available: u64,
}
