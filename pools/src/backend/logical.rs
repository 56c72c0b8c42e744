//! An LVM volume group, by the lvm2 commands.
//!
//! The commands' JSON reports are read, never their tables. Sizes are asked for
//! in bytes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::mounted::{check_blank, check_free};
use super::{Backend, Found, Listing, Started};
use crate::command;
use crate::error::{Error, Result};
use crate::file::FileIdentity;
use crate::spec::{BuildMode, Space};
use crate::volume::VolumeKind;

/// Debian package of the commands.
const PACKAGE: &str = "lvm2";

/// The volume group behind a pool.
#[derive(Debug, Clone)]
pub struct LogicalVolumes {
    pool: String,
    group: String,
    devices: Vec<PathBuf>,
}

/// One row of `lvs`, as lvm prints it: all values are text.
#[derive(Debug, Deserialize)]
struct LvRow {
    lv_name: String,
    lv_size: String,
    lv_attr: String,
    #[serde(default)]
    lv_tags: String,
}

#[derive(Debug, Deserialize)]
struct VgRow {
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    lv_count: String,
}

impl LogicalVolumes {
    /// The group `group` of `pool`, built from `devices`.
    pub fn new(pool: &str, group: &str, devices: &[PathBuf]) -> Self {
        LogicalVolumes {
            pool: pool.into(),
            group: group.into(),
            devices: devices.to_vec(),
        }
    }

    /// The device node of a volume.
    pub fn device(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.group).join(name)
    }

    fn group_row(&self) -> Result<VgRow> {
        let text = command::run(
            "vgs",
            PACKAGE,
            [
                "--reportformat",
                "json",
                "--units",
                "b",
                "--nosuffix",
                "-o",
                "vg_size,vg_free,vg_extent_size,lv_count",
                "--",
                &self.group,
            ],
        )
        .map_err(|error| match error {
            Error::Program { reason, .. } if reason.contains("not found") => Error::GroupMissing {
                pool: self.pool.clone(),
                group: self.group.clone(),
            },
            other => other,
        })?;
        first(report::<VgRow>("vgs", &text, "vg")?, "vgs")
    }

    fn rows(&self) -> Result<Vec<LvRow>> {
        let text = command::run(
            "lvs",
            PACKAGE,
            [
                "--reportformat",
                "json",
                "--units",
                "b",
                "--nosuffix",
                "-o",
                "lv_name,lv_size,lv_attr,lv_tags",
                "--",
                &self.group,
            ],
        )?;
        report("lvs", &text, "lv")
    }

    /// Makes a volume of `capacity` bytes, rounded up to whole extents, that
    /// bears `tag` until [`LogicalVolumes::accept`]. Old content of its space
    /// is not erased, as lvm gives it; signatures are.
    pub fn create(&self, name: &str, capacity: u64, tag: &str) -> Result<()> {
        check_lv_name(name)?;
        if self.rows()?.iter().any(|row| row.lv_name == name) {
            return Err(Error::FileExists {
                path: self.device(name),
            });
        }
        let size = format!("{capacity}b");
        command::run(
            "lvcreate",
            PACKAGE,
            [
                "--yes",
                "--wipesignatures",
                "y",
                "--addtag",
                tag,
                "--name",
                name,
                "--size",
                &size,
                "--",
                &self.group,
            ],
        )
        .map_err(|error| self.no_space(error))?;
        crate::crash::point("lv-created");
        Ok(())
    }

    /// Takes the tag of a volume away: it is finished.
    pub fn accept(&self, name: &str, tag: &str) -> Result<()> {
        let volume = format!("{}/{name}", self.group);
        command::run("lvchange", PACKAGE, ["--deltag", tag, "--", &volume])?;
        crate::crash::point("lv-accepted");
        Ok(())
    }

    /// Whether the volume exists and bears `tag`; `None`: no such volume.
    pub fn has_tag(&self, name: &str, tag: &str) -> Result<Option<bool>> {
        let rows = self.rows()?;
        let row = rows.iter().find(|row| row.lv_name == name);
        Ok(row.map(|row| row.lv_tags.split(',').any(|found| found == tag)))
    }

    /// Removes a volume; one that is gone is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        if !self.rows()?.iter().any(|row| row.lv_name == name) {
            return Ok(());
        }
        let volume = format!("{}/{name}", self.group);
        command::run("lvremove", PACKAGE, ["--yes", "--", &volume])?;
        crate::crash::point("lv-removed");
        Ok(())
    }

    /// Grows or shrinks a volume to `capacity` bytes, rounded up to extents.
    pub fn resize(&self, name: &str, capacity: u64) -> Result<()> {
        let volume = format!("{}/{name}", self.group);
        let size = format!("{capacity}b");
        command::run(
            "lvresize",
            PACKAGE,
            ["--force", "--size", &size, "--", &volume],
        )
        .map_err(|error| self.no_space(error))?;
        crate::crash::point("lv-resized");
        Ok(())
    }

    /// Size of an extent in bytes; volumes are multiples of it.
    pub fn extent(&self) -> Result<u64> {
        number("vgs", &self.group_row()?.vg_extent_size)
    }

    fn no_space(&self, error: Error) -> Error {
        match error {
            Error::Program { reason, .. } if reason.contains("insufficient free space") => {
                Error::NoSpace {
                    action: "allocate a logical volume in",
                    path: Path::new("/dev").join(&self.group),
                }
            }
            other => other,
        }
    }

    fn found(&self, row: &LvRow) -> Result<Option<Found>> {
        // lvs(8): the first attribute is the type. Pools, their metadata and
        // hidden parts are not disks; so are not volumes that are not active.
        let kind = row.lv_attr.chars().next().unwrap_or('-');
        let active = row.lv_attr.chars().nth(4) == Some('a');
        if matches!(kind, 't' | 'T' | 'D' | 'e' | 'p' | 'l' | 'i' | 'I') || !active {
            return Ok(None);
        }
        let size = number("lvs", &row.lv_size)?;
        let path = self.device(&row.lv_name);
        let metadata = fs::metadata(&path).map_err(|source| Error::at("examine", &path, source))?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        Ok(Some(Found {
            name: row.lv_name.clone(),
            path,
            kind: VolumeKind::Block,
            identity: FileIdentity {
                device: metadata.rdev(),
                inode: 0,
            },
            length: size,
            allocation: size,
            mode: metadata.mode() & 0o7777,
            owner: metadata.uid(),
            group: metadata.gid(),
            modified: (
                metadata.mtime(),
                u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            ),
        }))
    }
}

impl Backend for LogicalVolumes {
    fn build(&self, mode: BuildMode) -> Result<()> {
        if self.devices.is_empty() {
            return Err(Error::NoDevices {
                pool: self.pool.clone(),
            });
        }
        for device in &self.devices {
            check_free(device)?;
            if mode != BuildMode::Overwrite {
                check_blank(device)?;
            }
        }
        for device in &self.devices {
            if mode == BuildMode::Overwrite {
                command::run(
                    "wipefs",
                    "util-linux",
                    ["--all".as_ref(), "--".as_ref(), device.as_os_str()],
                )?;
            }
            let arguments = ["--yes".as_ref(), "--".as_ref(), device.as_os_str()];
            command::run("pvcreate", PACKAGE, arguments)?;
        }
        let mut arguments = vec!["--".into(), std::ffi::OsString::from(&self.group)];
        arguments.extend(
            self.devices
                .iter()
                .map(|device| device.clone().into_os_string()),
        );
        command::run("vgcreate", PACKAGE, arguments)?;
        Ok(())
    }

    fn start(&self) -> Result<Started> {
        self.group_row()?;
        command::run("vgchange", PACKAGE, ["--activate", "ly", "--", &self.group])?;
        Ok(Started { mounted: false })
    }

    fn stop(&self, _mounted: bool) -> Result<()> {
        command::run("vgchange", PACKAGE, ["--activate", "ln", "--", &self.group])?;
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        let row = match self.group_row() {
            Err(Error::GroupMissing { .. }) => return Ok(()),
            other => other?,
        };
        if number("vgs", &row.lv_count)? != 0 {
            let path = Path::new("/dev").join(&self.group);
            return Err(Error::PoolNotEmpty {
                pool: self.pool.clone(),
                path,
            });
        }
        command::run("vgremove", PACKAGE, ["--", &self.group])?;
        for device in &self.devices {
            let arguments = ["--yes".as_ref(), "--".as_ref(), device.as_os_str()];
            command::run("pvremove", PACKAGE, arguments)?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.group_row().map(drop)
    }

    fn space(&self) -> Result<Space> {
        let row = self.group_row()?;
        let capacity = number("vgs", &row.vg_size)?;
        let available = number("vgs", &row.vg_free)?;
        Ok(Space {
            capacity,
            allocation: capacity.saturating_sub(available),
            available,
        })
    }

    fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        for row in self.rows()? {
            match self.found(&row) {
                Ok(Some(found)) => listing.volumes.push(found),
                Ok(None) => {}
                Err(error) => listing.skipped.push((row.lv_name, error.to_string())),
            }
        }
        listing.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }
}

/// lvm(8): letters, digits and `+_.-`, not beginning with `-`.
fn check_lv_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    if name.starts_with('-') || !name.chars().all(allowed) || name.len() > 127 {
        return Err(Error::BadName {
            what: "volume",
            name: name.escape_debug().to_string(),
            reason: "a logical volume's name has up to 127 of a-z A-Z 0-9 + _ . - and does not \
                     begin with '-'"
                .into(),
        });
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Report<T> {
    report: Vec<std::collections::BTreeMap<String, Vec<T>>>,
}

fn report<T: for<'a> Deserialize<'a>>(
    program: &'static str,
    text: &str,
    part: &str,
) -> Result<Vec<T>> {
    let parsed: Report<T> = serde_json::from_str(text).map_err(|error| Error::Program {
        program,
        reason: format!("its report: {error}"),
    })?;
    Ok(parsed
        .report
        .into_iter()
        .filter_map(|mut map| map.remove(part))
        .flatten()
        .collect())
}

fn first<T>(rows: Vec<T>, program: &'static str) -> Result<T> {
    rows.into_iter().next().ok_or_else(|| Error::Program {
        program,
        reason: "its report is empty".into(),
    })
}

fn number(program: &'static str, text: &str) -> Result<u64> {
    text.trim().parse().map_err(|_| Error::Program {
        program,
        reason: format!("it reported the number '{text}'"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_lvm_are_read() {
        let text = r#"{"report":[{"lv":[{"lv_name":"a","lv_size":"4194304","lv_attr":"-wi-a-----",
                       "lv_tags":"x,cenote-new-7"}]}],"log":[]}"#;
        // lvm 2.03.17 and newer add "log", which is no report.
        let rows: Vec<LvRow> = report("lvs", text, "lv").unwrap();
        assert_eq!(rows[0].lv_name, "a");
        assert_eq!(number("lvs", &rows[0].lv_size).unwrap(), 4 << 20);
        assert!(report::<LvRow>("lvs", "{}", "lv").is_err());
    }

    #[test]
    fn names_lvm_cannot_have_are_refused() {
        check_lv_name("web-1.disk").unwrap();
        for name in ["-x", "a b", "größe", "a@b"] {
            assert!(check_lv_name(name).is_err(), "{name}");
        }
    }
}
