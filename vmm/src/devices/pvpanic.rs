//! pvpanic: the guest's kernel reports its own crash.
//!
//! QEMU's `docs/specs/pvpanic`. ISA form, port 0x505, announced in the DSDT as `QEMU0001`.

use crate::{
    bus::BytePorts,
    device::{Device, DeviceState, SavedState, StateError},
    event::{EventSink, MachineEvent},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The usual port.
pub const PORT: u16 = 0x505;
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 1 << 1;
const SHUTDOWN: u8 = 1 << 2;

/// The port. Reading it tells which events it knows.
pub struct PvPanic {
    events: Arc<dyn EventSink>,
}

/// Saved state: there is none to keep.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PvPanicState {}

impl SavedState for PvPanicState {
    const NAME: &'static str = "pvpanic";
    const VERSION: u32 = 1;
}

impl PvPanic {
    /// A port that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self { events }
    }
}

impl BytePorts for PvPanic {
    fn read_byte(&mut self, _port: u16) -> u8 {
        PANICKED | CRASH_LOADED | SHUTDOWN
    }

    fn write_byte(&mut self, _port: u16, value: u8) {
        let event = if value & PANICKED != 0 {
            MachineEvent::Panicked
        } else if value & CRASH_LOADED != 0 {
            MachineEvent::CrashLoaded
        } else if value & SHUTDOWN != 0 {
            MachineEvent::ShutdownRequested
        } else {
            return;
        };
        self.events.signal(event);
    }
}

impl Device for PvPanic {
    fn reset(&mut self) {}

    fn save(&self) -> Result<DeviceState, StateError> {
        PvPanicState {}.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        PvPanicState::load(state).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{devices::testing::state_goes_round, event::testing::RecordedEvents};

    #[test]
    fn events_are_reported_by_their_bit() {
        let events = Arc::new(RecordedEvents::default());
        let mut device = PvPanic::new(events.clone());
        assert_eq!(device.read_byte(PORT), 7);
        for value in [0, 1, 2, 4, 0xf8] {
            device.write_byte(PORT, value);
        }
        use MachineEvent::{CrashLoaded, Panicked, ShutdownRequested};
        assert_eq!(events.take(), [Panicked, CrashLoaded, ShutdownRequested]);
        state_goes_round(&mut device, &mut PvPanic::new(events));
    }
}
