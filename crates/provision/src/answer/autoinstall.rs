//! Autoinstall, as Subiquity reads it
//! (<https://canonical-subiquity.readthedocs-hosted.com/en/latest/reference/autoinstall-reference.html>).

use super::yaml::{self, Node};
use super::{Expect, Findings, cloudinit, is_hashed};

/// Shape of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Mapping,
    Sequence,
    Scalar,
    Any,
}

#[rustfmt::skip]
const KEYS: &[(&str, Shape)] = &[
    ("version", Shape::Scalar), ("interactive-sections", Shape::Sequence),
    ("early-commands", Shape::Sequence), ("locale", Shape::Scalar),
    ("refresh-installer", Shape::Mapping), ("keyboard", Shape::Mapping),
    ("source", Shape::Mapping), ("network", Shape::Mapping), ("proxy", Shape::Any),
    ("apt", Shape::Mapping), ("mirror", Shape::Any), ("storage", Shape::Mapping),
    ("identity", Shape::Mapping), ("active-directory", Shape::Mapping),
    ("ubuntu-pro", Shape::Mapping), ("ubuntu-advantage", Shape::Mapping), ("ssh", Shape::Mapping),
    ("codecs", Shape::Mapping), ("drivers", Shape::Mapping), ("oem", Shape::Mapping),
    ("snaps", Shape::Sequence), ("debconf-selections", Shape::Any), ("packages", Shape::Sequence),
    ("kernel", Shape::Mapping), ("kernel-crash-dumps", Shape::Mapping), ("timezone", Shape::Scalar),
    ("updates", Shape::Scalar), ("shutdown", Shape::Scalar), ("late-commands", Shape::Sequence),
    ("error-commands", Shape::Sequence), ("reporting", Shape::Mapping),
    ("user-data", Shape::Mapping), ("zdevs", Shape::Sequence),
];

pub(super) fn lint(text: &str, expect: &Expect, findings: &mut Findings) {
    let Some(document) = yaml::read(text, findings) else {
        return;
    };
    if !document.is_mapping() {
        findings.error(
            document.place,
            format!("the file is {}, not a mapping", document.what()),
            "write autoinstall: with version: 1 below it",
        );
        return;
    }
    let section = match document.get("autoinstall") {
        Some(section) => {
            cloudinit::header(text, findings);
            others(&document, findings);
            section
        }
        // A file autoinstall.yaml may do without the key.
        None if document.get("version").is_some() => &document,
        None => {
            findings.error(
                document.place,
                "there is no key 'autoinstall': the installer would ask everything",
                "put the answers below autoinstall:",
            );
            return;
        }
    };
    if !section.is_mapping() {
        findings.error(
            section.place,
            format!("'autoinstall' is {}, not a mapping", section.what()),
            "put version: 1 and the answers below it, indented",
        );
        return;
    }
    shapes(section, findings);
    version(section, findings);
    asks(section, findings);
    identity(section, findings);
    storage(section, expect, findings);
    ends(section, findings);
}

/// Keys of cloud-config beside `autoinstall` act on the installer's own system.
fn others(document: &Node, findings: &mut Findings) {
    let known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    for (key, _) in document.entries() {
        if let Some(name) = key.text()
            && name != "autoinstall"
            && known.contains(&name)
            && !cloudinit::is_key(name)
        {
            findings.error(
                key.place,
                format!("'{name}' stands beside 'autoinstall', where nothing reads it"),
                "indent it below autoinstall:",
            );
        }
    }
}

fn shapes(section: &Node, findings: &mut Findings) {
    let known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    for (key, value) in section.entries() {
        let name = key.text().unwrap_or_default();
        let Some((_, shape)) = KEYS.iter().find(|(known, _)| *known == name) else {
            findings.unknown(key.place, "key", name, &known);
            continue;
        };
        let (fits, expected) = match shape {
            Shape::Mapping => (value.is_mapping() || value.is_null(), "a mapping"),
            Shape::Sequence => (value.is_sequence(), "a list"),
            Shape::Scalar => (value.text().is_some(), "a single value"),
            Shape::Any => (true, ""),
        };
        if !fits {
            findings.error(
                value.place,
                format!("'{name}' is {}", value.what()),
                format!("write {expected}"),
            );
        }
    }
    for name in ["early-commands", "late-commands", "error-commands"] {
        for command in section.get(name).map(Node::items).unwrap_or_default() {
            if command.text().is_none() && !command.is_sequence() {
                findings.error(
                    command.place,
                    format!(
                        "a command is a text or a list of words, this is {}",
                        command.what()
                    ),
                    "quote it (a colon followed by a blank makes a mapping)",
                );
            }
        }
    }
    for name in ["packages", "interactive-sections"] {
        for item in section.get(name).map(Node::items).unwrap_or_default() {
            if item.text().is_none() {
                findings.error(
                    item.place,
                    format!("{name} are names, this is {}", item.what()),
                    "write one name",
                );
            }
        }
    }
}

fn version(section: &Node, findings: &mut Findings) {
    match section.get("version") {
        None => findings.error(
            section.place,
            "no version is given: the file would be refused",
            "add version: 1",
        ),
        Some(value) if value.text() != Some("1") => {
            findings.error(
                value.place,
                "the one version there is is 1",
                "write version: 1",
            );
        }
        Some(_) => {}
    }
}

fn asks(section: &Node, findings: &mut Findings) {
    if let Some(sections) = section.get("interactive-sections")
        && !sections.items().is_empty()
    {
        findings.error(
            sections.place,
            "the installer would ask what these sections are about",
            "remove interactive-sections",
        );
    }
}

fn identity(section: &Node, findings: &mut Findings) {
    let Some(identity) = section.get("identity") else {
        let elsewhere = ["user-data", "active-directory"];
        if !elsewhere.iter().any(|key| section.get(key).is_some()) {
            findings.error(
                section.place,
                "no identity is given: the installer would ask",
                "add identity: with hostname, username and password, or user-data: with users",
            );
        }
        return;
    };
    for key in ["hostname", "username", "password"] {
        if identity.get(key).and_then(Node::text).is_none() {
            findings.error(
                identity.place,
                format!("identity has no {key}"),
                format!("add {key}:"),
            );
        }
    }
    let known = ["realname", "username", "hostname", "password", "groups"];
    for (key, _) in identity.entries() {
        let name = key.text().unwrap_or_default();
        if !known.contains(&name) {
            findings.unknown(key.place, "key of identity", name, &known);
        }
    }
    if let Some(password) = identity.get("password")
        && password.text().is_some_and(|text| !is_hashed(text))
    {
        findings.error(
            password.place,
            "the password is no hash: it would stand here for all to read, and nobody could log in",
            "give the hash in quotes (openssl passwd -6)",
        );
    }
}

fn storage(section: &Node, expect: &Expect, findings: &mut Findings) {
    let Some(storage) = section.get("storage") else {
        return;
    };
    let layout = storage.get("layout");
    let config = storage.get("config");
    if layout.is_some() && config.is_some() {
        findings.error(
            storage.place,
            "a layout and a config exclude each other",
            "remove one of them",
        );
    }
    let layouts = ["lvm", "direct", "zfs", "hybrid", "dd"];
    if let Some(layout) = layout {
        match layout.get("name") {
            Some(name) if layouts.contains(&name.text().unwrap_or_default()) => {}
            Some(name) => {
                let text = name.text().unwrap_or_default();
                findings.unknown(name.place, "layout", text, &layouts);
            }
            None => findings.error(
                layout.place,
                "a layout has a name",
                "write layout: {name: direct}",
            ),
        }
    }
    let matched = layout.and_then(|layout| layout.get("match"));
    let disks = config.map(Node::items).unwrap_or_default().iter();
    for path in disks.chain(matched).filter_map(|disk| disk.get("path")) {
        findings.disk(path.place, path.text().unwrap_or_default(), expect);
    }
}

fn ends(section: &Node, findings: &mut Findings) {
    if let Some(shutdown) = section.get("shutdown") {
        let known = ["reboot", "poweroff"];
        let text = shutdown.text().unwrap_or_default();
        if !known.contains(&text) {
            findings.unknown(shutdown.place, "end", text, &known);
        }
    }
    if let Some(updates) = section.get("updates") {
        let known = ["security", "all"];
        let text = updates.text().unwrap_or_default();
        if !known.contains(&text) {
            findings.unknown(updates.place, "kind of updates", text, &known);
        }
    }
    if let Some(keyboard) = section.get("keyboard")
        && keyboard.is_mapping()
        && keyboard.get("layout").is_none()
    {
        findings.error(keyboard.place, "keyboard has no layout", "add layout: us");
    }
}
