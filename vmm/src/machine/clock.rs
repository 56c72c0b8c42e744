//! The machine's clocks on the host's.

use crate::clock::Clock;
use parking_lot::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Stands still until started, and while stopped.
#[derive(Default)]
pub(super) struct MachineClock(Mutex<State>);

#[derive(Default)]
struct State {
    before: Duration,
    since: Option<Instant>,
}

impl MachineClock {
    pub(super) fn start(&self) {
        self.0.lock().since.get_or_insert_with(Instant::now);
    }

    pub(super) fn stop(&self) {
        let mut state = self.0.lock();
        if let Some(since) = state.since.take() {
            state.before += since.elapsed();
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.lock().since.is_some()
    }
}

impl Clock for MachineClock {
    fn running(&self) -> Duration {
        let state = self.0.lock();
        state.before + state.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn utc(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}
