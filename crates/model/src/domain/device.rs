//! `<devices>`: the list, what all devices have in common, and the small ones.

use crate::domain::{Channel, Character, Disk, Graphics, Input, Interface, Sound, Video};
use crate::error::{Error, NoteKind};
use crate::xml::{Content, Element, Hex, Kept, OnOff, Present, Reader, element, values};

element! {
    /// `<devices>`.
    pub struct Devices {
        /// Program that would emulate the machine; never run.
        emulator: Option<String> = leaf("emulator"),
        /// Disks and drives.
        disks: Vec<Disk> = child("disk"),
        /// Controllers.
        controllers: Vec<Controller> = child("controller"),
        /// Network cards.
        interfaces: Vec<Interface> = child("interface"),
        /// Smart card readers.
        smartcards: Vec<Element> = child("smartcard"),
        /// Serial ports.
        serials: Vec<Character> = child("serial"),
        /// Parallel ports.
        parallels: Vec<Character> = child("parallel"),
        /// Consoles: the first is the first serial port under another name.
        consoles: Vec<Character> = child("console"),
        /// Channels between guest and host.
        channels: Vec<Channel> = child("channel"),
        /// Keyboards, mice, tablets.
        inputs: Vec<Input> = child("input"),
        /// Screens offered to viewers.
        graphics: Vec<Graphics> = child("graphics"),
        /// Sound cards.
        sounds: Vec<Sound> = child("sound"),
        /// Where their sound goes.
        audios: Vec<Element> = child("audio"),
        /// Display adapters.
        videos: Vec<Video> = child("video"),
        /// USB devices redirected by a viewer.
        redirected: Vec<Element> = child("redirdev"),
        /// Which of them.
        redirect_filter: Option<Element> = child("redirfilter"),
        /// USB hubs.
        hubs: Vec<Element> = child("hub"),
        /// Watchdogs.
        watchdogs: Vec<Watchdog> = child("watchdog"),
        /// Memory balloon.
        balloon: Option<Balloon> = child("memballoon"),
        /// Sources of randomness.
        rngs: Vec<Rng> = child("rng"),
        /// Devices through which a guest reports a panic.
        panics: Vec<Panic> = child("panic"),
        /// I/O memory management unit.
        iommu: Option<Element> = child("iommu"),
    }
    known {
        "emulator" => Inert("the built-in monitor runs the domain; this program is never run"),
        "smartcard" => Inert("the machine has no smart card reader"),
        "parallel" => Inert("the machine has no parallel port"),
        "audio" => Inert("sound goes where the sound device says"),
        "redirdev" => Inert("there is no USB to redirect to"),
        "redirfilter" => Inert("there is no USB to redirect to"),
        "hub" => Inert("there is no USB for a hub"),
        "iommu" => Inert("the machine has no IOMMU"),
        "nvram" => Inert("belongs to POWER machines"),
        "hostdev" => Refused("devices of the host cannot be given to a guest; remove the element"),
        "filesystem" => Refused("directories of the host cannot be shared with a guest; use a \
            disk, or a network file system"),
        "lease" => Refused("lock manager leases are not taken, and starting without would break \
            their promise; images are locked by themselves"),
        "tpm" => Refused("there is no TPM, and a guest that seals its keys in one would not find \
            it; remove the element"),
        "shmem" => Refused("memory cannot be shared between guests"),
        "memory" => Refused("memory modules cannot be plugged; put the sum into <memory>"),
        "vsock" => Refused("there are no host-guest sockets; use a channel or the network"),
        "crypto" => Refused("there is no crypto device; the guest's own processor does it"),
        "pstore" => Refused("there is no persistent store for crash logs; use a serial log"),
    }
}

values! {
    /// How a device is addressed.
    pub enum AddressKind {
        /// On PCI.
        #[default]
        Pci = "pci",
        /// On a disk controller.
        Drive = "drive",
        /// On USB.
        Usb = "usb",
        /// On a virtio serial controller.
        VirtioSerial = "virtio-serial",
        /// At an I/O port.
        Isa = "isa",
        /// On a smart card controller.
        Ccid = "ccid",
        /// Memory-mapped virtio.
        VirtioMmio = "virtio-mmio",
        /// On an s390x channel.
        Ccw = "ccw",
        /// In a memory slot.
        Dimm = "dimm",
        /// Not at a fixed place.
        Unassigned = "unassigned",
        /// On POWER's virtual bus.
        SpaprVio = "spapr-vio",
    }
}

/// `<address>` of a device. Which numbers it has depends on its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Address {
    /// How the device is addressed.
    pub kind: AddressKind,
    /// PCI domain.
    #[serde(skip_serializing_if = "Present::absent")]
    pub domain: Option<Hex<4>>,
    /// Drive's or port's controller.
    #[serde(skip_serializing_if = "Present::absent")]
    pub controller: Option<u32>,
    /// Bus.
    #[serde(skip_serializing_if = "Present::absent")]
    pub bus: Option<Hex<2>>,
    /// PCI slot.
    #[serde(skip_serializing_if = "Present::absent")]
    pub slot: Option<Hex<2>>,
    /// PCI function.
    #[serde(skip_serializing_if = "Present::absent")]
    pub function: Option<Hex<1>>,
    /// Drive's target.
    #[serde(skip_serializing_if = "Present::absent")]
    pub target: Option<u32>,
    /// Drive's unit.
    #[serde(skip_serializing_if = "Present::absent")]
    pub unit: Option<u32>,
    /// Port on its bus.
    #[serde(skip_serializing_if = "Present::absent")]
    pub port: Option<String>,
    /// Whether the device is one of several functions.
    #[serde(skip_serializing_if = "Present::absent")]
    pub multifunction: Option<OnOff>,
    /// The rest.
    #[serde(skip_serializing_if = "Kept::is_empty")]
    pub kept: Kept,
}

impl Address {
    /// An address on the only PCI bus.
    pub fn pci(slot: u8, function: u8) -> Self {
        Self {
            kind: AddressKind::Pci,
            domain: Some(Hex(0)),
            bus: Some(Hex(0)),
            slot: Some(Hex(slot.into())),
            function: Some(Hex(function.into())),
            ..Self::default()
        }
    }

    /// An address of a drive on its controller.
    pub fn drive(controller: u32, bus: u8, target: u32, unit: u32) -> Self {
        Self {
            kind: AddressKind::Drive,
            controller: Some(controller),
            bus: Some(Hex(bus.into())),
            target: Some(target),
            unit: Some(unit),
            ..Self::default()
        }
    }

    fn check(&self, reader: &Reader<'_>) -> Result<(), Error> {
        if self.kind != AddressKind::Pci {
            return Ok(());
        }
        for (name, value, most) in [
            ("domain", self.domain.map(|n| n.0), 0xffff),
            ("bus", self.bus.map(|n| n.0), 0xff),
            ("slot", self.slot.map(|n| n.0), 0x1f),
            ("function", self.function.map(|n| n.0), 7),
        ] {
            if let Some(value) = value
                && value > most
            {
                return Err(reader.invalid(
                    &format!("@{name}"),
                    &format!("{value:#x}"),
                    format!("at most {most:#x} is expected"),
                ));
            }
        }
        Ok(())
    }
}

impl Content for Address {
    fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let kind = reader
            .attribute_value("type")?
            .ok_or_else(|| reader.missing("attribute 'type'"))?;
        let mut address = Self {
            kind,
            domain: reader.attribute_value("domain")?,
            controller: reader.attribute_value("controller")?,
            bus: reader.attribute_value("bus")?,
            slot: reader.attribute_value("slot")?,
            function: reader.attribute_value("function")?,
            target: reader.attribute_value("target")?,
            unit: reader.attribute_value("unit")?,
            port: reader.attribute_value("port")?,
            multifunction: reader.attribute_value("multifunction")?,
            kept: Kept::default(),
        };
        address.check(&reader)?;
        let elsewhere = crate::xml::Treatment::Inert("belongs to another kind of machine");
        address.kept = reader.finish(&[
            ("@reg", elsewhere),
            ("@cssid", elsewhere),
            ("@ssid", elsewhere),
            ("@devno", elsewhere),
            ("@base", elsewhere),
            ("@iobase", elsewhere),
            ("@irq", elsewhere),
            ("zpci", elsewhere),
        ])?;
        Ok(address)
    }

    fn write(&self, name: &str) -> Element {
        let mut element = Element::new(name).with("type", self.kind.as_str());
        let pci = self.kind == AddressKind::Pci;
        // Only PCI counts its bus in hexadecimal.
        let bus = self.bus.map(|bus| match pci {
            true => bus.to_string(),
            false => bus.0.to_string(),
        });
        let number = |n: Option<u32>| n.map(|n| n.to_string());
        for (name, value) in [
            ("domain", self.domain.map(|n| n.to_string())),
            ("controller", number(self.controller)),
            ("bus", bus),
            ("slot", self.slot.map(|n| n.to_string())),
            ("function", self.function.map(|n| n.to_string())),
            ("target", number(self.target)),
            ("unit", number(self.unit)),
            ("port", self.port.clone()),
            ("multifunction", self.multifunction.map(|m| m.to_string())),
        ] {
            if let Some(value) = value {
                element.set(name, value);
            }
        }
        self.kept.write(&mut element);
        element
    }
}

impl Present for Address {}

element! {
    /// `<alias>`: a device's name; the user's own begin with `ua-`.
    pub struct Alias {
        /// Name.
        name: String = attribute("name"),
    }
}

element! {
    /// `<boot>` of a device.
    pub struct DeviceBoot {
        /// Its turn, from 1.
        order: u32 = attribute("order"),
        /// Boot entry on s390x.
        loadparm: Option<String> = attribute("loadparm"),
    }
    check DeviceBoot::check;
}

impl DeviceBoot {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.order {
            0 => Err(reader.invalid("@order", "0", "a turn from 1 is expected")),
            _ => Ok(()),
        }
    }
}

values! {
    /// What a controller controls.
    pub enum ControllerKind {
        /// PCI devices.
        #[default]
        Pci = "pci",
        /// IDE drives.
        Ide = "ide",
        /// Floppy drives.
        Fdc = "fdc",
        /// SCSI drives.
        Scsi = "scsi",
        /// SATA drives.
        Sata = "sata",
        /// Consoles and channels.
        VirtioSerial = "virtio-serial",
        /// Smart cards.
        Ccid = "ccid",
        /// USB devices.
        Usb = "usb",
        /// Xen devices.
        Xenbus = "xenbus",
        /// ISA devices.
        Isa = "isa",
    }
}

element! {
    /// `<controller>`. The machine has those its devices need, whatever is listed.
    pub struct Controller {
        /// What it controls.
        kind: ControllerKind = attribute("type"),
        /// Its number among its kind.
        index: Option<u32> = attribute("index"),
        /// Model.
        model: Option<String> = attribute("model"),
        /// Number of ports.
        ports: Option<u32> = attribute("ports"),
        /// Number of vectors.
        vectors: Option<u32> = attribute("vectors"),
        /// Options of its driver.
        driver: Option<Element> = child("driver"),
        /// Model of a PCI bridge.
        bridge_model: Option<Element> = child("model"),
        /// Place of a PCI bridge.
        bridge_target: Option<Element> = child("target"),
        /// USB controller it belongs to.
        master: Option<Element> = child("master"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "driver" => Inert("controllers have no options"),
        "pcihole64" => Inert("the machine lays out its address space itself"),
        "acpi" => Inert("ACPI indices are not given"),
        "@maxGrantFrames" => Inert("there is no Xen"),
        "@maxEventChannels" => Inert("there is no Xen"),
    }
    check Controller::check;
}

impl Controller {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let model = self.model.as_deref().unwrap_or_default();
        let remark = match self.kind {
            ControllerKind::Pci if !matches!(model, "" | "pci-root" | "pcie-root") => {
                "the machine has one PCI bus"
            }
            ControllerKind::Usb if model != "none" => "the machine has no USB controller",
            ControllerKind::Sata | ControllerKind::Fdc | ControllerKind::Ccid => {
                "the machine has no such controller"
            }
            ControllerKind::Xenbus => "there is no Xen",
            _ => return Ok(()),
        };
        reader.note(NoteKind::Inert, "", remark)
    }
}

element! {
    /// `<watchdog>`.
    pub struct Watchdog {
        /// Model: `i6300esb`, `ib700`, `itco`, `diag288`.
        model: String = attribute("model"),
        /// What it does; default `reset`.
        action: Option<WatchdogAction> = attribute("action"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "acpi" => Inert("ACPI indices are not given"),
    }
}

values! {
    /// What a watchdog does that was not fed.
    pub enum WatchdogAction {
        /// Resets the guest.
        #[default]
        Reset = "reset",
        /// Asks it to shut down.
        Shutdown = "shutdown",
        /// Powers it off.
        Poweroff = "poweroff",
        /// Pauses it.
        Pause = "pause",
        /// Nothing.
        None = "none",
        /// Dumps its memory.
        Dump = "dump",
        /// Sends it an interrupt.
        InjectNmi = "inject-nmi",
    }
}

element! {
    /// `<memballoon>`.
    pub struct Balloon {
        /// `virtio`, `none` and others.
        model: String = attribute("model"),
        /// Whether it gives memory back when the guest runs out.
        autodeflate: Option<OnOff> = attribute("autodeflate"),
        /// Whether the guest reports pages it does not use.
        free_page_reporting: Option<OnOff> = attribute("freePageReporting"),
        /// How often statistics are asked for.
        stats: Option<BalloonStats> = child("stats"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
        /// Options of its driver.
        driver: Option<Element> = child("driver"),
    }
}

element! {
    /// `<stats>` of a balloon.
    pub struct BalloonStats {
        /// Seconds between two questions.
        period: u32 = attribute("period"),
    }
}

values! {
    /// Where randomness comes from.
    pub enum RngBackendKind {
        /// A device file.
        #[default]
        Random = "random",
        /// A daemon; refused.
        Egd = "egd",
        /// The host's kernel.
        Builtin = "builtin",
    }
}

element! {
    /// `<rng>`.
    pub struct Rng {
        /// `virtio` and its transitional forms.
        model: String = attribute("model"),
        /// Limit.
        rate: Option<RngRate> = child("rate"),
        /// Where randomness comes from.
        backend: RngBackend = child("backend"),
        /// Options of its driver.
        driver: Option<Element> = child("driver"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "driver" => Inert("the device has no options"),
        "acpi" => Inert("ACPI indices are not given"),
    }
}

element! {
    /// `<rate>`: so many bytes in so many milliseconds.
    pub struct RngRate {
        /// Bytes.
        bytes: u32 = attribute("bytes"),
        /// Milliseconds; default 1000.
        period: Option<u32> = attribute("period"),
    }
}

element! {
    /// `<backend>` of a source of randomness.
    pub struct RngBackend {
        /// Kind.
        kind: RngBackendKind = attribute("model"),
        /// Device file; `/dev/urandom` if empty.
        path: String = text(),
    }
    known {
        "@type" => Refused("randomness from a daemon (egd); use <backend model='random'>"),
        "source" => Refused("randomness from a daemon (egd); use <backend model='random'>"),
    }
    check RngBackend::check;
}

impl RngBackend {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        self.path = self.path.trim().to_owned();
        if self.kind == RngBackendKind::Egd {
            return Err(reader.unsupported(
                "@model",
                "randomness from a daemon (egd); use <backend model='random'>",
            ));
        }
        let known = ["", "/dev/urandom", "/dev/random", "/dev/hwrng"];
        if !known.contains(&self.path.as_str()) {
            return Err(reader.invalid(
                "",
                &self.path,
                "one of /dev/urandom, /dev/random and /dev/hwrng is expected",
            ));
        }
        Ok(())
    }
}

element! {
    /// `<panic>`.
    pub struct Panic {
        /// `isa` and others; default `isa`.
        model: Option<String> = attribute("model"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    check Panic::check;
}

impl Panic {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.model.as_deref() {
            None | Some("isa" | "pvpanic") => Ok(()),
            Some(_) => reader.note(
                NoteKind::Inert,
                "@model",
                "the machine has the ISA panic device (pvpanic) only",
            ),
        }
    }
}
