//! Accesses to a device's registers as a guest and the host can make them, read from an input.
//!
//! An input is a list of steps of four bytes: what to do, and its operands. The same steps are
//! made on a second device that is put in the first's place in mid-run by saving and restoring it:
//! both must answer alike, so nothing of a device's state may be missing from what is saved.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use cenote_vmm::bus::PortIo;
use cenote_vmm::clock::{Clock, Timer};
use cenote_vmm::device::Device;
use cenote_vmm::event::{EventSink, MachineEvent};
use cenote_vmm::interrupt::IrqLine;

/// A line that remembers its level.
#[derive(Default)]
pub struct Line(AtomicU64);

impl Line {
    /// Its level.
    pub fn level(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high.into(), Ordering::Relaxed);
    }
}

/// A clock that an input moves.
#[derive(Default)]
pub struct Hand(AtomicU64);

impl Hand {
    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    fn running(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn utc(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.running()
    }
}

/// A timer that remembers its deadline, and that it is no earlier than it was set.
#[derive(Default)]
pub struct Deadline(AtomicU64);

impl Deadline {
    /// Whether it has passed at `now`; then it is gone.
    pub fn expire(&self, now: Duration) -> bool {
        let deadline = self.0.load(Ordering::Relaxed);
        let due = deadline != 0 && deadline - 1 <= now.as_nanos() as u64;
        if due {
            self.0.store(0, Ordering::Relaxed);
        }
        due
    }
}

impl Timer for Deadline {
    fn set(&self, deadline: Option<Duration>) {
        let value = deadline.map_or(0, |at| (at.as_nanos() as u64).saturating_add(1));
        self.0.store(value, Ordering::Relaxed);
    }
}

/// Events that nobody heeds.
pub struct Nobody;

impl EventSink for Nobody {
    fn signal(&self, _event: MachineEvent) {}
}

/// One step of an input.
pub struct Step {
    /// What to do; each target gives the rest of the numbers a meaning.
    pub what: u8,
    /// Operands.
    pub operands: [u8; 3],
}

impl Step {
    /// The steps of an input, at most 4096.
    pub fn all(input: &[u8]) -> impl Iterator<Item = Step> {
        input.chunks_exact(4).take(4096).map(|bytes| Step {
            what: bytes[0],
            operands: [bytes[1], bytes[2], bytes[3]],
        })
    }

    /// The width of an access: 1, 2 or 4 bytes.
    pub fn width(&self) -> usize {
        1 << (self.what >> 4 & 3).min(2)
    }

    /// A value to write, as wide as asked for.
    pub fn value(&self) -> [u8; 4] {
        let [_, low, high] = self.operands;
        [low, high, low ^ 0x5a, high.wrapping_add(1)]
    }
}

/// Reads or writes one of the `count` ports from `base` on; gives what was read.
pub fn access(device: &mut impl PortIo, step: &Step, base: u16, count: u16) -> Option<[u8; 4]> {
    let port = base + u16::from(step.operands[0]) % count;
    let width = step.width();
    if step.what & 0x80 == 0 {
        let mut data = [0x55; 4];
        device.port_read(port, &mut data[..width]);
        Some(data)
    } else {
        device.port_write(port, &step.value()[..width]);
        None
    }
}

/// Puts `fresh` in the place of `device`, with its state; what is saved is the same again.
pub fn replace<D: Device>(device: &mut D, mut fresh: D) {
    device.pause();
    let state = device.save().expect("a device's state can be saved");
    let text = serde_json::to_string(&state).expect("it can be written");
    let read = serde_json::from_str(&text).expect("and read");
    fresh.restore(&read).expect("and taken over");
    assert_eq!(fresh.save().expect("it can be saved again"), state);
    fresh.resume();
    *device = fresh;
}

/// A line for a device and its replacements.
pub fn line() -> Arc<Line> {
    Arc::default()
}
