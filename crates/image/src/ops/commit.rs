//! Commit: moving what upper layers hold into a lower one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layers::shortest_between;
use super::pieces::{Kind, Pieces, run};
use super::{buffer, check_writable, default_threads, refusal, refuse_snapshots, resize};
use crate::{Extent, Image, Progress, Result};

/// What a [`commit`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CommitReport {
    /// Bytes of data written into the lower layer.
    pub written: u64,
    /// Bytes made zero in the lower layer.
    pub zeroes: u64,
    /// The lower layer's virtual size before it was enlarged, if it was.
    pub enlarged_from: Option<u64>,
}

/// Copies what `top` and the layers between hold into the layer at `depth`
/// (1 is the backing file of `top`), so that this layer alone reads as `top`
/// does. The chain was opened with that layer writable
/// ([`OpenOptions::writable_layer`](crate::OpenOptions::writable_layer)).
/// A lower layer that is shorter than `top` grows to its size.
///
/// Nothing of `top` changes: all through the operation, and after a crash in
/// it, `top` reads as before, because it still holds all that it held. What
/// becomes of the layers above is the caller's next step: an empty overlay in
/// their place, or children that point to the lower layer.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) where `depth` is not a lower
/// layer, or a layer above it holds internal snapshots: they read through the
/// layer about to change and would change with it.
pub fn commit(top: &Image, depth: u32, progress: &dyn Progress) -> Result<CommitReport> {
    let Some(base) = top.layer(depth).filter(|_| depth > 0) else {
        return Err(refusal(
            top,
            format!("has no layer {depth} below it to commit into"),
        ));
    };
    check_writable(base)?;
    for above in (0..depth).filter_map(|above| top.layer(above)) {
        refuse_snapshots(above, "commit through it")?;
    }
    let size = top.size();
    let enlarged_from = (base.size() < size).then(|| base.size());
    if enlarged_from.is_some() {
        resize(base, size, false)?;
    }

    // Behind the end of a layer between, what lies in the base is hidden.
    let hidden_from = shortest_between(top, depth).min(size);
    let held = |extent: &Extent| extent.present && extent.depth < depth;
    let content = |extent: &Extent| if extent.zero { Kind::Zero } else { Kind::Data };
    let alignment = base.cluster_size().max(512);
    let seen = Pieces::new(
        top.extents(0, hidden_from)?,
        0,
        hidden_from,
        alignment,
        move |e| {
            if held(e) { content(e) } else { Kind::Skip }
        },
    );
    let hidden = top.extents(hidden_from, size - hidden_from)?;
    let hidden = Pieces::new(hidden, hidden_from, size, alignment, content);

    let (written, zeroes) = (AtomicU64::new(0), AtomicU64::new(0));
    run(
        seen.chain(hidden),
        size,
        default_threads(),
        progress,
        buffer,
        |buffer, piece| match piece.kind {
            Kind::Skip => Ok(()),
            Kind::Zero => {
                zeroes.fetch_add(piece.length, Ordering::Relaxed);
                base.write_zeroes(piece.start, piece.length, true)
            }
            Kind::Data => {
                let data = &mut buffer[..piece.length as usize];
                top.read_at(data, piece.start)?;
                written.fetch_add(piece.length, Ordering::Relaxed);
                base.write_at(data, piece.start)
            }
        },
    )?;
    base.flush()?;
    Ok(CommitReport {
        written: written.into_inner(),
        zeroes: zeroes.into_inner(),
        enlarged_from,
    })
}
