//! Images of xorriso and genisoimage read by us, ours read by them, and damaged ones.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use cenote_provision::iso::{
    BootMedia, Entry, EntryKind, Error, Image, Naming, Platform, ReadAt, WriteError, Writer,
};
use common::{ok, text};
use proptest::prelude::*;

/// A folder with what makes trouble: depth, length, odd names, links, an empty file.
fn sample(folder: &Path) {
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    write("images/pxeboot/vmlinuz", &pattern(3_000_017, 1));
    write("images/pxeboot/initrd.img", &pattern(70_000, 2));
    write(".treeinfo", b"[general]\nfamily = Fedora\n");
    write("empty", b"");
    write("a/b/c/d/e/f/g/h/i/j/deep.txt", b"deep\n");
    write(&format!("{}.dat", "n".repeat(200)), b"long name\n");
    write("Grüße & co.txt", b"unicode\n");
    for number in 0..300 {
        let name = format!("many/package-{number:03}_1.0-1_all.deb");
        write(&name, name.as_bytes());
    }
    symlink("images/pxeboot", folder.join("boot-link")).unwrap();
    symlink("../images/pxeboot/vmlinuz", folder.join("many/kernel")).unwrap();
    symlink("loop-b", folder.join("loop-a")).unwrap();
    symlink("loop-a", folder.join("loop-b")).unwrap();
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) ^ (at >> 8) as u8)
        .collect()
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn gather(folder: &Path, prefix: &str, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                gather(&entry.path(), &format!("{path}/"), into);
            } else if kind.is_file() {
                into.insert(path, fs::read(entry.path()).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    gather(folder, "", &mut found);
    found
}

fn read_all<S: ReadAt>(image: &Image<S>) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut entries: Vec<(String, Entry)> = Vec::new();
    image
        .walk(|path, entry| {
            entries.push((path.to_owned(), entry.clone()));
            Ok(())
        })
        .unwrap();
    for (path, entry) in entries.iter().filter(|(_, entry)| entry.is_file()) {
        let mut bytes = vec![0; entry.size() as usize];
        assert_eq!(image.read(entry, 0, &mut bytes).unwrap(), bytes.len());
        found.insert(path.clone(), bytes);
    }
    found
}

struct Made {
    folder: tempfile::TempDir,
    image: Image<File>,
}

fn made(program: &str, package: &str, options: &[&str]) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    sample(&tree);
    let path = folder.path().join("made.iso");
    let mut arguments = options.to_vec();
    arguments.extend(["-o", text(&path), text(&tree)]);
    ok(program, package, &arguments, b"");
    let image = Image::open(File::open(&path).unwrap()).unwrap();
    Made { folder, image }
}

fn check_rock_ridge(made: &Made) {
    let Made { folder, image } = made;
    assert_eq!(image.naming(), Naming::RockRidge);
    let mut found = read_all(image);
    // genisoimage shows the place that deep directories were moved to; it is empty.
    found.retain(|path, _| !path.starts_with("rr_moved"));
    let expected = files(&folder.path().join("tree"));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    assert!(found == expected, "contents differ");
    let kernel = image.find("boot-link/vmlinuz").unwrap().unwrap();
    assert_eq!(kernel.size(), 3_000_017);
    let again = image.find("/many/./kernel").unwrap().unwrap();
    assert_eq!(again, kernel);
    let mut part = [0; 100];
    assert_eq!(image.read(&kernel, 3_000_000, &mut part).unwrap(), 17);
    assert_eq!(part[..17], pattern(3_000_017, 1)[3_000_000..]);
    let root = image.list(&image.root()).unwrap();
    let link = root.iter().find(|e| e.name() == "boot-link").unwrap();
    assert_eq!(link.kind(), &EntryKind::Link("images/pxeboot".into()));
    assert!(matches!(
        image.find("loop-a/x").unwrap_err(),
        Error::TooMany { .. }
    ));
    assert!(image.find("images/nothing").unwrap().is_none());
    assert!(image.find("empty/below").unwrap().is_none());
    assert_eq!(image.find("many/..").unwrap().unwrap(), image.root());
}

#[test]
fn an_image_of_xorriso_is_read_whole() {
    let options = [
        "-as",
        "mkisofs",
        "-quiet",
        "-R",
        "-J",
        "-joliet-long",
        "-V",
        "Fedora-S-40",
    ];
    let made = made("xorriso", "xorriso", &options);
    check_rock_ridge(&made);
    assert_eq!(made.image.label(), "Fedora-S-40");
    assert!(made.image.boot_entries().unwrap().is_empty());
}

#[test]
fn an_image_of_genisoimage_with_moved_directories_is_read_whole() {
    let options = ["-quiet", "-R", "-V", "DEEP"];
    check_rock_ridge(&made("genisoimage", "genisoimage", &options));
}

#[test]
fn joliet_names_are_read_where_there_is_no_rock_ridge() {
    let options = [
        "-quiet",
        "-J",
        "-joliet-long",
        "-D",
        "-input-charset",
        "utf-8",
        "-V",
        "cidata",
    ];
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("user-data"), "#cloud-config\n").unwrap();
    fs::write(tree.join("sub/Grüße.txt"), "x").unwrap();
    let path = folder.path().join("made.iso");
    let mut arguments = options.to_vec();
    arguments.extend(["-o", text(&path), text(&tree)]);
    ok("genisoimage", "genisoimage", &arguments, b"");
    let image = Image::open(File::open(&path).unwrap()).unwrap();
    assert_eq!(image.naming(), Naming::Joliet);
    assert_eq!(image.label(), "cidata");
    assert_eq!(read_all(&image), files(&tree));
    assert_eq!(image.read_file("SUB/Grüße.TXT", 9).unwrap(), b"x");
}

#[test]
fn plain_names_are_found_in_any_case() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("isolinux")).unwrap();
    fs::write(tree.join("isolinux/vmlinuz"), "kernel").unwrap();
    let path = folder.path().join("made.iso");
    let arguments = ["-quiet", "-o", text(&path), text(&tree)];
    ok("genisoimage", "genisoimage", &arguments, b"");
    let image = Image::open(File::open(&path).unwrap()).unwrap();
    assert_eq!(image.naming(), Naming::Plain);
    assert_eq!(image.read_file("isolinux/vmlinuz", 9).unwrap(), b"kernel");
}

#[test]
fn the_boot_catalogue_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("bios.bin"), pattern(4096, 3)).unwrap();
    fs::write(tree.join("efi.img"), pattern(65536, 4)).unwrap();
    let path = folder.path().join("made.iso");
    let arguments = [
        "-as",
        "mkisofs",
        "-quiet",
        "-R",
        "-b",
        "bios.bin",
        "-c",
        "boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-eltorito-alt-boot",
        "-e",
        "efi.img",
        "-no-emul-boot",
        "-o",
        text(&path),
        text(&tree),
    ];
    ok("xorriso", "xorriso", &arguments, b"");
    let image = Image::open(File::open(&path).unwrap()).unwrap();
    let entries = image.boot_entries().unwrap();
    let platforms: Vec<_> = entries.iter().map(|entry| entry.platform).collect();
    assert_eq!(platforms, [Platform::X86, Platform::Efi]);
    let [bios, efi] = entries.as_slice() else {
        panic!("{entries:?}")
    };
    assert!(bios.bootable && bios.media == BootMedia::NoEmulation && bios.sectors == 4);
    let mut code = vec![0; 65536];
    image.source().read_exact_at(&mut code, efi.offset).unwrap();
    assert_eq!(code, pattern(65536, 4));
}

/// An image of ours with directories, a name clash of short names, and a directory that takes
/// several sectors.
fn ours() -> (Vec<u8>, BTreeMap<String, Vec<u8>>) {
    let mut expected = BTreeMap::new();
    let mut writer = Writer::new("OEMDRV").unwrap();
    let mut add = |path: &str, bytes: Vec<u8>| {
        writer.add(path, bytes.clone()).unwrap();
        expected.insert(path.to_owned(), bytes);
    };
    add("ks.cfg", b"text\npoweroff\n".to_vec());
    add("user-data", b"#cloud-config\n".to_vec());
    add("user-date", pattern(5000, 5));
    add("empty", Vec::new());
    add("with space.txt", b"x".to_vec());
    add("sub/b/c/deep.bin", pattern(100_001, 6));
    add("sub/a/other", b"other".to_vec());
    add("zz/last", b"last".to_vec());
    for number in 0..90 {
        add(
            &format!("many/file-with-a-long-name-{number}.conf"),
            vec![number],
        );
    }
    (writer.finish(), expected)
}

#[test]
fn our_image_is_read_by_us_with_the_same_bytes() {
    let (bytes, expected) = ours();
    assert_eq!(bytes, ours().0, "the same files give the same image");
    let image = Image::open(bytes).unwrap();
    assert_eq!(image.label(), "OEMDRV");
    assert_eq!(image.joliet_label(), Some("OEMDRV"));
    assert_eq!(image.naming(), Naming::RockRidge);
    assert_eq!(read_all(&image), expected);
    assert_eq!(image.volume_size(), image.source().len() as u64);
}

#[test]
fn our_image_is_read_by_xorriso_and_isoinfo() {
    let (bytes, expected) = ours();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.iso");
    fs::write(&path, bytes).unwrap();
    let out = folder.path().join("out");
    let arguments = [
        "-abort_on",
        "WARNING",
        "-osirrox",
        "on",
        "-indev",
        text(&path),
        "-extract",
        "/",
        text(&out),
    ];
    ok("xorriso", "xorriso", &arguments, b"");
    assert_eq!(files(&out), expected);
    // Nothing that libisofs would warn of, in either set of names.
    for names in ["-R", "-J"] {
        for (path_inside, bytes) in &expected {
            let file = format!("/{path_inside}");
            let arguments = [names, "-i", text(&path), "-x", &file];
            assert_eq!(
                &ok("isoinfo", "genisoimage", &arguments, b""),
                bytes,
                "{file}"
            );
        }
    }
    let found = ok("isoinfo", "genisoimage", &["-d", "-i", text(&path)], b"");
    let found = String::from_utf8(found).unwrap();
    assert!(found.contains("Volume id: OEMDRV"), "{found}");
    assert!(
        found.contains("Rock Ridge signatures version 1 found"),
        "{found}"
    );
    assert!(found.contains("Joliet with UCS level 3 found"), "{found}");
    let label = ok(
        "blkid",
        "util-linux",
        &["-p", "-o", "export", text(&path)],
        b"",
    );
    let label = String::from_utf8(label).unwrap();
    assert!(
        label.contains("LABEL=OEMDRV\n") && label.contains("TYPE=iso9660\n"),
        "{label}"
    );
}

#[test]
fn labels_and_paths_that_cannot_be_are_refused() {
    for label in ["", "with space", &"x".repeat(33), "ümlaut"] {
        assert_eq!(
            Writer::new(label).unwrap_err(),
            WriteError::Label(label.into())
        );
    }
    let mut writer = Writer::new("x").unwrap();
    for path in [
        "",
        "/x",
        "a//b",
        "..",
        "a/../b",
        "a\n",
        "a/b/c/d/e/f/g/h",
        &"n".repeat(65),
    ] {
        let error = writer.add(path, Vec::new()).unwrap_err();
        assert_eq!(error, WriteError::Path(path.into()));
    }
    writer.add("a", Vec::new()).unwrap();
    assert_eq!(
        writer.add("a", Vec::new()).unwrap_err(),
        WriteError::Exists("a".into())
    );
    assert!(writer.add("a/b", Vec::new()).is_err());
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    for bytes in [Vec::new(), vec![0; 100], vec![0; 1 << 20]] {
        assert!(matches!(Image::open(bytes), Err(Error::NotIso { .. })));
    }
    let mut udf = vec![0; 1 << 20];
    udf[16 * 2048 + 1..][..5].copy_from_slice(b"BEA01");
    let error = Image::open(udf).unwrap_err().to_string();
    assert!(error.contains("UDF"), "{error}");
}

#[test]
fn an_image_cut_short_is_said_to_be() {
    let (bytes, _) = ours();
    let cut = bytes[..bytes.len() / 2].to_vec();
    let image = Image::open(cut).unwrap();
    let mut seen = 0;
    let error = image
        .walk(|_, _| {
            seen += 1;
            Ok(())
        })
        .unwrap_err();
    assert!(
        error.to_string().contains("beyond the image's end"),
        "{error}"
    );
}

/// Where the record of `name` starts in an image.
fn find_record(bytes: &[u8], name: &[u8]) -> usize {
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    at - 33
}

#[test]
fn a_directory_within_itself_ends_the_walk() {
    let mut writer = Writer::new("LOOP").unwrap();
    writer.add("outer/inner/file", b"x".to_vec()).unwrap();
    let mut bytes = writer.finish();
    // In the directory `outer`, the record of `inner` gets the extent of `outer`. The path
    // table has the same names, without a record's head; it stands before.
    let records: Vec<usize> = (0..bytes.len() - 6)
        .filter(|&at| &bytes[at..at + 5] == b"INNER" && at > 33 && bytes[at - 1] == 5)
        .filter(|&at| bytes[at - 33 + 25] == 2)
        .collect();
    let outer: Vec<usize> = (0..bytes.len() - 6)
        .filter(|&at| &bytes[at..at + 5] == b"OUTER" && at > 33 && bytes[at - 1] == 5)
        .filter(|&at| bytes[at - 33 + 25] == 2)
        .collect();
    let (inner, outer) = (records[0] - 33, outer[0] - 33);
    let extent = bytes[outer + 2..outer + 18].to_vec();
    bytes[inner + 2..inner + 18].copy_from_slice(&extent);
    let image = Image::open(bytes).unwrap();
    let error = image.walk(|_, _| Ok(())).unwrap_err().to_string();
    assert!(error.contains("two places"), "{error}");
}

#[test]
fn continuation_areas_that_point_at_themselves_end() {
    let (mut bytes, _) = ours();
    let at = find_record(&bytes, b"KS.CFG;1");
    let use_at = at + 33 + 8 + 1;
    // The system use area becomes one continuation entry, whose area is that same entry.
    let sector = (use_at / 2048) as u32;
    let offset = (use_at % 2048) as u32;
    let mut entry = b"CE\x1c\x01".to_vec();
    for value in [sector, offset, 28] {
        entry.extend(value.to_le_bytes());
        entry.extend(value.to_be_bytes());
    }
    bytes[use_at..use_at + 28].copy_from_slice(&entry);
    let image = Image::open(bytes).unwrap();
    assert!(matches!(
        image.list(&image.root()).unwrap_err(),
        Error::TooMany { .. }
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Bytes changed anywhere give an image that is read, or an error: never a panic, never
    /// an endless walk.
    #[test]
    fn changed_bytes_do_no_harm(changes in prop::collection::vec((0usize..60 * 2048, any::<u8>()), 1..40)) {
        let (mut bytes, _) = ours();
        for (at, value) in changes {
            // Descriptors and directories are where changes matter.
            let at = 16 * 2048 + at % (bytes.len() - 16 * 2048);
            bytes[at] = value;
        }
        if let Ok(image) = Image::open(bytes) {
            let mut entries = Vec::new();
            let _ = image.walk(|_, entry| { entries.push(entry.clone()); Ok(()) });
            let mut buffer = vec![0; 4096];
            for entry in entries.iter().filter(|entry| entry.is_file()) {
                let _ = image.read(entry, 1, &mut buffer);
            }
            let _ = image.boot_entries();
            let _ = image.find("sub/b/c/deep.bin");
        }
    }

    /// Whatever is written is read back.
    #[test]
    fn what_is_written_is_read(files in prop::collection::btree_map("[a-zA-Z0-9._-]{0,2}[a-z0-9]{1,20}(/[a-z]{1,12}){0,3}", prop::collection::vec(any::<u8>(), 0..3000), 0..30)) {
        let mut writer = Writer::new("T").unwrap();
        let mut expected = BTreeMap::new();
        for (path, bytes) in files {
            if writer.add(&path, bytes.clone()).is_ok() {
                expected.insert(path, bytes);
            }
        }
        let image = Image::open(writer.finish()).unwrap();
        prop_assert_eq!(read_all(&image), expected);
    }
}
