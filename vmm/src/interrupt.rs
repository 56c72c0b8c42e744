//! Interrupts without KVM: lines with several sources, and message-signalled routes.
//!
//! Devices hold an [`IrqLine`] or an [`MsiRoute`] and never see the controller behind it. The
//! lines of the machine are the inputs of its interrupt controllers, numbered by *global system
//! interrupt* (GSI): 0-15 are the ISA lines on both PICs and the I/O APIC.

use parking_lot::Mutex;
use std::{io, sync::Arc};

/// Number of global system interrupts of the machine's I/O APIC.
pub const GSI_COUNT: u32 = 24;

/// One source's share of an interrupt line.
pub trait IrqLine: Send + Sync {
    /// Drives the source high or low. Repeating a level is harmless.
    fn set(&self, high: bool);

    /// A rising edge, for devices on edge-triggered lines.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// The interrupt controllers' inputs.
pub trait InterruptController: Send + Sync {
    /// Sets the level of a GSI's input.
    fn set_gsi(&self, gsi: u32, high: bool);
}

/// A message-signalled interrupt that a device can raise without a lock of the machine.
pub trait MsiRoute: Send + Sync {
    /// Sets what is sent: the address and data words of the vector's table entry.
    ///
    /// # Errors
    /// If the host has no room for the route or refuses it.
    fn program(&self, address: u64, data: u32) -> io::Result<()>;

    /// Sends the message programmed last. Without one, nothing happens.
    fn trigger(&self);
}

/// Makes [`MsiRoute`]s; one per vector of a device, kept for the device's life.
pub trait MsiAllocator: Send + Sync {
    /// A new route that is not yet programmed.
    ///
    /// # Errors
    /// If the host has no more routes or descriptors.
    fn allocate(&self) -> io::Result<Arc<dyn MsiRoute>>;
}

/// The machine's interrupt lines: every GSI is the logical OR of its sources.
///
/// Real ISA lines are wired once per device, but the SCI, the legacy devices and PCI's INTx may
/// meet on one input, and a guest decides which. Each source therefore owns a bit.
pub struct InterruptLines {
    controller: Arc<dyn InterruptController>,
    gsis: [Mutex<Gsi>; GSI_COUNT as usize],
}

#[derive(Default)]
struct Gsi {
    sources: u32,
    asserted: u64,
}

impl InterruptLines {
    /// Lines that end at `controller`, all low.
    pub fn new(controller: Arc<dyn InterruptController>) -> Arc<Self> {
        Arc::new(Self {
            controller,
            gsis: Default::default(),
        })
    }

    /// A new source on a GSI; `None` if the GSI does not exist or has 64 sources already.
    pub fn source(self: &Arc<Self>, gsi: u32) -> Option<Arc<dyn IrqLine>> {
        let mut line = self.gsis.get(usize::try_from(gsi).ok()?)?.lock();
        let bit = line.sources;
        if bit >= u64::BITS {
            return None;
        }
        line.sources += 1;
        Some(Arc::new(Source {
            lines: Arc::clone(self),
            gsi,
            bit,
        }))
    }
}

struct Source {
    lines: Arc<InterruptLines>,
    gsi: u32,
    bit: u32,
}

impl IrqLine for Source {
    fn set(&self, high: bool) {
        let Some(line) = self.lines.gsis.get(self.gsi as usize) else {
            return;
        };
        // The lock is held over the call, so that the controller sees levels in their order.
        let mut line = line.lock();
        let before = line.asserted;
        let mask = 1u64 << self.bit;
        line.asserted = if high { before | mask } else { before & !mask };
        if (before != 0) != (line.asserted != 0) {
            self.lines.controller.set_gsi(self.gsi, line.asserted != 0);
        }
    }
}

/// A line that ends nowhere.
#[derive(Debug, Default, Clone, Copy)]
pub struct Unconnected;

impl IrqLine for Unconnected {
    fn set(&self, _high: bool) {}
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A line that shows its level and counts rising edges.
    #[derive(Default)]
    pub(crate) struct ProbeLine {
        high: AtomicBool,
        edges: AtomicUsize,
    }

    impl ProbeLine {
        pub(crate) fn is_high(&self) -> bool {
            self.high.load(Ordering::SeqCst)
        }

        pub(crate) fn edges(&self) -> usize {
            self.edges.load(Ordering::SeqCst)
        }
    }

    impl IrqLine for ProbeLine {
        fn set(&self, high: bool) {
            if high && !self.high.swap(high, Ordering::SeqCst) {
                self.edges.fetch_add(1, Ordering::SeqCst);
            }
            self.high.store(high, Ordering::SeqCst);
        }
    }

    /// A controller that shows the level of each input.
    #[derive(Default)]
    pub(crate) struct ProbeController(pub(crate) Mutex<[bool; GSI_COUNT as usize]>);

    impl ProbeController {
        pub(crate) fn level(&self, gsi: usize) -> bool {
            self.0.lock()[gsi]
        }
    }

    impl InterruptController for ProbeController {
        fn set_gsi(&self, gsi: u32, high: bool) {
            self.0.lock()[gsi as usize] = high;
        }
    }

    /// A route that counts what was sent.
    #[derive(Default)]
    pub(crate) struct ProbeRoute {
        pub(crate) message: Mutex<Option<(u64, u32)>>,
        pub(crate) sent: Mutex<Vec<(u64, u32)>>,
    }

    impl MsiRoute for ProbeRoute {
        fn program(&self, address: u64, data: u32) -> io::Result<()> {
            *self.message.lock() = Some((address, data));
            Ok(())
        }

        fn trigger(&self) {
            if let Some(message) = *self.message.lock() {
                self.sent.lock().push(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::ProbeController, *};

    #[test]
    fn a_line_is_high_while_any_source_is() {
        let controller = Arc::new(ProbeController::default());
        let lines = InterruptLines::new(controller.clone());
        let a = lines.source(10).unwrap();
        let b = lines.source(10).unwrap();
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(controller.level(10));
        a.set(false);
        assert!(controller.level(10));
        b.set(false);
        assert!(!controller.level(10));
    }

    #[test]
    fn sources_are_bounded() {
        let lines = InterruptLines::new(Arc::new(ProbeController::default()));
        assert!(lines.source(GSI_COUNT).is_none());
        let sources: Vec<_> = (0..64).map(|_| lines.source(9).unwrap()).collect();
        assert!(lines.source(9).is_none());
        sources[63].set(true);
    }
}
