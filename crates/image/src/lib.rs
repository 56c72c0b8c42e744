//! Block images: raw and qcow2, backing chains, internal snapshots, locks.
//!
//! One engine serves the command-line tools, the storage pools and the
//! monitor, so that a snapshot, a commit or a wipe knows every cluster.
//!
//! It promises that at any instant the file is valid or has leaks only, that
//! what a flush covered is there after a crash, and that no header field leads
//! to an unbounded allocation. It must never guess a format from content, open
//! a backing file for writing, or write to an image it does not fully
//! understand.

pub mod chain;
pub mod check;
pub mod codec;
pub mod create;
pub mod error;
mod image;
pub mod info;
pub mod lock;
pub mod map;
pub mod nbd;
pub mod ops;
pub mod options;
mod progress;
pub mod qcow2;
pub mod queue;
mod raw;
pub mod snapshot;
pub mod storage;

pub use create::BackingSpec;
pub use error::{Error, Result};
pub use image::{Image, OpenOptions};
pub use info::ImageInfo;
pub use map::Extent;
pub use options::{BackingPolicy, Format, LockPolicy};
pub use progress::Progress;
pub use queue::Queue;
pub use snapshot::Snapshot;
pub use storage::{AlignedBuffer, CacheMode};
