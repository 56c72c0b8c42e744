//! Answer files that we write, as the installers' own judges and programs read them.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use cenote_provision::answer::judge::{Judges, Verdict};
use cenote_provision::answer::secret::PasswordHash;
use cenote_provision::answer::template::{End, Parameters, Source, TemplateError, User};
use cenote_provision::answer::{Expect, Hooks, Kind, lint_kickstart, lint_preseed};
use common::{ok, run};

const PASSWORD: &str = "correct horse battery";

fn judges() -> Judges {
    let exe = std::env::current_exe().unwrap();
    let target: PathBuf = exe.ancestors().nth(3).unwrap().into();
    let ksvalidator = target.join("xtask/python/bin/ksvalidator");
    Judges {
        ksvalidator: match ksvalidator.is_file() {
            true => ksvalidator.into(),
            false => "ksvalidator".into(),
        },
        ..Judges::default()
    }
}

fn judge(kind: Kind, text: &str) -> Verdict {
    let verdict = judges().ask(kind, text).unwrap();
    if let Verdict::Absent { what } = verdict {
        assert_eq!(kind, Kind::Autoinstall, "{what}: run `cargo xtask setup`");
    }
    verdict
}

/// The hash that this machine's crypt(3) makes.
fn hash() -> PasswordHash {
    let program = "print crypt($ARGV[0], '$6$saltsaltsaltsalt')";
    let hash = ok("perl", "perl-base", &["-e", program, PASSWORD], b"");
    String::from_utf8(hash).unwrap().parse().unwrap()
}

/// Parameters of every sort.
fn parameters() -> Vec<Parameters> {
    let key =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKt7ykzLYrOr6pgkZcvyZqYb3BtNtN2J1yX5uLxQk8mN me@host";
    let with_password = Parameters {
        user: Some(User {
            name: "ada".into(),
            password: Some(hash()),
            ssh_keys: vec![key.into()],
        }),
        root: Some(hash()),
        packages: vec!["vim".into(), "g++".into()],
        timezone: "America/Argentina/Buenos_Aires".into(),
        end: End::Poweroff,
        ..Parameters::new("guest.example.org")
    };
    let by_key = Parameters {
        user: Some(User {
            name: "ada".into(),
            password: None,
            ssh_keys: vec![key.into(), "ssh-rsa AAAAB3NzaC1yc2E= second".into()],
        }),
        ..Parameters::new("guest")
    };
    vec![with_password, by_key]
}

fn with_source(kind: Kind, parameters: Parameters) -> Parameters {
    let source = match kind {
        Kind::Kickstart => Source::Url("http://10.0.2.2/tree".into()),
        Kind::Preseed | Kind::Autoinstall => Source::Url("http://mirror.test/debian".into()),
        Kind::CloudInit => Source::Media,
    };
    Parameters {
        source,
        ..parameters
    }
}

fn expect() -> Expect {
    Expect {
        disks: vec!["vda".into()],
        source_given: false,
    }
}

#[test]
fn what_we_write_is_accepted_by_us_and_by_the_installers_judges() {
    let hooks = Hooks::new("abcdefgh12345678").unwrap();
    for kind in Kind::ALL {
        for parameters in parameters() {
            let text = with_source(kind, parameters).render(kind).unwrap();
            assert!(!text.contains(PASSWORD));
            let (findings, added) = match kind {
                Kind::Kickstart => (
                    lint_kickstart(&text, &expect()),
                    hooks.add_to_kickstart(&text),
                ),
                Kind::Preseed => (lint_preseed(&text, &expect()), hooks.add_to_preseed(&text)),
                _ => (Vec::new(), text.clone()),
            };
            assert!(findings.is_empty(), "{kind}: {findings:#?}\n{text}");
            if kind != Kind::Autoinstall {
                assert_eq!(judge(kind, &text), Verdict::Accepted, "{text}");
                assert_eq!(judge(kind, &added), Verdict::Accepted, "{added}");
            }
        }
    }
}

/// PyYAML, which Subiquity reads its file with, finds the answers where they belong.
#[test]
fn an_autoinstall_says_what_was_asked_for() {
    let parameters = with_source(Kind::Autoinstall, parameters().remove(0));
    let text = parameters.render(Kind::Autoinstall).unwrap();
    let program = "import sys, yaml\n\
        a = yaml.safe_load(sys.stdin)['autoinstall']\n\
        print(a['version'], a['identity']['hostname'], a['identity']['password'] == sys.argv[1],\n\
              a['storage']['layout']['match']['path'], a['packages'], a['shutdown'],\n\
              a['apt']['primary'][0]['uri'], a['ssh']['allow-pw'])\n";
    let hash = parameters.user.unwrap().password.unwrap();
    let arguments = ["-c", program, hash.expose()];
    let said = ok(
        "/usr/bin/python3",
        "cloud-init",
        &arguments,
        text.as_bytes(),
    );
    let expected = "1 guest.example.org True /dev/vda ['vim', 'g++'] poweroff \
        http://mirror.test/debian True\n";
    assert_eq!(String::from_utf8(said).unwrap(), expected);
    let nobody = run(
        "/usr/bin/python3",
        "cloud-init",
        &["-c", program, "other"],
        text.as_bytes(),
    );
    assert!(String::from_utf8(nobody.stdout).unwrap().contains("False"));
}

#[test]
fn parameters_that_cannot_be_are_refused() {
    let good = || parameters().remove(0);
    let bad: Vec<Parameters> = vec![
        Parameters {
            hostname: "a b".into(),
            ..good()
        },
        Parameters {
            hostname: "-x".into(),
            ..good()
        },
        Parameters {
            hostname: "x\npoweroff".into(),
            ..good()
        },
        Parameters {
            timezone: "UTC; rm".into(),
            ..good()
        },
        Parameters {
            keyboard: "us'".into(),
            ..good()
        },
        Parameters {
            disk: "/dev/vda".into(),
            ..good()
        },
        Parameters {
            packages: vec!["a b".into()],
            ..good()
        },
        Parameters {
            packages: vec!["%end".into()],
            ..good()
        },
        Parameters {
            source: Source::Url("file:///etc".into()),
            ..good()
        },
        Parameters {
            user: Some(User {
                name: "Root x".into(),
                password: None,
                ssh_keys: vec![],
            }),
            ..good()
        },
        Parameters {
            user: Some(User {
                name: "a".into(),
                password: None,
                ssh_keys: vec!["ssh-rsa A' ; rm -rf '".into()],
            }),
            ..good()
        },
    ];
    for parameters in bad {
        for kind in Kind::ALL {
            let error = parameters.render(kind).unwrap_err();
            assert!(matches!(error, TemplateError::Value { .. }), "{error}");
        }
    }
    let nobody = Parameters::new("x").render(Kind::Kickstart);
    assert_eq!(nobody.unwrap_err(), TemplateError::NoLogin);
}
