//! The programs that tests compare with.

#![allow(clippy::unwrap_used, dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(program: &str, package: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} ({error}): install the package {package}"))
}

/// Runs qemu-img; panics with its message when it fails.
pub(crate) fn qemu_img(arguments: &[&str]) -> String {
    let output = run("qemu-img", "qemu-utils", arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs qemu-img, whatever comes of it.
pub(crate) fn try_qemu_img(arguments: &[&str]) -> Output {
    run("qemu-img", "qemu-utils", arguments)
}

/// Runs qemu-io commands on a qcow2 image; panics when one fails.
pub(crate) fn qemu_io(path: &Path, commands: &[String]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(path));
    let output = run("qemu-io", "qemu-utils", &arguments);
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && !seen.contains("failed") && !seen.contains("error"),
        "qemu-io {arguments:?}: {seen}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Creates a qcow2 image.
pub(crate) fn create(path: &Path, options: &str, size: &str) {
    let mut arguments = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.extend([text(path), size]);
    qemu_img(&arguments);
}

/// The fields of `qemu-img check --output=json`, or `None` when it refuses the
/// image.
pub(crate) fn qemu_check(path: &Path) -> Option<serde_json::Value> {
    let output = try_qemu_img(&["check", "-f", "qcow2", "--output=json", text(path)]);
    serde_json::from_slice(&output.stdout).ok()
}

/// A directory on a real file system, on which `O_DIRECT` works.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A copy beside the original.
pub(crate) fn copy(path: &Path, suffix: &str) -> PathBuf {
    let copy = path.with_extension(suffix);
    std::fs::copy(path, &copy).unwrap();
    copy
}

/// What QEMU reads from a qcow2 image.
pub(crate) fn raw_dump(image: &Path) -> Vec<u8> {
    let out = image.with_extension("dump");
    qemu_img(&[
        "convert",
        "-q",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(image),
        text(&out),
    ]);
    let bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(out).unwrap();
    bytes
}

/// A small generator (splitmix64), so that failures repeat.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Starts from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Numbers(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Random bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(length + 8);
        while out.len() < length {
            out.extend(self.next().to_le_bytes());
        }
        out.truncate(length);
        out
    }
}
