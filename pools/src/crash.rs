//! Places to die, for the kill-point suites.
//!
//! Every durable step of a journalled operation passes [`point`]. A test
//! process that called [`arm`] with `n` kills itself with `SIGKILL` at the
//! `n`-th point it passes. Nothing in the product calls [`arm`], no
//! environment variable or option reaches it: there a point is one load of an
//! atomic that is always zero.

use std::sync::atomic::{AtomicU64, Ordering};

static REMAINING: AtomicU64 = AtomicU64::new(0);

/// Makes this process die at the `n`-th point it passes from now on, counted
/// from 1; 0 disarms. For tests only.
pub fn arm(n: u64) {
    REMAINING.store(n, Ordering::SeqCst);
}

/// Points that are still to be passed before death; 0 when disarmed. After a
/// run armed with a large `n` this tells how many points the run has.
pub fn remaining() -> u64 {
    REMAINING.load(Ordering::SeqCst)
}

/// Dies here if a test has armed this point. `name` goes to the log.
pub fn point(name: &str) {
    if REMAINING.load(Ordering::Relaxed) == 0 {
        return;
    }
    let before = REMAINING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        Some(left.saturating_sub(1))
    });
    if before == Ok(1) {
        tracing::error!(point = name, "dying at a kill point");
        let me = rustix::process::getpid();
        loop {
            // Without cleanup of any kind, as `kill -9` from outside.
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        }
    }
}
