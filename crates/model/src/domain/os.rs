//! `<os>`: machine type, firmware, direct kernel boot and boot order.

use crate::error::{Error, NoteKind};
use crate::xml::{Element, Reader, YesNo, element, values};

values! {
    /// What kind of guest the machine is for.
    pub enum OsKind {
        /// A whole machine.
        #[default]
        Hvm = "hvm",
        /// Paravirtual Xen; refused.
        Xen = "xen",
        /// Paravirtual Xen, old spelling; refused.
        Linux = "linux",
        /// Xen PVH; refused.
        XenPvh = "xenpvh",
        /// A container; refused.
        Exe = "exe",
        /// User-mode Linux; refused.
        Uml = "uml",
    }
}

values! {
    /// A class of boot devices.
    pub enum BootDevice {
        /// Disks.
        #[default]
        Hd = "hd",
        /// CD-ROM drives.
        Cdrom = "cdrom",
        /// Network cards.
        Network = "network",
        /// Floppy drives.
        Fd = "fd",
    }
}

values! {
    /// Firmware to be chosen by the node.
    pub enum Firmware {
        /// SeaBIOS.
        #[default]
        Bios = "bios",
        /// UEFI.
        Efi = "efi",
    }
}

values! {
    /// How a firmware file is mapped.
    pub enum LoaderKind {
        /// As ROM.
        #[default]
        Rom = "rom",
        /// As flash, with variables in a second one.
        Pflash = "pflash",
    }
}

values! {
    /// What the guest's SMBIOS tables say.
    pub enum SmbiosMode {
        /// What the monitor makes up.
        #[default]
        Emulate = "emulate",
        /// What the host's say.
        Host = "host",
        /// What `<sysinfo>` says.
        Sysinfo = "sysinfo",
    }
}

element! {
    /// `<os>`.
    pub struct Os {
        /// Firmware to be chosen by the node.
        firmware: Option<Firmware> = attribute("firmware"),
        /// Machine type.
        kind: OsType = child("type"),
        /// Features the chosen firmware is to have.
        firmware_features: Option<Element> = child("firmware"),
        /// Firmware file.
        loader: Option<Loader> = child("loader"),
        /// File of the firmware's variables.
        nvram: Option<Nvram> = child("nvram"),
        /// Kernel to boot without firmware.
        kernel: Option<String> = leaf("kernel"),
        /// Its initial RAM disk.
        initrd: Option<String> = leaf("initrd"),
        /// Its command line, handed over byte for byte.
        cmdline: Option<String> = leaf("cmdline"),
        /// Classes of devices to boot from, first to last.
        boot: Vec<Boot> = child("boot"),
        /// The firmware's menu.
        boot_menu: Option<BootMenu> = child("bootmenu"),
        /// Options of the BIOS.
        bios: Option<BiosOptions> = child("bios"),
        /// SMBIOS tables.
        smbios: Option<Smbios> = child("smbios"),
    }
    known {
        "dtb" => Refused("device trees are for other architectures"),
        "acpi" => Refused("ACPI tables of your own are not passed to the guest"),
        "shim" => Refused("a shim belongs to UEFI boot of a kernel"),
        "init" => Refused("init programs belong to containers"),
        "initarg" => Refused("init programs belong to containers"),
    }
    check Os::check;
}

element! {
    /// `<type>` of an operating system.
    pub struct OsType {
        /// Architecture; default that of the node, `x86_64`.
        arch: Option<String> = attribute("arch"),
        /// Machine; default `pc`.
        machine: Option<String> = attribute("machine"),
        /// Kind of guest.
        kind: OsKind = text(),
    }
    check OsType::check;
}

element! {
    /// `<loader>`.
    pub struct Loader {
        /// Not written by the guest.
        readonly: Option<YesNo> = attribute("readonly"),
        /// Only started with secure boot.
        secure: Option<YesNo> = attribute("secure"),
        /// How it is mapped.
        kind: Option<LoaderKind> = attribute("type"),
        /// Has no variables.
        stateless: Option<YesNo> = attribute("stateless"),
        /// Format of the file.
        format: Option<String> = attribute("format"),
        /// Path of the file.
        path: String = text(),
    }
}

element! {
    /// `<nvram>`.
    pub struct Nvram {
        /// File that the variables start from.
        template: Option<String> = attribute("template"),
        /// Its format.
        template_format: Option<String> = attribute("templateFormat"),
        /// Format of the file.
        format: Option<String> = attribute("format"),
        /// Path of the domain's own file.
        path: String = text(),
    }
    known {
        "@type" => Refused("variables are kept in a file; write its path into the element"),
    }
}

element! {
    /// `<boot>` of an operating system.
    pub struct Boot {
        /// Class of devices.
        device: BootDevice = attribute("dev"),
    }
}

element! {
    /// `<bootmenu>`.
    pub struct BootMenu {
        /// Whether it is offered.
        enable: YesNo = attribute("enable"),
        /// For how many milliseconds, up to 65535.
        timeout: Option<u16> = attribute("timeout"),
    }
}

element! {
    /// `<smbios>`.
    pub struct Smbios {
        /// Where the tables come from.
        mode: SmbiosMode = attribute("mode"),
    }
}

element! {
    /// `<bios>`.
    pub struct BiosOptions {
        /// Text of the BIOS also on the first serial port.
        use_serial: Option<YesNo> = attribute("useserial"),
        /// Milliseconds until a failed boot is tried again, -1 for never.
        reboot_timeout: Option<i32> = attribute("rebootTimeout"),
    }
}

values! {
    /// How information reaches the guest.
    pub enum SysinfoKind {
        /// In SMBIOS tables.
        #[default]
        Smbios = "smbios",
        /// As files of fw_cfg.
        Fwcfg = "fwcfg",
    }
}

element! {
    /// `<sysinfo>`.
    pub struct Sysinfo {
        /// How it reaches the guest.
        kind: SysinfoKind = attribute("type"),
        /// SMBIOS type 0.
        bios: Option<SysinfoBlock> = child("bios"),
        /// SMBIOS type 1; its `uuid` is the domain's.
        system: Option<SysinfoBlock> = child("system"),
        /// SMBIOS type 2.
        base_boards: Vec<SysinfoBlock> = child("baseBoard"),
        /// SMBIOS type 3.
        chassis: Option<SysinfoBlock> = child("chassis"),
        /// SMBIOS type 11.
        oem_strings: Option<SysinfoBlock> = child("oemStrings"),
        /// Files of fw_cfg.
        entries: Vec<SysinfoEntry> = child("entry"),
    }
}

element! {
    /// A table of SMBIOS.
    pub struct SysinfoBlock {
        /// Its fields.
        entries: Vec<SysinfoEntry> = child("entry"),
    }
}

element! {
    /// `<entry>`.
    pub struct SysinfoEntry {
        /// Name of the field or file.
        name: Option<String> = attribute("name"),
        /// File of the host that holds the value.
        file: Option<String> = attribute("file"),
        /// Value.
        value: String = text(),
    }
}

impl Os {
    /// The boot order by classes.
    pub fn boot_devices(&self) -> impl Iterator<Item = BootDevice> {
        self.boot.iter().map(|boot| boot.device)
    }

    /// Whether a kernel is booted without firmware.
    pub fn is_direct_kernel(&self) -> bool {
        self.kernel.is_some()
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        for text in [&mut self.kernel, &mut self.initrd] {
            *text = text
                .take()
                .map(|path| path.trim().to_owned())
                .filter(|path| !path.is_empty());
        }
        self.cmdline = self.cmdline.take().filter(|line| !line.is_empty());
        if self.kernel.is_none() && (self.initrd.is_some() || self.cmdline.is_some()) {
            return Err(reader.missing("element <kernel> (an initrd or a command line needs one)"));
        }
        for (step, path) in [("kernel", &self.kernel), ("initrd", &self.initrd)] {
            if let Some(path) = path
                && !path.starts_with('/')
            {
                return Err(reader.invalid(step, path, "an absolute path is expected"));
            }
        }
        Ok(())
    }
}

impl OsType {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.kind {
            OsKind::Hvm => {}
            OsKind::Xen | OsKind::Linux | OsKind::XenPvh => {
                return Err(reader.unsupported(
                    "",
                    format!("Xen not supported (type '{}'); use hvm", self.kind),
                ));
            }
            OsKind::Exe | OsKind::Uml => {
                return Err(reader.unsupported(
                    "",
                    format!("guests of type '{}' are not machines; use hvm", self.kind),
                ));
            }
        }
        match self.arch.as_deref() {
            None | Some("x86_64") => {}
            Some("i686") => reader.note(
                NoteKind::Mapped,
                "@arch",
                "the processors are 64-bit ones, which run 32-bit guests",
            )?,
            Some(other) => {
                return Err(reader.unsupported(
                    "@arch",
                    format!("architecture '{other}'; this monitor runs x86_64 guests"),
                ));
            }
        }
        let machine = self.machine.as_deref().unwrap_or("pc");
        let of_family = |name: &str| machine == name || machine.starts_with(&format!("{name}-"));
        if of_family("pc") && !of_family("pc-q35") {
            Ok(())
        } else if of_family("q35") || of_family("pc-q35") || of_family("rhel") {
            reader.note(
                NoteKind::Mapped,
                "@machine",
                "the machine is an i440FX (pc), not a Q35; its PCI Express controllers and \
                 addresses have no effect",
            )
        } else {
            Err(reader.unsupported(
                "@machine",
                format!("machine '{machine}'; use pc (i440FX), or leave the attribute out"),
            ))
        }
    }
}
