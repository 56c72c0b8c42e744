//! Compressed clusters: raw deflate and Zstandard.
//!
//! Specification: `docs/interop/qcow2`, "Compressed Clusters Descriptor" and
//! "Compression type". A compressed cluster's stored length is rounded up to
//! sectors, so what follows the stream is padding and is ignored.
//!
//! Input is hostile: nothing is allocated by what it says, and output never
//! exceeds the buffer given.

use std::cell::RefCell;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::zstd_safe;

use crate::qcow2::header::Compression;

/// log2 of the deflate window that readers of qcow2 expect at most.
const DEFLATE_WINDOW_BITS: u8 = 12;
/// Readers accept any window.
const INFLATE_WINDOW_BITS: u8 = 15;

/// Why a cluster could not be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The stream breaks the rules of its format.
    #[error("invalid {0} stream")]
    Invalid(&'static str),
    /// The stream ends before the cluster is full.
    #[error("{0} stream ends after {1} of {2} bytes")]
    Short(&'static str, usize, usize),
    /// The library could not get memory.
    #[error("no memory for {0}")]
    Memory(&'static str),
}

/// A compressor, to be kept and used for many clusters by one thread.
pub struct Compressor {
    engine: Engine,
}

enum Engine {
    Zlib(Compress),
    Zstd(Box<zstd_safe::CCtx<'static>>),
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor at the library's default level, as qemu-img uses.
    ///
    /// # Errors
    /// [`CodecError::Memory`].
    pub fn new(kind: Compression) -> Result<Self, CodecError> {
        let engine = match kind {
            Compression::Zlib => Engine::Zlib(Compress::new_with_window_bits(
                flate2::Compression::default(),
                false,
                DEFLATE_WINDOW_BITS,
            )),
            Compression::Zstd => Engine::Zstd(Box::new(
                zstd_safe::CCtx::try_create().ok_or(CodecError::Memory("zstd"))?,
            )),
        };
        Ok(Self { engine })
    }

    /// Compresses a whole cluster into `output`; returns the bytes used, or
    /// `None` when they do not fit, so that the cluster is better stored as it
    /// is. Pass an output one byte shorter than the input.
    pub fn compress(&mut self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        match &mut self.engine {
            Engine::Zlib(deflate) => {
                deflate.reset();
                match deflate.compress(input, output, FlushCompress::Finish) {
                    Ok(Status::StreamEnd) => usize::try_from(deflate.total_out()).ok(),
                    _ => None,
                }
            }
            Engine::Zstd(context) => {
                let level = zstd_safe::CLEVEL_DEFAULT;
                context.compress(output, input, level).ok()
            }
        }
    }
}

thread_local! {
    static INFLATE: RefCell<Decompress> =
        RefCell::new(Decompress::new_with_window_bits(false, INFLATE_WINDOW_BITS));
    static ZSTD: RefCell<Option<zstd_safe::DCtx<'static>>> = const { RefCell::new(None) };
}

/// Decompresses a cluster: fills `output` from the stream that `input` begins
/// with.
///
/// # Errors
/// [`CodecError`]; `output` then holds anything.
pub fn decompress(kind: Compression, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    match kind {
        Compression::Zlib => INFLATE.with_borrow_mut(|engine| inflate(engine, input, output)),
        Compression::Zstd => ZSTD.with_borrow_mut(|slot| {
            let engine = match slot {
                Some(engine) => engine,
                None => {
                    slot.insert(zstd_safe::DCtx::try_create().ok_or(CodecError::Memory("zstd"))?)
                }
            };
            zstd(engine, input, output)
        }),
    }
}

fn inflate(engine: &mut Decompress, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    const NAME: &str = "deflate";
    engine.reset(false);
    loop {
        let used = engine.total_in() as usize;
        let done = engine.total_out() as usize;
        if done == output.len() {
            return Ok(());
        }
        let rest = &input[used..];
        let status = engine
            .decompress(rest, &mut output[done..], FlushDecompress::Finish)
            .map_err(|_| CodecError::Invalid(NAME))?;
        let now = engine.total_out() as usize;
        let stuck = now == done && engine.total_in() as usize == used;
        if now < output.len() && (status == Status::StreamEnd || stuck) {
            return Err(CodecError::Short(NAME, now, output.len()));
        }
    }
}

fn zstd(
    engine: &mut zstd_safe::DCtx<'static>,
    input: &[u8],
    output: &mut [u8],
) -> Result<(), CodecError> {
    const NAME: &str = "zstd";
    let mut used = 0;
    let mut done = 0;
    while done < output.len() {
        // Frame by frame and in one go, because a streaming reader allocates
        // the window that the frame asks for, and padding is not a frame.
        let rest = &input[used..];
        if rest.is_empty() {
            return Err(CodecError::Short(NAME, done, output.len()));
        }
        let frame = zstd_safe::find_frame_compressed_size(rest)
            .ok()
            .filter(|&length| length > 0 && length <= rest.len())
            .ok_or(CodecError::Invalid(NAME))?;
        let written = engine
            .decompress(&mut output[done..], &rest[..frame])
            .map_err(|_| CodecError::Invalid(NAME))?;
        used += frame;
        done += written;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Compression; 2] = [Compression::Zlib, Compression::Zstd];

    fn text(length: usize) -> Vec<u8> {
        (0..length)
            .map(|at| b"the quick brown fox"[at % 19] ^ (at >> 12) as u8)
            .collect()
    }

    #[test]
    fn clusters_come_back_whatever_follows_them() {
        for kind in KINDS {
            let mut compressor = Compressor::new(kind).unwrap();
            for bits in 9..=21 {
                let plain = text(1 << bits);
                let mut packed = vec![0xff; plain.len() - 1];
                let length = compressor.compress(&plain, &mut packed).unwrap();
                for end in [length, (length + 511).min(packed.len())] {
                    let mut seen = vec![0; plain.len()];
                    decompress(kind, &packed[..end], &mut seen).unwrap();
                    assert!(seen == plain);
                }
                let mut seen = vec![0; plain.len()];
                assert!(decompress(kind, &packed[..length / 2], &mut seen).is_err());
                // A longer cluster than the stream holds.
                let mut longer = vec![0; plain.len() + 1];
                assert!(decompress(kind, &packed[..length], &mut longer).is_err());
            }
        }
    }

    #[test]
    fn noise_is_left_uncompressed() {
        let mut noise = vec![0u8; 65536];
        let mut state = 1u64;
        for byte in &mut noise {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        for kind in KINDS {
            let mut packed = vec![0; noise.len() - 1];
            assert_eq!(
                Compressor::new(kind).unwrap().compress(&noise, &mut packed),
                None
            );
        }
    }

    proptest! {
        #[test]
        fn hostile_input_is_an_error_or_fills_the_buffer(
            mut input in proptest::collection::vec(any::<u8>(), 0..4096),
            magic in any::<bool>(),
            flips in proptest::collection::vec((0usize..4096, any::<u8>()), 0..4),
        ) {
            if magic {
                let mut packed = vec![0; 4095];
                let length = Compressor::new(Compression::Zstd).unwrap()
                    .compress(&text(4096), &mut packed).unwrap();
                input.splice(0..0, packed[..length].iter().copied());
            }
            for (at, value) in flips {
                if let Some(byte) = input.get_mut(at) { *byte ^= value; }
            }
            for kind in KINDS {
                let mut output = vec![0; 4096];
                let _ = decompress(kind, &input, &mut output);
            }
        }
    }
}
