//! The keyboard controller under any commands and keys.
#![no_main]

use std::sync::Arc;

use cenote_fuzz::registers::{Nobody, Step, access, line, replace};
use cenote_vmm::device::Device as _;
use cenote_vmm::devices::i8042::I8042;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let make = || I8042::new(line(), Arc::new(Nobody));
    let mut controller = make();
    for mut step in Step::all(input) {
        match step.what & 7 {
            0..=4 => {
                // Its two ports are four apart.
                let base = 0x60 + u16::from(step.operands[0] & 1) * 4;
                step.operands[0] = 0;
                access(&mut controller, &step, base, 1);
            }
            5 | 6 => controller.key(step.operands[0], step.operands[1] & 1 == 0),
            _ if step.operands[0] == 0 => controller.reset(),
            _ => replace(&mut controller, make()),
        }
    }
});
