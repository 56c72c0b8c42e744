//! Check and repair against `qemu-img check`.

#![allow(clippy::unwrap_used)]

mod tools;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cenote_image::check::{Repair, check, repair, repair_storage};
use cenote_image::qcow2::entry::OFFSET_MASK;
use cenote_image::qcow2::header::{Header, incompatible};
use cenote_image::storage::testing::Recorder;
use cenote_image::storage::{FileStorage, MemoryStorage, Storage};
use cenote_image::{CacheMode, Error};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tools::{copy, create, directory, qemu_check, qemu_img, qemu_io, text, try_qemu_img};

/// Options and virtual size of the images that everything here runs on.
const KINDS: &[(&str, &str)] = &[
    ("", "16M"),
    ("cluster_size=512", "1M"),
    ("cluster_size=4k,refcount_bits=1", "4M"),
    ("cluster_size=4k,refcount_bits=2", "4M"),
    ("cluster_size=4k,refcount_bits=64", "4M"),
    ("cluster_size=2M", "64M"),
    ("compat=0.10", "16M"),
    ("lazy_refcounts=on,cluster_size=8k", "8M"),
    ("extended_l2=on,cluster_size=16k", "8M"),
    ("extended_l2=on", "16M"),
    ("preallocation=metadata,cluster_size=4k", "4M"),
    ("data_file=DATA", "8M"),
    ("compression_type=zstd", "16M"),
];

/// An image with data, zeroes, holes, compressed clusters, and where it can
/// have them, internal snapshots and bitmaps.
fn filled(dir: &Path, index: usize) -> PathBuf {
    let (options, size) = KINDS[index];
    let path = dir.join(format!("{index}.qcow2"));
    let data = dir.join(format!("{index}.data"));
    create(&path, &options.replace("DATA", text(&data)), size);
    let external = options.contains("data_file");
    let v3 = !options.contains("0.10");
    let mut rng = SmallRng::seed_from_u64(index as u64);
    let mut step = |count: usize, compressed: bool| {
        let commands: Vec<String> = (0..count)
            .map(|_| {
                let at = rng.random_range(0..900) * 1024;
                let length = rng.random_range(1..40) * 1024;
                match rng.random_range(0..8) {
                    0 => format!("discard {at} {length}"),
                    1 if v3 => format!("write -z {at} {length}"),
                    2 if v3 => format!("write -z -u {at} {length}"),
                    _ => format!("write -P {} {at} {length}", rng.random_range(1..255)),
                }
            })
            .collect();
        qemu_io(&path, &commands);
        if compressed {
            // Whole clusters that are not allocated yet.
            let at = 2 << 20;
            let _ = try_qemu_io(&path, &format!("write -c -P 7 {at} 2M"));
        }
    };
    // Compressed clusters share host clusters: narrow refcounts would overflow.
    step(20, !external && !options.contains("refcount_bits=2"));
    if external {
        return path;
    }
    if !options.contains("refcount_bits=1") {
        qemu_img(&["snapshot", "-c", "first", text(&path)]);
        step(10, false);
    }
    if !options.contains("refcount_bits") {
        qemu_img(&["snapshot", "-c", "second", text(&path)]);
        step(10, false);
    }
    if v3 {
        qemu_img(&["bitmap", "--add", "-f", "qcow2", text(&path), "bitmap0"]);
        step(5, false);
    }
    path
}

fn try_qemu_io(path: &Path, command: &str) -> std::io::Result<std::process::Output> {
    std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", command, text(path)])
        .output()
}

fn ours(path: &Path) -> serde_json::Value {
    serde_json::to_value(check(path).unwrap()).unwrap()
}

/// Whether `qemu-img check` finds nothing but leaks; and whether no leaks.
fn qemu_verdict(path: &Path) -> (bool, bool) {
    match qemu_check(path) {
        None => (false, false),
        Some(report) => {
            let count = |field: &str| report[field].as_u64().unwrap_or(0);
            (
                count("corruptions") + count("check-errors") == 0,
                count("leaks") == 0,
            )
        }
    }
}

fn our_verdict(path: &Path) -> (bool, bool) {
    match check(path) {
        Err(_) => (false, false),
        Ok(report) => (report.is_consistent(), report.leaks == 0),
    }
}

#[test]
fn every_field_equals_qemus() {
    let dir = directory();
    for (index, given) in KINDS.iter().enumerate() {
        let path = filled(dir.path(), index);
        let (theirs, mut ours) = (qemu_check(&path).unwrap(), ours(&path));
        assert_eq!(ours["findings"], serde_json::json!([]), "{:?}", given);
        ours.as_object_mut().unwrap().remove("findings");
        assert_eq!(ours, theirs, "{:?}", given);
    }
}

/// Offsets of words of metadata that a poke can hit: L1, L2, refcount table
/// and blocks.
fn metadata_words(path: &Path) -> Vec<u64> {
    let storage = FileStorage::open(path, false, CacheMode::Writeback).unwrap();
    let header = Header::read(&storage, path).unwrap();
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        storage.read_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes)
    };
    let mut words = Vec::new();
    let mut table = |offset: u64, length: u64, used_only: bool| {
        for at in (offset..offset + length).step_by(8) {
            if !used_only || word(at) != 0 {
                words.push(at);
            }
        }
    };
    let size = header.cluster_size();
    table(header.l1_offset, u64::from(header.l1_entries) * 8, true);
    for index in 0..u64::from(header.l1_entries) {
        let l2 = word(header.l1_offset + index * 8) & OFFSET_MASK;
        if l2 != 0 {
            table(l2, size, true);
        }
    }
    table(header.refcount_table_offset, 64, true);
    let block = word(header.refcount_table_offset);
    table(block, 512, true);
    words
}

#[test]
fn damage_is_found_where_qemu_finds_it_and_repair_satisfies_both() {
    let dir = directory();
    let (mut bad, mut leaking, mut repaired) = (0, 0, 0);
    for (index, given) in KINDS.iter().enumerate() {
        let path = filled(dir.path(), index);
        let words = metadata_words(&path);
        let mut rng = SmallRng::seed_from_u64(77 + index as u64);
        for round in 0..12 {
            let poked = copy(&path, "poked");
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&poked)
                .unwrap();
            let at = words[rng.random_range(0..words.len())];
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            match round % 4 {
                // Any bit, a neighbour's value, a whole word, a low byte.
                0 => bytes[rng.random_range(0..8)] ^= 1 << rng.random_range(0..8),
                1 => {
                    let other = words[rng.random_range(0..words.len())];
                    file.read_exact_at(&mut bytes, other).unwrap();
                }
                2 => bytes = [0; 8],
                _ => bytes[rng.random_range(0..2) + 5] ^= rng.random_range(1..=255),
            }
            file.write_all_at(&bytes, at).unwrap();
            let context = format!("{:?} round {round} offset {at:#x}: {bytes:02x?}", given);
            let (theirs, ours) = (qemu_verdict(&poked), our_verdict(&poked));
            // We find more (overlaps that refcounts agree to), never less.
            assert!(
                theirs.0 || !ours.0,
                "{context}: QEMU finds corruption, we do not"
            );
            assert!(
                theirs.1 || !ours.1 || !ours.0,
                "{context}: QEMU finds leaks, we do not"
            );
            bad += u32::from(!ours.0);
            leaking += u32::from(!ours.1);
            let Ok(report) = repair(&poked, Repair::All) else {
                continue;
            };
            assert_eq!(
                our_verdict(&poked),
                (report.is_consistent(), report.leaks == 0)
            );
            if report.is_consistent() {
                repaired += 1;
                let theirs = qemu_verdict(&poked);
                assert_eq!(theirs, (true, report.leaks == 0), "{context}: after repair");
            }
        }
    }
    println!("{bad} corrupt and {leaking} leaking images, {repaired} repaired");
    assert!(bad > 50 && leaking > 20 && repaired > 50);
}

#[test]
fn damaged_refcounts_and_flags_are_repaired_without_touching_data() {
    let dir = directory();
    for (index, given) in KINDS.iter().enumerate() {
        let path = filled(dir.path(), index);
        let storage = FileStorage::open(&path, true, CacheMode::Writeback).unwrap();
        let header = Header::read(&storage, &path).unwrap();
        drop(storage);
        let mut rng = SmallRng::seed_from_u64(index as u64);
        for kind in ["table entry", "whole table", "block", "flags"] {
            let poked = copy(&path, "poked");
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(&poked)
                .unwrap();
            let word = |offset: u64| {
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, offset).unwrap();
                u64::from_be_bytes(bytes)
            };
            let table = header.refcount_table_offset;
            match kind {
                "table entry" => file.write_all_at(&[0; 8], table).unwrap(),
                "whole table" => {
                    let noise: Vec<u8> = (0..512).map(|_| rng.random()).collect();
                    file.write_all_at(&noise, table).unwrap();
                }
                "block" => {
                    let noise: Vec<u8> = (0..512).map(|_| rng.random()).collect();
                    file.write_all_at(&noise, word(table)).unwrap();
                }
                _ => {
                    for entry in 0..u64::from(header.l1_entries) {
                        let at = header.l1_offset + entry * 8;
                        file.write_all_at(&(word(at) & !(1 << 63)).to_be_bytes(), at)
                            .unwrap();
                    }
                }
            }
            assert_ne!(qemu_verdict(&poked), (true, true));
            let report = repair(&poked, Repair::All).unwrap();
            assert!(report.is_clean(), "{:?} {kind}: {report:#?}", given);
            assert!(report.corruptions_fixed + report.leaks_fixed > 0);
            assert_eq!(qemu_verdict(&poked), (true, true), "{:?} {kind}", given);
            let format = ["-f", "qcow2", "-F", "qcow2"];
            qemu_img(&[&["compare"], &format[..], &[text(&path), text(&poked)]].concat());
            let list = |path: &Path| qemu_img(&["snapshot", "-l", text(path)]);
            assert_eq!(list(&path), list(&poked));
        }
    }
}

#[test]
fn leaks_are_given_back_and_nothing_else_changes() {
    let dir = directory();
    let path = filled(dir.path(), 0);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut table = [0; 8];
    let header = Header::read(
        &FileStorage::open(&path, false, CacheMode::Writeback).unwrap(),
        &path,
    )
    .unwrap();
    file.read_exact_at(&mut table, header.refcount_table_offset)
        .unwrap();
    let block = u64::from_be_bytes(table);
    let end = file.metadata().unwrap().len();
    file.set_len(end + (3 << 16)).unwrap();
    for cluster in 0..3 {
        let at = block + (end.div_ceil(1 << 16) + cluster) * 2;
        file.write_all_at(&2u16.to_be_bytes(), at).unwrap();
    }
    let report = repair(&path, Repair::Leaks).unwrap();
    assert_eq!(
        (report.leaks, report.leaks_fixed, report.corruptions_fixed),
        (0, 3, 0)
    );
    assert_eq!(qemu_verdict(&path), (true, true));
    // A refcount too low is no leak.
    file.write_all_at(&[0, 0], block + 2).unwrap();
    let report = repair(&path, Repair::Leaks).unwrap();
    assert!(report.corruptions > 0 && report.corruptions_fixed == 0);
}

#[test]
fn an_unreadable_table_keeps_every_cluster() {
    let dir = directory();
    let path = filled(dir.path(), 0);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let header = Header::read(
        &FileStorage::open(&path, false, CacheMode::Writeback).unwrap(),
        &path,
    )
    .unwrap();
    // The only L2 table is out of reach, and the refcounts are gone.
    let mut entry = [0; 8];
    file.read_exact_at(&mut entry, header.l1_offset).unwrap();
    file.write_all_at(&(1u64 << 50).to_be_bytes(), header.l1_offset)
        .unwrap();
    file.write_all_at(&[0; 8], header.refcount_table_offset)
        .unwrap();
    let report = repair(&path, Repair::All).unwrap();
    assert!(report.corruptions > 0);
    // Writing now must not overwrite what the lost table refers to.
    let storage = FileStorage::open(&path, true, CacheMode::Writeback).unwrap();
    let l2 = u64::from_be_bytes(entry) & OFFSET_MASK;
    storage.write_at(&entry, header.l1_offset).unwrap();
    drop(storage);
    let report = check(&path).unwrap();
    let of_l2 = format!("cluster {} has", l2 >> 16);
    assert!(
        report
            .findings
            .iter()
            .all(|finding| !finding.what.starts_with(&of_l2))
    );
    assert!(
        report
            .findings
            .iter()
            .all(|finding| !finding.what.contains("refcount 0 and"))
    );
}

#[test]
fn marks_go_when_nothing_is_left() {
    let dir = directory();
    let path = filled(dir.path(), 0);
    let storage = FileStorage::open(&path, true, CacheMode::Writeback).unwrap();
    let mut header = Header::read(&storage, &path).unwrap();
    header.incompatible |= incompatible::DIRTY | incompatible::CORRUPT;
    storage.write_at(&header.fixed_bytes(), 0).unwrap();
    assert!(
        repair_storage(&storage, &path, Repair::Leaks)
            .unwrap()
            .is_clean()
    );
    assert_ne!(Header::read(&storage, &path).unwrap().incompatible, 0);
    assert!(
        repair_storage(&storage, &path, Repair::All)
            .unwrap()
            .is_clean()
    );
    assert_eq!(Header::read(&storage, &path).unwrap().incompatible, 0);
    drop(storage);
    assert_eq!(qemu_verdict(&path), (true, true));
}

#[test]
fn a_repair_may_die_at_any_write() {
    let dir = directory();
    let mut states = 0;
    for index in [0, 1, 6, 8] {
        let path = filled(dir.path(), index);
        let header = Header::read(
            &FileStorage::open(&path, false, CacheMode::Writeback).unwrap(),
            &path,
        )
        .unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = header.refcount_table_offset as usize;
        let block = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let plain = MemoryStorage::from_bytes(&bytes);
        // Wrong counts for a quarter of the clusters; for another image no
        // block at all.
        for (number, byte) in bytes[block..block + 256].iter_mut().enumerate() {
            if number % 8 == 1 {
                *byte = (number / 8 % 3) as u8;
            }
        }
        let mut without = bytes.clone();
        without[at..at + 8].fill(0);
        for damaged in [bytes, without] {
            let recorder = Recorder::new();
            let file = recorder.storage(MemoryStorage::from_bytes(&damaged));
            let name = Path::new("recorded");
            assert!(
                repair_storage(&*file, name, Repair::All)
                    .unwrap()
                    .is_clean()
            );
            let mut replay = recorder.replay();
            loop {
                let mut found = replay.killed();
                for tear in 0..replay.tears().min(8) {
                    found.extend(replay.torn(tear));
                }
                for seed in 0..8 {
                    found.extend(replay.power_lost(seed));
                }
                for state in found {
                    let report = repair_storage(&state, name, Repair::All).unwrap();
                    assert!(
                        report.is_clean(),
                        "{:?} at {}",
                        KINDS[index],
                        replay.position()
                    );
                    for (mine, theirs) in data(&state).iter().zip(data(&plain)) {
                        assert!(*mine == theirs);
                    }
                    states += 1;
                }
                if !replay.advance() {
                    break;
                }
            }
        }
    }
    println!("{states} interrupted repairs");
    assert!(states > 200);
}

/// The active mapping: every L2 entry but for its COPIED flag.
fn data(storage: &dyn Storage) -> Vec<u64> {
    let path = Path::new("state");
    let header = Header::read(storage, path).unwrap();
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        storage.read_at(&mut bytes, offset).unwrap();
        u64::from_be_bytes(bytes) & !(1 << 63)
    };
    let mut entries = Vec::new();
    for index in 0..u64::from(header.l1_entries) {
        let l2 = word(header.l1_offset + index * 8);
        entries.push(l2);
        if l2 != 0 {
            entries.extend((0..header.cluster_size() / 8).map(|at| word(l2 + at * 8)));
        }
    }
    entries
}

#[test]
fn an_image_in_use_is_refused() {
    let dir = directory();
    let path = filled(dir.path(), 0);
    let storage = FileStorage::open(&path, true, CacheMode::Writeback).unwrap();
    let lock =
        cenote_image::lock::FileLock::acquire(&storage, &path, cenote_image::LockPolicy::Shared)
            .unwrap();
    check(&path).unwrap();
    assert!(matches!(
        repair(&path, Repair::All),
        Err(Error::InUse { .. })
    ));
    drop(lock);
    repair(&path, Repair::All).unwrap();
    assert!(try_qemu_img(&["check", text(&path)]).status.success());
}
