//! Running one operation over many pieces of an image on several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::PIECE;
use crate::{Error, Extent, Progress, Result};

/// What an operation has to do with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Skip,
    /// It reads as zeroes.
    Zero,
    /// Its content must be read.
    Data,
}

/// A part of an image that one worker handles in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First byte, in guest offsets.
    pub(super) start: u64,
    /// Bytes; at most [`PIECE`] where it holds data.
    pub(super) length: u64,
    pub(super) kind: Kind,
}

impl Piece {
    /// Cuts a long piece into parts that fit a buffer.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (mut start, end) = (self.start, self.start + self.length);
        std::iter::from_fn(move || {
            let length = (end - start).min(PIECE - start % PIECE);
            let part = (length > 0).then_some((start, length));
            start += length;
            part
        })
    }
}

/// Makes pieces of the extents of one range, such that no two pieces share a
/// cluster of the image that is written: their ends are multiples of
/// `alignment` (a power of two, at most [`PIECE`]). Data grows to the next
/// multiples, the rest shrinks; an operation may treat a byte as data that the
/// map knows to be zero, never the other way round.
pub(super) struct Pieces<I, C> {
    extents: I,
    classify: C,
    alignment: u64,
    /// All before this has been handed out.
    position: u64,
    /// All before this is known to be of `kind`.
    end: u64,
    kind: Kind,
    /// The extent that comes after `end`.
    next: Option<(u64, u64, Kind)>,
    last: u64,
}

impl<I, C> Pieces<I, C>
where
    I: Iterator<Item = Result<Extent>>,
    C: Fn(&Extent) -> Kind,
{
    /// `start..last` is the range of `extents`; `start` is a multiple of
    /// `alignment` or the pieces before it are worked on by nobody else.
    pub(super) fn new(extents: I, start: u64, last: u64, alignment: u64, classify: C) -> Self {
        Pieces {
            extents,
            classify,
            alignment: alignment.clamp(1, PIECE),
            position: start,
            end: start,
            kind: Kind::Skip,
            next: None,
            last,
        }
    }

    /// Decides what `position..end` is, from the next extents.
    fn advance(&mut self) -> Result<bool> {
        let (start, end, kind) = match self.next.take() {
            Some(next) => next,
            None => match self.extents.next().transpose()? {
                Some(extent) => {
                    let kind = (self.classify)(&extent);
                    (extent.start, extent.start + extent.length, kind)
                }
                None => {
                    self.end = self.last;
                    self.kind = Kind::Data;
                    return Ok(self.position < self.last);
                }
            },
        };
        let up = |offset: u64| offset.next_multiple_of(self.alignment).min(self.last);
        let down = |offset: u64| {
            if offset == self.last {
                offset
            } else {
                offset - offset % self.alignment
            }
        };
        if kind == Kind::Data {
            self.kind = Kind::Data;
            self.end = up(end).max(self.end);
            return Ok(true);
        }
        let from = up(start).max(self.position);
        if from > self.position && from <= end {
            // A cluster that begins before this extent: read it.
            self.kind = Kind::Data;
            self.end = from;
            self.next = Some((start.max(from), end, kind));
        } else if down(end) > from {
            self.kind = kind;
            self.end = down(end);
        }
        Ok(true)
    }
}

impl<I, C> Iterator for Pieces<I, C>
where
    I: Iterator<Item = Result<Extent>>,
    C: Fn(&Extent) -> Kind,
{
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.position >= self.end {
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        let start = self.position;
        let mut length = self.end - start;
        if self.kind == Kind::Data {
            length = length.min(PIECE - start % PIECE);
        }
        self.position += length;
        Some(Ok(Piece {
            start,
            length,
            kind: self.kind,
        }))
    }
}

/// Hands each piece to one of `threads` workers. The first error, or a cancel
/// by `progress`, stops all of them before their next piece and is returned.
/// `total` is the length of all pieces together.
pub(super) fn run<S>(
    pieces: impl Iterator<Item = Result<Piece>> + Send,
    total: u64,
    threads: usize,
    progress: &dyn Progress,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &Piece) -> Result<()> + Sync,
) -> Result<()> {
    let pieces = Mutex::new(pieces);
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let fail = |error: Error| {
        stop.store(true, Ordering::Relaxed);
        failure.lock().get_or_insert(error);
    };
    let worker = || {
        let mut state = state();
        while !stop.load(Ordering::Relaxed) {
            let next = pieces.lock().next();
            let piece = match next {
                None => break,
                Some(Err(error)) => return fail(error),
                Some(Ok(piece)) => piece,
            };
            if let Err(error) = work(&mut state, &piece) {
                return fail(error);
            }
            let done = done.fetch_add(piece.length, Ordering::Relaxed) + piece.length;
            if progress.report(done.min(total), total).is_break() {
                return fail(Error::Cancelled);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    failure.into_inner().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::ControlFlow;

    fn extent(start: u64, length: u64, zero: bool) -> Extent {
        Extent {
            start,
            length,
            depth: 0,
            present: true,
            zero,
            data: !zero,
            compressed: false,
            file: None,
            offset: None,
        }
    }

    fn classify(extent: &Extent) -> Kind {
        if extent.zero { Kind::Zero } else { Kind::Data }
    }

    fn pieces(extents: Vec<Extent>, alignment: u64) -> Vec<Piece> {
        let last = extents
            .last()
            .map_or(0, |extent| extent.start + extent.length);
        Pieces::new(extents.into_iter().map(Ok), 0, last, alignment, classify)
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn zeroes_stay_whole_and_data_is_cut() {
        let half = PIECE / 2;
        let extents = vec![
            extent(0, half, false),
            extent(half, 3 * PIECE, false),
            extent(7 * half, 1 << 40, true),
        ];
        let ends: Vec<_> = pieces(extents, 65536)
            .iter()
            .map(|p| (p.start, p.length))
            .collect();
        assert_eq!(
            ends,
            [
                (0, half),
                (half, half),
                (PIECE, PIECE),
                (2 * PIECE, PIECE),
                (3 * PIECE, half),
                (7 * half, 1 << 40)
            ]
        );
    }

    proptest! {
        #[test]
        fn pieces_cover_all_end_aligned_and_never_call_data_zero(
            lengths in prop::collection::vec((1_u64..5000, any::<bool>()), 1..40),
            bits in 0_u32..13,
        ) {
            let alignment = 1 << bits;
            let mut at = 0;
            let extents: Vec<Extent> = lengths
                .iter()
                .map(|(length, zero)| {
                    let next = extent(at, *length, *zero);
                    at += length;
                    next
                })
                .collect();
            let mut position = 0;
            for piece in pieces(extents.clone(), alignment) {
                prop_assert_eq!(piece.start, position);
                position += piece.length;
                prop_assert!(position == at || position % alignment == 0);
                if piece.kind != Kind::Data {
                    let overlaps = |e: &Extent| {
                        !e.zero && e.start < position && piece.start < e.start + e.length
                    };
                    prop_assert!(!extents.iter().any(overlaps));
                }
            }
            prop_assert_eq!(position, at);
        }
    }

    #[test]
    fn every_piece_is_worked_once_and_a_cancel_stops() {
        let total = 100 * PIECE;
        let all = || {
            Pieces::new(
                [Ok(extent(0, total, false))].into_iter(),
                0,
                total,
                512,
                classify,
            )
        };
        let sum = AtomicU64::new(0);
        run(
            all(),
            total,
            4,
            &(),
            || (),
            |(), piece| {
                sum.fetch_add(piece.start / PIECE, Ordering::Relaxed);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(sum.into_inner(), (0..100).sum::<u64>());

        let worked = AtomicU64::new(0);
        let cancel = |done: u64, _total: u64| {
            if done >= 5 * PIECE {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let result = run(
            all(),
            total,
            4,
            &cancel,
            || (),
            |(), _piece| {
                worked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            },
        );
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(worked.into_inner() < 100);
    }
}
