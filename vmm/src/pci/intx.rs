//! INTx: four pins per device, swizzled over four PIRQ lines, which PIIX3 routes to ISA
//! interrupts.
//!
//! On an i440FX board, pin `p` (1 for INTA#) of device `d` is wired to PIRQ `(d + p - 2) & 3`.
//! The lines are level-triggered and shared.

use crate::interrupt::{InterruptLines, IrqLine};
use parking_lot::Mutex;
use std::sync::Arc;

/// An interrupt pin of a device: 1 is INTA#, 4 is INTD#.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin(u8);

impl Pin {
    /// INTA#, which single-function devices use.
    pub const A: Self = Self(1);

    /// Pin 1 to 4; `None` otherwise.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if matches!(number, 1..=4) {
            Some(Self(number))
        } else {
            None
        }
    }

    /// 1 for INTA# to 4 for INTD#, as the interrupt pin register has it.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The PIRQ line, 0 (PIRQA#) to 3, that this pin of `device` is wired to.
    #[must_use]
    pub const fn pirq(self, device: u8) -> u8 {
        device.wrapping_add(self.0).wrapping_sub(2) & 3
    }
}

/// The PIRQ lines and where they lead.
pub struct IntxRouter {
    state: Mutex<State>,
    /// One source per PIRQ on each ISA interrupt.
    outputs: Vec<Vec<Arc<dyn IrqLine>>>,
}

#[derive(Default)]
struct State {
    /// Pins that are asserted: bit `device << 2 | pin - 1`, kept by PIRQ.
    asserted: [u128; 4],
    route: [Option<u8>; 4],
}

impl IntxRouter {
    /// Routes to the 16 ISA lines of `lines`; at first every PIRQ leads nowhere. `None` if the
    /// lines have no sources left.
    pub fn new(lines: &Arc<InterruptLines>) -> Option<Arc<Self>> {
        let outputs: Option<Vec<Vec<_>>> = (0..4)
            .map(|_| (0..16).map(|irq| lines.source(irq)).collect())
            .collect();
        Some(Arc::new(Self {
            state: Mutex::default(),
            outputs: outputs?,
        }))
    }

    /// The line behind a device's pin.
    #[must_use]
    pub fn line(self: &Arc<Self>, device: u8, pin: Pin) -> Arc<dyn IrqLine> {
        Arc::new(PinLine {
            router: Arc::clone(self),
            pirq: usize::from(pin.pirq(device)),
            bit: u32::from(device & 31) << 2 | u32::from(pin.0 - 1),
        })
    }

    /// Leads PIRQ `pirq` (0-3) to an ISA interrupt (0-15), or nowhere.
    pub fn route(&self, pirq: u8, irq: Option<u8>) {
        let mut state = self.state.lock();
        let index = usize::from(pirq & 3);
        let before = state.route[index];
        if before == irq {
            return;
        }
        state.route[index] = irq;
        self.drive(index, before, false);
        self.drive(index, irq, state.asserted[index] != 0);
    }

    /// Where PIRQ `pirq` leads.
    #[must_use]
    pub fn routed_to(&self, pirq: u8) -> Option<u8> {
        self.state.lock().route[usize::from(pirq & 3)]
    }

    fn drive(&self, pirq: usize, irq: Option<u8>, high: bool) {
        let output = irq.and_then(|irq| self.outputs.get(pirq)?.get(usize::from(irq)));
        if let Some(output) = output {
            output.set(high);
        }
    }
}

struct PinLine {
    router: Arc<IntxRouter>,
    pirq: usize,
    bit: u32,
}

impl IrqLine for PinLine {
    fn set(&self, high: bool) {
        let mut state = self.router.state.lock();
        let asserted = &mut state.asserted[self.pirq];
        let before = *asserted != 0;
        let mask = 1u128 << self.bit;
        if high {
            *asserted |= mask;
        } else {
            *asserted &= !mask;
        }
        let now = *asserted != 0;
        if before != now {
            self.router.drive(self.pirq, state.route[self.pirq], now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::testing::ProbeController;

    fn router() -> (Arc<ProbeController>, Arc<IntxRouter>) {
        let controller = Arc::new(ProbeController::default());
        let lines = InterruptLines::new(controller.clone());
        (controller, IntxRouter::new(&lines).unwrap())
    }

    #[test]
    fn pins_are_swizzled_as_on_an_i440fx() {
        let pirqs = |device| (1..=4).map(move |n| Pin::new(n).unwrap().pirq(device));
        assert!(pirqs(1).eq([0, 1, 2, 3]));
        assert!(pirqs(2).eq([1, 2, 3, 0]));
        assert!(pirqs(3).eq([2, 3, 0, 1]));
        assert!(pirqs(0).eq([3, 0, 1, 2]));
        assert_eq!((Pin::new(0), Pin::new(5)), (None, None));
    }

    #[test]
    fn a_shared_line_falls_with_its_last_pin() {
        let (controller, router) = router();
        router.route(0, Some(10));
        let a = router.line(1, Pin::A);
        let b = router.line(5, Pin::A);
        a.set(true);
        b.set(true);
        a.set(false);
        assert!(controller.level(10));
        b.set(false);
        assert!(!controller.level(10));
    }

    #[test]
    fn an_asserted_line_moves_with_its_route() {
        let (controller, router) = router();
        let line = router.line(1, Pin::A);
        line.set(true);
        router.route(0, Some(11));
        assert!(controller.level(11));
        router.route(0, Some(5));
        assert!(!controller.level(11) && controller.level(5));
        router.route(0, None);
        assert!(!controller.level(5));
        assert_eq!(router.routed_to(0), None);
    }
}
