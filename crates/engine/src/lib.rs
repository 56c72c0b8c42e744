//! The node: state, journal, events, jobs and every operation over pools and
//! volumes.
//!
//! # What this crate is for
//! A *node* is one machine's Cenote state: a SQLite database in the state
//! directory plus the folders beside it. [`Node::open`] opens (or makes) it,
//! repairs what an interrupted command left half done, and gives every
//! operation the command line and the servers offer. There is no daemon:
//! several processes may hold the same node open at once.
//!
//! # Shape of the API
//! - [`NodeOptions`] says where the state lies; [`Node::open`] opens it and
//!   [`Node::repairs`] tells what had to be repaired, in words for the user.
//! - Pools: `Node::pool_*` ([`Node::pools`], [`Node::pool`],
//!   [`Node::pool_define`], [`Node::pool_start`], ...). They take the name or
//!   the UUID of a pool.
//! - Volumes: [`Node::resolve_volume`] turns what a user typed (a bare name,
//!   `pool/name`, a path or a key) into a [`VolumeId`]; `Node::volume_*` take
//!   that.
//! - Domains: `Node::domain_*` ([`Node::domains`], [`Node::domain_define`],
//!   [`Node::domain_start`], ...). They take the name, the UUID or the id of a domain. One that
//!   runs is owned by a process of its own, the program `cenote-supervisor`, which is
//!   [`supervisor_main`].
//! - Installs: [`Node::install_prepare`] and [`Node::install`], see [`installs`].
//! - [`Node::events`] reads the event log, [`Node::watch_events`] waits on it
//!   without polling.
//! - [`Node::jobs`] lists long operations, running and finished.
//! - Long operations take a [`Progress`]: it is told how far the work is and
//!   may break off, upon which the operation undoes itself and fails with
//!   [`ErrorKind::Cancelled`].
//! - [`Error::kind`] sorts errors for exit codes, [`Error::hint`] names the
//!   next command.
//!
//! # Promises
//! - A process that dies at any instant (`kill -9`, power cut) leaves a node
//!   that the next [`Node::open`] brings to a clean state and reports on.
//! - Event sequence numbers strictly increase and are never used twice.
//! - A state directory written by a newer Cenote is refused, not guessed at.
//!
//! # What it must never do
//! Trust a disk's format because of its content where a guest could have
//! written it, overwrite a file that it did not make, or touch a volume that
//! something else uses or stands on.

mod bootloader;
mod domains;
mod error;
mod events;
mod inspect;
pub mod installs;
mod jobs;
mod journal;
mod node;
mod paths;
mod plan;
mod pools;
mod records;
mod state;
mod supervisor;
mod teardown;
mod volumes;
mod wipes;

pub use domains::{
    Amount, CardInfo, Cause, ConsoleStream, CrashedReason, DefineOptions, DiskStats, DomainClone,
    DomainInfo, DomainState, DomainStats, Error as DomainError, Hold, MOST_KEYS, MediumChange,
    NetworkServices, PausedReason, Resumption, RunStats, RunningReason, Scope, ShutOffReason,
    ShutdownReason, SnapshotDelete, SnapshotInfo, SnapshotOptions, StartOptions, Started,
    UndefineOptions, Undefined, XmlOptions, scan_code,
};
pub use error::{Error, Result};
pub use events::{Event, EventWatcher};
pub use jobs::{Job, JobState};
pub use journal::{Repair, RepairOutcome};
pub use node::Node;
pub use paths::NodeOptions;
pub use pools::{PoolInfo, PoolRefresh, PoolState};
pub use supervisor::main as supervisor_main;
pub use supervisor::network::{CardTraffic, Lease, Traffic};
pub use teardown::{Inventory, Kept, TeardownOptions, TornDown};

pub use volumes::{
    AfterCommit, ChainNode, CloneSettings, Compression, NewBacking, NewVolume, Preallocation,
    Qcow2Settings, Resize,
};

pub use wipes::WipeOptions;

pub use cenote_image::check::{CheckReport, Repair as ImageRepair};
pub use cenote_image::ops::Comparison;
pub use cenote_image::{Format, Image, Snapshot};
pub use cenote_net::config as network;
pub use cenote_pools::wipe::Error as WipeError;
pub use cenote_pools::{
    BackingInfo, BuildMode, ErrorKind, FormatOrigin, NoProgress, Permissions, Progress, Transfer,
    Usage, VolumeId, VolumeInfo, VolumeKind,
};
pub use cenote_vmm::firmware::{Component as FirmwareComponent, locate as locate_firmware};
pub use cenote_vmm::machine::DiskStatus;
pub use cenote_vmm::virtio::block::BlockCounts;
