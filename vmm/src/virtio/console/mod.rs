//! The console device (section 5.3): ports between the guest and programs of the host, with names
//! if the driver can have several.

mod control;
mod host;
mod worker;

pub use host::HostSide;

use super::{Activation, Kind, VirtioDevice, Worker, read_structure};
use crate::device::{DeviceState, SavedState, StateError};
use control::Message;
use serde::{Deserialize, Serialize};
use std::io;
use worker::PortsWorker;

const F_MULTIPORT: u64 = 1 << 1;
const QUEUE_SIZE: u16 = 64;
const CONFIG_SIZE: u32 = 12;

/// The most ports of a device.
pub const MOST_PORTS: usize = 31;
/// The longest name of a port in bytes.
pub const LONGEST_PORT_NAME: usize = 127;

/// A port.
#[derive(Debug)]
pub struct PortOptions {
    /// The name that the guest sees, possibly empty, at most [`LONGEST_PORT_NAME`] bytes.
    pub name: String,
    /// Whether the guest is to use it as a console.
    pub console: bool,
    /// The host's side.
    pub host: HostSide,
}

/// A console device.
pub struct Console {
    worker: Worker<PortsWorker>,
    ports: usize,
}

/// Saved state of a console device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    /// The driver has said that it works with the device.
    pub ready: bool,
    /// Messages that the driver has not been given yet.
    pub messages: Vec<Message>,
    /// The ports.
    pub ports: Vec<PortState>,
}

/// Saved state of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// The driver has set it up.
    pub ready: bool,
    /// A program of the guest has it open.
    pub guest_open: bool,
    /// The driver has been told that the host's side is connected.
    pub told_open: bool,
    /// Output that the host has not taken yet.
    pub output: Vec<u8>,
    /// Bytes of the next request for output that have been taken already.
    pub taken: u64,
}

impl SavedState for ConsoleState {
    const NAME: &'static str = "virtio-console";
    const VERSION: u32 = 1;
}

impl Console {
    /// A device with `ports` and a thread called `name`.
    ///
    /// # Errors
    /// If there are no ports or too many, or the host refuses a thread.
    pub fn new(name: &str, ports: Vec<PortOptions>) -> io::Result<Self> {
        let count = ports.len();
        if count == 0 || count > MOST_PORTS {
            return Err(io::Error::other("a console device has 1 to 31 ports"));
        }
        if ports.iter().any(|p| p.name.len() > LONGEST_PORT_NAME) {
            return Err(io::Error::other("a port's name is longer than 127 bytes"));
        }
        Ok(Self {
            worker: Worker::start(name, PortsWorker::new(ports))?,
            ports: count,
        })
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        F_MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Two for each port, and two for control after the first port's.
        vec![QUEUE_SIZE; 2 * (self.ports + 1)]
    }

    fn config_size(&self) -> u32 {
        CONFIG_SIZE
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) {
        let mut structure = [0; CONFIG_SIZE as usize];
        structure[4..8].copy_from_slice(&(self.ports as u32).to_le_bytes());
        read_structure(&structure, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.worker.handler().activate(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker.rest();
        self.worker.handler().forget();
    }

    fn resume(&mut self) {
        self.worker.run();
    }

    fn pause(&mut self) {
        self.worker.rest();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        self.worker.handler().state().store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = ConsoleState::load(state)?;
        if state.ports.len() != self.ports {
            return Err(StateError::Invalid {
                kind: ConsoleState::NAME,
                reason: format!(
                    "{} ports, this machine's device has {}",
                    state.ports.len(),
                    self.ports
                ),
            });
        }
        self.worker.handler().take_over(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
