//! ISO 9660 images (ECMA-119) with Joliet, Rock Ridge (IEEE P1282, SUSP) and El Torito.
//!
//! [`Image`] reads what distributions publish, from anything that can be read at an offset, so
//! that a kernel is taken out of install media, or the whole of it is served, without mounting.
//! [`Writer`] makes the small images that answer files travel on.
//!
//! Left out: interleaved files, volume sets of several discs, and UDF.

mod boot;
mod names;
mod read;
mod record;
mod susp;
mod write;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error as ThisError;

pub use boot::{BootEntry, BootMedia, Platform};
pub use read::{Entry, EntryKind, Image, Naming};
pub use write::{WriteError, Writer};

/// Bytes in a logical sector; descriptors and directories are laid out in these.
pub const SECTOR: u64 = 2048;

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if there are fewer, and what the source says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Number of bytes.
    ///
    /// # Errors
    /// What the source says.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    /// Also of a block device.
    fn size(&self) -> io::Result<u64> {
        let metadata = self.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A device has no length in its metadata; its end is where seeking to the end leads.
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len());
        let bytes = end.and_then(|end| self.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Why an image cannot be read.
#[derive(Debug, ThisError)]
pub enum Error {
    /// Reading failed.
    #[error("reading the image at byte {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// There is no ISO 9660 volume descriptor.
    #[error(
        "no ISO 9660 file system: {found} where a volume descriptor should be (sector 16); is \
         this an install image?"
    )]
    NotIso {
        /// What is there.
        found: &'static str,
    },
    /// Something that the standard forbids, or that leads outside of the image.
    #[error("damaged image: {what} at byte {offset}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// A limit of ours was passed; no image that distributions publish does.
    #[error("image has more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A form of file that is not read.
    #[error("'{path}' is {what}, which is not read")]
    Unsupported {
        /// The file.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// Nothing of that name.
    #[error("the image has no '{path}'")]
    NotFound {
        /// Path inside.
        path: String,
    },
    /// Another kind of thing than was asked for.
    #[error("'{path}' in the image is no {expected}")]
    WrongKind {
        /// Path inside.
        path: String,
        /// What was asked for.
        expected: &'static str,
    },
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    let mut value = [0; 2];
    copy(bytes, at, &mut value);
    u16::from_le_bytes(value)
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    copy(bytes, at, &mut value);
    u32::from_le_bytes(value)
}

/// Bytes beyond the end read as zero; callers check lengths first.
fn copy(bytes: &[u8], at: usize, into: &mut [u8]) {
    if let Some(from) = bytes.get(at..at.saturating_add(into.len())) {
        into.copy_from_slice(from);
    }
}
