//! A count per host cluster, in memory that follows what is counted.
//!
//! A cluster that is used once takes one bit where its neighbours are used
//! too: an image with 64 GiB mapped in clusters of 64 KiB takes 128 KiB. The
//! worst that a hostile table can do is some tens of bytes per entry.

use std::collections::HashMap;

/// log2 of the clusters in one chunk.
const CHUNK_BITS: u32 = 15;
/// Clusters in one chunk.
pub(super) const CHUNK: usize = 1 << CHUNK_BITS;
/// A chunk with more clusters in use than this becomes an array.
const FEW: usize = 32;

/// Counts that saturate at `u32::MAX`; all begin at zero.
#[derive(Debug, Default)]
pub(super) struct Counts {
    places: HashMap<u64, usize>,
    chunks: Vec<Cells>,
    /// The chunk used last, because tables point to neighbours.
    last: Option<(u64, usize)>,
}

#[derive(Debug)]
enum Cells {
    /// Sorted by cluster.
    Few(Vec<(u16, u32)>),
    Bits(Box<[u64]>),
    Bytes(Box<[u8]>),
    Words(Box<[u32]>),
}

impl Cells {
    fn get(&self, at: usize) -> u32 {
        match self {
            Cells::Few(few) => few
                .binary_search_by_key(&(at as u16), |&(cluster, _)| cluster)
                .map_or(0, |place| few[place].1),
            Cells::Bits(bits) => (bits[at / 64] >> (at % 64) & 1) as u32,
            Cells::Bytes(bytes) => u32::from(bytes[at]),
            Cells::Words(words) => words[at],
        }
    }

    /// False when the value does not fit the present form.
    fn try_set(&mut self, at: usize, value: u32) -> bool {
        match self {
            Cells::Few(few) => match few.binary_search_by_key(&(at as u16), |&(c, _)| c) {
                Ok(place) => few[place].1 = value,
                Err(_) if few.len() == FEW => return false,
                Err(place) => few.insert(place, (at as u16, value)),
            },
            Cells::Bits(bits) => match value {
                0 => bits[at / 64] &= !(1 << (at % 64)),
                1 => bits[at / 64] |= 1 << (at % 64),
                _ => return false,
            },
            Cells::Bytes(bytes) => match u8::try_from(value) {
                Ok(byte) => bytes[at] = byte,
                Err(_) => return false,
            },
            Cells::Words(words) => words[at] = value,
        }
        true
    }

    /// The next wider form.
    fn widen(&mut self) {
        let mut wider = match self {
            Cells::Few(few) => match few.iter().map(|&(_, value)| value).max().unwrap_or(0) {
                0..=1 => Cells::Bits(vec![0; CHUNK / 64].into()),
                2..=255 => Cells::Bytes(vec![0; CHUNK].into()),
                _ => Cells::Words(vec![0; CHUNK].into()),
            },
            Cells::Bits(_) => Cells::Bytes(vec![0; CHUNK].into()),
            Cells::Bytes(_) | Cells::Words(_) => Cells::Words(vec![0; CHUNK].into()),
        };
        for at in 0..CHUNK {
            let value = self.get(at);
            if value != 0 {
                wider.try_set(at, value);
            }
        }
        *self = wider;
    }
}

impl Counts {
    fn place(&mut self, chunk: u64) -> Option<usize> {
        match self.last {
            Some((last, place)) if last == chunk => Some(place),
            _ => {
                let place = *self.places.get(&chunk)?;
                self.last = Some((chunk, place));
                Some(place)
            }
        }
    }

    pub(super) fn get(&mut self, cluster: u64) -> u32 {
        self.place(cluster >> CHUNK_BITS)
            .map_or(0, |place| self.chunks[place].get(cluster as usize % CHUNK))
    }

    pub(super) fn set(&mut self, cluster: u64, value: u32) {
        let chunk = cluster >> CHUNK_BITS;
        let place = self.place(chunk).unwrap_or_else(|| {
            let place = self.chunks.len();
            self.chunks.push(Cells::Few(Vec::new()));
            self.places.insert(chunk, place);
            self.last = Some((chunk, place));
            place
        });
        let cells = &mut self.chunks[place];
        while !cells.try_set(cluster as usize % CHUNK, value) {
            cells.widen();
        }
    }

    pub(super) fn add(&mut self, cluster: u64, count: u32) {
        let value = self.get(cluster).saturating_add(count);
        self.set(cluster, value);
    }

    /// The numbers of the chunks that may hold a count, ascending.
    pub(super) fn chunk_numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.places.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// All counts of a chunk.
    pub(super) fn expand(&self, chunk: u64, into: &mut [u32; CHUNK]) {
        into.fill(0);
        let Some(&place) = self.places.get(&chunk) else {
            return;
        };
        match &self.chunks[place] {
            Cells::Few(few) => {
                for &(at, value) in few {
                    into[usize::from(at)] = value;
                }
            }
            Cells::Bits(bits) => {
                for (word, part) in bits.iter().zip(into.chunks_exact_mut(64)) {
                    if *word != 0 {
                        for (bit, value) in part.iter_mut().enumerate() {
                            *value = (*word >> bit & 1) as u32;
                        }
                    }
                }
            }
            Cells::Bytes(bytes) => {
                for (byte, value) in bytes.iter().zip(into.iter_mut()) {
                    *value = u32::from(*byte);
                }
            }
            Cells::Words(words) => into.copy_from_slice(words),
        }
    }

    /// Every cluster with a count, ascending, and the count.
    pub(super) fn for_each(&self, mut visit: impl FnMut(u64, u32)) {
        let mut cells = Box::new([0; CHUNK]);
        for chunk in self.chunk_numbers() {
            self.expand(chunk, &mut cells);
            for (at, &value) in cells.iter().enumerate() {
                if value != 0 {
                    visit((chunk << CHUNK_BITS) + at as u64, value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn counts_equal_a_map(
            steps in proptest::collection::vec(
                (0u64..200, prop_oneof![Just(1u32), Just(2), Just(300), Just(u32::MAX)], 0u64..3),
                0..400,
            )
        ) {
            let mut counts = Counts::default();
            let mut model = BTreeMap::<u64, u32>::new();
            for (cluster, count, far) in steps {
                let cluster = cluster + far * 0x1_0000_0000_0000;
                counts.add(cluster, count);
                let value = model.entry(cluster).or_default();
                *value = value.saturating_add(count);
                prop_assert_eq!(counts.get(cluster), *value);
            }
            let mut seen = Vec::new();
            counts.for_each(|cluster, value| seen.push((cluster, value)));
            prop_assert_eq!(seen, model.into_iter().collect::<Vec<_>>());
        }
    }
}
