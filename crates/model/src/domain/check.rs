//! What must hold across a domain's parts.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::domain::{CharacterKind, Domain, DomainKind, LifecycleAction, machine};
use crate::error::{Error, NoteKind};
use crate::size::Memory;
use crate::xml::Reader;

impl Domain {
    pub(super) fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        self.check_kind(reader)?;
        self.check_identity(reader)?;
        self.check_memory(reader)?;
        self.check_lifecycle(reader)?;
        self.check_processors(reader)?;
        self.check_targets(reader)?;
        self.check_boot_order(reader)?;
        if self.bootloader.is_some() {
            reader.note(
                NoteKind::Mapped,
                "os",
                "a boot loader on the host is an idea of Xen; in this machine the firmware would \
                 boot the guest's own",
            )?;
        }
        if let Some(title) = &self.title
            && title.contains('\n')
        {
            return Err(reader.invalid("title", title, "a title is one line"));
        }
        self.fill();
        for blocker in machine::missing_parts(self) {
            reader.note(
                NoteKind::Inert,
                &blocker.step,
                format!("{}; kept", blocker.text),
            )?;
        }
        Ok(())
    }

    fn check_kind(&self, reader: &Reader<'_>) -> Result<(), Error> {
        match self.kind {
            DomainKind::Kvm => Ok(()),
            DomainKind::Qemu => reader.note(
                NoteKind::Mapped,
                "@type",
                "runs on the built-in KVM monitor; nothing is emulated in software",
            ),
            other => {
                Err(reader.unsupported("@type", format!("domains of type '{other}'; use kvm")))
            }
        }
    }

    /// SMBIOS says the same identity as the domain, or gives it one.
    fn check_identity(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        let mut uuid = self.uuid;
        for entry in self.smbios_uuid_entries() {
            let text = entry.value.trim();
            let said = Uuid::try_parse(text)
                .map_err(|_| reader.invalid("sysinfo/system/entry", text, "a UUID is expected"))?;
            if *uuid.get_or_insert(said) != said {
                return Err(reader.invalid(
                    "sysinfo/system/entry",
                    text,
                    "the UUID of SMBIOS must be that of the domain",
                ));
            }
        }
        self.uuid = uuid;
        Ok(())
    }

    fn check_memory(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        let Memory { kib } = self.memory;
        if kib == 0 || self.memory.bytes().is_none() {
            return Err(reader.invalid(
                "memory",
                &kib.to_string(),
                "an amount of memory above nothing, below 2^64 bytes, is expected",
            ));
        }
        match self.current_memory {
            Some(current) if current > self.memory => Err(reader.invalid(
                "currentMemory",
                &format!("{} KiB", current.kib),
                format!("it cannot be more than <memory>, {kib} KiB"),
            )),
            Some(Memory { kib: 0 }) => Err(reader.invalid(
                "currentMemory",
                "0",
                "an amount of memory above nothing is expected",
            )),
            _ => Ok(()),
        }
    }

    fn check_lifecycle(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        if reader.element().child("on_reboot").is_none() {
            self.on_reboot = LifecycleAction::Restart;
        }
        for (step, action) in [
            ("on_poweroff", self.on_poweroff),
            ("on_reboot", self.on_reboot),
            ("on_crash", self.on_crash),
        ] {
            let reason = match action {
                LifecycleAction::Destroy | LifecycleAction::Restart | LifecycleAction::Preserve => {
                    continue;
                }
                LifecycleAction::RenameRestart => {
                    "'rename-restart' is an idea of Xen; use restart".to_owned()
                }
                other => format!("'{other}': no core is written; use destroy or preserve"),
            };
            return Err(reader.unsupported(step, reason));
        }
        Ok(())
    }

    fn check_processors(&self, reader: &Reader<'_>) -> Result<(), Error> {
        let topology = self.cpu.as_ref().and_then(|cpu| cpu.topology.as_ref());
        let maximum = self.vcpu.maximum();
        match topology.and_then(|topology| topology.processors()) {
            Some(product) if product != maximum => Err(reader.invalid(
                "cpu/topology",
                &product.to_string(),
                format!("sockets, dies, cores and threads must multiply to <vcpu>, {maximum}"),
            )),
            _ => Ok(()),
        }
    }

    fn check_targets(&self, reader: &Reader<'_>) -> Result<(), Error> {
        let mut seen: HashMap<&str, &str> = HashMap::new();
        for disk in &self.devices.disks {
            let path = disk.source_path().unwrap_or("(none)");
            let first = seen.insert(disk.target.dev.as_str(), path);
            if let Some(first) = first {
                return Err(reader.invalid(
                    "devices/disk/target/@dev",
                    &disk.target.dev,
                    format!("target duplicated for disk sources '{first}' and '{path}'"),
                ));
            }
        }
        let mut cards = HashSet::new();
        for card in &self.devices.interfaces {
            if let Some(mac) = &card.mac
                && !cards.insert(mac.address)
            {
                return Err(reader.invalid(
                    "devices/interface/mac/@address",
                    &mac.address.to_string(),
                    "two network cards of a domain cannot have one address",
                ));
            }
        }
        Ok(())
    }

    fn check_boot_order(&self, reader: &Reader<'_>) -> Result<(), Error> {
        let disks = self.devices.disks.iter().filter_map(|d| d.boot.as_ref());
        let cards = self
            .devices
            .interfaces
            .iter()
            .filter_map(|i| i.boot.as_ref());
        let mut orders = HashSet::new();
        for boot in disks.chain(cards) {
            if !self.os.boot.is_empty() {
                return Err(reader.invalid(
                    "os/boot",
                    "boot",
                    "a boot order by devices (<boot order='...'/>) and one by classes \
                     (<boot dev='...'/>) exclude each other",
                ));
            }
            if !orders.insert(boot.order) {
                return Err(reader.invalid(
                    "devices",
                    &boot.order.to_string(),
                    "two devices have the same boot order",
                ));
            }
        }
        Ok(())
    }

    /// Whether a stream of this kind is one that `console` can attach to.
    pub fn has_console(&self) -> bool {
        self.devices
            .serials
            .iter()
            .chain(&self.devices.consoles)
            .any(|port| port.kind == CharacterKind::Pty)
    }
}
