//! Drives at their registers, without KVM and, but for one test, without threads.

use super::*;
use crate::{
    devices::testing::state_goes_round, interrupt::testing::ProbeLine, memory::MemoryLayout,
};
use cenote_image::{Format, OpenOptions};
use proptest::prelude::*;
use std::{fs::File, io::Write as _, path::PathBuf};
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};

const PRIMARY: u8 = 8;
const SECONDARY: u8 = 9;
const BUS_MASTER_WINDOW: u8 = 4;
const DISK_SECTORS: u64 = 4096;
const DISC_SECTORS: u64 = 100;

struct Bench {
    ide: Ide,
    lines: [Arc<ProbeLine>; 2],
    memory: GuestMemory,
    folder: TempDir,
}

/// Sector `n` of a file starts with `n`, and all of its other bytes are `n` modulo 251.
fn pattern(sector: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![(sector % 251) as u8; size];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn write_file(folder: &TempDir, name: &str, sectors: u64, size: usize) -> PathBuf {
    let path = folder.path().join(name);
    let mut file = File::create(&path).unwrap();
    for sector in 0..sectors {
        file.write_all(&pattern(sector, size)).unwrap();
    }
    path
}

fn open(path: &std::path::Path, writable: bool) -> Image {
    OpenOptions::new(Format::Raw)
        .writable(writable)
        .open(path)
        .unwrap()
}

fn identity() -> DriveIdentity {
    DriveIdentity {
        model: "Cenote disk".to_owned(),
        serial: "1234".to_owned(),
    }
}

fn drives(folder: &TempDir) -> Vec<(Position, Attach)> {
    let disk = write_file(folder, "disk", DISK_SECTORS, 512);
    let disc = write_file(folder, "disc", DISC_SECTORS, 2048);
    let disk = HardDisk::new(open(&disk, true), identity(), Box::new(()));
    let disc = Optical::new(Some(open(&disc, false)), identity());
    vec![
        (Position::PrimaryMaster, Attach::Disk(disk)),
        (Position::SecondaryMaster, Attach::Optical(disc)),
    ]
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let memory = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
        let lines: [Arc<ProbeLine>; 2] = Default::default();
        let interrupts = lines.clone().map(|line| line as Arc<dyn IrqLine>);
        let mut ide = Ide::without_threads(drives(&folder), interrupts, &memory).unwrap();
        ide.config_write(4, &[5, 0]);
        ide.enable_channels();
        Self {
            ide,
            lines,
            memory,
            folder,
        }
    }

    fn write(&mut self, window: u8, register: u64, value: u8) {
        self.ide.window_write(window, register, &[value]);
        self.ide.pause();
    }

    fn read(&mut self, window: u8, register: u64) -> u8 {
        let mut byte = [0];
        self.ide.window_read(window, register, &mut byte);
        byte[0]
    }

    /// Writes the task file from features to command.
    fn command(&mut self, window: u8, registers: [u8; 7]) {
        for (register, value) in (1..).zip(registers) {
            self.write(window, register, value);
        }
    }

    /// The same with the deeper registers first.
    fn wide_command(&mut self, window: u8, sector: u64, count: u16, command: u8) {
        let s = sector.to_le_bytes();
        let c = count.to_le_bytes();
        for (register, value) in [
            (2, c[1]),
            (3, s[3]),
            (4, s[4]),
            (5, s[5]),
            (2, c[0]),
            (3, s[0]),
            (4, s[1]),
            (5, s[2]),
            (6, 0x40),
            (7, command),
        ] {
            self.write(window, register, value);
        }
    }

    /// Reads the data register while data is requested; also how many interrupts came.
    fn data(&mut self, window: u8) -> (Vec<u8>, usize) {
        let line = Arc::clone(&self.lines[usize::from(window - PRIMARY)]);
        let mut data = Vec::new();
        let before = line.edges();
        loop {
            self.ide.pause();
            if self.read(window, 7) & 0x88 != 8 {
                break;
            }
            let mut word = [0; 2];
            self.ide.window_read(window, 0, &mut word);
            data.extend(word);
            assert!(data.len() < 1 << 22);
        }
        (data, line.edges() - before)
    }

    fn put(&mut self, window: u8, data: &[u8]) {
        for word in data.chunks(4) {
            assert_eq!(self.read(window, 7) & 0x88, 8);
            self.ide.window_write(window, 0, word);
            self.ide.pause();
        }
    }

    fn status(&mut self, window: u8) -> (u8, u8) {
        (self.read(window, 7), self.read(window, 1))
    }

    /// Sends a packet and gives the reply.
    fn packet(&mut self, packet: [u8; 12]) -> Vec<u8> {
        self.command(SECONDARY, [0, 0, 0, 0, 8, 0xa0, 0xa0]);
        self.put(SECONDARY, &packet);
        self.data(SECONDARY).0
    }

    fn short_packet(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut packet = [0; 12];
        packet[..bytes.len()].copy_from_slice(bytes);
        self.packet(packet)
    }

    /// Key and code of the failure that REQUEST SENSE tells.
    fn sense(&mut self) -> (u8, u8) {
        let data = self.short_packet(&[0x03, 0, 0, 0, 18]);
        (data[2], data[12])
    }

    /// Readies the disc: the first command after power-on tells of that.
    fn ready(&mut self) {
        self.short_packet(&[0]);
        assert_eq!(self.sense(), (6, 0x29));
    }

    /// Starts the bus master on a table of pieces.
    fn start_dma(&mut self, channel: u64, pieces: &[(u32, u16)], to_memory: bool) {
        for (index, (address, length)) in (0u64..).zip(pieces) {
            let end = index + 1 == pieces.len() as u64;
            let word =
                u64::from(*address) | u64::from(*length) << 32 | if end { 1 << 63 } else { 0 };
            let at = GuestAddress(0x1000 + index * 8);
            self.memory.write_obj(word, at).unwrap();
        }
        let base = channel * 8;
        let table = 0x1000u32.to_le_bytes();
        self.ide.window_write(BUS_MASTER_WINDOW, base + 4, &table);
        let direction = if to_memory { 8 } else { 0 };
        self.write(BUS_MASTER_WINDOW, base, direction | 1);
    }

    fn memory(&self, at: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }
}

fn sectors(range: std::ops::Range<u64>, size: usize) -> Vec<u8> {
    range.flat_map(|sector| pattern(sector, size)).collect()
}

#[test]
fn absent_drives_are_found_absent() {
    let mut bench = Bench::new();
    bench.write(PRIMARY, 6, 0xb0);
    assert_eq!(bench.read(PRIMARY, 7), 0);
    bench.write(PRIMARY, 2, 0x55);
    assert_eq!(
        (bench.read(PRIMARY, 2), bench.read(PRIMARY, 6)),
        (0x55, 0xb0)
    );
    let memory = bench.memory.clone();
    let lines: [Arc<ProbeLine>; 2] = Default::default();
    let mut empty = Ide::without_threads(Vec::new(), lines.map(|l| l as _), &memory).unwrap();
    let mut status = [0];
    empty.window_read(SECONDARY, 7, &mut status);
    assert_eq!(status, [0xff]);
}

#[test]
fn ports_appear_when_they_are_enabled() {
    let mut bench = Bench::new();
    let ports = |ide: &Ide| ide.windows().iter().map(|w| w.base).collect::<Vec<_>>();
    assert_eq!(ports(&bench.ide), [0x1f0, 0x3f6, 0x170, 0x376]);
    bench.ide.config_write(0x43, &[0]);
    assert_eq!(ports(&bench.ide), [0x1f0, 0x3f6]);
    bench.ide.reset();
    assert!(ports(&bench.ide).is_empty());
}

#[test]
fn a_disk_identifies_itself() {
    let mut bench = Bench::new();
    bench.command(PRIMARY, [0, 0, 0, 0, 0, 0xa0, 0xec]);
    assert!(bench.lines[0].is_high());
    let (data, _) = bench.data(PRIMARY);
    assert_eq!(data.len(), 512);
    assert_eq!(
        data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
    assert_eq!(&data[54..66], b"eConetd si k");
    assert_eq!(data[120..124], 4096u32.to_le_bytes());
    assert_eq!(data[200..208], 4096u64.to_le_bytes());
    assert_eq!(bench.status(PRIMARY), (0x50, 0));
    assert!(
        !bench.lines[0].is_high(),
        "reading the status ends the interrupt"
    );
}

#[test]
fn sectors_are_read_one_by_one_and_in_blocks() {
    let mut bench = Bench::new();
    bench.command(PRIMARY, [0, 3, 7, 0, 0, 0xe0, 0x20]);
    // Looking at the status after the first interrupt, three sectors have two more.
    assert_eq!(bench.data(PRIMARY), (sectors(7..10, 512), 2));
    bench.wide_command(PRIMARY, 1000, 300, 0x24);
    assert_eq!(bench.data(PRIMARY), (sectors(1000..1300, 512), 299));
    bench.command(PRIMARY, [0, 8, 0, 0, 0, 0xe0, 0xc6]);
    bench.command(PRIMARY, [0, 20, 0, 0, 0, 0xe0, 0xc4]);
    assert_eq!(bench.data(PRIMARY), (sectors(0..20, 512), 2));
    // Cylinder 2, head 1, sector 1.
    bench.command(PRIMARY, [0, 1, 1, 2, 0, 0xa1, 0x20]);
    let sector = (2 * 16 + 1) * 63;
    assert_eq!(bench.data(PRIMARY).0, pattern(sector, 512));
    bench.command(PRIMARY, [0, 0, 0, 0, 0, 0xe0, 0x20]);
    assert_eq!(bench.data(PRIMARY).0.len(), 256 * 512);
}

#[test]
fn sectors_are_written() {
    let mut bench = Bench::new();
    let data: Vec<u8> = (0..200 * 512u32).map(|at| (at % 253) as u8).collect();
    bench.wide_command(PRIMARY, 50, 200, 0x34);
    bench.put(PRIMARY, &data);
    assert_eq!(bench.status(PRIMARY), (0x50, 0));
    bench.command(PRIMARY, [0, 0, 0, 0, 0, 0xa0, 0xe7]);
    let file = std::fs::read(bench.folder.path().join("disk")).unwrap();
    assert_eq!(file[50 * 512..250 * 512], data);
    assert_eq!(file[250 * 512..][..512], pattern(250, 512));
    assert_eq!(file[49 * 512..][..512], pattern(49, 512));
}

#[test]
fn what_is_not_there_is_refused() {
    let mut bench = Bench::new();
    for (sector, count, command) in [(4095, 2, 0x24), (4096, 1, 0x25), ((1 << 48) - 1, 0, 0x34)] {
        bench.wide_command(PRIMARY, sector, count, command);
        assert_eq!(bench.status(PRIMARY), (0x51, 0x10), "{sector}");
    }
    // SMART, security, host protected area, and codes that mean nothing.
    for command in [0xb0, 0xf1, 0xf8, 0x27, 0xff, 0x00] {
        bench.command(PRIMARY, [0, 0, 0, 0, 0, 0xe0, command]);
        assert_eq!(bench.status(PRIMARY), (0x51, 4), "{command:#x}");
    }
    bench.command(PRIMARY, [0, 5, 0, 0, 0, 0xe0, 0xc6]);
    assert_eq!(bench.status(PRIMARY), (0x51, 4));
    bench.command(PRIMARY, [0x03, 0x47, 0, 0, 0, 0xe0, 0xef]);
    assert_eq!(bench.status(PRIMARY), (0x51, 4));
    bench.command(PRIMARY, [0x03, 0x45, 0, 0, 0, 0xe0, 0xef]);
    assert_eq!(bench.status(PRIMARY), (0x50, 0));
}

#[test]
fn dma_goes_to_the_pieces_of_the_table() {
    let mut bench = Bench::new();
    bench.wide_command(PRIMARY, 30, 4, 0x25);
    bench.start_dma(0, &[(0x2000, 512), (0x4000, 1024), (0x3000, 512)], true);
    let expected = sectors(30..34, 512);
    assert_eq!(bench.memory(0x2000, 512), expected[..512]);
    assert_eq!(bench.memory(0x4000, 1024), expected[512..1536]);
    assert_eq!(bench.memory(0x3000, 512), expected[1536..]);
    assert!(bench.lines[0].is_high());
    assert_eq!(bench.read(BUS_MASTER_WINDOW, 2), 4);
    assert_eq!(bench.status(PRIMARY), (0x50, 0));
    bench.write(BUS_MASTER_WINDOW, 0, 0);
    bench.write(BUS_MASTER_WINDOW, 2, 4);
    // The other way round, the master started before the command, with room left.
    bench.start_dma(0, &[(0x2000, 0)], false);
    bench.command(PRIMARY, [0, 2, 100, 0, 0, 0xe0, 0xca]);
    assert_eq!(bench.read(BUS_MASTER_WINDOW, 2), 5);
    let file = std::fs::read(bench.folder.path().join("disk")).unwrap();
    assert_eq!(file[100 * 512..][..1024], bench.memory(0x2000, 1024));
}

#[test]
fn tables_that_cannot_be_used_end_the_command() {
    let mut bench = Bench::new();
    for (pieces, to_memory) in [
        (&[(0x2000, 512)][..], true),
        (&[(0xa_0000, 2048)], true),
        (&[(0xffff_fffe, 2048)], true),
        (&[(0x2000, 2048)], false),
    ] {
        bench.wide_command(PRIMARY, 0, 4, 0x25);
        bench.start_dma(0, pieces, to_memory);
        assert_eq!(bench.status(PRIMARY), (0x51, 4));
        assert_eq!(bench.read(BUS_MASTER_WINDOW, 2) & 7, 6);
        bench.write(BUS_MASTER_WINDOW, 0, 0);
        bench.write(BUS_MASTER_WINDOW, 2, 6);
    }
    // A table that lies nowhere, and one that goes on behind 64 KiB.
    let entry = 0x200_0000_2000u64;
    bench
        .memory
        .write_obj([entry, entry], GuestAddress(0x1_fff8))
        .unwrap();
    for table in [0xfff0_0000u32, 0x1_fff8] {
        bench.wide_command(PRIMARY, 0, 4, 0x25);
        let table = table.to_le_bytes();
        bench.ide.window_write(BUS_MASTER_WINDOW, 4, &table);
        bench.write(BUS_MASTER_WINDOW, 0, 9);
        assert_eq!(bench.status(PRIMARY).0, 0x51);
        bench.write(BUS_MASTER_WINDOW, 0, 0);
    }
    // Without leave to be a master nothing moves.
    bench.ide.config_write(4, &[1, 0]);
    bench.wide_command(PRIMARY, 0, 1, 0x25);
    bench.start_dma(0, &[(0x2000, 512)], true);
    assert_eq!(bench.read(PRIMARY, 7), 0x58);
    bench.ide.config_write(4, &[5, 0]);
    bench.ide.pause();
    assert_eq!(bench.read(PRIMARY, 7), 0x50);
}

#[test]
fn a_soft_reset_leaves_the_signature_and_no_interrupt() {
    let mut bench = Bench::new();
    bench.command(PRIMARY, [0, 9, 7, 0, 0, 0xe0, 0x20]);
    bench.write(10, 0, 4);
    assert_eq!(bench.read(10, 0), 0x80);
    bench.write(10, 0, 0);
    assert!(!bench.lines[0].is_high());
    let signature = |bench: &mut Bench, window| [2, 3, 4, 5, 7].map(|r| bench.read(window, r));
    assert_eq!(signature(&mut bench, PRIMARY), [1, 1, 0, 0, 0x50]);
    bench.write(11, 0, 4);
    bench.write(11, 0, 0);
    assert_eq!(signature(&mut bench, SECONDARY), [1, 1, 0x14, 0xeb, 0]);
    // With interrupts off the line stays low until they are on again.
    bench.write(10, 0, 2);
    bench.command(PRIMARY, [0, 0, 0, 0, 0, 0xe0, 0xe5]);
    assert!(!bench.lines[0].is_high());
    bench.write(10, 0, 0);
    assert!(bench.lines[0].is_high());
}

#[test]
fn a_disc_is_read_by_packets() {
    let mut bench = Bench::new();
    bench.command(SECONDARY, [0, 0, 0, 0, 0, 0xa0, 0xa1]);
    let (data, _) = bench.data(SECONDARY);
    assert_eq!(data[..2], [0xc0, 0x85]);
    bench.command(SECONDARY, [0, 0, 0, 0, 0, 0xa0, 0xec]);
    assert_eq!(bench.status(SECONDARY), (0x51, 4));
    assert_eq!(
        (bench.read(SECONDARY, 4), bench.read(SECONDARY, 5)),
        (0x14, 0xeb)
    );
    let inquiry = bench.short_packet(&[0x12, 0, 0, 0, 36]);
    assert_eq!((inquiry.len(), inquiry[0], inquiry[1]), (36, 5, 0x80));
    bench.ready();
    assert_eq!(bench.short_packet(&[0x25]), [0, 0, 0, 99, 0, 0, 8, 0]);
    let read = bench.short_packet(&[0x28, 0, 0, 0, 0, 10, 0, 0, 40]);
    assert_eq!(read, sectors(10..50, 2048));
    assert_eq!(bench.read(SECONDARY, 2), 3);
    let read = bench.short_packet(&[0xa8, 0, 0, 0, 0, 99, 0, 0, 0, 1]);
    assert_eq!(read, pattern(99, 2048));
    let read = bench.short_packet(&[0xbe, 0, 0, 0, 0, 5, 0, 0, 2, 0x10]);
    assert_eq!(read, sectors(5..7, 2048));
    for (packet, sense) in [
        (&[0x28, 0, 0, 0, 0, 99, 0, 0, 2][..], (5, 0x21)),
        (&[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 1], (5, 0x21)),
        (&[0x04], (5, 0x20)),
        (&[0x5a, 0, 0x05, 0, 0, 0, 0, 0, 8], (5, 0x24)),
    ] {
        assert!(bench.short_packet(packet).is_empty());
        assert_eq!(bench.status(SECONDARY), (0x51, 0x54));
        assert_eq!(bench.sense(), sense);
        assert_eq!(bench.sense(), (0, 0), "sense is told once");
    }
}

#[test]
fn the_table_of_contents_has_one_data_track() {
    let mut bench = Bench::new();
    bench.ready();
    let toc = bench.short_packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 100]);
    let expected = [
        0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 100,
    ];
    assert_eq!(toc, expected);
    let timed = bench.short_packet(&[0x43, 2, 0, 0, 0, 0, 0, 0, 12]);
    assert_eq!(timed[8..], [0, 0, 2, 0]);
    let sessions = bench.short_packet(&[0x43, 0, 1, 0, 0, 0, 0, 0, 12]);
    assert_eq!(sessions[..4], [0, 10, 1, 1]);
    let configuration = bench.short_packet(&[0x46, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(configuration[6..8], [0, 8]);
    assert_eq!(configuration.len(), configuration[3] as usize + 4);
    let capabilities = bench.short_packet(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 200]);
    assert_eq!(capabilities[..2], [0, 28]);
    assert_eq!(capabilities[8], 0x2a);
}

#[test]
fn a_reply_goes_by_dma_too() {
    let mut bench = Bench::new();
    bench.ready();
    bench.command(SECONDARY, [1, 0, 0, 0, 0, 0xa0, 0xa0]);
    bench.put(SECONDARY, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bench.start_dma(1, &[(0x2000, 8)], true);
    assert_eq!(bench.memory(0x2000, 8), [0, 0, 0, 99, 0, 0, 8, 0]);
    assert_eq!(bench.status(SECONDARY), (0x50, 0));
    bench.write(BUS_MASTER_WINDOW, 8, 0);
    bench.command(SECONDARY, [1, 0, 0, 0, 0, 0xa0, 0xa0]);
    bench.put(SECONDARY, &[0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0]);
    bench.start_dma(1, &[(0x2000, 4096)], true);
    assert_eq!(bench.memory(0x2000, 4096), sectors(3..5, 2048));
}

#[test]
fn media_come_and_go() {
    let mut bench = Bench::new();
    bench.ready();
    let drive = Position::SecondaryMaster;
    let event = |bench: &mut Bench| {
        let data = bench.short_packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]);
        (data[4], data[5])
    };
    assert_eq!(event(&mut bench), (0, 2));
    // The guest locks the tray: it is asked to eject, and cannot open it by itself either.
    bench.short_packet(&[0x1e, 0, 0, 0, 1]);
    assert_eq!(
        bench.ide.change_medium(drive, None, false),
        Err(MediumError::Locked)
    );
    assert_eq!(event(&mut bench), (1, 2));
    bench.short_packet(&[0x1b, 0, 0, 0, 2]);
    assert_eq!(bench.sense(), (5, 0x53));
    bench.short_packet(&[0x1e]);
    bench.short_packet(&[0x1b, 0, 0, 0, 2]);
    assert_eq!(bench.ide.tray_open(drive), Some(true));
    assert_eq!(event(&mut bench), (3, 1));
    bench.short_packet(&[0]);
    assert_eq!(bench.sense(), (2, 0x3a));
    bench.ide.reset();
    bench.ide.config_write(4, &[5, 0]);
    assert_eq!(
        bench.ide.tray_open(drive),
        Some(true),
        "a reset closes no tray"
    );
    let other = write_file(&bench.folder, "other", 7, 2048);
    let other = open(&other, false);
    bench.ide.change_medium(drive, Some(other), false).unwrap();
    bench.short_packet(&[0]);
    assert_eq!(bench.sense(), (6, 0x28));
    assert_eq!(event(&mut bench), (2, 2));
    assert_eq!(bench.short_packet(&[0x25])[3], 6);
    bench.short_packet(&[0x1e, 0, 0, 0, 1]);
    bench.ide.change_medium(drive, None, true).unwrap();
    assert!(
        bench
            .short_packet(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1])
            .is_empty()
    );
    assert_eq!(bench.sense(), (2, 0x3a));
    let disk = bench.ide.change_medium(Position::PrimaryMaster, None, true);
    assert_eq!(disk, Err(MediumError::NoDrive));
}

#[test]
fn a_command_goes_on_after_a_restore() {
    let mut bench = Bench::new();
    bench.command(PRIMARY, [0, 3, 7, 0, 0, 0xe0, 0x20]);
    let mut first = vec![0; 600];
    for word in first.chunks_mut(2) {
        bench.ide.window_read(PRIMARY, 0, word);
    }
    bench.command(SECONDARY, [0, 0, 0, 0, 8, 0xa0, 0xa0]);
    let mut other = Bench::new();
    state_goes_round(&mut bench.ide, &mut other.ide);
    assert!(other.lines[0].is_high());
    first.extend(other.data(PRIMARY).0);
    assert_eq!(first, sectors(7..10, 512));
    other.put(SECONDARY, &[0; 12]);
    assert_eq!(other.sense(), (6, 0x29));
    let mut state = bench.ide.save().unwrap();
    state.data["channels"][1]["drives"][0] = serde_json::Value::Null;
    assert!(other.ide.restore(&state).is_err());
}

#[test]
fn the_thread_does_what_the_guest_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    let memory = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
    let lines: [Arc<ProbeLine>; 2] = Default::default();
    let interrupts = lines.clone().map(|line| line as Arc<dyn IrqLine>);
    let ide = Ide::new(drives(&folder), interrupts, &memory).unwrap();
    ide.lock().config_write(4, &[5, 0]);
    memory
        .write_obj(0x400_0000_2000u64 | 1 << 63, GuestAddress(0x1000))
        .unwrap();
    for round in 0..20u8 {
        for (register, value) in [(2, 2), (3, round), (4, 0), (5, 0), (6, 0xe0), (7, 0xc8)] {
            ide.lock().window_write(PRIMARY, register, &[value]);
        }
        ide.lock()
            .window_write(BUS_MASTER_WINDOW, 4, &0x1000u32.to_le_bytes());
        ide.lock().window_write(BUS_MASTER_WINDOW, 0, &[9]);
        let start = std::time::Instant::now();
        while !lines[0].is_high() {
            assert!(start.elapsed() < std::time::Duration::from_secs(60));
            thread::yield_now();
        }
        let sector: u64 = memory.read_obj(GuestAddress(0x2000)).unwrap();
        assert_eq!(sector, u64::from(round));
        let mut status = [0];
        ide.lock().window_read(PRIMARY, 7, &mut status);
        assert_eq!(status, [0x50]);
        ide.lock().window_write(BUS_MASTER_WINDOW, 0, &[0]);
        // A reset while something is under way leaves nothing behind.
        if round % 5 == 4 {
            ide.lock().window_write(PRIMARY, 7, &[0xc8]);
            ide.lock().window_write(BUS_MASTER_WINDOW, 0, &[9]);
            ide.lock().reset();
            assert!(!lines[0].is_high());
            ide.lock().config_write(4, &[5, 0]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a guest writes where, nothing panics, and the state can be saved and restored.
    #[test]
    fn any_access_is_survived(
        accesses in prop::collection::vec(
            (prop::sample::select(vec![4u8, 8, 9, 10, 11]), 0u64..16, any::<u32>(), 0usize..3, any::<bool>()),
            1..300,
        ),
        table in prop::collection::vec(any::<u64>(), 16),
    ) {
        let mut bench = Bench::new();
        for (index, entry) in (0u64..).zip(table) {
            bench.memory.write_obj(entry & 0x8000_ffff_003f_ffff, GuestAddress(index * 8)).unwrap();
        }
        for (window, offset, value, width, write) in accesses {
            let offset = match window { 4 => offset, 8 | 9 => offset & 7, _ => 0 };
            let size = if window >= 10 { 1 } else { 1 << width };
            let mut data = value.to_le_bytes()[..size].to_vec();
            if write {
                bench.ide.window_write(window, offset, &data);
            } else {
                bench.ide.window_read(window, offset, &mut data);
            }
            if value & 7 == 0 {
                bench.ide.pause();
            }
        }
        bench.ide.pause();
        let state = bench.ide.save().unwrap();
        Bench::new().ide.restore(&state).unwrap();
    }
}
