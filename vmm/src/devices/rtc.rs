//! The real-time clock and its CMOS memory, an MC146818 at ports 0x70 and 0x71.
//!
//! Register names are those of Motorola's MC146818 data sheet. Time follows the host's UTC with
//! an offset that the guest's settings change. Modelled: BCD and binary, 12 and 24 hours, the
//! update-in-progress bit, SET, periodic, alarm and update-ended interrupts, and 128 bytes of
//! memory. Left out: daylight saving (DSE), the square wave output, other time bases.

use crate::{
    bus::BytePorts,
    clock::{SharedClock, Timer, TimerClient},
    device::{Device, DeviceState, SavedState, StateError},
    interrupt::IrqLine,
};
use jiff::{civil::DateTime, tz::TimeZone};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// Index and data port.
pub const PORTS: (u16, u16) = (0x70, 2);

/// Where the century is kept; the ACPI tables say so.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const DAY_OF_WEEK: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REGISTER_A: u8 = 0xa;
const REGISTER_B: u8 = 0xb;
const REGISTER_C: u8 = 0xc;
const REGISTER_D: u8 = 0xd;

const A_UPDATING: u8 = 0x80;
const A_USUAL: u8 = 0x26;
const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
const B_SET: u8 = 0x80;
/// The enable bits in B have the places of the flags in C.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE_ENDED: u8 = 0x10;
const FLAGS: u8 = PERIODIC | ALARM | UPDATE_ENDED;
const C_REQUEST: u8 = 0x80;
const D_VALID: u8 = 0x80;
const PM: u8 = 0x80;
/// An alarm register with both top bits set matches anything.
const ANY: u8 = 0xc0;

/// How long before a second's end the update-in-progress bit is set, in microseconds.
const UPDATE_WARNING: u32 = 244;
const DAY_SECONDS: i64 = 86_400;

/// The clock.
pub struct Rtc {
    clock: SharedClock,
    irq: Arc<dyn IrqLine>,
    timer: Arc<dyn Timer>,
    state: RtcState,
    /// Up to when (guest time in seconds) seconds have been looked at for alarms and updates.
    seen: i64,
    /// Up to when (running time) periods have been counted.
    seen_running: Duration,
}

/// Saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcState {
    /// The index register.
    pub index: u8,
    /// All registers and memory; the time's registers count only while SET stops the clock.
    pub cmos: Vec<u8>,
    /// Seconds by which the guest's time is ahead of UTC.
    pub offset: i64,
}

impl SavedState for RtcState {
    const NAME: &'static str = "rtc-mc146818";
    const VERSION: u32 = 1;
}

impl Rtc {
    /// A clock that is `offset` seconds ahead of UTC.
    #[must_use]
    pub fn new(
        clock: SharedClock,
        irq: Arc<dyn IrqLine>,
        timer: Arc<dyn Timer>,
        offset: i64,
    ) -> Self {
        let mut cmos = vec![0; 128];
        cmos[usize::from(REGISTER_A)] = A_USUAL;
        cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        let mut rtc = Self {
            seen: 0,
            seen_running: clock.running(),
            clock,
            irq,
            timer,
            state: RtcState {
                index: REGISTER_D,
                cmos,
                offset,
            },
        };
        rtc.seen = rtc.now();
        rtc
    }

    /// Sets a byte of memory, as the board's maker would. Registers 0 to 0x0d are not memory.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        if index > REGISTER_D
            && let Some(byte) = self.state.cmos.get_mut(usize::from(index))
        {
            *byte = value;
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.state.cmos[usize::from(index & 0x7f)]
    }

    fn set_register(&mut self, index: u8, value: u8) {
        self.state.cmos[usize::from(index & 0x7f)] = value;
    }

    fn stopped(&self) -> bool {
        self.register(REGISTER_B) & B_SET != 0
    }

    /// The guest's time in seconds since 1970.
    fn now(&self) -> i64 {
        let utc = i64::try_from(self.clock.utc().as_secs()).unwrap_or(i64::MAX);
        utc.saturating_add(self.state.offset)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 {
            value
        } else {
            (value >> 4).wrapping_mul(10).wrapping_add(value & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & !PM) % 12;
        hour + if value & PM != 0 { 12 } else { 0 }
    }

    /// Writes the running time into the registers.
    fn latch(&mut self) {
        let time = civil(self.now());
        let century = time.year().div_euclid(100).rem_euclid(100) as u8;
        let year = time.year().rem_euclid(100) as u8;
        let registers = [
            (SECONDS, self.encode(time.second() as u8)),
            (MINUTES, self.encode(time.minute() as u8)),
            (HOURS, self.encode_hour(time.hour() as u8)),
            (
                DAY_OF_WEEK,
                self.encode(time.weekday().to_sunday_one_offset() as u8),
            ),
            (DAY, self.encode(time.day() as u8)),
            (MONTH, self.encode(time.month() as u8)),
            (YEAR, self.encode(year)),
            (CENTURY, self.encode(century)),
        ];
        for (register, value) in registers {
            self.set_register(register, value);
        }
    }

    /// Makes the registers' time the running time. Impossible dates leave the clock as it was.
    fn apply(&mut self) {
        let part = |register| self.decode(self.register(register)) as i8;
        let year = i16::from(self.decode(self.register(CENTURY))) * 100
            + i16::from(self.decode(self.register(YEAR)));
        let time = DateTime::new(
            year,
            part(MONTH),
            part(DAY),
            self.decode_hour(self.register(HOURS)) as i8,
            part(MINUTES),
            part(SECONDS),
            0,
        );
        let seconds = time.and_then(|time| time.to_zoned(TimeZone::UTC));
        if let Ok(zoned) = seconds {
            let utc = i64::try_from(self.clock.utc().as_secs()).unwrap_or(i64::MAX);
            self.state.offset = zoned.timestamp().as_second().saturating_sub(utc);
            self.seen = self.now();
        }
    }

    /// The time between two periodic interrupts.
    fn period(&self) -> Option<Duration> {
        let rate = match self.register(REGISTER_A) & 0xf {
            0 => return None,
            // Rates 1 and 2 repeat 8 and 9 with the usual time base.
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        Some(Duration::from_nanos(
            1_000_000_000u64 * (1 << (rate - 1)) / 32_768,
        ))
    }

    /// The first second after `after` whose time of day the alarm registers match.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let wanted = |register| {
            let value = self.register(register);
            (value & ANY != ANY).then_some(value)
        };
        let second = wanted(SECONDS_ALARM).map(|v| i64::from(self.decode(v)));
        let minute = wanted(MINUTES_ALARM).map(|v| i64::from(self.decode(v)));
        let hour = wanted(HOURS_ALARM).map(|v| i64::from(self.decode_hour(v)));
        let candidates = |wanted: Option<i64>, count: i64| {
            wanted.map_or(0..count, |w| w..if w < count { w + 1 } else { w })
        };
        let start = after.saturating_add(1);
        let midnight = start - start.rem_euclid(DAY_SECONDS);
        [midnight, midnight.saturating_add(DAY_SECONDS)]
            .iter()
            .flat_map(|day| candidates(hour, 24).map(move |hour| day.saturating_add(hour * 3600)))
            .filter(|at| at.saturating_add(3599) >= start)
            .flat_map(|hour| candidates(minute, 60).map(move |m| hour.saturating_add(m * 60)))
            .filter(|at| at.saturating_add(59) >= start)
            .flat_map(|minute| candidates(second, 60).map(move |s| minute.saturating_add(s)))
            .find(|at| *at >= start)
    }

    /// Sets the flags of all that has happened since the last look.
    fn catch_up(&mut self) {
        let running = self.clock.running();
        let mut flags = 0;
        match self.period() {
            Some(period) => {
                let count = |time: Duration| time.as_nanos() / period.as_nanos();
                if count(running) > count(self.seen_running) {
                    flags |= PERIODIC;
                }
                self.seen_running = running;
            }
            None => self.seen_running = running,
        }
        let now = self.now();
        if !self.stopped() && now > self.seen {
            flags |= UPDATE_ENDED;
            if self.next_alarm(self.seen).is_some_and(|at| at <= now) {
                flags |= ALARM;
            }
        }
        self.seen = now;
        let before = self.register(REGISTER_C) & FLAGS;
        self.set_register(REGISTER_C, before | flags);
        self.update();
    }

    /// Drives the line and the request bit.
    fn update(&mut self) {
        let flags = self.register(REGISTER_C) & FLAGS;
        let request = flags & self.register(REGISTER_B) & FLAGS != 0;
        self.set_register(REGISTER_C, flags | if request { C_REQUEST } else { 0 });
        self.irq.set(request);
    }

    /// Arms the timer for the next enabled event whose flag is not set yet.
    fn arm(&self) {
        let waited = self.register(REGISTER_B) & !self.register(REGISTER_C);
        let running = self.clock.running();
        let mut deadline: Option<Duration> = None;
        let mut sooner = |at: Duration| deadline = Some(deadline.map_or(at, |d| d.min(at)));
        if waited & PERIODIC != 0
            && let Some(period) = self.period()
        {
            let count = running.as_nanos() / period.as_nanos() + 1;
            let nanos = u64::try_from(count * period.as_nanos()).unwrap_or(u64::MAX);
            sooner(Duration::from_nanos(nanos));
        }
        if !self.stopped() && waited & (ALARM | UPDATE_ENDED) != 0 {
            let now = self.now();
            let mut target = None;
            if waited & UPDATE_ENDED != 0 {
                target = now.checked_add(1);
            } else if let Some(alarm) = self.next_alarm(now) {
                target = Some(alarm);
            }
            if let Some(target) = target {
                let whole = u64::try_from(target.saturating_sub(now)).unwrap_or(0);
                let part = Duration::from_nanos(self.clock.utc().subsec_nanos().into());
                sooner(running + Duration::from_secs(whole).saturating_sub(part));
            }
        }
        self.timer.set(deadline);
    }

    fn read_register(&mut self, index: u8) -> u8 {
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => {
                if !self.stopped() {
                    self.latch();
                }
                self.register(index)
            }
            REGISTER_A => {
                let micros = self.clock.utc().subsec_micros();
                let updating = !self.stopped() && micros >= 1_000_000 - UPDATE_WARNING;
                self.register(REGISTER_A) | if updating { A_UPDATING } else { 0 }
            }
            REGISTER_C => {
                self.catch_up();
                let flags = self.register(REGISTER_C);
                self.set_register(REGISTER_C, 0);
                self.update();
                self.arm();
                flags
            }
            REGISTER_D => D_VALID,
            _ => self.register(index),
        }
    }

    fn write_register(&mut self, index: u8, value: u8) {
        match index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK..=YEAR | CENTURY => {
                if self.stopped() {
                    self.set_register(index, value);
                } else {
                    self.catch_up();
                    self.latch();
                    self.set_register(index, value);
                    self.apply();
                }
            }
            REGISTER_A => {
                self.catch_up();
                self.set_register(index, value & !A_UPDATING);
            }
            REGISTER_B => {
                self.catch_up();
                if value & !self.register(REGISTER_B) & B_SET != 0 {
                    self.latch();
                    // SET also withdraws the update-ended interrupt.
                    self.set_register(index, value & !UPDATE_ENDED);
                } else if !value & self.register(REGISTER_B) & B_SET != 0 {
                    self.set_register(index, value);
                    self.apply();
                } else {
                    self.set_register(index, value);
                }
                self.update();
            }
            REGISTER_C | REGISTER_D => {}
            SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM => {
                self.catch_up();
                self.set_register(index, value);
            }
            _ => {
                self.set_register(index, value);
                return;
            }
        }
        self.arm();
    }
}

/// The civil time of a second since 1970, held to the years that exist.
fn civil(seconds: i64) -> DateTime {
    let timestamp = jiff::Timestamp::from_second(seconds).unwrap_or(if seconds < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    });
    TimeZone::UTC.to_datetime(timestamp)
}

impl BytePorts for Rtc {
    fn read_byte(&mut self, port: u16) -> u8 {
        if port == PORTS.0 {
            // The index cannot be read back.
            return 0xff;
        }
        self.read_register(self.state.index)
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        if port == PORTS.0 {
            // Bit 7 would mask the NMI, of which there is none.
            self.state.index = value & 0x7f;
        } else {
            self.write_register(self.state.index, value);
        }
    }
}

impl TimerClient for Rtc {
    fn timer_expired(&mut self) {
        self.catch_up();
        self.arm();
    }
}

impl Device for Rtc {
    /// The battery keeps time and memory; only the interrupts are switched off.
    fn reset(&mut self) {
        let enables = self.register(REGISTER_B) & !FLAGS;
        if self.stopped() {
            self.set_register(REGISTER_B, enables & !B_SET);
            self.apply();
        }
        self.set_register(REGISTER_B, enables & !B_SET);
        self.set_register(REGISTER_C, 0);
        self.state.index = REGISTER_D;
        self.update();
        self.arm();
    }

    fn pause(&mut self) {
        self.timer.set(None);
    }

    fn resume(&mut self) {
        self.catch_up();
        self.arm();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.state.store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let mut state = RtcState::load(state)?;
        if state.cmos.len() != 128 {
            return Err(StateError::Invalid {
                kind: RtcState::NAME,
                reason: format!("{} bytes of memory instead of 128", state.cmos.len()),
            });
        }
        state.index &= 0x7f;
        self.state = state;
        self.seen = self.now();
        self.seen_running = self.clock.running();
        self.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
