//! The keyboard controller, Intel 8042, at ports 0x60 and 0x64, with a PS/2 keyboard.
//!
//! Names follow the *IBM PS/2 Hardware Interface Technical Reference*. There is no auxiliary
//! port: its commands are answered as a controller without one does, and pointing is left to
//! virtio and USB. The output port's reset line resets the machine; its A20 bit is only kept,
//! since KVM never masks address line 20.

use super::keyboard::KeyboardState;
use crate::{
    bus::BytePorts,
    device::{Device, DeviceState, SavedState, StateError},
    event::{EventSink, MachineEvent},
    interrupt::IrqLine,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The data port.
pub const DATA: u16 = 0x60;
/// The command and status port.
pub const COMMAND: u16 = 0x64;

const STATUS_OUTPUT_FULL: u8 = 1;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;

const BYTE_INTERRUPT: u8 = 1;
const BYTE_SYSTEM: u8 = 1 << 2;
const BYTE_DISABLED: u8 = 1 << 4;
const BYTE_AUX_DISABLED: u8 = 1 << 5;
const BYTE_TRANSLATE: u8 = 1 << 6;

const OUTPUT_RESET: u8 = 1;
const OUTPUT_A20: u8 = 1 << 1;

/// The controller and the keyboard.
pub struct I8042 {
    irq: Arc<dyn IrqLine>,
    events: Arc<dyn EventSink>,
    state: I8042State,
}

/// Saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    /// The command byte.
    pub command_byte: u8,
    /// The output port.
    pub output_port: u8,
    /// The controller's own answer in the output buffer, before the keyboard's bytes.
    pub answer: Option<u8>,
    /// The command that waits for its parameter.
    pub command: Option<u8>,
    /// The last byte came through the command port.
    pub last_was_command: bool,
    /// The byte read last, which the data port keeps showing.
    pub last_read: u8,
    /// The keyboard.
    pub keyboard: KeyboardState,
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            command_byte: BYTE_INTERRUPT | BYTE_SYSTEM | BYTE_TRANSLATE | BYTE_AUX_DISABLED,
            output_port: OUTPUT_RESET | OUTPUT_A20,
            answer: None,
            command: None,
            last_was_command: false,
            last_read: 0,
            keyboard: KeyboardState::default(),
        }
    }
}

impl SavedState for I8042State {
    const NAME: &'static str = "i8042";
    const VERSION: u32 = 1;
}

impl I8042 {
    /// A controller that interrupts through `irq` (ISA line 1) and reports resets to `events`.
    #[must_use]
    pub fn new(irq: Arc<dyn IrqLine>, events: Arc<dyn EventSink>) -> Self {
        Self {
            irq,
            events,
            state: I8042State::default(),
        }
    }

    /// A key goes down or up. `key` is its scan code in set 1 (libvirt's code set `xt`), with bit
    /// 7 set for keys that are prefixed with 0xe0.
    pub fn key(&mut self, key: u8, down: bool) {
        let translated = self.state.command_byte & BYTE_TRANSLATE != 0;
        self.state.keyboard.key(key, down, translated);
        self.update();
    }

    fn keyboard_on(&self) -> bool {
        self.state.command_byte & BYTE_DISABLED == 0
    }

    fn output_full(&self) -> bool {
        let from_keyboard = self.keyboard_on() && !self.state.keyboard.output.is_empty();
        self.state.answer.is_some() || from_keyboard
    }

    fn update(&mut self) {
        // Only the keyboard's bytes interrupt, as only they are driven by its clock.
        let keyboard = self.state.answer.is_none() && self.output_full();
        let enabled = self.state.command_byte & BYTE_INTERRUPT != 0;
        self.irq.set(keyboard && enabled);
    }

    fn read_data(&mut self) -> u8 {
        if let Some(answer) = self.state.answer.take() {
            self.state.last_read = answer;
        } else if self.keyboard_on()
            && let Some(byte) = self.state.keyboard.output.pop_front()
        {
            self.state.last_read = byte;
            // Every byte has an edge of its own.
            self.irq.set(false);
        }
        self.state.last_read
    }

    fn write_command(&mut self, command: u8) {
        self.state.command = None;
        match command {
            0x20 => self.state.answer = Some(self.state.command_byte),
            0x60 | 0xd1..=0xd4 => self.state.command = Some(command),
            0xa7 => self.state.command_byte |= BYTE_AUX_DISABLED,
            0xa8 => self.state.command_byte &= !BYTE_AUX_DISABLED,
            // The auxiliary port's test finds its clock line stuck: there is none.
            0xa9 => self.state.answer = Some(1),
            0xaa => {
                self.state.command_byte |= BYTE_SYSTEM;
                self.state.answer = Some(0x55);
            }
            0xab => self.state.answer = Some(0),
            0xad => self.state.command_byte |= BYTE_DISABLED,
            0xae => self.state.command_byte &= !BYTE_DISABLED,
            // The input port: keyboard not locked.
            0xc0 => self.state.answer = Some(0x80),
            0xd0 => self.state.answer = Some(self.output_port()),
            0xdd => self.state.output_port &= !OUTPUT_A20,
            0xdf => self.state.output_port |= OUTPUT_A20,
            0xf0..=0xff if command & OUTPUT_RESET == 0 => self.events.signal(MachineEvent::Reset),
            _ => {}
        }
    }

    fn output_port(&self) -> u8 {
        self.state.output_port & 3 | if self.output_full() { 1 << 4 } else { 0 }
    }

    fn write_data(&mut self, byte: u8) {
        match self.state.command.take() {
            Some(0x60) => self.state.command_byte = byte & 0x7f,
            Some(0xd1) => {
                self.state.output_port = byte & 3;
                if byte & OUTPUT_RESET == 0 {
                    self.events.signal(MachineEvent::Reset);
                }
            }
            // As if the keyboard, or the absent mouse, had sent it. Without an auxiliary port the
            // status shows both alike, which is how a driver finds that there is none.
            Some(0xd2 | 0xd3) => self.state.answer = Some(byte),
            // Sent to the auxiliary port, where nobody is.
            Some(0xd4) => {}
            _ => {
                self.state.command_byte &= !BYTE_DISABLED;
                self.state.keyboard.write(byte);
            }
        }
    }
}

impl BytePorts for I8042 {
    fn read_byte(&mut self, port: u16) -> u8 {
        let value = if port == DATA {
            self.read_data()
        } else {
            let mut status = STATUS_UNLOCKED;
            if self.output_full() {
                status |= STATUS_OUTPUT_FULL;
            }
            if self.state.command_byte & BYTE_SYSTEM != 0 {
                status |= STATUS_SYSTEM;
            }
            if self.state.last_was_command {
                status |= STATUS_COMMAND;
            }
            status
        };
        self.update();
        value
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        self.state.last_was_command = port == COMMAND;
        if port == COMMAND {
            self.write_command(value);
        } else {
            self.write_data(value);
        }
        self.update();
    }
}

impl Device for I8042 {
    fn reset(&mut self) {
        self.state = I8042State::default();
        self.update();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.state.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = I8042State::load(state)?;
        if !state.keyboard.is_valid() {
            return Err(StateError::Invalid {
                kind: I8042State::NAME,
                reason: "the keyboard's buffer or scan code set".to_owned(),
            });
        }
        self.state = state;
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        devices::testing::state_goes_round, event::testing::RecordedEvents,
        interrupt::testing::ProbeLine,
    };
    use proptest::prelude::*;

    fn controller() -> (I8042, Arc<ProbeLine>, Arc<RecordedEvents>) {
        let line = Arc::new(ProbeLine::default());
        let events = Arc::new(RecordedEvents::default());
        (I8042::new(line.clone(), events.clone()), line, events)
    }

    fn command(controller: &mut I8042, bytes: &[u8]) -> Option<u8> {
        controller.write_byte(COMMAND, bytes[0]);
        for byte in &bytes[1..] {
            controller.write_byte(DATA, *byte);
        }
        let full = controller.read_byte(COMMAND) & STATUS_OUTPUT_FULL != 0;
        full.then(|| controller.read_byte(DATA))
    }

    #[test]
    fn the_controller_tests_well_and_has_no_auxiliary_port() {
        let (mut c, line, _) = controller();
        assert_eq!(command(&mut c, &[0xaa]), Some(0x55));
        assert_eq!(command(&mut c, &[0xab]), Some(0));
        assert_eq!(command(&mut c, &[0xa9]), Some(1));
        assert_eq!(command(&mut c, &[0xd4, 0xff]), None);
        command(&mut c, &[0x60, 0x47]);
        assert_eq!(command(&mut c, &[0x20]), Some(0x47));
        assert_eq!(line.edges(), 0);
    }

    #[test]
    fn keyboard_bytes_each_have_an_edge() {
        let (mut c, line, _) = controller();
        c.write_byte(DATA, 0xff);
        assert!(line.is_high());
        assert_eq!((c.read_byte(DATA), line.edges()), (0xfa, 2));
        assert_eq!(c.read_byte(DATA), 0xaa);
        assert!(!line.is_high());
        c.key(0x1e, true);
        c.key(0x1e, false);
        assert_eq!([c.read_byte(DATA), c.read_byte(DATA)], [0x1e, 0x9e]);
        assert_eq!(
            c.read_byte(DATA),
            0x9e,
            "the port keeps showing the last byte"
        );
    }

    #[test]
    fn a_disabled_keyboard_is_silent_until_enabled() {
        let (mut c, line, _) = controller();
        command(&mut c, &[0xad]);
        c.key(0x1e, true);
        assert!(!line.is_high());
        assert_eq!(command(&mut c, &[0xae]), Some(0x1e));
    }

    #[test]
    fn both_reset_lines_reset() {
        let (mut c, _, events) = controller();
        command(&mut c, &[0xff]);
        assert_eq!(events.take(), []);
        command(&mut c, &[0xfe]);
        command(&mut c, &[0xd1, 2]);
        assert_eq!(events.take(), [MachineEvent::Reset; 2]);
    }

    #[test]
    fn a20_is_kept() {
        let (mut c, ..) = controller();
        command(&mut c, &[0xdd]);
        assert_eq!(command(&mut c, &[0xd0]), Some(1));
        command(&mut c, &[0xd1, 3]);
        assert_eq!(command(&mut c, &[0xd0]), Some(3));
    }

    #[test]
    fn state_goes_on() {
        let (mut c, ..) = controller();
        c.key(0x1e, true);
        let (mut other, line, _) = controller();
        state_goes_round(&mut c, &mut other);
        assert!(line.is_high());
        assert_eq!(other.read_byte(DATA), 0x1e);
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            accesses in prop::collection::vec((any::<bool>(), any::<Option<u8>>()), 0..256),
        ) {
            let (mut c, ..) = controller();
            for (data, value) in accesses {
                let port = if data { DATA } else { COMMAND };
                match value {
                    Some(value) => c.write_byte(port, value),
                    None => { c.read_byte(port); }
                }
                c.key(value.unwrap_or(1), data);
                prop_assert!(c.state.keyboard.is_valid());
            }
        }
    }
}
