//! The serial port under any accesses, input and back ends that take their time.
#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use cenote_fuzz::registers::{Line, Step, access, line, replace};
use cenote_vmm::device::Device as _;
use cenote_vmm::devices::chardev::{CharBackend, CharFrontend as _};
use cenote_vmm::devices::serial::Serial;
use libfuzzer_sys::fuzz_target;

/// Takes as many bytes as it was told.
struct Slow(Arc<AtomicUsize>);

impl CharBackend for Slow {
    fn write(&mut self, data: &[u8]) -> usize {
        let room = self.0.load(Ordering::Relaxed);
        let taken = data.len().min(room);
        self.0.store(room - taken, Ordering::Relaxed);
        taken
    }
}

fuzz_target!(|input: &[u8]| {
    let room = Arc::new(AtomicUsize::new(16));
    let make = |line: &Arc<Line>| Serial::new(0x3f8, line.clone(), Box::new(Slow(room.clone())));
    let mut wire = line();
    let mut serial = make(&wire);
    for step in Step::all(input) {
        match step.what & 7 {
            0..=3 => {
                access(&mut serial, &step, 0x3f8, 8);
            }
            4 => {
                let data = &step.operands[..usize::from(step.what >> 4 & 3)];
                assert!(serial.receive(data) <= data.len());
            }
            5 => {
                room.store(step.operands[0].into(), Ordering::Relaxed);
                serial.writable();
            }
            6 => serial.receive_break(),
            _ if step.operands[0] == 0 => serial.reset(),
            _ => {
                let before = wire.level();
                let other = line();
                replace(&mut serial, make(&other));
                assert_eq!(other.level(), before, "the line's level is restored");
                wire = other;
            }
        }
    }
});
