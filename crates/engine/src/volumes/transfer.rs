//! Uploads and downloads.

use std::fs::{File, OpenOptions};

use cenote_image::LockPolicy;
use cenote_image::lock::FileLock;
use cenote_pools::{
    Error as StorageError, FormatOrigin, Progress, Transfer, VolumeId, VolumeInfo, VolumeKind,
    download, upload,
};

use crate::error::{Error, Result};
use crate::node::Node;
use crate::plan::Plan;
use crate::records;

impl Node {
    /// Writes the bytes of `source` into a volume's file and answers how many.
    ///
    /// The format of the volume stays as it is; a qcow2 file uploaded into a
    /// qcow2 volume whose header reaches other files is not opened before its
    /// format is declared anew.
    ///
    /// # Errors
    /// The volume backs others or is in use, `source` is too large, or the
    /// transfer fails; then the content is incomplete, which the error says.
    pub fn volume_upload(
        &self,
        volume: &VolumeId,
        source: &mut File,
        transfer: &Transfer,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let info = self.volume(volume)?;
        self.ensure_changeable(&info, &[])?;
        let file = open(&info, true)?;
        let _lock = FileLock::acquire(&file, &info.path, LockPolicy::Exclusive)
            .map_err(StorageError::from)?;
        // A raw volume has its size; the file of any other format grows.
        let room = if info.format == "qcow2" && info.kind == VolumeKind::File {
            u64::MAX
        } else {
            info.physical
                .checked_sub(transfer.offset)
                .ok_or_else(|| StorageError::Invalid {
                    what: "offset".into(),
                    reason: format!("volume '{}' has {} bytes", info.id(), info.physical),
                })?
        };
        let mut operation = self.begin(Plan::VolumeUpload { volume: info.id() })?;
        let progress = operation.progress(progress);
        let result = upload(source, &file, &info.path, transfer, room, &progress)
            .map_err(Error::from)
            .and_then(|moved| {
                operation.revise(1, |_| {})?;
                Ok(moved)
            });
        let result = result.and_then(|moved| {
            self.after_upload(&info, &file, transfer, moved)?;
            Ok(moved)
        });
        operation.finish(result)
    }

    /// What was uploaded may be another image than before.
    fn after_upload(
        &self,
        info: &VolumeInfo,
        file: &File,
        transfer: &Transfer,
        moved: u64,
    ) -> Result<()> {
        if info.format != "qcow2" {
            return Ok(());
        }
        if transfer.offset == 0 && transfer.length.is_none() && info.kind == VolumeKind::File {
            // The rest of a longer old image is of no use to the new one.
            file.set_len(moved)
                .and_then(|()| file.sync_all())
                .map_err(|source| StorageError::at("cut to its new length", &info.path, source))?;
        }
        let alone = self
            .layers()
            .read(&info.path)
            .is_ok_and(|layer| layer.references().next().is_none());
        if !alone {
            records::put(self.state(), &info.id(), "qcow2", FormatOrigin::Probed)?;
        }
        Ok(())
    }

    /// Writes the bytes of a volume's file to `target` and answers how many.
    ///
    /// # Errors
    /// Somebody writes the volume, the part reaches past its end, or the
    /// transfer fails.
    pub fn volume_download(
        &self,
        volume: &VolumeId,
        target: &mut File,
        transfer: &Transfer,
        progress: &dyn Progress,
    ) -> Result<u64> {
        let info = self.volume(volume)?;
        let mut file = open(&info, false)?;
        let _lock =
            FileLock::acquire(&file, &info.path, LockPolicy::Shared).map_err(StorageError::from)?;
        Ok(download(&mut file, &info.path, target, transfer, progress)?)
    }
}

fn open(info: &VolumeInfo, writable: bool) -> Result<File> {
    if info.kind == VolumeKind::Dir {
        return Err(StorageError::NotADisk(info.id()).into());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(writable)
        .open(&info.path)
        .map_err(|source| StorageError::at("open", &info.path, source))?;
    Ok(file)
}
