//! The published Rust engines beside ours: why neither writes users' images
//! (docs/decisions/own-image-engine.md), reproduced.
//!
//! Each test states what the peer does today. When a new release of the peer
//! makes one fail, the decision may be looked at again.

#![allow(clippy::unwrap_used)]

use std::iter;
use std::path::Path;
use std::process::{Command, Output};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::qcow2_default_params;
use qcow2_rs::utils::qcow2_setup_dev_sync;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (package qemu-utils): {error}"))
}

fn must(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn qemu_io(image: &Path, command: &str) -> String {
    must(
        "qemu-io",
        &["-f", "qcow2", "-c", command, image.to_str().unwrap()],
    )
}

fn create(image: &Path, options: &[&str]) {
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    arguments.extend(options);
    arguments.extend([image.to_str().unwrap(), "8M"]);
    must("qemu-img", &arguments);
}

/// Writes with qcow2-rs at each offset, as its own documentation has it, and
/// flushes.
fn qcow2_rs_write(image: &Path, byte: u8, offsets: impl Iterator<Item = u64>, length: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let params = qcow2_default_params!(false, false);
        let device = qcow2_setup_dev_sync(image, &params).unwrap();
        device.qcow2_prep_io().await.unwrap();
        for offset in offsets {
            device.write_at(&vec![byte; length], offset).await.unwrap();
        }
        device.flush_meta().await.unwrap();
    });
}

fn imago_open(image: &Path, write: bool) -> std::io::Result<FormatAccess<File>> {
    let image = Qcow2::<File>::builder_path(image)
        .write(write)
        .open(PermissiveImplicitOpenGate::default())?;
    Ok(FormatAccess::new(image))
}

#[test]
fn qcow2_rs_changes_an_internal_snapshot_when_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.qcow2");
    create(&image, &[]);
    qemu_io(&image, "write -P 0x11 0 1M");
    must(
        "qemu-img",
        &["snapshot", "-c", "before", image.to_str().unwrap()],
    );

    qcow2_rs_write(&image, 0x22, iter::once(0), 65536);

    must(
        "qemu-img",
        &["snapshot", "-a", "before", image.to_str().unwrap()],
    );
    let read = run(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "read -P 0x11 0 64k",
            image.to_str().unwrap(),
        ],
    );
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(
        text.contains("Pattern verification failed"),
        "qcow2-rs kept the snapshot: {text}"
    );
}

#[test]
fn qcow2_rs_frees_the_neighbour_of_a_compressed_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("source.raw");
    let image = directory.path().join("image.qcow2");
    let path = image.to_str().unwrap();
    // Compressible, but not to nothing: several share a host cluster, and in
    // small clusters one in eight ends just where a host cluster does.
    let mut state = 1_u32;
    let data: Vec<u8> = (0..2 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 30 == 0 {
                (state >> 16) as u8
            } else {
                0
            }
        })
        .collect();
    std::fs::write(&raw, data).unwrap();
    let raw = raw.to_str().unwrap();
    must(
        "qemu-img",
        &[
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "cluster_size=4k",
            raw,
            path,
        ],
    );
    must("qemu-img", &["check", path]);

    qcow2_rs_write(&image, 0x33, (0..256).map(|cluster| cluster * 8192), 4096);

    let check = run("qemu-img", &["check", path]);
    let text = String::from_utf8_lossy(&check.stdout).into_owned()
        + &String::from_utf8_lossy(&check.stderr);
    assert_eq!(
        check.status.code(),
        Some(2),
        "qemu-img finds no damage: {text}"
    );
    assert!(text.contains("errors were found"), "{text}");
}

#[test]
fn imago_and_qcow2_rs_take_encrypted_clusters_for_plain_ones() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.qcow2");
    let path = image.to_str().unwrap();
    must(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "--object",
            "secret,id=s,data=abc",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            path,
            "8M",
        ],
    );
    let plain = vec![0x44_u8; 65536];
    let access = imago_open(&image, true).expect("imago opens a LUKS image");
    access.write(&plain[..], 0).unwrap();
    access.flush().unwrap();
    drop(access);
    qcow2_rs_write(&image, 0x55, iter::once(65536), 65536);

    let stored = std::fs::read(&image).unwrap();
    for pattern in [0x44_u8, 0x55] {
        let needle = vec![pattern; 4096];
        assert!(
            stored
                .windows(4096)
                .step_by(512)
                .any(|window| window == needle),
            "{pattern:#x} did not reach the encrypted image in plain"
        );
    }
    // Ours says no, by name.
    let refusal = cenote_image::OpenOptions::new(cenote_image::Format::Qcow2)
        .open(&image)
        .expect_err("an encrypted image is refused")
        .to_string();
    assert!(refusal.contains("LUKS"), "{refusal}");
}

/// What both peers read of an image, to its end.
fn read_by_peers(image: &Path, size: usize) -> [Vec<u8>; 2] {
    let mut by_imago = vec![0; size];
    imago_open(image, false)
        .unwrap()
        .read(&mut by_imago[..], 0)
        .unwrap();
    let mut by_qcow2_rs = qcow2_rs::helpers::Qcow2IoBuf::<u8>::new(size);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let params = qcow2_default_params!(true, false);
        let device = qcow2_setup_dev_sync(image, &params).unwrap();
        device.qcow2_prep_io().await.unwrap();
        device.read_at(&mut by_qcow2_rs, 0).await.unwrap();
    });
    [by_imago, by_qcow2_rs.to_vec()]
}

#[test]
fn both_read_what_ours_writes() {
    use cenote_image::create::{CreateOptions, create};
    use cenote_image::{Format, OpenOptions};
    let directory = tempfile::tempdir().unwrap();
    let size: usize = 8 << 20;
    for cluster_size in [4096, 65536] {
        let base = directory.path().join(format!("base{cluster_size}.qcow2"));
        let overlay = directory
            .path()
            .join(format!("overlay{cluster_size}.qcow2"));
        let options = CreateOptions {
            cluster_size,
            ..CreateOptions::new(Format::Qcow2, size as u64)
        };
        create(&base, &options).unwrap();
        let options = CreateOptions {
            cluster_size,
            ..CreateOptions::overlay(base.to_str().unwrap(), Format::Qcow2)
        };
        let mut mirror = vec![0; size];
        let mut write = |image: &Path, seed: usize| {
            let image = OpenOptions::new(Format::Qcow2)
                .writable(true)
                .open(image)
                .unwrap();
            for step in 0..40_usize {
                let at = (step * 7919 + seed * 104_729) * 512 % (size - 100_000) / 512 * 512;
                let length = 512 + step * 2048;
                let data = vec![(step + seed) as u8 + 1; length];
                image.write_at(&data, at as u64).unwrap();
                mirror[at..at + length].copy_from_slice(&data);
            }
            image.close().unwrap();
        };
        write(&base, 1);
        create(&overlay, &options).unwrap();
        write(&overlay, 2);
        for (peer, read) in ["imago", "qcow2-rs"]
            .iter()
            .zip(read_by_peers(&overlay, size))
        {
            assert!(
                read == mirror,
                "{peer} reads otherwise, clusters of {cluster_size}"
            );
        }
    }
}
