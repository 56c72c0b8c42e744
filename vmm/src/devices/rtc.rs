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
mod tests {
    use super::*;
    use crate::{
        clock::testing::{ManualClock, RecordedTimer},
        devices::testing::state_goes_round,
        interrupt::testing::ProbeLine,
    };
    use proptest::prelude::*;

    /// 2024-02-29 13:59:58 UTC, a Thursday.
    const LEAP: u64 = 1_709_215_198;

    struct Bench {
        rtc: Rtc,
        clock: Arc<ManualClock>,
        line: Arc<ProbeLine>,
        timer: Arc<RecordedTimer>,
    }

    fn bench() -> Bench {
        let clock = ManualClock::at_utc(LEAP);
        let line = Arc::new(ProbeLine::default());
        let timer = Arc::new(RecordedTimer::default());
        let rtc = Rtc::new(clock.clone(), line.clone(), timer.clone(), 0);
        Bench {
            rtc,
            clock,
            line,
            timer,
        }
    }

    impl Bench {
        fn read(&mut self, index: u8) -> u8 {
            self.rtc.write_byte(0x70, index);
            self.rtc.read_byte(0x71)
        }

        fn write(&mut self, index: u8, value: u8) {
            self.rtc.write_byte(0x70, index);
            self.rtc.write_byte(0x71, value);
        }

        /// Lets time pass, as the device thread would, deadline by deadline.
        fn pass(&mut self, time: Duration) {
            let end = self.clock_now() + time;
            loop {
                let armed = *self.timer.0.lock();
                let Some(deadline) = armed.filter(|deadline| *deadline <= end) else {
                    break;
                };
                let step = deadline.saturating_sub(self.clock_now());
                self.clock.advance(step);
                *self.timer.0.lock() = None;
                self.rtc.timer_expired();
                if self.line.is_high() {
                    break;
                }
            }
            if !self.line.is_high() {
                self.clock.advance(end - self.clock_now());
            }
        }

        fn clock_now(&self) -> Duration {
            crate::clock::Clock::running(&*self.clock)
        }
    }

    #[test]
    fn the_date_is_shown_in_bcd_and_binary() {
        let mut b = bench();
        let bcd: Vec<u8> = [0, 2, 4, 6, 7, 8, 9, 0x32].map(|i| b.read(i)).to_vec();
        assert_eq!(bcd, [0x58, 0x59, 0x13, 5, 0x29, 2, 0x24, 0x20]);
        b.write(REGISTER_B, B_BINARY);
        assert_eq!([0, 4, 7, 0x32].map(|i| b.read(i)), [58, 1 | PM, 29, 20]);
        b.clock.advance(Duration::from_secs(2));
        assert_eq!([0, 2, 4].map(|i| b.read(i)), [0, 0, 2 | PM]);
        assert_eq!(b.read(REGISTER_D), 0x80);
    }

    #[test]
    fn midnight_and_noon_are_twelve() {
        let mut b = bench();
        b.write(REGISTER_B, B_BINARY);
        for hour in 0..24 {
            let shown = b.rtc.encode_hour(hour);
            assert_eq!(b.rtc.decode_hour(shown), hour);
        }
        assert_eq!((b.rtc.encode_hour(0), b.rtc.encode_hour(12)), (12, 12 | PM));
    }

    #[test]
    fn setting_the_time_moves_the_offset() {
        let mut b = bench();
        b.write(REGISTER_B, B_SET | B_24_HOURS);
        for (index, value) in [
            (9, 0x30),
            (8, 0x12),
            (7, 0x31),
            (4, 0x23),
            (2, 0x59),
            (0, 0x59),
        ] {
            b.write(index, value);
        }
        b.clock.advance(Duration::from_secs(100));
        assert_eq!(b.read(0), 0x59);
        b.write(REGISTER_B, B_24_HOURS);
        assert_eq!([9, 8, 7, 4].map(|i| b.read(i)), [0x30, 0x12, 0x31, 0x23]);
        b.clock.advance(Duration::from_secs(1));
        assert_eq!([9, 8, 7, 4, 6].map(|i| b.read(i)), [0x31, 1, 1, 0, 4]);
        let offset = b.rtc.state.offset;
        b.write(8, 0x13);
        assert_eq!(b.rtc.state.offset, offset, "month 13 is not taken");
    }

    #[test]
    fn the_update_bit_warns_before_the_second_ends() {
        let mut b = bench();
        assert_eq!(b.read(REGISTER_A), A_USUAL);
        b.clock.advance(Duration::from_micros(999_800));
        assert_eq!(b.read(REGISTER_A), A_USUAL | A_UPDATING);
        b.clock.advance(Duration::from_micros(200));
        assert_eq!(b.read(REGISTER_A), A_USUAL);
    }

    #[test]
    fn the_periodic_interrupt_comes_at_its_rate_and_waits_for_register_c() {
        let mut b = bench();
        b.write(REGISTER_B, PERIODIC | B_24_HOURS);
        b.pass(Duration::from_micros(970));
        assert!(!b.line.is_high());
        b.pass(Duration::from_micros(10));
        assert!(b.line.is_high());
        assert_eq!(
            *b.timer.0.lock(),
            None,
            "no work until the guest has seen it"
        );
        assert_eq!(b.read(REGISTER_C), C_REQUEST | PERIODIC);
        assert!(!b.line.is_high() && b.timer.0.lock().is_some());
    }

    #[test]
    fn alarms_match_exactly_and_with_wildcards() {
        let mut b = bench();
        for (index, value) in [(1, 0x01), (3, 0xff), (5, 0xc0)] {
            b.write(index, value);
        }
        b.write(REGISTER_B, ALARM | B_24_HOURS);
        b.pass(Duration::from_secs(2));
        assert!(!b.line.is_high());
        b.pass(Duration::from_secs(1));
        assert!(b.line.is_high());
        assert_eq!(b.read(REGISTER_C) & (C_REQUEST | ALARM), C_REQUEST | ALARM);
        for (index, value) in [(1, 0x00), (3, 0x00), (5, 0x13)] {
            b.write(index, value);
        }
        b.pass(Duration::from_secs(86_400));
        assert!(b.line.is_high());
        assert_eq!([4, 2, 0].map(|i| b.read(i)), [0x13, 0, 0]);
    }

    #[test]
    fn update_ended_comes_each_second_and_stops_while_set() {
        let mut b = bench();
        b.write(REGISTER_B, UPDATE_ENDED | B_24_HOURS);
        b.pass(Duration::from_secs(1));
        assert_eq!(b.read(REGISTER_C) & !PERIODIC, C_REQUEST | UPDATE_ENDED);
        b.write(REGISTER_B, B_SET | UPDATE_ENDED | B_24_HOURS);
        b.pass(Duration::from_secs(5));
        assert_eq!(b.read(REGISTER_C) & !PERIODIC, 0);
    }

    #[test]
    fn memory_survives_reset_and_interrupts_do_not() {
        let mut b = bench();
        b.rtc.set_cmos(0x5f, 3);
        b.write(0x40, 0xaa);
        b.write(REGISTER_B, UPDATE_ENDED | B_24_HOURS);
        b.pass(Duration::from_secs(1));
        b.rtc.reset();
        assert!(!b.line.is_high());
        assert_eq!(
            [0x5f, 0x40, REGISTER_B].map(|i| b.read(i)),
            [3, 0xaa, B_24_HOURS]
        );
    }

    #[test]
    fn state_goes_on() {
        let mut b = bench();
        b.write(REGISTER_B, PERIODIC | B_24_HOURS);
        b.pass(Duration::from_millis(1));
        let mut other = bench();
        state_goes_round(&mut b.rtc, &mut other.rtc);
        assert!(other.line.is_high());
    }

    proptest! {
        #[test]
        fn any_access_is_survived(
            accesses in prop::collection::vec((any::<u8>(), any::<Option<u8>>(), 0u64..5_000), 0..128),
        ) {
            let mut b = bench();
            for (index, value, millis) in accesses {
                match value {
                    Some(value) => b.write(index, value),
                    None => { b.read(index); }
                }
                b.pass(Duration::from_millis(millis));
            }
        }

        /// The search for the next alarm agrees with trying every second.
        #[test]
        fn the_next_alarm_is_the_first_match(h in 0u8..26, m in 0u8..62, s in 0u8..62, any in 0u8..8) {
            let mut b = bench();
            b.write(REGISTER_B, B_BINARY | B_24_HOURS);
            let alarm = [(5u8, h, 1), (3, m, 2), (1, s, 4)];
            for (register, value, bit) in alarm {
                b.write(register, if any & bit != 0 { 0xff } else { value });
            }
            let matches = |t: i64| {
                let parts = [t / 3600 % 24, t / 60 % 60, t % 60];
                alarm.iter().zip(parts).all(|((_, v, bit), p)| any & bit != 0 || i64::from(*v) == p)
            };
            let start = LEAP as i64;
            let expected = (start + 1..=start + 86_400).find(|t| matches(*t));
            prop_assert_eq!(b.rtc.next_alarm(start), expected);
        }
    }
}
