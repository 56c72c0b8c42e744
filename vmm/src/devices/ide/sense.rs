//! Sense data: what a packet command found wrong (*SCSI Primary Commands 4*, annex D).

use serde::{Deserialize, Serialize};

/// Sense key, additional code and its qualifier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sense {
    pub(super) key: u8,
    pub(super) code: u8,
    pub(super) qualifier: u8,
}

const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense {
        key,
        code,
        qualifier,
    }
}

pub(super) const NO_SENSE: Sense = sense(0, 0, 0);
pub(super) const NO_MEDIUM: Sense = sense(2, 0x3a, 1);
pub(super) const NO_MEDIUM_TRAY_OPEN: Sense = sense(2, 0x3a, 2);
pub(super) const READ_ERROR: Sense = sense(3, 0x11, 0);
pub(super) const TRANSFER_ERROR: Sense = sense(4, 0x08, 0);
pub(super) const INVALID_COMMAND: Sense = sense(5, 0x20, 0);
pub(super) const OUT_OF_RANGE: Sense = sense(5, 0x21, 0);
pub(super) const INVALID_FIELD: Sense = sense(5, 0x24, 0);
pub(super) const ILLEGAL_MODE: Sense = sense(5, 0x64, 0);
pub(super) const SAVING_NOT_SUPPORTED: Sense = sense(5, 0x39, 0);
pub(super) const REMOVAL_PREVENTED: Sense = sense(5, 0x53, 2);
pub(super) const MEDIUM_CHANGED: Sense = sense(6, 0x28, 0);
pub(super) const POWER_ON: Sense = sense(6, 0x29, 0);

impl Sense {
    /// Fixed-format sense data.
    pub(super) fn data(self) -> [u8; 18] {
        let mut data = [0; 18];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.code;
        data[13] = self.qualifier;
        data
    }
}
