//! Wiping raw files: what is written, what is refused, what is said.

#![allow(clippy::unwrap_used)] // Also in the helpers of the tests.

mod wipe_support;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use cenote_image::Format;
use cenote_pools::wipe::{
    Afterwards, Algorithm, Error, FileJournal, NoOthers, Observer, Pass, Reason, Refusal, Secret,
    Silent, Stage, Usage, Verdict, Verify, WipeEvent, WipeJournal as _, WipeRequest, Wiper,
};
use wipe_support::*;

const SIZE: u64 = (5 << 20) + 777;

/// A sparse file with runs at odd offsets, a preallocated run and an odd end.
fn holey(folder: &Path, secret: &str) -> PathBuf {
    let path = folder.join("volume.raw");
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    for (number, at) in [0, 12_345, 1_500_001, (3 << 20) - 7, SIZE - 32]
        .into_iter()
        .enumerate()
    {
        file.write_all_at(marker(secret, number).as_bytes(), at)
            .unwrap();
    }
    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::empty(),
        4 << 20,
        256 << 10,
    )
    .unwrap();
    file.sync_all().unwrap();
    path
}

fn best_effort(path: &Path) -> WipeRequest {
    // The machine's own disk may be flash; these tests are not about that.
    WipeRequest {
        best_effort: true,
        ..raw(path)
    }
}

#[test]
fn every_pass_of_every_method_reaches_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let secret = secret();
    for algorithm in Algorithm::ALL
        .into_iter()
        .filter(|one| *one != Algorithm::Trim)
    {
        let path = holey(folder.path(), &secret);
        let blocks = path.metadata().unwrap().blocks();
        let (_journals, journal) = journal();
        let seen = Mutex::new(Vec::new());
        let observer = |event: &WipeEvent<'_>| {
            if *event == (WipeEvent::Step { name: "pass done" }) {
                seen.lock().unwrap().push(fs::read(&path).unwrap());
            }
            if let WipeEvent::Begin {
                stage: Stage::Overwrite,
                pass: 1,
                ..
            } = event
            {
                let id = &journal.list().unwrap()[0];
                let record = journal.load(id).unwrap().unwrap().0;
                seen.lock().unwrap().push(record.secret.into_bytes());
            }
            ControlFlow::Continue(())
        };
        let request = WipeRequest {
            algorithm,
            ..best_effort(&path)
        };
        let wiper = Wiper::new(&journal, &NoOthers).with_tuning(small());
        let report = wiper.wipe(&request, &observer).unwrap().report;
        assert!(
            !report.verdict.is_failed(),
            "{algorithm}: {}",
            report.verdict
        );
        assert_eq!(path.metadata().unwrap().len(), SIZE);
        assert!(
            path.metadata().unwrap().blocks() <= blocks + 8,
            "holes were filled"
        );
        assert!(journal.list().unwrap().is_empty(), "the record is gone");

        let mut seen = seen.into_inner().unwrap();
        let secret_hex = String::from_utf8(seen.remove(0)).unwrap();
        assert_eq!(seen.len(), algorithm.passes().len());
        assert_eq!(report.files[0].passes.len(), algorithm.passes().len());
        for (number, (pass, content)) in algorithm.passes().iter().zip(&seen).enumerate() {
            for extent in &report.files[0].extents {
                let range = extent.offset as usize..(extent.offset + extent.length) as usize;
                let mut expected = vec![0; range.len()];
                match pass {
                    Pass::Random => {
                        key(&secret_hex, number as u32).fill(&mut expected, extent.offset)
                    }
                    Pass::Pattern(bytes) => expected
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, byte)| *byte = bytes[(range.start + i) % bytes.len()]),
                }
                assert!(
                    content[range.clone()] == expected,
                    "{algorithm} pass {number} at {range:?}"
                );
            }
        }
    }
}

fn key(secret: &str, pass: u32) -> cenote_pools::wipe::KeyStream {
    secret.parse::<Secret>().unwrap().pass_key(0, pass).stream()
}

#[test]
fn two_random_wipes_differ_and_do_not_compress() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    let mut contents = Vec::new();
    for _ in 0..2 {
        fs::write(&path, vec![b'A'; 4 << 20]).unwrap();
        wipe(&best_effort(&path)).unwrap();
        let packed = Command::new("gzip")
            .arg("-c")
            .arg(&path)
            .output()
            .expect("package 'gzip'")
            .stdout;
        assert!(packed.len() > (4 << 20) * 99 / 100, "{}", packed.len());
        contents.push(fs::read(&path).unwrap());
    }
    assert!(contents[0] != contents[1]);
}

#[test]
fn links_and_odd_kinds_are_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "precious").unwrap();
    std::os::unix::fs::symlink(at("file"), at("soft")).unwrap();
    let refused = |path: &Path| match wipe(&best_effort(path)).unwrap_err() {
        Error::Refused { refusal, .. } => refusal,
        other => panic!("{other}"),
    };
    assert_eq!(
        refused(&at("soft")),
        Refusal::SymbolicLink { target: at("file") }
    );
    fs::hard_link(at("file"), at("hard")).unwrap();
    assert_eq!(refused(&at("file")), Refusal::HardLinks { count: 2 });
    assert_eq!(
        refused(folder.path()),
        Refusal::WrongKind { kind: "directory" }
    );
    run("coreutils", "mkfifo", &[at("pipe").to_str().unwrap()]);
    assert_eq!(
        refused(&at("pipe")),
        Refusal::WrongKind { kind: "named pipe" }
    );
    assert_eq!(
        refused(Path::new("/dev/null")),
        Refusal::WrongKind {
            kind: "character device"
        }
    );
    assert!(matches!(
        wipe(&best_effort(&at("none"))),
        Err(Error::Io { .. })
    ));
    assert_eq!(fs::read(at("file")).unwrap(), b"precious");
}

#[test]
fn an_immutable_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "precious").unwrap();
    if !try_run("e2fsprogs", "chattr", &["+i", path.to_str().unwrap()])
        .status
        .success()
    {
        println!("skipped: no immutable files without root on an ext or XFS file system");
        return;
    }
    let result = wipe(&best_effort(&path));
    run("e2fsprogs", "chattr", &["-i", path.to_str().unwrap()]);
    let error = result.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Refused {
                refusal: Refusal::ReadOnly { .. },
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

struct Others(Vec<String>, Vec<String>);

impl Usage for Others {
    fn dependents(&self, _: &Path, _: &[PathBuf]) -> Result<Vec<String>, Error> {
        Ok(self.0.clone())
    }
    fn domains(&self, _: &Path) -> Result<Vec<String>, Error> {
        Ok(self.1.clone())
    }
}

#[test]
fn what_others_depend_on_is_refused_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.raw");
    fs::write(&path, vec![7; 100_000]).unwrap();
    let (_journals, journal) = journal();
    let both = Others(vec!["web".to_owned(), "db".to_owned()], vec![]);
    let error = Wiper::new(&journal, &both)
        .wipe(&best_effort(&path), &Silent)
        .unwrap_err();
    assert!(
        error.to_string().contains("backing file of web, db"),
        "{error}"
    );
    let domain = Others(vec![], vec!["router".to_owned()]);
    let error = Wiper::new(&journal, &domain)
        .wipe(&best_effort(&path), &Silent)
        .unwrap_err();
    assert!(error.to_string().contains("router"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), vec![7; 100_000]);
    assert!(journal.list().unwrap().is_empty());
}

#[test]
fn a_volume_open_in_qemu_io_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs the package 'qemu-utils'");
    // Its prompt comes when the image is open.
    let mut prompt = [0; 8];
    std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    assert_eq!(&prompt, b"qemu-io>");
    let error = wipe(&best_effort(&path)).unwrap_err();
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    assert!(
        matches!(
            error,
            Error::Refused {
                refusal: Refusal::InUse { .. },
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
    wipe(&best_effort(&path)).unwrap();
}

/// Does something to the volume when the first pass has begun to write.
struct Meddler<F: Fn()>(Mutex<Option<F>>);

impl<F: Fn()> Observer for Meddler<F> {
    fn event(&self, event: &WipeEvent<'_>) -> ControlFlow<()> {
        if let WipeEvent::Begin { .. } = event
            && let Some(act) = self.0.lock().unwrap().take()
        {
            act();
        }
        ControlFlow::Continue(())
    }
}

fn failed_because(path: &Path, act: impl Fn()) -> String {
    let request = best_effort(path);
    let report = wipe_observed(&request, &Meddler(Mutex::new(Some(act))))
        .unwrap()
        .report;
    assert!(report.verdict.is_failed(), "{}", report.verdict);
    report.verdict.to_string()
}

#[test]
fn volumes_that_change_under_the_wipe_fail_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    let fresh = || fs::write(&path, vec![b'A'; 2 << 20]).unwrap();

    fresh();
    let file = File::options().write(true).open(&path).unwrap();
    let why = failed_because(&path, || file.set_len(1 << 20).unwrap());
    assert!(why.contains("resized from 2097152 to 1048576"), "{why}");
    fresh();
    let why = failed_because(&path, || file.set_len(3 << 20).unwrap());
    assert!(why.contains("resized from 2097152 to 3145728"), "{why}");

    fresh();
    let held = File::open(&path).unwrap();
    let why = failed_because(&path, || fs::remove_file(&path).unwrap());
    assert!(why.contains("its name was removed"), "{why}");
    let mut content = vec![0; 2 << 20];
    held.read_exact_at(&mut content, 0).unwrap();
    assert!(
        !content.windows(64).any(|run| run == [b'A'; 64]),
        "the data is gone all the same"
    );

    fresh();
    let other = folder.path().join("other");
    fs::write(&other, vec![b'B'; 2 << 20]).unwrap();
    let why = failed_because(&path, || fs::rename(&other, &path).unwrap());
    assert!(why.contains("another file took its name"), "{why}");
    assert!(
        fs::read(&path).unwrap().iter().all(|byte| *byte == b'B'),
        "the newcomer is untouched"
    );
}

#[test]
fn permission_lost_half_way_is_named_and_the_rest_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    fs::write(&path, vec![b'A'; 2 << 20]).unwrap();
    let at = path.to_str().unwrap();
    if !try_run("e2fsprogs", "chattr", &["+i", at]).status.success() {
        println!("skipped: no immutable files without root on an ext or XFS file system");
        return;
    }
    run("e2fsprogs", "chattr", &["-i", at]);
    let why = failed_because(&path, || {
        run("e2fsprogs", "chattr", &["+i", at]);
    });
    run("e2fsprogs", "chattr", &["-i", at]);
    assert!(
        why.contains("cannot be written: Operation not permitted"),
        "{why}"
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 << 20);
}

#[test]
fn a_byte_written_by_another_is_found_in_verification() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    fs::write(&path, vec![b'A'; 2 << 20]).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    let observer = |event: &WipeEvent<'_>| {
        if let WipeEvent::Begin {
            stage: Stage::Verify,
            ..
        } = event
        {
            file.write_all_at(b"intruder", 1_000_000).unwrap();
            file.sync_all().unwrap();
        }
        ControlFlow::Continue(())
    };
    let report = wipe_observed(&best_effort(&path), &observer)
        .unwrap()
        .report;
    let Verdict::Failed { reasons } = &report.verdict else {
        panic!("{}", report.verdict)
    };
    assert!(
        reasons[0].contains("first at offset 1000000"),
        "{reasons:?}"
    );
}

#[test]
fn sampled_and_unverified_wipes_claim_less() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    for (verify, reason) in [
        (Verify::Sample(10), Reason::Sampled { percent: 10 }),
        (Verify::None, Reason::NotVerified),
    ] {
        fs::write(&path, vec![b'A'; 2 << 20]).unwrap();
        let report = wipe(&WipeRequest {
            verify,
            ..best_effort(&path)
        })
        .unwrap()
        .report;
        let Verdict::OverwrittenNotProvable { reasons } = &report.verdict else {
            panic!("{}", report.verdict)
        };
        assert!(reasons.contains(&reason), "{reasons:?}");
        assert_eq!(
            report.files[0].verification.is_some(),
            verify != Verify::None
        );
    }
}

#[test]
fn removal_leaves_no_name_and_an_overwritten_inode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
    let held = File::open(&path).unwrap();
    let request = WipeRequest {
        afterwards: Afterwards::Remove,
        ..best_effort(&path)
    };
    wipe(&request).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(held.metadata().unwrap().nlink(), 0);
    let mut content = vec![0; 1 << 20];
    held.read_exact_at(&mut content, 0).unwrap();
    assert!(!content.windows(64).any(|run| run == [b'A'; 64]));
}

#[test]
fn cancelling_keeps_a_record_that_the_same_command_takes_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    fs::write(&path, vec![b'A'; 4 << 20]).unwrap();
    let (_journals, journal) = journal();
    let wiper = Wiper::new(&journal, &NoOthers).with_tuning(small());
    let request = WipeRequest {
        algorithm: Algorithm::Nnsa,
        ..best_effort(&path)
    };
    let stop = |event: &WipeEvent<'_>| match event {
        WipeEvent::Advanced { done } if *done >= 1 << 20 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = wiper.wipe(&request, &stop).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    let pending = wiper.pending().unwrap();
    assert_eq!(
        (pending.len(), pending[0].pass, pending[0].passes),
        (1, 1, 3)
    );
    assert!(pending[0].position >= 1 << 20);
    let other = WipeRequest {
        algorithm: Algorithm::Zero,
        ..request.clone()
    };
    let error = wiper.wipe(&other, &Silent).unwrap_err();
    assert!(matches!(error, Error::Pending { .. }), "{error}");

    let report = wiper.wipe(&request, &Silent).unwrap().report;
    assert!(!report.verdict.is_failed(), "{}", report.verdict);
    assert_eq!(report.interruptions.len(), 1);
    assert_eq!(report.interruptions[0].restarted, None);
    assert!(report.interruptions[0].position >= 1 << 20);
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    assert!(wiper.pending().unwrap().is_empty());
}

#[test]
fn a_record_is_private_and_forgets_its_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume.raw");
    fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
    let state = folder.path().join("wipes");
    let journal = FileJournal::open(&state).unwrap();
    let wiper = Wiper::new(&journal, &NoOthers).with_tuning(small());
    let stop = |_: &WipeEvent<'_>| ControlFlow::Break(());
    wiper.wipe(&best_effort(&path), &stop).unwrap_err();
    for entry in fs::read_dir(&state).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    let id = wiper.pending().unwrap()[0].id.clone();
    // A name swapped in between is not wiped in its place.
    fs::remove_file(&path).unwrap();
    fs::write(&path, vec![b'B'; 1 << 20]).unwrap();
    // Most file systems give it the same inode number.
    let error = wiper.resume(&id, &Silent).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("another file has taken its name"),
        "{error}"
    );
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == b'B'));
    wiper.forget(&id).unwrap();
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
}

#[test]
fn several_volumes_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (_journals, journal) = journal();
    let requests: Vec<WipeRequest> = (0..5)
        .map(|number| {
            let path = folder.path().join(format!("{number}.raw"));
            fs::write(&path, vec![b'A'; 2 << 20]).unwrap();
            WipeRequest {
                algorithm: Algorithm::Zero,
                ..best_effort(&path)
            }
        })
        .collect();
    let wiper = Wiper::new(&journal, &NoOthers);
    let results = wiper.wipe_all(&requests, 3, &|_, _| ControlFlow::Continue(()));
    assert_eq!(results.len(), 5);
    for (request, result) in requests.iter().zip(results) {
        assert_eq!(result.unwrap().report.request.path, request.path);
        assert!(
            fs::read(&request.path)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
    }
}

#[test]
fn a_plan_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = holey(folder.path(), &secret());
    let before = (
        fs::read(&path).unwrap(),
        path.metadata().unwrap().modified().unwrap(),
    );
    let (_journals, journal) = journal();
    let plan = Wiper::new(&journal, &NoOthers)
        .plan(&best_effort(&path))
        .unwrap();
    assert!(plan.files[0].map.extents.len() > 1);
    assert!(!plan.expected.is_failed());
    assert_eq!(plan.files[0].format, Format::Raw);
    assert_eq!(
        before,
        (
            fs::read(&path).unwrap(),
            path.metadata().unwrap().modified().unwrap()
        )
    );
    assert!(journal.list().unwrap().is_empty());
}

#[test]
fn trim_reports_what_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = holey(folder.path(), &secret());
    let request = WipeRequest {
        algorithm: Algorithm::Trim,
        ..raw(&path)
    };
    let error = wipe(&request).unwrap_err();
    assert!(matches!(error, Error::NotProvable { .. }), "{error}");
    let report = wipe(&WipeRequest {
        best_effort: true,
        ..request
    })
    .unwrap()
    .report;
    assert!(
        report
            .verdict
            .to_string()
            .contains("reading now gives zeroes"),
        "{}",
        report.verdict
    );
    assert_eq!(report.files[0].passes[0].content, "punch hole");
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(path.metadata().unwrap().len(), SIZE);
}
