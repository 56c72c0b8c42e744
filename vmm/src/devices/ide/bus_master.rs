//! The bus master registers of a channel, and the table of memory that a transfer goes to.
//!
//! *Programming Interface for Bus Master IDE Controller 1.0*.

use super::lane::Piece;
use crate::memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes as _, GuestAddress};

const COMMAND: u8 = 0;
const STATUS: u8 = 2;
const TABLE: u8 = 4;

const START: u8 = 1;
const TO_MEMORY: u8 = 1 << 3;
const ACTIVE: u8 = 1;
const ERROR: u8 = 1 << 1;
const INTERRUPT: u8 = 1 << 2;
/// Firmware notes here which drives it has set up for DMA.
const CAPABLE: u8 = 3 << 5;

/// A table does not cross 64 KiB; an entry has eight bytes.
const TABLE_SIZE: u32 = 0x1_0000;
const ENTRY: u32 = 8;
const END_OF_TABLE: u16 = 1 << 15;

/// The registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
}

/// The memory of a transfer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) pieces: Vec<Piece>,
    /// Bytes in `pieces`.
    pub(super) length: u64,
    /// There is more memory than was asked for.
    pub(super) more: bool,
}

impl BusMaster {
    pub(super) fn read(&self, register: u8) -> u8 {
        match register {
            COMMAND => self.command,
            STATUS => self.status,
            TABLE.. => self.table.to_le_bytes()[usize::from(register & 3)],
            _ => 0,
        }
    }

    /// Writes; `true` if a transfer has been started.
    pub(super) fn write(&mut self, register: u8, value: u8) -> bool {
        match register {
            COMMAND => {
                let started = value & START != 0 && self.command & START == 0;
                if value & START == 0 {
                    self.status &= !ACTIVE;
                } else if started {
                    self.status |= ACTIVE;
                }
                self.command = value & (START | TO_MEMORY);
                return started;
            }
            STATUS => {
                let kept = self.status & !(value & (ERROR | INTERRUPT));
                self.status = kept & !CAPABLE | value & CAPABLE;
            }
            TABLE.. => {
                let mut bytes = self.table.to_le_bytes();
                bytes[usize::from(register & 3)] = value;
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        false
    }

    pub(super) fn is_active(&self) -> bool {
        self.status & ACTIVE != 0
    }

    /// The direction that the guest has set: from the drive to memory.
    pub(super) fn to_memory(&self) -> bool {
        self.command & TO_MEMORY != 0
    }

    pub(super) fn note_interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// The transfer has ended. While there is memory left in the table, the master stays active.
    pub(super) fn finish(&mut self, more: bool) {
        if !more {
            self.status &= !ACTIVE;
        }
    }

    pub(super) fn fail(&mut self) {
        self.status = self.status & !ACTIVE | ERROR;
    }

    /// Reads the table for a transfer of `wanted` bytes. A table that cannot be read ends where it
    /// cannot.
    pub(super) fn table(&self, wanted: u64, memory: &GuestMemory) -> Table {
        let mut table = Table {
            pieces: Vec::new(),
            length: 0,
            more: false,
        };
        let most = (TABLE_SIZE - self.table % TABLE_SIZE) / ENTRY;
        for index in 0..most {
            let at = u64::from(self.table) + u64::from(index * ENTRY);
            let mut entry = [0; ENTRY as usize];
            if memory.read_slice(&mut entry, GuestAddress(at)).is_err() {
                break;
            }
            let [a0, a1, a2, a3, c0, c1, f0, f1] = entry;
            let address = u64::from(u32::from_le_bytes([a0, a1, a2, a3]) & !1);
            let length = match u16::from_le_bytes([c0, c1]) & !1 {
                0 => 0x1_0000,
                length => u32::from(length),
            };
            let used = u64::from(length).min(wanted - table.length);
            if used > 0 {
                table.pieces.push(Piece {
                    address,
                    length: used as u32,
                });
                table.length += used;
            }
            table.more |= used < u64::from(length);
            if u16::from_le_bytes([f0, f1]) & END_OF_TABLE != 0 {
                break;
            }
            if table.length == wanted {
                table.more = true;
                break;
            }
        }
        table
    }

    /// Makes a saved state possible.
    pub(super) fn sane(mut self) -> Self {
        self.command &= START | TO_MEMORY;
        self.status &= ACTIVE | ERROR | INTERRUPT | CAPABLE;
        self.table &= !3;
        self
    }
}
