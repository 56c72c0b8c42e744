//! The monitor's own memory: what only its start needed is given back.

#![allow(unsafe_code)] // The loader tells of its segments through pointers.

use std::ffi::{c_int, c_void};

/// Bytes of a page of x86-64. Asking for it is nothing that the machine's thread may do.
const PAGE: u64 = 4096;

/// Gives back the pages of the program and its libraries that are mapped in. Much of what ran so
/// far (the command line, the description, putting the machine together) does not run again; what
/// does comes back from the page cache at its next use.
pub fn forget_start() {
    // SAFETY: the function given only reads what it is handed, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(forget_object), std::ptr::null_mut()) };
}

/// Forgets one object's segments that are never written to.
unsafe extern "C" fn forget_object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: the loader hands out a description that stays during the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: that many headers are there.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let begin = info.dlpi_addr + header.p_vaddr;
        let end = (begin + header.p_memsz).next_multiple_of(PAGE);
        let begin = begin & !(PAGE - 1);
        // SAFETY: the segment is a mapping of a file that nobody can have changed, so that its
        // pages come back as they were. What the kernel refuses stays mapped.
        unsafe {
            libc::madvise(
                begin as *mut c_void,
                (end - begin) as usize,
                libc::MADV_DONTNEED,
            )
        };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident KiB of mappings of files.
    fn resident_files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssFile:"));
        let number = line.unwrap().split_whitespace().nth(1).unwrap();
        number.parse().unwrap()
    }

    #[test]
    fn the_program_goes_on_with_less() {
        // Other tests run beside this one and map pages in again.
        let fewer = (0..100).any(|_| {
            let before = resident_files();
            forget_start();
            resident_files() < before
        });
        assert!(fewer, "{} KiB", resident_files());
    }
}
