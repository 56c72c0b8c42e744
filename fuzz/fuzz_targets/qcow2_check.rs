//! Check and repair of damaged images: a repair ends, says truly what is left,
//! and changes nothing that the guest sees.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use cenote_image::check::{Repair, check_storage, repair_storage};
use cenote_image::storage::{MemoryStorage, Storage};
use cenote_image::{Format, OpenOptions};
use libfuzzer_sys::fuzz_target;

/// What the guest sees of its first clusters, unless an error.
fn data(storage: &MemoryStorage) -> Option<Vec<u8>> {
    let shared: Arc<dyn Storage> = Arc::new(storage.fork());
    let image = OpenOptions::new(Format::Qcow2)
        .open_storage(shared, "fuzz")
        .ok()?;
    let mut buf = vec![0; image.size().min(128 << 10) as usize];
    image.read_at(&mut buf, 0).ok()?;
    Some(buf)
}

fuzz_target!(|input: &[u8]| {
    let Some(storage) = cenote_fuzz::damaged(input) else {
        return;
    };
    let path = Path::new("fuzz");
    let Ok(before) = check_storage(&storage, path) else {
        return;
    };
    for mode in [Repair::Leaks, Repair::All] {
        let repaired = storage.fork();
        let Ok(report) = repair_storage(&repaired, path, mode) else {
            continue;
        };
        let after = check_storage(&repaired, path).expect("a repaired image can be checked");
        assert_eq!(report.is_consistent(), after.is_consistent());
        assert_eq!(report.leaks, after.leaks);
        let overlap = before
            .findings
            .iter()
            .any(|finding| finding.what.contains("overlaps"));
        // Where metadata overlapped, a repair can bring more to light.
        assert!(overlap || report.corruptions <= before.corruptions);
        if !overlap && let Some(data_before) = data(&storage) {
            assert_eq!(data(&repaired), Some(data_before));
        }
    }
});
