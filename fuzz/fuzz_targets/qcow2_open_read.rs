//! Opening, reading, mapping and writing damaged images: errors, never a
//! panic, a hang or memory without bound.
#![no_main]

use std::sync::Arc;

use cenote_image::storage::Storage;
use cenote_image::{Format, Image, OpenOptions};
use libfuzzer_sys::fuzz_target;

fn read(image: &Image) {
    let mut buf = vec![0; 64 << 10];
    let size = image.size();
    let last = size.saturating_sub(buf.len() as u64);
    for offset in [0, 1 << 16, 1 << 20, size / 2, last] {
        let take = size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let _ = image.read_at(&mut buf[..take], offset);
    }
    if let Ok(extents) = image.extents(0, size) {
        for extent in extents.take(500) {
            if extent.is_err() {
                break;
            }
        }
    }
    let _ = image.info();
    let _ = image.snapshots();
}

fuzz_target!(|input: &[u8]| {
    let Some(storage) = cenote_fuzz::damaged(input) else {
        return;
    };
    let copy: Arc<dyn Storage> = Arc::new(storage.fork());
    if let Ok(image) = OpenOptions::new(Format::Qcow2).open_storage(copy, "fuzz") {
        read(&image);
    }
    let copy: Arc<dyn Storage> = Arc::new(storage);
    let options = OpenOptions::new(Format::Qcow2).writable(true);
    if let Ok(image) = options.open_storage(copy, "fuzz") {
        let size = image.size();
        for offset in [0, 512, size / 2, size.saturating_sub(70_000)] {
            let take = size.saturating_sub(offset).min(70_000) as usize;
            let _ = image.write_at(&vec![0x77; take], offset);
            let _ = image.discard(offset, take as u64 / 2);
        }
        let _ = image.flush();
        read(&image);
        let _ = image.close();
    }
});
