//! Writing and reading saved machines.

use super::{
    MachineState, STATE_VERSION,
    header::{Header, PAGE, Part, Region},
};
use crate::memory::{GuestMemory, MemoryLayout, WrittenPages};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use vm_memory::{
    Address as _, Bytes as _, FileOffset, GuestAddress, GuestMemoryBackend as _,
    GuestMemoryRegion as _, GuestRegionMmap, MemoryRegionAddress,
    mmap::{MmapRegionBuilder, NewBitmap as _},
};

/// Memory is checked in pieces of this many bytes.
const PIECE: u64 = 2 << 20;
/// The most state that is read, in bytes; far beyond what 32 processors and all devices have.
const LARGEST_STATE: u64 = 64 << 20;

/// Why a machine was not saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Reading failed.
    #[error("saved state {path}: {action} failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Saving failed.
    #[error("the machine was not saved: {action} failed")]
    Write {
        /// What was being done to the file.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was given to save to is a pipe, a socket or a device.
    #[error("the machine was not saved: it can only be saved to a regular file")]
    NoFile,
    /// It is something else.
    #[error("the file is no saved machine")]
    Magic,
    /// Another version of the format.
    #[error(
        "the saved machine has format version {found}, this program reads {known}: restore it with the release that saved it"
    )]
    Version {
        /// In the file.
        found: u32,
        /// Known here.
        known: u32,
    },
    /// The file ends too early.
    #[error("the saved machine is cut off: {need} bytes are needed, the file has {size}")]
    Truncated {
        /// Needed.
        need: u64,
        /// Present.
        size: u64,
    },
    /// A checksum or a value is wrong.
    #[error("the saved machine is damaged: {0}")]
    Damaged(&'static str),
    /// A piece of memory does not have its checksum.
    #[error("the saved machine is damaged: memory at {0:#x}")]
    DamagedMemory(u64),
    /// The state does not have the shape that its version promises.
    #[error("the saved machine's state cannot be read")]
    State(#[source] serde_json::Error),
    /// Guest memory cannot be read.
    #[error("guest memory cannot be read")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The memory cannot be mapped.
    #[error("the saved memory cannot be mapped")]
    Map(#[source] io::Error),
}

fn failed(path: &Path, action: &'static str) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// Saves a machine, which is paused, to `file`, whose earlier content is lost.
///
/// # Errors
/// [`SnapshotError`]; what is in `file` is then of no use.
pub fn write(file: &File, state: &MachineState, memory: &GuestMemory) -> Result<(), SnapshotError> {
    let io = |action| move |source| SnapshotError::Write { action, source };
    if !file.metadata().map_err(io("looking at it"))?.is_file() {
        return Err(SnapshotError::NoFile);
    }
    // Pages of zeros are not written, so nothing may be there before.
    file.set_len(0).map_err(io("emptying it"))?;
    let mut offset = PAGE;
    let mut regions = Vec::new();
    let mut checksums = Vec::new();
    for region in memory.iter() {
        let placed = Region {
            start: region.start_addr().raw_value(),
            length: region.len(),
            offset,
        };
        write_region(file, region, &placed, &mut checksums)?;
        offset += region.len();
        regions.push(placed);
    }
    let part = |bytes: &[u8], offset| -> Result<Part, SnapshotError> {
        file.write_all_at(bytes, offset).map_err(io("writing"))?;
        Ok(Part {
            offset,
            length: bytes.len() as u64,
            checksum: crc32fast::hash(bytes),
        })
    };
    let checksums = part(&checksums, offset)?;
    let state = serde_json::to_vec(state).map_err(SnapshotError::State)?;
    let state = part(&state, offset + checksums.length)?;
    let header = Header {
        state,
        checksums,
        regions,
    };
    file.write_all_at(&header.encode(), 0)
        .map_err(io("writing"))?;
    file.sync_all().map_err(io("making it durable"))
}

/// Writes the pages of a region that are not zero, and adds the region's checksums.
fn write_region(
    file: &File,
    region: &GuestRegionMmap<WrittenPages>,
    placed: &Region,
    checksums: &mut Vec<u8>,
) -> Result<(), SnapshotError> {
    let blank = [0; PAGE as usize];
    let mut piece = vec![0; PIECE.min(placed.length) as usize];
    // Of a piece of zeros as long as the first; most of a guest's memory has never been used.
    let checksum_of_zeros = crc32fast::hash(&piece);
    let mut at = 0;
    while at < placed.length {
        let length = PIECE.min(placed.length - at) as usize;
        let whole = piece.len();
        let piece = &mut piece[..length];
        region.read_slice(piece, MemoryRegionAddress(at))?;
        let is_blank = |page: &[u8]| *page == blank[..page.len()];
        if length == whole && piece.chunks(PAGE as usize).all(is_blank) {
            checksums.extend(checksum_of_zeros.to_le_bytes());
            at += length as u64;
            continue;
        }
        checksums.extend(crc32fast::hash(piece).to_le_bytes());
        for (index, page) in (0u64..).zip(piece.chunks(PAGE as usize)) {
            if !is_blank(page) {
                file.write_all_at(page, placed.offset + at + index * PAGE)
                    .map_err(|source| SnapshotError::Write {
                        action: "writing",
                        source,
                    })?;
            }
        }
        at += length as u64;
    }
    Ok(())
}

/// A saved machine whose header and state have been verified.
pub struct SnapshotFile {
    path: PathBuf,
    file: Arc<File>,
    header: Header,
    state: MachineState,
}

impl SnapshotFile {
    /// Opens and verifies all but the memory.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let io = |action| failed(path, action);
        let file = File::open(path).map_err(io("opening"))?;
        let size = file.metadata().map_err(io("reading"))?.len();
        if size < PAGE {
            return Err(if size < 8 {
                SnapshotError::Magic
            } else {
                SnapshotError::Truncated { need: PAGE, size }
            });
        }
        let mut page = vec![0; PAGE as usize];
        file.read_exact_at(&mut page, 0).map_err(io("reading"))?;
        let header = Header::decode(&page, size)?;
        let bytes = read_part(&file, path, &header.state, "its state")?;
        read_part(&file, path, &header.checksums, "its memory's checksums")?;
        let state: MachineState = serde_json::from_slice(&bytes).map_err(SnapshotError::State)?;
        if state.version != STATE_VERSION {
            return Err(SnapshotError::Version {
                found: state.version,
                known: STATE_VERSION,
            });
        }
        let ram: Vec<_> = state
            .layout
            .ram()
            .iter()
            .map(|r| (r.start, r.end - r.start))
            .collect();
        let saved: Vec<_> = header.regions.iter().map(|r| (r.start, r.length)).collect();
        if MemoryLayout::new(state.layout.size()).is_err() || ram != saved {
            return Err(SnapshotError::Damaged("its memory regions"));
        }
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            header,
            state,
        })
    }

    /// The state beside memory.
    #[must_use]
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// Maps the memory: pages are read when the guest touches them and written nowhere.
    ///
    /// # Errors
    /// [`SnapshotError::Map`].
    pub fn map_memory(&self) -> Result<GuestMemory, SnapshotError> {
        let map =
            |error: &dyn std::fmt::Display| SnapshotError::Map(io::Error::other(error.to_string()));
        let mut regions = Vec::new();
        for region in &self.header.regions {
            let length = region.length as usize;
            let mapping =
                MmapRegionBuilder::new_with_bitmap(length, WrittenPages::with_len(length))
                    .with_file_offset(FileOffset::from_arc(Arc::clone(&self.file), region.offset))
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                    .build()
                    .map_err(|error| map(&error))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(region.start))
                .ok_or(SnapshotError::Damaged("a memory region's place"))?;
            regions.push(region);
        }
        GuestMemory::from_regions(regions).map_err(|error| map(&error))
    }

    /// Reads all of the memory and compares it with its checksums.
    ///
    /// # Errors
    /// [`SnapshotError::DamagedMemory`] with the guest address of the first piece that differs.
    pub fn verify_memory(&self) -> Result<(), SnapshotError> {
        let checksums = read_part(
            &self.file,
            &self.path,
            &self.header.checksums,
            "its memory's checksums",
        )?;
        let mut expected = checksums.chunks_exact(4);
        let mut piece = vec![0; PIECE as usize];
        for region in &self.header.regions {
            let mut at = 0;
            while at < region.length {
                let length = PIECE.min(region.length - at) as usize;
                self.file
                    .read_exact_at(&mut piece[..length], region.offset + at)
                    .map_err(failed(&self.path, "reading"))?;
                let found = crc32fast::hash(&piece[..length]).to_le_bytes();
                if expected.next() != Some(&found) {
                    return Err(SnapshotError::DamagedMemory(region.start + at));
                }
                at += length as u64;
            }
        }
        Ok(())
    }
}

fn read_part(
    file: &File,
    path: &Path,
    part: &Part,
    what: &'static str,
) -> Result<Vec<u8>, SnapshotError> {
    if part.length > LARGEST_STATE {
        return Err(SnapshotError::Damaged(what));
    }
    let mut bytes = vec![0; part.length as usize];
    file.read_exact_at(&mut bytes, part.offset)
        .map_err(failed(path, "reading"))?;
    if crc32fast::hash(&bytes) != part.checksum {
        return Err(SnapshotError::Damaged(what));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _};

    fn saved(folder: &Path) -> PathBuf {
        let layout = MemoryLayout::new(64 << 20).unwrap();
        let memory = layout.map().unwrap();
        memory.write_slice(b"first", GuestAddress(0x1234)).unwrap();
        memory
            .write_slice(b"last", GuestAddress((64 << 20) - 4))
            .unwrap();
        let path = folder.join("state");
        let file = File::create_new(&path).unwrap();
        write(&file, &blank(layout), &memory).unwrap();
        path
    }

    fn blank(layout: MemoryLayout) -> MachineState {
        MachineState {
            version: STATE_VERSION,
            layout,
            vm: blank_vm(),
            vcpus: Vec::new(),
            devices: BTreeMap::new(),
            resets: 3,
        }
    }

    fn blank_vm() -> crate::kvm::VmState {
        crate::kvm::VmState {
            pic_master: Default::default(),
            pic_slave: Default::default(),
            io_apic: Default::default(),
            pit: Default::default(),
            clock: 7,
        }
    }

    #[test]
    fn what_was_saved_is_mapped_again_and_the_file_is_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path());
        let metadata = path.metadata().unwrap();
        assert!(metadata.len() > 63 << 20);
        assert!(
            metadata.blocks() * 512 < 1 << 20,
            "{} blocks",
            metadata.blocks()
        );
        for _ in 0..3 {
            let file = SnapshotFile::open(&path).unwrap();
            assert_eq!((file.state().resets, file.state().vm.clock), (3, 7));
            file.verify_memory().unwrap();
            let memory = file.map_memory().unwrap();
            let mut text = [0; 5];
            memory.read_slice(&mut text, GuestAddress(0x1234)).unwrap();
            assert_eq!(&text, b"first");
            memory.write_slice(b"other", GuestAddress(0x1234)).unwrap();
            crate::memory::clear(&memory).unwrap();
            memory.read_slice(&mut text, GuestAddress(0x1234)).unwrap();
            assert_eq!(text, [0; 5]);
        }
    }

    #[test]
    fn every_kind_of_damage_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path());
        let whole = std::fs::read(&path).unwrap();
        let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            let path = folder.path().join("damaged");
            std::fs::write(&path, bytes).unwrap();
            SnapshotFile::open(&path)
        };
        let error = |result: Result<SnapshotFile, SnapshotError>| result.err().unwrap();
        assert!(matches!(
            error(damaged(&|b| b[0] ^= 1)),
            SnapshotError::Magic
        ));
        assert!(matches!(
            error(damaged(&|b| b.truncate(3))),
            SnapshotError::Magic
        ));
        let other = error(damaged(&|b| b[8] = 9));
        assert!(matches!(
            other,
            SnapshotError::Version { found: 9, known: 1 }
        ));
        for at in [12, 16, 41, 64, 80, 4000] {
            assert!(
                matches!(error(damaged(&|b| b[at] ^= 1)), SnapshotError::Damaged(_)),
                "{at}"
            );
        }
        for length in [100, whole.len() / 2, whole.len() - 1] {
            let cut = error(damaged(&|b| b.truncate(length)));
            assert!(
                matches!(cut, SnapshotError::Truncated { .. }),
                "{length}: {cut}"
            );
        }
        assert!(matches!(
            error(damaged(&|b| *b.last_mut().unwrap() ^= 1)),
            SnapshotError::Damaged("its state")
        ));
        let memory = damaged(&|b| b[5000] ^= 1).unwrap();
        assert!(matches!(
            memory.verify_memory(),
            Err(SnapshotError::DamagedMemory(0))
        ));
    }

    #[test]
    fn a_file_may_be_saved_to_twice_and_a_pipe_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path());
        let layout = MemoryLayout::new(4 << 20).unwrap();
        let (state, memory) = (blank(layout), layout.map().unwrap());
        let file = File::options().write(true).open(&path).unwrap();
        write(&file, &state, &memory).unwrap();
        let again = SnapshotFile::open(&path).unwrap();
        again.verify_memory().unwrap();
        assert_eq!(again.state().layout, layout);
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(matches!(
            write(&pipe, &state, &memory),
            Err(SnapshotError::NoFile)
        ));
    }

    #[test]
    fn a_state_of_another_version_is_refused_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let layout = MemoryLayout::new(4 << 20).unwrap();
        let mut state = blank(layout);
        state.version = STATE_VERSION + 1;
        let file = File::create_new(&path).unwrap();
        write(&file, &state, &layout.map().unwrap()).unwrap();
        let error = SnapshotFile::open(&path).err().unwrap();
        assert!(
            matches!(error, SnapshotError::Version { found, known }
                if found == known + 1 && known == STATE_VERSION),
            "{error}"
        );
    }
}
