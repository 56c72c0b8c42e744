//! Unattended installs: `cenote install`.
//!
//! An install has two phases. In the first a transient domain runs the installer, with the
//! kernel and initrd that came from the media or by the media's own boot loader, and the answer file
//! in the initrd or on a disc beside it; it ends where the guest resets. The second is the domain as it stays, which boots its disk.
//!
//! [`Node::install_prepare`](crate::Node::install_prepare) reads the media, looks the answer file
//! over and makes both documents; nothing is changed by it. [`Node::install`](crate::Node::install)
//! then does it under an entry of the journal:
//!
//! | Step | What is there | After a death |
//! |---|---|---|
//! | 0 | volumes and work files are made | undone |
//! | 1 | phase one runs, or has ended | goes on; decided when it ends, by its supervisor or the next command |
//! | 2 | it was a success | the domain is defined and started |
//! | 3 | it was none | cleared away, as was asked for |
//!
//! What decides is in files and in the event log, not in the process that watches, so that
//! whoever comes next decides the same.

mod error;
mod evidence;
mod files;
mod prepare;
mod protocol;
mod request;
mod run;
#[cfg(test)]
mod tests;

pub use cenote_provision::answer::Kind as AnswerKind;
pub use cenote_provision::deliver::Delivery;
pub use cenote_provision::install::{NetworkSource, Phases, Print, Stage, Step};
pub use cenote_provision::media::{Location, MediaError};
pub use error::Error;
pub use prepare::Prepared;
pub(crate) use protocol::Install;
pub use request::{Answer, InstallDisk, InstallRequest, InstallSource, OnFailure};
pub use run::{InstallWatch, Installed, Told};
