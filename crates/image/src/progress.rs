//! How a long operation tells how far it is, and how it is told to stop.

use std::ops::ControlFlow;

/// Receives the progress of a long operation, from any of its threads.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes lie behind. Called a few times a second at the
    /// most useful, but as often as a piece of work ends; keep it cheap.
    ///
    /// Answering [`ControlFlow::Break`] cancels the operation: it stops before
    /// its next piece, leaves every image valid, and returns
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    fn report(&self, done: u64, total: u64) -> ControlFlow<()>;
}

/// Wants to know nothing and never cancels.
impl Progress for () {
    fn report(&self, _done: u64, _total: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

impl<F: Fn(u64, u64) -> ControlFlow<()> + Send + Sync> Progress for F {
    fn report(&self, done: u64, total: u64) -> ControlFlow<()> {
        self(done, total)
    }
}
