//! The thread that serves all queues of a console device.

use super::{
    ConsoleState, F_MULTIPORT, PortOptions, PortState,
    control::{self, Message, Word},
};
use crate::{
    memory::GuestMemory,
    virtio::{Activation, ActiveQueue, Chain, Handler, QueueError, Ready, borrowed},
};
use rustix::event::PollFlags;
use std::{collections::VecDeque, os::fd::BorrowedFd};

/// As much output of a port as waits for the host.
const MOST_OUTPUT: usize = 64 * 1024;
/// The most input that is given to the guest at once.
const MOST_INPUT: usize = 4096;
/// As many messages as wait for the driver; it is not listened to while there are more.
const MOST_MESSAGES: usize = 256;

const CONTROL_TO_DRIVER: u16 = 2;
const CONTROL_TO_DEVICE: u16 = 3;

struct Port {
    options: PortOptions,
    state: PortState,
}

struct Active {
    memory: GuestMemory,
    multiport: bool,
    queues: Vec<ActiveQueue>,
}

/// The handler.
pub(super) struct PortsWorker {
    ports: Vec<Port>,
    ready: bool,
    messages: VecDeque<Message>,
    active: Option<Active>,
    chain: Chain,
    again: bool,
}

/// The number of the queue in which a port receives; that in which it sends is the next.
fn receive_queue(port: usize) -> u16 {
    // There are at most 31 ports.
    if port == 0 { 0 } else { 2 + 2 * port as u16 }
}

impl Active {
    fn queue(&self, index: u16) -> Option<&ActiveQueue> {
        self.queues.iter().find(|queue| queue.index == index)
    }
}

impl PortsWorker {
    pub(super) fn new(ports: Vec<PortOptions>) -> Self {
        let port = |options| Port {
            options,
            state: PortState::default(),
        };
        Self {
            ports: ports.into_iter().map(port).collect(),
            ready: false,
            messages: VecDeque::new(),
            active: None,
            chain: Chain::default(),
            again: false,
        }
    }

    pub(super) fn activate(&mut self, activation: Activation) {
        self.active = Some(Active {
            memory: activation.memory,
            multiport: activation.features & F_MULTIPORT != 0,
            queues: activation.queues,
        });
    }

    /// Forgets the driver. What it sent before is still written.
    pub(super) fn forget(&mut self) {
        self.active = None;
        self.ready = false;
        self.messages.clear();
        for port in &mut self.ports {
            let output = std::mem::take(&mut port.state.output);
            port.state = PortState {
                output,
                ..PortState::default()
            };
        }
    }

    pub(super) fn state(&self) -> ConsoleState {
        ConsoleState {
            ready: self.ready,
            messages: self.messages.iter().copied().collect(),
            ports: self.ports.iter().map(|port| port.state.clone()).collect(),
        }
    }

    pub(super) fn take_over(&mut self, state: ConsoleState) {
        self.ready = state.ready;
        self.messages = state
            .messages
            .into_iter()
            .filter(|message| (message.port() as usize) < self.ports.len())
            .collect();
        for (port, state) in self.ports.iter_mut().zip(state.ports) {
            port.state = state;
        }
    }

    fn turn(&mut self) -> Result<(), QueueError> {
        self.again = false;
        let Some(active) = self.active.take() else {
            return Ok(());
        };
        let outcome = self.serve(&active);
        self.active = Some(active);
        outcome
    }

    fn serve(&mut self, active: &Active) -> Result<(), QueueError> {
        if active.multiport {
            self.hear(active)?;
        }
        for index in 0..self.ports.len() {
            if index > 0 && !active.multiport {
                break;
            }
            self.ports[index].options.host.accept();
            self.send(active, index)?;
            self.receive(active, index)?;
            self.tell_connection(active, index);
        }
        if active.multiport {
            self.tell(active)?;
        }
        Ok(())
    }

    /// Takes what the driver says on the control queue.
    fn hear(&mut self, active: &Active) -> Result<(), QueueError> {
        let Some(active_queue) = active.queue(CONTROL_TO_DEVICE) else {
            return Ok(());
        };
        let memory = &active.memory;
        let mut queue = active_queue.queue.lock();
        let mut chain = std::mem::take(&mut self.chain);
        loop {
            while self.messages.len() < MOST_MESSAGES && queue.pop(memory, &mut chain)? {
                let mut bytes = [0; control::LENGTH];
                if chain.read(memory, 0, &mut bytes) == bytes.len() {
                    self.obey(Word::decode(bytes));
                }
                queue.push(memory, chain.head, 0)?;
            }
            if queue.publish(memory)? {
                active_queue.signal.raise();
            }
            if self.messages.len() >= MOST_MESSAGES || !queue.want_notifications(memory)? {
                break;
            }
        }
        self.chain = chain;
        Ok(())
    }

    fn obey(&mut self, word: Word) {
        match word {
            Word::DeviceReady(true) if !self.ready => {
                self.ready = true;
                let ports = 0..self.ports.len() as u32;
                self.messages.extend(ports.map(Message::Add));
            }
            Word::PortReady(number, true) => {
                let Some(port) = self.ports.get_mut(number as usize) else {
                    return;
                };
                port.state.ready = true;
                port.state.told_open = port.options.host.is_connected();
                if port.options.console {
                    self.messages.push_back(Message::Console(number));
                }
                if !port.options.name.is_empty() {
                    self.messages.push_back(Message::Name(number));
                }
                if port.state.told_open {
                    self.messages.push_back(Message::Open(number, true));
                }
            }
            Word::PortOpen(number, open) => {
                if let Some(port) = self.ports.get_mut(number as usize) {
                    port.state.guest_open = open;
                }
            }
            Word::DeviceReady(_) | Word::PortReady(_, false) | Word::Unknown => {}
        }
    }

    /// Notes when the driver is to be told that the host's side came or went.
    fn tell_connection(&mut self, active: &Active, index: usize) {
        let port = &mut self.ports[index];
        let open = port.options.host.is_connected();
        if active.multiport
            && port.state.ready
            && port.state.told_open != open
            && self.messages.len() < MOST_MESSAGES
        {
            port.state.told_open = open;
            self.messages.push_back(Message::Open(index as u32, open));
        }
    }

    /// Gives the driver the messages for which it has made room.
    fn tell(&mut self, active: &Active) -> Result<(), QueueError> {
        let Some(active_queue) = active.queue(CONTROL_TO_DRIVER) else {
            return Ok(());
        };
        let memory = &active.memory;
        let was_full = self.messages.len() >= MOST_MESSAGES;
        let mut queue = active_queue.queue.lock();
        while let Some(message) = self.messages.front().copied() {
            if !queue.pop(memory, &mut self.chain)? {
                if queue.want_notifications(memory)? {
                    continue;
                }
                break;
            }
            let port = self.ports.get(message.port() as usize);
            let name = port.map_or("", |port| &port.options.name);
            let written = self.chain.write(memory, 0, &message.encode(name));
            // A message is at most 135 bytes.
            queue.push(memory, self.chain.head, written as u32)?;
            self.messages.pop_front();
        }
        if queue.publish(memory)? {
            active_queue.signal.raise();
        }
        self.again |= was_full && self.messages.len() < MOST_MESSAGES;
        Ok(())
    }

    /// Takes the guest's output, as far as the host does.
    fn send(&mut self, active: &Active, index: usize) -> Result<(), QueueError> {
        let Some(active_queue) = active.queue(receive_queue(index) + 1) else {
            return Ok(());
        };
        let memory = &active.memory;
        let port = &mut self.ports[index];
        port.drain();
        let mut queue = active_queue.queue.lock();
        let mut left = queue.size();
        loop {
            while left > 0
                && port.state.output.len() < MOST_OUTPUT
                && queue.pop(memory, &mut self.chain)?
            {
                left -= 1;
                if port.take(memory, &self.chain) {
                    queue.push(memory, self.chain.head, 0)?;
                } else {
                    queue.put_back();
                }
                port.drain();
            }
            if queue.publish(memory)? {
                active_queue.signal.raise();
            }
            if port.state.output.len() >= MOST_OUTPUT {
                return Ok(());
            }
            if left == 0 {
                self.again = true;
                return Ok(());
            }
            if !queue.want_notifications(memory)? {
                return Ok(());
            }
        }
    }

    /// Gives the guest input, as far as it has made room.
    fn receive(&mut self, active: &Active, index: usize) -> Result<(), QueueError> {
        let port = &mut self.ports[index];
        let Some(active_queue) = active.queue(receive_queue(index)) else {
            return Ok(());
        };
        if !port.listens(active.multiport) {
            return Ok(());
        }
        let memory = &active.memory;
        let mut queue = active_queue.queue.lock();
        let mut left = queue.size();
        while left > 0 {
            if !queue.pop(memory, &mut self.chain)? {
                if queue.want_notifications(memory)? {
                    continue;
                }
                break;
            }
            left -= 1;
            let room = self.chain.writable_length().min(MOST_INPUT as u64) as usize;
            if room == 0 {
                return Err(QueueError::Request(self.chain.head));
            }
            let mut buffer = [0; MOST_INPUT];
            let Some(length) = port.options.host.read(&mut buffer[..room]) else {
                queue.put_back();
                break;
            };
            self.chain.write(memory, 0, &buffer[..length]);
            queue.push(memory, self.chain.head, length as u32)?;
        }
        self.again |= left == 0;
        if queue.publish(memory)? {
            active_queue.signal.raise();
        }
        Ok(())
    }

    /// Whether input would find a place.
    fn has_place(&self, active: &Active, index: usize) -> bool {
        let queue = active.queue(receive_queue(index));
        self.ports[index].listens(active.multiport)
            && queue.is_some_and(|q| q.queue.lock().has_more(&active.memory).unwrap_or(false))
    }
}

impl Port {
    /// A program of the guest reads the port, as far as the driver tells.
    fn listens(&self, multiport: bool) -> bool {
        !multiport || self.state.guest_open
    }

    /// Writes what waits.
    fn drain(&mut self) {
        while !self.state.output.is_empty() {
            let written = self.options.host.write(&self.state.output);
            if written == 0 {
                break;
            }
            self.state
                .output
                .drain(..written.min(self.state.output.len()));
        }
    }

    /// Takes as much of a request as there is room for; false if some is left.
    fn take(&mut self, memory: &GuestMemory, chain: &Chain) -> bool {
        let output = &mut self.state.output;
        let start = output.len();
        let rest = chain.readable_length().saturating_sub(self.state.taken);
        let room = (MOST_OUTPUT - start) as u64;
        output.resize(start + rest.min(room) as usize, 0);
        chain.read(memory, self.state.taken, &mut output[start..]);
        if rest > room {
            self.state.taken += room;
            return false;
        }
        self.state.taken = 0;
        true
    }
}

impl Handler for PortsWorker {
    fn waits_for(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let Some(active) = &self.active else {
            return Vec::new();
        };
        let mut all: Vec<_> = active
            .queues
            .iter()
            .map(|queue| (borrowed(&queue.kick), PollFlags::IN))
            .collect();
        for (index, port) in self.ports.iter().enumerate() {
            let input = self.has_place(active, index);
            let output = !port.state.output.is_empty();
            all.extend(port.options.host.waits_for(input, output));
        }
        all
    }

    fn work(&mut self, ready: &Ready) {
        if let Some(active) = &self.active {
            for (place, queue) in active.queues.iter().enumerate() {
                if ready.has(place) {
                    queue.clear_kick();
                }
            }
        }
        if let Err(error) = self.turn() {
            if let Some(queue) = self
                .active
                .as_ref()
                .and_then(|active| active.queues.first())
            {
                queue.signal.fail(&error);
            }
            // Broken by the guest until it resets the device.
            self.active = None;
        }
    }

    fn wants_turn(&self) -> bool {
        self.again && self.active.is_some()
    }
}
