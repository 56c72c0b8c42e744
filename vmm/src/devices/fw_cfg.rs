//! fw_cfg: how the machine tells its firmware what it is made of.
//!
//! The interface is QEMU's (*docs/specs/fw_cfg.rst* there): items are selected by a 16-bit key at
//! port 0x510 and read byte by byte at port 0x511, or copied to memory by a DMA request whose
//! big-endian address is written to ports 0x514 and 0x518. Items from key 0x20 on have names, listed
//! in the directory. Unknown keys and what lies beyond an item's end read as zeros.
//!
//! Items cannot be written: a DMA write is answered with an error. A transfer is at most
//! [`LONGEST_TRANSFER`] long, and goes to RAM only.

use crate::{
    bus::PortIo,
    device::{Device, DeviceState, SavedState, StateError},
    memory::GuestMemory,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

/// First port and number of ports.
pub const PORTS: (u16, u16) = (SELECTOR, 12);
/// The most bytes that one DMA request moves.
pub const LONGEST_TRANSFER: u32 = 64 << 20;
/// The longest name of a file, without its final zero.
pub const LONGEST_NAME: usize = 55;

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const KEY_SIGNATURE: u16 = 0;
const KEY_ID: u16 = 1;
const KEY_DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// The traditional interface and DMA.
const FEATURES: u32 = 3;

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;

/// Well-known keys that firmware asks for.
pub mod key {
    /// The machine's UUID, 16 bytes.
    pub const UUID: u16 = 2;
    /// Bytes of RAM, 64 bits.
    pub const RAM_SIZE: u16 = 3;
    /// Number of processors that run, 16 bits.
    pub const CPUS: u16 = 5;
    /// NUMA nodes, 64 bits.
    pub const NUMA: u16 = 0x0d;
    /// Whether to show the boot menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// One more than the largest APIC ID, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The timer's line comes in at the I/O APIC's input 2: 1.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// What firmware can read.
#[derive(Debug, Clone, Default)]
pub struct Items {
    keyed: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Items {
    /// No items beyond what says that this is fw_cfg.
    #[must_use]
    pub fn new() -> Self {
        let mut items = Self::default();
        items.set(KEY_SIGNATURE, b"QEMU".to_vec());
        items.set(KEY_ID, FEATURES.to_le_bytes().to_vec());
        items
    }

    /// Sets the item of a key.
    pub fn set(&mut self, key: u16, content: impl Into<Vec<u8>>) {
        self.keyed.insert(key, content.into());
    }

    /// Sets a file. Names longer than [`LONGEST_NAME`] bytes are cut.
    pub fn set_file(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        let mut end = name.len().min(LONGEST_NAME);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        self.files.insert(name[..end].to_owned(), content.into());
    }

    /// A file's content.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// All items by key, with the directory of files.
    fn table(&self) -> BTreeMap<u16, Arc<[u8]>> {
        let mut table: BTreeMap<u16, Arc<[u8]>> = self
            .keyed
            .iter()
            .map(|(key, content)| (*key, content.as_slice().into()))
            .collect();
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, content)) in (FIRST_FILE..).zip(&self.files) {
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = name.clone().into_bytes();
            field.resize(LONGEST_NAME + 1, 0);
            directory.extend(field);
            table.insert(key, content.as_slice().into());
        }
        table.insert(KEY_DIRECTORY, directory.into());
        table
    }
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Arc<[u8]>>,
    memory: GuestMemory,
    state: FwCfgState,
}

/// Saved state. The items are made anew from the machine's description.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FwCfgState {
    /// The selected key.
    pub selector: u16,
    /// Position in the selected item.
    pub offset: u32,
    /// The upper half of the DMA request's address.
    pub dma_high: u32,
}

impl SavedState for FwCfgState {
    const NAME: &'static str = "fw-cfg";
    const VERSION: u32 = 1;
}

impl FwCfg {
    /// A device that shows `items` and moves them to `memory`.
    #[must_use]
    pub fn new(items: &Items, memory: GuestMemory) -> Self {
        Self {
            items: items.table(),
            memory,
            state: FwCfgState::default(),
        }
    }

    fn select(&mut self, key: u16) {
        self.state.selector = key;
        self.state.offset = 0;
    }

    fn rest(&self) -> &[u8] {
        let item = self.items.get(&self.state.selector);
        item.and_then(|item| item.get(self.state.offset as usize..))
            .unwrap_or_default()
    }

    fn next_byte(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.state.offset = self.state.offset.saturating_add(1);
        byte
    }

    /// Carries out the request at `address`: control, length and address, all big-endian. The
    /// result goes to the control word: zero, or the error bit.
    fn dma(&mut self, address: u64) {
        let address = GuestAddress(address);
        let mut request = [0; 16];
        if self.memory.read_slice(&mut request, address).is_err() {
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, a @ ..] = request;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let target = u64::from_be_bytes(a);
        let result = if self.carry_out(control, length, target) {
            0
        } else {
            DMA_ERROR
        };
        // The request was read from there; if the memory cannot be written, nobody can be told.
        let _ = self.memory.write_slice(&result.to_be_bytes(), address);
    }

    fn carry_out(&mut self, control: u32, length: u32, target: u64) -> bool {
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & DMA_READ != 0 {
            self.copy(length, target)
        } else if control & DMA_SKIP != 0 {
            true
        } else {
            control & DMA_WRITE == 0 || length == 0
        };
        if done && control & (DMA_READ | DMA_SKIP) != 0 {
            self.state.offset = self.state.offset.saturating_add(length);
        }
        done
    }

    fn copy(&self, length: u32, target: u64) -> bool {
        const ZEROS: [u8; 4096] = [0; 4096];
        if length > LONGEST_TRANSFER
            || !self
                .memory
                .check_range(GuestAddress(target), length as usize)
        {
            return false;
        }
        let rest = self.rest();
        let content = &rest[..rest.len().min(length as usize)];
        if self
            .memory
            .write_slice(content, GuestAddress(target))
            .is_err()
        {
            return false;
        }
        // The range was checked, so that no sum leaves the address space.
        let mut at = target + content.len() as u64;
        let end = target + u64::from(length);
        while at < end {
            let count = (end - at).min(ZEROS.len() as u64);
            if self
                .memory
                .write_slice(&ZEROS[..count as usize], GuestAddress(at))
                .is_err()
            {
                return false;
            }
            at += count;
        }
        true
    }
}

impl PortIo for FwCfg {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            DATA => data.fill_with(|| self.next_byte()),
            DMA_HIGH.. => {
                for (at, byte) in (usize::from(port - DMA_HIGH)..).zip(data) {
                    *byte = DMA_SIGNATURE.get(at).copied().unwrap_or(0);
                }
            }
            _ => data.fill(0),
        }
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        match (port, data) {
            (SELECTOR, [low, high]) => self.select(u16::from_le_bytes([*low, *high])),
            (DMA_HIGH, [a, b, c, d]) => self.state.dma_high = u32::from_be_bytes([*a, *b, *c, *d]),
            (DMA_LOW, [a, b, c, d]) => {
                let low = u32::from_be_bytes([*a, *b, *c, *d]);
                let high = std::mem::take(&mut self.state.dma_high);
                self.dma(u64::from(high) << 32 | u64::from(low));
            }
            _ => {}
        }
    }
}

impl Device for FwCfg {
    fn reset(&mut self) {
        self.state = FwCfgState::default();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.state.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.state = FwCfgState::load(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{devices::testing::state_goes_round, memory::MemoryLayout};
    use proptest::prelude::*;

    fn device() -> FwCfg {
        let mut items = Items::new();
        items.set(key::CPUS, 3u16.to_le_bytes());
        items.set_file("etc/second", b"two".to_vec());
        items.set_file("bootorder", b"/pci@i0cf8\0".to_vec());
        let memory = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
        FwCfg::new(&items, memory)
    }

    fn read(device: &mut FwCfg, key: u16, count: usize) -> Vec<u8> {
        device.port_write(SELECTOR, &key.to_le_bytes());
        (0..count)
            .map(|_| {
                let mut byte = [0xee];
                device.port_read(DATA, &mut byte);
                byte[0]
            })
            .collect()
    }

    fn dma(device: &mut FwCfg, control: u32, length: u32, target: u64) -> u32 {
        let mut request = control.to_be_bytes().to_vec();
        request.extend(length.to_be_bytes());
        request.extend(target.to_be_bytes());
        let at = GuestAddress(0x1000);
        device.memory.write_slice(&request, at).unwrap();
        device.port_write(DMA_LOW, &0x1000u32.to_be_bytes());
        let mut answer = [0; 4];
        device.memory.read_slice(&mut answer, at).unwrap();
        u32::from_be_bytes(answer)
    }

    fn memory(device: &FwCfg, at: u64, count: usize) -> Vec<u8> {
        let mut data = vec![0; count];
        device
            .memory
            .read_slice(&mut data, GuestAddress(at))
            .unwrap();
        data
    }

    #[test]
    fn firmware_finds_it_and_reads_byte_by_byte() {
        let mut device = device();
        assert_eq!(read(&mut device, KEY_SIGNATURE, 6), b"QEMU\0\0");
        assert_eq!(read(&mut device, KEY_ID, 4), [3, 0, 0, 0]);
        assert_eq!(read(&mut device, key::CPUS, 3), [3, 0, 0]);
        assert_eq!(read(&mut device, 0x4711, 2), [0, 0]);
        let mut signature = [0; 4];
        device.port_read(DMA_HIGH, &mut signature);
        assert_eq!(&signature, b"QEMU");
        device.port_read(DMA_LOW, &mut signature);
        assert_eq!(&signature, b" CFG");
    }

    #[test]
    fn the_directory_leads_to_the_files() {
        let mut device = device();
        let directory = read(&mut device, KEY_DIRECTORY, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        let entry = &directory[4..68];
        assert_eq!(entry[..8], [0, 0, 0, 11, 0, 0x20, 0, 0]);
        assert!(entry[8..].starts_with(b"bootorder\0"));
        let entry = &directory[68..];
        assert!(entry[8..].starts_with(b"etc/second\0"));
        let key = u16::from_be_bytes([entry[4], entry[5]]);
        assert_eq!(read(&mut device, key, 4), b"two\0");
    }

    #[test]
    fn dma_selects_skips_and_copies_with_zeros_behind_the_end() {
        let mut device = device();
        device
            .memory
            .write_obj(u64::MAX, GuestAddress(0x2000))
            .unwrap();
        let select = 0x21 << 16 | DMA_SELECT;
        assert_eq!(dma(&mut device, select | DMA_SKIP, 1, 0), 0);
        assert_eq!(dma(&mut device, DMA_READ, 4, 0x2000), 0);
        assert_eq!(memory(&device, 0x2000, 5), b"wo\0\0\xff");
        assert_eq!(dma(&mut device, select | DMA_READ, 0x2_0000, 0x1_0000), 0);
        assert_eq!(memory(&device, 0x1_0000, 4), b"two\0");
    }

    #[test]
    fn requests_that_cannot_be_carried_out_are_answered_with_an_error() {
        let mut device = device();
        let read = 0x20 << 16 | DMA_SELECT | DMA_READ;
        for (control, length, target) in [
            (0x20 << 16 | DMA_SELECT | DMA_WRITE, 1, 0x2000),
            (read, 4, 0xa_0000),
            (read, 4, (4 << 20) - 2),
            (read, 4, u64::MAX),
            (read, u32::MAX, 0x2000),
        ] {
            assert_eq!(dma(&mut device, control, length, target), DMA_ERROR);
        }
        // A request that lies nowhere is lost.
        device.port_write(DMA_HIGH, &u32::MAX.to_be_bytes());
        device.port_write(DMA_LOW, &u32::MAX.to_be_bytes());
        assert_eq!(device.state.dma_high, 0);
    }

    #[test]
    fn state_goes_on() {
        let mut device = device();
        read(&mut device, 0x20, 5);
        device.port_write(DMA_HIGH, &1u32.to_be_bytes());
        let mut other = self::device();
        state_goes_round(&mut device, &mut other);
        let mut byte = [0];
        other.port_read(DATA, &mut byte);
        assert_eq!(byte[0], b'i');
    }

    proptest! {
        #[test]
        fn any_request_is_survived(
            accesses in prop::collection::vec((0u16..12, prop::collection::vec(any::<u8>(), 1..5)), 0..64),
            request in prop::collection::vec(any::<u8>(), 16),
        ) {
            let mut device = device();
            device.memory.write_slice(&request, GuestAddress(0)).unwrap();
            for (port, mut data) in accesses {
                device.port_write(SELECTOR + port, &data);
                device.port_read(SELECTOR + port, &mut data);
                device.port_write(DMA_LOW, &[0; 4]);
            }
        }
    }
}
