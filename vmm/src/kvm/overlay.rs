//! Device memory as KVM's memory slots, moved while the machine runs.

#![allow(unsafe_code)] // KVM is given raw addresses of mappings that must outlive the slot.

use crate::overlay::{DeviceMemory, Overlay, Overlays};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

/// Slots below belong to RAM.
const FIRST: u32 = 16;
/// KVM has at least this many slots.
const END: u32 = 500;

/// Gives out slots.
pub(super) struct Slots {
    vm: Arc<VmFd>,
    next: AtomicU32,
}

impl Slots {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            next: AtomicU32::new(FIRST),
        }
    }
}

impl Overlays for Slots {
    fn create(&self, memory: Arc<DeviceMemory>, writable: bool) -> io::Result<Box<dyn Overlay>> {
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        if slot >= END {
            return Err(io::Error::other("the machine has no more memory slots"));
        }
        Ok(Box::new(Slot {
            vm: Arc::clone(&self.vm),
            memory,
            slot,
            flags: if writable { 0 } else { KVM_MEM_READONLY },
            placed: None,
        }))
    }
}

struct Slot {
    vm: Arc<VmFd>,
    memory: Arc<DeviceMemory>,
    slot: u32,
    flags: u32,
    placed: Option<u64>,
}

impl Slot {
    fn set(&self, base: u64, size: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: self.slot,
            flags: self.flags,
            guest_phys_addr: base,
            memory_size: size,
            userspace_addr: self.memory.host_address(),
        };
        // SAFETY: the memory is mapped at that address with at least that length for as long as
        // `self.memory` lives, and the slot is taken away before it is dropped. The guest may
        // write there at any time; the monitor reads it through volatile accesses only.
        unsafe { self.vm.set_user_memory_region(region) }
    }
}

impl Overlay for Slot {
    fn place(&mut self, base: Option<u64>) {
        if base == self.placed {
            return;
        }
        if let Some(before) = self.placed.take()
            && let Err(error) = self.set(before, 0)
        {
            tracing::error!(slot = self.slot, %error, "KVM does not give a memory slot back");
        }
        if let Some(base) = base {
            match self.set(base, self.memory.size() as u64) {
                Ok(()) => self.placed = Some(base),
                Err(error) => {
                    tracing::debug!(slot = self.slot, base, %error, "device memory is not placed");
                }
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.place(None);
    }
}
