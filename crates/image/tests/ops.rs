//! Operations on chains, each result judged by qemu-img.

#![allow(clippy::unwrap_used)]

mod tools;

use std::path::{Path, PathBuf};

use cenote_image::ops::{self, Comparison, CopyOptions};
use cenote_image::{BackingSpec, Format, Image, OpenOptions};
use tools::{Numbers, create, directory, qemu_check, qemu_img, qemu_io, raw_dump, text};

/// Options of the layers that the chains are built of.
const KINDS: [&str; 7] = [
    "",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=4k,lazy_refcounts=on",
    "cluster_size=16k,extended_l2=on",
    "compat=0.10",
    "cluster_size=2M,refcount_bits=64",
];

fn open(path: &Path) -> Image {
    OpenOptions::new(Format::Qcow2).open(path).unwrap()
}

fn open_writable(path: &Path) -> Image {
    OpenOptions::new(Format::Qcow2)
        .writable(true)
        .open(path)
        .unwrap()
}

fn assert_clean(path: &Path) {
    let report = qemu_check(path).unwrap();
    for field in ["corruptions", "leaks", "check-errors"] {
        let count = report[field].as_u64().unwrap_or(0);
        assert_eq!(count, 0, "{field} of {}: {report}", path.display());
    }
}

/// Random writes, zeroes and discards by QEMU.
fn scribble(path: &Path, size: u64, numbers: &mut Numbers, count: u64) {
    let commands: Vec<String> = (0..count)
        .map(|_| {
            let start = numbers.below(size / 512) * 512;
            let most = (size - start).min(200 << 10) / 512;
            let length = (1 + numbers.below(most)) * 512;
            match numbers.below(8) {
                0 => format!("write -z {start} {length}"),
                1 => format!("write -z -u {start} {length}"),
                2 => format!("discard {start} {length}"),
                _ => format!("write -P {} {start} {length}", 1 + numbers.below(255)),
            }
        })
        .collect();
    qemu_io(path, &commands);
}

/// A chain of four, top first, of kinds and sizes that differ.
fn chain(directory: &Path, numbers: &mut Numbers) -> Vec<PathBuf> {
    let mut layers: Vec<PathBuf> = Vec::new();
    for number in 0..4 {
        let path = directory.join(format!("layer{number}.qcow2"));
        let kind = KINDS[numbers.below(KINDS.len() as u64) as usize];
        let size = (2 << 20) + numbers.below(1500) * 512;
        match layers.first() {
            None => create(&path, kind, &size.to_string()),
            Some(below) => {
                let mut arguments = vec!["create", "-q", "-f", "qcow2"];
                if !kind.is_empty() {
                    arguments.extend(["-o", kind]);
                }
                let size = size.to_string();
                arguments.extend(["-b", text(below), "-F", "qcow2", text(&path), &size]);
                qemu_img(&arguments);
            }
        }
        scribble(&path, size, numbers, 25);
        layers.insert(0, path);
    }
    layers
}

fn spec(path: &Path) -> BackingSpec {
    BackingSpec {
        path: text(path).to_owned(),
        format: Format::Qcow2,
    }
}

#[test]
fn commit_into_any_lower_layer_keeps_the_content() {
    for seed in 0..12 {
        let mut numbers = Numbers::new(seed);
        let directory = directory();
        let layers = chain(directory.path(), &mut numbers);
        let before = raw_dump(&layers[0]);
        let depth = 1 + seed as u32 % 3;
        let top = OpenOptions::new(Format::Qcow2)
            .writable_layer(depth)
            .open(&layers[0])
            .unwrap();
        let report = ops::commit(&top, depth, &()).unwrap();
        assert!(report.written > 0);
        top.close().unwrap();

        let base = &layers[depth as usize];
        assert_clean(base);
        let mut committed = raw_dump(base);
        assert!(committed.len() >= before.len());
        committed.truncate(before.len());
        assert!(
            committed == before,
            "seed {seed}: the base differs from what was committed"
        );
        assert!(
            raw_dump(&layers[0]) == before,
            "seed {seed}: the top changed"
        );
    }
}

#[test]
fn rebase_keeps_the_content_on_a_layer_of_the_chain_and_on_a_strange_image() {
    for seed in 0..12 {
        let mut numbers = Numbers::new(100 + seed);
        let directory = directory();
        let layers = chain(directory.path(), &mut numbers);
        let before = raw_dump(&layers[0]);
        let target = match seed % 3 {
            0 => layers[2].clone(),
            1 => layers[3].clone(),
            _ => {
                let path = directory.path().join("strange.qcow2");
                create(&path, "cluster_size=8k", "2500k");
                scribble(&path, 2500 << 10, &mut numbers, 20);
                path
            }
        };
        let overlay = open_writable(&layers[0]);
        ops::rebase(&overlay, &open(&target), &spec(&target), &()).unwrap();
        overlay.close().unwrap();

        assert_clean(&layers[0]);
        let info = qemu_img(&["info", "--output=json", text(&layers[0])]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["backing-filename"], text(&target));
        assert_eq!(info["backing-filename-format"], "qcow2");
        assert!(raw_dump(&layers[0]) == before, "seed {seed}");
    }
}

#[test]
fn flatten_needs_no_other_layer_afterwards() {
    for seed in 0..8 {
        let mut numbers = Numbers::new(200 + seed);
        let directory = directory();
        let layers = chain(directory.path(), &mut numbers);
        let before = raw_dump(&layers[0]);
        let overlay = open_writable(&layers[0]);
        ops::flatten(&overlay, &()).unwrap();
        overlay.close().unwrap();
        for below in &layers[1..] {
            std::fs::remove_file(below).unwrap();
        }
        assert_clean(&layers[0]);
        assert!(raw_dump(&layers[0]) == before, "seed {seed}");
    }
}

#[test]
fn unsafe_rebase_changes_the_name_only() {
    let directory = directory();
    let mut numbers = Numbers::new(7);
    let layers = chain(directory.path(), &mut numbers);
    let before = raw_dump(&layers[0]);
    let moved = directory
        .path()
        .join("a name longer than the one before it.qcow2");
    std::fs::rename(&layers[1], &moved).unwrap();
    assert!(OpenOptions::new(Format::Qcow2).open(&layers[0]).is_err());
    let alone = cenote_image::BackingPolicy {
        open: false,
        ..Default::default()
    };
    let overlay = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .backing(alone)
        .open(&layers[0])
        .unwrap();
    ops::rebase_unsafe(&overlay, Some(&spec(&moved))).unwrap();
    overlay.close().unwrap();
    assert!(raw_dump(&layers[0]) == before);
}

#[test]
fn conversions_read_the_same_everywhere() {
    let mut numbers = Numbers::new(300);
    let directory = directory();
    let layers = chain(directory.path(), &mut numbers);
    let before = raw_dump(&layers[0]);
    let source = open(&layers[0]);
    for (number, kind) in KINDS.iter().enumerate() {
        for compress in [false, true] {
            let path = directory
                .path()
                .join(format!("copy{number}{compress}.qcow2"));
            create(&path, kind, &before.len().to_string());
            let options = CopyOptions {
                compress,
                ..CopyOptions::default()
            };
            let opening = OpenOptions::new(Format::Qcow2);
            let target = ops::open_target(&path, &opening, &options).unwrap();
            ops::copy(&source, &target, &options, &()).unwrap();
            target.close().unwrap();
            assert_clean(&path);
            assert!(raw_dump(&path) == before, "{kind} compress {compress}");
        }
    }
    let raw = directory.path().join("copy.raw");
    let options = CopyOptions::default();
    let opening = OpenOptions::new(Format::Raw);
    for direct in [false, true] {
        let file = std::fs::File::create(&raw).unwrap();
        file.set_len(before.len() as u64).unwrap();
        let target = match direct {
            false => opening.clone().writable(true).open(&raw),
            true => ops::open_target(&raw, &opening, &options),
        };
        let target = target.unwrap();
        ops::copy(&source, &target, &options, &()).unwrap();
        target.close().unwrap();
        assert!(std::fs::read(&raw).unwrap() == before, "direct {direct}");
    }
}

#[test]
fn compare_finds_the_first_byte_that_differs() {
    let mut numbers = Numbers::new(400);
    let directory = directory();
    let layers = chain(directory.path(), &mut numbers);
    let raw = directory.path().join("same.raw");
    let mut bytes = raw_dump(&layers[0]);
    let image = open(&layers[0]);
    let compare = |bytes: &[u8]| {
        std::fs::write(&raw, bytes).unwrap();
        let other = OpenOptions::new(Format::Raw).open(&raw).unwrap();
        let forth = ops::compare(&image, &other, &()).unwrap();
        assert_eq!(forth, ops::compare(&other, &image, &()).unwrap());
        forth
    };
    assert_eq!(compare(&bytes), Comparison::Identical);
    let length = bytes.len();
    bytes.extend(vec![0; 5120]);
    assert_eq!(compare(&bytes), Comparison::SizesDiffer);
    bytes[length + 700] = 1;
    assert_eq!(compare(&bytes), Comparison::DifferAt(length as u64 + 700));
    for _ in 0..20 {
        let at = numbers.below(length as u64) as usize;
        let old = bytes[at];
        bytes[at] ^= 0x5a;
        assert_eq!(compare(&bytes), Comparison::DifferAt(at as u64));
        bytes[at] = old;
    }
}

#[test]
fn resizing_shows_zeroes_and_nothing_else() {
    for seed in 0..14 {
        let mut numbers = Numbers::new(500 + seed);
        let directory = directory();
        let layers = chain(directory.path(), &mut numbers);
        let mut mirror = raw_dump(&layers[0]);
        for _ in 0..6 {
            let size = (numbers.below(8000) + 1) * 512;
            let image = open_writable(&layers[0]);
            if (size as usize) < mirror.len() {
                ops::resize(&image, size, false).unwrap_err();
            }
            ops::resize(&image, size, true).unwrap();
            assert_eq!(image.size(), size);
            mirror.resize(size as usize, 0);
            let data = numbers.bytes(512);
            let at = numbers.below(size / 512) * 512;
            image.write_at(&data, at).unwrap();
            mirror[at as usize..at as usize + 512].copy_from_slice(&data);
            image.close().unwrap();
            assert_clean(&layers[0]);
            assert!(raw_dump(&layers[0]) == mirror, "seed {seed} size {size}");
        }
    }
}

#[test]
fn a_disk_beyond_its_first_l1_table_grows() {
    let directory = directory();
    let path = directory.path().join("image.qcow2");
    create(&path, "cluster_size=512", "1M");
    let image = open_writable(&path);
    image.write_at(&[7; 512], 512).unwrap();
    ops::resize(&image, 20 << 30, false).unwrap();
    image.write_at(&[9; 512], (20 << 30) - 512).unwrap();
    image.close().unwrap();
    assert_clean(&path);
    let image = open(&path);
    let mut sector = [0; 512];
    image.read_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [7; 512]);
    image.read_at(&mut sector, (20 << 30) - 512).unwrap();
    assert_eq!(sector, [9; 512]);
    drop(image);
    let error = ops::resize(&open_writable(&path), 1 << 45, false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("more than an image with clusters of 512 bytes"),
        "{error}"
    );
}

#[test]
fn snapshots_come_and_go_as_qemu_sees_them() {
    for (number, kind) in KINDS.iter().enumerate() {
        if kind.contains("refcount_bits=1") {
            continue;
        }
        let mut numbers = Numbers::new(600 + number as u64);
        let directory = directory();
        let path = directory.path().join("image.qcow2");
        let size = 3 << 20;
        create(&path, kind, &size.to_string());
        let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
        let mut made = 0;
        for _ in 0..24 {
            scribble(&path, size, &mut numbers, 4);
            let before = raw_dump(&path);
            let pick = numbers.below(kept.len().max(1) as u64) as usize;
            let by_qemu = numbers.below(3) == 0;
            match numbers.below(5) {
                0 | 1 => {
                    made += 1;
                    let name = format!("snap{made}");
                    if by_qemu {
                        qemu_img(&["snapshot", "-c", &name, text(&path)]);
                    } else {
                        open_writable(&path).create_snapshot(&name).unwrap();
                    }
                    kept.push((name, before.clone()));
                }
                2 | 3 if !kept.is_empty() => {
                    let (name, content) = kept[pick].clone();
                    if by_qemu {
                        qemu_img(&["snapshot", "-a", &name, text(&path)]);
                    } else {
                        open_writable(&path).apply_snapshot(&name).unwrap();
                    }
                    assert!(raw_dump(&path) == content, "{kind}: {name} reverted to");
                }
                4 if !kept.is_empty() => {
                    let (name, _) = kept.remove(pick);
                    if by_qemu {
                        qemu_img(&["snapshot", "-d", &name, text(&path)]);
                    } else {
                        open_writable(&path).delete_snapshot(&name).unwrap();
                    }
                    assert!(raw_dump(&path) == before, "{kind}: {name} deleted");
                }
                _ => {}
            }
            assert_clean(&path);
        }
        let listed: Vec<String> = open(&path)
            .snapshots()
            .unwrap()
            .into_iter()
            .map(|snapshot| snapshot.name)
            .collect();
        let names: Vec<String> = kept.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(listed, names);
        for (name, content) in &kept {
            let image = open_writable(&path);
            image.apply_snapshot(name).unwrap();
            let mut bytes = vec![0; content.len()];
            image.read_at(&mut bytes, 0).unwrap();
            assert!(bytes == *content, "{kind}: {name}");
            image.close().unwrap();
            assert_clean(&path);
        }
    }
}

#[test]
fn compressed_clusters_survive_snapshots() {
    let directory = directory();
    let (raw, path) = (
        directory.path().join("a.raw"),
        directory.path().join("a.qcow2"),
    );
    let data: Vec<u8> = (0..1_u32 << 20).map(|at| (at / 100 % 7) as u8).collect();
    std::fs::write(&raw, &data).unwrap();
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        text(&raw),
        text(&path),
    ]);
    let image = open_writable(&path);
    image.create_snapshot("first").unwrap();
    image.write_at(&vec![0x55; 300_000], 1000).unwrap();
    image.create_snapshot("second").unwrap();
    image.apply_snapshot("first").unwrap();
    image.delete_snapshot("second").unwrap();
    image.close().unwrap();
    assert_clean(&path);
    assert!(raw_dump(&path) == data);
    let image = open_writable(&path);
    image.delete_snapshot("first").unwrap();
    image.close().unwrap();
    assert_clean(&path);
    assert!(raw_dump(&path) == data);
}

/// The sequence of a well-known loss of data: an internal snapshot, an
/// overlay over the image, then changes below the overlay.
#[test]
fn nothing_changes_below_an_internal_snapshot() {
    let directory = directory();
    let base = directory.path().join("base.qcow2");
    let overlay = directory.path().join("overlay.qcow2");
    create(&base, "", "4M");
    qemu_io(&base, &["write -P 1 0 1M".into()]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&base),
        "-F",
        "qcow2",
        text(&overlay),
    ]);
    qemu_io(&overlay, &["write -P 2 64k 64k".into()]);
    qemu_img(&["snapshot", "-c", "inside", text(&overlay)]);
    qemu_io(&overlay, &["write -P 3 128k 64k".into()]);
    let before = std::fs::read(&base).unwrap();

    let top = OpenOptions::new(Format::Qcow2)
        .writable_layer(1)
        .open(&overlay)
        .unwrap();
    let error = ops::commit(&top, 1, &()).unwrap_err().to_string();
    assert!(error.contains("'inside'"), "{error}");
    drop(top);
    let image = open_writable(&overlay);
    let error = ops::flatten(&image, &()).unwrap_err().to_string();
    assert!(error.contains("'inside'"), "{error}");
    drop(image);
    assert!(std::fs::read(&base).unwrap() == before);
}

#[test]
fn a_snapshot_that_does_not_fit_the_reference_counts_is_refused_whole() {
    let directory = directory();
    let path = directory.path().join("image.qcow2");
    create(&path, "refcount_bits=1", "4M");
    qemu_io(&path, &["write -P 1 0 1M".into()]);
    let before = std::fs::read(&path).unwrap();
    let image = open_writable(&path);
    let error = image.create_snapshot("one").unwrap_err().to_string();
    assert!(error.contains("refcount_bits=16"), "{error}");
    image.write_at(&[9; 512], 0).unwrap();
    image.close().unwrap();
    assert_clean(&path);
    assert_eq!(raw_dump(&path)[0], 9);
    assert!(before.len() <= std::fs::read(&path).unwrap().len());
}
