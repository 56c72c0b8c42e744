//! Loop-mounted file systems, markers and the programs that the wipe suites
//! need.
#![allow(dead_code, unreachable_pub)] // Each suite uses a part.
#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cenote_image::Format;
use cenote_pools::wipe::{
    FileJournal, NoOthers, Observer, Result, Silent, Tuning, WipeRequest, Wiped, Wiper,
};

/// Runs a program; a missing one fails the test with its package's name.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = try_run(package, program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program that may fail.
pub fn try_run(package: &str, program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install the package '{package}'"))
}

/// Whether loop mounts are possible: they need root. Says so where not.
pub fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: loop mounts need root");
    }
    root
}

/// A file system in an image file, mounted through a loop device.
pub struct LoopFs {
    folder: tempfile::TempDir,
    pub image: PathBuf,
    pub mount: PathBuf,
    mounted: bool,
}

impl LoopFs {
    /// Makes and mounts one of `megabytes`; `mkfs` is program and options.
    pub fn new(package: &str, mkfs: &[&str], options: &str, megabytes: u64) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("cenote-wipe-")
            .tempdir()
            .unwrap();
        let image = folder.path().join("disk.img");
        let mount = folder.path().join("mnt");
        File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        fs::create_dir(&mount).unwrap();
        let mut arguments = mkfs[1..].to_vec();
        arguments.push(image.to_str().unwrap());
        run(package, mkfs[0], &arguments);
        let mut fs = Self {
            folder,
            image,
            mount,
            mounted: false,
        };
        fs.mount(options);
        fs
    }

    pub fn ext4(options: &str, megabytes: u64) -> Self {
        Self::new("e2fsprogs", &["mkfs.ext4", "-q", "-F"], options, megabytes)
    }

    /// XFS since xfsprogs 6 wants 300 MiB.
    pub fn xfs(reflink: bool) -> Self {
        let reflink = format!("reflink={}", u8::from(reflink));
        Self::new(
            "xfsprogs",
            &["mkfs.xfs", "-q", "-f", "-m", &reflink],
            "",
            320,
        )
    }

    pub fn btrfs() -> Self {
        Self::new("btrfs-progs", &["mkfs.btrfs", "-q", "-f"], "", 320)
    }

    fn mount(&mut self, options: &str) {
        let mut arguments = vec!["-o"];
        let all = if options.is_empty() {
            "loop".to_owned()
        } else {
            format!("loop,{options}")
        };
        arguments.push(&all);
        arguments.push(self.image.to_str().unwrap());
        arguments.push(self.mount.to_str().unwrap());
        run("mount", "mount", &arguments);
        self.mounted = true;
    }

    pub fn unmount(&mut self) {
        if self.mounted {
            run("mount", "umount", &[self.mount.to_str().unwrap()]);
            self.mounted = false;
        }
    }

    /// Markers that the image holds, in any of its blocks.
    pub fn markers_left(&mut self, secret: &str) -> usize {
        self.unmount();
        count_markers(&self.image, secret)
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily where a failed test left something open.
            let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        }
    }
}

/// The marker of number `number`: 32 bytes that nothing else contains.
pub fn marker(secret: &str, number: usize) -> String {
    format!("<{secret:-<19}:{number:010}>")
}

/// How many of the markers of `secret` a file holds, each place counted.
pub fn count_markers(path: &Path, secret: &str) -> usize {
    let needle = format!("<{secret:-<19}:");
    let needle = needle.as_bytes();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 4 << 20];
    let (mut kept, mut count) = (0, 0);
    loop {
        let got = file.read(&mut buffer[kept..]).unwrap();
        if got == 0 {
            return count;
        }
        let filled = kept + got;
        count += find_all(&buffer[..filled], needle);
        kept = (needle.len() - 1).min(filled);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

fn find_all(haystack: &[u8], needle: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| *byte == b'<') {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            count += 1;
        }
        rest = &rest[1..];
    }
    count
}

/// A secret that no other test has.
pub fn secret() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// A folder for journals.
pub fn journal() -> (tempfile::TempDir, FileJournal) {
    let folder = tempfile::tempdir().unwrap();
    let journal = FileJournal::open(&folder.path().join("wipes")).unwrap();
    (folder, journal)
}

/// Wipes with a journal of its own and nobody depending on the volume.
pub fn wipe(request: &WipeRequest) -> Result<Wiped> {
    wipe_observed(request, &Silent)
}

pub fn wipe_observed(request: &WipeRequest, observer: &dyn Observer) -> Result<Wiped> {
    let (_folder, journal) = journal();
    Wiper::new(&journal, &NoOthers)
        .with_tuning(small())
        .wipe(request, observer)
}

/// Small requests, so that small files take many.
pub fn small() -> Tuning {
    Tuning {
        chunk: 256 << 10,
        ..Tuning::default()
    }
}

pub fn raw(path: &Path) -> WipeRequest {
    WipeRequest::new(path, Format::Raw)
}

/// Runs a qemu-io script on an image.
pub fn qemu_io(path: &Path, format: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-d", "ignore", "-f", format];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(path.to_str().unwrap());
    run("qemu-utils", "qemu-io", &arguments)
}

pub fn qemu_img(arguments: &[&str]) -> String {
    run("qemu-utils", "qemu-img", arguments)
}
