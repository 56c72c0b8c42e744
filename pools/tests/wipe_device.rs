//! Block devices, and files on file systems that run out of space or sectors.

#![allow(clippy::unwrap_used)] // Also in the helpers of the tests.

mod wipe_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use cenote_pools::wipe::{
    Algorithm, Error, Kind, NoOthers, Reason, Refusal, Verdict, WipeRequest, Wiped, Wiper,
};
use wipe_support::*;

/// A loop device on an image file.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(image: &Path, options: &[&str]) -> Self {
        let mut arguments = vec!["--show", "-f"];
        arguments.extend(options);
        arguments.push(image.to_str().unwrap());
        Self(run("mount", "losetup", &arguments).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .arg("-d")
            .arg(&self.0)
            .status();
    }
}

fn image(folder: &Path, size: u64) -> PathBuf {
    let path = folder.join("image");
    fs::write(&path, vec![b'A'; size as usize]).unwrap();
    path
}

fn best_effort(path: &Path, algorithm: Algorithm) -> WipeRequest {
    WipeRequest {
        best_effort: true,
        algorithm,
        ..raw(path)
    }
}

fn refusal(path: &Path) -> Refusal {
    match wipe(&best_effort(path, Algorithm::Zero)).unwrap_err() {
        Error::Refused { refusal, .. } => refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn devices_of_both_block_sizes_are_wiped_to_their_end() {
    if !can_mount() {
        return;
    }
    // The first ends within a page; the second addresses 4096 bytes at once.
    for (size, options) in [
        ((3 << 20) + 512, vec![]),
        (3 << 20, vec!["--sector-size", "4096"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), size);
        let device = LoopDevice::new(&image, &options);
        let report = wipe(&best_effort(&device.0, Algorithm::Random))
            .unwrap()
            .report;
        assert!(!report.verdict.is_failed(), "{}", report.verdict);
        let file = &report.files[0];
        assert_eq!(
            (file.identity.kind, file.identity.size),
            (Kind::BlockDevice, size)
        );
        assert_eq!(file.verification.as_ref().unwrap().bytes, size);
        assert_eq!(
            file.environment.devices[0].backing_file.as_deref(),
            Some(image.as_path())
        );
        let wanted = if options.is_empty() { 512 } else { 4096 };
        assert_eq!(file.environment.devices[0].logical_block_size, wanted);
        drop(device);
        assert!(
            !fs::read(&image)
                .unwrap()
                .windows(16)
                .any(|run| run == [b'A'; 16])
        );
    }
}

#[test]
fn trim_of_a_device_says_by_which_request_and_what_it_answers() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path(), 4 << 20);
    let device = LoopDevice::new(&image, &[]);
    let report = wipe(&best_effort(&device.0, Algorithm::Trim))
        .unwrap()
        .report;
    let pass = &report.files[0].passes[0];
    assert!(
        ["BLKSECDISCARD", "BLKDISCARD", "BLKZEROOUT"].contains(&pass.content.as_str()),
        "{pass:?}"
    );
    assert!(
        report
            .verdict
            .to_string()
            .contains("reading now gives zeroes"),
        "{}",
        report.verdict
    );
    assert!(!report.verdict.is_proven());
    drop(device);
    assert!(fs::read(&image).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn what_the_host_uses_is_refused_by_name() {
    if !can_mount() {
        return;
    }
    let mut fs = LoopFs::ext4("", 64);
    let under = refusal(&fs.image);
    let Refusal::LoopDevice { device } = &under else {
        panic!("{under}")
    };
    let mounted = refusal(device);
    assert!(
        matches!(&mounted, Refusal::Mounted { mount_point, .. } if *mount_point == fs.mount)
            || matches!(&mounted, Refusal::InUse { .. }),
        "{mounted}"
    );

    let swap = fs.mount.join("swap");
    fs::write(&swap, vec![0; 8 << 20]).unwrap();
    fs::set_permissions(&swap, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let at = swap.to_str().unwrap();
    run("util-linux", "mkswap", &["-q", at]);
    run("mount", "swapon", &[at]);
    let found = refusal(&swap);
    run("mount", "swapoff", &[at]);
    assert!(
        matches!(found, Refusal::Swap | Refusal::InUse { .. }),
        "{found}"
    );

    let file = fs.mount.join("volume");
    fs::write(&file, "precious").unwrap();
    run(
        "mount",
        "mount",
        &["-o", "remount,ro", fs.mount.to_str().unwrap()],
    );
    let found = refusal(&file);
    assert!(matches!(found, Refusal::ReadOnly { .. }), "{found}");
    fs.unmount();
}

/// A loop device whose image cannot grow: writes past what fits fail at some
/// sector, as on a dying disk.
#[test]
fn sectors_that_cannot_be_written_fail_by_place_and_the_rest_is_wiped() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let at = small.to_str().unwrap();
    run(
        "mount",
        "mount",
        &["-t", "tmpfs", "-o", "size=4m", "tmpfs", at],
    );
    let image = small.join("image");
    let file = File::create(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&vec![b'A'; 1 << 20], 0).unwrap();
    let device = LoopDevice::new(&image, &[]);
    let result = wipe(&best_effort(&device.0, Algorithm::Random));
    drop(device);
    let mut start = vec![0; 1 << 20];
    File::open(&image)
        .unwrap()
        .read_exact_at(&mut start, 0)
        .unwrap();
    drop(file);
    run("mount", "umount", &["-l", at]);
    let report = result.unwrap().report;
    let Verdict::Failed { reasons } = &report.verdict else {
        panic!("{}", report.verdict)
    };
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("cannot be written")),
        "{reasons:?}"
    );
    assert!(
        !start.windows(16).any(|run| run == [b'A'; 16]),
        "what could be written was"
    );
}

#[test]
fn no_space_for_copies_is_named_and_nothing_else_is_touched() {
    if !can_mount() {
        return;
    }
    let fs = LoopFs::xfs(true);
    let (path, copy) = (fs.mount.join("volume"), fs.mount.join("copy"));
    fs::write(&path, vec![b'A'; 64 << 20]).unwrap();
    run(
        "coreutils",
        "cp",
        &[
            "--reflink=always",
            path.to_str().unwrap(),
            copy.to_str().unwrap(),
        ],
    );
    let rest = File::create(fs.mount.join("rest")).unwrap();
    let (mut at, mut step) = (0, 64 << 20);
    while step >= 4096 {
        let none = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&rest, none, at, step) {
            Ok(()) => at += step,
            Err(_) => step /= 2,
        }
    }
    let report = wipe(&best_effort(&path, Algorithm::Random)).unwrap().report;
    let Verdict::Failed { reasons } = &report.verdict else {
        panic!("{}", report.verdict)
    };
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("No space left")),
        "{reasons:?}"
    );
    assert!(fs::read(&copy).unwrap().iter().all(|byte| *byte == b'A'));
}

#[test]
fn flash_and_thin_reasons_come_from_what_lies_below() {
    if !can_mount() {
        return;
    }
    // A file on ext4 on a loop device on tmpfs, two levels deep.
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let outer = image(folder.path(), 1 << 20);
    let device = LoopDevice::new(&outer, &[]);
    let (_journals, journal) = journal();
    let plan = Wiper::new(&journal, &NoOthers)
        .plan(&raw(&device.0))
        .unwrap();
    let Verdict::OverwrittenNotProvable { reasons } = plan.expected else {
        panic!()
    };
    assert!(
        matches!(&reasons[0], Reason::Below { file, .. } if *file == outer),
        "{reasons:?}"
    );
    let error = wipe(&raw(&device.0))
        .map(|Wiped { report, .. }| report.verdict)
        .unwrap_err();
    assert!(matches!(error, Error::NotProvable { .. }), "{error}");
    assert!(fs::read(&outer).unwrap().iter().all(|byte| *byte == b'A'));
}
