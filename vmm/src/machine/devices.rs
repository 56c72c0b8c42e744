//! Putting virtio devices on the board.

use super::{Board, BuildError, Description};
use crate::{
    event::EventSink,
    kvm::Vm,
    pci::Pin,
    virtio::{PciWiring, VirtioDevice, VirtioPci, block::Block, console::Console, rng::Rng},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

/// The first slot that devices without one of their own are given.
const FIRST_SLOT: u8 = 3;

/// A disk of the machine.
pub(super) type DiskFunction = Arc<Mutex<VirtioPci<Block>>>;

fn resource(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Resource { what, source }
}

/// Where devices without a slot of their own go: past those that the description gives to others.
#[derive(Debug, Clone)]
pub(super) struct Slots(BTreeSet<u8>);

impl Slots {
    pub(super) fn of(description: &Description) -> Self {
        let disks = description.disks.iter().filter_map(|disk| disk.slot);
        let nics = description.nics.iter().filter_map(|nic| nic.slot);
        Self(disks.chain(nics).collect())
    }

    /// `slot`, or the next one that is free.
    pub(super) fn choose(&self, board: &Board, slot: Option<u8>) -> Result<u8, BuildError> {
        if let Some(slot) = slot {
            return Ok(slot);
        }
        let mut first = FIRST_SLOT;
        loop {
            let free = board
                .pci
                .free_slot(first)
                .map_err(super::BoardError::from)?;
            if !self.0.contains(&free) {
                return Ok(free);
            }
            first = free + 1;
        }
    }
}

/// Puts `device` at `slot`.
pub(super) fn add_virtio<D: VirtioDevice + 'static>(
    board: &mut Board,
    vm: &Vm,
    name: &str,
    slot: u8,
    device: D,
) -> Result<Arc<Mutex<VirtioPci<D>>>, BuildError> {
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

/// Adds the disks, the console and the entropy device that `description` has. Those with a slot
/// come first. Disks with a turn at booting are put into `order`.
pub(super) fn add_devices(
    board: &mut Board,
    vm: &Vm,
    description: &Description,
    events: &Arc<dyn EventSink>,
    order: &mut BTreeMap<u32, String>,
) -> Result<Vec<DiskFunction>, BuildError> {
    let slots = Slots::of(description);
    let (placed, others): (Vec<_>, Vec<_>) =
        description.disks.iter().partition(|d| d.slot.is_some());
    let mut disks = Vec::new();
    for disk in placed.into_iter().chain(others) {
        let options = disk.options(description.vcpus);
        let block = Block::new(disk.open()?, options, Arc::clone(events))
            .map_err(resource("threads and queues for a disk"))?;
        let name = format!("disk-{}", disk.name);
        let slot = slots.choose(board, disk.slot)?;
        disks.push(add_virtio(board, vm, &name, slot, block)?);
        if let Some(index) = disk.boot_index {
            order.insert(index, format!("/pci@i0cf8/scsi@{slot:x}/disk@0,0"));
        }
    }
    if !description.ports.is_empty() {
        let ports = description.ports.iter().map(super::PortDescription::open);
        let ports = ports.collect::<Result<Vec<_>, _>>()?;
        let console = Console::new("ports", ports).map_err(resource("a thread for ports"))?;
        let slot = slots.choose(board, None)?;
        add_virtio(board, vm, "console", slot, console)?;
    }
    if description.rng {
        let rng = Rng::new("rng").map_err(resource("random numbers"))?;
        let slot = slots.choose(board, None)?;
        add_virtio(board, vm, "rng", slot, rng)?;
    }
    Ok(disks)
}
