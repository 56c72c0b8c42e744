//! The exit codes: a promise to scripts, so they never change meaning.

use serde::Serialize;

/// What a finished `cenote` says to the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// The command did what was asked.
    Ok = 0,
    /// It failed for a reason that has no code of its own, such as an I/O error.
    Failure = 1,
    /// The command line, the configuration or a document is wrong.
    Usage = 2,
    /// A pool, volume, snapshot or file that was named does not exist.
    NotFound = 3,
    /// Something with that name exists, or the object is in use by something else.
    Conflict = 4,
    /// The object is not in a state in which this can be done.
    InvalidState = 5,
    /// The machine, its permissions or its space do not allow it.
    Host = 6,
    /// A wait ran into its time limit.
    Timeout = 7,
    /// The operation ran, but what it was to prove does not hold.
    Verification = 8,
    /// The person at the terminal declined, or nobody was there to confirm.
    Declined = 9,
    /// Interrupted by Ctrl-C (SIGINT).
    Interrupted = 130,
}

impl Exit {
    /// Every code, in order, as `cenote help exit-codes` prints them.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::InvalidState,
        Self::Host,
        Self::Timeout,
        Self::Verification,
        Self::Declined,
        Self::Interrupted,
    ];

    /// The number given to the shell.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// One line on what the code means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "the command did what was asked",
            Self::Failure => "it failed; the message on standard error says why",
            Self::Usage => "the command line, the configuration or a document is wrong",
            Self::NotFound => "a pool, volume, snapshot or file that was named does not exist",
            Self::Conflict => "it exists already, or something else is using it",
            Self::InvalidState => "the object is not in a state that allows this",
            Self::Host => "the machine lacks something: a permission, a feature, space",
            Self::Timeout => "a wait ran into its time limit",
            Self::Verification => "it ran, but what it was to prove does not hold",
            Self::Declined => "declined, cancelled, or nobody was there to confirm",
            Self::Interrupted => "interrupted by Ctrl-C",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
