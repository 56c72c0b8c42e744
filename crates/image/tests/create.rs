//! What we create, judged by QEMU: check, info, and writing to it.

#![allow(clippy::unwrap_used)]

mod exercise;
mod tools;

use std::path::Path;

use cenote_image::create::{Compat, Compression, CreateOptions, Preallocation, create};
use cenote_image::{BackingPolicy, Error, Format, OpenOptions};
use exercise::exercise;
use tools::{qemu_check, qemu_img, qemu_io, raw_dump, text};

const MIB: u64 = 1 << 20;

fn qemu_info(path: &Path) -> serde_json::Value {
    serde_json::from_str(&qemu_img(&["info", "--output=json", text(path)])).unwrap()
}

/// Creates an image, lets QEMU judge and use it, then works on it.
fn judge(options: &CreateOptions) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.qcow2");
    create(&image, options).unwrap();
    let report = qemu_check(&image).unwrap();
    assert_eq!(report["check-errors"], 0, "{report}");
    assert!(report.get("leaks").is_none(), "{report}");
    let info = qemu_info(&image);
    assert_eq!(info["virtual-size"], options.size.unwrap());
    assert_eq!(info["cluster-size"], options.cluster_size);
    let ours = OpenOptions::new(Format::Qcow2)
        .open(&image)
        .unwrap()
        .info()
        .unwrap();
    let ours = serde_json::to_value(ours).unwrap();
    for key in [
        "virtual-size",
        "cluster-size",
        "format",
        "dirty-flag",
        "filename",
    ] {
        assert_eq!(ours[key], info[key], "{key}");
    }
    for key in [
        "compat",
        "refcount-bits",
        "lazy-refcounts",
        "extended-l2",
        "compression-type",
    ] {
        let theirs = &info["format-specific"]["data"][key];
        if !theirs.is_null() {
            assert_eq!(&ours["format-specific"]["data"][key], theirs, "{key}");
        }
    }
    qemu_io(&image, &["write -P 3 100k 300k".to_owned()]);
    exercise(dir.path(), &image);
    info
}

fn qcow2(size: u64) -> CreateOptions {
    CreateOptions::new(Format::Qcow2, size)
}

#[test]
fn cluster_sizes() {
    for bits in [9, 10, 12, 16, 21] {
        judge(&CreateOptions {
            cluster_size: 1 << bits,
            ..qcow2(8 * MIB + 512)
        });
    }
}

#[test]
fn refcount_widths() {
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let info = judge(&CreateOptions {
            refcount_bits: bits,
            ..qcow2(8 * MIB)
        });
        assert_eq!(info["format-specific"]["data"]["refcount-bits"], bits);
    }
}

#[test]
fn version_2() {
    let info = judge(&CreateOptions {
        compat: Compat::V2,
        ..qcow2(8 * MIB)
    });
    assert_eq!(info["format-specific"]["data"]["compat"], "0.10");
}

#[test]
fn features() {
    judge(&CreateOptions {
        lazy_refcounts: true,
        ..qcow2(8 * MIB)
    });
    judge(&CreateOptions {
        extended_l2: true,
        ..qcow2(8 * MIB)
    });
    judge(&CreateOptions {
        compression: Compression::Zstd,
        ..qcow2(8 * MIB)
    });
}

#[test]
fn preallocations() {
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        for cluster_size in [512, 65536] {
            for extended_l2 in [false, cluster_size == 65536] {
                judge(&CreateOptions {
                    preallocation,
                    cluster_size,
                    extended_l2,
                    ..qcow2(6 * MIB)
                });
            }
        }
    }
}

#[test]
fn data_files() {
    for data_file_raw in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.qcow2");
        let options = CreateOptions {
            data_file: Some(text(&dir.path().join("image.data")).to_owned()),
            data_file_raw,
            ..qcow2(8 * MIB)
        };
        create(&image, &options).unwrap();
        qemu_io(&image, &["write -P 3 100k 300k".to_owned()]);
        exercise(dir.path(), &image);
        if data_file_raw {
            let data = dir.path().join("image.data");
            assert!(std::fs::read(data).unwrap() == raw_dump(&image));
        }
    }
}

#[test]
fn huge_disks_cost_little() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size, cluster_size) in [
        ("a", 1u64 << 40, 65536),
        ("b", 120 << 30, 512),
        ("c", 1 << 50, 2 << 20),
    ] {
        let image = dir.path().join(name);
        create(
            &image,
            &CreateOptions {
                cluster_size,
                ..qcow2(size)
            },
        )
        .unwrap();
        let report = qemu_check(&image).unwrap();
        assert_eq!(report["check-errors"], 0, "{report}");
        let opened = OpenOptions::new(Format::Qcow2)
            .writable(true)
            .open(&image)
            .unwrap();
        opened.write_at(&[7; 5000], size - 5000).unwrap();
        opened.close().unwrap();
        let report = qemu_check(&image).unwrap();
        assert!(
            report.get("leaks").is_none() && report.get("corruptions").is_none(),
            "{report}"
        );
    }
}

#[test]
fn overlays_take_the_size_of_their_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.qcow2");
    create(&base, &qcow2(5 * MIB + 512)).unwrap();
    qemu_io(&base, &["write -P 9 1M 3M".to_owned()]);
    let top = dir.path().join("top.qcow2");
    create(&top, &CreateOptions::overlay("base.qcow2", Format::Qcow2)).unwrap();
    let info = qemu_info(&top);
    assert_eq!(info["virtual-size"], 5 * MIB + 512);
    assert_eq!(info["backing-filename"], "base.qcow2");
    assert_eq!(info["backing-filename-format"], "qcow2");
    exercise(dir.path(), &top);
}

#[test]
fn raw_images() {
    let dir = tempfile::tempdir().unwrap();
    for (name, preallocation) in [
        ("a", Preallocation::Off),
        ("b", Preallocation::Falloc),
        ("c", Preallocation::Full),
    ] {
        let image = dir.path().join(name);
        let options = CreateOptions {
            preallocation,
            ..CreateOptions::new(Format::Raw, 3 * MIB + 512)
        };
        create(&image, &options).unwrap();
        let bytes = std::fs::read(&image).unwrap();
        assert!(bytes.len() as u64 == 3 * MIB + 512 && bytes.iter().all(|b| *b == 0));
        let opened = OpenOptions::new(Format::Raw)
            .writable(true)
            .open(&image)
            .unwrap();
        opened.write_at(b"hello", 1000).unwrap();
        opened.write_zeroes(1001, 2, true).unwrap();
        let mut buf = [0; 5];
        opened.read_at(&mut buf, 1000).unwrap();
        assert_eq!(&buf, b"h\0\0lo");
        assert!(matches!(
            opened.write_at(&[1], 3 * MIB + 512),
            Err(Error::OutOfRange { .. })
        ));
        opened.close().unwrap();
    }
}

#[test]
fn contradictions_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.qcow2");
    let wrong = [
        CreateOptions {
            cluster_size: 1000,
            ..qcow2(MIB)
        },
        CreateOptions {
            cluster_size: 4 << 20,
            ..qcow2(MIB)
        },
        CreateOptions {
            refcount_bits: 3,
            ..qcow2(MIB)
        },
        CreateOptions {
            compat: Compat::V2,
            lazy_refcounts: true,
            ..qcow2(MIB)
        },
        CreateOptions {
            compat: Compat::V2,
            compression: Compression::Zstd,
            ..qcow2(MIB)
        },
        CreateOptions {
            extended_l2: true,
            cluster_size: 8192,
            ..qcow2(MIB)
        },
        CreateOptions {
            data_file_raw: true,
            ..qcow2(MIB)
        },
        CreateOptions {
            data_file: Some("relative.data".to_owned()),
            ..qcow2(MIB)
        },
        CreateOptions {
            cluster_size: 512,
            ..qcow2(1 << 45)
        },
        CreateOptions {
            size: None,
            ..qcow2(0)
        },
        CreateOptions {
            extended_l2: true,
            ..CreateOptions::new(Format::Raw, MIB)
        },
    ];
    for options in wrong {
        let refused = create(&image, &options);
        assert!(
            matches!(refused, Err(Error::Invalid { .. })),
            "{options:?}: {refused:?}"
        );
        assert!(!image.exists());
    }
    std::fs::write(&image, b"mine").unwrap();
    create(&image, &qcow2(MIB)).unwrap_err();
    assert_eq!(std::fs::read(&image).unwrap(), b"mine");
}

#[test]
fn backing_files_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    std::fs::create_dir(&pool).unwrap();
    let outside = dir.path().join("outside.raw");
    std::fs::write(&outside, [1; 512]).unwrap();
    let top = pool.join("top.qcow2");
    let policy = BackingPolicy {
        allowed_dirs: Some(vec![pool.clone()]),
        ..BackingPolicy::default()
    };
    let overlay = |name: &str| CreateOptions {
        policy: policy.clone(),
        ..CreateOptions::overlay(name, Format::Raw)
    };
    let refusal = |name: &str| create(&top, &overlay(name)).unwrap_err();
    assert!(matches!(
        refusal("../outside.raw"),
        Error::BackingOutside { .. }
    ));
    std::os::unix::fs::symlink(&outside, pool.join("link")).unwrap();
    assert!(matches!(refusal("link"), Error::BackingOutside { .. }));
    assert!(matches!(
        refusal("missing.raw"),
        Error::BackingMissing { .. }
    ));
    for name in [
        "nbd://localhost/x",
        "nbd:unix:/run/x",
        "https://example.org/a",
        "ssh://h/p",
        "a:b",
        r#"json:{"driver":"nbd","host":"x"}"#,
    ] {
        let refused = refusal(name);
        assert!(
            matches!(refused, Error::Unsupported { .. }),
            "{name}: {refused}"
        );
    }
    assert!(matches!(
        refusal(r#"json:{"driver":"raw"}"#),
        Error::Invalid { .. }
    ));
    assert!(matches!(refusal("json:[1"), Error::Invalid { .. }));
    assert!(!top.exists());
    // The same holds when an image is opened.
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        text(&outside),
        "-F",
        "raw",
        text(&top),
        "1M",
    ]);
    let open = |policy: BackingPolicy| OpenOptions::new(Format::Qcow2).backing(policy).open(&top);
    assert!(matches!(open(policy), Err(Error::BackingOutside { .. })));
    open(BackingPolicy::default()).unwrap();
}

#[test]
fn loops_and_undeclared_formats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.qcow2"), dir.path().join("b.qcow2"));
    for (image, backing) in [(&a, &b), (&b, &a)] {
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            text(backing),
            "-F",
            "qcow2",
            text(image),
            "1M",
        ]);
    }
    let refused = OpenOptions::new(Format::Qcow2).open(&a).unwrap_err();
    assert!(matches!(refused, Error::BackingLoop { .. }), "{refused}");
    let refused =
        cenote_image::chain::list(&a, Format::Qcow2, &BackingPolicy::default()).unwrap_err();
    assert!(matches!(refused, Error::BackingLoop { .. }), "{refused}");

    let plain = dir.path().join("plain.raw");
    std::fs::write(&plain, vec![5u8; 1 << 20]).unwrap();
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        text(&plain),
        "-F",
        "raw",
        text(&a),
    ]);
    let layers = cenote_image::chain::list(&a, Format::Qcow2, &BackingPolicy::default()).unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[1].path, plain);
    let opened = OpenOptions::new(Format::Qcow2).open(&a).unwrap();
    let mut byte = [0];
    opened.read_at(&mut byte, 77).unwrap();
    assert_eq!(byte, [5]);
}

/// The map agrees with qemu-img's, extent by extent.
#[test]
fn maps_agree() {
    for options in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.qcow2");
        tools::create(&base, options, "16M");
        qemu_io(
            &base,
            &[
                "write -P 1 0 3M".to_owned(),
                "write -P 1 9M 70k".to_owned(),
                "write -z 12M 1M".to_owned(),
            ],
        );
        let top = dir.path().join("top.qcow2");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&base),
            "-F",
            "qcow2",
            text(&top),
            "20M",
        ]);
        qemu_io(
            &top,
            &[
                "write -P 2 1M 200k".to_owned(),
                "write -z 2M 128k".to_owned(),
                "discard 9M 64k".to_owned(),
            ],
        );
        let theirs: Vec<serde_json::Value> = serde_json::from_str(&qemu_img(&[
            "map",
            "-f",
            "qcow2",
            "--output=json",
            text(&top),
        ]))
        .unwrap();
        let image = OpenOptions::new(Format::Qcow2).open(&top).unwrap();
        let ours = image.map(0, image.size()).unwrap();
        // The same answer for every sector; borders may differ.
        let at = |sector: u64| {
            theirs
                .iter()
                .find(|e| {
                    let start = e["start"].as_u64().unwrap();
                    (start..start + e["length"].as_u64().unwrap()).contains(&sector)
                })
                .unwrap()
        };
        for extent in &ours {
            for sector in (extent.start..extent.start + extent.length).step_by(512) {
                let other = at(sector);
                assert_eq!(extent.zero, other["zero"], "{sector:#x} {extent:?} {other}");
                assert_eq!(extent.data, other["data"], "{sector:#x} {extent:?} {other}");
                assert_eq!(
                    extent.present, other["present"],
                    "{sector:#x} {extent:?} {other}"
                );
                if extent.present {
                    assert_eq!(
                        extent.depth, other["depth"],
                        "{sector:#x} {extent:?} {other}"
                    );
                }
                if extent.data {
                    let offset = extent.offset.unwrap() + (sector - extent.start);
                    let theirs = other["offset"].as_u64().unwrap()
                        + (sector - other["start"].as_u64().unwrap());
                    assert_eq!(offset, theirs);
                }
            }
        }
    }
}
