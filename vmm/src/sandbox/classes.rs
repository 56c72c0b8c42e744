//! The classes of threads and the system calls that each may make.
//!
//! `cenote-vmm --sandbox log` lets everything pass and has the kernel log what is not listed here
//! (`type=1326` in its log), which is how to find what a change needs.

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Runs a virtual processor and answers its accesses.
    Vcpu,
    /// Serves timers and characters.
    Device,
    /// Serves the control socket.
    Control,
    /// Serves a queue of a network card or the like.
    Worker,
    /// Serves a queue of a disk. It may start threads, for requests that would hold others up.
    Disk,
    /// Decides; saves and resets. It may start threads, which then restrict themselves further.
    Machine,
}

/// All of them.
pub(super) const CLASSES: [Class; 6] = [
    Class::Vcpu,
    Class::Device,
    Class::Control,
    Class::Worker,
    Class::Disk,
    Class::Machine,
];

/// A condition on an argument of a system call, by the argument's place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    /// Its lower 32 bits have this value.
    Is(u8, u64),
    /// Those bits of its lower 32 that are in the mask have this value.
    Masked(u8, u64, u64),
}

/// A system call that may be made if all conditions hold.
#[derive(Debug, Clone)]
pub(super) struct Allowed {
    pub(super) call: i64,
    pub(super) when: Vec<Argument>,
}

fn free(calls: &[i64]) -> impl Iterator<Item = Allowed> {
    calls.iter().map(|call| Allowed {
        call: *call,
        when: Vec::new(),
    })
}

fn with(call: i64, when: &[Argument]) -> Allowed {
    Allowed {
        call,
        when: when.to_vec(),
    }
}

/// Code is never made: neither mapped nor turned into.
const NOT_EXECUTABLE: Argument = Argument::Masked(2, libc::PROT_EXEC as u64, 0);

/// Memory, waiting, time, and the use and closing of what is open: what the allocator, locks,
/// events and the end of a thread need.
const EVERY: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_time,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Files that are open.
const FILES: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    // By name they tell of a file no more than that it is there.
    libc::SYS_newfstatat,
    libc::SYS_statx,
];

/// What starting a thread needs beside `clone`.
const STARTS: &[i64] = &[
    // Not killed for it, so that the C library hears that it is not there and uses `clone`.
    libc::SYS_clone3,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
];

/// What only the thread that decides needs, the restriction of new threads among it.
const DECIDES: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_seccomp,
    libc::SYS_sysinfo,
];

/// What is asked of block devices: sizes, discards, zeroes.
fn block_devices() -> impl Iterator<Item = Allowed> {
    const BLKSSZGET: u64 = 0x1268;
    const BLKDISCARD: u64 = 0x1277;
    const BLKPBSZGET: u64 = 0x127b;
    const BLKZEROOUT: u64 = 0x127f;
    const BLKGETSIZE64: u64 = 0x8008_1272;
    [BLKSSZGET, BLKDISCARD, BLKPBSZGET, BLKZEROOUT, BLKGETSIZE64]
        .into_iter()
        .map(|request| with(libc::SYS_ioctl, &[Argument::Is(1, request)]))
}

/// KVM's requests on descriptors of machines and processors have this number in their second byte.
const KVM: u64 = 0xae;

/// A request of KVM, whatever its direction and size.
fn kvm(number: u64) -> Allowed {
    let request = Argument::Masked(1, 0xffff, KVM << 8 | number);
    with(libc::SYS_ioctl, &[request])
}

/// The requests that answering a guest leads to: running it, its registers where it is stuck,
/// levels of interrupt lines, where interrupts and doorbells lead, what memory is where.
const RUNNING: &[u64] = &[
    0x80, // KVM_RUN
    0x81, // KVM_GET_REGS
    0x46, // KVM_SET_USER_MEMORY_REGION
    0x61, // KVM_IRQ_LINE
    0x67, // KVM_IRQ_LINE_STATUS
    0x6a, // KVM_SET_GSI_ROUTING
    0x76, // KVM_IRQFD
    0x79, // KVM_IOEVENTFD
    0xa5, // KVM_SIGNAL_MSI
];

/// The same without running, for threads that stand beside the guest.
fn interrupts() -> impl Iterator<Item = Allowed> {
    [0x61, 0x67, 0x6a, 0x76, 0x79, 0xa5].into_iter().map(kvm)
}

fn every() -> Vec<Allowed> {
    let own = u64::from(std::process::id());
    let mut allowed: Vec<_> = free(EVERY).collect();
    allowed.extend([
        with(libc::SYS_mmap, &[NOT_EXECUTABLE]),
        with(libc::SYS_mprotect, &[NOT_EXECUTABLE]),
        with(libc::SYS_tgkill, &[Argument::Is(0, own)]),
        with(
            libc::SYS_fcntl,
            &[Argument::Is(1, libc::F_DUPFD_CLOEXEC as u64)],
        ),
        with(libc::SYS_fcntl, &[Argument::Is(1, libc::F_GETFL as u64)]),
        // Unoptimized builds ask before they close.
        with(libc::SYS_fcntl, &[Argument::Is(1, libc::F_GETFD as u64)]),
    ]);
    allowed
}

fn files() -> impl Iterator<Item = Allowed> {
    free(FILES).chain([
        with(libc::SYS_fcntl, &[Argument::Is(1, libc::F_SETFL as u64)]),
        with(libc::SYS_fcntl, &[Argument::Is(1, libc::F_SETFD as u64)]),
        with(
            libc::SYS_fcntl,
            &[Argument::Is(1, libc::F_OFD_SETLK as u64)],
        ),
        with(
            libc::SYS_fcntl,
            &[Argument::Is(1, libc::F_OFD_GETLK as u64)],
        ),
    ])
}

/// Threads of this process, never processes.
fn threads() -> Allowed {
    let flags = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_FILES) as u64;
    with(libc::SYS_clone, &[Argument::Masked(0, flags, flags)])
}

/// What a thread's start calls `prctl` for, and its restriction.
fn thread_controls() -> impl Iterator<Item = Allowed> {
    [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS]
        .into_iter()
        .map(|option| with(libc::SYS_prctl, &[Argument::Is(0, option as u64)]))
}

/// The terminal's mode.
fn terminal() -> impl Iterator<Item = Allowed> {
    const TCGETS2: u64 = 0x802c_542a;
    const TCSETS2: u64 = 0x402c_542b;
    [libc::TCGETS, libc::TCSETS, TCGETS2, TCSETS2]
        .into_iter()
        .map(|request| with(libc::SYS_ioctl, &[Argument::Is(1, request)]))
}

/// What the driver of a network card decides of its tap: offloads, and which queues take part.
fn taps() -> impl Iterator<Item = Allowed> {
    [libc::TUNSETOFFLOAD, libc::TUNSETQUEUE]
        .into_iter()
        .map(|request| with(libc::SYS_ioctl, &[Argument::Is(1, request)]))
}

/// Queues of requests to the kernel (io_uring). They were set up before, for reads and writes of
/// what is open; the kernel refuses anything else. A queue that a thread could set up itself would
/// do what these lists forbid.
const RINGS: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_io_uring_enter,
];

/// Sockets that are open.
const SOCKETS: &[i64] = &[
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
];

impl Class {
    /// What threads of this class may do.
    pub(super) fn allowed(self) -> Vec<Allowed> {
        let mut allowed = every();
        match self {
            Self::Vcpu => {
                allowed.extend(RUNNING.iter().copied().map(kvm));
                allowed.extend(taps());
            }
            Self::Device => allowed.extend(interrupts()),
            Self::Control => allowed.extend(free(&[
                libc::SYS_accept4,
                libc::SYS_epoll_create1,
                libc::SYS_epoll_ctl,
                libc::SYS_epoll_pwait,
                libc::SYS_epoll_wait,
                libc::SYS_recvfrom,
                libc::SYS_recvmsg,
                libc::SYS_sendmsg,
                libc::SYS_sendto,
                libc::SYS_shutdown,
            ])),
            Self::Worker => {
                allowed.extend(files());
                allowed.extend(free(RINGS));
                allowed.extend(free(SOCKETS));
                allowed.extend(taps());
                allowed.extend(interrupts());
            }
            Self::Disk => {
                allowed.extend(files());
                allowed.extend(block_devices());
                allowed.extend(free(RINGS));
                allowed.extend(free(STARTS));
                allowed.extend(interrupts());
                allowed.push(threads());
                allowed.extend(thread_controls());
            }
            Self::Machine => {
                allowed.extend(files());
                allowed.extend(block_devices());
                allowed.extend(free(STARTS));
                allowed.extend(free(RINGS));
                allowed.extend(free(SOCKETS));
                allowed.extend(free(DECIDES));
                allowed.push(with(
                    libc::SYS_ioctl,
                    &[Argument::Masked(1, 0xff00, KVM << 8)],
                ));
                allowed.push(threads());
                allowed.extend(thread_controls());
                allowed.extend(terminal());
            }
        }
        allowed
    }
}
