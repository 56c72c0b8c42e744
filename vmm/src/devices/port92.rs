//! System control port A, 0x92: fast reset and the A20 gate.
//!
//! KVM never masks address line 20, so the gate's bit is only kept.

use crate::{
    bus::BytePorts,
    device::{Device, DeviceState, SavedState, StateError},
    event::{EventSink, MachineEvent},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The port.
pub const PORT: u16 = 0x92;
const FAST_RESET: u8 = 1;
const A20: u8 = 1 << 1;

/// The port and its latch.
pub struct Port92 {
    events: Arc<dyn EventSink>,
    state: Port92State,
}

/// Saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port92State {
    /// The latch.
    pub value: u8,
}

impl Default for Port92State {
    fn default() -> Self {
        Self { value: A20 }
    }
}

impl SavedState for Port92State {
    const NAME: &'static str = "port-92";
    const VERSION: u32 = 1;
}

impl Port92 {
    /// The port; resets are reported to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self {
            events,
            state: Port92State::default(),
        }
    }
}

impl BytePorts for Port92 {
    fn read_byte(&mut self, _port: u16) -> u8 {
        self.state.value
    }

    fn write_byte(&mut self, _port: u16, value: u8) {
        let rising = value & !self.state.value & FAST_RESET != 0;
        self.state.value = value & (FAST_RESET | A20);
        if rising {
            self.events.signal(MachineEvent::Reset);
        }
    }
}

impl Device for Port92 {
    fn reset(&mut self) {
        self.state = Port92State::default();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.state.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.state = Port92State::load(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{devices::testing::state_goes_round, event::testing::RecordedEvents};

    #[test]
    fn the_rising_edge_of_bit_0_resets() {
        let events = Arc::new(RecordedEvents::default());
        let mut port = Port92::new(events.clone());
        assert_eq!(port.read_byte(PORT), 2);
        port.write_byte(PORT, 0);
        assert_eq!((events.take(), port.read_byte(PORT)), (vec![], 0));
        port.write_byte(PORT, 0xff);
        port.write_byte(PORT, 0x03);
        assert_eq!(events.take(), [MachineEvent::Reset]);
        state_goes_round(&mut port, &mut Port92::new(events));
        port.reset();
        assert_eq!(port.read_byte(PORT), 2);
    }
}
