//! Requests of the block device, read from the guest and checked.

use super::{LONGEST_SERIAL, Shared};
use crate::{
    disk::SECTOR,
    memory::GuestMemory,
    virtio::{Chain, MOST_SEGMENTS, QueueError},
};
use serde::{Deserialize, Serialize};
use std::ops::Range;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

pub(super) const OK: u8 = 0;
pub(super) const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Length of a request's header.
const HEADER: u64 = 16;
/// Length of a range of a discard.
const RANGE: u64 = 16;
const RANGE_UNMAP: u32 = 1;

/// The most ranges of one discard or write of zeroes.
pub(super) const MOST_RANGES: u64 = 32;
/// The most bytes of one range.
pub(super) const MOST_BYTES: u64 = 1 << 31;

/// The most data segments that a driver may put in a request to a queue of this size.
pub(super) fn most_segments(queue_size: u16) -> u32 {
    // Header and status take two.
    u32::from(queue_size)
        .min(MOST_SEGMENTS as u32)
        .saturating_sub(2)
        .max(1)
}

/// What to do when a write, a flush or a discard fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorPolicy {
    /// Tell the guest.
    Report,
    /// Stop the machine; the request is made again when it goes on.
    Stop,
    /// Tell the guest that it was done.
    Ignore,
    /// Stop the machine where the host has no space left, tell the guest otherwise.
    #[default]
    Enospace,
}

/// What to do when a read fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadErrorPolicy {
    /// Tell the guest.
    #[default]
    Report,
    /// Stop the machine; the request is made again when it goes on.
    Stop,
    /// Tell the guest that it was done.
    Ignore,
}

/// A range to discard or to fill with zeroes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) unmap: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    Read(Range<u64>),
    Write(Range<u64>),
    Flush,
    Discard(Vec<Span>),
    WriteZeroes(Vec<Span>),
    /// Nothing more; the answer.
    Answer(u8),
}

/// Reads what a request wants. What can be answered at once is done.
///
/// # Errors
/// If there is no header, or no room for the answer.
pub(super) fn parse(
    shared: &Shared,
    memory: &GuestMemory,
    chain: &Chain,
) -> Result<Work, QueueError> {
    let mut header = [0; HEADER as usize];
    if chain.read(memory, 0, &mut header) != header.len() || chain.writable.is_empty() {
        return Err(QueueError::Request(chain.head));
    }
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([a, b, c, d]);
    let sector = u64::from_le_bytes(sector);
    let sent = chain.readable_length() - HEADER;
    let wanted = chain.writable_length() - 1;
    let denied = matches!(kind, OUT | DISCARD | WRITE_ZEROES) && shared.read_only;
    Ok(match kind {
        _ if denied => Work::Answer(IO_ERROR),
        IN => transfer(shared, sector, wanted).map_or(Work::Answer(IO_ERROR), Work::Read),
        OUT => transfer(shared, sector, sent).map_or(Work::Answer(IO_ERROR), Work::Write),
        FLUSH if shared.read_only => Work::Answer(OK),
        FLUSH => Work::Flush,
        GET_ID => {
            let mut serial = [0; LONGEST_SERIAL];
            for (to, from) in serial.iter_mut().zip(shared.options.serial.bytes()) {
                *to = from;
            }
            let room = wanted.min(serial.len() as u64) as usize;
            chain.write(memory, 0, &serial[..room]);
            Work::Answer(OK)
        }
        DISCARD if !shared.options.discard => Work::Answer(UNSUPPORTED),
        DISCARD | WRITE_ZEROES => {
            spans(shared, memory, chain, kind == DISCARD).unwrap_or_else(Work::Answer)
        }
        _ => Work::Answer(UNSUPPORTED),
    })
}

/// The bytes of a transfer, if they are whole blocks of the disk.
fn transfer(shared: &Shared, sector: u64, length: u64) -> Option<Range<u64>> {
    let block = u64::from(shared.options.logical_block);
    let start = sector.checked_mul(SECTOR)?;
    let end = start.checked_add(length)?;
    let whole = start.is_multiple_of(block) && length.is_multiple_of(block);
    (whole && end <= shared.size).then_some(start..end)
}

fn spans(shared: &Shared, memory: &GuestMemory, chain: &Chain, discard: bool) -> Result<Work, u8> {
    let bytes = chain.readable_length() - HEADER;
    if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes / RANGE > MOST_RANGES {
        return Err(IO_ERROR);
    }
    let mut spans = Vec::new();
    for index in 0..bytes / RANGE {
        let mut range = [0; RANGE as usize];
        chain.read(memory, HEADER + index * RANGE, &mut range);
        let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = range;
        let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let sectors = u32::from_le_bytes([i, j, k, l]);
        let flags = u32::from_le_bytes(flags);
        let known = if discard { 0 } else { RANGE_UNMAP };
        if flags & !known != 0 {
            return Err(UNSUPPORTED);
        }
        let length = u64::from(sectors) * SECTOR;
        let span = transfer(shared, sector, length).ok_or(IO_ERROR)?;
        if length > MOST_BYTES {
            return Err(IO_ERROR);
        }
        if length > 0 {
            spans.push(Span {
                offset: span.start,
                length,
                unmap: flags & RANGE_UNMAP != 0 && shared.options.discard,
            });
        }
    }
    Ok(match (spans.is_empty(), discard) {
        (true, _) => Work::Answer(OK),
        (false, true) => Work::Discard(spans),
        (false, false) => Work::WriteZeroes(spans),
    })
}
