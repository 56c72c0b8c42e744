//! The debug console that SeaBIOS and OVMF write to: one port, which reads as 0xe9 to be found.

use super::chardev::CharBackend;
use crate::{
    bus::BytePorts,
    device::{Device, DeviceState, SavedState, StateError},
};
use serde::{Deserialize, Serialize};

/// The usual port.
pub const PORT: u16 = 0x402;
const PRESENT: u8 = 0xe9;

/// The debug console. Characters that the back end does not take at once are lost, so that
/// firmware never waits for a reader.
pub struct DebugPort {
    backend: Box<dyn CharBackend>,
}

/// Saved state: there is none to keep.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugPortState {}

impl SavedState for DebugPortState {
    const NAME: &'static str = "debug-port";
    const VERSION: u32 = 1;
}

impl DebugPort {
    /// A console that writes to `backend`.
    #[must_use]
    pub fn new(backend: Box<dyn CharBackend>) -> Self {
        Self { backend }
    }
}

impl BytePorts for DebugPort {
    fn read_byte(&mut self, _port: u16) -> u8 {
        PRESENT
    }

    fn write_byte(&mut self, _port: u16, value: u8) {
        self.backend.write(&[value]);
    }
}

impl Device for DebugPort {
    fn reset(&mut self) {}

    fn save(&self) -> Result<DeviceState, StateError> {
        DebugPortState {}.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        DebugPortState::load(state).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::chardev::testing::Recorded, *};
    use crate::{bus::PortIo, devices::testing::state_goes_round};

    #[test]
    fn it_can_be_found_and_takes_text() {
        let out = Recorded::with_limit(3);
        let mut port = DebugPort::new(Box::new(out.clone()));
        assert_eq!(port.read_byte(PORT), 0xe9);
        port.port_write(PORT, b"abcd");
        assert_eq!(out.0.lock().output, b"abc");
        state_goes_round(&mut port, &mut DebugPort::new(Box::new(out)));
    }
}
