//! Where an image's bytes come from, layer by layer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image::{Driver, Image};
use crate::qcow2::Qcow2;
use crate::qcow2::mapping::RunKind;

/// A range of the virtual disk with one source, as `qemu-img map` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte of the disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Layers below the top one: 0 is the image itself.
    pub depth: u32,
    /// Whether some layer has a mapping for it.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether data is stored for it.
    pub data: bool,
    /// Whether that data is compressed.
    pub compressed: bool,
    /// The host file that stores it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<PathBuf>,
    /// The offset in that file.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<u64>,
}

impl Extent {
    fn hole(start: u64, length: u64, depth: u32) -> Self {
        Extent {
            start,
            length,
            depth,
            present: false,
            zero: true,
            data: false,
            compressed: false,
            file: None,
            offset: None,
        }
    }

    fn continues_with(&self, next: &Extent) -> bool {
        self.start + self.length == next.start
            && self.depth == next.depth
            && self.present == next.present
            && self.zero == next.zero
            && self.data == next.data
            && self.compressed == next.compressed
            && self.file == next.file
            && self.offset.map(|o| o + self.length) == next.offset
    }
}

/// Iterates over the extents of a range; see [`Image::extents`].
#[derive(Debug)]
pub struct Extents<'a> {
    image: &'a Image,
    at: u64,
    end: u64,
    ahead: Option<Extent>,
    failed: bool,
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let mut current = self.ahead.take();
        while self.at < self.end {
            let next = match self.image.extent_at(self.at, self.end - self.at, 0) {
                Ok(next) => next,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            };
            self.at += next.length;
            match &mut current {
                None => current = Some(next),
                Some(extent) if extent.continues_with(&next) => extent.length += next.length,
                Some(_) => {
                    self.ahead = Some(next);
                    return current.map(Ok);
                }
            }
        }
        current.map(Ok)
    }
}

impl Image {
    /// The extents of a range, neighbours that continue each other joined.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; each item may be an error of reading metadata.
    pub fn extents(&self, offset: u64, length: u64) -> Result<Extents<'_>> {
        self.check_range(offset, length)?;
        Ok(Extents {
            image: self,
            at: offset,
            end: offset + length,
            ahead: None,
            failed: false,
        })
    }

    /// As [`Image::extents`], collected. Memory grows with the number of
    /// extents: prefer the iterator for large ranges.
    ///
    /// # Errors
    /// As [`Image::extents`].
    pub fn map(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.extents(offset, length)?.collect()
    }

    /// The extent at `offset`, at most `max` bytes of it. `max` is not zero.
    fn extent_at(&self, offset: u64, max: u64, depth: u32) -> Result<Extent> {
        match self.driver() {
            Driver::Raw(_) => self.raw_extent(offset, max, depth),
            Driver::Qcow2(qcow2) => self.qcow2_extent(qcow2, offset, max, depth),
        }
    }

    fn raw_extent(&self, offset: u64, max: u64, depth: u32) -> Result<Extent> {
        let (length, data) = self.data_or_hole(offset, max);
        Ok(Extent {
            start: offset,
            length,
            depth,
            present: true,
            zero: !data,
            data,
            compressed: false,
            file: Some(self.path().to_owned()),
            offset: Some(offset),
        })
    }

    /// Whether the host stores data at `offset` of a raw image, and for how
    /// long that holds.
    fn data_or_hole(&self, offset: u64, max: u64) -> (u64, bool) {
        use rustix::fs::SeekFrom;
        let Driver::Raw(raw) = self.driver() else {
            return (max, true);
        };
        let Some(fd) = raw.storage.as_fd() else {
            return (max, true);
        };
        let clip = |to: u64| to.saturating_sub(offset).clamp(1, max);
        match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
            Ok(at) if at > offset => (clip(at), false),
            Ok(_) => match rustix::fs::seek(fd, SeekFrom::Hole(offset)) {
                Ok(at) if at > offset => (clip(at), true),
                _ => (max, true),
            },
            Err(rustix::io::Errno::NXIO) => (max, false),
            Err(_) => (max, true),
        }
    }

    fn qcow2_extent(&self, qcow2: &Qcow2, offset: u64, max: u64, depth: u32) -> Result<Extent> {
        let run = {
            let _pin = qcow2.gate.pin();
            qcow2.lookup(offset, max)?
        };
        let mut extent = Extent::hole(offset, run.length, depth);
        let file = || match qcow2.header.lock().extensions.data_file.clone() {
            Some(name) if qcow2.geo.external_data => PathBuf::from(name),
            _ => qcow2.path.clone(),
        };
        match run.kind {
            RunKind::Backing => return self.extent_below(offset, run.length, depth),
            RunKind::Zero { host } => {
                extent.present = true;
                extent.offset = host;
                extent.file = host.map(|_| file());
            }
            RunKind::Data { host, .. } => {
                extent.present = true;
                extent.zero = false;
                extent.data = true;
                extent.offset = Some(host);
                extent.file = Some(file());
            }
            RunKind::Compressed { .. } => {
                extent.present = true;
                extent.zero = false;
                extent.data = true;
                extent.compressed = true;
            }
        }
        Ok(extent)
    }

    fn extent_below(&self, offset: u64, length: u64, depth: u32) -> Result<Extent> {
        let Some(backing) = self.backing() else {
            let named = self
                .qcow2()
                .is_some_and(|q| q.header.lock().backing_name.is_some());
            let mut extent = Extent::hole(offset, length, depth);
            // What an unopened backing file holds is not known.
            extent.zero = !named;
            return Ok(extent);
        };
        match backing.size().checked_sub(offset) {
            Some(there) if there > 0 => backing.extent_at(offset, length.min(there), depth + 1),
            _ => Ok(Extent::hole(offset, length, depth)),
        }
    }

    /// Whether the range reads as zeroes, as far as metadata tells.
    ///
    /// # Errors
    /// As [`Image::extents`].
    pub fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        for extent in self.extents(offset, length)? {
            if !extent?.zero {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the top layer alone has a mapping for `offset`, and for how
    /// many bytes (at most `max`) that stays so.
    ///
    /// # Errors
    /// As [`Image::extents`]; [`Error::OutOfRange`].
    pub fn is_allocated(&self, offset: u64, max: u64) -> Result<(bool, u64)> {
        self.check_range(offset, max)?;
        if max == 0 {
            return Err(Error::invalid("length", "must not be zero"));
        }
        match self.driver() {
            Driver::Raw(_) => Ok((true, max)),
            Driver::Qcow2(qcow2) => {
                let _pin = qcow2.gate.pin();
                let run = qcow2.lookup(offset, max)?;
                Ok((run.kind != RunKind::Backing, run.length))
            }
        }
    }
}
