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

/// One file that firmware boots need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// What it is for, such as `network boot`.
    pub purpose: &'static str,
    /// Its name.
    pub file: &'static str,
    /// Debian's package of it.
    pub package: &'static str,
    /// Where it was found.
    pub found: Option<PathBuf>,
}

impl Found {
    /// Every file, found or not, with the package that brings it.
    #[must_use]
    pub fn components(self) -> [Component; 3] {
        let component = |purpose, file, package, found| Component {
            purpose,
            file,
            package,
            found,
        };
        [
            component("BIOS", FIRMWARE_FILE, "seabios", self.firmware),
            component("display", DISPLAY_FILE, "seabios", self.display),
            component("network boot", NETWORK_FILE, "ipxe-qemu", self.network),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_wins_and_what_is_missing_has_a_package() {
        let root = tempfile::tempdir().unwrap();
        let nothing = locate_below(root.path());
        assert_eq!(nothing, Found::default());
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(FIRMWARE_FILE), b"").unwrap();
        }
        let components = locate_below(root.path()).components();
        let firmware = components[0].found.as_ref().unwrap();
        assert!(firmware.ends_with("usr/share/seabios/bios-256k.bin"));
        let missing: Vec<_> = components
            .iter()
            .filter(|component| component.found.is_none())
            .map(|component| (component.file, component.package))
            .collect();
        assert_eq!(
            missing,
            [
                ("vgabios-bochs-display.bin", "seabios"),
                ("pxe-virtio.rom", "ipxe-qemu")
            ]
        );
    }
}
