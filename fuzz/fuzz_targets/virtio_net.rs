//! A hostile driver of the network device, with a network that sends every frame back.
#![no_main]

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use cenote_fuzz::virtio::Hostile;
use cenote_vmm::virtio::net::{Link, Net, NetOptions};
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

/// The other end of a link. Frames for which there is no room are lost.
fn echo(theirs: OwnedFd) {
    let mut buffer = vec![0; 70_000];
    while let Ok((_, length @ 1..)) = recv(&theirs, &mut buffer[..], RecvFlags::empty()) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = send(&theirs, &buffer[..length.min(70_000)], flags);
    }
}

fn link() -> Link {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, theirs) = pair.expect("sockets");
    std::thread::spawn(move || echo(theirs));
    Link::frames(ours).expect("a socket of the right kind")
}

fn hostile() -> Hostile<Net> {
    let options = NetOptions {
        mac: [0x52, 0x54, 0, 0, 0, 7],
        mtu: Some(1400),
        link_up: true,
        links: vec![link(), link(), link()],
    };
    Hostile::new(Net::new("fuzz", options, Box::new(|| {})).expect("host resources"))
}

thread_local! {
    static HOSTILE: RefCell<Hostile<Net>> = RefCell::new(hostile());
}

/// A command for the control queue, or a packet with its header.
fn request(byte: &mut dyn FnMut() -> u8) -> Vec<u8> {
    let kind = byte();
    if kind & 1 == 0 {
        let mut bytes = vec![byte() % 6, byte() % 6];
        bytes.extend((0..kind >> 3).map(|_| byte()));
        return bytes;
    }
    let mut bytes: Vec<u8> = vec![0; 12];
    bytes[0] = byte();
    bytes[1] = byte() % 6;
    bytes.extend([0x52, 0x54, 0, 0, 0, 7 + (byte() & 1)]);
    bytes.extend((0..kind >> 2).map(|_| byte()));
    bytes
}

fuzz_target!(|input: &[u8]| {
    HOSTILE.with_borrow_mut(|hostile| hostile.play(input, request));
});
