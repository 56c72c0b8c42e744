//! The table loader's script: where firmware puts our ACPI tables and what it corrects in them.
//!
//! Firmware copies the files that the script names to memory of its own choice, adds addresses to
//! pointers and makes checksums right. Entries have 128 bytes, all numbers little-endian.

use crate::acpi::{ALIGNMENT, CHECKSUM, Tables};

/// Name of the script.
pub(super) const SCRIPT: &str = "etc/table-loader";
/// Name of the file with all tables.
pub(super) const TABLES: &str = "etc/acpi/tables";
/// Name of the file with the root pointer.
pub(super) const ROOT: &str = "etc/acpi/rsdp";

const ENTRY: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Anywhere below 4 GiB.
const ZONE_HIGH: u8 = 1;
/// Between 0xf0000 and 0x100000, where operating systems look for the root pointer.
const ZONE_FSEG: u8 = 2;
/// In the root pointer: the place of XSDT's address, and two checksums with what they cover.
const ROOT_XSDT: u32 = 24;
const ROOT_CHECKSUMS: [(u32, u32); 2] = [(8, 20), (32, 36)];

fn entry(command: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut entry = command.to_le_bytes().to_vec();
    for part in parts {
        entry.extend_from_slice(part);
    }
    entry.resize(ENTRY, 0);
    entry
}

fn name(name: &str) -> [u8; NAME] {
    let mut field = [0; NAME];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    field
}

/// The script for `tables` and their root pointer.
pub(super) fn script(tables: &Tables) -> Vec<u8> {
    let (file, root) = (name(TABLES), name(ROOT));
    let mut script = entry(
        ALLOCATE,
        &[&file, &(ALIGNMENT as u32).to_le_bytes(), &[ZONE_HIGH]],
    );
    script.extend(entry(
        ALLOCATE,
        &[&root, &16u32.to_le_bytes(), &[ZONE_FSEG]],
    ));
    for (at, width) in &tables.pointers {
        let at = (*at as u32).to_le_bytes();
        script.extend(entry(ADD_POINTER, &[&file, &file, &at, &[*width]]));
    }
    for table in &tables.summed {
        let numbers = [table.start + CHECKSUM, table.start, table.end - table.start];
        script.extend(checksum(&file, numbers.map(|number| number as u32)));
    }
    let at = ROOT_XSDT.to_le_bytes();
    script.extend(entry(ADD_POINTER, &[&root, &file, &at, &[8]]));
    for (at, length) in ROOT_CHECKSUMS {
        script.extend(checksum(&root, [at, 0, length]));
    }
    script
}

fn checksum(file: &[u8; NAME], numbers: [u32; 3]) -> Vec<u8> {
    let [at, start, length] = numbers.map(u32::to_le_bytes);
    entry(ADD_CHECKSUM, &[file, &at, &start, &length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{acpi::Platform, memory::MemoryLayout};

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Does what the script says, as firmware would, and looks at the result as a system would.
    #[test]
    fn the_script_leads_from_the_root_pointer_to_every_table() {
        const TABLES_AT: u64 = 0x7_0040;
        let layout = MemoryLayout::new(8 << 20).unwrap();
        let platform = Platform {
            vcpus: 2,
            layout: &layout,
            serial: true,
            pvpanic: true,
        };
        let tables = Tables::new(&platform);
        let (mut file, mut root) = (tables.bytes.clone(), tables.root(0));
        for entry in script(&tables).chunks(ENTRY) {
            assert_eq!(entry.len(), ENTRY);
            let target = if entry[4..].starts_with(ROOT.as_bytes()) {
                &mut root
            } else {
                &mut file
            };
            match word(entry, 0) {
                1 => {}
                2 => {
                    let (at, width) = (word(entry, 116), usize::from(entry[120]));
                    let field = &mut target[at..at + width];
                    let value = crate::bus::value_of(field) + TABLES_AT;
                    crate::bus::set_value(field, value);
                }
                3 => {
                    let (at, start, length) = (word(entry, 60), word(entry, 64), word(entry, 68));
                    let sum = target[start..start + length]
                        .iter()
                        .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    target[at] = target[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&root[..20]), sum(&root[..36])), (0, 0));
        let at = |address: usize| address - TABLES_AT as usize;
        let table = |address: usize| {
            let start = at(address);
            &file[start..start + word(&file, start + 4)]
        };
        let xsdt = table(word(&root, 24));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(word(xsdt, 36));
        assert_eq!((&fadt[..4], sum(fadt)), (&b"FACP"[..], 0));
        let dsdt = table(word(fadt, 40));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        let facs = at(word(fadt, 36));
        assert_eq!(&file[facs..facs + 4], b"FACS");
        assert_eq!(&table(word(xsdt, 44))[..4], b"APIC");
    }
}
