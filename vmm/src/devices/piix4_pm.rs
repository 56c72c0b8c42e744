//! Power management, 82371AB (PIIX4), function 3: the ACPI registers.
//!
//! *82371AB datasheet*, order number 290562, chapter 7, and the *ACPI Specification*, section 4.8.
//! The register block moves with PMBASE: PM1a event and control, the 24-bit timer at 3.579545 MHz,
//! general purpose events. The machine is always in ACPI mode (SCI_EN reads as one, there is no
//! SMI command port). Sleep type 0 is S5; other sleep states are not offered and ignored. SMBus is
//! not modelled.

use super::i440fx::SUBSYSTEM;
use crate::{
    bus::{set_value, value_of},
    clock::{SharedClock, Timer, TimerClient},
    device::{Device, DeviceState, SavedState, StateError},
    event::{EventSink, MachineEvent},
    interrupt::IrqLine,
    pci::{ConfigSpace, ConfigState, Identity, PciFunction, Space, Window},
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// Where firmware puts the block, and a machine that boots without.
pub const USUAL_BASE: u16 = 0x600;
/// Offset of the PM1a control register in the block.
pub const CONTROL: u16 = 4;
/// Offset of the PM timer in the block.
pub const TIMER: u16 = 8;
/// Offset of general purpose event block 0.
pub const GENERAL_EVENTS: u16 = 0xc;
/// The ISA interrupt that the SCI is wired to.
pub const SCI: u8 = 9;

const PMBASE: u8 = 0x40;
const DEVACTB_BYTE3: u8 = 0x5b;
const PMREGMISC: u8 = 0x80;
const WINDOW: u8 = 8;
const WINDOW_SIZE: u64 = 64;

const TIMER_STATUS: u16 = 1;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const STATUS_BITS: u16 = TIMER_STATUS | GLOBAL | POWER_BUTTON | 1 << 10 | 1 << 15;
const ENABLE_BITS: u16 = TIMER_STATUS | GLOBAL | POWER_BUTTON | 1 << 10;
const SCI_ENABLE: u16 = 1;
const SLEEP_TYPE: u16 = 7 << 10;
const SLEEP_ENABLE: u16 = 1 << 13;

const TIMER_HERTZ: u128 = 3_579_545;
const TIMER_TOP: u64 = 1 << 23;

/// Power management of the board.
pub struct PowerManagement {
    config: ConfigSpace,
    clock: SharedClock,
    sci: Arc<dyn IrqLine>,
    timer: Arc<dyn Timer>,
    events: Arc<dyn EventSink>,
    registers: Registers,
    /// The timer's value when its top bit was looked at last.
    seen: u64,
    /// Ticks that the guest has counted on top of the clock's (after a restore).
    base: u64,
}

/// The registers of the block, in ACPI's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registers {
    /// PM1 status.
    pub status: u16,
    /// PM1 enable.
    pub enable: u16,
    /// PM1 control, without SCI_EN.
    pub control: u16,
    /// General purpose status.
    pub general_status: u16,
    /// General purpose enable.
    pub general_enable: u16,
}

/// Saved state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerManagementState {
    /// Configuration space.
    pub config: ConfigState,
    /// The block.
    pub registers: Registers,
    /// The PM timer's count, with the bits beyond its width.
    pub ticks: u64,
}

impl SavedState for PowerManagementState {
    const NAME: &'static str = "piix4-pm";
    const VERSION: u32 = 1;
}

impl PowerManagement {
    /// The function at power-on, without a place for its registers.
    #[must_use]
    pub fn new(
        clock: SharedClock,
        sci: Arc<dyn IrqLine>,
        timer: Arc<dyn Timer>,
        events: Arc<dyn EventSink>,
    ) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x7113,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            class: 0x06_8000,
            revision: 3,
        });
        config.set_interrupt_pin(1);
        config.preset(PMBASE, &[1]);
        config.allow(PMBASE, &[0xc0, 0xff]);
        config.allow(0x44, &[0xff; 0x14]);
        // Bit 25 of DEVACTB: SMIs for APM are set up already, so firmware does not try to.
        config.preset(DEVACTB_BYTE3, &[2]);
        config.allow(0x5c, &[0xff; 0x24]);
        config.allow(PMREGMISC, &[1]);
        Self {
            config,
            clock,
            sci,
            timer,
            events,
            registers: Registers::default(),
            seen: 0,
            base: 0,
        }
    }

    /// Puts the registers at [`USUAL_BASE`], for a machine that boots without firmware.
    pub fn set_usual_base(&mut self) {
        self.config.write(PMBASE, &USUAL_BASE.to_le_bytes());
        self.config.write(PMREGMISC, &[1]);
        self.config.set_interrupt_line(SCI);
    }

    /// Somebody pushes the power button.
    pub fn push_power_button(&mut self) {
        self.registers.status |= POWER_BUTTON;
        self.update();
    }

    /// Raises a general purpose event (0 to 15).
    pub fn raise_general_event(&mut self, number: u8) {
        self.registers.general_status |= 1u16.checked_shl(number.into()).unwrap_or(0);
        self.update();
    }

    fn ticks(&self) -> u64 {
        let ticks = self.clock.running().as_nanos() * TIMER_HERTZ / 1_000_000_000;
        self.base.wrapping_add(ticks as u64)
    }

    /// TMR_STS is set whenever the timer's top bit changes.
    fn look_at_timer(&mut self) {
        let ticks = self.ticks();
        if ticks / TIMER_TOP != self.seen / TIMER_TOP {
            self.registers.status |= TIMER_STATUS;
        }
        self.seen = ticks;
    }

    fn update(&mut self) {
        let fixed = self.registers.status & self.registers.enable & ENABLE_BITS;
        let general = self.registers.general_status & self.registers.general_enable;
        self.sci.set(fixed != 0 || general != 0);
    }

    fn arm(&self) {
        let wanted = self.registers.enable & !self.registers.status & TIMER_STATUS != 0;
        self.timer.set(wanted.then(|| {
            let left = u128::from(TIMER_TOP - self.ticks() % TIMER_TOP);
            // Rounded up and a tick later, so that the bit has changed when the timer comes.
            let nanos = (left + 1) * 1_000_000_000 / TIMER_HERTZ + 1;
            self.clock.running() + Duration::from_nanos(nanos as u64)
        }));
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let registers = &self.registers;
        let word = match offset & !1 {
            0 => {
                self.look_at_timer();
                self.registers.status
            }
            2 => registers.enable,
            4 => registers.control | SCI_ENABLE,
            8 => self.ticks() as u16,
            10 => (self.ticks() >> 16) as u16 & 0xff,
            12 => registers.general_status,
            14 => registers.general_enable,
            _ => 0,
        };
        word.to_le_bytes()[(offset & 1) as usize]
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let shift = (offset & 1) * 8;
        let bits = u16::from(value) << shift;
        let kept = !(0xff << shift);
        let registers = &mut self.registers;
        match offset & !1 {
            0 => {
                self.look_at_timer();
                self.registers.status &= !(bits & STATUS_BITS);
            }
            2 => registers.enable = registers.enable & kept | bits & ENABLE_BITS,
            4 => self.write_control(kept, bits),
            12 => registers.general_status &= !bits,
            14 => registers.general_enable = registers.general_enable & kept | bits,
            _ => {}
        }
    }

    fn write_control(&mut self, kept: u16, bits: u16) {
        let control = self.registers.control & kept | bits;
        self.registers.control = control & SLEEP_TYPE;
        if bits & SLEEP_ENABLE != 0 {
            if control & SLEEP_TYPE == 0 {
                self.events.signal(MachineEvent::PowerOff);
            } else {
                tracing::info!(
                    kind = (control & SLEEP_TYPE) >> 10,
                    "the guest asks for a sleep state that the machine does not have"
                );
            }
        }
    }
}

impl PciFunction for PowerManagement {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn windows(&self) -> Vec<Window> {
        let base = u64::from(self.config.word(PMBASE) & 0xffc0);
        let on = self.config.byte(PMREGMISC) & 1 != 0 && base != 0;
        let window = Window {
            window: WINDOW,
            space: Space::Port,
            base,
            size: WINDOW_SIZE,
        };
        Vec::from_iter(on.then_some(window))
    }

    fn window_read(&mut self, _window: u8, offset: u64, data: &mut [u8]) {
        if offset == u64::from(TIMER) && data.len() == 4 {
            // The timer is read whole, so that its bytes belong together.
            set_value(data, self.ticks() & 0xff_ffff);
            return;
        }
        for (byte, index) in data.iter_mut().zip(0..) {
            *byte = self.read_register(offset + index);
        }
    }

    fn window_write(&mut self, _window: u8, offset: u64, data: &[u8]) {
        if offset == u64::from(CONTROL) && data.len() >= 2 {
            // Sleep type and enable bit are written together.
            self.write_control(0, value_of(&data[..2]) as u16);
            return;
        }
        for (byte, index) in data.iter().zip(0..) {
            self.write_register(offset + index, *byte);
        }
        self.update();
        self.arm();
    }
}

impl TimerClient for PowerManagement {
    fn timer_expired(&mut self) {
        self.look_at_timer();
        self.update();
        self.arm();
    }
}

impl Device for PowerManagement {
    fn reset(&mut self) {
        self.config.reset();
        self.registers = Registers::default();
        self.update();
        self.arm();
    }

    fn pause(&mut self) {
        self.look_at_timer();
        self.timer.set(None);
    }

    fn resume(&mut self) {
        self.update();
        self.arm();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        PowerManagementState {
            config: self.config.save(),
            registers: self.registers.clone(),
            ticks: self.ticks(),
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = PowerManagementState::load(state)?;
        self.config.restore(&state.config)?;
        self.registers = state.registers;
        self.base = 0;
        self.base = state.ticks.wrapping_sub(self.ticks());
        self.seen = state.ticks;
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::testing::{ManualClock, RecordedTimer},
        devices::testing::state_goes_round,
        event::testing::RecordedEvents,
        interrupt::testing::ProbeLine,
    };
    use proptest::prelude::*;

    struct Bench {
        pm: PowerManagement,
        clock: Arc<ManualClock>,
        line: Arc<ProbeLine>,
        timer: Arc<RecordedTimer>,
        events: Arc<RecordedEvents>,
    }

    fn bench() -> Bench {
        let clock = ManualClock::at_utc(0);
        let line = Arc::new(ProbeLine::default());
        let timer = Arc::new(RecordedTimer::default());
        let events = Arc::new(RecordedEvents::default());
        let pm = PowerManagement::new(clock.clone(), line.clone(), timer.clone(), events.clone());
        Bench {
            pm,
            clock,
            line,
            timer,
            events,
        }
    }

    impl Bench {
        fn read(&mut self, offset: u16, length: usize) -> u64 {
            let mut data = vec![0; length];
            self.pm.window_read(WINDOW, offset.into(), &mut data);
            value_of(&data)
        }

        fn write(&mut self, offset: u16, value: u16) {
            self.pm
                .window_write(WINDOW, offset.into(), &value.to_le_bytes());
        }
    }

    #[test]
    fn the_block_lies_where_the_registers_say() {
        let mut b = bench();
        assert_eq!(b.pm.windows(), []);
        b.pm.set_usual_base();
        assert_eq!(b.pm.windows()[0].base, 0x600);
        b.pm.config_write(PMBASE, &[0x7f, 0xb0]);
        assert_eq!(b.pm.windows()[0].base, 0xb040);
        assert_eq!(b.pm.config.word(PMBASE), 0xb041);
        b.pm.config_write(PMREGMISC, &[0]);
        assert_eq!(b.pm.windows(), []);
        assert_eq!(b.pm.config.byte(DEVACTB_BYTE3), 2);
    }

    #[test]
    fn the_power_button_raises_the_sci_once_enabled() {
        let mut b = bench();
        b.pm.push_power_button();
        assert!(!b.line.is_high());
        b.write(2, POWER_BUTTON);
        assert!(b.line.is_high());
        b.write(0, POWER_BUTTON);
        assert!(!b.line.is_high());
        assert_eq!(b.read(0, 2), 0);
    }

    #[test]
    fn only_s5_switches_off() {
        let mut b = bench();
        assert_eq!(b.read(CONTROL, 2), 1);
        b.write(CONTROL, 1 << 10 | SLEEP_ENABLE);
        assert_eq!(b.events.take(), []);
        b.write(CONTROL, SLEEP_ENABLE);
        assert_eq!(b.events.take(), [MachineEvent::PowerOff]);
        b.pm.window_write(WINDOW, 5, &[0x20]);
        assert_eq!(b.events.take(), [MachineEvent::PowerOff]);
    }

    #[test]
    fn the_timer_runs_at_its_rate_and_tells_of_its_top_bit() {
        let mut b = bench();
        b.clock.advance(Duration::from_secs(1));
        assert_eq!(b.read(TIMER, 4), 3_579_545);
        assert_eq!(b.read(TIMER + 1, 1), 3_579_545 >> 8 & 0xff);
        b.write(2, TIMER_STATUS);
        let deadline = b.timer.0.lock().unwrap();
        b.clock.advance(deadline - Duration::from_secs(1));
        b.pm.timer_expired();
        assert!(b.line.is_high());
        assert_eq!(*b.timer.0.lock(), None);
        b.write(0, TIMER_STATUS);
        assert!(!b.line.is_high() && b.timer.0.lock().is_some());
        b.clock.advance(Duration::from_secs(3));
        assert!(b.read(TIMER, 4) < 1 << 24);
    }

    #[test]
    fn general_events_are_levels_of_the_sci() {
        let mut b = bench();
        b.write(GENERAL_EVENTS + 2, 0x8001);
        b.pm.raise_general_event(1);
        assert!(!b.line.is_high());
        b.pm.raise_general_event(15);
        b.pm.raise_general_event(16);
        assert!(b.line.is_high());
        assert_eq!(b.read(GENERAL_EVENTS, 4), 0x8001_8002);
        b.write(GENERAL_EVENTS, 0x8000);
        assert!(!b.line.is_high());
    }

    #[test]
    fn the_timer_goes_on_where_it_was_saved() {
        let mut b = bench();
        b.clock.advance(Duration::from_secs(7));
        b.write(2, TIMER_STATUS | POWER_BUTTON);
        b.pm.push_power_button();
        let before = b.read(TIMER, 4);
        let mut other = bench();
        other.clock.advance(Duration::from_secs(1));
        state_goes_round(&mut b.pm, &mut other.pm);
        assert_eq!(other.read(TIMER, 4), before);
        assert!(other.line.is_high() && other.timer.0.lock().is_none());
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            accesses in prop::collection::vec((0u64..64, 0usize..3, any::<Option<u32>>()), 0..128),
        ) {
            let mut b = bench();
            for (offset, width, value) in accesses {
                let length = (1usize << width).min(64 - offset as usize);
                match value {
                    Some(value) => b.pm.window_write(WINDOW, offset, &value.to_le_bytes()[..length]),
                    None => b.pm.window_read(WINDOW, offset, &mut vec![0; length]),
                }
                b.clock.advance(Duration::from_millis(300));
            }
            prop_assert_eq!(b.read(CONTROL, 2) & 1, 1);
        }
    }
}
