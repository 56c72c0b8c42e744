//! Virtio 1.x devices over PCI (*Virtual I/O Device Version 1.2*): the transport, split virtqueues
//! and the threads that serve them.
//!
//! What is spoken is the modern interface only: `VIRTIO_F_VERSION_1` must be accepted, there are
//! no legacy ports, no packed rings and no reset of single queues.
//!
//! # Who does what
//!
//! * [`VirtioPci`] is the PCI function: capabilities, registers, MSI-X or INTx, doorbells, saved
//!   state. It validates what a driver sets up and hands whole queues to its device.
//! * A [`VirtioDevice`] is one kind of device. It is told to [activate](VirtioDevice::activate),
//!   rest and go on, and never sees a register of the transport.
//! * A [`Virtqueue`] takes requests from the guest and gives them back. It knows what a guest may
//!   not do; whoever meets a [`QueueError`] calls [`QueueSignal::fail`], which tells the driver
//!   that the device needs a reset, and leaves the queue alone from then on.
//! * A [`Worker`] is a thread that serves queues. It is started with the machine and waits for
//!   queues, so that no thread is made on a guest's word. A guest's notification reaches it by an
//!   event of the kernel's, and it raises interrupts the same way: a request takes no lock that
//!   another queue or a vCPU takes.
//!
//! # Guest memory
//!
//! Rings and buffers lie in the guest's memory and may change at any time. Every descriptor is
//! read once, into a [`Chain`], and all that follows works on that copy. Data moves by volatile
//! copies or by the kernel, and no reference to guest memory is ever made. What a device writes
//! is marked in the memory's bitmap of written pages.

pub mod block;
mod chain;
pub mod console;
pub mod net;
mod pci;
mod queue;
mod registers;
pub mod rng;
mod serve;
mod signal;
#[cfg(test)]
pub(crate) mod testing;
mod worker;

pub use chain::{Chain, Segment, host_range, length, mark_written, parts};
pub use pci::{PciWiring, VirtioPci, VirtioPciState};
pub use queue::{LARGEST_QUEUE, MOST_SEGMENTS, QueueError, QueueLayout, QueuePosition, Virtqueue};
pub use registers::QueueState;
pub use signal::{ConfigSignal, QueueSignal};
pub use worker::{Handler, Ready, Worker, borrowed};

use crate::{
    device::{DeviceState, StateError},
    memory::GuestMemory,
};
use parking_lot::Mutex;
use std::{io, sync::Arc};
use vmm_sys_util::eventfd::EventFd;

/// Feature bit: a descriptor may point to a table of descriptors.
pub const F_INDIRECT: u64 = 1 << 28;
/// Feature bit: notifications and interrupts are suppressed by ring index.
pub const F_EVENT_INDEX: u64 = 1 << 29;
/// Feature bit: the interface of virtio 1.0 and later.
pub const F_VERSION_1: u64 = 1 << 32;
/// What the transport offers beside a device's own features.
pub const TRANSPORT_FEATURES: u64 = F_INDIRECT | F_EVENT_INDEX | F_VERSION_1;

/// Kinds of devices (section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Network card.
    Net,
    /// Block device.
    Block,
    /// Console.
    Console,
    /// Entropy source.
    Rng,
}

impl Kind {
    /// The device ID.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Rng => 4,
        }
    }

    /// PCI's class code, `base << 16 | sub << 8 | interface`.
    #[must_use]
    pub const fn class(self) -> u32 {
        match self {
            Self::Net => 0x02_0000,
            Self::Block => 0x01_0000,
            Self::Console => 0x07_8000,
            Self::Rng => 0x00_ff00,
        }
    }
}

/// A queue that a driver has set up, as a device is given it.
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// The queue. Only its worker locks it while the device runs.
    pub queue: Arc<Mutex<Virtqueue>>,
    /// Signalled when the driver has made buffers available.
    pub kick: EventFd,
    /// Raises the queue's interrupt.
    pub signal: QueueSignal,
}

/// What a device is given when its driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features that driver and device agreed on, the transport's included.
    pub features: u64,
    /// The queues that the driver has enabled, by ascending number.
    pub queues: Vec<ActiveQueue>,
    /// Tells the driver that device configuration has changed.
    pub config: ConfigSignal,
}

/// A kind of virtio device, behind the transport.
///
/// # Life
///
/// A device is built inactive and at rest. [`activate`](Self::activate) gives it queues, which it
/// does not touch before [`resume`](Self::resume). After [`pause`](Self::pause) it is at rest: it
/// touches neither memory nor queues nor signals, and its requests are completed or kept for
/// [`save`](Self::save). [`reset`](Self::reset) brings it to rest and makes it inactive; the
/// queues are given up. All of them come under the function's lock, possibly from a vCPU's
/// thread, so a worker must not take that lock. Reading and writing configuration may come at any
/// time. The transport calls `resume` and `pause` only while the device is active, in turns.
pub trait VirtioDevice: Send {
    /// The kind.
    fn kind(&self) -> Kind;

    /// The features that the device offers, without the transport's.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Length of the device configuration in bytes, at most 4096.
    fn config_size(&self) -> u32;

    /// Reads device configuration; `offset` and `data` lie in it.
    fn config_read(&self, offset: u32, data: &mut [u8]);

    /// Writes device configuration; `offset` and `data` lie in it. `features` are those that the
    /// driver has accepted so far.
    fn config_write(&mut self, offset: u32, data: &[u8], features: u64) {
        let _ = (offset, data, features);
    }

    /// Takes over queues.
    ///
    /// # Errors
    /// If the device cannot work with what it is given; the driver is told that the device needs
    /// a reset.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// Gives everything of the driver's up.
    fn reset(&mut self);

    /// Starts or goes on.
    fn resume(&mut self);

    /// Comes to rest.
    fn pause(&mut self);

    /// What of the device's own state is to be stored, at rest.
    ///
    /// # Errors
    /// If it cannot be expressed.
    fn save(&self) -> Result<DeviceState, StateError>;

    /// Takes over a state made by [`VirtioDevice::save`], before activation.
    ///
    /// # Errors
    /// If it is of another device or impossible.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

/// Reads `data.len()` bytes at `offset` of a configuration structure; bytes beyond it are zero.
pub(crate) fn read_structure(structure: &[u8], offset: u32, data: &mut [u8]) {
    for (byte, at) in data.iter_mut().zip(offset as usize..) {
        *byte = structure.get(at).copied().unwrap_or(0);
    }
}
