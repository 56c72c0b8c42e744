//! Directory records (ECMA-119 9.1) and volume descriptors (8).

use super::{Error, SECTOR, le16, le32};

/// Where a file's or directory's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    /// First byte in the image.
    pub(super) offset: u64,
    /// Number of bytes.
    pub(super) length: u64,
}

/// One directory record, as it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    /// First logical block of the data, after the extended attributes.
    pub(super) block: u64,
    /// Bytes of data.
    pub(super) length: u32,
    /// File flags.
    pub(super) flags: u8,
    /// File unit size; above zero for an interleaved file.
    pub(super) unit: u8,
    /// File identifier.
    pub(super) name: &'a [u8],
    /// System use area.
    pub(super) system_use: &'a [u8],
}

impl Record<'_> {
    pub(super) const DIRECTORY: u8 = 0x02;
    pub(super) const ASSOCIATED: u8 = 0x04;
    pub(super) const MORE_EXTENTS: u8 = 0x80;

    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The fixed part of a record before its name.
const HEAD: usize = 33;

/// Reads the record at the start of `bytes`; `None` where its length byte is zero.
pub(super) fn record(bytes: &[u8], offset: u64) -> Result<Option<Record<'_>>, Error> {
    let damaged = |what| Error::Damaged { what, offset };
    let length = usize::from(bytes.first().copied().unwrap_or(0));
    if length == 0 {
        return Ok(None);
    }
    let bytes = bytes
        .get(..length)
        .ok_or_else(|| damaged("a directory record over a sector's end"))?;
    if length <= HEAD {
        return Err(damaged("a directory record that is too short"));
    }
    let name_length = usize::from(bytes[32]);
    let name = bytes
        .get(HEAD..HEAD + name_length)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| damaged("a directory record whose name does not fit"))?;
    // A name of even length is followed by a padding byte.
    let system_use = bytes.get(HEAD + (name_length | 1)..).unwrap_or_default();
    Ok(Some(Record {
        block: u64::from(le32(bytes, 2)) + u64::from(bytes[1]),
        length: le32(bytes, 10),
        flags: bytes[25],
        unit: bytes[26],
        name,
        system_use,
    }))
}

/// Which names a volume descriptor's directories have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Plain ISO 9660, ASCII.
    Plain,
    /// Joliet, UCS-2 with the high byte first.
    Joliet,
}

/// A primary or supplementary volume descriptor.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    pub(super) system: String,
    pub(super) label: String,
    pub(super) publisher: String,
    pub(super) application: String,
    /// Bytes in a logical block.
    pub(super) block: u64,
    /// Bytes in the volume, as it says.
    pub(super) size: u64,
    /// Root directory: first block and length.
    pub(super) root: (u64, u32),
}

/// Reads a descriptor; `None` for a supplementary one that is no Joliet.
pub(super) fn volume(bytes: &[u8; SECTOR as usize], offset: u64) -> Result<Option<Volume>, Error> {
    let damaged = |what| Error::Damaged { what, offset };
    let encoding = match (bytes[0], bytes.get(88..91)) {
        (1, _) => Encoding::Plain,
        (2, Some(b"%/@" | b"%/C" | b"%/E")) => Encoding::Joliet,
        _ => return Ok(None),
    };
    let block = u64::from(le16(bytes, 128));
    if !matches!(block, 512 | 1024 | 2048) {
        return Err(damaged(
            "a logical block size other than 512, 1024 and 2048",
        ));
    }
    let root = record(&bytes[156..190], offset + 156)?
        .filter(|root| root.is(Record::DIRECTORY))
        .ok_or_else(|| damaged("a root directory that is none"))?;
    let text = |from: usize, to: usize| decode(encoding, &bytes[from..to]);
    Ok(Some(Volume {
        system: text(8, 40),
        label: text(40, 72),
        publisher: text(318, 446),
        application: text(574, 702),
        block,
        size: u64::from(le32(bytes, 80)).saturating_mul(block),
        root: (root.block, root.length),
    }))
}

/// Text of a descriptor or a name, without the blanks at its end.
pub(super) fn decode(encoding: Encoding, bytes: &[u8]) -> String {
    let text = match encoding {
        Encoding::Plain => String::from_utf8_lossy(bytes).into_owned(),
        Encoding::Joliet => {
            let units = bytes
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
        }
    };
    text.trim_end_matches([' ', '\0']).to_owned()
}
