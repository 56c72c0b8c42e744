//! What a device tells its driver: interrupts, and that it needs a reset.

use crate::{interrupt::IrqLine, pci::MsixVector};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering},
    },
};

/// The vector number that stands for none.
pub(super) const NO_VECTOR: u16 = 0xffff;

pub(super) const STATUS_DRIVER_OK: u8 = 4;
pub(super) const STATUS_NEEDS_RESET: u8 = 0x40;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What transport and workers share.
pub(super) struct Signals {
    name: String,
    vectors: Vec<Arc<MsixVector>>,
    /// The guest has MSI-X enabled. A hint: a vector itself knows better.
    msix: AtomicBool,
    pub(super) config_vector: AtomicU16,
    pub(super) queue_vectors: Vec<AtomicU16>,
    /// The device status register.
    pub(super) status: AtomicU8,
    /// Counts changes of device configuration.
    pub(super) generation: AtomicU8,
    intx: Mutex<Intx>,
}

struct Intx {
    line: Arc<dyn IrqLine>,
    isr: u8,
    allowed: bool,
}

impl Intx {
    fn drive(&self) {
        self.line.set(self.isr != 0 && self.allowed);
    }
}

impl Signals {
    pub(super) fn new(
        name: String,
        vectors: Vec<Arc<MsixVector>>,
        queues: usize,
        line: Arc<dyn IrqLine>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            vectors,
            msix: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            intx: Mutex::new(Intx {
                line,
                isr: 0,
                allowed: true,
            }),
        })
    }

    /// Whether a vector of that number exists.
    pub(super) fn has_vector(&self, vector: u16) -> bool {
        usize::from(vector) < self.vectors.len()
    }

    /// Takes over whether MSI-X is on and INTx allowed; INTx is not used with MSI-X.
    pub(super) fn set_mode(&self, msix: bool, intx_disabled: bool) {
        let mut intx = self.intx.lock();
        self.msix.store(msix, Ordering::SeqCst);
        intx.allowed = !msix && !intx_disabled;
        intx.drive();
    }

    /// The ISR register; reading clears it and lowers the line.
    pub(super) fn take_isr(&self) -> u8 {
        let mut intx = self.intx.lock();
        let isr = std::mem::take(&mut intx.isr);
        intx.drive();
        isr
    }

    /// The ISR register, for saving.
    pub(super) fn isr(&self) -> u8 {
        self.intx.lock().isr
    }

    pub(super) fn set_isr(&self, isr: u8) {
        let mut intx = self.intx.lock();
        intx.isr = isr;
        intx.drive();
    }

    /// Back to the state after a reset by the driver.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.set_isr(0);
    }

    fn raise(&self, vector: &AtomicU16, isr: u8) {
        if self.msix.load(Ordering::SeqCst) {
            let number = vector.load(Ordering::SeqCst);
            match self.vectors.get(usize::from(number)) {
                Some(vector) if vector.raise() => return,
                // The driver wants no interrupt for this.
                None => return,
                // MSI-X was switched off this moment.
                Some(_) => {}
            }
        }
        let mut intx = self.intx.lock();
        intx.isr |= isr;
        intx.drive();
    }

    fn raise_config(&self) {
        self.raise(&self.config_vector, ISR_CONFIG);
    }

    /// Tells the driver that the device works no more until it is reset.
    pub(super) fn need_reset(&self) {
        let before = self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst);
        if before & STATUS_DRIVER_OK != 0 && before & STATUS_NEEDS_RESET == 0 {
            self.raise_config();
        }
    }
}

/// Raises a queue's interrupt.
#[derive(Clone)]
pub struct QueueSignal {
    pub(super) signals: Arc<Signals>,
    pub(super) index: u16,
}

impl QueueSignal {
    /// Interrupts the driver for the queue.
    pub fn raise(&self) {
        if let Some(vector) = self.signals.queue_vectors.get(usize::from(self.index)) {
            self.signals.raise(vector, ISR_QUEUE);
        }
    }

    /// Notes that the queue works no more, as a rule because the guest has broken it: the driver
    /// is told that the device needs a reset. Whoever calls this leaves the queue alone from then
    /// on.
    pub fn fail(&self, error: &dyn fmt::Display) {
        let name = &self.signals.name;
        tracing::warn!(device = %name, queue = self.index, %error, "a queue works no more");
        self.signals.need_reset();
    }
}

/// Tells the driver of changes of device configuration.
#[derive(Clone)]
pub struct ConfigSignal {
    pub(super) signals: Arc<Signals>,
}

impl ConfigSignal {
    /// Device configuration has changed.
    pub fn changed(&self) {
        self.signals.generation.fetch_add(1, Ordering::SeqCst);
        self.signals.raise_config();
    }
}
