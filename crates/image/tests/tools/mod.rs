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
