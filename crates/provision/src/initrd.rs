//! Files put into an initial RAM disk.
//!
//! Linux takes several archives one after another, each plain or compressed, and a file of a
//! later one replaces that of an earlier one (kernel documentation, "initramfs buffer format").
//! So an installer's initrd stays as it is, byte for byte, and a `newc` archive of ours follows
//! at an offset that four divides.
//!
//! One form cannot be followed: the legacy LZ4 frame has no end mark, and the kernel's decoder
//! takes what comes next for another block of it. There our archive stands before the
//! installer's, which no decoder minds, and files of the same name lose.

use thiserror::Error as ThisError;

/// Most bytes of all injected files; they take guest memory.
const MAX_BYTES: usize = 512 << 20;
/// Largest path in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4095;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Why files cannot be injected.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum InitrdError {
    /// A path that is none.
    #[error("'{0}' cannot be a path in an initrd: names separated by '/', without '..', expected")]
    Path(String),
    /// The same path twice.
    #[error("'{0}' is injected twice")]
    Twice(String),
    /// Over the limit.
    #[error("the files to be injected have more than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// Nothing to inject into.
    #[error("the initrd is empty")]
    Empty,
}

/// How an initrd's last archive is packed, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// A plain `newc` archive.
    Plain,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// LZMA alone.
    Lzma,
    /// lzop.
    Lzo,
    /// Legacy LZ4 frames.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Something else.
    Unknown,
}

impl Packing {
    /// What `bytes` begin with.
    pub fn of(bytes: &[u8]) -> Self {
        match bytes {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => Self::Plain,
            [0x1f, 0x8b | 0x9e, ..] => Self::Gzip,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x5d, 0, 0, ..] => Self::Lzma,
            [0x89, b'L', b'Z', b'O', ..] => Self::Lzo,
            [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Unknown,
        }
    }
}

/// A file to be injected.
#[derive(Clone, PartialEq, Eq)]
pub struct Injected {
    path: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Injected {
    /// Without the content, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Injected({:?}, {:o}, ", self.path, self.mode)?;
        write!(f, "{} bytes)", self.bytes.len())
    }
}

impl Injected {
    /// A file that root alone can read.
    ///
    /// # Errors
    /// [`InitrdError::Path`].
    pub fn new(path: &str, bytes: Vec<u8>) -> Result<Self, InitrdError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let bad = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
        if path.len() > MAX_PATH || path == "TRAILER!!!" || path.split('/').any(bad) {
            return Err(InitrdError::Path(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            mode: 0o600,
            bytes,
        })
    }

    /// With other permission bits.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self {
            mode: mode & 0o7777,
            ..self
        }
    }

    /// Path inside, from the root.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A `newc` archive of the files and the directories above them, owned by root, at the time
/// zero, in the order of their paths.
///
/// # Errors
/// [`InitrdError::Twice`], also where a file is a directory of another; [`InitrdError::TooLarge`].
pub fn archive(files: &[Injected]) -> Result<Vec<u8>, InitrdError> {
    let sizes = files.iter().map(|file| file.bytes.len());
    if sizes.fold(0, usize::saturating_add) > MAX_BYTES {
        return Err(InitrdError::TooLarge);
    }
    let mut entries: Vec<(&str, Option<&Injected>)> = Vec::new();
    for file in files {
        let ends = file.path.match_indices('/').map(|(at, _)| at);
        entries.extend(ends.map(|at| (&file.path[..at], None)));
        entries.push((&file.path, Some(file)));
    }
    entries.sort_by_key(|(path, file)| (*path, file.is_some()));
    entries.dedup_by(|a, b| a.0 == b.0 && a.1.is_none() && b.1.is_none());
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(InitrdError::Twice(pair[0].0.to_owned()));
    }
    let mut bytes = Vec::new();
    let mut number = 0;
    for (path, file) in entries {
        number += 1;
        match file {
            Some(file) => member(&mut bytes, number, path, FILE | file.mode, &file.bytes),
            None => member(&mut bytes, number, path, DIRECTORY | 0o755, &[]),
        }
    }
    member(&mut bytes, 0, "TRAILER!!!", 0, &[]);
    // As cpio fills its last block; zeroes are what tools tell the next archive by.
    bytes.resize((bytes.len() + 4).next_multiple_of(512), 0);
    Ok(bytes)
}

/// One member: header, name and data, the latter two filled up to a multiple of four.
fn member(into: &mut Vec<u8>, number: u32, path: &str, mode: u32, data: &[u8]) {
    let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
    // The limit on sizes keeps them in eight digits.
    let length = data.len() as u32;
    let name = path.len() as u32 + 1;
    let fields = [number, mode, 0, 0, links, 0, length, 0, 0, 0, 0, name, 0];
    into.extend(b"070701");
    for field in fields {
        into.extend(format!("{field:08X}").bytes());
    }
    into.extend(path.bytes());
    into.push(0);
    into.resize(into.len().next_multiple_of(4), 0);
    into.extend(data);
    into.resize(into.len().next_multiple_of(4), 0);
}

/// Where injected files stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// After the installer's archives: they replace files of the same name.
    After,
    /// Before them, since the last is in LZ4 (see the module).
    Before,
}

/// `initrd` with files injected, and where.
///
/// # Errors
/// Those of [`archive`], and [`InitrdError::Empty`].
pub fn inject(initrd: &[u8], files: &[Injected]) -> Result<(Vec<u8>, Position), InitrdError> {
    if initrd.is_empty() {
        return Err(InitrdError::Empty);
    }
    let archive = archive(files)?;
    let mut bytes = Vec::with_capacity(initrd.len() + archive.len() + 4);
    if last_packing(initrd) == Packing::Lz4 {
        bytes.extend(archive);
        bytes.extend(initrd);
        return Ok((bytes, Position::Before));
    }
    bytes.extend(initrd);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive);
    Ok((bytes, Position::After))
}

/// How what follows an initrd's plain archives is packed: distributions put a plain one with
/// microcode before the compressed one.
fn last_packing(initrd: &[u8]) -> Packing {
    let mut rest = initrd;
    loop {
        let start = rest.iter().position(|byte| *byte != 0);
        let Some(archive) = start.and_then(|start| rest.get(start..)) else {
            return Packing::Plain;
        };
        let packing = Packing::of(archive);
        if packing != Packing::Plain {
            return packing;
        }
        match after_plain(archive) {
            Some(after) => rest = after,
            None => return Packing::Plain,
        }
    }
}

/// What follows a plain archive's trailer; `None` if the archive is damaged.
fn after_plain(archive: &[u8]) -> Option<&[u8]> {
    const HEAD: usize = 110;
    let mut at = 0usize;
    loop {
        let head = archive.get(at..at.checked_add(HEAD)?)?;
        if Packing::of(head) != Packing::Plain {
            return None;
        }
        let field = |index: usize| {
            let digits = head.get(6 + index * 8..14 + index * 8)?;
            let digits = std::str::from_utf8(digits).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let name_length = field(11)?;
        let name_end = (at + HEAD).checked_add(name_length)?;
        let name = archive.get(at + HEAD..name_end)?;
        let data = name_end.checked_next_multiple_of(4)?;
        at = data.checked_add(field(6)?)?.checked_next_multiple_of(4)?;
        if name == b"TRAILER!!!\0" {
            return archive.get(at..);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(path: &str) -> Injected {
        Injected::new(path, b"secret".to_vec()).unwrap()
    }

    #[test]
    fn content_is_not_shown() {
        let shown = format!("{:?}", file("/ks.cfg"));
        assert_eq!(shown, "Injected(\"ks.cfg\", 600, 6 bytes)");
    }

    #[test]
    fn paths_that_cannot_be_are_refused() {
        for path in ["", "/", "a/../b", "../x", "a//b", "a/", "TRAILER!!!", "x\0"] {
            assert!(Injected::new(path, Vec::new()).is_err(), "{path:?}");
        }
        let twice = archive(&[file("a"), file("/a")]);
        assert_eq!(twice, Err(InitrdError::Twice("a".into())));
        let both = archive(&[file("a"), file("a/b")]);
        assert_eq!(both, Err(InitrdError::Twice("a".into())));
        assert_eq!(inject(b"", &[file("a")]), Err(InitrdError::Empty));
    }

    #[test]
    fn an_archive_stands_where_four_divides() {
        for length in 1..9 {
            let (bytes, position) = inject(&vec![0x1f; length], &[file("a")]).unwrap();
            let start = bytes.windows(6).position(|w| w == b"070701").unwrap();
            assert_eq!((position, start % 4), (Position::After, 0));
        }
    }

    #[test]
    fn nothing_follows_lz4() {
        let lz4 = [0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0];
        let (bytes, position) = inject(&lz4, &[file("a")]).unwrap();
        assert_eq!(position, Position::Before);
        assert!(bytes.ends_with(&lz4) && bytes.starts_with(b"070701"));
        let mut early = archive(&[file("kernel/x86/microcode")]).unwrap();
        early.resize(early.len().next_multiple_of(512), 0);
        let plain = inject(&early, &[file("a")]).unwrap();
        assert_eq!(plain.1, Position::After);
        early.extend(lz4);
        assert_eq!(inject(&early, &[file("a")]).unwrap().1, Position::Before);
    }

    #[test]
    fn damaged_archives_do_no_harm() {
        let whole = archive(&[file("a/b/c"), file("d")]).unwrap();
        for cut in 1..whole.len() {
            last_packing(&whole[..cut]);
        }
        let mut huge = whole;
        huge[6 + 6 * 8..6 + 7 * 8].copy_from_slice(b"FFFFFFFF");
        last_packing(&huge);
    }
}
