//! Direct kernel boot: a Linux kernel is put into memory and entered without firmware.
//!
//! Two forms of kernels and two ways in:
//!
//! * a *bzImage* is entered at its 64-bit entry point
//!   ([boot protocol](https://docs.kernel.org/arch/x86/boot.html) 2.12 or later);
//! * an ELF *vmlinux* is entered by [PVH](https://xenbits.xen.org/docs/unstable/misc/pvh.html) if
//!   it has the note for it, else at its 64-bit entry point.
//!
//! Kernel, initrd and command line are whoever's: nothing in them is trusted. Each way in which
//! they cannot be used has its own [`BootError`], and loading writes to RAM only.
//!
//! ```text
//! 0x0_0500  GDT                 0x0_9000  page tables (64-bit entry)
//! 0x0_6000  PVH start info      0x2_0000  command line
//! 0x0_7000  zero page           0xe_0000  ACPI tables
//! kernel where it wants to be, initrd as high as the kernel allows
//! ```

mod entry;
mod error;
mod kernel;
mod memory_map;
mod pvh;
mod zero_page;

pub use entry::Entry;
pub use error::BootError;
pub use memory_map::{MapEntry, MapKind, memory_map};

use crate::memory::{GuestMemory, MemoryLayout, PAGE_SIZE};
use kernel::Loaded;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
};
use vm_memory::{Bytes as _, GuestAddress};

const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line, without its final zero: what fits below the ACPI tables.
const LONGEST_COMMAND_LINE: usize = 0x1_0000;
/// Where initrds end at the latest for kernels that do not say.
const USUAL_INITRD_END: u64 = 0x3800_0000;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// PVH for ELF kernels that have it, the 64-bit entry for all others.
    #[default]
    Auto,
    /// The 64-bit boot protocol.
    Linux64,
    /// PVH; only ELF kernels with its note.
    Pvh,
}

/// What to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kernel image.
    pub kernel: &'a File,
    /// The initial RAM disk, byte for byte.
    pub initrd: Option<&'a File>,
    /// The command line, exactly as the kernel is to see it.
    pub command_line: &'a str,
    /// How to enter.
    pub protocol: Protocol,
    /// Address of the ACPI root pointer.
    pub rsdp: u64,
}

/// Loads everything and says how to enter.
///
/// # Errors
/// [`BootError`].
pub fn load(
    boot: &Boot<'_>,
    memory: &GuestMemory,
    layout: &MemoryLayout,
) -> Result<Entry, BootError> {
    let loaded = kernel::load(boot.kernel, boot.protocol, memory, layout)?;
    write_command_line(boot.command_line, &loaded, memory)?;
    let initrd = match boot.initrd {
        Some(file) => load_initrd(file, &loaded, memory, layout)?,
        None => None,
    };
    let map = memory_map(layout);
    let parts = Parts {
        command_line: COMMAND_LINE,
        initrd,
        map: &map,
        rsdp: boot.rsdp,
    };
    match loaded {
        Loaded::Linux64 { entry, header, .. } => {
            zero_page::write(header.as_deref(), &parts, boot.command_line.len(), memory)?;
            entry::write_tables(memory)?;
            Ok(Entry::long(entry))
        }
        Loaded::Pvh { entry, .. } => {
            pvh::write(&parts, memory)?;
            entry::write_tables(memory)?;
            Ok(Entry::protected(entry))
        }
    }
}

/// What both protocols tell the kernel.
struct Parts<'a> {
    command_line: u64,
    /// Address and length.
    initrd: Option<(u64, u64)>,
    map: &'a [MapEntry],
    rsdp: u64,
}

fn write_command_line(line: &str, loaded: &Loaded, memory: &GuestMemory) -> Result<(), BootError> {
    if line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    let limit = loaded.command_line_limit().min(LONGEST_COMMAND_LINE);
    if line.len() > limit {
        return Err(BootError::CommandLineLong {
            length: line.len(),
            limit,
        });
    }
    memory.write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

/// Puts the initrd as high as the kernel allows, below the hole, on a page.
fn load_initrd(
    file: &File,
    loaded: &Loaded,
    memory: &GuestMemory,
    layout: &MemoryLayout,
) -> Result<Option<(u64, u64)>, BootError> {
    let mut file = file;
    let size = file.seek(SeekFrom::End(0)).map_err(BootError::InitrdRead)?;
    if size == 0 {
        return Ok(None);
    }
    let end = loaded.initrd_end().min(layout.low_end());
    let room = end.saturating_sub(loaded.end().next_multiple_of(PAGE_SIZE));
    let address = end
        .checked_sub(size)
        .map(|address| address & !(PAGE_SIZE - 1))
        .filter(|address| *address >= loaded.end())
        .ok_or(BootError::InitrdLarge { size, room })?;
    file.rewind().map_err(BootError::InitrdRead)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| BootError::InitrdRead(std::io::Error::other(error)))?;
    Ok(Some((address, size)))
}

#[cfg(test)]
mod tests;
