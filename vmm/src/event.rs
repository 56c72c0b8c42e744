//! What devices tell the machine: the guest wants to power off, to reset, or has crashed.
//!
//! A device only reports; what follows is decided by the machine's owner.

/// Something that a guest did to the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineEvent {
    /// The guest entered ACPI S5 (soft off).
    PowerOff,
    /// The guest asked for a reset through one of the reset ports.
    Reset,
    /// The guest's kernel reported a panic through pvpanic.
    Panicked,
    /// The guest's kernel crashed and went on into its crash kernel (pvpanic).
    CrashLoaded,
    /// The guest wants to be stopped, reported through pvpanic's shutdown event.
    ShutdownRequested,
    /// A request failed on the host, and the device's error policy wants the guest stopped.
    IoError,
}

/// Where devices report machine events. Called from vCPU threads; must not block.
pub trait EventSink: Send + Sync {
    /// Takes note of an event.
    fn signal(&self, event: MachineEvent);
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use parking_lot::Mutex;

    /// Remembers the events in order.
    #[derive(Default)]
    pub(crate) struct RecordedEvents(pub(crate) Mutex<Vec<MachineEvent>>);

    impl EventSink for RecordedEvents {
        fn signal(&self, event: MachineEvent) {
            self.0.lock().push(event);
        }
    }

    impl RecordedEvents {
        pub(crate) fn take(&self) -> Vec<MachineEvent> {
            std::mem::take(&mut self.0.lock())
        }
    }
}
