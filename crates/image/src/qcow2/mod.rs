//! The qcow2 engine, versions 2 and 3, from the published specification
//! (`docs/interop/qcow2` of the QEMU project).

pub mod entry;
pub mod extension;
pub mod header;
