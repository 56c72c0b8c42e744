//! Installers found in folders and images; systems told as libosinfo tells them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cenote_provision::iso::Image;
use cenote_provision::media::osinfo::Database;
use cenote_provision::media::{Family, Found, Location, Media, MediaError, Tree, open_tree};
use common::{ok, text};

fn tree(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
    for (path, text) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder.to_owned()
}

fn open(path: &Path) -> Result<Media, MediaError> {
    Media::open(&text(path).parse().unwrap())
}

type Case<'a> = (
    &'a [(&'a str, &'a str)],
    &'a str,
    &'a str,
    Family,
    Found,
    Option<&'a str>,
);

const CASES: &[Case<'_>] = &[
    (
        &[
            (
                ".treeinfo",
                "[general]\nfamily = Fedora\nversion = 40\nvariant = Server\narch = x86_64\n\
             [images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n\
             [stage2]\nmainimage = images/install.img\n",
            ),
            ("images/pxeboot/vmlinuz", "k"),
            ("images/pxeboot/initrd.img", "i"),
        ],
        "images/pxeboot/vmlinuz",
        "images/pxeboot/initrd.img",
        Family::Anaconda,
        Found::TreeInfo,
        Some("fedora40"),
    ),
    (
        &[
            ("install.amd/vmlinuz", "k"),
            ("install.amd/initrd.gz", "i"),
            ("install.amd/gtk/vmlinuz", "no"),
            (
                ".disk/info",
                "Debian GNU/Linux 12.5.0 \"Bookworm\" - Official amd64 NETINST with firmware 20240210-11:27",
            ),
        ],
        "install.amd/vmlinuz",
        "install.amd/initrd.gz",
        Family::DebianInstaller,
        Found::Layout,
        Some("debian12"),
    ),
    (
        &[
            ("casper/vmlinuz", "k"),
            ("casper/initrd", "i"),
            (
                ".disk/info",
                "Ubuntu-Server 24.04 LTS \"Noble Numbat\" - Release amd64 (20240423)",
            ),
        ],
        "casper/vmlinuz",
        "casper/initrd",
        Family::Subiquity,
        Found::Layout,
        Some("ubuntu24.04"),
    ),
    (
        &[
            ("boot/x86_64/loader/linux", "k"),
            ("boot/x86_64/loader/initrd", "i"),
        ],
        "boot/x86_64/loader/linux",
        "boot/x86_64/loader/initrd",
        Family::Yast,
        Found::Layout,
        None,
    ),
    (
        // A mirror's copy of the tree without what its .treeinfo names.
        &[
            (
                ".treeinfo",
                "[general]\nfamily = CentOS Stream\nversion = 9\n[images-x86_64]\n\
             kernel = gone\ninitrd = gone\n",
            ),
            ("isolinux/vmlinuz", "k"),
            ("isolinux/initrd.img", "i"),
        ],
        "isolinux/vmlinuz",
        "isolinux/initrd.img",
        Family::Anaconda,
        Found::Layout,
        Some("centos-stream9"),
    ),
    (
        &[
            ("debian-installer/amd64/linux", "k"),
            ("debian-installer/amd64/initrd.gz", "i"),
        ],
        "debian-installer/amd64/linux",
        "debian-installer/amd64/initrd.gz",
        Family::DebianInstaller,
        Found::Layout,
        None,
    ),
    (
        &[
            ("arch/boot/x86_64/vmlinuz-linux", "k"),
            ("arch/boot/x86_64/initramfs-linux.img", "i"),
        ],
        "arch/boot/x86_64/vmlinuz-linux",
        "arch/boot/x86_64/initramfs-linux.img",
        Family::Live,
        Found::Layout,
        None,
    ),
];

fn check(media: &Media, case: &Case<'_>) {
    let (_, kernel, initrd, family, found, product) = case;
    let installer = &media.installer;
    assert_eq!(
        (installer.kernel.as_str(), installer.initrd.as_str()),
        (*kernel, *initrd)
    );
    assert_eq!(
        (installer.family, installer.found),
        (*family, *found),
        "{kernel}"
    );
    let short = installer.product.as_ref().map(|product| product.short_id());
    assert_eq!(short.as_deref(), *product);
    assert_eq!(media.kernel.read_all().unwrap(), b"k");
    assert_eq!(media.initrd.read_all().unwrap(), b"i");
}

#[test]
fn installers_are_found_in_folders_and_in_images() {
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        let path = tree(&folder.path().join("tree"), case.0);
        check(&open(&path).unwrap(), case);
        let image = folder.path().join("image.iso");
        ok(
            "xorriso",
            "xorriso",
            &[
                "-as",
                "mkisofs",
                "-quiet",
                "-R",
                "-o",
                text(&image),
                text(&path),
            ],
            b"",
        );
        check(&open(&image).unwrap(), case);
    }
}

#[test]
fn what_is_named_goes_before_what_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = tree(
        folder.path(),
        &[
            ("install.amd/vmlinuz", "no"),
            ("install.amd/initrd.gz", "no"),
            ("my,own/kernel", "k"),
            ("rd", "i"),
            (".disk/info", "Debian GNU/Linux 13.0.0"),
        ],
    );
    let location: Location = format!("{},kernel=my,,own/kernel,initrd=rd", text(&path))
        .parse()
        .unwrap();
    let media = Media::open(&location).unwrap();
    assert_eq!(media.installer.found, Found::Named);
    assert_eq!(media.installer.family, Family::DebianInstaller);
    assert_eq!(media.kernel.read_all().unwrap(), b"k");
    let files: Location = format!("kernel={0}/rd,initrd={0}/rd", text(&path))
        .parse()
        .unwrap();
    let media = Media::open(&files).unwrap();
    assert!(media.tree.is_none() && media.kernel.size() == 1);
    let wrong: Location = format!("{},kernel=no,initrd=rd", text(&path))
        .parse()
        .unwrap();
    let error = Media::open(&wrong).unwrap_err();
    assert!(
        matches!(error, MediaError::NoFile { ref file, .. } if file == "no"),
        "{error}"
    );
}

#[test]
fn locations_that_are_none_are_refused() {
    for location in [
        "",
        "x,",
        "x,kernel=a",
        "x,initrd=a",
        "x,other=a,kernel=b,initrd=c",
        "kernel=a",
        "x,kernel=,initrd=b",
        "x,kernel=a,kernel=b,initrd=c",
        "https://example.org/debian/",
    ] {
        assert!(location.parse::<Location>().is_err(), "{location}");
    }
}

#[test]
fn a_tree_without_an_installer_names_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    for place in [
        "images/pxeboot/vmlinuz",
        "casper/vmlinuz",
        "install.amd/vmlinuz",
        "--cdrom",
    ] {
        assert!(error.contains(place), "{error}");
    }
    let file = folder.path().join("no.iso");
    fs::write(&file, "not an image").unwrap();
    assert!(matches!(open(&file).unwrap_err(), MediaError::Iso { .. }));
    assert!(matches!(
        open(&folder.path().join("gone")).unwrap_err(),
        MediaError::Io { .. }
    ));
}

#[test]
fn links_of_a_folder_do_not_lead_out_of_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    let path = tree(&folder.path().join("tree"), &[("inside", "inside")]);
    symlink(folder.path().join("secret"), path.join("absolute")).unwrap();
    symlink("../secret", path.join("relative")).unwrap();
    symlink("inside", path.join("good")).unwrap();
    let tree: Tree = open_tree(&path).unwrap();
    for outside in ["absolute", "relative", "../secret", "good/x", "."] {
        assert!(tree.find(outside).unwrap().is_none(), "{outside}");
    }
    assert_eq!(tree.text("good").unwrap().as_deref(), Some("inside"));
    assert_eq!(tree.text("/inside").unwrap().as_deref(), Some("inside"));
}

/// Images with the labels of published media, told as `osinfo-detect` tells them.
#[test]
fn systems_are_told_as_libosinfo_tells_them() {
    let database = Database::of_this_machine().unwrap();
    assert!(database.systems().len() > 300, "install osinfo-db");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.iso");
    let mut told = 0;
    let boot = tree(&folder.path().join("boot"), &[("boot.bin", "boot")]);
    for label in [
        "Fedora-S-dvd-x86_64-36",
        "Fedora-WS-Live-36-1-5",
        "Debian 11.5.0 amd64 n",
        "CentOS-Stream-9-BaseOS-x86_64",
        "CentOS_7_x86_64",
        "RHEL-9-1-0-BaseOS-x86_64",
        "Rocky-9-1-x86_64-dvd",
        "AlmaLinux-9-1-x86_64-dvd",
        "no-such-thing",
    ] {
        // osinfo-detect reads bootable media alone.
        let arguments = [
            "-as",
            "mkisofs",
            "-quiet",
            "-V",
            label,
            "-sysid",
            "LINUX",
            "-b",
            "boot.bin",
            "-no-emul-boot",
            "-o",
            text(&path),
            text(&boot),
        ];
        ok("xorriso", "xorriso", &arguments, b"");
        let image = Image::open(File::open(&path).unwrap()).unwrap();
        let ours = database.of_image(&image);
        let theirs = ok(
            "osinfo-detect",
            "libosinfo-bin",
            &["-f", "plain", text(&path)],
            b"",
        );
        let theirs = String::from_utf8(theirs).unwrap();
        let theirs = theirs.lines().find(|line| line.contains(" for OS "));
        told += usize::from(ours.is_some());
        match (ours, theirs) {
            (None, None) => {}
            // It prints the name of a variant: 'Fedora Server 36 (x86_64)'.
            (Some(ours), Some(theirs)) => {
                let version = ours.version.as_deref().unwrap();
                let vendor = ours.name.split(' ').next().unwrap();
                assert!(
                    theirs.contains(version) && theirs.contains(vendor),
                    "{label}: {theirs}"
                );
            }
            (ours, theirs) => panic!("{label}: {ours:?}, {theirs:?}"),
        }
    }
    assert!(told >= 6, "{told}");
}

#[test]
fn short_ids_are_looked_up_and_wrong_ones_answered_with_near_ones() {
    let database = Database::of_this_machine().unwrap();
    let debian = database.get("debian11").unwrap();
    assert_eq!(debian.short_id(), "debian11");
    let needs = database.resources(debian);
    assert_eq!(needs.minimum_memory, Some(1 << 30));
    assert_eq!(needs.recommended_storage, Some(20 << 30));
    assert!(database.get("fedora14").is_some());
    assert!(database.get("debain11").is_none());
    assert_eq!(database.suggestions("debain11").first(), Some(&"debian11"));
    assert!(database.suggestions("zzzz").is_empty());
    assert!(
        Database::open(["/nonexistent"])
            .unwrap()
            .systems()
            .is_empty()
    );
}
