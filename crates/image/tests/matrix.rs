//! The kinds of image worth having in a test matrix, each made by qemu-img:
//! full dump, 600 random operations against a mirror in memory, 16 writers at
//! once; then `qemu-img check` and `qemu-img compare` have the last word.

#![allow(clippy::unwrap_used)]

mod exercise;
mod tools;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cenote_image::storage::{FileStorage, Storage};
use cenote_image::{CacheMode, Error, Format, Image, OpenOptions};
use exercise::{assert_same, dump, exercise, open, random_operation};
use tools::{Numbers, qemu_img, qemu_io, raw_dump, text};

const MIB: u64 = 1 << 20;

/// Creates an image with some data in it.
fn make(dir: &Path, name: &str, options: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    let size_text = size.to_string();
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.extend([text(&path), &size_text]);
    qemu_img(&arguments);
    populate(&path, size, 1);
    path
}

fn populate(path: &Path, size: u64, seed: u64) {
    let mut numbers = Numbers::new(seed);
    let commands: Vec<String> = (0..24)
        .map(|_| {
            let offset = numbers.below(size - 70_000) / 512 * 512;
            let length = 512 + numbers.below(120) * 512;
            let pattern = 1 + numbers.below(255);
            match numbers.below(8) {
                0 => format!("write -z {offset} {length}"),
                1 => format!("discard {} 65536", offset / 65536 * 65536),
                _ => format!("write -P {pattern} {offset} {length}"),
            }
        })
        .collect();
    qemu_io(path, &commands);
}

/// A file for `qemu-img convert` with data, runs of zeroes and holes.
fn make_raw(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    let storage = FileStorage::create_new(&path, CacheMode::Writeback).expect("creates");
    storage.set_length(size).expect("sets the length");
    let mut numbers = Numbers::new(size);
    for _ in 0..20 {
        let offset = numbers.below(size - 100_000);
        // Compressible, but not trivially.
        let length = 1000 + numbers.below(90_000) as usize;
        let data: Vec<u8> = numbers.bytes(length).iter().map(|b| b & 0x0f).collect();
        storage.write_at(&data, offset).expect("writes");
    }
    path
}

fn overlay(dir: &Path, name: &str, backing: &str, format: &str, options: &str) -> PathBuf {
    let path = dir.join(name);
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-b", backing, "-F", format];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.push(text(&path));
    qemu_img(&arguments);
    path
}

fn with_options(options: &str, size: u64) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", options, size);
    exercise(dir.path(), &image);
}

macro_rules! kinds {
    ($($name:ident: $options:expr, $size:expr;)*) => {
        $(#[test]
        fn $name() {
            with_options($options, $size);
        })*
    };
}

kinds! {
    plain: "", 16 * MIB;
    clusters_of_512_bytes: "cluster_size=512", 8 * MIB;
    clusters_of_4_kib: "cluster_size=4096", 8 * MIB;
    clusters_of_2_mib: "cluster_size=2M", 48 * MIB;
    refcount_bits_1: "refcount_bits=1", 16 * MIB;
    refcount_bits_2: "refcount_bits=2", 16 * MIB;
    refcount_bits_4: "refcount_bits=4", 16 * MIB;
    refcount_bits_8: "refcount_bits=8", 16 * MIB;
    refcount_bits_32: "refcount_bits=32", 16 * MIB;
    refcount_bits_64: "refcount_bits=64", 16 * MIB;
    refcount_bits_64_in_small_clusters: "refcount_bits=64,cluster_size=512", 8 * MIB;
    version_2: "compat=0.10", 16 * MIB;
    extended_l2: "extended_l2=on", 16 * MIB;
    extended_l2_in_small_clusters: "extended_l2=on,cluster_size=16k", 16 * MIB;
    lazy_refcounts: "lazy_refcounts=on", 16 * MIB;
    odd_size: "", 16 * MIB + 512 * 3;
    odd_size_extended_l2: "extended_l2=on", 10 * MIB + 512;
    preallocated_metadata: "preallocation=metadata", 16 * MIB;
    preallocated_falloc: "preallocation=falloc", 16 * MIB;
    preallocated_full: "preallocation=full", 16 * MIB;
    zstd_option: "compression_type=zstd", 16 * MIB;
}

#[test]
fn external_data_file() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let data = dir.path().join("image.data");
    let options = format!("data_file={}", text(&data));
    let image = make(dir.path(), "image.qcow2", &options, 16 * MIB);
    exercise(dir.path(), &image);
}

#[test]
fn external_raw_data_file() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let data = dir.path().join("image.data");
    let options = format!("data_file={},data_file_raw=on", text(&data));
    let image = make(dir.path(), "image.qcow2", &options, 16 * MIB);
    exercise(dir.path(), &image);
    // The data file alone is the disk.
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "raw",
        "-F",
        "qcow2",
        text(&data),
        text(&image),
    ]);
}

#[test]
fn external_data_file_with_extended_l2() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let data = dir.path().join("image.data");
    let options = format!("data_file={},extended_l2=on", text(&data));
    let image = make(dir.path(), "image.qcow2", &options, 16 * MIB);
    exercise(dir.path(), &image);
}

/// One thread writes a new subcluster and half of the next, which is there
/// already; another overwrites the other half in place. Neither may undo what
/// the other wrote.
#[test]
fn writers_of_one_subcluster_do_not_undo_each_other() {
    const SUB: u64 = 2048;
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "extended_l2=on", 16 * MIB);
    let image = exercise::open(&image);
    image
        .write_at(&[9; 2 * SUB as usize], 0)
        .expect("allocates");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let data = vec![1; (SUB + SUB / 2) as usize];
            for _ in 0..3000 {
                image.write_zeroes(0, SUB, true).expect("zeroes");
                image.write_at(&data, 0).expect("writes");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut number = 0_u8;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            number = number.wrapping_add(1);
            let mut data = [number; SUB as usize / 2];
            let offset = SUB + SUB / 2;
            image.write_at(&data, offset).expect("overwrites");
            for _ in 0..4 {
                image.read_at(&mut data, offset).expect("reads");
                assert!(
                    data.iter().all(|byte| *byte == number),
                    "{number} was undone"
                );
            }
        }
    });
    image.close().expect("closes");
}

/// Runs the programme on an overlay and proves that what is below stays.
fn exercise_overlay(dir: &Path, image: &Path, below: &[&Path]) {
    let before: Vec<Vec<u8>> = below
        .iter()
        .map(|p| std::fs::read(p).expect("reads"))
        .collect();
    exercise(dir, image);
    for (path, before) in below.iter().zip(before) {
        let after = std::fs::read(path).expect("reads");
        assert!(before == after, "{} was changed", path.display());
    }
}

#[test]
fn version_2_with_backing_file() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let base = make(dir.path(), "base.qcow2", "compat=0.10", 12 * MIB);
    let image = overlay(dir.path(), "top.qcow2", text(&base), "qcow2", "compat=0.10");
    populate(&image, 12 * MIB, 2);
    exercise_overlay(dir.path(), &image, &[&base]);
}

#[test]
fn version_2_with_raw_backing_file() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let base = make_raw(dir.path(), "base.raw", 12 * MIB);
    let image = overlay(dir.path(), "top.qcow2", text(&base), "raw", "compat=0.10");
    exercise_overlay(dir.path(), &image, &[&base]);
}

#[test]
fn chain_of_three_over_raw() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let base = make_raw(dir.path(), "base.raw", 12 * MIB);
    let middle = overlay(
        dir.path(),
        "middle.qcow2",
        text(&base),
        "raw",
        "cluster_size=4k",
    );
    populate(&middle, 12 * MIB, 2);
    let top = overlay(dir.path(), "top.qcow2", text(&middle), "qcow2", "");
    populate(&top, 12 * MIB, 3);
    exercise_overlay(dir.path(), &top, &[&base, &middle]);
}

#[test]
fn chain_of_three_over_compressed() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let raw = make_raw(dir.path(), "source.raw", 12 * MIB);
    let base = dir.path().join("base.qcow2");
    qemu_img(&[
        "convert",
        "-q",
        "-c",
        "-O",
        "qcow2",
        text(&raw),
        text(&base),
    ]);
    let middle = overlay(dir.path(), "middle.qcow2", text(&base), "qcow2", "");
    populate(&middle, 12 * MIB, 2);
    let top = overlay(
        dir.path(),
        "top.qcow2",
        text(&middle),
        "qcow2",
        "extended_l2=on",
    );
    populate(&top, 12 * MIB, 3);
    exercise_overlay(dir.path(), &top, &[&base, &middle]);
}

#[test]
fn chain_with_relative_names() {
    let dir = tempfile::tempdir().expect("temporary folder");
    std::fs::create_dir(dir.path().join("sub")).expect("makes a folder");
    let base = make(dir.path(), "base.qcow2", "", 12 * MIB);
    let middle = overlay(
        &dir.path().join("sub"),
        "middle.qcow2",
        "../base.qcow2",
        "qcow2",
        "",
    );
    let top = overlay(dir.path(), "top.qcow2", "sub/middle.qcow2", "qcow2", "");
    exercise_overlay(dir.path(), &top, &[&base, &middle]);
}

#[test]
fn chain_with_json_names() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let base = make(dir.path(), "base.qcow2", "", 12 * MIB);
    let name = format!(
        r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}"#,
        text(&base)
    );
    let middle = overlay(dir.path(), "middle.qcow2", &name, "qcow2", "");
    let flat = format!(
        r#"json:{{"driver":"qcow2","file.driver":"file","file.filename":"{}"}}"#,
        text(&middle)
    );
    let top = overlay(dir.path(), "top.qcow2", &flat, "qcow2", "");
    exercise_overlay(dir.path(), &top, &[&base, &middle]);
}

fn shorter_backing(base_size: u64, top_size: u64, base_format: &str) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let base = match base_format {
        "raw" => make_raw(dir.path(), "base", base_size),
        _ => make(dir.path(), "base", "", base_size),
    };
    let top = overlay(dir.path(), "top.qcow2", text(&base), base_format, "");
    let size = top_size.to_string();
    let mut arguments = vec!["resize", "-q", "-f", "qcow2", text(&top), &size];
    if top_size < base_size {
        arguments.insert(1, "--shrink");
    }
    qemu_img(&arguments);
    exercise_overlay(dir.path(), &top, &[&base]);
}

#[test]
fn backing_shorter_and_aligned() {
    shorter_backing(4 * MIB, 12 * MIB, "qcow2");
}

#[test]
fn backing_shorter_and_not_aligned() {
    shorter_backing(4 * MIB + 1536, 12 * MIB + 512, "qcow2");
}

#[test]
fn raw_backing_shorter_and_not_aligned() {
    shorter_backing(4 * MIB + 700, 12 * MIB + 512, "raw");
}

#[test]
fn backing_longer() {
    shorter_backing(12 * MIB, 8 * MIB + 512, "qcow2");
}

fn converted(options: &[&str]) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let raw = make_raw(dir.path(), "source.raw", 16 * MIB + 512);
    let image = dir.path().join("image.qcow2");
    let mut arguments = vec!["convert", "-q", "-f", "raw", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([text(&raw), text(&image)]);
    qemu_img(&arguments);
    exercise(dir.path(), &image);
}

#[test]
fn zlib_compressed() {
    converted(&["-c"]);
}

#[test]
fn zlib_compressed_in_small_clusters() {
    converted(&["-c", "-o", "cluster_size=4k"]);
}

#[test]
fn zlib_compressed_in_large_clusters() {
    converted(&["-c", "-o", "cluster_size=2M"]);
}

#[test]
fn zlib_compressed_with_narrow_refcounts() {
    converted(&["-c", "-o", "refcount_bits=1"]);
}

#[test]
fn zlib_compressed_version_2() {
    converted(&["-c", "-o", "compat=0.10"]);
}

#[test]
fn zstd_compressed() {
    converted(&["-c", "-o", "compression_type=zstd"]);
}

#[test]
fn compressed_with_extended_l2() {
    converted(&["-c", "-o", "extended_l2=on"]);
}

#[test]
fn sparse_converted() {
    converted(&["-S", "4k"]);
}

#[test]
fn zero_clusters_with_preallocation() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(
        dir.path(),
        "image.qcow2",
        "preallocation=metadata",
        16 * MIB,
    );
    let commands: Vec<String> = (0..20)
        .map(|i| format!("write -z {} 131072", i * 700_000 / 65536 * 65536))
        .collect();
    qemu_io(&image, &commands);
    exercise(dir.path(), &image);
}

#[test]
fn internal_snapshots() {
    for options in ["", "cluster_size=512", "extended_l2=on", "compat=0.10"] {
        let dir = tempfile::tempdir().expect("temporary folder");
        let image = make(dir.path(), "image.qcow2", options, 8 * MIB);
        qemu_img(&["snapshot", "-c", "one", text(&image)]);
        populate(&image, 8 * MIB, 5);
        qemu_img(&["snapshot", "-c", "two", text(&image)]);
        let snapshot = |name: &str, file: &str| {
            let out = dir.path().join(file);
            qemu_img(&[
                "convert",
                "-q",
                "-l",
                name,
                "-O",
                "raw",
                text(&image),
                text(&out),
            ]);
            std::fs::read(out).expect("reads")
        };
        let before = [snapshot("one", "1a"), snapshot("two", "2a")];
        exercise(dir.path(), &image);
        assert_same(&snapshot("one", "1b"), &before[0], "first snapshot");
        assert_same(&snapshot("two", "2b"), &before[1], "second snapshot");
        qemu_img(&["snapshot", "-d", "one", text(&image)]);
        qemu_img(&["check", "-q", text(&image)]);
    }
}

#[test]
fn discarded() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "", 16 * MIB);
    qemu_io(
        &image,
        &["discard 0 8M".to_owned(), "discard 10M 3M".to_owned()],
    );
    exercise(dir.path(), &image);
}

#[test]
fn resized() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "cluster_size=4k", 8 * MIB);
    qemu_img(&["resize", "-q", "-f", "qcow2", text(&image), "24M"]);
    populate(&image, 24 * MIB, 3);
    qemu_img(&[
        "resize",
        "-q",
        "-f",
        "qcow2",
        "--shrink",
        text(&image),
        "13M",
    ]);
    exercise(dir.path(), &image);
}

#[test]
fn bitmap_is_marked_out_of_date() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "", 16 * MIB);
    qemu_img(&["bitmap", "--add", text(&image), "enabled"]);
    qemu_img(&["bitmap", "--add", "--disable", text(&image), "frozen"]);
    let flags = || {
        let info = qemu_img(&["info", "--output=json", text(&image)]);
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        let bitmaps = &info["format-specific"]["data"]["bitmaps"];
        let of = |name: &str| {
            bitmaps
                .as_array()
                .and_then(|all| all.iter().find(|b| b["name"] == name))
                .map(|b| b["flags"].to_string())
                .expect("the bitmap is there")
        };
        (of("enabled"), of("frozen"))
    };
    let (enabled, frozen) = flags();
    assert!(!enabled.contains("in-use") && !frozen.contains("in-use"));
    // Opening for writing alone changes nothing.
    open(&image).close().expect("closes");
    assert_eq!(flags(), (enabled, frozen.clone()));
    exercise(dir.path(), &image);
    let (enabled, still) = flags();
    assert!(enabled.contains("in-use"), "{enabled}");
    assert_eq!(still, frozen);
}

/// Sets bits in the incompatible features field.
fn set_incompatible(image: &Path, bits: u8) {
    let storage = FileStorage::open(image, true, CacheMode::Writeback).expect("opens");
    let mut byte = [0u8];
    storage.read_at(&mut byte, 79).expect("reads");
    storage.write_at(&[byte[0] | bits], 79).expect("writes");
}

#[test]
fn dirty_image_is_repaired_when_opened_for_writing() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "lazy_refcounts=on", 16 * MIB);
    // What lazy refcounts leave behind after a crash: every count beyond the
    // metadata's own is lost.
    let storage = FileStorage::open(&image, true, CacheMode::Writeback).expect("opens");
    let mut block = vec![0u8; 65536];
    storage.read_at(&mut block, 2 * 65536).expect("reads");
    block[2 * 5..].fill(0);
    storage.write_at(&block, 2 * 65536).expect("writes");
    drop(storage);
    set_incompatible(&image, 1);
    exercise(dir.path(), &image);
    let info = OpenOptions::new(Format::Qcow2)
        .open(&image)
        .expect("opens")
        .info()
        .expect("tells");
    assert!(!info.dirty_flag);
}

#[test]
fn corrupt_image_is_read_only() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "", 16 * MIB);
    let expected = raw_dump(&image);
    set_incompatible(&image, 2);
    let refused = OpenOptions::new(Format::Qcow2).writable(true).open(&image);
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    let reader = OpenOptions::new(Format::Qcow2).open(&image).expect("opens");
    assert_same(&dump(&reader), &expected, "dump");
}

#[test]
fn luks_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = dir.path().join("image.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=key,data=secret",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
        text(&image),
        "4M",
    ]);
    let refused = OpenOptions::new(Format::Qcow2)
        .open(&image)
        .expect_err("is refused");
    assert!(refused.to_string().contains("LUKS"), "{refused}");
}

#[test]
fn unknown_incompatible_feature_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let image = make(dir.path(), "image.qcow2", "", 4 * MIB);
    set_incompatible(&image, 0x80);
    let refused = OpenOptions::new(Format::Qcow2)
        .open(&image)
        .expect_err("is refused");
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    assert!(refused.to_string().contains("bit 7"), "{refused}");
}

#[test]
fn direct_io() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary folder");
    let base = make(dir.path(), "base.qcow2", "cluster_size=512", 8 * MIB);
    let image = overlay(dir.path(), "top.qcow2", text(&base), "qcow2", "");
    let expected = raw_dump(&image);
    let opened = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .cache(CacheMode::None)
        .open(&image)
        .expect("opens with O_DIRECT");
    let mut mirror = expected;
    let mut numbers = Numbers::new(1);
    for _ in 0..150 {
        random_operation(&opened, &mut mirror, &mut numbers);
    }
    assert_same(&dump(&opened), &mirror, "dump");
    opened.close().expect("closes");
    qemu_img(&["check", "-q", text(&image)]);
    let raw = dir.path().join("mirror.raw");
    std::fs::write(&raw, &mirror).expect("writes");
    qemu_img(&[
        "compare",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(&image),
        text(&raw),
    ]);
}

#[test]
fn an_open_image_is_shared_between_threads() {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Image>();
    is_shared::<Arc<dyn Storage>>();
}
