//! What the server serves.

use crate::{Image, Result};

/// A run of bytes in one state, as `base:allocation` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceExtent {
    /// In bytes; at least one.
    pub length: u64,
    /// No space is behind it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// A disk that can be served. Ranges given to it lie inside [`Self::size`] and
/// are never empty.
pub trait BlockDevice: Send + Sync {
    /// In bytes. It does not change while the device is served.
    fn size(&self) -> u64;

    /// The request size and alignment in bytes that suits the device best: a
    /// power of two of at least 512.
    fn preferred_block_size(&self) -> u32 {
        4096
    }

    /// Whether the device can be written to at all.
    fn is_writable(&self) -> bool;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Told to the client as an errno.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// Told to the client as an errno.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Makes a range read as zeroes; with `unmap` its space may go.
    ///
    /// # Errors
    /// Told to the client as an errno.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()>;

    /// Lets go of a range, whose content is undefined afterwards.
    ///
    /// # Errors
    /// Told to the client as an errno.
    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes durable what has been written so far.
    ///
    /// # Errors
    /// Told to the client as an errno.
    fn flush(&self) -> Result<()>;

    /// The states of a range from its start on: at least one extent, at most
    /// `most`, which together may fall short of the range or reach past it.
    ///
    /// # Errors
    /// Told to the client as an errno.
    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<DeviceExtent>>;
}

impl BlockDevice for Image {
    fn size(&self) -> u64 {
        Image::size(self)
    }

    fn preferred_block_size(&self) -> u32 {
        // Raw images have no clusters; the largest are 2 MiB.
        u32::try_from(self.cluster_size().clamp(4096, 2 << 20)).unwrap_or(4096)
    }

    fn is_writable(&self) -> bool {
        Image::is_writable(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Image::read_at(self, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        Image::write_at(self, buf, offset)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> Result<()> {
        Image::write_zeroes(self, offset, length, unmap)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        Image::discard(self, offset, length)
    }

    fn flush(&self) -> Result<()> {
        Image::flush(self)
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<DeviceExtent>> {
        Image::extents(self, offset, length)?
            .take(most)
            .map(|extent| {
                let extent = extent?;
                Ok(DeviceExtent {
                    length: extent.length,
                    hole: !extent.data,
                    zero: extent.zero,
                })
            })
            .collect()
    }
}
