//! Address spaces: who answers an access to a port or to an address without memory.
//!
//! Two kinds of device registers exist, [`PortIo`] and [`Mmio`]. An [`AddressMap`] finds the one
//! that an access is for. Fixed ranges of the machine are claimed when it is built; ranges that
//! the guest moves (PCI BARs, the power management block) are changed while it runs. Where ranges
//! overlap, which a guest is free to arrange, the one with the smaller [`Priority`] answers and
//! the other stays hidden until the first moves away: no access ever reaches two devices and
//! nothing depends on the order in which ranges were set.
//!
//! An access inside one range reaches its device whole, with its width. An access that crosses a
//! border is split into bytes, as a bus narrower than the access would do. Where nobody answers,
//! reads give ones and writes are lost.
//!
//! Lock order: the map's lock is released before a device is called, so a device may change the
//! map in the middle of an access.

use parking_lot::{Mutex, RwLock};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Registers in the port space. `port` is the port number itself, not an offset.
///
/// `data` is 1, 2 or 4 bytes long, little-endian, and lies within the claimed range.
pub trait PortIo: Send {
    /// Reads; every byte of `data` is to be set.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// Writes.
    fn port_write(&mut self, port: u16, data: &[u8]);
}

/// Registers in the memory space. `offset` counts from the start of the claimed range.
///
/// `data` is 1 to 8 bytes long, little-endian, not necessarily aligned, and lies in the range.
pub trait Mmio: Send {
    /// Reads; every byte of `data` is to be set.
    fn mmio_read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes.
    fn mmio_write(&mut self, offset: u64, data: &[u8]);
}

/// Port registers of a device on the 8-bit ISA bus: wider accesses become byte accesses to
/// consecutive ports, lowest first. Gives [`PortIo`].
pub trait BytePorts: Send {
    /// Reads one port.
    fn read_byte(&mut self, port: u16) -> u8;
    /// Writes one port.
    fn write_byte(&mut self, port: u16, value: u8);
}

impl<T: BytePorts> PortIo for T {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        for (byte, index) in data.iter_mut().zip(0..) {
            *byte = self.read_byte(port.wrapping_add(index));
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        for (byte, index) in data.iter().zip(0..) {
            self.write_byte(port.wrapping_add(index), *byte);
        }
    }
}

/// The little-endian value of up to eight bytes; further bytes are ignored.
#[must_use]
pub fn value_of(data: &[u8]) -> u64 {
    data.iter()
        .take(8)
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Sets `data` to the low bytes of `value`, little-endian; bytes beyond the eighth become zero.
pub fn set_value(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = bytes.get(index).copied().unwrap_or(0);
    }
}

/// What an [`AddressMap`] calls: an access at `offset` within a range that starts at `base`.
pub trait Target: Send + Sync {
    /// Reads.
    fn read(&self, base: u64, offset: u64, data: &mut [u8]);
    /// Writes.
    fn write(&self, base: u64, offset: u64, data: &[u8]);
}

/// A [`PortIo`] device as a [`Target`].
pub struct PortTarget<D: ?Sized>(pub Arc<Mutex<D>>);

impl<D: PortIo + ?Sized> Target for PortTarget<D> {
    fn read(&self, base: u64, offset: u64, data: &mut [u8]) {
        // The sum lies in the claimed range, which lies in the port space.
        self.0.lock().port_read((base + offset) as u16, data);
    }

    fn write(&self, base: u64, offset: u64, data: &[u8]) {
        self.0.lock().port_write((base + offset) as u16, data);
    }
}

/// An [`Mmio`] device as a [`Target`].
pub struct MmioTarget<D: ?Sized>(pub Arc<Mutex<D>>);

impl<D: Mmio + ?Sized> Target for MmioTarget<D> {
    fn read(&self, _base: u64, offset: u64, data: &mut [u8]) {
        self.0.lock().mmio_read(offset, data);
    }

    fn write(&self, _base: u64, offset: u64, data: &[u8]) {
        self.0.lock().mmio_write(offset, data);
    }
}

/// Who wins where ranges overlap: the smaller one. [`Priority::FIXED`] is before all that a guest
/// can move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u32);

impl Priority {
    /// Ranges of the platform itself.
    pub const FIXED: Self = Self(0);

    /// A window that the guest can move; `rank` orders them among each other.
    #[must_use]
    pub const fn movable(rank: u16) -> Self {
        Self(1 + rank as u32)
    }
}

/// Names a claimed range, to move or remove it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RangeId(u64);

/// Why a range was not claimed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// The range is empty or ends beyond the address space.
    #[error("range of {size:#x} bytes at {base:#x} is empty or leaves the address space")]
    Range {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Two fixed ranges collide: a fault in how the machine was put together.
    #[error("range of {size:#x} bytes at {base:#x} collides with a fixed range at {other:#x}")]
    Collision {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// First address of the range already there.
        other: u64,
    },
}

/// One address space, ports or memory.
pub struct AddressMap {
    /// Last valid address.
    last: u64,
    table: RwLock<Table>,
    unclaimed: AtomicU64,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    claims: Vec<Claim>,
    /// What is visible: sorted, without overlaps; computed from `claims`.
    visible: Vec<Segment>,
}

struct Claim {
    id: RangeId,
    priority: Priority,
    base: u64,
    last: u64,
    target: Arc<dyn Target>,
}

struct Segment {
    first: u64,
    last: u64,
    base: u64,
    target: Arc<dyn Target>,
}

impl AddressMap {
    /// The 64 KiB of I/O ports.
    #[must_use]
    pub fn ports() -> Self {
        Self::with_last(0xffff)
    }

    /// The memory space.
    #[must_use]
    pub fn memory() -> Self {
        Self::with_last(u64::MAX)
    }

    fn with_last(last: u64) -> Self {
        Self {
            last,
            table: RwLock::default(),
            unclaimed: AtomicU64::new(0),
        }
    }

    /// Claims `size` addresses from `base` for `target`.
    ///
    /// # Errors
    /// If the range is no range, or two [`Priority::FIXED`] ranges collide.
    pub fn claim(
        &self,
        priority: Priority,
        base: u64,
        size: u64,
        target: Arc<dyn Target>,
    ) -> Result<RangeId, MapError> {
        let last = size
            .checked_sub(1)
            .and_then(|distance| base.checked_add(distance))
            .filter(|last| *last <= self.last)
            .ok_or(MapError::Range { base, size })?;
        let mut table = self.table.write();
        if priority == Priority::FIXED
            && let Some(other) = table.claims.iter().find(|claim| {
                claim.priority == priority && claim.base <= last && base <= claim.last
            })
        {
            let other = other.base;
            return Err(MapError::Collision { base, size, other });
        }
        let id = RangeId(table.next_id);
        table.next_id += 1;
        table.claims.push(Claim {
            id,
            priority,
            base,
            last,
            target,
        });
        table.rebuild();
        Ok(id)
    }

    /// Gives a range back; what it hid becomes visible. An unknown id is ignored.
    pub fn release(&self, id: RangeId) {
        let mut table = self.table.write();
        table.claims.retain(|claim| claim.id != id);
        table.rebuild();
    }

    /// Reads at `address`; `data` is set in every case.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Found::Whole(target, base, offset) => target.read(base, offset, data),
            Found::Split => {
                for (byte, offset) in data.iter_mut().zip(0u64..) {
                    let byte = std::slice::from_mut(byte);
                    match self.find(address.wrapping_add(offset), 1) {
                        Found::Whole(target, base, offset) => target.read(base, offset, byte),
                        Found::Split | Found::Nobody => byte.fill(0xff),
                    }
                }
            }
            Found::Nobody => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// Writes at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Found::Whole(target, base, offset) => target.write(base, offset, data),
            Found::Split => {
                for (byte, offset) in data.iter().zip(0u64..) {
                    if let Found::Whole(target, base, offset) =
                        self.find(address.wrapping_add(offset), 1)
                    {
                        target.write(base, offset, std::slice::from_ref(byte));
                    }
                }
            }
            Found::Nobody => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether anybody answers at `address`.
    #[must_use]
    pub fn is_claimed(&self, address: u64) -> bool {
        matches!(self.find(address, 1), Found::Whole(..))
    }

    /// How many accesses nobody answered.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64, length: usize) -> Found {
        let last = address.saturating_add((length as u64).saturating_sub(1));
        let table = self.table.read();
        let next = table.visible.partition_point(|s| s.last < address);
        match table.visible.get(next) {
            Some(s) if s.first <= address && last <= s.last => {
                Found::Whole(Arc::clone(&s.target), s.base, address - s.base)
            }
            Some(s) if s.first <= last => Found::Split,
            _ => Found::Nobody,
        }
    }
}

impl fmt::Debug for AddressMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.read();
        f.debug_list()
            .entries(table.visible.iter().map(|s| s.first..=s.last))
            .finish()
    }
}

enum Found {
    Whole(Arc<dyn Target>, u64, u64),
    Split,
    Nobody,
}

impl Table {
    /// Recomputes what is visible. Between equal priorities the older claim wins.
    fn rebuild(&mut self) {
        let mut order: Vec<&Claim> = self.claims.iter().collect();
        order.sort_by_key(|claim| (claim.priority, claim.id.0));
        let mut visible: Vec<Segment> = Vec::with_capacity(order.len());
        for claim in order {
            let mut fresh = Vec::new();
            let mut next = Some(claim.base);
            for taken in visible.iter().filter(|s| s.first <= claim.last) {
                let Some(first) = next.filter(|first| *first <= claim.last) else {
                    break;
                };
                if taken.last < first {
                    continue;
                }
                if first < taken.first {
                    fresh.push((first, taken.first - 1));
                }
                next = taken.last.checked_add(1);
            }
            if let Some(first) = next.filter(|first| *first <= claim.last) {
                fresh.push((first, claim.last));
            }
            visible.extend(fresh.into_iter().map(|(first, last)| Segment {
                first,
                last,
                base: claim.base,
                target: Arc::clone(&claim.target),
            }));
            visible.sort_by_key(|s| s.first);
        }
        self.visible = visible;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Answers reads with its own number and remembers writes.
    struct Named(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Target for Named {
        fn read(&self, _base: u64, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&self, _base: u64, offset: u64, data: &[u8]) {
            self.1.lock().push((offset, data.to_vec()));
        }
    }

    fn named(number: u8) -> Arc<Named> {
        Arc::new(Named(number, Mutex::default()))
    }

    fn read(map: &AddressMap, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        map.read(address, &mut data);
        data
    }

    #[test]
    fn accesses_across_a_border_are_split_into_bytes() {
        let map = AddressMap::ports();
        let (a, b) = (named(1), named(2));
        map.claim(Priority::FIXED, 0x10, 2, a.clone()).unwrap();
        map.claim(Priority::FIXED, 0x12, 1, b.clone()).unwrap();
        assert_eq!(read(&map, 0x10, 4), [1, 1, 2, 0xff]);
        assert_eq!(read(&map, 0x0f, 2), [0xff, 1]);
        map.write(0x11, &[7, 8]);
        map.write(0x10, &[5, 6]);
        assert_eq!(*a.1.lock(), [(1, vec![7]), (0, vec![5, 6])]);
        assert_eq!(*b.1.lock(), [(0, vec![8])]);
    }

    #[test]
    fn the_end_of_the_space_is_a_border() {
        let map = AddressMap::memory();
        map.claim(Priority::FIXED, u64::MAX - 1, 2, named(3))
            .unwrap();
        assert_eq!(read(&map, u64::MAX - 1, 2), [3, 3]);
        assert_eq!(
            map.claim(Priority::FIXED, u64::MAX, 2, named(4)),
            Err(MapError::Range {
                base: u64::MAX,
                size: 2
            })
        );
        assert!(
            AddressMap::ports()
                .claim(Priority::FIXED, 0xffff, 2, named(1))
                .is_err()
        );
        assert!(
            AddressMap::ports()
                .claim(Priority::FIXED, 0, 0, named(1))
                .is_err()
        );
    }

    #[test]
    fn fixed_ranges_may_not_collide_and_win_over_movable_ones() {
        let map = AddressMap::memory();
        map.claim(Priority::FIXED, 0x100, 0x10, named(1)).unwrap();
        let collision = map.claim(Priority::FIXED, 0x10f, 1, named(2)).unwrap_err();
        assert!(matches!(
            collision,
            MapError::Collision { other: 0x100, .. }
        ));
        map.claim(Priority::movable(0), 0x0f0, 0x40, named(3))
            .unwrap();
        assert_eq!(read(&map, 0x0ff, 1), [3]);
        assert_eq!(read(&map, 0x100, 1), [1]);
        assert_eq!(read(&map, 0x110, 1), [3]);
    }

    #[test]
    fn what_was_hidden_comes_back() {
        let map = AddressMap::memory();
        let first = map.claim(Priority::movable(1), 0, 8, named(1)).unwrap();
        map.claim(Priority::movable(2), 4, 8, named(2)).unwrap();
        assert_eq!(read(&map, 4, 1), [1]);
        map.release(first);
        assert_eq!(read(&map, 4, 1), [2]);
        assert_eq!(read(&map, 0, 1), [0xff]);
        assert_eq!(map.unclaimed(), 1);
    }

    proptest! {
        /// The visible segments agree, address by address, with the definition.
        #[test]
        fn the_smallest_priority_answers(
            claims in prop::collection::vec((0u16..4, 0u64..64, 1u64..32), 1..8),
        ) {
            let map = AddressMap::ports();
            for (number, (rank, base, size)) in claims.iter().enumerate() {
                map.claim(Priority::movable(*rank), *base, *size, named(number as u8)).unwrap();
            }
            for address in 0..100u64 {
                let expected = claims
                    .iter()
                    .enumerate()
                    .filter(|(_, (_, base, size))| (*base..base + size).contains(&address))
                    .min_by_key(|(number, (rank, ..))| (*rank, *number))
                    .map_or(0xff, |(number, _)| number as u8);
                prop_assert_eq!(read(&map, address, 1), [expected]);
            }
        }
    }
}
