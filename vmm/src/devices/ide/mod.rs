//! The IDE controller of PIIX3, function 1: two channels with up to two drives each.
//!
//! *82371FB/82371SB datasheet*, order number 290550, sections 2.3 and 3.2; *Programming Interface
//! for Bus Master IDE Controller 1.0*; *AT Attachment 8 ATA/ATAPI Command Set*; *MultiMedia Commands
//! 5*. The channels are where PCs have always had them (ports 0x1f0 and 0x170, interrupts 14 and
//! 15) once firmware or the driver has enabled them.
//!
//! Left out: timing (any mode is as fast as the host), overlapped and queued commands, SMART, the
//! security and host-protected-area features; they are refused as a drive without them does.
//!
//! What reads or writes an image is done by a thread per channel, so that the guest's processors go
//! on meanwhile (`lane.rs`).

mod ata;
mod atapi;
mod bus_master;
mod channel;
mod drive;
mod lane;
mod sense;

pub use drive::{DriveState, HardDisk, Identity as DriveIdentity, Optical, OpticalState, SECTOR};

use super::i440fx::SUBSYSTEM;
use crate::{
    device::{Device, DeviceState, SavedState, StateError},
    interrupt::IrqLine,
    memory::GuestMemory,
    pci::{BarKind, ConfigError, ConfigSpace, ConfigState, Identity, PciFunction, Space, Window},
    sandbox::{self, Class},
};
use cenote_image::Image;
use channel::{Channel, ChannelState};
use drive::Drive;
use lane::Lane;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    io,
    sync::{Arc, Weak},
    thread,
};

/// IDE timing registers of both channels; bit 15 of each enables its ports.
const TIMING: u8 = 0x40;
const DECODE: u8 = 0x80;
/// BAR of the bus master registers, and their size.
const BUS_MASTER: (u8, u64) = (4, 16);
/// Command and control ports of the channels, with the numbers of their windows.
const COMMAND_PORTS: [(u8, u64); 2] = [(8, 0x1f0), (9, 0x170)];
const CONTROL_PORTS: [(u8, u64); 2] = [(10, 0x3f6), (11, 0x376)];
/// The ISA interrupts of the channels.
pub const INTERRUPTS: [u32; 2] = [14, 15];

/// Where a drive is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Drive 0 of channel 0.
    PrimaryMaster,
    /// Drive 1 of channel 0.
    PrimarySlave,
    /// Drive 0 of channel 1.
    SecondaryMaster,
    /// Drive 1 of channel 1.
    SecondarySlave,
}

impl Position {
    /// Channel (0 or 1) and drive (0 or 1).
    #[must_use]
    pub const fn numbers(self) -> (usize, usize) {
        match self {
            Self::PrimaryMaster => (0, 0),
            Self::PrimarySlave => (0, 1),
            Self::SecondaryMaster => (1, 0),
            Self::SecondarySlave => (1, 1),
        }
    }
}

/// A drive's kind, to be attached.
pub enum Attach {
    /// A hard disk.
    Disk(HardDisk),
    /// A CD-ROM drive.
    Optical(Optical),
}

/// Why a medium was not changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MediumError {
    /// There is no CD-ROM drive there.
    #[error("there is no CD-ROM drive at this position")]
    NoDrive,
    /// The guest has locked the tray.
    #[error("the guest has locked the tray: let it unmount the medium, or use force")]
    Locked,
}

/// The controller.
pub struct Ide {
    config: ConfigSpace,
    channels: [Channel; 2],
}

/// Saved state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdeState {
    /// Configuration space.
    pub config: ConfigState,
    /// Both channels.
    channels: [ChannelState; 2],
}

impl SavedState for IdeState {
    const NAME: &'static str = "piix3-ide";
    const VERSION: u32 = 1;
}

impl Ide {
    /// The controller at power-on with `drives`, which reach `memory` by bus mastering. Its threads
    /// end with it.
    ///
    /// # Errors
    /// If the host refuses a thread.
    pub fn new(
        drives: Vec<(Position, Attach)>,
        interrupts: [Arc<dyn IrqLine>; 2],
        memory: &GuestMemory,
    ) -> io::Result<Arc<Mutex<Self>>> {
        let ide = Arc::new(Mutex::new(Self::without_threads(
            drives, interrupts, memory,
        )?));
        let weak: Weak<Mutex<Self>> = Arc::downgrade(&ide);
        for (number, channel) in ide.lock().channels.iter().enumerate() {
            if channel.is_empty() {
                continue;
            }
            let lane = channel.lane();
            let device = Weak::clone(&weak);
            thread::Builder::new()
                .name(format!("ide{number}"))
                .stack_size(256 * 1024)
                .spawn(move || {
                    sandbox::restrict_thread(Class::Worker);
                    serve(&lane, &device, number);
                })?;
        }
        Ok(ide)
    }

    fn without_threads(
        drives: Vec<(Position, Attach)>,
        interrupts: [Arc<dyn IrqLine>; 2],
        memory: &GuestMemory,
    ) -> io::Result<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x7010,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            class: 0x01_0180,
            revision: 0,
        });
        let impossible = |error: ConfigError| io::Error::other(error);
        config
            .add_bar(BUS_MASTER.0, BarKind::Port, BUS_MASTER.1)
            .map_err(impossible)?;
        config.allow(TIMING, &[0xff, 0xff, 0xff, 0xff, 0xff]);
        let channels = interrupts.map(|line| Channel::new(line, memory.clone()));
        let mut ide = Self { config, channels };
        for (position, attach) in drives {
            let (channel, drive) = position.numbers();
            ide.channels[channel].attach(drive, Drive::new(attach));
        }
        Ok(ide)
    }

    /// Enables both channels' ports, for a machine that boots without firmware.
    pub fn enable_channels(&mut self) {
        self.config.write(TIMING, &[0, DECODE, 0, DECODE]);
    }

    /// Puts `medium` into a CD-ROM drive and closes the tray, or takes the medium out and opens it.
    /// A drive that the guest has locked tells the guest that somebody wants it to eject, unless
    /// `force`.
    ///
    /// # Errors
    /// [`MediumError`].
    pub fn change_medium(
        &mut self,
        position: Position,
        medium: Option<Image>,
        force: bool,
    ) -> Result<(), MediumError> {
        let (channel, drive) = position.numbers();
        self.channels[channel].change_medium(drive, medium, force)
    }

    /// Whether a CD-ROM drive's tray is open; `None` if there is no such drive.
    #[must_use]
    pub fn tray_open(&self, position: Position) -> Option<bool> {
        let (channel, drive) = position.numbers();
        self.channels[channel].tray_open(drive)
    }
}

/// A channel's thread, until the controller is gone.
fn serve(lane: &Lane, device: &Weak<Mutex<Ide>>, channel: usize) {
    let mut buffer = Vec::new();
    while lane.work(&mut buffer) {
        let Some(ide) = device.upgrade() else { return };
        ide.lock().channels[channel].collect();
    }
}

impl Drop for Ide {
    fn drop(&mut self) {
        for channel in &self.channels {
            channel.lane().end();
        }
    }
}

impl PciFunction for Ide {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
        let master = self.config.bus_master();
        for channel in &mut self.channels {
            channel.allow_bus_master(master);
        }
    }

    fn windows(&self) -> Vec<Window> {
        let mut windows = self.config.windows();
        if self.config.word(4) & 1 == 0 {
            return windows;
        }
        for channel in 0..2u8 {
            if self.config.byte(TIMING + channel * 2 + 1) & DECODE == 0 {
                continue;
            }
            let ports = |(window, base), size| Window {
                window,
                space: Space::Port,
                base,
                size,
            };
            windows.push(ports(COMMAND_PORTS[usize::from(channel)], 8));
            windows.push(ports(CONTROL_PORTS[usize::from(channel)], 1));
        }
        windows
    }

    fn window_read(&mut self, window: u8, offset: u64, data: &mut [u8]) {
        match window {
            8 | 9 => self.channels[usize::from(window - 8)].read(offset as u8, data),
            10 | 11 => data.fill(self.channels[usize::from(window - 10)].alternate_status()),
            _ => {
                for (at, byte) in (offset..).zip(data) {
                    let channel = &self.channels[(at >> 3 & 1) as usize];
                    *byte = channel.bus_master.read((at & 7) as u8);
                }
            }
        }
    }

    fn window_write(&mut self, window: u8, offset: u64, data: &[u8]) {
        match window {
            8 | 9 => self.channels[usize::from(window - 8)].write(offset as u8, data),
            10 | 11 => {
                if let Some(byte) = data.first() {
                    self.channels[usize::from(window - 10)].write_control(*byte);
                }
            }
            _ => {
                for (at, byte) in (offset..).zip(data) {
                    self.channels[(at >> 3 & 1) as usize].write_bus_master((at & 7) as u8, *byte);
                }
            }
        }
    }
}

impl Device for Ide {
    fn reset(&mut self) {
        self.config.reset();
        for channel in &mut self.channels {
            channel.reset();
        }
    }

    fn pause(&mut self) {
        for channel in &mut self.channels {
            channel.settle();
        }
    }

    fn resume(&mut self) {
        for channel in &mut self.channels {
            channel.start_bus_master();
        }
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let [primary, secondary] = &self.channels;
        IdeState {
            config: self.config.save(),
            channels: [primary.save(), secondary.save()],
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = IdeState::load(state)?;
        self.config.restore(&state.config)?;
        let master = self.config.bus_master();
        for (channel, state) in self.channels.iter_mut().zip(state.channels) {
            channel
                .restore(state)
                .map_err(|reason| StateError::Invalid {
                    kind: IdeState::NAME,
                    reason,
                })?;
            channel.allow_bus_master(master);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
