//! Bounded caches of metadata: slices of L2 tables and of refcount blocks.
//!
//! A slice is shared by reference count: a commit takes references to the
//! dirty slices and writes them while newer requests change copies. A slice
//! that is dirty or being written is never evicted, so that what is read from
//! the file is never older than what was cached.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Hashes cluster and slice numbers, which an attacker gains nothing from
/// making collide: a full shard is bounded.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// A map keyed by numbers.
pub(crate) type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;
/// A set of numbers.
pub(crate) type NumberSet = HashSet<u64, BuildHasherDefault<NumberHasher>>;

#[derive(Debug)]
struct Slot<T> {
    key: u64,
    data: Arc<[T]>,
    dirty: bool,
    writing: bool,
    used: bool,
}

/// Slices by key, evicted by second chance.
#[derive(Debug)]
pub(crate) struct SliceMap<T> {
    index: NumberMap<usize>,
    slots: Vec<Slot<T>>,
    hand: usize,
    capacity: usize,
    dirty: Vec<u64>,
}

impl<T: Copy> SliceMap<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        SliceMap {
            index: NumberMap::default(),
            slots: Vec::new(),
            hand: 0,
            capacity: capacity.max(4),
            dirty: Vec::new(),
        }
    }

    pub(crate) fn get(&mut self, key: u64) -> Option<&[T]> {
        let slot = self.slots.get_mut(*self.index.get(&key)?)?;
        slot.used = true;
        Some(&slot.data)
    }

    /// The slice for changing; it counts as dirty from now on.
    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut [T]> {
        let slot = self.slots.get_mut(*self.index.get(&key)?)?;
        slot.used = true;
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(key);
        }
        Some(Arc::make_mut(&mut slot.data))
    }

    pub(crate) fn insert(&mut self, key: u64, data: Arc<[T]>) {
        let slot = Slot {
            key,
            data,
            dirty: false,
            writing: false,
            used: true,
        };
        if let Some(at) = self.index.get(&key) {
            self.slots[*at] = slot;
            return;
        }
        let at = match self.victim() {
            Some(at) => {
                self.index.remove(&self.slots[at].key);
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.index.insert(key, at);
    }

    /// A slot to reuse, or `None` while there is room or all are needed.
    fn victim(&mut self) -> Option<usize> {
        if self.slots.len() < self.capacity {
            return None;
        }
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.dirty || slot.writing {
                continue;
            }
            if !slot.used {
                return Some(self.hand);
            }
            slot.used = false;
        }
        None
    }

    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes references to all dirty slices, which stay in the cache until
    /// [`SliceMap::written`] tells what became of them.
    pub(crate) fn take_dirty(&mut self, out: &mut Vec<(u64, Arc<[T]>)>) {
        let mut still = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.index.get(&key).and_then(|at| self.slots.get_mut(*at)) else {
                continue;
            };
            if slot.writing {
                still.push(key);
                continue;
            }
            slot.dirty = false;
            slot.writing = true;
            out.push((key, Arc::clone(&slot.data)));
        }
        self.dirty = still;
    }

    /// Ends the writing of a slice; one that failed is dirty again.
    pub(crate) fn written(&mut self, key: u64, ok: bool) {
        if let Some(slot) = self.index.get(&key).and_then(|at| self.slots.get_mut(*at)) {
            slot.writing = false;
            if !ok && !slot.dirty {
                slot.dirty = true;
                self.dirty.push(key);
            }
        }
    }

    /// Forgets the slices from `key` on, dirty or not.
    pub(crate) fn remove_from(&mut self, key: u64) {
        let kept: Vec<Slot<T>> = std::mem::take(&mut self.slots)
            .into_iter()
            .filter(|slot| slot.key < key)
            .collect();
        self.index = kept.iter().enumerate().map(|(at, s)| (s.key, at)).collect();
        self.slots = kept;
        self.dirty.retain(|k| *k < key);
        self.hand = 0;
    }

    /// Forgets all slices. The caller has made sure that none is dirty.
    pub(crate) fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
        self.dirty.clear();
        self.hand = 0;
    }
}

const SHARDS: usize = 16;

#[derive(Debug)]
struct Shard {
    state: Mutex<ShardState>,
    loaded: Condvar,
}

#[derive(Debug)]
struct ShardState {
    slices: SliceMap<u64>,
    /// Keys whose slice a thread is reading from the file. One at a time: a
    /// second reader might otherwise bring back what was there before a
    /// change that came and was evicted in between.
    loading: NumberSet,
}

/// The cache of L2 slices, keyed by slice number in guest order, so that a
/// slice survives the move of its table.
#[derive(Debug)]
pub(crate) struct L2Cache {
    shards: Vec<Shard>,
}

impl L2Cache {
    pub(crate) fn new(slices: usize) -> Self {
        let shards = (0..SHARDS)
            .map(|_| Shard {
                state: Mutex::new(ShardState {
                    slices: SliceMap::new(slices / SHARDS),
                    loading: NumberSet::default(),
                }),
                loaded: Condvar::new(),
            })
            .collect();
        L2Cache { shards }
    }

    fn shard(&self, key: u64) -> &Shard {
        &self.shards[(key % SHARDS as u64) as usize]
    }

    /// Runs `f` on a slice if it is in the cache. The lock is held: `f` only
    /// looks.
    pub(crate) fn peek<R>(&self, key: u64, f: impl FnOnce(&[u64]) -> R) -> Option<R> {
        self.shard(key).state.lock().slices.get(key).map(f)
    }

    /// Runs `f` on a slice, which `load` reads if it is not in the cache.
    /// `load` returning `None` means that there is no table.
    pub(crate) fn read<R, E>(
        &self,
        key: u64,
        load: impl Fn() -> Result<Option<Arc<[u64]>>, E>,
        f: impl FnOnce(&[u64]) -> R,
    ) -> Result<Option<R>, E> {
        self.access(key, load, |slices| slices.get(key).map(f))
    }

    /// Runs `f` on a slice and marks it dirty.
    pub(crate) fn modify<R, E>(
        &self,
        key: u64,
        load: impl Fn() -> Result<Option<Arc<[u64]>>, E>,
        f: impl FnOnce(&mut [u64]) -> R,
    ) -> Result<Option<R>, E> {
        self.access(key, load, |slices| slices.get_mut(key).map(f))
    }

    fn access<R, E>(
        &self,
        key: u64,
        load: impl Fn() -> Result<Option<Arc<[u64]>>, E>,
        f: impl FnOnce(&mut SliceMap<u64>) -> Option<R>,
    ) -> Result<Option<R>, E> {
        let shard = self.shard(key);
        let mut state = shard.state.lock();
        loop {
            if state.slices.get(key).is_some() {
                return Ok(f(&mut state.slices));
            }
            if !state.loading.insert(key) {
                shard.loaded.wait(&mut state);
                continue;
            }
            drop(state);
            let outcome = load();
            state = shard.state.lock();
            state.loading.remove(&key);
            shard.loaded.notify_all();
            match outcome? {
                Some(data) => state.slices.insert(key, data),
                None => return Ok(None),
            }
        }
    }

    pub(crate) fn dirty_count(&self) -> usize {
        self.shards
            .iter()
            .map(|s| s.state.lock().slices.dirty_count())
            .sum()
    }

    /// Whether the shard of `key` holds so many dirty slices that a commit is
    /// due.
    pub(crate) fn is_crowded(&self, key: u64) -> bool {
        let state = self.shard(key).state.lock();
        state.slices.dirty_count() * 2 > state.slices.capacity().min(256)
    }

    pub(crate) fn take_dirty(&self) -> Vec<(u64, Arc<[u64]>)> {
        let mut out = Vec::new();
        for shard in &self.shards {
            shard.state.lock().slices.take_dirty(&mut out);
        }
        out.sort_unstable_by_key(|(key, _)| *key);
        out
    }

    pub(crate) fn written(&self, key: u64, ok: bool) {
        self.shard(key).state.lock().slices.written(key, ok);
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.state.lock().slices.clear();
        }
    }
}
