//! Split virtqueues, the device's side (section 2.7).
//!
//! The rings are in guest memory and hostile: every value is read once and checked. Work is
//! bounded by the ring's size, whatever indices and links say.

use super::{
    F_EVENT_INDEX, F_INDIRECT,
    chain::{Chain, Segment, peek},
};
use crate::memory::GuestMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

/// The largest queue.
pub const LARGEST_QUEUE: u16 = 32768;
/// The most segments of a request: what the kernel takes in one vector.
pub const MOST_SEGMENTS: usize = 1024;

const DESCRIPTOR: u64 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// What a guest did that a queue cannot survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The size is no power of two or too large.
    #[error("queue size {0} is no power of two or too large")]
    Size(u16),
    /// A ring is not aligned.
    #[error("ring at {0:#x} is not aligned")]
    Alignment(u64),
    /// A ring does not lie in one piece of memory.
    #[error("ring at {0:#x} leaves the memory")]
    Ring(u64),
    /// More was made available than the queue holds.
    #[error("available index {found} is too far from {expected}")]
    Available {
        /// The driver's index.
        found: u16,
        /// The device's.
        expected: u16,
    },
    /// A descriptor's number is out of range.
    #[error("descriptor {0} does not exist")]
    Descriptor(u16),
    /// A chain is longer than it may be, or goes round.
    #[error("descriptor chain at {0} is too long or goes round")]
    Long(u16),
    /// A buffer leaves the memory.
    #[error("buffer of {length} bytes at {address:#x} leaves the memory")]
    Buffer {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        length: u32,
    },
    /// A chain describes more than 4 GiB.
    #[error("descriptor chain at {0} is larger than 4 GiB")]
    Large(u16),
    /// A buffer to be read follows one to be written.
    #[error("descriptor chain at {0} mixes the order of its buffers")]
    Order(u16),
    /// A table of descriptors where there must be none, or one of an impossible length.
    #[error("indirect descriptor in the chain at {0} is impossible")]
    Indirect(u16),
    /// The device found a request that it cannot even refuse.
    #[error("request at {0} has no room for its answer")]
    Request(u16),
}

/// Where a queue's three parts lie, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueLayout {
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// How far a queue has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueuePosition {
    /// Index of the next request to take.
    pub next_available: u16,
    /// Index of the next request to give back.
    pub next_used: u16,
}

/// A queue that is set up.
#[derive(Debug)]
pub struct Virtqueue {
    layout: QueueLayout,
    event_index: bool,
    indirect: bool,
    position: QueuePosition,
    /// The used index that the driver has been told of last.
    signalled: Option<u16>,
    /// The used index that is in the ring.
    published: u16,
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl QueueLayout {
    /// Checks size, alignment, and that all rings lie in memory.
    ///
    /// # Errors
    /// [`QueueError::Size`], [`QueueError::Alignment`] or [`QueueError::Ring`].
    pub fn check(&self, memory: &GuestMemory) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        if !self.size.is_power_of_two() || self.size > LARGEST_QUEUE {
            return Err(QueueError::Size(self.size));
        }
        for (address, length, alignment) in [
            (self.descriptors, size * DESCRIPTOR, 16),
            (self.available, 6 + size * 2, 2),
            (self.used, 6 + size * 8, 4),
        ] {
            if !address.is_multiple_of(alignment) {
                return Err(QueueError::Alignment(address));
            }
            // The length is at most 512 KiB.
            if memory
                .get_slice(GuestAddress(address), length as usize)
                .is_err()
            {
                return Err(QueueError::Ring(address));
            }
        }
        Ok(())
    }
}

impl Virtqueue {
    /// A queue at `position`, with the `features` that driver and device agreed on.
    ///
    /// # Errors
    /// As [`QueueLayout::check`].
    pub fn new(
        layout: QueueLayout,
        position: QueuePosition,
        features: u64,
        memory: &GuestMemory,
    ) -> Result<Self, QueueError> {
        layout.check(memory)?;
        Ok(Self {
            layout,
            event_index: features & F_EVENT_INDEX != 0,
            indirect: features & F_INDIRECT != 0,
            position,
            signalled: None,
            published: position.next_used,
        })
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// How far the queue has got. What was given back but not [published](Self::publish) counts.
    #[must_use]
    pub fn position(&self) -> QueuePosition {
        self.position
    }

    /// Takes the next request into `chain`; false if there is none.
    ///
    /// # Errors
    /// [`QueueError`] if the guest has broken a rule; the queue must not be used any more.
    pub fn pop(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        let available = self.available_index(memory)?;
        let next = self.position.next_available;
        let waiting = available.wrapping_sub(next);
        if waiting == 0 {
            return Ok(false);
        }
        if waiting > self.layout.size {
            return Err(QueueError::Available {
                found: available,
                expected: next,
            });
        }
        let slot = u64::from(next % self.layout.size);
        let address = self.layout.available + 4 + slot * 2;
        let head = self.ring(peek::<u16>(memory, address), address)?;
        self.read_chain(memory, u16::from_le(head), chain)?;
        self.position.next_available = next.wrapping_add(1);
        Ok(true)
    }

    /// Puts the request taken last back, to be taken again. Not after [`Virtqueue::push`] of it.
    pub fn put_back(&mut self) {
        self.position.next_available = self.position.next_available.wrapping_sub(1);
    }

    /// Reads a request again by its `head`, as after a restore.
    ///
    /// # Errors
    /// As [`Virtqueue::pop`].
    pub fn read_chain(
        &self,
        memory: &GuestMemory,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        if head >= self.layout.size {
            return Err(QueueError::Descriptor(head));
        }
        let mut table = (self.layout.descriptors, self.layout.size);
        let mut inside = false;
        let mut index = head;
        let mut total = 0u32;
        // One step per descriptor that the tables can hold; more than that is a circle.
        let mut left = usize::from(self.layout.size).max(MOST_SEGMENTS) + 1;
        loop {
            left = left.checked_sub(1).ok_or(QueueError::Long(head))?;
            let descriptor = self.descriptor(memory, table, index)?;
            if descriptor.flags & INDIRECT != 0 {
                let fits = descriptor.length / DESCRIPTOR as u32;
                if inside
                    || !self.indirect
                    || descriptor.flags & NEXT != 0
                    || fits == 0
                    || !u64::from(descriptor.length).is_multiple_of(DESCRIPTOR)
                {
                    return Err(QueueError::Indirect(head));
                }
                let entries = u16::try_from(fits).map_err(|_| QueueError::Indirect(head))?;
                self.check_buffer(memory, &descriptor)?;
                table = (descriptor.address, entries);
                inside = true;
                index = 0;
                continue;
            }
            if descriptor.length > 0 {
                self.check_buffer(memory, &descriptor)?;
                total = total
                    .checked_add(descriptor.length)
                    .ok_or(QueueError::Large(head))?;
                let segment = Segment {
                    address: descriptor.address,
                    length: descriptor.length,
                };
                if chain.readable.len() + chain.writable.len() >= MOST_SEGMENTS {
                    return Err(QueueError::Long(head));
                }
                if descriptor.flags & WRITE != 0 {
                    chain.writable.push(segment);
                } else if chain.writable.is_empty() {
                    chain.readable.push(segment);
                } else {
                    return Err(QueueError::Order(head));
                }
            }
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn descriptor(
        &self,
        memory: &GuestMemory,
        (table, entries): (u64, u16),
        index: u16,
    ) -> Result<Descriptor, QueueError> {
        if index >= entries {
            return Err(QueueError::Descriptor(index));
        }
        let address = table + u64::from(index) * DESCRIPTOR;
        let bytes: [u8; 16] = self.ring(peek(memory, address), address)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Ok(Descriptor {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            length: u32::from_le_bytes([i, j, k, l]),
            flags: u16::from_le_bytes([m, n]),
            next: u16::from_le_bytes([o, p]),
        })
    }

    fn check_buffer(
        &self,
        memory: &GuestMemory,
        descriptor: &Descriptor,
    ) -> Result<(), QueueError> {
        memory
            .get_slice(GuestAddress(descriptor.address), descriptor.length as usize)
            .map(|_| ())
            .map_err(|_| QueueError::Buffer {
                address: descriptor.address,
                length: descriptor.length,
            })
    }

    /// Gives a request back, of whose writable part the device wrote the first `written` bytes.
    /// The driver sees it after [`Virtqueue::publish`].
    ///
    /// # Errors
    /// Never for a queue whose layout was checked.
    pub fn push(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.position.next_used % self.layout.size);
        let address = self.layout.used + 4 + slot * 8;
        let entry = u64::from(written) << 32 | u64::from(head);
        let stored = memory.write_slice(&entry.to_le_bytes(), GuestAddress(address));
        self.ring(stored.ok(), address)?;
        self.position.next_used = self.position.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was given back and says whether it wants an interrupt.
    ///
    /// # Errors
    /// Never for a queue whose layout was checked.
    pub fn publish(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let now = self.position.next_used;
        if now == self.published {
            return Ok(false);
        }
        self.published = now;
        self.store(memory, self.layout.used + 2, now, Ordering::Release)?;
        // The index must be visible before it is looked at whether the driver wants to know.
        fence(Ordering::SeqCst);
        let before = self.signalled.replace(now);
        if !self.event_index {
            let flags = self.load(memory, self.layout.available, Ordering::Relaxed)?;
            return Ok(flags & NO_INTERRUPT == 0);
        }
        let at = self.layout.available + 4 + u64::from(self.layout.size) * 2;
        let event = self.load(memory, at, Ordering::Relaxed)?;
        Ok(before.is_none_or(|before| {
            now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
        }))
    }

    /// Asks to be notified of the next request that the driver makes, and says whether there are
    /// some already, for which no notification may come.
    ///
    /// # Errors
    /// Never for a queue whose layout was checked.
    pub fn want_notifications(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if self.event_index {
            let at = self.layout.used + 4 + u64::from(self.layout.size) * 8;
            // Not the next one to be taken: a device that leaves some, because they are too few,
            // would never hear of more.
            let next = self.available_index(memory)?;
            self.store(memory, at, next, Ordering::Relaxed)?;
        } else {
            self.store(memory, self.layout.used, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        self.has_more(memory)
    }

    /// Asks for no notifications while requests are being served anyway. A driver may send some
    /// all the same.
    ///
    /// # Errors
    /// Never for a queue whose layout was checked.
    pub fn spare_notifications(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if self.event_index {
            // An index in the past rings for none of the next 65535 requests.
            return Ok(());
        }
        self.store(memory, self.layout.used, NO_NOTIFY, Ordering::Relaxed)
    }

    /// Whether a request waits to be taken.
    ///
    /// # Errors
    /// Never for a queue whose layout was checked.
    pub fn has_more(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.available_index(memory)? != self.position.next_available)
    }

    fn available_index(&self, memory: &GuestMemory) -> Result<u16, QueueError> {
        self.load(memory, self.layout.available + 2, Ordering::Acquire)
    }

    fn load(&self, memory: &GuestMemory, at: u64, order: Ordering) -> Result<u16, QueueError> {
        let value = memory.load::<u16>(GuestAddress(at), order);
        self.ring(value.ok(), at).map(u16::from_le)
    }

    fn store(
        &self,
        memory: &GuestMemory,
        at: u64,
        value: u16,
        order: Ordering,
    ) -> Result<(), QueueError> {
        let stored = memory.store(value.to_le(), GuestAddress(at), order);
        self.ring(stored.ok(), at)
    }

    fn ring<T>(&self, value: Option<T>, address: u64) -> Result<T, QueueError> {
        value.ok_or(QueueError::Ring(address))
    }
}

#[cfg(test)]
mod tests;
