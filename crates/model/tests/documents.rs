//! Every document under `fixtures/xml`: it is read, printed and read again without a change, and
//! libvirt's schemas and test driver take what is printed; those under `refused` are refused.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod common;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use cenote_model::capabilities::{Capabilities, DomainCapabilities};
use cenote_model::domain::Domain;
use cenote_model::network::Network;
use cenote_model::pool::Pool;
use cenote_model::snapshot::Snapshot;
use cenote_model::volume::Volume;
use cenote_model::{Document, Note, NoteKind, ReadOptions};
use common::{error, read, stable, validate, virsh};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn folder(kind: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/xml")
        .join(kind);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
        .into_iter()
        .map(|file| {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&file).unwrap())
        })
        .collect()
}

fn fixture(kind: &str, name: &str) -> String {
    let files = folder(kind);
    let found = files.into_iter().find(|(file, _)| file == name);
    found.unwrap_or_else(|| panic!("no {kind}/{name}.xml")).1
}

/// Reads, checks that nothing unknown is in it, prints, validates, and passes through JSON.
fn judge<T>(schema: &str, name: &str, text: &str) -> String
where
    T: Document + PartialEq + Debug + Serialize + DeserializeOwned,
{
    println!("{name}");
    let parsed = read::<T>(text);
    let unknown: Vec<_> = parsed
        .notes
        .iter()
        .filter(|note| note.kind == NoteKind::Unknown)
        .collect();
    assert!(unknown.is_empty(), "{name}: {unknown:?}");
    let printed = stable(&parsed.document);
    validate(schema, &printed);
    let json = serde_json::to_string(&parsed.document).unwrap();
    assert_eq!(
        serde_json::from_str::<T>(&json).unwrap(),
        parsed.document,
        "{name}: {json}"
    );
    printed
}

#[test]
fn pools_volumes_networks_and_snapshots() {
    for (name, text) in folder("pool") {
        judge::<Pool>("storagepool", &name, &text);
    }
    for (name, text) in folder("volume") {
        judge::<Volume>("storagevol", &name, &text);
    }
    for (name, text) in folder("network") {
        judge::<Network>("network", &name, &text);
    }
    for (name, text) in folder("snapshot") {
        judge::<Snapshot>("domainsnapshot", &name, &text);
    }
    judge::<Capabilities>("capability", "node", &fixture("capabilities", "node"));
    let domain = fixture("capabilities", "domain");
    judge::<DomainCapabilities>("domaincaps", "domain", &domain);
}

#[test]
fn domains() {
    for (name, text) in folder("domain") {
        judge::<Domain>("domain", &name, &text);
    }
}

#[test]
fn refused_documents_say_what_and_where() {
    for (name, text) in folder("refused") {
        let first = text.lines().next().unwrap();
        let expected = first
            .strip_prefix("<!-- ")
            .and_then(|line| line.strip_suffix(" -->"))
            .unwrap_or_else(|| panic!("{name} does not begin with what its error says"));
        let message = error::<Domain>(&text);
        assert!(message.contains(expected), "{name}: {message}");
        assert!(message.contains("line "), "{name}: {message}");
    }
}

/// Elements in order, with their attributes' names in order: what a printer decides.
fn shape(element: &cenote_model::Element, above: &str, out: &mut Vec<String>) {
    let names: Vec<_> = element.attributes.iter().map(|a| a.name.as_str()).collect();
    let path = format!("{above}/{}", element.name);
    out.push(format!("{path}({})", names.join(" ")));
    for child in element.elements() {
        shape(child, &path, out);
    }
}

#[test]
fn libvirt_takes_our_domains_and_prints_them_in_our_order() {
    let mut misplaced = Vec::new();
    let folder_of_files = tempfile::tempdir().unwrap();
    for (name, text) in folder("domain") {
        let mut domain = read::<Domain>(&text).document.inactive();
        domain.set_uuid(uuid::Uuid::from_u128(0x1234_5678));
        domain.name = cenote_model::Name::new(name.as_str()).unwrap();
        let printed = domain
            .to_xml()
            .replacen("<domain type='kvm'", "<domain type='test'", 1)
            .replacen("<domain type='qemu'", "<domain type='test'", 1)
            // The test driver runs i686 guests only.
            .replacen("arch='x86_64'", "arch='i686'", 1);
        let machine = domain.os.kind.machine.as_deref().unwrap_or_default();
        let printed = printed.replacen(&format!(" machine='{machine}'"), "", 1);
        let file = folder_of_files.path().join(format!("{name}.xml"));
        std::fs::write(&file, &printed).unwrap();
        let command = format!(
            "define {}\ndumpxml --inactive --security-info {}\n",
            file.display(),
            domain.name.as_str()
        );
        let output = virsh(&command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.trim().is_empty(), "{name}: {errors}\n{printed}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let start = stdout.find("<domain ").unwrap();
        let end = stdout.find("</domain>").unwrap() + "</domain>".len();
        let options = cenote_model::ReadOptions::default();
        let theirs = cenote_model::parse(&stdout[start..end], &options).unwrap();
        let ours = cenote_model::parse(&printed, &options).unwrap();
        let (mut our_shape, mut their_shape) = (Vec::new(), Vec::new());
        shape(&ours, "", &mut our_shape);
        shape(&theirs, "", &mut their_shape);
        in_order(&name, &our_shape, &their_shape, &mut misplaced);
    }
    assert!(
        misplaced.is_empty(),
        "libvirt has these in another place: {misplaced:#?}"
    );
}

/// Both lists have what they share in the same order: each of our lines that libvirt prints too
/// is found after the one before it.
fn in_order(name: &str, ours: &[String], theirs: &[String], misplaced: &mut Vec<String>) {
    let mut at = 0;
    for line in ours.iter().filter(|line| theirs.contains(line)) {
        match theirs[at..].iter().position(|their| their == line) {
            Some(step) => at += step + 1,
            None => misplaced.push(format!("{name}: {line}")),
        }
    }
}

fn notes_of(name: &str) -> Vec<Note> {
    read::<Domain>(&fixture("domain", name)).notes
}

fn has(notes: &[Note], kind: NoteKind, place: &str, text: &str) {
    let found = notes
        .iter()
        .any(|note| note.kind == kind && note.place.path == place && note.text.contains(text));
    assert!(
        found,
        "no {kind:?} note at {place} with '{text}' in {notes:#?}"
    );
}

#[test]
fn the_sources_documents_say_what_is_done_about_them() {
    let notes = notes_of("source3-test");
    let graphics = "/domain/devices/graphics";
    has(
        &notes,
        NoteKind::Security,
        &format!("{graphics}/@listen"),
        "0.0.0.0",
    );
    has(
        &notes,
        NoteKind::Security,
        &format!("{graphics}/@passwd"),
        "password",
    );
    has(
        &notes,
        NoteKind::Inert,
        "/domain/devices/disk[1]/target/@bus",
        "no bus 'scsi' yet",
    );
    has(
        &notes,
        NoteKind::Filled,
        "/domain/devices/disk/driver",
        "taken as raw",
    );
    let notes = notes_of("source0-qemu");
    has(
        &notes,
        NoteKind::Mapped,
        "/domain/@type",
        "built-in KVM monitor",
    );
    let notes = notes_of("source1-bootloader-hvm");
    has(
        &notes,
        NoteKind::Mapped,
        "/domain/bootloader",
        "path is not run",
    );
    has(&notes, NoteKind::Mapped, "/domain/os", "idea of Xen");
    has(
        &notes,
        NoteKind::Inert,
        "/domain/devices/emulator",
        "never run",
    );
    has(
        &notes,
        NoteKind::Filled,
        "/domain/devices/interface/model",
        "virtio",
    );
    let notes = notes_of("nova-bridge");
    has(&notes, NoteKind::Inert, "/domain/cputune", "not weighed");
    has(
        &notes,
        NoteKind::Security,
        "/domain/devices/interface/filterref",
        "not filtered",
    );
    // The system's table is told as it stands.
    assert!(!notes.iter().any(|note| note.place.path.contains("smbios")));
    let notes = notes_of("virt-install-q35");
    has(
        &notes,
        NoteKind::Mapped,
        "/domain/os/type/@machine",
        "i440FX",
    );
    has(
        &notes,
        NoteKind::Inert,
        "/domain/devices/redirdev[2]",
        "no USB",
    );
    has(
        &notes,
        NoteKind::Inert,
        "/domain/devices/channel[2]/@type",
        "'spicevmc'",
    );
}

#[test]
fn metadata_is_kept_as_it_came() {
    let text = fixture("domain", "nova-bridge");
    let domain = read::<Domain>(&text).document;
    let nova = "http://openstack.org/xmlns/libvirt/nova/1.1";
    let metadata = domain.metadata.as_ref().unwrap();
    let instance = metadata.of_namespace(nova).unwrap();
    assert_eq!(instance.child("nova:name").unwrap().text(), "web & mail");
    let body = |text: &str| {
        let start = text.find("<nova:package").unwrap();
        text[start..text.find("</nova:instance>").unwrap()].replace('"', "'")
    };
    assert_eq!(body(&domain.to_xml()), body(&text));
}

/// Reads as any kind; what is accepted prints so that it reads back the same.
fn round_trip<T: Document + PartialEq + Debug>(text: &str) {
    if let Ok(parsed) = T::from_xml(text, &ReadOptions::default()) {
        stable(&parsed.document);
    }
}

/// A fixture with some of its bytes taken out, doubled or swapped with others.
fn mutated() -> impl Strategy<Value = String> {
    let kinds = [
        "domain",
        "network",
        "pool",
        "volume",
        "snapshot",
        "capabilities",
    ];
    let texts: Vec<String> = kinds
        .into_iter()
        .flat_map(folder)
        .map(|(_, text)| text)
        .collect();
    let edits = proptest::collection::vec((any::<(u16, u16, u16)>(), 0u8..4), 1..4);
    (proptest::sample::select(texts), edits).prop_map(|(text, edits)| {
        let mut chars: Vec<char> = text.chars().collect();
        for ((from, to, length), kind) in edits {
            let from = usize::from(from) % chars.len();
            let to = usize::from(to) % chars.len();
            let end = (from + usize::from(length) % 60).min(chars.len());
            let part = chars[from..end].to_vec();
            match kind {
                0 if end - from < chars.len() => drop(chars.splice(from..end, [])),
                1 => drop(chars.splice(to..to, part)),
                2 => chars.swap(from, to),
                _ => chars[from] = "<>/'=&#;:x0-9 "[..].chars().nth(to % 14).unwrap(),
            }
        }
        chars.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn mutated_documents_of_any_kind_are_stable_or_refused(text in mutated()) {
        round_trip::<Domain>(&text);
        round_trip::<Network>(&text);
        round_trip::<Pool>(&text);
        round_trip::<Volume>(&text);
        round_trip::<Snapshot>(&text);
        round_trip::<Capabilities>(&text);
        round_trip::<DomainCapabilities>(&text);
    }
}
