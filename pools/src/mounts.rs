//! What is mounted where, from the kernel's mount table.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) target: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
}

const TABLE: &str = "/proc/self/mountinfo";

/// Everything mounted in this mount namespace, in order of mounting.
pub(crate) fn all() -> Result<Vec<Mount>> {
    let table =
        fs::read_to_string(TABLE).map_err(|source| Error::at("read", Path::new(TABLE), source))?;
    Ok(parse(&table))
}

/// What is mounted on exactly `target`, the topmost one.
pub(crate) fn at(target: &Path) -> Result<Option<Mount>> {
    let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    Ok(all()?.into_iter().rfind(|mount| mount.target == target))
}

/// proc_pid_mountinfo(5): fields by spaces, optional fields ended by `-`.
fn parse(table: &str) -> Vec<Mount> {
    table
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let target = unescape(front.split(' ').nth(4)?);
            let mut back = back.split(' ');
            let kind = back.next()?.to_owned();
            Some(Mount {
                target,
                kind,
                source: unescape(back.next()?),
            })
        })
        .collect()
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_targets_and_optional_fields_are_read() {
        let table = "36 35 98:0 /m /mnt/a\\040b rw,noatime shared:1 master:2 - ext3 /dev/r\\134x rw\n\
                     37 35 0:5 / /proc rw - proc proc rw\n";
        let mounts = parse(table);
        assert_eq!(mounts[0].target, Path::new("/mnt/a b"));
        assert_eq!(mounts[0].source, Path::new("/dev/r\\x"));
        assert_eq!((mounts[1].kind.as_str(), mounts.len()), ("proc", 2));
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
