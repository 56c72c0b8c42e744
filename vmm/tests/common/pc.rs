//! QEMU's `pc`, the machine that ours is held against.

use super::{Guest, wait_for};
use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A running QEMU. Its files lie in the folder of the guest that it is compared with.
pub(crate) struct Pc {
    child: Child,
    serial: PathBuf,
    messages: PathBuf,
}

impl Pc {
    /// Starts QEMU with the memory of `guest`, SeaBIOS's text on the serial line, and these
    /// devices.
    pub(crate) fn start(guest: &Guest, devices: &[String]) -> Self {
        let folder = guest.folder.path();
        let serial = folder.join("pc.log");
        let messages = folder.join("pc.messages");
        let memory = guest.description["memory"].as_u64().unwrap() >> 20;
        let child = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "pc,accel=kvm,graphics=off", "-cpu", "host"])
            .args(["-smp", "1", "-m", &memory.to_string(), "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .args(devices)
            .stdin(Stdio::null())
            .stderr(File::create(&messages).unwrap())
            .spawn()
            .expect("QEMU starts");
        Self {
            child,
            serial,
            messages,
        }
    }

    /// What the guest has printed.
    pub(crate) fn output(&self) -> String {
        let bytes = std::fs::read(&self.serial).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the guest has printed when it has switched itself off, or printed all of `last`.
    pub(crate) fn until(mut self, last: &[&str]) -> String {
        wait_for("the end of QEMU's guest", || {
            let output = self.output();
            let printed = !last.is_empty() && last.iter().all(|last| output.contains(last));
            printed || self.child.try_wait().unwrap().is_some()
        });
        let messages = std::fs::read_to_string(&self.messages).unwrap_or_default();
        // A processor may lack what `host` brings; that is not what is compared.
        assert!(!messages.contains("error"), "{messages}");
        self.output()
    }
}

impl Drop for Pc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
