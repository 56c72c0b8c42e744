//! Open file description locks, `fcntl(2)`: held by the open file, not by the
//! process, so that two images in one process exclude each other too.
#![allow(unsafe_code)] // rustix wraps only whole-file, process-owned locks

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn request(kind: libc::c_int, byte: u64) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(io::Error::other)?,
        l_whence: 0, // SEEK_SET
        l_start: i64::try_from(byte).map_err(io::Error::other)?,
        l_len: 1,
        l_pid: 0, // required for these commands
    })
}

fn fcntl(
    fd: BorrowedFd<'_>,
    command: libc::c_int,
    mut lock: libc::flock,
) -> io::Result<libc::flock> {
    loop {
        // SAFETY: these commands read and write one `flock`, which outlives the
        // call; the descriptor is open for as long as it is borrowed.
        let outcome = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
        if outcome != -1 {
            return Ok(lock);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Takes a shared lock on one byte. False when another open file holds it
/// exclusively.
pub(super) fn lock_shared(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    match fcntl(fd, libc::F_OFD_SETLK, request(libc::F_RDLCK, byte)?) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a byte back.
pub(super) fn unlock(fd: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, request(libc::F_UNLCK, byte)?).map(drop)
}

/// Whether another open file holds any lock on the byte.
pub(super) fn held_elsewhere(fd: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let found = fcntl(fd, libc::F_OFD_GETLK, request(libc::F_WRLCK, byte)?)?;
    Ok(libc::c_int::from(found.l_type) != libc::F_UNLCK)
}
