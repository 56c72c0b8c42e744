//! A hostile driver of the block device.
#![no_main]

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use cenote_fuzz::virtio::Hostile;
use cenote_image::create::{CreateOptions, create_in};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{CacheMode, Format, OpenOptions};
use cenote_vmm::disk::{Disk, DiskOptions};
use cenote_vmm::event::{EventSink, MachineEvent};
use cenote_vmm::virtio::block::{Block, BlockOptions, ErrorPolicy, ReadErrorPolicy};
use libfuzzer_sys::fuzz_target;

struct Deaf;

impl EventSink for Deaf {
    fn signal(&self, _event: MachineEvent) {}
}

fn hostile() -> Hostile<Block> {
    let storage = MemoryStorage::new();
    let size = 1 << 20;
    create_in(
        &storage,
        Path::new("disk"),
        &CreateOptions::new(Format::Qcow2, size),
    )
    .expect("valid options");
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let image = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .open_storage(storage, "disk")
        .expect("opens");
    let options = DiskOptions {
        flushed_by_user: true,
        read_only: false,
        cache: CacheMode::Writeback,
        lock: false,
    };
    let disk = Disk::from_image(image, options).expect("whole sectors");
    let options = BlockOptions {
        name: "fuzz".to_owned(),
        serial: "serial".to_owned(),
        discard: true,
        logical_block: 512,
        physical_block: 512,
        queues: 2,
        queue_size: 16,
        error_policy: ErrorPolicy::Report,
        read_error_policy: ReadErrorPolicy::Report,
    };
    Hostile::new(Block::new(disk, options, Arc::new(Deaf)).expect("host resources"))
}

thread_local! {
    static HOSTILE: RefCell<Hostile<Block>> = RefCell::new(hostile());
}

/// A header, and a range as discards have it.
fn request(byte: &mut dyn FnMut() -> u8) -> Vec<u8> {
    let kind = [0, 1, 4, 8, 11, 13, 1, 0][usize::from(byte() % 8)];
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([byte(), byte() & 15, 0, 0, 0, 0, 0, byte() & 1]);
    bytes.extend([byte(), byte() & 15, 0, 0, 0, 0, 0, 0]);
    bytes.extend([byte(), byte(), 0, 0, byte() & 1, 0, 0, 0]);
    bytes
}

fuzz_target!(|input: &[u8]| {
    HOSTILE.with_borrow_mut(|hostile| hostile.play(input, request));
});
