//! What a guest may expect of its disk after a crash, as a model that every
//! replayed state is held against.
//!
//! The disk is a row of 512-byte sectors. Each write, zeroing or discard gives
//! the sectors it covers a new value; a flush makes the values that were
//! complete when it began durable. After a crash, a sector must hold the value
//! of the last such flush or one that was given to it later.

#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part

use parking_lot::Mutex;

use cenote_image::Image;
use cenote_image::storage::testing::Recorder;

/// The unit in which a disk's content may change on its own.
pub(crate) const SECTOR: usize = 512;

/// A sector's content, in short: its 64 equal words.
pub(crate) type Value = u64;

/// One value given to a run of sectors.
#[derive(Debug)]
struct Change {
    first: usize,
    values: Vec<Value>,
    /// Place in the order of all begins and ends, in real time.
    begun: usize,
    ended: usize,
    /// Position in the recorder's log when it began.
    position: usize,
}

#[derive(Debug)]
struct Flush {
    begun: usize,
    /// Position in the recorder's log when it returned.
    position: usize,
}

/// What a guest did, in order; several threads may add to it, as long as no
/// two change the same sector.
#[derive(Debug)]
pub(crate) struct History {
    recorder: Recorder,
    initial: Vec<Value>,
    log: Mutex<Log>,
    /// Whether requests may fail: what they would have changed may then hold
    /// the old value or the new.
    tolerant: bool,
}

#[derive(Debug, Default)]
struct Log {
    clock: usize,
    changes: Vec<Change>,
    flushes: Vec<Flush>,
    last_value: Value,
}

/// The bytes of a run of sectors.
pub(crate) fn bytes_of(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * SECTOR);
    for value in values {
        for _ in 0..SECTOR / 8 {
            bytes.extend(value.to_le_bytes());
        }
    }
    bytes
}

/// The values of a run of sectors; panics where a sector is not of one piece.
pub(crate) fn values_of(bytes: &[u8]) -> Result<Vec<Value>, usize> {
    let sectors = bytes.as_chunks::<SECTOR>().0;
    sectors
        .iter()
        .enumerate()
        .map(|(index, sector)| {
            let words = sector.as_chunks::<8>().0;
            let first = words[0];
            if words.iter().all(|word| *word == first) {
                Ok(u64::from_le_bytes(first))
            } else {
                Err(index)
            }
        })
        .collect()
}

impl History {
    /// A disk whose present content counts as durable.
    pub(crate) fn new(recorder: &Recorder, image: &Image) -> Self {
        Self {
            recorder: recorder.clone(),
            initial: read_all(image).unwrap(),
            log: Mutex::new(Log {
                last_value: 1 << 32,
                ..Log::default()
            }),
            tolerant: false,
        }
    }

    /// Lets requests fail from now on.
    pub(crate) fn tolerate_errors(&mut self) {
        self.tolerant = true;
    }

    /// A request has returned.
    fn settle(&self, change: usize, outcome: cenote_image::Result<()>) {
        match outcome {
            Ok(()) => self.end(change),
            Err(error) if !self.tolerant => panic!("{error}"),
            Err(_) => {}
        }
    }

    pub(crate) fn sectors(&self) -> usize {
        self.initial.len()
    }

    /// Values never used before.
    fn fresh(&self, count: usize) -> Vec<Value> {
        let mut log = self.log.lock();
        (0..count)
            .map(|_| {
                log.last_value += 1;
                // All eight bytes differ, so that torn words show.
                log.last_value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            })
            .collect()
    }

    /// Notes that a change begins, before the image is told.
    fn begin(&self, first: usize, values: Vec<Value>) -> usize {
        let mut log = self.log.lock();
        log.clock += 1;
        let begun = log.clock;
        let position = self.recorder.position();
        log.changes.push(Change {
            first,
            values,
            begun,
            ended: usize::MAX,
            position,
        });
        log.changes.len() - 1
    }

    fn end(&self, change: usize) {
        let mut log = self.log.lock();
        log.clock += 1;
        log.changes[change].ended = log.clock;
    }

    pub(crate) fn write(&self, image: &Image, first: usize, count: usize) {
        let values = self.fresh(count);
        let bytes = bytes_of(&values);
        let change = self.begin(first, values);
        let outcome = image.write_at(&bytes, (first * SECTOR) as u64);
        self.settle(change, outcome);
    }

    /// Values that compress, a whole cluster of them.
    pub(crate) fn write_compressed(&self, image: &Image, first: usize, count: usize) {
        use cenote_image::codec::Compressor;
        let values = vec![self.fresh(1)[0]; count];
        let bytes = bytes_of(&values);
        let change = self.begin(first, values);
        let mut compressor = Compressor::new(image.compression().unwrap()).unwrap();
        let offset = (first * SECTOR) as u64;
        let outcome = image.write_compressed(&bytes, offset, &mut compressor);
        self.settle(change, outcome);
    }

    pub(crate) fn zero(&self, image: &Image, first: usize, count: usize, unmap: bool) {
        let change = self.begin(first, vec![0; count]);
        let (offset, length) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
        let outcome = image.write_zeroes(offset, length, unmap);
        self.settle(change, outcome);
    }

    /// A discarded sector is zero or as before; which, the disk says.
    pub(crate) fn discard(&self, image: &Image, first: usize, count: usize) {
        let (offset, length) = ((first * SECTOR) as u64, count * SECTOR);
        let mut before = vec![0; length];
        image.read_at(&mut before, offset).unwrap();
        let before = values_of(&before).unwrap();
        self.begin(first, vec![0; count]);
        // This change never ends: which sectors it zeroed shows only below,
        // and another thread's flush may come in between.
        let outcome = image.discard(offset, length as u64);
        if outcome.is_err() {
            assert!(self.tolerant, "{outcome:?}");
            return;
        }
        let mut after = vec![0; length];
        image.read_at(&mut after, offset).unwrap();
        let after = values_of(&after).unwrap();
        for (old, new) in before.iter().zip(&after) {
            assert!(*new == 0 || new == old, "discard showed foreign data");
        }
        // From here on it is what was read, once flushed.
        let settled = self.begin(first, after);
        self.end(settled);
    }

    pub(crate) fn flush(&self, image: &Image) {
        let begun = {
            let mut log = self.log.lock();
            log.clock += 1;
            log.clock
        };
        match image.flush() {
            Ok(()) => {}
            Err(_) if self.tolerant => return,
            Err(error) => panic!("{error}"),
        }
        let position = self.recorder.position();
        self.log.lock().flushes.push(Flush { begun, position });
    }

    /// What the disk must read as now.
    pub(crate) fn assert_current(&self, image: &Image) {
        let mut current = self.initial.clone();
        for change in &self.log.lock().changes {
            current[change.first..change.first + change.values.len()]
                .copy_from_slice(&change.values);
        }
        assert!(
            read_all(image).unwrap() == current,
            "the running disk is wrong"
        );
    }

    /// A view that follows a replay.
    pub(crate) fn expectation(&self) -> Expectation {
        let mut log = self.log.lock();
        let Log {
            changes, flushes, ..
        } = &mut *log;
        let mut per_sector: Vec<Vec<Given>> = self
            .initial
            .iter()
            .map(|&value| {
                vec![Given {
                    value,
                    position: 0,
                    ended: 0,
                }]
            })
            .collect();
        changes.sort_by_key(|change| change.begun);
        for change in changes.iter() {
            for (at, &value) in change.values.iter().enumerate() {
                per_sector[change.first + at].push(Given {
                    value,
                    position: change.position,
                    ended: change.ended,
                });
            }
        }
        flushes.sort_by_key(|flush| flush.position);
        Expectation {
            flushes: flushes
                .iter()
                .map(|flush| (flush.position, flush.begun))
                .collect(),
            per_sector,
            cache: None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Given {
    value: Value,
    position: usize,
    ended: usize,
}

/// Which values each sector may have at a position of the log.
#[derive(Debug)]
pub(crate) struct Expectation {
    /// Position at return, clock at begin.
    flushes: Vec<(usize, usize)>,
    per_sector: Vec<Vec<Given>>,
    /// The position last asked for, and the bounds there.
    cache: Option<(usize, Vec<(usize, usize)>)>,
}

impl Expectation {
    /// Per sector, the range of its values that are allowed at a position.
    fn allowed(&mut self, position: usize) -> &[(usize, usize)] {
        if self.cache.as_ref().is_none_or(|(at, _)| *at != position) {
            let flushed = self
                .flushes
                .iter()
                .filter(|(returned, _)| *returned <= position)
                .map(|(_, begun)| *begun)
                .max()
                .unwrap_or(0);
            let bounds = self
                .per_sector
                .iter()
                .map(|given| {
                    let first = given
                        .iter()
                        .rposition(|g| g.ended == 0 || g.ended < flushed);
                    let end = given
                        .iter()
                        .rposition(|g| g.position <= position)
                        .unwrap_or(0)
                        + 1;
                    (first.unwrap_or(0), end)
                })
                .collect();
            self.cache = Some((position, bounds));
        }
        &self.cache.as_ref().unwrap().1
    }

    /// Checks a disk found after a crash at a position; says what is wrong.
    pub(crate) fn judge(&mut self, position: usize, found: &[Value]) -> Result<(), String> {
        self.allowed(position);
        let bounds = &self.cache.as_ref().unwrap().1;
        if found.len() != self.per_sector.len() {
            return Err(format!(
                "{} sectors for {}",
                found.len(),
                self.per_sector.len()
            ));
        }
        for (sector, (value, given)) in found.iter().zip(&self.per_sector).enumerate() {
            let (first, end) = bounds[sector];
            let end = end.max(first + 1);
            if !given[first..end].iter().any(|given| given.value == *value) {
                let allowed: Vec<Value> = given[first..end].iter().map(|g| g.value).collect();
                let ever = given.iter().position(|given| given.value == *value);
                return Err(format!(
                    "sector {sector} holds {value:#x} (its value number {ever:?}), \
                     allowed are numbers {first}..{end}: {allowed:#x?}"
                ));
            }
        }
        Ok(())
    }
}

/// The whole disk.
pub(crate) fn read_all(image: &Image) -> Result<Vec<Value>, String> {
    let mut values = Vec::with_capacity(image.size() as usize / SECTOR);
    let mut buf = vec![0; 256 << 10];
    let mut at = 0;
    while at < image.size() {
        let take = buf.len().min((image.size() - at) as usize);
        image
            .read_at(&mut buf[..take], at)
            .map_err(|error| error.to_string())?;
        let piece = values_of(&buf[..take])
            .map_err(|sector| format!("sector {} is torn inside", at as usize / SECTOR + sector))?;
        values.extend(piece);
        at += take as u64;
    }
    Ok(values)
}
