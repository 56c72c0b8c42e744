//! Copying an image's content into an empty one: convert and full clone.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pieces::{Kind, Piece, Pieces, run};
use super::zeroes::for_each_run;
use super::{PIECE, buffer, check_writable, default_threads, refusal};
use crate::codec::Compressor;
use crate::{
    AlignedBuffer, CacheMode, Error, Extent, Format, Image, OpenOptions, Progress, Result,
};

/// How [`copy`] goes about it.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Store clusters compressed, with the target's compression type.
    /// Only qcow2 targets.
    pub compress: bool,
    /// Runs of zeroes at least this long (bytes, a power of two, rounded up to
    /// the cluster size of a qcow2 target, or 64 KiB of a raw target past the
    /// page cache) become holes; 0 writes all.
    pub sparse_size: u64,
    /// Copy only what the layers above this depth hold: for a target whose
    /// backing file is the source's layer of that depth.
    pub above_depth: Option<u32>,
    /// Worker threads; 0 for one that suits the machine.
    pub threads: usize,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            compress: false,
            sparse_size: 4096,
            above_depth: None,
            threads: 0,
        }
    }
}

/// What a [`copy`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CopyReport {
    /// Bytes written as data.
    pub written: u64,
    /// Bytes left as holes or zero clusters.
    pub zeroes: u64,
}

/// A direct write of less is mostly waiting: next to a hole, on a raw target
/// past the page cache, the unit is at least this.
const DIRECT_GRANULARITY: u64 = 64 << 10;

/// Opens the freshly created image at `path` for a [`copy`] into it: past the
/// page cache where the file system can, because then the disk writes while
/// the next piece is read instead of all at the flush in the end, and what
/// others have in the page cache stays there. Compressed clusters, which are
/// small and appended to each other, go through the page cache.
///
/// # Errors
/// As [`OpenOptions::open`].
pub fn open_target(path: &Path, open: &OpenOptions, copy: &CopyOptions) -> Result<Image> {
    let cached = open.clone().writable(true).cache(CacheMode::Writeback);
    if copy.compress {
        return cached.open(path);
    }
    match cached.clone().cache(CacheMode::None).open(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => {
            cached.open(path)
        }
        opened => opened,
    }
}

/// Copies the content of `source` into `target`, which must be writable, as
/// large as the source or larger, and empty (freshly created: where the source
/// is zero nothing is written unless the target has a backing file). Ends with
/// a flush of the target.
///
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) for a target that is too small or cannot hold compressed
/// clusters; otherwise what reading and writing report. The target is then
/// incomplete and to be removed by the caller.
pub fn copy(
    source: &Image,
    target: &Image,
    options: &CopyOptions,
    progress: &dyn Progress,
) -> Result<CopyReport> {
    let total = source.size();
    check_target(source, target, options)?;
    let job = Job {
        source,
        target,
        options,
        granularity: granularity(target, options),
        written: AtomicU64::new(0),
        zeroes: AtomicU64::new(0),
    };
    let least = if target.cache_mode().is_direct() {
        4096
    } else {
        512
    };
    let alignment = target.cluster_size().max(least);
    let extents = source.extents(0, total)?;
    run(
        Pieces::new(extents, 0, total, alignment, |extent| job.kind(extent)),
        total,
        match options.threads {
            0 => default_threads(),
            count => count,
        },
        progress,
        || (buffer(), None),
        |(buffer, compressor), piece| job.piece(buffer, compressor, piece),
    )?;
    target.flush()?;
    Ok(CopyReport {
        written: job.written.into_inner(),
        zeroes: job.zeroes.into_inner(),
    })
}

fn check_target(source: &Image, target: &Image, options: &CopyOptions) -> Result<()> {
    check_writable(target)?;
    if target.size() < source.size() {
        return Err(refusal(
            target,
            format!(
                "is {} bytes long, too small for the {} bytes of '{}'",
                target.size(),
                source.size(),
                source.path().display()
            ),
        ));
    }
    if options.compress && target.compression().is_none() {
        return Err(refusal(
            target,
            format!(
                "a {} image cannot hold compressed clusters",
                target.format()
            ),
        ));
    }
    Ok(())
}

/// The unit in which zeroes are looked for: whole clusters of a qcow2 target,
/// because part of a cluster cannot be a hole.
fn granularity(target: &Image, options: &CopyOptions) -> u64 {
    let wanted = options.sparse_size.max(1).next_power_of_two();
    match target.format() {
        Format::Qcow2 => wanted.max(target.cluster_size()),
        Format::Raw if target.cache_mode().is_direct() => wanted.max(DIRECT_GRANULARITY),
        Format::Raw => wanted.max(512),
    }
    .min(PIECE)
}

struct Job<'a> {
    source: &'a Image,
    target: &'a Image,
    options: &'a CopyOptions,
    granularity: u64,
    written: AtomicU64,
    zeroes: AtomicU64,
}

impl Job<'_> {
    fn kind(&self, extent: &Extent) -> Kind {
        let wanted = |depth| extent.present && extent.depth < depth;
        if !self.options.above_depth.is_none_or(wanted) {
            Kind::Skip
        } else if extent.zero {
            Kind::Zero
        } else {
            Kind::Data
        }
    }

    fn piece(
        &self,
        buffer: &mut AlignedBuffer,
        compressor: &mut Option<Compressor>,
        piece: &Piece,
    ) -> Result<()> {
        match piece.kind {
            Kind::Skip => return Ok(()),
            Kind::Zero if self.options.sparse_size != 0 => {
                return self.zero(piece.start, piece.length);
            }
            Kind::Zero | Kind::Data => {}
        }
        for (start, length) in piece.parts() {
            let data = &mut buffer[..length as usize];
            self.source.read_at(data, start)?;
            if self.options.sparse_size == 0 {
                self.data(start, data, compressor)?;
                continue;
            }
            for_each_run(data, start, self.granularity, |at, bytes, zero| {
                if zero {
                    self.zero(at, bytes.len() as u64)
                } else {
                    self.data(at, bytes, compressor)
                }
            })?;
        }
        Ok(())
    }

    fn zero(&self, start: u64, length: u64) -> Result<()> {
        self.zeroes.fetch_add(length, Ordering::Relaxed);
        if self.target.backing().is_some() {
            self.target.write_zeroes(start, length, true)?;
        }
        Ok(())
    }

    fn data(&self, start: u64, bytes: &[u8], compressor: &mut Option<Compressor>) -> Result<()> {
        self.written
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let compression = self.target.compression().filter(|_| self.options.compress);
        let Some(compression) = compression else {
            return self.target.write_at(bytes, start);
        };
        let compressor = match compressor {
            Some(compressor) => compressor,
            empty => {
                let new = Compressor::new(compression);
                empty.insert(new.map_err(|e| refusal(self.target, e.to_string()))?)
            }
        };
        let size = self.target.cluster_size();
        let mut at = start;
        for cluster in bytes.chunks(size as usize) {
            self.target.write_compressed(cluster, at, compressor)?;
            at += size;
        }
        Ok(())
    }
}
