//! Deadlines of devices, kept for the device thread.

use crate::clock::{Timer, TimerClient};
use parking_lot::Mutex;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use vmm_sys_util::eventfd::EventFd;

/// All timers of a machine.
pub(super) struct Timers {
    slots: Mutex<Vec<Slot>>,
    wake: EventFd,
}

#[derive(Default)]
struct Slot {
    deadline: Option<Duration>,
    client: Option<Weak<Mutex<dyn TimerClient>>>,
}

/// A timer of a device.
pub(super) struct TimerHandle {
    timers: Arc<Timers>,
    index: usize,
}

impl Timers {
    /// Timers that signal `wake` when the earliest deadline has become earlier.
    pub(super) fn new(wake: EventFd) -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::default(),
            wake,
        })
    }

    pub(super) fn create(self: &Arc<Self>) -> Arc<TimerHandle> {
        let mut slots = self.slots.lock();
        slots.push(Slot::default());
        Arc::new(TimerHandle {
            timers: Arc::clone(self),
            index: slots.len() - 1,
        })
    }

    pub(super) fn earliest(&self) -> Option<Duration> {
        self.slots
            .lock()
            .iter()
            .filter_map(|slot| slot.deadline)
            .min()
    }

    /// Calls the clients whose deadline has passed at `now`, without holding a lock of its own.
    pub(super) fn expire(&self, now: Duration) {
        let due: Vec<_> = self
            .slots
            .lock()
            .iter_mut()
            .filter(|slot| slot.deadline.is_some_and(|deadline| deadline <= now))
            .filter_map(|slot| {
                slot.deadline = None;
                slot.client.clone()
            })
            .collect();
        for client in due.iter().filter_map(Weak::upgrade) {
            client.lock().timer_expired();
        }
    }
}

impl TimerHandle {
    /// Says whose timer it is.
    pub(super) fn attach(&self, client: Weak<Mutex<dyn TimerClient>>) {
        if let Some(slot) = self.timers.slots.lock().get_mut(self.index) {
            slot.client = Some(client);
        }
    }
}

impl Timer for TimerHandle {
    fn set(&self, deadline: Option<Duration>) {
        let mut slots = self.timers.slots.lock();
        let earliest = slots.iter().filter_map(|slot| slot.deadline).min();
        if let Some(slot) = slots.get_mut(self.index) {
            slot.deadline = deadline;
        }
        let sooner = deadline.is_some_and(|new| earliest.is_none_or(|old| new < old));
        drop(slots);
        if sooner {
            // A full counter means that the thread is awake already.
            let _ = self.timers.wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Client {
        timer: Arc<TimerHandle>,
        calls: usize,
    }

    impl TimerClient for Client {
        fn timer_expired(&mut self) {
            self.calls += 1;
            self.timer.set(Some(Duration::from_secs(9)));
        }
    }

    #[test]
    fn due_clients_are_called_once_and_may_set_the_next_deadline() {
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let timers = Timers::new(wake.try_clone().unwrap());
        let timer = timers.create();
        let client = Arc::new(Mutex::new(Client {
            timer: timer.clone(),
            calls: 0,
        }));
        let weak: Weak<Mutex<dyn TimerClient>> = Arc::downgrade(&(client.clone() as _));
        timer.attach(weak);
        timer.set(Some(Duration::from_secs(2)));
        assert_eq!(wake.read().unwrap(), 1);
        timers.expire(Duration::from_secs(1));
        assert_eq!(client.lock().calls, 0);
        timers.expire(Duration::from_secs(2));
        assert_eq!(client.lock().calls, 1);
        assert_eq!(timers.earliest(), Some(Duration::from_secs(9)));
    }
}
