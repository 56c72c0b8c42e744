//! Descriptors that the process has inherited.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

/// A duplicate of an inherited descriptor, so that naming one twice does no harm and naming a
/// closed one is an error.
///
/// # Errors
/// If it is not open.
#[allow(unsafe_code)] // Descriptors that were inherited are known by number only.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is only passed to fcntl, which checks it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?)
}
