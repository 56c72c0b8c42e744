//! PCI: functions, their configuration space, the root bus and its interrupts.
//!
//! What is modelled is one conventional PCI bus as an i440FX has it (*PCI Local Bus Specification
//! 3.0*): configuration mechanism 1, type 0 headers, memory and port BARs that the guest may size
//! and move at any time, the expansion ROM, INTx through PIIX3's four PIRQ lines, MSI-X. Left
//! out: bridges and further buses, MSI (MSI-X serves all our devices), configuration through
//! memory (ECAM), hot plug.
//!
//! To build a function: keep a [`ConfigSpace`], add BARs and capabilities to it in the
//! constructor, implement [`PciFunction`], and hand it to [`PciBus::attach`]. The bus maps and
//! moves its windows; the function only sees offsets.

mod bus;
mod config;
mod intx;
mod msix;
#[cfg(test)]
pub(crate) use msix::testing as msix_testing;
mod ports;
mod rom;

pub use bus::{AttachError, PciBus};
pub use config::{
    BarKind, Capability, ConfigError, ConfigSpace, ConfigState, Identity, Space, Window,
};
pub use intx::{IntxRouter, Pin};
pub use msix::{Msix, MsixState, MsixVector, MsixVectorState};
pub use ports::{ConfigPorts, ConfigPortsState};
pub use rom::{OptionRom, OptionRomError};

use crate::device::Device;
use std::fmt;

/// Window number of the expansion ROM; BARs have 0 to 5.
pub const ROM: u8 = 6;

/// Device and function number on the root bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Function `function` (0-7) of device `device` (0-31); `None` outside.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self { device, function })
        } else {
            None
        }
    }

    /// The address in the form `device << 3 | function`.
    #[must_use]
    pub const fn from_devfn(devfn: u8) -> Self {
        Self {
            device: devfn >> 3,
            function: devfn & 7,
        }
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }

    /// `device << 3 | function`.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{:x}", self.device, self.function)
    }
}

/// A function on the root bus.
///
/// The bus calls it through its lock. `bar_read` and `bar_write` see accesses within the window
/// and as wide as the guest made them (1 to 8 bytes in memory, 1, 2 or 4 in ports, of any
/// alignment).
pub trait PciFunction: Device {
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space, to change.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// A read of `data.len()` (1, 2 or 4) bytes of configuration space, naturally aligned.
    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// A write to configuration space, naturally aligned. A function with registers that have
    /// effects overrides this, calls [`ConfigSpace::write`], and looks at what became of it.
    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// The address windows that the function decodes now. The default: its enabled BARs.
    fn windows(&self) -> Vec<Window> {
        self.config().windows()
    }

    /// Window `window` now lies at `base`, or nowhere. Called on changes only, so that a function
    /// can move what depends on addresses (doorbells). It may be hidden behind other ranges.
    fn window_moved(&mut self, window: u8, base: Option<u64>) {
        let _ = (window, base);
    }

    /// A read in a window.
    fn window_read(&mut self, window: u8, offset: u64, data: &mut [u8]) {
        let _ = (window, offset);
        data.fill(0xff);
    }

    /// A write in a window.
    fn window_write(&mut self, window: u8, offset: u64, data: &[u8]) {
        let _ = (window, offset, data);
    }
}
