//! Who holds a lock. The kernel does not tell for open file description locks
//! (`F_OFD_GETLK` gives -1), but each process's `fdinfo` lists them.

use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How the calling process is called.
pub(super) const THIS_PROCESS: &str = "this process";

/// The processes, as "process 17 (qemu-io)", that hold a lock on one of the
/// bytes of this file through another open file. Empty when they cannot be
/// seen (another user's, another namespace's, another machine's).
pub(super) fn holders(fd: BorrowedFd<'_>, bytes: RangeInclusive<u64>) -> Vec<String> {
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return Vec::new();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if holds(&process.path(), stat.st_dev, stat.st_ino, &bytes) {
            found.push(describe(&process.path(), pid));
        }
    }
    found.sort();
    found
}

fn describe(process: &Path, pid: u32) -> String {
    if pid == std::process::id() {
        return THIS_PROCESS.to_owned();
    }
    match fs::read_to_string(process.join("comm")) {
        // The name is the process's own choice: no control characters.
        Ok(name) => format!("process {pid} ({})", name.trim().escape_debug()),
        Err(_) => format!("process {pid}"),
    }
}

fn holds(process: &Path, device: u64, inode: u64, bytes: &RangeInclusive<u64>) -> bool {
    let Ok(infos) = fs::read_dir(process.join("fdinfo")) else {
        return false;
    };
    infos.flatten().any(|info| {
        fs::read_to_string(info.path()).is_ok_and(|text| {
            text.lines()
                .any(|line| lock_line_covers(line, inode, bytes))
        }) && fs::metadata(process.join("fd").join(info.file_name()))
            .is_ok_and(|file| file.dev() == device && file.ino() == inode)
    })
}

/// Whether a line such as `lock: 1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100
/// 101` of `fdinfo` (see proc(5)) is a lock on one of the bytes of this inode.
fn lock_line_covers(line: &str, inode: u64, bytes: &RangeInclusive<u64>) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else {
        return false;
    };
    let mut fields = lock.split_whitespace().rev();
    let (Some(end), Some(start), Some(file)) = (fields.next(), fields.next(), fields.next()) else {
        return false;
    };
    let Ok(start) = start.parse::<u64>() else {
        return false;
    };
    let end = end.parse::<u64>().unwrap_or(u64::MAX); // or "EOF"
    let same_inode = file.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
    same_inode && start <= *bytes.end() && end >= *bytes.start()
}

#[cfg(test)]
mod tests {
    use super::lock_line_covers;

    #[test]
    fn lock_lines_are_read_as_the_kernel_writes_them() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100 101";
        assert!(lock_line_covers(line, 1234, &(101..=101)));
        assert!(!lock_line_covers(line, 1234, &(102..=203)));
        assert!(!lock_line_covers(line, 123, &(100..=100)));
        let whole = "lock:\t2: POSIX  ADVISORY  WRITE 77 fe:00:1234 0 EOF";
        assert!(lock_line_covers(whole, 1234, &(203..=203)));
        assert!(!lock_line_covers("flags:\t0100002", 1234, &(0..=300)));
        assert!(!lock_line_covers("lock:", 1234, &(0..=300)));
    }
}
