//! Resizing the virtual disk.

use super::{check_writable, refusal};
use crate::image::Driver;
use crate::qcow2::Qcow2;
use crate::qcow2::entry::OFFSET_MASK;
use crate::qcow2::header::MAX_L1_BYTES;
use crate::{Error, Image, Result};

/// Makes the virtual disk `size` bytes long. New bytes read as zeroes, also
/// where a backing file is longer than the disk was. Bytes that a smaller disk
/// no longer has are gone, so making it smaller needs `shrink`.
///
/// A crash leaves the old size or the new one; when shrinking, the bytes to go
/// may be zero already.
///
/// # Errors
/// [`Error::Invalid`] for a smaller size without `shrink`, one that is not a
/// multiple of 512, or one that the format cannot hold; and for images whose
/// internal snapshots (version 2) or bitmaps would not fit the new size.
pub fn resize(image: &Image, size: u64, shrink: bool) -> Result<()> {
    check_writable(image)?;
    if !size.is_multiple_of(512) {
        return Err(refusal(
            image,
            format!("{size} bytes is not a multiple of 512"),
        ));
    }
    let old = image.size();
    if size < old && !shrink {
        return Err(refusal(
            image,
            format!(
                "making it smaller, from {old} to {size} bytes, destroys the data at its end; \
                 say `--shrink` if that is meant"
            ),
        ));
    }
    if size == old {
        return Ok(());
    }
    match image.driver() {
        Driver::Raw(raw) => raw
            .resize(size)
            .map_err(|e| Error::io(image.path(), "resize", e)),
        Driver::Qcow2(qcow2) => {
            check_attached(image, qcow2)?;
            if size > old {
                grow(image, qcow2, size)
            } else {
                image.discard(size, old - size)?;
                image.flush()?;
                set_size(qcow2, size)
            }
        }
    }
}

fn check_attached(image: &Image, qcow2: &Qcow2) -> Result<()> {
    let header = qcow2.header.lock();
    if header.extensions.bitmaps.is_some() {
        return Err(Error::unsupported(
            image.path(),
            "resizing an image with dirty bitmaps (remove them first)",
        ));
    }
    if header.version < 3 && header.snapshot_count > 0 {
        return Err(Error::unsupported(
            image.path(),
            "resizing a version 2 image with internal snapshots (they would not know their size)",
        ));
    }
    Ok(())
}

fn grow(image: &Image, qcow2: &Qcow2, size: u64) -> Result<()> {
    let geo = qcow2.geo;
    let entries = size.div_ceil(geo.l2_entries << geo.cluster_bits);
    if entries
        .checked_mul(8)
        .is_none_or(|bytes| bytes > MAX_L1_BYTES)
    {
        let most = (MAX_L1_BYTES / 8).saturating_mul(geo.l2_entries << geo.cluster_bits);
        return Err(refusal(
            image,
            format!(
                "{size} bytes is more than an image with clusters of {} bytes can hold ({most})",
                geo.cluster_size
            ),
        ));
    }
    grow_l1(qcow2, entries)?;
    // What lies past the old end must be zeroes before anyone can see it: a
    // longer backing file, or what a smaller size once cut off.
    qcow2.zero_beyond_end(size, image.backing().map_or(0, Image::size))?;
    qcow2.flush()?;
    set_size(qcow2, size)
}

/// Moves the L1 table to where it has room for `entries`.
fn grow_l1(qcow2: &Qcow2, entries: u64) -> Result<()> {
    let tx = qcow2.transaction()?;
    let geo = tx.geometry();
    let mut l1 = tx.l1();
    if entries <= l1.len() as u64 {
        return Ok(());
    }
    let header = tx.header();
    let old_clusters = (l1.len() as u64 * 8).div_ceil(geo.cluster_size);
    l1.resize(usize::try_from(entries).unwrap_or(usize::MAX), 0);
    let offset = tx.allocate((entries * 8).div_ceil(geo.cluster_size))?;
    tx.write_table(offset, &l1)?;
    tx.flush_refcounts()?;
    tx.update_header(|header| {
        header.l1_offset = offset;
        header.l1_entries = entries as u32;
    })?;
    tx.set_l1(offset, l1);
    let first = geo.cluster(header.l1_offset & OFFSET_MASK);
    for cluster in first..first + old_clusters {
        tx.release(cluster)?;
    }
    tx.flush_refcounts()
}

fn set_size(qcow2: &Qcow2, size: u64) -> Result<()> {
    let tx = qcow2.transaction()?;
    let larger = size > tx.header().size;
    let cut_data_file = || match &qcow2.data_file {
        Some(data) => data
            .set_length(size)
            .and_then(|()| data.sync())
            .map_err(|e| Error::io(&qcow2.path, "resize its data file", e)),
        None => Ok(()),
    };
    if larger {
        cut_data_file()?;
    }
    tx.update_header(|header| header.size = size)?;
    tx.set_size(size);
    if larger { Ok(()) } else { cut_data_file() }
}
