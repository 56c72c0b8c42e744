//! Sizes and conversions that follow from an image's header and never change
//! while it is open.

use crate::qcow2::entry::SUBCLUSTERS;
use crate::qcow2::header::Header;

/// Largest piece of an L2 table or refcount block that is cached as one.
const MAX_SLICE: u64 = 4096;

/// The fixed measures of an open image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) cluster_size: u64,
    /// Entries in one L2 table.
    pub(crate) l2_entries: u64,
    /// 64-bit words in one L2 entry: 1, or 2 with subclusters.
    pub(crate) entry_words: usize,
    /// Entries in one cached piece of an L2 table.
    pub(crate) slice_entries: u64,
    /// Whether entries have subclusters.
    pub(crate) extended: bool,
    /// The smallest range with a mapping of its own: a cluster or subcluster.
    pub(crate) unit: u64,
    pub(crate) refcount_order: u32,
    /// Refcounts in one refcount block.
    pub(crate) block_entries: u64,
    /// Bytes in one cached piece of a refcount block.
    pub(crate) refcount_slice: u64,
    /// Whether guest data lies in an external data file.
    pub(crate) external_data: bool,
    /// Whether that file is kept readable as a raw image.
    pub(crate) data_raw: bool,
}

impl Geometry {
    pub(crate) fn new(header: &Header) -> Self {
        let cluster_size = header.cluster_size();
        let extended = header.is_extended_l2();
        let slice = cluster_size.min(MAX_SLICE);
        Geometry {
            version: header.version,
            cluster_bits: header.cluster_bits,
            cluster_size,
            l2_entries: header.l2_entries(),
            entry_words: (header.l2_entry_size() / 8) as usize,
            slice_entries: slice / header.l2_entry_size(),
            extended,
            unit: if extended {
                cluster_size / SUBCLUSTERS
            } else {
                cluster_size
            },
            refcount_order: header.refcount_order,
            block_entries: header.refcounts_per_block(),
            refcount_slice: slice,
            external_data: header.has_data_file(),
            data_raw: header.is_data_file_raw(),
        }
    }

    /// Index of the guest or host cluster that holds `offset`.
    pub(crate) fn cluster(&self, offset: u64) -> u64 {
        offset >> self.cluster_bits
    }

    /// Position of `offset` in its cluster.
    pub(crate) fn inside(&self, offset: u64) -> u64 {
        offset & (self.cluster_size - 1)
    }

    /// Key of the L2 slice that maps a guest cluster, and the entry in it.
    pub(crate) fn slice_of(&self, cluster: u64) -> (u64, usize) {
        (
            cluster / self.slice_entries,
            (cluster % self.slice_entries) as usize,
        )
    }

    /// Slices in one L2 table.
    pub(crate) fn slices_per_table(&self) -> u64 {
        self.l2_entries / self.slice_entries
    }

    /// Bytes of one L2 slice.
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.slice_entries * self.entry_words as u64 * 8
    }

    /// Refcounts in one cached slice of a refcount block.
    pub(crate) fn refcount_slice_entries(&self) -> u64 {
        (self.refcount_slice * 8) >> self.refcount_order
    }

    /// The largest refcount that fits.
    pub(crate) fn refcount_max(&self) -> u64 {
        match self.refcount_order {
            6 => u64::MAX,
            order => (1 << (1u32 << order)) - 1,
        }
    }
}
