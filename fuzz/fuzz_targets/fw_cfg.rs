//! fw_cfg under any accesses and DMA requests.
#![no_main]

use cenote_fuzz::registers::replace;
use cenote_fuzz::source::Source;
use cenote_vmm::bus::PortIo as _;
use cenote_vmm::device::Device as _;
use cenote_vmm::devices::fw_cfg::{FwCfg, Items, PORTS, key};
use cenote_vmm::memory::MemoryLayout;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes as _, GuestAddress};

const MEMORY: u64 = 2 << 20;
const DMA_LOW: u16 = PORTS.0 + 8;

fuzz_target!(|input: &[u8]| {
    let mut items = Items::new();
    items.set(key::CPUS, 3u16.to_le_bytes());
    items.set_file("etc/acpi/tables", vec![0x5a; 9000]);
    items.set_file("bootorder", b"/pci@i0cf8\0".to_vec());
    let memory = MemoryLayout::new(MEMORY)
        .and_then(|layout| layout.map())
        .expect("memory");
    let make = || FwCfg::new(&items, memory.clone());
    let mut device = make();
    let mut source = Source::new(input);
    while !source.is_empty() {
        let what = source.byte();
        match what % 8 {
            0 | 1 => {
                let mut data = [0; 4];
                let port = PORTS.0 + u16::from(source.byte()) % PORTS.1;
                device.port_read(port, &mut data[..1 << (what >> 6).min(2)]);
            }
            2 => {
                let port = PORTS.0 + u16::from(source.byte()) % PORTS.1;
                let data = source.word().to_be_bytes();
                device.port_write(port, &data[..1 << (what >> 6).min(2)]);
            }
            3 => device.port_write(PORTS.0, &(0x18 + source.short() % 16).to_le_bytes()),
            // A request as firmware makes them, and one that is anything.
            4..=6 => {
                let at = u32::from(source.short());
                let mut request = [0; 16];
                request[..2].copy_from_slice(&[0, 0x20 + source.byte() % 4]);
                request[3] = source.byte();
                request[4..8].copy_from_slice(&(source.word() as u32).to_be_bytes());
                request[8..].copy_from_slice(&source.word().to_be_bytes());
                if what & 0x80 == 0 {
                    request[4..6].fill(0);
                    request[8..13].fill(0);
                }
                let _ = memory.write_slice(&request, GuestAddress(at.into()));
                device.port_write(DMA_LOW, &at.to_be_bytes());
            }
            _ if what & 0x80 == 0 => replace(&mut device, make()),
            _ => device.reset(),
        }
    }
});
