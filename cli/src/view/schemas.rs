//! The JSON schemas of every result, as `docs/schemas` has them.

use schemars::{Schema, schema_for};

use super::{
    AddressItem, CertificateItem, ChainItem, CheckItem, ComparisonItem, ConfigSetting,
    DiskStatItem, DoctorReport, DomainDetail, DomainDiskItem, DomainInterfaceItem, DomainItem,
    DomainSnapshotItem, DomainStatItem, DomainStateItem, Done, ErrorPage, HostEvent, JobItem,
    MapItem, NodeInfo, PoolItem, PoolTypeItem, RepairItem, SnapshotItem, VcpuCountItem,
    VersionInfo, VolumeItem, WipeItem,
};
use crate::plan::Plan;

/// The schema of each reading command, and of `plan` (what `--dry-run` prints), `done` (what
/// changing commands print) and `event` (each line of `event`).
#[must_use]
pub fn all() -> Vec<(&'static str, Schema)> {
    vec![
        ("config-show", schema_for!(Vec<ConfigSetting>)),
        ("doctor", schema_for!(DoctorReport)),
        ("domblklist", schema_for!(Vec<DomainDiskItem>)),
        ("domblkstat", schema_for!(DiskStatItem)),
        ("domifaddr", schema_for!(Vec<AddressItem>)),
        ("domiflist", schema_for!(Vec<DomainInterfaceItem>)),
        ("dominfo", schema_for!(DomainDetail)),
        ("domstate", schema_for!(DomainStateItem)),
        ("domstats", schema_for!(Vec<DomainStatItem>)),
        ("done", schema_for!(Done)),
        ("event", schema_for!(HostEvent)),
        ("explain", schema_for!(ErrorPage)),
        ("fsck", schema_for!(Vec<RepairItem>)),
        ("job-list", schema_for!(Vec<JobItem>)),
        ("list", schema_for!(Vec<DomainItem>)),
        ("nodeinfo", schema_for!(NodeInfo)),
        ("plan", schema_for!(Plan)),
        ("pool-capabilities", schema_for!(Vec<PoolTypeItem>)),
        ("pool-info", schema_for!(PoolItem)),
        ("pool-list", schema_for!(Vec<PoolItem>)),
        ("snapshot-info", schema_for!(DomainSnapshotItem)),
        ("snapshot-list", schema_for!(Vec<DomainSnapshotItem>)),
        ("vcpucount", schema_for!(Vec<VcpuCountItem>)),
        ("verify-certificate", schema_for!(Vec<CertificateItem>)),
        ("version", schema_for!(VersionInfo)),
        ("vol-chain", schema_for!(ChainItem)),
        ("vol-check", schema_for!(CheckItem)),
        ("vol-compare", schema_for!(ComparisonItem)),
        ("vol-info", schema_for!(VolumeItem)),
        ("vol-list", schema_for!(Vec<VolumeItem>)),
        ("vol-map", schema_for!(Vec<MapItem>)),
        ("vol-snapshot-list", schema_for!(Vec<SnapshotItem>)),
        ("wipe-list", schema_for!(Vec<WipeItem>)),
    ]
}
