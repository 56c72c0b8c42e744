//! Storage pools and volumes.
//!
//! # What this crate is for
//! A *pool* is a place that holds volumes: a directory, a file system Cenote
//! mounts, a network file system, or an LVM volume group. A *volume* is one
//! disk in it. This crate knows how each type of pool is built, started,
//! looked through and taken apart, and how volumes are made, copied, resized
//! and removed on it without losing a byte to a full disk or a dying process.
//!
//! # What it promises
//! - A volume appears under its name whole or not at all, and never in place
//!   of a file that was there.
//! - What fails leaves nothing behind.
//! - Names and links cannot lead out of a pool.
//!
//! # What it must never do
//! Know domains (the engine says what is in use), keep state
//! of its own (the engine's database does), or guess the format of a disk that
//! a guest may have written.

pub mod backend;
pub mod certificate;
mod command;
pub mod crash;
mod definition;
mod error;
pub mod file;
pub mod layers;
mod mounts;
mod name;
mod progress;
mod sniff;
mod spec;
mod transfer;
mod usage;
mod volume;
pub mod wipe;

pub use definition::PoolDefinition;
pub use error::{Error, ErrorKind, Result};
pub use name::check_volume_name;
pub use progress::{NoProgress, Progress};
pub use sniff::{Looks, sniff};
pub use spec::{BuildMode, NetworkOptions, Permissions, PoolSpec, Source, Space};
pub use transfer::{Transfer, download, upload};
pub use usage::{Usage, host_users};
pub use volume::{BackingInfo, FormatOrigin, VolumeId, VolumeInfo, VolumeKind};
