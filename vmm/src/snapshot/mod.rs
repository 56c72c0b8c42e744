//! Saved machines: one file with a header, the guest's memory and the state of all devices.
//!
//! ```text
//! 0      header, one page, little-endian:
//!          0  magic "CENOTEVM"
//!          8  version of the file format, u32
//!         12  CRC-32 of this page with this field zero, u32
//!         16  offset, length (u64 each) and CRC-32 (u32) of the state, 4 bytes zero
//!         40  offset, length (u64 each) and CRC-32 (u32) of the memory's checksums, 4 bytes zero
//!         64  number of memory regions, u32, 4 bytes zero
//!         72  per region: guest-physical start, length, offset in the file (u64 each)
//! 4096   memory, region by region, each on a page; pages of zeros are holes
//! …      the memory's checksums: a CRC-32 (u32) for each 2 MiB of each region
//! …      the state: JSON, [`MachineState`]
//! ```
//!
//! Restoring verifies header, checksums and state, and maps the memory in as a private copy: what
//! the guest does not touch is not read. Memory is verified against its checksums on request
//! ([`SnapshotFile::verify_memory`]), because that has to read all of it. A file may be restored
//! as often as one likes; it must not be changed while a machine runs on it.

mod file;
mod header;

pub use file::{SnapshotError, SnapshotFile, write};

use crate::{
    device::DeviceState,
    kvm::{VcpuState, VmState},
    memory::MemoryLayout,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`MachineState`]'s shape. A change of a device's own state changes that device's
/// version, not this one.
pub const STATE_VERSION: u32 = 1;

/// The state of a machine without its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Memory's size and place.
    pub layout: MemoryLayout,
    /// Interrupt controllers, timer, clock.
    pub vm: VmState,
    /// Processors, in order.
    pub vcpus: Vec<VcpuState>,
    /// Devices by name.
    pub devices: BTreeMap<String, DeviceState>,
    /// How often the guest was reset in place.
    pub resets: u64,
}
