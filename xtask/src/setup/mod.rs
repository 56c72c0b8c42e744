//! `cargo xtask setup`: the packages that building, testing and measuring need, and why.

mod apt;
mod python;
mod sources;

pub(crate) use apt::Sources;
pub(crate) use python::packages as python_packages;

use crate::shell::{Outcome, cargo, fail, on_path, run, time};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
Usage: cargo xtask setup [--check] [GROUP…]

Installs the packages that the machine lacks, by name, from the package sources it has.
Without GROUP: test and lab. With --check nothing is installed; the status is 1 if
something is missing.

Groups:
  test    what `cargo test` and the suites under tests/ run beside our own code
  lab     what `cargo xtask lab` builds its emulated KVM host from
  bench   the peers that `cargo xtask bench` measures against
  fuzz    cargo-fuzz
  all     all of them";

/// What a package is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Group {
    Test,
    Lab,
    Bench,
    Fuzz,
}

impl Group {
    const ALL: [Self; 4] = [Self::Test, Self::Lab, Self::Bench, Self::Fuzz];

    fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Lab => "lab",
            Self::Bench => "bench",
            Self::Fuzz => "fuzz",
        }
    }
}

/// One package and the one reason it is here.
pub(crate) struct Package {
    /// Debian's name of the package.
    pub(crate) name: &'static str,
    group: Group,
    why: &'static str,
}

const fn package(group: Group, name: &'static str, why: &'static str) -> Package {
    Package { name, group, why }
}

/// Every package the project takes from the distribution.
#[rustfmt::skip]
pub(crate) const PACKAGES: &[Package] = {
    use Group::{Bench, Fuzz, Lab, Test};
    &[
        package(Test, "gcc", "C parts of SQLite and zstd"),
        package(Test, "pkg-config", "finds libslirp"),
        package(Test, "libslirp-dev", "user-mode network"),
        package(Test, "libglib2.0-dev", "libslirp's headers use it"),
        package(Test, "qemu-utils", "qemu-img, qemu-io, qemu-nbd: the second opinion on every image"),
        package(Test, "libvirt-clients", "virsh's test driver and virt-xml-validate judge our documents"),
        package(Test, "libxml2-utils", "xmllint, which virt-xml-validate runs"),
        package(Test, "libnbd-bin", "nbdinfo and nbdcopy, clients of vol-serve"),
        package(Test, "e2fsprogs", "ext4 file systems in tests"),
        package(Test, "xfsprogs", "XFS file systems with reflinks in tests of wiping"),
        package(Test, "btrfs-progs", "btrfs file systems in tests of wiping"),
        package(Test, "time", "memory and CPU time of programs"),
        package(Test, "scrub", "the passes that wiping must equal, and a peer of it"),
        package(Test, "libvirt-daemon", "vol-wipe, a peer of wiping"),
        package(Test, "poppler-utils", "pdftotext reads the certificates' page"),
        package(Test, "jq", "reads our JSON in shell suites"),
        package(Test, "acpica-tools", "iasl reads our ACPI tables"),
        package(Test, "man-db", "renders our man pages"),
        package(Test, "xorriso", "writes the install images that we read, and reads ours"),
        package(Test, "fdisk", "sfdisk partitions disks that our boot loader reads"),
        package(Test, "genisoimage", "the same, by other hands, with isoinfo"),
        package(Test, "cpio", "reads what is injected into an initrd"),
        package(Test, "initramfs-tools-core", "lsinitramfs reads it as well"),
        package(Test, "lz4", "packs initrds"),
        package(Test, "zstd", "packs initrds"),
        package(Test, "xz-utils", "packs initrds"),
        package(Test, "virtinst", "virt-install, whose documents of an install ours must equal"),
        package(Test, "osinfo-db", "the operating systems that install media are told by"),
        package(Test, "libosinfo-bin", "osinfo-detect, which must tell them likewise"),
        package(Test, "curl", "fetches from the server of installs"),
        package(Test, "debconf", "debconf-set-selections judges our preseed files"),
        package(Test, "cloud-init", "judges our user data"),
        package(Test, "perl-base", "its crypt() checks our hashes of passwords"),
        package(Test, "python3-venv", "the environment of what Debian does not package"),
        package(Test, "zsh", "reads our zsh completions"),
        package(Test, "fish", "reads our fish completions"),
        package(Lab, "qemu-system-x86", "emulates the lab's AMD host, and is the peer of the monitor"),
        package(Lab, "seabios", "firmware of our machine"),
        package(Lab, "ipxe-qemu", "network boot ROMs of our machine"),
        package(Lab, "busybox-static", "user land of the smallest guests"),
        package(Lab, "cpio", "packs their initramfs"),
        package(Lab, "lz4", "unpacks Debian's cloud kernel"),
        package(Lab, "xz-utils", "unpacks Debian's generic kernel"),
        package(Lab, "kmod", "lists the modules of the lab's kernel"),
        package(Lab, "mmdebstrap", "builds the lab's Debian user land"),
        package(Lab, "xorriso", "writes the discs that guests boot from"),
        package(Lab, "isolinux", "a boot loader on discs"),
        package(Lab, "pxelinux", "a boot loader from the network"),
        package(Lab, "syslinux-common", "the parts that both load"),
        package(Lab, "grub-common", "makes GRUB's discs and disks"),
        package(Lab, "grub-pc-bin", "GRUB for BIOSes, on a disc"),
        package(Lab, "mtools", "grub-mkrescue asks for it"),
        package(Lab, "fdisk", "sfdisk partitions the disk that guests boot from"),
        package(Lab, "qemu-utils", "writes that disk's image"),
        package(Lab, "e2fsprogs", "file systems of the lab's disks"),
        package(Lab, "dpkg-dev", "makes the repository of the install disc that tests install from"),
        package(Bench, "fio", "file system and guest disk load"),
        package(Fuzz, "g++", "libFuzzer's run time is C++"),
    ]
};

/// Runs `cargo xtask setup ARGUMENTS`.
pub(crate) fn command(arguments: &[String]) -> Outcome<ExitCode> {
    let mut check = false;
    let mut groups = Vec::new();
    for argument in arguments {
        match argument.as_str() {
            "--check" => check = true,
            "--help" | "-h" => {
                println!("{USAGE}\n\nPackages:");
                for package in PACKAGES {
                    let group = package.group.name();
                    println!("  {group:6} {:16} {}", package.name, package.why);
                }
                for package in python::PACKAGES {
                    println!("  test   {:16} {}", package.package, package.why);
                }
                return Ok(ExitCode::SUCCESS);
            }
            "all" => groups.extend(Group::ALL),
            name => match Group::ALL.into_iter().find(|group| group.name() == name) {
                Some(group) => groups.push(group),
                None => return fail(format_args!("setup: no group `{name}`\n\n{USAGE}")),
            },
        }
    }
    if groups.is_empty() {
        groups = vec![Group::Test, Group::Lab];
    }
    if check {
        return report(&groups);
    }
    ensure(&groups)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what is missing and installs nothing.
fn report(groups: &[Group]) -> Outcome<ExitCode> {
    let missing = missing(groups)?;
    for package in &missing {
        println!("missing: {} ({})", package.name, package.why);
    }
    let fuzz = groups.contains(&Group::Fuzz) && !on_path("cargo-fuzz");
    if fuzz {
        println!("missing: cargo-fuzz (runs the fuzz targets)");
    }
    let python = match groups.contains(&Group::Test) {
        true => python::missing(),
        false => Vec::new(),
    };
    for package in &python {
        println!("missing: {} ({})", package.package, package.why);
    }
    if missing.is_empty() && python.is_empty() && !fuzz {
        println!("setup: nothing is missing");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// Makes sure that everything of these groups is on the machine. Takes a moment where it is.
pub(crate) fn ensure(groups: &[Group]) -> Outcome<()> {
    let begun = Instant::now();
    ensure_quietly(groups)?;
    println!("setup: all present ({})", time(begun.elapsed()));
    Ok(())
}

/// The same, with no word where nothing is missing.
pub(crate) fn ensure_quietly(groups: &[Group]) -> Outcome<()> {
    let missing = missing(groups)?;
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        println!("setup: installing {}", names.join(" "));
        apt::install(&names)?;
    }
    if groups.contains(&Group::Test) {
        let missing = python::missing();
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|package| package.package).collect();
            println!(
                "setup: installing {} below target/xtask/python",
                names.join(" ")
            );
            python::install(&missing)?;
        }
    }
    if groups.contains(&Group::Fuzz) && !on_path("cargo-fuzz") {
        println!("setup: installing cargo-fuzz");
        run(&mut cargo(["install", "--locked", "cargo-fuzz"]))?;
    }
    Ok(())
}

fn missing(groups: &[Group]) -> Outcome<Vec<&'static Package>> {
    let wanted: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| groups.contains(&package.group))
        .collect();
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    let installed = apt::installed(&names)?;
    let mut missing: Vec<&Package> = wanted
        .into_iter()
        .filter(|package| !installed.contains_key(package.name))
        .collect();
    // What two groups need is named by both.
    missing.sort_by_key(|package| package.name);
    missing.dedup_by_key(|package| package.name);
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_package_is_listed_once_in_a_group_with_its_reason() {
        let names: BTreeSet<_> = PACKAGES
            .iter()
            .map(|package| (package.group.name(), package.name))
            .collect();
        assert_eq!(names.len(), PACKAGES.len());
        assert!(PACKAGES.iter().all(|package| !package.why.is_empty()));
    }

    #[test]
    fn an_unknown_group_is_refused_by_name() {
        let error = command(&["labb".into()]).expect_err("no such group");
        assert!(error.0.contains("`labb`"), "{error}");
    }
}
