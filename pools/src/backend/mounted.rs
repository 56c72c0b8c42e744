//! Pools whose directory is a mounted file system: local (`fs`) and network
//! (`netfs`).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Backend, Listing, Started, directory};
use crate::command;
use crate::error::{Error, Result};
use crate::mounts::{self, Mount};
use crate::spec::{BuildMode, PoolSpec, Source, Space};

/// File systems `pool-build` can make, with the package that brings mkfs and
/// the flag that lets it overwrite.
const FORMATS: &[(&str, &str, &str, &str)] = &[
    ("ext2", "mkfs.ext2", "e2fsprogs", "-F"),
    ("ext3", "mkfs.ext3", "e2fsprogs", "-F"),
    ("ext4", "mkfs.ext4", "e2fsprogs", "-F"),
    ("xfs", "mkfs.xfs", "xfsprogs", "-f"),
    ("btrfs", "mkfs.btrfs", "btrfs-progs", "-f"),
    ("vfat", "mkfs.vfat", "dosfstools", "-I"),
];

pub(super) struct Mounted {
    spec: PoolSpec,
}

impl Mounted {
    pub(super) fn new(spec: PoolSpec) -> Self {
        Mounted { spec }
    }

    /// The source as mount(8) takes it.
    fn source(&self) -> PathBuf {
        match &self.spec.source {
            Source::FileSystem { device, .. } => device.clone(),
            Source::Network {
                host,
                directory,
                format,
                ..
            } if format == "cifs" => {
                PathBuf::from(format!("//{host}/{}", directory.trim_start_matches('/')))
            }
            Source::Network {
                host, directory, ..
            } => {
                // An IPv6 address stands in brackets before the directory.
                if host.contains(':') && !host.starts_with('[') {
                    PathBuf::from(format!("[{host}]:{directory}"))
                } else {
                    PathBuf::from(format!("{host}:{directory}"))
                }
            }
            Source::Directory | Source::VolumeGroup { .. } => PathBuf::new(),
        }
    }

    fn format(&self) -> &str {
        match &self.spec.source {
            Source::FileSystem { format, .. } | Source::Network { format, .. } => format,
            Source::Directory | Source::VolumeGroup { .. } => "auto",
        }
    }

    /// What is mounted at the target, if it is this pool's source.
    fn mounted(&self) -> Result<Option<Mount>> {
        let Some(mount) = mounts::at(&self.spec.target).map_err(mounts::unreadable)? else {
            return Ok(None);
        };
        let network = matches!(self.spec.source, Source::Network { .. });
        let wanted = self.source();
        // A network share may be mounted under another spelling of its server
        // (address for name); the user who mounted it there decides.
        if network || same_source(&mount.source, &wanted) {
            return Ok(Some(mount));
        }
        Err(Error::ForeignMount {
            pool: self.spec.name.clone(),
            path: self.spec.target.clone(),
            found: mount.source,
            wanted,
        })
    }

    fn mount(&self) -> Result<()> {
        directory::check_target(&self.spec.name, &self.spec.target)?;
        let kind = match &self.spec.source {
            Source::Network { format, .. } => match format.as_str() {
                "nfs" | "auto" => "nfs",
                other => {
                    return Err(Error::CannotMount {
                        pool: self.spec.name.clone(),
                        protocol: other.into(),
                        path: self.spec.target.clone(),
                    });
                }
            },
            _ => self.format(),
        };
        let mut arguments: Vec<OsString> = vec!["-t".into(), kind.into()];
        if let Source::Network { options, .. } = &self.spec.source {
            let version = options
                .version
                .as_ref()
                .map(|version| format!("nfsvers={version}"));
            let port = options.port.map(|port| format!("port={port}"));
            for option in version.into_iter().chain(port) {
                arguments.extend(["-o".into(), option.into()]);
            }
        }
        arguments.push("--".into());
        arguments.push(self.source().into_os_string());
        arguments.push(self.spec.target.clone().into_os_string());
        command::run("mount", "mount", arguments)?;
        Ok(())
    }

    fn make_file_system(&self, device: &Path, overwrite: bool) -> Result<()> {
        let format = self.format();
        let Some((_, program, package, force)) = FORMATS.iter().find(|entry| entry.0 == format)
        else {
            let known = FORMATS
                .iter()
                .map(|entry| entry.0)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(Error::CannotFormat {
                pool: self.spec.name.clone(),
                format: format.into(),
                known,
            });
        };
        check_free(device)?;
        if !overwrite {
            check_blank(device)?;
        }
        command::run(program, package, [force.as_ref(), device.as_os_str()])?;
        Ok(())
    }
}

impl Backend for Mounted {
    fn build(&self, mode: BuildMode) -> Result<()> {
        match (&self.spec.source, mode) {
            (_, BuildMode::Plain) => {}
            (Source::FileSystem { device, .. }, mode) => {
                self.make_file_system(device, mode == BuildMode::Overwrite)?;
            }
            _ => {
                return Err(Error::NothingToFormat {
                    pool: self.spec.name.clone(),
                });
            }
        }
        if self.mounted()?.is_some() {
            return Ok(());
        }
        directory::make_target(&self.spec)
    }

    fn start(&self) -> Result<Started> {
        if self.mounted()?.is_some() {
            return Ok(Started { mounted: false });
        }
        self.mount()?;
        Ok(Started { mounted: true })
    }

    fn stop(&self, mounted: bool) -> Result<()> {
        if mounted && self.mounted()?.is_some() {
            command::run(
                "umount",
                "mount",
                ["--".as_ref(), self.spec.target.as_os_str()],
            )?;
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        if self.mounted()?.is_some() {
            return Err(Error::StillMounted {
                pool: self.spec.name.clone(),
                path: self.spec.target.clone(),
            });
        }
        directory::remove_target(&self.spec.name, &self.spec.target)
    }

    fn check(&self) -> Result<()> {
        directory::check_target(&self.spec.name, &self.spec.target)?;
        match self.mounted()? {
            Some(_) => Ok(()),
            None => Err(Error::NotMounted {
                pool: self.spec.name.clone(),
                path: self.spec.target.clone(),
            }),
        }
    }

    fn space(&self) -> Result<Space> {
        directory::space(&self.spec.target)
    }

    fn list(&self) -> Result<Listing> {
        directory::list(&self.spec.target)
    }
}

fn same_source(a: &Path, b: &Path) -> bool {
    a == b || matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Refuses a device that is mounted.
pub(super) fn check_free(device: &Path) -> Result<()> {
    for mount in mounts::all().map_err(mounts::unreadable)? {
        if same_source(&mount.source, device) {
            return Err(Error::DeviceInUse {
                device: device.to_owned(),
                by: mount.mount_point,
            });
        }
    }
    Ok(())
}

/// Refuses a device that has a file system, a partition table or anything else
/// that blkid(8) knows on it.
pub(super) fn check_blank(device: &Path) -> Result<()> {
    fs::metadata(device).map_err(|source| Error::at("open device", device, source))?;
    let arguments = [
        "-p".as_ref(),
        "-o".as_ref(),
        "export".as_ref(),
        device.as_os_str(),
    ];
    let (code, found) = command::status("blkid", "util-linux", arguments)?;
    let kind = found
        .lines()
        .filter_map(|line| {
            line.strip_prefix("TYPE=")
                .or_else(|| line.strip_prefix("PTTYPE="))
        })
        .next();
    match (code, kind) {
        // 2: nothing found.
        (2, _) => Ok(()),
        (0, kind) => Err(Error::DeviceNotBlank {
            device: device.to_owned(),
            found: kind.unwrap_or("something").to_owned(),
        }),
        // 8: several kinds found that contradict each other.
        (8, _) => Err(Error::DeviceNotBlank {
            device: device.to_owned(),
            found: "more than one signature".into(),
        }),
        (code, _) => Err(Error::Program {
            program: "blkid",
            reason: format!("it ended with code {code}"),
        }),
    }
}
