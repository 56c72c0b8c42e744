//! A wiped qcow2 volume is an empty image with every option that the old one had, as qemu-img
//! tells them.

#![allow(clippy::unwrap_used)] // Also in the helpers of the tests.

mod wipe_support;

use std::path::Path;

use cenote_image::Format;
use cenote_pools::wipe::{Algorithm, WipeRequest};
use serde_json::Value;
use wipe_support::*;

const OPTIONS: [&str; 16] = [
    "compat=1.1",
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=2,cluster_size=1k",
    "refcount_bits=8",
    "refcount_bits=64",
    "lazy_refcounts=on",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,refcount_bits=32,lazy_refcounts=on",
    "compression_type=zlib",
    "compression_type=zstd,cluster_size=128k",
    "compression_type=zstd,extended_l2=on,cluster_size=2M",
];

/// What qemu-img says of an image, less what depends on its content.
fn info(path: &Path) -> Value {
    let text = qemu_img(&["info", "--output=json", path.to_str().unwrap()]);
    let mut info: Value = serde_json::from_str(&text).unwrap();
    for of_content in ["actual-size", "children", "snapshots"] {
        info.as_object_mut().unwrap().remove(of_content);
    }
    info
}

fn survive(options: &str, size: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.qcow2");
    let at = path.to_str().unwrap();
    let mut options = options.to_owned();
    if options.starts_with("data_file_raw") {
        let data = folder.path().join("volume.data");
        options.push_str(&format!(",data_file={}", data.display()));
    }
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, at, size]);
    let mut work = vec!["write -P 7 0 600k", "write -P 8 1M 3k"];
    let own_data = !options.contains("data_file");
    if own_data && size == "5M" {
        work.extend(["write -c -P 9 2M 2M", "discard 0 64k"]);
    }
    qemu_io(&path, "qcow2", &work);
    // A cluster of compressed data counts all that lies in it, and a snapshot once more.
    let wide = !options.contains("refcount_bits=1") && !options.contains("refcount_bits=2");
    if own_data && wide {
        qemu_img(&["snapshot", "-c", "one", at]);
    }
    let before = info(&path);
    let request = WipeRequest {
        algorithm: Algorithm::Zero,
        // The folder's file system need not be one on which an overwrite can be proven.
        best_effort: true,
        ..WipeRequest::new(&path, Format::Qcow2)
    };
    let verdict = wipe(&request).unwrap().report.verdict;
    assert!(!verdict.is_failed(), "{options}: {verdict}");
    assert_eq!(info(&path), before, "{options}");
    qemu_img(&["check", "-q", at]);
    assert_eq!(qemu_img(&["snapshot", "-l", at]), "", "{options}");
    let bytes = before["virtual-size"].as_u64().unwrap();
    let map = qemu_img(&["map", "--output=json", at]);
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    assert!(map.iter().all(|extent| extent["zero"] == true), "{options}");
    let shown: u64 = map.iter().filter_map(|e| e["length"].as_u64()).sum();
    assert_eq!(shown, bytes, "{options}");
}

#[test]
fn every_option_survives_a_wipe() {
    for options in OPTIONS {
        survive(options, "5M");
    }
}

#[test]
fn external_data_files_and_odd_sizes_survive_a_wipe() {
    survive("data_file_raw=on", "5M");
    survive("data_file_raw=off", "5M");
    survive("compat=1.1", "3146240");
    survive("cluster_size=64k", "1T");
}
