//! The ISA bridge, 82371SB (PIIX3), function 0: routes PCI's interrupt lines to ISA interrupts.
//!
//! *82371FB/82371SB datasheet*, order number 290550, section 2.2. The edge/level registers at
//! 0x4d0 belong to KVM's interrupt controllers, the reset control register at 0xcf9 to
//! [`ConfigPorts`](crate::pci::ConfigPorts).

use crate::{
    device::{Device, DeviceState, SavedState, StateError},
    pci::{ConfigSpace, ConfigState, Identity, IntxRouter, PciFunction},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::i440fx::SUBSYSTEM;

/// PIRQA# route control; the other three follow.
pub const PIRQ_ROUTE: u8 = 0x60;
/// Where firmware, and a machine that boots without, leads the four lines.
pub const USUAL_ROUTE: [u8; 4] = [10, 10, 11, 11];

const ROUTE_DISABLED: u8 = 1 << 7;
/// The ISA interrupts that a line may be led to; the others are reserved.
const ROUTABLE: u16 = 0b1101_1110_1111_1000;

/// The ISA bridge.
pub struct IsaBridge {
    config: ConfigSpace,
    router: Arc<IntxRouter>,
}

/// Saved state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IsaBridgeState {
    /// Configuration space.
    pub config: ConfigState,
}

impl SavedState for IsaBridgeState {
    const NAME: &'static str = "piix3";
    const VERSION: u32 = 1;
}

impl IsaBridge {
    /// The bridge at power-on, in charge of `router`.
    #[must_use]
    pub fn new(router: Arc<IntxRouter>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x7000,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            class: 0x06_0100,
            revision: 0,
        });
        config.set_multi_function();
        config.preset(0x4c, &[0x4d, 0x00, 0x03, 0x00]);
        config.allow(0x4c, &[0xff, 0x00, 0xff, 0x01]);
        config.preset(PIRQ_ROUTE, &[ROUTE_DISABLED; 4]);
        config.allow(PIRQ_ROUTE, &[0x8f; 4]);
        config.preset(0x69, &[0x02]);
        config.allow(0x69, &[0xfe]);
        let bridge = Self { config, router };
        bridge.sync();
        bridge
    }

    /// Leads the lines as firmware does, for a machine that boots without.
    pub fn set_usual_route(&mut self) {
        self.config_write(PIRQ_ROUTE, &USUAL_ROUTE);
    }

    fn sync(&self) {
        for pirq in 0..4 {
            let route = self.config.byte(PIRQ_ROUTE + pirq);
            let irq = route & 0xf;
            let usable = route & ROUTE_DISABLED == 0 && ROUTABLE >> irq & 1 != 0;
            self.router.route(pirq, usable.then_some(irq));
        }
    }
}

impl PciFunction for IsaBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
        if ConfigSpace::touches(offset, data.len(), PIRQ_ROUTE, 4) {
            self.sync();
        }
    }
}

impl Device for IsaBridge {
    fn reset(&mut self) {
        self.config.reset();
        self.sync();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        IsaBridgeState {
            config: self.config.save(),
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.config.restore(&IsaBridgeState::load(state)?.config)?;
        self.sync();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        devices::testing::state_goes_round,
        interrupt::{InterruptLines, testing::ProbeController},
        pci::Pin,
    };

    fn bridge() -> (IsaBridge, Arc<ProbeController>) {
        let controller = Arc::new(ProbeController::default());
        let lines = InterruptLines::new(controller.clone());
        (IsaBridge::new(IntxRouter::new(&lines).unwrap()), controller)
    }

    #[test]
    fn routes_follow_the_registers_and_reserved_ones_lead_nowhere() {
        let (mut bridge, controller) = bridge();
        let line = bridge.router.line(1, Pin::A);
        line.set(true);
        bridge.set_usual_route();
        assert!(controller.level(10));
        for reserved in [0u8, 1, 2, 8, 13, 0x8a] {
            bridge.config_write(PIRQ_ROUTE, &[reserved]);
            assert_eq!(bridge.router.routed_to(0), None, "{reserved}");
        }
        assert!(!controller.level(10));
        bridge.config_write(PIRQ_ROUTE, &0x0b0b_0505u32.to_le_bytes());
        assert!(controller.level(5));
        bridge.reset();
        assert!(!controller.level(5));
    }

    #[test]
    fn a_restored_bridge_routes() {
        let (mut bridge, _) = bridge();
        bridge.set_usual_route();
        let (mut other, controller) = self::bridge();
        state_goes_round(&mut bridge, &mut other);
        other.router.line(3, Pin::A).set(true);
        assert!(controller.level(11));
    }
}
