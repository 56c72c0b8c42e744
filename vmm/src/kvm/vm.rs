//! One virtual machine: memory slots, interrupt controllers, the interval timer, the clock.

use super::{
    Host, VmState, cpuid,
    cpuid::CpuidMask,
    interrupts::{Allocator, Interrupts},
    memory::set_slots,
    overlay::Slots,
    state,
    vcpu::{Vcpu, VcpuSeed},
};
use crate::{
    doorbell::Doorbells,
    interrupt::{InterruptController, MsiAllocator},
    memory::{GuestMemory, KVM_PAGES, PAGE_SIZE},
    overlay::Overlays,
};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use std::{io, sync::Arc};
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};

/// Something that KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A call failed.
    #[error("KVM refused to {action}")]
    Kvm {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Model-specific registers were not taken over.
    #[error(
        "KVM refused model-specific register {index:#x}: the host's processor differs from the one that the state was saved on"
    )]
    Msr {
        /// The register.
        index: u32,
    },
}

pub(super) trait Action<T> {
    /// Says what was being done when KVM refused.
    fn to(self, action: &'static str) -> Result<T, VmError>;
}

impl<T> Action<T> for Result<T, kvm_ioctls::Error> {
    fn to(self, action: &'static str) -> Result<T, VmError> {
        self.map_err(|errno| VmError::Kvm {
            action,
            source: errno.into(),
        })
    }
}

impl<T> Action<T> for io::Result<T> {
    fn to(self, action: &'static str) -> Result<T, VmError> {
        self.map_err(|source| VmError::Kvm { action, source })
    }
}

/// A virtual machine without vCPUs.
pub struct Vm {
    fd: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    overlays: Arc<Slots>,
    memory: GuestMemory,
}

impl Vm {
    /// A machine with `memory`, both kinds of interrupt controllers and the interval timer.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn new(host: &Host, memory: GuestMemory) -> Result<Self, VmError> {
        let fd = Arc::new(host.kvm().create_vm().to("create a virtual machine")?);
        fd.set_identity_map_address(KVM_PAGES)
            .to("place its identity map")?;
        // Three pages; the address fits, as the layout puts it below 4 GiB.
        fd.set_tss_address((KVM_PAGES + PAGE_SIZE) as usize)
            .to("place its task state segment")?;
        fd.create_irq_chip().to("create interrupt controllers")?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(pit).to("create the interval timer")?;
        set_slots(&fd, &memory, false).to("map the guest's memory")?;
        let interrupts = Interrupts::new(Arc::clone(&fd)).to("route interrupts")?;
        Ok(Self {
            overlays: Arc::new(Slots::new(Arc::clone(&fd))),
            fd,
            interrupts,
            memory,
        })
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The controllers' inputs.
    #[must_use]
    pub fn controller(&self) -> Arc<dyn InterruptController> {
        self.interrupts.clone()
    }

    /// Message-signalled interrupts.
    #[must_use]
    pub fn messages(&self) -> Arc<dyn MsiAllocator> {
        Arc::new(Allocator(self.interrupts.clone()))
    }

    /// Doorbells in the memory space.
    #[must_use]
    pub fn doorbells(&self) -> Arc<dyn Doorbells> {
        self.interrupts.clone()
    }

    /// Device memory in the guest's address space.
    #[must_use]
    pub fn overlays(&self) -> Arc<dyn Overlays> {
        self.overlays.clone()
    }

    /// Creates `count` vCPUs that look like the host's processors, less `masks`.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn create_vcpus(
        &self,
        host: &Host,
        count: u8,
        masks: &[CpuidMask],
    ) -> Result<Vec<Vcpu>, VmError> {
        let base = cpuid::supported(host.kvm(), masks).to("tell what its processors can do")?;
        let msrs = host
            .kvm()
            .get_msr_index_list()
            .to("list model-specific registers")?;
        let msrs: Arc<[u32]> = msrs.as_slice().into();
        (0..count)
            .map(|id| {
                let fd = self.fd.create_vcpu(id.into()).to("create a vCPU")?;
                let cpuid = cpuid::for_vcpu(&base, id, count).to("tell a vCPU's features")?;
                Vcpu::new(
                    fd,
                    VcpuSeed {
                        id,
                        cpuid,
                        msrs: msrs.clone(),
                        memory: self.memory.clone(),
                    },
                )
            })
            .collect()
    }

    /// Marks ISA lines as level-triggered in the PICs, as firmware does for the SCI and PCI.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn set_level_triggered(&self, lines: &[u8]) -> Result<(), VmError> {
        for (chip, first) in [(KVM_IRQCHIP_PIC_MASTER, 0u8), (KVM_IRQCHIP_PIC_SLAVE, 8)] {
            let mut state = self.irqchip(chip)?;
            let bits = lines
                .iter()
                .filter_map(|line| line.checked_sub(first).filter(|bit| *bit < 8))
                .fold(0u8, |bits, bit| bits | 1 << bit);
            state::set_pic_elcr(&mut state, bits);
            self.fd
                .set_irqchip(&state)
                .to("set interrupt controllers")?;
        }
        Ok(())
    }

    fn irqchip(&self, chip: u32) -> Result<kvm_irqchip, VmError> {
        let mut state = kvm_irqchip {
            chip_id: chip,
            ..Default::default()
        };
        self.fd
            .get_irqchip(&mut state)
            .to("tell its interrupt controllers' state")?;
        Ok(state)
    }

    /// The state of controllers, timer and clock. The vCPUs stand still.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn save(&self) -> Result<VmState, VmError> {
        let clock = self.fd.get_clock().to("tell its clock")?;
        Ok(VmState {
            pic_master: self.irqchip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: self.irqchip(KVM_IRQCHIP_PIC_SLAVE)?,
            io_apic: self.irqchip(KVM_IRQCHIP_IOAPIC)?,
            pit: self.fd.get_pit2().to("tell its interval timer")?,
            clock: clock.clock,
        })
    }

    /// Takes over a state made by [`Vm::save`].
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn restore(&self, state: &VmState) -> Result<(), VmError> {
        for chip in [&state.pic_master, &state.pic_slave, &state.io_apic] {
            self.fd.set_irqchip(chip).to("set interrupt controllers")?;
        }
        self.fd.set_pit2(&state.pit).to("set the interval timer")?;
        let clock = kvm_clock_data {
            clock: state.clock,
            ..Default::default()
        };
        self.fd.set_clock(&clock).to("set the clock")
    }

    /// Starts or stops recording which pages are written.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused.
    pub fn log_dirty_pages(&self, on: bool) -> Result<(), VmError> {
        set_slots(&self.fd, &self.memory, on).to("log written pages")
    }

    /// The pages written by vCPUs or by the monitor's devices since the last call, per region of
    /// memory: the region's start and a bitmap, lowest page in the lowest bit. Resets both logs.
    ///
    /// # Errors
    /// [`VmError`] naming what KVM refused; logging must be on.
    pub fn take_dirty_pages(&self) -> Result<Vec<(u64, Vec<u64>)>, VmError> {
        (0u32..)
            .zip(self.memory.iter())
            .map(|(slot, region)| {
                let length = region.len() as usize;
                let mut pages = self
                    .fd
                    .get_dirty_log(slot, length)
                    .to("tell which pages were written")?;
                let own = region.get_mmap().bitmap().take();
                for (word, own) in pages.iter_mut().zip(own) {
                    *word |= own;
                }
                Ok((region.start_addr().raw_value(), pages))
            })
            .collect()
    }
}
