//! Block images: raw and qcow2, backing chains, internal snapshots, locks.
pub mod storage;

pub use storage::CacheMode;
