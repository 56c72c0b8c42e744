//! What every device of the machine has in common: its life, and its saved state.
//!
//! # The contract of a device's life
//!
//! A device is built wired (lines, memory, clocks are handed to its constructor) and in the state
//! that power-on leaves it in. From then on the machine calls, always through the device's lock:
//!
//! * [`Device::reset`] — back to power-on. The vCPUs stand still. Nothing of the guest's survives
//!   but what real hardware keeps (CMOS, host-side wiring, back ends). A request in flight is
//!   completed towards the back end or forgotten, never answered into the guest's memory after
//!   `reset` returns.
//! * [`Device::pause`] — called after the vCPUs have stopped. When it returns the device touches
//!   neither guest memory nor an interrupt line until `resume`; requests in flight have been
//!   completed or put back so that `save` sees them.
//! * [`Device::save`] — only while paused, repeatable, changes nothing.
//! * [`Device::restore`] — only on a device just built or reset, before the first `resume`. Sets
//!   registers **and** drives the lines to the levels that those registers mean. A failure leaves
//!   the device unusable and the machine is not started.
//! * [`Device::resume`] — before the vCPUs run again. Timers are armed here, work put back by
//!   `pause` is started here.
//!
//! `pause` and `resume` come in pairs; `save` may be followed by `resume`, so that a running guest
//! can be snapshotted.
//!
//! # Saved state
//!
//! What is saved is a type of its own, `FooState`, plain `serde` data in the words of the data
//! sheet; the run-time type may change freely. Each state type has a name and a version
//! ([`SavedState`]). A version that is too new is refused; an older one is read if the type knows
//! how to [upgrade](SavedState::upgrade) it, and refused by its number otherwise.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Life and state of a device. See the module's text for who calls what when.
pub trait Device: Send {
    /// Back to the state at power-on.
    fn reset(&mut self);

    /// Come to rest. The default suits devices that act only when the guest accesses them.
    fn pause(&mut self) {}

    /// Go on after [`Device::pause`] or [`Device::restore`].
    fn resume(&mut self) {}

    /// The state that a device built alike needs to go on from here.
    ///
    /// # Errors
    /// If the state cannot be expressed, with the reason.
    fn save(&self) -> Result<DeviceState, StateError>;

    /// Take over a state made by [`Device::save`].
    ///
    /// # Errors
    /// If the state is of another device, of an unknown version, or impossible.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

/// A device's state as it is stored: named, versioned, self-describing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// The kind of state, [`SavedState::NAME`].
    pub kind: String,
    /// The version of `data`'s shape, [`SavedState::VERSION`].
    pub version: u32,
    /// The state itself.
    pub data: serde_json::Value,
}

/// A state type that can be stored.
pub trait SavedState: Serialize + DeserializeOwned {
    /// Name of the kind of state; never reused for another.
    const NAME: &'static str;
    /// Version of the shape that this program writes, from 1.
    const VERSION: u32;

    /// Turns data of an older version into today's shape; `None` if that version is not known.
    #[must_use]
    fn upgrade(version: u32, data: serde_json::Value) -> Option<serde_json::Value> {
        let _ = (version, data);
        None
    }

    /// Wraps the state for storing.
    ///
    /// # Errors
    /// [`StateError::Encode`] if it cannot be expressed.
    fn store(&self) -> Result<DeviceState, StateError> {
        Ok(DeviceState {
            kind: Self::NAME.to_owned(),
            version: Self::VERSION,
            data: serde_json::to_value(self).map_err(|source| StateError::Encode {
                kind: Self::NAME,
                source,
            })?,
        })
    }

    /// Unwraps a stored state.
    ///
    /// # Errors
    /// If it is of another kind, of a version that is not known, or does not have the shape.
    fn load(state: &DeviceState) -> Result<Self, StateError> {
        if state.kind != Self::NAME {
            return Err(StateError::Kind {
                expected: Self::NAME,
                found: state.kind.clone(),
            });
        }
        let data = if state.version == Self::VERSION {
            state.data.clone()
        } else {
            let older = state.version < Self::VERSION;
            older
                .then(|| Self::upgrade(state.version, state.data.clone()))
                .flatten()
                .ok_or(StateError::Version {
                    kind: Self::NAME,
                    found: state.version,
                    known: Self::VERSION,
                })?
        };
        serde_json::from_value(data).map_err(|source| StateError::Decode {
            kind: Self::NAME,
            source,
        })
    }
}

/// Why a state was not saved or not taken over.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state belongs to something else.
    #[error("state of '{expected}' was expected but '{found}' was found")]
    Kind {
        /// Name of the state that the device needs.
        expected: &'static str,
        /// Name in the saved state.
        found: String,
    },
    /// The version is not one that this program reads.
    #[error(
        "state of '{kind}' has version {found}, this program knows versions up to {known}: restore it with the release that saved it"
    )]
    Version {
        /// Name of the state.
        kind: &'static str,
        /// Version in the saved state.
        found: u32,
        /// Version that this program writes.
        known: u32,
    },
    /// The state could not be written.
    #[error("state of '{kind}' could not be written")]
    Encode {
        /// Name of the state.
        kind: &'static str,
        /// Detail.
        source: serde_json::Error,
    },
    /// The state does not have the shape that its version promises.
    #[error("state of '{kind}' is damaged")]
    Decode {
        /// Name of the state.
        kind: &'static str,
        /// Detail.
        source: serde_json::Error,
    },
    /// The state's shape is right but its values cannot be.
    #[error("state of '{kind}' is impossible: {reason}")]
    Invalid {
        /// Name of the state.
        kind: &'static str,
        /// Which value, and why.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Second {
        a: u8,
        b: u8,
    }

    impl SavedState for Second {
        const NAME: &'static str = "second";
        const VERSION: u32 = 2;

        fn upgrade(version: u32, mut data: serde_json::Value) -> Option<serde_json::Value> {
            if version != 1 {
                return None;
            }
            data.as_object_mut()?.insert("b".to_owned(), 7.into());
            Some(data)
        }
    }

    fn stored(version: u32, json: &str) -> DeviceState {
        DeviceState {
            kind: "second".to_owned(),
            version,
            data: serde_json::from_str(json).unwrap(),
        }
    }

    #[test]
    fn a_state_survives_the_way_through_storage() {
        let state = Second { a: 1, b: 2 };
        assert_eq!(Second::load(&state.store().unwrap()).unwrap(), state);
    }

    #[test]
    fn older_versions_are_upgraded_or_refused_and_newer_ones_are_refused() {
        let upgraded = Second::load(&stored(1, r#"{"a":3}"#)).unwrap();
        assert_eq!(upgraded, Second { a: 3, b: 7 });
        for version in [0, 3] {
            let refused = Second::load(&stored(version, r#"{"a":3,"b":4}"#)).unwrap_err();
            assert!(
                matches!(refused, StateError::Version { found, known: 2, .. } if found == version)
            );
        }
    }

    #[test]
    fn another_kind_and_damage_are_told_apart() {
        let mut other = stored(2, r#"{"a":3,"b":4}"#);
        other.kind = "third".to_owned();
        assert!(matches!(Second::load(&other), Err(StateError::Kind { .. })));
        assert!(matches!(
            Second::load(&stored(2, r#"{"a":300,"b":4}"#)),
            Err(StateError::Decode { .. })
        ));
    }
}
