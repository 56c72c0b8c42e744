//! The devices of the board, each testable at its registers without KVM.
//!
//! The interrupt controllers, the interval timer and the speaker gate (ports 0x20, 0x40, 0x61,
//! 0xa0, 0x4d0 and their neighbours) are KVM's own.

pub mod chardev;
pub mod debug_port;
pub mod display;
pub mod fw_cfg;
pub mod i440fx;
pub mod i8042;
pub mod ide;
mod keyboard;
pub mod piix3;
pub mod piix4_pm;
pub mod port92;
pub mod pvpanic;
pub mod rtc;
pub mod serial;

#[cfg(test)]
pub(crate) mod testing {
    use crate::device::Device;

    /// Every device's saved state is taken over by a device built alike and comes out again
    /// unchanged; a state of another kind or version is refused.
    pub(crate) fn state_goes_round<D: Device>(used: &mut D, fresh: &mut D) {
        used.pause();
        let state = used.save().unwrap();
        assert_eq!(used.save().unwrap(), state, "saving changes nothing");
        fresh.restore(&state).unwrap();
        assert_eq!(fresh.save().unwrap(), state);
        let mut other = state.clone();
        other.version += 1;
        assert!(fresh.restore(&other).is_err(), "a newer version is refused");
        other = state.clone();
        other.kind.push('?');
        assert!(fresh.restore(&other).is_err(), "another kind is refused");
        other = state;
        other.data = serde_json::Value::Null;
        assert!(fresh.restore(&other).is_err(), "damage is refused");
        fresh.resume();
    }
}
