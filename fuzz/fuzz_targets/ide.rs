//! The IDE controller with a hard disk and CD-ROM drives under a hostile driver.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use cenote_fuzz::registers::line;
use cenote_fuzz::source::Source;
use cenote_image::create::{CreateOptions, create_in};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{Format, Image, OpenOptions};
use cenote_vmm::device::Device as _;
use cenote_vmm::devices::ide::{Attach, DriveIdentity, HardDisk, Ide, Optical, Position};
use cenote_vmm::interrupt::IrqLine;
use cenote_vmm::memory::{GuestMemory, MemoryLayout};
use cenote_vmm::pci::PciFunction as _;
use libfuzzer_sys::fuzz_target;
use parking_lot::Mutex;
use vm_memory::{Bytes as _, GuestAddress};

const MEMORY: u64 = 2 << 20;
/// Tables of bus mastering and its buffers.
const TABLES: u64 = 0x1000;
const ATA: [u8; 32] = [
    0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x42, 0xc4, 0xc5, 0xc8, 0xca, 0x91, 0xc6,
    0xe5, 0xe7, 0xea, 0xec, 0xef, 0x90, 0xa0, 0xa1, 0x08, 0x00, 0xe0, 0x3d, 0xce, 0xa0, 0xa0, 0xf8,
];
const PACKETS: [u8; 24] = [
    0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0xa8, 0x2b, 0x42, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x5a,
    0xad, 0xbb, 0xbd, 0xbe, 0xb9, 0x55, 0x35, 0xff,
];

fn image(format: Format, writable: bool, size: u64) -> Image {
    let storage = MemoryStorage::new();
    create_in(
        &storage,
        Path::new("disk"),
        &CreateOptions::new(format, size),
    )
    .expect("valid options");
    let storage: Arc<dyn Storage> = Arc::new(storage);
    OpenOptions::new(format)
        .writable(writable)
        .open_storage(storage, "disk")
        .expect("opens")
}

fn drives() -> Vec<(Position, Attach)> {
    let identity = DriveIdentity {
        model: "FUZZ".to_owned(),
        serial: "1".to_owned(),
    };
    let disk = HardDisk::new(
        image(Format::Qcow2, true, 300 << 10),
        identity.clone(),
        Box::new(()),
    );
    let full = Optical::new(Some(image(Format::Raw, false, 50 << 11)), identity.clone());
    vec![
        (Position::PrimaryMaster, Attach::Disk(disk)),
        (Position::PrimarySlave, Attach::Optical(full)),
        (
            Position::SecondaryMaster,
            Attach::Optical(Optical::new(None, identity)),
        ),
    ]
}

/// Sets a channel's registers and gives a command.
fn command(ide: &mut Ide, source: &mut Source<'_>, channel: u8) {
    let which = source.byte();
    for register in 1..=5 {
        // Mostly small addresses and counts, so that there is something there.
        let value = match register {
            2 | 3 => source.byte() % 40,
            _ if which & 0x80 == 0 => 0,
            _ => source.byte(),
        };
        ide.window_write(8 + channel, register, &[value]);
    }
    ide.window_write(8 + channel, 6, &[0xe0 | source.byte() & 0x1f]);
    let code = ATA[usize::from(which) % ATA.len()];
    ide.window_write(8 + channel, 7, &[code]);
}

/// A command packet for a CD-ROM drive.
fn packet(ide: &mut Ide, source: &mut Source<'_>, channel: u8) {
    let drive = source.byte();
    ide.window_write(8 + channel, 6, &[drive & 0x10]);
    ide.window_write(8 + channel, 1, &[drive & 3]);
    ide.window_write(8 + channel, 4, &[source.byte()]);
    ide.window_write(8 + channel, 5, &[drive >> 5]);
    ide.window_write(8 + channel, 7, &[0xa0]);
    let mut bytes = [0; 12];
    bytes[0] = PACKETS[usize::from(source.byte()) % PACKETS.len()];
    for byte in &mut bytes[1..] {
        *byte = source.byte() & 0x3f;
    }
    if drive & 4 != 0 {
        bytes[2..5].fill(0);
        bytes[6..8].fill(0);
    }
    for pair in bytes.chunks(2) {
        ide.window_write(8 + channel, 0, pair);
    }
}

/// Bus mastering from a table that the input writes.
fn bus_master(ide: &mut Ide, memory: &GuestMemory, source: &mut Source<'_>, channel: u8) {
    let table = TABLES + u64::from(source.byte()) * 64;
    for entry in 0..u64::from(source.byte() % 4) + 1 {
        let mut bytes = [0; 8];
        bytes[1..4].copy_from_slice(&[source.byte(), source.byte() & 0x1f, 0]);
        bytes[4..6].copy_from_slice(&source.short().to_le_bytes());
        bytes[7] = source.byte() & 0x80;
        let _ = memory.write_slice(&bytes, GuestAddress(table + entry * 8));
    }
    let base = u64::from(channel) * 8;
    ide.window_write(4, base + 4, &(table as u32).to_le_bytes());
    ide.window_write(4, base, &[source.byte() & 9]);
}

fn save_and_restore(ide: &mut Ide) {
    ide.pause();
    let state = ide.save().expect("every state can be saved");
    let text = serde_json::to_string(&state).expect("it can be written");
    let read = serde_json::from_str(&text).expect("and read");
    ide.reset();
    ide.restore(&read).expect("and taken over");
    assert_eq!(ide.save().expect("it can be saved again"), state);
    ide.resume();
}

fn step(ide: &Mutex<Ide>, memory: &GuestMemory, source: &mut Source<'_>) {
    let what = source.byte();
    let channel = what >> 7;
    let mut ide = ide.lock();
    match what % 12 {
        0 | 1 => command(&mut ide, source, channel),
        2 | 3 => packet(&mut ide, source, channel),
        4 => {
            let mut data = [0; 4];
            for _ in 0..source.byte() {
                ide.window_read(8 + channel, 0, &mut data[..2 << (what >> 4 & 1)]);
            }
        }
        5 => {
            let value = source.word().to_le_bytes();
            for _ in 0..source.byte() {
                ide.window_write(8 + channel, 0, &value[..2 << (what >> 4 & 1)]);
            }
        }
        6 => bus_master(&mut ide, memory, source, channel),
        7 => {
            let place = source.byte();
            let window = [8, 9, 10, 11, 4][usize::from(place >> 5) % 5];
            let mut data = [0; 4];
            let length = 1 << (what >> 5 & 3).min(2);
            ide.window_read(window, u64::from(place & 0x0f), &mut data[..length]);
        }
        8 => {
            let place = source.byte();
            let window = [8, 9, 10, 11, 4][usize::from(place >> 5) % 5];
            let data = source.word().to_le_bytes();
            let length = 1 << (what >> 5 & 3).min(2);
            ide.window_write(window, u64::from(place & 0x0f), &data[..length]);
        }
        // Seldom, since a transfer's buffer becomes a long text.
        9 if what & 0x70 == 0 => save_and_restore(&mut ide),
        9 => {
            let offset = source.byte();
            ide.config_write(offset & !3, &source.word().to_le_bytes()[..4]);
        }
        10 => {
            // What the threads have under way is done.
            ide.pause();
            ide.resume();
        }
        _ => {
            let positions = [Position::PrimarySlave, Position::SecondaryMaster];
            let medium = (what & 0x10 != 0).then(|| image(Format::Raw, false, 9 << 11));
            let position = positions[usize::from(channel)];
            let _ = ide.change_medium(position, medium, what & 0x20 != 0);
        }
    }
}

/// The controller lives for the whole run, since its threads are costly to make.
fn machine() -> (Arc<Mutex<Ide>>, GuestMemory) {
    let memory = MemoryLayout::new(MEMORY)
        .and_then(|layout| layout.map())
        .expect("memory");
    let lines: [Arc<dyn IrqLine>; 2] = [line(), line()];
    let ide = Ide::new(drives(), lines, &memory).expect("host resources");
    (ide, memory)
}

thread_local! {
    static MACHINE: (Arc<Mutex<Ide>>, GuestMemory) = machine();
}

fn play(ide: &Mutex<Ide>, memory: &GuestMemory, input: &[u8]) {
    {
        let mut ide = ide.lock();
        ide.pause();
        ide.reset();
        ide.resume();
        ide.config_write(4, &[7, 0]);
        ide.enable_channels();
        for (position, full) in [
            (Position::PrimarySlave, true),
            (Position::SecondaryMaster, false),
        ] {
            let medium = full.then(|| image(Format::Raw, false, 50 << 11));
            ide.change_medium(position, medium, true)
                .expect("there is a drive");
        }
    }
    let mut source = Source::new(input);
    while !source.is_empty() {
        step(ide, memory, &mut source);
    }
}

fuzz_target!(|input: &[u8]| {
    MACHINE.with(|(ide, memory)| play(ide, memory, input));
});
