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

pub mod check;
pub mod codec;
pub mod error;
pub mod lock;
pub mod options;
pub mod qcow2;
pub mod storage;

pub use error::{Error, Result};
pub use options::{BackingPolicy, Format, LockPolicy};
pub use storage::CacheMode;
