//! A linear frame buffer, which SeaVGABIOS, GRUB and Linux (`bochs`) drive.
//!
//! Bochs' VBE extensions without the planes and ports of VGA, as QEMU's `bochs-display` has them:
//! BAR 0 is the frame buffer, BAR 2 has the DISPI registers at 0x500 and the byte order at 0x604.
//! Modes of 16 and 32 bits are shown; EDID is not offered (0x000-0x3ff read as zeros), nor are
//! windowed (banked) access and palettes.

use crate::{
    bus::{set_value, value_of},
    device::{Device, DeviceState, SavedState, StateError},
    devices::i440fx::SUBSYSTEM,
    overlay::{DeviceMemory, Overlay, Overlays},
    pci::{
        BarKind, ConfigSpace, ConfigState, Identity, OptionRom, OptionRomError, PciFunction, ROM,
    },
};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read as _, Write as _},
    sync::Arc,
};

/// Vendor and device, by which ROMs for it are known.
pub const NAMES: (u16, u16) = (0x1234, 0x1111);
/// Size of the frame buffer, in bytes.
const MEMORY: usize = 16 << 20;
const FRAME_BUFFER: u8 = 0;
const REGISTERS: u8 = 2;
const REGISTERS_SIZE: u64 = 4096;

const DISPI: u64 = 0x500;
const EXTENDED: u64 = 0x600;
const EXTENDED_SIZE: u32 = 8;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;

const ID: usize = 0;
const WIDTH: usize = 1;
const HEIGHT: usize = 2;
const DEPTH: usize = 3;
const ENABLE: usize = 4;
const VIRTUAL_WIDTH: usize = 6;
const X_OFFSET: usize = 8;
const Y_OFFSET: usize = 9;
const MEMORY_SIZE: usize = 0xa;
const COUNT: usize = 0xb;

const VERSION: u16 = 0xb0c5;
const ENABLED: u16 = 1;
const KEEP_MEMORY: u16 = 1 << 7;

/// What stands before each line of a PNG.
const NO_FILTER: u8 = 0;
/// Bounds of a picture.
const SMALLEST: u32 = 64;
const LARGEST: u32 = 8192;

/// The display.
pub struct Display {
    config: ConfigSpace,
    memory: Arc<DeviceMemory>,
    overlay: Box<dyn Overlay>,
    rom: Option<OptionRom>,
    registers: [u16; COUNT],
}

/// Saved state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisplayState {
    /// Configuration space.
    pub config: ConfigState,
    /// The DISPI registers.
    pub registers: [u16; COUNT],
    /// The frame buffer, compressed by zlib.
    pub memory: Vec<u8>,
}

impl SavedState for DisplayState {
    const NAME: &'static str = "bochs-display";
    const VERSION: u32 = 1;
}

/// What is on the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Red, green and blue, three bytes per pixel, line by line from the top.
    pub pixels: Vec<u8>,
}

/// A mode that can be shown.
struct Mode {
    width: u32,
    height: u32,
    bytes: u32,
    stride: u32,
    start: u64,
}

impl Display {
    /// A display, off, with a ROM if it is to be used by firmware.
    ///
    /// # Errors
    /// If the host has no memory for it, or the ROM cannot be had.
    pub fn new(rom: Option<&[u8]>, overlays: &dyn Overlays) -> Result<Self, OptionRomError> {
        let mut config = ConfigSpace::new(Identity {
            vendor: NAMES.0,
            device: NAMES.1,
            subsystem_vendor: SUBSYSTEM.0,
            subsystem: SUBSYSTEM.1,
            class: 0x03_8000,
            revision: 2,
        });
        let frame_buffer = BarKind::Memory32 { prefetchable: true };
        config.add_bar(FRAME_BUFFER, frame_buffer, MEMORY as u64)?;
        let registers = BarKind::Memory32 {
            prefetchable: false,
        };
        config.add_bar(REGISTERS, registers, REGISTERS_SIZE)?;
        let memory = DeviceMemory::new(MEMORY).map_err(OptionRomError::Read)?;
        let overlay = overlays
            .create(Arc::clone(&memory), true)
            .map_err(OptionRomError::Read)?;
        let rom = rom
            .map(|content| OptionRom::new(content, &mut config, overlays))
            .transpose()?;
        Ok(Self {
            config,
            memory,
            overlay,
            rom,
            registers: [0; COUNT],
        })
    }

    fn register(&self, index: usize) -> u16 {
        match index {
            ID => VERSION,
            MEMORY_SIZE => (MEMORY >> 16) as u16,
            _ => self.registers.get(index).copied().unwrap_or(0),
        }
    }

    fn set_register(&mut self, index: usize, value: u16) {
        if index == ENABLE && value & ENABLED != 0 && value & KEEP_MEMORY == 0 {
            self.clear();
        }
        if let Some(register) = self.registers.get_mut(index) {
            *register = value;
        }
    }

    fn clear(&self) {
        let zeros = [0; 0x1_0000];
        for at in (0..MEMORY).step_by(zeros.len()) {
            self.memory.write(at, &zeros);
        }
    }

    fn mode(&self) -> Option<Mode> {
        if self.register(ENABLE) & ENABLED == 0 {
            return None;
        }
        let value = |index| u32::from(self.register(index));
        let bytes = match value(DEPTH) {
            16 => 2,
            32 => 4,
            _ => return None,
        };
        let (width, height) = (value(WIDTH), value(HEIGHT));
        let fits = |size| (SMALLEST..=LARGEST).contains(&size);
        if !fits(width) || !fits(height) {
            return None;
        }
        let stride = width.max(value(VIRTUAL_WIDTH)) * bytes;
        let start = u64::from(value(Y_OFFSET)) * u64::from(stride)
            + u64::from(value(X_OFFSET)) * u64::from(bytes);
        let end = start + u64::from(stride) * u64::from(height);
        (end <= MEMORY as u64).then_some(Mode {
            width,
            height,
            bytes,
            stride,
            start,
        })
    }

    /// What is on the screen now; `None` while it shows nothing.
    #[must_use]
    pub fn picture(&self) -> Option<Picture> {
        let mode = self.mode()?;
        let mut pixels = Vec::with_capacity((mode.width * mode.height * 3) as usize);
        let mut line = vec![0; (mode.width * mode.bytes) as usize];
        for y in 0..mode.height {
            let at = mode.start + u64::from(y) * u64::from(mode.stride);
            self.memory.read(at as usize, &mut line);
            if mode.bytes == 4 {
                for pixel in line.chunks_exact(4) {
                    pixels.extend([pixel[2], pixel[1], pixel[0]]);
                }
            } else {
                for pixel in line.chunks_exact(2) {
                    pixels.extend(from_565(u16::from_le_bytes([pixel[0], pixel[1]])));
                }
            }
        }
        Some(Picture {
            width: mode.width,
            height: mode.height,
            pixels,
        })
    }

    fn compressed(&self) -> io::Result<Vec<u8>> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        let mut chunk = vec![0; 1 << 20];
        for at in (0..MEMORY).step_by(chunk.len()) {
            self.memory.read(at, &mut chunk);
            encoder.write_all(&chunk)?;
        }
        encoder.finish()
    }

    fn decompress(&self, compressed: &[u8]) -> io::Result<()> {
        let mut decoder = ZlibDecoder::new(compressed);
        let mut chunk = vec![0; 1 << 20];
        for at in (0..MEMORY).step_by(chunk.len()) {
            decoder.read_exact(&mut chunk)?;
            self.memory.write(at, &chunk);
        }
        Ok(())
    }
}

/// Five, six and five bits as three bytes.
fn from_565(pixel: u16) -> [u8; 3] {
    let part = |shift: u32, bits: u32| {
        let most = (1u32 << bits) - 1;
        ((u32::from(pixel) >> shift & most) * 255 / most) as u8
    };
    [part(11, 5), part(5, 6), part(0, 5)]
}

impl Picture {
    /// Writes it as PNG (*Portable Network Graphics Specification*, third edition): 8 bits of red,
    /// green and blue, no filters.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_png(&self, mut to: impl io::Write) -> io::Result<()> {
        let mut header = self.width.to_be_bytes().to_vec();
        header.extend(self.height.to_be_bytes());
        header.extend([8, 2, 0, 0, 0]);
        let mut data = ZlibEncoder::new(Vec::new(), Compression::default());
        for line in self.pixels.chunks(self.width as usize * 3) {
            data.write_all(&[NO_FILTER])?;
            data.write_all(line)?;
        }
        to.write_all(b"\x89PNG\r\n\x1a\n")?;
        write_chunk(&mut to, b"IHDR", &header)?;
        write_chunk(&mut to, b"IDAT", &data.finish()?)?;
        write_chunk(&mut to, b"IEND", &[])?;
        to.flush()
    }
}

/// A chunk: length, kind, data, and the checksum of the latter two.
fn write_chunk(to: &mut impl io::Write, kind: &[u8; 4], data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(kind);
    checksum.update(data);
    to.write_all(&length.to_be_bytes())?;
    to.write_all(kind)?;
    to.write_all(data)?;
    to.write_all(&checksum.finalize().to_be_bytes())
}

impl PciFunction for Display {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn window_moved(&mut self, window: u8, base: Option<u64>) {
        match (window, &mut self.rom) {
            (FRAME_BUFFER, _) => self.overlay.place(base),
            (ROM, Some(rom)) => rom.window_moved(base),
            _ => {}
        }
    }

    fn window_read(&mut self, window: u8, offset: u64, data: &mut [u8]) {
        match (window, &self.rom) {
            (FRAME_BUFFER, _) => self.memory.read(offset as usize, data),
            (ROM, Some(rom)) => rom.window_read(offset, data),
            (REGISTERS, _) => {
                let value = match offset {
                    EXTENDED => EXTENDED_SIZE,
                    0x604 => LITTLE_ENDIAN,
                    DISPI.. => u32::from(self.register(((offset - DISPI) >> 1) as usize)),
                    _ => 0,
                };
                set_value(data, value.into());
            }
            _ => data.fill(0xff),
        }
    }

    fn window_write(&mut self, window: u8, offset: u64, data: &[u8]) {
        match (window, offset) {
            (FRAME_BUFFER, _) => self.memory.write(offset as usize, data),
            (REGISTERS, DISPI..EXTENDED) if data.len() >= 2 => {
                self.set_register(((offset - DISPI) >> 1) as usize, value_of(data) as u16);
            }
            _ => {}
        }
    }
}

impl Device for Display {
    fn reset(&mut self) {
        self.config.reset();
        self.registers = [0; COUNT];
        self.clear();
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let memory = self.compressed().map_err(|error| StateError::Invalid {
            kind: DisplayState::NAME,
            reason: error.to_string(),
        })?;
        DisplayState {
            config: self.config.save(),
            registers: self.registers,
            memory,
        }
        .store()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state = DisplayState::load(state)?;
        self.config.restore(&state.config)?;
        self.registers = state.registers;
        self.decompress(&state.memory)
            .map_err(|error| StateError::Invalid {
                kind: DisplayState::NAME,
                reason: format!("its frame buffer: {error}"),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{devices::testing::state_goes_round, overlay::NoOverlays};

    fn display() -> Display {
        Display::new(None, &NoOverlays).unwrap()
    }

    fn set(display: &mut Display, registers: &[(usize, u16)]) {
        for (index, value) in registers {
            let offset = DISPI + 2 * *index as u64;
            display.window_write(REGISTERS, offset, &value.to_le_bytes());
        }
    }

    /// The chunks of a PNG file, whose checksums are right.
    fn chunks(png: &[u8]) -> Vec<(&[u8; 4], &[u8])> {
        let mut rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n").unwrap();
        let mut chunks = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (body, after) = after.split_at(4 + u32::from_be_bytes(*length) as usize);
            let (checksum, after) = after.split_first_chunk::<4>().unwrap();
            assert_eq!(crc32fast::hash(body), u32::from_be_bytes(*checksum));
            let (kind, data) = body.split_first_chunk::<4>().unwrap();
            chunks.push((kind, data));
            rest = after;
        }
        chunks
    }

    #[test]
    fn firmware_finds_it_and_sets_a_mode() {
        let mut display = display();
        let mut id = [0; 2];
        display.window_read(REGISTERS, DISPI, &mut id);
        assert_eq!(u16::from_le_bytes(id), 0xb0c5);
        assert_eq!(display.picture(), None);
        set(
            &mut display,
            &[(WIDTH, 64), (HEIGHT, 64), (DEPTH, 32), (ENABLE, 1)],
        );
        display.window_write(FRAME_BUFFER, 64 * 4 + 4, &[1, 2, 3, 0]);
        let picture = display.picture().unwrap();
        assert_eq!((picture.width, picture.height), (64, 64));
        assert_eq!(picture.pixels[65 * 3..66 * 3], [3, 2, 1]);
        let mut png = Vec::new();
        picture.write_png(&mut png).unwrap();
        let chunks = chunks(&png);
        let kinds: Vec<_> = chunks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [b"IHDR", b"IDAT", b"IEND"]);
        assert_eq!(chunks[0].1, [0, 0, 0, 64, 0, 0, 0, 64, 8, 2, 0, 0, 0]);
        let mut lines = Vec::new();
        ZlibDecoder::new(chunks[1].1)
            .read_to_end(&mut lines)
            .unwrap();
        let pixels: Vec<u8> = lines
            .chunks(193)
            .flat_map(|line| &line[1..])
            .copied()
            .collect();
        assert_eq!(pixels, picture.pixels);
    }

    #[test]
    fn sixteen_bits_and_a_wider_line_are_shown() {
        let mut display = display();
        set(
            &mut display,
            &[(WIDTH, 64), (HEIGHT, 64), (DEPTH, 16), (VIRTUAL_WIDTH, 100)],
        );
        set(&mut display, &[(ENABLE, 1), (Y_OFFSET, 1), (X_OFFSET, 3)]);
        display.window_write(FRAME_BUFFER, 2 * 103, &0xf81fu16.to_le_bytes());
        assert_eq!(display.picture().unwrap().pixels[..3], [255, 0, 255]);
    }

    #[test]
    fn modes_that_do_not_fit_show_nothing() {
        for (width, height, depth, offset) in [
            (0, 0, 32, 0),
            (8192, 8192, 32, 0),
            (1024, 768, 8, 0),
            (1024, 768, 32, 0xffff),
            (0xffff, 64, 16, 0),
        ] {
            let mut display = display();
            set(
                &mut display,
                &[
                    (WIDTH, width),
                    (HEIGHT, height),
                    (DEPTH, depth),
                    (Y_OFFSET, offset),
                ],
            );
            set(&mut display, &[(ENABLE, 1)]);
            assert_eq!(display.picture(), None);
        }
    }

    #[test]
    fn the_picture_is_saved_and_gone_after_a_reset() {
        let mut display = display();
        set(
            &mut display,
            &[(WIDTH, 64), (HEIGHT, 64), (DEPTH, 32), (ENABLE, 1)],
        );
        display.window_write(FRAME_BUFFER, 0, &[9; 8]);
        let mut other = self::display();
        state_goes_round(&mut display, &mut other);
        assert_eq!(other.picture(), display.picture());
        other.reset();
        assert_eq!(other.picture(), None);
        let mut byte = [0];
        other.window_read(FRAME_BUFFER, 0, &mut byte);
        assert_eq!(byte, [0]);
    }
}
