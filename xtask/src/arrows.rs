//! The arrows of `docs/architecture.md`, checked against the manifests.

use crate::shell::workspace;
use std::collections::BTreeMap;
use std::fs;

/// Each of our crates with those it may use; a crate that is not here may use none.
const ALLOWED: &[(&str, &[&str])] = &[
    ("crates/model", &[]),
    ("crates/image", &[]),
    ("crates/net", &[]),
    ("pools", &["cenote-image", "cenote-model"]),
    ("vmm", &["cenote-image", "cenote-model", "cenote-net"]),
    (
        "crates/engine",
        &[
            "cenote-pools",
            "cenote-provision",
            "cenote-vmm",
            "cenote-net",
            "cenote-image",
            "cenote-model",
        ],
    ),
    ("crates/provision", &["cenote-model"]),
    (
        "cli",
        &[
            "cenote-engine",
            "cenote-pools",
            "cenote-image",
            "cenote-model",
        ],
    ),
    ("xtask", &[]),
];

/// The crates of ours that a manifest's `[dependencies]` name.
fn ours(manifest: &str) -> Vec<String> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        let line = line.trim();
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" && line.starts_with("cenote") {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            found.push(line[..end].to_string());
        }
    }
    found
}

#[test]
fn crates_lean_one_way() {
    let root = workspace();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the root manifest");
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let (_, members) = manifest.split_once("members = [").expect("members");
    let (members, _) = members.split_once(']').expect("an end of the members");
    let mut seen = 0;
    for member in members.split('"').skip(1).step_by(2) {
        let file = root.join(member).join("Cargo.toml");
        let text = fs::read_to_string(&file).expect("a member's manifest");
        let may = allowed.get(member).copied().unwrap_or_default();
        for dependency in ours(&text) {
            assert!(
                may.contains(&dependency.as_str()),
                "{member} must not depend on {dependency}; see docs/architecture.md"
            );
        }
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} members were looked at");
}

#[test]
fn dependencies_are_read_from_their_section_only() {
    let text = "[dependencies]\ncenote-a.workspace = true\ncenote-b = { path = \"b\" }\n\
                serde = \"1\"\n[dev-dependencies]\ncenote-c.workspace = true\n";
    assert_eq!(ours(text), ["cenote-a", "cenote-b"]);
}

#[test]
fn every_decision_is_listed() {
    let folder = workspace().join("docs").join("decisions");
    let index = fs::read_to_string(folder.join("README.md")).expect("the index");
    for entry in fs::read_dir(&folder).expect("the folder") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        assert!(
            name == "README.md" || index.contains(&format!("({name})")),
            "docs/decisions/README.md does not list {name}"
        );
    }
}
