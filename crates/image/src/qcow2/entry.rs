//! Bits of L1 and L2 table entries.
//!
//! Specification: `docs/interop/qcow2`, "Cluster mapping", "Standard Cluster
//! Descriptor", "Compressed Clusters Descriptor", "Extended L2 Entries".

/// Bits 9-55: offset of a cluster in the host file.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the cluster's refcount is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62: the entry is a compressed cluster descriptor.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard entry (version 3, no subclusters): reads as zeroes.
pub const ZERO: u64 = 1;
/// Subclusters in a cluster of an image with extended L2 entries.
pub const SUBCLUSTERS: u64 = 32;
/// Unit of the length in a compressed cluster descriptor.
pub const COMPRESSED_SECTOR: u64 = 512;

/// Where a compressed cluster's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedExtent {
    /// Host offset of the first byte; not aligned to anything.
    pub offset: u64,
    /// Bytes up to the end of the last sector that holds compressed data.
    pub length: u64,
}

impl CompressedExtent {
    /// Decodes the descriptor `entry`.
    pub fn decode(entry: u64, cluster_bits: u32) -> Self {
        let shift = offset_bits(cluster_bits);
        let offset = entry & ((1 << shift) - 1);
        let sectors = ((entry & !(COPIED | COMPRESSED)) >> shift) + 1;
        let skipped = offset % COMPRESSED_SECTOR;
        CompressedExtent {
            offset,
            length: sectors * COMPRESSED_SECTOR - skipped,
        }
    }

    /// The descriptor of `length` compressed bytes (at least one) at `offset`,
    /// or `None` when they do not fit the entry's fields.
    pub fn encode(offset: u64, length: u64, cluster_bits: u32) -> Option<u64> {
        let shift = offset_bits(cluster_bits);
        let last = offset.checked_add(length)?.checked_sub(1)?;
        let additional = last / COMPRESSED_SECTOR - offset / COMPRESSED_SECTOR;
        if offset >> shift != 0 || additional >> (62 - shift) != 0 {
            return None;
        }
        Some(COMPRESSED | (additional << shift) | offset)
    }

    /// First and last host cluster that the extent touches.
    pub fn clusters(&self, cluster_bits: u32) -> (u64, u64) {
        let last = self.offset + self.length.max(1) - 1;
        (self.offset >> cluster_bits, last >> cluster_bits)
    }
}

/// Number of offset bits in a compressed descriptor: `62 - (cluster_bits - 8)`.
fn offset_bits(cluster_bits: u32) -> u32 {
    70 - cluster_bits
}

/// An L2 entry with the second word that extended entries have (zero in
/// images without subclusters).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct L2Entry {
    /// The cluster descriptor.
    pub descriptor: u64,
    /// Extended entries: bits 0-31 allocated, bits 32-63 zero, per subcluster.
    pub bitmap: u64,
}

/// What an entry says about a whole cluster, subclusters left aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterKind {
    /// Nothing here: the backing file shows through.
    Unallocated,
    /// Reads as zeroes (standard entries only), maybe with a host cluster kept.
    Zero {
        /// The kept host cluster.
        host: Option<u64>,
    },
    /// A host cluster holds the data (or, in extended entries, of some
    /// subclusters).
    Allocated {
        /// Its offset.
        host: u64,
    },
    /// Compressed data.
    Compressed,
}

impl L2Entry {
    /// Whether the refcount of the cluster is exactly one.
    pub fn is_copied(self) -> bool {
        self.descriptor & COPIED != 0
    }

    /// Classifies the entry. `extended` tells whether the image has
    /// subclusters, `external_data` whether guest data lies in a data file,
    /// where offset 0 is a valid cluster.
    pub fn kind(self, extended: bool, external_data: bool) -> ClusterKind {
        let word = self.descriptor;
        if word & COMPRESSED != 0 {
            return ClusterKind::Compressed;
        }
        let offset = word & OFFSET_MASK;
        let has_host = offset != 0 || (external_data && word & COPIED != 0);
        if !extended && word & ZERO != 0 {
            return ClusterKind::Zero {
                host: has_host.then_some(offset),
            };
        }
        if has_host {
            ClusterKind::Allocated { host: offset }
        } else {
            ClusterKind::Unallocated
        }
    }

    /// Extended entries: subclusters with data.
    pub fn allocated_bits(self) -> u32 {
        (self.bitmap & 0xffff_ffff) as u32
    }

    /// Extended entries: subclusters that read as zeroes.
    pub fn zero_bits(self) -> u32 {
        (self.bitmap >> 32) as u32
    }

    /// Puts both subcluster bitmaps together.
    pub fn join_bits(allocated: u32, zero: u32) -> u64 {
        u64::from(allocated) | (u64::from(zero) << 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_descriptor_round_trips() {
        for bits in 9..=21 {
            for (offset, length) in [(0x5_0000, 1), (0x5_0123, 400), (0x5_01ff, 2), (77, 500)] {
                let length = length.min((1u64 << bits) - 1);
                let word = CompressedExtent::encode(offset, length, bits).expect("fits");
                let extent = CompressedExtent::decode(word, bits);
                assert_eq!(extent.offset, offset);
                assert!(extent.length >= length && extent.length < length + 512);
                assert_eq!((extent.offset + extent.length) % 512, 0);
            }
        }
    }

    #[test]
    fn offset_zero_is_a_cluster_only_in_a_data_file() {
        let entry = L2Entry {
            descriptor: COPIED,
            bitmap: 0,
        };
        assert_eq!(entry.kind(false, false), ClusterKind::Unallocated);
        assert_eq!(entry.kind(false, true), ClusterKind::Allocated { host: 0 });
    }
}
