//! The DSDT: the PCI root, its interrupt links, and the devices of the ISA bus.

use super::Platform;
use crate::{
    devices::{piix3::PIRQ_ROUTE, piix4_pm::USUAL_BASE, pvpanic},
    memory::{PCI_WINDOW, VIDEO_WINDOW},
    pci::Pin,
};
use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Equal,
        Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt,
        Local, Method, Name, OpRegion, OpRegionSpace, Or, Package, PackageBuilder, Path,
        ResourceTemplate, Return, Scope, Store, ZERO,
    },
};

const ROUTES: [&str; 4] = ["PRQA", "PRQB", "PRQC", "PRQD"];
const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
const ROUTE_DISABLED: u8 = 0x80;

/// A resource template already in bytes, as a buffer that methods can change.
struct Template(Vec<u8>);

impl Aml for Template {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn body(platform: &Platform<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    // Sleep type 0 is S5, for PM1a and for the absent PM1b.
    let s5 = Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut body);
    let root = pci_root(platform);
    let links: Vec<Template> = (0..4).map(link).collect();
    let mut children: Vec<&dyn Aml> = vec![&root];
    children.extend(links.iter().map(|link| -> &dyn Aml { link }));
    Scope::new("_SB_".into(), children).to_aml_bytes(&mut body);
    body
}

fn built(parts: &[&dyn Aml]) -> Template {
    let mut bytes = Vec::new();
    for part in parts {
        part.to_aml_bytes(&mut bytes);
    }
    Template(bytes)
}

fn pci_root(platform: &Platform<'_>) -> Template {
    let high = platform.layout.high_pci_window();
    let uncached = AddressSpaceCacheable::NotCacheable;
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low_ports = AddressSpace::new_io(0u16, 0xcf7u16, None);
    let ports = AddressSpace::new_io(0xd00u16, 0xffffu16, None);
    let video = AddressSpace::new_memory(
        AddressSpaceCacheable::Cacheable,
        true,
        VIDEO_WINDOW.start as u32,
        VIDEO_WINDOW.end as u32 - 1,
        None,
    );
    let low = AddressSpace::new_memory(
        uncached,
        true,
        PCI_WINDOW.start as u32,
        PCI_WINDOW.end as u32 - 1,
        None,
    );
    let above = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        high.start,
        high.end - 1,
        None,
    );
    let resources = ResourceTemplate::new(vec![
        &bus, &config, &low_ports, &ports, &video, &low, &above,
    ]);
    let routing = interrupt_routing();
    let isa = isa_bridge(platform);
    built(&[&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &routing),
            &isa,
        ],
    )])
}

/// Which link each pin of each slot is wired to.
fn interrupt_routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0u8..32 {
        for number in 1u8..=4 {
            let pirq = Pin::new(number).map_or(0, |pin| pin.pirq(slot));
            let address = u32::from(slot) << 16 | 0xffff;
            let pin = number - 1;
            let link = Path::new(&format!("\\_SB_.{}", LINKS[usize::from(pirq)]));
            table.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
        }
    }
    table
}

/// An interrupt link: one of PIIX3's route registers.
fn link(pirq: usize) -> Template {
    let route = Path::new(&format!("\\_SB_.PCI0.ISA_.{}", ROUTES[pirq]));
    let possible = interrupts(&[5, 10, 11]);
    let current = interrupts(&[0]);
    let number = Path::new("IRQW");
    // The interrupt number in the descriptor, after tag, length, flags and count.
    const NUMBER_OFFSET: u8 = 5;
    let disabled = ROUTE_DISABLED;
    let enabled_status = 0xbu8;
    let disabled_status = 9u8;
    let uid = pirq as u8 + 1;
    built(&[&Device::new(
        LINKS[pirq].into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0F")),
            &Name::new("_UID".into(), &uid),
            &Name::new("_PRS".into(), &ResourceTemplate::new(vec![&possible])),
            &Method::new(
                "_STA".into(),
                0,
                false,
                vec![
                    &And::new(&Local(0), &route, &disabled),
                    &If::new(
                        &Equal::new(&Local(0), &disabled),
                        vec![&Return::new(&disabled_status)],
                    ),
                    &Return::new(&enabled_status),
                ],
            ),
            &Method::new(
                "_DIS".into(),
                0,
                false,
                vec![&Or::new(&route, &route, &disabled)],
            ),
            &Method::new(
                "_CRS".into(),
                0,
                true,
                vec![
                    &Name::new("BUFF".into(), &ResourceTemplate::new(vec![&current])),
                    &CreateDWordField::new(&number, &Path::new("BUFF"), &NUMBER_OFFSET),
                    &And::new(&number, &route, &0xfu8),
                    &Return::new(&Path::new("BUFF")),
                ],
            ),
            &Method::new(
                "_SRS".into(),
                1,
                true,
                vec![
                    &CreateDWordField::new(&number, &Arg(0), &NUMBER_OFFSET),
                    &Store::new(&route, &number),
                ],
            ),
        ],
    )])
}

/// The descriptor of an interrupt that is level-triggered, high, shared, and any of `numbers`.
fn interrupts(numbers: &[u32]) -> Template {
    let mut bytes = vec![0x89];
    bytes.extend((2 + 4 * numbers.len() as u16).to_le_bytes());
    bytes.extend([0x09, numbers.len() as u8]);
    for number in numbers {
        bytes.extend(number.to_le_bytes());
    }
    Template(bytes)
}

fn isa_bridge(platform: &Platform<'_>) -> Template {
    let region = OpRegion::new("P40C".into(), OpRegionSpace::PCIConfig, &PIRQ_ROUTE, &4u8);
    let fields = Field::new(
        "P40C".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        ROUTES
            .iter()
            .map(|name| {
                let mut field = [0; 4];
                field.copy_from_slice(name.as_bytes());
                FieldEntry::Named(field, 8)
            })
            .collect(),
    );
    let address = 0x0001_0000u32;
    let clock = legacy("RTC_", "PNP0B00", &[(0x70, 2)], Some(8));
    let keyboard = legacy("KBD_", "PNP0303", &[(0x60, 1), (0x64, 1)], Some(1));
    let timer = legacy("TIMR", "PNP0100", &[(0x40, 4)], Some(0));
    // Ports that belong to the board: fast reset, ELCR, power management.
    let board = legacy(
        "MISC",
        "PNP0C02",
        &[(0x92, 1), (0x4d0, 2), (USUAL_BASE, 0x40)],
        None,
    );
    let serial = legacy("COM1", "PNP0501", &[(0x3f8, 8)], Some(4));
    let panic = pvpanic_device();
    let name = Name::new("_ADR".into(), &address);
    let mut children: Vec<&dyn Aml> =
        vec![&name, &region, &fields, &clock, &keyboard, &timer, &board];
    if platform.serial {
        children.push(&serial);
    }
    if platform.pvpanic {
        children.push(&panic);
    }
    built(&[&Device::new("ISA_".into(), children)])
}

/// A device with ports and at most one edge-triggered interrupt.
fn legacy(name: &str, id: &str, ports: &[(u16, u8)], irq: Option<u32>) -> Template {
    let ports: Vec<IO> = ports
        .iter()
        .map(|(first, count)| IO::new(*first, *first, 1, *count))
        .collect();
    let interrupt = irq.map(|irq| Interrupt::new(true, true, false, false, irq));
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|io| -> &dyn Aml { io }).collect();
    if let Some(interrupt) = &interrupt {
        resources.push(interrupt);
    }
    built(&[&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )])
}

fn pvpanic_device() -> Template {
    let port = IO::new(pvpanic::PORT, pvpanic::PORT, 1, 1);
    built(&[&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0xfu8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    )])
}
