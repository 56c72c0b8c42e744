//! Unattended installs: what can be known, made and decided without a running domain.
//!
//! - [`iso`]: ISO 9660 images, read and written.
//! - [`initrd`]: files put into an installer's initial RAM disk.
//! - [`media`]: the installer in a tree or an image, and which system it installs.
//!
//! # Promises
//!
//! - **Media are hostile.** An image's tables are checked against the image's length before
//!   anything is allocated or followed; directories that contain themselves, links that lead in
//!   circles and names without end are errors, never loops.
//! - **Same input, same bytes.** Nothing here reads a clock.
//!
//! # Never
//!
//! No domain is started and no volume is made here: that is for the node.

pub mod initrd;
pub mod iso;
pub mod media;
