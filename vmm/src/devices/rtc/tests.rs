//! The clock at its registers.

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
