//! Guest memory as KVM's memory slots. The only place where the kernel is told host addresses.

#![allow(unsafe_code)] // KVM is given raw addresses of mappings that must outlive it.

use crate::memory::GuestMemory;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};

/// Gives every region of `memory` to the machine, slot by slot, with or without a dirty log.
///
/// `Vm` keeps `memory` for as long as `vm` lives and drops it last.
pub(super) fn set_slots(
    vm: &VmFd,
    memory: &GuestMemory,
    log_dirty: bool,
) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: if log_dirty {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped at that address with that length, regions do not overlap,
        // and the mapping outlives the machine: `Vm` holds both and drops the machine first.
        unsafe { vm.set_user_memory_region(slot)? };
    }
    Ok(())
}
