//! The machine description: JSON, complete, strict.
//!
//! Unknown fields are refused. Files are named by path or given as open descriptors; a sandboxed
//! monitor is given descriptors.

use super::drives::{DisplayDescription, DriveDescription, DriveDescriptions};
use super::nics::{self, NicDescription, NicDescriptionError};
use super::{
    disks::{self, DiskDescription, DiskDescriptionError},
    ports::{self, PortDescription, PortError},
};
use crate::{
    boot::Protocol,
    firmware::{self, Product, ProductError},
    kvm::CpuidMask,
    memory::{MemoryError, MemoryLayout},
    sandbox::User,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::fd::{BorrowedFd, IntoRawFd as _, RawFd},
    path::{Path, PathBuf},
};

/// The version of the description's shape.
pub const VERSION: u32 = 1;
/// The most vCPUs that a machine can have.
pub const MOST_VCPUS: u8 = 32;
/// The largest description that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version of the description's shape: 1.
    pub version: u32,
    /// Number of virtual processors, 1 to 32.
    pub vcpus: u8,
    /// Memory in bytes, a multiple of 4096.
    pub memory: u64,
    /// The processors.
    #[serde(default)]
    pub cpu: CpuDescription,
    /// What to start.
    pub boot: BootDescription,
    /// Who the machine says it is (SMBIOS); told by firmware only.
    #[serde(default)]
    pub product: Option<Product>,
    /// COM1, if the machine is to have it.
    #[serde(default)]
    pub serial: Option<SerialDescription>,
    /// The debug console at port 0x402, if the machine is to have it.
    #[serde(default)]
    pub debug_console: Option<SerialDescription>,
    /// IDE drives; the machine has an IDE controller if it has any.
    #[serde(default)]
    pub ide: DriveDescriptions,
    /// The display, if the machine is to have it.
    #[serde(default)]
    pub display: Option<DisplayDescription>,
    /// Disks, in the order of their slots unless these are given.
    #[serde(default)]
    pub disks: Vec<DiskDescription>,
    /// Ports of a virtio console, at most 31.
    #[serde(default)]
    pub ports: Vec<PortDescription>,
    /// Whether the guest is given random numbers of the host's.
    #[serde(default)]
    pub rng: bool,
    /// Network cards, in the order of their slots unless these are given.
    #[serde(default)]
    pub nics: Vec<NicDescription>,
    /// Whether the guest can report a crash through pvpanic.
    #[serde(default = "yes")]
    pub pvpanic: bool,
    /// Seconds by which the real-time clock is ahead of UTC.
    #[serde(default)]
    pub clock_offset: i64,
    /// What a reset by the guest leads to.
    #[serde(default)]
    pub on_reset: OnReset,
    /// What a triple fault leads to.
    #[serde(default)]
    pub on_triple_fault: OnTripleFault,
    /// Whether a host without virtualization extensions may run this guest in KVM's emulator.
    #[serde(default)]
    pub allow_emulation: bool,
    /// Who the monitor becomes when root starts it; `nobody` and `nogroup` unless given.
    #[serde(default)]
    pub user: Option<User>,
    /// The control socket, if there is to be one.
    #[serde(default)]
    pub control: Option<Place>,
    /// Where to write the exit report, if anywhere.
    #[serde(default)]
    pub exit_report: Option<Place>,
}

fn yes() -> bool {
    true
}

/// Processors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuDescription {
    /// The model.
    #[serde(default)]
    pub model: CpuModel,
    /// Features that the guest is not to see.
    #[serde(default)]
    pub masks: Vec<CpuidMask>,
}

/// Which processor the guest sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// The host's, as far as KVM can show it to a guest.
    #[default]
    Host,
}

/// How the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BootDescription {
    /// A kernel, without firmware.
    Kernel {
        /// bzImage or ELF.
        image: FileSource,
        /// Initial RAM disk.
        #[serde(default)]
        initrd: Option<FileSource>,
        /// The command line, passed on exactly.
        #[serde(default)]
        command_line: String,
        /// How to enter the kernel.
        #[serde(default)]
        protocol: Protocol,
    },
    /// Firmware, which looks for something to boot on the machine's devices.
    Firmware(FirmwareDescription),
    /// 16-bit code, loaded at 0x10000 and entered at its first byte; for fixture guests.
    RealMode {
        /// The code, at most 512 KiB.
        image: FileSource,
    },
}

/// Firmware and what it is to do. All may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareDescription {
    /// The firmware; SeaBIOS where distributions put it unless given.
    #[serde(default)]
    pub image: Option<FileSource>,
    /// For how long to offer the boot menu, in milliseconds; it is not offered without.
    #[serde(default)]
    pub menu: Option<u32>,
    /// Whether only devices with a `boot_index` are booted from.
    #[serde(default)]
    pub only_listed: bool,
    /// For how long to wait before a new try when nothing boots, in milliseconds; -1 is for ever.
    #[serde(default)]
    pub fail_wait: Option<i32>,
    /// Whether the firmware's text goes to COM1 too.
    #[serde(default)]
    pub serial_console: bool,
}

impl FirmwareDescription {
    /// Where the firmware is.
    ///
    /// # Errors
    /// [`DescriptionError::NoFirmware`] if it is not named and not found.
    pub fn source(&self) -> Result<FileSource, DescriptionError> {
        match &self.image {
            Some(image) => Ok(image.clone()),
            None => firmware::locate()
                .firmware
                .map(FileSource::Path)
                .ok_or(DescriptionError::NoFirmware),
        }
    }
}

/// A file by path or as an open descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSource {
    /// A path.
    Path(PathBuf),
    /// The number of a descriptor that the monitor has inherited.
    Fd(RawFd),
}

/// Where the monitor puts something of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// At a path.
    Path(PathBuf),
    /// At an inherited descriptor.
    Descriptor {
        /// Its number.
        fd: RawFd,
    },
}

impl Place {
    /// Opens it for writing, emptied. `what` says what for.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub fn create(&self, what: &'static str) -> Result<File, DescriptionError> {
        match self {
            Self::Path(path) => File::create(path).map_err(|source| DescriptionError::Open {
                what,
                path: path.clone(),
                source,
            }),
            Self::Descriptor { fd } => FileSource::Fd(*fd).open(what),
        }
    }
}

/// A device that sends and receives characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialDescription {
    /// The host's side.
    pub backend: CharDevice,
}

/// The host's side of a character device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CharDevice {
    /// Output is lost, there is no input.
    Null,
    /// Standard output and standard input.
    Stdio,
    /// Output goes to a file, there is no input.
    File(FileSource),
}

/// What a reset leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// The machine starts again.
    #[default]
    Restart,
    /// The monitor exits with the cause `guest-reset`.
    Exit,
}

/// What a triple fault leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTripleFault {
    /// The monitor exits with the cause `triple-fault`.
    #[default]
    Exit,
    /// The same as a reset, as on a PC's board.
    Reset,
}

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The file cannot be read.
    #[error("machine description {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("machine description {path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        source: serde_json::Error,
    },
    /// The version is not known.
    #[error("the machine description has version {0}, this monitor reads version {VERSION}")]
    Version(u32),
    /// The number of vCPUs is out of range.
    #[error("{0} vCPUs are impossible: give 1 to {MOST_VCPUS}")]
    Vcpus(u8),
    /// The memory is out of range.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What the machine says of itself cannot be told.
    #[error(transparent)]
    Product(#[from] ProductError),
    /// The machine says something of itself that nobody would tell the guest.
    #[error("'product' is told by firmware: leave it out, or boot firmware")]
    ProductWithoutFirmware,
    /// A drive cannot be had.
    #[error("{0}")]
    Drive(String),
    /// The display's option ROM is not installed.
    #[error(
        "no option ROM for the display was found on this host: install the package 'seabios', or name a file in the description"
    )]
    NoDisplayRom,
    /// iPXE is not installed.
    #[error(
        "no option ROM for network cards was found on this host: install the package 'ipxe-qemu', or name a file in the description"
    )]
    NoNetworkRom,
    /// Two devices have one turn at booting.
    #[error("two devices have the boot index {0}: give each its own")]
    BootIndex(u32),
    /// The terminal is wanted for firmware's text but there is no serial port.
    #[error("'serial_console' needs a serial port: add 'serial'")]
    SerialConsole,
    /// No firmware is installed.
    #[error(
        "no firmware was found on this host: install the package 'seabios', or name a file in the description"
    )]
    NoFirmware,
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(Box<DiskDescriptionError>),
    /// A console port cannot be used.
    #[error(transparent)]
    Port(Box<PortError>),
    /// A network card cannot be used.
    #[error(transparent)]
    Nic(#[from] Box<NicDescriptionError>),
    /// Two devices want the terminal.
    #[error("only one device can have 'stdio': give the debug console a file")]
    StdioTwice,
    /// A file cannot be opened.
    #[error("{what} {path} cannot be opened")]
    Open {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor is not open.
    #[error("{what}: descriptor {fd} is not open")]
    Descriptor {
        /// What the file is for.
        what: &'static str,
        /// Its number.
        fd: RawFd,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Description {
    /// Reads and checks a description.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn read(path: &Path) -> Result<Self, DescriptionError> {
        let read = |source| DescriptionError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST), &mut text).map_err(read)?;
        let description: Self =
            serde_json::from_slice(&text).map_err(|source| DescriptionError::Syntax {
                path: path.to_owned(),
                source,
            })?;
        description.check()?;
        Ok(description)
    }

    /// Checks what the shape does not say.
    ///
    /// # Errors
    /// [`DescriptionError`].
    pub fn check(&self) -> Result<(), DescriptionError> {
        if self.version != VERSION {
            return Err(DescriptionError::Version(self.version));
        }
        if !(1..=MOST_VCPUS).contains(&self.vcpus) {
            return Err(DescriptionError::Vcpus(self.vcpus));
        }
        MemoryLayout::new(self.memory)?;
        if let Some(product) = &self.product {
            product.check()?;
        }
        match &self.boot {
            BootDescription::Firmware(firmware)
                if firmware.serial_console && self.serial.is_none() =>
            {
                return Err(DescriptionError::SerialConsole);
            }
            BootDescription::Firmware(_) => {}
            _ if self.product.is_some() => return Err(DescriptionError::ProductWithoutFirmware),
            _ => {}
        }
        for (position, drive) in &self.ide {
            drive
                .check(*position)
                .map_err(|error| DescriptionError::Drive(error.to_string()))?;
        }
        self.check_boot_indexes()?;
        disks::check(&self.disks).map_err(|error| DescriptionError::Disk(Box::new(error)))?;
        ports::check(&self.ports).map_err(|error| DescriptionError::Port(Box::new(error)))?;
        nics::check(&self.nics).map_err(Box::new)?;
        let on_terminal = |device: &Option<SerialDescription>| matches!(device, Some(device) if device.backend == CharDevice::Stdio);
        if on_terminal(&self.serial) && on_terminal(&self.debug_console) {
            return Err(DescriptionError::StdioTwice);
        }
        Ok(())
    }
}

impl Description {
    /// Opens every file that is named by a path and puts its descriptor in the path's place. What
    /// is opened stays open for as long as the process lives: a sandboxed monitor can open nothing
    /// by name, and a reset starts from the same files again.
    ///
    /// # Errors
    /// [`DescriptionError::Open`].
    pub fn open_files(&mut self) -> Result<(), DescriptionError> {
        match &mut self.boot {
            BootDescription::Kernel { image, initrd, .. } => {
                image.keep_open("kernel")?;
                if let Some(initrd) = initrd {
                    initrd.keep_open("initrd")?;
                }
            }
            BootDescription::Firmware(firmware) => {
                let mut image = firmware.source()?;
                image.keep_open("firmware")?;
                firmware.image = Some(image);
            }
            BootDescription::RealMode { image } => image.keep_open("real-mode image")?,
        }
        for drive in self.ide.values_mut() {
            drive.keep_open()?;
        }
        let with_firmware = matches!(self.boot, BootDescription::Firmware(_));
        if let Some(display) = &mut self.display
            && let Some(mut rom) = display.source(with_firmware)?
        {
            rom.keep_open("option ROM")?;
            display.rom = Some(rom);
        }
        for disk in &mut self.disks {
            disk.keep_open()?;
        }
        for nic in &mut self.nics {
            if let Some(mut rom) = nic.rom_source(with_firmware)? {
                rom.keep_open("option ROM")?;
                nic.rom = Some(rom);
            }
        }
        for port in &mut self.ports {
            port.keep_open()
                .map_err(|error| DescriptionError::Port(Box::new(error)))?;
        }
        for device in [&mut self.serial, &mut self.debug_console] {
            if let Some(SerialDescription {
                backend: CharDevice::File(file),
            }) = device
            {
                file.keep_created("console file")?;
            }
        }
        Ok(())
    }
}

impl Description {
    /// The turns of all devices at booting.
    fn boot_indexes(&self) -> impl Iterator<Item = u32> {
        let drives = self.ide.values().filter_map(DriveDescription::boot_index);
        let disks = self.disks.iter().filter_map(|disk| disk.boot_index);
        let nics = self.nics.iter().filter_map(|nic| nic.boot_index);
        drives.chain(disks).chain(nics)
    }

    fn check_boot_indexes(&self) -> Result<(), DescriptionError> {
        let mut seen = std::collections::BTreeSet::new();
        let mut indexes = self.boot_indexes();
        match indexes.find(|index| !seen.insert(*index)) {
            Some(index) => Err(DescriptionError::BootIndex(index)),
            None => Ok(()),
        }
    }
}

impl FileSource {
    /// Opens a path for reading and becomes its descriptor.
    pub(super) fn keep_open(&mut self, what: &'static str) -> Result<(), DescriptionError> {
        self.keep_open_with(what, File::options().read(true))
    }

    /// Opens a path and becomes its descriptor.
    pub(super) fn keep_open_with(
        &mut self,
        what: &'static str,
        options: &std::fs::OpenOptions,
    ) -> Result<(), DescriptionError> {
        if matches!(self, Self::Path(_)) {
            *self = Self::Fd(self.open_with(what, options)?.into_raw_fd());
        }
        Ok(())
    }

    /// Opens a path for writing at the end and becomes its descriptor.
    fn keep_created(&mut self, what: &'static str) -> Result<(), DescriptionError> {
        if matches!(self, Self::Path(_)) {
            *self = Self::Fd(self.create(what)?.into_raw_fd());
        }
        Ok(())
    }

    /// Opens for reading.
    ///
    /// # Errors
    /// [`DescriptionError::Open`] or [`DescriptionError::Descriptor`]; `what` says what the file
    /// is for.
    pub fn open(&self, what: &'static str) -> Result<File, DescriptionError> {
        self.open_with(what, File::options().read(true))
    }

    /// Opens for writing at the end, making the file if need be.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub fn create(&self, what: &'static str) -> Result<File, DescriptionError> {
        self.open_with(what, File::options().append(true).create(true))
    }

    pub(super) fn open_with(
        &self,
        what: &'static str,
        options: &std::fs::OpenOptions,
    ) -> Result<File, DescriptionError> {
        match self {
            Self::Path(path) => options.open(path).map_err(|source| DescriptionError::Open {
                what,
                path: path.clone(),
                source,
            }),
            Self::Fd(fd) => duplicate(*fd).map_err(|source| DescriptionError::Descriptor {
                what,
                fd: *fd,
                source,
            }),
        }
    }
}

/// A duplicate of an inherited descriptor, so that a description may name one twice and naming a
/// closed one is an error, not a surprise.
#[allow(unsafe_code)] // Descriptors that were inherited are known by number only.
fn duplicate(fd: RawFd) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is only passed to fcntl, which checks it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(File::from(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{
        "version": 1, "vcpus": 1, "memory": 268435456,
        "boot": {"kernel": {"image": {"path": "/boot/vmlinuz"}, "command_line": "console=ttyS0"}},
        "serial": {"backend": "stdio"}
    }"#;

    fn parse(text: &str) -> Result<Description, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_small_description_is_enough() {
        let description = parse(SMALL).unwrap();
        description.check().unwrap();
        assert!(description.pvpanic);
        let again = serde_json::to_string(&description).unwrap();
        assert_eq!(parse(&again).unwrap(), description);
    }

    #[test]
    fn unknown_fields_are_refused_everywhere() {
        for (from, to) in [
            (r#""vcpus""#, r#""color": 1, "vcpus""#),
            (r#""command_line""#, r#""color": 1, "command_line""#),
            (r#""backend""#, r#""color": 1, "backend""#),
            (r#""stdio""#, r#""stereo""#),
        ] {
            assert!(parse(&SMALL.replacen(from, to, 1)).is_err(), "{to}");
        }
    }

    #[test]
    fn impossible_machines_have_their_own_messages() {
        let base = parse(SMALL).unwrap();
        let message = |change: &dyn Fn(&mut Description)| {
            let mut description = base.clone();
            change(&mut description);
            description.check().unwrap_err().to_string()
        };
        assert!(message(&|d| d.vcpus = 0).contains("1 to 32"));
        assert!(message(&|d| d.vcpus = 33).contains("33 vCPUs"));
        assert!(message(&|d| d.memory = 5).contains("multiple of 4096"));
        assert!(message(&|d| d.version = 2).contains("version 2"));
        let firmware = |serial_console| {
            BootDescription::Firmware(FirmwareDescription {
                serial_console,
                ..FirmwareDescription::default()
            })
        };
        assert!(message(&|d| d.product = Some(Product::default())).contains("by firmware"));
        let without_serial = message(&|d| (d.boot, d.serial) = (firmware(true), None));
        assert!(without_serial.contains("serial port"));
        let uuid = Product {
            uuid: Some("x".to_owned()),
            ..Product::default()
        };
        let wrong = message(&|d| (d.boot, d.product) = (firmware(false), Some(uuid.clone())));
        assert!(wrong.contains("'x' is no UUID"));
        assert!(message(&|d| d.debug_console = d.serial.clone()).contains("stdio"));
    }

    #[test]
    fn opened_files_are_descriptors() {
        let mut missing = parse(SMALL).unwrap();
        missing.boot = BootDescription::RealMode {
            image: FileSource::Path("/nonexistent/image".into()),
        };
        let error = missing.open_files().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/image"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let [image, log] = ["image", "log"].map(|name| folder.path().join(name));
        std::fs::write(&image, "code").unwrap();
        let mut description = missing;
        description.boot = BootDescription::RealMode {
            image: FileSource::Path(image),
        };
        description.serial = Some(SerialDescription {
            backend: CharDevice::File(FileSource::Path(log.clone())),
        });
        description.open_files().unwrap();
        std::fs::remove_dir_all(folder.path()).unwrap();
        let BootDescription::RealMode { image } = &description.boot else {
            unreachable!("it was made above");
        };
        for _ in 0..2 {
            let mut text = [0; 4];
            let file = image.open("image").unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut text, 0).unwrap();
            assert_eq!(&text, b"code");
        }
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let missing = FileSource::Path("/nonexistent/kernel".into()).open("kernel");
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .contains("kernel /nonexistent/kernel")
        );
        let closed = FileSource::Fd(9999).open("initrd").unwrap_err();
        assert_eq!(closed.to_string(), "initrd: descriptor 9999 is not open");
        assert!(FileSource::Fd(-1).open("initrd").is_err());
    }
}
