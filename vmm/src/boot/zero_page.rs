//! The zero page: what the 64-bit boot protocol tells the kernel.

use super::{BootError, MapKind, Parts, entry::ZERO_PAGE};
use crate::memory::GuestMemory;
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes as _, GuestAddress};

/// "Undefined" loader.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// For kernels without a header: the version whose fields are filled in here.
const VERSION: u16 = 0x020f;

pub(super) fn write(
    header: Option<&setup_header>,
    parts: &Parts<'_>,
    command_line_length: usize,
    memory: &GuestMemory,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header.copied().unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: VERSION,
            kernel_alignment: 0x100_0000,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = parts.command_line as u32;
    params.hdr.cmdline_size = command_line_length as u32 + 1;
    params.hdr.setup_data = 0;
    params.hdr.hardware_subarch = 0;
    if let Some((address, size)) = parts.initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
        params.ext_ramdisk_size = (size >> 32) as u32;
    }
    params.acpi_rsdp_addr = parts.rsdp;
    for (slot, entry) in params.e820_table.iter_mut().zip(parts.map) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.end - entry.range.start,
            r#type: match entry.kind {
                MapKind::Ram => 1,
                MapKind::Reserved => 2,
            },
        };
    }
    params.e820_entries = parts.map.len() as u8;
    memory.write_obj(params, GuestAddress(ZERO_PAGE))?;
    Ok(())
}
