//! Domains of the node: what is defined, what runs, and how each comes to its end.
//!
//! A domain that runs has a supervisor ([`crate::supervisor`]), which alone writes what it does;
//! commands write definitions, start supervisors and ask them for things. Nobody has to be alive
//! for the state to be true: whoever reads it looks whether the supervisors of running domains
//! live, and buries those that lost theirs.

mod change;
pub(crate) mod clone;
pub(crate) mod define;
mod devices;
mod error;
mod keys;
mod launch;
mod life;
pub(crate) mod lifecycle;
pub(crate) mod lock;
pub(crate) mod paths;
pub(crate) mod read;
pub(crate) mod save;
pub(crate) mod snapshots;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod translate;
pub(crate) mod truth;
mod wait;

pub use change::{Amount, Scope};
pub use clone::DomainClone;
pub use define::{DefineOptions, UndefineOptions, Undefined};
pub use devices::{CardInfo, DiskStats, DomainStats, MediumChange};
pub use error::Error;
pub use keys::{MOST_KEYS, scan_code};
pub use life::{ConsoleStream, Hold, Resumption, RunStats, StartOptions, Started};
pub use lifecycle::Cause;
pub use read::{DomainInfo, XmlOptions};
pub use snapshots::{SnapshotDelete, SnapshotInfo, SnapshotOptions};
pub use state::{
    CrashedReason, DomainState, PausedReason, RunningReason, ShutOffReason, ShutdownReason,
};
pub use translate::NetworkServices;
