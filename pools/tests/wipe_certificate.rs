//! Certificates: what they hold, and that nothing in them can be changed.

#![allow(clippy::unwrap_used)] // Also in the helpers of the tests.

mod wipe_support;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use cenote_pools::certificate::{Chain, Error, Issuer, NodeIdentity, NodeKey, Verified, verify};
use cenote_pools::wipe::{
    Afterwards, Algorithm, NoOthers, Reread, Silent, WipeRequest, Wiped, Wiper, reread,
};
use wipe_support::*;

struct Node {
    folder: tempfile::TempDir,
    issuer: Issuer,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = Self::issuer(folder.path());
        Self { folder, issuer }
    }

    fn issuer(folder: &Path) -> Issuer {
        let node = NodeIdentity {
            name: "h\u{f6}st \u{1f600}".to_owned(),
            id: "b7".to_owned(),
        };
        Issuer::open(&folder.join("certificates"), &folder.join("node.key"), node).unwrap()
    }

    fn wipe(&self, request: &WipeRequest) -> Wiped {
        let (_journals, journal) = journal();
        Wiper::new(&journal, &NoOthers)
            .with_notary(&self.issuer)
            .wipe(request, &Silent)
            .unwrap()
    }

    fn volume(&self, name: &str, algorithm: Algorithm) -> WipeRequest {
        let path = self.folder.path().join(name);
        fs::write(&path, vec![b'A'; 300_001]).unwrap();
        WipeRequest {
            algorithm,
            best_effort: true,
            volume: Some(format!("pool/{name}")),
            ..raw(&path)
        }
    }

    fn three(&self) -> Vec<PathBuf> {
        ["a", "b", "c"]
            .map(|name| {
                self.wipe(&self.volume(name, Algorithm::Dod))
                    .certificate
                    .unwrap()
            })
            .to_vec()
    }
}

fn whole(path: &Path) -> Result<Verified, Error> {
    verify(path, Chain::Whole, None)
}

#[test]
fn a_chain_verifies_and_fits_its_schema() {
    let node = Node::new();
    let paths = node.three();
    let schema =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas/wipe-certificate.json");
    let schema: serde_json::Value = serde_json::from_slice(&fs::read(schema).unwrap()).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let mut previous = None;
    for (number, path) in (1..).zip(&paths) {
        let key = node.issuer.public_key();
        let verified = verify(path, Chain::Whole, Some(&key)).unwrap();
        assert_eq!(verified.chain_length, Some(3));
        assert_eq!(verified.certificate.sequence, number);
        assert_eq!(verified.certificate.previous, previous);
        previous = Some(verified.digest);
        let value: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(&value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:?}");
        // The digest is what sha256sum prints.
        let sum = run("coreutils", "sha256sum", &[path.to_str().unwrap()]);
        assert_eq!(sum.split(' ').next(), previous.as_deref());
    }
    let stranger = NodeKey::load_or_create(&node.folder.path().join("other.key")).unwrap();
    let error = verify(&paths[0], Chain::Alone, Some(&stranger.public())).unwrap_err();
    assert!(matches!(error, Error::OtherKey { .. }), "{error}");
}

#[test]
fn any_changed_byte_is_refused() {
    let node = Node::new();
    let path = node.three().remove(1);
    let original = fs::read(&path).unwrap();
    let copy = node.folder.path().join("copy.json");
    fs::write(&copy, &original).unwrap();
    verify(&copy, Chain::Alone, None).unwrap();
    for at in 0..original.len() {
        let change = [0x01, 0x20, 0x80][at % 3];
        let mut changed = original.clone();
        changed[at] ^= change;
        fs::write(&copy, &changed).unwrap();
        assert!(
            verify(&copy, Chain::Alone, None).is_err(),
            "byte {at} with {change:#x}"
        );
        if at % 7 != 0 {
            continue;
        }
        let mut shorter = original.clone();
        shorter.remove(at);
        fs::write(&copy, &shorter).unwrap();
        assert!(
            verify(&copy, Chain::Alone, None).is_err(),
            "without byte {at}"
        );
        let mut longer = original.clone();
        longer.insert(at, b' ');
        fs::write(&copy, &longer).unwrap();
        assert!(
            verify(&copy, Chain::Alone, None).is_err(),
            "a blank before byte {at}"
        );
    }
}

#[test]
fn a_gap_in_the_chain_is_refused_from_every_side() {
    for missing in 0..3 {
        let node = Node::new();
        let paths = node.three();
        let aside = node.folder.path().join("aside");
        fs::rename(&paths[missing], &aside).unwrap();
        for (number, path) in paths.iter().enumerate() {
            if number != missing {
                let error = whole(path).unwrap_err();
                assert!(matches!(error, Error::BrokenChain { .. }), "{error}");
            }
        }
        fs::rename(&aside, &paths[missing]).unwrap();
        whole(&paths[0]).unwrap();
    }
    // One of another node in the place of the second.
    let (node, other) = (Node::new(), Node::new());
    let (paths, others) = (node.three(), other.three());
    fs::remove_file(&paths[1]).unwrap();
    fs::copy(
        &others[1],
        paths[1].with_file_name(others[1].file_name().unwrap()),
    )
    .unwrap();
    assert!(matches!(
        whole(&paths[2]),
        Err(Error::BrokenChain { number: 2, .. })
    ));
}

#[test]
fn a_head_that_was_changed_or_lost_is_refused() {
    let node = Node::new();
    let paths = node.three();
    let head = paths[0].with_file_name("head.json");
    let original = fs::read(&head).unwrap();
    let text = String::from_utf8(original.clone()).unwrap();
    for changed in [
        text.replace("\"sequence\":3", "\"sequence\":2"),
        String::new(),
    ] {
        fs::write(&head, changed).unwrap();
        assert!(whole(&paths[0]).is_err());
    }
    fs::remove_file(&head).unwrap();
    assert!(whole(&paths[0]).is_err());
    fs::write(&head, original).unwrap();
    whole(&paths[0]).unwrap();
}

#[test]
fn a_head_is_told_from_a_certificate() {
    let node = Node::new();
    let paths = node.three();
    let head = paths[0].with_file_name("head.json");
    for chain in [Chain::Whole, Chain::Alone] {
        let error = verify(&head, chain, None).unwrap_err();
        assert!(
            matches!(&error, Error::IsHead { last: Some(last), .. } if *last == paths[2]),
            "{error}"
        );
        let says = error.to_string();
        assert!(says.contains("no certificate; give the last one"), "{says}");
        assert!(says.contains(paths[2].to_str().unwrap()), "{says}");
    }
    let away = node.folder.path().join("head.json");
    fs::copy(&head, &away).unwrap();
    let error = verify(&away, Chain::Alone, None).unwrap_err();
    assert!(matches!(error, Error::IsHead { last: None, .. }), "{error}");
}

#[test]
fn a_crash_between_certificate_and_head_is_healed() {
    let node = Node::new();
    let paths = node.three();
    let head = paths[0].with_file_name("head.json");
    let before = fs::read(&head).unwrap();
    let request = node.volume("d", Algorithm::Zero);
    let wiped = node.wipe(&request);
    let fourth = wiped.certificate.unwrap();
    fs::write(&head, before).unwrap();
    whole(&fourth).unwrap();
    // Certified again: the same certificate. Another wipe: the fifth.
    assert_eq!(
        Node::issuer(node.folder.path())
            .issue(&wiped.report)
            .unwrap(),
        fourth
    );
    let fifth = node.wipe(&request).certificate.unwrap();
    assert_eq!(whole(&fifth).unwrap().certificate.sequence, 5);
}

#[test]
fn rereading_compares_the_disk() {
    let node = Node::new();
    for algorithm in [Algorithm::Random, Algorithm::Gutmann, Algorithm::Bsi] {
        let request = node.volume("volume", algorithm);
        let path = node.wipe(&request).certificate.unwrap();
        let report = whole(&path).unwrap().certificate.report.unwrap();
        let found = reread(&report, &Silent).unwrap();
        assert_eq!(
            found[0].found,
            Reread::Holds {
                bytes: 300_001,
                unlisted_extents: 0
            },
            "{algorithm}"
        );
        let file = fs::File::options().write(true).open(&request.path).unwrap();
        file.write_all_at(b"later", 299_996).unwrap();
        file.sync_all().unwrap();
        let found = reread(&report, &Silent).unwrap();
        let Reread::Differs { offsets, .. } = &found[0].found else {
            panic!("{found:?}")
        };
        assert_eq!(offsets, &[299_996]);
        fs::remove_file(&request.path).unwrap();
        assert!(reread(&report, &Silent).is_err());
    }
    let request = WipeRequest {
        afterwards: Afterwards::Remove,
        ..node.volume("gone", Algorithm::Zero)
    };
    let report = node.wipe(&request).report;
    let found = reread(&report, &Silent).unwrap();
    assert!(
        matches!(found[0].found, Reread::NotComparable { .. }),
        "{found:?}"
    );
}

#[test]
fn the_page_says_what_the_certificate_says() {
    let node = Node::new();
    let path = node.three().remove(1);
    let certificate = whole(&path).unwrap().certificate;
    let report = certificate.report.as_ref().unwrap();
    let page = path.with_extension("pdf");
    let info = run("poppler-utils", "pdfinfo", &[page.to_str().unwrap()]);
    assert!(
        info.lines().any(|line| line.replace(' ', "") == "Pages:1"),
        "{info}"
    );
    let text = run(
        "poppler-utils",
        "pdftotext",
        &["-layout", page.to_str().unwrap(), "-"],
    );
    let flat = text.split_whitespace().collect::<String>();
    for said in [
        "Certificate of wiping",
        "pool/b",
        &report.verdict.to_string(),
        "h\u{f6}st ? (b7)",
        "dod - DoD 5220.22-M",
        &report.files[0].extent_digest,
        certificate.previous.as_deref().unwrap(),
        &certificate.public_key,
        &certificate.signature,
    ] {
        let said = said.split_whitespace().collect::<String>();
        assert!(flat.contains(&said), "'{said}' is not in:\n{text}");
    }
}

#[test]
fn the_key_is_made_once_and_kept_private() {
    let node = Node::new();
    let key = node.folder.path().join("node.key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let public = node.issuer.public_key();
    assert_eq!(Node::issuer(node.folder.path()).public_key(), public);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = NodeKey::load_or_create(&key).unwrap_err();
    assert!(matches!(error, Error::BadKey { .. }), "{error}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "not a key").unwrap();
    assert!(matches!(
        NodeKey::load_or_create(&key),
        Err(Error::BadKey { .. })
    ));
}

#[test]
fn two_at_once_do_not_break_the_chain() {
    let node = Node::new();
    let requests: Vec<WipeRequest> = (0..6)
        .map(|number| node.volume(&number.to_string(), Algorithm::Zero))
        .collect();
    let (_journals, journal) = journal();
    let wiper = Wiper::new(&journal, &NoOthers).with_notary(&node.issuer);
    let results = wiper.wipe_all(&requests, 3, &|_, _| std::ops::ControlFlow::Continue(()));
    let last = results
        .into_iter()
        .map(|result| result.unwrap().certificate.unwrap())
        .max()
        .unwrap();
    assert_eq!(whole(&last).unwrap().chain_length, Some(6));
}
