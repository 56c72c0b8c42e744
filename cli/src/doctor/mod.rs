//! `cenote doctor`: is this machine ready, and what is to be done if not?
//!
//! [`facts`] looks at the machine and changes nothing; [`judge`] judges what it found. The judges
//! are pure, so that every failure can be shown in a test without breaking a machine.

pub mod facts;
pub mod host;
mod probes;

pub use probes::judge;
