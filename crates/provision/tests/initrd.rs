//! Injected files as cpio, initramfs-tools and every packer's own program read them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use cenote_provision::initrd::{Injected, Position, archive, inject};
use common::{ok, run, text};

fn files() -> Vec<Injected> {
    vec![
        Injected::new(
            "preseed.cfg",
            b"d-i debian-installer/locale string C\n".to_vec(),
        )
        .unwrap(),
        Injected::new("/etc/run.sh", b"#!/bin/sh\n".to_vec())
            .unwrap()
            .mode(0o755),
    ]
}

#[test]
fn cpio_lists_names_modes_and_owners() {
    let bytes = archive(&files()).unwrap();
    assert_eq!(
        bytes,
        archive(&files()).unwrap(),
        "the same bytes each time"
    );
    let listed = ok("cpio", "cpio", &["-t", "-v", "-n", "--quiet"], &bytes);
    let listed = String::from_utf8(listed).unwrap();
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let shown: Vec<(&str, &str, &str, &str)> = rows
        .iter()
        .map(|row| (row[0], row[2], row[3], *row.last().unwrap()))
        .collect();
    assert_eq!(
        shown,
        [
            ("drwxr-xr-x", "0", "0", "etc"),
            ("-rwxr-xr-x", "0", "0", "etc/run.sh"),
            ("-rw-------", "0", "0", "preseed.cfg"),
        ]
    );
}

/// An installer's initrd: a plain early archive, then the main one packed by `program`.
fn initrd(program: Option<(&str, &str, &[&str])>) -> Vec<u8> {
    let early = Injected::new("kernel/x86/microcode/GenuineIntel.bin", vec![7; 1000]).unwrap();
    let main = Injected::new("init", b"#!/bin/sh\nexec true\n".to_vec()).unwrap();
    let main = archive(&[main.mode(0o755)]).unwrap();
    let mut bytes = archive(&[early]).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(match program {
        Some((program, package, arguments)) => ok(program, package, arguments, &main),
        None => main,
    });
    bytes
}

/// What follows each kind of packing is an archive at an offset that four divides.
#[test]
fn ours_follows_each_kind_of_packing() {
    let packers: [Option<(&str, &str, &[&str])>; 4] = [
        None,
        Some(("gzip", "gzip", &["-nc"])),
        Some(("xz", "xz-utils", &["-c", "--check=crc32"])),
        Some(("zstd", "zstd", &["-c", "-q"])),
    ];
    for packer in packers {
        let (bytes, position) = inject(&initrd(packer), &files()).unwrap();
        assert_eq!(position, Position::After);
        let start = find_ours(&bytes).unwrap();
        assert_eq!(start % 4, 0);
        let listed = ok("cpio", "cpio", &["-t", "--quiet"], &bytes[start..]);
        assert_eq!(listed, b"etc\netc/run.sh\npreseed.cfg\n", "{packer:?}");
    }
}

/// Before LZ4, the whole is what initramfs-tools read as well.
#[test]
fn initramfs_tools_list_what_stands_before_lz4() {
    let packed = initrd(Some(("lz4", "lz4", &["-l", "-c", "-q"])));
    let (bytes, position) = inject(&packed, &files()).unwrap();
    assert_eq!(position, Position::Before);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd");
    fs::write(&path, &bytes).unwrap();
    let listed = ok("lsinitramfs", "initramfs-tools-core", &[text(&path)], b"");
    let listed = String::from_utf8(listed).unwrap();
    for name in [
        "etc/run.sh",
        "preseed.cfg",
        "init",
        "kernel/x86/microcode/GenuineIntel.bin",
    ] {
        assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
    }
}

fn find_ours(bytes: &[u8]) -> Option<usize> {
    let ours = archive(&files()).unwrap();
    bytes.windows(ours.len()).position(|window| window == ours)
}

/// gzip reads the compressed part and stops where our archive starts.
#[test]
fn the_installers_archive_is_untouched() {
    let packed = ok(
        "gzip",
        "gzip",
        &["-nc"],
        b"an archive, as far as gzip knows",
    );
    let (bytes, _) = inject(&packed, &files()).unwrap();
    assert!(bytes.starts_with(&packed));
    let output = run("gzip", "gzip", &["-dc"], &bytes);
    assert_eq!(output.stdout, b"an archive, as far as gzip knows");
}
