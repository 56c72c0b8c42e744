//! A tree of files, in a folder or in an image.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::MediaError;
use crate::iso::{Entry, Image};

/// A tree of files.
#[derive(Debug, Clone)]
pub enum Tree {
    /// A folder of the host; its links cannot lead out of it.
    Folder {
        /// Path on the host.
        path: PathBuf,
        /// The folder.
        folder: Arc<File>,
    },
    /// An image.
    Iso {
        /// Path on the host.
        path: PathBuf,
        /// The image.
        image: Arc<Image<File>>,
    },
}

/// A file of a tree, open.
#[derive(Debug, Clone)]
pub enum TreeFile {
    /// Of a folder, or of the host.
    Host {
        /// Path for messages.
        path: PathBuf,
        /// The file.
        file: Arc<File>,
        /// Its length in bytes.
        size: u64,
    },
    /// Of an image.
    Iso {
        /// Path of the image.
        path: PathBuf,
        /// The image.
        image: Arc<Image<File>>,
        /// The file in it.
        entry: Entry,
    },
}

impl Tree {
    /// Path on the host.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder { path, .. } | Self::Iso { path, .. } => path,
        }
    }

    /// The image, if it is one.
    pub fn image(&self) -> Option<&Image<File>> {
        match self {
            Self::Folder { .. } => None,
            Self::Iso { image, .. } => Some(image),
        }
    }

    /// The file at a path inside; `None` if there is none, or if it is something else.
    ///
    /// # Errors
    /// What reading says.
    pub fn find(&self, inside: &str) -> Result<Option<TreeFile>, MediaError> {
        match self {
            Self::Folder { path, folder } => {
                let shown = path.join(inside.trim_start_matches('/'));
                let found = open_inside(folder, inside).and_then(|file| match file {
                    Some(file) => TreeFile::host(shown.clone(), file).map(Some),
                    None => Ok(None),
                });
                found.map_err(|source| MediaError::Io {
                    path: shown,
                    source,
                })
            }
            Self::Iso { path, image } => {
                let entry = image.find(inside).map_err(|source| MediaError::Iso {
                    path: path.clone(),
                    source,
                })?;
                Ok(entry.filter(Entry::is_file).map(|entry| TreeFile::Iso {
                    path: path.clone(),
                    image: image.clone(),
                    entry,
                }))
            }
        }
    }

    /// The text of a small file inside, what is no UTF-8 replaced; `None` if there is none or
    /// it has over 256 KiB.
    ///
    /// # Errors
    /// What reading says.
    pub fn text(&self, inside: &str) -> Result<Option<String>, MediaError> {
        const LIMIT: u64 = 256 << 10;
        let Some(file) = self.find(inside)?.filter(|file| file.size() <= LIMIT) else {
            return Ok(None);
        };
        let bytes = file.read_all()?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// Opens a regular file below `folder`, to which links and `..` are bound.
fn open_inside(folder: &File, inside: &str) -> io::Result<Option<File>> {
    // A pipe must not make the opening wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(folder, inside, flags, Mode::empty(), resolve);
    let file: OwnedFd = match opened {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::NXIO) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let file = File::from(file);
    Ok(file.metadata()?.is_file().then_some(file))
}

impl TreeFile {
    /// A regular file of the host.
    ///
    /// # Errors
    /// [`MediaError::Io`], also where it is something else.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        let opened = File::open(path).and_then(|file| {
            if file.metadata()?.is_file() {
                Self::host(path.to_owned(), file)
            } else {
                Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not a regular file",
                ))
            }
        });
        opened.map_err(|source| MediaError::Io {
            path: path.to_owned(),
            source,
        })
    }

    fn host(path: PathBuf, file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self::Host {
            path,
            file: Arc::new(file),
            size,
        })
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Host { size, .. } => *size,
            Self::Iso { entry, .. } => entry.size(),
        }
    }

    /// Fills as much of `buffer` as there is from `offset` on.
    ///
    /// # Errors
    /// What reading says.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, MediaError> {
        match self {
            Self::Host { path, file, .. } => {
                let mut done = 0;
                while done < buffer.len() {
                    match file.read_at(&mut buffer[done..], offset + done as u64) {
                        Ok(0) => break,
                        Ok(count) => done += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(source) => {
                            let path = path.clone();
                            return Err(MediaError::Io { path, source });
                        }
                    }
                }
                Ok(done)
            }
            Self::Iso { path, image, entry } => {
                image
                    .read(entry, offset, buffer)
                    .map_err(|source| MediaError::Iso {
                        path: path.clone(),
                        source,
                    })
            }
        }
    }

    /// A reader from the start.
    pub fn reader(&self) -> impl Read + '_ {
        Reader {
            file: self,
            offset: 0,
        }
    }

    /// All of it, up to its length when it was opened.
    ///
    /// # Errors
    /// What reading says.
    pub fn read_all(&self) -> Result<Vec<u8>, MediaError> {
        let mut bytes = vec![0; self.size() as usize];
        let count = self.read_at(&mut bytes, 0)?;
        bytes.truncate(count);
        Ok(bytes)
    }
}

struct Reader<'a> {
    file: &'a TreeFile,
    offset: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self
            .file
            .read_at(buffer, self.offset)
            .map_err(io::Error::other)?;
        self.offset += count as u64;
        Ok(count)
    }
}
