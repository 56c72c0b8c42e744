//! What the kernel says is mounted, swapped to and behind loop devices:
//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)), `/proc/swaps` and sysfs.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mount_point: PathBuf,
    pub(crate) file_system: String,
    pub(crate) source: PathBuf,
    /// Options of the mount and of the superblock.
    pub(crate) options: Vec<String>,
}

const TABLE: &str = "/proc/self/mountinfo";

/// The error where the table cannot be read.
pub(crate) fn unreadable(source: io::Error) -> Error {
    Error::at("read", Path::new(TABLE), source)
}

/// All mounts this process can see, in order of mounting.
pub(crate) fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read(TABLE)?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let mut device = fields.next()?.split(|byte| *byte == b':');
    let (major, minor) = (number(device.next()?)?, number(device.next()?)?);
    let _root = fields.next()?;
    let mount_point = unescape(fields.next()?).into();
    let mut options: Vec<String> = split_options(fields.next()?);
    // Optional fields end with a lone hyphen.
    fields.by_ref().find(|field| *field == b"-")?;
    let file_system = unescape(fields.next()?).to_string_lossy().into_owned();
    let source = unescape(fields.next()?).into();
    options.extend(split_options(fields.next().unwrap_or_default()));
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    Some(Mount {
        id,
        major,
        minor,
        mount_point,
        file_system,
        source,
        options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn split_options(field: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(field)
        .split(',')
        .map(str::to_owned)
        .collect()
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (
            b'\\',
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ],
        ) = (first, tail)
        {
            bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    OsString::from_vec(bytes)
}

/// Files and devices the kernel swaps to.
pub(crate) fn swaps() -> io::Result<Vec<PathBuf>> {
    let text = match std::fs::read("/proc/swaps") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    Ok(lines
        .filter_map(|line| line.split(|byte| byte.is_ascii_whitespace()).next())
        .filter(|name| !name.is_empty())
        .map(|name| unescape(name).into())
        .collect())
}

/// Loop devices and the files behind them.
pub(crate) fn loop_devices() -> Vec<(PathBuf, PathBuf)> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    devices
        .flatten()
        .filter(|device| device.file_name().as_encoded_bytes().starts_with(b"loop"))
        .filter_map(|device| {
            let file = std::fs::read(device.path().join("loop/backing_file")).ok()?;
            let file = file.strip_suffix(b"\n").unwrap_or(&file).to_vec();
            let node = Path::new("/dev").join(device.file_name());
            Some((node, OsString::from_vec(file).into()))
        })
        .collect()
}

/// What is mounted on exactly `target`, the topmost one.
pub(crate) fn at(target: &Path) -> io::Result<Option<Mount>> {
    let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    Ok(all()?
        .into_iter()
        .rfind(|mount| mount.mount_point == target))
}

/// The mount that holds `path`, by the kernel's own answer where it gives one.
pub(crate) fn mount_of(path: &Path) -> io::Result<Option<Mount>> {
    let all = all()?;
    let flags = rustix::fs::AtFlags::empty();
    let wanted = rustix::fs::StatxFlags::MNT_ID;
    if let Ok(stat) = rustix::fs::statx(rustix::fs::CWD, path, flags, wanted)
        && rustix::fs::StatxFlags::from_bits_retain(stat.stx_mask).contains(wanted)
        && let Some(mount) = all.iter().find(|mount| mount.id == stat.stx_mnt_id)
    {
        return Ok(Some(mount.clone()));
    }
    let path = path.canonicalize()?;
    let holds = |mount: &&Mount| path.starts_with(&mount.mount_point);
    // Later mounts cover earlier ones.
    let deepest = all
        .iter()
        .filter(holds)
        .max_by_key(|mount| mount.mount_point.components().count());
    Ok(deepest.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_blanks_and_optional_fields() {
        let line = b"36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:2 - ext4 /dev/my\\134root rw,data=journal";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.major, mount.minor), (36, 98, 0));
        assert_eq!(mount.mount_point, Path::new("/mnt two"));
        assert_eq!(mount.source, Path::new("/dev/my\\root"));
        assert_eq!(mount.file_system, "ext4");
        assert!(mount.options.contains(&"data=journal".to_owned()));
        assert!(mount.options.contains(&"noatime".to_owned()));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / / rw"), None);
    }

    #[test]
    fn the_root_is_found() {
        assert!(at(Path::new("/")).unwrap().is_some());
        let mount = mount_of(Path::new("/proc/self/stat")).unwrap().unwrap();
        assert_eq!(mount.file_system, "proc");
    }
}
