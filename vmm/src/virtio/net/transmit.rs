//! From the guest to the host.

use super::{HEADER, LONGEST, Link, Served, Shared, control::Control, link::Sent};
use crate::{
    memory::GuestMemory,
    virtio::{ActiveQueue, Chain, Handler, QueueError, Ready, borrowed},
};
use rustix::event::PollFlags;
use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, atomic::Ordering},
};

/// Serves a transmit queue, and in the first pair the control queue.
pub(super) struct Transmitter {
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// The pair's number.
    index: u16,
    chain: Chain,
    served: Option<Served>,
    control: Option<Control>,
    /// The link had no room: its room is waited for, not the driver.
    full: bool,
}

impl Transmitter {
    pub(super) fn new(shared: Arc<Shared>, link: Arc<Link>, index: u16) -> Self {
        Self {
            shared,
            link,
            index,
            chain: Chain::default(),
            served: None,
            control: None,
            full: false,
        }
    }

    pub(super) fn take(&mut self, memory: GuestMemory, active: ActiveQueue) {
        self.served = Some(Served { memory, active });
        self.full = false;
    }

    pub(super) fn take_control(&mut self, memory: GuestMemory, active: ActiveQueue, features: u64) {
        self.control = Some(Control::new(
            Arc::clone(&self.shared),
            Served { memory, active },
            features,
        ));
    }

    pub(super) fn give_up(&mut self) {
        self.served = None;
        self.control = None;
        self.full = false;
    }

    fn transmit(&mut self) -> Result<(), QueueError> {
        let Some(Served { memory, active }) = &self.served else {
            return Ok(());
        };
        active.clear_kick();
        self.full = false;
        let up = self.shared.is_up() && self.shared.uses(self.index);
        let counter = &self.shared.traffic.sent;
        let mut queue = active.queue.lock();
        let mut left = queue.size();
        loop {
            queue.spare_notifications(memory)?;
            while left > 0 && queue.pop(memory, &mut self.chain)? {
                left -= 1;
                let length = self.chain.readable_length();
                // A packet is a header and at least a frame's addresses.
                let fits = (HEADER as u64 + 14..=LONGEST as u64).contains(&length);
                let sent = if up && fits {
                    self.link.send(memory, &self.chain, length)
                } else {
                    Sent::Dropped
                };
                match sent {
                    Sent::Passed => counter.passed(length as usize - HEADER),
                    Sent::Dropped => counter.dropped(),
                    Sent::Gone => {
                        counter.dropped();
                        // A queue of a tap that takes no part looks like one that has gone.
                        if self.shared.uses(self.index) {
                            self.shared.lose_link();
                        }
                    }
                    Sent::Full => {
                        queue.put_back();
                        self.full = true;
                        break;
                    }
                }
                queue.push(memory, self.chain.head, 0)?;
            }
            if queue.publish(memory)? {
                active.signal.raise();
            }
            if self.full || !queue.want_notifications(memory)? {
                return Ok(());
            }
            if left == 0 {
                // A full counter means that the worker comes back anyway.
                let _ = active.kick.write(1);
                return Ok(());
            }
        }
    }
}

impl Handler for Transmitter {
    fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let lost = self.shared.link_lost.load(Ordering::SeqCst);
        let mut waits = Vec::with_capacity(2);
        if let Some(served) = &self.served {
            waits.push(if self.full && !lost {
                (self.link.as_fd(), PollFlags::OUT)
            } else {
                (borrowed(&served.active.kick), PollFlags::IN)
            });
        }
        if let Some(control) = &self.control {
            waits.push((control.kick(), PollFlags::IN));
        }
        waits
    }

    fn work(&mut self, ready: &Ready) {
        let has_queue = self.served.is_some();
        if has_queue
            && ready.has(0)
            && let Err(error) = self.transmit()
            && let Some(served) = self.served.take()
        {
            served.active.signal.fail(&error);
        }
        if let Some(control) = &mut self.control
            && ready.has(usize::from(has_queue))
            && control.serve().is_err()
        {
            // Broken by the guest until it resets the device; it has been told.
            self.control = None;
        }
    }
}
