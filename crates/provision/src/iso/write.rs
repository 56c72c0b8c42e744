//! Writing small images, with Joliet and Rock Ridge names.
//!
//! The layout: system area, descriptors, path tables, directories of either kind, files. The
//! same files give the same bytes.

use std::collections::{BTreeMap, HashSet};

use thiserror::Error as ThisError;

use super::SECTOR;
use super::names::short_name;

/// Longest name in bytes: with Rock Ridge's other entries it fits one directory record.
const MAX_NAME: usize = 110;
/// Longest Joliet name in characters (Joliet specification, "Allowed File Identifiers").
const MAX_JOLIET_NAME: usize = 64;
/// Most bytes of all files: answer files are small.
const MAX_BYTES: usize = 256 << 20;
/// The image is a whole number of these, so that drives that read ahead stay inside.
const PADDING: usize = 32 << 10;
/// Every date in the image: 1 January 2000.
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const LONG_DATE: &[u8; 17] = b"2000010100000000\0";
const NO_DATE: &[u8; 17] = b"0000000000000000\0";
/// First sector after the three descriptors.
const FIRST_FREE: u32 = 19;

/// Why an image was not made.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum WriteError {
    /// A label that the descriptor has no room for.
    #[error("volume label '{0}': 1 to 32 printable ASCII characters are expected")]
    Label(String),
    /// A path that is none.
    #[error(
        "'{0}' cannot be a path in an image: names of 1 to 64 characters, without control \
         characters, separated by '/', are expected"
    )]
    Path(String),
    /// Something is there already.
    #[error("'{0}' is in the image already")]
    Exists(String),
    /// Over the limit.
    #[error("the image's files have more than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
}

/// An image in the making.
///
/// ```
/// # use cenote_provision::iso::{Image, Writer};
/// let mut seed = Writer::new("OEMDRV").unwrap();
/// seed.add("ks.cfg", b"poweroff\n".to_vec()).unwrap();
/// let image = Image::open(seed.finish()).unwrap();
/// assert_eq!(image.label(), "OEMDRV");
/// assert_eq!(image.read_file("ks.cfg", 100).unwrap(), b"poweroff\n");
/// ```
#[derive(Debug)]
pub struct Writer {
    label: String,
    root: Directory,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Directory {
    children: BTreeMap<String, Node>,
}

#[derive(Debug)]
enum Node {
    Directory(Directory),
    File(Vec<u8>),
}

impl Writer {
    /// An empty image with a volume label.
    ///
    /// # Errors
    /// [`WriteError::Label`].
    pub fn new(label: &str) -> Result<Self, WriteError> {
        let printable = label.bytes().all(|b| (0x21..0x7f).contains(&b));
        if label.is_empty() || label.len() > 32 || !printable {
            return Err(WriteError::Label(label.to_owned()));
        }
        Ok(Self {
            label: label.to_owned(),
            root: Directory::default(),
            bytes: 0,
        })
    }

    /// Adds a file, and the directories above it.
    ///
    /// # Errors
    /// [`WriteError::Path`], [`WriteError::Exists`], [`WriteError::TooLarge`].
    pub fn add(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), WriteError> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.bytes > MAX_BYTES {
            return Err(WriteError::TooLarge);
        }
        let (above, name) = match path.rsplit_once('/') {
            Some((above, name)) => (above.split('/').collect(), name),
            None => (Vec::new(), path),
        };
        // Deeper trees would have to be moved up (ECMA-119 6.8.2.1).
        if above.len() > 6 || above.iter().chain([&name]).any(|name| !is_name(name)) {
            return Err(WriteError::Path(path.to_owned()));
        }
        let mut directory = &mut self.root;
        for part in above {
            let node = directory
                .children
                .entry(part.to_owned())
                .or_insert_with(|| Node::Directory(Directory::default()));
            directory = match node {
                Node::Directory(directory) => directory,
                Node::File(_) => return Err(WriteError::Exists(part.to_owned())),
            };
        }
        if directory.children.contains_key(name) {
            return Err(WriteError::Exists(path.to_owned()));
        }
        directory
            .children
            .insert(name.to_owned(), Node::File(bytes));
        Ok(())
    }

    /// The image.
    pub fn finish(self) -> Vec<u8> {
        let mut tree = Tree::default();
        tree.flatten("", 0, self.root);
        tree.lay_out();
        tree.write(&self.label)
    }
}

fn is_name(name: &str) -> bool {
    // Joliet forbids these beside control characters.
    let odd = |c: char| c.is_control() || matches!(c, '*' | ':' | ';' | '?' | '\\');
    let units = name.encode_utf16().count();
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME
        && units <= MAX_JOLIET_NAME
        && !name.contains(odd)
}

/// Whose names a directory has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Primary = 0,
    Joliet = 1,
}

/// A directory with all that is known of it. Their order is that of path tables: by depth,
/// then by the parent's number, then by name.
struct Placed {
    name: String,
    short: String,
    parent: usize,
    children: Vec<Child>,
    /// Sector and bytes on either side.
    place: [(u32, u32); 2],
}

struct Child {
    name: String,
    short: String,
    what: What,
}

enum What {
    Directory(usize),
    File(usize),
}

#[derive(Default)]
struct Tree {
    directories: Vec<Placed>,
    files: Vec<(Vec<u8>, u32)>,
    /// Sectors of the four path tables and bytes in each of a side.
    tables: [(u32, u32, u32); 2],
    /// Sector of the announcement of Rock Ridge.
    announcement: u32,
    sectors: u32,
}

impl Tree {
    /// Numbers directories breadth first.
    fn flatten(&mut self, name: &str, parent: usize, root: Directory) {
        let mut level = vec![(name.to_owned(), String::new(), parent, root)];
        while !level.is_empty() {
            let mut next = Vec::new();
            for (name, short, parent, directory) in level {
                let own = self.directories.len();
                let mut taken = HashSet::new();
                let mut children = Vec::new();
                for (name, node) in directory.children {
                    let short = short_name(&name, matches!(node, Node::Directory(_)), &mut taken);
                    let what = match node {
                        // Its number is known when the next level is numbered.
                        Node::Directory(below) => {
                            next.push((name.clone(), short.clone(), own, below));
                            What::Directory(usize::MAX)
                        }
                        Node::File(bytes) => {
                            self.files.push((bytes, 0));
                            What::File(self.files.len() - 1)
                        }
                    };
                    children.push(Child { name, short, what });
                }
                if own != 0 {
                    self.adopt(parent, &name, own);
                }
                self.directories.push(Placed {
                    name,
                    short,
                    parent,
                    children,
                    place: [(0, 0); 2],
                });
            }
            level = next;
        }
    }

    fn adopt(&mut self, parent: usize, name: &str, own: usize) {
        let children = &mut self.directories[parent].children;
        for child in children.iter_mut().filter(|child| child.name == name) {
            child.what = What::Directory(own);
        }
    }

    /// Gives everything its sectors.
    fn lay_out(&mut self) {
        let mut next = FIRST_FREE;
        let mut take = |bytes: usize| {
            let sector = next;
            next += sectors(bytes);
            sector
        };
        for side in [Side::Primary, Side::Joliet] {
            let bytes = self.path_table(side, false).len();
            self.tables[side as usize] = (take(bytes), take(bytes), bytes as u32);
        }
        for side in [Side::Primary, Side::Joliet] {
            for number in 0..self.directories.len() {
                let bytes = self.directory(number, side).len();
                self.directories[number].place[side as usize] = (take(bytes), bytes as u32);
            }
        }
        self.announcement = take(1);
        for (bytes, sector) in &mut self.files {
            *sector = take(bytes.len());
        }
        self.sectors = next;
    }

    fn write(&self, label: &str) -> Vec<u8> {
        let mut image = Vec::new();
        let mut put = |sector: u32, bytes: &[u8]| {
            let start = sector as usize * SECTOR as usize;
            if image.len() < start + bytes.len() {
                image.resize(start + bytes.len(), 0);
            }
            image[start..start + bytes.len()].copy_from_slice(bytes);
        };
        put(16, &self.descriptor(label, Side::Primary));
        put(17, &self.descriptor(label, Side::Joliet));
        put(18, b"\xffCD001\x01");
        for side in [Side::Primary, Side::Joliet] {
            let (little, big, _) = self.tables[side as usize];
            put(little, &self.path_table(side, false));
            put(big, &self.path_table(side, true));
            for (number, directory) in self.directories.iter().enumerate() {
                put(
                    directory.place[side as usize].0,
                    &self.directory(number, side),
                );
            }
        }
        put(self.announcement, &extension_reference());
        for (bytes, sector) in &self.files {
            put(*sector, bytes);
        }
        let length = (self.sectors as usize * SECTOR as usize).next_multiple_of(PADDING);
        image.resize(length, 0);
        // The volume's size in blocks, which is known only now.
        let blocks = both32((length / SECTOR as usize) as u32);
        for descriptor in [16, 17] {
            let at = descriptor * SECTOR as usize + 80;
            image[at..at + 8].copy_from_slice(&blocks);
        }
        image
    }

    fn descriptor(&self, label: &str, side: Side) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let (little, big, length) = self.tables[side as usize];
        put(1, b"CD001\x01");
        put(0, &[if side == Side::Primary { 1 } else { 2 }]);
        put(8, &text("LINUX", 32, side));
        put(40, &text(label, 32, side));
        if side == Side::Joliet {
            put(88, b"%/E");
        }
        put(120, &both16(1));
        put(124, &both16(1));
        put(128, &both16(SECTOR as u16));
        put(132, &both32(length));
        put(140, &little.to_le_bytes());
        put(148, &big.to_be_bytes());
        put(156, &self.record(0, &[0], side, &[]));
        for (at, length) in [(190, 128), (318, 128), (446, 128)] {
            put(at, &text("", length, side));
        }
        put(574, &text("CENOTE", 128, side));
        for at in [702, 739, 776] {
            put(at, &text("", 37, side));
        }
        for (at, date) in [
            (813, LONG_DATE),
            (830, LONG_DATE),
            (847, NO_DATE),
            (864, NO_DATE),
        ] {
            // The last byte is the distance from UTC.
            put(at, date);
        }
        put(881, &[1]);
        bytes
    }

    /// ECMA-119 9.4.
    fn path_table(&self, side: Side, big: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, directory) in self.directories.iter().enumerate() {
            let name = match (number, side) {
                (0, _) => vec![0],
                (_, Side::Primary) => directory.short.as_bytes().to_vec(),
                (_, Side::Joliet) => joliet(&directory.name),
            };
            let sector = directory.place[side as usize].0;
            let parent = directory.parent as u16 + 1;
            bytes.extend([name.len() as u8, 0]);
            if big {
                bytes.extend(sector.to_be_bytes());
                bytes.extend(parent.to_be_bytes());
            } else {
                bytes.extend(sector.to_le_bytes());
                bytes.extend(parent.to_le_bytes());
            }
            bytes.extend(&name);
            if name.len() % 2 == 1 {
                bytes.push(0);
            }
        }
        bytes
    }

    /// The records of a directory, none of them over a sector's end, filled up to whole ones.
    fn directory(&self, number: usize, side: Side) -> Vec<u8> {
        let directory = &self.directories[number];
        let mut own = Vec::new();
        let mut above = Vec::new();
        if side == Side::Primary {
            if number == 0 {
                own.extend(b"SP\x07\x01\xbe\xef\x00");
            }
            own.extend(attributes(0o040_555, 2));
            if number == 0 {
                own.extend(continuation(self.announcement));
            }
            above.extend(attributes(0o040_555, 2));
        }
        let mut records = vec![
            self.record(number, &[0], side, &own),
            self.record(directory.parent, &[1], side, &above),
        ];
        let mut children: Vec<(Vec<u8>, &Child)> = directory
            .children
            .iter()
            .map(|child| match side {
                Side::Primary => (child.short.as_bytes().to_vec(), child),
                Side::Joliet => (joliet(&child.name), child),
            })
            .collect();
        children.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, child) in children {
            let mut system_use = Vec::new();
            if side == Side::Primary {
                let (mode, links) = match child.what {
                    What::Directory(_) => (0o040_555, 2),
                    What::File(_) => (0o100_444, 1),
                };
                system_use.extend(attributes(mode, links));
                system_use.extend(posix_name(&child.name));
            }
            records.push(match child.what {
                What::Directory(number) => self.record(number, &name, side, &system_use),
                What::File(number) => {
                    let (bytes, sector) = &self.files[number];
                    directory_record(*sector, bytes.len() as u32, 0, &name, &system_use)
                }
            });
        }
        let mut bytes: Vec<u8> = Vec::new();
        for record in records {
            let room = SECTOR as usize - bytes.len() % SECTOR as usize;
            if record.len() > room {
                bytes.resize(bytes.len() + room, 0);
            }
            bytes.extend(record);
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        bytes
    }

    /// A record that names a directory. Lengths do not depend on where things are, so that
    /// this also serves while they are laid out.
    fn record(&self, number: usize, name: &[u8], side: Side, system_use: &[u8]) -> Vec<u8> {
        let (sector, length) = self
            .directories
            .get(number)
            .map_or((0, 0), |directory| directory.place[side as usize]);
        directory_record(sector, length, 2, name, system_use)
    }
}

/// ECMA-119 9.1.
fn directory_record(
    sector: u32,
    length: u32,
    flags: u8,
    name: &[u8],
    system_use: &[u8],
) -> Vec<u8> {
    let mut record = vec![0, 0];
    record.extend(both32(sector));
    record.extend(both32(length));
    record.extend(DATE);
    record.extend([flags, 0, 0]);
    record.extend(both16(1));
    record.push(name.len() as u8);
    record.extend(name);
    if name.len().is_multiple_of(2) {
        record.push(0);
    }
    record.extend(system_use);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    // Name lengths are bounded so that this fits.
    record[0] = record.len() as u8;
    record
}

/// `PX` of RRIP 1.09 with owner root, and `TF` with the times of changes.
fn attributes(mode: u32, links: u32) -> Vec<u8> {
    let mut bytes = b"PX\x24\x01".to_vec();
    for value in [mode, links, 0, 0] {
        bytes.extend(both32(value));
    }
    // Modification, access and attribute times.
    bytes.extend([b'T', b'F', 5 + 3 * 7, 1, 0x0e]);
    for _ in 0..3 {
        bytes.extend(DATE);
    }
    bytes
}

fn posix_name(name: &str) -> Vec<u8> {
    let mut bytes = vec![b'N', b'M', 5 + name.len() as u8, 1, 0];
    bytes.extend(name.as_bytes());
    bytes
}

fn continuation(sector: u32) -> Vec<u8> {
    let mut bytes = b"CE\x1c\x01".to_vec();
    for value in [sector, 0, extension_reference().len() as u32] {
        bytes.extend(both32(value));
    }
    bytes
}

/// `ER`: these are Rock Ridge's extensions.
fn extension_reference() -> Vec<u8> {
    let name = b"RRIP_1991A";
    let text = b"THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM \
        SEMANTICS";
    let length = (8 + name.len() + text.len()) as u8;
    let mut bytes = vec![
        b'E',
        b'R',
        length,
        1,
        name.len() as u8,
        text.len() as u8,
        0,
        1,
    ];
    bytes.extend(name);
    bytes.extend(text);
    bytes
}

/// Text of a descriptor, filled with blanks.
fn text(value: &str, length: usize, side: Side) -> Vec<u8> {
    match side {
        Side::Primary => {
            let mut bytes = value.as_bytes().to_vec();
            bytes.resize(length, b' ');
            bytes
        }
        Side::Joliet => {
            let mut bytes: Vec<u8> = joliet(value).into_iter().take(length & !1).collect();
            while bytes.len() + 1 < length {
                bytes.extend([0, b' ']);
            }
            bytes.resize(length, 0);
            bytes
        }
    }
}

fn joliet(name: &str) -> Vec<u8> {
    name.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn both16(value: u16) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn both32(value: u32) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

/// Sectors that so many bytes take; an empty file takes one, so that it has a place.
fn sectors(bytes: usize) -> u32 {
    bytes.div_ceil(SECTOR as usize).max(1) as u32
}
