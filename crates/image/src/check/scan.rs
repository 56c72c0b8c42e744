//! Reading an image's metadata and counting who refers to which cluster.

use std::path::Path;

use super::counts::{CHUNK, Counts};
use super::report::{CheckReport, Severity};
use super::{owner::Owner, refcounts, tables};
use crate::qcow2::header::Header;
use crate::storage::Storage;
use crate::{Error, Result};

/// Bits of an L1 entry that must be zero.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

/// A check under way, and what it has learned.
pub(super) struct Scan<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) header: Header,
    pub(super) file_length: u64,
    /// How often each host cluster is referred to.
    pub(super) references: Counts,
    /// The refcounts that the image stores.
    pub(super) stored: Counts,
    /// Which metadata a cluster holds, as [`Owner`] numbers.
    owners: Counts,
    /// How often each L2 table is referred to, over all L1 tables.
    pub(super) l2_tables: Counts,
    /// How often the active L1 table does.
    pub(super) active_l2_tables: Counts,
    /// Why the refcount table or a block cannot be kept.
    pub(super) rebuild: bool,
    /// Some references may have been missed: nothing may be taken for unused.
    pub(super) incomplete: bool,
    pub(super) report: CheckReport,
}

/// Whether the refcount structures that the header names are themselves
/// counted: not when they are about to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refcounts {
    Kept,
    Replaced,
}

impl<'a> Scan<'a> {
    /// Checks everything.
    pub(super) fn run(storage: &'a dyn Storage, path: &Path, refcounts: Refcounts) -> Result<Self> {
        let header = Header::read(storage, path)?;
        let file_length = storage
            .length()
            .map_err(|error| Error::io(path, "find its length", error))?;
        let total_clusters = header.size.div_ceil(header.cluster_size());
        let mut scan = Self {
            storage,
            header,
            file_length,
            references: Counts::default(),
            stored: Counts::default(),
            owners: Counts::default(),
            l2_tables: Counts::default(),
            active_l2_tables: Counts::default(),
            rebuild: false,
            incomplete: false,
            report: CheckReport::new(path, total_clusters),
        };
        scan.claim(0, 1, Owner::Header);
        if refcounts == Refcounts::Kept {
            refcounts::read_stored(&mut scan);
        }
        let (l1_offset, l1_entries) = (scan.header.l1_offset, scan.header.l1_entries);
        scan.read_l1(l1_offset, l1_entries, true);
        tables::read_snapshots(&mut scan);
        tables::read_bitmaps(&mut scan);
        scan.claim_l2_tables();
        super::l2::read_tables(&mut scan);
        if refcounts == Refcounts::Kept {
            scan.compare();
        }
        Ok(scan)
    }

    pub(super) fn corruption(&mut self, offset: u64, what: impl FnOnce() -> String) {
        self.report.add(Severity::Corruption, offset, what);
    }

    /// A part that could not be read: its references are unknown.
    pub(super) fn missed(&mut self, offset: u64, what: impl FnOnce() -> String) {
        self.incomplete = true;
        self.corruption(offset, what);
    }

    pub(super) fn cluster_of(&self, offset: u64) -> u64 {
        offset >> self.header.cluster_bits
    }

    pub(super) fn is_aligned(&self, offset: u64) -> bool {
        offset & (self.header.cluster_size() - 1) == 0
    }

    /// Whether a range reaches a cluster or more past the end of the file; the
    /// last cluster may be cut short.
    pub(super) fn is_beyond(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_add(length)
            .is_none_or(|end| end.saturating_sub(self.file_length) >= self.header.cluster_size())
    }

    /// Reads, or notes that it could not.
    pub(super) fn read(&mut self, offset: u64, buf: &mut [u8], what: Owner) -> bool {
        match self.storage.read_at(buf, offset) {
            Ok(()) => true,
            Err(error) => {
                self.incomplete = true;
                self.report.add(Severity::Error, offset, || {
                    format!("cannot read {what}: {error}")
                });
                false
            }
        }
    }

    /// Counts metadata once for each of its clusters. False when it lies past
    /// the end of the file or on other metadata, and must not be read.
    pub(super) fn claim(&mut self, offset: u64, length: u64, owner: Owner) -> bool {
        if length == 0 {
            return true;
        }
        if self.is_beyond(offset, length) {
            self.missed(offset, || {
                format!("{owner} at {offset:#x} lies beyond the end of the file")
            });
            return false;
        }
        let mut free = true;
        for cluster in self.cluster_of(offset)..=self.cluster_of(offset + length - 1) {
            self.references.add(cluster, 1);
            free &= self.own(cluster, owner);
        }
        self.incomplete |= !free;
        free
    }

    /// Notes what a metadata cluster holds; false when it holds something
    /// already.
    fn own(&mut self, cluster: u64, owner: Owner) -> bool {
        let before = Owner::from_number(self.owners.get(cluster));
        let Some(before) = before else {
            self.owners.set(cluster, owner.number());
            return true;
        };
        let offset = cluster << self.header.cluster_bits;
        if matches!(owner, Owner::RefcountTable | Owner::RefcountBlock)
            || matches!(before, Owner::RefcountTable | Owner::RefcountBlock)
        {
            self.rebuild = true;
        }
        self.corruption(offset, || {
            format!("{owner} at {offset:#x} overlaps {before}")
        });
        false
    }

    /// Counts a cluster of guest data, `count` times.
    pub(super) fn refer_to_data(&mut self, cluster: u64, count: u32) {
        self.references.add(cluster, count);
        if let Some(owner) = Owner::from_number(self.owners.get(cluster)) {
            let offset = cluster << self.header.cluster_bits;
            if matches!(owner, Owner::RefcountTable | Owner::RefcountBlock) {
                self.rebuild = true;
            }
            self.corruption(offset, || {
                format!("guest data at {offset:#x} overlaps {owner}")
            });
        }
    }

    /// Counts an L1 table and the L2 tables it names.
    pub(super) fn read_l1(&mut self, offset: u64, entries: u32, active: bool) {
        let owner = if active {
            Owner::ActiveL1
        } else {
            Owner::SnapshotL1
        };
        let length = u64::from(entries) * 8;
        if !self.claim(offset, length, owner) {
            return;
        }
        let mut window = vec![0; length.min(1 << 20) as usize];
        let mut done = 0;
        while done < length {
            let take = (length - done).min(window.len() as u64) as usize;
            if !self.read(offset + done, &mut window[..take], owner) {
                return;
            }
            for (index, entry) in window[..take].as_chunks::<8>().0.iter().enumerate() {
                let entry = u64::from_be_bytes(*entry);
                if entry != 0 {
                    self.take_l1_entry(entry, offset + done + index as u64 * 8, active);
                }
            }
            done += take as u64;
        }
    }

    fn take_l1_entry(&mut self, entry: u64, place: u64, active: bool) {
        use crate::qcow2::entry::{COPIED, OFFSET_MASK};
        if entry & L1_RESERVED != 0 {
            self.missed(place, || {
                format!("L1 entry {entry:#x} has reserved bits set")
            });
        }
        let table = entry & OFFSET_MASK;
        if table == 0 {
            return;
        }
        let size = self.header.cluster_size();
        if !self.is_aligned(table) {
            self.missed(place, || {
                format!("L2 table at {table:#x} is not aligned to a cluster")
            });
            return;
        }
        if self.is_beyond(table, size) {
            self.missed(place, || {
                format!("L2 table at {table:#x} lies beyond the end of the file")
            });
            return;
        }
        let cluster = self.cluster_of(table);
        self.references.add(cluster, 1);
        self.l2_tables.add(cluster, 1);
        if active {
            self.active_l2_tables.add(cluster, 1);
            let refcount = self.stored.get(cluster);
            if (refcount == 1) != (entry & COPIED != 0) {
                self.wrong_copied("L2 table", table, place, refcount);
            }
        }
    }

    pub(super) fn wrong_copied(&mut self, what: &str, offset: u64, place: u64, refcount: u32) {
        self.corruption(place, || {
            format!("COPIED flag of {what} at {offset:#x} contradicts its refcount {refcount}")
        });
    }

    /// Notes the clusters of all L2 tables, once each.
    fn claim_l2_tables(&mut self) {
        let mut tables = std::mem::take(&mut self.l2_tables);
        let mut overlapping = Vec::new();
        tables.for_each(|cluster, _| {
            if !self.own(cluster, Owner::L2) {
                overlapping.push(cluster);
            }
        });
        // What else lies there is no L2 table: its words mean nothing.
        for cluster in overlapping {
            self.incomplete = true;
            tables.set(cluster, 0);
        }
        self.l2_tables = tables;
    }

    /// Compares stored refcounts with the references counted.
    fn compare(&mut self) {
        let in_file = self.file_length.div_ceil(self.header.cluster_size());
        let mut chunks = self.references.chunk_numbers();
        chunks.extend(self.stored.chunk_numbers());
        chunks.sort_unstable();
        chunks.dedup();
        let (mut stored, mut counted) = (Box::new([0; CHUNK]), Box::new([0; CHUNK]));
        let mut end = 0;
        for chunk in chunks {
            self.stored.expand(chunk, &mut stored);
            self.references.expand(chunk, &mut counted);
            for (at, (&stored, &counted)) in stored.iter().zip(counted.iter()).enumerate() {
                if stored == 0 && counted == 0 {
                    continue;
                }
                let cluster = chunk * CHUNK as u64 + at as u64;
                if cluster >= in_file && counted == 0 {
                    continue;
                }
                end = cluster + 1;
                if stored != counted {
                    let severity = if stored > counted {
                        Severity::Leak
                    } else {
                        Severity::Corruption
                    };
                    self.report
                        .add(severity, cluster << self.header.cluster_bits, || {
                            format!(
                                "cluster {cluster} has refcount {stored} and {counted} references"
                            )
                        });
                }
            }
        }
        self.report.image_end_offset = end << self.header.cluster_bits;
    }
}
