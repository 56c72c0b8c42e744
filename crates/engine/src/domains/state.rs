//! States of a domain and the reasons for them, with libvirt's numbers and words
//! (`virDomainState` and its reasons in <https://libvirt.org/html/libvirt-libvirt-domain.html>;
//! the words are virsh's).

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $($(#[$doc])* $variant = $number,)*
        }

        impl $name {
            /// All of them, in libvirt's order.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word virsh prints.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }

            /// libvirt's number.
            pub fn number(self) -> i64 {
                self as i64
            }

            /// The reason with libvirt's number; unknown ones are `Unknown`.
            pub fn of_number(number: i64) -> Self {
                Self::ALL.iter().copied().find(|reason| reason.number() == number).unwrap_or_default()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a domain runs.
    RunningReason {
        /// Not known.
        #[default]
        Unknown = 0 "unknown",
        /// It was started from nothing.
        Booted = 1 "booted",
        /// It came from another host.
        Migrated = 2 "migrated",
        /// It goes on from a file.
        Restored = 3 "restored",
        /// It goes on from a snapshot.
        FromSnapshot = 4 "from snapshot",
        /// It was resumed.
        Unpaused = 5 "unpaused",
        /// A migration was broken off.
        MigrationCanceled = 6 "migration canceled",
        /// A save did not succeed.
        SaveCanceled = 7 "save canceled",
        /// It woke up.
        Wakeup = 8 "event wakeup",
        /// It was taken up after a crash.
        Crashed = 9 "crashed",
    }
}

reasons! {
    /// Why a domain stands still.
    PausedReason {
        /// Not known.
        #[default]
        Unknown = 0 "unknown",
        /// Somebody asked for it.
        User = 1 "user",
        /// For a migration.
        Migration = 2 "migrating",
        /// While it is saved.
        Save = 3 "saving",
        /// While its memory is dumped.
        Dump = 4 "dumping",
        /// A disk could not be read or written.
        IoError = 5 "I/O error",
        /// Its watchdog ran out.
        Watchdog = 6 "watchdog",
        /// It stands as it was in a snapshot.
        FromSnapshot = 7 "from snapshot",
        /// It is being shut down.
        ShuttingDown = 8 "shutting down",
        /// While a snapshot is made.
        Snapshot = 9 "creating snapshot",
        /// It crashed and is kept.
        Crashed = 10 "crashed",
        /// It is being started.
        StartingUp = 11 "starting up",
    }
}

reasons! {
    /// Why a domain is being shut down.
    ShutdownReason {
        /// Not known.
        #[default]
        Unknown = 0 "unknown",
        /// Somebody asked for it.
        User = 1 "user",
    }
}

reasons! {
    /// Why a domain is shut off.
    ShutOffReason {
        /// It was not run since it was defined.
        #[default]
        Unknown = 0 "unknown",
        /// The guest switched itself off.
        Shutdown = 1 "shutdown",
        /// Somebody pulled the plug.
        Destroyed = 2 "destroyed",
        /// Guest or monitor crashed.
        Crashed = 3 "crashed",
        /// It went to another host.
        Migrated = 4 "migrated",
        /// It was saved to a file.
        Saved = 5 "saved",
        /// It could not be started.
        Failed = 6 "failed",
        /// A snapshot that was off was reverted to.
        FromSnapshot = 7 "from snapshot",
    }
}

reasons! {
    /// Why a domain has crashed.
    CrashedReason {
        /// Not known.
        #[default]
        Unknown = 0 "unknown",
        /// The guest's kernel panicked.
        Panicked = 1 "panicked",
    }
}

/// State of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// Its vCPUs run.
    Running(RunningReason),
    /// Its memory is kept, its vCPUs stand still.
    Paused(PausedReason),
    /// The guest is shutting itself down.
    InShutdown(ShutdownReason),
    /// Nothing of it runs.
    ShutOff(ShutOffReason),
    /// It crashed and is kept for a look at it.
    Crashed(CrashedReason),
}

impl DomainState {
    /// libvirt's numbers of state and reason.
    pub fn numbers(self) -> (i64, i64) {
        match self {
            DomainState::Running(reason) => (1, reason.number()),
            DomainState::Paused(reason) => (3, reason.number()),
            DomainState::InShutdown(reason) => (4, reason.number()),
            DomainState::ShutOff(reason) => (5, reason.number()),
            DomainState::Crashed(reason) => (6, reason.number()),
        }
    }

    /// The state with libvirt's numbers; `None` if no domain here is ever in it.
    pub fn of_numbers(state: i64, reason: i64) -> Option<Self> {
        Some(match state {
            1 => DomainState::Running(RunningReason::of_number(reason)),
            3 => DomainState::Paused(PausedReason::of_number(reason)),
            4 => DomainState::InShutdown(ShutdownReason::of_number(reason)),
            5 => DomainState::ShutOff(ShutOffReason::of_number(reason)),
            6 => DomainState::Crashed(CrashedReason::of_number(reason)),
            _ => return None,
        })
    }

    /// The state's word, as virsh prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            DomainState::Running(_) => "running",
            DomainState::Paused(_) => "paused",
            DomainState::InShutdown(_) => "in shutdown",
            DomainState::ShutOff(_) => "shut off",
            DomainState::Crashed(_) => "crashed",
        }
    }

    /// The reason's word, as virsh prints it.
    pub fn reason(self) -> &'static str {
        match self {
            DomainState::Running(reason) => reason.as_str(),
            DomainState::Paused(reason) => reason.as_str(),
            DomainState::InShutdown(reason) => reason.as_str(),
            DomainState::ShutOff(reason) => reason.as_str(),
            DomainState::Crashed(reason) => reason.as_str(),
        }
    }

    /// Whether the domain has an id and a supervisor.
    pub fn is_active(self) -> bool {
        !matches!(self, DomainState::ShutOff(_))
    }
}

impl fmt::Display for DomainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row 36: every state and reason that virsh prints for one of our domains.
    #[test]
    fn numbers_and_words_are_libvirts() {
        let table = [
            (1, 0, "running", "unknown"),
            (1, 1, "running", "booted"),
            (1, 2, "running", "migrated"),
            (1, 3, "running", "restored"),
            (1, 4, "running", "from snapshot"),
            (1, 5, "running", "unpaused"),
            (1, 7, "running", "save canceled"),
            (3, 1, "paused", "user"),
            (3, 3, "paused", "saving"),
            (3, 5, "paused", "I/O error"),
            (3, 6, "paused", "watchdog"),
            (3, 7, "paused", "from snapshot"),
            (3, 11, "paused", "starting up"),
            (4, 1, "in shutdown", "user"),
            (5, 0, "shut off", "unknown"),
            (5, 1, "shut off", "shutdown"),
            (5, 2, "shut off", "destroyed"),
            (5, 3, "shut off", "crashed"),
            (5, 4, "shut off", "migrated"),
            (5, 5, "shut off", "saved"),
            (5, 6, "shut off", "failed"),
            (5, 7, "shut off", "from snapshot"),
            (6, 1, "crashed", "panicked"),
        ];
        for (number, reason, word, why) in table {
            let state = DomainState::of_numbers(number, reason).unwrap();
            assert_eq!((state.as_str(), state.reason()), (word, why));
            assert_eq!(state.numbers(), (number, reason));
        }
        assert_eq!(DomainState::of_numbers(2, 0), None);
        let unheard = DomainState::of_numbers(5, 99).unwrap();
        assert_eq!(unheard.reason(), "unknown");
    }
}
