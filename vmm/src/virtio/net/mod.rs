//! The network device (section 5.1).
//!
//! Each pair of queues has two workers, one for each direction, and a [`Link`] to the host: a
//! socket whose messages are Ethernet frames, or a queue of a tap. A tap that can brings checksum
//! and segmentation offloads; the header in front of each packet then goes through to the kernel.
//! The control queue (receive mode, addresses, number of pairs, announcements) is served by the
//! first pair's sender.
//!
//! The device holds one packet at most in each direction. What a guest has no buffers for stays
//! with the host, which drops it when its own queue is full.
//!
//! Left out: VLAN filters, receive-side scaling by the guest's table, changes of offloads while
//! the device runs.

mod control;
mod filter;
mod link;
mod receive;
mod transmit;

pub use filter::{Filter, Mac};
pub use link::{Link, LinkError, Offloads};

use super::{Activation, ActiveQueue, ConfigSignal, Kind, VirtioDevice, Worker, read_structure};
use crate::device::{DeviceState, SavedState, StateError};
use parking_lot::{Mutex, RwLock};
use receive::Receiver;
use serde::{Deserialize, Serialize};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
};
use transmit::Transmitter;
use vmm_sys_util::eventfd::EventFd;

/// Length of the header in front of each packet, in bytes.
pub const HEADER: usize = 12;
/// The longest packet with its header: 64 KiB of segmented data and what is around it.
const LONGEST: usize = HEADER + 65_550;
/// Size of the queues. iPXE takes no larger ones.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// Most pairs of queues.
pub const MOST_PAIRS: u16 = 64;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_GUEST_UFO: u64 = 1 << 10;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_HOST_UFO: u64 = 1 << 14;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_RX_EXTRA: u64 = 1 << 20;
const F_GUEST_ANNOUNCE: u64 = 1 << 21;
const F_MQ: u64 = 1 << 22;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;

const STATUS_LINK_UP: u16 = 1;
const STATUS_ANNOUNCE: u16 = 2;

/// Length of the device configuration: address, status, pairs, MTU.
const CONFIG: usize = 12;

/// How a network device is to be.
#[derive(Debug)]
pub struct NetOptions {
    /// The card's address.
    pub mac: Mac,
    /// Largest packet in bytes to tell the guest, if it is to be told.
    pub mtu: Option<u16>,
    /// Whether the link is up at the start.
    pub link_up: bool,
    /// One link for each pair of queues, all of one kind.
    pub links: Vec<Link>,
}

/// What the workers of a device share.
struct Shared {
    name: String,
    filter: RwLock<Filter>,
    /// Pairs that the driver uses.
    pairs: AtomicU16,
    most_pairs: u16,
    links: Vec<Arc<Link>>,
    /// What the machine's owner wants.
    link_up: AtomicBool,
    /// The host's side has gone.
    link_lost: AtomicBool,
    announce: AtomicBool,
    config: Mutex<Option<ConfigSignal>>,
    /// Wakes the receivers of all pairs.
    receivers: Mutex<Vec<EventFd>>,
    lost: Box<dyn Fn() + Send + Sync>,
    traffic: Counters,
}

#[derive(Default)]
struct Counters {
    received: Direction,
    sent: Direction,
}

#[derive(Default)]
struct Direction {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    fn passed(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// Counters of one direction, from the device's beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes, without the header.
    pub bytes: u64,
    /// Packets that were lost here.
    pub dropped: u64,
}

/// The counters of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatistics {
    /// What the guest received.
    pub received: Traffic,
    /// What the guest sent.
    pub sent: Traffic,
}

impl Shared {
    fn is_up(&self) -> bool {
        self.link_up.load(Ordering::SeqCst) && !self.link_lost.load(Ordering::SeqCst)
    }

    fn config_changed(&self) {
        if let Some(config) = &*self.config.lock() {
            config.changed();
        }
    }

    /// Whether the driver uses that pair.
    fn uses(&self, pair: u16) -> bool {
        pair < self.pairs.load(Ordering::SeqCst)
    }

    /// The host's side has closed: the guest sees the link go down.
    fn lose_link(&self) {
        if !self.link_lost.swap(true, Ordering::SeqCst) {
            tracing::warn!(device = %self.name, "the network behind the card has gone");
            self.config_changed();
            (self.lost)();
        }
    }

    /// Lets the driver use that many pairs. The host must not give packets to the others.
    fn use_pairs(&self, pairs: u16) {
        // A queue that takes no part must not be used before or after.
        self.pairs.fetch_min(pairs, Ordering::SeqCst);
        for (index, link) in (0..).zip(&self.links) {
            if self.links.len() > 1 {
                link.take_part(index < pairs);
            }
        }
        self.pairs.store(pairs, Ordering::SeqCst);
        for receiver in &*self.receivers.lock() {
            // A full counter means that the worker is awake already.
            let _ = receiver.write(1);
        }
    }
}

/// The device.
pub struct Net {
    shared: Arc<Shared>,
    mac: Mac,
    mtu: Option<u16>,
    offloads: Offloads,
    receivers: Vec<Worker<Receiver>>,
    transmitters: Vec<Worker<Transmitter>>,
    /// A state that was taken over and not yet acted on.
    restored: Option<NetState>,
    negotiated: u64,
}

/// Saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    filter: Filter,
    pairs: u16,
}

impl SavedState for NetState {
    const NAME: &'static str = "virtio-net";
    const VERSION: u32 = 1;
}

impl Net {
    /// A device with threads of its own. `lost` is called once, from one of them, when the host's
    /// side of the link has closed; it must not block.
    ///
    /// # Errors
    /// If there is no link, links differ, or the host refuses threads.
    pub fn new(
        name: &str,
        options: NetOptions,
        lost: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let pairs = u16::try_from(options.links.len())
            .ok()
            .filter(|pairs| (1..=MOST_PAIRS).contains(pairs))
            .ok_or_else(|| io::Error::other("a network card has 1 to 64 pairs of queues"))?;
        let offloads = options.links[0].offloads();
        if options.links.iter().any(|link| link.offloads() != offloads) {
            return Err(io::Error::other(
                "the links of a network card must be alike",
            ));
        }
        let links: Vec<_> = options.links.into_iter().map(Arc::new).collect();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            filter: RwLock::new(Filter::new(options.mac)),
            pairs: AtomicU16::new(1),
            most_pairs: pairs,
            links: links.clone(),
            link_up: AtomicBool::new(options.link_up),
            link_lost: AtomicBool::new(false),
            announce: AtomicBool::new(false),
            config: Mutex::new(None),
            receivers: Mutex::new(Vec::new()),
            lost,
            traffic: Counters::default(),
        });
        let mut receivers = Vec::new();
        let mut transmitters = Vec::new();
        for (index, link) in (0u16..).zip(links) {
            let receiver = Receiver::new(Arc::clone(&shared), Arc::clone(&link), index);
            receivers.push(Worker::start(&format!("{name}-rx{index}"), receiver)?);
            let transmitter = Transmitter::new(Arc::clone(&shared), link, index);
            transmitters.push(Worker::start(&format!("{name}-tx{index}"), transmitter)?);
        }
        Ok(Self {
            shared,
            mac: options.mac,
            mtu: options.mtu,
            offloads,
            receivers,
            transmitters,
            restored: None,
            negotiated: 0,
        })
    }

    /// Plugs the cable in or out. A link whose host's side has gone stays down.
    pub fn set_link(&self, up: bool) {
        if self.shared.link_up.swap(up, Ordering::SeqCst) != up {
            self.shared.config_changed();
            self.shared
                .use_pairs(self.shared.pairs.load(Ordering::SeqCst));
        }
    }

    /// The counters.
    #[must_use]
    pub fn statistics(&self) -> NetStatistics {
        NetStatistics {
            received: self.shared.traffic.received.read(),
            sent: self.shared.traffic.sent.read(),
        }
    }

    fn structure(&self) -> [u8; CONFIG] {
        let mut status = 0;
        if self.shared.is_up() {
            status |= STATUS_LINK_UP;
        }
        if self.shared.announce.load(Ordering::SeqCst) {
            status |= STATUS_ANNOUNCE;
        }
        let mut structure = [0; CONFIG];
        structure[..6].copy_from_slice(&self.shared.filter.read().mac());
        structure[6..8].copy_from_slice(&status.to_le_bytes());
        structure[8..10].copy_from_slice(&self.shared.most_pairs.to_le_bytes());
        structure[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        structure
    }

    fn give_up(&mut self) {
        for worker in &self.receivers {
            worker.rest();
            worker.handler().give_up();
        }
        for worker in &self.transmitters {
            worker.rest();
            worker.handler().give_up();
        }
        *self.shared.config.lock() = None;
        self.shared.receivers.lock().clear();
    }

    /// Hands the queues out: receive and transmit queues in turns, then the control queue, whose
    /// number depends on whether the driver knows of more than one pair.
    fn hand_out(&mut self, activation: Activation) -> io::Result<()> {
        let several = activation.features & F_MQ != 0;
        let control = if several {
            self.shared.most_pairs * 2
        } else {
            2
        };
        let merge = activation.features & F_MRG_RXBUF != 0;
        let memory = &activation.memory;
        for active in activation.queues {
            let index = active.index;
            let pair = usize::from(index / 2);
            if index == control && activation.features & F_CTRL_VQ != 0 {
                let mut first = self.transmitters[0].handler();
                first.take_control(memory.clone(), active, activation.features);
            } else if index >= control {
                tracing::debug!(index, "the driver has enabled a queue that it cannot use");
            } else if index.is_multiple_of(2) {
                self.shared.receivers.lock().push(active.kick.try_clone()?);
                self.receivers[pair]
                    .handler()
                    .take(memory.clone(), active, merge);
            } else {
                self.transmitters[pair]
                    .handler()
                    .take(memory.clone(), active);
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let mut features = F_MAC
            | F_STATUS
            | F_MRG_RXBUF
            | F_CTRL_VQ
            | F_CTRL_RX
            | F_CTRL_RX_EXTRA
            | F_CTRL_MAC_ADDR
            | F_GUEST_ANNOUNCE;
        if self.mtu.is_some() {
            features |= F_MTU;
        }
        if self.shared.most_pairs > 1 {
            features |= F_MQ;
        }
        features | self.offloads.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; usize::from(self.shared.most_pairs) * 2];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn config_size(&self) -> u32 {
        CONFIG as u32
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) {
        read_structure(&self.structure(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.negotiated = activation.features;
        for link in &self.shared.links {
            link.set_offloads(activation.features)?;
        }
        *self.shared.config.lock() = Some(activation.config.clone());
        self.hand_out(activation)?;
        let restored = self.restored.take();
        let pairs = restored.as_ref().map_or(1, |state| state.pairs);
        self.shared.use_pairs(pairs);
        // A guest that goes on elsewhere tells its neighbours where it is now.
        let announce = restored.is_some() && self.negotiated & F_GUEST_ANNOUNCE != 0;
        self.shared.announce.store(announce, Ordering::SeqCst);
        Ok(())
    }

    fn reset(&mut self) {
        self.give_up();
        self.negotiated = 0;
        self.restored = None;
        *self.shared.filter.write() = Filter::new(self.mac);
        self.shared.pairs.store(1, Ordering::SeqCst);
        self.shared.announce.store(false, Ordering::SeqCst);
    }

    fn resume(&mut self) {
        for worker in &self.receivers {
            worker.run();
        }
        for worker in &self.transmitters {
            worker.run();
        }
        if self.shared.announce.load(Ordering::SeqCst) {
            self.shared.config_changed();
        }
    }

    fn pause(&mut self) {
        for worker in &self.receivers {
            worker.rest();
        }
        for worker in &self.transmitters {
            worker.rest();
        }
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        NetState {
            filter: self.shared.filter.read().clone(),
            pairs: self.shared.pairs.load(Ordering::SeqCst),
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = NetState::load(state)?;
        if !(1..=self.shared.most_pairs).contains(&state.pairs) {
            return Err(StateError::Invalid {
                kind: NetState::NAME,
                reason: format!(
                    "{} pairs of queues, this machine's card has {}",
                    state.pairs, self.shared.most_pairs
                ),
            });
        }
        *self.shared.filter.write() = state.filter.clone();
        self.restored = Some(state);
        Ok(())
    }
}

/// A queue with what it is served with.
struct Served {
    memory: crate::memory::GuestMemory,
    active: ActiveQueue,
}

#[cfg(test)]
mod tests;
