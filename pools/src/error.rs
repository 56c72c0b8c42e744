//! What can go wrong with pools and volumes.

use std::io;
use std::path::{Path, PathBuf};

use crate::volume::VolumeId;

/// Result of storage operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Classes of errors, from which the command line takes its exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// It went wrong for no more special reason.
    Failed,
    /// The request itself is wrong: a bad name, size or document.
    Invalid,
    /// Something named does not exist.
    NotFound,
    /// Something of that name exists.
    Exists,
    /// The thing exists but its state forbids the operation.
    InvalidState,
    /// The host lacks a program, a right or space.
    Host,
    /// Cenote does not support it.
    Unsupported,
    /// Cancelled by the user.
    Cancelled,
}

impl ErrorKind {
    /// The class of an error of the operating system.
    pub fn of_io(error: &io::Error) -> ErrorKind {
        match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded => ErrorKind::Host,
            _ => ErrorKind::Failed,
        }
    }
}

/// A storage operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that a pool or volume cannot have.
    #[error("invalid {what} name '{name}': {reason}")]
    BadName {
        /// `pool` or `volume`.
        what: &'static str,
        /// The name, escaped and cut for display.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} '{}': {source}", path.display())]
    Io {
        /// What was tried, to be read after "cannot".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No space is left for what was asked.
    #[error("no space left on the file system of '{}' to {action}", path.display())]
    NoSpace {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A file is in the way.
    #[error("'{}' exists already", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// A program of the host is missing.
    #[error("the program '{program}' is not installed")]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// Debian package that brings it.
        package: &'static str,
    },
    /// A program of the host failed.
    #[error("{program} failed: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// Its error output.
        reason: String,
    },
    /// No pool has this name or UUID.
    #[error("Storage pool not found: no storage pool with matching name or UUID '{0}'")]
    PoolNotFound(String),
    /// A pool has this name or UUID already.
    #[error("pool '{name}' already exists with uuid {uuid}")]
    PoolExists {
        /// Its name.
        name: String,
        /// Its UUID.
        uuid: String,
    },
    /// Another pool stands on the same directory or group.
    #[error("pool '{other}' already stands on '{}'", path.display())]
    PoolOverlaps {
        /// The other pool.
        other: String,
        /// What both stand on.
        path: PathBuf,
    },
    /// The pool must be stopped for this.
    #[error("storage pool '{0}' is active")]
    PoolActive(String),
    /// The pool must be started for this.
    #[error("storage pool '{0}' is not active")]
    PoolInactive(String),
    /// A transient pool has no definition that could be kept.
    #[error("storage pool '{0}' is transient, it cannot be marked for autostart")]
    PoolTransient(String),
    /// A pool type Cenote does not have.
    #[error("pool '{pool}': storage pools of type '{kind}' are not supported")]
    PoolTypeUnsupported {
        /// The pool.
        pool: String,
        /// The type its definition gives.
        kind: String,
    },
    /// A document cannot be accepted.
    #[error(transparent)]
    Document(#[from] cenote_model::Error),
    /// An image operation failed.
    #[error(transparent)]
    Image(#[from] cenote_image::Error),
    /// A definition lacks something or has something that cannot be honoured.
    #[error("definition of {what}: {reason}")]
    BadDefinition {
        /// Of what, for example `pool 'images'`.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The directory of a pool is gone.
    #[error("the directory '{}' of pool '{pool}' does not exist", path.display())]
    TargetMissing {
        /// The pool.
        pool: String,
        /// The directory.
        path: PathBuf,
    },
    /// The target of a pool is no directory.
    #[error("'{}', the target of pool '{pool}', is not a directory", path.display())]
    TargetNotDirectory {
        /// The pool.
        pool: String,
        /// The target.
        path: PathBuf,
    },
    /// Nothing is mounted where the pool's file system should be.
    #[error("the file system of pool '{pool}' is not mounted at '{}'", path.display())]
    NotMounted {
        /// The pool.
        pool: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// Something else is mounted there.
    #[error(
        "'{}' is mounted at '{}' where pool '{pool}' wants '{}'",
        found.display(), path.display(), wanted.display()
    )]
    ForeignMount {
        /// The pool.
        pool: String,
        /// Its target.
        path: PathBuf,
        /// What is there.
        found: PathBuf,
        /// What should be.
        wanted: PathBuf,
    },
    /// The pool's file system is mounted and must not be.
    #[error("the file system of pool '{pool}' is still mounted at '{}'", path.display())]
    StillMounted {
        /// The pool.
        pool: String,
        /// Where.
        path: PathBuf,
    },
    /// A network protocol Cenote does not mount itself.
    #[error("pool '{pool}': Cenote does not mount '{protocol}' file systems itself")]
    CannotMount {
        /// The pool.
        pool: String,
        /// The protocol.
        protocol: String,
        /// Where it wants it.
        path: PathBuf,
    },
    /// A file system Cenote does not make.
    #[error("pool '{pool}': cannot make a file system of type '{format}'; known are {known}")]
    CannotFormat {
        /// The pool.
        pool: String,
        /// The type.
        format: String,
        /// Those that can be made.
        known: String,
    },
    /// `--overwrite` or `--no-overwrite` on a pool that is never formatted.
    #[error("pool '{pool}' has no device that building could format")]
    NothingToFormat {
        /// The pool.
        pool: String,
    },
    /// Volumes or other files are left in the pool.
    #[error("pool '{pool}' is not empty: '{}' still holds something", path.display())]
    PoolNotEmpty {
        /// The pool.
        pool: String,
        /// Its directory or group.
        path: PathBuf,
    },
    /// A device that should be built on is mounted.
    #[error("device '{}' is in use: mounted at '{}'", device.display(), by.display())]
    DeviceInUse {
        /// The device.
        device: PathBuf,
        /// Where it is mounted.
        by: PathBuf,
    },
    /// A device that should be built on has something on it.
    #[error("device '{}' is not empty: found {found}", device.display())]
    DeviceNotBlank {
        /// The device.
        device: PathBuf,
        /// What is on it.
        found: String,
    },
    /// The volume group does not exist.
    #[error("pool '{pool}': volume group '{group}' does not exist")]
    GroupMissing {
        /// The pool.
        pool: String,
        /// The group.
        group: String,
    },
    /// A logical pool without devices cannot be built.
    #[error("pool '{pool}' names no source devices to build the volume group from")]
    NoDevices {
        /// The pool.
        pool: String,
    },
    /// No volume is meant by what was typed.
    #[error("Storage volume not found: no storage vol with matching name, path or key '{name}'{}",
        pool.as_ref().map(|pool| format!(" in pool '{pool}'")).unwrap_or_default())]
    VolumeNotFound {
        /// What was typed.
        name: String,
        /// The pool that was named.
        pool: Option<String>,
    },
    /// Several volumes are meant by what was typed.
    #[error("volume name '{name}' is ambiguous: {}", list(candidates))]
    VolumeAmbiguous {
        /// What was typed.
        name: String,
        /// The volumes it may mean.
        candidates: Vec<VolumeId>,
    },
    /// The volume exists already.
    #[error("storage vol '{0}' already exists")]
    VolumeExists(VolumeId),
    /// Others stand on the volume.
    #[error("volume '{volume}' backs {}", list(dependents))]
    VolumeBacks {
        /// The volume.
        volume: String,
        /// Those that would break.
        dependents: Vec<String>,
    },
    /// Something uses the volume.
    #[error("volume '{volume}' is in use by {}", list(users))]
    VolumeInUse {
        /// The volume.
        volume: String,
        /// Who uses it.
        users: Vec<String>,
    },
    /// The format of the volume is only what its header claims.
    #[error(
        "the format of volume '{volume}' is not known for sure: its header says {found} and \
         reaches other files"
    )]
    FormatUntrusted {
        /// The volume.
        volume: VolumeId,
        /// What its header says.
        found: String,
    },
    /// Cenote has no engine for the format.
    #[error("volume '{volume}' has format '{format}', which Cenote cannot open")]
    FormatUnsupported {
        /// The volume.
        volume: String,
        /// Its format.
        format: String,
    },
    /// The volume is not a disk (a directory in the pool).
    #[error("'{0}' is a directory, not a disk")]
    NotADisk(VolumeId),
    /// The pool cannot hold or do what was asked.
    #[error("pool '{pool}' cannot {what}: {reason}")]
    PoolCannot {
        /// The pool.
        pool: String,
        /// What was asked, to be read after "cannot".
        what: String,
        /// Why not.
        reason: String,
    },
    /// A request that contradicts itself or the volume.
    #[error("{what}: {reason}")]
    Invalid {
        /// What is wrong, for example `size`.
        what: String,
        /// Why.
        reason: String,
    },
    /// Making the volume smaller was not asked for by name.
    #[error(
        "volume '{volume}' has {current} bytes; making it {wanted} would cut off what lies behind"
    )]
    WouldShrink {
        /// The volume.
        volume: VolumeId,
        /// Its size.
        current: u64,
        /// The size asked for.
        wanted: u64,
    },
    /// The caller broke the operation off.
    #[error("{0} was cancelled")]
    Cancelled(String),
}

impl Error {
    /// `action` on `path` failed with `source`; a full disk gets its own
    /// variant.
    pub fn at(action: &'static str, path: &Path, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
                action,
                path: path.to_owned(),
            },
            _ => Error::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    }

    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::BadName { .. }
            | Error::BadDefinition { .. }
            | Error::NothingToFormat { .. }
            | Error::NoDevices { .. }
            | Error::Invalid { .. }
            | Error::VolumeAmbiguous { .. } => ErrorKind::Invalid,
            Error::Io { source, .. } => ErrorKind::of_io(source),
            Error::PoolNotFound(_) | Error::VolumeNotFound { .. } => ErrorKind::NotFound,
            Error::FileExists { .. }
            | Error::PoolExists { .. }
            | Error::PoolOverlaps { .. }
            | Error::VolumeExists(_) => ErrorKind::Exists,
            Error::PoolActive(_)
            | Error::PoolInactive(_)
            | Error::PoolTransient(_)
            | Error::TargetMissing { .. }
            | Error::TargetNotDirectory { .. }
            | Error::NotMounted { .. }
            | Error::ForeignMount { .. }
            | Error::StillMounted { .. }
            | Error::PoolNotEmpty { .. }
            | Error::DeviceInUse { .. }
            | Error::DeviceNotBlank { .. }
            | Error::GroupMissing { .. }
            | Error::VolumeBacks { .. }
            | Error::VolumeInUse { .. }
            | Error::FormatUntrusted { .. }
            | Error::NotADisk(_)
            | Error::WouldShrink { .. } => ErrorKind::InvalidState,
            Error::NoSpace { .. } | Error::MissingProgram { .. } => ErrorKind::Host,
            Error::PoolTypeUnsupported { .. }
            | Error::CannotMount { .. }
            | Error::CannotFormat { .. }
            | Error::PoolCannot { .. }
            | Error::FormatUnsupported { .. } => ErrorKind::Unsupported,
            Error::Program { .. } => ErrorKind::Failed,
            Error::Document(error) => match error {
                cenote_model::Error::Unsupported { .. } => ErrorKind::Unsupported,
                _ => ErrorKind::Invalid,
            },
            Error::Image(error) => kind_of_image(error),
            Error::Cancelled(_) => ErrorKind::Cancelled,
        }
    }

    /// What the user can do about it, with the exact command where there is
    /// one.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Error::BadName { .. } => {
                "a name has 1 to 255 bytes, no '/' and no control characters".into()
            }
            Error::NoSpace { .. } => "free some space, or use another pool".into(),
            Error::FileExists { .. } => "choose another name, or delete it first".into(),
            Error::MissingProgram { package, .. } => {
                format!("install it: apt-get install {package}")
            }
            Error::PoolNotFound(_) => "list the pools: cenote pool-list --all".into(),
            Error::PoolExists { name, .. } => {
                format!("choose another name, or: cenote pool-undefine {name}")
            }
            Error::PoolOverlaps { other, .. } => format!("use pool '{other}'"),
            Error::PoolActive(pool) => format!("stop it first: cenote pool-destroy {pool}"),
            Error::PoolInactive(pool) => format!("start it first: cenote pool-start {pool}"),
            Error::PoolTransient(pool) => format!(
                "make it persistent: cenote pool-dumpxml {pool} > pool.xml; cenote pool-define \
                 pool.xml"
            ),
            Error::PoolTypeUnsupported { .. } => "supported are dir, fs, netfs and logical; for \
                 iSCSI or other block storage mount or map it on the host and define a pool on \
                 that"
                .into(),
            Error::TargetMissing { pool, .. } => {
                format!("create it: cenote pool-build {pool}; or mount what should be there")
            }
            Error::NotMounted { pool, .. } => {
                format!(
                    "start the pool again: cenote pool-destroy {pool}; cenote pool-start {pool}"
                )
            }
            Error::ForeignMount { path, .. } | Error::StillMounted { path, .. } => {
                format!("unmount it: umount '{}'", path.display())
            }
            Error::CannotMount { path, .. } => format!(
                "mount it at '{}' (for example by /etc/fstab), then start the pool",
                path.display()
            ),
            Error::CannotFormat { .. } => {
                "make the file system by hand, then start the pool without building".into()
            }
            Error::NothingToFormat { pool } => {
                format!("leave the option away: cenote pool-build {pool}")
            }
            Error::PoolNotEmpty { pool, .. } => {
                format!("delete its volumes first; see them: cenote vol-list {pool}")
            }
            Error::DeviceNotBlank { .. } => {
                "use --overwrite if what is on the device may be lost".into()
            }
            Error::GroupMissing { pool, .. } => format!("build it: cenote pool-build {pool}"),
            Error::VolumeNotFound {
                pool: Some(pool), ..
            } => {
                format!("list the volumes: cenote vol-list {pool}")
            }
            Error::VolumeNotFound { pool: None, .. } => {
                "list the volumes of a pool: cenote vol-list POOL; see the pools: cenote \
                 pool-list --all"
                    .into()
            }
            Error::VolumeAmbiguous { candidates, .. } => match candidates.first() {
                Some(first) => format!("name the pool, for example {first}"),
                None => return None,
            },
            Error::VolumeExists(volume) => {
                format!("choose another name, or: cenote vol-delete {volume}")
            }
            Error::VolumeBacks { volume, .. } => format!(
                "see the chain: cenote vol-chain {volume}; flatten or delete what stands on it \
                 first"
            ),
            Error::VolumeInUse { .. } => "stop what uses it, then try again".into(),
            Error::FormatUntrusted { volume, found } => format!(
                "if you trust its origin: cenote vol-set-format {volume} {found}; if a guest wrote \
                 it: cenote vol-set-format {volume} raw"
            ),
            Error::FormatUnsupported { .. } => {
                "convert it with the program that made it, for example qemu-img convert -O qcow2"
                    .into()
            }
            Error::WouldShrink { .. } => {
                "shrink the file system in the guest first, then use --shrink".into()
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as a user who may, or change the owner or mode".into()
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                "remount the file system read-write, or use another pool".into()
            }
            _ => return None,
        };
        Some(text)
    }
}

fn kind_of_image(error: &cenote_image::Error) -> ErrorKind {
    use cenote_image::Error as Image;
    match error {
        Image::Io { source, .. } => ErrorKind::of_io(source),
        Image::Unsupported { .. } => ErrorKind::Unsupported,
        Image::OutOfRange { .. } | Image::Invalid { .. } => ErrorKind::Invalid,
        Image::NoSpace { .. } => ErrorKind::Host,
        Image::Cancelled => ErrorKind::Cancelled,
        Image::NotQcow2 { .. }
        | Image::ReadOnly { .. }
        | Image::InUse { .. }
        | Image::BackingLoop { .. }
        | Image::BackingTooDeep { .. }
        | Image::BackingMissing { .. }
        | Image::BackingOutside { .. } => ErrorKind::InvalidState,
        _ => ErrorKind::Failed,
    }
}

/// Joins names for a sentence, a bounded number of them.
fn list(items: &[impl std::fmt::Display]) -> String {
    const SHOWN: usize = 10;
    let mut text = items
        .iter()
        .take(SHOWN)
        .map(|item| format!("'{item}'"))
        .collect::<Vec<_>>()
        .join(", ");
    if let Some(more) = items.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
