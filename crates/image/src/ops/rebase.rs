//! Rebase: another backing file under an overlay, or none (flatten).

use std::sync::atomic::{AtomicU64, Ordering};

use super::layers::shortest_between;
use super::pieces::{Kind, Piece, Pieces, run};
use super::zeroes::is_zero;
use super::{buffer, check_writable, default_threads, refusal, refuse_snapshots};
use crate::{AlignedBuffer, BackingSpec, Extent, Image, Progress, Result};

/// What a [`rebase`] or [`flatten`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct RebaseReport {
    /// Bytes of data copied into the overlay.
    pub written: u64,
    /// Bytes made zero in the overlay.
    pub zeroes: u64,
}

/// Puts `new` under `overlay` without changing what the overlay reads: where
/// the old and the new chain below differ, the old content is copied into the
/// overlay first. `name` is what the header will say of the new backing file.
/// `overlay` is open writable with its old chain; afterwards it must be
/// reopened to read through the new one.
///
/// Until the header's one atomic write at the end the overlay reads through
/// its old chain, whose layers are not touched.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) where the overlay holds internal snapshots (they read
/// through the backing file, too, and cannot be given what they lose) or is
/// not a qcow2 image.
pub fn rebase(
    overlay: &Image,
    new: &Image,
    name: &BackingSpec,
    progress: &dyn Progress,
) -> Result<RebaseReport> {
    pull(overlay, Some(new), Some(name), progress)
}

/// Copies all that `overlay` reads from its backing chain into itself and
/// leaves it without a backing file. As [`rebase`] otherwise.
///
/// # Errors
/// As [`rebase`].
pub fn flatten(overlay: &Image, progress: &dyn Progress) -> Result<RebaseReport> {
    pull(overlay, None, None, progress)
}

/// Changes only what the header of `overlay` says of its backing file, for a
/// file that was moved or renamed. What the overlay reads is not looked at:
/// where the named file has other content, the overlay's content changes.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a name that does not fit the header.
pub fn rebase_unsafe(overlay: &Image, name: Option<&BackingSpec>) -> Result<()> {
    overlay.set_backing(name)
}

impl Image {
    /// Writes another backing file into the header, or none, in one atomic
    /// change. Reads through this handle go through the old one until it is
    /// opened again.
    fn set_backing(&self, name: Option<&BackingSpec>) -> Result<()> {
        let Some(qcow2) = self.qcow2() else {
            return Err(refusal(self, "a raw image has no backing file"));
        };
        let tx = qcow2.transaction()?;
        tx.replace_header(|header| {
            header.backing_name = name.map(|name| name.path.clone());
            header.extensions.backing_format = name.map(|name| name.format.to_string());
        })
    }
}

fn pull(
    overlay: &Image,
    new: Option<&Image>,
    name: Option<&BackingSpec>,
    progress: &dyn Progress,
) -> Result<RebaseReport> {
    check_writable(overlay)?;
    refuse_snapshots(overlay, "change its backing file")?;
    let job = Job {
        overlay,
        new,
        written: AtomicU64::new(0),
        zeroes: AtomicU64::new(0),
    };
    let size = overlay.size();
    let shared = new.and_then(|new| shared_layer(overlay, new));
    // Behind the end of a layer to be left out the chains differ, whatever
    // the layers below it hold.
    let shared_end = shared
        .map_or(0, |depth| shortest_between(overlay, depth))
        .min(size);
    let is_own = |extent: &Extent| extent.present && extent.depth == 0;
    let is_shared =
        move |extent: &Extent| shared.is_some_and(|depth| !extent.present || extent.depth >= depth);
    let content = |extent: &Extent| if extent.zero { Kind::Zero } else { Kind::Data };
    let alignment = overlay.cluster_size().max(512);
    let front = overlay.extents(0, shared_end)?;
    let front = Pieces::new(front, 0, shared_end, alignment, move |e| {
        if is_own(e) || is_shared(e) {
            Kind::Skip
        } else {
            content(e)
        }
    });
    let rest = overlay.extents(shared_end, size - shared_end)?;
    let rest = Pieces::new(rest, shared_end, size, alignment, move |e| {
        if is_own(e) { Kind::Skip } else { content(e) }
    });
    run(
        front.chain(rest),
        size,
        default_threads(),
        progress,
        || (buffer(), buffer()),
        |(old, new), piece| job.piece(old, new, piece),
    )?;
    overlay.flush()?;
    overlay.set_backing(name)?;
    Ok(RebaseReport {
        written: job.written.into_inner(),
        zeroes: job.zeroes.into_inner(),
    })
}

/// The depth at which `new` stands in the old chain of `overlay`, if it does:
/// from there on both chains are one and need no comparison.
fn shared_layer(overlay: &Image, new: &Image) -> Option<u32> {
    (1..)
        .map_while(|depth| overlay.layer(depth).map(|layer| (depth, layer)))
        .find(|(_, layer)| layer.is_same_file(new))
        .map(|(depth, _)| depth)
}

struct Job<'a> {
    overlay: &'a Image,
    new: Option<&'a Image>,
    written: AtomicU64,
    zeroes: AtomicU64,
}

impl Job<'_> {
    fn piece(
        &self,
        old: &mut AlignedBuffer,
        other: &mut AlignedBuffer,
        piece: &Piece,
    ) -> Result<()> {
        for (start, length) in piece.parts() {
            match piece.kind {
                Kind::Skip => return Ok(()),
                Kind::Zero => self.settle_zero(other, start, length)?,
                Kind::Data => self.settle_data(old, other, start, length)?,
            }
        }
        Ok(())
    }

    /// The old chain reads as zeroes here. Must the overlay say so itself?
    fn settle_zero(&self, other: &mut AlignedBuffer, start: u64, length: u64) -> Result<()> {
        let data = &mut other[..length as usize];
        if self.new_is_zero(start, data)? {
            return Ok(());
        }
        self.zeroes.fetch_add(length, Ordering::Relaxed);
        self.overlay.write_zeroes(start, length, true)
    }

    /// The old chain holds data here: each cluster that the new one does not
    /// hold alike is copied.
    fn settle_data(
        &self,
        old: &mut AlignedBuffer,
        other: &mut AlignedBuffer,
        start: u64,
        length: u64,
    ) -> Result<()> {
        let old = &mut old[..length as usize];
        let other = &mut other[..length as usize];
        self.overlay.read_at(old, start)?;
        self.read_new(start, other)?;
        let cluster = self.overlay.cluster_size();
        let mut position = 0;
        while position < old.len() {
            let mut end =
                position + self.room(start + position as u64, cluster, old.len() - position);
            if old[position..end] == other[position..end] {
                position = end;
                continue;
            }
            while end < old.len() {
                let next = end + self.room(start + end as u64, cluster, old.len() - end);
                if old[end..next] == other[end..next] {
                    break;
                }
                end = next;
            }
            let run = &old[position..end];
            let at = start + position as u64;
            if is_zero(run) {
                self.zeroes.fetch_add(run.len() as u64, Ordering::Relaxed);
                self.overlay.write_zeroes(at, run.len() as u64, true)?;
            } else {
                self.written.fetch_add(run.len() as u64, Ordering::Relaxed);
                self.overlay.write_at(run, at)?;
            }
            position = end;
        }
        Ok(())
    }

    /// Bytes from `offset` to the end of its cluster, at most `left`.
    fn room(&self, offset: u64, cluster: u64, left: usize) -> usize {
        usize::try_from(cluster - offset % cluster).map_or(left, |room| room.min(left))
    }

    fn new_is_zero(&self, start: u64, data: &mut [u8]) -> Result<bool> {
        let Some(new) = self.new else {
            return Ok(true);
        };
        let inside = new.size().saturating_sub(start).min(data.len() as u64);
        if inside == 0 || new.is_zero(start, inside)? {
            return Ok(true);
        }
        self.read_new(start, data)?;
        Ok(is_zero(data))
    }

    /// What the new chain reads; zeroes past its end.
    fn read_new(&self, start: u64, data: &mut [u8]) -> Result<()> {
        let size = self.new.map_or(0, Image::size);
        let inside = size.saturating_sub(start).min(data.len() as u64) as usize;
        let (front, rest) = data.split_at_mut(inside);
        rest.fill(0);
        match self.new {
            Some(new) if !front.is_empty() => new.read_at(front, start),
            _ => Ok(()),
        }
    }
}
