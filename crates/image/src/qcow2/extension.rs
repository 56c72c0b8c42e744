//! Header extensions.
//!
//! Specification: `docs/interop/qcow2`, "Header extensions". Extensions of
//! unknown type are kept as found and written back.

use std::path::Path;

use crate::error::{Error, Result};
use crate::qcow2::header::{be32, be64};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
const DATA_FILE: u32 = 0x4441_5441;

/// Bytes of one feature name table entry.
const FEATURE_ENTRY: usize = 48;

/// Which feature field a feature name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FeatureKind {
    /// Must be understood to open.
    Incompatible = 0,
    /// May be ignored.
    Compatible = 1,
    /// Cleared by writers that do not know it.
    Autoclear = 2,
}

/// One entry of the feature name table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    /// Bit number in its field.
    pub bit: u8,
    /// The name, for messages only.
    pub name: String,
}

/// Where the bitmap directory is ("Bitmaps extension").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Offset of the directory.
    pub directory_offset: u64,
}

/// All header extensions of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extensions {
    /// Format name of the backing file, as written.
    pub backing_format: Option<String>,
    /// Name of the external data file, as written.
    pub data_file: Option<String>,
    /// The bitmap directory.
    pub bitmaps: Option<BitmapsExtension>,
    /// Names of feature bits.
    pub feature_names: Vec<FeatureName>,
    /// A full disk encryption header is present; such images are refused.
    pub has_encryption: bool,
    /// Extensions of other types: type and data.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

impl Extensions {
    /// Parses the extensions between `start` and `end` of the header cluster.
    pub fn parse(area: &[u8], start: usize, end: usize, path: &Path) -> Result<Self> {
        let mut found = Extensions::default();
        let end = end.min(area.len());
        let mut at = start;
        while at + 8 <= end {
            let kind = be32(area, at);
            if kind == END {
                break;
            }
            let length = be32(area, at + 4) as usize;
            let data = at
                .checked_add(8)
                .and_then(|from| Some((from, from.checked_add(length)?)))
                .filter(|(_, to)| *to <= end)
                .map(|(from, to)| &area[from..to])
                .ok_or_else(|| {
                    Error::corrupt(
                        path,
                        format!("header extension {kind:#x} of {length} bytes does not fit"),
                        at as u64,
                    )
                })?;
            found.take(kind, data, at as u64, path)?;
            at += 8 + length.next_multiple_of(8);
        }
        Ok(found)
    }

    fn take(&mut self, kind: u32, data: &[u8], at: u64, path: &Path) -> Result<()> {
        let text = |what: &str| {
            let name = std::str::from_utf8(data)
                .map_err(|_| Error::corrupt(path, format!("{what} is not UTF-8"), at))?;
            if name.contains('\0') {
                return Err(Error::corrupt(
                    path,
                    format!("{what} contains a NUL byte"),
                    at,
                ));
            }
            Ok(name.to_owned())
        };
        match kind {
            BACKING_FORMAT => self.backing_format = Some(text("backing format name")?),
            DATA_FILE => self.data_file = Some(text("data file name")?),
            ENCRYPTION => self.has_encryption = true,
            BITMAPS => {
                if data.len() != 24 {
                    return Err(Error::corrupt(
                        path,
                        format!("bitmaps extension of {} bytes, 24 are valid", data.len()),
                        at,
                    ));
                }
                self.bitmaps = Some(BitmapsExtension {
                    count: be32(data, 0),
                    directory_size: be64(data, 8),
                    directory_offset: be64(data, 16),
                });
            }
            FEATURE_NAMES => {
                self.feature_names
                    .extend(data.chunks_exact(FEATURE_ENTRY).map(feature_name));
            }
            other => self.unknown.push((other, data.to_vec())),
        }
        Ok(())
    }

    /// The image's own name for a feature bit.
    pub fn feature_name(&self, kind: FeatureKind, bit: u8) -> Option<&str> {
        self.feature_names
            .iter()
            .find(|f| f.kind == kind as u8 && f.bit == bit)
            .map(|f| f.name.as_str())
    }

    /// All extensions with the end marker, as they stand in a header.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(format) = &self.backing_format {
            put(&mut out, BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(&mut out, DATA_FILE, name.as_bytes());
        }
        if let Some(bitmaps) = &self.bitmaps {
            let mut data = Vec::with_capacity(24);
            data.extend(bitmaps.count.to_be_bytes());
            data.extend(0u32.to_be_bytes());
            data.extend(bitmaps.directory_size.to_be_bytes());
            data.extend(bitmaps.directory_offset.to_be_bytes());
            put(&mut out, BITMAPS, &data);
        }
        for (kind, data) in &self.unknown {
            put(&mut out, *kind, data);
        }
        if !self.feature_names.is_empty() {
            let data: Vec<u8> = self.feature_names.iter().flat_map(feature_entry).collect();
            put(&mut out, FEATURE_NAMES, &data);
        }
        put(&mut out, END, &[]);
        out
    }

    /// The feature name table that new images get.
    pub fn standard_feature_names() -> Vec<FeatureName> {
        let names: [(u8, u8, &str); 8] = [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ];
        names
            .map(|(kind, bit, name)| FeatureName {
                kind,
                bit,
                name: name.to_owned(),
            })
            .to_vec()
    }
}

fn feature_name(entry: &[u8]) -> FeatureName {
    let name = &entry[2..];
    let length = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    FeatureName {
        kind: entry[0],
        bit: entry[1],
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
    }
}

fn feature_entry(feature: &FeatureName) -> [u8; FEATURE_ENTRY] {
    let mut entry = [0; FEATURE_ENTRY];
    entry[0] = feature.kind;
    entry[1] = feature.bit;
    let name = feature.name.as_bytes();
    let length = name.len().min(FEATURE_ENTRY - 2);
    entry[2..2 + length].copy_from_slice(&name[..length]);
    entry
}

fn put(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
}
