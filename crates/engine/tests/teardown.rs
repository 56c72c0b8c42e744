//! Teardown of domains that do not run: what is taken, what is kept, and going on after death.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cenote_engine::{
    DefineOptions, Format, NewVolume, NoProgress, Node, NodeOptions, TeardownOptions, VolumeId,
    WipeOptions,
};
use cenote_pools::certificate::{
    Chain, DomainReport, Error as CertificateError, Issuer, NodeIdentity, verify,
};
use cenote_pools::crash;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn open(dir: &Path) -> Node {
    Node::open(&NodeOptions::in_dir(dir)).unwrap()
}

fn id(name: &str) -> VolumeId {
    VolumeId::new("default", name)
}

fn path_of(node: &Node, name: &str) -> String {
    let info = node.volume(&id(name)).unwrap();
    info.path.display().to_string()
}

fn disk(format: &str, path: &str, target: &str) -> String {
    format!(
        "<disk type='file'><driver name='qemu' type='{format}'/><source file='{path}'/>\
         <target dev='{target}'/></disk>"
    )
}

fn define(node: &Node, name: &str, disks: &str) {
    let xml = format!(
        "<domain type='kvm'><name>{name}</name><memory>8192</memory>\
         <os><type>hvm</type></os><devices>{disks}</devices></domain>"
    );
    node.domain_define(&xml, DefineOptions::default()).unwrap();
    let logs = node.domain_log_dir(name);
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join("console.log"), format!("{name} login:")).unwrap();
}

fn volumes(node: &Node) -> Vec<String> {
    let volumes = node.volumes("default").unwrap().into_iter();
    volumes.map(|info| info.name).collect()
}

/// base <- top of web and other of mail; data of web alone, and a disc that both read.
fn two_domains(node: &Node) {
    let base = NewVolume::new("base", Format::Qcow2, 1 << 20);
    node.volume_create("default", &base).unwrap();
    for overlay in ["top", "other"] {
        node.volume_clone_linked(&id("base"), "default", overlay)
            .unwrap();
    }
    for name in ["data", "shared"] {
        node.volume_create("default", &NewVolume::new(name, Format::Raw, 1 << 20))
            .unwrap();
    }
    let disc = node.state_dir().join("disc.iso");
    fs::write(&disc, b"disc").unwrap();
    let disc = format!(
        "<disk type='file' device='cdrom'><source file='{}'/><target dev='hda' bus='ide'/>\
         <readonly/></disk>",
        disc.display()
    );
    let shared = disk("raw", &path_of(node, "shared"), "vdc");
    let web = [
        disk("qcow2", &path_of(node, "top"), "vda"),
        disk("raw", &path_of(node, "data"), "vdb"),
        shared.clone(),
        disc,
    ];
    define(node, "web", &web.concat());
    let mail = [disk("qcow2", &path_of(node, "other"), "vda"), shared];
    define(node, "mail", &mail.concat());
}

#[test]
fn what_others_share_is_kept_and_named() {
    let dir = directory();
    let node = open(dir.path());
    two_domains(&node);
    let options = TeardownOptions {
        chain: true,
        ..TeardownOptions::default()
    };
    let done = node.domain_teardown("web", &options, &NoProgress).unwrap();
    assert_eq!(done.inventory.volumes, [id("top"), id("data")]);
    let kept: Vec<_> = done.inventory.kept.iter().map(|kept| &kept.what).collect();
    let disc = node.state_dir().join("disc.iso").display().to_string();
    assert_eq!(kept, ["default/base", "default/shared", &disc]);
    assert!(done.inventory.kept[0].why.contains("default/other"));
    assert!(done.inventory.kept[1].why.contains("'mail'"));
    assert_eq!(volumes(&node), ["base", "other", "shared"]);
    assert!(!node.domain_log_dir("web").exists());
    assert!(node.domain("web").is_err());
    // Nobody else has the base any more.
    node.domain_teardown("mail", &options, &NoProgress).unwrap();
    assert!(volumes(&node).is_empty());
    assert!(Path::new(&disc).exists());
}

#[test]
fn a_backing_volume_is_taken_only_when_asked_for() {
    let dir = directory();
    let node = open(dir.path());
    let base = NewVolume::new("base", Format::Qcow2, 1 << 20);
    node.volume_create("default", &base).unwrap();
    node.volume_clone_linked(&id("base"), "default", "top")
        .unwrap();
    define(&node, "web", &disk("qcow2", &path_of(&node, "top"), "vda"));
    let options = TeardownOptions::default();
    let done = node.domain_teardown("web", &options, &NoProgress).unwrap();
    assert_eq!(done.inventory.kept[0].what, "default/base");
    assert_eq!(volumes(&node), ["base"]);
    let error = node
        .domain_teardown("web", &options, &NoProgress)
        .unwrap_err();
    assert_eq!(error.kind(), cenote_engine::ErrorKind::NotFound);
}

#[test]
fn what_is_wiped_is_certified_and_gone() {
    let dir = directory();
    let node = open(dir.path());
    let top = NewVolume::new("top", Format::Qcow2, 1 << 20);
    node.volume_create("default", &top).unwrap();
    define(&node, "web", &disk("qcow2", &path_of(&node, "top"), "vda"));
    let done = node.domain_teardown("web", &wiping(), &NoProgress).unwrap();
    // The volume and the console's log.
    assert_eq!(done.wiped.len(), 2);
    for wiped in &done.wiped {
        let certificate = wiped.certificate.as_ref().unwrap();
        assert!(certificate.exists(), "{certificate:?}");
    }
    assert!(volumes(&node).is_empty());
    assert!(!node.domain_log_dir("web").exists());
    let (path, report) = whole_certificate(&node);
    assert_eq!(done.certificate, Some(path));
    assert_eq!(report.parts.len(), 2);
    assert_eq!(report.parts[0].volume.as_deref(), Some("default/top"));
    assert!(report.kept.is_empty() && report.empty.is_empty());
}

/// The one certificate of a domain on the node, which holds with its whole chain.
fn whole_certificate(node: &Node) -> (PathBuf, DomainReport) {
    let files = fs::read_dir(node.certificates_dir()).unwrap();
    let mut found = Vec::new();
    for file in files {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("0000") || !name.ends_with(".json") {
            continue;
        }
        let key = node.certificate_key().unwrap();
        let verified = verify(&path, Chain::Whole, key.as_ref()).unwrap();
        found.extend(verified.certificate.domain.map(|report| (path, report)));
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_certificate_of_a_domain_holds_only_with_its_parts() {
    let dir = directory();
    let node = open(dir.path());
    let top = NewVolume::new("top", Format::Qcow2, 1 << 20);
    node.volume_create("default", &top).unwrap();
    define(&node, "web", &disk("qcow2", &path_of(&node, "top"), "vda"));
    node.domain_teardown("web", &wiping(), &NoProgress).unwrap();
    let (path, report) = whole_certificate(&node);
    // The same node certifies parts that were never wiped so.
    let mut other = report.clone();
    other.id = "another".to_owned();
    other.parts[0].digest = "0".repeat(64);
    let key = dir.path().join("certificates.key");
    let identity = NodeIdentity {
        name: "n".to_owned(),
        id: "i".to_owned(),
    };
    let issuer = Issuer::open(&node.certificates_dir(), &key, identity).unwrap();
    let forged = issuer.issue_domain(&other).unwrap();
    assert_ne!(forged, path);
    let error = verify(&forged, Chain::Whole, None).unwrap_err();
    assert!(
        matches!(error, CertificateError::OtherPart { number, .. } if number == report.parts[0].certificate),
        "{error}"
    );
    verify(&path, Chain::Whole, None).unwrap();
    let schema =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas/wipe-certificate.json");
    let schema: serde_json::Value = serde_json::from_slice(&fs::read(schema).unwrap()).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<_> = validator
        .iter_errors(&value)
        .map(|e| e.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(path.with_extension("pdf").exists());
}

fn wiping() -> TeardownOptions {
    TeardownOptions {
        wipe: Some(WipeOptions {
            best_effort: true,
            ..WipeOptions::default()
        }),
        chain: true,
    }
}

/// Not a test: what the child processes run.
#[test]
#[ignore = "run by a_wiping_teardown_goes_on_after_death in a process of its own"]
fn child() {
    let dir = std::env::var("TEARDOWN_DIR").unwrap();
    let point = std::env::var("TEARDOWN_POINT").unwrap().parse().unwrap();
    let node = open(Path::new(&dir));
    crash::arm(point);
    node.domain_teardown("web", &wiping(), &NoProgress).unwrap();
}

#[test]
fn a_wiping_teardown_goes_on_after_death() {
    let mut deaths = 0;
    for point in 1.. {
        let dir = directory();
        let base = {
            let node = open(dir.path());
            two_domains(&node);
            fs::read(path_of(&node, "base")).unwrap()
        };
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--test-threads=1"])
            .env("TEARDOWN_DIR", dir.path())
            .env("TEARDOWN_POINT", point.to_string())
            .output()
            .unwrap();
        let died = output.status.signal() == Some(9);
        assert!(died || output.status.success(), "{point}: {output:?}");
        let node = open(dir.path());
        for repair in node.repairs() {
            let pending = cenote_engine::RepairOutcome::Pending;
            assert_ne!(repair.outcome, pending, "{point}: {repair:?}");
            let again = "cenote teardown web --chain --wipe=random --best-effort";
            let back = repair.kind == "teardown"
                && repair.outcome == cenote_engine::RepairOutcome::RolledBack;
            assert!(
                !back || repair.message.contains(again),
                "{point}: {repair:?}"
            );
        }
        if node.domain("web").is_ok() {
            assert!(died);
            node.domain_teardown("web", &wiping(), &NoProgress)
                .unwrap_or_else(|error| panic!("{point}: {error}"));
        }
        assert_eq!(volumes(&node), ["base", "other", "shared"], "{point}");
        assert!(!node.domain_log_dir("web").exists(), "{point}");
        assert!(node.domain("web").is_err());
        assert!(node.wipes_pending().unwrap().is_empty(), "{point}");
        assert!(open(dir.path()).repairs().is_empty(), "{point}");
        let (_, report) = whole_certificate(&node);
        let parts: Vec<_> = report.parts.iter().map(|part| &part.path).collect();
        let names = parts
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["console.log", "data", "top"], "{point}");
        // The base that both stand on is the other's as well, and is kept as it was.
        assert_eq!(report.kept.len(), 3, "{point}: {:?}", report.kept);
        let kept = report.kept.iter().find(|kept| kept.what == "default/base");
        assert!(kept.unwrap().why.contains("default/other"), "{point}");
        assert_eq!(fs::read(path_of(&node, "base")).unwrap(), base, "{point}");
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 10, "only {deaths} points");
}
