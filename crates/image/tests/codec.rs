//! Compressed clusters that qemu-img wrote, and ones that it must read.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use cenote_image::CacheMode;
use cenote_image::codec::{Compressor, decompress};
use cenote_image::qcow2::entry::{COMPRESSED, CompressedExtent, OFFSET_MASK};
use cenote_image::qcow2::header::{Compression, Header};
use cenote_image::storage::{FileStorage, Storage};

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img is missing: install the package qemu-utils");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn be64_at(storage: &dyn Storage, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_at(&mut bytes, offset).unwrap();
    u64::from_be_bytes(bytes)
}

/// Checks every compressed cluster against `plain`, then has the image
/// refer to our own compression of it instead.
fn exchange(path: &Path, plain: &[u8], kind: Compression) -> usize {
    let storage = FileStorage::open(path, true, CacheMode::Writeback).unwrap();
    let header = Header::read(&storage, path).unwrap();
    assert_eq!(header.compression, kind);
    let size = header.cluster_size() as usize;
    let mut compressor = Compressor::new(kind).unwrap();
    let mut count = 0;
    for (cluster, expected) in plain.chunks(size).enumerate() {
        let (l1, l2) = (
            cluster as u64 / header.l2_entries(),
            cluster as u64 % header.l2_entries(),
        );
        let table = be64_at(&storage, header.l1_offset + l1 * 8) & OFFSET_MASK;
        let entry = be64_at(&storage, table + l2 * header.l2_entry_size());
        if table == 0 || entry & COMPRESSED == 0 {
            continue;
        }
        let extent = CompressedExtent::decode(entry, header.cluster_bits);
        let mut stored = vec![0; extent.length as usize];
        storage.read_at(&mut stored, extent.offset).unwrap();
        let mut seen = vec![0; size];
        decompress(kind, &stored, &mut seen).unwrap();
        assert!(seen == expected);
        let mut ours = vec![0; size];
        let length = compressor.compress(expected, &mut ours).unwrap();
        // Somewhere in the middle of a sector at the end of the file.
        let at = storage.length().unwrap() + 77;
        storage.write_at(&ours[..length], at).unwrap();
        storage.set_length(at + length as u64 + 600).unwrap();
        let entry = CompressedExtent::encode(at, length as u64, header.cluster_bits).unwrap();
        storage
            .write_at(&entry.to_be_bytes(), table + l2 * header.l2_entry_size())
            .unwrap();
        count += 1;
    }
    count
}

#[test]
fn qemu_img_and_we_read_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("plain.raw");
    let mut plain = vec![0u8; 2 << 20];
    for (at, byte) in plain.iter_mut().enumerate() {
        let word = (at as u64 / 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        // Noisy and repetitive stretches.
        *byte = if at >> 16 & 1 == 0 {
            b'a' + word as u8 % 16
        } else {
            at as u8 % 29
        };
        *byte += (at >> 17) as u8;
    }
    std::fs::File::create(&raw)
        .unwrap()
        .write_all_at(&plain, 0)
        .unwrap();
    let raw = raw.to_str().unwrap();
    for (name, kind) in [("zlib", Compression::Zlib), ("zstd", Compression::Zstd)] {
        for cluster in ["4k", "64k", "2M"] {
            let path = dir.path().join(format!("{name}-{cluster}.qcow2"));
            let options = format!("compression_type={name},cluster_size={cluster}");
            let image = path.to_str().unwrap();
            qemu_img(&[
                "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, raw, image,
            ]);
            let count = exchange(&path, &plain, kind);
            assert!(count > 0, "{name} {cluster}");
            qemu_img(&["compare", "-f", "raw", "-F", "qcow2", raw, image]);
        }
    }
}
