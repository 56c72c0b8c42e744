//! What TFTP serves: entries by name, and a folder that nothing leads out of.
//!
//! The kernel resolves names (`openat2` with `RESOLVE_BENEATH`), so that neither `..` nor a
//! symbolic link nor a rename at the right moment leads outside. Only regular files are served.

use crate::{
    config::{FileSource, Tftp},
    descriptor,
};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::PathBuf,
    sync::Arc,
};

/// A file that can be served.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Memory(Arc<[u8]>),
    File(Arc<File>, u64),
}

impl Content {
    /// Size in bytes. A file that grows meanwhile is served up to the size that it had.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    /// Reads up to `length` bytes at `offset`; fewer only at the end.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let left = self.size().saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(length);
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = bytes.get(start..).and_then(|rest| rest.get(..length));
                Ok(part.unwrap_or_default().to_vec())
            }
            Self::File(file, _) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes)
            }
        }
    }
}

/// Why the files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder cannot be opened.
    #[error("{what} cannot be served over TFTP")]
    Open {
        /// The path or descriptor.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Files by name.
#[derive(Debug, Default)]
pub struct Store {
    entries: BTreeMap<String, Content>,
    root: Option<OwnedFd>,
}

/// Why a name is not served.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// There is nothing of that name.
    NotFound,
    /// It leads outside, is no file, or may not be read.
    Forbidden,
}

impl Store {
    /// Opens what `tftp` names.
    ///
    /// # Errors
    /// [`StoreError`] for a file or folder that is not there.
    pub fn open(tftp: &Tftp) -> Result<Self, StoreError> {
        let root = tftp.root.as_ref().map(open_folder).transpose()?;
        let mut entries = BTreeMap::new();
        for (name, source) in &tftp.files {
            entries.insert(name.clone(), content_of(source)?);
        }
        Ok(Self { entries, root })
    }

    /// Finds what a client asks for. Leading slashes count for nothing.
    pub(super) fn find(&self, name: &str) -> Result<Content, Missing> {
        let name = name.trim_start_matches('/');
        if let Some(content) = self.entries.get(name) {
            return Ok(content.clone());
        }
        let Some(root) = &self.root else {
            return Err(Missing::NotFound);
        };
        if name.is_empty() || name.contains('\0') {
            return Err(Missing::NotFound);
        }
        // A pipe or a device must not block the process when it is opened.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file =
            rustix::fs::openat2(root, name, flags, Mode::empty(), resolve).map_err(|error| {
                match error {
                    rustix::io::Errno::NOENT
                    | rustix::io::Errno::NOTDIR
                    | rustix::io::Errno::NAMETOOLONG => Missing::NotFound,
                    _ => Missing::Forbidden,
                }
            })?;
        served(File::from(file)).map_err(|_| Missing::Forbidden)
    }
}

fn open_folder(path: &PathBuf) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| StoreError::Open {
        what: path.display().to_string(),
        source: error.into(),
    })
}

fn content_of(source: &FileSource) -> Result<Content, StoreError> {
    let (what, opened) = match source {
        FileSource::Text(text) => return Ok(Content::Memory(text.as_bytes().into())),
        FileSource::Path(path) => (path.display().to_string(), File::open(path)),
        FileSource::Fd(fd) => (
            format!("descriptor {fd}"),
            descriptor::duplicate(*fd).map(File::from),
        ),
    };
    opened
        .and_then(served)
        .map_err(|source| StoreError::Open { what, source })
}

fn served(file: File) -> io::Result<Content> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(Content::File(Arc::new(file), metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn text(store: &Store, name: &str) -> Result<String, Missing> {
        let content = store.find(name)?;
        let bytes = content.read(0, usize::MAX).unwrap();
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn entries_come_before_files_and_only_regular_files_inside_are_served() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("file"), "file").unwrap();
        std::fs::write(root.join("shown"), "file").unwrap();
        std::fs::write(root.join("sub/file"), "deep").unwrap();
        symlink("sub/file", root.join("inside")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink(outside.path().join("secret"), root.join("absolute")).unwrap();
        symlink("..", root.join("up")).unwrap();
        let status = std::process::Command::new("mkfifo")
            .arg(root.join("pipe"))
            .status();
        assert!(status.unwrap().success());
        let store = Store::open(&Tftp {
            root: Some(root),
            files: [("shown".to_owned(), FileSource::Text("entry".into()))].into(),
        })
        .unwrap();

        for (name, expected) in [
            ("file", "file"),
            ("/file", "file"),
            ("//file", "file"),
            ("./sub/../file", "file"),
            ("sub/file", "deep"),
            ("inside", "deep"),
            ("shown", "entry"),
        ] {
            assert_eq!(text(&store, name).as_deref(), Ok(expected), "{name}");
        }
        for name in [
            "../secret",
            "/../secret",
            "sub/../../secret",
            "out",
            "absolute",
            "up/secret",
            "sub",
            "pipe",
            ".",
        ] {
            assert_eq!(text(&store, name), Err(Missing::Forbidden), "{name}");
        }
        for name in ["", "/", "none", "file/x", "..\\secret"] {
            assert_eq!(text(&store, name), Err(Missing::NotFound), "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_named_at_the_start() {
        let error = Store::open(&Tftp {
            root: Some("/nonexistent".into()),
            files: BTreeMap::new(),
        });
        assert!(error.unwrap_err().to_string().contains("/nonexistent"));
        let files = [("a".to_owned(), FileSource::Fd(9999))].into();
        let error = Store::open(&Tftp { root: None, files });
        assert!(error.unwrap_err().to_string().contains("descriptor 9999"));
    }

    #[test]
    fn reading_ends_at_the_end() {
        let content = Content::Memory(b"0123456789".as_slice().into());
        assert_eq!(content.read(8, 5).unwrap(), b"89");
        assert_eq!(content.read(10, 5).unwrap(), b"");
        assert_eq!(content.read(u64::MAX, 5).unwrap(), b"");
    }
}
