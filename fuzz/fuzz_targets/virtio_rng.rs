//! A hostile driver of the entropy device.
#![no_main]

use std::cell::RefCell;

use cenote_fuzz::virtio::Hostile;
use cenote_vmm::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static HOSTILE: RefCell<Hostile<Rng>> =
        RefCell::new(Hostile::new(Rng::new("fuzz").expect("host resources")));
}

fuzz_target!(|input: &[u8]| {
    HOSTILE.with_borrow_mut(|hostile| hostile.play(input, |byte| vec![byte()]));
});
