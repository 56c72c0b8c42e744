//! Locks against qemu-io and qemu-img, both ways.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use cenote_image::lock::FileLock;
use cenote_image::storage::FileStorage;
use cenote_image::{CacheMode, Error, LockPolicy, Result};

fn image(dir: &tempfile::TempDir, format: &str) -> PathBuf {
    let path = dir.path().join(format!("disk.{format}"));
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(&path)
        .arg("1M")
        .output()
        .expect("qemu-img is missing: install the package qemu-utils");
    assert!(output.status.success());
    path
}

/// A qemu-io that has the image open.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, format: &str, read_only: bool) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format]);
        if read_only {
            command.arg("-r");
        }
        let mut child = command
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io is missing: install the package qemu-utils");
        // An answer to a command shows that the image is open.
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"length\n")
            .unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("1 MiB")));
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().unwrap().write_all(b"quit\n");
        let _ = self.0.wait();
    }
}

fn lock(path: &Path, policy: LockPolicy) -> Result<FileLock> {
    let writable = policy == LockPolicy::Exclusive;
    let storage = FileStorage::open(path, writable, CacheMode::Writeback).unwrap();
    FileLock::acquire(&storage, path, policy)
}

fn qemu_io(path: &Path, format: &str, command: &str) -> Output {
    let read_only: &[&str] = if command.starts_with("read") {
        &["-r"]
    } else {
        &[]
    };
    Command::new("qemu-io")
        .args(["-f", format, "-c", command])
        .args(read_only)
        .arg(path)
        .output()
        .unwrap()
}

fn refused(output: &Output) -> bool {
    !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("lock")
}

fn holder_of(result: Result<FileLock>) -> String {
    match result {
        Err(Error::InUse { by, .. }) => by.split(": it").next().unwrap().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_writer_in_qemu_io_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["qcow2", "raw"] {
        let path = image(&dir, format);
        let writer = QemuIo::open(&path, format, false);
        let name = format!("process {} (qemu-io)", writer.0.id());
        assert_eq!(holder_of(lock(&path, LockPolicy::Exclusive)), name);
        assert_eq!(holder_of(lock(&path, LockPolicy::Shared)), name);
        lock(&path, LockPolicy::Off).unwrap();
        drop(writer);
        lock(&path, LockPolicy::Exclusive).unwrap();
    }
}

#[test]
fn our_writer_excludes_qemu() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["qcow2", "raw"] {
        let path = image(&dir, format);
        let ours = lock(&path, LockPolicy::Exclusive).unwrap();
        assert!(refused(&qemu_io(&path, format, "write 0 512")));
        let info = Command::new("qemu-img")
            .args(["check", "-f", "qcow2"])
            .arg(&path)
            .output();
        assert!(format == "raw" || refused(&info.unwrap()));
        drop(ours);
        assert!(qemu_io(&path, format, "write 0 512").status.success());
    }
}

#[test]
fn readers_share_and_keep_writers_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "qcow2");
    let theirs = QemuIo::open(&path, "qcow2", true);
    let ours: Vec<FileLock> = (0..3)
        .map(|_| lock(&path, LockPolicy::Shared).unwrap())
        .collect();
    assert!(qemu_io(&path, "qcow2", "read 0 512").status.success());
    assert!(refused(&qemu_io(&path, "qcow2", "write 0 512")));
    let name = holder_of(lock(&path, LockPolicy::Exclusive));
    assert!(
        name.contains("(qemu-io)") && name.contains("this process"),
        "{name}"
    );
    drop(theirs);
    assert_eq!(
        holder_of(lock(&path, LockPolicy::Exclusive)),
        "this process"
    );
    drop(ours);
    lock(&path, LockPolicy::Exclusive).unwrap();
}

#[test]
fn a_policy_changes_in_place_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "qcow2");
    let storage = FileStorage::open(&path, true, CacheMode::Writeback).unwrap();
    let mut ours = FileLock::acquire(&storage, &path, LockPolicy::Shared).unwrap();
    let other = lock(&path, LockPolicy::Shared).unwrap();
    assert!(ours.change(LockPolicy::Exclusive).is_err());
    assert_eq!(ours.policy(), LockPolicy::Shared);
    assert!(qemu_io(&path, "qcow2", "read 0 512").status.success());
    assert!(refused(&qemu_io(&path, "qcow2", "write 0 512")));
    drop(other);
    ours.change(LockPolicy::Exclusive).unwrap();
    assert!(refused(&qemu_io(&path, "qcow2", "read 0 512")));
    ours.change(LockPolicy::Off).unwrap();
    assert!(qemu_io(&path, "qcow2", "write 0 512").status.success());
}
