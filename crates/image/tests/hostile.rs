//! Images that lie: each gets an error that names the place, and damage is
//! never made worse.

#![allow(clippy::unwrap_used)]

mod tools;

use std::path::Path;
use std::sync::Arc;

use cenote_image::create::{CreateOptions, create_in};
use cenote_image::qcow2::header::{Header, incompatible};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{Error, Format, Image, OpenOptions};
use tools::Numbers;

const KIB: u64 = 1024;

fn image(cluster_size: u64, extended_l2: bool) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let options = CreateOptions {
        cluster_size,
        extended_l2,
        ..CreateOptions::new(Format::Qcow2, 512 * KIB)
    };
    create_in(&storage, Path::new("image"), &options).unwrap();
    let filled = Arc::new(storage.fork());
    let opened = open(filled.clone(), true).unwrap();
    for at in 0..8 {
        opened.write_at(&[7; 9000], at * 60_000).unwrap();
    }
    opened.close().unwrap();
    filled.fork()
}

fn open(storage: Arc<MemoryStorage>, writable: bool) -> Result<Image, Error> {
    OpenOptions::new(Format::Qcow2)
        .writable(writable)
        .open_storage(storage, "image")
}

fn patched(storage: &MemoryStorage, offset: u64, bytes: &[u8]) -> Arc<MemoryStorage> {
    let copy = storage.fork();
    copy.write_at(bytes, offset).unwrap();
    Arc::new(copy)
}

fn header(storage: &MemoryStorage) -> Header {
    Header::read(storage, Path::new("image")).unwrap()
}

#[test]
fn header_fields_are_checked_before_anything_is_allocated() {
    let good = image(4096, false);
    let cases: &[(u64, &[u8], &str)] = &[
        (20, &8u32.to_be_bytes(), "cluster_bits"),
        (20, &40u32.to_be_bytes(), "cluster_bits"),
        (24, &u64::MAX.to_be_bytes(), "too small for a disk"),
        (24, &(1u64 << 50).to_be_bytes(), "too small for a disk"),
        (36, &0u32.to_be_bytes(), "too small for a disk"),
        (36, &u32::MAX.to_be_bytes(), "L1 table"),
        (40, &3u64.to_be_bytes(), "not aligned"),
        (40, &(1u64 << 40).to_be_bytes(), "beyond the end"),
        (40, &(u64::MAX - 4095).to_be_bytes(), "beyond the end"),
        (40, &0u64.to_be_bytes(), "overlaps the header"),
        (48, &513u64.to_be_bytes(), "not aligned"),
        (48, &(1u64 << 50).to_be_bytes(), "beyond the end"),
        (56, &u32::MAX.to_be_bytes(), "refcount table"),
        (56, &0u32.to_be_bytes(), "no refcount table"),
        (60, &u32::MAX.to_be_bytes(), "snapshots"),
        (96, &7u32.to_be_bytes(), "refcount_order"),
        (100, &8u32.to_be_bytes(), "header_length"),
        (100, &0x7fff_fff8u32.to_be_bytes(), "header_length"),
        (104, &[1], "compression type"),
        (116, &u32::MAX.to_be_bytes(), "header extension"),
    ];
    for (offset, bytes, expected) in cases {
        let refused = open(patched(&good, *offset, bytes), false).unwrap_err();
        assert!(
            matches!(refused, Error::Corrupt { .. }),
            "{offset}: {refused}"
        );
        assert!(
            refused.to_string().contains(expected),
            "{offset}: {refused}"
        );
    }
    for (offset, bytes) in [
        (0u64, &[0u8][..]),
        (4, &[9]),
        (32, &[0, 0, 0, 2]),
        (32, &[0, 0, 0, 1]),
    ] {
        let refused = open(patched(&good, offset, bytes), false).unwrap_err();
        let named = matches!(refused, Error::NotQcow2 { .. } | Error::Unsupported { .. });
        assert!(named, "{refused}");
    }
    let backing = patched(
        &good,
        8,
        &[&3000u64.to_be_bytes()[..], &5000u32.to_be_bytes()].concat(),
    );
    assert!(matches!(open(backing, false), Err(Error::Corrupt { .. })));
}

/// Points the first guest cluster at `target` and writes to it.
fn write_through(target: u64, flags: u64) -> (Result<(), Error>, MemoryStorage, MemoryStorage) {
    let good = image(4096, false);
    let l1 = header(&good).l1_offset;
    let mut entry = [0; 8];
    good.read_at(&mut entry, l1).unwrap();
    let l2 = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    let bad = patched(&good, l2, &(target | flags).to_be_bytes());
    let before = bad.fork();
    let opened = open(bad.clone(), true).unwrap();
    let outcome = opened.write_at(&[9; 100], 0);
    let outcome = outcome.and_then(|()| opened.flush());
    drop(opened);
    (outcome, before, bad.fork())
}

#[test]
fn data_never_lands_on_metadata() {
    let good = image(4096, false);
    let header_now = header(&good);
    let places = [
        header_now.refcount_table_offset,
        header_now.refcount_table_offset + 4096,
        header_now.l1_offset,
    ];
    for place in places {
        let (outcome, before, after) = write_through(place, 1 << 63);
        assert!(
            matches!(outcome, Err(Error::Corrupt { .. })),
            "{place:#x}: {outcome:?}"
        );
        let marked = header(&after);
        assert!(marked.incompatible & incompatible::CORRUPT != 0);
        // Nothing but the corrupt bit was changed.
        let mut old = vec![0; before.length().unwrap() as usize];
        let mut new = old.clone();
        before.read_at(&mut old, 0).unwrap();
        after.read_at(&mut new, 0).unwrap();
        new[79] &= !(incompatible::CORRUPT as u8);
        assert!(old == new, "{place:#x}: the file was changed");
        assert!(open(Arc::new(after), true).is_err());
    }
    let (outcome, _, after) = write_through(0x1234_5600, 1 << 63);
    assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{outcome:?}");
    assert!(header(&after).incompatible & incompatible::CORRUPT != 0);
}

#[test]
fn random_damage_never_panics() {
    let mut numbers = Numbers::new(3);
    let mut refused = 0;
    let kinds = [image(512, false), image(4096, false), image(16384, true)];
    for round in 0..1500u64 {
        let good = &kinds[(round % 3) as usize];
        let length = good.length().unwrap();
        let copy = good.fork();
        let clusters = 1 << header(good).cluster_bits;
        for _ in 0..1 + numbers.below(4) {
            let place = match numbers.below(3) {
                0 => numbers.below(160),
                1 => numbers.below(12 * clusters).min(length),
                _ => numbers.below(length / 8) * 8,
            };
            let bytes = match numbers.below(3) {
                0 => vec![numbers.next() as u8],
                1 => numbers.next().to_be_bytes().to_vec(),
                _ => ((numbers.next() & 0xc000_0000_000f_fe01) | 1 << 63)
                    .to_be_bytes()
                    .to_vec(),
            };
            copy.write_at(&bytes, place).unwrap();
        }
        let copy = Arc::new(copy);
        for writable in [false, true] {
            let opened = match open(copy.clone(), writable) {
                Ok(opened) => opened,
                Err(_) => {
                    refused += 1;
                    continue;
                }
            };
            let size = opened.size().min(600 * KIB);
            let mut buf = vec![0; 30_000];
            for at in (0..size.saturating_sub(30_000)).step_by(30_000) {
                // Errors are fine, panics are not.
                let _ = opened.read_at(&mut buf, at);
                if writable {
                    let _ = opened.write_at(&buf[..10_000], at);
                    let _ = opened.write_zeroes(at, 20_000, at % 7 == 0);
                    let _ = opened.discard(at, 9000);
                }
            }
            let _ = opened.map(0, size);
            let _ = opened.close();
        }
    }
    assert!(refused > 100);
}
