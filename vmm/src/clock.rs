//! Time as devices see it, and deadlines on it.
//!
//! Devices never ask the host: they are given a [`Clock`], so that tests move time by hand and a
//! paused machine's timers stand still.

use std::{sync::Arc, time::Duration};

/// The two clocks of a machine.
pub trait Clock: Send + Sync {
    /// Time for which the machine has run. Never goes back, stands still while paused.
    fn running(&self) -> Duration;

    /// Time of day, since 1970-01-01 00:00:00 UTC. Follows the host's, also while paused.
    fn utc(&self) -> Duration;
}

/// A deadline that a device may set. When it has passed, the machine's device thread calls
/// [`TimerClient::timer_expired`] through the device's lock, once, possibly late, never early.
pub trait Timer: Send + Sync {
    /// Sets the deadline in [`Clock::running`] time, replacing an earlier one; `None` disarms.
    fn set(&self, deadline: Option<Duration>);
}

/// A device with a [`Timer`].
pub trait TimerClient: Send {
    /// The deadline set last has passed. Spurious calls are allowed; the device looks at its clock.
    fn timer_expired(&mut self);
}

/// A timer that is never heard of; for machines or tests that have no use for the device's timer.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoTimer;

impl Timer for NoTimer {
    fn set(&self, _deadline: Option<Duration>) {}
}

/// A shared clock, as devices hold it.
pub type SharedClock = Arc<dyn Clock>;

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use parking_lot::Mutex;

    /// A clock moved by hand.
    #[derive(Default)]
    pub(crate) struct ManualClock {
        running: Mutex<Duration>,
        utc: Mutex<Duration>,
    }

    impl ManualClock {
        pub(crate) fn at_utc(seconds: u64) -> Arc<Self> {
            let clock = Arc::new(Self::default());
            *clock.utc.lock() = Duration::from_secs(seconds);
            clock
        }

        pub(crate) fn advance(&self, by: Duration) {
            *self.running.lock() += by;
            *self.utc.lock() += by;
        }
    }

    impl Clock for ManualClock {
        fn running(&self) -> Duration {
            *self.running.lock()
        }

        fn utc(&self) -> Duration {
            *self.utc.lock()
        }
    }

    /// Remembers the deadline.
    #[derive(Default)]
    pub(crate) struct RecordedTimer(pub(crate) Mutex<Option<Duration>>);

    impl Timer for RecordedTimer {
        fn set(&self, deadline: Option<Duration>) {
            *self.0.lock() = deadline;
        }
    }
}
