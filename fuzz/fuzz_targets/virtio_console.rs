//! A hostile driver of the console device, with peers on the host that echo.
#![no_main]

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use cenote_fuzz::virtio::Hostile;
use cenote_vmm::virtio::console::{Console, HostSide, PortOptions};
use libfuzzer_sys::fuzz_target;

fn port(name: &str, host: HostSide) -> PortOptions {
    PortOptions {
        name: name.to_owned(),
        console: name.is_empty(),
        host,
    }
}

/// The host's side of a port whose peer sends back what it is sent.
fn echo() -> HostSide {
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = theirs.read(&mut buffer) {
            if theirs.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
    HostSide::socket(ours.into()).expect("a stream socket")
}

fn hostile() -> Hostile<Console> {
    let ports = vec![
        port("", echo()),
        port("org.fuzz", echo()),
        port("n", HostSide::Null),
    ];
    Hostile::new(Console::new("fuzz", ports).expect("host resources"))
}

thread_local! {
    static HOSTILE: RefCell<Hostile<Console>> = RefCell::new(hostile());
}

/// A control message.
fn request(byte: &mut dyn FnMut() -> u8) -> Vec<u8> {
    vec![
        byte() % 4,
        0,
        0,
        byte() & 0x80,
        byte() % 9,
        0,
        byte() & 1,
        0,
    ]
}

fuzz_target!(|input: &[u8]| {
    HOSTILE.with_borrow_mut(|hostile| hostile.play(input, request));
});
