//! The memory map that the kernel is told (e820).

use crate::memory::{IO_APIC, MemoryLayout};
use std::ops::Range;

/// Reserved from here to the video window: the extended BIOS data area of PCs.
const EXTENDED_BIOS_DATA: u64 = 0x9_fc00;
/// The area in which ACPI tables and firmware lie.
const FIRMWARE: Range<u64> = 0xe_0000..0x10_0000;

/// What a range is good for; the numbers are e820's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Usable memory.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// An entry of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEntry {
    /// Addresses.
    pub range: Range<u64>,
    /// Kind.
    pub kind: MapKind,
}

/// The map of a machine, in order.
#[must_use]
pub fn memory_map(layout: &MemoryLayout) -> Vec<MapEntry> {
    let entry = |range, kind| MapEntry { range, kind };
    let mut map = vec![
        entry(0..EXTENDED_BIOS_DATA, MapKind::Ram),
        entry(EXTENDED_BIOS_DATA..0xa_0000, MapKind::Reserved),
        entry(FIRMWARE, MapKind::Reserved),
        entry(FIRMWARE.end..layout.low_end(), MapKind::Ram),
        entry(IO_APIC..1 << 32, MapKind::Reserved),
    ];
    if !layout.high().is_empty() {
        map.push(entry(layout.high(), MapKind::Ram));
    }
    map
}
