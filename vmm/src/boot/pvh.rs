//! PVH's start info: what the kernel finds in EBX.

use super::{BootError, MapKind, Parts, entry::START_INFO};
use crate::memory::GuestMemory;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes as _, GuestAddress};

const MAGIC: u32 = 0x336e_c578;
const MODULE: u64 = START_INFO + 0x100;
const MEMORY_MAP: u64 = START_INFO + 0x200;

pub(super) fn write(parts: &Parts<'_>, memory: &GuestMemory) -> Result<(), BootError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: parts.command_line,
        rsdp_paddr: parts.rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: parts.map.len() as u32,
        ..Default::default()
    };
    if let Some((address, size)) = parts.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = MODULE;
        let module = hvm_modlist_entry {
            paddr: address,
            size,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(MODULE))?;
    }
    let mut at = MEMORY_MAP;
    for entry in parts.map {
        let entry = hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            type_: match entry.kind {
                MapKind::Ram => 1,
                MapKind::Reserved => 2,
            },
            ..Default::default()
        };
        memory.write_obj(entry, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    memory.write_obj(info, GuestAddress(START_INFO))?;
    Ok(())
}
