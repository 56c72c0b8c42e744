//! Characters between a device and the host: a back end that takes what the guest sends, and a
//! front end that takes what the host sends. Neither side ever waits for the other.

/// The host's side of a character device. Called through the device's lock, from vCPU threads.
pub trait CharBackend: Send {
    /// Takes as much of `data` as fits without waiting and says how much that was. Once it has
    /// taken less than all, it calls [`CharFrontend::writable`] when it takes more.
    fn write(&mut self, data: &[u8]) -> usize;

    /// The device has room for input again, after [`CharFrontend::receive`] took less than all.
    fn readable(&mut self) {}
}

/// The device's side of a character device. Called by the machine's device thread.
pub trait CharFrontend: Send {
    /// Takes as much of `data` as the device has room for and says how much that was.
    fn receive(&mut self, data: &[u8]) -> usize;

    /// The back end takes output again.
    fn writable(&mut self);
}

/// A back end that loses all output and has no input.
#[derive(Debug, Default, Clone, Copy)]
pub struct Discard;

impl CharBackend for Discard {
    fn write(&mut self, data: &[u8]) -> usize {
        data.len()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    /// A back end that keeps output up to a limit and counts the calls of `readable`.
    #[derive(Clone)]
    pub(crate) struct Recorded(pub(crate) Arc<Mutex<Record>>);

    pub(crate) struct Record {
        pub(crate) output: Vec<u8>,
        pub(crate) limit: usize,
        pub(crate) wakes: usize,
    }

    impl Recorded {
        pub(crate) fn with_limit(limit: usize) -> Self {
            Self(Arc::new(Mutex::new(Record {
                output: Vec::new(),
                limit,
                wakes: 0,
            })))
        }
    }

    impl CharBackend for Recorded {
        fn write(&mut self, data: &[u8]) -> usize {
            let mut record = self.0.lock();
            let taken = data.len().min(record.limit - record.output.len());
            record.output.extend_from_slice(&data[..taken]);
            taken
        }

        fn readable(&mut self) {
            self.0.lock().wakes += 1;
        }
    }
}
