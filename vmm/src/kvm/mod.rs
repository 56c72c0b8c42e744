//! KVM: the host's hypervisor, one virtual machine on it, and its vCPUs.
//!
//! The only part of the library that knows KVM. Devices meet it as
//! [`InterruptController`](crate::interrupt::InterruptController),
//! [`MsiAllocator`](crate::interrupt::MsiAllocator), [`Doorbells`](crate::doorbell::Doorbells) and
//! [`Overlays`](crate::overlay::Overlays).

mod cpuid;
mod host;
mod interrupts;
mod memory;
mod overlay;
mod run_page;
mod state;
mod vcpu;
mod vm;

pub use cpuid::{CpuidMask, CpuidRegister};
pub use host::{Backing, Host, HostError};
pub use state::{VcpuState, VmState};
pub use vcpu::{Exit, Kicker, Vcpu};
pub use vm::{Vm, VmError};
