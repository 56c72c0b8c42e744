//! A type 0 configuration space: registers with write masks, BARs, the capability list.
//!
//! *PCI Local Bus Specification 3.0*, chapter 6.

use super::ROM;
use crate::{bus::value_of, device::StateError};
use serde::{Deserialize, Serialize};

const COMMAND: u8 = 0x04;
const STATUS: u8 = 0x06;
const HEADER_TYPE: u8 = 0x0e;
const BAR0: u8 = 0x10;
const SUBSYSTEM: u8 = 0x2c;
const ROM_BAR: u8 = 0x30;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT_LINE: u8 = 0x3c;
const INTERRUPT_PIN: u8 = 0x3d;

const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// The command bits that can be set here: I/O, memory, master, parity, SERR#, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const STATUS_INTERRUPT: u8 = 1 << 3;

/// Who a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class code, `base << 16 | sub << 8 | interface`.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// Port or memory space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Memory.
    Memory,
}

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Port,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes this BAR's register and the next.
    Memory64 {
        /// Reads have no effects.
        prefetchable: bool,
    },
}

/// An address range that a function decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// The BAR's number, [`ROM`], or a number from 8 on that the function gives a meaning.
    pub window: u8,
    /// Where it lies.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A capability to be added to the list.
#[derive(Debug, Clone)]
pub struct Capability<'a> {
    /// Capability ID.
    pub id: u8,
    /// What follows the ID and the next pointer.
    pub body: &'a [u8],
    /// Which bits of `body` the guest may change; shorter than `body` means read-only.
    pub writable: &'a [u8],
}

/// Why a configuration space cannot have what was asked for: a fault of the function's code or of
/// its configuration, never of a guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The BAR does not exist, is taken, or its size is no power of two in its range.
    #[error("BAR {index} of {size:#x} bytes is impossible or taken")]
    Bar {
        /// Number.
        index: u8,
        /// Size in bytes.
        size: u64,
    },
    /// The capability list is full.
    #[error("no room for a capability of {length} bytes in configuration space")]
    Full {
        /// Length of the capability.
        length: usize,
    },
}

/// Saved configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigState {
    /// The 256 bytes.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// 256 bytes of configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    power_on: [u8; 256],
    writable: [u8; 256],
    clearable: [u8; 256],
    bars: [Option<Bar>; 6],
    rom: Option<u64>,
    last_capability: Option<u8>,
    free: u8,
}

impl ConfigSpace {
    /// A space with the header's identity and nothing else. Interrupt line, cache line size,
    /// latency timer and the command register can be written.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; 256],
            power_on: [0; 256],
            writable: [0; 256],
            clearable: [0; 256],
            bars: [None; 6],
            rom: None,
            last_capability: None,
            free: 0x40,
        };
        space.preset(0x00, &identity.vendor.to_le_bytes());
        space.preset(0x02, &identity.device.to_le_bytes());
        space.preset(0x08, &[identity.revision]);
        space.preset(0x09, &identity.class.to_le_bytes()[..3]);
        space.preset(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        space.preset(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(0x0c, &[0xff, 0xf8]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space.clearable[usize::from(STATUS) + 1] = 0xf9;
        space
    }

    /// Sets bytes to their value at power-on.
    pub fn preset(&mut self, offset: u8, value: &[u8]) {
        for (index, byte) in (usize::from(offset)..256).zip(value) {
            self.bytes[index] = *byte;
            self.power_on[index] = *byte;
        }
    }

    /// Lets the guest change the bits that are set in `mask`.
    pub fn allow(&mut self, offset: u8, mask: &[u8]) {
        for (index, byte) in (usize::from(offset)..256).zip(mask) {
            self.writable[index] = *byte;
        }
    }

    /// Marks the device as having several functions.
    pub fn set_multi_function(&mut self) {
        let header = self.bytes[usize::from(HEADER_TYPE)] | 0x80;
        self.preset(HEADER_TYPE, &[header]);
    }

    /// Says which interrupt pin the function uses: 1 for INTA# to 4 for INTD#, 0 for none.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.preset(INTERRUPT_PIN, &[pin]);
    }

    /// Adds a BAR. Sizes are powers of two, from 4 to 256 bytes for ports and from 16 bytes to
    /// 2 GiB (64-bit: 2^62) for memory.
    ///
    /// # Errors
    /// [`ConfigError::Bar`].
    pub fn add_bar(&mut self, index: u8, kind: BarKind, size: u64) -> Result<(), ConfigError> {
        let error = ConfigError::Bar { index, size };
        let (smallest, largest, flags) = match kind {
            BarKind::Port => (4, 256, 1u8),
            BarKind::Memory32 { prefetchable } => (16, 1 << 31, u8::from(prefetchable) << 3),
            BarKind::Memory64 { prefetchable } => (16, 1 << 62, u8::from(prefetchable) << 3 | 4),
        };
        let wide = matches!(kind, BarKind::Memory64 { .. });
        let slot = usize::from(index);
        let taken = |slot: usize| !matches!(self.bars.get(slot), Some(None));
        let under_wide = slot > 0
            && matches!(
                self.bars.get(slot - 1),
                Some(Some(Bar {
                    kind: BarKind::Memory64 { .. },
                    ..
                }))
            );
        if taken(slot)
            || under_wide
            || (wide && taken(slot + 1))
            || !size.is_power_of_two()
            || !(smallest..=largest).contains(&size)
        {
            return Err(error);
        }
        let offset = BAR0 + index * 4;
        let mask = !(size - 1);
        self.preset(offset, &[flags]);
        self.allow(offset, &(mask as u32).to_le_bytes());
        if wide {
            self.allow(offset + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[slot] = Some(Bar { kind, size });
        Ok(())
    }

    /// Adds an expansion ROM window of a power of two from 2 KiB to 16 MiB.
    ///
    /// # Errors
    /// [`ConfigError::Bar`].
    pub fn add_rom(&mut self, size: u64) -> Result<(), ConfigError> {
        if self.rom.is_some() || !size.is_power_of_two() || !(0x800..=1 << 24).contains(&size) {
            return Err(ConfigError::Bar { index: ROM, size });
        }
        self.allow(ROM_BAR, &(!(size as u32 - 1) | 1).to_le_bytes());
        self.rom = Some(size);
        Ok(())
    }

    /// Adds a capability at the end of the list and returns its offset.
    ///
    /// # Errors
    /// [`ConfigError::Full`].
    pub fn add_capability(&mut self, capability: &Capability<'_>) -> Result<u8, ConfigError> {
        let length = capability.body.len() + 2;
        let offset = self.free;
        let end = usize::from(offset) + length;
        if end > 252 {
            return Err(ConfigError::Full { length });
        }
        self.preset(offset, &[capability.id, 0]);
        self.preset(offset + 2, capability.body);
        self.allow(offset + 2, capability.writable);
        let link = self.last_capability.map_or(CAPABILITIES, |last| last + 1);
        self.preset(link, &[offset]);
        self.preset(STATUS, &[STATUS_CAPABILITIES]);
        self.last_capability = Some(offset);
        self.free = end.next_multiple_of(4) as u8;
        Ok(offset)
    }

    /// Puts later capabilities at or after `offset` (a multiple of four), for functions with
    /// registers of their own below it.
    pub fn reserve_until(&mut self, offset: u8) {
        self.free = self.free.max(offset & !3);
    }

    /// Reads; bytes beyond the space give ones.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        for (index, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(index).copied().unwrap_or(0xff);
        }
    }

    /// A guest's write: only bits that may change do.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (index, byte) in (usize::from(offset)..256).zip(data) {
            let writable = self.writable[index];
            let kept = self.bytes[index] & !(byte & self.clearable[index]);
            self.bytes[index] = (kept & !writable) | (byte & writable);
        }
    }

    /// The device's own change of register contents.
    pub fn set(&mut self, offset: u8, data: &[u8]) {
        for (index, byte) in (usize::from(offset)..256).zip(data) {
            self.bytes[index] = *byte;
        }
    }

    /// Eight bits of the space.
    #[must_use]
    pub fn byte(&self, offset: u8) -> u8 {
        self.bytes[usize::from(offset)]
    }

    /// Sixteen bits of the space.
    #[must_use]
    pub fn word(&self, offset: u8) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Thirty-two bits of the space.
    #[must_use]
    pub fn dword(&self, offset: u8) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The guest lets the function read and write memory (bus master).
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.word(COMMAND) & COMMAND_MASTER != 0
    }

    /// The guest has forbidden INTx.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.word(COMMAND) & COMMAND_INTX_DISABLE != 0
    }

    /// Shows the interrupt's level in the status register.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = &mut self.bytes[usize::from(STATUS)];
        *status = *status & !STATUS_INTERRUPT | if pending { STATUS_INTERRUPT } else { 0 };
    }

    /// Whether a write of `length` bytes at `offset` touches `[first, first + size)`.
    #[must_use]
    pub fn touches(offset: u8, length: usize, first: u8, size: u8) -> bool {
        let (offset, first) = (usize::from(offset), usize::from(first));
        offset < first + usize::from(size) && first < offset + length
    }

    /// Number, kind and size of every BAR; for whoever assigns addresses.
    pub fn bars(&self) -> impl Iterator<Item = (u8, BarKind, u64)> + '_ {
        (0u8..)
            .zip(&self.bars)
            .filter_map(|(index, bar)| bar.map(|bar| (index, bar.kind, bar.size)))
    }

    /// The windows that are decoded: BARs whose space is enabled in the command register and that
    /// have an address. Address zero and a base left at all ones by sizing count as none.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let command = self.word(COMMAND);
        let mut windows = Vec::new();
        for (index, kind, size) in self.bars() {
            let offset = BAR0 + index * 4;
            let low = u64::from(self.dword(offset));
            let (space, enabled, base, top) = match kind {
                BarKind::Port => (Space::Port, COMMAND_IO, low & !3, 0xffff),
                BarKind::Memory32 { .. } => (
                    Space::Memory,
                    COMMAND_MEMORY,
                    low & !0xf,
                    u64::from(u32::MAX),
                ),
                BarKind::Memory64 { .. } => {
                    let high = u64::from(self.dword(offset + 4));
                    (
                        Space::Memory,
                        COMMAND_MEMORY,
                        high << 32 | low & !0xf,
                        u64::MAX,
                    )
                }
            };
            if command & enabled != 0
                && let Some(window) = Window::below(index, space, base, size, top)
            {
                windows.push(window);
            }
        }
        if let Some(size) = self.rom
            && command & COMMAND_MEMORY != 0
            && self.dword(ROM_BAR) & 1 != 0
        {
            let base = u64::from(self.dword(ROM_BAR) & !0x7ff);
            windows.extend(Window::below(
                ROM,
                Space::Memory,
                base,
                size,
                u64::from(u32::MAX),
            ));
        }
        windows
    }

    /// Everything back to power-on.
    pub fn reset(&mut self) {
        self.bytes = self.power_on;
    }

    /// The state to store.
    #[must_use]
    pub fn save(&self) -> ConfigState {
        ConfigState {
            bytes: self.bytes.to_vec(),
        }
    }

    /// Takes over a stored state of a function with the same identity and layout.
    ///
    /// # Errors
    /// [`StateError::Invalid`] if it is another function's.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), StateError> {
        let invalid = |reason: String| StateError::Invalid {
            kind: "pci configuration space",
            reason,
        };
        let bytes: [u8; 256] = state
            .bytes
            .as_slice()
            .try_into()
            .map_err(|_| invalid(format!("{} bytes instead of 256", state.bytes.len())))?;
        // The list of capabilities and the BARs' kinds are part of the identity.
        let fixed = (0..4).chain(8..0x0c).chain(BAR0.into()..0x40);
        for offset in fixed {
            let differ = (bytes[offset] ^ self.power_on[offset]) & !self.writable[offset];
            if differ != 0 {
                return Err(invalid(format!(
                    "byte {offset:#x} is {:#04x}, this machine's function has {:#04x}",
                    bytes[offset], self.power_on[offset]
                )));
            }
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Window {
    /// The window, if it is one: not at zero, wholly at or below `top`, not left at the end of
    /// the space by a sizing write.
    fn below(window: u8, space: Space, base: u64, size: u64, top: u64) -> Option<Self> {
        let last = base.checked_add(size - 1)?;
        (base != 0 && last < top).then_some(Self {
            window,
            space,
            base,
            size,
        })
    }
}

/// A guest's 32-bit write, for tests and for whoever assigns addresses.
impl ConfigSpace {
    /// Writes a BAR's address as a guest would, leaving the flags alone.
    pub fn assign_bar(&mut self, index: u8, base: u64) {
        let offset = BAR0 + index * 4;
        self.write(
            offset,
            &(value_of(&base.to_le_bytes()[..4]) as u32).to_le_bytes(),
        );
        if let Some(Some(Bar {
            kind: BarKind::Memory64 { .. },
            ..
        })) = self.bars.get(usize::from(index))
        {
            self.write(offset + 4, &((base >> 32) as u32).to_le_bytes());
        }
    }

    /// Enables the spaces of the BARs that exist, as firmware does.
    pub fn enable_decoding(&mut self) {
        let mut command = self.word(COMMAND);
        for (_, kind, _) in self.bars().collect::<Vec<_>>() {
            command |= match kind {
                BarKind::Port => COMMAND_IO,
                BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => COMMAND_MEMORY,
            };
        }
        self.write(COMMAND, &command.to_le_bytes());
    }

    /// The interrupt pin: 1 for INTA# to 4 for INTD#, 0 for none.
    #[must_use]
    pub fn interrupt_pin(&self) -> u8 {
        self.byte(INTERRUPT_PIN)
    }

    /// Notes the interrupt line for the operating system, as firmware does.
    pub fn set_interrupt_line(&mut self, line: u8) {
        self.write(INTERRUPT_LINE, &[line]);
    }
}

#[cfg(test)]
mod tests;
