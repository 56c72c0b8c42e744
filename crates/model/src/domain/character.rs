//! `<serial>`, `<parallel>`, `<console>` and `<channel>`: streams of bytes between guest and
//! host.

use crate::domain::{Address, Alias};
use crate::error::{Error, NoteKind};
use crate::xml::{Element, OnOff, Reader, YesNo, element, values};

values! {
    /// What a stream is on the host.
    pub enum CharacterKind {
        /// A terminal that `console` attaches to.
        #[default]
        Pty = "pty",
        /// A file that what the guest says is written to.
        File = "file",
        /// A Unix socket.
        Unix = "unix",
        /// A TCP socket.
        Tcp = "tcp",
        /// A UDP socket.
        Udp = "udp",
        /// A named pipe.
        Pipe = "pipe",
        /// A device of the host.
        Dev = "dev",
        /// Nothing.
        Null = "null",
        /// Standard input and output of the monitor; refused.
        Stdio = "stdio",
        /// A console on the screen.
        Vc = "vc",
        /// SPICE.
        SpiceVmc = "spicevmc",
        /// SPICE.
        SpicePort = "spiceport",
        /// QEMU's own SPICE agent.
        QemuVdagent = "qemu-vdagent",
        /// D-Bus.
        Dbus = "dbus",
        /// Null modem of BSD; refused.
        Nmdm = "nmdm",
    }
}

element! {
    /// A serial or parallel port, or a console.
    pub struct Character {
        /// What it is on the host.
        kind: CharacterKind = attribute_or_default("type"),
        /// Its terminal while the domain runs; reported.
        tty: Option<String> = attribute("tty"),
        /// Where on the host.
        source: Option<CharacterSource> = child("source"),
        /// What is spoken on a TCP socket.
        protocol: Option<CharacterProtocol> = child("protocol"),
        /// File that what the guest says is also written to.
        log: Option<CharacterLog> = child("log"),
        /// Which port of the guest.
        target: Option<CharacterTarget> = child("target"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "acpi" => Inert("ACPI indices are not given"),
    }
    check Character::check;
}

element! {
    /// `<channel>`: a named port.
    pub struct Channel {
        /// What it is on the host.
        kind: CharacterKind = attribute_or_default("type"),
        /// Where on the host.
        source: Option<CharacterSource> = child("source"),
        /// What is spoken on a TCP socket.
        protocol: Option<CharacterProtocol> = child("protocol"),
        /// File that what the guest says is also written to.
        log: Option<CharacterLog> = child("log"),
        /// Which port of the guest.
        target: CharacterTarget = child("target"),
        /// Name.
        alias: Option<Alias> = child("alias"),
        /// Address.
        address: Option<Address> = child("address"),
    }
    known {
        "acpi" => Inert("ACPI indices are not given"),
    }
    check Channel::check;
}

element! {
    /// `<source>` of a stream.
    pub struct CharacterSource {
        /// `bind` waits for callers, `connect` calls.
        mode: Option<String> = attribute("mode"),
        /// Path of a file, socket, pipe or device.
        path: Option<String> = attribute("path"),
        /// Host to bind or call.
        host: Option<String> = attribute("host"),
        /// Port to bind or call.
        service: Option<String> = attribute("service"),
        /// Whether a file is added to; else it starts empty.
        append: Option<OnOff> = attribute("append"),
        /// Whether TCP is encrypted.
        tls: Option<YesNo> = attribute("tls"),
        /// SPICE channel.
        channel: Option<String> = attribute("channel"),
        /// Calling again.
        reconnect: Option<Reconnect> = child("reconnect"),
    }
    known {
        "seclabel" => Inert("the monitor is confined by its own sandbox, not by labels"),
        "@master" => Refused("null modems of BSD"),
        "@slave" => Refused("null modems of BSD"),
        "clipboard" => Inert("there is no SPICE"),
        "mouse" => Inert("there is no SPICE"),
    }
    check CharacterSource::check;
}

element! {
    /// `<reconnect>`.
    pub struct Reconnect {
        /// Whether a lost socket is called again.
        enabled: YesNo = attribute("enabled"),
        /// Seconds between two calls.
        timeout: Option<u32> = attribute("timeout"),
    }
}

element! {
    /// `<protocol>` of a stream.
    pub struct CharacterProtocol {
        /// `raw`, `telnet`, `telnets`, `tls`.
        kind: String = attribute("type"),
    }
    check CharacterProtocol::check;
}

element! {
    /// `<log>` of a stream.
    pub struct CharacterLog {
        /// Path of the file.
        file: String = attribute("file"),
        /// Whether it is added to; else it starts empty.
        append: Option<OnOff> = attribute("append"),
    }
}

element! {
    /// `<target>` of a stream.
    pub struct CharacterTarget {
        /// Kind of port: `isa-serial`, `serial`, `virtio`, and others.
        kind: Option<String> = attribute("type"),
        /// Name of a channel, which the guest finds it by.
        name: Option<String> = attribute("name"),
        /// Whether the guest has a channel open; reported.
        state: Option<String> = attribute("state"),
        /// Number of the port.
        port: Option<u32> = attribute("port"),
        /// Model of the port.
        model: Option<Element> = child("model"),
    }
    known {
        "@address" => Refused("channels by address (guestfwd); use portForward on the network \
            card, or a virtio channel"),
    }
}

fn check_kind(
    kind: CharacterKind,
    source: Option<&CharacterSource>,
    reader: &Reader<'_>,
) -> Result<(), Error> {
    let path = source.and_then(|source| source.path.as_deref());
    match kind {
        CharacterKind::File | CharacterKind::Pipe | CharacterKind::Dev if path.is_none() => {
            Err(reader.missing("<source path='...'/>"))
        }
        CharacterKind::Tcp | CharacterKind::Udp
            if source.is_none_or(|source| source.service.is_none()) =>
        {
            Err(reader.missing("<source service='...'/>"))
        }
        CharacterKind::Stdio => Err(reader.unsupported(
            "@type",
            "the monitor has no standard input and output; use pty, and 'console' to attach",
        )),
        CharacterKind::Nmdm => Err(reader.unsupported("@type", "null modems of BSD; use pty")),
        CharacterKind::Vc
        | CharacterKind::SpiceVmc
        | CharacterKind::SpicePort
        | CharacterKind::QemuVdagent
        | CharacterKind::Dbus => reader.note(
            NoteKind::Inert,
            "@type",
            format!("nothing is joined to it: there is no '{kind}'"),
        ),
        _ => Ok(()),
    }
}

impl Character {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        check_kind(self.kind, self.source.as_ref(), reader)
    }
}

impl Channel {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        check_kind(self.kind, self.source.as_ref(), reader)?;
        match self.target.kind.as_deref() {
            Some("virtio") => Ok(()),
            None => Err(reader.missing("attribute 'type' of <target>")),
            Some("xen") => Err(reader.unsupported("target/@type", "channels of Xen; use virtio")),
            Some("guestfwd") => Err(reader.unsupported(
                "target/@type",
                "channels by address (guestfwd); use portForward on the network card, or virtio",
            )),
            Some(other) => Err(reader.invalid("target/@type", other, "virtio is expected")),
        }
    }
}

impl CharacterSource {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.tls == Some(YesNo::Yes) {
            return Err(reader.unsupported(
                "@tls",
                "encryption of a serial line over TCP; use a Unix socket and a tunnel",
            ));
        }
        match self.mode.as_deref() {
            None | Some("bind" | "connect") => {}
            Some(other) => {
                return Err(reader.invalid("@mode", other, "bind or connect is expected"));
            }
        }
        match &self.path {
            Some(path) if !path.is_empty() && !path.starts_with('/') => {
                Err(reader.invalid("@path", path, "an absolute path is expected"))
            }
            _ => Ok(()),
        }
    }
}

impl CharacterProtocol {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.kind.as_str() {
            "raw" => Ok(()),
            "telnet" | "telnets" | "tls" => {
                Err(reader.unsupported("@type", format!("protocol '{}'; use raw", self.kind)))
            }
            other => Err(reader.invalid("@type", other, "raw is expected")),
        }
    }
}
