//! The page that a vCPU shares with the kernel, for the fields that `kvm-ioctls` does not show.

#![allow(unsafe_code)] // The page is shared with the kernel and, for one byte, between threads.

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicU8, Ordering};

/// A view of a vCPU's page. Must not be used after the vCPU is gone; [`super::vcpu`] keeps both in
/// one place.
#[derive(Debug)]
pub(super) struct RunPage(*mut kvm_run);

// SAFETY: the only access from another thread is to `immediate_exit`, as an atomic.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn of(vcpu: &mut VcpuFd) -> Self {
        Self(std::ptr::from_mut(vcpu.get_kvm_run()))
    }

    /// A second view, for another thread.
    pub(super) fn duplicate(&self) -> Self {
        Self(self.0)
    }

    /// Makes the next entry into the guest return at once, or not any more.
    pub(super) fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the page is mapped while the vCPU lives; the byte is written by any thread and
        // read by the kernel, always as one byte, so an atomic store is what it takes.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0).immediate_exit) };
        flag.store(on.into(), Ordering::SeqCst);
    }

    /// Bytes per item of the port access that the vCPU has just left the guest for.
    pub(super) fn port_access_size(&self) -> usize {
        // SAFETY: the page is mapped, and called by the vCPU's thread after KVM_EXIT_IO, when
        // this member of the union is the one that the kernel has written.
        unsafe { (*self.0).__bindgen_anon_1.io.size }.into()
    }

    /// KVM_EXIT_INTERNAL_ERROR's suberror and data.
    pub(super) fn internal_error(&self) -> (u32, Vec<u64>) {
        // SAFETY: as above, after KVM_EXIT_INTERNAL_ERROR.
        let error = unsafe { (*self.0).__bindgen_anon_1.internal };
        let count = usize::try_from(error.ndata)
            .unwrap_or(0)
            .min(error.data.len());
        (error.suberror, error.data[..count].to_vec())
    }
}
