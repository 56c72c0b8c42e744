//! Comparing the content of two images.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pieces::{Kind, Piece, Pieces, run};
use super::zeroes::is_zero;
use super::{buffer, default_threads};
use crate::{AlignedBuffer, Extent, Image, Progress, Result};

/// What [`compare`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// Same content and same size.
    Identical,
    /// Same content up to the end of the shorter image, and the longer one
    /// holds only zeroes beyond it.
    SizesDiffer,
    /// The first byte that differs.
    DifferAt(u64),
}

/// Compares what a guest would read from `left` and from `right`. Bytes past
/// the end of the shorter image count as zeroes.
///
/// # Errors
/// What reading either image reports, or [`Error::Cancelled`](crate::Error).
pub fn compare(left: &Image, right: &Image, progress: &dyn Progress) -> Result<Comparison> {
    let common = left.size().min(right.size());
    let (longer, total) = if left.size() >= right.size() {
        (left, left.size())
    } else {
        (right, right.size())
    };
    let first = AtomicU64::new(u64::MAX);
    let report = |done: u64, _all: u64| progress.report(done, total);
    run(
        pieces(left, 0, common)?,
        common,
        default_threads(),
        &report,
        || (buffer(), buffer()),
        |(ours, theirs), piece| {
            let found = if piece.kind == Kind::Zero {
                first_data(right, ours, piece.start, piece.length, &first)?
            } else {
                first_difference(left, right, ours, theirs, piece.start, piece.length, &first)?
            };
            found.map(|at| first.fetch_min(at, Ordering::Relaxed));
            Ok(())
        },
    )?;
    let report = |done: u64, _all: u64| progress.report(common + done, total);
    run(
        pieces(longer, common, total)?,
        total - common,
        default_threads(),
        &report,
        buffer,
        |buffer, piece| {
            if piece.kind == Kind::Data {
                let found = first_data(longer, buffer, piece.start, piece.length, &first)?;
                found.map(|at| first.fetch_min(at, Ordering::Relaxed));
            }
            Ok(())
        },
    )?;
    Ok(match first.into_inner() {
        u64::MAX if left.size() == right.size() => Comparison::Identical,
        u64::MAX => Comparison::SizesDiffer,
        at => Comparison::DifferAt(at),
    })
}

/// Pieces that hold data or are known to be zero.
fn pieces(
    image: &Image,
    start: u64,
    end: u64,
) -> Result<impl Iterator<Item = Result<Piece>> + Send + '_> {
    let content = |extent: &Extent| if extent.zero { Kind::Zero } else { Kind::Data };
    Ok(Pieces::new(
        image.extents(start, end - start)?,
        start,
        end,
        1,
        content,
    ))
}

/// The first byte of the range that is not zero; nothing is read that the map
/// knows to be zero, or that lies behind a difference already found.
fn first_data(
    image: &Image,
    buffer: &mut AlignedBuffer,
    start: u64,
    length: u64,
    first: &AtomicU64,
) -> Result<Option<u64>> {
    for piece in pieces(image, start, start + length)? {
        let piece = piece?;
        if piece.kind == Kind::Zero {
            continue;
        }
        if piece.start > first.load(Ordering::Relaxed) {
            break;
        }
        let data = &mut buffer[..piece.length as usize];
        image.read_at(data, piece.start)?;
        if !is_zero(data) {
            let at = data.iter().position(|&byte| byte != 0).unwrap_or(0);
            return Ok(Some(piece.start + at as u64));
        }
    }
    Ok(None)
}

fn first_difference(
    left: &Image,
    right: &Image,
    ours: &mut AlignedBuffer,
    theirs: &mut AlignedBuffer,
    start: u64,
    length: u64,
    first: &AtomicU64,
) -> Result<Option<u64>> {
    if start > first.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let ours = &mut ours[..length as usize];
    let theirs = &mut theirs[..length as usize];
    left.read_at(ours, start)?;
    right.read_at(theirs, start)?;
    if ours == theirs {
        return Ok(None);
    }
    let at = ours
        .iter()
        .zip(theirs.iter())
        .position(|(our, their)| our != their);
    Ok(at.map(|at| start + at as u64))
}
