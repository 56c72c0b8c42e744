//! How a long operation tells where it is and hears that it should stop.

use std::ops::ControlFlow;

/// Told about the progress of a long operation.
///
/// `done` and `total` are bytes; `total` may be 0 where it is not known, and
/// may change while the operation learns more. Answering
/// [`ControlFlow::Break`] breaks the operation off: it undoes itself and fails
/// with [`crate::ErrorKind::Cancelled`].
pub trait Progress: Sync {
    /// `done` of `total` bytes are finished. Called from any thread, often.
    fn update(&self, done: u64, total: u64) -> ControlFlow<()>;
}

/// Nobody watches and nobody cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn update(&self, _done: u64, _total: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
