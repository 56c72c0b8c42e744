//! The two documents of an install.

use std::collections::BTreeSet;
use std::path::Path;

use cenote_model::domain::{
    Apic, Boot, BootDevice, Channel, Character, CharacterKind, CharacterLog, CharacterSource,
    CharacterTarget, Disk as DiskElement, DiskDevice, DiskDriver, DiskKind,
    DiskSource as SourceElement, DiskTarget, Domain, Features, Graphics, GraphicsKind,
    GraphicsListen, Interface, InterfaceKind, InterfaceMac, InterfaceModel, InterfaceSource,
    LifecycleAction, Os, OsType, PowerManagement, Rng, RngBackend, SleepState, Smbios, SmbiosMode,
    Sysinfo, SysinfoBlock, SysinfoEntry, TargetBus, Vcpu, VcpuCount, Video, VideoModel,
};
use cenote_model::volume::Format;
use cenote_model::{Document, Element, Metadata, ReadOptions, YesNo};

use super::{
    Disk, DiskSource, Display, Drive, Method, Network, NetworkSource, Order, Request, RequestError,
};
use crate::answer::MARKER_PORT;

/// Name of the virtio port that Anaconda writes its log to if it is there.
const INSTALLER_LOG_PORT: &str = "org.fedoraproject.anaconda.log.0";
/// Drives and disks of the machine's two IDE channels.
const IDE_PLACES: u32 = 4;
const OTHER_PLACES: u32 = 26;

/// Which documents to print (`--print-xml`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Print {
    /// That of phase one.
    One,
    /// That of phase two.
    Two,
    /// All there are.
    All,
}

/// The documents of an install, and what is done with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phases {
    /// Phase one; none where the domain is there as soon as it is defined.
    pub one: Option<Domain>,
    /// Whether phase one is a transient domain.
    pub one_is_transient: bool,
    /// The domain as it stays.
    pub two: Domain,
    /// Whether it stays: false for `--transient`.
    pub two_is_persistent: bool,
    /// Whether it is started when phase one is done.
    pub start_two: bool,
}

impl Phases {
    /// The documents as text.
    ///
    /// # Errors
    /// [`RequestError::NoPhase`].
    pub fn print(&self, which: Print) -> Result<String, RequestError> {
        match (which, &self.one) {
            (Print::One, Some(one)) => Ok(one.to_xml()),
            (Print::One, None) | (Print::All, None) => Ok(self.two.to_xml()),
            (Print::Two, Some(_)) => Ok(self.two.to_xml()),
            (Print::Two, None) => Err(RequestError::NoPhase(2)),
            (Print::All, Some(one)) => Ok(format!("{}{}", one.to_xml(), self.two.to_xml())),
        }
    }
}

/// Makes the documents.
///
/// # Errors
/// [`RequestError`].
pub fn phases(request: &Request) -> Result<Phases, RequestError> {
    check(request)?;
    let two = stay(request)?;
    let one = match (&request.method, request.order) {
        // Nothing of phase one differs.
        (Method::Import, _) if !has_install_parts(request) => None,
        (Method::Cdrom { .. } | Method::Pxe, Order::DiskFirst) => {
            return disk_first(request, two);
        }
        _ => Some(install(request, &two)?),
    };
    Ok(Phases {
        one_is_transient: one.is_some() && request.order != Order::MediaFirst,
        one: one.map(read_back).transpose()?,
        two: read_back(two)?,
        two_is_persistent: !request.transient,
        start_two: !request.noreboot,
    })
}

/// One document for both phases: what the machine boots changes by itself.
fn disk_first(request: &Request, mut domain: Domain) -> Result<Phases, RequestError> {
    let second = match &request.method {
        Method::Cdrom { media } => {
            for disk in &mut domain.devices.disks {
                if disk.device == DiskDevice::Cdrom && disk.source.is_none() {
                    insert(disk, media)?;
                    break;
                }
            }
            BootDevice::Cdrom
        }
        _ => BootDevice::Network,
    };
    if request.seed.is_some() {
        return Err(RequestError::Conflict(
            "an answer file on media is taken away after the install, for which one document of \
             both phases leaves no room; choose another boot order",
        ));
    }
    domain.os.boot.push(boot(second));
    Ok(Phases {
        one: None,
        one_is_transient: false,
        two: read_back(domain)?,
        two_is_persistent: !request.transient,
        start_two: true,
    })
}

fn check(request: &Request) -> Result<(), RequestError> {
    if request.disks.is_empty() {
        return Err(RequestError::NoDisk);
    }
    if request.method == Method::Pxe && request.networks.is_empty() {
        return Err(RequestError::NoNetwork);
    }
    if request.transient && request.noreboot {
        return Err(RequestError::Conflict(
            "--transient with --noreboot would leave nothing: a transient domain is there while \
             it runs",
        ));
    }
    Ok(())
}

fn has_install_parts(request: &Request) -> bool {
    request.seed.is_some() || request.smbios_serial.is_some()
}

/// What a document says when it is read is what it means: defaults are filled in, and what
/// cannot be is refused.
fn read_back(domain: Domain) -> Result<Domain, RequestError> {
    let parsed = Domain::from_xml(&domain.to_xml(), &ReadOptions::default())?;
    Ok(parsed.document)
}

/// The domain as it stays: without kernel, initrd, command line and answer media, booting from
/// its disk.
fn stay(request: &Request) -> Result<Domain, RequestError> {
    let mut names = Names::default();
    let mut disks = Vec::new();
    for disk in &request.disks {
        disks.push(disk_element(disk, &mut names)?);
    }
    for drive in &request.drives {
        disks.push(drive_element(drive, &mut names)?);
    }
    // The drive that the install media were in stays, empty.
    let media = match &request.method {
        Method::Cdrom { .. } => true,
        Method::Direct { media, .. } => media.is_some(),
        Method::Pxe | Method::Import => false,
    };
    if media {
        disks.push(drive_element(&Drive { media: None }, &mut names)?);
    }
    let mut domain = Domain {
        name: request.name.clone(),
        uuid: Some(request.uuid),
        title: request.title.clone(),
        description: request.description.clone(),
        metadata: request.osinfo.as_deref().map(metadata),
        memory: request.memory,
        current_memory: Some(request.memory),
        vcpu: Vcpu {
            count: VcpuCount(request.vcpus),
            ..Vcpu::default()
        },
        cpu: request.cpu.clone(),
        os: Os {
            firmware: request.firmware,
            kind: OsType {
                arch: Some("x86_64".to_owned()),
                machine: Some("pc".to_owned()),
                ..OsType::default()
            },
            boot: vec![boot(BootDevice::Hd)],
            ..Os::default()
        },
        features: Some(Features {
            acpi: true,
            apic: Some(Apic::default()),
            ..Features::default()
        }),
        on_poweroff: LifecycleAction::Destroy,
        on_reboot: LifecycleAction::Restart,
        on_crash: LifecycleAction::Destroy,
        pm: Some(no_sleep()),
        ..Domain::default()
    };
    domain.devices.disks = disks;
    domain.devices.interfaces = request.networks.iter().map(interface).collect();
    domain.devices.serials = vec![Character {
        kind: CharacterKind::Pty,
        ..Character::default()
    }];
    domain.devices.rngs = vec![Rng {
        model: "virtio".to_owned(),
        backend: RngBackend {
            path: "/dev/urandom".to_owned(),
            ..RngBackend::default()
        },
        ..Rng::default()
    }];
    if let Display::Vnc { listen, port } = &request.display {
        domain.devices.graphics = vec![vnc(listen.as_deref(), *port)];
        domain.devices.videos = vec![Video {
            model: Some(VideoModel {
                kind: "vga".to_owned(),
                ..VideoModel::default()
            }),
            ..Video::default()
        }];
    }
    Ok(domain)
}

/// Phase one: the same domain with the installer, ending where its guest resets.
fn install(request: &Request, two: &Domain) -> Result<Domain, RequestError> {
    let mut domain = two.clone();
    domain.memory = request.install_memory;
    domain.current_memory = Some(request.install_memory);
    domain.on_reboot = LifecycleAction::Destroy;
    let mut names = Names::of(&domain);
    let media = match &request.method {
        Method::Direct {
            kernel,
            initrd,
            command_line,
            media,
        } => {
            domain.os.boot.clear();
            domain.os.kernel = Some(path_text(kernel)?);
            domain.os.initrd = Some(path_text(initrd)?);
            domain.os.cmdline = Some(command_line.clone());
            media.as_deref()
        }
        Method::Cdrom { media } => {
            domain.os.boot = vec![boot(BootDevice::Cdrom), boot(BootDevice::Hd)];
            Some(media.as_path())
        }
        Method::Pxe => {
            domain.os.boot = vec![boot(BootDevice::Network), boot(BootDevice::Hd)];
            None
        }
        Method::Import => None,
    };
    if let Some(media) = media {
        // The drive that stays empty afterwards is the last.
        let empty = domain.devices.disks.iter_mut().rev();
        if let Some(disk) = empty
            .into_iter()
            .find(|disk| disk.device == DiskDevice::Cdrom && disk.source.is_none())
        {
            insert(disk, media)?;
        }
    }
    if let Some(seed) = &request.seed {
        let drive = Drive {
            media: Some(seed.clone()),
        };
        domain
            .devices
            .disks
            .push(drive_element(&drive, &mut names)?);
    }
    if let Some(serial) = &request.smbios_serial {
        domain.os.smbios = Some(Smbios {
            mode: SmbiosMode::Sysinfo,
            ..Smbios::default()
        });
        domain.sysinfo.push(Sysinfo {
            system: Some(SysinfoBlock {
                entries: vec![SysinfoEntry {
                    name: Some("serial".to_owned()),
                    value: serial.clone(),
                    ..SysinfoEntry::default()
                }],
                ..SysinfoBlock::default()
            }),
            ..Sysinfo::default()
        });
    }
    logs(request, &mut domain)?;
    Ok(domain)
}

/// Where phase one writes what the guest says.
fn logs(request: &Request, domain: &mut Domain) -> Result<(), RequestError> {
    let paths = &request.paths;
    if let Some(path) = &paths.serial_log {
        let file = path_text(path)?;
        for serial in &mut domain.devices.serials {
            serial.log = Some(CharacterLog {
                file: file.clone(),
                ..CharacterLog::default()
            });
        }
    }
    let ports = [
        (INSTALLER_LOG_PORT, &paths.installer_log),
        (MARKER_PORT, &paths.marker),
    ];
    for (name, path) in ports {
        if let Some(path) = path {
            domain.devices.channels.push(Channel {
                kind: CharacterKind::File,
                source: Some(CharacterSource {
                    path: Some(path_text(path)?),
                    ..CharacterSource::default()
                }),
                target: CharacterTarget {
                    kind: Some("virtio".to_owned()),
                    name: Some(name.to_owned()),
                    ..CharacterTarget::default()
                },
                ..Channel::default()
            });
        }
    }
    Ok(())
}

fn boot(device: BootDevice) -> Boot {
    Boot {
        device,
        ..Boot::default()
    }
}

fn no_sleep() -> PowerManagement {
    let no = || {
        Some(SleepState {
            enabled: Some(YesNo::No),
            ..SleepState::default()
        })
    };
    PowerManagement {
        suspend_to_mem: no(),
        suspend_to_disk: no(),
        ..PowerManagement::default()
    }
}

/// What virt-install and its relatives note of the system.
fn metadata(id: &str) -> Metadata {
    let mut metadata = Metadata::default();
    let os = Element::new("libosinfo:os").with("id", id);
    metadata.replace(
        Element::new("libosinfo:libosinfo")
            .with(
                "xmlns:libosinfo",
                "http://libosinfo.org/xmlns/libvirt/domain/1.0",
            )
            .with_child(os),
    );
    metadata
}

fn interface(network: &Network) -> Interface {
    let (kind, source) = match &network.source {
        NetworkSource::User => (InterfaceKind::User, None),
        NetworkSource::Network(name) => (
            InterfaceKind::Network,
            Some(InterfaceSource {
                network: Some(name.clone()),
                ..InterfaceSource::default()
            }),
        ),
        NetworkSource::Bridge(name) => (
            InterfaceKind::Bridge,
            Some(InterfaceSource {
                bridge: Some(name.clone()),
                ..InterfaceSource::default()
            }),
        ),
    };
    Interface {
        kind,
        mac: Some(InterfaceMac {
            address: network.mac,
            ..InterfaceMac::default()
        }),
        source,
        model: Some(InterfaceModel {
            kind: network.model.clone(),
            ..InterfaceModel::default()
        }),
        ..Interface::default()
    }
}

fn vnc(listen: Option<&str>, port: Option<u16>) -> Graphics {
    let address = listen.unwrap_or("127.0.0.1");
    Graphics {
        kind: GraphicsKind::Vnc,
        port: Some(port.map_or(-1, i32::from)),
        autoport: Some(if port.is_none() {
            YesNo::Yes
        } else {
            YesNo::No
        }),
        listen: Some(address.to_owned()),
        listens: vec![GraphicsListen {
            kind: "address".to_owned(),
            address: Some(address.to_owned()),
            ..GraphicsListen::default()
        }],
        ..Graphics::default()
    }
}

fn disk_element(disk: &Disk, names: &mut Names) -> Result<DiskElement, RequestError> {
    let (kind, source) = match &disk.source {
        DiskSource::File(path) => (
            DiskKind::File,
            SourceElement {
                file: Some(path_text(path)?),
                ..SourceElement::default()
            },
        ),
        DiskSource::Block(path) => (
            DiskKind::Block,
            SourceElement {
                dev: Some(path_text(path)?),
                ..SourceElement::default()
            },
        ),
        DiskSource::Volume { pool, volume } => (
            DiskKind::Volume,
            SourceElement {
                pool: Some(pool.to_string()),
                volume: Some(volume.to_string()),
                ..SourceElement::default()
            },
        ),
    };
    Ok(DiskElement {
        kind,
        device: DiskDevice::Disk,
        driver: Some(driver(disk.format)),
        source: Some(source),
        target: names.target(disk.bus)?,
        ..DiskElement::default()
    })
}

fn driver(format: Format) -> DiskDriver {
    DiskDriver {
        name: Some("qemu".to_owned()),
        format: Some(format),
        ..DiskDriver::default()
    }
}

fn drive_element(drive: &Drive, names: &mut Names) -> Result<DiskElement, RequestError> {
    let mut element = DiskElement {
        device: DiskDevice::Cdrom,
        driver: Some(driver(Format::Raw)),
        target: names.target(TargetBus::Ide)?,
        readonly: true,
        ..DiskElement::default()
    };
    if let Some(media) = &drive.media {
        insert(&mut element, media)?;
    }
    Ok(element)
}

/// Puts an image, or a device of the host, into a drive.
fn insert(drive: &mut DiskElement, media: &Path) -> Result<(), RequestError> {
    let text = path_text(media)?;
    let mut source = SourceElement::default();
    if media.starts_with("/dev") {
        drive.kind = DiskKind::Block;
        source.dev = Some(text);
    } else {
        drive.kind = DiskKind::File;
        source.file = Some(text);
    }
    drive.source = Some(source);
    Ok(())
}

fn path_text(path: &Path) -> Result<String, RequestError> {
    path.to_str()
        .filter(|text| !text.contains(char::is_control) && !text.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| RequestError::Path(path.to_owned()))
}

/// Names of disks that are given.
#[derive(Default)]
struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    fn of(domain: &Domain) -> Self {
        let disks = domain.devices.disks.iter();
        Self {
            taken: disks.map(|disk| disk.target.dev.clone()).collect(),
        }
    }

    /// The first free name of a bus.
    fn target(&mut self, bus: TargetBus) -> Result<DiskTarget, RequestError> {
        let (prefix, limit) = match bus {
            TargetBus::Virtio => ("vd", OTHER_PLACES),
            TargetBus::Ide => ("hd", IDE_PLACES),
            _ => ("sd", OTHER_PLACES),
        };
        let letters = ('a'..='z').take(limit as usize);
        let name = letters
            .map(|letter| format!("{prefix}{letter}"))
            .find(|name| !self.taken.contains(name))
            .ok_or(RequestError::BusFull { bus, limit })?;
        self.taken.insert(name.clone());
        Ok(DiskTarget {
            dev: name,
            bus: Some(bus),
            ..DiskTarget::default()
        })
    }
}
