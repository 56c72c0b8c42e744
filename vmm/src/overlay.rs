//! Host memory that appears in the guest's address space without being its RAM: firmware, option
//! ROMs, frame buffers.
//!
//! Devices hold a [`DeviceMemory`] and the [`Overlay`] that shows it to the guest. An overlay that
//! cannot be placed (it would lie over RAM or over another one) is left out; accesses then reach
//! the device's window as those to any register do, so a device answers them from the same memory.

use std::{io, sync::Arc};
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _};

/// Memory of a device, mapped in the monitor, shared with the guest.
#[derive(Debug)]
pub struct DeviceMemory {
    map: MmapRegion,
}

impl DeviceMemory {
    /// `size` bytes of zeros; whole pages.
    ///
    /// # Errors
    /// If the host does not map that much.
    pub fn new(size: usize) -> io::Result<Arc<Self>> {
        let map = MmapRegion::new(size).map_err(io::Error::other)?;
        Ok(Arc::new(Self { map }))
    }

    /// Memory with `content`, padded with `padding` to whole pages of at least `size` bytes.
    ///
    /// # Errors
    /// As [`DeviceMemory::new`].
    pub fn with_content(content: &[u8], size: usize, padding: u8) -> io::Result<Arc<Self>> {
        let page = crate::memory::PAGE_SIZE as usize;
        let size = content.len().max(size).max(1).next_multiple_of(page);
        let memory = Self::new(size)?;
        memory.write(0, content);
        memory.write(content.len(), &vec![padding; size - content.len()]);
        Ok(memory)
    }

    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.map.size()
    }

    /// Address in the monitor; valid for as long as this lives.
    #[must_use]
    pub fn host_address(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// Reads at `offset`; beyond the end gives ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let inside = self.size().saturating_sub(offset).min(data.len());
        let (inside, outside) = data.split_at_mut(inside);
        outside.fill(0xff);
        // Cannot fail: the range was cut to the memory.
        if !inside.is_empty()
            && self
                .map
                .as_volatile_slice()
                .read_slice(inside, offset)
                .is_err()
        {
            inside.fill(0xff);
        }
    }

    /// Writes at `offset`; what lies beyond the end is lost.
    pub fn write(&self, offset: usize, data: &[u8]) {
        let inside = self.size().saturating_sub(offset).min(data.len());
        if inside > 0 {
            // Cannot fail: the range was cut to the memory.
            let _ = self
                .map
                .as_volatile_slice()
                .write_slice(&data[..inside], offset);
        }
    }
}

/// One piece of device memory in the guest's address space.
pub trait Overlay: Send {
    /// Shows it at `base`, or nowhere. Vanishes when dropped.
    fn place(&mut self, base: Option<u64>);
}

/// Makes overlays.
pub trait Overlays: Send + Sync {
    /// A new overlay of `memory`, not placed yet. What the guest writes to a read-only one comes to
    /// the device's window.
    ///
    /// # Errors
    /// If the host has no more memory slots.
    fn create(&self, memory: Arc<DeviceMemory>, writable: bool) -> io::Result<Box<dyn Overlay>>;
}

/// Overlays that show nothing, so that every access comes to the device.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoOverlays;

struct Nothing;

impl Overlay for Nothing {
    fn place(&mut self, _base: Option<u64>) {}
}

impl Overlays for NoOverlays {
    fn create(&self, _memory: Arc<DeviceMemory>, _writable: bool) -> io::Result<Box<dyn Overlay>> {
        Ok(Box::new(Nothing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_memory_is_whole_pages_and_ends_where_it_ends() {
        let memory = DeviceMemory::with_content(b"abc", 0, 0xee).unwrap();
        assert_eq!(memory.size(), 4096);
        let mut data = [0; 4];
        memory.read(1, &mut data);
        assert_eq!(data, [b'b', b'c', 0xee, 0xee]);
        memory.write(4094, b"xyz");
        memory.read(4094, &mut data);
        assert_eq!(data, [b'x', b'y', 0xff, 0xff]);
        memory.read(usize::MAX, &mut data);
        assert_eq!(data, [0xff; 4]);
        memory.write(usize::MAX, b"x");
    }
}
