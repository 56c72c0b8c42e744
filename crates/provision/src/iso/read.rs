//! Reading an image.

use std::collections::HashSet;

use super::boot::{self, BootEntry};
use super::record::{Encoding, Extent, Record, Volume, decode, record, volume};
use super::susp::{self, RockRidge};
use super::{Error, ReadAt, SECTOR};

/// Most volume descriptors that are looked at.
const MAX_DESCRIPTORS: u64 = 64;
/// Largest directory in bytes: about 300,000 names.
const MAX_DIRECTORY: u64 = 32 << 20;
/// Most extents of one file: 64 GiB of 4 GiB extents, and a good deal more.
const MAX_EXTENTS: usize = 64;
/// Most links followed on the way to a file.
const MAX_LINKS: u32 = 16;
/// Deepest directory that is walked.
const MAX_DEPTH: usize = 64;
/// Most entries of one walk.
const MAX_ENTRIES: u64 = 4_000_000;

/// Where an image's names come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Naming {
    /// Rock Ridge: names, modes and links of POSIX.
    RockRidge,
    /// Joliet: Unicode names.
    Joliet,
    /// ISO 9660 alone: upper case, with the version cut off; found in any case.
    Plain,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Link(String),
    /// A device, socket or pipe.
    Special,
}

/// A file or directory of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: String,
    kind: EntryKind,
    mode: Option<u32>,
    extents: Vec<Extent>,
    unreadable: Option<&'static str>,
}

impl Entry {
    /// Its name; empty for the root.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> &EntryKind {
        &self.kind
    }

    /// Whether it is a file.
    pub fn is_file(&self) -> bool {
        self.kind == EntryKind::File
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == EntryKind::Directory
    }

    /// Permission bits, where Rock Ridge tells them.
    pub fn permissions(&self) -> Option<u32> {
        self.mode.map(|mode| mode & 0o7777)
    }

    /// Bytes of data.
    pub fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }
}

/// An ISO 9660 image.
#[derive(Debug)]
pub struct Image<S> {
    source: S,
    size: u64,
    primary: Volume,
    joliet: Option<Volume>,
    naming: Naming,
    /// Bytes at the start of each system use area that belong to others.
    skip: usize,
    block: u64,
    root: Extent,
    boot: Option<u64>,
}

impl<S: ReadAt> Image<S> {
    /// Opens an image, taking its names from Rock Ridge, else from Joliet, else as they are.
    ///
    /// # Errors
    /// [`Error::NotIso`] where there is no such file system; others where it is damaged.
    pub fn open(source: S) -> Result<Self, Error> {
        let size = source
            .size()
            .map_err(|source| Error::Io { offset: 0, source })?;
        let mut primary = None;
        let mut joliet = None;
        let mut boot = None;
        for number in 0..MAX_DESCRIPTORS {
            let offset = (16 + number) * SECTOR;
            let Some(descriptor) = descriptor(&source, size, offset)? else {
                break;
            };
            match descriptor[0] {
                0 if boot.is_none() => boot = boot::catalogue(&descriptor),
                1 if primary.is_none() => primary = volume(&descriptor, offset)?,
                2 if joliet.is_none() => joliet = volume(&descriptor, offset)?,
                255 => break,
                _ => {}
            }
        }
        let primary = primary.ok_or(Error::NotIso {
            found: "no primary descriptor",
        })?;
        let mut image = Self {
            source,
            size,
            naming: Naming::Plain,
            skip: 0,
            block: primary.block,
            root: Extent {
                offset: 0,
                length: 0,
            },
            primary,
            joliet,
            boot,
        };
        image.choose_names()?;
        Ok(image)
    }

    fn choose_names(&mut self) -> Result<(), Error> {
        let (block, length) = self.primary.root;
        self.root = self.extent(block, length)?;
        let mut first = [0; 256];
        let known = first.len().min(self.root.length as usize);
        self.read_raw(&mut first[..known], self.root.offset)?;
        let announced = record(&first[..known], self.root.offset)?
            .and_then(|record| susp::announced(record.system_use));
        if let Some(skip) = announced {
            self.naming = Naming::RockRidge;
            self.skip = skip;
        } else if let Some(joliet) = &self.joliet {
            let (block, length) = joliet.root;
            self.block = joliet.block;
            self.root = self.extent(block, length)?;
            self.naming = Naming::Joliet;
        }
        Ok(())
    }

    /// Where its names come from.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// Volume label, as the primary descriptor has it.
    pub fn label(&self) -> &str {
        &self.primary.label
    }

    /// Volume label of the Joliet descriptor, which keeps case.
    pub fn joliet_label(&self) -> Option<&str> {
        self.joliet.as_ref().map(|volume| volume.label.as_str())
    }

    /// System identifier.
    pub fn system(&self) -> &str {
        &self.primary.system
    }

    /// Publisher identifier.
    pub fn publisher(&self) -> &str {
        &self.primary.publisher
    }

    /// Application identifier.
    pub fn application(&self) -> &str {
        &self.primary.application
    }

    /// Bytes in the volume, as its descriptor says.
    pub fn volume_size(&self) -> u64 {
        self.primary.size
    }

    /// What the image is read from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The boot catalogue; empty for an image that does not boot.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is none, and what reading says.
    pub fn boot_entries(&self) -> Result<Vec<BootEntry>, Error> {
        match self.boot {
            Some(offset) => boot::read(&self.source, offset),
            None => Ok(Vec::new()),
        }
    }

    /// The root directory.
    pub fn root(&self) -> Entry {
        Entry {
            name: String::new(),
            kind: EntryKind::Directory,
            mode: None,
            extents: vec![self.root],
            unreadable: None,
        }
    }

    /// The entries of a directory in the order of the image, without `.` and `..`.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if it is none, and others where it is damaged.
    pub fn list(&self, directory: &Entry) -> Result<Vec<Entry>, Error> {
        let [extent] = directory.extents.as_slice() else {
            return Err(wrong(&directory.name, "directory"));
        };
        if !directory.is_directory() {
            return Err(wrong(&directory.name, "directory"));
        }
        if extent.length > MAX_DIRECTORY {
            return Err(Error::TooMany {
                what: "bytes in a directory",
                limit: MAX_DIRECTORY,
            });
        }
        let mut bytes = vec![0; extent.length as usize];
        self.read_raw(&mut bytes, extent.offset)?;
        let mut entries = Vec::new();
        // An entry whose data go on in the next record.
        let mut open: Option<Entry> = None;
        for (sector, records) in bytes.chunks(SECTOR as usize).enumerate() {
            let mut at = 0usize;
            while let Some(rest) = records.get(at..).filter(|rest| !rest.is_empty()) {
                let offset = extent.offset + sector as u64 * SECTOR + at as u64;
                let Some(record) = record(rest, offset)? else {
                    break;
                };
                at += usize::from(rest[0]);
                self.take(&record, &mut open, &mut entries)?;
            }
        }
        Ok(entries)
    }

    /// Adds what one record says to a listing.
    fn take(
        &self,
        record: &Record<'_>,
        open: &mut Option<Entry>,
        entries: &mut Vec<Entry>,
    ) -> Result<(), Error> {
        if matches!(record.name, [0] | [1]) || record.is(Record::ASSOCIATED) {
            return Ok(());
        }
        let extent = self.extent(record.block, record.length)?;
        let more = record.is(Record::MORE_EXTENTS);
        let mut entry = match open.take() {
            Some(mut entry) => {
                if entry.extents.len() >= MAX_EXTENTS {
                    return Err(Error::TooMany {
                        what: "extents in a file",
                        limit: MAX_EXTENTS as u64,
                    });
                }
                entry.extents.push(extent);
                entry
            }
            None => match self.entry(record, extent)? {
                Some(entry) => entry,
                None => return Ok(()),
            },
        };
        if record.unit != 0 {
            entry.unreadable = Some("an interleaved file");
        }
        if more {
            *open = Some(entry);
        } else {
            entries.push(entry);
        }
        Ok(())
    }

    /// What a record stands for; `None` for a moved directory, which is seen elsewhere.
    fn entry(&self, record: &Record<'_>, extent: Extent) -> Result<Option<Entry>, Error> {
        let ridge = match self.naming {
            Naming::RockRidge => {
                let own = record.system_use.get(self.skip..).unwrap_or_default();
                susp::read(own, self)?
            }
            _ => RockRidge::default(),
        };
        if ridge.relocated {
            return Ok(None);
        }
        let mode = ridge.owner.map(|(mode, _, _)| mode);
        let mut extents = vec![extent];
        let kind = if let Some(block) = ridge.child {
            extents = vec![self.moved(block)?];
            EntryKind::Directory
        } else if record.is(Record::DIRECTORY) {
            EntryKind::Directory
        } else {
            match (mode.map(|mode| mode & 0o170_000), ridge.link) {
                (_, Some(target)) => EntryKind::Link(String::from_utf8_lossy(&target).into_owned()),
                (None | Some(0 | 0o100_000), None) => EntryKind::File,
                _ => EntryKind::Special,
            }
        };
        let name = match ridge.name {
            Some(name) => String::from_utf8_lossy(&name).into_owned(),
            None => self.plain_name(record.name),
        };
        if name.is_empty() || name.contains(['/', '\0']) || matches!(name.as_str(), "." | "..") {
            return Err(Error::Damaged {
                what: "a name that no file can have",
                offset: extent.offset,
            });
        }
        Ok(Some(Entry {
            name,
            kind,
            mode,
            extents,
            unreadable: ridge.compressed.then_some("compressed (zisofs)"),
        }))
    }

    fn plain_name(&self, bytes: &[u8]) -> String {
        let encoding = match self.naming {
            Naming::Joliet => Encoding::Joliet,
            _ => Encoding::Plain,
        };
        let name = decode(encoding, bytes);
        let name = name
            .rsplit_once(';')
            .map_or(name.as_str(), |(name, _)| name);
        match self.naming {
            Naming::Joliet => name.to_owned(),
            // A file without an extension ends in a dot.
            _ => name.strip_suffix('.').unwrap_or(name).to_owned(),
        }
    }

    /// The extent of a directory that was moved, which its own first record tells.
    fn moved(&self, block: u64) -> Result<Extent, Error> {
        let offset = block.saturating_mul(self.block);
        let mut first = [0; 64];
        self.read_raw(&mut first, offset)?;
        let length = usize::from(first[0]).min(first.len());
        // Only the fixed part is needed; the rest of the record may be longer than this.
        first[0] = length as u8;
        match record(&first[..length], offset)? {
            Some(record) if record.is(Record::DIRECTORY) && record.name == [0] => {
                self.extent(record.block, record.length)
            }
            _ => Err(Error::Damaged {
                what: "a moved directory that is none",
                offset,
            }),
        }
    }

    /// Looks up a path such as `images/pxeboot/vmlinuz`, following links. `None` if there is
    /// none.
    ///
    /// # Errors
    /// [`Error::TooMany`] for links that lead in circles, and others where it is damaged.
    pub fn find(&self, path: &str) -> Result<Option<Entry>, Error> {
        let mut links = 0;
        let mut left: Vec<String> = parts(path);
        let mut above: Vec<Entry> = Vec::new();
        let mut here = self.root();
        while let Some(name) = left.pop() {
            if name == ".." {
                here = above.pop().unwrap_or_else(|| self.root());
                continue;
            }
            if !here.is_directory() {
                return Ok(None);
            }
            let Some(entry) = self.child(&here, &name)? else {
                return Ok(None);
            };
            if let EntryKind::Link(target) = &entry.kind {
                links += 1;
                if links > MAX_LINKS || target.len() + left.len() > 4096 {
                    return Err(Error::TooMany {
                        what: "links on the way to a file",
                        limit: u64::from(MAX_LINKS),
                    });
                }
                if target.starts_with('/') {
                    above.clear();
                    here = self.root();
                }
                left.extend(parts(target));
            } else {
                above.push(std::mem::replace(&mut here, entry));
            }
        }
        Ok(Some(here))
    }

    fn child(&self, directory: &Entry, name: &str) -> Result<Option<Entry>, Error> {
        let mut near = None;
        for entry in self.list(directory)? {
            if entry.name == name {
                return Ok(Some(entry));
            }
            if self.naming != Naming::RockRidge && entry.name.eq_ignore_ascii_case(name) {
                near = Some(entry);
            }
        }
        Ok(near)
    }

    /// Fills as much of `buffer` as the file has from `offset` on; gives the number of bytes.
    ///
    /// # Errors
    /// [`Error::WrongKind`] if it is no file, [`Error::Unsupported`] for interleaved and
    /// compressed ones, and what reading says.
    pub fn read(&self, file: &Entry, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        if !file.is_file() {
            return Err(wrong(&file.name, "file"));
        }
        if let Some(what) = file.unreadable {
            return Err(Error::Unsupported {
                path: file.name.clone(),
                what,
            });
        }
        let mut skip = offset;
        let mut done = 0;
        for extent in &file.extents {
            if skip >= extent.length {
                skip -= extent.length;
                continue;
            }
            let room = (buffer.len() - done) as u64;
            let count = room.min(extent.length - skip) as usize;
            self.read_raw(&mut buffer[done..done + count], extent.offset + skip)?;
            done += count;
            skip = 0;
            if done == buffer.len() {
                break;
            }
        }
        Ok(done)
    }

    /// The whole of the file at `path`, if it has at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooMany`] and those of [`Self::read`].
    pub fn read_file(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let entry = self.find(path)?.ok_or_else(|| Error::NotFound {
            path: path.to_owned(),
        })?;
        if entry.size() > limit {
            return Err(Error::TooMany {
                what: "bytes in a file that should be small",
                limit,
            });
        }
        let mut bytes = vec![0; entry.size() as usize];
        self.read(&entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Every entry with its path, directories before what is in them; links are not followed.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a directory is in itself, [`Error::TooMany`] past depth 64 or
    /// four million entries, and others where the image is damaged.
    pub fn walk(
        &self,
        mut each: impl FnMut(&str, &Entry) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut seen = HashSet::from([self.root]);
        let mut left = vec![(String::new(), 0, self.root())];
        let mut count = 0u64;
        while let Some((path, depth, directory)) = left.pop() {
            let mut below = Vec::new();
            for entry in self.list(&directory)? {
                count += 1;
                if count > MAX_ENTRIES || depth >= MAX_DEPTH {
                    return Err(Error::TooMany {
                        what: "files, or directories in one another",
                        limit: MAX_ENTRIES,
                    });
                }
                let path = match path.as_str() {
                    "" => entry.name.clone(),
                    above => format!("{above}/{}", entry.name),
                };
                each(&path, &entry)?;
                if entry.is_directory() {
                    let extent = entry.extents.first().copied().unwrap_or(self.root);
                    if extent.length > 0 && !seen.insert(extent) {
                        return Err(Error::Damaged {
                            what: "a directory that is in two places",
                            offset: extent.offset,
                        });
                    }
                    below.push((path, depth + 1, entry));
                }
            }
            left.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// The bytes of so many blocks, which must be in the image.
    fn extent(&self, block: u64, length: u32) -> Result<Extent, Error> {
        let length = u64::from(length);
        let offset = block.saturating_mul(self.block);
        // An empty file may be said to be anywhere.
        if length > 0 && offset.saturating_add(length) > self.size {
            return Err(Error::Damaged {
                what: "a file or directory beyond the image's end (is the download complete?)",
                offset,
            });
        }
        Ok(Extent { offset, length })
    }

    fn read_raw(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.source
            .read_exact_at(buffer, offset)
            .map_err(|source| Error::Io { offset, source })
    }
}

impl<S: ReadAt> susp::Areas for Image<S> {
    fn area(&self, block: u32, offset: u32, length: u32) -> Result<Vec<u8>, Error> {
        let start = u64::from(block) * self.block + u64::from(offset);
        let mut bytes = vec![0; length as usize];
        self.read_raw(&mut bytes, start)?;
        Ok(bytes)
    }
}

/// The descriptor at `offset`; `None` where the set ends without saying so.
fn descriptor(
    source: &impl ReadAt,
    size: u64,
    offset: u64,
) -> Result<Option<[u8; SECTOR as usize]>, Error> {
    let first = offset == 16 * SECTOR;
    if offset + SECTOR > size {
        return if first {
            Err(Error::NotIso {
                found: "the end of the file",
            })
        } else {
            Ok(None)
        };
    }
    let mut bytes = [0; SECTOR as usize];
    source
        .read_exact_at(&mut bytes, offset)
        .map_err(|source| Error::Io { offset, source })?;
    match &bytes[1..6] {
        b"CD001" => Ok(Some(bytes)),
        b"BEA01" if first => Err(Error::NotIso {
            found: "a UDF file system alone",
        }),
        _ if first => Err(Error::NotIso {
            found: "something else",
        }),
        _ => Ok(None),
    }
}

/// The names of a path, last first.
fn parts(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .rev()
        .map(str::to_owned)
        .collect()
}

fn wrong(path: &str, expected: &'static str) -> Error {
    Error::WrongKind {
        path: path.to_owned(),
        expected,
    }
}
