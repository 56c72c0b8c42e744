//! Raw images: the disk's bytes and nothing else.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::create::Preallocation;
use crate::error::{Error, Result};
use crate::storage::Storage;

/// Bytes written at once.
const PIECE: usize = 1 << 20;

/// An open raw image.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) size: AtomicU64,
    pub(crate) writable: bool,
    unsynced: AtomicBool,
}

impl Raw {
    pub(crate) fn open(storage: Arc<dyn Storage>, path: &Path, writable: bool) -> Result<Self> {
        let size = storage
            .length()
            .map_err(|e| Error::io(path, "find its length", e))?;
        Ok(Raw {
            storage,
            size: AtomicU64::new(size),
            writable,
            unsynced: AtomicBool::new(false),
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.storage.read_at(buf, offset)
    }

    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.storage.write_at(buf, offset)?;
        self.note_write();
        Ok(())
    }

    pub(crate) fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        self.storage.write_zeroes_at(offset, length, unmap)?;
        self.note_write();
        Ok(())
    }

    pub(crate) fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.storage.discard_at(offset, length)?;
        self.note_write();
        Ok(())
    }

    /// Cuts or grows the disk, durably.
    pub(crate) fn resize(&self, size: u64) -> io::Result<()> {
        self.storage.set_length(size)?;
        self.storage.sync()?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    pub(crate) fn note_write(&self) {
        if !self.unsynced.load(Ordering::Relaxed) {
            self.unsynced.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.writable && self.unsynced.swap(false, Ordering::SeqCst) {
            let outcome = self.storage.sync();
            if outcome.is_err() {
                self.note_write();
            }
            return outcome;
        }
        Ok(())
    }
}

/// Gives a new raw file its size.
pub(crate) fn create(
    storage: &dyn Storage,
    path: &Path,
    size: u64,
    preallocation: Preallocation,
) -> Result<()> {
    let failed = |e| Error::io(path, "set its size", e);
    storage.set_length(size).map_err(failed)?;
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => storage.allocate_at(0, size).map_err(failed)?,
        Preallocation::Full => fill_with_zeroes(storage, 0, size).map_err(failed)?,
    }
    storage.sync().map_err(failed)
}

/// Writes zeroes as data, so that the host has stored every byte.
pub(crate) fn fill_with_zeroes(storage: &dyn Storage, offset: u64, length: u64) -> io::Result<()> {
    let zeroes = vec![0u8; PIECE];
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let take = (end - at).min(PIECE as u64);
        storage.write_at(&zeroes[..take as usize], at)?;
        at += take;
    }
    Ok(())
}
