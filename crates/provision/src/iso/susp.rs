//! System use entries (SUSP 1.12) as Rock Ridge (RRIP 1.12) uses them.

use super::{Error, le32};

/// Most continuation areas of one record.
const MAX_AREAS: usize = 32;
/// Longest name and link target in bytes.
const MAX_TEXT: usize = 4096;
/// Largest continuation area in bytes: one never crosses a sector.
const MAX_AREA: u32 = 2048;

/// What Rock Ridge says of one record.
#[derive(Debug, Default)]
pub(super) struct RockRidge {
    /// POSIX name.
    pub(super) name: Option<Vec<u8>>,
    /// POSIX mode, user and group.
    pub(super) owner: Option<(u32, u32, u32)>,
    /// Target of a symbolic link.
    pub(super) link: Option<Vec<u8>>,
    /// First block of a directory that was moved, where this record stands for it.
    pub(super) child: Option<u64>,
    /// This directory was moved here and is seen elsewhere.
    pub(super) relocated: bool,
    /// The file's data are compressed (zisofs).
    pub(super) compressed: bool,
}

/// Gives the bytes of a continuation area: block, offset, length.
pub(super) trait Areas {
    fn area(&self, block: u32, offset: u32, length: u32) -> Result<Vec<u8>, Error>;
}

/// Whether the root's first record announces SUSP, and how many bytes of later areas to skip.
pub(super) fn announced(system_use: &[u8]) -> Option<usize> {
    match system_use {
        [b'S', b'P', 7, 1, 0xbe, 0xef, skip, ..] => Some(usize::from(*skip)),
        _ => None,
    }
}

/// Reads the entries of a record's system use area and its continuations.
pub(super) fn read(system_use: &[u8], areas: &impl Areas) -> Result<RockRidge, Error> {
    let mut found = RockRidge::default();
    let mut link = Link::default();
    let mut next = entries(system_use, &mut found, &mut link)?;
    let mut count = 0;
    while let Some([block, offset, length]) = next {
        count += 1;
        if count > MAX_AREAS {
            return Err(Error::TooMany {
                what: "continuation areas of one name",
                limit: MAX_AREAS as u64,
            });
        }
        let area = areas.area(block, offset, length.min(MAX_AREA))?;
        next = entries(&area, &mut found, &mut link)?;
    }
    found.link = link.started.then_some(link.text);
    Ok(found)
}

/// Reads one area; gives the place of the next.
fn entries(
    mut bytes: &[u8],
    found: &mut RockRidge,
    link: &mut Link,
) -> Result<Option<[u32; 3]>, Error> {
    let mut next = None;
    while let [a, b, length, _, ..] = *bytes {
        let Some(entry) = bytes.get(..usize::from(length)).filter(|e| e.len() >= 4) else {
            break;
        };
        let body = &entry[4..];
        match &[a, b] {
            b"CE" if body.len() >= 24 => {
                next = Some([le32(body, 0), le32(body, 8), le32(body, 16)]);
            }
            b"ST" => break,
            b"PX" if body.len() >= 32 => {
                found.owner = Some((le32(body, 0), le32(body, 16), le32(body, 24)));
            }
            b"NM" => name(body, found)?,
            b"SL" => link.add(body)?,
            b"CL" if body.len() >= 8 => found.child = Some(u64::from(le32(body, 0))),
            b"RE" => found.relocated = true,
            b"ZF" => found.compressed = true,
            _ => {}
        }
        bytes = &bytes[entry.len()..];
    }
    Ok(next)
}

fn name(body: &[u8], found: &mut RockRidge) -> Result<(), Error> {
    const CURRENT_OR_PARENT: u8 = 0x06;
    if let [flags, part @ ..] = body
        && flags & CURRENT_OR_PARENT == 0
    {
        append(found.name.get_or_insert_default(), part)?;
    }
    Ok(())
}

fn append(text: &mut Vec<u8>, part: &[u8]) -> Result<(), Error> {
    if text.len() + part.len() > MAX_TEXT {
        return Err(Error::TooMany {
            what: "bytes in a name",
            limit: MAX_TEXT as u64,
        });
    }
    text.extend_from_slice(part);
    Ok(())
}

/// A link's target, gathered from its component records.
#[derive(Default)]
struct Link {
    started: bool,
    text: Vec<u8>,
    /// The next component goes on where the last one ended.
    continues: bool,
}

impl Link {
    fn add(&mut self, body: &[u8]) -> Result<(), Error> {
        self.started = true;
        let mut components = body.get(1..).unwrap_or_default();
        while let [flags, length, rest @ ..] = components {
            let Some(part) = rest.get(..usize::from(*length)) else {
                break;
            };
            if !self.continues && !self.text.is_empty() && self.text != b"/" {
                append(&mut self.text, b"/")?;
            }
            match flags & 0x0e {
                0x02 => append(&mut self.text, b".")?,
                0x04 => append(&mut self.text, b"..")?,
                0x08 => append(&mut self.text, b"/")?,
                _ => append(&mut self.text, part)?,
            }
            self.continues = flags & 0x01 != 0;
            components = &rest[part.len()..];
        }
        Ok(())
    }
}
