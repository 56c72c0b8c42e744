//! Filters of system calls (seccomp), built once and applied by each thread to itself.
//!
//! A filter is a program of the classic Berkeley packet filter over `struct seccomp_data`: the
//! call's number at offset 0, the architecture at 4, six arguments of 64 bits from 16 on.

#![allow(unsafe_code)] // No safe wrapper installs a filter.

use super::{
    Class, Enforcement,
    classes::{Allowed, Argument, CLASSES},
};
use libc::sock_filter;
use std::io;

const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const X86_64: u32 = 0xc000_003e;
/// Calls of the x32 interface have this bit in their numbers; they are the same calls again.
const X32: u32 = 0x4000_0000;

/// The programs of all classes.
pub(super) struct Filters {
    classes: Vec<(Class, Vec<sock_filter>)>,
    /// Answers `clone3`, whose flags no filter can read, with ENOSYS: the C library then uses
    /// `clone`, whose flags the classes look at.
    no_clone3: Vec<sock_filter>,
}

impl Filters {
    pub(super) fn new(enforcement: Enforcement) -> Self {
        let otherwise = match enforcement {
            Enforcement::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Enforcement::Log => libc::SECCOMP_RET_LOG,
        };
        let clone3 = Allowed {
            call: libc::SYS_clone3,
            when: Vec::new(),
        };
        let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        Self {
            classes: CLASSES
                .iter()
                .map(|class| {
                    let allow = libc::SECCOMP_RET_ALLOW;
                    (*class, program(&class.allowed(), allow, otherwise))
                })
                .collect(),
            no_clone3: program(&[clone3], unknown, libc::SECCOMP_RET_ALLOW),
        }
    }

    /// Restricts the calling thread.
    pub(super) fn apply(&self, class: Class) -> io::Result<()> {
        rustix::thread::set_no_new_privs(true)?;
        // The strictest of a thread's filters decides. This one goes first, because the other
        // may not allow a further one.
        install(&self.no_clone3)?;
        let known = self.classes.iter().find(|(known, _)| *known == class);
        let (_, program) = known.ok_or(io::ErrorKind::NotFound)?;
        install(program)
    }
}

/// A program that answers calls in `listed` with `answer` and all others with `otherwise`.
fn program(listed: &[Allowed], answer: u32, otherwise: u32) -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(libc::BPF_JEQ, X86_64, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(libc::BPF_JGE, X32, 0, 1),
        give(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    for Allowed { call, when } in listed {
        // The number is in the accumulator here. Each condition takes three instructions, and
        // afterwards the number has to be loaded anew.
        let length = if when.is_empty() {
            1
        } else {
            when.len() as u8 * 3 + 2
        };
        program.push(jump(libc::BPF_JEQ, *call as u32, 0, length));
        for (place, argument) in (1..).zip(when) {
            let (index, mask, value) = match *argument {
                Argument::Is(index, value) => (index, u32::MAX, value as u32),
                Argument::Masked(index, mask, value) => (index, mask as u32, value as u32),
            };
            // On this architecture the lower half of an argument comes first.
            program.push(load(16 + u32::from(index) * 8));
            program.push(statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask));
            // To the answer at last, or to where the number is loaded anew.
            let miss = length - place * 3 - 1;
            program.push(jump(libc::BPF_JEQ, value, 0, miss));
        }
        program.push(give(answer));
        if !when.is_empty() {
            program.push(load(NUMBER));
        }
    }
    program.push(give(otherwise));
    program
}

fn statement(code: u32, k: u32) -> sock_filter {
    jump_by(code, k, 0, 0)
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn give(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    jump_by(libc::BPF_JMP | comparison | libc::BPF_K, k, jt, jf)
}

fn jump_by(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

fn install(program: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, of the length given, and checks it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: runs the few instructions that programs here are made of.
    fn answer(program: &[sock_filter], architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match u32::from(code) {
                0x20 => {
                    accumulator = match k {
                        NUMBER => call,
                        ARCHITECTURE => architecture,
                        _ => arguments[(k as usize - 16) / 8] as u32,
                    }
                }
                0x54 => accumulator &= k,
                0x15 => at += usize::from(if accumulator == k { jt } else { jf }),
                0x35 => at += usize::from(if accumulator >= k { jt } else { jf }),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn calls_are_told_apart_by_number_and_arguments() {
        let listed = [
            Allowed {
                call: 7,
                when: vec![Argument::Is(1, 5), Argument::Masked(2, 0xff00, 0xae00)],
            },
            Allowed {
                call: 9,
                when: Vec::new(),
            },
            Allowed {
                call: 7,
                when: vec![Argument::Is(0, 1)],
            },
        ];
        let program = program(&listed, 1, 2);
        let ask = |call, arguments| answer(&program, X86_64, call, arguments);
        assert_eq!(ask(7, [0, 5, 0xae80, 0, 0, 0]), 1);
        assert_eq!(ask(7, [0, 5, 0xaf80, 0, 0, 0]), 2);
        assert_eq!(ask(7, [0, 6, 0xae80, 0, 0, 0]), 2);
        assert_eq!(ask(7, [1, 6, 0, 0, 0, 0]), 1);
        assert_eq!(ask(9, [3; 6]), 1);
        assert_eq!(ask(8, [1, 5, 0xae00, 0, 0, 0]), 2);
        let killed = libc::SECCOMP_RET_KILL_PROCESS;
        assert_eq!(ask(9 | X32, [0; 6]), killed);
        assert_eq!(answer(&program, 0x4000_0003, 9, [0; 6]), killed);
    }

    #[test]
    fn every_class_works_on_what_is_open_and_none_opens() {
        let filters = Filters::new(Enforcement::Kill);
        for (class, program) in &filters.classes {
            let may = |call: i64, arguments| {
                let action = answer(program, X86_64, call as u32, arguments);
                assert!(
                    [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS].contains(&action)
                );
                action == libc::SECCOMP_RET_ALLOW
            };
            assert!(program.len() < 4096, "{class:?}");
            assert!(may(libc::SYS_read, [0; 6]) && may(libc::SYS_futex, [0; 6]));
            for call in [
                libc::SYS_open,
                libc::SYS_openat,
                libc::SYS_openat2,
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_bind,
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_ptrace,
                libc::SYS_kill,
                libc::SYS_mount,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
                libc::SYS_io_uring_register,
            ] {
                assert!(!may(call, [0; 6]), "{class:?} {call}");
            }
            let run = [0, 0xae80, 0, 0, 0, 0];
            let runs = [Class::Vcpu, Class::Machine].contains(class);
            assert_eq!(may(libc::SYS_ioctl, run), runs, "{class:?}");
            let executable = [0, 0, libc::PROT_EXEC as u64, 0, 0, 0];
            assert!(may(libc::SYS_mmap, [0; 6]) && !may(libc::SYS_mmap, executable));
            // A process, as fork makes one.
            assert!(!may(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]));
        }
    }
}
