//! Persistent dirty bitmaps.
//!
//! Specification: `docs/interop/qcow2`, "Bitmaps". This engine does not track
//! writes in bitmaps: before the first change of guest data it marks every
//! enabled bitmap as in use, which tells the next reader that it is out of
//! date. Disabled bitmaps do not track writes and stay right.

use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::extension::BitmapsExtension;
use crate::qcow2::header::{autoclear, be32};

/// The largest directory that any known writer makes or accepts.
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_BITMAPS: u32 = 65535;
/// Bytes of a directory entry before extra data and name.
const ENTRY: usize = 24;
const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;

impl Qcow2 {
    /// Marks enabled bitmaps as out of date, once, before guest data changes.
    pub(crate) fn mark_bitmaps(&self) -> Result<()> {
        if self.bitmaps_marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self.bitmaps_lock.lock();
        if self.bitmaps_marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let (extension, valid) = {
            let header = self.header.lock();
            (
                header.extensions.bitmaps,
                header.autoclear & autoclear::BITMAPS != 0,
            )
        };
        if let Some(extension) = extension.filter(|_| valid) {
            match self.mark_directory(extension) {
                Err(Error::Corrupt { what, offset, .. }) => {
                    tracing::warn!(
                        path = %self.path.display(), what, offset,
                        "bitmap directory is damaged, its bitmaps are given up"
                    );
                    self.update_header(|h| h.autoclear &= !autoclear::BITMAPS)?;
                }
                other => other?,
            }
        }
        self.bitmaps_marked.store(true, Ordering::Release);
        Ok(())
    }

    fn mark_directory(&self, extension: BitmapsExtension) -> Result<()> {
        let offset = extension.directory_offset;
        let damaged = |what: &str, at: u64| Error::corrupt(&self.path, what, at);
        let length = self
            .storage
            .length()
            .map_err(|e| Error::io(&self.path, "find its length", e))?;
        let inside = offset
            .checked_add(extension.directory_size)
            .is_some_and(|end| end <= length);
        if self.geo.inside(offset) != 0
            || extension.directory_size > MAX_DIRECTORY
            || extension.count > MAX_BITMAPS
            || !inside
        {
            return Err(damaged("bitmap directory out of bounds", offset));
        }
        let mut raw = vec![0u8; extension.directory_size as usize];
        self.storage
            .read_at(&mut raw, offset)
            .map_err(|e| Error::io(&self.path, "read its bitmap directory", e))?;
        let mut at = 0;
        let mut changed = false;
        for _ in 0..extension.count {
            let Some(entry) = raw.get(at..at + ENTRY) else {
                return Err(damaged("bitmap directory is too short", offset + at as u64));
            };
            let flags = be32(entry, 12);
            let name = usize::from(entry[18]) << 8 | usize::from(entry[19]);
            let extra = be32(entry, 20) as usize;
            if flags & AUTO != 0 && flags & IN_USE == 0 {
                raw[at + 12..at + 16].copy_from_slice(&(flags | IN_USE).to_be_bytes());
                changed = true;
            }
            at = at.saturating_add((ENTRY + extra + name).next_multiple_of(8));
        }
        if changed {
            self.storage
                .write_at(&raw, offset)
                .map_err(|e| Error::io(&self.path, "write its bitmap directory", e))?;
            self.sync_storage()?;
        }
        Ok(())
    }
}
