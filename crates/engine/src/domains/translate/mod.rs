//! From a domain's document to a machine description.
//!
//! Each part of the document is put into the description, has no effect on a guest (the model
//! said so when the document was read, or a note does), or is refused here by name and place. A
//! part that the monitor gets later is added here and taken out of the refusals.

mod cards;
mod disks;
mod loader;
mod ports;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cenote_model::domain::{
    Address, AddressKind, BootDevice, Character, CharacterKind, ClockAdjustment, ClockBasis,
    ClockOffset, CpuFeaturePolicy, Domain, SmbiosMode, machine,
};
use cenote_model::{OnOff, YesNo};
use cenote_vmm::boot::Protocol;
use cenote_vmm::devices::ide::Position;
use cenote_vmm::firmware::{self, Product};
use cenote_vmm::machine::{
    BootDescription, CharDevice, CpuDescription, Description, DisplayDescription, FileSource,
    FirmwareDescription, LayerDescription, MOST_VCPUS, OnReset, OnTripleFault, Place,
    SerialDescription, VERSION,
};

pub(crate) use self::cards::Joined;
pub use self::cards::NetworkServices;
pub(crate) use self::ports::{clear_sockets, empty, name_sockets};
use super::error::Error as DomainError;
use crate::bootloader::Loaded;
use crate::node::Node;

/// Name of the monitor's control socket in the run directory.
pub(crate) const CONTROL_SOCKET: &str = "monitor.sock";
/// Name of the monitor's exit report there.
pub(crate) const EXIT_REPORT: &str = "exit.json";

/// For how long a boot menu is offered unless the document says it, in milliseconds.
const BOOT_MENU: u16 = 2500;

/// Memory is given in pages of this many bytes.
const PAGE: u64 = 4096;

/// Slots of the PCI bus that documents may give away; those below are the board's and the
/// display's.
const SLOTS: std::ops::RangeInclusive<u64> = 3..=31;

/// What a domain's machine is made from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    /// What the monitor is given. Its paths of sockets and reports are relative to the run
    /// directory, since paths of sockets are short.
    pub(crate) description: Description,
    /// What each network card is joined to.
    pub(crate) joined: Vec<Joined>,
    /// What was read from the guest's disk and is booted from the run directory.
    pub(crate) loaded: Option<Loaded>,
    /// Files that start empty.
    pub(crate) emptied: Vec<PathBuf>,
    /// The first serial port, where the supervisor has its other end.
    pub(crate) console: Option<Console>,
    /// What the user is to know.
    pub(crate) notes: Vec<String>,
}

/// A serial port that the supervisor reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Console {
    /// Files that what the guest says is written to, and whether each is added to.
    pub(crate) files: Vec<(PathBuf, bool)>,
}

/// What a translation is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// Where volumes are found.
    pub(crate) node: &'a Node,
    /// Whether a host without virtualization extensions will do.
    pub(crate) allow_emulation: bool,
    /// Whether images that others have open are refused here; else the monitor does it.
    pub(crate) check_use: bool,
    /// What the guest's network has beyond the document.
    pub(crate) services: &'a NetworkServices,
}

/// Makes the description of a domain's machine.
///
/// # Errors
/// [`DomainError::MachineLacks`] for the first part that cannot be honoured,
/// [`DomainError::ComponentMissing`] for the first file that is not there.
pub(crate) fn machine(document: &Domain, setting: Setting<'_>) -> Result<Machine, DomainError> {
    let mut translation = Translation::new(setting.node, document);
    translation.check_use = setting.check_use;
    if let Some(part) = machine::blockers(document).into_iter().next() {
        return Err(translation.lacks(&part.step, &part.text));
    }
    if !document.devices.parallels.is_empty() {
        return Err(translation.lacks("devices/parallel", "the machine has no parallel port"));
    }
    let (serial, console) = translation.serial()?;
    let (disks, ide) = translation.disks()?;
    let (nics, joined) = translation.cards(setting.services)?;
    let (ports, emptied) = translation.ports()?;
    let loaded = match document.bootloader {
        Some(_) => Some(translation.loaded()?),
        None => None,
    };
    let description = Description {
        version: VERSION,
        vcpus: translation.vcpus()?,
        memory: translation.memory()?,
        cpu: translation.cpu(),
        boot: match &loaded {
            Some(loaded) => loaded.description(),
            None => translation.boot(serial.is_some())?,
        },
        product: translation.product(),
        serial,
        debug_console: None,
        pvpanic: true,
        clock_offset: translation.clock_offset()?,
        // The supervisor decides, and records it.
        on_reset: OnReset::Exit,
        on_triple_fault: OnTripleFault::Exit,
        allow_emulation: setting.allow_emulation,
        user: None,
        ide,
        disks,
        nics,
        ports,
        rng: translation.rng(),
        display: translation.display()?,
        control: Some(Place::Path(PathBuf::from(CONTROL_SOCKET))),
        exit_report: Some(Place::Path(PathBuf::from(EXIT_REPORT))),
    };
    description
        .check()
        .map_err(|error| translation.lacks("devices", &error.to_string()))?;
    Ok(Machine {
        description,
        joined,
        loaded,
        emptied,
        console,
        notes: translation.notes.take(),
    })
}

/// Where a CD-ROM drive of a document is, and the disc in it.
///
/// # Errors
/// There is no such drive; the disc is not there.
pub(crate) fn disc(
    node: &Node,
    document: &Domain,
    target: &str,
) -> Result<(Position, Option<PathBuf>), DomainError> {
    Translation::new(node, document).drive_and_disc(target)
}

/// The images of a document's disk, top first.
///
/// # Errors
/// There is no such disk; an image is not there.
pub(crate) fn chain(
    node: &Node,
    document: &Domain,
    target: &str,
) -> Result<Vec<LayerDescription>, DomainError> {
    Translation::new(node, document).chain_of(target)
}

struct Translation<'a> {
    node: &'a Node,
    document: &'a Domain,
    check_use: bool,
    notes: RefCell<Vec<String>>,
    /// Slots that the document has given away.
    slots: BTreeSet<u8>,
}

impl<'a> Translation<'a> {
    fn new(node: &'a Node, document: &'a Domain) -> Self {
        Self {
            node,
            document,
            check_use: false,
            notes: RefCell::default(),
            slots: BTreeSet::new(),
        }
    }

    fn note(&self, place: &str, text: &str) {
        self.notes.borrow_mut().push(format!("{place}: {text}"));
    }

    /// The slot of an address, if it is one that devices can have here.
    fn slot(&mut self, place: &str, address: Option<&Address>) -> Option<u8> {
        let address = address.filter(|address| address.kind == AddressKind::Pci)?;
        let zero = |number: Option<u64>| number.unwrap_or(0) == 0;
        if !zero(address.bus.map(|n| n.0)) || !zero(address.domain.map(|n| n.0)) {
            // Other buses are PCI Express's, of which the model speaks.
            return None;
        }
        let slot = address.slot.map_or(0, |slot| slot.0);
        let slot = Some(slot)
            .filter(|slot| SLOTS.contains(slot) && zero(address.function.map(|n| n.0)))
            .and_then(|slot| u8::try_from(slot).ok())
            .filter(|slot| self.slots.insert(*slot));
        if slot.is_none() {
            self.note(place, "its PCI address is taken here; it gets another");
        }
        slot
    }
}

impl Translation<'_> {
    fn lacks(&self, place: &str, text: &str) -> DomainError {
        DomainError::MachineLacks {
            domain: self.document.name.to_string(),
            part: format!("{place}: {text}"),
        }
    }

    fn vcpus(&self) -> Result<u8, DomainError> {
        let count = self.document.vcpu.present();
        u8::try_from(count)
            .ok()
            .filter(|count| *count <= MOST_VCPUS)
            .ok_or_else(|| {
                let text = format!("{count} processors; the machine has at most {MOST_VCPUS}");
                self.lacks("vcpu", &text)
            })
    }

    /// Without a balloon the guest is given at once what one would leave to it.
    fn memory(&self) -> Result<u64, DomainError> {
        let document = self.document;
        let memory = document.current_memory.unwrap_or(document.memory);
        let rounded = memory
            .bytes()
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE));
        rounded.ok_or_else(|| self.lacks("memory", "more than a machine can have"))
    }

    fn cpu(&self) -> CpuDescription {
        let features = self.document.cpu.iter().flat_map(|cpu| &cpu.features);
        for feature in features {
            if matches!(
                feature.policy,
                Some(CpuFeaturePolicy::Disable | CpuFeaturePolicy::Forbid)
            ) {
                let text = format!(
                    "'{}' is not taken away; the guest sees the host's processor",
                    feature.name
                );
                self.note("cpu/feature", &text);
            }
        }
        CpuDescription::default()
    }

    fn boot(&self, has_serial: bool) -> Result<BootDescription, DomainError> {
        let os = &self.document.os;
        let Some(kernel) = &os.kernel else {
            return Ok(BootDescription::Firmware(self.firmware(has_serial)?));
        };
        let initrd = os.initrd.as_deref();
        Ok(BootDescription::Kernel {
            image: self.file("kernel", kernel)?,
            initrd: initrd.map(|path| self.file("initrd", path)).transpose()?,
            command_line: os.cmdline.clone().unwrap_or_default(),
            protocol: Protocol::Auto,
        })
    }

    fn firmware(&self, has_serial: bool) -> Result<FirmwareDescription, DomainError> {
        if firmware::locate().firmware.is_none() {
            return Err(DomainError::ComponentMissing {
                domain: self.document.name.to_string(),
                component: format!("the firmware {} is not installed", firmware::FIRMWARE_FILE),
                remedy: "install it (apt-get install seabios), or see what else is missing: \
                         cenote doctor"
                    .to_owned(),
            });
        }
        let from_network = self.boots_from_network();
        if from_network && firmware::locate().network.is_none() {
            return Err(DomainError::ComponentMissing {
                domain: self.document.name.to_string(),
                component: "the network cards' boot ROM (iPXE) is not installed".to_owned(),
                remedy: "install it (apt-get install ipxe-qemu), or see what else is missing: \
                         cenote doctor"
                    .to_owned(),
            });
        }
        let by_class = self.document.os.boot_devices();
        if !from_network
            && by_class
                .into_iter()
                .any(|class| class == BootDevice::Network)
        {
            let text = "network boot is left out: the domain has no network card";
            self.note("os/boot", text);
        }
        let os = &self.document.os;
        let menu = os
            .boot_menu
            .as_ref()
            .filter(|menu| menu.enable == YesNo::Yes);
        let bios = os.bios.as_ref();
        Ok(FirmwareDescription {
            image: None,
            menu: menu.map(|menu| u32::from(menu.timeout.unwrap_or(BOOT_MENU))),
            // As libvirt does: what has no turn is not booted from.
            only_listed: from_network || self.boots_from_disks(),
            fail_wait: bios.and_then(|bios| bios.reboot_timeout),
            serial_console: has_serial
                && bios.is_some_and(|bios| bios.use_serial == Some(YesNo::Yes)),
        })
    }

    /// Only firmware tells the guest who its machine is.
    fn product(&self) -> Option<Product> {
        let document = self.document;
        let smbios = document.os.smbios.as_ref().map(|smbios| smbios.mode);
        if self.is_direct() {
            if smbios == Some(SmbiosMode::Sysinfo) {
                let text = "firmware hands over these tables; a kernel booted directly has none";
                self.note("os/smbios", text);
            }
            return None;
        }
        let mut product = Product {
            uuid: document.uuid.map(|uuid| uuid.hyphenated().to_string()),
            ..Product::default()
        };
        if smbios == Some(SmbiosMode::Sysinfo) {
            for block in document
                .sysinfo
                .iter()
                .filter_map(|info| info.system.as_ref())
            {
                for entry in &block.entries {
                    self.product_entry(&mut product, entry.name.as_deref(), &entry.value);
                }
            }
        }
        Some(product)
    }

    fn product_entry(&self, product: &mut Product, name: Option<&str>, value: &str) {
        let field = match name.unwrap_or_default() {
            "manufacturer" => &mut product.manufacturer,
            "product" => &mut product.name,
            "version" => &mut product.version,
            "serial" => &mut product.serial,
            "sku" => &mut product.sku,
            "family" => &mut product.family,
            // The domain's own.
            "uuid" => return,
            other => {
                self.note("sysinfo/system/entry", &format!("'{other}' is not told"));
                return;
            }
        };
        *field = Some(value.trim().to_owned());
    }

    fn rng(&self) -> bool {
        let rngs = &self.document.devices.rngs;
        if rngs.iter().any(|rng| rng.rate.is_some()) {
            self.note("devices/rng/rate", "random numbers are not rationed");
        }
        if rngs.len() > 1 {
            self.note(
                "devices/rng[2]",
                "the machine has one source of random numbers",
            );
        }
        !rngs.is_empty()
    }

    /// A display adapter is there where the document has one, or a screen for viewers.
    fn display(&self) -> Result<Option<DisplayDescription>, DomainError> {
        let devices = &self.document.devices;
        let model = |video: &cenote_model::domain::Video| {
            video
                .model
                .as_ref()
                .map_or("vga".to_owned(), |m| m.kind.clone())
        };
        let adapters = devices.videos.iter().filter(|video| model(video) != "none");
        let count = adapters.count();
        if count > 1 {
            self.note("devices/video[2]", "the machine has one display adapter");
        }
        let by_viewers = devices.videos.is_empty() && !devices.graphics.is_empty();
        if count == 0 && !by_viewers {
            return Ok(None);
        }
        let wants_rom = !self.is_direct();
        if wants_rom && firmware::locate().display.is_none() {
            return Err(DomainError::ComponentMissing {
                domain: self.document.name.to_string(),
                component: "the display's option ROM vgabios-bochs-display.bin is not installed"
                    .to_owned(),
                remedy: "install it (apt-get install seabios), or see what else is missing: \
                         cenote doctor"
                    .to_owned(),
            });
        }
        Ok(Some(DisplayDescription::default()))
    }

    /// A file that must be there and be readable.
    fn file(&self, what: &str, path: &str) -> Result<FileSource, DomainError> {
        match std::fs::File::open(path) {
            Ok(_) => Ok(FileSource::Path(PathBuf::from(path))),
            Err(error) => Err(DomainError::ComponentMissing {
                domain: self.document.name.to_string(),
                component: format!("{what} '{path}': {error}"),
                remedy: format!(
                    "put the file there, or name another: cenote edit {}",
                    self.document.name
                ),
            }),
        }
    }

    fn serial(&self) -> Result<(Option<SerialDescription>, Option<Console>), DomainError> {
        let serials = &self.document.devices.serials;
        if serials.len() > 1 {
            return Err(self.lacks("devices/serial[2]", "the machine has one serial port"));
        }
        let Some(serial) = serials.first() else {
            return Ok((None, None));
        };
        let backend = |backend| Some(SerialDescription { backend });
        let path = serial
            .source
            .as_ref()
            .and_then(|source| source.path.as_deref());
        match (serial.kind, path) {
            (CharacterKind::Null, _) => Ok((backend(CharDevice::Null), None)),
            (CharacterKind::Pty, _) => {
                let files = log_of(serial).into_iter().collect();
                Ok((backend(CharDevice::Stdio), Some(Console { files })))
            }
            (CharacterKind::File, Some(path)) => {
                let source = serial.source.as_ref().and_then(|source| source.append);
                let own = (PathBuf::from(path), source == Some(OnOff::On));
                let files = std::iter::once(own).chain(log_of(serial)).collect();
                Ok((backend(CharDevice::Stdio), Some(Console { files })))
            }
            (kind, _) => {
                let text = format!("a port of type '{kind}'; use pty, file or null");
                Err(self.lacks("devices/serial/@type", &text))
            }
        }
    }

    fn clock_offset(&self) -> Result<i64, DomainError> {
        let clock = &self.document.clock;
        let now = jiff::Timestamp::now();
        let ahead = |zone: &jiff::tz::TimeZone| i64::from(zone.to_offset(now).seconds());
        let adjustment = match clock.adjustment {
            Some(ClockAdjustment::Seconds(seconds)) => seconds,
            Some(ClockAdjustment::Reset) | None => 0,
        };
        Ok(match clock.offset {
            ClockOffset::Utc => adjustment,
            ClockOffset::Localtime => ahead(&jiff::tz::TimeZone::system()),
            ClockOffset::Variable => {
                let basis = match clock.basis {
                    Some(ClockBasis::Localtime) => ahead(&jiff::tz::TimeZone::system()),
                    Some(ClockBasis::Utc) | None => 0,
                };
                basis.saturating_add(adjustment)
            }
            ClockOffset::Timezone => {
                let name = clock.timezone.as_deref().unwrap_or_default();
                let zone = jiff::tz::TimeZone::get(name);
                ahead(&zone.map_err(|error| self.lacks("clock/@timezone", &error.to_string()))?)
            }
            ClockOffset::Absolute => {
                let start = clock.start.and_then(|start| i64::try_from(start).ok());
                start.unwrap_or_default().saturating_sub(now.as_second())
            }
        })
    }
}

/// The file that a port's output is also written to.
fn log_of(serial: &Character) -> Option<(PathBuf, bool)> {
    let log = serial.log.as_ref()?;
    Some((
        Path::new(&log.file).to_owned(),
        log.append == Some(OnOff::On),
    ))
}
