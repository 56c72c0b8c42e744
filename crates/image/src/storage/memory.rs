//! Storage in memory, sparse, and cheap to copy.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Storage;

const PAGE: usize = 4096;

/// Bytes in memory; pages never written cost nothing.
///
/// [`MemoryStorage::fork`] copies page references, not pages, so that a crash
/// suite can look at a hundred thousand variants of one image.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    content: RwLock<Content>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    length: u64,
}

/// The parts of a range that lie in one page each: page number, offset in the
/// page, length.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let inside = (at % PAGE as u64) as usize;
            let take = ((PAGE - inside) as u64).min(end - at);
            let piece = (at / PAGE as u64, inside, take as usize);
            at += take;
            piece
        })
    })
}

impl Content {
    fn write(&mut self, buf: &[u8], offset: u64) {
        let mut done = 0;
        for (page, inside, take) in pieces(offset, buf.len() as u64) {
            let page = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[inside..inside + take].copy_from_slice(&buf[done..done + take]);
            done += take;
        }
        self.length = self.length.max(offset + buf.len() as u64);
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let first_whole = offset.div_ceil(PAGE as u64);
        let last_whole = end / PAGE as u64;
        if first_whole < last_whole {
            let whole: Vec<u64> = self
                .pages
                .range(first_whole..last_whole)
                .map(|(&page, _)| page)
                .collect();
            for page in whole {
                self.pages.remove(&page);
            }
        }
        let edges = [
            (offset, (first_whole * PAGE as u64).min(end)),
            ((last_whole * PAGE as u64).max(offset), end),
        ];
        for (start, stop) in edges {
            for (page, inside, take) in pieces(start, stop.saturating_sub(start)) {
                if let Some(page) = self.pages.get_mut(&page) {
                    Arc::make_mut(page)[inside..inside + take].fill(0);
                }
            }
        }
    }

    fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.zero(length, self.length - length);
        }
        self.length = length;
    }
}

fn check_range(offset: u64, length: u64) -> io::Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

impl MemoryStorage {
    /// Empty storage.
    pub fn new() -> Self {
        Self::default()
    }

    /// Storage with this content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let storage = Self::new();
        {
            let mut content = storage.content.write();
            for (index, page) in bytes.chunks(PAGE).enumerate() {
                if page.iter().any(|&byte| byte != 0) {
                    content.write(page, (index * PAGE) as u64);
                }
            }
            content.length = bytes.len() as u64;
        }
        storage
    }

    /// An independent copy that shares the pages until one side writes them.
    pub fn fork(&self) -> Self {
        Self {
            content: RwLock::new(self.content.read().clone()),
        }
    }

    /// All bytes.
    ///
    /// # Errors
    /// `OutOfMemory` when the length does not fit into memory.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let length =
            usize::try_from(self.content.read().length).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(length, 0);
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Writes the content to a file that tools can open; holes stay holes.
    ///
    /// # Errors
    /// Those of the file.
    pub fn save(&self, path: &std::path::Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let content = self.content.read();
        let file = std::fs::File::create(path)?;
        file.set_len(content.length)?;
        for (&page, bytes) in &content.pages {
            let at = page * PAGE as u64;
            let take = content.length.saturating_sub(at).min(PAGE as u64) as usize;
            file.write_all_at(&bytes[..take], at)?;
        }
        Ok(())
    }
}

impl Storage for MemoryStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        check_range(offset, buf.len() as u64)?;
        let content = self.content.read();
        let mut done = 0;
        for (page, inside, take) in pieces(offset, buf.len() as u64) {
            let part = &mut buf[done..done + take];
            match content.pages.get(&page) {
                Some(page) => part.copy_from_slice(&page[inside..inside + take]),
                None => part.fill(0),
            }
            done += take;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        check_range(offset, buf.len() as u64)?;
        if !buf.is_empty() {
            self.content.write().write(buf, offset);
        }
        Ok(())
    }

    fn write_zeroes_at(&self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        check_range(offset, length)?;
        if length > 0 {
            let mut content = self.content.write();
            content.zero(offset, length);
            content.length = content.length.max(offset + length);
        }
        Ok(())
    }

    fn discard_at(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(offset, length)?;
        self.content.write().zero(offset, length);
        Ok(())
    }

    fn allocate_at(&self, offset: u64, length: u64) -> io::Result<()> {
        check_range(offset, length)?;
        if length > 0 {
            let mut content = self.content.write();
            content.length = content.length.max(offset + length);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content.read().length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        check_range(length, 0)?;
        self.content.write().set_length(length);
        Ok(())
    }
}
