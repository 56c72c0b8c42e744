//! Results about domains.

use cenote_engine::{DomainInfo, DomainState};
use cenote_model::domain::{Disk, DiskDevice, Domain, Interface};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::rows_view;
use crate::out::{Column, Field, Layout, Table, View, yes_no};

/// A domain, in `list`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DomainItem {
    /// Its id while it runs.
    pub id: Option<u32>,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// `running`, `paused`, `in shutdown`, `shut off` or `crashed`.
    pub state: String,
    /// Why, such as `booted` or `destroyed`.
    pub reason: String,
    /// Whether it is defined beyond its run.
    pub persistent: bool,
    /// Whether it is started with the node.
    pub autostart: bool,
    /// Whether the next start goes on from a managed save.
    pub managed_save: bool,
    /// Its title.
    pub title: Option<String>,
}

impl From<DomainInfo> for DomainItem {
    fn from(info: DomainInfo) -> Self {
        Self {
            id: info.id,
            name: info.name,
            uuid: info.uuid,
            state: info.state.as_str().to_owned(),
            reason: info.state.reason().to_owned(),
            persistent: info.persistent,
            autostart: info.autostart,
            managed_save: info.managed_save,
            title: info.title,
        }
    }
}

impl DomainItem {
    /// The id as virsh prints it.
    #[must_use]
    pub fn shown_id(&self) -> String {
        shown_id(self.id)
    }
}

fn shown_id(id: Option<u32>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| id.to_string())
}

/// `list`.
#[derive(Clone, Debug)]
pub struct DomainItems {
    /// The domains.
    pub domains: Vec<DomainItem>,
    /// Whether the table has their titles.
    pub titles: bool,
    /// Whether the table says `saved` of a stopped domain with a managed save.
    pub mark_saved: bool,
}

impl Serialize for DomainItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.domains.serialize(serializer)
    }
}

impl View for DomainItems {
    fn layout(&self) -> Layout {
        let row = |domain: &DomainItem| {
            let saved = self.mark_saved && domain.managed_save && domain.id.is_none();
            vec![
                domain.shown_id(),
                domain.name.clone(),
                if saved { "saved" } else { &domain.state }.to_owned(),
                domain.title.clone().unwrap_or_default(),
                domain.reason.clone(),
                yes_no(domain.persistent).to_owned(),
                yes_no(domain.autostart).to_owned(),
                yes_no(domain.managed_save).to_owned(),
                domain.uuid.clone(),
            ]
        };
        let title = if self.titles {
            Column::new
        } else {
            Column::wide
        };
        Layout::Table(Table {
            columns: vec![
                Column::new("id", "Id"),
                Column::new("name", "Name"),
                Column::new("state", "State"),
                title("title", "Title"),
                Column::wide("reason", "Reason"),
                Column::wide("persistent", "Persistent"),
                Column::wide("autostart", "Autostart"),
                Column::wide("managed_save", "Managed save"),
                Column::wide("uuid", "UUID"),
            ],
            rows: self.domains.iter().map(row).collect(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.domains
            .iter()
            .map(|domain| domain.name.clone())
            .collect()
    }
}

/// `dominfo`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DomainDetail {
    /// What `list` says of it.
    #[serde(flatten)]
    pub domain: DomainItem,
    /// Kind of guest: `hvm`.
    pub os_type: String,
    /// Number of processors.
    pub vcpus: u32,
    /// Most memory, in KiB.
    pub max_memory_kib: u64,
    /// Memory it has, in KiB.
    pub used_memory_kib: u64,
    /// Whether it ends with the connection that started it.
    pub autodestroy: bool,
}

impl DomainDetail {
    /// From the domain and its document.
    #[must_use]
    pub fn new(info: DomainInfo, document: &Domain) -> Self {
        Self {
            os_type: document.os.kind.kind.as_str().to_owned(),
            vcpus: document.vcpu.present(),
            max_memory_kib: document.memory.kib,
            used_memory_kib: document.current_memory.unwrap_or(document.memory).kib,
            autodestroy: info.autodestroy,
            domain: info.into(),
        }
    }
}

impl View for DomainDetail {
    fn layout(&self) -> Layout {
        let domain = &self.domain;
        let autostart = if domain.autostart {
            "enable"
        } else {
            "disable"
        };
        Layout::Record(vec![
            Field::new("id", "Id", domain.shown_id()),
            Field::new("name", "Name", &domain.name),
            Field::new("uuid", "UUID", &domain.uuid),
            Field::new("os_type", "OS Type", &self.os_type),
            Field::new("state", "State", &domain.state),
            Field::new("vcpus", "CPU(s)", self.vcpus.to_string()),
            Field::new(
                "max_memory_kib",
                "Max memory",
                format!("{} KiB", self.max_memory_kib),
            ),
            Field::new(
                "used_memory_kib",
                "Used memory",
                format!("{} KiB", self.used_memory_kib),
            ),
            Field::new("persistent", "Persistent", yes_no(domain.persistent)),
            Field::new("autostart", "Autostart", autostart),
            Field::new("managed_save", "Managed save", yes_no(domain.managed_save)),
            Field::wide("reason", "Reason", &domain.reason),
            Field::wide("autodestroy", "Autodestroy", yes_no(self.autodestroy)),
            Field::wide("title", "Title", domain.title.clone().unwrap_or_default()),
        ])
    }

    fn names(&self) -> Vec<String> {
        vec![self.domain.name.clone()]
    }
}

/// `domstate`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DomainStateItem {
    /// Name of the domain.
    pub name: String,
    /// How it stands.
    pub state: String,
    /// Why.
    pub reason: String,
    /// libvirt's number of the state.
    pub state_number: i64,
    /// libvirt's number of the reason.
    pub reason_number: i64,
    /// Whether the reason is printed.
    #[serde(skip)]
    pub with_reason: bool,
}

impl DomainStateItem {
    /// The state of the domain `name`.
    #[must_use]
    pub fn new(name: String, state: DomainState, with_reason: bool) -> Self {
        let (state_number, reason_number) = state.numbers();
        Self {
            name,
            state: state.as_str().to_owned(),
            reason: state.reason().to_owned(),
            state_number,
            reason_number,
            with_reason,
        }
    }
}

impl View for DomainStateItem {
    fn layout(&self) -> Layout {
        Layout::Text(if self.with_reason {
            format!("{} ({})\n", self.state, self.reason)
        } else {
            format!("{}\n", self.state)
        })
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

/// A disk, in `domblklist`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DomainDiskItem {
    /// What its source is: `file`, `block` or `volume`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the guest sees: `disk` or `cdrom`.
    pub device: String,
    /// Its name.
    pub target: String,
    /// Its bus.
    pub bus: String,
    /// Path, or `pool/volume`; none in an empty drive.
    pub source: Option<String>,
    /// Format of the image.
    pub format: String,
    /// Whether the guest cannot write.
    pub readonly: bool,
}

impl From<&Disk> for DomainDiskItem {
    fn from(disk: &Disk) -> Self {
        let volume = disk.source_volume();
        let source = volume
            .map(|(pool, volume)| format!("{pool}/{volume}"))
            .or_else(|| disk.source_path().map(str::to_owned));
        Self {
            kind: disk.kind.as_str().to_owned(),
            device: disk.device.as_str().to_owned(),
            target: disk.target.dev.clone(),
            bus: disk.bus().as_str().to_owned(),
            source,
            format: disk.format().as_str().to_owned(),
            readonly: disk.readonly || disk.device == DiskDevice::Cdrom,
        }
    }
}

/// `domblklist`.
#[derive(Clone, Debug)]
pub struct DomainDiskItems {
    /// The disks.
    pub disks: Vec<DomainDiskItem>,
    /// Whether the table has their types and devices.
    pub details: bool,
}

impl Serialize for DomainDiskItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.disks.serialize(serializer)
    }
}

impl View for DomainDiskItems {
    fn layout(&self) -> Layout {
        let more = if self.details {
            Column::new
        } else {
            Column::wide
        };
        let row = |disk: &DomainDiskItem| {
            vec![
                disk.kind.clone(),
                disk.device.clone(),
                disk.target.clone(),
                disk.source.clone().unwrap_or_else(|| "-".to_owned()),
                disk.bus.clone(),
                disk.format.clone(),
                yes_no(disk.readonly).to_owned(),
            ]
        };
        Layout::Table(Table {
            columns: vec![
                more("type", "Type"),
                more("device", "Device"),
                Column::new("target", "Target"),
                Column::new("source", "Source"),
                Column::wide("bus", "Bus"),
                Column::wide("format", "Format"),
                Column::wide("readonly", "Read-only"),
            ],
            rows: self.disks.iter().map(row).collect(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.disks.iter().map(|disk| disk.target.clone()).collect()
    }
}

/// A network card, in `domiflist`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DomainInterfaceItem {
    /// Its device on the host, while it has one.
    pub interface: Option<String>,
    /// What it is joined to: `user`, `network`, `bridge` or `ethernet`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which network or bridge.
    pub source: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// Its address.
    pub mac: Option<String>,
}

impl From<&Interface> for DomainInterfaceItem {
    fn from(card: &Interface) -> Self {
        let source = card.source.as_ref();
        let source = source.and_then(|source| {
            let source = source.network.as_ref().or(source.bridge.as_ref());
            source.cloned()
        });
        Self {
            interface: card.target.as_ref().map(|target| target.dev.clone()),
            kind: card.kind.as_str().to_owned(),
            source,
            model: card.model.as_ref().map(|model| model.kind.clone()),
            mac: card.mac.as_ref().map(|mac| mac.address.to_string()),
        }
    }
}

/// `domiflist`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct DomainInterfaceItems(pub Vec<DomainInterfaceItem>);

fn or_dash(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "-".to_owned())
}

rows_view!(DomainInterfaceItems of DomainInterfaceItem, |row| or_dash(&row.mac), [
    Column::new("interface", "Interface") => |row| or_dash(&row.interface),
    Column::new("type", "Type") => |row| row.kind.clone(),
    Column::new("source", "Source") => |row| or_dash(&row.source),
    Column::new("model", "Model") => |row| or_dash(&row.model),
    Column::new("mac", "MAC") => |row| or_dash(&row.mac),
]);

/// A number of processors, in `vcpucount`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct VcpuCountItem {
    /// `maximum` or `current`.
    pub kind: String,
    /// `config`: at the next start; `live`: now.
    pub scope: String,
    /// The number.
    pub count: u32,
}

/// `vcpucount`.
#[derive(Clone, Debug)]
pub struct VcpuCountItems {
    /// The numbers.
    pub counts: Vec<VcpuCountItem>,
    /// Whether only the number is printed.
    pub bare: bool,
}

impl Serialize for VcpuCountItems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.counts.serialize(serializer)
    }
}

impl View for VcpuCountItems {
    fn layout(&self) -> Layout {
        let line = |item: &VcpuCountItem| {
            if self.bare {
                format!("{}\n", item.count)
            } else {
                format!("{:<12} {:<12} {:>3}\n", item.kind, item.scope, item.count)
            }
        };
        Layout::Text(self.counts.iter().map(line).collect())
    }

    fn names(&self) -> Vec<String> {
        self.counts.iter().map(|item| item.kind.clone()).collect()
    }
}
