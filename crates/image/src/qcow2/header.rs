//! The qcow2 header: parsing, validation, serialisation.
//!
//! Specification: `docs/interop/qcow2`, "Header", "Header extensions",
//! "Feature name table". All fields are big-endian. Versions 2 and 3.

use std::path::Path;

use crate::error::{Error, Result};
use crate::qcow2::extension::{self, Extensions};
use crate::storage::Storage;

/// The first four bytes of every qcow2 file.
pub const MAGIC: u32 = 0x5146_49fb;
/// Length of a version 2 header.
pub const V2_LENGTH: u32 = 72;
/// Length of the shortest version 3 header.
pub const V3_LENGTH: u32 = 104;
/// Length of the header this engine writes (with the compression type).
pub const V3_LENGTH_WRITTEN: u32 = 112;
/// The largest L1 table in bytes that any known writer makes or accepts.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// The largest refcount table in bytes that any known writer makes or accepts.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// The most internal snapshots that any known writer makes or accepts.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// The longest backing file name.
pub const MAX_BACKING_NAME: u32 = 1023;

/// Incompatible feature bits.
pub mod incompatible {
    /// Refcounts may be wrong; repair before trusting them.
    pub const DIRTY: u64 = 1 << 0;
    /// Structures may be damaged; read-only until repaired.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data lies in an external data file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type is not zlib.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries are extended (subclusters).
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// All that this engine knows.
    pub const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Compatible feature bits.
pub mod compatible {
    /// Refcount updates may be postponed under the dirty bit.
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// Autoclear feature bits.
pub mod autoclear {
    /// The bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1 << 0;
    /// The external data file is a consistent raw image.
    pub const DATA_FILE_RAW: u64 = 1 << 1;
    /// All that this engine keeps consistent.
    pub const KNOWN: u64 = BITMAPS | DATA_FILE_RAW;
}

/// How compressed clusters are compressed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Raw deflate with a window of 4 KiB.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

/// A header with its extensions and the backing file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size in bytes: 9 to 21.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Entries in the active L1 table.
    pub l1_entries: u32,
    /// Offset of the active L1 table.
    pub l1_offset: u64,
    /// Offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters that the refcount table takes.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Offset of the snapshot table.
    pub snapshots_offset: u64,
    /// See [`incompatible`].
    pub incompatible: u64,
    /// See [`compatible`].
    pub compatible: u64,
    /// See [`autoclear`].
    pub autoclear: u64,
    /// log2 of the refcount width in bits: 0 to 6.
    pub refcount_order: u32,
    /// Bytes of the fixed part, as found or as will be written.
    pub header_length: u32,
    /// Compression of compressed clusters.
    pub compression: Compression,
    /// Where the backing file name stands as found; chosen anew when written.
    pub backing_name_offset: u64,
    /// The backing file's name as it stands in the header.
    pub backing_name: Option<String>,
    /// Header extensions.
    pub extensions: Extensions,
    /// Bytes of the fixed part past those known here, kept as found.
    pub unknown_fields: Vec<u8>,
}

impl Header {
    /// Reads and validates the header of `storage`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::NotQcow2`], [`Error::Unsupported`] (version, encryption,
    /// unknown incompatible features by name), [`Error::Corrupt`].
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Header> {
        let mut first = [0u8; V3_LENGTH_WRITTEN as usize];
        read(storage, path, &mut first, 0)?;
        if be32(&first, 0) != MAGIC {
            return Err(Error::NotQcow2 {
                path: path.to_owned(),
            });
        }
        let cluster_bits = be32(&first, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(Error::corrupt(
                path,
                format!("cluster_bits is {cluster_bits}, valid are 9 to 21"),
                20,
            ));
        }
        let mut area = vec![0u8; 1usize << cluster_bits];
        read(storage, path, &mut area, 0)?;
        let header = Header::parse(&area, path)?;
        header.validate(storage, path)?;
        Ok(header)
    }

    /// Parses the header cluster `area` without looking at the rest of the
    /// file.
    pub fn parse(area: &[u8], path: &Path) -> Result<Header> {
        let version = be32(area, 4);
        if version != 2 && version != 3 {
            return Err(Error::unsupported(path, format!("qcow2 version {version}")));
        }
        let crypt = be32(area, 32);
        if crypt != 0 {
            let method = match crypt {
                1 => "AES encryption (crypt_method 1)".to_owned(),
                2 => "LUKS encryption (crypt_method 2)".to_owned(),
                n => format!("encryption method {n}"),
            };
            return Err(Error::unsupported(path, method));
        }
        let mut header = Header {
            version,
            cluster_bits: be32(area, 20),
            size: be64(area, 24),
            l1_entries: be32(area, 36),
            l1_offset: be64(area, 40),
            refcount_table_offset: be64(area, 48),
            refcount_table_clusters: be32(area, 56),
            snapshot_count: be32(area, 60),
            snapshots_offset: be64(area, 64),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            header_length: V2_LENGTH,
            compression: Compression::Zlib,
            backing_name_offset: be64(area, 8),
            backing_name: None,
            extensions: Extensions::default(),
            unknown_fields: Vec::new(),
        };
        if version == 3 {
            header.parse_v3(area, path)?;
        }
        header.parse_variable(area, path)?;
        header.refuse_unknown_features(path)?;
        header.parse_compression(area, path)?;
        Ok(header)
    }

    fn parse_v3(&mut self, area: &[u8], path: &Path) -> Result<()> {
        self.incompatible = be64(area, 72);
        self.compatible = be64(area, 80);
        self.autoclear = be64(area, 88);
        self.refcount_order = be32(area, 96);
        self.header_length = be32(area, 100);
        if self.refcount_order > 6 {
            return Err(Error::corrupt(
                path,
                format!(
                    "refcount_order is {}, valid are 0 to 6",
                    self.refcount_order
                ),
                96,
            ));
        }
        let length = self.header_length as usize;
        if self.header_length < V3_LENGTH || length > area.len() {
            return Err(Error::corrupt(
                path,
                format!("header_length is {length}, valid are 104 to the cluster size"),
                100,
            ));
        }
        if length > V3_LENGTH_WRITTEN as usize {
            self.unknown_fields = area[V3_LENGTH_WRITTEN as usize..length].to_vec();
        }
        Ok(())
    }

    /// Extensions and the backing file name, which follow the fixed part.
    fn parse_variable(&mut self, area: &[u8], path: &Path) -> Result<()> {
        let name_length = be32(area, 16);
        let mut extensions_end = area.len();
        if self.backing_name_offset != 0 {
            if name_length > MAX_BACKING_NAME {
                return Err(Error::corrupt(
                    path,
                    format!("backing file name of {name_length} bytes, at most 1023 are valid"),
                    16,
                ));
            }
            let start = usize::try_from(self.backing_name_offset).unwrap_or(usize::MAX);
            let name = start
                .checked_add(name_length as usize)
                .and_then(|end| area.get(start..end))
                .filter(|_| start >= self.header_length as usize)
                .ok_or_else(|| {
                    Error::corrupt(path, "backing file name lies outside the header cluster", 8)
                })?;
            if name_length > 0 {
                let name = std::str::from_utf8(name).map_err(|_| {
                    Error::corrupt(path, "backing file name is not UTF-8", start as u64)
                })?;
                if name.contains('\0') {
                    return Err(Error::corrupt(
                        path,
                        "backing file name contains a NUL byte",
                        start as u64,
                    ));
                }
                self.backing_name = Some(name.to_owned());
            }
            extensions_end = start;
        }
        self.extensions =
            Extensions::parse(area, self.header_length as usize, extensions_end, path)?;
        Ok(())
    }

    fn refuse_unknown_features(&self, path: &Path) -> Result<()> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let names: Vec<String> = (0..64)
            .filter(|bit| unknown & (1u64 << bit) != 0)
            .map(|bit| {
                self.extensions
                    .feature_name(extension::FeatureKind::Incompatible, bit)
                    .map_or_else(
                        || format!("unknown feature bit {bit}"),
                        |n| format!("'{n}'"),
                    )
            })
            .collect();
        Err(Error::unsupported(
            path,
            format!("incompatible qcow2 feature {}", names.join(", ")),
        ))
    }

    fn parse_compression(&mut self, area: &[u8], path: &Path) -> Result<()> {
        let kind = if self.header_length > V3_LENGTH {
            area.get(V3_LENGTH as usize).copied().unwrap_or(0)
        } else {
            0
        };
        let flagged = self.incompatible & incompatible::COMPRESSION != 0;
        self.compression = match (kind, flagged) {
            (0, false) => Compression::Zlib,
            (1, true) => Compression::Zstd,
            (0 | 1, _) => {
                return Err(Error::corrupt(
                    path,
                    "compression type and its incompatible feature bit contradict each other",
                    u64::from(V3_LENGTH),
                ));
            }
            (n, _) => return Err(Error::unsupported(path, format!("compression type {n}"))),
        };
        Ok(())
    }

    /// Checks sizes and places of what the header points to against the
    /// specification, known limits and the length of the file.
    fn validate(&self, storage: &dyn Storage, path: &Path) -> Result<()> {
        let file_length = storage
            .length()
            .map_err(|e| Error::io(path, "find its length", e))?;
        if self.extensions.has_encryption {
            return Err(Error::unsupported(path, "a full disk encryption header"));
        }
        if self.incompatible & incompatible::EXTENDED_L2 != 0 && self.cluster_bits < 14 {
            return Err(Error::corrupt(
                path,
                "extended L2 entries need clusters of 16 KiB or more",
                72,
            ));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(Error::corrupt(
                path,
                format!("L1 table of {l1_bytes} bytes, at most {MAX_L1_BYTES} are valid"),
                36,
            ));
        }
        if self.l1_entries_needed(self.size) > u64::from(self.l1_entries) {
            return Err(Error::corrupt(
                path,
                format!(
                    "L1 table of {} entries is too small for a disk of {} bytes",
                    self.l1_entries, self.size
                ),
                36,
            ));
        }
        let table_bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::corrupt(
                path,
                format!(
                    "refcount table of {table_bytes} bytes, at most {MAX_REFCOUNT_TABLE_BYTES} are valid"
                ),
                56,
            ));
        }
        if self.snapshot_count > MAX_SNAPSHOTS {
            return Err(Error::corrupt(
                path,
                format!(
                    "{} snapshots, at most {MAX_SNAPSHOTS} are valid",
                    self.snapshot_count
                ),
                60,
            ));
        }
        self.check_place("L1 table", self.l1_offset, l1_bytes, file_length, 40, path)?;
        self.check_place(
            "refcount table",
            self.refcount_table_offset,
            table_bytes,
            file_length,
            48,
            path,
        )?;
        if self.refcount_table_clusters == 0 || self.refcount_table_offset == 0 {
            return Err(Error::corrupt(path, "no refcount table", 48));
        }
        let table = u64::from(self.snapshot_count);
        self.check_place(
            "snapshot table",
            self.snapshots_offset,
            table,
            file_length,
            64,
            path,
        )
    }

    fn check_place(
        &self,
        what: &str,
        offset: u64,
        bytes: u64,
        file_length: u64,
        field: u64,
        path: &Path,
    ) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        if offset & (self.cluster_size() - 1) != 0 {
            return Err(Error::corrupt(
                path,
                format!("{what} at {offset:#x} is not aligned to a cluster"),
                field,
            ));
        }
        if offset == 0 {
            return Err(Error::corrupt(
                path,
                format!("{what} overlaps the header"),
                field,
            ));
        }
        match offset.checked_add(bytes) {
            Some(end) if offset < file_length && end <= 1 << 56 => Ok(()),
            _ => Err(Error::corrupt(
                path,
                format!(
                    "{what} at {offset:#x} lies beyond the end of the file ({file_length} bytes)"
                ),
                field,
            )),
        }
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have subclusters.
    pub fn is_extended_l2(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    /// Bytes of one L2 entry: 8 or 16.
    pub fn l2_entry_size(&self) -> u64 {
        if self.is_extended_l2() { 16 } else { 8 }
    }

    /// Entries in an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Width of a refcount in bits: 1 to 64.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Refcounts in a refcount block.
    pub fn refcounts_per_block(&self) -> u64 {
        self.cluster_size() * 8 / u64::from(self.refcount_bits())
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries_needed(&self, size: u64) -> u64 {
        size.div_ceil(self.cluster_size())
            .div_ceil(self.l2_entries())
    }

    /// Whether guest data lies in an external file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible & incompatible::DATA_FILE != 0
    }

    /// Whether the external data file is kept readable as a raw image.
    pub fn is_data_file_raw(&self) -> bool {
        self.has_data_file() && self.autoclear & autoclear::DATA_FILE_RAW != 0
    }

    /// The fixed part as it is written: 72 or at least 112 bytes, all of it
    /// inside the first 512-byte sector unless unknown fields are kept.
    pub fn fixed_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(V3_LENGTH_WRITTEN as usize);
        let name_length = self.backing_name.as_ref().map_or(0, String::len) as u32;
        out.extend(MAGIC.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        out.extend(self.backing_name_offset.to_be_bytes());
        out.extend(name_length.to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(0u32.to_be_bytes());
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(self.l1_offset.to_be_bytes());
        out.extend(self.refcount_table_offset.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(self.snapshot_count.to_be_bytes());
        out.extend(self.snapshots_offset.to_be_bytes());
        if self.version == 2 {
            return out;
        }
        out.extend(self.incompatible.to_be_bytes());
        out.extend(self.compatible.to_be_bytes());
        out.extend(self.autoclear.to_be_bytes());
        out.extend(self.refcount_order.to_be_bytes());
        out.extend(self.header_length.to_be_bytes());
        if self.header_length > V3_LENGTH {
            out.push(match self.compression {
                Compression::Zlib => 0,
                Compression::Zstd => 1,
            });
            out.resize(V3_LENGTH_WRITTEN.min(self.header_length) as usize, 0);
            out.extend(&self.unknown_fields);
        }
        out
    }

    /// The whole header area: fixed part, extensions and backing file name.
    /// Chooses `backing_name_offset`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not fit one cluster.
    pub fn serialise(&mut self, path: &Path) -> Result<Vec<u8>> {
        let extensions = self.extensions.bytes();
        let name_offset = self.header_length as usize + extensions.len();
        self.backing_name_offset = match &self.backing_name {
            Some(_) => name_offset as u64,
            None => 0,
        };
        let mut out = self.fixed_bytes();
        out.resize(self.header_length as usize, 0);
        out.extend(extensions);
        if let Some(name) = &self.backing_name {
            if name.is_empty() || name.len() > MAX_BACKING_NAME as usize {
                return Err(Error::invalid(
                    format!("backing file name of {} bytes", name.len()),
                    "valid are 1 to 1023 bytes",
                ));
            }
            out.extend(name.as_bytes());
        }
        if out.len() as u64 > self.cluster_size() {
            return Err(Error::invalid(
                path.display().to_string(),
                format!(
                    "header, extensions and backing file name take {} bytes and do not fit a cluster of {}; use larger clusters or a shorter name",
                    out.len(),
                    self.cluster_size()
                ),
            ));
        }
        Ok(out)
    }
}

fn read(storage: &dyn Storage, path: &Path, buf: &mut [u8], offset: u64) -> Result<()> {
    storage
        .read_at(buf, offset)
        .map_err(|e| Error::io(path, "read its header", e))
}

/// The big-endian word at `at`; zero past the end of `bytes`.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map_or(0, |b| u32::from_be_bytes(*b))
}

/// The big-endian double word at `at`; zero past the end of `bytes`.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<8>())
        .map_or(0, |b| u64::from_be_bytes(*b))
}
