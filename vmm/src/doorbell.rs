//! Doorbells: a guest's write to an address becomes an event without a vCPU leaving the kernel
//! for the monitor (`ioeventfd`).

use std::io;
use vmm_sys_util::eventfd::EventFd;

/// Which writes ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// Guest-physical address.
    pub address: u64,
    /// Only writes of this value, 32 bits wide, ring; without one, writes of any value and width.
    pub value: Option<u32>,
}

/// Hangs up doorbells. A write that rings does not reach the memory bus.
pub trait Doorbells: Send + Sync {
    /// Lets writes to `bell` signal `event`.
    ///
    /// # Errors
    /// If the host refuses, for instance because the address has a bell already; the device then
    /// sees the write itself.
    fn attach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()>;

    /// Takes down what [`Doorbells::attach`] hung up with the same arguments.
    ///
    /// # Errors
    /// If it was not there.
    fn detach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()>;
}
