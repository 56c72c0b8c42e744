//! The machine's own ACPI tables.
//!
//! *ACPI Specification 6.5*, chapters 5 and 19. They describe what PCI does not: processors and
//! interrupt controllers (MADT), power management registers, reset register and power button
//! (FADT), the PCI root with its windows and interrupt routing, and the legacy devices (DSDT).

mod dsdt;

use crate::{
    bus::{set_value, value_of},
    devices::{
        piix4_pm::{CONTROL, GENERAL_EVENTS, SCI, TIMER, USUAL_BASE},
        rtc::CENTURY,
    },
    memory::{GuestMemory, IO_APIC, LOCAL_APIC, MemoryLayout},
};
use acpi_tables::{
    Aml,
    facs::FACS,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use std::ops::Range;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

/// Where the root pointer lies for direct boot; the other tables follow. Kernels look there even
/// when they are not told.
pub const ADDRESS: u64 = 0xe_0000;

const OEM: [u8; 6] = *b"CENOTE";
const OEM_TABLE: [u8; 8] = *b"CENOTEVM";
const REVISION: u32 = 1;
const RESET_PORT: u64 = 0xcf9;
const RESET_VALUE: u8 = 6;

/// What the tables depend on.
#[derive(Debug, Clone, Copy)]
pub struct Platform<'a> {
    /// Number of processors.
    pub vcpus: u8,
    /// Where memory lies.
    pub layout: &'a MemoryLayout,
    /// The machine has COM1.
    pub serial: bool,
    /// The machine has pvpanic.
    pub pvpanic: bool,
}

/// All tables but the root pointer, one behind the other. Addresses in them count from the start of
/// [`Tables::bytes`]; whoever places them adds the place to each of [`Tables::pointers`] and makes
/// the tables' checksums right again.
pub struct Tables {
    /// The tables.
    pub bytes: Vec<u8>,
    /// Where addresses are: offset and width in bytes (4 or 8).
    pub pointers: Vec<(usize, u8)>,
    /// Tables that have a checksum, by offset; the checksum is byte 9.
    pub summed: Vec<Range<usize>>,
    /// Offset of the table that the root pointer names.
    pub xsdt: usize,
}

/// Offset of the checksum in a table.
pub const CHECKSUM: usize = 9;
/// Alignment that the tables need.
pub const ALIGNMENT: usize = 64;

impl Tables {
    /// The tables of a machine.
    #[must_use]
    pub fn new(platform: &Platform<'_>) -> Self {
        let mut tables = Self {
            bytes: Vec::new(),
            pointers: Vec::new(),
            summed: Vec::new(),
            xsdt: 0,
        };
        let facs = tables.place(&bytes(&FACS::new()));
        let dsdt = tables.place_summed(&dsdt(platform));
        let fadt = tables.place_summed(&fadt(facs as u32, dsdt as u32));
        tables.pointers.extend([(fadt + 36, 4), (fadt + 40, 4)]);
        let madt = tables.place_summed(&madt(platform.vcpus));
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
        for entry in [fadt, madt] {
            xsdt.add_entry(entry as u64);
        }
        tables.xsdt = tables.place_summed(&bytes(&xsdt));
        tables
            .pointers
            .extend([(tables.xsdt + 36, 8), (tables.xsdt + 44, 8)]);
        tables
    }

    fn place(&mut self, table: &[u8]) -> usize {
        let at = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(table);
        at
    }

    fn place_summed(&mut self, table: &[u8]) -> usize {
        let at = self.place(table);
        self.summed.push(at..at + table.len());
        at
    }

    /// The root pointer for tables that lie at `base`.
    #[must_use]
    pub fn root(&self, base: u64) -> Vec<u8> {
        bytes(&Rsdp::new(OEM, base + self.xsdt as u64))
    }

    /// Moves the tables from zero to `base`, below 4 GiB.
    fn relocate(&mut self, base: u64) {
        for (at, width) in &self.pointers {
            let field = &mut self.bytes[*at..at + usize::from(*width)];
            let address = value_of(field) + base;
            set_value(field, address);
        }
        for range in &self.summed {
            let table = &mut self.bytes[range.clone()];
            table[CHECKSUM] = 0;
            let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            table[CHECKSUM] = sum.wrapping_neg();
        }
    }
}

/// Writes all tables to [`ADDRESS`] and returns the root pointer's address.
///
/// # Errors
/// If that is no memory.
pub fn write(platform: &Platform<'_>, memory: &GuestMemory) -> Result<u64, GuestMemoryError> {
    let base = ADDRESS + ALIGNMENT as u64;
    let mut tables = Tables::new(platform);
    tables.relocate(base);
    memory.write_slice(&tables.bytes, GuestAddress(base))?;
    memory.write_slice(&tables.root(base), GuestAddress(ADDRESS))?;
    Ok(ADDRESS)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn dsdt(platform: &Platform<'_>) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, REVISION);
    table.append_slice(&dsdt::body(platform));
    table.as_slice().to_vec()
}

fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    let base = u32::from(USUAL_BASE);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .firmware_ctrl_32(facs)
        .dsdt_32(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No sleep button, and the clock's alarm does not wake.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = base.into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = (base + u32::from(CONTROL)).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = (base + u32::from(TIMER)).into();
    fadt.pm_tmr_len = 4;
    fadt.gpe0_blk = (base + u32::from(GENERAL_EVENTS)).into();
    fadt.gpe0_blk_len = 4;
    // Beyond these latencies the processor states C2 and C3 do not exist.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    fadt.century = CENTURY;
    // Legacy devices and an 8042 are present.
    fadt.iapc_boot_arch = 3.into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        RESET_PORT,
    );
    fadt.reset_value = RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, REVISION);
    madt.write_u32(36, LOCAL_APIC as u32);
    // PCs have the two PICs as well.
    madt.write_u32(40, 1);
    for id in 0..vcpus {
        // Local APIC: processor, APIC ID, enabled.
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut io_apic = vec![1, 12, 0, 0];
    io_apic.extend((IO_APIC as u32).to_le_bytes());
    io_apic.extend(0u32.to_le_bytes());
    madt.append_slice(&io_apic);
    // The timer's line comes in at input 2; the lines of SCI and PCI are level-triggered, high.
    madt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    for line in [5, SCI, 10, 11] {
        madt.append_slice(&[2, 10, 0, line, line, 0, 0, 0, 0xd, 0]);
    }
    // Local APICs' second interrupt input is the NMI.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn written(vcpus: u8) -> Vec<u8> {
        let layout = MemoryLayout::new(8 << 20).unwrap();
        let memory = layout.map().unwrap();
        let platform = Platform {
            vcpus,
            layout: &layout,
            serial: true,
            pvpanic: true,
        };
        assert_eq!(write(&platform, &memory).unwrap(), ADDRESS);
        let mut area = vec![0; 0x2_0000];
        memory.read_slice(&mut area, GuestAddress(ADDRESS)).unwrap();
        area
    }

    fn table(area: &[u8], address: u64) -> &[u8] {
        let at = (address - ADDRESS) as usize;
        let length = u32::from_le_bytes(area[at + 4..at + 8].try_into().unwrap()) as usize;
        &area[at..at + length]
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn pointers(area: &[u8]) -> Vec<u64> {
        let xsdt = table(area, u64::from_le_bytes(area[24..32].try_into().unwrap()));
        xsdt[36..]
            .chunks(8)
            .map(|p| u64::from_le_bytes(p.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let area = written(32);
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
        let pointers = pointers(&area);
        let tables: Vec<_> = pointers.iter().map(|p| table(&area, *p)).collect();
        let names: Vec<_> = tables.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC"]);
        let dsdt = u32::from_le_bytes(tables[0][40..44].try_into().unwrap());
        let dsdt = table(&area, dsdt.into());
        assert_eq!(&dsdt[..4], b"DSDT");
        for table in tables.iter().chain([&dsdt]) {
            assert_eq!(sum(table), 0);
        }
        assert_eq!(
            tables[1]
                .windows(8)
                .filter(|w| w[..2] == [0, 8] && w[4..] == [1, 0, 0, 0])
                .count(),
            32
        );
    }

    /// Intel's compiler reads the DSDT back without a complaint.
    #[test]
    fn iasl_disassembles_and_compiles_the_dsdt() {
        let area = written(2);
        let fadt = table(&area, pointers(&area)[0]).to_vec();
        let dsdt = u32::from_le_bytes(fadt[40..44].try_into().unwrap());
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dsdt.aml"), table(&area, dsdt.into())).unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new("iasl")
                .args(arguments)
                .current_dir(dir.path())
                .output()
                .expect("iasl is needed: install the package acpica-tools");
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
            text
        };
        run(&["-d", "dsdt.aml"]);
        let source = std::fs::read_to_string(dir.path().join("dsdt.dsl")).unwrap();
        for name in [
            "PNP0A03", "_PRT", "LNKA", "PNP0501", "PNP0B00", "PNP0303", "QEMU0001", "_S5",
        ] {
            assert!(source.contains(name), "{name} is missing:\n{source}");
        }
        let report = run(&["-p", "again", "dsdt.dsl"]);
        assert!(
            report.contains(" 0 Errors, 0 Warnings"),
            "{report}\n{source}"
        );
    }
}
