//! A filter of system calls (seccomp): a program of the classic Berkeley packet filter over
//! `struct seccomp_data`, which has the call's number at offset 0, the architecture at 4, and
//! six arguments of 64 bits from 16 on, on x86-64 with the lower half first.

#![allow(unsafe_code)] // No wrapper installs a filter.

use libc::sock_filter;
use std::io;

const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const X86_64: u32 = 0xc000_003e;
/// Calls of the x32 interface have this bit; they are the same calls again.
const X32: u32 = 0x4000_0000;

/// A condition: those bits of an argument's lower half that are in the mask have the value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
}

/// The calls that are allowed, each if all its conditions hold. One may be listed several times.
#[derive(Debug, Default)]
pub(super) struct Filter(Vec<(i64, Vec<Condition>)>);

impl Filter {
    /// Allows a call.
    pub(super) fn allow(&mut self, call: i64, conditions: &[Condition]) {
        self.0.push((call, conditions.to_vec()));
    }

    /// Restricts the calling thread and those that it starts; other calls fail with EPERM.
    pub(super) fn apply(&self) -> io::Result<()> {
        let program = self.program();
        let program = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(io::Error::other)?,
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
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn program(&self) -> Vec<sock_filter> {
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let mut program = vec![
            load(ARCHITECTURE),
            jump(libc::BPF_JEQ, X86_64, 1, 0),
            answer(libc::SECCOMP_RET_KILL_PROCESS),
            load(NUMBER),
            jump(libc::BPF_JGE, X32, 0, 1),
            answer(libc::SECCOMP_RET_KILL_PROCESS),
        ];
        for (call, conditions) in &self.0 {
            // Three instructions for each condition, the answer, and the number loaded anew.
            let length = conditions.len() as u8 * 3 + 2;
            program.push(jump(libc::BPF_JEQ, *call as u32, 0, length));
            for (place, condition) in (1..).zip(conditions) {
                program.push(load(16 + u32::from(condition.argument) * 8));
                program.push(step(
                    libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
                    condition.mask,
                ));
                let miss = length - place * 3 - 1;
                program.push(jump(libc::BPF_JEQ, condition.value, 0, miss));
            }
            program.push(answer(libc::SECCOMP_RET_ALLOW));
            program.push(load(NUMBER));
        }
        program.push(answer(refuse));
        program
    }
}

fn step(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn load(offset: u32) -> sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn answer(action: u32) -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, action)
}

fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        jt,
        jf,
        ..step(libc::BPF_JMP | comparison | libc::BPF_K, k)
    }
}
