//! Virtio over PCI (section 4.1): the function that a driver finds on the bus.
//!
//! One memory BAR holds all structures:
//!
//! ```text
//! 0x0000  common configuration
//! 0x1000  interrupt status
//! 0x2000  device configuration
//! 0x3000  notifications, four bytes for each queue
//! 0x4000  MSI-X table
//! 0x6000  MSI-X pending bits
//! ```

use super::{
    Activation, ActiveQueue, ConfigSignal, QueueSignal, VirtioDevice,
    queue::{QueuePosition, Virtqueue},
    registers::{self, Action, QueueState, Registers},
    signal::{STATUS_DRIVER_OK, STATUS_NEEDS_RESET, Signals},
};
use crate::{
    bus::set_value,
    device::{Device, DeviceState, SavedState, StateError},
    doorbell::{Doorbell, Doorbells},
    interrupt::{IrqLine, MsiAllocator},
    memory::GuestMemory,
    overlay::Overlays,
    pci::{
        BarKind, Capability, ConfigSpace, ConfigState, Identity, Msix, MsixState, OptionRom,
        OptionRomError, PciFunction, Pin, ROM,
    },
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// The subsystem that firmware knows.
const SUBSYSTEM: u16 = 0x1100;

const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const NOTIFY_STEP: u32 = 4;
const TABLE: u32 = 0x4000;
const PENDING: u32 = 0x6000;

const CAPABILITY: u8 = 9;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// The most queues of a device: each has a vector in the table, and configuration has one.
const MOST_QUEUES: usize = 255;

/// What a function is wired to.
pub struct PciWiring<'a> {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Where doorbells are hung up.
    pub doorbells: Arc<dyn Doorbells>,
    /// Makes message routes.
    pub messages: &'a dyn MsiAllocator,
    /// INTA# of the function's slot.
    pub line: Arc<dyn IrqLine>,
}

/// A virtio device on the PCI bus.
pub struct VirtioPci<D: VirtioDevice> {
    config: ConfigSpace,
    rom: Option<OptionRom>,
    msix: Msix,
    /// Offset of the capability through which firmware reaches the BAR.
    window: u8,
    signals: Arc<Signals>,
    registers: Registers,
    memory: GuestMemory,
    doorbells: Arc<dyn Doorbells>,
    kicks: Vec<EventFd>,
    /// Where the doorbells hang, and which of them do.
    hung: Option<(u64, Vec<bool>)>,
    queues: Vec<Option<Arc<Mutex<Virtqueue>>>>,
    device: D,
    /// The device has been given its queues.
    active: bool,
    /// The machine runs.
    machine_runs: bool,
    /// The device has been told to run.
    device_runs: bool,
}

/// Saved state of a function and its device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioPciState {
    config: ConfigState,
    msix: MsixState,
    status: u8,
    generation: u8,
    isr: u8,
    features: u64,
    config_vector: u16,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    queues: Vec<QueueState>,
    device: DeviceState,
}

impl SavedState for VirtioPciState {
    const NAME: &'static str = "virtio-pci";
    const VERSION: u32 = 1;
}

fn structure(kind: u8, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    // Its length counts the two bytes before the body.
    let mut body = vec![(16 + more.len()) as u8, kind, BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

fn add_structures(config: &mut ConfigSpace, device: u32, queues: u32) -> io::Result<u8> {
    let mut add = |body: &[u8], writable: &[u8]| {
        let capability = Capability {
            id: CAPABILITY,
            body,
            writable,
        };
        config.add_capability(&capability).map_err(io::Error::other)
    };
    add(&structure(CFG_COMMON, COMMON, registers::LENGTH, &[]), &[])?;
    add(&structure(CFG_ISR, ISR, 1, &[]), &[])?;
    if device > 0 {
        add(&structure(CFG_DEVICE, DEVICE, device, &[]), &[])?;
    }
    let step = NOTIFY_STEP.to_le_bytes();
    add(
        &structure(CFG_NOTIFY, NOTIFY, queues * NOTIFY_STEP, &step),
        &[],
    )?;
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    add(&structure(CFG_PCI, 0, 0, &[0; 4]), &writable)
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// A function called `name` in messages, for `device`.
    ///
    /// # Errors
    /// If the host has no message routes or descriptors left.
    pub fn new(name: &str, device: D, wiring: PciWiring<'_>) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        if sizes.is_empty() || sizes.len() > MOST_QUEUES {
            return Err(io::Error::other("a virtio device has 1 to 255 queues"));
        }
        let kind = device.kind();
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind.id(),
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
            class: kind.class(),
            revision: 1,
        });
        let kind = BarKind::Memory32 {
            prefetchable: false,
        };
        config
            .add_bar(BAR, kind, BAR_SIZE)
            .map_err(io::Error::other)?;
        config.set_interrupt_pin(Pin::A.number());
        let count = sizes.len() as u16;
        let window = add_structures(&mut config, device.config_size(), count.into())?;
        let msix = Msix::new(&mut config, count + 1, BAR, TABLE, PENDING, wiring.messages)?;
        let vectors = (0..=count).filter_map(|index| msix.vector(index)).collect();
        let signals = Signals::new(name.to_owned(), vectors, sizes.len(), wiring.line);
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            config,
            rom: None,
            msix,
            window,
            registers: Registers::new(Arc::clone(&signals), device.features(), &sizes),
            signals,
            memory: wiring.memory,
            doorbells: wiring.doorbells,
            kicks,
            hung: None,
            queues: sizes.iter().map(|_| None).collect(),
            device,
            active: false,
            machine_runs: false,
            device_runs: false,
        })
    }

    /// Gives the function boot code of its own: the option ROM in `file`.
    ///
    /// # Errors
    /// If it is no ROM for this function, or the host has no memory for it.
    pub fn add_rom(&mut self, file: &File, overlays: &dyn Overlays) -> Result<(), OptionRomError> {
        let device = FIRST_DEVICE + self.device.kind().id();
        let content = OptionRom::read_file(file, VENDOR, device)?;
        self.rom = Some(OptionRom::new(&content, &mut self.config, overlays)?);
        Ok(())
    }

    /// The device behind the transport.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device behind the transport, to change. Must leave its life to the transport.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Lets `change` work on the device while it is at rest.
    pub fn at_rest<R>(&mut self, change: impl FnOnce(&mut D) -> R) -> R {
        let ran = self.device_runs;
        self.let_device_run(false);
        let result = change(&mut self.device);
        self.let_device_run(ran);
        result
    }

    /// The device runs while the machine does, its driver is ready, and the guest lets it reach
    /// memory.
    fn update(&mut self) {
        let run = self.active && self.machine_runs && self.config.bus_master();
        self.let_device_run(run);
    }

    fn let_device_run(&mut self, run: bool) {
        if run == self.device_runs {
            return;
        }
        self.device_runs = run;
        if run {
            self.device.resume();
        } else {
            self.device.pause();
        }
    }

    /// Gives the device the queues that the driver has enabled.
    fn start(&mut self, positions: &[QueuePosition]) {
        if let Err(error) = self.try_start(positions) {
            tracing::warn!(%error, "a virtio device cannot be started as its driver wants");
            self.drop_queues();
            self.signals.need_reset();
        }
        self.update();
    }

    fn try_start(&mut self, positions: &[QueuePosition]) -> io::Result<()> {
        let features = self.registers.negotiated();
        let mut queues = Vec::new();
        for (index, setup) in (0u16..).zip(&self.registers.queues) {
            if !setup.enabled {
                continue;
            }
            let place = usize::from(index);
            let position = positions.get(place).copied().unwrap_or_default();
            let queue = Virtqueue::new(setup.layout, position, features, &self.memory)
                .map_err(io::Error::other)?;
            let queue = Arc::new(Mutex::new(queue));
            self.queues[place] = Some(Arc::clone(&queue));
            queues.push(ActiveQueue {
                index,
                queue,
                kick: self.kicks[place].try_clone()?,
                signal: QueueSignal {
                    signals: Arc::clone(&self.signals),
                    index,
                },
            });
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            features,
            queues,
            config: ConfigSignal {
                signals: Arc::clone(&self.signals),
            },
        })?;
        self.active = true;
        Ok(())
    }

    fn drop_queues(&mut self) {
        self.let_device_run(false);
        self.device.reset();
        self.active = false;
        self.queues.fill(None);
    }

    /// A reset by the driver or of the machine.
    fn reset_device(&mut self) {
        self.drop_queues();
        self.registers.reset();
    }

    fn device_range(&self, offset: u32, length: usize) -> Option<u32> {
        let end = u64::from(offset) + length as u64;
        (end <= u64::from(self.device.config_size())).then_some(offset)
    }

    fn part_read(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => self.registers.read(offset, data),
            ISR => set_value(data, self.signals.take_isr().into()),
            DEVICE..NOTIFY => {
                if let Some(at) = self.device_range(offset - DEVICE, data.len()) {
                    self.device.config_read(at, data);
                }
            }
            TABLE..PENDING => self.msix.table_read((offset - TABLE).into(), data),
            PENDING.. => self.msix.pending_read((offset - PENDING).into(), data),
            _ => {}
        }
    }

    fn part_write(&mut self, offset: u32, data: &[u8]) {
        match offset {
            COMMON..ISR => match self.registers.write(offset, data) {
                Action::Nothing => {}
                Action::Reset => self.reset_device(),
                Action::Start => self.start(&[]),
            },
            DEVICE..NOTIFY => {
                if let Some(at) = self.device_range(offset - DEVICE, data.len()) {
                    let features = self.registers.negotiated();
                    self.device.config_write(at, data, features);
                }
            }
            NOTIFY..TABLE => self.kick((offset - NOTIFY) / NOTIFY_STEP),
            TABLE..PENDING => self.msix.table_write((offset - TABLE).into(), data),
            _ => {}
        }
    }

    /// A notification that did not go through a doorbell.
    fn kick(&self, queue: u32) {
        if let Some(kick) = self.kicks.get(queue as usize) {
            // A full counter means that the worker is awake already.
            let _ = kick.write(1);
        }
    }

    fn bell(base: u64, queue: usize) -> Doorbell {
        Doorbell {
            address: base + u64::from(NOTIFY) + queue as u64 * u64::from(NOTIFY_STEP),
            value: None,
        }
    }

    fn hang_up_bells(&mut self, base: u64) {
        let hung = (0..)
            .zip(&self.kicks)
            .map(|(queue, kick)| {
                let done = self.doorbells.attach(Self::bell(base, queue), kick);
                if let Err(error) = &done {
                    tracing::debug!(queue, %error, "no doorbell; the guest's writes come the long way");
                }
                done.is_ok()
            })
            .collect();
        self.hung = Some((base, hung));
    }

    fn take_down_bells(&mut self) {
        let Some((base, hung)) = self.hung.take() else {
            return;
        };
        for ((queue, kick), hung) in (0..).zip(&self.kicks).zip(hung) {
            if hung && let Err(error) = self.doorbells.detach(Self::bell(base, queue), kick) {
                tracing::warn!(queue, %error, "a doorbell cannot be taken down");
            }
        }
    }

    /// What [`CFG_PCI`] selects: the place in the BAR and the number of bytes.
    fn selected(&self) -> Option<(u32, usize)> {
        let bar = self.config.byte(self.window + 4);
        let offset = self.config.dword(self.window + 8);
        let length = self.config.dword(self.window + 12);
        let fits = u64::from(offset) + u64::from(length) <= BAR_SIZE;
        (bar == BAR && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length) && fits)
            .then_some((offset, length as usize))
    }

    fn window_data(&self) -> Range<usize> {
        let start = usize::from(self.window) + 16;
        start..start + 4
    }

    fn touches_window(&self, offset: u8, length: usize) -> bool {
        ConfigSpace::touches(offset, length, self.window + 16, 4)
    }
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u8, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.selected()
        {
            let mut value = [0; 4];
            self.part_read(at, &mut value[..length]);
            self.config.set(self.window_data().start as u8, &value);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
        self.msix.sync(&self.config);
        self.signals
            .set_mode(self.msix.enabled(&self.config), self.config.intx_disabled());
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.selected()
        {
            let mut value = [0; 4];
            self.config.read(self.window_data().start as u8, &mut value);
            self.part_write(at, &value[..length]);
        }
        self.update();
    }

    fn window_moved(&mut self, window: u8, base: Option<u64>) {
        match (window, &mut self.rom) {
            (BAR, _) => {
                self.take_down_bells();
                if let Some(base) = base {
                    self.hang_up_bells(base);
                }
            }
            (ROM, Some(rom)) => rom.window_moved(base),
            _ => {}
        }
    }

    fn window_read(&mut self, window: u8, offset: u64, data: &mut [u8]) {
        match (window, u32::try_from(offset), &self.rom) {
            (BAR, Ok(offset), _) => self.part_read(offset, data),
            (ROM, _, Some(rom)) => rom.window_read(offset, data),
            _ => data.fill(0xff),
        }
    }

    fn window_write(&mut self, window: u8, offset: u64, data: &[u8]) {
        if let Ok(offset) = u32::try_from(offset)
            && window == BAR
        {
            self.part_write(offset, data);
        }
    }
}

impl<D: VirtioDevice> Device for VirtioPci<D> {
    fn reset(&mut self) {
        self.reset_device();
        self.config.reset();
        self.msix.reset();
        self.signals.set_mode(false, false);
        self.signals.generation.store(0, Ordering::SeqCst);
        for kick in &self.kicks {
            // Empty is what it is to be.
            let _ = kick.read();
        }
    }

    fn pause(&mut self) {
        self.machine_runs = false;
        self.update();
    }

    fn resume(&mut self) {
        self.machine_runs = true;
        self.update();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let position = |index: usize| {
            let queue = self.queues.get(index).and_then(Option::as_ref);
            queue.map(|q| q.lock().position()).unwrap_or_default()
        };
        let queues = self
            .registers
            .queues
            .iter()
            .zip(&self.signals.queue_vectors)
            .enumerate()
            .map(|(index, (setup, vector))| QueueState {
                layout: setup.layout,
                enabled: setup.enabled,
                vector: vector.load(Ordering::SeqCst),
                position: position(index),
            });
        VirtioPciState {
            config: self.config.save(),
            msix: self.msix.save(),
            status: self.registers.status(),
            generation: self.signals.generation.load(Ordering::SeqCst),
            isr: self.signals.isr(),
            features: self.registers.accepted,
            config_vector: self.signals.config_vector.load(Ordering::SeqCst),
            device_select: self.registers.device_select,
            driver_select: self.registers.driver_select,
            queue_select: self.registers.queue_select,
            queues: queues.collect(),
            device: self.device.save()?,
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = VirtioPciState::load(state)?;
        let invalid = |reason: String| StateError::Invalid {
            kind: VirtioPciState::NAME,
            reason,
        };
        if state.queues.len() != self.registers.queues.len() {
            return Err(invalid(format!(
                "{} queues, this machine's device has {}",
                state.queues.len(),
                self.registers.queues.len()
            )));
        }
        self.config.restore(&state.config)?;
        self.msix.restore(&state.msix, &self.config)?;
        self.registers.accepted = state.features;
        self.registers.device_select = state.device_select;
        self.registers.driver_select = state.driver_select;
        self.registers.queue_select = state.queue_select;
        self.signals.status.store(state.status, Ordering::SeqCst);
        self.signals
            .generation
            .store(state.generation, Ordering::SeqCst);
        self.signals
            .config_vector
            .store(state.config_vector, Ordering::SeqCst);
        let mut positions = Vec::new();
        for ((setup, vector), saved) in self
            .registers
            .queues
            .iter_mut()
            .zip(&self.signals.queue_vectors)
            .zip(&state.queues)
        {
            if saved.layout.size > setup.largest {
                return Err(invalid(format!(
                    "a queue of {}, this machine's has at most {}",
                    saved.layout.size, setup.largest
                )));
            }
            setup.layout = saved.layout;
            setup.enabled = saved.enabled;
            vector.store(saved.vector, Ordering::SeqCst);
            positions.push(saved.position);
        }
        self.signals
            .set_mode(self.msix.enabled(&self.config), self.config.intx_disabled());
        self.signals.set_isr(state.isr);
        self.device.restore(&state.device)?;
        // A device whose guest has broken it stays at rest until it is reset.
        if state.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK {
            self.try_start(&positions)
                .map_err(|error| invalid(error.to_string()))?;
        }
        Ok(())
    }
}

impl<D: VirtioDevice> Drop for VirtioPci<D> {
    fn drop(&mut self) {
        self.drop_queues();
    }
}

#[cfg(test)]
mod tests;
