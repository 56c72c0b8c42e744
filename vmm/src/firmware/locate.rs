//! Where distributions put firmware and option ROMs.

use std::path::{Path, PathBuf};

/// The usual firmware.
pub const FIRMWARE_FILE: &str = "bios-256k.bin";
/// The screen's option ROM.
const DISPLAY_FILE: &str = "vgabios-bochs-display.bin";
/// The network card's option ROM.
const NETWORK_FILE: &str = "pxe-virtio.rom";

const FIRMWARE_FOLDERS: [&str; 4] = [
    "/usr/share/seabios",
    "/usr/share/qemu",
    "/usr/share/qemu-kvm",
    "/usr/local/share/qemu",
];
/// Folders with iPXE's ROMs.
pub const OPTION_ROM_FOLDERS: [&str; 5] = [
    "/usr/lib/ipxe/qemu",
    "/usr/share/ipxe/qemu",
    "/usr/share/ipxe",
    "/usr/share/qemu",
    "/usr/local/share/qemu",
];

/// What was found on this host; nothing where it is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// SeaBIOS.
    pub firmware: Option<PathBuf>,
    /// SeaVGABIOS for the linear frame buffer.
    pub display: Option<PathBuf>,
    /// iPXE for virtio network cards.
    pub network: Option<PathBuf>,
}

/// Looks in the places that distributions use.
#[must_use]
pub fn locate() -> Found {
    locate_below(Path::new("/"))
}

fn locate_below(root: &Path) -> Found {
    let first = |folders: &[&str], file: &str| {
        folders
            .iter()
            .map(|folder| root.join(folder.trim_start_matches('/')).join(file))
            .find(|path| path.is_file())
    };
    Found {
        firmware: first(&FIRMWARE_FOLDERS, FIRMWARE_FILE),
        display: first(&FIRMWARE_FOLDERS, DISPLAY_FILE),
        network: first(&OPTION_ROM_FOLDERS, NETWORK_FILE),
    }
}

/// What to install so that `found` is complete: file and Debian's package.
#[must_use]
pub fn missing(found: &Found) -> Vec<(&'static str, &'static str)> {
    [
        (found.firmware.is_none(), FIRMWARE_FILE, "seabios"),
        (found.display.is_none(), DISPLAY_FILE, "seabios"),
        (found.network.is_none(), NETWORK_FILE, "ipxe-qemu"),
    ]
    .into_iter()
    .filter(|(gone, ..)| *gone)
    .map(|(_, file, package)| (file, package))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_wins_and_what_is_missing_has_a_package() {
        let root = tempfile::tempdir().unwrap();
        let nothing = locate_below(root.path());
        assert_eq!(nothing, Found::default());
        assert_eq!(missing(&nothing).len(), 3);
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(FIRMWARE_FILE), b"").unwrap();
        }
        let found = locate_below(root.path());
        let firmware = found.firmware.clone().unwrap();
        assert!(firmware.ends_with("usr/share/seabios/bios-256k.bin"));
        assert_eq!(
            missing(&found),
            [
                ("vgabios-bochs-display.bin", "seabios"),
                ("pxe-virtio.rom", "ipxe-qemu")
            ]
        );
    }
}
