//! Guest networks: user-mode NAT with DHCP, DNS, TFTP and services of our own, and taps.
//!
//! **What it is for.** A guest gets a network without root: `cenote-net` is a process that is
//! joined to the monitor by a socket pair and makes ordinary sockets of the guest's frames, as
//! `libslirp` does it for QEMU. DHCP and TFTP are answered by servers of our own, because a guest
//! that installs itself needs a boot file by firmware, entries in memory, and a folder that
//! nothing leads out of. Where there is root, [`tap`] makes and opens taps.
//!
//! **What it promises.** Nothing on the host changes, and nothing listens but the ports that were
//! asked for. What a guest sends is hostile: no frame makes the process panic, work or allocate
//! without bound, or serve a file outside what it was given. A restricted network reaches nothing
//! but the services named in its description. The process confines itself before it reads the
//! first frame and ends when the monitor does.
//!
//! **What it must never do.** Guess what a guest may reach, run a program, or depend on the
//! monitor: it knows a socket and frames.
//!
//! # The parts
//!
//! * [`config`] — the description.
//! * [`process`], [`sandbox`], [`control`] — the process, its confinement, events and questions.
//! * [`network`] — who gets which frame; [`port`] — where frames come from and go to.
//! * [`dhcp`], [`tftp`], [`frame`] — our servers, without I/O but for reading files.
//! * [`slirp`] — libslirp behind a safe face.
//! * [`tap`] — taps and bridges, for root.

pub mod config;
pub mod control;
mod descriptor;
pub mod dhcp;
pub mod frame;
pub mod network;
pub mod port;
pub mod process;
pub mod sandbox;
pub mod slirp;
pub mod tap;
pub mod tftp;
