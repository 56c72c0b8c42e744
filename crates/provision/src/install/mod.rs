//! An install in two phases, as far as it is a matter of documents and decisions.
//!
//! Phase one runs the installer; phase two is the domain as it stays. [`phases`] makes both
//! documents from a [`Request`]; [`decide`] says from how phase one ended, and from what the
//! guest reported, whether there is a second; [`Progress`] reads what installers print. Nothing
//! here starts anything.

mod blank;
mod completion;
mod documents;
mod progress;
mod request;

pub use blank::{Contents, contents};
pub use completion::{Decision, End, Evidence, Policy, Reason, decide};
pub use documents::{Phases, Print, phases};
pub use progress::{Progress, Stage, Step};
pub use request::{
    Disk, DiskSource, Display, Drive, InstallPaths, Method, Network, NetworkSource, Order,
    OrderError, Request, RequestError, choose_order, install_memory,
};
