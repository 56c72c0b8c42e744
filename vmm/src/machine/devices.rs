//! Putting virtio devices on the board.

use super::{Board, BuildError, Description};
use crate::{
    event::EventSink,
    kvm::Vm,
    pci::Pin,
    virtio::{PciWiring, VirtioDevice, VirtioPci, block::Block, console::Console, rng::Rng},
};
use parking_lot::Mutex;
use std::{io, sync::Arc};

/// The first slot that devices without one of their own are given.
const FIRST_SLOT: u8 = 3;

/// A disk of the machine.
pub(super) type DiskFunction = Arc<Mutex<VirtioPci<Block>>>;

fn resource(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Resource { what, source }
}

/// Puts `device` at `slot`, or at the next free one.
pub(super) fn add_virtio<D: VirtioDevice + 'static>(
    board: &mut Board,
    vm: &Vm,
    name: &str,
    slot: Option<u8>,
    device: D,
) -> Result<Arc<Mutex<VirtioPci<D>>>, BuildError> {
    let slot = match slot {
        Some(slot) => slot,
        None => board
            .pci
            .free_slot(FIRST_SLOT)
            .map_err(super::BoardError::from)?,
    };
    let messages = vm.messages();
    let wiring = PciWiring {
        memory: vm.memory().clone(),
        doorbells: vm.doorbells(),
        messages: messages.as_ref(),
        line: board.interrupt_pin(slot, Pin::A),
    };
    let function = VirtioPci::new(name, device, wiring).map_err(resource("a virtio device"))?;
    let function = Arc::new(Mutex::new(function));
    board.add_function(name, slot, 0, function.clone())?;
    Ok(function)
}

/// Adds the disks, the console and the entropy device that `description` has. Those with a slot come first.
pub(super) fn add_devices(
    board: &mut Board,
    vm: &Vm,
    description: &Description,
    events: &Arc<dyn EventSink>,
) -> Result<Vec<DiskFunction>, BuildError> {
    let (placed, others): (Vec<_>, Vec<_>) =
        description.disks.iter().partition(|d| d.slot.is_some());
    let mut disks = Vec::new();
    for disk in placed.into_iter().chain(others) {
        let options = disk.options(description.vcpus);
        let block = Block::new(disk.open()?, options, Arc::clone(events))
            .map_err(resource("threads and queues for a disk"))?;
        let name = format!("disk-{}", disk.name);
        disks.push(add_virtio(board, vm, &name, disk.slot, block)?);
    }
    if !description.ports.is_empty() {
        let ports = description.ports.iter().map(super::PortDescription::open);
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        let console = Console::new("ports", ports).map_err(resource("a thread for ports"))?;
        add_virtio(board, vm, "console", None, console)?;
    }
    if description.rng {
        let rng = Rng::new("rng").map_err(resource("random numbers"))?;
        add_virtio(board, vm, "rng", None, rng)?;
    }
    Ok(disks)
}
