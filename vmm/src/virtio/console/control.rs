//! Messages on the control queues (section 5.3.6.2).

use serde::{Deserialize, Serialize};

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Length of a message without a name.
pub(super) const LENGTH: usize = 8;

/// What the device tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The port exists.
    Add(u32),
    /// The port is to be a console.
    Console(u32),
    /// The port has a name, which follows.
    Name(u32),
    /// The host's side of the port is connected, or not.
    Open(u32, bool),
}

/// What the driver tells the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It has looked at the device, and works with it or not.
    DeviceReady(bool),
    /// It has set a port up, or could not.
    PortReady(u32, bool),
    /// A program of the guest has opened or closed a port.
    PortOpen(u32, bool),
    /// Something that this device does not know.
    Unknown,
}

impl Message {
    /// The message's bytes; `name` is the port's.
    pub(super) fn encode(self, name: &str) -> Vec<u8> {
        let (port, event, value) = match self {
            Self::Add(port) => (port, PORT_ADD, 1u16),
            Self::Console(port) => (port, CONSOLE_PORT, 1),
            Self::Name(port) => (port, PORT_NAME, 1),
            Self::Open(port, open) => (port, PORT_OPEN, open.into()),
        };
        let mut bytes = Vec::new();
        bytes.extend(port.to_le_bytes());
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        if matches!(self, Self::Name(_)) {
            bytes.extend(name.as_bytes());
        }
        bytes
    }

    /// The port that it is about.
    pub(super) fn port(self) -> u32 {
        match self {
            Self::Add(port) | Self::Console(port) | Self::Name(port) | Self::Open(port, _) => port,
        }
    }
}

impl Word {
    pub(super) fn decode(bytes: [u8; LENGTH]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        let port = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([g, h]) != 0;
        match u16::from_le_bytes([e, f]) {
            DEVICE_READY => Self::DeviceReady(value),
            PORT_READY => Self::PortReady(port, value),
            PORT_OPEN => Self::PortOpen(port, value),
            _ => Self::Unknown,
        }
    }
}
