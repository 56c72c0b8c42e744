//! Random and concurrent work on an image, mirrored in memory and judged by
//! QEMU.

#![allow(dead_code)] // each test file uses a part

use std::path::Path;

use cenote_image::{Format, Image, OpenOptions};

use crate::tools::{Numbers, qemu_img, raw_dump, text};

pub(crate) fn open(path: &Path) -> Image {
    OpenOptions::new(Format::Qcow2)
        .writable(true)
        .open(path)
        .expect("opens for writing")
}

pub(crate) fn dump(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0u8; image.size() as usize];
    // Odd pieces cross cluster borders at every offset.
    let mut numbers = Numbers::new(7);
    let mut at = 0;
    while at < bytes.len() {
        let take = (1 + numbers.below(300_000) as usize).min(bytes.len() - at);
        image
            .read_at(&mut bytes[at..at + take], at as u64)
            .expect("reads");
        at += take;
    }
    bytes
}

pub(crate) fn assert_same(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: length");
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!(
            "{what}: first difference at {at:#x}: {:#x} for {:#x}",
            ours[at], theirs[at]
        );
    }
}

/// One random operation on the image and on the mirror.
pub(crate) fn random_operation(image: &Image, mirror: &mut [u8], numbers: &mut Numbers) {
    let size = mirror.len() as u64;
    let longest = match numbers.below(4) {
        0 => 1 << 20,
        1 => 200_000,
        _ => 9000,
    };
    let offset = numbers.below(size);
    let length = (1 + numbers.below(longest)).min(size - offset);
    let (offset, length) = match numbers.below(3) {
        0 => {
            let start = offset / 65536 * 65536;
            (start, length.next_multiple_of(65536).min(size - start))
        }
        _ => (offset, length),
    };
    let range = offset as usize..(offset + length) as usize;
    match numbers.below(10) {
        0..=4 => {
            let data = numbers.bytes(length as usize);
            image.write_at(&data, offset).expect("writes");
            mirror[range].copy_from_slice(&data);
        }
        5 => {
            let unmap = numbers.below(2) == 0;
            image.write_zeroes(offset, length, unmap).expect("zeroes");
            mirror[range].fill(0);
        }
        6 => {
            image.discard(offset, length).expect("discards");
            // Whole clusters may read as zeroes or as before.
            let mut now = vec![0u8; length as usize];
            image.read_at(&mut now, offset).expect("reads");
            for (i, byte) in now.iter().enumerate() {
                let before = mirror[offset as usize + i];
                assert!(*byte == 0 || *byte == before, "discard showed foreign data");
            }
            mirror[range].copy_from_slice(&now);
        }
        7 if numbers.below(4) == 0 => image.flush().expect("flushes"),
        _ => {
            let mut now = vec![0u8; length as usize];
            image.read_at(&mut now, offset).expect("reads");
            assert_same(&now, &mirror[range], "random read");
        }
    }
}

/// Sixteen threads write pieces that lie side by side in the same clusters.
pub(crate) fn concurrent_writes(image: &Image, mirror: &mut [u8]) {
    const PIECE: usize = 3000;
    let pieces = (mirror.len() / PIECE).min(2000);
    let start = mirror.len() / PIECE - pieces;
    std::thread::scope(|scope| {
        for thread in 0..16usize {
            let image = image.clone();
            scope.spawn(move || {
                for piece in (start..start + pieces).filter(|p| p % 16 == thread) {
                    let data = Numbers::new(piece as u64 + 99).bytes(PIECE);
                    image
                        .write_at(&data, (piece * PIECE) as u64)
                        .expect("writes");
                    if piece % 160 == thread {
                        image.flush().expect("flushes");
                    }
                }
            });
        }
    });
    for piece in start..start + pieces {
        let data = Numbers::new(piece as u64 + 99).bytes(PIECE);
        mirror[piece * PIECE..(piece + 1) * PIECE].copy_from_slice(&data);
    }
}

/// The whole programme on one image.
pub(crate) fn exercise(dir: &Path, image: &Path) {
    let expected = raw_dump(image);
    let read_only = OpenOptions::new(Format::Qcow2).open(image).expect("opens");
    assert_same(&dump(&read_only), &expected, "full dump");
    read_only.close().expect("closes");

    let opened = open(image);
    let mut mirror = expected;
    let mut numbers = Numbers::new(42);
    for _ in 0..600 {
        random_operation(&opened, &mut mirror, &mut numbers);
    }
    concurrent_writes(&opened, &mut mirror);
    assert_same(&dump(&opened), &mirror, "dump after operations");
    opened.close().expect("closes");
    let reopened = OpenOptions::new(Format::Qcow2).open(image).expect("opens");
    assert_same(&dump(&reopened), &mirror, "dump after reopening");
    reopened.close().expect("closes");

    qemu_img(&["check", "-q", "-f", "qcow2", text(image)]);
    let raw = dir.join("mirror.raw");
    std::fs::write(&raw, &mirror).expect("writes the mirror");
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(image),
        text(&raw),
    ]);
}
