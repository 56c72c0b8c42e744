//! The submission queue against a mirror in memory, judged by QEMU.

#![allow(clippy::unwrap_used)]

mod exercise;
mod tools;

use std::collections::HashMap;
use std::path::Path;

use cenote_image::create::{CreateOptions, create};
use cenote_image::queue::{Completion, Queue};
use cenote_image::{CacheMode, Error, Format, Image, OpenOptions};
use exercise::{assert_same, dump};
use tools::{Numbers, directory, qemu_img, qemu_io, raw_dump, text};

const MIB: u64 = 1 << 20;

fn open(path: &Path, cache: CacheMode) -> Image {
    OpenOptions::new(Format::Qcow2)
        .writable(true)
        .cache(cache)
        .open(path)
        .unwrap()
}

/// Keeps many requests in flight, none of which overlap, and mirrors them.
fn churn(queue: &mut Queue, mirror: &mut [u8], seed: u64, requests: usize, block: u64) {
    let mut numbers = Numbers::new(seed);
    let mut busy: Vec<(u64, u64, u64)> = Vec::new();
    let mut reads: HashMap<u64, (usize, usize)> = HashMap::new();
    let mut tag = 0;
    let mut started = 0;
    while started < requests || queue.in_flight() > 0 {
        while started < requests && queue.has_room() {
            let size = mirror.len() as u64;
            let longest = if numbers.below(8) == 0 { 256 } else { 6 };
            let length = (1 + numbers.below(longest)) * block;
            let offset = numbers.below((size - length) / block) * block;
            if busy
                .iter()
                .any(|(_, a, b)| *a < offset + length && offset < *b)
            {
                if queue.in_flight() > 0 {
                    break;
                }
                continue;
            }
            tag += 1;
            started += 1;
            let range = offset as usize..(offset + length) as usize;
            let mut buffer = queue.buffer(length as usize);
            match numbers.below(12) {
                0..=5 => {
                    let data = numbers.bytes(length as usize);
                    buffer.as_mut().copy_from_slice(&data);
                    mirror[range].copy_from_slice(&data);
                    queue.write(tag, buffer, offset).unwrap();
                }
                6 => {
                    mirror[range].fill(0);
                    queue
                        .write_zeroes(tag, offset, length, numbers.below(2) == 0)
                        .unwrap();
                }
                7 => queue.flush(tag).unwrap(),
                _ => {
                    buffer.as_mut().fill(0xaa);
                    reads.insert(tag, (range.start, range.end));
                    queue.read(tag, buffer, offset).unwrap();
                }
            }
            busy.push((tag, offset, offset + length));
        }
        let done: Vec<Completion> = queue.wait().unwrap().collect();
        for completion in done {
            completion.result.unwrap();
            busy.retain(|(t, _, _)| *t != completion.tag);
            if let Some((start, end)) = reads.remove(&completion.tag) {
                assert_same(
                    &completion.buffer.unwrap(),
                    &mirror[start..end],
                    "queued read",
                );
            }
        }
    }
}

fn judge(image: &Path, dir: &Path, mirror: &[u8]) {
    qemu_img(&["check", "-q", "-f", "qcow2", text(image)]);
    let raw = dir.join("mirror.raw");
    std::fs::write(&raw, mirror).unwrap();
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

fn exercise_queue(image: &Path, dir: &Path) {
    for (cache, seed, block) in [
        (CacheMode::Writeback, 1, 512),
        (CacheMode::None, 2, 4096),
        (CacheMode::None, 3, 512),
        (CacheMode::DirectSync, 5, 4096),
    ] {
        let mut mirror = raw_dump(image);
        let opened = open(image, cache);
        let mut queue = opened.queue(32).unwrap();
        churn(&mut queue, &mut mirror, seed, 400, block);
        drop(queue);
        assert_same(&dump(&opened), &mirror, "dump");
        opened.close().unwrap();
        judge(image, dir, &mirror);
    }
}

#[test]
fn plain() {
    for options in [
        "",
        "cluster_size=512",
        "cluster_size=4k",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10",
        "cluster_size=2M",
    ] {
        let dir = directory();
        let image = dir.path().join("image.qcow2");
        tools::create(&image, options, "12M");
        qemu_io(&image, &["write -P 1 1M 2M".to_owned()]);
        exercise_queue(&image, dir.path());
    }
}

#[test]
fn overlays() {
    for (format, size) in [("qcow2", "8M"), ("raw", "7777777")] {
        let dir = directory();
        let base = dir.path().join("base");
        qemu_img(&["create", "-q", "-f", format, text(&base), size]);
        if format == "qcow2" {
            qemu_io(&base, &["write -P 1 1M 2M".to_owned()]);
        } else {
            let data = Numbers::new(5).bytes(7_777_777);
            std::fs::write(&base, data).unwrap();
        }
        let image = dir.path().join("top.qcow2");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&base),
            "-F",
            format,
            text(&image),
            "12M",
        ]);
        exercise_queue(&image, dir.path());
    }
}

#[test]
fn compressed_and_snapshots() {
    let dir = directory();
    let raw = dir.path().join("source.raw");
    let data: Vec<u8> = Numbers::new(9)
        .bytes(8 << 20)
        .iter()
        .map(|b| b & 7)
        .collect();
    std::fs::write(&raw, data).unwrap();
    let image = dir.path().join("image.qcow2");
    qemu_img(&["convert", "-c", "-O", "qcow2", text(&raw), text(&image)]);
    qemu_io(&image, &["write -P 1 1M 2M".to_owned()]);
    qemu_img(&["snapshot", "-c", "one", text(&image)]);
    exercise_queue(&image, dir.path());
}

#[test]
fn raw_image() {
    let dir = directory();
    let image = dir.path().join("image.raw");
    create(&image, &CreateOptions::new(Format::Raw, 5 * MIB)).unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let mut mirror = std::fs::read(&image).unwrap();
        let opened = OpenOptions::new(Format::Raw)
            .writable(true)
            .cache(cache)
            .open(&image)
            .unwrap();
        let mut queue = opened.queue(8).unwrap();
        churn(&mut queue, &mut mirror, 4, 300, 512);
        drop(queue);
        opened.close().unwrap();
        assert_same(&std::fs::read(&image).unwrap(), &mirror, "file");
    }
}

/// Several queues on several threads write side by side in the same clusters.
#[test]
fn many_queues() {
    let dir = directory();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let base = dir.path().join("base.qcow2");
        tools::create(&base, "", "8M");
        qemu_io(&base, &["write -P 5 0 8M".to_owned()]);
        let image = dir.path().join("image.qcow2");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&base),
            "-F",
            "qcow2",
            text(&image),
        ]);
        let opened = open(&image, cache);
        std::thread::scope(|scope| {
            for thread in 0..6u64 {
                let opened = opened.clone();
                scope.spawn(move || {
                    let mut queue = opened.queue(16).unwrap();
                    for block in (0..2048u64).filter(|b| b % 6 == thread) {
                        while !queue.has_room() {
                            queue.wait().unwrap().for_each(|c| c.result.unwrap());
                        }
                        let mut buffer = queue.buffer(4096);
                        buffer.as_mut().fill(block as u8);
                        queue.write(block, buffer, block * 4096).unwrap();
                        if block % 97 == 0 && queue.has_room() {
                            queue.flush(u64::MAX).unwrap();
                        }
                    }
                    while queue.in_flight() > 0 {
                        queue.wait().unwrap().for_each(|c| c.result.unwrap());
                    }
                });
            }
        });
        opened.close().unwrap();
        let mirror: Vec<u8> = (0..8 << 20).map(|i: usize| (i / 4096) as u8).collect();
        judge(&image, dir.path(), &mirror);
        std::fs::remove_file(&image).unwrap();
        std::fs::remove_file(&base).unwrap();
    }
}

/// A queue outlives its image: it goes on with an overlay on what was closed.
#[test]
fn from_an_image_to_its_overlay() {
    let dir = directory();
    let base = dir.path().join("base.qcow2");
    tools::create(&base, "", "12M");
    let first = open(&base, CacheMode::Writeback);
    let mut queue = first.queue(32).unwrap();
    let mut mirror = vec![0; 12 * MIB as usize];
    churn(&mut queue, &mut mirror, 1, 300, 512);
    let buffer = queue.buffer(4096);
    queue.read(1, buffer, 0).unwrap();
    assert!(matches!(queue.detach(), Err(Error::Invalid { .. })));
    while queue.in_flight() > 0 {
        assert!(queue.wait().unwrap().all(|done| done.result.is_ok()));
    }
    queue.detach().unwrap();
    first.close().unwrap();
    judge(&base, dir.path(), &mirror);
    let buffer = queue.buffer(512);
    let refused = queue.read(2, buffer, 0);
    assert!(matches!(refused, Err(Error::OutOfRange { .. })));
    let top = dir.path().join("top.qcow2");
    let backing = ["-F", "qcow2", "-b", text(&base), text(&top)];
    qemu_img(&[&["create", "-q", "-f", "qcow2"][..], &backing].concat());
    let second = open(&top, CacheMode::None);
    queue.attach(&second).unwrap();
    churn(&mut queue, &mut mirror, 2, 300, 4096);
    drop(queue);
    second.close().unwrap();
    judge(&top, dir.path(), &mirror);
}

#[test]
fn refusals() {
    let dir = directory();
    let image = dir.path().join("image.qcow2");
    create(&image, &CreateOptions::new(Format::Qcow2, MIB)).unwrap();
    let opened = OpenOptions::new(Format::Qcow2).open(&image).unwrap();
    assert!(matches!(opened.queue(0), Err(Error::Invalid { .. })));
    let mut queue = opened.queue(1).unwrap();
    let buffer = queue.buffer(4096);
    assert!(matches!(
        queue.write(1, buffer, 0),
        Err(Error::ReadOnly { .. })
    ));
    let buffer = queue.buffer(4096);
    assert!(matches!(
        queue.read(1, buffer, MIB - 1),
        Err(Error::OutOfRange { .. })
    ));
    let buffer = queue.buffer(4096);
    queue.read(1, buffer, 0).unwrap();
    let buffer = queue.buffer(4096);
    assert!(matches!(
        queue.read(2, buffer, 0),
        Err(Error::Invalid { .. })
    ));
    assert_eq!(queue.wait().unwrap().count(), 1);
    assert_eq!(queue.in_flight(), 0);
}

/// A structure change waits for a queue's requests, which only the queue's
/// thread collects: neither may wait for the other.
#[test]
fn snapshots_beside_a_busy_queue() {
    let dir = directory();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let image = dir.path().join("image.qcow2");
        tools::create(&image, "", "8M");
        let opened = open(&image, cache);
        std::thread::scope(|scope| {
            let other = opened.clone();
            let snapshots = scope.spawn(move || {
                for i in 0..8 {
                    other.create_snapshot(&format!("s{i}")).unwrap();
                }
            });
            let mut queue = opened.queue(16).unwrap();
            let mut block = 0u64;
            while !snapshots.is_finished() || block < 4096 {
                while queue.has_room() {
                    let mut buffer = queue.buffer(4096);
                    buffer.as_mut().fill((block % 2048) as u8);
                    queue.write(block, buffer, block % 2048 * 4096).unwrap();
                    block += 1;
                }
                queue.wait().unwrap().for_each(|c| c.result.unwrap());
            }
            while queue.in_flight() > 0 {
                queue.wait().unwrap().for_each(|c| c.result.unwrap());
            }
            snapshots.join().unwrap();
        });
        opened.close().unwrap();
        let mirror: Vec<u8> = (0..8 << 20).map(|i: usize| (i / 4096) as u8).collect();
        judge(&image, dir.path(), &mirror);
        std::fs::remove_file(&image).unwrap();
    }
}
