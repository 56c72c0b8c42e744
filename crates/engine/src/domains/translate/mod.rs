//! From a domain's document to a machine description.
//!
//! Each part of the document is put into the description, has no effect on a guest (the model
//! said so when the document was read), or is refused here by name and place. A part that the
//! monitor gets later is added here and taken out of the refusals.

use std::path::{Path, PathBuf};

use cenote_model::domain::{
    Character, CharacterKind, ClockAdjustment, ClockBasis, ClockOffset, CpuFeaturePolicy, Domain,
    machine,
};
use cenote_model::{OnOff, YesNo};
use cenote_vmm::boot::Protocol;
use cenote_vmm::firmware::{self, Product};
use cenote_vmm::machine::{
    BootDescription, CharDevice, CpuDescription, Description, DriveDescriptions, FileSource,
    FirmwareDescription, MOST_VCPUS, OnReset, OnTripleFault, Place, SerialDescription, VERSION,
};

use super::error::Error as DomainError;

/// Name of the monitor's control socket in the run directory.
pub(crate) const CONTROL_SOCKET: &str = "monitor.sock";
/// Name of the monitor's exit report there.
pub(crate) const EXIT_REPORT: &str = "exit.json";

/// For how long a boot menu is offered unless the document says it, in milliseconds.
const BOOT_MENU: u16 = 2500;

/// Memory is given in pages of this many bytes.
const PAGE: u64 = 4096;

/// What a domain's machine is made from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    /// What the monitor is given. Its paths of sockets and reports are relative to the run
    /// directory, since paths of sockets are short.
    pub(crate) description: Description,
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

/// Makes the description of a domain's machine.
///
/// # Errors
/// [`DomainError::MachineLacks`] for the first part that cannot be honoured,
/// [`DomainError::ComponentMissing`] for the first file that is not there.
pub(crate) fn machine(document: &Domain, allow_emulation: bool) -> Result<Machine, DomainError> {
    let translation = Translation { document };
    if let Some(part) = machine::blockers(document).into_iter().next() {
        return Err(translation.lacks(&part.step, &part.text));
    }
    let mut notes = Vec::new();
    translation.devices(&mut notes)?;
    let (serial, console) = translation.serial()?;
    let description = Description {
        version: VERSION,
        vcpus: translation.vcpus()?,
        memory: translation.memory()?,
        cpu: translation.cpu(&mut notes),
        boot: translation.boot(serial.is_some())?,
        product: translation.product(),
        serial,
        debug_console: None,
        pvpanic: true,
        clock_offset: translation.clock_offset()?,
        // The supervisor decides, and records it.
        on_reset: OnReset::Exit,
        on_triple_fault: OnTripleFault::Exit,
        allow_emulation,
        user: None,
        ide: DriveDescriptions::new(),
        disks: Vec::new(),
        nics: Vec::new(),
        ports: Vec::new(),
        rng: !document.devices.rngs.is_empty(),
        display: None,
        control: Some(Place::Path(PathBuf::from(CONTROL_SOCKET))),
        exit_report: Some(Place::Path(PathBuf::from(EXIT_REPORT))),
    };
    Ok(Machine {
        description,
        console,
        notes,
    })
}

struct Translation<'a> {
    document: &'a Domain,
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

    fn cpu(&self, notes: &mut Vec<String>) -> CpuDescription {
        let features = self.document.cpu.iter().flat_map(|cpu| &cpu.features);
        for feature in features {
            if matches!(
                feature.policy,
                Some(CpuFeaturePolicy::Disable | CpuFeaturePolicy::Forbid)
            ) {
                notes.push(format!(
                    "cpu/feature: '{}' is not taken away; the guest sees the host's processor",
                    feature.name
                ));
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
        let os = &self.document.os;
        let menu = os
            .boot_menu
            .as_ref()
            .filter(|menu| menu.enable == YesNo::Yes);
        let bios = os.bios.as_ref();
        Ok(FirmwareDescription {
            image: None,
            menu: menu.map(|menu| u32::from(menu.timeout.unwrap_or(BOOT_MENU))),
            only_listed: false,
            fail_wait: bios.and_then(|bios| bios.reboot_timeout),
            serial_console: has_serial
                && bios.is_some_and(|bios| bios.use_serial == Some(YesNo::Yes)),
        })
    }

    /// Only firmware tells the guest who its machine is.
    fn product(&self) -> Option<Product> {
        if self.document.os.is_direct_kernel() {
            return None;
        }
        Some(Product {
            uuid: self.document.uuid.map(|uuid| uuid.hyphenated().to_string()),
            ..Product::default()
        })
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

    fn devices(&self, notes: &mut Vec<String>) -> Result<(), DomainError> {
        let devices = &self.document.devices;
        for disk in &devices.disks {
            if disk.source.is_some() {
                let text = format!("the machine has no disks yet ('{}')", disk.target.dev);
                return Err(self.lacks("devices/disk", &text));
            }
            notes.push(format!(
                "devices/disk: drive '{}' is not there yet",
                disk.target.dev
            ));
        }
        if let Some(card) = devices.interfaces.first() {
            let text = format!(
                "the machine has no network cards yet (type '{}')",
                card.kind
            );
            return Err(self.lacks("devices/interface", &text));
        }
        if !devices.parallels.is_empty() {
            return Err(self.lacks("devices/parallel", "the machine has no parallel port"));
        }
        for channel in &devices.channels {
            let name = channel.target.name.as_deref().unwrap_or("(unnamed)");
            notes.push(format!("devices/channel: '{name}' is not there yet"));
        }
        Ok(())
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
