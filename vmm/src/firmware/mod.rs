//! Firmware: the ROM that the machine starts from, and what it is told.
//!
//! SeaBIOS as distributions ship it is the usual firmware. Its file lies below 4 GiB and its last
//! 128 KiB also where the BIOS of a PC has always been, at 0xe0000; that part is RAM here, written
//! anew at every reset. What firmware needs to know of the machine it reads through
//! [`fw_cfg`](crate::devices::fw_cfg).

mod loader;
mod locate;
mod smbios;

pub use locate::{Component, FIRMWARE_FILE, Found, OPTION_ROM_FOLDERS, locate};
pub use smbios::{Product, ProductError};

use crate::{
    acpi::{Platform, Tables},
    devices::fw_cfg::{Items, key},
    memory::{GuestMemory, KVM_PAGES, PAGE_SIZE},
    overlay::DeviceMemory,
};
use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

/// The largest firmware, in bytes.
pub const LARGEST: u64 = 8 << 20;
/// The smallest firmware, in bytes.
pub const SMALLEST: u64 = 64 << 10;
/// Where the copy in low memory ends, and how long it is at most.
const SHADOW_END: u64 = 0x10_0000;
const SHADOW: usize = 0x2_0000;
const ROM_END: u64 = 1 << 32;
/// COM1, for firmware's own text.
const SERIAL_CONSOLE: u16 = 0x3f8;

/// Why firmware cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The file cannot be read.
    #[error("the firmware cannot be read")]
    Read(#[source] io::Error),
    /// The file's size is none that firmware has.
    #[error(
        "the firmware has {0} bytes: give an image of {SMALLEST} to {LARGEST} bytes, a multiple of 64 KiB, such as SeaBIOS's bios-256k.bin"
    )]
    Size(u64),
    /// The product cannot be told.
    #[error(transparent)]
    Product(#[from] ProductError),
}

/// The ROM.
#[derive(Debug)]
pub struct Rom {
    memory: Arc<DeviceMemory>,
}

impl Rom {
    /// Reads the firmware.
    ///
    /// # Errors
    /// [`FirmwareError::Read`] and [`FirmwareError::Size`].
    pub fn read(file: &File) -> Result<Self, FirmwareError> {
        let size = file.metadata().map_err(FirmwareError::Read)?.len();
        if !(SMALLEST..=LARGEST).contains(&size) || !size.is_multiple_of(64 << 10) {
            return Err(FirmwareError::Size(size));
        }
        let mut content = vec![0; size as usize];
        file.read_exact_at(&mut content, 0)
            .map_err(FirmwareError::Read)?;
        let memory = DeviceMemory::with_content(&content, 0, 0).map_err(FirmwareError::Read)?;
        Ok(Self { memory })
    }

    /// Where it lies.
    #[must_use]
    pub fn address(&self) -> u64 {
        ROM_END - self.memory.size() as u64
    }

    /// Its memory.
    #[must_use]
    pub fn memory(&self) -> Arc<DeviceMemory> {
        Arc::clone(&self.memory)
    }

    /// Writes its last 128 KiB where the processor expects them after a reset.
    ///
    /// # Errors
    /// If that is no memory.
    pub fn write_shadow(&self, memory: &GuestMemory) -> Result<(), GuestMemoryError> {
        let length = self.memory.size().min(SHADOW);
        let mut content = vec![0; length];
        self.memory.read(self.memory.size() - length, &mut content);
        memory.write_slice(&content, GuestAddress(SHADOW_END - length as u64))
    }
}

/// What firmware is to do.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Devices to boot from, as Open Firmware paths, first first.
    pub devices: Vec<String>,
    /// Boot from no others.
    pub only_listed: bool,
    /// For how long to offer the boot menu, in milliseconds; not at all without.
    pub menu: Option<u32>,
    /// For how long to wait before trying again when nothing boots, in milliseconds.
    pub fail_wait: Option<u32>,
    /// Whether firmware's text goes to COM1 too.
    pub serial_console: bool,
}

/// All that firmware can read.
///
/// # Errors
/// [`FirmwareError::Product`].
pub fn items(
    platform: &Platform<'_>,
    orders: &Orders,
    product: &Product,
) -> Result<Items, FirmwareError> {
    let mut items = Items::new();
    let vcpus = u16::from(platform.vcpus).to_le_bytes();
    items.set(key::UUID, product.uuid_bytes()?);
    items.set(key::RAM_SIZE, platform.layout.size().to_le_bytes());
    items.set(key::CPUS, vcpus);
    items.set(key::NUMA, 0u64.to_le_bytes());
    items.set(
        key::BOOT_MENU,
        u16::from(orders.menu.is_some()).to_le_bytes(),
    );
    items.set(key::MAX_CPUS, vcpus);
    items.set(key::IRQ0_OVERRIDE, 1u32.to_le_bytes());
    items.set_file("etc/e820", memory_map(platform));

    let tables = Tables::new(platform);
    items.set_file(loader::SCRIPT, loader::script(&tables));
    items.set_file(loader::ROOT, tables.root(0));
    items.set_file(loader::TABLES, tables.bytes);
    let (anchor, structures) = smbios::files(product, platform.vcpus, platform.layout.size())?;
    items.set_file(smbios::ANCHOR, anchor);
    items.set_file(smbios::TABLES, structures);

    if let Some(wait) = orders.menu {
        items.set_file("etc/boot-menu-wait", wait.to_le_bytes());
    }
    if let Some(wait) = orders.fail_wait {
        items.set_file("etc/boot-fail-wait", wait.to_le_bytes());
    }
    if orders.serial_console {
        items.set_file("etc/sercon-port", SERIAL_CONSOLE.to_le_bytes());
    }
    let order = boot_order(orders);
    if !order.is_empty() {
        items.set_file("bootorder", order);
    }
    Ok(items)
}

/// RAM, and the pages that KVM needs, as entries of address, length and kind.
fn memory_map(platform: &Platform<'_>) -> Vec<u8> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let layout = platform.layout;
    let low = 0..layout.low_end();
    let kvm = KVM_PAGES..KVM_PAGES + 4 * PAGE_SIZE;
    [(low, RAM), (layout.high(), RAM), (kvm, RESERVED)]
        .into_iter()
        .filter(|(range, _)| !range.is_empty())
        .flat_map(|(range, kind)| {
            let mut entry = range.start.to_le_bytes().to_vec();
            entry.extend((range.end - range.start).to_le_bytes());
            entry.extend(kind.to_le_bytes());
            entry
        })
        .collect()
}

/// One path per line, a zero behind the last.
fn boot_order(orders: &Orders) -> Vec<u8> {
    let mut lines = orders.devices.clone();
    if orders.only_listed {
        lines.push("HALT".to_owned());
    }
    let mut order = lines.join("\n").into_bytes();
    if !order.is_empty() {
        order.push(0);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLayout;
    use std::io::Write as _;

    fn platform(layout: &MemoryLayout) -> Platform<'_> {
        Platform {
            vcpus: 2,
            layout,
            serial: true,
            pvpanic: true,
        }
    }

    #[test]
    fn the_rom_ends_at_4_gib_and_its_end_lies_below_1_mib() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..256 << 10).map(|at: u32| (at >> 10) as u8).collect();
        file.write_all(&content).unwrap();
        let rom = Rom::read(&file).unwrap();
        assert_eq!(rom.address(), 0xfffc_0000);
        let memory = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
        rom.write_shadow(&memory).unwrap();
        let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!(
            [byte(0xd_ffff), byte(0xe_0000), byte(0xf_ffff)],
            [0, 128, 255]
        );
    }

    #[test]
    fn files_that_are_no_firmware_are_refused_by_their_size() {
        for size in [0, 512, (64 << 10) + 1, LARGEST + (64 << 10)] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            assert!(matches!(Rom::read(&file), Err(FirmwareError::Size(s)) if s == size));
        }
    }

    #[test]
    fn orders_become_files() {
        let layout = MemoryLayout::new(5 << 30).unwrap();
        let orders = Orders {
            devices: vec!["/pci@i0cf8/*@5".to_owned()],
            only_listed: true,
            menu: Some(3000),
            ..Orders::default()
        };
        let items = items(&platform(&layout), &orders, &Product::default()).unwrap();
        assert_eq!(items.file("bootorder").unwrap(), b"/pci@i0cf8/*@5\nHALT\0");
        assert_eq!(
            items.file("etc/boot-menu-wait").unwrap(),
            3000u32.to_le_bytes()
        );
        assert!(items.file("etc/boot-fail-wait").is_none());
        let map = items.file("etc/e820").unwrap();
        assert_eq!(map.len(), 60);
        assert_eq!(
            map[20..40],
            [
                &(4u64 << 30).to_le_bytes()[..],
                &(2u64 << 30).to_le_bytes(),
                &[1, 0, 0, 0]
            ]
            .concat()
        );
        let none = super::items(&platform(&layout), &Orders::default(), &Product::default());
        assert!(none.unwrap().file("bootorder").is_none());
    }
}
