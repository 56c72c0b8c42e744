//! What a file looks like from its first bytes.
//!
//! For listing files that Cenote did not make, and for nothing else: whoever
//! can write a disk can write any of these bytes. What may be done with the
//! answer is decided by [`crate::FormatOrigin`].

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// Nothing in it at all, so nothing to tell.
    Empty,
    /// No header that is known.
    Raw,
    /// A header of this format.
    Format(&'static str),
}

/// Offset, magic, and name as libvirt writes it.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"conectix", "vpc"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"OOOM", "cow"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "ploop"),
    (0, b"WithouFreSpacExt", "ploop"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (32769, b"CD001", "iso"),
];

/// Bytes from the start that hold every magic.
const HEAD: u64 = 32774;

/// Looks at the first bytes of the file at `path`.
///
/// # Errors
/// The file cannot be read.
pub fn sniff(path: &Path) -> Result<Looks> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD).read_to_end(&mut head))
        .map_err(|source: io::Error| Error::at("read the first bytes of", path, source))?;
    Ok(look(&head))
}

fn look(head: &[u8]) -> Looks {
    if head.is_empty() {
        return Looks::Empty;
    }
    MAGICS
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|at| at.starts_with(magic)))
        .map_or(Looks::Raw, |(_, _, name)| Looks::Format(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn images_of_qemu_img_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for (format, expected) in [
            ("raw", Looks::Raw),
            ("qcow2", Looks::Format("qcow2")),
            ("qcow", Looks::Format("qcow")),
            ("qed", Looks::Format("qed")),
            ("vmdk", Looks::Format("vmdk")),
            ("vdi", Looks::Format("vdi")),
            ("vhdx", Looks::Format("vhdx")),
            ("vpc", Looks::Format("vpc")),
        ] {
            let path = dir.path().join(format);
            let status = Command::new("qemu-img")
                .args(["create", "-q", "-f", format])
                .arg(&path)
                .arg("8M")
                .status()
                .expect("qemu-img of package qemu-utils");
            assert!(status.success());
            assert_eq!(sniff(&path).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn short_and_empty_files_are_no_trouble() {
        assert_eq!(look(b""), Looks::Empty);
        assert_eq!(look(b"QFI"), Looks::Raw);
        assert_eq!(look(&[0; 40000]), Looks::Raw);
    }
}
