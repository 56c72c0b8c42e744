//! Operations on whole images and chains: copy, compare, commit, rebase,
//! flatten, resize.
//!
//! What they promise together:
//! - Until an operation's last step, which is one atomic write of a header,
//!   every image it touches reads as before, so that a crash or a cancel loses
//!   nothing and running it again completes it.
//! - Whoever would be harmed is asked first: an internal snapshot that reads
//!   through a layer about to change makes the operation refuse by name. Other
//!   overlays of that layer are known to the pool, not here: callers check.
//! - Memory is bounded by the number of threads, never by an image's size.

mod commit;
mod compare;
mod copy;
mod layers;
mod pieces;
mod rebase;
mod resize;
mod zeroes;

pub use commit::{CommitReport, commit};
pub use compare::{Comparison, compare};
pub use copy::{CopyOptions, CopyReport, copy, open_target};
pub use rebase::{RebaseReport, flatten, rebase, rebase_unsafe};
pub use resize::resize;

use crate::{AlignedBuffer, Error, Image, Result};

/// Most bytes one worker holds in one buffer. At least the largest cluster.
const PIECE: u64 = 2 << 20;

/// A worker's buffer, aligned for direct I/O on any device.
fn buffer() -> AlignedBuffer {
    AlignedBuffer::new(PIECE as usize, 4096)
}

/// Threads that an operation uses: enough to overlap reading, writing and
/// checking for zeroes, few enough that their buffers stay small.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8))
}

/// An error about an image as a whole.
fn refusal(image: &Image, reason: impl Into<String>) -> Error {
    Error::invalid(image.path().display().to_string(), reason)
}

/// Fails unless the image was opened for writing.
fn check_writable(image: &Image) -> Result<()> {
    if image.is_writable() {
        return Ok(());
    }
    Err(Error::ReadOnly {
        path: image.path().to_owned(),
    })
}

/// Internal snapshots read through the backing chain where they hold nothing
/// themselves, so nothing below an image that has some may change.
fn refuse_snapshots(image: &Image, action: &str) -> Result<()> {
    let names: Vec<String> = image
        .snapshots()?
        .iter()
        .map(|snapshot| format!("'{}'", snapshot.name))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(refusal(
        image,
        format!(
            "cannot {action}: its internal snapshots {} read through its backing file and would \
             change; delete them first (`cenote vol-snapshot-delete`)",
            names.join(", ")
        ),
    ))
}
