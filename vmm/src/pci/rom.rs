//! Expansion ROMs: a function's own boot code.
//!
//! *PCI Firmware Specification 3.0*, chapter 5. An image starts with 0x55 0xaa and its length; at
//! offset 0x18 it points to a structure `PCIR` that names the function it is for. Firmware runs
//! the first image for x86 whose names match, and leaves ROMs alone that do not; a ROM that it
//! would leave alone is refused here, where somebody can be told.

use super::{ConfigError, ConfigSpace};
use crate::overlay::{DeviceMemory, Overlay, Overlays};
use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

/// The largest ROM, in bytes.
const LARGEST: u64 = 1 << 20;
const SMALLEST_WINDOW: usize = 0x800;
const UNIT: usize = 512;
const LAST_IMAGE: u8 = 0x80;

/// Why a file is no ROM for a function.
#[derive(Debug, thiserror::Error)]
pub enum OptionRomError {
    /// The file cannot be read.
    #[error("the option ROM cannot be read")]
    Read(#[source] io::Error),
    /// The file is too long or empty.
    #[error("the option ROM has {0} bytes: give one of at most {LARGEST} bytes")]
    Size(u64),
    /// The file is damaged or something else.
    #[error("the file is no option ROM: {0}")]
    Damaged(&'static str),
    /// It is for another function.
    #[error(
        "the option ROM is for {found}, the device is {vendor:04x}:{device:04x}: give the ROM that belongs to it"
    )]
    Other {
        /// Vendor of the device.
        vendor: u16,
        /// The device.
        device: u16,
        /// What the ROM has images for.
        found: String,
    },
    /// The function cannot have a ROM.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A function's expansion ROM and its place in the guest's memory.
pub struct OptionRom {
    memory: Arc<DeviceMemory>,
    overlay: Box<dyn Overlay>,
}

impl OptionRom {
    /// Reads a ROM for the function `vendor:device`.
    ///
    /// # Errors
    /// [`OptionRomError`].
    pub fn read_file(file: &File, vendor: u16, device: u16) -> Result<Vec<u8>, OptionRomError> {
        let size = file.metadata().map_err(OptionRomError::Read)?.len();
        if size == 0 || size > LARGEST {
            return Err(OptionRomError::Size(size));
        }
        let mut content = vec![0; size as usize];
        file.read_exact_at(&mut content, 0)
            .map_err(OptionRomError::Read)?;
        check(&content, vendor, device)?;
        Ok(content)
    }

    /// Gives `config`'s function the ROM `content`.
    ///
    /// # Errors
    /// [`OptionRomError::Config`] if it has one already, [`OptionRomError::Read`] if the host has
    /// no memory for it.
    pub fn new(
        content: &[u8],
        config: &mut ConfigSpace,
        overlays: &dyn Overlays,
    ) -> Result<Self, OptionRomError> {
        let size = content.len().max(SMALLEST_WINDOW).next_power_of_two();
        let memory =
            DeviceMemory::with_content(content, size, 0xff).map_err(OptionRomError::Read)?;
        config.add_rom(memory.size() as u64)?;
        let overlay = overlays
            .create(Arc::clone(&memory), false)
            .map_err(OptionRomError::Read)?;
        Ok(Self { memory, overlay })
    }

    /// The window has moved; see [`PciFunction::window_moved`](super::PciFunction::window_moved).
    pub fn window_moved(&mut self, base: Option<u64>) {
        self.overlay.place(base);
    }

    /// A read in the window that did not find the memory itself.
    pub fn window_read(&self, offset: u64, data: &mut [u8]) {
        self.memory
            .read(usize::try_from(offset).unwrap_or(usize::MAX), data);
    }
}

/// Looks for an image of x86 code for `vendor:device`.
fn check(content: &[u8], vendor: u16, device: u16) -> Result<(), OptionRomError> {
    let word = |at: usize| -> Option<u16> {
        let bytes = content.get(at..at.checked_add(2)?)?;
        Some(u16::from_le_bytes([bytes[0], bytes[1]]))
    };
    let mut start = 0;
    let mut found = Vec::new();
    loop {
        if word(start) != Some(0xaa55) {
            return Err(OptionRomError::Damaged(
                "an image does not start with 55 aa",
            ));
        }
        let structure = word(start + 0x18).map(|offset| start + usize::from(offset));
        let structure = structure
            .filter(|at| content.get(*at..at + 4) == Some(b"PCIR"))
            .ok_or(OptionRomError::Damaged("an image has no structure 'PCIR'"))?;
        let byte = |at: usize| content.get(structure + at).copied();
        let (Some(names), Some(length), Some(kind), Some(last)) = (
            word(structure + 4).zip(word(structure + 6)),
            word(structure + 0x10),
            byte(0x14),
            byte(0x15),
        ) else {
            return Err(OptionRomError::Damaged("it is cut off"));
        };
        let length = usize::from(length) * UNIT;
        if length == 0 || start + length > content.len() {
            return Err(OptionRomError::Damaged("an image is longer than the file"));
        }
        if names == (vendor, device) && kind == 0 {
            return Ok(());
        }
        let what = if kind == 0 {
            ""
        } else {
            " (not x86 BIOS code)"
        };
        found.push(format!("{:04x}:{:04x}{what}", names.0, names.1));
        if last & LAST_IMAGE != 0 {
            return Err(OptionRomError::Other {
                vendor,
                device,
                found: found.join(", "),
            });
        }
        start += length;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write as _;

    /// An image of `length` units for a function, which does nothing.
    pub(crate) fn image(vendor: u16, device: u16, kind: u8, length: u8, last: bool) -> Vec<u8> {
        let mut image = vec![0x55, 0xaa, length, 0xcb];
        image.resize(0x18, 0);
        image.extend(0x1cu16.to_le_bytes());
        image.resize(0x1c, 0);
        image.extend(b"PCIR");
        image.extend(vendor.to_le_bytes());
        image.extend(device.to_le_bytes());
        image.extend([0, 0, 0x18, 0, 0, 0, 0, 2]);
        image.extend(u16::from(length).to_le_bytes());
        image.extend([0, 0, kind, if last { 0x80 } else { 0 }]);
        image.resize(usize::from(length) * UNIT, 0);
        image
    }

    fn read(content: &[u8]) -> Result<Vec<u8>, OptionRomError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        OptionRom::read_file(&file, 0x1af4, 0x1041)
    }

    #[test]
    fn the_image_for_the_function_is_found_among_others() {
        let rom = [
            image(0x1af4, 0x1041, 3, 2, false),
            image(0x1af4, 0x1000, 0, 1, false),
            image(0x1af4, 0x1041, 0, 4, true),
        ]
        .concat();
        assert_eq!(read(&rom).unwrap(), rom);
    }

    #[test]
    fn roms_that_firmware_would_leave_alone_are_refused() {
        let text = |content: &[u8]| read(content).unwrap_err().to_string();
        assert!(text(b"").contains("0 bytes"));
        assert!(text(&vec![0; (LARGEST + 1) as usize]).contains("at most"));
        assert!(text(b"GRUB").contains("55 aa"));
        assert!(text(&[0x55, 0xaa, 1]).contains("PCIR"));
        let other = text(&image(0x8086, 0x100e, 0, 1, true));
        assert!(
            other.contains("is for 8086:100e, the device is 1af4:1041"),
            "{other}"
        );
        let efi = text(&image(0x1af4, 0x1041, 3, 1, true));
        assert!(efi.contains("not x86"), "{efi}");
        let mut long = image(0x1af4, 0x1041, 0, 4, true);
        long.truncate(1024);
        assert!(text(&long).contains("longer than the file"));
        let mut endless = image(1, 2, 0, 1, false);
        endless[0x1c + 0x10] = 0;
        assert!(text(&endless).contains("longer than the file"));
    }

    /// Debian's ROMs match the devices that they are for.
    #[test]
    fn the_roms_that_distributions_ship_match() {
        let found = crate::firmware::locate();
        for (path, vendor, device) in [
            (found.network, 0x1af4, 0x1041),
            (found.display, 0x1234, 0x1111),
        ] {
            let path = path.expect("packages seabios and ipxe-qemu are needed: cargo xtask setup");
            OptionRom::read_file(&File::open(path).unwrap(), vendor, device).unwrap();
        }
    }
}
