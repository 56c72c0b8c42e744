//! The header page.

use super::SnapshotError;

pub(super) const PAGE: u64 = 4096;
pub(super) const MAGIC: [u8; 8] = *b"CENOTEVM";
pub(super) const VERSION: u32 = 1;
/// More regions than any layout has.
const MOST_REGIONS: u32 = 16;
const CHECKSUM_AT: usize = 12;

/// A part of the file with its checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) checksum: u32,
}

/// A region of memory in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) state: Part,
    pub(super) checksums: Part,
    pub(super) regions: Vec<Region>,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE as usize);
        page.extend(MAGIC);
        page.extend(VERSION.to_le_bytes());
        page.extend([0; 4]);
        for part in [&self.state, &self.checksums] {
            page.extend(part.offset.to_le_bytes());
            page.extend(part.length.to_le_bytes());
            page.extend(part.checksum.to_le_bytes());
            page.extend([0; 4]);
        }
        page.extend((self.regions.len() as u32).to_le_bytes());
        page.extend([0; 4]);
        for region in &self.regions {
            for value in [region.start, region.length, region.offset] {
                page.extend(value.to_le_bytes());
            }
        }
        page.resize(PAGE as usize, 0);
        let checksum = crc32fast::hash(&page);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Reads a header of a file of `size` bytes and checks all that can be checked.
    pub(super) fn decode(page: &[u8], size: u64) -> Result<Self, SnapshotError> {
        let mut fields = Fields(page);
        if fields.take::<8>()? != MAGIC {
            return Err(SnapshotError::Magic);
        }
        let version = fields.u32()?;
        if version != VERSION {
            return Err(SnapshotError::Version {
                found: version,
                known: VERSION,
            });
        }
        let checksum = fields.u32()?;
        let mut blank = page.to_vec();
        blank[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        if crc32fast::hash(&blank) != checksum {
            return Err(SnapshotError::Damaged("its header"));
        }
        let state = fields.part()?;
        let checksums = fields.part()?;
        let count = fields.u32()?;
        fields.u32()?;
        if count > MOST_REGIONS {
            return Err(SnapshotError::Damaged("its number of memory regions"));
        }
        let regions = (0..count)
            .map(|_| {
                Ok(Region {
                    start: fields.u64()?,
                    length: fields.u64()?,
                    offset: fields.u64()?,
                })
            })
            .collect::<Result<Vec<_>, SnapshotError>>()?;
        let header = Self {
            state,
            checksums,
            regions,
        };
        header.check(size)?;
        Ok(header)
    }

    fn check(&self, size: u64) -> Result<(), SnapshotError> {
        let parts = [&self.state, &self.checksums].map(|part| (part.offset, part.length));
        let regions = self
            .regions
            .iter()
            .map(|region| (region.offset, region.length));
        for (offset, length) in parts.into_iter().chain(regions) {
            let need = offset.saturating_add(length);
            if need > size {
                return Err(SnapshotError::Truncated { need, size });
            }
        }
        let aligned = |value: u64| value.is_multiple_of(PAGE);
        if !self
            .regions
            .iter()
            .all(|r| aligned(r.offset) && aligned(r.length) && r.length > 0)
        {
            return Err(SnapshotError::Damaged("a memory region's place"));
        }
        Ok(())
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let (field, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(SnapshotError::Damaged("the length of its header"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn part(&mut self) -> Result<Part, SnapshotError> {
        let part = Part {
            offset: self.u64()?,
            length: self.u64()?,
            checksum: self.u32()?,
        };
        self.u32()?;
        Ok(part)
    }
}
