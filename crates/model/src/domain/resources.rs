//! Processors and memory.

use crate::error::Error;
use crate::xml::{Content, Element, Present, Reader, Value, element, values};

values! {
    /// Who chooses host processors.
    pub enum Placement {
        /// The document.
        #[default]
        Static = "static",
        /// The node.
        Auto = "auto",
    }
}

element! {
    /// `<vcpu>`.
    pub struct Vcpu {
        /// Who chooses host processors; printed always, as libvirt does.
        placement: Placement = attribute_or_default("placement"),
        /// Host processors to run on.
        cpuset: Option<String> = attribute("cpuset"),
        /// Processors present at start, if not all.
        current: Option<u32> = attribute("current"),
        /// Number of processors, from 1.
        count: VcpuCount = text(),
    }
    known {
        "@cpuset" => Inert("processors are not pinned"),
    }
    check Vcpu::check;
}

impl Vcpu {
    /// A plain count.
    pub fn new(count: u32) -> Self {
        Self {
            count: VcpuCount(count),
            ..Self::default()
        }
    }

    /// Processors present at start.
    pub fn present(&self) -> u32 {
        self.current.unwrap_or(self.count.0)
    }

    /// Most processors.
    pub fn maximum(&self) -> u32 {
        self.count.0
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.current {
            Some(current) if current == 0 || current > self.count.0 => Err(reader.invalid(
                "@current",
                &current.to_string(),
                format!("from 1 to {} can be present at start", self.count.0),
            )),
            _ => Ok(()),
        }
    }
}

/// A number of processors from 1; 1 if nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct VcpuCount(pub u32);

impl Default for VcpuCount {
    fn default() -> Self {
        Self(1)
    }
}

impl Value for VcpuCount {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .filter(|count| (1..=4096).contains(count))
            .map(Self)
            .ok_or_else(|| "a number of processors from 1 to 4096 is expected".to_owned())
    }

    fn print(&self) -> String {
        self.0.to_string()
    }
}

impl Present for VcpuCount {}

/// `<maxMemory>`: kept; memory is not plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MaxMemory(pub Element);

impl Content for MaxMemory {
    fn read(reader: Reader<'_>) -> Result<Self, Error> {
        reader.note(
            crate::NoteKind::Inert,
            "",
            "memory cannot be plugged in; the domain has what <memory> says",
        )?;
        Element::read(reader).map(Self)
    }

    fn write(&self, _name: &str) -> Element {
        self.0.clone()
    }
}

impl Present for MaxMemory {}

element! {
    /// `<memoryBacking>`: where the guest's memory comes from on the host.
    pub struct MemoryBacking {
        /// Huge pages.
        hugepages: Option<Element> = child("hugepages"),
        /// Pages are not to be merged with those of other guests.
        no_share_pages: bool = flag("nosharepages"),
        /// Memory is not to be swapped out.
        locked: bool = flag("locked"),
        /// Kind of memory.
        source: Option<Element> = child("source"),
        /// Whether other processes map it.
        access: Option<Element> = child("access"),
        /// When it is allocated.
        allocation: Option<Element> = child("allocation"),
        /// It may be thrown away at the end.
        discard: bool = flag("discard"),
    }
    known {
        "hugepages" => Inert("memory is in pages of the host's usual size, with transparent huge \
            pages where the host has them"),
        "source" => Inert("memory is anonymous"),
        "access" => Inert("memory is private to the monitor"),
        "allocation" => Inert("memory is allocated as the guest touches it"),
        "discard" => Inert("memory is given back at the end in any case"),
    }
}
