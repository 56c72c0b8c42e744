//! The user-mode network of `cenote-net` behind a guest's network card.

use super::Guest;
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Child, Command, Stdio},
};

/// The card's address, also QEMU's first.
pub(crate) const MAC: &str = "52:54:00:12:34:56";

/// A running network process.
pub(crate) struct Network {
    child: Child,
    /// The card's end; programs that are started inherit it.
    _frames: OwnedFd,
}

impl Network {
    /// Starts the network for `guest` with these further settings, and gives the guest a card in
    /// it that boots at its turn.
    pub(crate) fn start(guest: &mut Guest, settings: Value, boot_index: u32) -> Self {
        let kind = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (frames, theirs) = socketpair(AddressFamily::UNIX, kind.0, kind.1, None).unwrap();
        let mut description = json!({"version": 1, "monitor": theirs.as_raw_fd(), "mac": MAC});
        for (name, value) in settings.as_object().unwrap() {
            description[name] = value.clone();
        }
        let folder = guest.folder.path();
        let file = folder.join("network.json");
        std::fs::write(&file, description.to_string()).unwrap();
        fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
        let child = Command::new("cenote-net")
            .arg("--network")
            .arg(file)
            .stdin(Stdio::null())
            .stderr(File::create(folder.join("network-messages")).unwrap())
            .spawn()
            .expect("the network starts");
        drop(theirs);
        fcntl_setfd(&frames, FdFlags::empty()).unwrap();
        guest.description["nics"] = json!([{
            "name": "net0", "mac": MAC, "boot_index": boot_index,
            "backend": {"socket": {"fd": frames.as_raw_fd()}},
        }]);
        Self {
            child,
            _frames: frames,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
