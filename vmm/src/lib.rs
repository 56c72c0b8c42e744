//! The monitor: one virtual machine on KVM, as stock kernels and firmware know it.
//!
//! **What it is for.** `cenote-vmm` runs one domain. It is given a machine description and open
//! file descriptors and knows nothing of domains' names, documents or files' owners.
//!
//! **What it promises.** The machine is an i440FX board with PIIX3 and PIIX4, PCI, virtio 1.x and
//! ACPI tables of its own. Whatever a guest does to its registers, tables and queues, the monitor
//! neither panics nor works without bound nor touches host memory outside the guest's. A machine
//! that was paused can be saved and goes on elsewhere.
//!
//! **What it must never do.** Guess a disk's format, open a path on a guest's word, or let one
//! guest's state reach another.
//!
//! # The parts
//!
//! * [`bus`], [`device`], [`interrupt`], [`clock`], [`event`] — what devices are made of: register
//!   access, life and saved state, interrupt lines, time, and reports to the machine. No KVM.
//! * [`memory`], [`overlay`] — the guest's memory and its layout, and device memory shown to it.
//! * [`disk`] — images behind block devices.
//! * [`pci`] — configuration space, the root bus, INTx and MSI-X.
//! * [`virtio`] — virtio devices over PCI: transport, queues, and the devices themselves.
//! * [`devices`] — the board: serial port, clock, keyboard controller, power management, bridges.
//! * [`acpi`], [`firmware`] — what firmware is told, and the firmware itself.
//! * [`boot`] — what firmware would do for a kernel that is booted directly.
//! * [`machine`] — the description, the board put together, running and ending.
//! * [`sandbox`] — what the process gives up before a guest runs.
//! * [`snapshot`] — saved machines.
//! * [`supervise`] — starting a monitor's process and learning how it ended.
//! * [`kvm`] — the only part that knows the hypervisor.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod device;
pub mod devices;
pub mod disk;
pub mod doorbell;
pub mod event;
pub mod firmware;
pub mod footprint;
pub mod interrupt;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod overlay;
pub mod pci;
pub mod sandbox;
pub mod snapshot;
pub mod supervise;
pub mod virtio;
