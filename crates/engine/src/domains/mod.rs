//! Domains of the node: what is defined, what runs, and how each comes to its end.
//!
//! A domain that runs has a supervisor ([`crate::supervisor`]), which alone writes what it does;
//! commands write definitions, start supervisors and ask them for things. Nobody has to be alive
//! for the state to be true: whoever reads it looks whether the supervisors of running domains
//! live, and buries those that lost theirs.

mod change;
mod define;
mod error;
pub(crate) mod lifecycle;
pub(crate) mod lock;
pub(crate) mod paths;
mod read;
pub(crate) mod state;
pub(crate) mod table;
mod truth;

pub use change::{Amount, Scope};
pub use define::{DefineOptions, UndefineOptions, Undefined};
pub use error::Error;
pub use lifecycle::Cause;
pub use read::{DomainInfo, XmlOptions};
pub use state::{
    CrashedReason, DomainState, PausedReason, RunningReason, ShutOffReason, ShutdownReason,
};
