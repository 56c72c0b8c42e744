//! KVM's interrupt controllers, message routes and doorbells behind the library's own traits.

use crate::{
    doorbell::{Doorbell, Doorbells},
    interrupt::{GSI_COUNT, InterruptController, MsiAllocator, MsiRoute},
};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use parking_lot::Mutex;
use std::{collections::BTreeMap, io, sync::Arc};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The most routes that a machine may have; KVM's own limit is 4096.
const MOST_ROUTES: u32 = 4096 - GSI_COUNT * 2;

/// Interrupts of one machine.
pub(super) struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    next: u32,
    programmed: BTreeMap<u32, (u64, u32)>,
}

impl Interrupts {
    /// Takes over routing. The lines are led as on a PC with an I/O APIC: ISA lines to both
    /// kinds of controllers, the timer (line 0) to the I/O APIC's input 2.
    pub(super) fn new(vm: Arc<VmFd>) -> io::Result<Arc<Self>> {
        let interrupts = Arc::new(Self {
            vm,
            routes: Mutex::default(),
        });
        interrupts.commit(&BTreeMap::new())?;
        Ok(interrupts)
    }

    fn commit(&self, messages: &BTreeMap<u32, (u64, u32)>) -> io::Result<()> {
        let mut entries = wired();
        entries.extend(
            messages
                .iter()
                .map(|(gsi, (address, data))| message(*gsi, *address, *data)),
        );
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.vm.set_gsi_routing(&routing)?)
    }
}

fn wired() -> Vec<kvm_irq_routing_entry> {
    let chip = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    };
    let mut entries = Vec::new();
    for gsi in 0..8 {
        // Line 2 joins the two PICs.
        if gsi != 2 {
            entries.push(chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
        }
        entries.push(chip(gsi + 8, KVM_IRQCHIP_PIC_SLAVE, gsi));
    }
    entries.push(chip(0, KVM_IRQCHIP_IOAPIC, 2));
    for gsi in (1..GSI_COUNT).filter(|gsi| *gsi != 2) {
        entries.push(chip(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    entries
}

fn message(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: address as u32,
                address_hi: (address >> 32) as u32,
                data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
            },
        },
        ..Default::default()
    }
}

impl InterruptController for Interrupts {
    fn set_gsi(&self, gsi: u32, high: bool) {
        if let Err(error) = self.vm.set_irq_line(gsi, high) {
            tracing::error!(gsi, high, %error, "KVM refused an interrupt line's level");
        }
    }
}

/// Gives out routes; each is an eventfd that KVM turns into the message.
pub(super) struct Allocator(pub(super) Arc<Interrupts>);

impl MsiAllocator for Allocator {
    fn allocate(&self) -> io::Result<Arc<dyn MsiRoute>> {
        let mut routes = self.0.routes.lock();
        if routes.next >= MOST_ROUTES {
            return Err(io::Error::other("the machine has no more interrupt routes"));
        }
        let gsi = GSI_COUNT + routes.next;
        routes.next += 1;
        Ok(Arc::new(Route {
            interrupts: Arc::clone(&self.0),
            event: EventFd::new(EFD_NONBLOCK)?,
            gsi,
        }))
    }
}

struct Route {
    interrupts: Arc<Interrupts>,
    event: EventFd,
    gsi: u32,
}

impl MsiRoute for Route {
    fn program(&self, address: u64, data: u32) -> io::Result<()> {
        let mut routes = self.interrupts.routes.lock();
        let fresh = !routes.programmed.contains_key(&self.gsi);
        let before = routes.programmed.insert(self.gsi, (address, data));
        if let Err(error) = self.interrupts.commit(&routes.programmed) {
            match before {
                Some(before) => routes.programmed.insert(self.gsi, before),
                None => routes.programmed.remove(&self.gsi),
            };
            return Err(error);
        }
        if fresh {
            self.interrupts.vm.register_irqfd(&self.event, self.gsi)?;
        }
        Ok(())
    }

    fn trigger(&self) {
        if let Err(error) = self.event.write(1) {
            tracing::debug!(gsi = self.gsi, %error, "interrupt event is full");
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut routes = self.interrupts.routes.lock();
        if routes.programmed.remove(&self.gsi).is_some() {
            // Nothing can be done about a failure, and nothing depends on it.
            let _ = self.interrupts.vm.unregister_irqfd(&self.event, self.gsi);
            let _ = self.interrupts.commit(&routes.programmed);
        }
    }
}

impl Doorbells for Interrupts {
    fn attach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(bell.address);
        match bell.value {
            Some(value) => self.vm.register_ioevent(event, &address, value),
            None => self.vm.register_ioevent(event, &address, NoDatamatch),
        }?;
        Ok(())
    }

    fn detach(&self, bell: Doorbell, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(bell.address);
        match bell.value {
            Some(value) => self.vm.unregister_ioevent(event, &address, value),
            None => self.vm.unregister_ioevent(event, &address, NoDatamatch),
        }?;
        Ok(())
    }
}
