//! A 16550A serial port with its FIFOs.
//!
//! Register names are those of National Semiconductor's PC16550D data sheet. The line has no
//! speed: what is sent is gone when the back end has taken it, and a receive FIFO below its
//! trigger level reports the character timeout at once. A back end that does not take output
//! holds back the transmitter, so that a guest waits instead of losing text.

use super::chardev::{CharBackend, CharFrontend};
use crate::{
    bus::BytePorts,
    device::{Device, DeviceState, SavedState, StateError},
    interrupt::IrqLine,
};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc};

/// Number of ports.
pub const PORTS: u16 = 8;
const FIFO: usize = 16;

const IER_RECEIVED: u8 = 1;
const IER_THR_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;

const IIR_NONE: u8 = 1;
const IIR_MODEM_STATUS: u8 = 0;
const IIR_THR_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_LINE_STATUS: u8 = 6;
const IIR_TIMEOUT: u8 = 0xc;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const FCR_CLEAR_TRANSMITTER: u8 = 1 << 2;

const LCR_BREAK: u8 = 1 << 6;
const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

const LSR_DATA: u8 = 1;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_BREAK: u8 = 1 << 4;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_IDLE: u8 = 1 << 6;

const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
/// The modem lines of a back end that is there.
const CONNECTED: u8 = MSR_CTS | MSR_DSR | MSR_DCD;

/// A serial port.
pub struct Serial {
    base: u16,
    irq: Arc<dyn IrqLine>,
    backend: Box<dyn CharBackend>,
    state: SerialState,
    /// The back end was told less room than it had input for.
    starved: bool,
}

/// Saved state, in the data sheet's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// Receive FIFO.
    pub receiver: VecDeque<u8>,
    /// Transmit FIFO: what the back end has not taken yet.
    pub transmitter: VecDeque<u8>,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// The error bits of the line status register.
    pub line_errors: u8,
    /// Modem status register.
    pub msr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// The transmitter has become empty and that has not been seen yet.
    pub thr_empty_pending: bool,
}

impl Default for SerialState {
    fn default() -> Self {
        Self {
            receiver: VecDeque::with_capacity(FIFO),
            transmitter: VecDeque::with_capacity(FIFO),
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            line_errors: 0,
            msr: CONNECTED,
            scr: 0,
            divisor: 12,
            thr_empty_pending: false,
        }
    }
}

impl SavedState for SerialState {
    const NAME: &'static str = "serial-16550";
    const VERSION: u32 = 1;
}

impl Serial {
    /// A port at `base` that interrupts through `irq` and is joined to `backend`.
    #[must_use]
    pub fn new(base: u16, irq: Arc<dyn IrqLine>, backend: Box<dyn CharBackend>) -> Self {
        Self {
            base,
            irq,
            backend,
            state: SerialState::default(),
            starved: false,
        }
    }

    /// The other end sends a break.
    pub fn receive_break(&mut self) {
        if !self.looped() {
            self.state.line_errors |= LSR_BREAK;
            self.push_received(0);
            self.update();
        }
    }

    fn looped(&self) -> bool {
        self.state.mcr & MCR_LOOP != 0
    }

    fn depth(&self) -> usize {
        if self.state.fcr & FCR_ENABLE != 0 {
            FIFO
        } else {
            1
        }
    }

    fn trigger(&self) -> usize {
        if self.state.fcr & FCR_ENABLE == 0 {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.state.fcr >> 6)]
    }

    fn push_received(&mut self, byte: u8) {
        if self.state.receiver.len() < self.depth() {
            self.state.receiver.push_back(byte);
        } else {
            self.state.line_errors |= LSR_OVERRUN;
            if self.depth() == 1 {
                // Without FIFOs the register is overwritten; with them the new byte is lost.
                self.state.receiver.clear();
                self.state.receiver.push_back(byte);
            }
        }
    }

    fn transmit(&mut self, byte: u8) {
        self.state.thr_empty_pending = false;
        if self.looped() {
            self.push_received(byte);
            self.state.thr_empty_pending = true;
            return;
        }
        if self.state.transmitter.is_empty() && self.backend.write(&[byte]) == 1 {
            self.state.thr_empty_pending = true;
        } else if self.state.transmitter.len() < self.depth() {
            self.state.transmitter.push_back(byte);
        }
        // A guest that writes into a full transmitter loses the byte, as on hardware.
    }

    fn drain(&mut self) {
        if self.state.transmitter.is_empty() {
            return;
        }
        let taken = self.backend.write(self.state.transmitter.make_contiguous());
        self.state
            .transmitter
            .drain(..taken.min(self.state.transmitter.len()));
        if self.state.transmitter.is_empty() {
            self.state.thr_empty_pending = true;
        }
    }

    fn line_status(&self) -> u8 {
        let mut status = self.state.line_errors;
        if !self.state.receiver.is_empty() {
            status |= LSR_DATA;
        }
        if self.state.transmitter.is_empty() {
            status |= LSR_THR_EMPTY | LSR_IDLE;
        }
        status
    }

    /// The modem lines: the other end's, or the port's own in loop-back.
    fn modem_lines(&self) -> u8 {
        if !self.looped() {
            return CONNECTED;
        }
        let wired = [
            (MCR_DTR, MSR_DSR),
            (MCR_RTS, MSR_CTS),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ];
        wired
            .iter()
            .filter(|(from, _)| self.state.mcr & from != 0)
            .fold(0, |lines, (_, to)| lines | to)
    }

    fn update_modem_lines(&mut self) {
        let before = self.state.msr;
        let now = self.modem_lines();
        let mut delta = (before ^ now) >> 4 & 0xf;
        // The ring indicator's delta counts only its trailing edge.
        if now & MSR_RI != 0 {
            delta &= !(MSR_RI >> 4);
        }
        self.state.msr = now | before & 0xf | delta;
    }

    /// The interrupt identification with the highest priority.
    fn identification(&self) -> u8 {
        let enabled = |bit| self.state.ier & bit != 0;
        let received = self.state.receiver.len();
        if enabled(IER_LINE_STATUS) && self.state.line_errors != 0 {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && received >= self.trigger() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && received > 0 {
            IIR_TIMEOUT
        } else if enabled(IER_THR_EMPTY) && self.state.thr_empty_pending {
            IIR_THR_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.state.msr & 0xf != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn update(&mut self) {
        // OUT2 gates the interrupt on a PC; loop-back disconnects the output.
        let gate = self.state.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
        self.irq.set(gate && self.identification() != IIR_NONE);
    }

    fn read_receiver(&mut self) -> u8 {
        let byte = self.state.receiver.pop_front().unwrap_or(0);
        if self.starved && self.state.receiver.is_empty() {
            self.starved = false;
            self.backend.readable();
        }
        byte
    }

    fn write_fifo_control(&mut self, value: u8) {
        let toggled = (self.state.fcr ^ value) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVER != 0 {
            self.state.receiver.clear();
            if self.starved {
                self.starved = false;
                self.backend.readable();
            }
        }
        if toggled || value & FCR_CLEAR_TRANSMITTER != 0 {
            if !self.state.transmitter.is_empty() {
                self.state.thr_empty_pending = true;
            }
            self.state.transmitter.clear();
        }
        self.state.fcr = if value & FCR_ENABLE != 0 {
            value & 0xc9
        } else {
            0
        };
    }
}

impl BytePorts for Serial {
    fn read_byte(&mut self, port: u16) -> u8 {
        let divisor = self.state.lcr & LCR_DLAB != 0;
        let value = match port.wrapping_sub(self.base) {
            0 if divisor => self.state.divisor as u8,
            1 if divisor => (self.state.divisor >> 8) as u8,
            0 => self.read_receiver(),
            1 => self.state.ier,
            2 => {
                let identification = self.identification();
                if identification == IIR_THR_EMPTY {
                    self.state.thr_empty_pending = false;
                }
                let fifos = self.state.fcr & FCR_ENABLE != 0;
                identification | if fifos { IIR_FIFOS } else { 0 }
            }
            3 => self.state.lcr,
            4 => self.state.mcr,
            5 => {
                let status = self.line_status();
                self.state.line_errors = 0;
                status
            }
            6 => {
                let status = self.state.msr;
                self.state.msr &= 0xf0;
                status
            }
            7 => self.state.scr,
            _ => 0xff,
        };
        self.update();
        value
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        let divisor = self.state.lcr & LCR_DLAB != 0;
        let low = self.state.divisor & 0xff;
        match port.wrapping_sub(self.base) {
            0 if divisor => self.state.divisor = self.state.divisor & 0xff00 | u16::from(value),
            1 if divisor => self.state.divisor = low | u16::from(value) << 8,
            0 => self.transmit(value),
            1 => {
                let newly = value & !self.state.ier;
                self.state.ier = value & 0xf;
                if newly & IER_THR_EMPTY != 0 && self.state.transmitter.is_empty() {
                    self.state.thr_empty_pending = true;
                }
            }
            2 => self.write_fifo_control(value),
            3 => {
                // A break sent into loop-back is received.
                if value & !self.state.lcr & LCR_BREAK != 0 && self.looped() {
                    self.state.line_errors |= LSR_BREAK;
                    self.push_received(0);
                }
                self.state.lcr = value;
            }
            4 => {
                self.state.mcr = value & 0x1f;
                self.update_modem_lines();
            }
            7 => self.state.scr = value,
            _ => {}
        }
        self.update();
    }
}

impl CharFrontend for Serial {
    fn receive(&mut self, data: &[u8]) -> usize {
        let room = if self.looped() {
            0
        } else {
            self.depth().saturating_sub(self.state.receiver.len())
        };
        let taken = room.min(data.len());
        self.state.receiver.extend(&data[..taken]);
        self.starved = taken < data.len();
        self.update();
        taken
    }

    fn writable(&mut self) {
        self.drain();
        self.update();
    }
}

impl Device for Serial {
    fn reset(&mut self) {
        self.state = SerialState::default();
        self.update();
        if std::mem::take(&mut self.starved) {
            self.backend.readable();
        }
    }

    fn resume(&mut self) {
        self.drain();
        self.update();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.state.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = SerialState::load(state)?;
        if state.receiver.len() > FIFO || state.transmitter.len() > FIFO {
            return Err(StateError::Invalid {
                kind: SerialState::NAME,
                reason: format!("a FIFO holds more than {FIFO} bytes"),
            });
        }
        self.state = state;
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::chardev::testing::Recorded, *};
    use crate::{devices::testing::state_goes_round, interrupt::testing::ProbeLine};
    use proptest::prelude::*;

    const BASE: u16 = 0x3f8;

    fn port(limit: usize) -> (Serial, Arc<ProbeLine>, Recorded) {
        let line = Arc::new(ProbeLine::default());
        let out = Recorded::with_limit(limit);
        let mut port = Serial::new(BASE, line.clone(), Box::new(out.clone()));
        port.write_byte(BASE + 4, MCR_DTR | MCR_RTS | MCR_OUT2);
        (port, line, out)
    }

    #[test]
    fn it_is_detected_as_a_16550a() {
        let (mut port, ..) = port(0);
        port.write_byte(BASE + 2, 1);
        assert_eq!(port.read_byte(BASE + 2) & 0xc0, 0xc0);
        port.write_byte(BASE + 2, 0);
        assert_eq!(port.read_byte(BASE + 2), 1);
        port.write_byte(BASE + 7, 0x5a);
        assert_eq!(port.read_byte(BASE + 7), 0x5a);
        port.write_byte(BASE + 3, LCR_DLAB);
        port.write_byte(BASE, 1);
        port.write_byte(BASE + 1, 2);
        assert_eq!((port.read_byte(BASE), port.state.divisor), (1, 0x201));
    }

    #[test]
    fn output_raises_thr_empty_and_reading_iir_clears_it() {
        let (mut port, line, out) = port(100);
        port.write_byte(BASE + 1, IER_THR_EMPTY);
        assert!(line.is_high());
        assert_eq!(port.read_byte(BASE + 2), IIR_THR_EMPTY);
        assert!(!line.is_high());
        port.write_byte(BASE, b'x');
        assert!(line.is_high());
        assert_eq!(out.0.lock().output, b"x");
        port.write_byte(BASE + 1, 0);
        assert!(!line.is_high());
    }

    #[test]
    fn a_slow_back_end_holds_back_the_transmitter() {
        let (mut port, line, out) = port(2);
        port.write_byte(BASE + 2, 1);
        port.write_byte(BASE + 1, IER_THR_EMPTY);
        port.read_byte(BASE + 2);
        for byte in b"abcdef" {
            port.write_byte(BASE, *byte);
        }
        port.read_byte(BASE + 2);
        assert_eq!(port.read_byte(BASE + 5) & (LSR_THR_EMPTY | LSR_IDLE), 0);
        assert!(!line.is_high());
        out.0.lock().limit = 100;
        port.writable();
        assert_eq!(out.0.lock().output, b"abcdef");
        assert!(line.is_high());
        assert_eq!(port.read_byte(BASE + 5), LSR_THR_EMPTY | LSR_IDLE);
    }

    #[test]
    fn input_follows_the_trigger_level_and_asks_for_more() {
        let (mut port, line, out) = port(0);
        port.write_byte(BASE + 2, 0x41);
        port.write_byte(BASE + 1, IER_RECEIVED);
        assert_eq!(port.receive(b"ab"), 2);
        assert_eq!(port.read_byte(BASE + 2) & 0xf, IIR_TIMEOUT);
        assert_eq!(port.receive(&[b'c'; 20]), 14);
        assert_eq!(port.read_byte(BASE + 2) & 0xf, IIR_RECEIVED);
        assert!(line.is_high());
        for _ in 0..16 {
            assert_eq!(out.0.lock().wakes, 0);
            port.read_byte(BASE);
        }
        assert_eq!(out.0.lock().wakes, 1);
        assert!(!line.is_high());
        assert_eq!(port.read_byte(BASE + 5) & LSR_DATA, 0);
    }

    #[test]
    fn without_fifos_one_byte_is_taken_at_a_time() {
        let (mut port, ..) = port(0);
        assert_eq!(port.receive(b"ab"), 1);
        assert_eq!(port.receive(b"b"), 0);
        assert_eq!(port.read_byte(BASE), b'a');
    }

    #[test]
    fn loop_back_turns_output_and_modem_lines_round() {
        let (mut port, line, out) = port(10);
        port.write_byte(BASE + 1, 0xf);
        port.write_byte(BASE + 4, MCR_LOOP | MCR_RTS | MCR_OUT2);
        assert_eq!(port.read_byte(BASE + 6) & 0xf0, MSR_CTS | MSR_DCD);
        port.write_byte(BASE, b'z');
        port.write_byte(BASE, b'y');
        assert_eq!(port.receive(b"q"), 0);
        assert!(!line.is_high());
        assert_ne!(port.read_byte(BASE + 5) & LSR_OVERRUN, 0);
        assert_eq!(port.read_byte(BASE), b'y');
        assert!(out.0.lock().output.is_empty());
        port.write_byte(BASE + 4, 0);
        assert_eq!(port.read_byte(BASE + 6), CONNECTED | 2);
    }

    #[test]
    fn a_break_is_a_line_status_interrupt() {
        let (mut port, line, _) = port(0);
        port.write_byte(BASE + 1, IER_LINE_STATUS);
        port.receive_break();
        assert!(line.is_high());
        assert_eq!(port.read_byte(BASE + 2), IIR_LINE_STATUS);
        assert_ne!(port.read_byte(BASE + 5) & LSR_BREAK, 0);
        assert!(!line.is_high());
    }

    #[test]
    fn clearing_the_fifos_empties_them() {
        let (mut port, ..) = port(0);
        port.write_byte(BASE + 2, 1);
        port.receive(b"abc");
        port.write_byte(BASE, b'x');
        port.write_byte(BASE + 2, 7);
        assert_eq!(port.read_byte(BASE + 5), LSR_THR_EMPTY | LSR_IDLE);
    }

    #[test]
    fn state_goes_on_and_the_line_with_it() {
        let (mut port, ..) = port(0);
        port.write_byte(BASE + 1, IER_RECEIVED);
        port.receive(b"a");
        let (mut other, line, _) = self::port(0);
        state_goes_round(&mut port, &mut other);
        assert!(line.is_high());
        assert_eq!(other.read_byte(BASE), b'a');
        other.reset();
        assert!(!line.is_high());
        let mut long = port.save().unwrap();
        long.data["receiver"] = serde_json::json!(vec![0; 17]);
        assert!(other.restore(&long).is_err());
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            accesses in prop::collection::vec((0u16..8, any::<Option<u8>>()), 0..256),
        ) {
            let (mut port, ..) = port(7);
            for (offset, value) in accesses {
                match value {
                    Some(value) => port.write_byte(BASE + offset, value),
                    None => { port.read_byte(BASE + offset); }
                }
                port.receive(b"in");
                prop_assert!(port.state.receiver.len() <= FIFO && port.state.transmitter.len() <= FIFO);
            }
        }
    }
}
