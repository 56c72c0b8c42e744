//! The driver's side of a queue and of the transport, for tests of devices without KVM.

use super::{
    Chain, F_VERSION_1, PciWiring, QueueLayout, VirtioDevice, VirtioPci,
    signal::{STATUS_DRIVER_OK, STATUS_NEEDS_RESET},
};
use crate::{
    device::Device as _,
    doorbell::{Doorbell, Doorbells},
    interrupt::testing::ProbeLine,
    memory::{GuestMemory, MemoryLayout},
    pci::{ConfigSpace, PciFunction as _},
};
use parking_lot::Mutex;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use crate::pci::msix_testing::ProbeAllocator;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Bytes of memory of a test's guest.
pub(crate) const MEMORY: u64 = 8 << 20;
/// Where buffers may be put; queues lie below.
pub(crate) const BUFFERS: u64 = 0x10_0000;
const QUEUES: u64 = 0x2_0000;
const QUEUE_STEP: u64 = 0x8000;

pub(crate) fn guest_memory() -> GuestMemory {
    MemoryLayout::new(MEMORY).unwrap().map().unwrap()
}

/// A driver's queue.
#[derive(Clone)]
pub(crate) struct DriverQueue {
    pub(crate) memory: GuestMemory,
    pub(crate) layout: QueueLayout,
    next_available: u16,
    seen: u16,
}

impl DriverQueue {
    /// Queue `number` with `size` descriptors (at most 1024).
    pub(crate) fn new(memory: &GuestMemory, number: u64, size: u16) -> Self {
        let base = QUEUES + number * QUEUE_STEP;
        Self {
            memory: memory.clone(),
            layout: QueueLayout {
                size,
                descriptors: base,
                available: base + 0x4000,
                used: base + 0x5000,
            },
            next_available: 0,
            seen: 0,
        }
    }

    /// Writes a descriptor of the queue's own table.
    pub(crate) fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.describe_in(self.layout.descriptors, index, address, length, flags, next);
    }

    /// Writes a descriptor of any table.
    pub(crate) fn describe_in(
        &self,
        table: u64,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(table + u64::from(index) * 16);
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Describes a whole request from descriptor `first` on: what the device reads, then what it
    /// writes, both as addresses and lengths.
    pub(crate) fn chain(&self, first: u16, read: &[(u64, u32)], write: &[(u64, u32)]) {
        let count = read.len() + write.len();
        let all = read
            .iter()
            .map(|b| (b, 0))
            .chain(write.iter().map(|b| (b, WRITE)));
        for (index, ((address, length), flags)) in (0u16..).zip(all) {
            let last = usize::from(index) + 1 == count;
            let flags = flags | if last { 0 } else { NEXT };
            let at = (first + index) % self.layout.size;
            self.describe(at, *address, *length, flags, (at + 1) % self.layout.size);
        }
    }

    /// Makes a request available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.layout.size);
        let at = GuestAddress(self.layout.available + 4 + slot * 2);
        self.memory.write_obj(head.to_le(), at).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available(self.next_available);
    }

    /// Sets the available index to anything.
    pub(crate) fn set_available(&self, index: u16) {
        let at = GuestAddress(self.layout.available + 2);
        self.memory.write_obj(index.to_le(), at).unwrap();
    }

    /// Whether the driver wants interrupts.
    pub(crate) fn set_available_flags(&self, flags: u16) {
        let at = GuestAddress(self.layout.available);
        self.memory.write_obj(flags, at).unwrap();
    }

    /// The index after which the driver wants an interrupt.
    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.layout.available + 4 + u64::from(self.layout.size) * 2;
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// The index of the request of which the device wants to be notified (with event indices).
    pub(crate) fn wanted_notification(&self) -> u16 {
        let at = self.layout.used + 4 + u64::from(self.layout.size) * 8;
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// The device's used index.
    pub(crate) fn used_index(&self) -> u16 {
        self.memory
            .read_obj(GuestAddress(self.layout.used + 2))
            .unwrap()
    }

    /// The next request that came back: its head and the bytes written.
    pub(crate) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.layout.size);
        self.seen = self.seen.wrapping_add(1);
        let at = GuestAddress(self.layout.used + 4 + slot * 8);
        let [head, written]: [u32; 2] = self.memory.read_obj(at).unwrap();
        Some((head, written))
    }

    /// Waits for the next request that comes back.
    pub(crate) fn wait_used(&mut self) -> (u32, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.take_used() {
                return used;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "no request came back"
            );
            std::thread::yield_now();
        }
    }
}

/// Doorbells that remember where they hang.
#[derive(Default)]
pub(crate) struct ProbeBells(pub(crate) Mutex<Vec<(Doorbell, EventFd)>>);

impl Doorbells for ProbeBells {
    fn attach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let mut bells = self.0.lock();
        if bells.iter().any(|(other, _)| *other == bell) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        bells.push((bell, event.try_clone()?));
        Ok(())
    }

    fn detach(&self, bell: Doorbell, _event: &EventFd) -> io::Result<()> {
        let mut bells = self.0.lock();
        let before = bells.len();
        bells.retain(|(other, _)| *other != bell);
        if bells.len() == before {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    }
}

/// A device on its transport, and its driver.
pub(crate) struct Driver<D: VirtioDevice> {
    pub(crate) function: VirtioPci<D>,
    pub(crate) memory: GuestMemory,
    pub(crate) bells: Arc<ProbeBells>,
    pub(crate) messages: ProbeAllocator,
    pub(crate) line: Arc<ProbeLine>,
}

const COMMON: u64 = 0;

impl<D: VirtioDevice> Driver<D> {
    /// The device, as after power-on, in a machine that runs.
    pub(crate) fn new(device: D, memory: GuestMemory) -> Self {
        let bells = Arc::new(ProbeBells::default());
        let messages = ProbeAllocator::default();
        let line = Arc::new(ProbeLine::default());
        let wiring = PciWiring {
            memory: memory.clone(),
            doorbells: bells.clone(),
            messages: &messages,
            line: line.clone(),
        };
        let mut function = VirtioPci::new("test", device, wiring).unwrap();
        function.resume();
        // Memory and bus master.
        function.config_write(4, &[6, 0]);
        Self {
            function,
            memory,
            bells,
            messages,
            line,
        }
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> u64 {
        let mut data = vec![0; length];
        self.function.window_read(0, offset, &mut data);
        crate::bus::value_of(&data)
    }

    pub(crate) fn write(&mut self, offset: u64, length: usize, value: u64) {
        self.function
            .window_write(0, offset, &value.to_le_bytes()[..length]);
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read(COMMON + 20, 1) as u8
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.write(COMMON + 20, 1, status.into());
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut features = 0;
        for word in 0..2 {
            self.write(COMMON, 4, word);
            features |= self.read(COMMON + 4, 4) << (32 * word);
        }
        features
    }

    pub(crate) fn accept(&mut self, features: u64) {
        for word in 0..2 {
            self.write(COMMON + 8, 4, word);
            self.write(COMMON + 12, 4, features >> (32 * word) & 0xffff_ffff);
        }
    }

    /// Sets a queue up and enables it, with vector `number + 1`.
    pub(crate) fn set_up(&mut self, number: u16, layout: &QueueLayout) {
        self.write(COMMON + 22, 2, number.into());
        self.write(COMMON + 24, 2, layout.size.into());
        self.write(COMMON + 26, 2, u64::from(number) + 1);
        self.write(COMMON + 32, 8, layout.descriptors);
        self.write(COMMON + 40, 4, layout.available & 0xffff_ffff);
        self.write(COMMON + 44, 4, layout.available >> 32);
        self.write(COMMON + 48, 8, layout.used);
        self.write(COMMON + 28, 2, 1);
    }

    /// Goes the whole way to a working device with queues of `size`.
    pub(crate) fn start(&mut self, features: u64, size: u16) -> Vec<DriverQueue> {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        self.accept(features | F_VERSION_1);
        self.set_status(11);
        assert_eq!(self.status(), 11, "features are refused");
        let count = self.read(COMMON + 18, 2);
        let queues: Vec<_> = (0..count)
            .map(|number| {
                let memory = &self.memory;
                memory
                    .write_slice(
                        &[0; QUEUE_STEP as usize],
                        GuestAddress(QUEUES + number * QUEUE_STEP),
                    )
                    .unwrap();
                DriverQueue::new(memory, number, size)
            })
            .collect();
        for (number, queue) in (0..).zip(&queues) {
            self.set_up(number, &queue.layout);
        }
        self.set_status(15);
        assert_eq!(self.status(), 15, "the device does not start");
        queues
    }

    /// Notifies a queue the long way.
    pub(crate) fn notify(&mut self, queue: u16) {
        self.write(0x3000 + u64::from(queue) * 4, 2, queue.into());
    }

    /// Switches MSI-X on with every vector's message being its number.
    pub(crate) fn enable_messages(&mut self) {
        let vectors = self.messages.0.lock().len() as u64;
        for vector in 0..vectors {
            self.write(0x4000 + vector * 16, 8, 0xfee0_0000);
            self.write(0x4000 + vector * 16 + 8, 4, vector);
            self.write(0x4000 + vector * 16 + 12, 4, 0);
        }
        let capability = find_capability(self.function.config(), 0x11, |_| true).unwrap();
        self.function.config_write(capability + 2, &[0, 0x80]);
    }

    /// How often a vector's message was sent.
    pub(crate) fn sent(&self, vector: usize) -> usize {
        self.messages.0.lock()[vector].sent.lock().len()
    }

    pub(crate) fn needs_reset(&mut self) -> bool {
        self.status() & STATUS_NEEDS_RESET != 0
    }

    /// Waits until the device says that it needs a reset.
    pub(crate) fn wait_needs_reset(&mut self) {
        let start = Instant::now();
        while !self.needs_reset() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the device goes on"
            );
            std::thread::yield_now();
        }
        assert_ne!(self.status() & STATUS_DRIVER_OK, 0);
    }

    pub(crate) fn fill(&self, address: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(address))
            .unwrap();
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }
}

/// Walks the list of capabilities, which must end.
pub(crate) fn find_capability(
    config: &ConfigSpace,
    id: u8,
    fits: impl Fn(u8) -> bool,
) -> Option<u8> {
    let mut at = config.byte(0x34);
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        if config.byte(at) == id && fits(at) {
            return Some(at);
        }
        at = config.byte(at + 1);
    }
    panic!("the list of capabilities goes round");
}

/// An empty chain.
pub(crate) fn chain() -> Chain {
    Chain::default()
}

/// Waits for what other threads do.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{what} did not come"
        );
        std::thread::yield_now();
    }
}
