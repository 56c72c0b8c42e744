//! Copying the bytes of a volume's file in and out, holes kept as holes.
//!
//! A transfer moves the file as it is, so a qcow2 volume's upload is a qcow2
//! file. Either end may be a pipe.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom as RawSeek, fallocate, seek};

use crate::crash;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Bytes moved at once.
const BLOCK: usize = 1 << 20;

/// Zeroes shorter than this are written, not punched: a hole saves nothing
/// below the file system's block size.
const MIN_HOLE: usize = 4096;

/// Which part is moved, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transfer {
    /// First byte in the volume.
    pub offset: u64,
    /// Bytes to move; `None`: all there are.
    pub length: Option<u64>,
    /// Whether blocks of zeroes become holes in what is written.
    pub sparse: bool,
}

/// A stretch of a file: data, or a hole that reads as zeroes.
enum Stretch {
    Data(u64),
    Hole(u64),
}

/// Copies from `source` into the file `volume`, at most `room` bytes.
///
/// Answers the number of bytes. Data goes to stable storage before it returns.
///
/// # Errors
/// `source` holds more than `room`; reading or writing fails; the caller
/// breaks off. What was written stays.
pub fn upload(
    source: &mut File,
    volume: &File,
    path: &Path,
    transfer: &Transfer,
    room: u64,
    progress: &dyn Progress,
) -> Result<u64> {
    let limit = transfer.length.unwrap_or(u64::MAX);
    let available = remaining(source);
    let total = available.map_or(transfer.length.unwrap_or(0), |bytes| bytes.min(limit));
    if total > room {
        return Err(too_large(path, total, room));
    }
    if transfer.length.is_some() && available.is_some_and(|bytes| bytes < limit) {
        return Err(Error::Invalid {
            what: "length".into(),
            reason: format!("the source has only {total} bytes, not {limit}"),
        });
    }
    let mut buffer = vec![0; BLOCK];
    let mut done = 0u64;
    while done < limit {
        step(progress, done, total, "the upload")?;
        let want = usize::try_from(limit.saturating_sub(done))
            .unwrap_or(BLOCK)
            .min(BLOCK);
        let block = buffer.get_mut(..want).unwrap_or_default();
        let read =
            read_full(source, block).map_err(|e| Error::at("read the source for", path, e))?;
        if read == 0 {
            break;
        }
        if done.saturating_add(read as u64) > room {
            return Err(too_large(path, done.saturating_add(read as u64), room));
        }
        let data = block.get(..read).unwrap_or_default();
        let at = transfer.offset.saturating_add(done);
        place(volume, data, at, transfer.sparse).map_err(|e| Error::at("write", path, e))?;
        crash::point("upload-block");
        done = done.saturating_add(read as u64);
    }
    if let Some(length) = transfer.length
        && done < length
    {
        return Err(Error::Invalid {
            what: "length".into(),
            reason: format!("the source ended after {done} bytes, {length} were announced"),
        });
    }
    volume
        .sync_all()
        .map_err(|source| Error::at("write out", path, source))?;
    step(progress, done, done, "the upload")?;
    Ok(done)
}

/// Copies from the file `volume` to `target`, which may be a pipe.
///
/// Answers the number of bytes. With `sparse`, holes become holes where
/// `target` is a regular file.
///
/// # Errors
/// The part reaches past the end; reading or writing fails; the caller breaks
/// off.
pub fn download(
    volume: &mut File,
    path: &Path,
    target: &mut File,
    transfer: &Transfer,
    progress: &dyn Progress,
) -> Result<u64> {
    let at = |action| move |source| Error::at(action, path, source);
    let end = volume
        .seek(SeekFrom::End(0))
        .map_err(at("find the size of"))?;
    let room = end
        .checked_sub(transfer.offset)
        .ok_or_else(|| past_end(path, end))?;
    let total = transfer.length.unwrap_or(room);
    if total > room {
        return Err(past_end(path, end));
    }
    let holes = transfer.sparse && target.metadata().is_ok_and(|metadata| metadata.is_file());
    let base = if holes {
        target.stream_position().map_err(at("download"))?
    } else {
        0
    };
    let mut buffer = vec![0; BLOCK];
    let mut done = 0u64;
    while done < total {
        step(progress, done, total, "the download")?;
        let position = transfer.offset.saturating_add(done);
        let rest = total.saturating_sub(done);
        match stretch(&*volume, position, rest).map_err(at("look for holes in"))? {
            Stretch::Hole(length) if holes => {
                let next = base.saturating_add(done).saturating_add(length);
                target.seek(SeekFrom::Start(next)).map_err(at("download"))?;
                done = done.saturating_add(length);
            }
            Stretch::Hole(length) | Stretch::Data(length) => {
                let want = usize::try_from(length).unwrap_or(BLOCK).min(BLOCK);
                let block = buffer.get_mut(..want).unwrap_or_default();
                volume.seek(SeekFrom::Start(position)).map_err(at("read"))?;
                let read = read_full(volume, block).map_err(at("read"))?;
                if read == 0 {
                    return Err(past_end(path, position));
                }
                let data = block.get(..read).unwrap_or_default();
                target
                    .write_all(data)
                    .map_err(at("write the download of"))?;
                done = done.saturating_add(read as u64);
            }
        }
    }
    if holes {
        // A hole at the end leaves no byte that would make the file long.
        let length = base.saturating_add(done);
        if target
            .metadata()
            .is_ok_and(|metadata| metadata.len() < length)
        {
            target
                .set_len(length)
                .map_err(at("write the download of"))?;
        }
    }
    target.flush().map_err(at("write the download of"))?;
    step(progress, done, total, "the download")?;
    Ok(done)
}

fn step(progress: &dyn Progress, done: u64, total: u64, what: &str) -> Result<()> {
    if progress.update(done, total).is_break() {
        return Err(Error::Cancelled(what.into()));
    }
    Ok(())
}

fn too_large(path: &Path, wanted: u64, room: u64) -> Error {
    Error::Invalid {
        what: format!("volume '{}'", path.display()),
        reason: format!("it has room for {room} bytes from there, not for {wanted}"),
    }
}

fn past_end(path: &Path, end: u64) -> Error {
    Error::Invalid {
        what: format!("volume '{}'", path.display()),
        reason: format!("the part asked for reaches past its end at {end} bytes"),
    }
}

/// Bytes from the present position to the end, of a regular file.
fn remaining(source: &mut File) -> Option<u64> {
    let metadata = source
        .metadata()
        .ok()
        .filter(|metadata| metadata.is_file())?;
    let position = source.stream_position().ok()?;
    metadata.len().checked_sub(position)
}

/// Reads until the buffer is full or the source ends.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes a block, its zeroes as holes if asked to.
fn place(volume: &File, data: &[u8], offset: u64, sparse: bool) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    if !sparse {
        return volume.write_all_at(data, offset);
    }
    let mut at = offset;
    for chunk in data.chunks(MIN_HOLE) {
        if chunk.len() == MIN_HOLE && chunk.iter().all(|byte| *byte == 0) {
            punch(volume, at, chunk)?;
        } else {
            volume.write_all_at(chunk, at)?;
        }
        at = at.saturating_add(chunk.len() as u64);
    }
    Ok(())
}

fn punch(volume: &File, offset: u64, zeroes: &[u8]) -> io::Result<()> {
    use rustix::io::Errno;
    use std::os::unix::fs::FileExt;
    let length = zeroes.len() as u64;
    let end = offset.saturating_add(length);
    if volume.metadata()?.is_file() && volume.metadata()?.len() < end {
        volume.set_len(end)?;
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(volume, flags, offset, length) {
        Ok(()) => Ok(()),
        Err(Errno::NOTSUP | Errno::NODEV | Errno::INVAL) => volume.write_all_at(zeroes, offset),
        Err(errno) => Err(errno.into()),
    }
}

/// What lies at `position`, at most `limit` bytes of it.
fn stretch(file: impl AsFd, position: u64, limit: u64) -> io::Result<Stretch> {
    use rustix::io::Errno;
    match seek(&file, RawSeek::Data(position)) {
        Ok(data) if data > position => Ok(Stretch::Hole(data.saturating_sub(position).min(limit))),
        Ok(_) => match seek(&file, RawSeek::Hole(position)) {
            Ok(hole) if hole > position => {
                Ok(Stretch::Data(hole.saturating_sub(position).min(limit)))
            }
            _ => Ok(Stretch::Data(limit)),
        },
        // No data up to the end.
        Err(Errno::NXIO) => Ok(Stretch::Hole(limit)),
        // Devices and file systems without this: all data.
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(Stretch::Data(limit)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::NoProgress;
    use std::os::unix::fs::MetadataExt;

    fn file_with(dir: &Path, name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn open(path: &Path) -> File {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| ((i / 4096 % 3) * (i % 83)) as u8)
            .collect()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let content = pattern(3 * BLOCK + 777);
        let source = file_with(dir.path(), "source", &content);
        for sparse in [false, true] {
            let path = file_with(dir.path(), "volume", &vec![0xff; 4 * BLOCK]);
            let transfer = Transfer {
                offset: 4096,
                length: None,
                sparse,
            };
            let moved = upload(
                &mut open(&source),
                &open(&path),
                &path,
                &transfer,
                4 * BLOCK as u64 - 4096,
                &NoProgress,
            )
            .unwrap();
            assert_eq!(moved, content.len() as u64);
            let out = dir.path().join("out");
            let _ = std::fs::remove_file(&out);
            let transfer = Transfer {
                length: Some(moved),
                ..transfer
            };
            download(
                &mut open(&path),
                &path,
                &mut open(&out),
                &transfer,
                &NoProgress,
            )
            .unwrap();
            assert!(std::fs::read(&out).unwrap() == content, "sparse {sparse}");
            let whole = std::fs::read(&path).unwrap();
            assert!(
                whole[..4096]
                    .iter()
                    .chain(&whole[4096 + content.len()..])
                    .all(|b| *b == 0xff)
            );
        }
    }

    #[test]
    fn holes_stay_holes_on_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        open(&source).set_len(64 << 20).unwrap();
        let path = dir.path().join("volume");
        open(&path).set_len(64 << 20).unwrap();
        let transfer = Transfer {
            sparse: true,
            ..Transfer::default()
        };
        upload(
            &mut open(&source),
            &open(&path),
            &path,
            &transfer,
            64 << 20,
            &NoProgress,
        )
        .unwrap();
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        let out = dir.path().join("out");
        download(
            &mut open(&path),
            &path,
            &mut open(&out),
            &transfer,
            &NoProgress,
        )
        .unwrap();
        let out = std::fs::metadata(&out).unwrap();
        assert_eq!(out.len(), 64 << 20);
        assert!(out.blocks() * 512 < 1 << 20);
    }

    #[test]
    fn more_than_fits_is_refused_before_a_byte_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let source = file_with(dir.path(), "source", &[1; 8192]);
        let path = file_with(dir.path(), "volume", &[0; 4096]);
        let transfer = Transfer::default();
        let error = upload(
            &mut open(&source),
            &open(&path),
            &path,
            &transfer,
            4096,
            &NoProgress,
        )
        .unwrap_err();
        assert!(error.to_string().contains("4096"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
    }

    #[test]
    fn pipes_carry_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let content = pattern(2 * BLOCK + 5);
        let path = file_with(dir.path(), "volume", &content);
        let (reader, writer) = std::io::pipe().unwrap();
        let copy = dir.path().join("copy");
        open(&copy).set_len(content.len() as u64).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = File::from(std::os::fd::OwnedFd::from(writer));
                let transfer = Transfer {
                    sparse: true,
                    ..Transfer::default()
                };
                download(&mut open(&path), &path, &mut writer, &transfer, &NoProgress).unwrap();
            });
            let mut reader = File::from(std::os::fd::OwnedFd::from(reader));
            let transfer = Transfer {
                sparse: true,
                ..Transfer::default()
            };
            upload(
                &mut reader,
                &open(&copy),
                &copy,
                &transfer,
                content.len() as u64,
                &NoProgress,
            )
            .unwrap();
        });
        assert!(std::fs::read(&copy).unwrap() == content);
    }

    #[test]
    fn a_break_stops_the_transfer() {
        struct Stop;
        impl Progress for Stop {
            fn update(&self, done: u64, _total: u64) -> std::ops::ControlFlow<()> {
                if done > 0 {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = file_with(dir.path(), "volume", &vec![1; 2 * BLOCK]);
        let out = dir.path().join("out");
        let error = download(
            &mut open(&path),
            &path,
            &mut open(&out),
            &Transfer::default(),
            &Stop,
        )
        .unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Cancelled);
    }
}
