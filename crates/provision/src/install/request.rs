//! What is asked for: virt-install's options, typed.

use std::path::PathBuf;

use cenote_model::domain::{Cpu, Firmware, MacAddress, TargetBus};
use cenote_model::volume::Format;
use cenote_model::{Memory, Name};
use thiserror::Error as ThisError;
use uuid::Uuid;

use super::Contents;
use crate::media::osinfo::Resources;

/// How the installer is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// `--location`: kernel and initrd are handed to the machine.
    Direct {
        /// The kernel's copy on the host.
        kernel: PathBuf,
        /// The initrd's copy, with what was put into it.
        initrd: PathBuf,
        /// Command line.
        command_line: String,
        /// The image that they came from, if packages are on it.
        media: Option<PathBuf>,
    },
    /// `--cdrom`: from an image or a device of the host.
    Cdrom {
        /// Path.
        media: PathBuf,
    },
    /// `--pxe`.
    Pxe,
    /// `--import`: the disk has a system.
    Import,
}

/// Where the disk stands in the boot order of an install from media or network (FEATURES 202
/// to 208).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Disk first: blank, it is fallen through once. One document for both phases.
    DiskFirst,
    /// Media or network first, in a domain that is persistent already; afterwards the disk.
    MediaFirst,
    /// A transient domain with media or network first, then a persistent one with the disk.
    TwoStep,
}

/// Why an order is refused.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum OrderError {
    /// The disk would be booted, and not the installer.
    #[error(
        "the disk cannot stand first in the boot order: it has {0}; leave the order to the \
         install, or wipe the disk"
    )]
    NotBlank(&'static str),
    /// There is no order to choose.
    #[error("the boot order is chosen for installs from media and network alone")]
    NoChoice,
}

/// The order of an install: what the user chose where it is safe, else two steps.
///
/// # Errors
/// [`OrderError`].
pub fn choose_order(
    method: &Method,
    disk: Contents,
    chosen: Option<Order>,
) -> Result<Order, OrderError> {
    match (method, chosen) {
        (_, None | Some(Order::TwoStep)) => Ok(Order::TwoStep),
        (Method::Direct { .. } | Method::Import, Some(_)) => Err(OrderError::NoChoice),
        (_, Some(Order::MediaFirst)) => Ok(Order::MediaFirst),
        (_, Some(Order::DiskFirst)) => match disk {
            Contents::Blank => Ok(Order::DiskFirst),
            Contents::Bootable(what) | Contents::Data(what) => Err(OrderError::NotBlank(what)),
        },
    }
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file.
    File(PathBuf),
    /// A block device.
    Block(PathBuf),
    /// A volume of a pool.
    Volume {
        /// The pool.
        pool: Name,
        /// The volume.
        volume: Name,
    },
}

/// `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Where its bytes are.
    pub source: DiskSource,
    /// Their format; never guessed.
    pub format: Format,
    /// Bus.
    pub bus: TargetBus,
}

/// A CD-ROM drive that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Image in it.
    pub media: Option<PathBuf>,
}

/// What a network card is joined to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkSource {
    /// The user-mode network.
    User,
    /// A network of the node.
    Network(String),
    /// A bridge of the host.
    Bridge(String),
}

/// `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// What it is joined to.
    pub source: NetworkSource,
    /// Hardware address, the same in both phases.
    pub mac: MacAddress,
    /// Model.
    pub model: String,
}

/// `--graphics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Display {
    /// None: the serial line alone.
    None,
    /// VNC.
    Vnc {
        /// Address to listen on; the loopback one if absent.
        listen: Option<String>,
        /// Port; one that is free if absent.
        port: Option<u16>,
    },
}

/// Files of the host that phase one writes what the guest says to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstallPaths {
    /// The serial line's.
    pub serial_log: Option<PathBuf>,
    /// The port that Anaconda writes its log to by itself.
    pub installer_log: Option<PathBuf>,
    /// The port for reports of success and failure.
    pub marker: Option<PathBuf>,
}

/// What is asked for. Identity is the caller's to give, so that both phases have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Name.
    pub name: Name,
    /// Identity.
    pub uuid: Uuid,
    /// One line for people.
    pub title: Option<String>,
    /// More lines.
    pub description: Option<String>,
    /// libosinfo's id of the system.
    pub osinfo: Option<String>,
    /// Memory.
    pub memory: Memory,
    /// Memory in phase one; see [`install_memory`].
    pub install_memory: Memory,
    /// Number of processors.
    pub vcpus: u32,
    /// Processor model.
    pub cpu: Option<Cpu>,
    /// Firmware; the machine's BIOS if absent.
    pub firmware: Option<Firmware>,
    /// How the installer is booted.
    pub method: Method,
    /// Where the disk stands in the boot order.
    pub order: Order,
    /// Disks; the first is booted.
    pub disks: Vec<Disk>,
    /// Drives that stay.
    pub drives: Vec<Drive>,
    /// Network cards.
    pub networks: Vec<Network>,
    /// Screen.
    pub display: Display,
    /// Image with the answer file, for phase one.
    pub seed: Option<PathBuf>,
    /// SMBIOS serial number by which cloud-init finds its server, for phase one.
    pub smbios_serial: Option<String>,
    /// Where phase one writes what the guest says.
    pub paths: InstallPaths,
    /// `--transient`: the domain is not defined, and is gone when it stops.
    pub transient: bool,
    /// `--noreboot`: phase two is not started.
    pub noreboot: bool,
}

impl Request {
    /// A request with one processor, two steps, and nothing but a name and a method.
    pub fn new(name: Name, uuid: Uuid, memory: Memory, method: Method) -> Self {
        Self {
            name,
            uuid,
            title: None,
            description: None,
            osinfo: None,
            memory,
            install_memory: memory,
            vcpus: 1,
            cpu: None,
            firmware: None,
            method,
            order: Order::TwoStep,
            disks: Vec::new(),
            drives: Vec::new(),
            networks: Vec::new(),
            display: Display::None,
            seed: None,
            smbios_serial: None,
            paths: InstallPaths::default(),
            transient: false,
            noreboot: false,
        }
    }
}

/// Why a request cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum RequestError {
    /// PXE without a card.
    #[error("an install from the network needs a network card; add --network")]
    NoNetwork,
    /// Nothing to install on.
    #[error("an install needs a disk; add --disk")]
    NoDisk,
    /// More drives or disks on a bus than the machine has places for.
    #[error("the bus {bus} has no place for a drive more; it has {limit}")]
    BusFull {
        /// The bus.
        bus: TargetBus,
        /// Its places.
        limit: u32,
    },
    /// A path that a document cannot hold.
    #[error("{}: a path of UTF-8 without control characters is expected", .0.display())]
    Path(PathBuf),
    /// There is one phase.
    #[error("this install has no phase {0}")]
    NoPhase(u8),
    /// Options that exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
    /// The document is refused.
    #[error(transparent)]
    Document(#[from] cenote_model::Error),
}

/// Memory of phase one, and what to tell about it: what the user says, else what the domain
/// has, raised to what such an installer needs.
pub fn install_memory(
    memory: Memory,
    chosen: Option<Memory>,
    needs: Resources,
) -> (Memory, Option<String>) {
    let need = needs.network_install_memory.or(needs.minimum_memory);
    let need = need.map(Memory::from_bytes);
    let mib = |memory: Memory| memory.kib / 1024;
    match (chosen, need) {
        (Some(chosen), Some(need)) if chosen < need => {
            let text = format!(
                "{} MiB is less than the {} MiB that this system's installer needs",
                mib(chosen),
                mib(need)
            );
            (chosen, Some(text))
        }
        (Some(chosen), _) => (chosen, None),
        (None, Some(need)) if memory < need => {
            let text = format!(
                "the installer gets {} MiB, which it needs; the domain then has {} MiB",
                mib(need),
                mib(memory)
            );
            (need, Some(text))
        }
        (None, _) => (memory, None),
    }
}
