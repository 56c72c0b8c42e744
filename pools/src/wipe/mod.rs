//! Wiping volumes so that it can be proved.
//!
//! *Wiped* means that every byte of every host extent a volume owns was
//! overwritten in place and read back past the page cache. Where an overwrite
//! cannot mean that (copy-on-write, shared extents, flash, network), the wipe
//! is refused before it begins, or done with `best_effort` and reported as not
//! provable. What is claimed is *Clear* of NIST SP 800-88r2, never *Purge*.
//!
//! It promises that nothing is truncated before it is overwritten, that no
//! file but the volume's own is written, and that a wipe killed at any moment
//! can be resumed by its record. It must never report `overwritten and
//! verified` of bytes it did not read back, follow a link, or take a file in
//! use or one that others depend on.
//!
//! [`Wiper`] is the way in. `docs/wiping.md` has the methods' pass tables, the
//! verdicts, and what is not proved.

mod algorithm;
mod buffer;
mod device;
mod environment;
mod error;
mod extents;
mod finish;
pub(crate) mod hex;
mod journal;
mod keystream;
mod pass;
mod plan;
mod queue;
mod rebuild;
mod report;
mod request;
mod reread;
mod session;
mod sys;
mod target;
mod usage;
mod verdict;
mod wiper;

pub use algorithm::{Algorithm, Pass};
pub use device::DeviceFacts;
pub use environment::{Environment, FileSystemFacts};
pub use error::{Error, Refusal, Result};
pub use extents::{Extent, ExtentMap, Source, map_file};
pub use journal::{
    Failure, FileJournal, FileProgress, FileRecord, Interruption, PassReport, Progress, Record,
    Role, VERSION, Verification, WipeJournal,
};
pub(crate) use journal::{replace, sync_folder};
pub use keystream::{BadSecret, KeyStream, PassKey, Secret};
pub use pass::Tuning;
pub use plan::Plan;
pub use rebuild::Rebuild;
pub use report::{Content, ExtentReport, FileReport, MOST_EXTENTS, Outcome, WipeReport};
pub use request::{Afterwards, Observer, Silent, Stage, Verify, WipeEvent, WipeRequest};
pub use reread::{Reread, RereadFile, reread};
pub use target::{Identity, Kind, Target};
pub use usage::{NoOthers, Usage};
pub use verdict::{Reason, Verdict};
pub use wiper::{Notary, Pending, Wiped, Wiper};
