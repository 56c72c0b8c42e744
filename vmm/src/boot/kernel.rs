//! Telling kernels apart, checking their headers, and copying them into memory.

use super::{BootError, Protocol, USUAL_INITRD_END};
use crate::memory::{GuestMemory, MemoryLayout};
use linux_loader::{
    bootparam::setup_header,
    elf,
    loader::{BzImage, Elf, KernelLoader as _, elf::PvhBootCapability},
};
use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
};
use vm_memory::{Address as _, ByteValued as _, GuestAddress};

const HEADER: u64 = 0x1f1;
const HEADER_MAGIC: [u8; 4] = *b"HdrS";
/// The first protocol version with `xloadflags`.
const LEAST_VERSION: u16 = 0x020c;
const ENTRY_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
const LOWEST_LOAD: u64 = 0x10_0000;
const MOST_PROGRAM_HEADERS: u16 = 128;

/// A kernel in memory.
pub(super) enum Loaded {
    /// To be entered in 64-bit mode.
    Linux64 {
        entry: u64,
        end: u64,
        header: Option<Box<setup_header>>,
    },
    /// To be entered by PVH.
    Pvh { entry: u64, end: u64 },
}

impl Loaded {
    /// The address after the last that the kernel needs before it has read its memory map.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Linux64 { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// The address at which an initrd may end.
    pub(super) fn initrd_end(&self) -> u64 {
        match self {
            Self::Linux64 {
                header: Some(header),
                ..
            } => u64::from(header.initrd_addr_max) + 1,
            Self::Linux64 { header: None, .. } | Self::Pvh { .. } => USUAL_INITRD_END,
        }
    }

    /// The longest command line that the kernel takes.
    pub(super) fn command_line_limit(&self) -> usize {
        match self {
            Self::Linux64 {
                header: Some(header),
                ..
            } => header.cmdline_size as usize,
            // COMMAND_LINE_SIZE of x86, less the zero.
            Self::Linux64 { header: None, .. } | Self::Pvh { .. } => 2047,
        }
    }
}

pub(super) fn load(
    file: &File,
    protocol: Protocol,
    memory: &GuestMemory,
    layout: &MemoryLayout,
) -> Result<Loaded, BootError> {
    let mut seekable = file;
    let size = seekable
        .seek(SeekFrom::End(0))
        .map_err(BootError::KernelRead)?;
    let mut magic = [0; 4];
    if size >= 4 {
        file.read_exact_at(&mut magic, 0)
            .map_err(BootError::KernelRead)?;
    }
    if magic == [0x7f, b'E', b'L', b'F'] {
        return load_elf(file, size, protocol, memory, layout);
    }
    let mut signature = [0; 4];
    if size >= 0x206 {
        file.read_exact_at(&mut signature, 0x202)
            .map_err(BootError::KernelRead)?;
    }
    if signature != HEADER_MAGIC {
        return Err(BootError::KernelUnknown);
    }
    if protocol == Protocol::Pvh {
        return Err(BootError::NoPvh);
    }
    load_bzimage(file, size, memory, layout)
}

fn load_bzimage(
    mut file: &File,
    size: u64,
    memory: &GuestMemory,
    layout: &MemoryLayout,
) -> Result<Loaded, BootError> {
    let header = read_header(file, size)?;
    let sectors = if header.setup_sects == 0 {
        4
    } else {
        header.setup_sects
    };
    let setup = (u64::from(sectors) + 1) * 512;
    // `syssize` counts the protected-mode code in units of 16 bytes.
    let need = setup + u64::from(header.syssize) * 16;
    if size < need {
        return Err(BootError::KernelTruncated { need, size });
    }
    let version = header.version;
    if version < LEAST_VERSION || header.xloadflags & ENTRY_64 == 0 {
        return Err(BootError::KernelNot64 {
            major: (version >> 8) as u8,
            minor: version as u8,
        });
    }
    if header.loadflags & 1 == 0 {
        return Err(BootError::KernelDamaged("it is not loaded high"));
    }
    let start = if header.pref_address == 0 {
        LOWEST_LOAD
    } else {
        header.pref_address
    };
    // The kernel decompresses itself in place and needs `init_size` bytes for that.
    let taken = u64::from(header.init_size).max(size - setup);
    let end = fits(start, taken, layout)?;
    let loaded = BzImage::load(memory, Some(GuestAddress(start)), &mut file, None)
        .map_err(|_| BootError::KernelDamaged("its code cannot be loaded"))?;
    let header = loaded.setup_header.unwrap_or(header);
    Ok(Loaded::Linux64 {
        entry: start + ENTRY_64_OFFSET,
        end,
        header: Some(Box::new(header)),
    })
}

/// The setup header, as long as the kernel says it is; what follows it is code.
fn read_header(file: &File, size: u64) -> Result<setup_header, BootError> {
    let mut header = setup_header::default();
    let whole = header.as_mut_slice();
    let need = HEADER + whole.len() as u64;
    if size < need {
        return Err(BootError::KernelTruncated { need, size });
    }
    file.read_exact_at(whole, HEADER)
        .map_err(BootError::KernelRead)?;
    Ok(header)
}

/// The end of a range that starts at `start`, if all of it is RAM that a kernel may lie in.
fn fits(start: u64, size: u64, layout: &MemoryLayout) -> Result<u64, BootError> {
    let end = start.saturating_add(size);
    if start < LOWEST_LOAD || end > layout.low_end() {
        return Err(BootError::KernelLarge { start, end });
    }
    Ok(end)
}

fn load_elf(
    mut file: &File,
    size: u64,
    protocol: Protocol,
    memory: &GuestMemory,
    layout: &MemoryLayout,
) -> Result<Loaded, BootError> {
    let (entry, end) = check_elf(file, size, layout)?;
    let loaded = Elf::load(memory, None, &mut file, None).map_err(|error| {
        tracing::debug!(%error, "ELF kernel refused");
        BootError::KernelDamaged("its segments or notes cannot be loaded")
    })?;
    match (protocol, loaded.pvh_boot_cap) {
        (Protocol::Auto | Protocol::Pvh, PvhBootCapability::PvhEntryPresent(entry)) => {
            Ok(Loaded::Pvh {
                entry: within(entry.raw_value(), end)?,
                end,
            })
        }
        (Protocol::Pvh, _) => Err(BootError::NoPvh),
        _ => Ok(Loaded::Linux64 {
            entry: within(entry, end)?,
            end,
            header: None,
        }),
    }
}

fn within(entry: u64, end: u64) -> Result<u64, BootError> {
    if (LOWEST_LOAD..end).contains(&entry) {
        Ok(entry)
    } else {
        Err(BootError::KernelDamaged(
            "its entry point lies outside of it",
        ))
    }
}

/// Checks headers and segments against the file and the guest's memory, before anything is
/// loaded. Returns the entry point and the end of the highest segment.
fn check_elf(file: &File, size: u64, layout: &MemoryLayout) -> Result<(u64, u64), BootError> {
    let mut header = elf::Elf64_Ehdr::default();
    let need = header.as_slice().len() as u64;
    if size < need {
        return Err(BootError::KernelTruncated { need, size });
    }
    file.read_exact_at(header.as_mut_slice(), 0)
        .map_err(BootError::KernelRead)?;
    // Class 64 bits, little-endian, type executable, machine x86-64.
    let ident = header.e_ident;
    if ident[4] != 2 || ident[5] != 1 || header.e_type != 2 || header.e_machine != 62 {
        return Err(BootError::KernelMachine);
    }
    if header.e_phnum == 0 || header.e_phnum > MOST_PROGRAM_HEADERS {
        return Err(BootError::KernelDamaged("it has no segments or too many"));
    }
    let mut end = 0;
    for index in 0..u64::from(header.e_phnum) {
        let mut segment = elf::Elf64_Phdr::default();
        let length = segment.as_slice().len() as u64;
        let at = header.e_phoff.saturating_add(index * length);
        let need = at.saturating_add(length);
        if need > size {
            return Err(BootError::KernelTruncated { need, size });
        }
        file.read_exact_at(segment.as_mut_slice(), at)
            .map_err(BootError::KernelRead)?;
        let need = segment.p_offset.saturating_add(segment.p_filesz);
        if need > size && matches!(segment.p_type, elf::PT_LOAD | elf::PT_NOTE) {
            return Err(BootError::KernelTruncated { need, size });
        }
        if segment.p_type == elf::PT_LOAD && segment.p_memsz > 0 {
            let taken = segment.p_memsz.max(segment.p_filesz);
            end = end.max(fits(segment.p_paddr, taken, layout)?);
        }
    }
    Ok((header.e_entry, end))
}
