//! One machine: put together from a description, run, paused, reset, ended.
//!
//! A machine has these threads: one per vCPU, one for slow devices (timers, character input), one
//! per character output, and the one that calls [`Machine::run`], which decides. vCPUs and devices
//! report to it; commands come to it through a [`Remote`]. While the machine changes state
//! the vCPUs stand still at a gate.

mod board;
mod build;
mod client;
mod clock;
mod console;
pub mod control;
mod description;
mod device_thread;
mod devices;
pub mod disks;
mod drives;
mod gate;
pub mod nics;
mod notices;
pub mod ports;
mod report;
mod run;
mod timers;

pub use board::{Board, BoardConfig, BoardError, Wiring};
pub use build::BuildError;
pub use client::{Client, ClientError, MOST_DESCRIPTORS};
pub use description::{
    BootDescription, CharDevice, CpuDescription, CpuModel, Description, DescriptionError,
    FileSource, FirmwareDescription, MOST_VCPUS, OnReset, OnTripleFault, Place, SerialDescription,
    VERSION,
};
pub use disks::{Discard, DiskDescription, DiskDescriptionError, LayerDescription};
pub use drives::{
    CdromDescription, DisplayDescription, DriveDescription, DriveDescriptions, DriveError,
    IdeDiskDescription,
};
pub use nics::{DescriptorNumber, NicBackend, NicDescription, NicDescriptionError};
pub use notices::Notice;
pub use ports::{PortBackend, PortDescription, PortError};
pub use report::{ExitCause, ExitReport};
pub use run::{
    Command, CommandError, DiskStatus, Machine, MachineError, Remote, RunState, Status, StopReason,
};
