//! Saved domains: the monitor's saved machine, followed by what restores it as a domain.
//!
//! ```text
//! 0     the saved machine, whose header says where its own parts end
//! …     JSON: [`Trailer`]
//! -20   length of the JSON, u64, little-endian
//! -12   CRC-32 of the JSON, u32, little-endian
//! -8    magic "CENOTESV"
//! ```

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error as DomainError;

/// Version of the trailer's shape.
pub(crate) const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"CENOTESV";
/// Length of what follows the JSON.
const END: u64 = 20;
/// The longest trailer that is read, in bytes.
const LONGEST: u64 = 64 << 20;

/// What a saved domain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trailer {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The document of what ran.
    pub(crate) document: String,
    /// Whether the guest is let go when it is restored.
    pub(crate) running: bool,
}

/// Saves a domain to `path`, which is replaced only when everything is on disk. `machine` writes
/// the machine to the file it is given.
///
/// # Errors
/// What failed, in words.
pub(crate) fn write(
    path: &Path,
    trailer: &Trailer,
    machine: impl FnOnce(&File) -> Result<(), String>,
) -> Result<(), String> {
    let at = |error: io::Error| format!("'{}': {error}", path.display());
    let dir = folder_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(&unfinished_prefix(path))
        .tempfile_in(&dir)
        .map_err(at)?;
    machine(file.as_file())?;
    append(file.as_file_mut(), trailer).map_err(at)?;
    file.as_file().sync_all().map_err(at)?;
    file.persist(path).map_err(|error| at(error.error))?;
    File::open(&dir).and_then(|dir| dir.sync_all()).map_err(at)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// What the names of files that are being written to `path` begin with.
fn unfinished_prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{}-", name.chars().take(60).collect::<String>())
}

/// Removes what killed saves to `path` left. Nobody may be saving to it.
pub(crate) fn remove_unfinished(path: &Path) {
    let prefix = unfinished_prefix(path);
    let Ok(entries) = std::fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot be removed");
        }
    }
}

fn append(file: &mut File, trailer: &Trailer) -> io::Result<()> {
    let text = serde_json::to_vec(trailer)?;
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    file.seek(SeekFrom::End(0))?;
    file.write_all(&text)?;
    file.write_all(&length.to_le_bytes())?;
    file.write_all(&crc32fast::hash(&text).to_le_bytes())?;
    file.write_all(&MAGIC)
}

/// What a file says it is.
///
/// # Errors
/// [`DomainError::BadSaveFile`].
pub(crate) fn read(path: &Path) -> Result<Trailer, DomainError> {
    place(path).map(|(trailer, _)| trailer)
}

/// The trailer and where it begins.
fn place(path: &Path) -> Result<(Trailer, u64), DomainError> {
    let bad = |reason: String| DomainError::BadSaveFile {
        path: path.to_owned(),
        reason,
    };
    let io = |error: io::Error| bad(error.to_string());
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let not_ours = || bad("it is no saved domain".to_owned());
    let end = size.checked_sub(END).ok_or_else(not_ours)?;
    let mut tail = [0; END as usize];
    file.read_exact_at(&mut tail, end).map_err(io)?;
    let Some((length, rest)) = tail.split_first_chunk::<8>() else {
        return Err(not_ours());
    };
    let Some((sum, magic)) = rest.split_first_chunk::<4>() else {
        return Err(not_ours());
    };
    if *magic != MAGIC {
        return Err(not_ours());
    }
    let length = u64::from_le_bytes(*length);
    let start = end
        .checked_sub(length)
        .filter(|_| length <= LONGEST)
        .ok_or_else(not_ours)?;
    let mut text = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut text, start).map_err(io)?;
    if crc32fast::hash(&text) != u32::from_le_bytes(*sum) {
        return Err(bad(
            "it is damaged: its document has another checksum".to_owned()
        ));
    }
    let trailer: Trailer =
        serde_json::from_slice(&text).map_err(|error| bad(format!("it is damaged: {error}")))?;
    if trailer.version != VERSION {
        let found = trailer.version;
        return Err(bad(format!(
            "it has version {found}, this program reads {VERSION}"
        )));
    }
    Ok((trailer, start))
}

/// Puts another trailer in the place of a file's own.
///
/// # Errors
/// As [`read`]; the file cannot be written.
pub(crate) fn replace(path: &Path, trailer: &Trailer) -> Result<(), DomainError> {
    let (_, start) = place(path)?;
    let metadata = std::fs::metadata(path);
    if metadata.is_ok_and(|metadata| std::os::unix::fs::MetadataExt::nlink(&metadata) > 1) {
        return Err(DomainError::BadSaveFile {
            path: path.to_owned(),
            reason: "it is a snapshot's, too, and must not change".to_owned(),
        });
    }
    let written = File::options().write(true).open(path).and_then(|mut file| {
        file.set_len(start)?;
        append(&mut file, trailer)?;
        file.sync_all()
    });
    written.map_err(|error| DomainError::BadSaveFile {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailer() -> Trailer {
        Trailer {
            version: VERSION,
            document: "<domain/>".to_owned(),
            running: true,
        }
    }

    #[test]
    fn a_saved_domain_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.save");
        let machine = |file: &File| {
            let mut file = file;
            file.write_all(b"machine")
                .map_err(|error| error.to_string())
        };
        write(&path, &trailer(), machine).unwrap();
        assert_eq!(read(&path).unwrap(), trailer());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = Trailer {
            running: false,
            ..trailer()
        };
        replace(&path, &other).unwrap();
        assert_eq!(read(&path).unwrap(), other);
        assert!(std::fs::read(&path).unwrap().starts_with(b"machine"));
    }

    #[test]
    fn a_failed_save_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.save");
        std::fs::write(&path, "old").unwrap();
        let error = write(&path, &trailer(), |_| Err("no".to_owned())).unwrap_err();
        assert_eq!(error, "no");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(dir.path().join(".g.save-dead"), "x").unwrap();
        remove_unfinished(&path);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_and_damaged_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.save");
        let refused = |bytes: &[u8], says: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(b"", "no saved domain");
        refused(&[7; 100], "no saved domain");
        write(&path, &trailer(), |_| Ok(())).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        refused(&damaged, "another checksum");
        refused(&whole[..whole.len() - 1], "no saved domain");
        let mut long = whole.clone();
        let length = long.len() - 20;
        long[length..length + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        refused(&long, "no saved domain");
        let newer = Trailer {
            version: 9,
            ..trailer()
        };
        write(&path, &newer, |_| Ok(())).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("version 9"));
    }
}
