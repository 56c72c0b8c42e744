//! A boot loader on the host: reads the kernel, the initrd and the command line that a guest's own
//! boot loader would start, out of the guest's disk.
//!
//! It reads GRUB 2's `grub.cfg` and the `extlinux.conf` of SYSLINUX's family from ext2, ext3 and
//! ext4. Nothing is written and nothing of the guest's is run. All that is read belongs to the
//! guest: sizes, depths and steps are bounded, and the crate that reads the file systems has no
//! unsafe code.

mod extlinux;
mod grub;
mod partitions;
mod script;

use ext4_view::{Ext4, Ext4Read};
use std::error::Error;

/// The longest configuration file, in bytes.
const LONGEST_CONFIGURATION: u64 = 1 << 20;
/// The longest kernel, and the longest initrd altogether, in bytes.
const LONGEST_IMAGE: u64 = 512 << 20;

/// Where GRUB has its configuration; the folder is its `$prefix`.
const GRUB: [&str; 4] = ["/boot/grub", "/grub", "/boot/grub2", "/grub2"];
/// Where SYSLINUX's family has its own.
const EXTLINUX: [&str; 7] = [
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
];

/// What a boot loader would start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// The kernel's file.
    pub(crate) kernel: Vec<u8>,
    /// The initrds, one after the other.
    pub(crate) initrd: Option<Vec<u8>>,
    /// The kernel's command line.
    pub(crate) command_line: String,
    /// The menu entry's title.
    pub(crate) title: String,
}

/// What an entry of a menu names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    title: String,
    kernel: String,
    initrds: Vec<String>,
    command_line: String,
}

/// Why there is nothing to start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The disk cannot be read.
    #[error("the disk cannot be read: {0}")]
    Disk(String),
    /// No file system has a configuration.
    #[error("no grub.cfg and no extlinux.conf was found on it ({looked})")]
    NoConfiguration {
        /// What was looked at.
        looked: String,
    },
    /// The configuration leads to no kernel.
    #[error("{file}: {what}")]
    Configuration {
        /// The configuration file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file that the configuration names cannot be had.
    #[error("{file}, which {configuration} names: {what}")]
    File {
        /// The file.
        file: String,
        /// The configuration file.
        configuration: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A disk's bytes.
pub(crate) trait Disk {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// Reads all of `to`.
    ///
    /// # Errors
    /// As text.
    fn read(&self, to: &mut [u8], at: u64) -> Result<(), String>;
}

/// Files of a guest, by absolute paths.
trait Files {
    /// The content; nothing if there is no such file.
    ///
    /// # Errors
    /// It is longer than `most`, or cannot be read.
    fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, String>;
}

/// Finds and reads what the boot loader on `disk` would start.
///
/// # Errors
/// [`LoadError`].
pub(crate) fn load<D: Disk + Clone + 'static>(disk: &D) -> Result<Loaded, LoadError> {
    let found = partitions::find(disk).map_err(LoadError::Disk)?;
    let mut looked = Vec::new();
    for place in found {
        let part = Part {
            disk: disk.clone(),
            start: place.start,
            length: place.length,
        };
        let system = match Ext4::load(Box::new(part)) {
            Ok(system) => system,
            Err(error) => {
                looked.push(format!("{}: {error}", place.name));
                continue;
            }
        };
        match configured(&system)? {
            Some(loaded) => return Ok(loaded),
            None => looked.push(format!("{}: ext4 without one", place.name)),
        }
    }
    if looked.is_empty() {
        looked.push("it has no partitions".to_owned());
    }
    let looked = looked.join("; ");
    Err(LoadError::NoConfiguration { looked })
}

/// What the configuration in a file system leads to; nothing if there is none.
fn configured(files: &impl Files) -> Result<Option<Loaded>, LoadError> {
    let text = |path: &str| -> Result<Option<String>, LoadError> {
        let bytes = files.read(path, LONGEST_CONFIGURATION);
        let bytes = bytes.map_err(|what| LoadError::Configuration {
            file: path.to_owned(),
            what,
        })?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    for prefix in GRUB {
        let path = format!("{prefix}/grub.cfg");
        if let Some(text) = text(&path)? {
            let entry = grub::choose(&text, prefix, files);
            return fetch(files, &path, entry).map(Some);
        }
    }
    for path in EXTLINUX {
        if let Some(text) = text(path)? {
            let entry = extlinux::choose(&text, path);
            return fetch(files, path, entry).map(Some);
        }
    }
    Ok(None)
}

/// Reads the files of an entry.
fn fetch(
    files: &impl Files,
    configuration: &str,
    entry: Result<Entry, String>,
) -> Result<Loaded, LoadError> {
    let entry = entry.map_err(|what| LoadError::Configuration {
        file: configuration.to_owned(),
        what,
    })?;
    let read = |path: &str, most: u64| {
        let content = files.read(path, most).and_then(|content| {
            content.ok_or_else(|| "it is not in the file system of the configuration".to_owned())
        });
        content.map_err(|what| LoadError::File {
            file: path.to_owned(),
            configuration: configuration.to_owned(),
            what,
        })
    };
    let kernel = read(&entry.kernel, LONGEST_IMAGE)?;
    let mut initrd = Vec::new();
    for path in &entry.initrds {
        // Archives begin at multiples of four.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        let room = LONGEST_IMAGE.saturating_sub(initrd.len() as u64);
        initrd.extend(read(path, room)?);
    }
    Ok(Loaded {
        kernel,
        initrd: (!entry.initrds.is_empty()).then_some(initrd),
        command_line: entry.command_line,
        title: entry.title,
    })
}

/// The bytes of a partition.
struct Part<D> {
    disk: D,
    start: u64,
    length: u64,
}

impl<D: Disk> Ext4Read for Part<D> {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let end = start_byte.checked_add(dst.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err("behind the end of the partition".into());
        }
        let at = self.start.saturating_add(start_byte);
        Ok(self.disk.read(dst, at)?)
    }
}

impl Files for Ext4 {
    fn read(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, String> {
        use ext4_view::Ext4Error::{IsADirectory, NotADirectory, NotFound};
        let metadata = match self.metadata(path) {
            Ok(metadata) => metadata,
            Err(NotFound | NotADirectory) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if metadata.len() > most {
            let length = metadata.len();
            return Err(format!(
                "it has {length} bytes, and at most {most} are read"
            ));
        }
        match Ext4::read(self, path) {
            Ok(content) => Ok(Some(content)),
            Err(IsADirectory) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
