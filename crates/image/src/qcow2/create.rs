//! Writing the metadata of a new qcow2 image, and preallocating it.

use std::path::Path;

use crate::create::{CreateOptions, Preallocation};
use crate::error::{Error, Result};
use crate::qcow2::Qcow2;
use crate::qcow2::entry::{COPIED, L2Entry};
use crate::qcow2::extension::Extensions;
use crate::qcow2::header::{
    Compression, Header, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, V2_LENGTH, V3_LENGTH_WRITTEN,
    autoclear, compatible, incompatible,
};
use crate::qcow2::refcount;
use crate::storage::Storage;

/// Builds the header that `options` ask for, layout left open.
pub(crate) fn plan(options: &CreateOptions, size: u64, path: &Path) -> Result<Header> {
    let v3 = options.compat.is_v3();
    let mut header = Header {
        version: if v3 { 3 } else { 2 },
        cluster_bits: options.cluster_size.trailing_zeros(),
        size,
        l1_entries: 0,
        l1_offset: 0,
        refcount_table_offset: 0,
        refcount_table_clusters: 0,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: options.refcount_bits.trailing_zeros(),
        header_length: if v3 { V3_LENGTH_WRITTEN } else { V2_LENGTH },
        compression: options.compression,
        backing_name_offset: 0,
        backing_name: options.backing.as_ref().map(|b| b.path.clone()),
        extensions: Extensions::default(),
        unknown_fields: Vec::new(),
    };
    if options.lazy_refcounts {
        header.compatible |= compatible::LAZY_REFCOUNTS;
    }
    if options.extended_l2 {
        header.incompatible |= incompatible::EXTENDED_L2;
    }
    if options.compression == Compression::Zstd {
        header.incompatible |= incompatible::COMPRESSION;
    }
    if let Some(name) = &options.data_file {
        header.incompatible |= incompatible::DATA_FILE;
        header.extensions.data_file = Some(name.clone());
        if options.data_file_raw {
            header.autoclear |= autoclear::DATA_FILE_RAW;
        }
    }
    header.extensions.backing_format = options
        .backing
        .as_ref()
        .map(|b| b.format.as_str().to_owned());
    if v3 {
        header.extensions.feature_names = Extensions::standard_feature_names();
        if header.serialise(path).is_err() {
            // Small clusters: the names only serve messages.
            header.extensions.feature_names.clear();
        }
    }
    header.serialise(path)?;
    let l1 = header.l1_entries_needed(size).max(1);
    if l1 * 8 > MAX_L1_BYTES {
        return Err(Error::invalid(
            format!("size {size}"),
            format!(
                "too large for clusters of {} bytes; use a larger cluster size",
                options.cluster_size
            ),
        ));
    }
    header.l1_entries = l1 as u32;
    Ok(header)
}

/// Writes an empty image: refcounts and L1 first, the header last.
pub(crate) fn write(storage: &dyn Storage, header: &mut Header, path: &Path) -> Result<()> {
    let size = header.cluster_size();
    let l1 = (u64::from(header.l1_entries) * 8).div_ceil(size);
    let (mut table, mut blocks) = (1, 1);
    loop {
        let total = 1 + table + blocks + l1;
        let blocks_needed = u64::max(total.div_ceil(header.refcounts_per_block()), 1);
        let table_needed = u64::max((blocks_needed * 8).div_ceil(size), 1);
        if blocks_needed <= blocks && table_needed <= table {
            break;
        }
        blocks = blocks.max(blocks_needed);
        table = table.max(table_needed);
    }
    if table * size > MAX_REFCOUNT_TABLE_BYTES {
        return Err(Error::invalid(
            path.display().to_string(),
            "the refcount table would be too large; use a larger cluster size",
        ));
    }
    let total = 1 + table + blocks + l1;
    header.refcount_table_offset = size;
    header.refcount_table_clusters = table as u32;
    header.l1_offset = (1 + table + blocks) * size;
    let failed = |e| Error::io(path, "write a new image", e);
    let mut cluster = vec![0u8; size as usize];
    for at in 0..table {
        for (i, word) in cluster.chunks_exact_mut(8).enumerate() {
            let block = at * size / 8 + i as u64;
            let offset = if block < blocks {
                (1 + table + block) * size
            } else {
                0
            };
            word.copy_from_slice(&offset.to_be_bytes());
        }
        storage
            .write_at(&cluster, (1 + at) * size)
            .map_err(failed)?;
    }
    for block in 0..blocks {
        cluster.fill(0);
        let first = block * header.refcounts_per_block();
        let used = total
            .saturating_sub(first)
            .min(header.refcounts_per_block());
        for i in 0..used as usize {
            refcount::set(&mut cluster, header.refcount_order, i, 1);
        }
        storage
            .write_at(&cluster, (1 + table + block) * size)
            .map_err(failed)?;
    }
    storage
        .write_zeroes_at(header.l1_offset, l1 * size, false)
        .map_err(failed)?;
    storage.sync().map_err(failed)?;
    let mut area = header.serialise(path)?;
    area.resize(size as usize, 0);
    storage.write_at(&area, 0).map_err(failed)?;
    storage.sync().map_err(failed)
}

impl Qcow2 {
    /// Maps every cluster of a new image (no data written before).
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the host cannot hold it.
    pub(crate) fn preallocate(&self, how: Preallocation) -> Result<()> {
        if how == Preallocation::Off {
            return Ok(());
        }
        let clusters = self.size().div_ceil(self.geo.cluster_size);
        let mut guest = 0;
        while guest < clusters {
            let in_table = self.geo.l2_entries - guest % self.geo.l2_entries;
            let wanted = (clusters - guest).min(in_table);
            let _pin = self.gate.pin();
            self.ensure_tables(guest, guest + wanted)?;
            let (host, count) = if self.geo.external_data {
                (guest << self.geo.cluster_bits, wanted)
            } else {
                let place = self.with_allocator(|a| a.allocate(wanted))?;
                (place.first << self.geo.cluster_bits, place.count)
            };
            self.fill_preallocated(host, count, how)?;
            let bitmap = if self.geo.extended {
                L2Entry::join_bits(u32::MAX, 0)
            } else {
                0
            };
            let (_, outcome) = self.change_entries(guest, count, |i, _| L2Entry {
                descriptor: (host + (i << self.geo.cluster_bits)) | COPIED,
                bitmap,
            });
            outcome?;
            guest += count;
            self.commit_if_crowded(guest)?;
        }
        self.flush()
    }

    fn fill_preallocated(&self, host: u64, count: u64, how: Preallocation) -> Result<()> {
        let length = count << self.geo.cluster_bits;
        let end = host + length;
        let failed = |e| Error::io(&self.path, "preallocate", e);
        let data = self.data();
        match how {
            Preallocation::Off => {}
            Preallocation::Metadata => {
                if data.length().map_err(failed)? < end {
                    data.set_length(end).map_err(failed)?;
                }
            }
            Preallocation::Falloc => data.allocate_at(host, length).map_err(failed)?,
            Preallocation::Full => {
                crate::raw::fill_with_zeroes(data.as_ref(), host, length).map_err(failed)?
            }
        }
        self.commit.note_write();
        Ok(())
    }
}
