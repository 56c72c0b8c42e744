//! The host bridge, 82441FX: the function at 00:00.0 by which firmware knows the board.
//!
//! Its PAM and SMRAM registers are kept but do nothing: memory from 0xc0000 to 0xfffff is always
//! RAM here, and there is no system management mode. *82441FX datasheet*, order number 290549.

use crate::{
    device::{Device, DeviceState, SavedState, StateError},
    pci::{ConfigSpace, ConfigState, Identity, PciFunction},
};
use serde::{Deserialize, Serialize};

/// Subsystem IDs by which firmware recognises a virtual board.
pub const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

const PAM0: u8 = 0x59;
const SMRAM: u8 = 0x72;

/// The host bridge.
pub struct HostBridge {
    config: ConfigSpace,
}

/// Saved state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBridgeState {
    /// Configuration space.
    pub config: ConfigState,
}

impl SavedState for HostBridgeState {
    const NAME: &'static str = "i440fx";
    const VERSION: u32 = 1;
}

impl HostBridge {
    /// The bridge at power-on.
    #[must_use]
    pub fn new() -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x1237,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            class: 0x06_0000,
            revision: 2,
        });
        config.allow(PAM0, &[0xff; 7]);
        config.preset(SMRAM, &[0x02]);
        config.allow(SMRAM, &[0x7f]);
        Self { config }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}

impl Device for HostBridge {
    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        HostBridgeState {
            config: self.config.save(),
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.config.restore(&HostBridgeState::load(state)?.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::state_goes_round;

    #[test]
    fn firmware_recognises_it() {
        let mut bridge = HostBridge::new();
        assert_eq!(bridge.config.dword(0), 0x1237_8086);
        assert_eq!(bridge.config.dword(0x2c), 0x1100_1af4);
        assert_eq!(bridge.config.byte(0x0b), 6);
        bridge.config_write(PAM0, &[0x30]);
        state_goes_round(&mut bridge, &mut HostBridge::new());
        bridge.reset();
        assert_eq!(bridge.config.byte(PAM0), 0);
    }
}
