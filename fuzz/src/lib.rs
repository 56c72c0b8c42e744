//! What the fuzz targets share: damaged images here, devices' registers in [`registers`],
//! hostile drivers of virtio devices in [`virtio`].
//!
//! Random bytes are almost never an image, so an input is mostly a list of
//! pokes into one of several valid images; its first byte chooses. Run with
//! `cargo +nightly fuzz run qcow2_check -- -len_control=0 -max_len=2000`, so
//! that inputs are long enough for pokes from the start.

pub mod registers;
pub mod source;
pub mod virtio;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use cenote_image::create::{Compat, CreateOptions, create_in};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{Format, OpenOptions};

/// Options of the valid images: cluster bits, refcount bits, version 2,
/// extended L2.
const TEMPLATES: [(u32, u32, bool, bool); 6] = [
    (9, 16, false, false),
    (9, 1, false, false),
    (12, 64, false, false),
    (16, 16, true, false),
    (14, 16, false, true),
    (16, 8, false, false),
];

fn template(index: usize) -> MemoryStorage {
    static MADE: OnceLock<Vec<MemoryStorage>> = OnceLock::new();
    let made = MADE.get_or_init(|| TEMPLATES.iter().map(|&options| make(options)).collect());
    made[index % made.len()].fork()
}

fn make((bits, refcount_bits, version_2, extended_l2): (u32, u32, bool, bool)) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut options = CreateOptions::new(Format::Qcow2, 1 << (bits + 6));
    options.cluster_size = 1 << bits;
    options.refcount_bits = refcount_bits;
    options.extended_l2 = extended_l2;
    options.compat = if version_2 { Compat::V2 } else { Compat::V3 };
    create_in(&storage, Path::new("template"), &options).expect("valid options");
    let shared: Arc<dyn Storage> = Arc::new(storage);
    let image = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .open_storage(shared.clone(), "template")
        .expect("opens");
    let cluster = 1u64 << bits;
    image
        .write_at(&vec![0x11; cluster as usize * 3], cluster)
        .expect("writes");
    image
        .write_zeroes(cluster * 5, cluster, true)
        .expect("zeroes");
    if let Some(kind) = image.compression() {
        let mut compressor = cenote_image::codec::Compressor::new(kind).expect("memory");
        let data = vec![0x22; cluster as usize];
        image
            .write_compressed(&data, cluster * 7, &mut compressor)
            .expect("compresses");
    }
    if refcount_bits > 1 {
        image.create_snapshot("one").expect("snapshot");
        image
            .write_at(&vec![0x33; cluster as usize], cluster * 2)
            .expect("writes");
    }
    image.close().expect("closes");
    let mut bytes = vec![0; shared.length().expect("length") as usize];
    shared.read_at(&mut bytes, 0).expect("reads");
    MemoryStorage::from_bytes(&bytes)
}

/// The image that an input describes.
pub fn damaged(input: &[u8]) -> Option<MemoryStorage> {
    let (&choice, rest) = input.split_first()?;
    if choice & 0x80 != 0 {
        let storage = MemoryStorage::from_bytes(rest);
        // A sparse file of any length costs nothing.
        storage
            .set_length(rest.len() as u64 | 1 << (choice & 0x3f).min(61))
            .ok()?;
        return Some(storage);
    }
    let storage = template(usize::from(choice));
    let length = storage.length().ok()?;
    for poke in rest.chunks_exact(12) {
        let mut word = [0; 8];
        word.copy_from_slice(&poke[4..]);
        let mut place = u64::from(u16::from_be_bytes([poke[0], poke[1]]));
        if poke[2] & 1 != 0 {
            // The start of a cluster, where tables are.
            place <<= 9;
        }
        let take = 1 + usize::from(poke[3] % 8);
        storage.write_at(&word[..take], place % length).ok()?;
    }
    Some(storage)
}
