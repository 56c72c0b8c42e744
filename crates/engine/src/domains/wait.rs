//! Waiting for a domain to end.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::node::Node;

/// A supervisor that is killed writes no event, so that its life lock is looked at this often.
const INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    /// Waits until the domain with that UUID does not run; `None` waits without end. Answers
    /// whether that came in time.
    ///
    /// # Errors
    /// The database cannot be read, or waiting failed.
    pub fn domain_wait_off(&self, uuid: &str, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // It stands before the first look, so that no end falls between them.
        let mut watcher = self.watch_events(None)?;
        loop {
            let rows = self.domain_rows()?;
            if !rows.iter().any(|row| row.uuid == uuid && row.is_active()) {
                return Ok(true);
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            watcher.next(Some(left.map_or(INTERVAL, |left| left.min(INTERVAL))))?;
        }
    }
}
