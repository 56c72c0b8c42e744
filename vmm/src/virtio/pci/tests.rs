use super::*;
use crate::virtio::{
    Chain, F_EVENT_INDEX, F_INDIRECT, F_VERSION_1, Kind,
    testing::{BUFFERS, Driver, find_capability, guest_memory},
};
use proptest::prelude::*;

/// A device that gives back what it is sent, when it is told to serve.
#[derive(Default)]
struct Echo {
    activation: Option<Activation>,
    running: bool,
    scratch: [u8; 12],
    resets: usize,
}

impl Echo {
    fn serve(&mut self) {
        let Some(activation) = self.activation.as_ref().filter(|_| self.running) else {
            return;
        };
        let memory = &activation.memory;
        for active in &activation.queues {
            let mut queue = active.queue.lock();
            let mut chain = Chain::default();
            loop {
                match queue.pop(memory, &mut chain) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        active.signal.fail(&error);
                        return;
                    }
                }
                let mut data = vec![0; chain.readable_length().min(4096) as usize];
                chain.read(memory, 0, &mut data);
                let written = chain.write(memory, 0, &data);
                queue.push(memory, chain.head, written as u32).unwrap();
            }
            if queue.publish(memory).unwrap() {
                active.signal.raise();
            }
        }
    }
}

impl VirtioDevice for Echo {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 64, 64]
    }

    fn config_size(&self) -> u32 {
        12
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) {
        data.copy_from_slice(&self.scratch[offset as usize..][..data.len()]);
    }

    fn config_write(&mut self, offset: u32, data: &[u8], _features: u64) {
        self.scratch[offset as usize..][..data.len()].copy_from_slice(data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        assert!(!self.running);
        self.activation = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        assert!(!self.running);
        self.activation = None;
        self.resets += 1;
    }

    fn resume(&mut self) {
        assert!(self.activation.is_some() && !self.running);
        self.running = true;
    }

    fn pause(&mut self) {
        assert!(self.running);
        self.running = false;
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        Ok(DeviceState {
            kind: "echo".to_owned(),
            version: 1,
            data: self.scratch.to_vec().into(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let bytes = state.data.as_array().into_iter().flatten();
        for (to, from) in self.scratch.iter_mut().zip(bytes) {
            *to = from.as_u64().unwrap_or(0) as u8;
        }
        Ok(())
    }
}

fn driver() -> Driver<Echo> {
    Driver::new(Echo::default(), guest_memory())
}

#[test]
fn the_capabilities_lead_to_the_structures() {
    let driver = driver();
    let config = driver.function.config();
    assert_eq!(config.dword(0), 0x1042_1af4);
    let find = |kind| find_capability(config, 9, |at| config.byte(at + 3) == kind);
    for (kind, offset, length) in [(1, 0, 64), (2, 0x3000, 12), (3, 0x1000, 1), (4, 0x2000, 12)] {
        let at = find(kind).unwrap();
        assert_eq!(
            (config.dword(at + 8), config.dword(at + 12)),
            (offset, length)
        );
        assert_eq!(config.byte(at + 4), 0);
    }
    assert_eq!(config.dword(find(2).unwrap() + 16), 4);
    assert_eq!(config.byte(find(5).unwrap() + 2), 20);
    let msix = find_capability(config, 0x11, |_| true).unwrap();
    assert_eq!(
        config.word(msix + 2),
        3,
        "a vector per queue and one for configuration"
    );
}

#[test]
fn a_driver_gets_to_a_working_device() {
    let mut driver = driver();
    assert_eq!(
        driver.offered(),
        1 << 5 | F_INDIRECT | F_EVENT_INDEX | F_VERSION_1
    );
    driver.enable_messages();
    let mut queues = driver.start(0, 64);
    driver.fill(BUFFERS, b"hello");
    queues[1].chain(7, &[(BUFFERS, 5)], &[(BUFFERS + 100, 20)]);
    queues[1].offer(7);
    driver.function.device_mut().serve();
    assert_eq!(queues[1].take_used(), Some((7, 5)));
    assert_eq!(driver.bytes(BUFFERS + 100, 5), b"hello");
    assert_eq!((driver.sent(1), driver.sent(2), driver.sent(0)), (0, 1, 0));
    assert!(!driver.line.is_high());
}

#[test]
fn without_messages_the_pin_is_raised_until_the_status_is_read() {
    let mut driver = driver();
    let mut queues = driver.start(0, 64);
    queues[0].chain(0, &[(BUFFERS, 1)], &[]);
    queues[0].offer(0);
    driver.function.device_mut().serve();
    assert!(driver.line.is_high());
    // The driver forbids INTx for a while.
    driver.function.config_write(4, &[6, 4]);
    assert!(!driver.line.is_high());
    driver.function.config_write(4, &[6, 0]);
    assert!(driver.line.is_high());
    assert_eq!(driver.read(0x1000, 1), 1);
    assert!(!driver.line.is_high());
    assert_eq!(driver.read(0x1000, 1), 0);
}

#[test]
fn features_that_are_not_offered_or_too_old_are_refused() {
    for features in [0, 1 << 5, F_VERSION_1 | 1 << 6, F_VERSION_1 | 1 << 63, !0] {
        let mut driver = driver();
        driver.set_status(3);
        driver.accept(features);
        driver.set_status(11);
        assert_eq!(driver.status(), 3, "{features:#x}");
        driver.set_status(15);
        assert_eq!(driver.status(), 3, "no start without features");
        assert!(driver.function.device().activation.is_none());
    }
    let mut driver = driver();
    driver.accept(F_VERSION_1);
    driver.set_status(11);
    driver.accept(!0);
    assert_eq!(driver.function.registers.accepted, F_VERSION_1, "frozen");
}

#[test]
fn queues_are_checked_when_the_device_starts() {
    let mut driver = driver();
    driver.accept(F_VERSION_1);
    driver.set_status(11);
    let mut layout = crate::virtio::testing::DriverQueue::new(&driver.memory, 0, 64).layout;
    layout.used = 0xa_0000;
    driver.set_up(0, &layout);
    driver.set_status(15);
    assert_eq!(driver.status(), 15 | 0x40);
    assert_eq!(driver.read(0x1000, 1), 2, "the driver is told");
    assert!(driver.function.device().activation.is_none());
    let mut queues = driver.start(0, 64);
    queues[0].chain(0, &[(BUFFERS, 1)], &[]);
    queues[0].offer(0);
    driver.function.device_mut().serve();
    assert_eq!(queues[0].take_used(), Some((0, 0)), "a reset mends it");
}

#[test]
fn a_broken_queue_needs_a_reset() {
    let mut driver = driver();
    let queues = driver.start(0, 64);
    queues[2].set_available(1000);
    driver.function.device_mut().serve();
    assert!(driver.needs_reset());
    assert_eq!(driver.read(0x1000, 1), 2);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_reset_forgets_what_the_driver_did() {
    let mut driver = driver();
    driver.start(1 << 5, 64);
    driver.set_status(0);
    assert!(driver.function.device().activation.is_none());
    assert_eq!(driver.read(28, 2), 0);
    assert_eq!(driver.read(24, 2), 256);
    assert_eq!(driver.read(26, 2), 0xffff);
    assert_eq!(driver.function.registers.accepted, 0);
    driver.start(0, 32);
    driver.function.reset();
    assert!(driver.function.device().activation.is_none());
    assert_eq!(driver.function.config().word(4), 0);
}

#[test]
fn a_running_queue_cannot_be_changed() {
    let mut driver = driver();
    driver.start(0, 64);
    driver.write(22, 2, 0);
    driver.write(24, 2, 16);
    driver.write(32, 8, 0x1234_0000);
    driver.write(28, 2, 0);
    assert_eq!((driver.read(24, 2), driver.read(28, 2)), (64, 1));
    assert_ne!(driver.read(32, 8), 0x1234_0000);
}

#[test]
fn doorbells_follow_the_window() {
    let mut driver = driver();
    let places = |driver: &Driver<Echo>| -> Vec<u64> {
        driver
            .bells
            .0
            .lock()
            .iter()
            .map(|(bell, _)| bell.address)
            .collect()
    };
    driver.function.window_moved(0, Some(0xe000_0000));
    assert_eq!(places(&driver), [0xe000_3000, 0xe000_3004, 0xe000_3008]);
    driver.function.window_moved(0, Some(0xd000_0000));
    assert_eq!(places(&driver), [0xd000_3000, 0xd000_3004, 0xd000_3008]);
    driver.start(0, 64);
    let kick = driver.function.device().activation.as_ref().unwrap().queues[1]
        .kick
        .try_clone()
        .unwrap();
    driver.bells.0.lock()[1].1.write(1).unwrap();
    assert_eq!(kick.read().unwrap(), 1);
    driver.notify(1);
    assert_eq!(kick.read().unwrap(), 1, "the long way");
    driver.function.window_moved(0, None);
    assert!(places(&driver).is_empty());
}

#[test]
fn a_device_rests_while_it_may_not_reach_memory() {
    let mut driver = driver();
    driver.start(0, 64);
    assert!(driver.function.device().running);
    driver.function.config_write(4, &[2, 0]);
    assert!(!driver.function.device().running);
    driver.function.pause();
    driver.function.config_write(4, &[6, 0]);
    assert!(
        !driver.function.device().running,
        "the machine stands still"
    );
    driver.function.resume();
    assert!(driver.function.device().running);
    driver.function.at_rest(|device| assert!(!device.running));
    assert!(driver.function.device().running);
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let mut driver = driver();
    let config = driver.function.config();
    let at = find_capability(config, 9, |at| config.byte(at + 3) == 5).unwrap();
    let select = |driver: &mut Driver<Echo>, offset: u32, length: u32| {
        driver.function.config_write(at + 8, &offset.to_le_bytes());
        driver.function.config_write(at + 12, &length.to_le_bytes());
    };
    select(&mut driver, 18, 2);
    let mut data = [0; 4];
    driver.function.config_read(at + 16, &mut data);
    assert_eq!(data, [3, 0, 0, 0]);
    select(&mut driver, 20, 1);
    driver.function.config_write(at + 16, &[3, 0, 0, 0]);
    assert_eq!(driver.status(), 3);
    // Impossible selections do nothing.
    for (offset, length) in [
        (20, 3),
        (21, 2),
        (0x8000, 1),
        (u32::MAX, 1),
        (20, 0),
        (20, 8),
    ] {
        select(&mut driver, offset, length);
        driver.function.config_write(at + 16, &[0; 4]);
        driver.function.config_read(at + 16, &mut data);
        assert_eq!(driver.status(), 3, "{offset} {length}");
    }
}

#[test]
fn a_device_goes_on_where_another_was_saved() {
    let mut first = driver();
    first.enable_messages();
    let mut queues = first.start(F_EVENT_INDEX, 64);
    let requests = |queue: &mut crate::virtio::testing::DriverQueue| {
        for head in 0..5 {
            queue.chain(head, &[(BUFFERS, 4)], &[(BUFFERS + 8, 4)]);
            queue.offer(head);
        }
    };
    requests(&mut queues[0]);
    first.function.device_mut().serve();
    requests(&mut queues[0]);
    first.write(0x2004, 4, 0x0403_0201);
    first.function.pause();
    let state = first.function.save().unwrap();
    assert_eq!(first.function.save().unwrap(), state);

    let mut second = Driver::new(Echo::default(), first.memory.clone());
    second.function.pause();
    second.function.restore(&state).unwrap();
    assert_eq!(second.function.save().unwrap(), state);
    assert!(!second.function.device().running);
    second.function.resume();
    assert_eq!(second.read(0x2004, 4), 0x0403_0201);
    second.function.device_mut().serve();
    let back: Vec<_> = std::iter::from_fn(|| queues[0].take_used()).collect();
    assert_eq!(back.len(), 10);
    assert_eq!(second.sent(1), 1, "the restored table is used");

    let mut other = state.clone();
    other.version = 9;
    assert!(driver().function.restore(&other).is_err());
    other = state;
    other.data["queues"][0]["layout"]["used"] = 3.into();
    let refused = driver().function.restore(&other).unwrap_err();
    assert!(refused.to_string().contains("aligned"), "{refused}");
}

proptest! {
    /// Accesses of every width at every offset, of configuration space too, in any order.
    #[test]
    fn any_register_access_is_survived(
        accesses in prop::collection::vec(
            (any::<bool>(), any::<u16>(), 0usize..4, any::<Option<u64>>(), any::<bool>()),
            0..200,
        ),
        start in any::<bool>(),
    ) {
        let mut driver = driver();
        if start {
            driver.start(0, 64);
        }
        for (config, offset, width, value, near) in accesses {
            let length = 1usize << width;
            if config {
                let length = length.min(4);
                let offset = offset as u8 & !(length as u8 - 1);
                match value {
                    Some(value) => driver.function.config_write(offset, &value.to_le_bytes()[..length]),
                    None => driver.function.config_read(offset, &mut vec![0; length]),
                }
                continue;
            }
            // Half of the accesses go to the common structure.
            let offset = if near { offset % 64 } else { offset % 0x8000 };
            match value {
                Some(value) => driver.write(offset.into(), length, value),
                None => { driver.read(offset.into(), length); }
            }
            driver.function.device_mut().serve();
        }
        driver.function.pause();
        let state = driver.function.save().unwrap();
        let mut other = Driver::new(Echo::default(), driver.memory.clone());
        other.function.pause();
        other.function.restore(&state).unwrap();
        driver.function.reset();
    }
}
