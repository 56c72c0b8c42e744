//! Snapshots of domains: `<domainsnapshot>`.
//!
//! See <https://libvirt.org/formatsnapshot.html>. A caller writes name, description, memory and
//! disks; the rest is what the node adds, and what it reads back when a snapshot is redefined.

use uuid::Uuid;

use crate::document::document;
use crate::domain::{DiskKind, DiskSource, Domain, SnapshotMode, target_index};
use crate::error::Error;
use crate::names::Name;
use crate::volume::Format;
use crate::xml::{Content, Element, Present, Reader, element, values};

values! {
    /// The domain's state when the snapshot was taken.
    pub enum SnapshotState {
        /// Running.
        Running = "running",
        /// Waiting for something.
        Blocked = "blocked",
        /// Paused.
        Paused = "paused",
        /// Shutting down.
        Shutdown = "shutdown",
        /// Shut off.
        #[default]
        Shutoff = "shutoff",
        /// Crashed.
        Crashed = "crashed",
        /// Running, with its disks alone in the snapshot.
        DiskSnapshot = "disk-snapshot",
    }
}

values! {
    /// Where a domain's memory is kept.
    pub enum SnapshotMemoryMode {
        /// Nowhere.
        #[default]
        No = "no",
        /// In a disk's image.
        Internal = "internal",
        /// In a file.
        External = "external",
    }
}

element! {
    /// A snapshot.
    pub struct Snapshot {
        /// Name; the seconds since 1970 if absent, given by the node.
        name: Option<Name> = leaf("name"),
        /// For people.
        description: Option<String> = leaf("description"),
        /// State of the domain.
        state: Option<SnapshotState> = leaf("state"),
        /// The snapshot before it.
        parent: Option<SnapshotParent> = child("parent"),
        /// Seconds since 1970.
        creation_time: Option<i64> = leaf("creationTime"),
        /// Memory.
        memory: Option<SnapshotMemory> = child("memory"),
        /// Disks; those not named are treated by default.
        disks: Option<SnapshotDisks> = child("disks"),
        /// The domain as it was.
        domain: Option<SnapshotDomain> = child("domain"),
        /// The domain as it would have been after its end.
        inactive_domain: Option<Box<Domain>> = child("inactiveDomain"),
        /// Whether it is the current one; reported.
        active: Option<u8> = leaf("active"),
    }
    known {
        "cookie" => Inert("private to whoever wrote this"),
    }
    check Snapshot::check;
}

document!(Snapshot, "domainsnapshot");

element! {
    /// `<parent>`.
    pub struct SnapshotParent {
        /// Name.
        name: Name = leaf("name"),
    }
}

element! {
    /// `<memory>` of a snapshot.
    pub struct SnapshotMemory {
        /// Where it is kept; external if a file is named.
        mode: Option<SnapshotMemoryMode> = attribute("snapshot"),
        /// File it is kept in.
        file: Option<String> = attribute("file"),
    }
    check SnapshotMemory::check;
}

element! {
    /// `<disks>` of a snapshot.
    pub struct SnapshotDisks {
        /// The disks.
        disks: Vec<SnapshotDisk> = child("disk"),
    }
}

element! {
    /// `<disk>` of a snapshot.
    pub struct SnapshotDisk {
        /// Its target's name, or the path of its source.
        name: String = attribute("name"),
        /// How it is kept.
        mode: Option<SnapshotMode> = attribute("snapshot"),
        /// What the new image is.
        kind: Option<DiskKind> = attribute("type"),
        /// Format of the new image.
        driver: Option<SnapshotDriver> = child("driver"),
        /// The new image.
        source: Option<DiskSource> = child("source"),
    }
    check SnapshotDisk::check;
}

element! {
    /// `<driver>` of a disk in a snapshot.
    pub struct SnapshotDriver {
        /// Format of the new image; qcow2 if absent, since it needs a backing file.
        format: Option<Format> = attribute("type"),
    }
    known {
        "metadata_cache" => Inert("the cache's size is bounded by the monitor"),
    }
}

/// `<domain>` of a snapshot: the whole of it, or just its identity.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotDomain {
    /// Identity only, as old snapshots have it.
    Uuid(Uuid),
    /// The whole.
    Full(Box<Domain>),
}

impl Present for SnapshotDomain {}

impl Content for SnapshotDomain {
    fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let bare = reader.element().get("type").is_none()
            && reader
                .element()
                .elements()
                .all(|child| child.name == "uuid");
        if !bare {
            return Domain::read(reader).map(|domain| Self::Full(Box::new(domain)));
        }
        let uuid = crate::xml::LeafField::read(&mut reader, "uuid")?;
        reader.finish_bare()?;
        Ok(Self::Uuid(uuid))
    }

    fn write(&self, name: &str) -> Element {
        match self {
            Self::Uuid(uuid) => Element::new(name)
                .with_child(Element::new("uuid").with_text(uuid.hyphenated().to_string())),
            Self::Full(domain) => domain.write(name),
        }
    }
}

impl Snapshot {
    /// The disks that are named.
    pub fn disks(&self) -> &[SnapshotDisk] {
        self.disks.as_ref().map_or(&[], |disks| &disks.disks)
    }

    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if let Some(active) = self.active
            && active > 1
        {
            return Err(reader.invalid("active", &active.to_string(), "0 or 1 is expected"));
        }
        let mut seen = std::collections::HashSet::new();
        for disk in self.disks() {
            if !seen.insert(disk.name.as_str()) {
                return Err(reader.invalid(
                    "disks/disk/@name",
                    &disk.name,
                    "each disk is named once",
                ));
            }
        }
        Ok(())
    }
}

impl SnapshotMemory {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match (self.mode, &self.file) {
            (None, Some(_)) => self.mode = Some(SnapshotMemoryMode::External),
            (Some(SnapshotMemoryMode::External), None) => {
                return Err(reader.missing("attribute 'file' (external memory needs one)"));
            }
            (Some(SnapshotMemoryMode::No | SnapshotMemoryMode::Internal), Some(file)) => {
                return Err(reader.invalid(
                    "@file",
                    file,
                    "a file is for snapshot='external' only",
                ));
            }
            _ => {}
        }
        match &self.file {
            Some(file) if !file.starts_with('/') => {
                Err(reader.invalid("@file", file, "an absolute path is expected"))
            }
            _ => Ok(()),
        }
    }
}

impl SnapshotDisk {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        if target_index(&self.name).is_none() && !self.name.starts_with('/') {
            return Err(reader.invalid(
                "@name",
                &self.name,
                "a disk's target (vda) or the path of its source is expected",
            ));
        }
        if let Some(kind) = self.kind
            && !matches!(kind, DiskKind::File | DiskKind::Block)
        {
            return Err(reader.unsupported(
                "@type",
                format!("new images of type '{kind}'; use file or block"),
            ));
        }
        let file = self
            .source
            .as_ref()
            .and_then(|s| s.file.as_ref().or(s.dev.as_ref()));
        if let Some(path) = file {
            if !path.starts_with('/') {
                return Err(reader.invalid("source", path, "an absolute path is expected"));
            }
            match self.mode {
                None => self.mode = Some(SnapshotMode::External),
                Some(SnapshotMode::External) => {}
                Some(mode) => {
                    return Err(reader.invalid(
                        "source",
                        path,
                        format!("a source is for snapshot='external', not '{mode}'"),
                    ));
                }
            }
        }
        match self.driver.as_ref().and_then(|driver| driver.format) {
            None | Some(Format::Qcow2) => Ok(()),
            Some(format) => Err(reader.unsupported(
                "driver/@type",
                format!("new images of format '{format}', which have no backing file; use qcow2"),
            )),
        }
    }
}
