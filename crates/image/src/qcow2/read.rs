//! Reading guest data.

use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::mapping::RunKind;

impl Qcow2 {
    /// Reads guest bytes; the range lies inside the disk.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        // The mapping of a layer open for reading never changes.
        let _pin = self.is_writable().then(|| self.gate.pin());
        let outcome = self.read_pinned(buf, offset);
        self.guard(outcome)
    }

    /// As [`Qcow2::read_at`] for a caller that is pinned.
    pub(crate) fn read_pinned(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let run = self.lookup(offset, buf.len() as u64)?;
            let (piece, rest) = buf.split_at_mut(run.length as usize);
            match run.kind {
                RunKind::Backing => self.read_backing(piece, offset)?,
                RunKind::Zero { .. } => piece.fill(0),
                RunKind::Data { host, .. } => self
                    .data()
                    .read_at(piece, host)
                    .map_err(|e| Error::io(&self.path, "read", e))?,
                RunKind::Compressed { descriptor } => {
                    self.read_compressed(descriptor, self.geo.inside(offset), piece)?;
                }
            }
            buf = rest;
            offset += run.length;
        }
        Ok(())
    }

    /// Reads from the backing file; zeroes past its end or without one.
    fn read_backing(&self, piece: &mut [u8], offset: u64) -> Result<()> {
        let Some(backing) = &self.backing else {
            if self.backing_closed {
                return Err(Error::invalid(
                    self.path.display().to_string(),
                    "this range lies in the backing file, which was not opened",
                ));
            }
            piece.fill(0);
            return Ok(());
        };
        let there = backing.size().saturating_sub(offset);
        let there = usize::try_from(there)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        let (inside, beyond) = piece.split_at_mut(there);
        beyond.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        backing.read_at(inside, offset)
    }
}
