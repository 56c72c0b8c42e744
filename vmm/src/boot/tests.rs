//! Kernels that are whole, cut off, damaged and too large.

use super::{entry::ZERO_PAGE, *};
use linux_loader::bootparam::boot_params;
use std::io::Write as _;
use vm_memory::ByteValued as _;

const MIB: u64 = 1 << 20;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage with one setup sector and 4 KiB of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 4096];
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &(4096u32 / 16).to_le_bytes());
    put(&mut image, 0x201, &[0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut image, 0x260, &(4 * MIB as u32).to_le_bytes());
    image[1024..].fill(0xc5);
    image
}

/// An ELF kernel with one segment of 4 KiB at 16 MiB, and the PVH note if wanted.
fn vmlinux(pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x3000];
    put(&mut image, 0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(&mut image, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut image, 24, &(16 * MIB).to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 52, &[64, 0, 56, 0, if pvh { 2 } else { 1 }, 0]);
    let mut segment = |index: usize, kind: u32, offset: u64, address: u64, size: u64| {
        let at = 64 + index * 56;
        put(&mut image, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, size), (40, size)] {
            put(&mut image, at + field, &value.to_le_bytes());
        }
        put(&mut image, at + 48, &4u64.to_le_bytes());
    };
    segment(0, 1, 0x1000, 16 * MIB, 0x1000);
    if pvh {
        segment(1, 4, 0x2000, 0, 20);
        put(
            &mut image,
            0x2000,
            &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0],
        );
        put(&mut image, 0x2010, &(16 * MIB as u32 + 0x40).to_le_bytes());
    }
    image[0x1000..0x2000].fill(0xc5);
    image
}

struct Bench {
    layout: MemoryLayout,
    memory: GuestMemory,
}

impl Bench {
    fn new(mib: u64) -> Self {
        let layout = MemoryLayout::new(mib * MIB).unwrap();
        let memory = layout.map().unwrap();
        Self { layout, memory }
    }

    fn load(
        &self,
        kernel: &[u8],
        initrd: Option<&[u8]>,
        command_line: &str,
        protocol: Protocol,
    ) -> Result<Entry, BootError> {
        let (kernel, initrd) = (file(kernel), initrd.map(file));
        let boot = Boot {
            kernel: &kernel,
            initrd: initrd.as_ref(),
            command_line,
            protocol,
            rsdp: 0xe_0000,
        };
        load(&boot, &self.memory, &self.layout)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry_with_all_it_needs_to_know() {
    let bench = Bench::new(64);
    let entry = bench
        .load(
            &bzimage(),
            Some(b"initrd!"),
            "a b  c=\"d e\" ",
            Protocol::Auto,
        )
        .unwrap();
    assert_eq!(entry.address(), 16 * MIB + 0x200);
    assert_eq!(bench.bytes(16 * MIB, 4096), [0xc5; 4096]);
    let mut params = boot_params::default();
    bench
        .memory
        .read_slice(params.as_mut_slice(), GuestAddress(ZERO_PAGE))
        .unwrap();
    let (line, initrd, length) = (
        params.hdr.cmd_line_ptr,
        params.hdr.ramdisk_image,
        params.hdr.ramdisk_size,
    );
    assert_eq!(bench.bytes(line.into(), 14), b"a b  c=\"d e\" \0");
    assert_eq!((initrd, length), (64 * MIB as u32 - 4096, 7));
    assert_eq!(bench.bytes(initrd.into(), 7), b"initrd!");
    assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    let map: Vec<_> = params.e820_table[..params.e820_entries.into()]
        .iter()
        .map(|e| (e.addr, e.size, e.r#type))
        .collect();
    assert!(map.contains(&(MIB, 63 * MIB, 1)), "{map:x?}");
    assert!(map.contains(&(0xe_0000, 0x2_0000, 2)), "{map:x?}");
}

#[test]
fn memory_above_4_gib_is_in_the_map() {
    let map = memory_map(&MemoryLayout::new(5 << 30).unwrap());
    assert_eq!(map.last().unwrap().range, 4 << 30..6 << 30);
    assert!(
        map.iter()
            .all(|e| e.range.end <= 0xc000_0000 || e.range.start >= 0xfec0_0000)
    );
}

#[test]
fn elf_kernels_are_entered_by_pvh_or_in_64_bit_mode() {
    let bench = Bench::new(64);
    let by = |image: &[u8], protocol| bench.load(image, None, "", protocol);
    let pvh = by(&vmlinux(true), Protocol::Auto).unwrap();
    assert_eq!(pvh, Entry::protected(16 * MIB + 0x40));
    assert_eq!(bench.bytes(0x6000, 4), 0x336e_c578u32.to_le_bytes());
    let long = by(&vmlinux(true), Protocol::Linux64).unwrap();
    assert_eq!(long, Entry::long(16 * MIB));
    assert_eq!(by(&vmlinux(false), Protocol::Auto).unwrap(), long);
    assert!(matches!(
        by(&vmlinux(false), Protocol::Pvh),
        Err(BootError::NoPvh)
    ));
    assert!(matches!(
        by(&bzimage(), Protocol::Pvh),
        Err(BootError::NoPvh)
    ));
}

/// No prefix of a kernel is accepted, and none does harm.
#[test]
fn cut_off_kernels_are_refused() {
    let bench = Bench::new(64);
    for image in [bzimage(), vmlinux(true)] {
        let last = image.len() - if image[0] == 0x7f { 0x1000 } else { 0 };
        for length in (0..last).step_by(37) {
            let error = bench
                .load(&image[..length], None, "", Protocol::Auto)
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    BootError::KernelTruncated { .. } | BootError::KernelUnknown
                ),
                "{length}: {error}"
            );
        }
    }
}

/// Whatever a header field says, loading ends with a kernel or an error.
#[test]
fn damaged_headers_do_no_harm() {
    let bench = Bench::new(32);
    for image in [bzimage(), vmlinux(true)] {
        let fields = if image[0] == 0x7f {
            0..0xb0
        } else {
            0x1f1..0x270
        };
        for at in fields {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = image.clone();
                damaged[at..at + 8].fill(value);
                let _ = bench.load(&damaged, Some(b"x"), "line", Protocol::Auto);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let small = Bench::new(18);
    let refused = small
        .load(&bzimage(), None, "", Protocol::Auto)
        .unwrap_err();
    assert!(
        matches!(refused, BootError::KernelLarge { start, end } if (start, end) == (16 * MIB, 20 * MIB))
    );
    let bench = Bench::new(24);
    let initrd = vec![0; 5 * MIB as usize];
    let refused = bench
        .load(&bzimage(), Some(&initrd), "", Protocol::Auto)
        .unwrap_err();
    assert!(
        matches!(refused, BootError::InitrdLarge { size, room } if (size, room) == (5 * MIB, 4 * MIB))
    );
    let line = "x".repeat(2048);
    let refused = bench
        .load(&bzimage(), None, &line, Protocol::Auto)
        .unwrap_err();
    assert!(matches!(
        refused,
        BootError::CommandLineLong {
            length: 2048,
            limit: 2047
        }
    ));
    assert!(
        bench
            .load(&bzimage(), None, &line[1..], Protocol::Auto)
            .is_ok()
    );
    let refused = bench
        .load(&bzimage(), None, "a\0b", Protocol::Auto)
        .unwrap_err();
    assert!(matches!(refused, BootError::CommandLineZero));
}

#[test]
fn old_and_foreign_kernels_are_refused_by_name() {
    let bench = Bench::new(64);
    let mut old = bzimage();
    put(&mut old, 0x206, &0x0206u16.to_le_bytes());
    let refused = bench.load(&old, None, "", Protocol::Auto).unwrap_err();
    assert!(refused.to_string().contains("protocol 2.06"), "{refused}");
    let mut arm = vmlinux(false);
    put(&mut arm, 18, &[183, 0]);
    let refused = bench.load(&arm, None, "", Protocol::Auto).unwrap_err();
    assert!(matches!(refused, BootError::KernelMachine));
    let refused = bench
        .load(b"#!/bin/sh\n", None, "", Protocol::Auto)
        .unwrap_err();
    assert!(matches!(refused, BootError::KernelUnknown));
}
