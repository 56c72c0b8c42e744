//! Reading and writing compressed clusters.
//!
//! Specification: `docs/interop/qcow2`, "Compressed Clusters Descriptor".
//! Several compressed clusters may share a host cluster; each holds one
//! reference to every host cluster it touches.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::codec::{self, Compressor};
use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::entry::{CompressedExtent, L2Entry};

/// Clusters kept decompressed, for reads smaller than a cluster.
const KEPT: usize = 4;
/// Larger clusters are not kept, to bound memory.
const KEPT_BYTES: u64 = 1 << 20;

/// The clusters decompressed last, by descriptor.
#[derive(Debug, Default)]
pub(crate) struct DecompressedCache {
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    clusters: Vec<(u64, Arc<[u8]>)>,
    /// Counts [`DecompressedCache::clear`].
    generation: u64,
}

impl DecompressedCache {
    fn get(&self, descriptor: u64) -> (Option<Arc<[u8]>>, u64) {
        let recent = self.recent.lock();
        let found = recent
            .clusters
            .iter()
            .find(|(d, _)| *d == descriptor)
            .map(|(_, bytes)| Arc::clone(bytes));
        (found, recent.generation)
    }

    fn put(&self, descriptor: u64, bytes: Arc<[u8]>, generation: u64) {
        let mut recent = self.recent.lock();
        if recent.generation != generation {
            return;
        }
        if recent.clusters.len() >= KEPT {
            recent.clusters.remove(0);
        }
        recent.clusters.push((descriptor, bytes));
    }

    /// Forgets all: the host bytes behind a descriptor may be reused.
    pub(crate) fn clear(&self) {
        let mut recent = self.recent.lock();
        recent.generation += 1;
        recent.clusters.clear();
    }
}

impl Qcow2 {
    /// Reads `buf` from `inside` bytes into the compressed cluster.
    pub(crate) fn read_compressed(
        &self,
        descriptor: u64,
        inside: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let size = self.geo.cluster_size;
        let descriptor = descriptor & !crate::qcow2::entry::COPIED;
        let start = inside as usize;
        if size > KEPT_BYTES || buf.len() as u64 == size {
            let mut cluster = vec![0u8; size as usize];
            self.decompress(descriptor, &mut cluster)?;
            buf.copy_from_slice(&cluster[start..start + buf.len()]);
            return Ok(());
        }
        let (kept, generation) = self.decompressed.get(descriptor);
        let cluster = match kept {
            Some(cluster) => cluster,
            None => {
                let mut cluster = vec![0u8; size as usize];
                self.decompress(descriptor, &mut cluster)?;
                let cluster: Arc<[u8]> = cluster.into();
                self.decompressed
                    .put(descriptor, Arc::clone(&cluster), generation);
                cluster
            }
        };
        buf.copy_from_slice(&cluster[start..start + buf.len()]);
        Ok(())
    }

    fn decompress(&self, descriptor: u64, out: &mut [u8]) -> Result<()> {
        let extent = CompressedExtent::decode(descriptor, self.geo.cluster_bits);
        let mut input = vec![0u8; extent.length as usize];
        self.storage
            .read_at(&mut input, extent.offset)
            .map_err(|e| Error::io(&self.path, "read a compressed cluster", e))?;
        codec::decompress(self.compression, &input, out).map_err(|e| {
            Error::corrupt(
                &self.path,
                format!("compressed cluster: {e}"),
                extent.offset,
            )
        })
    }

    /// Compresses a whole guest cluster (its tail past the end of the disk is
    /// taken as zeroes) and stores it. Returns false when compression gains
    /// nothing; the caller then writes it as it is.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for images with an external data file.
    pub(crate) fn write_compressed(
        &self,
        data: &[u8],
        offset: u64,
        compressor: &mut Compressor,
    ) -> Result<bool> {
        self.check_writable()?;
        let size = self.geo.cluster_size;
        if self.geo.external_data {
            return Err(Error::unsupported(
                &self.path,
                "compression together with an external data file",
            ));
        }
        let last = offset + data.len() as u64 == self.size();
        if self.geo.inside(offset) != 0
            || !(data.len() as u64 == size || (last && !data.is_empty()))
        {
            return Err(Error::invalid(
                format!("compressed write of {} bytes at {offset}", data.len()),
                format!("must be one whole cluster of {size} bytes"),
            ));
        }
        let mut out = vec![0u8; size as usize - 1];
        let packed = if data.len() as u64 == size {
            compressor.compress(data, &mut out)
        } else {
            let mut padded = data.to_vec();
            padded.resize(size as usize, 0);
            compressor.compress(&padded, &mut out)
        };
        let Some(length) = packed.filter(|n| *n > 0) else {
            return Ok(false);
        };
        self.mark_bitmaps()?;
        self.store_compressed(&out[..length], offset)
    }

    fn store_compressed(&self, bytes: &[u8], offset: u64) -> Result<bool> {
        let guest = self.geo.cluster(offset);
        let length = bytes.len() as u64;
        let _pin = self.gate.pin();
        {
            let _held = self.in_flight.hold(guest, guest + 1);
            self.ensure_tables(guest, guest + 1)?;
            let host = self.with_allocator(|a| a.allocate_bytes(length))?;
            let extent = CompressedExtent {
                offset: host,
                length,
            };
            let Some(word) = CompressedExtent::encode(host, length, self.geo.cluster_bits) else {
                self.release_extent(extent)?;
                return Ok(false);
            };
            let written = self
                .storage
                .write_at(bytes, host)
                .map_err(|e| Error::io(&self.path, "write a compressed cluster", e));
            if let Err(error) = written {
                self.release_extent(extent)?;
                return Err(error);
            }
            self.commit.note_write();
            let mut old = L2Entry::default();
            let new = L2Entry {
                descriptor: word,
                bitmap: 0,
            };
            let (done, outcome) = self.change_entries(guest, 1, |_, entry| {
                old = entry;
                new
            });
            if done == 0 {
                self.release_extent(extent)?;
            }
            outcome?;
            self.free_entry(old, false);
        }
        self.commit_if_crowded(guest)?;
        Ok(true)
    }

    fn release_extent(&self, extent: CompressedExtent) -> Result<()> {
        let (first, last) = extent.clusters(self.geo.cluster_bits);
        self.with_allocator(|a| (first..=last).try_for_each(|c| a.release(c).map(drop)))
    }
}
