//! Network cards in the machine description.

use super::{
    Board, BootDescription, BuildError, Description, DescriptionError, FileSource,
    devices::{Slots, add_virtio},
    run::Message,
};
use crate::{
    firmware,
    kvm::Vm,
    pci::OptionRomError,
    virtio::net::{Link, LinkError, MOST_PAIRS, Mac, Net, NetOptions},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{collections::BTreeMap, os::fd::OwnedFd, sync::mpsc::Sender};

/// The longest name, so that threads can be told apart by it.
const LONGEST_NAME: usize = 10;
/// The slots that a device may be given; those below are the board's.
const SLOTS: std::ops::RangeInclusive<u8> = 2..=31;
/// Largest packets in bytes that a guest can be told of.
const MTU: std::ops::RangeInclusive<u16> = 68..=65_535;

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicDescription {
    /// Its name: 1 to 10 letters, digits, `-`, `_`.
    pub name: String,
    /// The card's Ethernet address.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// What it is joined to.
    pub backend: NicBackend,
    /// Largest packet in bytes that the guest is told, 68 to 65535; it is not told unless given.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Whether the cable is plugged in.
    #[serde(default = "yes")]
    pub link: bool,
    /// Slot on the PCI bus, 2 to 31; the next free one unless given.
    #[serde(default)]
    pub slot: Option<u8>,
    /// Turn at booting, lowest first; the firmware does not boot from a card without one.
    #[serde(default)]
    pub boot_index: Option<u32>,
    /// Its option ROM, which boots from the network; with firmware and a turn, iPXE where
    /// distributions put it unless given.
    #[serde(default)]
    pub rom: Option<FileSource>,
}

fn yes() -> bool {
    true
}

/// What a card is joined to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicBackend {
    /// A Unix socket of type SEQPACKET, a frame in each message; the other end is a network
    /// process.
    Socket(DescriptorNumber),
    /// The queues of a tap with virtio headers, one for each pair of queues of the card.
    Tap(Vec<DescriptorNumber>),
}

/// An inherited descriptor, `{"fd": N}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorNumber {
    /// Its number.
    pub fd: std::os::fd::RawFd,
}

/// What is wrong with a network card in the description.
#[derive(Debug, thiserror::Error)]
pub enum NicDescriptionError {
    /// The name is no name.
    #[error("network card name '{0}' is impossible: give 1 to 10 letters, digits, '-' or '_'")]
    Name(String),
    /// Two cards have one name.
    #[error("two network cards are called '{0}': give each its own name")]
    Twice(String),
    /// A value is out of its range.
    #[error("network card '{name}': {what}")]
    Value {
        /// The card.
        name: String,
        /// Which, and what would do.
        what: &'static str,
    },
    /// A descriptor is not open.
    #[error("network card '{name}'")]
    Descriptor {
        /// The card.
        name: String,
        /// Which one, and why.
        source: DescriptionError,
    },
    /// The option ROM cannot be used.
    #[error("network card '{name}'")]
    Rom {
        /// The card.
        name: String,
        /// What is wrong.
        source: OptionRomError,
    },
    /// A descriptor is not what it should be.
    #[error("network card '{name}': descriptor {fd} cannot be used")]
    Link {
        /// The card.
        name: String,
        /// The descriptor's number.
        fd: std::os::fd::RawFd,
        /// What is wrong.
        source: LinkError,
    },
}

/// Checks what the shape does not say. Slots that are taken show when the machine is built.
pub(super) fn check(nics: &[NicDescription]) -> Result<(), NicDescriptionError> {
    for (index, nic) in nics.iter().enumerate() {
        let name = &nic.name;
        let fits = (1..=LONGEST_NAME).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !fits {
            return Err(NicDescriptionError::Name(name.clone()));
        }
        if nics[..index].iter().any(|other| other.name == *name) {
            return Err(NicDescriptionError::Twice(name.clone()));
        }
        let value = |what| {
            Err(NicDescriptionError::Value {
                name: name.clone(),
                what,
            })
        };
        if nic.mac[0] & 1 != 0 || nic.mac == [0; 6] {
            return value(
                "its address must be a single station's: an even first byte, not all zero",
            );
        }
        if nics[..index].iter().any(|other| other.mac == nic.mac) {
            return value("its address is another card's too");
        }
        if nic.mtu.is_some_and(|mtu| !MTU.contains(&mtu)) {
            return value("an MTU is 68 to 65535 bytes");
        }
        if nic.slot.is_some_and(|slot| !SLOTS.contains(&slot)) {
            return value("a slot is 2 to 31");
        }
        if let NicBackend::Tap(queues) = &nic.backend
            && !(1..=usize::from(MOST_PAIRS)).contains(&queues.len())
        {
            return value("give a tap's descriptors, 1 to 64");
        }
    }
    Ok(())
}

impl NicDescription {
    /// The option ROM: the one that is given, or the one that is installed if the firmware is to
    /// boot from the card.
    ///
    /// # Errors
    /// [`DescriptionError::NoNetworkRom`].
    pub(super) fn rom_source(
        &self,
        with_firmware: bool,
    ) -> Result<Option<FileSource>, DescriptionError> {
        if self.rom.is_some() || !with_firmware || self.boot_index.is_none() {
            return Ok(self.rom.clone());
        }
        let path = firmware::locate().network;
        let path = path.ok_or(DescriptionError::NoNetworkRom)?;
        Ok(Some(FileSource::Path(path)))
    }

    /// Takes the card's descriptors over.
    ///
    /// # Errors
    /// [`NicDescriptionError::Descriptor`] or [`NicDescriptionError::Link`].
    pub fn open(&self) -> Result<NetOptions, NicDescriptionError> {
        let links = match &self.backend {
            NicBackend::Socket(socket) => vec![self.link(*socket, Link::frames)?],
            NicBackend::Tap(queues) => queues
                .iter()
                .map(|queue| self.link(*queue, Link::tap))
                .collect::<Result<_, _>>()?,
        };
        Ok(NetOptions {
            mac: self.mac,
            mtu: self.mtu,
            link_up: self.link,
            links,
        })
    }

    fn link(
        &self,
        descriptor: DescriptorNumber,
        make: fn(OwnedFd) -> Result<Link, LinkError>,
    ) -> Result<Link, NicDescriptionError> {
        let file = FileSource::Fd(descriptor.fd)
            .open("network")
            .map_err(|source| NicDescriptionError::Descriptor {
                name: self.name.clone(),
                source,
            })?;
        make(file.into()).map_err(|source| NicDescriptionError::Link {
            name: self.name.clone(),
            fd: descriptor.fd,
            source,
        })
    }
}

/// Puts the cards on the board, those with a slot first. The machine hears of links that are lost.
/// Cards with a turn at booting are put into `order`.
pub(super) fn add(
    board: &mut Board,
    vm: &Vm,
    description: &Description,
    machine: &Sender<Message>,
    order: &mut BTreeMap<u32, String>,
) -> Result<(), BuildError> {
    let with_firmware = matches!(description.boot, BootDescription::Firmware(_));
    let slots = Slots::of(description);
    let (placed, others): (Vec<_>, Vec<_>) =
        description.nics.iter().partition(|nic| nic.slot.is_some());
    for nic in placed.into_iter().chain(others) {
        let machine = machine.clone();
        let name = nic.name.clone();
        let lost = move || {
            // The receiver is gone only when the machine is ending anyway.
            let _ = machine.send(Message::LinkLost(name.clone()));
        };
        let net = Net::new(&nic.name, nic.open()?, Box::new(lost)).map_err(|source| {
            BuildError::Resource {
                what: "threads for a network card",
                source,
            }
        })?;
        let slot = slots.choose(board, nic.slot)?;
        let function = add_virtio(board, vm, &format!("nic-{}", nic.name), slot, net)?;
        if let Some(source) = nic.rom_source(with_firmware)? {
            let file = source.open("option ROM")?;
            let added = function.lock().add_rom(&file, &*vm.overlays());
            added.map_err(|source| NicDescriptionError::Rom {
                name: nic.name.clone(),
                source,
            })?;
        }
        if let Some(index) = nic.boot_index {
            let path = format!("/pci@i0cf8/ethernet@{slot:x}/ethernet-phy@0");
            order.insert(index, path);
        }
    }
    Ok(())
}

mod mac_text {
    use super::*;

    pub(super) fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&parts.join(":"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parts: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
            })
            .collect();
        parts
            .and_then(|parts| parts.try_into().ok())
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "'{text}' is not an address such as 52:54:00:12:34:56"
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: &str = r#"{"name": "net0", "mac": "52:54:00:12:34:56",
        "backend": {"socket": {"fd": 5}}, "mtu": 1500, "slot": 5}"#;

    fn parse(text: &str) -> Result<NicDescription, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_card_is_read_and_written() {
        let card = parse(CARD).unwrap();
        check(std::slice::from_ref(&card)).unwrap();
        assert!(card.link);
        let again = serde_json::to_string(&card).unwrap();
        assert_eq!(parse(&again).unwrap(), card);
        let tap = CARD.replace(
            r#"{"socket": {"fd": 5}}"#,
            r#"{"tap": [{"fd": 5}, {"fd": 6}]}"#,
        );
        check(&[parse(&tap).unwrap()]).unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (from, to) in [
            ("name", "nom"),
            ("52:54", "52:5x"),
            ("52:54", "52"),
            ("52:54", "+2:54"),
            (r#""fd": 5"#, r#""fd": 5, "color": 1"#),
            ("socket", "vhost"),
        ] {
            assert!(parse(&CARD.replacen(from, to, 1)).is_err(), "{to}");
        }
        for (from, to, expected) in [
            ("net0", "", "is impossible"),
            ("net0", "net 0", "is impossible"),
            ("52:54", "53:54", "single station"),
            ("1500", "60", "68 to 65535"),
            (r#""slot": 5"#, r#""slot": 1"#, "a slot is 2 to 31"),
            (r#"{"socket": {"fd": 5}}"#, r#"{"tap": []}"#, "1 to 64"),
        ] {
            let card = parse(&CARD.replacen(from, to, 1)).unwrap();
            let error = check(&[card]).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
        let card = parse(CARD).unwrap();
        let mut second = card.clone();
        assert!(check(&[card.clone(), second.clone()]).is_err());
        second.name = "net1".into();
        let error = check(&[card, second]).unwrap_err().to_string();
        assert!(error.contains("another card's"), "{error}");
    }

    #[test]
    fn descriptors_that_are_something_else_are_named() {
        let mut card = parse(CARD).unwrap();
        card.backend = NicBackend::Socket(DescriptorNumber { fd: 9999 });
        assert!(matches!(
            card.open(),
            Err(NicDescriptionError::Descriptor { .. })
        ));
        let null = std::fs::File::open("/dev/null").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&null);
        card.backend = NicBackend::Tap(vec![DescriptorNumber { fd }]);
        let error = card.open().unwrap_err().to_string();
        assert!(
            error.contains(&format!("'net0': descriptor {fd} cannot be used")),
            "{error}"
        );
    }
}
