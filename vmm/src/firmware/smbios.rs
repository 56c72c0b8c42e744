//! SMBIOS tables: who the machine says it is.
//!
//! *System Management BIOS Reference Specification 2.8*, DSP0134. The tables go to firmware as a
//! file, with an entry point of version 2.8 whose address firmware fills in. The BIOS's own table
//! (type 0) is firmware's.

use serde::{Deserialize, Serialize};

/// Name of the entry point's file.
pub(super) const ANCHOR: &str = "etc/smbios/smbios-anchor";
/// Name of the tables' file.
pub(super) const TABLES: &str = "etc/smbios/smbios-tables";

/// The longest string, in bytes.
const LONGEST: usize = 255;

/// What the guest is told about the machine as a product.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// The machine's UUID, in the usual notation.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Manufacturer; `Cenote` unless given.
    #[serde(default)]
    pub manufacturer: Option<String>,
    /// Product name; `Virtual machine` unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// Version.
    #[serde(default)]
    pub version: Option<String>,
    /// Serial number; NoCloud's seed address may stand here.
    #[serde(default)]
    pub serial: Option<String>,
    /// Stock-keeping unit.
    #[serde(default)]
    pub sku: Option<String>,
    /// Product family.
    #[serde(default)]
    pub family: Option<String>,
}

/// Why a product cannot be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProductError {
    /// The UUID is none.
    #[error("'{0}' is no UUID: write it as 01234567-89ab-cdef-0123-456789abcdef")]
    Uuid(String),
    /// A string cannot be stored.
    #[error("product {field}: give 1 to {LONGEST} printable ASCII characters")]
    Text {
        /// Which one.
        field: &'static str,
    },
}

impl Product {
    /// The UUID's bytes in the order of its notation.
    ///
    /// # Errors
    /// [`ProductError::Uuid`].
    pub fn uuid_bytes(&self) -> Result<[u8; 16], ProductError> {
        let Some(text) = &self.uuid else {
            return Ok([0; 16]);
        };
        let error = || ProductError::Uuid(text.clone());
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
            return Err(error());
        }
        let digits = groups.concat();
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(error());
        }
        let number = u128::from_str_radix(&digits, 16).map_err(|_| error())?;
        Ok(number.to_be_bytes())
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`ProductError`].
    pub fn check(&self) -> Result<(), ProductError> {
        self.uuid_bytes()?;
        let texts = [
            ("manufacturer", &self.manufacturer),
            ("name", &self.name),
            ("version", &self.version),
            ("serial", &self.serial),
            ("sku", &self.sku),
            ("family", &self.family),
        ];
        for (field, text) in texts {
            let fits = |text: &String| {
                (1..=LONGEST).contains(&text.len())
                    && text.bytes().all(|b| (0x20..0x7f).contains(&b))
            };
            if !text.as_ref().is_none_or(fits) {
                return Err(ProductError::Text { field });
            }
        }
        Ok(())
    }
}

/// One structure under construction: its formatted area and its strings.
struct Structure {
    area: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self {
            area: vec![kind, 0, low, high],
            strings: Vec::new(),
            count: 0,
        }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.area.extend_from_slice(bytes);
        self
    }

    /// A string's number, 0 for none.
    fn text(mut self, text: Option<&str>) -> Self {
        match text {
            Some(text) => {
                self.count += 1;
                self.area.push(self.count);
                self.strings.extend_from_slice(text.as_bytes());
                self.strings.push(0);
            }
            None => self.area.push(0),
        }
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.area[1] = self.area.len() as u8;
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.area.append(&mut self.strings);
        self.area.push(0);
        self.area
    }
}

/// The two files: entry point and tables.
pub(super) fn files(
    product: &Product,
    vcpus: u8,
    memory: u64,
) -> Result<(Vec<u8>, Vec<u8>), ProductError> {
    let structures = structures(product, vcpus, memory)?;
    let longest = structures.iter().map(Vec::len).max().unwrap_or(0) as u16;
    let count = structures.len() as u16;
    let tables = structures.concat();
    let mut anchor = b"_SM_\0\x1f\x02\x08".to_vec();
    anchor.extend(longest.to_le_bytes());
    anchor.extend([0; 6]);
    anchor.extend(b"_DMI_\0");
    anchor.extend((tables.len() as u16).to_le_bytes());
    anchor.extend([0; 4]);
    anchor.extend(count.to_le_bytes());
    anchor.push(0x28);
    Ok((anchor, tables))
}

fn structures(product: &Product, vcpus: u8, memory: u64) -> Result<Vec<Vec<u8>>, ProductError> {
    let mut uuid = product.uuid_bytes()?;
    // The first three fields are little-endian.
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    let text = |text: &'static str, own: &Option<String>| own.clone().unwrap_or(text.to_owned());
    let manufacturer = text("Cenote", &product.manufacturer);
    let name = text("Virtual machine", &product.name);
    let system = Structure::new(1, 0x100)
        .text(Some(&manufacturer))
        .text(Some(&name))
        .text(product.version.as_deref())
        .text(product.serial.as_deref())
        .bytes(&uuid)
        // Woken by the power switch.
        .bytes(&[6])
        .text(product.sku.as_deref())
        .text(product.family.as_deref());
    let chassis = Structure::new(3, 0x300)
        .text(Some(&manufacturer))
        // Kind "other"; no version, serial number, asset tag; all is well; no lock.
        .bytes(&[1, 0, 0, 0, 3, 3, 3, 2])
        .bytes(&[0; 4])
        .bytes(&[0, 0, 0, 0]);
    let mut all = vec![system.finish(), chassis.finish()];
    for number in 0..vcpus {
        all.push(processor(number));
    }
    all.extend(memory_structures(memory));
    // The system boots without errors.
    all.push(Structure::new(32, 0x2000).bytes(&[0; 7]).finish());
    all.push(Structure::new(127, 0x7f00).finish());
    Ok(all)
}

fn processor(number: u8) -> Vec<u8> {
    let socket = format!("CPU {number}");
    Structure::new(4, 0x400 + u16::from(number))
        .text(Some(&socket))
        // Central processor, family "other".
        .bytes(&[3, 1])
        .bytes(&[0; 1])
        .bytes(&[0; 8])
        .bytes(&[0; 1])
        // Voltage, clock and speeds unknown; populated and enabled; upgrade "other".
        .bytes(&[0, 0, 0, 0, 0, 0, 0, 0x41, 1])
        // No cache structures.
        .bytes(&[0xff; 6])
        .bytes(&[0, 0, 0])
        // One core, one thread, 64 bits.
        .bytes(&[1, 1, 1, 4, 0])
        .bytes(&1u16.to_le_bytes())
        .finish()
}

/// The memory array, its one device and the addresses that it answers at.
fn memory_structures(memory: u64) -> [Vec<u8>; 3] {
    let kib = u32::try_from(memory >> 10).unwrap_or(0x8000_0000);
    // From 2 TiB on the size stands in the extended field, in bytes.
    let (short, extended) = if kib < 0x8000_0000 {
        (kib, 0)
    } else {
        (0x8000_0000, memory)
    };
    let array = Structure::new(16, 0x1000)
        .bytes(&[1, 3, 6])
        .bytes(&short.to_le_bytes())
        .bytes(&[0xfe, 0xff, 1, 0])
        .bytes(&extended.to_le_bytes());
    let mib = memory >> 20;
    let (size, wide) = if mib < 0x7fff {
        (mib as u16, 0)
    } else {
        (0x7fff, mib as u32)
    };
    let device = Structure::new(17, 0x1100)
        .bytes(&0x1000u16.to_le_bytes())
        .bytes(&[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff])
        .bytes(&size.to_le_bytes())
        // DIMM, in no set.
        .bytes(&[9, 0])
        .text(Some("DIMM 0"))
        .bytes(&[0, 7, 2, 0, 0, 0])
        .text(Some("Cenote"))
        .bytes(&[0, 0, 0, 0])
        .bytes(&wide.to_le_bytes())
        .bytes(&[0; 8]);
    let last = kib.saturating_sub(1);
    let mapped = Structure::new(19, 0x1300)
        .bytes(&0u32.to_le_bytes())
        .bytes(&last.to_le_bytes())
        .bytes(&0x1000u16.to_le_bytes())
        .bytes(&[1]);
    [array.finish(), device.finish(), mapped.finish()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_follow_each_other_to_the_end_marker() {
        let product = Product {
            uuid: Some("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
            serial: Some("ds=nocloud;s=http://10.0.2.2/".to_owned()),
            ..Product::default()
        };
        let (anchor, tables) = files(&product, 2, 256 << 20).unwrap();
        assert_eq!(anchor.len(), 0x1f);
        assert_eq!(
            u16::from_le_bytes([anchor[22], anchor[23]]) as usize,
            tables.len()
        );
        let mut at = 0;
        let mut kinds = Vec::new();
        while at < tables.len() {
            kinds.push((tables[at], tables[at + 1]));
            at += usize::from(tables[at + 1]);
            let end = tables[at..].windows(2).position(|w| w == [0, 0]).unwrap();
            at += end + 2;
        }
        let lengths = [
            (1, 27),
            (3, 21),
            (4, 42),
            (4, 42),
            (16, 23),
            (17, 40),
            (19, 15),
            (32, 11),
            (127, 4),
        ];
        assert_eq!(kinds, lengths);
        assert_eq!(
            u16::from_le_bytes([anchor[28], anchor[29]]) as usize,
            kinds.len()
        );
        assert_eq!(tables[8..12], [0x67, 0x45, 0x23, 0x01]);
        assert!(tables.windows(8).any(|w| w == b"ds=noclo"));
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        for uuid in [
            "",
            "0123",
            "0123456789abcdef0123456789abcdef",
            "+1234567-89ab-cdef-0123-456789abcdef",
        ] {
            let product = Product {
                uuid: Some(uuid.to_owned()),
                ..Product::default()
            };
            assert!(
                matches!(product.check(), Err(ProductError::Uuid(_))),
                "{uuid}"
            );
        }
        for serial in ["", "a\nb", "\u{fc}", &"x".repeat(256)] {
            let product = Product {
                serial: Some(serial.to_owned()),
                ..Product::default()
            };
            assert_eq!(product.check(), Err(ProductError::Text { field: "serial" }));
        }
    }
}
