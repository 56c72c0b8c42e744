//! The common configuration structure (section 4.1.4.3): what a driver reads and writes to set a
//! device up. It only keeps and checks values; the transport acts on them.

use super::{
    F_VERSION_1, TRANSPORT_FEATURES,
    queue::{QueueLayout, QueuePosition},
    signal::{NO_VECTOR, Signals},
};
use crate::bus::{set_value, value_of};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, atomic::Ordering};

/// Length of the structure.
pub(super) const LENGTH: u32 = 64;

const STATUS_DRIVER: u8 = 2;
const STATUS_ACKNOWLEDGE: u8 = 1;
pub(super) const STATUS_FEATURES_OK: u8 = 8;
const STATUS_FAILED: u8 = 0x80;
use super::signal::STATUS_DRIVER_OK;

/// What a driver has set up of a queue, and how far the queue has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Size and addresses.
    pub layout: QueueLayout,
    /// The driver has enabled the queue.
    pub enabled: bool,
    /// Interrupt vector, 0xffff for none.
    pub vector: u16,
    /// How far the queue has got.
    pub position: QueuePosition,
}

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// The driver is ready: start the device.
    Start,
    /// The driver resets the device.
    Reset,
}

/// The registers.
pub(super) struct Registers {
    pub(super) signals: Arc<Signals>,
    /// What is offered.
    offered: u64,
    pub(super) accepted: u64,
    pub(super) device_select: u32,
    pub(super) driver_select: u32,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<Setup>,
}

/// A queue's registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    pub(super) largest: u16,
    pub(super) layout: QueueLayout,
    pub(super) enabled: bool,
}

impl Setup {
    fn new(largest: u16) -> Self {
        Self {
            largest,
            layout: QueueLayout {
                size: largest,
                ..QueueLayout::default()
            },
            enabled: false,
        }
    }
}

impl Registers {
    pub(super) fn new(signals: Arc<Signals>, features: u64, sizes: &[u16]) -> Self {
        Self {
            signals,
            offered: features | TRANSPORT_FEATURES,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| Setup::new(*size)).collect(),
        }
    }

    /// Everything back to what it is after a reset by the driver.
    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = Setup::new(queue.largest);
        }
        self.signals.reset();
    }

    pub(super) fn status(&self) -> u8 {
        self.signals.status.load(Ordering::SeqCst)
    }

    /// The features that count once the driver has said that it is done choosing.
    pub(super) fn negotiated(&self) -> u64 {
        self.accepted & self.offered
    }

    fn selected(&self) -> Option<&Setup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// A read of any width and alignment.
    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        let word = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let queue = self.selected();
        let layout = queue.map(|q| q.layout).unwrap_or_default();
        let vector = |vector: &std::sync::atomic::AtomicU16| vector.load(Ordering::SeqCst);
        let queue_vector = self
            .signals
            .queue_vectors
            .get(usize::from(self.queue_select));
        let mut structure = [0; LENGTH as usize];
        let mut set =
            |at: usize, bytes: &[u8]| structure[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &self.device_select.to_le_bytes());
        set(4, &word(self.offered, self.device_select).to_le_bytes());
        set(8, &self.driver_select.to_le_bytes());
        set(12, &word(self.accepted, self.driver_select).to_le_bytes());
        set(16, &vector(&self.signals.config_vector).to_le_bytes());
        set(18, &(self.queues.len() as u16).to_le_bytes());
        set(20, &[self.status()]);
        set(21, &[self.signals.generation.load(Ordering::SeqCst)]);
        set(22, &self.queue_select.to_le_bytes());
        set(24, &layout.size.to_le_bytes());
        set(26, &queue_vector.map_or(NO_VECTOR, vector).to_le_bytes());
        set(
            28,
            &u16::from(queue.is_some_and(|q| q.enabled)).to_le_bytes(),
        );
        set(30, &queue.map_or(0, |_| self.queue_select).to_le_bytes());
        set(32, &layout.descriptors.to_le_bytes());
        set(40, &layout.available.to_le_bytes());
        set(48, &layout.used.to_le_bytes());
        super::read_structure(&structure, offset, data);
    }

    /// A write. Only writes of a whole register count, as the specification demands of drivers;
    /// 64-bit registers may be written by halves.
    pub(super) fn write(&mut self, offset: u32, data: &[u8]) -> Action {
        let value = value_of(data);
        match (offset, data.len()) {
            (0, 4) => self.device_select = value as u32,
            (8, 4) => self.driver_select = value as u32,
            (12, 4) => self.accept(value as u32),
            (16, 2) => {
                let vector = self.vector(value as u16);
                self.signals.config_vector.store(vector, Ordering::SeqCst);
            }
            (20, 1) => return self.set_status(value as u8),
            (22, 2) => self.queue_select = value as u16,
            (26, 2) => {
                let number = self.vector(value as u16);
                let index = usize::from(self.queue_select);
                if let Some(vector) = self.signals.queue_vectors.get(index) {
                    vector.store(number, Ordering::SeqCst);
                }
            }
            (24 | 28, 2) | (32..56, 4 | 8) => self.set_up_queue(offset, data),
            _ => tracing::debug!(
                offset,
                length = data.len(),
                "stray write to virtio registers"
            ),
        }
        Action::Nothing
    }

    /// A vector that does not exist is refused by reading back as none.
    fn vector(&self, vector: u16) -> u16 {
        if self.signals.has_vector(vector) {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn accept(&mut self, word: u32) {
        if self.status() & STATUS_FEATURES_OK != 0 {
            return;
        }
        let (keep, bits) = match self.driver_select {
            0 => (!0 << 32, u64::from(word)),
            1 => (0xffff_ffff, u64::from(word) << 32),
            // Features beyond the sixty-fourth are not offered.
            _ => return,
        };
        self.accepted = self.accepted & keep | bits;
    }

    fn set_status(&mut self, wanted: u8) -> Action {
        let before = self.status();
        if wanted == 0 {
            return Action::Reset;
        }
        let settable = STATUS_ACKNOWLEDGE
            | STATUS_DRIVER
            | STATUS_FEATURES_OK
            | STATUS_DRIVER_OK
            | STATUS_FAILED;
        // Bits are only ever added.
        let mut added = wanted & settable & !before;
        let fine = self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0;
        if added & STATUS_FEATURES_OK != 0 && !fine {
            tracing::debug!(
                accepted = self.accepted,
                "the driver's choice of features is refused"
            );
            added &= !STATUS_FEATURES_OK;
        }
        if (before | added) & STATUS_FEATURES_OK == 0 {
            added &= !STATUS_DRIVER_OK;
        }
        self.signals.status.fetch_or(added, Ordering::SeqCst);
        if added & STATUS_DRIVER_OK != 0 {
            Action::Start
        } else {
            Action::Nothing
        }
    }

    /// Changes the selected queue, unless it is enabled or the device runs already.
    fn set_up_queue(&mut self, offset: u32, data: &[u8]) {
        let running = self.status() & STATUS_DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
            return;
        };
        if running || queue.enabled {
            return;
        }
        let value = value_of(data);
        match offset {
            24 => queue.layout.size = (value as u16).min(queue.largest),
            28 => queue.enabled = value == 1,
            _ => {
                let (register, at) = match offset {
                    32..40 => (&mut queue.layout.descriptors, offset - 32),
                    40..48 => (&mut queue.layout.available, offset - 40),
                    _ => (&mut queue.layout.used, offset - 48),
                };
                if matches!((at, data.len()), (0, 8) | (0 | 4, 4)) {
                    let mut bytes = register.to_le_bytes();
                    set_value(&mut bytes[at as usize..at as usize + data.len()], value);
                    *register = u64::from_le_bytes(bytes);
                }
            }
        }
    }
}
