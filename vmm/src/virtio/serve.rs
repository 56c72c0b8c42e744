//! Serving a queue whose requests are answered one after another.

use super::{ActiveQueue, Chain, QueueError};
use crate::memory::GuestMemory;

impl ActiveQueue {
    /// Forgets the notifications that have come, before the queue is looked at.
    pub fn clear_kick(&self) {
        // Empty when nothing has come.
        let _ = self.kick.read();
    }

    /// Answers waiting requests with `answer`, which says how many bytes it wrote into the
    /// request's writable part, and interrupts the driver as it wishes. After as many requests as
    /// the queue holds the rest is put off, so that a driver who never pauses cannot hold a worker
    /// back from what else is wanted of it.
    ///
    /// # Errors
    /// [`QueueError`] of the queue or of `answer`. The driver has been told; the queue must not be
    /// used any more.
    pub fn serve(
        &self,
        memory: &GuestMemory,
        chain: &mut Chain,
        answer: impl FnMut(&Chain) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        self.try_serve(memory, chain, answer)
            .inspect_err(|error| self.signal.fail(error))
    }

    fn try_serve(
        &self,
        memory: &GuestMemory,
        chain: &mut Chain,
        mut answer: impl FnMut(&Chain) -> Result<u32, QueueError>,
    ) -> Result<(), QueueError> {
        self.clear_kick();
        let mut queue = self.queue.lock();
        let mut left = queue.size();
        loop {
            queue.spare_notifications(memory)?;
            while left > 0 && queue.pop(memory, chain)? {
                left -= 1;
                let written = answer(chain)?;
                queue.push(memory, chain.head, written)?;
            }
            if queue.publish(memory)? {
                self.signal.raise();
            }
            if !queue.want_notifications(memory)? {
                return Ok(());
            }
            if left == 0 {
                // A full counter means that the worker comes back anyway.
                let _ = self.kick.write(1);
                return Ok(());
            }
        }
    }
}
