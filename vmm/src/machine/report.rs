//! How a machine ended.

use super::run::describe;
use serde::{Deserialize, Serialize};

/// Why the monitor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCause {
    /// The guest switched itself off.
    GuestPowerOff,
    /// The guest reset itself, and the description wants that to end the monitor.
    GuestReset,
    /// The guest's kernel reported a panic.
    GuestPanic,
    /// The guest's processor shut down after a triple fault.
    TripleFault,
    /// The guest cannot go on because of the monitor, KVM or the host.
    MonitorError,
    /// Somebody told the monitor to quit.
    Quit,
    /// The state was saved and the machine was to end with that.
    Saved,
    /// A signal ended the monitor, which left no report; [`crate::supervise`] concludes this.
    Killed,
    /// The sandbox ended the monitor; concluded likewise.
    SandboxViolation,
}

impl ExitCause {
    /// The monitor's exit status: 0 where the guest or its owner wanted the end.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::GuestPowerOff | Self::GuestReset | Self::Quit | Self::Saved => 0,
            Self::GuestPanic => 3,
            Self::TripleFault => 4,
            Self::MonitorError | Self::Killed | Self::SandboxViolation => 1,
        }
    }
}

/// The exit report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitReport {
    /// Version of the report's shape: 1.
    pub version: u32,
    /// The cause.
    pub cause: ExitCause,
    /// What a person needs to know beyond the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// How often the guest was reset in place.
    pub resets: u64,
    /// For how long the guest ran, in milliseconds, pauses not counted.
    pub ran_milliseconds: u64,
}

impl ExitReport {
    /// The report of a monitor that failed before its guest ran.
    #[must_use]
    pub fn failed(error: &dyn std::error::Error) -> Self {
        Self {
            version: 1,
            cause: ExitCause::MonitorError,
            detail: Some(describe(error)),
            resets: 0,
            ran_milliseconds: 0,
        }
    }
}
