//! What is filled in as libvirt does, and what is taken out for other eyes.

use uuid::Uuid;

use crate::domain::{
    Alias, Boot, Character, CharacterKind, CharacterSource, CharacterTarget, Devices, Disk, Domain,
    Interface, Os, OsType, SysinfoEntry,
};

impl Domain {
    /// Fills in what follows from the document alone: current memory, boot device, machine, the
    /// console that the first serial port is, ports in order. Identity and addresses are for the
    /// node to give.
    pub fn fill(&mut self) {
        self.current_memory.get_or_insert(self.memory);
        self.os.fill(self.has_boot_order());
        self.fill_console();
        for (number, port) in self.devices.serials.iter_mut().enumerate() {
            let target = port.target.get_or_insert_default();
            target
                .port
                .get_or_insert(u32::try_from(number).unwrap_or(u32::MAX));
        }
    }

    /// Gives the domain an identity, also where SMBIOS repeats it.
    pub fn set_uuid(&mut self, uuid: Uuid) {
        self.uuid = Some(uuid);
        for entry in self.smbios_uuid_entries() {
            entry.value = uuid.hyphenated().to_string();
        }
    }

    /// The entries of SMBIOS that repeat the domain's identity.
    pub(super) fn smbios_uuid_entries(&mut self) -> impl Iterator<Item = &mut SysinfoEntry> {
        self.sysinfo
            .iter_mut()
            .filter_map(|info| info.system.as_mut())
            .flat_map(|system| &mut system.entries)
            .filter(|entry| entry.name.as_deref() == Some("uuid"))
    }

    fn has_boot_order(&self) -> bool {
        self.devices.disks.iter().any(|disk| disk.boot.is_some())
            || self
                .devices
                .interfaces
                .iter()
                .any(|card| card.boot.is_some())
    }

    /// The first console is the first serial port; each stands for the other.
    fn fill_console(&mut self) {
        let is_serial = |console: &Character| {
            let kind = console.target.as_ref().and_then(|t| t.kind.as_deref());
            matches!(kind, None | Some("serial"))
        };
        let target = |kind: Option<&str>, port: Option<u32>| {
            Some(CharacterTarget {
                kind: kind.map(str::to_owned),
                port: port.or(Some(0)),
                ..CharacterTarget::default()
            })
        };
        let port_of = |serial: &Character| serial.target.as_ref().and_then(|target| target.port);
        match (
            self.devices.serials.first(),
            self.devices.consoles.first_mut(),
        ) {
            (None, Some(console)) if is_serial(console) => {
                console.target = target(Some("serial"), None);
                self.devices.serials.push(Character {
                    target: target(None, None),
                    ..console.clone()
                });
            }
            (Some(serial), Some(console)) if is_serial(console) => {
                *console = Character {
                    target: target(Some("serial"), port_of(serial)),
                    ..serial.clone()
                };
            }
            (Some(serial), None) => {
                let console = Character {
                    target: target(Some("serial"), port_of(serial)),
                    ..serial.clone()
                };
                self.devices.consoles.push(console);
            }
            _ => {}
        }
    }

    /// The same domain without what holds only while it runs: its id, terminals, names and
    /// numbers that the node gave to parts of it.
    #[must_use]
    pub fn inactive(&self) -> Self {
        let mut domain = self.clone();
        domain.id = None;
        let devices = &mut domain.devices;
        devices.disks.iter_mut().for_each(Disk::forget_run);
        devices
            .interfaces
            .iter_mut()
            .for_each(Interface::forget_run);
        devices.aliases().for_each(forget_alias);
        let ports = [
            &mut devices.serials,
            &mut devices.parallels,
            &mut devices.consoles,
        ];
        for port in ports.into_iter().flatten() {
            port.tty = None;
            forget_terminal(port.kind, &mut port.source);
        }
        for channel in &mut devices.channels {
            channel.target.state = None;
            forget_terminal(channel.kind, &mut channel.source);
        }
        domain
    }

    /// The same domain without what only its owner should see: passwords of viewers.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut domain = self.clone();
        for graphics in &mut domain.devices.graphics {
            graphics.password = None;
            graphics.password_valid_to = None;
        }
        domain
    }

    /// Whether [`Self::without_secrets`] takes something out.
    pub fn has_secrets(&self) -> bool {
        self.devices
            .graphics
            .iter()
            .any(|graphics| graphics.password.is_some())
    }

    /// The streams that `console` can attach to, serial ports first.
    pub fn terminals(&self) -> impl Iterator<Item = &Character> {
        let consoles = self.devices.consoles.iter().filter(|console| {
            console
                .target
                .as_ref()
                .and_then(|target| target.kind.as_deref())
                .is_some_and(|kind| kind != "serial")
        });
        self.devices
            .serials
            .iter()
            .chain(consoles)
            .filter(|port| port.kind == CharacterKind::Pty)
    }
}

impl Disk {
    fn forget_run(&mut self) {
        self.mirror = None;
        if let Some(source) = &mut self.source {
            source.index = None;
        }
        let mut below = self.backing_store.as_mut();
        while let Some(store) = below {
            store.index = None;
            if let Some(source) = &mut store.source {
                source.index = None;
            }
            below = store.backing_store.as_deref_mut();
        }
    }
}

impl Interface {
    fn forget_run(&mut self) {
        let given = |name: &str| name.starts_with("vnet") || name.starts_with("vif");
        self.target = self.target.take().filter(|target| !given(&target.dev));
        if let Some(source) = &mut self.source {
            source.portid = None;
        }
    }
}

impl Devices {
    /// The names of all devices that have one.
    fn aliases(&mut self) -> impl Iterator<Item = &mut Option<Alias>> {
        let drives = self.disks.iter_mut().map(|device| &mut device.alias);
        drives
            .chain(self.controllers.iter_mut().map(|device| &mut device.alias))
            .chain(self.interfaces.iter_mut().map(|device| &mut device.alias))
            .chain(self.serials.iter_mut().map(|device| &mut device.alias))
            .chain(self.parallels.iter_mut().map(|device| &mut device.alias))
            .chain(self.consoles.iter_mut().map(|device| &mut device.alias))
            .chain(self.channels.iter_mut().map(|device| &mut device.alias))
            .chain(self.inputs.iter_mut().map(|device| &mut device.alias))
            .chain(self.sounds.iter_mut().map(|device| &mut device.alias))
            .chain(self.videos.iter_mut().map(|device| &mut device.alias))
            .chain(self.watchdogs.iter_mut().map(|device| &mut device.alias))
            .chain(self.balloon.iter_mut().map(|device| &mut device.alias))
            .chain(self.rngs.iter_mut().map(|device| &mut device.alias))
            .chain(self.panics.iter_mut().map(|device| &mut device.alias))
    }
}

/// Names that users give begin with `ua-`.
fn forget_alias(alias: &mut Option<Alias>) {
    *alias = alias.take().filter(|alias| alias.name.starts_with("ua-"));
}

/// The terminal's path is found at each start.
fn forget_terminal(kind: CharacterKind, source: &mut Option<CharacterSource>) {
    if kind == CharacterKind::Pty {
        *source = None;
    }
}

impl Os {
    fn fill(&mut self, has_boot_order: bool) {
        self.kind.fill();
        if self.boot.is_empty() && !has_boot_order {
            self.boot.push(Boot::default());
        }
    }
}

impl OsType {
    fn fill(&mut self) {
        self.arch.get_or_insert_with(|| "x86_64".to_owned());
        self.machine.get_or_insert_with(|| "pc".to_owned());
    }
}
