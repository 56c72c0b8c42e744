//! Documents and vocabulary of Cenote: libvirt XML in and out, without I/O.
//!
//! Every other crate speaks of domains, pools, volumes, networks and snapshots through the types
//! here, and every document that a user hands in or is handed goes through this crate.
//!
//! # Promises
//!
//! - **Nothing is dropped in silence.** What a document says is described by a field, or kept as
//!   it is with a [`Note`] that names its place, or refused with an [`Error`] that names its
//!   place. (Only unknown attributes on an element that is one bare value are left out, and the
//!   note says that.) A part is kept only where leaving it without effect harms no one; a part that would
//!   change what a guest, its disks or its secrets see is refused until it is honoured. Strict
//!   reading ([`ReadOptions::strict`]) refuses all that is not known. Comments outside
//!   `<metadata>` are not data and are dropped, as libvirt does.
//! - **Printing is stable.** What is printed reads back as an equal document and prints as the
//!   same bytes; it validates against libvirt's schemas, except for unknown parts that were kept.
//!   `<metadata>` keeps its elements, prefixes, white space and comments.
//! - **Bad input costs little.** Text is bounded in size, depth, elements and attributes before
//!   anything is allocated for it; document types and entities are refused by name; every error
//!   names line and column. Sizes are computed with overflow checked.
//! - **The same words as libvirt.** Units, defaults and orders are libvirt's; where Cenote does a
//!   thing in another way a note says so.
//!
//! # Never
//!
//! No file is opened, no host is asked, no clock is read: the same text gives the same document.
//! No default is filled in that only a host can know.

pub mod capabilities;
mod document;
pub mod domain;
mod error;
mod names;
pub mod network;
pub mod pool;
mod size;
pub mod snapshot;
pub mod volume;
mod xml;

pub use document::{Document, Parsed};
pub use error::{Error, Note, NoteKind, Place};
pub use names::{MAX_NAME, Name, NameError, check_name};
pub use size::{Bytes, Memory, Size, SizeError, scaled, unit_bytes};
pub use xml::xpath;
pub use xml::{Attribute, Element, Hex, Kept, Metadata, Node, OnOff, ReadOptions, YesNo, parse};
