//! `<input>`, `<graphics>`, `<sound>` and `<video>`.

use crate::domain::{Address, Alias};
use crate::error::{Error, NoteKind};
use crate::xml::{Element, Reader, YesNo, element, values};

values! {
    /// What an input device is.
    pub enum InputKind {
        /// A mouse.
        #[default]
        Mouse = "mouse",
        /// A pointer with absolute coordinates.
        Tablet = "tablet",
        /// A keyboard.
        Keyboard = "keyboard",
        /// A device of the host; refused.
        Passthrough = "passthrough",
        /// A device of the host; refused.
        Evdev = "evdev",
    }
}

values! {
    /// Bus of an input device.
    pub enum InputBus {
        /// The keyboard controller.
        #[default]
        Ps2 = "ps2",
        /// USB.
        Usb = "usb",
        /// virtio.
        Virtio = "virtio",
        /// Xen; refused.
        Xen = "xen",
    }
}

element! {
    /// `<input>`.
    pub struct Input {
        /// What it is.
        kind: InputKind = attribute("type"),
        /// Its bus; filled in if absent.
        bus: Option<InputBus> = attribute("bus"),
        /// Model of a virtio device.
        model: Option<String> = attribute("model"),
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
    check Input::check;
}

impl Input {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if matches!(self.kind, InputKind::Passthrough | InputKind::Evdev) {
            return Err(reader.unsupported(
                "@type",
                format!("input devices of the host ('{}')", self.kind),
            ));
        }
        if self.bus == Some(InputBus::Xen) {
            return Err(reader.unsupported("@bus", "Xen not supported; use ps2"));
        }
        if self.kind == InputKind::Tablet && self.bus == Some(InputBus::Ps2) {
            return Err(reader.invalid("@bus", "ps2", "a tablet is on bus usb or virtio"));
        }
        self.bus.get_or_insert(match self.kind {
            InputKind::Tablet => InputBus::Usb,
            _ => InputBus::Ps2,
        });
        Ok(())
    }
}

values! {
    /// What a viewer speaks.
    pub enum GraphicsKind {
        /// VNC.
        #[default]
        Vnc = "vnc",
        /// SPICE.
        Spice = "spice",
        /// A window on the host; refused.
        Sdl = "sdl",
        /// Remote desktop of VirtualBox; refused.
        Rdp = "rdp",
        /// A window on the host; refused.
        Desktop = "desktop",
        /// A window on the host; refused.
        EglHeadless = "egl-headless",
        /// D-Bus.
        Dbus = "dbus",
    }
}

element! {
    /// `<graphics>`. The password is printed only where secrets are asked for; see
    /// [`crate::domain::Domain::without_secrets`].
    pub struct Graphics {
        /// What viewers speak.
        kind: GraphicsKind = attribute("type"),
        /// Port, -1 for one to be found.
        port: Option<i32> = attribute("port"),
        /// Encrypted port of SPICE.
        tls_port: Option<i32> = attribute("tlsPort"),
        /// Whether a port is to be found.
        autoport: Option<YesNo> = attribute("autoport"),
        /// Port of VNC over WebSocket.
        websocket: Option<i32> = attribute("websocket"),
        /// Address to listen on; the loopback one if absent.
        listen: Option<String> = attribute("listen"),
        /// Unix socket to listen on.
        socket: Option<String> = attribute("socket"),
        /// Keyboard layout.
        keymap: Option<String> = attribute("keymap"),
        /// Password of viewers.
        password: Option<String> = attribute("passwd"),
        /// Until when it holds, in UTC: `2026-11-20T09:00:00`.
        password_valid_to: Option<String> = attribute("passwdValidTo"),
        /// What happens to those there when it changes.
        connected: Option<String> = attribute("connected"),
        /// Whether several viewers share the screen.
        share_policy: Option<String> = attribute("sharePolicy"),
        /// Default mode of SPICE channels.
        default_mode: Option<String> = attribute("defaultMode"),
        /// Places to listen at.
        listens: Vec<GraphicsListen> = child("listen"),
    }
    known {
        "channel" => Inert("there is no SPICE"),
        "image" => Inert("there is no SPICE"),
        "jpeg" => Inert("there is no SPICE"),
        "zlib" => Inert("there is no SPICE"),
        "playback" => Inert("there is no SPICE"),
        "streaming" => Inert("there is no SPICE"),
        "clipboard" => Inert("there is no SPICE"),
        "mouse" => Inert("there is no SPICE"),
        "filetransfer" => Inert("there is no SPICE"),
        "gl" => Inert("nothing is rendered on the host"),
        "audio" => Inert("sound goes where the sound device says"),
        "@powerControl" => Inert("viewers cannot switch the guest"),
        "@wait" => Inert("the guest does not wait for viewers"),
        "@keymap" => Inert("keys are sent by their codes"),
    }
    check Graphics::check;
}

element! {
    /// `<listen>`.
    pub struct GraphicsListen {
        /// `address`, `network`, `socket` or `none`.
        kind: String = attribute("type"),
        /// Address.
        address: Option<String> = attribute("address"),
        /// Network of the node.
        network: Option<String> = attribute("network"),
        /// Path of a Unix socket.
        socket: Option<String> = attribute("socket"),
    }
    known {
        "@fromConfig" => Inert("private to whoever wrote this"),
    }
    check GraphicsListen::check;
}

impl GraphicsListen {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.kind.as_str() {
            "address" | "network" | "socket" | "none" => Ok(()),
            other => Err(reader.invalid(
                "@type",
                other,
                "one of address, network, socket, none is expected",
            )),
        }
    }
}

impl Graphics {
    /// The address to listen on, if one is named.
    pub fn listen_address(&self) -> Option<&str> {
        let listed = self
            .listens
            .iter()
            .find(|listen| listen.kind == "address")
            .and_then(|listen| listen.address.as_deref());
        listed.or(self.listen.as_deref())
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.kind {
            GraphicsKind::Vnc => {}
            GraphicsKind::Spice => reader.note(
                NoteKind::Inert,
                "@type",
                "there is no SPICE: no viewer can join; use type='vnc'",
            )?,
            GraphicsKind::Dbus => {
                reader.note(NoteKind::Inert, "@type", "nothing is offered on D-Bus")?;
            }
            other => {
                return Err(
                    reader.unsupported("@type", format!("screens of type '{other}'; use vnc"))
                );
            }
        }
        self.check_port(reader)?;
        let named = self
            .listens
            .iter()
            .find_map(|listen| listen.address.as_deref());
        if let (Some(attribute), Some(element)) = (self.listen.as_deref(), named)
            && attribute != element
        {
            return Err(reader.invalid(
                "@listen",
                attribute,
                format!("it must match the address of <listen>, '{element}'"),
            ));
        }
        self.note_exposure(reader)
    }

    fn check_port(&mut self, reader: &Reader<'_>) -> Result<(), Error> {
        let Some(port) = self.port else { return Ok(()) };
        if !(-1..=65535).contains(&port) {
            return Err(reader.invalid(
                "@port",
                &port.to_string(),
                "a port, or -1 for one to be found, is expected",
            ));
        }
        if port == -1 {
            self.autoport = Some(YesNo::Yes);
        }
        Ok(())
    }

    fn note_exposure(&self, reader: &Reader<'_>) -> Result<(), Error> {
        if let Some(address) = self.listen_address()
            && !is_loopback(address)
        {
            reader.note(
                NoteKind::Security,
                "@listen",
                format!(
                    "anyone who reaches {address} sees and steers the guest; listen on 127.0.0.1 \
                     and tunnel"
                ),
            )?;
        }
        if self.password.is_some() {
            reader.note(
                NoteKind::Security,
                "@passwd",
                "a VNC password is short, sent in a weak way and stands in this document; a \
                 Unix socket or a tunnel is safer",
            )?;
        }
        Ok(())
    }
}

fn is_loopback(address: &str) -> bool {
    match address.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => matches!(address, "localhost" | ""),
    }
}

element! {
    /// `<sound>`.
    pub struct Sound {
        /// `ac97`, `ich6` and others.
        model: String = attribute("model"),
        /// Codecs.
        codecs: Vec<Element> = child("codec"),
        /// Where its sound goes.
        audio: Option<Element> = child("audio"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "acpi" => Inert("ACPI indices are not given"),
    }
}

element! {
    /// `<video>`.
    pub struct Video {
        /// Options of its driver.
        driver: Option<Element> = child("driver"),
        /// Model.
        model: Option<VideoModel> = child("model"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "driver" => Inert("the adapter has no options"),
        "acpi" => Inert("ACPI indices are not given"),
    }
    check Video::check;
}

element! {
    /// `<model>` of a display adapter.
    pub struct VideoModel {
        /// `vga`, `cirrus`, `bochs`, `qxl`, `virtio`, `none` and others.
        kind: String = attribute("type"),
        /// Memory of QXL in KiB.
        ram: Option<u32> = attribute("ram"),
        /// Video memory in KiB.
        vram: Option<u32> = attribute("vram"),
        /// 64-bit memory of QXL in KiB.
        vram64: Option<u32> = attribute("vram64"),
        /// Memory of the screen in KiB.
        vgamem: Option<u32> = attribute("vgamem"),
        /// Number of screens.
        heads: Option<u32> = attribute("heads"),
        /// Whether it is the first adapter.
        primary: Option<YesNo> = attribute("primary"),
        /// Acceleration.
        acceleration: Option<Element> = child("acceleration"),
        /// Size in pixels.
        resolution: Option<Element> = child("resolution"),
    }
    known {
        "@blob" => Inert("nothing is rendered on the host"),
        "acceleration" => Inert("nothing is rendered on the host"),
    }
}

impl Video {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let model = self
            .model
            .as_ref()
            .map_or("vga", |model| model.kind.as_str());
        match model {
            "bochs" | "none" => Ok(()),
            other => reader.note(
                NoteKind::Mapped,
                "model/@type",
                format!(
                    "the adapter is a linear framebuffer (bochs-display) in place of '{other}'"
                ),
            ),
        }
    }
}
