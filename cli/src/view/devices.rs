//! Results about the devices of domains.

use std::fmt::Write as _;

use cenote_engine::{DiskStatus, DomainStats};
use schemars::JsonSchema;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::rows_view;
use crate::out::{Column, Layout, View};

/// What a guest has done with a disk, or with several, in `domblkstat`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct DiskStatItem {
    /// The disk; empty for all of them.
    pub device: String,
    /// Requests to read.
    pub rd_req: u64,
    /// Bytes read.
    pub rd_bytes: u64,
    /// Requests to write.
    pub wr_req: u64,
    /// Bytes written.
    pub wr_bytes: u64,
    /// Requests to flush.
    pub flush_operations: u64,
    /// Requests to discard or to fill with zeroes.
    pub discard_operations: u64,
    /// Requests that failed on the host.
    pub errs: u64,
}

impl DiskStatItem {
    /// The sum of some disks.
    #[must_use]
    pub fn sum(device: String, disks: &[DiskStatus]) -> Self {
        let sum =
            |count: fn(&DiskStatus) -> u64| disks.iter().map(count).fold(0, u64::saturating_add);
        Self {
            device,
            rd_req: sum(|disk| disk.counts.reads),
            rd_bytes: sum(|disk| disk.counts.read_bytes),
            wr_req: sum(|disk| disk.counts.writes),
            wr_bytes: sum(|disk| disk.counts.written_bytes),
            flush_operations: sum(|disk| disk.counts.flushes),
            discard_operations: sum(|disk| disk.counts.discards),
            errs: sum(|disk| disk.counts.errors),
        }
    }
}

impl View for DiskStatItem {
    fn layout(&self) -> Layout {
        let rows = [
            ("rd_req", self.rd_req),
            ("rd_bytes", self.rd_bytes),
            ("wr_req", self.wr_req),
            ("wr_bytes", self.wr_bytes),
            ("flush_operations", self.flush_operations),
            ("discard_operations", self.discard_operations),
            ("errs", self.errs),
        ];
        let device = match self.device.as_str() {
            "" => String::new(),
            device => format!("{device} "),
        };
        let line = |(name, value): (&str, u64)| format!("{device}{name} {value}\n");
        Layout::Text(rows.into_iter().map(line).collect())
    }

    fn names(&self) -> Vec<String> {
        vec![self.device.clone()]
    }
}

/// An address of a guest, in `domifaddr`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AddressItem {
    /// The card's device on the host, where it has one.
    pub interface: Option<String>,
    /// The card's Ethernet address.
    pub mac: String,
    /// `ipv4`.
    pub protocol: String,
    /// The address and how many bits of it are the network's.
    pub address: String,
    /// The name that the guest said it has.
    pub host_name: Option<String>,
}

/// `domifaddr`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct AddressItems(pub Vec<AddressItem>);

fn or_dash(text: &Option<String>) -> String {
    text.clone().unwrap_or_else(|| "-".to_owned())
}

rows_view!(AddressItems of AddressItem, |row| row.address.clone(), [
    Column::new("interface", "Name") => |row| or_dash(&row.interface),
    Column::new("mac", "MAC address") => |row| row.mac.clone(),
    Column::new("protocol", "Protocol") => |row| row.protocol.clone(),
    Column::new("address", "Address") => |row| row.address.clone(),
    Column::wide("host_name", "Host name") => |row| or_dash(&row.host_name),
]);

/// What is counted of a domain, in `domstats`.
#[derive(Clone, Debug, JsonSchema)]
pub struct DomainStatItem {
    /// Name of the domain.
    pub name: String,
    /// virsh's keys, such as `block.0.rd.reqs`, with numbers or texts, in its order.
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub values: Vec<(String, serde_json::Value)>,
}

impl Serialize for DomainStatItem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.values.iter().cloned();
        let values: serde_json::Map<String, serde_json::Value> = values.collect();
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("values", &values)?;
        map.end()
    }
}

impl DomainStatItem {
    /// From what the engine counts.
    #[must_use]
    pub fn new(name: String, stats: &DomainStats) -> Self {
        let mut values = Vec::new();
        let mut add = |key: &str, value: serde_json::Value| values.push((key.to_owned(), value));
        add("state.state", stats.state.0.into());
        add("state.reason", stats.state.1.into());
        if let Some(time) = stats.cpu_nanoseconds {
            add("cpu.time", time.into());
        }
        add("balloon.current", stats.memory_kib.0.into());
        add("balloon.maximum", stats.memory_kib.1.into());
        add("vcpu.current", stats.vcpus.0.into());
        add("vcpu.maximum", stats.vcpus.1.into());
        add("net.count", stats.cards.len().into());
        for (index, card) in stats.cards.iter().enumerate() {
            let name = card.device.clone().or_else(|| card.mac.clone());
            add(&format!("net.{index}.name"), name.into());
            let Some(traffic) = card.traffic else {
                continue;
            };
            for (way, traffic) in [("rx", traffic.to_guest), ("tx", traffic.from_guest)] {
                add(&format!("net.{index}.{way}.bytes"), traffic.bytes.into());
                add(&format!("net.{index}.{way}.pkts"), traffic.frames.into());
                add(&format!("net.{index}.{way}.drop"), traffic.dropped.into());
            }
        }
        add("block.count", stats.disks.len().into());
        for (index, disk) in stats.disks.iter().enumerate() {
            add(&format!("block.{index}.name"), disk.target.clone().into());
            if let Some(source) = &disk.source {
                add(&format!("block.{index}.path"), source.clone().into());
            }
            let Some(status) = &disk.status else { continue };
            let counts = &status.counts;
            for (key, value) in [
                ("rd.reqs", counts.reads),
                ("rd.bytes", counts.read_bytes),
                ("wr.reqs", counts.writes),
                ("wr.bytes", counts.written_bytes),
                ("fl.reqs", counts.flushes),
                ("errors", counts.errors),
                ("capacity", status.size),
            ] {
                add(&format!("block.{index}.{key}"), value.into());
            }
        }
        Self { name, values }
    }
}

/// `domstats`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct DomainStatItems(pub Vec<DomainStatItem>);

impl View for DomainStatItems {
    fn layout(&self) -> Layout {
        let mut text = String::new();
        for item in &self.0 {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "Domain: '{}'", item.name);
            for (key, value) in &item.values {
                let _ = match value {
                    serde_json::Value::String(value) => writeln!(text, "  {key}={value}"),
                    value => writeln!(text, "  {key}={value}"),
                };
            }
            text.push('\n');
        }
        Layout::Text(text)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|item| item.name.clone()).collect()
    }
}
