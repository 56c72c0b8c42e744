//! The entropy device (section 5.4): fills buffers from the host's random numbers.

use super::{
    Activation, ActiveQueue, Chain, Handler, Kind, QueueError, Ready, VirtioDevice, Worker,
    borrowed,
};
use crate::{
    device::{DeviceState, SavedState, StateError},
    memory::GuestMemory,
};
use rand::{TryRng as _, rngs::SysRng};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use std::{io, os::fd::BorrowedFd};

/// The most that one request is given; a driver asks again for more.
const MOST: u64 = 64 * 1024;
const QUEUE_SIZE: u16 = 64;
/// Random bytes that are asked of the host at once.
const PIECE: usize = 4096;

/// The device.
pub struct Rng {
    worker: Worker<Filler>,
}

/// Saved state: there is none beside the transport's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {}

impl SavedState for RngState {
    const NAME: &'static str = "virtio-rng";
    const VERSION: u32 = 1;
}

struct Filler {
    chain: Chain,
    active: Option<(GuestMemory, ActiveQueue)>,
}

impl Rng {
    /// A device with a thread of its own called `name`.
    ///
    /// # Errors
    /// If the host refuses a thread.
    pub fn new(name: &str) -> io::Result<Self> {
        let filler = Filler {
            chain: Chain::default(),
            active: None,
        };
        Ok(Self {
            worker: Worker::start(name, filler)?,
        })
    }
}

impl Filler {
    fn serve(&mut self) -> Result<(), QueueError> {
        let Some((memory, active)) = &self.active else {
            return Ok(());
        };
        active.serve(memory, &mut self.chain, |chain| {
            if chain.writable.is_empty() {
                return Err(QueueError::Request(chain.head));
            }
            let wanted = chain.writable_length().min(MOST);
            let mut written = 0;
            while written < wanted {
                let mut piece = [0; PIECE];
                let piece = &mut piece[..(wanted - written).min(PIECE as u64) as usize];
                if let Err(error) = SysRng.try_fill_bytes(piece) {
                    // A driver copes with less than it asked for.
                    tracing::error!(%error, "the host gives no random numbers");
                    break;
                }
                written += chain.write(memory, written, piece) as u64;
            }
            // At most MOST.
            Ok(written as u32)
        })
    }
}

impl Handler for Filler {
    fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let kick = self.active.as_ref().map(|(_, active)| &active.kick);
        kick.map(|kick| (borrowed(kick), PollFlags::IN))
            .into_iter()
            .collect()
    }

    fn work(&mut self, _ready: &Ready) {
        if self.serve().is_err() {
            // Broken by the guest until it resets the device.
            self.active = None;
        }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config_size(&self) -> u32 {
        0
    }

    fn config_read(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let queue = activation.queues.into_iter().next();
        self.worker.handler().active = queue.map(|queue| (activation.memory, queue));
        Ok(())
    }

    fn reset(&mut self) {
        self.worker.rest();
        self.worker.handler().active = None;
    }

    fn resume(&mut self) {
        self.worker.run();
    }

    fn pause(&mut self) {
        self.worker.rest();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        RngState {}.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        RngState::load(state).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::Device as _,
        virtio::testing::{BUFFERS, Driver, INDIRECT, guest_memory},
    };

    fn driver() -> Driver<Rng> {
        Driver::new(Rng::new("rng").unwrap(), guest_memory())
    }

    #[test]
    fn buffers_are_filled_with_random_bytes() {
        let mut driver = driver();
        driver.enable_messages();
        let mut queues = driver.start(driver_features(), 16);
        queues[0].chain(0, &[], &[(BUFFERS, 100), (BUFFERS + 0x1000, 100)]);
        queues[0].offer(0);
        driver.notify(0);
        assert_eq!(queues[0].wait_used(), (0, 200));
        let (first, second) = (
            driver.bytes(BUFFERS, 101),
            driver.bytes(BUFFERS + 0x1000, 100),
        );
        assert_ne!(first[..100], second);
        assert!(first[..100].iter().any(|byte| *byte != 0));
        assert_eq!(first[100], 0, "nothing beyond the buffer");
        queues[0].chain(2, &[], &[(BUFFERS, 1 << 20)]);
        queues[0].offer(2);
        driver.notify(0);
        assert_eq!(queues[0].wait_used(), (2, MOST as u32));
    }

    fn driver_features() -> u64 {
        crate::virtio::F_EVENT_INDEX | crate::virtio::F_INDIRECT
    }

    #[test]
    fn a_request_without_room_breaks_the_queue_until_a_reset() {
        let mut driver = driver();
        let mut queues = driver.start(driver_features(), 16);
        queues[0].chain(0, &[(BUFFERS, 100)], &[]);
        queues[0].offer(0);
        driver.notify(0);
        driver.wait_needs_reset();
        let mut queues = driver.start(0, 16);
        queues[0].chain(0, &[], &[(BUFFERS, 8)]);
        queues[0].offer(0);
        driver.notify(0);
        assert_eq!(queues[0].wait_used(), (0, 8));
        queues[0].describe(0, BUFFERS, 16, INDIRECT, 0);
        queues[0].offer(0);
        driver.notify(0);
        driver.wait_needs_reset();
    }

    /// Requests made while the machine stands still are served when it goes on, by another
    /// machine too.
    #[test]
    fn nothing_is_served_at_rest_and_nothing_is_lost() {
        let mut first = driver();
        let mut queues = first.start(0, 16);
        first.function.pause();
        queues[0].chain(0, &[], &[(BUFFERS, 8)]);
        queues[0].offer(0);
        first.notify(0);
        let state = first.function.save().unwrap();
        assert_eq!(queues[0].take_used(), None);
        let mut second = Driver::new(Rng::new("rng").unwrap(), first.memory.clone());
        second.function.pause();
        second.function.restore(&state).unwrap();
        second.function.resume();
        assert_eq!(queues[0].wait_used(), (0, 8));
    }
}
