//! The sandbox: what a guest that has taken over the monitor can still do, which is next to
//! nothing.
//!
//! The order is: open everything, [`enter`], then put the machine together. [`enter`] is called
//! once, while the process has a single thread, so that every thread inherits what it does:
//!
//! * network, IPC and host name are the monitor's own and empty (namespaces; without root by way
//!   of a user namespace, where the host allows one),
//! * root becomes an unprivileged user without groups, and all capabilities go,
//! * no file can be opened and no socket connected (Landlock, as far as the kernel has it),
//! * `no_new_privs`, no core dumps, not traceable, a limit on descriptors.
//!
//! Then each thread calls [`restrict_thread`] before it does anything else, which allows it the
//! system calls of its class and kills the process with `SIGSYS` at any other.
//!
//! What the monitor needs opened later comes as descriptors over the control socket.

mod classes;
mod files;
mod filter;
mod privileges;

pub use classes::Class;
pub use privileges::User;

use std::{fmt, io, sync::OnceLock};

/// What happens at a system call that a thread's class does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// The process is killed with `SIGSYS`.
    Kill,
    /// The kernel logs it and lets it pass; for finding out what a class needs.
    Log,
}

/// Why the sandbox was not entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Threads that run already would stay outside.
    #[error("the sandbox is entered too late: the process has {0} threads")]
    Threads(usize),
    /// It was entered before.
    #[error("the sandbox was entered before")]
    Twice,
    /// A user was named but the process is not root's.
    #[error("'user' can only be given when the monitor is started as root: leave it out")]
    NotRoot,
    /// Root's rights cannot be given up.
    #[error(
        "cannot become user {} and group {}: start the monitor as an ordinary user, with CAP_SETUID and CAP_SETGID, or give a 'user' that exists in its user namespace", user.uid, user.gid
    )]
    User {
        /// Who the process was to be.
        user: User,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused something that every kernel since 5.10 has.
    #[error("the host refused {what}, without which there is no sandbox")]
    Refused {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What the host did not have; the sandbox holds without, with one wall less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How far the sandbox reaches on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// What holds, in words.
    pub holds: Vec<String>,
    /// What does not, and why.
    pub missing: Vec<Missing>,
}

static FILTERS: OnceLock<filter::Filters> = OnceLock::new();

/// Shuts the process in. Everything that is to be opened by name is open. As root it becomes
/// `user`, `nobody` if none is given.
///
/// # Errors
/// [`SandboxError`]; the process may then be half in and is to end.
pub fn enter(enforcement: Enforcement, user: Option<User>) -> Result<Entered, SandboxError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    let mut entered = Entered {
        holds: Vec::new(),
        missing: Vec::new(),
    };
    share_heap();
    let filters = filter::Filters::new(enforcement);
    privileges::give_up(user, &mut entered)?;
    files::forbid(&mut entered)?;
    entered.holds.push(match enforcement {
        Enforcement::Kill => "system calls by class of thread".to_owned(),
        Enforcement::Log => "system calls beyond a thread's class are logged only".to_owned(),
    });
    FILTERS.set(filters).map_err(|_| SandboxError::Twice)?;
    Ok(entered)
}

/// Lets all threads share one heap. The C library gives threads heaps of their own otherwise, and
/// opens a file below `/proc` when it makes one of them smaller; they take memory, too.
#[allow(unsafe_code)] // A setting of the allocator.
fn share_heap() {
    // SAFETY: takes numbers only, and is called while there is a single thread.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::warn!("the allocator keeps a heap for each thread");
    }
}

/// Allows the calling thread the system calls of its class from now on. Does nothing where the
/// sandbox was not entered. Threads that it starts afterwards have at most the same.
///
/// A thread that cannot be restricted ends the process.
pub fn restrict_thread(class: Class) {
    let Some(filters) = FILTERS.get() else {
        return;
    };
    if let Err(error) = filters.apply(class) {
        tracing::error!(?class, %error, "a thread cannot be restricted");
        // Going on would leave a way out open.
        std::process::abort();
    }
}
