//! Saved state of what KVM models. The types are the kernel's own, which never change shape.

use kvm_bindings::{
    kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

/// A vCPU's registers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, the local APIC's base.
    pub sregs: kvm_sregs,
    /// FPU and vector registers.
    pub xsave: Box<kvm_xsave>,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// The local APIC.
    pub lapic: Box<kvm_lapic_state>,
    /// Running, halted, waiting for a start-up message.
    pub mp: kvm_mp_state,
    /// Exceptions and interrupts in delivery.
    pub events: kvm_vcpu_events,
    /// Model-specific registers.
    pub msrs: Vec<kvm_msr_entry>,
    /// Frequency of the time stamp counter in kHz, 0 if the host cannot tell.
    pub tsc_khz: u32,
}

/// Interrupt controllers, timer and clock.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// First PIC.
    pub pic_master: kvm_irqchip,
    /// Second PIC.
    pub pic_slave: kvm_irqchip,
    /// I/O APIC.
    pub io_apic: kvm_irqchip,
    /// Interval timer.
    pub pit: kvm_pit_state2,
    /// kvmclock in nanoseconds.
    pub clock: u64,
}

/// Adds bits to a PIC's edge/level register.
#[allow(unsafe_code)] // The kernel's type is a union.
pub(super) fn set_pic_elcr(chip: &mut kvm_irqchip, bits: u8) {
    // SAFETY: called with a PIC's state only, for which the kernel has filled in this member; all
    // its bit patterns are valid.
    unsafe { chip.chip.pic.elcr |= bits & chip.chip.pic.elcr_mask };
}
