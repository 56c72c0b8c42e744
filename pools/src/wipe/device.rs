//! Block devices as sysfs shows them, from the top of a stack to its bottom.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::environment::{Environment, of_file};
use super::extents;
use super::verdict::Reason;

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// Its kernel name.
    pub name: String,
    /// Model, where the drive gives one.
    pub model: Option<String>,
    /// Whether the kernel takes it for a spinning disk.
    pub rotational: bool,
    /// Whether it takes discards.
    pub discard: bool,
    /// Smallest unit it addresses, bytes.
    pub logical_block_size: u64,
    /// Smallest unit it writes at once, bytes.
    pub physical_block_size: u64,
    /// For a loop device, the file below.
    pub backing_file: Option<PathBuf>,
}

fn read(path: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path.join(name)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn read_number(path: &Path, name: &str) -> Option<u64> {
    read(path, name)?.parse().ok()
}

/// What tells this device from another that may get its numbers.
pub(super) fn serial(device: u64) -> Option<String> {
    let path = folder(rustix::fs::major(device), rustix::fs::minor(device))?;
    [
        "device/wwid",
        "wwid",
        "device/serial",
        "serial",
        "dm/uuid",
        "md/uuid",
    ]
    .iter()
    .find_map(|name| read(&path, name))
}

/// The entries of a sysfs folder, sorted; none where it is missing.
pub(super) fn names_in(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn folder(major: u32, minor: u32) -> Option<PathBuf> {
    Path::new(&format!("/sys/dev/block/{major}:{minor}"))
        .canonicalize()
        .ok()
}

/// Device numbers of all devices of the btrfs that `device` belongs to.
pub(super) fn btrfs_siblings(device: (u32, u32)) -> Vec<(u32, u32)> {
    let Some(name) = folder(device.0, device.1).and_then(|path| name_of(&path)) else {
        return Vec::new();
    };
    for file_system in names_in(Path::new("/sys/fs/btrfs")) {
        let devices = Path::new("/sys/fs/btrfs").join(file_system).join("devices");
        if devices.join(&name).exists() {
            let numbers = names_in(&devices).into_iter();
            return numbers
                .filter_map(|one| numbers_of(&devices.join(one)))
                .collect();
        }
    }
    Vec::new()
}

pub(super) fn numbers_of(folder: &Path) -> Option<(u32, u32)> {
    let text = read(folder, "dev")?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn name_of(folder: &Path) -> Option<String> {
    Some(folder.file_name()?.to_string_lossy().into_owned())
}

/// Adds what is known of the device and of all below it.
pub(super) fn examine(
    major: u32,
    minor: u32,
    found: &mut Environment,
    depth: u32,
) -> io::Result<()> {
    let Some(mut path) = folder(major, minor) else {
        found.add(Reason::UnknownDevice {
            device: format!("{major}:{minor}"),
        });
        return Ok(());
    };
    examine_folder(&mut path, found, depth)
}

fn examine_folder(path: &mut PathBuf, found: &mut Environment, depth: u32) -> io::Result<()> {
    if path.join("partition").exists() {
        path.pop();
    }
    let name = name_of(path).unwrap_or_default();
    if found.devices.iter().any(|device| device.name == name) {
        return Ok(());
    }
    let queue = path.join("queue");
    let backing = read(path, "loop/backing_file").map(PathBuf::from);
    found.devices.push(DeviceFacts {
        name: name.clone(),
        model: read(path, "device/model"),
        rotational: read_number(&queue, "rotational") != Some(0),
        discard: read_number(&queue, "discard_max_bytes").unwrap_or(0) > 0,
        logical_block_size: read_number(&queue, "logical_block_size").unwrap_or(512),
        physical_block_size: read_number(&queue, "physical_block_size").unwrap_or(512),
        backing_file: backing.clone(),
    });
    if let Some(file) = backing {
        return below_loop(&name, &file, found, depth);
    }
    let slaves = names_in(&path.join("slaves"));
    if slaves.is_empty() {
        bottom(&name, path, found);
        return Ok(());
    }
    judge_mapping(&name, path, &slaves, found);
    for slave in slaves {
        if let Ok(mut below) = path.join("slaves").join(slave).canonicalize() {
            examine_folder(&mut below, found, depth)?;
        }
    }
    Ok(())
}

/// Device mapper: LVM marks its parts in the UUID (`lvm2/lib/activate`).
fn judge_mapping(name: &str, path: &Path, slaves: &[String], found: &mut Environment) {
    let uuid = |path: &Path| read(path, "dm/uuid").unwrap_or_default();
    let label = read(path, "dm/name").unwrap_or_else(|| name.to_owned());
    let mut uuids = vec![uuid(path)];
    uuids.extend(
        slaves
            .iter()
            .map(|slave| uuid(&path.join("slaves").join(slave))),
    );
    let thin = |uuid: &String| {
        uuid.starts_with("VDO-")
            || ["-tpool", "-pool", "-real", "-cow", "-vpool"]
                .iter()
                .any(|end| uuid.ends_with(end))
    };
    if uuids.iter().any(thin) {
        found.add(Reason::ThinProvisioned { device: label });
    } else if name.starts_with("bcache") || uuids.iter().any(|uuid| uuid.ends_with("-cdata")) {
        found.add(Reason::Flash {
            device: format!("{label} (cache)"),
        });
    }
}

fn bottom(name: &str, path: &Path, found: &mut Environment) {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let device = name.to_owned();
    if starts(&["nbd", "rbd", "drbd", "ublkb", "rnbd", "aoe", "etherd"]) {
        return found.add(Reason::RemoteDevice { device });
    }
    if starts(&["zd"]) {
        return found.add(Reason::CopyOnWrite {
            file_system: format!("{device} (ZFS volume)"),
        });
    }
    if starts(&["zram", "ram"]) {
        return found.add(Reason::MemoryFileSystem {
            file_system: device,
        });
    }
    let place = path.to_string_lossy();
    if place
        .split('/')
        .any(|part| part.starts_with("session") && part.len() > 7)
    {
        return found.add(Reason::RemoteDevice {
            device: format!("{device} (iSCSI)"),
        });
    }
    let scsi = path.join("device/scsi_disk");
    let thin = names_in(&scsi).iter().any(|id| {
        read(&scsi.join(id), "thin_provisioning").as_deref() == Some("1")
            && read_number(&path.join("queue"), "rotational") != Some(0)
    });
    if thin {
        found.add(Reason::ThinProvisioned {
            device: device.clone(),
        });
    }
    let still = read_number(&path.join("queue"), "rotational") == Some(0);
    if still || starts(&["nvme", "mmcblk", "mtdblock", "ubiblock"]) {
        found.add(Reason::Flash {
            device: device.clone(),
        });
    }
    let model = read(path, "device/model").unwrap_or_default();
    let virtual_drive = ["QEMU", "VBOX", "Virtual", "VMware"]
        .iter()
        .any(|mark| model.contains(mark));
    if starts(&["vd", "xvd"]) || virtual_drive {
        found.note(format!(
            "{device} is a virtual disk: what its host keeps of it cannot be seen from here"
        ));
    }
}

/// The file under a loop device is part of the question.
fn below_loop(name: &str, path: &Path, found: &mut Environment, depth: u32) -> io::Result<()> {
    let mut below = Environment::default();
    match File::open(path) {
        Ok(file) => {
            below.devices.clone_from(&found.devices);
            of_file(path, &file, &mut below, depth + 1)?;
            let size = file.metadata()?.len();
            match extents::map_file(&file, size) {
                Ok(map) => {
                    for reason in map.extents.iter().flat_map(extents::Extent::reasons) {
                        below.add(reason);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no extents of the file below a loop device");
                    below.add(Reason::UnknownExtents);
                }
            }
            found.devices.clone_from(&below.devices);
        }
        Err(_) => below.add(Reason::UnknownDevice {
            device: name.to_owned(),
        }),
    }
    for reason in below.reasons {
        let because = Box::new(reason);
        found.add(Reason::Below {
            file: path.to_owned(),
            because,
        });
    }
    for note in below.notes {
        found.note(note);
    }
    Ok(())
}
