//! From the host to the guest.

use super::{HEADER, LONGEST, Link, Served, Shared, link::Received};
use crate::{
    memory::GuestMemory,
    virtio::{ActiveQueue, Chain, Handler, QueueError, Ready, Virtqueue, borrowed},
};
use rustix::event::PollFlags;
use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

/// Packets taken in one turn; then it is looked at what else is wanted.
const BATCH: usize = 256;

/// Where the number of buffers stands in the header.
const BUFFERS: std::ops::Range<usize> = 10..12;

/// Serves a receive queue.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// The pair's number.
    index: u16,
    served: Option<Served>,
    /// The driver puts packets together from several buffers.
    merge: bool,
    chains: Vec<Chain>,
    buffer: Vec<u8>,
    /// Length of the packet in the buffer that the driver had no room for yet.
    waiting: Option<usize>,
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    Done,
    /// It can never be delivered with these buffers.
    Unfit,
    /// There are too few buffers for now.
    NoRoom,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, link: Arc<Link>, index: u16) -> Self {
        Self {
            shared,
            link,
            index,
            served: None,
            merge: false,
            chains: Vec::new(),
            buffer: Vec::new(),
            waiting: None,
        }
    }

    pub(super) fn take(&mut self, memory: GuestMemory, active: ActiveQueue, merge: bool) {
        self.served = Some(Served { memory, active });
        self.merge = merge;
        self.waiting = None;
        // The buffer costs nothing before there is a driver.
        self.buffer.resize(LONGEST, 0);
    }

    pub(super) fn give_up(&mut self) {
        self.served = None;
        self.waiting = None;
    }

    /// Whether packets of the host's are looked for.
    fn listens(&self) -> bool {
        self.waiting.is_none() && self.shared.is_up() && self.shared.uses(self.index)
    }

    fn receive(&mut self) -> Result<(), QueueError> {
        let Some(served) = self.served.take() else {
            return Ok(());
        };
        served.active.clear_kick();
        let queue = Arc::clone(&served.active.queue);
        let mut queue = queue.lock();
        let result = self.fill(&served, &mut queue);
        let published = queue.publish(&served.memory);
        if published.is_ok_and(|wanted| wanted) {
            served.active.signal.raise();
        }
        self.served = Some(served);
        result?;
        published.map(|_| ())
    }

    fn fill(&mut self, served: &Served, queue: &mut Virtqueue) -> Result<(), QueueError> {
        let memory = &served.memory;
        queue.spare_notifications(memory)?;
        for _ in 0..BATCH {
            let length = match self.waiting.take() {
                Some(length) => length,
                None if !self.listens() => return Ok(()),
                None => match self.link.receive(&mut self.buffer) {
                    Received::Packet(length) => length,
                    Received::Unfit => {
                        self.shared.traffic.received.dropped();
                        continue;
                    }
                    Received::Nothing => return Ok(()),
                    Received::Gone => {
                        // A queue of a tap that takes no part looks like one that has gone.
                        if self.listens() {
                            self.shared.lose_link();
                        }
                        return Ok(());
                    }
                },
            };
            if !self
                .shared
                .filter
                .read()
                .takes(&self.buffer[HEADER..length])
            {
                continue;
            }
            let mut delivery = self.deliver(memory, queue, length)?;
            if delivery == Delivery::NoRoom {
                if !queue.want_notifications(memory)? {
                    self.waiting = Some(length);
                    return Ok(());
                }
                // Buffers have come meanwhile, perhaps still too few.
                delivery = self.deliver(memory, queue, length)?;
                if delivery == Delivery::NoRoom {
                    self.waiting = Some(length);
                    return Ok(());
                }
                queue.spare_notifications(memory)?;
            }
            let counter = &self.shared.traffic.received;
            match delivery {
                Delivery::Done => counter.passed(length - HEADER),
                _ => counter.dropped(),
            }
        }
        Ok(())
    }

    /// Writes the packet in the buffer into as many of the driver's buffers as it takes.
    fn deliver(
        &mut self,
        memory: &GuestMemory,
        queue: &mut Virtqueue,
        length: usize,
    ) -> Result<Delivery, QueueError> {
        let most = if self.merge {
            usize::from(queue.size())
        } else {
            1
        };
        let mut used = 0;
        let mut room = 0;
        let short = loop {
            if room >= length as u64 {
                break None;
            }
            if used == most {
                break Some(Delivery::Unfit);
            }
            if self.chains.len() == used {
                self.chains.push(Chain::default());
            }
            let chain = &mut self.chains[used];
            if !queue.pop(memory, chain)? {
                break Some(Delivery::NoRoom);
            }
            // The header is written in one piece, and a buffer without room is a broken one.
            if chain.writable_length() < HEADER as u64 {
                return Err(QueueError::Request(chain.head));
            }
            room += chain.writable_length();
            used += 1;
        };
        if let Some(delivery) = short {
            for _ in 0..used {
                queue.put_back();
            }
            return Ok(delivery);
        }
        // As many as the queue holds, at most 32768.
        self.buffer[BUFFERS].copy_from_slice(&(used as u16).to_le_bytes());
        let mut done = 0;
        for chain in &self.chains[..used] {
            let written = chain.write(memory, 0, &self.buffer[done..length]);
            done += written;
            queue.push(memory, chain.head, written as u32)?;
        }
        Ok(Delivery::Done)
    }
}

impl Handler for Receiver {
    fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let Some(served) = &self.served else {
            return Vec::new();
        };
        let mut waits = vec![(borrowed(&served.active.kick), PollFlags::IN)];
        if self.listens() {
            waits.push((self.link.as_fd(), PollFlags::IN));
        }
        waits
    }

    fn work(&mut self, ready: &Ready) {
        if !ready.has(0) && !ready.has(1) {
            return;
        }
        if let Err(error) = self.receive()
            && let Some(served) = self.served.take()
        {
            served.active.signal.fail(&error);
        }
    }
}
