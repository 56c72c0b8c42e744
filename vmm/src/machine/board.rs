//! The board: buses and devices, wired together, without KVM.

use super::timers::Timers;
use crate::{
    bus::{AddressMap, MapError, PortIo, PortTarget, Priority},
    clock::{SharedClock, TimerClient},
    device::{Device, DeviceState, StateError},
    devices::{
        chardev::CharBackend,
        debug_port::{self, DebugPort},
        display::Display,
        fw_cfg::{self, FwCfg},
        i440fx::HostBridge,
        i8042::{self, I8042},
        ide::{self, Attach, Ide, Position},
        piix3::{IsaBridge, USUAL_ROUTE},
        piix4_pm::{PowerManagement, SCI},
        port92::{self, Port92},
        pvpanic::{self, PvPanic},
        rtc::{self, Rtc},
        serial::{self, Serial},
    },
    event::EventSink,
    interrupt::{InterruptController, InterruptLines, IrqLine},
    memory::{GuestMemory, MemoryLayout, PCI_WINDOW},
    pci::{AttachError, BarKind, ConfigPorts, IntxRouter, PciAddress, PciBus, PciFunction, Pin},
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// COM1's ports and interrupt.
const COM1: (u16, u32) = (0x3f8, 4);
/// The slot in which boards like this one have their display.
const DISPLAY_SLOT: u8 = 2;
/// Ports for BARs, for a machine that boots without firmware.
const PORT_WINDOW: (u64, u64) = (0xc000, 0xfff0);

/// What the board is wired to.
pub struct Wiring {
    /// Interrupt controllers.
    pub controller: Arc<dyn InterruptController>,
    /// Where devices report what the guest does to the machine.
    pub events: Arc<dyn EventSink>,
    /// The machine's clocks.
    pub clock: SharedClock,
    pub(super) timers: Arc<Timers>,
}

/// What the board has.
pub struct BoardConfig {
    /// Number of processors, which firmware reads from CMOS.
    pub vcpus: u8,
    /// Where memory lies.
    pub layout: MemoryLayout,
    /// COM1's back end.
    pub serial: Option<Box<dyn CharBackend>>,
    /// The debug console's back end.
    pub debug_console: Option<Box<dyn CharBackend>>,
    /// Whether there is pvpanic.
    pub pvpanic: bool,
    /// Seconds by which the clock is ahead of UTC.
    pub clock_offset: i64,
}

/// Why a board cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// Two devices claim the same ports.
    #[error("two devices of the board want the same address")]
    Map(#[from] MapError),
    /// The PCI bus is full.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A device's thread cannot be had.
    #[error("the host refused a device's thread")]
    Thread(#[source] std::io::Error),
    /// A line has too many sources.
    #[error("interrupt line {0} has too many sources")]
    Line(u32),
}

/// Buses and devices.
pub struct Board {
    /// The port space.
    pub ports: Arc<AddressMap>,
    /// The memory space, beside RAM.
    pub memory: Arc<AddressMap>,
    /// The PCI bus.
    pub pci: Arc<PciBus>,
    /// PCI's interrupt pins.
    pub intx: Arc<IntxRouter>,
    /// COM1, if there is one.
    pub serial: Option<Arc<Mutex<Serial>>>,
    /// The keyboard controller.
    pub keyboard: Arc<Mutex<I8042>>,
    /// Power management, with the power button.
    pub power: Arc<Mutex<PowerManagement>>,
    /// The IDE controller, if there is one.
    pub ide: Option<Arc<Mutex<Ide>>>,
    /// The display, if there is one.
    pub display: Option<Arc<Mutex<Display>>>,
    lines: Arc<InterruptLines>,
    isa: Arc<Mutex<IsaBridge>>,
    layout: MemoryLayout,
    devices: Vec<(String, Arc<Mutex<dyn Device>>)>,
}

impl Board {
    /// Puts the board together.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn new(wiring: &Wiring, config: BoardConfig) -> Result<Self, BoardError> {
        let lines = InterruptLines::new(Arc::clone(&wiring.controller));
        let line = |gsi| lines.source(gsi).ok_or(BoardError::Line(gsi));
        let intx = IntxRouter::new(&lines).ok_or(BoardError::Line(0))?;
        let ports = Arc::new(AddressMap::ports());
        let memory = Arc::new(AddressMap::memory());
        let pci = PciBus::new(Arc::clone(&ports), Arc::clone(&memory));

        let timer = wiring.timers.create();
        let mut rtc = Rtc::new(
            wiring.clock.clone(),
            line(8)?,
            timer.clone(),
            config.clock_offset,
        );
        fill_cmos(&mut rtc, config.vcpus, &config.layout);
        let rtc = Arc::new(Mutex::new(rtc));
        let client: Arc<Mutex<dyn TimerClient>> = rtc.clone();
        timer.attach(Arc::downgrade(&client));

        let timer = wiring.timers.create();
        let power = Arc::new(Mutex::new(PowerManagement::new(
            wiring.clock.clone(),
            line(SCI.into())?,
            timer.clone(),
            wiring.events.clone(),
        )));
        let client: Arc<Mutex<dyn TimerClient>> = power.clone();
        timer.attach(Arc::downgrade(&client));

        let keyboard = Arc::new(Mutex::new(I8042::new(line(1)?, wiring.events.clone())));
        let isa = Arc::new(Mutex::new(IsaBridge::new(intx.clone())));
        let mut board = Self {
            ports,
            memory,
            pci: pci.clone(),
            intx,
            serial: None,
            keyboard: keyboard.clone(),
            power: power.clone(),
            ide: None,
            display: None,
            lines: Arc::clone(&lines),
            isa: isa.clone(),
            layout: config.layout,
            devices: Vec::new(),
        };
        let events = &wiring.events;
        let config_ports = ConfigPorts::new(pci, events.clone());
        board.add_ports(
            "pci-config",
            ConfigPorts::PORTS,
            Arc::new(Mutex::new(config_ports)),
        )?;
        board.add_ports("rtc", rtc::PORTS, rtc)?;
        board.add_ports("i8042-data", (i8042::DATA, 1), keyboard.clone())?;
        board.claim((i8042::COMMAND, 1), keyboard)?;
        let port92 = Arc::new(Mutex::new(Port92::new(events.clone())));
        board.add_ports("port92", (port92::PORT, 1), port92)?;
        if config.pvpanic {
            let device = Arc::new(Mutex::new(PvPanic::new(events.clone())));
            board.add_ports("pvpanic", (pvpanic::PORT, 1), device)?;
        }
        if let Some(backend) = config.debug_console {
            let device = Arc::new(Mutex::new(DebugPort::new(backend)));
            board.add_ports("debug-port", (debug_port::PORT, 1), device)?;
        }
        if let Some(backend) = config.serial {
            let device = Arc::new(Mutex::new(Serial::new(COM1.0, line(COM1.1)?, backend)));
            board.add_ports("serial0", (COM1.0, serial::PORTS), device.clone())?;
            board.serial = Some(device);
        }
        board.add_function("i440fx", 0, 0, Arc::new(Mutex::new(HostBridge::new())))?;
        board.add_function("piix3", 1, 0, isa)?;
        board.add_function("piix4-pm", 1, 3, power)?;
        Ok(board)
    }

    fn add_ports<D: PortIo + Device + 'static>(
        &mut self,
        name: &str,
        ports: (u16, u16),
        device: Arc<Mutex<D>>,
    ) -> Result<(), BoardError> {
        self.claim(ports, device.clone())?;
        self.devices.push((name.to_owned(), device));
        Ok(())
    }

    fn claim<D: PortIo + 'static>(
        &self,
        (first, count): (u16, u16),
        device: Arc<Mutex<D>>,
    ) -> Result<(), BoardError> {
        let target = Arc::new(PortTarget(device));
        self.ports
            .claim(Priority::FIXED, first.into(), count.into(), target)?;
        Ok(())
    }

    /// Puts a PCI function at a slot. `name` names its state in saved machines and stays the same
    /// for the same device of the same machine.
    ///
    /// # Errors
    /// [`BoardError::Attach`] if the place is taken or is none.
    pub fn add_function<D: PciFunction + 'static>(
        &mut self,
        name: &str,
        slot: u8,
        function: u8,
        device: Arc<Mutex<D>>,
    ) -> Result<(), BoardError> {
        let address = PciAddress::new(slot, function).ok_or(AttachError::Full)?;
        self.pci.attach(address, device.clone())?;
        self.devices.push((name.to_owned(), device));
        Ok(())
    }

    /// Adds the IDE controller with its drives, which reach `memory`.
    ///
    /// # Errors
    /// [`BoardError::Thread`] if the host refuses a thread.
    pub fn add_ide(
        &mut self,
        drives: Vec<(Position, Attach)>,
        memory: &GuestMemory,
    ) -> Result<(), BoardError> {
        let line = |gsi| self.lines.source(gsi).ok_or(BoardError::Line(gsi));
        let [primary, secondary] = ide::INTERRUPTS;
        let lines = [line(primary)?, line(secondary)?];
        let device = Ide::new(drives, lines, memory).map_err(BoardError::Thread)?;
        self.ide = Some(Arc::clone(&device));
        self.add_function("piix3-ide", 1, 1, device)
    }

    /// Adds the display.
    ///
    /// # Errors
    /// As [`Board::add_function`].
    pub fn add_display(&mut self, display: Display) -> Result<(), BoardError> {
        let device = Arc::new(Mutex::new(display));
        self.display = Some(Arc::clone(&device));
        self.add_function("display", DISPLAY_SLOT, 0, device)
    }

    /// Adds what firmware reads of the machine.
    ///
    /// # Errors
    /// [`BoardError::Map`] if there is one already.
    pub fn add_firmware_configuration(&mut self, device: FwCfg) -> Result<(), BoardError> {
        self.add_ports("fw-cfg", fw_cfg::PORTS, Arc::new(Mutex::new(device)))
    }

    /// The interrupt line behind a slot's pin.
    #[must_use]
    pub fn interrupt_pin(&self, slot: u8, pin: Pin) -> Arc<dyn IrqLine> {
        self.intx.line(slot, pin)
    }

    /// What firmware would do before it starts a kernel: routes PCI's interrupts, places power
    /// management, gives every BAR an address and every function its interrupt line.
    pub fn prepare_without_firmware(&self) {
        self.isa.lock().set_usual_route();
        self.power.lock().set_usual_base();
        if let Some(ide) = &self.ide {
            ide.lock().enable_channels();
        }
        let mut low = PCI_WINDOW.start;
        let mut high = self.layout.high_pci_window().start;
        let mut port = PORT_WINDOW.0;
        for (address, function) in self.pci.functions() {
            let mut function = function.lock();
            let config = function.config_mut();
            let mut placed = true;
            for (index, kind, size) in config.bars().collect::<Vec<_>>() {
                let (next, end) = match kind {
                    BarKind::Port => (&mut port, PORT_WINDOW.1),
                    BarKind::Memory32 { .. } => (&mut low, PCI_WINDOW.end),
                    BarKind::Memory64 { .. } => (&mut high, self.layout.high_pci_window().end),
                };
                let base = next.next_multiple_of(size);
                if base.saturating_add(size) > end {
                    tracing::warn!(%address, index, size, "no address space left for a BAR");
                    placed = false;
                    continue;
                }
                config.assign_bar(index, base);
                *next = base + size;
            }
            if placed {
                config.enable_decoding();
            }
            if let Some(pin) = Pin::new(config.interrupt_pin())
                && address.device() != 1
            {
                let pirq = pin.pirq(address.device());
                config.set_interrupt_line(USUAL_ROUTE[usize::from(pirq)]);
            }
        }
        self.pci.refresh();
    }

    /// All devices back to power-on.
    pub fn reset(&self) {
        for (_, device) in &self.devices {
            device.lock().reset();
        }
        self.pci.refresh();
    }

    /// All devices come to rest.
    pub fn pause(&self) {
        for (_, device) in &self.devices {
            device.lock().pause();
        }
    }

    /// All devices go on.
    pub fn resume(&self) {
        for (_, device) in &self.devices {
            device.lock().resume();
        }
    }

    /// The states of all devices, by name.
    ///
    /// # Errors
    /// The first device's that cannot be saved.
    pub fn save(&self) -> Result<BTreeMap<String, DeviceState>, StateError> {
        self.devices
            .iter()
            .map(|(name, device)| Ok((name.clone(), device.lock().save()?)))
            .collect()
    }

    /// Takes over the states of all devices of a machine built alike.
    ///
    /// # Errors
    /// If a device has no state, a state has no device, or a device refuses its state.
    pub fn restore(&self, states: &BTreeMap<String, DeviceState>) -> Result<(), StateError> {
        for name in states.keys() {
            if !self.devices.iter().any(|(known, _)| known == name) {
                return Err(StateError::Invalid {
                    kind: "machine",
                    reason: format!(
                        "there is state for '{name}', which this machine does not have"
                    ),
                });
            }
        }
        for (name, device) in &self.devices {
            let state = states.get(name).ok_or_else(|| StateError::Invalid {
                kind: "machine",
                reason: format!("there is no state for '{name}'"),
            })?;
            device.lock().restore(state)?;
        }
        self.pci.refresh();
        Ok(())
    }
}

/// What the board's maker leaves in CMOS for firmware.
fn fill_cmos(rtc: &mut Rtc, vcpus: u8, layout: &MemoryLayout) {
    let kib = |bytes: u64| bytes >> 10;
    let above_16_mib = (layout.low_end().saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
    let above_4_gib = (layout.high().end - layout.high().start) >> 16;
    let extended = kib(layout.low_end().saturating_sub(1 << 20)).min(0xffff) as u16;
    let [el, eh] = extended.to_le_bytes();
    let [ml, mh] = above_16_mib.to_le_bytes();
    let high = above_4_gib.to_le_bytes();
    let values = [
        // 640 KiB of base memory.
        (0x15, 0x80),
        (0x16, 0x02),
        (0x17, el),
        (0x18, eh),
        (0x30, el),
        (0x31, eh),
        (0x34, ml),
        (0x35, mh),
        (0x5b, high[0]),
        (0x5c, high[1]),
        (0x5d, high[2]),
        (0x5f, vcpus.saturating_sub(1)),
        // Boot order where no device has an index: disk, CD-ROM, network.
        (0x38, 0x40),
        (0x3d, 0x32),
    ];
    for (index, value) in values {
        rtc.set_cmos(index, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::testing::ManualClock, devices::chardev::Discard, event::testing::RecordedEvents,
        interrupt::testing::ProbeController,
    };
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EventFd;

    fn board() -> Board {
        let wiring = Wiring {
            controller: Arc::new(ProbeController::default()),
            events: Arc::new(RecordedEvents::default()),
            clock: ManualClock::at_utc(1_700_000_000),
            timers: Timers::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
        };
        let config = BoardConfig {
            vcpus: 2,
            layout: MemoryLayout::new(5 << 30).unwrap(),
            serial: Some(Box::new(Discard)),
            debug_console: Some(Box::new(Discard)),
            pvpanic: true,
            clock_offset: 0,
        };
        Board::new(&wiring, config).unwrap()
    }

    fn read(map: &AddressMap, address: u64, length: usize) -> u64 {
        let mut data = vec![0; length];
        map.read(address, &mut data);
        crate::bus::value_of(&data)
    }

    #[test]
    fn firmware_finds_the_board() {
        let board = board();
        for (device, id) in [(0u32, 0x1237_8086), (8, 0x7000_8086), (11, 0x7113_8086)] {
            board
                .ports
                .write(0xcf8, &(1 << 31 | device << 8).to_le_bytes());
            assert_eq!(read(&board.ports, 0xcfc, 4), id);
        }
        assert_eq!(read(&board.ports, 0x402, 1), 0xe9);
        let cmos = |index: u8| {
            board.ports.write(0x70, &[index]);
            read(&board.ports, 0x71, 1)
        };
        assert_eq!(cmos(0x5f), 1);
        // 3 GiB less 16 MiB, and 2 GiB, both in units of 64 KiB.
        assert_eq!(cmos(0x34) | cmos(0x35) << 8, 0xbf00);
        assert_eq!(cmos(0x5b) | cmos(0x5c) << 8 | cmos(0x5d) << 16, 0x8000);
    }

    #[test]
    fn without_firmware_power_management_is_where_the_tables_say() {
        let board = board();
        assert_eq!(read(&board.ports, 0x604, 2), 0xffff);
        board.prepare_without_firmware();
        assert_eq!(read(&board.ports, 0x604, 2), 1);
        assert_eq!(board.intx.routed_to(2), Some(11));
        board.reset();
        assert_eq!(read(&board.ports, 0x604, 2), 0xffff);
        assert_eq!(board.intx.routed_to(2), None);
    }

    #[test]
    fn a_board_goes_on_where_another_was_saved() {
        let first = board();
        first.prepare_without_firmware();
        first.ports.write(0x3ff, &[0x5a]);
        first.pause();
        let mut states = first.save().unwrap();
        let second = board();
        second.restore(&states).unwrap();
        assert_eq!(read(&second.ports, 0x3ff, 1), 0x5a);
        assert_eq!(read(&second.ports, 0x604, 2), 1);
        let stray = states["rtc"].clone();
        states.insert("second-rtc".to_owned(), stray);
        assert!(
            board()
                .restore(&states)
                .unwrap_err()
                .to_string()
                .contains("second-rtc")
        );
        states.remove("second-rtc");
        states.remove("piix3");
        assert!(
            board()
                .restore(&states)
                .unwrap_err()
                .to_string()
                .contains("piix3")
        );
    }

    proptest! {
        /// Ports of every number and width, with the board's state changing under them.
        #[test]
        fn any_port_access_is_survived(
            accesses in prop::collection::vec((any::<u16>(), 0usize..3, any::<Option<u32>>()), 0..400),
        ) {
            let board = board();
            board.prepare_without_firmware();
            for (port, width, value) in accesses {
                let length = 1 << width;
                // Half of the accesses go where the devices are.
                let port = if port & 1 == 0 { port } else { 0x60 + port % 0x40 };
                match value {
                    Some(value) => board.ports.write(port.into(), &value.to_le_bytes()[..length]),
                    None => { read(&board.ports, port.into(), length); }
                }
            }
            board.pause();
            let states = board.save().unwrap();
            self::board().restore(&states).unwrap();
        }
    }
}
