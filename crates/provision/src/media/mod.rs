//! Install media: what `--location` may name, and the installer found in it.
//!
//! A location is a folder with an install tree, an ISO image, or either with the kernel and
//! initrd named (`PATH,kernel=…,initrd=…`); a kernel and an initrd alone are a location too.
//! Everything found is a file that can be read at any offset, so that a tree can be served to
//! a guest as it is, from a folder or from within an image.

mod layout;
pub mod osinfo;
mod tree;
mod treeinfo;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error as ThisError;

pub use layout::{Family, Found, Installer, Product, detect};
pub use tree::{Tree, TreeFile};
pub use treeinfo::TreeInfo;

use crate::iso::{self, Image};

/// Why media are of no use.
#[derive(Debug, ThisError)]
pub enum MediaError {
    /// The text of a location is wrong.
    #[error("location '{text}': {reason}")]
    Location {
        /// The text.
        text: String,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
    /// A file of the host cannot be read.
    #[error("{}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image cannot be read.
    #[error("{}", .path.display())]
    Iso {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: iso::Error,
    },
    /// No installer is there.
    #[error(
        "{}: no kernel and initrd of an installer; looked for {}. Name them with \
         --location PATH,kernel=…,initrd=…, or boot the media with --cdrom",
        .path.display(), .looked_for.join(", ")
    )]
    NoInstaller {
        /// The media.
        path: PathBuf,
        /// Pairs of paths that were tried, in order.
        looked_for: Vec<String>,
    },
    /// What was named is not there.
    #[error("{}: no file '{file}'", .path.display())]
    NoFile {
        /// The media.
        path: PathBuf,
        /// The path inside.
        file: String,
    },
}

/// What `--location` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder or an image; kernel and initrd inside, if they are named.
    Tree {
        /// Path on the host.
        path: PathBuf,
        /// Paths of kernel and initrd inside.
        boot: Option<(String, String)>,
    },
    /// A kernel and an initrd of the host.
    Files {
        /// Path of the kernel.
        kernel: PathBuf,
        /// Path of the initrd.
        initrd: PathBuf,
    },
}

impl FromStr for Location {
    type Err = MediaError;

    /// Reads `PATH`, `PATH,kernel=K,initrd=I` or `kernel=K,initrd=I`; a comma in a path is
    /// written twice.
    fn from_str(text: &str) -> Result<Self, MediaError> {
        let error = |reason| MediaError::Location {
            text: text.to_owned(),
            reason,
        };
        let (mut path, mut kernel, mut initrd) = (None, None, None);
        for (number, part) in split_commas(text).into_iter().enumerate() {
            let place = match part.split_once('=') {
                Some(("kernel", value)) => (&mut kernel, value.to_owned()),
                Some(("initrd", value)) => (&mut initrd, value.to_owned()),
                _ if number == 0 => (&mut path, part),
                _ => return Err(error("after the path only kernel= and initrd= are known")),
            };
            if place.1.is_empty() || place.0.replace(place.1).is_some() {
                return Err(error("each part is given once and is not empty"));
            }
        }
        let boot = match (kernel, initrd) {
            (Some(kernel), Some(initrd)) => Some((kernel, initrd)),
            (None, None) => None,
            _ => return Err(error("kernel= and initrd= are given both or not at all")),
        };
        match (path, boot) {
            (Some(path), _) if path.contains("://") => Err(error(
                "trees on a server are not fetched; download the ISO image, or boot it by PXE",
            )),
            (Some(path), boot) => Ok(Self::Tree {
                path: path.into(),
                boot,
            }),
            (None, Some((kernel, initrd))) => Ok(Self::Files {
                kernel: kernel.into(),
                initrd: initrd.into(),
            }),
            (None, None) => Err(error("a path is expected")),
        }
    }
}

/// Splits at commas; two of them are one of the text.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c != ',' {
            parts.last_mut().into_iter().for_each(|part| part.push(c));
        } else if rest.next_if_eq(&',').is_some() {
            parts.last_mut().into_iter().for_each(|part| part.push(','));
        } else {
            parts.push(String::new());
        }
    }
    parts
}

/// Media that are open, with the installer in them.
#[derive(Debug)]
pub struct Media {
    /// Where they came from; of a location of two files, the kernel's.
    pub path: PathBuf,
    /// The tree; none of a location of two files.
    pub tree: Option<Tree>,
    /// What installs.
    pub installer: Installer,
    /// Its kernel.
    pub kernel: TreeFile,
    /// Its initrd.
    pub initrd: TreeFile,
}

impl Media {
    /// Opens a location and finds the installer.
    ///
    /// # Errors
    /// [`MediaError::NoInstaller`] with all that was looked for, [`MediaError::NoFile`] where
    /// named files are not there, and what reading says.
    pub fn open(location: &Location) -> Result<Self, MediaError> {
        match location {
            Location::Files { kernel, initrd } => {
                let (kernel_file, initrd_file) = (TreeFile::open(kernel)?, TreeFile::open(initrd)?);
                Ok(Self {
                    path: kernel.clone(),
                    tree: None,
                    installer: Installer::named(
                        &kernel.to_string_lossy(),
                        &initrd.to_string_lossy(),
                        Family::Unknown,
                        None,
                    ),
                    kernel: kernel_file,
                    initrd: initrd_file,
                })
            }
            Location::Tree { path, boot } => {
                let tree = open_tree(path)?;
                let installer = detect(&tree, boot.as_ref(), path)?;
                let file = |inside: &str| {
                    tree.find(inside)?.ok_or_else(|| MediaError::NoFile {
                        path: path.clone(),
                        file: inside.to_owned(),
                    })
                };
                Ok(Self {
                    kernel: file(&installer.kernel)?,
                    initrd: file(&installer.initrd)?,
                    path: path.clone(),
                    tree: Some(tree),
                    installer,
                })
            }
        }
    }
}

/// Opens a folder, or an image in a file or block device.
///
/// # Errors
/// [`MediaError::Io`], [`MediaError::Iso`].
pub fn open_tree(path: &Path) -> Result<Tree, MediaError> {
    let io_error = |source| MediaError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.is_dir() {
        return Ok(Tree::Folder {
            path: path.to_owned(),
            folder: Arc::new(file),
        });
    }
    let image = Image::open(file).map_err(|source| MediaError::Iso {
        path: path.to_owned(),
        source,
    })?;
    Ok(Tree::Iso {
        path: path.to_owned(),
        image: Arc::new(image),
    })
}
