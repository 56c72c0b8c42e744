//! Markers in volumes, wiped, and looked for in the block image beneath the
//! file system: what stays there beside what the report says.
//!
//! `cargo test -p cenote-pools --test wipe_markers -- --nocapture` prints the
//! tables, the peers' among them.

#![allow(clippy::unwrap_used)] // Also in the helpers of the tests.

mod wipe_support;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use cenote_image::Format;
use cenote_pools::wipe::{Error, Reason, Verdict, WipeRequest};
use wipe_support::*;

const MARKERS: usize = 10_000;
const MIB: u64 = 1 << 20;
/// Virtual size of every volume.
const SIZE: u64 = 32 * MIB;

/// Where marker `number` lies: sixteen to every 16 KiB, every other 16 KiB
/// left out, at odd offsets.
fn place(number: usize) -> u64 {
    let run = (number / 16) as u64;
    run * 32_768 + (number % 16) as u64 * 1024 + 13
}

/// A raw file of markers at `path`; a hole wherever there is none.
fn write_markers(path: &Path, secret: &str) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let mut run = vec![0; 16 << 10];
    for first in (0..MARKERS).step_by(16) {
        for number in first..first + 16 {
            let at = (place(number) - place(first)) as usize;
            run[at..at + 32].copy_from_slice(marker(secret, number).as_bytes());
        }
        file.write_all_at(&run, place(first)).unwrap();
    }
    file.sync_all().unwrap();
}

/// A volume with markers and how it came about.
struct Volume {
    name: &'static str,
    path: PathBuf,
    format: Format,
    secret: String,
}

/// Makes the five kinds of volume in `folder`. Markers pass through no other
/// file there.
fn make_volumes(folder: &Path) -> Vec<Volume> {
    let scratch = tempfile::tempdir().unwrap();
    let plain = scratch.path().join("markers.raw");
    let mut volumes = Vec::new();
    for name in [
        "raw sparse",
        "raw preallocated",
        "qcow2",
        "qcow2 snapshots",
        "qcow2 freed",
    ] {
        let secret = secret();
        write_markers(&plain, &secret);
        let format = if name.starts_with("raw") {
            Format::Raw
        } else {
            Format::Qcow2
        };
        let path = folder.join(format!("{}.{format}", name.replace(' ', "-")));
        match name {
            "raw sparse" => write_markers(&path, &secret),
            "raw preallocated" => {
                let file = File::create(&path).unwrap();
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE).unwrap();
                let content = fs::read(&plain).unwrap();
                // The last third stays unwritten.
                for first in (0..MARKERS).step_by(16) {
                    let at = place(first) as usize;
                    file.write_all_at(&content[at..at + (16 << 10)], at as u64)
                        .unwrap();
                }
            }
            _ => make_qcow2(name, &plain, &path),
        }
        File::open(&path).unwrap().sync_all().unwrap();
        volumes.push(Volume {
            name,
            path,
            format,
            secret,
        });
    }
    volumes
}

fn make_qcow2(name: &str, plain: &Path, path: &Path) {
    let (plain, at) = (plain.to_str().unwrap(), path.to_str().unwrap());
    let options = "cluster_size=16k,lazy_refcounts=on,refcount_bits=32";
    qemu_img(&[
        "convert", "-f", "raw", "-O", "qcow2", "-o", options, plain, at,
    ]);
    match name {
        // The markers survive in a snapshot alone.
        "qcow2 snapshots" => {
            qemu_img(&["snapshot", "-c", "before", at]);
            qemu_io(path, "qcow2", &["write -P 0x55 0 32M"]);
        }
        // The clusters are given up within the image, not to the host.
        "qcow2 freed" => {
            qemu_io(path, "qcow2", &["discard 0 32M"]);
        }
        _ => {}
    }
}

/// Counts the markers of all secrets in a file.
fn scan(path: &Path, volumes: &[Volume]) -> HashMap<String, usize> {
    volumes
        .iter()
        .map(|volume| (volume.secret.clone(), count_markers(path, &volume.secret)))
        .collect()
}

/// Reasons of the machine beneath the test's own file system.
fn is_about_the_host(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::Below { .. }
            | Reason::Flash { .. }
            | Reason::ThinProvisioned { .. }
            | Reason::RemoteDevice { .. }
    )
}

fn host_aside(verdict: &Verdict) -> Verdict {
    match verdict {
        Verdict::OverwrittenNotProvable { reasons } => Verdict::from_reasons(
            reasons
                .iter()
                .filter(|reason| !is_about_the_host(reason))
                .cloned()
                .collect(),
        ),
        other => other.clone(),
    }
}

/// Wipes every kind of volume on a file system and prints and checks the rows.
fn markers_on(label: &str, mut fs: LoopFs, folder: &str, provable: bool) {
    let folder = fs.mount.join(folder);
    let volumes = make_volumes(&folder);
    run("coreutils", "sync", &["-f", folder.to_str().unwrap()]);
    let before = scan(&fs.image, &volumes);
    let mut verdicts = Vec::new();
    for volume in &volumes {
        let careful = WipeRequest::new(&volume.path, volume.format);
        if !provable {
            let error = wipe(&careful).unwrap_err();
            assert!(
                matches!(error, Error::NotProvable { .. }),
                "{label}: {error}"
            );
        }
        let report = wipe(&WipeRequest {
            best_effort: true,
            ..careful
        })
        .unwrap()
        .report;
        if volume.format == Format::Qcow2 {
            check_rebuilt(&volume.path);
        }
        verdicts.push(report.verdict);
    }
    fs.unmount();
    let after = scan(&fs.image, &volumes);
    for (volume, verdict) in volumes.iter().zip(&verdicts) {
        let (was, left) = (before[&volume.secret], after[&volume.secret]);
        println!(
            "{label:<14} | {:<16} | {was:>6} | {left:>6} | {verdict}",
            volume.name
        );
        assert!(
            was >= MARKERS,
            "{label}, {}: the test must have something to lose",
            volume.name
        );
        assert!(
            !verdict.is_proven() || left == 0,
            "{label}, {}: a false claim",
            volume.name
        );
        assert_eq!(
            host_aside(verdict).is_proven(),
            provable,
            "{label}: {verdict}"
        );
        assert!(!verdict.is_failed());
        if provable {
            assert_eq!(left, 0, "{label}, {}", volume.name);
        }
    }
}

/// The wiped qcow2 volume is an empty image with the options it had.
fn check_rebuilt(path: &Path) {
    let at = path.to_str().unwrap();
    let info: serde_json::Value =
        serde_json::from_str(&qemu_img(&["info", "--output=json", at])).unwrap();
    assert_eq!(info["format"], "qcow2");
    assert_eq!(info["virtual-size"], SIZE);
    assert_eq!(info["cluster-size"], 16 << 10);
    let specific = &info["format-specific"]["data"];
    assert_eq!(specific["lazy-refcounts"], true, "{info}");
    assert_eq!(specific["refcount-bits"], 32, "{info}");
    assert!(info.get("snapshots").is_none(), "{info}");
    qemu_img(&["check", "-q", at]);
    let read = qemu_io(path, "qcow2", &["read -P 0 0 32M"]);
    assert!(!read.contains("Pattern verification failed"), "{read}");
}

#[test]
fn ext4() {
    if can_mount() {
        markers_on("ext4", LoopFs::ext4("", 256), ".", true);
    }
}

#[test]
fn xfs_without_reflink() {
    if can_mount() {
        markers_on("xfs", LoopFs::xfs(false), ".", true);
    }
}

#[test]
fn xfs_with_reflink() {
    if can_mount() {
        markers_on("xfs reflink", LoopFs::xfs(true), ".", true);
    }
}

#[test]
fn btrfs() {
    if can_mount() {
        markers_on("btrfs", LoopFs::btrfs(), ".", false);
    }
}

#[test]
fn btrfs_nocow() {
    if can_mount() {
        markers_on("btrfs nocow", btrfs_with_nocow(), "nocow", true);
    }
}

/// btrfs with a folder `nocow` whose files are overwritten in place.
fn btrfs_with_nocow() -> LoopFs {
    let fs = LoopFs::btrfs();
    let folder = fs.mount.join("nocow");
    fs::create_dir(&folder).unwrap();
    run("e2fsprogs", "chattr", &["+C", folder.to_str().unwrap()]);
    fs
}

#[test]
fn ext4_that_journals_data() {
    if can_mount() {
        markers_on(
            "ext4 journal",
            LoopFs::ext4("data=journal", 256),
            ".",
            false,
        );
    }
}

/// The reasons that a careful wipe of `path` is refused for.
fn refused_for(path: &Path) -> Vec<Reason> {
    let before = fs::read(path).unwrap();
    let error = wipe(&raw(path)).unwrap_err();
    let Error::NotProvable { reasons, .. } = error else {
        panic!("{error}")
    };
    assert!(
        fs::read(path).unwrap() == before,
        "a refused volume is untouched"
    );
    reasons
}

#[test]
fn shared_extents_are_never_called_proven() {
    if !can_mount() {
        return;
    }
    let mut fs = LoopFs::xfs(true);
    let (path, copy) = (fs.mount.join("volume"), fs.mount.join("copy"));
    let secret = secret();
    write_markers(&path, &secret);
    run(
        "coreutils",
        "cp",
        &[
            "--reflink=always",
            path.to_str().unwrap(),
            copy.to_str().unwrap(),
        ],
    );
    assert!(refused_for(&path).contains(&Reason::SharedExtents));
    let report = wipe(&WipeRequest {
        best_effort: true,
        ..raw(&path)
    })
    .unwrap()
    .report;
    assert!(!report.verdict.is_proven(), "{}", report.verdict);
    let shared = report.files[0]
        .extents
        .iter()
        .filter(|one| one.flags.contains(&"shared".to_owned()));
    assert!(shared.clone().count() > 0);
    for extent in shared {
        assert!(!extent.verdict.is_proven(), "{extent:?}");
    }
    // With the other copy gone, a fresh volume in its own blocks is provable.
    fs::remove_file(&copy).unwrap();
    let report = wipe(&WipeRequest {
        best_effort: true,
        ..raw(&path)
    })
    .unwrap()
    .report;
    assert!(
        host_aside(&report.verdict).is_proven(),
        "{}",
        report.verdict
    );
    let left = fs.markers_left(&secret);
    println!(
        "xfs reflink    | raw shared with a copy | {left:>6} left | refused, then not provable"
    );
}

#[test]
fn snapshots_on_btrfs_nocow_are_never_called_proven() {
    if !can_mount() {
        return;
    }
    let mut fs = LoopFs::btrfs();
    let subvolume = fs.mount.join("pool");
    let at = subvolume.to_str().unwrap();
    run("btrfs-progs", "btrfs", &["-q", "subvolume", "create", at]);
    run("e2fsprogs", "chattr", &["+C", at]);
    let path = subvolume.join("volume");
    let secret = secret();
    write_markers(&path, &secret);
    run(
        "btrfs-progs",
        "btrfs",
        &[
            "-q",
            "subvolume",
            "snapshot",
            at,
            fs.mount.join("snap").to_str().unwrap(),
        ],
    );
    assert!(refused_for(&path).contains(&Reason::SharedExtents));
    let report = wipe(&WipeRequest {
        best_effort: true,
        ..raw(&path)
    })
    .unwrap()
    .report;
    assert!(!report.verdict.is_proven(), "{}", report.verdict);
    assert!(
        fs.markers_left(&secret) >= MARKERS,
        "the snapshot keeps them"
    );
}

#[test]
fn a_snapshot_taken_during_the_wipe_is_noticed() {
    if !can_mount() {
        return;
    }
    let fs = LoopFs::xfs(true);
    let (path, copy) = (fs.mount.join("volume"), fs.mount.join("copy"));
    write_markers(&path, &secret());
    let taken = std::sync::Once::new();
    let observer = |event: &cenote_pools::wipe::WipeEvent<'_>| {
        if let cenote_pools::wipe::WipeEvent::Advanced { .. } = event {
            taken.call_once(|| {
                let (from, to) = (path.to_str().unwrap(), copy.to_str().unwrap());
                run("coreutils", "cp", &["--reflink=always", from, to]);
            });
        }
        std::ops::ControlFlow::Continue(())
    };
    let report = wipe_observed(
        &WipeRequest {
            best_effort: true,
            ..raw(&path)
        },
        &observer,
    )
    .unwrap()
    .report;
    assert!(
        !host_aside(&report.verdict).is_proven(),
        "{}",
        report.verdict
    );
}

#[test]
fn compressed_and_inline_data_are_named() {
    if !can_mount() {
        return;
    }
    let fs = LoopFs::new(
        "btrfs-progs",
        &["mkfs.btrfs", "-q", "-f"],
        "compress=zstd",
        320,
    );
    let path = fs.mount.join("compressed");
    fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
    assert!(refused_for(&path).contains(&Reason::EncodedExtents));
    let small = fs.mount.join("inline");
    fs::write(&small, "a few bytes").unwrap();
    assert!(refused_for(&small).contains(&Reason::InlineExtents));
}

#[test]
fn other_file_systems_are_named() {
    if !can_mount() {
        return;
    }
    let tmp = tempfile::Builder::new().tempdir_in("/dev/shm").unwrap();
    let path = tmp.path().join("volume");
    fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
    let found = refused_for(&path);
    assert!(found.iter().any(
        |one| matches!(one, Reason::MemoryFileSystem { file_system } if file_system == "tmpfs")
    ));

    // A loop-mounted ext4 whose image lies on tmpfs is no more than that.
    let image = tmp.path().join("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let mount = tmp.path().join("mnt");
    fs::create_dir(&mount).unwrap();
    let (at, on) = (image.to_str().unwrap(), mount.to_str().unwrap());
    run("e2fsprogs", "mkfs.ext4", &["-q", "-F", at]);
    run("mount", "mount", &["-o", "loop", at, on]);
    let inner = mount.join("volume");
    fs::write(&inner, vec![b'A'; 1 << 20]).unwrap();
    let found = refused_for(&inner);
    run("mount", "umount", &[on]);
    assert!(
        found
            .iter()
            .any(|one| matches!(one, Reason::Below { because, .. }
        if matches!(**because, Reason::MemoryFileSystem { .. }))),
        "{found:?}"
    );

    // Overlayfs: the lower file stays whatever is written above.
    let folder = LoopFs::ext4("", 64);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(folder.mount.join(name)).unwrap();
    }
    fs::write(folder.mount.join("lower/volume"), vec![b'A'; 1 << 20]).unwrap();
    let part = |name: &str| folder.mount.join(name).to_str().unwrap().to_owned();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        part("lower"),
        part("upper"),
        part("work")
    );
    let mounted = try_run(
        "mount",
        "mount",
        &["-t", "overlay", "overlay", "-o", &options, &part("merged")],
    );
    if mounted.status.success() {
        let found = refused_for(&folder.mount.join("merged/volume"));
        run("mount", "umount", &[&part("merged")]);
        assert!(found.contains(&Reason::OverlayFileSystem), "{found:?}");
    } else {
        println!("skipped: this kernel has no overlayfs");
    }
}

/// The same volumes given to the tools that people use today. Nothing is
/// expected of them: the table is the point.
#[test]
fn peers() {
    if !can_mount() {
        return;
    }
    let libvirt = Libvirt::start();
    type Maker = fn() -> LoopFs;
    let systems: [(&str, Maker, &str); 5] = [
        ("ext4", || LoopFs::ext4("", 256), "."),
        ("xfs", || LoopFs::xfs(false), "."),
        ("xfs reflink", || LoopFs::xfs(true), "."),
        ("btrfs", LoopFs::btrfs, "."),
        ("btrfs nocow", btrfs_with_nocow, "nocow"),
    ];
    for (label, make, folder) in systems {
        for tool in ["shred -n1", "scrub random", "virsh vol-wipe"] {
            let mut fs = make();
            let volumes = make_volumes(&fs.mount.join(folder));
            run("coreutils", "sync", &["-f", fs.mount.to_str().unwrap()]);
            let before = scan(&fs.image, &volumes);
            let said: Vec<String> = volumes
                .iter()
                .map(|volume| peer(tool, &volume.path, &libvirt))
                .collect();
            fs.unmount();
            let after = scan(&fs.image, &volumes);
            for (volume, said) in volumes.iter().zip(said) {
                let (was, left) = (before[&volume.secret], after[&volume.secret]);
                println!(
                    "{label:<12} | {tool:<14} | {:<16} | {was:>6} | {left:>6} | {said}",
                    volume.name
                );
                assert!(was >= MARKERS);
            }
        }
    }
}

/// Runs a peer; gives what it claims by its exit code.
fn peer(tool: &str, path: &Path, libvirt: &Libvirt) -> String {
    let at = path.to_str().unwrap();
    let output = match tool {
        "shred -n1" => try_run("coreutils", "shred", &["-n1", at]),
        "scrub random" => try_run("scrub", "scrub", &["-p", "random", "-f", at]),
        _ => return libvirt.wipe(path),
    };
    if output.status.success() {
        "done".to_owned()
    } else {
        "failed".to_owned()
    }
}

/// A storage driver of libvirt's own, run as an unprivileged user in folders
/// of its own.
struct Libvirt {
    folder: tempfile::TempDir,
    daemon: std::process::Child,
}

impl Libvirt {
    fn command(folder: &Path, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new("setpriv");
        command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "env",
                "-i",
            ])
            .arg("PATH=/usr/sbin:/usr/bin:/sbin:/bin")
            .arg(format!("HOME={}", folder.display()))
            .arg(format!("XDG_RUNTIME_DIR={}", folder.display()))
            .arg(program);
        command
    }

    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let daemon = Self::command(folder.path(), "libvirtd")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("this test needs the packages 'util-linux' and 'libvirt-daemon'");
        let mut libvirt = Self { folder, daemon };
        for _ in 0..600 {
            if libvirt.virsh(&["pool-list"]).status.success() {
                return libvirt;
            }
            let ended = libvirt.daemon.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "libvirtd: {ended:?}; install the package 'libvirt-daemon'"
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("libvirtd does not answer");
    }

    fn virsh(&self, arguments: &[&str]) -> std::process::Output {
        Self::command(self.folder.path(), "virsh")
            .args(["-c", "storage:///session"])
            .args(arguments)
            .output()
            .expect("this test needs the package 'libvirt-clients'")
    }

    fn wipe(&self, path: &Path) -> String {
        let folder = path.parent().unwrap();
        for one in [folder, folder.parent().unwrap()] {
            fs::set_permissions(one, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        for one in [folder, path] {
            std::os::unix::fs::chown(one, Some(65534), Some(65534)).unwrap();
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let pool = folder.to_str().unwrap();
        self.virsh(&["pool-create-as", "p", "dir", "--target", pool]);
        let output = self.virsh(&["vol-wipe", name, "--pool", "p"]);
        self.virsh(&["pool-destroy", "p"]);
        if output.status.success() {
            "done".to_owned()
        } else {
            format!(
                "failed: {}",
                String::from_utf8_lossy(&output.stderr).replace('\n', " ")
            )
        }
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
