//! Ctrl-C: the first one asks the operation to undo itself, the second one ends the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::exit::Exit;

/// Whether and by what the command was asked to stop.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Installs the handlers for SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// The system refused a handler.
    pub fn install() -> io::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let status = i32::from(exit_for(signal).code());
            // Order matters: the second signal finds the flag that the first one set.
            flag::register_conditional_shutdown(signal, status, Arc::clone(&interrupt.asked))?;
            flag::register(signal, Arc::clone(&interrupt.asked))?;
            let number = usize::try_from(signal).unwrap_or_default();
            flag::register_usize(signal, Arc::clone(&interrupt.signal), number)?;
        }
        Ok(interrupt)
    }

    /// Whether a signal has arrived.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The flag itself, for loops that take one.
    #[must_use]
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.asked
    }

    /// The exit code of a command that stopped because of the signal.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let signal = i32::try_from(self.signal.load(Ordering::Relaxed));
        exit_for(signal.unwrap_or_default())
    }
}

/// 130 is what shells report for SIGINT; the other signals count as a cancellation.
fn exit_for(signal: i32) -> Exit {
    if signal == SIGINT {
        Exit::Interrupted
    } else {
        Exit::Declined
    }
}
