//! Unattended installs: what can be known, made and decided without a running domain.
//!
//! - [`answer`]: answer files looked over, written, and added to.
//! - [`install`]: the two phases: their documents, when the first is done, what is seen of it.
//! - [`iso`]: ISO 9660 images, read and written.
//! - [`deliver`]: how an answer file reaches its installer, and the server it fetches from.
//! - [`initrd`]: files put into an installer's initial RAM disk.
//! - [`media`]: the installer in a tree or an image, and which system it installs.
//!
//! # Promises
//!
//! - **Media are hostile.** An image's tables are checked against the image's length before
//!   anything is allocated or followed; directories that contain themselves, links that lead in
//!   circles and names without end are errors, never loops.
//! - **Same input, same bytes.** Nothing here reads a clock.
//! - **Secrets stay secret.** Passwords are hashed before they reach a file; no finding, error
//!   or debug output repeats one.
//!
//! # Never
//!
//! No domain is started and no volume is made here: that is for the node.

pub mod answer;
pub mod deliver;
pub mod initrd;
pub mod install;
pub mod iso;
pub mod media;
