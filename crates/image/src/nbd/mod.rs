//! A network block device server on a Unix socket.
//!
//! Specification: the NBD protocol (`doc/proto.md` of NetworkBlockDevice/nbd),
//! fixed newstyle negotiation, simple and structured replies, and the metadata
//! context `base:allocation`. No TLS: access is the socket file's mode, 0600.
//!
//! It serves any [`BlockDevice`] to several clients at once, with many
//! requests of each under way. All connections share one device, so a flush on
//! any of them covers what others were told is written (`CAN_MULTI_CONN`).
//!
//! It promises bounded memory whatever clients send, and that a request it
//! has begun is finished and answered before it stops. It must never let a
//! client write to a read-only export.

mod connection;
mod device;
mod negotiate;
mod protocol;
mod server;

pub use device::{BlockDevice, DeviceExtent};
pub use server::{Export, Server, ServerOptions};
