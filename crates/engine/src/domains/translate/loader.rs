//! `<bootloader>`: the kernel that the guest's own boot loader would start, read from its disk.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cenote_image::{CacheMode, Image};
use cenote_model::domain::DiskDevice;
use cenote_vmm::boot::Protocol;
use cenote_vmm::disk::{Disk, DiskOptions};
use cenote_vmm::machine::{BootDescription, FileSource};

use super::Translation;
use crate::bootloader::{self, Loaded};
use crate::domains::error::Error as DomainError;

/// Where the monitor finds what was read, in the run directory.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// A disk of the guest, open for reading.
#[derive(Clone)]
struct GuestDisk(Image);

impl bootloader::Disk for GuestDisk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, to: &mut [u8], at: u64) -> Result<(), String> {
        self.0.read_at(to, at).map_err(|error| error.to_string())
    }
}

impl Translation<'_> {
    /// Whether a kernel is booted without firmware, the document's or the disk's.
    pub(super) fn is_direct(&self) -> bool {
        self.document.os.is_direct_kernel() || self.document.bootloader.is_some()
    }

    /// Reads what the boot loader on the first disk would start.
    ///
    /// # Errors
    /// There is no disk, or none of a kind that can be read; the reason is in the error.
    pub(super) fn loaded(&self) -> Result<Loaded, DomainError> {
        if self.document.os.is_direct_kernel() {
            let text = "a kernel is named as well (os/kernel); take one of the two out";
            return Err(self.lacks("bootloader", text));
        }
        let disks = self.document.devices.disks.iter();
        let disks = disks.filter(|disk| disk.device == DiskDevice::Disk);
        let turn = |disk: &&cenote_model::domain::Disk| {
            disk.boot.as_ref().map_or(u32::MAX, |boot| boot.order)
        };
        let Some(disk) = disks.min_by_key(turn) else {
            return Err(self.lacks("bootloader", "there is no disk to boot from"));
        };
        let name = &disk.target.dev;
        let failed = |reason: String| DomainError::ComponentMissing {
            domain: self.document.name.to_string(),
            component: format!("what the boot loader on disk '{name}' would start: {reason}"),
            remedy: format!(
                "take <bootloader> out, so that firmware starts what the disk has: cenote edit {}",
                self.document.name
            ),
        };
        let layers = self.chain_of(name)?;
        let opened = layers.iter().map(|layer| layer.open(false));
        let layers = opened
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed(error.to_string()))?;
        // Only read, and before the monitor has it; who else has it was looked at.
        let options = DiskOptions {
            read_only: true,
            cache: CacheMode::Writeback,
            flushed_by_user: false,
            lock: false,
        };
        let disk = Disk::open(layers, options).map_err(|error| failed(error.to_string()))?;
        let loaded = bootloader::load(&GuestDisk(disk.image().clone()));
        let loaded = loaded.map_err(|error| failed(error.to_string()))?;
        self.note(
            "bootloader",
            &format!("disk '{name}' starts '{}'", loaded.title),
        );
        Ok(loaded)
    }
}

impl Loaded {
    /// How the monitor starts it, from the run directory.
    pub(super) fn description(&self) -> BootDescription {
        let initrd = self.initrd.as_ref().map(|_| INITRD);
        BootDescription::Kernel {
            image: FileSource::Path(PathBuf::from(KERNEL)),
            initrd: initrd.map(|name| FileSource::Path(PathBuf::from(name))),
            command_line: self.command_line.clone(),
            protocol: Protocol::Auto,
        }
    }

    /// Removes what [`Self::write`] wrote; what stays only costs room.
    pub(crate) fn remove(&self, run_dir: &Path) {
        for name in [KERNEL, INITRD] {
            let _ = std::fs::remove_file(run_dir.join(name));
        }
    }

    /// Writes the files into the run directory.
    ///
    /// # Errors
    /// What the system said, with the path.
    pub(crate) fn write(&self, run_dir: &Path) -> Result<(), String> {
        let files = [(KERNEL, Some(&self.kernel)), (INITRD, self.initrd.as_ref())];
        for (name, content) in files {
            let path = run_dir.join(name);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            if let Some(content) = content {
                options
                    .open(&path)
                    .and_then(|mut file| file.write_all(content))
                    .map_err(|error| format!("'{}': {error}", path.display()))?;
            }
        }
        Ok(())
    }
}
