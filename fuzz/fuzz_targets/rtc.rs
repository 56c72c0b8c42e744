//! The real-time clock under any accesses, at any time.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use cenote_fuzz::registers::{Deadline, Hand, Step, access, line, replace};
use cenote_vmm::clock::TimerClient as _;
use cenote_vmm::device::Device as _;
use cenote_vmm::devices::rtc::Rtc;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let clock = Arc::<Hand>::default();
    let wire = line();
    let timer = Arc::<Deadline>::default();
    let offset = input.first().map_or(0, |byte| i64::from(*byte) << 26);
    let make = || Rtc::new(clock.clone(), wire.clone(), timer.clone(), offset);
    let mut rtc = make();
    for step in Step::all(input) {
        match step.what & 7 {
            0..=4 => {
                access(&mut rtc, &step, 0x70, 2);
            }
            5 => {
                let [amount, scale, _] = step.operands;
                // From microseconds to some two centuries.
                let by = u64::from(amount) << (scale % 46);
                clock.advance(Duration::from_micros(by));
            }
            6 => {
                let now = cenote_vmm::clock::Clock::running(&*clock);
                if timer.expire(now) || step.operands[0] == 0 {
                    rtc.timer_expired();
                }
            }
            _ if step.operands[0] == 0 => rtc.reset(),
            _ => replace(&mut rtc, make()),
        }
    }
});
