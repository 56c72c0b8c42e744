//! Who else has a hand on a volume.
//!
//! The host's own uses are looked up here. What other volumes and domains
//! depend on is known to the caller alone, who answers through [`Usage`].

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::device::{names_in, numbers_of};
use super::error::{Error, Refusal, Result};
use super::target::{Kind, Target};
use crate::mounts;

/// What the caller knows of a volume's place among others.
pub trait Usage: Sync {
    /// Names of the volumes whose backing chain or data file goes through
    /// `path`, except those in `besides` (files wiped together with it).
    fn dependents(&self, path: &Path, besides: &[PathBuf]) -> Result<Vec<String>>;

    /// Names of the domains, defined or running, that have `path` in a disk's
    /// chain.
    fn domains(&self, path: &Path) -> Result<Vec<String>>;
}

/// Refuses what anyone but the caller uses.
pub(super) fn check(target: &Target, besides: &[PathBuf], usage: &dyn Usage) -> Result<()> {
    let refuse = |refusal| {
        Err(Error::Refused {
            path: target.path().to_owned(),
            refusal,
        })
    };
    if let Some(refusal) = host_use(target)? {
        return refuse(refusal);
    }
    let dependents = usage.dependents(target.path(), besides)?;
    if !dependents.is_empty() {
        return refuse(Refusal::BackingFile { dependents });
    }
    let users = usage.domains(target.path())?;
    if !users.is_empty() {
        return refuse(Refusal::Domains { users });
    }
    Ok(())
}

fn host_use(target: &Target) -> Result<Option<Refusal>> {
    let io = |error| Error::io(target.path(), "find out who uses")(error);
    for swap in mounts::swaps().map_err(io)? {
        if same(&swap, target) {
            return Ok(Some(Refusal::Swap));
        }
    }
    if let Some(device) = loop_on(target) {
        return Ok(Some(Refusal::LoopDevice { device }));
    }
    if target.kind() == Kind::BlockDevice {
        return device_use(target);
    }
    Ok(None)
}

fn same(path: &Path, target: &Target) -> bool {
    let Ok(metadata) = path.metadata() else {
        return false;
    };
    match target.kind() {
        Kind::File => target
            .file()
            .metadata()
            .is_ok_and(|own| (own.dev(), own.ino()) == (metadata.dev(), metadata.ino())),
        Kind::BlockDevice => {
            let id = target.identity();
            let device = metadata.rdev();
            (rustix::fs::major(device), rustix::fs::minor(device)) == (id.major, id.minor)
        }
    }
}

fn loop_on(target: &Target) -> Option<PathBuf> {
    mounts::loop_devices()
        .into_iter()
        .find_map(|(device, file)| same(&file, target).then_some(device))
}

/// Mounts of the device or its partitions, and devices built on them.
fn device_use(target: &Target) -> Result<Option<Refusal>> {
    let io = |error| Error::io(target.path(), "find out who uses")(error);
    let id = target.identity();
    let Ok(folder) = Path::new(&format!("/sys/dev/block/{}:{}", id.major, id.minor)).canonicalize()
    else {
        return Ok(None);
    };
    let mut folders = vec![folder.clone()];
    folders.extend(
        names_in(&folder)
            .into_iter()
            .map(|name| folder.join(name))
            .filter(|inner| inner.join("partition").exists()),
    );
    let mounts = mounts::all().map_err(io)?;
    for folder in folders {
        let holders = names_in(&folder.join("holders"));
        if !holders.is_empty() {
            return Ok(Some(Refusal::Holders { holders }));
        }
        let Some(numbers) = numbers_of(&folder) else {
            continue;
        };
        for mount in &mounts {
            let source = mount.source.metadata().map(|source| source.rdev()).ok();
            let by_source = source
                .is_some_and(|rdev| (rustix::fs::major(rdev), rustix::fs::minor(rdev)) == numbers);
            if (mount.major, mount.minor) == numbers || by_source {
                return Ok(Some(Refusal::Mounted {
                    device: Path::new("/dev").join(folder.file_name().unwrap_or_default()),
                    mount_point: mount.mount_point.clone(),
                }));
            }
        }
    }
    Ok(None)
}

/// An answer for volumes that are known to stand alone, such as a scratch
/// file just made. Never for a volume of a pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoOthers;

impl Usage for NoOthers {
    fn dependents(&self, _: &Path, _: &[PathBuf]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn domains(&self, _: &Path) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
