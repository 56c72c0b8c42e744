//! The state of the processor at the kernel's first instruction.

use super::BootError;
use crate::memory::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes as _, GuestAddress};

const GDT: u64 = 0x500;
pub(super) const START_INFO: u64 = 0x6000;
pub(super) const ZERO_PAGE: u64 = 0x7000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PAGE_DIRECTORIES: u64 = 0xb000;
/// GiB that are mapped one to one.
const MAPPED: u64 = 4;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Where and in which mode a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    address: u64,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// 64-bit, paged one to one, the zero page's address in RSI.
    Long,
    /// 32-bit without paging, the start info's address in EBX.
    Protected,
    /// As a processor comes out of reset.
    Real,
}

impl Entry {
    pub(super) fn long(address: u64) -> Self {
        Self {
            address,
            mode: Mode::Long,
        }
    }

    pub(super) fn protected(address: u64) -> Self {
        Self {
            address,
            mode: Mode::Protected,
        }
    }

    /// 16-bit code at `address` (below 1 MiB, a multiple of 16), for firmware and fixture guests.
    #[must_use]
    pub fn real_mode(address: u64) -> Self {
        Self {
            address,
            mode: Mode::Real,
        }
    }

    /// Address of the first instruction.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn registers(&self) -> kvm_regs {
        let mut regs = kvm_regs {
            rip: self.address,
            rflags: 2,
            ..Default::default()
        };
        match self.mode {
            Mode::Long => regs.rsi = ZERO_PAGE,
            Mode::Protected => regs.rbx = START_INFO,
            Mode::Real => regs.rip = 0,
        }
        regs
    }

    pub(crate) fn set_special(&self, sregs: &mut kvm_sregs) {
        if self.mode == Mode::Real {
            sregs.cs.base = self.address;
            sregs.cs.selector = (self.address >> 4) as u16;
            return;
        }
        let long = self.mode == Mode::Long;
        sregs.cs = code_segment(long);
        for data in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *data = data_segment();
        }
        sregs.tr = task_segment();
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 5 * 8 - 1;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PE | CR0_ET;
        if long {
            sregs.cr3 = PML4;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
    }
}

fn code_segment(long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector: DATA_SELECTOR,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn task_segment() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        selector: TASK_SELECTOR,
        type_: 0xb,
        present: 1,
        ..Default::default()
    }
}

/// The descriptor of a segment, as the processor would load it.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    };
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    u64::from(limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | u64::from(limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Writes the GDT and the page tables of [`Entry::long`]. Kernels enter with selectors 0x10 and
/// 0x18, as the boot protocol demands.
pub(super) fn write_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let gdt = [
        0,
        0,
        descriptor(&code_segment(true)),
        descriptor(&data_segment()),
        descriptor(&task_segment()),
    ];
    for (index, entry) in (0u64..).zip(gdt) {
        memory.write_obj(entry, GuestAddress(GDT + index * 8))?;
    }
    memory.write_obj(PDPT | 3, GuestAddress(PML4))?;
    for gib in 0..MAPPED {
        let directory = PAGE_DIRECTORIES + gib * 0x1000;
        memory.write_obj(directory | 3, GuestAddress(PDPT + gib * 8))?;
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|page| (gib << 30 | page << 21 | 0x83).to_le_bytes())
            .collect();
        memory.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}
