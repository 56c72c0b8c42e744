//! A hostile driver: what an input makes of a virtio device's registers, rings and memory.
//!
//! A device lives for the whole run, since its threads are costly to make; every input begins with
//! a reset and ends with the device at rest. A panic of a worker ends the run as one of the main
//! thread does.

use crate::source::Source;
use cenote_vmm::{
    device::Device as _,
    doorbell::{Doorbell, Doorbells},
    interrupt::{MsiAllocator, MsiRoute, Unconnected},
    memory::{GuestMemory, MemoryLayout},
    pci::PciFunction as _,
    virtio::{PciWiring, VirtioDevice, VirtioPci},
};
use std::{io, sync::Arc};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the guest's memory.
const MEMORY: u64 = 2 << 20;
/// Queue `n` lies here, plus `n` times the step: descriptors, then rings.
const QUEUES: u64 = 0x1_0000;
const STEP: u64 = 0x1000;
const SIZE: u16 = 16;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// Buffers and tables of descriptors.
const BUFFERS: u64 = 0x4_0000;
/// The most queues that are set up.
const MOST_QUEUES: u64 = 8;

struct Nothing;

impl Doorbells for Nothing {
    fn attach(&self, _bell: Doorbell, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn detach(&self, _bell: Doorbell, _event: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

impl MsiRoute for Nothing {
    fn program(&self, _address: u64, _data: u32) -> io::Result<()> {
        Ok(())
    }

    fn trigger(&self) {}
}

impl MsiAllocator for Nothing {
    fn allocate(&self) -> io::Result<Arc<dyn MsiRoute>> {
        Ok(Arc::new(Nothing))
    }
}

/// A device and its hostile driver.
pub struct Hostile<D: VirtioDevice> {
    function: VirtioPci<D>,
    memory: GuestMemory,
    available: [u16; MOST_QUEUES as usize],
}

impl<D: VirtioDevice> Hostile<D> {
    /// The device on its transport.
    pub fn new(device: D) -> Self {
        let memory = MemoryLayout::new(MEMORY)
            .and_then(|layout| layout.map())
            .expect("memory");
        let wiring = PciWiring {
            memory: memory.clone(),
            doorbells: Arc::new(Nothing),
            messages: &Nothing,
            line: Arc::new(Unconnected),
        };
        let mut function = VirtioPci::new("fuzz", device, wiring).expect("host resources");
        function.resume();
        Self {
            function,
            memory,
            available: [0; MOST_QUEUES as usize],
        }
    }

    fn write(&mut self, offset: u64, length: usize, value: u64) {
        let bytes = value.to_le_bytes();
        self.function.window_write(0, offset, &bytes[..length]);
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        // What lies beyond memory is lost.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    /// A driver's usual way, up to a device that works.
    fn start(&mut self, features: u64) {
        self.write(20, 1, 0);
        self.put(QUEUES, &[0; (MOST_QUEUES * STEP) as usize]);
        self.available = Default::default();
        self.write(20, 1, 3);
        for half in 0..2 {
            self.write(0, 4, half);
            let mut offered = [0; 4];
            self.function.window_read(0, 4, &mut offered);
            let offered = u64::from(u32::from_le_bytes(offered));
            self.write(8, 4, half);
            // Version 1 is always accepted.
            let wanted = (features | 1 << 32) >> (32 * half);
            self.write(12, 4, offered & wanted);
        }
        self.write(20, 1, 11);
        for queue in 0..MOST_QUEUES {
            let base = QUEUES + queue * STEP;
            self.write(22, 2, queue);
            self.write(24, 2, SIZE.into());
            self.write(32, 8, base);
            self.write(40, 8, base + AVAILABLE);
            self.write(48, 8, base + USED);
            self.write(28, 2, 1);
        }
        self.write(20, 1, 15);
    }

    /// Plays an input. `request` writes the device's own kind of request at an address.
    pub fn play(&mut self, input: &[u8], request: impl Fn(&mut dyn FnMut() -> u8) -> Vec<u8>) {
        let mut source = Source::new(input);
        self.function.reset();
        self.function.config_write(4, &[6, 0]);
        let features = source.word();
        self.start(features);
        while !source.is_empty() {
            self.step(&mut source, &request);
        }
        self.function.pause();
        let state = self.function.save().expect("every state can be stored");
        self.function.reset();
        self.function.pause();
        // What a hostile driver has set up may not be restored; it may not do harm either.
        let _ = self.function.restore(&state);
        self.function.reset();
        self.function.resume();
    }

    fn step(
        &mut self,
        source: &mut Source<'_>,
        request: &impl Fn(&mut dyn FnMut() -> u8) -> Vec<u8>,
    ) {
        let what = source.byte();
        let queue = u64::from(source.byte()) % MOST_QUEUES;
        let base = QUEUES + queue * STEP;
        match what % 12 {
            0..=2 => {
                let table = if what & 0x80 == 0 { base } else { BUFFERS };
                let index = u64::from(source.byte() % 20);
                self.put(table + index * 16, &descriptor(source));
            }
            3 | 4 => {
                let head = source.byte() % 18;
                let at = &mut self.available[queue as usize];
                let slot = u64::from(*at % SIZE);
                *at = at.wrapping_add(1);
                let index = *at;
                self.put(base + AVAILABLE + 4 + slot * 2, &[head, 0]);
                self.put(base + AVAILABLE + 2, &index.to_le_bytes());
                self.write(0x3000 + queue * 4, 2, queue);
            }
            5 => {
                let bytes = request(&mut || source.byte());
                let place = u64::from(source.byte()) * 0x100;
                self.put(BUFFERS + place, &bytes);
            }
            6 => {
                let place = u64::from(source.short()) % STEP;
                let bytes = source.word().to_le_bytes();
                self.put(base + place, &bytes);
            }
            7 => {
                let (offset, length) = place(source);
                let value = source.word();
                self.write(offset, length, value);
            }
            8 => {
                let (offset, length) = place(source);
                let mut data = [0; 8];
                self.function.window_read(0, offset, &mut data[..length]);
            }
            9 => {
                self.function.pause();
                self.function.resume();
            }
            10 => {
                let features = source.word();
                self.start(features);
            }
            _ => {
                let length = 1 << (source.byte() % 3);
                let offset = source.byte() & !(length as u8 - 1);
                let bytes = source.word().to_le_bytes();
                self.function.config_write(offset, &bytes[..length]);
            }
        }
    }
}

/// A register: mostly one that means something.
fn place(source: &mut Source<'_>) -> (u64, usize) {
    let length = 1 << (source.byte() % 4);
    let offset = u64::from(source.short());
    let offset = match offset >> 14 {
        0 | 1 => offset % 64,
        2 => 0x2000 + offset % 64,
        _ => offset % 0x8000,
    };
    (offset, length)
}

/// A descriptor whose parts mostly lie where something is.
fn descriptor(source: &mut Source<'_>) -> [u8; 16] {
    let kind = source.byte();
    let place = u64::from(source.short());
    let address = match kind >> 6 {
        0..=2 => BUFFERS + place * 8,
        _ => source.word(),
    };
    let length = match kind >> 4 & 3 {
        0 => 16,
        1 => u32::from(source.byte()),
        2 => u32::from(source.short()) * 16,
        _ => source.word() as u32,
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12] = kind & 7;
    bytes[14] = source.byte() % 20;
    bytes
}
