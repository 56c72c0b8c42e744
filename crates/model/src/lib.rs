//! Documents and vocabulary of Cenote: libvirt XML in and out, without I/O.
