//! File, memory and recorded storage against a plain model.
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cenote_image::storage::testing::{Fault, FaultKind, Operation, Recorder};
use cenote_image::storage::{CacheMode, FileStorage, MemoryStorage, Storage};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const MODES: [CacheMode; 5] = [
    CacheMode::Writeback,
    CacheMode::None,
    CacheMode::Writethrough,
    CacheMode::DirectSync,
    CacheMode::Unsafe,
];

/// A directory on a file system with `O_DIRECT`.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn grow(model: &mut Vec<u8>, end: usize) {
    if model.len() < end {
        model.resize(end, 0);
    }
}

/// Random operations at odd offsets; every result equals a byte vector's.
fn exercise(storage: &dyn Storage, span: usize, fixed_length: bool, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model = vec![0u8; storage.length().unwrap() as usize];
    storage.read_at(&mut model, 0).unwrap();
    for step in 0..400 {
        let unit = [1, 1, 512, 4096][rng.random_range(0..4)];
        let offset = rng.random_range(0..span / unit) * unit;
        let length = (rng.random_range(0..40) * unit).min(span - offset);
        match rng.random_range(0..8) {
            0..3 => {
                let data: Vec<u8> = (0..length).map(|_| rng.random()).collect();
                storage.write_at(&data, offset as u64).unwrap();
                if length > 0 {
                    grow(&mut model, offset + length);
                    model[offset..offset + length].copy_from_slice(&data);
                }
            }
            3 | 4 => {
                let unmap = rng.random();
                storage
                    .write_zeroes_at(offset as u64, length as u64, unmap)
                    .unwrap();
                if length > 0 {
                    grow(&mut model, offset + length);
                    model[offset..offset + length].fill(0);
                }
            }
            5 => {
                storage.discard_at(offset as u64, length as u64).unwrap();
                let end = (offset + length).min(model.len());
                if offset < end {
                    // Zero or as before, per byte.
                    let mut now = vec![0; end - offset];
                    storage.read_at(&mut now, offset as u64).unwrap();
                    for (old, new) in model[offset..end].iter_mut().zip(now) {
                        assert!(new == 0 || new == *old);
                        *old = new;
                    }
                }
            }
            6 if !fixed_length => {
                storage.set_length(offset as u64).unwrap();
                model.resize(offset, 0);
            }
            6 => storage.sync().unwrap(),
            _ => {
                if length > 0 {
                    storage.allocate_at(offset as u64, length as u64).unwrap();
                    grow(&mut model, offset + length);
                }
            }
        }
        assert_eq!(storage.length().unwrap(), model.len() as u64, "step {step}");
        let mut seen = vec![0xaa; model.len() + 700];
        storage.read_at(&mut seen, 0).unwrap();
        assert!(
            seen[..model.len()] == model[..],
            "content differs after step {step}"
        );
        assert!(seen[model.len()..].iter().all(|&byte| byte == 0));
        let mut part = vec![0xaa; length];
        storage.read_at(&mut part, offset as u64).unwrap();
        for (index, byte) in part.iter().enumerate() {
            assert_eq!(*byte, model.get(offset + index).copied().unwrap_or(0));
        }
    }
    storage.sync().unwrap();
}

#[test]
fn every_cache_mode_equals_the_model() {
    let dir = directory();
    for (index, cache) in MODES.into_iter().enumerate() {
        let path = dir.path().join(format!("{index}.raw"));
        let storage = FileStorage::create_new(&path, cache).unwrap();
        exercise(&storage, 200_000, false, 7 + index as u64);
        let mut through_library = vec![0; storage.length().unwrap() as usize];
        storage.read_at(&mut through_library, 0).unwrap();
        assert!(std::fs::read(&path).unwrap() == through_library);
    }
}

#[test]
fn memory_equals_the_model() {
    exercise(&MemoryStorage::new(), 100_000, false, 3);
    let storage = MemoryStorage::from_bytes(&[7; 10_000]);
    let fork = storage.fork();
    storage.write_at(&[1; 4096], 100).unwrap();
    assert!(fork.to_bytes().unwrap() == vec![7; 10_000]);
}

#[test]
fn writers_within_one_block_do_not_undo_each_other() {
    let dir = directory();
    let path = dir.path().join("shared.raw");
    let storage = Arc::new(FileStorage::create_new(&path, CacheMode::None).unwrap());
    storage.write_at(&vec![0; 16384], 0).unwrap();
    // Eight threads own interleaved 100-byte pieces, so that each block has
    // several owners; a ninth overwrites whole blocks that are its own.
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let storage = storage.clone();
            scope.spawn(move || {
                for round in 0..20u8 {
                    for piece in (u64::from(thread)..80).step_by(8) {
                        storage
                            .write_at(&[round ^ thread; 100], piece * 100)
                            .unwrap();
                    }
                }
            });
        }
        let storage = storage.clone();
        scope.spawn(move || {
            for _ in 0..40 {
                storage.write_at(&[0xee; 8192 - 100], 8192 + 100).unwrap();
                storage.write_zeroes_at(8000, 292, false).unwrap();
            }
        });
    });
    let content = std::fs::read(&path).unwrap();
    for piece in 0..80 {
        let owner = (piece % 8) as u8;
        assert!(
            content[piece * 100..(piece + 1) * 100]
                .iter()
                .all(|&byte| byte == 19 ^ owner)
        );
    }
    assert!(content[8000..8292].iter().all(|&byte| byte == 0));
    assert!(content[8292..].iter().all(|&byte| byte == 0xee));
}

#[test]
fn a_file_without_o_direct_or_of_another_kind_is_refused() {
    let kind = |path: &Path, writable, cache| {
        FileStorage::open(path, writable, cache)
            .map(drop)
            .unwrap_err()
            .kind()
    };
    assert_eq!(
        kind(Path::new("/dev/null"), true, CacheMode::Writeback),
        ErrorKind::Unsupported
    );
    assert_eq!(
        kind(Path::new("/"), false, CacheMode::Writeback),
        ErrorKind::Unsupported
    );
    let dir = directory();
    let fifo = dir.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        kind(&fifo, false, CacheMode::Writeback),
        ErrorKind::Unsupported
    );
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let reader = std::fs::File::open(&file).unwrap();
    let error = FileStorage::from_fd(reader.into(), true, CacheMode::Writeback).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        FileStorage::create_new(&file, CacheMode::Writeback)
            .unwrap_err()
            .kind(),
        ErrorKind::AlreadyExists
    );
    let storage = FileStorage::open(&file, false, CacheMode::Writeback).unwrap();
    assert!(storage.write_at(b"y", 0).is_err());
    assert!(storage.set_length(0).is_err());
    assert!(storage.read_at(&mut [0; 8], u64::MAX - 4).is_err());
}

#[test]
fn zeroing_sparsely_takes_no_space_and_densely_keeps_it() {
    use std::os::unix::fs::MetadataExt;
    let dir = directory();
    let path = dir.path().join("zero.raw");
    let storage = FileStorage::create_new(&path, CacheMode::Writeback).unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
    storage.write_zeroes_at(0, 1 << 40, true).unwrap();
    assert_eq!(storage.length().unwrap(), 1 << 40);
    assert!(blocks() < 1 << 20);
    storage.write_at(&vec![1; 1 << 20], 0).unwrap();
    storage.sync().unwrap();
    let full = blocks();
    storage.write_zeroes_at(0, 1 << 20, false).unwrap();
    assert!(blocks() >= full);
    storage.write_zeroes_at(0, 1 << 20, true).unwrap();
    assert!(blocks() + (1 << 20) <= full + (64 << 10));
}

/// A loop device over a file of this size, if this machine and user can.
struct Loop(String);

impl Loop {
    fn attach(file: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a loop device needs root");
            return None;
        }
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .expect("losetup is missing: install the package mount (util-linux)");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(Self(
            String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        ))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_equals_the_model() {
    let dir = directory();
    let path = dir.path().join("disk");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(256 << 10)
        .unwrap();
    let Some(device) = Loop::attach(&path) else {
        return;
    };
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let storage = FileStorage::open(Path::new(&device.0), true, cache).unwrap();
        assert!(storage.is_device());
        assert_eq!(storage.length().unwrap(), 256 << 10);
        exercise(&storage, 256 << 10, true, 11);
        assert!(storage.write_at(&[1; 512], 256 << 10).is_err());
        assert!(
            storage
                .write_zeroes_at((256 << 10) - 512, 1024, false)
                .is_err()
        );
        assert!(storage.set_length(1 << 20).is_err());
    }
}

#[test]
fn replay_gives_what_a_crash_leaves() {
    let recorder = Recorder::new();
    let file = recorder.storage(MemoryStorage::from_bytes(&[1; 2048]));
    file.write_at(&[2; 1024], 0).unwrap();
    file.sync().unwrap();
    file.write_at(&[3; 1500], 300).unwrap();
    file.set_length(4096).unwrap();
    let end = file.content().to_bytes().unwrap();
    let mut replay = recorder.replay();
    assert_eq!(replay.len(), 4);
    let bytes = |files: Vec<MemoryStorage>| files[0].to_bytes().unwrap();
    assert_eq!(replay.tears(), 1);
    let torn = bytes(replay.torn(0));
    assert!(torn[..512] == [2; 512] && torn[512..] == [1; 1536]);
    replay.advance();
    // Unsynced: some seed keeps nothing, one keeps all, none mixes a sector.
    let mut kept = [false; 4];
    for seed in 0..64 {
        let state = bytes(replay.power_lost(seed));
        let sectors: Vec<&[u8]> = state.chunks(512).collect();
        assert!(
            sectors
                .iter()
                .all(|sector| sector.iter().all(|byte| *byte == sector[0]))
        );
        assert!(state[1024..] == [1; 1024]);
        kept[usize::from(sectors[0][0] == 2) * 2 + usize::from(sectors[1][0] == 2)] = true;
    }
    assert_eq!(kept, [true; 4]);
    replay.advance();
    assert!(bytes(replay.power_lost(0))[..1024] == [2; 1024]);
    assert_eq!(replay.tears(), 3);
    let torn = bytes(replay.torn(1));
    assert!(torn[300..1024] == [3; 724] && torn[1024..] == [1; 1024]);
    while replay.advance() {}
    assert!(bytes(replay.killed()) == end);
}

#[test]
fn injected_faults_fail_and_leave_what_they_say() {
    let recorder = Recorder::new();
    let file = recorder.storage(MemoryStorage::from_bytes(&[0; 1024]));
    recorder.fail(Fault {
        after: 1,
        kind: FaultKind::Short(100),
        lasting: false,
    });
    file.write_at(&[1; 10], 0).unwrap();
    assert_eq!(
        file.write_at(&[2; 512], 512).unwrap_err().raw_os_error(),
        Some(5)
    );
    file.write_at(&[3; 10], 10).unwrap();
    let content = file.content().to_bytes().unwrap();
    assert!(content[512..612] == [2; 100] && content[612..] == [0; 412]);
    recorder.fail(Fault {
        after: 0,
        kind: FaultKind::NoSpace,
        lasting: true,
    });
    assert_eq!(
        file.write_at(&[4; 10], 0).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    assert_eq!(
        file.set_length(9999).unwrap_err().kind(),
        ErrorKind::StorageFull
    );
    file.sync().unwrap();
    recorder.heal();
    file.write_at(&[4; 10], 0).unwrap();
    assert_eq!(recorder.faults_met(), 3);
    let mut replay = recorder.replay();
    assert_eq!(replay.len(), 5);
    assert!(matches!(
        replay.next_event().unwrap().operation,
        Operation::Write { .. }
    ));
    while replay.advance() {}
    assert!(replay.killed()[0].to_bytes().unwrap() == file.content().to_bytes().unwrap());
}
