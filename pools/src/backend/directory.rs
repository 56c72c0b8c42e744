//! A directory whose files are the volumes.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Backend, Found, Listing, Started};
use crate::error::{Error, Result};
use crate::file::FileIdentity;
use crate::name::{self, PRIVATE_PREFIX};
use crate::spec::{BuildMode, PoolSpec, Space};
use crate::volume::VolumeKind;

/// Mode of a directory for which the definition gives none, as libvirt's.
const DEFAULT_MODE: u32 = 0o711;

pub(super) struct Directory {
    spec: PoolSpec,
}

impl Directory {
    pub(super) fn new(spec: PoolSpec) -> Self {
        Directory { spec }
    }
}

impl Backend for Directory {
    fn build(&self, mode: BuildMode) -> Result<()> {
        if mode != BuildMode::Plain {
            return Err(Error::NothingToFormat {
                pool: self.spec.name.clone(),
            });
        }
        make_target(&self.spec)
    }

    fn start(&self) -> Result<Started> {
        self.check()?;
        Ok(Started::default())
    }

    fn stop(&self, _mounted: bool) -> Result<()> {
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        remove_target(&self.spec.name, &self.spec.target)
    }

    fn check(&self) -> Result<()> {
        check_target(&self.spec.name, &self.spec.target)
    }

    fn space(&self) -> Result<Space> {
        space(&self.spec.target)
    }

    fn list(&self) -> Result<Listing> {
        list(&self.spec.target)
    }
}

/// Makes the target directory with its parents, owner and mode. One that is
/// there gets what the definition gives explicitly.
pub(super) fn make_target(spec: &PoolSpec) -> Result<()> {
    let (target, permissions) = (spec.target.as_path(), &spec.permissions);
    let parents = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parents).map_err(|source| Error::at("create directory", parents, source))?;
    let mode = permissions.mode;
    match fs::DirBuilder::new()
        .mode(mode.unwrap_or(DEFAULT_MODE))
        .create(target)
    {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => {}
        Err(source) => return Err(Error::at("create directory", target, source)),
    }
    if let Some(mode) = mode {
        // Past the umask.
        fs::set_permissions(target, fs::Permissions::from_mode(mode))
            .map_err(|source| Error::at("set the mode of", target, source))?;
    }
    if permissions.owner.is_some() || permissions.group.is_some() {
        std::os::unix::fs::chown(target, permissions.owner, permissions.group)
            .map_err(|source| Error::at("set the owner of", target, source))?;
    }
    if spec.without_cow {
        turn_off_cow(target)?;
    }
    Ok(())
}

/// New files in the directory will be overwritten in place (btrfs); other file
/// systems refuse the flag and need none.
fn turn_off_cow(target: &Path) -> Result<()> {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let dir = fs::File::open(target)
        .map_err(|source| Error::at("open the pool's directory", target, source))?;
    match ioctl_getflags(&dir).and_then(|flags| ioctl_setflags(&dir, flags | IFlags::NOCOW)) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOTTY | rustix::io::Errno::NOTSUP | rustix::io::Errno::INVAL) => {
            Ok(())
        }
        Err(errno) => Err(Error::at(
            "turn copy-on-write off for",
            target,
            errno.into(),
        )),
    }
}

/// Removes the target directory if nothing is in it.
pub(super) fn remove_target(pool: &str, target: &Path) -> Result<()> {
    match fs::remove_dir(target) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Err(Error::PoolNotEmpty {
                pool: pool.into(),
                path: target.to_owned(),
            })
        }
        Err(source) => Err(Error::at("remove directory", target, source)),
    }
}

pub(super) fn check_target(pool: &str, target: &Path) -> Result<()> {
    match fs::metadata(target) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Error::TargetNotDirectory {
            pool: pool.into(),
            path: target.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::TargetMissing {
            pool: pool.into(),
            path: target.to_owned(),
        }),
        Err(source) => Err(Error::at("open the pool's directory", target, source)),
    }
}

pub(super) fn space(target: &Path) -> Result<Space> {
    let stat = rustix::fs::statvfs(target)
        .map_err(|errno| Error::at("read the free space of", target, errno.into()))?;
    let capacity = stat.f_blocks.saturating_mul(stat.f_frsize);
    let free = stat.f_bfree.saturating_mul(stat.f_frsize);
    Ok(Space {
        capacity,
        allocation: capacity.saturating_sub(free),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// The volumes in the directory. Subdirectories are listed as libvirt does;
/// links that leave the directory, sockets and names nobody can type are
/// skipped with a reason.
pub(super) fn list(target: &Path) -> Result<Listing> {
    let root = fs::canonicalize(target)
        .map_err(|source| Error::at("open the pool's directory", target, source))?;
    let mut listing = Listing::default();
    let entries =
        fs::read_dir(target).map_err(|source| Error::at("list directory", target, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::at("list directory", target, source))?;
        let file_name = entry.file_name();
        if file_name
            .as_encoded_bytes()
            .starts_with(PRIVATE_PREFIX.as_bytes())
        {
            continue;
        }
        match examine(target, &root, &file_name) {
            // Gone since the directory was read.
            Ok(None) => {}
            Ok(Some(found)) => listing.volumes.push(found),
            Err(reason) => {
                listing.skipped.push((
                    file_name.to_string_lossy().escape_debug().to_string(),
                    reason,
                ));
            }
        }
    }
    listing.volumes.sort_by(|a, b| a.name.cmp(&b.name));
    listing.skipped.sort();
    Ok(listing)
}

fn examine(
    target: &Path,
    root: &Path,
    file_name: &OsStr,
) -> std::result::Result<Option<Found>, String> {
    let name = file_name.to_str().ok_or("its name is not UTF-8")?;
    name::check_volume_name(name).map_err(|error| error.to_string())?;
    let path: PathBuf = target.join(name);
    let link = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let metadata = if link.is_symlink() {
        let real = fs::canonicalize(&path).map_err(|error| format!("broken link: {error}"))?;
        if !real.starts_with(root) {
            return Err(format!(
                "it is a link that leaves the pool, to '{}'",
                real.display()
            ));
        }
        fs::metadata(&real).map_err(|error| error.to_string())?
    } else {
        link
    };
    let kind = match metadata.file_type() {
        kind if kind.is_file() => VolumeKind::File,
        kind if kind.is_dir() => VolumeKind::Dir,
        kind if kind.is_block_device() => return Err("it is a block device node".into()),
        _ => return Err("it is neither a file nor a directory".into()),
    };
    Ok(Some(found(name, path, kind, &metadata)))
}

fn found(name: &str, path: PathBuf, kind: VolumeKind, metadata: &Metadata) -> Found {
    Found {
        name: name.into(),
        path,
        kind,
        identity: FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        },
        length: metadata.len(),
        allocation: metadata.blocks().saturating_mul(512),
        mode: metadata.mode() & 0o7777,
        owner: metadata.uid(),
        group: metadata.gid(),
        modified: (
            metadata.mtime(),
            u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        ),
    }
}
