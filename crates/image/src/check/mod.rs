//! Check and repair of qcow2 images.
//!
//! An independent reader: it shares the header and entry formats with the data
//! path and nothing else, so that a mistake there does not hide here. It reads
//! each table once and in file order, counts who refers to every host cluster,
//! and compares with the refcounts and COPIED flags that the image stores.
//!
//! It promises memory in proportion to the metadata, about a bit per cluster
//! in use, whatever the tables say, and that a repair can be interrupted at
//! any write: the image is then never worse than before, and the same repair
//! finishes it. It never gives up a cluster while some table could not be
//! read, and never changes guest data or the place where it lies.

mod counts;
mod l2;
mod owner;
mod rebuild;
mod refcounts;
mod repair;
mod report;
mod scan;
mod tables;

use std::path::Path;

pub use report::{CheckReport, Finding, Severity};

use crate::lock::FileLock;
use crate::storage::{FileStorage, Storage};
use crate::{CacheMode, Error, LockPolicy, Result};

/// What a repair may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Gives leaked clusters back, nothing else.
    Leaks,
    /// Puts refcounts and flags right, rebuilds refcount structures that are
    /// beyond use, and gives leaked clusters back.
    All,
}

/// Checks a qcow2 file; nobody may write to it meanwhile.
///
/// # Errors
/// Those of opening, locking and of a header that cannot be used. Damage
/// elsewhere is in the report.
pub fn check(path: &Path) -> Result<CheckReport> {
    let (storage, _lock) = open(path, LockPolicy::Shared)?;
    check_storage(&storage, path)
}

/// As [`check`], on storage that the caller has opened and locked. `path` is
/// for messages.
///
/// # Errors
/// Those of a header that cannot be used.
pub fn check_storage(storage: &dyn Storage, path: &Path) -> Result<CheckReport> {
    Ok(scan::Scan::run(storage, path, scan::Refcounts::Kept)?.report)
}

/// Repairs a qcow2 file that nobody else uses. The report says what was fixed
/// and what is left; without a remainder the dirty and corrupt marks are gone.
///
/// # Errors
/// As [`check`], and those of writing.
pub fn repair(path: &Path, mode: Repair) -> Result<CheckReport> {
    let (storage, _lock) = open(path, LockPolicy::Exclusive)?;
    repair_storage(&storage, path, mode)
}

/// As [`repair`], on storage that the caller has opened and locked.
///
/// # Errors
/// As [`check_storage`], and those of writing.
pub fn repair_storage(storage: &dyn Storage, path: &Path, mode: Repair) -> Result<CheckReport> {
    repair::run(storage, path, mode)
}

fn open(path: &Path, policy: LockPolicy) -> Result<(FileStorage, FileLock)> {
    let writable = policy == LockPolicy::Exclusive;
    let storage = FileStorage::open(path, writable, CacheMode::Writeback)
        .map_err(|error| Error::io(path, "open", error))?;
    let lock = FileLock::acquire(&storage, path, policy)?;
    Ok((storage, lock))
}
