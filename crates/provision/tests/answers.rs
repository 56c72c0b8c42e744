//! Answer files: what we find in bad ones, and what the installers' own judges say of ours.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use cenote_provision::answer::judge::{Judges, Verdict};
use cenote_provision::answer::secret::{PasswordHash, Secret};
use cenote_provision::answer::template::{End, Parameters, Source, TemplateError, User};
use cenote_provision::answer::{
    Expect, Finding, Hooks, InstrumentError, Kind, Severity, has_errors, instrument, lint,
    lint_meta_data, lint_network_config,
};
use common::ok;
use proptest::prelude::*;

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

fn hash() -> PasswordHash {
    Secret::new(PASSWORD.into()).unwrap().hash().unwrap()
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
    for kind in Kind::ALL {
        for parameters in parameters() {
            let text = with_source(kind, parameters).render(kind).unwrap();
            let findings = lint(kind, &text, &expect());
            assert!(findings.is_empty(), "{kind}: {findings:#?}\n{text}");
            assert!(!text.contains(PASSWORD));
            let verdict = judge(kind, &text);
            if kind != Kind::Autoinstall {
                assert_eq!(verdict, Verdict::Accepted, "{text}");
            }
            let hooks = Hooks::new("abcdefgh12345678").unwrap();
            let added = instrument(kind, &text, &hooks).unwrap();
            assert!(added.contains(&hooks.success()), "{added}");
            let findings = lint(kind, &added, &expect());
            assert!(findings.is_empty(), "{kind}: {findings:#?}\n{added}");
            if kind != Kind::Autoinstall {
                assert_eq!(judge(kind, &added), Verdict::Accepted, "{added}");
            }
        }
    }
}

/// crypt(3) of this machine agrees with our hash.
#[test]
fn hashes_are_those_of_crypt() {
    let hash = hash();
    let program = "exit(crypt($ARGV[0], $ARGV[1]) eq $ARGV[1] ? 0 : 1)";
    ok(
        "perl",
        "perl-base",
        &["-e", program, PASSWORD, hash.expose()],
        b"",
    );
    let output = common::run(
        "perl",
        "perl-base",
        &["-e", program, "wrong", hash.expose()],
        b"",
    );
    assert!(!output.status.success());
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
    let nobody = common::run(
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

/// `line:column severity message` of each finding with that severity.
fn told(findings: &[Finding], severity: Severity) -> Vec<String> {
    let chosen = findings.iter().filter(|f| f.severity == severity);
    chosen
        .map(|f| format!("{}:{} {}", f.line, f.column, f.message))
        .collect()
}

fn errors(kind: Kind, text: &str) -> Vec<String> {
    told(&lint(kind, text, &expect()), Severity::Error)
}

fn assert_told(told: &[String], parts: &[&str]) {
    assert_eq!(told.len(), parts.len(), "{told:#?}");
    for (told, part) in told.iter().zip(parts) {
        assert!(told.contains(part), "'{told}' lacks '{part}'");
    }
}

const KICKSTART: &str = "text\nlang en_US.UTF-8\nkeyboard us\ntimezone UTC\ncdrom\nrootpw --lock\n\
    user --name=a --groups=wheel --iscrypted --password=$6$salt$hash\nzerombr\nclearpart --all\n\
    autopart\npoweroff\n%packages\n@core\n%end\n";

#[test]
fn a_kickstart_that_would_hang_is_told() {
    let good = lint(Kind::Kickstart, KICKSTART, &expect());
    assert!(good.is_empty(), "{good:#?}");
    for (without, part) in [
        ("poweroff\n", "wait for a key"),
        ("autopart\n", "no partitioning"),
        ("cdrom\n", "no source of packages"),
    ] {
        assert_told(
            &errors(Kind::Kickstart, &KICKSTART.replace(without, "")),
            &[part],
        );
    }
    let nobody = KICKSTART
        .replace("rootpw --lock\n", "")
        .replace("--groups=wheel ", "");
    assert_told(&errors(Kind::Kickstart, &nobody), &["no root password"]);
    let included = KICKSTART.replace("autopart\n", "%include /tmp/parts\n");
    assert!(errors(Kind::Kickstart, &included).is_empty());
    let given = Expect {
        source_given: true,
        ..expect()
    };
    assert!(!has_errors(&lint(
        Kind::Kickstart,
        &KICKSTART.replace("cdrom\n", ""),
        &given
    )));
}

#[test]
fn mistakes_in_a_kickstart_have_their_place() {
    let text = KICKSTART.replace("zerombr\n", "zerombr\n  clearpartt --all\n");
    let findings = lint(Kind::Kickstart, &text, &expect());
    assert_told(
        &told(&findings, Severity::Error),
        &["9:3 unknown command 'clearpartt'"],
    );
    assert!(findings[0].remedy.contains("'clearpart'"), "{findings:?}");
    let text = KICKSTART.replace("clearpart --all", "clearpart --all --drives=sda,vda");
    assert_told(
        &errors(Kind::Kickstart, &text),
        &["9:1 the domain has no disk 'sda'"],
    );
    let text = format!("{KICKSTART}%post --erroronfail\necho 'poweroff\n");
    assert_told(
        &errors(Kind::Kickstart, &text),
        &["15:1 '%post' has no %end"],
    );
    let text = format!("{KICKSTART}%end\n%pots\n");
    assert_told(
        &errors(Kind::Kickstart, &text),
        &["15:1 %end without", "16:1 unknown section"],
    );
    let text = KICKSTART.replace("lang en_US.UTF-8", "lang 'en_US");
    assert_told(&errors(Kind::Kickstart, &text), &["2:1 a quote"]);
    let text = KICKSTART.replace("rootpw --lock", "rootpw secret99");
    let findings = lint(Kind::Kickstart, &text, &expect());
    assert_told(
        &told(&findings, Severity::Warning),
        &["6:1 the password stands here"],
    );
    assert!(!format!("{findings:?}").contains("secret99"));
    let text = KICKSTART.replace("rootpw --lock", "rootpw --iscrypted secret99");
    assert_told(&errors(Kind::Kickstart, &text), &["6:1 --iscrypted"]);
}

/// Where ksvalidator refuses a file, so do we, unless it is for options.
#[test]
fn ksvalidator_refuses_what_we_refuse_of_commands_and_sections() {
    for text in [
        KICKSTART.replace("zerombr", "zerombrr"),
        format!("{KICKSTART}%post\n"),
    ] {
        assert!(has_errors(&lint(Kind::Kickstart, &text, &expect())));
        let Verdict::Refused { reasons } = judge(Kind::Kickstart, &text) else {
            panic!("accepted:\n{text}");
        };
        assert!(!reasons.is_empty());
    }
}

const PRESEED: &str = "# comment\nd-i debian-installer/locale string en_US.UTF-8\n\
    d-i keyboard-configuration/xkb-keymap select us\nd-i passwd/root-login boolean false\n\
    d-i passwd/username string ada\nd-i passwd/user-password-crypted password $6$salt$hash\n\
    d-i partman-auto/disk string /dev/vda\nd-i partman-auto/method string regular\n\
    d-i partman-partitioning/confirm_write_new_label boolean true\n\
    d-i partman/choose_partition select finish\nd-i partman/confirm boolean true\n\
    d-i partman/confirm_nooverwrite boolean true\nd-i pkgsel/include string openssh-server \\\n  vim\n\
    d-i grub-installer/bootdev string default\nd-i finish-install/reboot_in_progress note\n";

#[test]
fn a_preseed_that_would_hang_is_told() {
    let good = lint(Kind::Preseed, PRESEED, &expect());
    assert!(good.is_empty(), "{good:#?}");
    let without = |question: &str| -> String {
        let lines = PRESEED.lines().filter(|line| !line.contains(question));
        lines.map(|line| format!("{line}\n")).collect()
    };
    for (question, part) in [
        ("user-password-crypted", "no user's password"),
        ("passwd/username", "no user's name"),
        ("partman-auto/method", "no partitioning"),
        ("partman/confirm ", "partman/confirm is not answered"),
        ("confirm_nooverwrite", "confirm_nooverwrite is not answered"),
        ("reboot_in_progress", "wait for a key"),
        ("root-login", "no root password"),
    ] {
        assert_told(&errors(Kind::Preseed, &without(question)), &[part]);
    }
}

#[test]
fn mistakes_in_a_preseed_have_their_place() {
    let text = PRESEED.replace("boolean false", "boolean no");
    assert_told(
        &errors(Kind::Preseed, &text),
        &["4:1 a truth", "0:0 no root password"],
    );
    let text = PRESEED.replace("locale string", "locale strng");
    assert_told(&errors(Kind::Preseed, &text), &["2:1 unknown type 'strng'"]);
    let text = PRESEED.replace("/dev/vda", "/dev/sda");
    assert_told(
        &errors(Kind::Preseed, &text),
        &["7:1 the domain has no disk 'sda'"],
    );
    // debconf takes this in silence.
    let text = PRESEED.replace("partman-auto/disk", "partman-auto/dsik");
    assert_eq!(judge(Kind::Preseed, &text), Verdict::Accepted);
    let warnings = told(&lint(Kind::Preseed, &text, &expect()), Severity::Warning);
    assert_told(&warnings, &["7:1 no question 'partman-auto/dsik'"]);
    let text = PRESEED.replace("\\\n", "\\ \n");
    assert!(errors(Kind::Preseed, &text)[0].contains("blanks after a backslash"));
    let text = PRESEED.replace("locale string", "locale strng");
    assert!(matches!(
        judge(Kind::Preseed, &text),
        Verdict::Refused { .. }
    ));
}

const AUTOINSTALL: &str = "#cloud-config\nautoinstall:\n  version: 1\n  identity:\n    hostname: g\n    \
    username: ada\n    password: '$6$salt$hash'\n  storage:\n    layout:\n      name: direct\n  \
    packages: [vim]\n  late-commands:\n    - echo done\n";

#[test]
fn mistakes_in_an_autoinstall_have_their_place() {
    let good = lint(Kind::Autoinstall, AUTOINSTALL, &expect());
    assert!(good.is_empty(), "{good:#?}");
    let file = AUTOINSTALL
        .replace("#cloud-config\nautoinstall:\n", "")
        .replace("\n  ", "\n");
    let bare = file.trim_start().to_owned();
    assert!(
        lint(Kind::Autoinstall, &bare, &expect()).is_empty(),
        "{bare}"
    );
    for (from, to, parts) in [
        (
            "#cloud-config\n",
            "# cloud-config\n",
            &["1:1 the first line"][..],
        ),
        ("  version: 1\n", "", &["3:3 no version"]),
        ("version: 1", "version: 2", &["3:12 the one version"]),
        (
            "  packages: [vim]",
            "  packges: [vim]",
            &["11:3 unknown key 'packges'"],
        ),
        (
            "packages: [vim]",
            "packages: vim",
            &["11:13 'packages' is a single value"],
        ),
        (
            "    password: '$6$salt$hash'\n",
            "",
            &["5:5 identity has no password"],
        ),
        (
            "'$6$salt$hash'",
            "hunter2",
            &["7:15 the password is no hash"],
        ),
        ("name: direct", "name: drect", &["10:13 unknown layout"]),
        (
            "name: direct",
            "name: direct\n      match: {path: /dev/sda}",
            &["11:21 the domain has no disk"],
        ),
        ("- echo done", "- echo: done", &["13:7 a command is a text"]),
        (
            "  packages:",
            "  interactive-sections: [network]\n  packages:",
            &["11:25 the installer would ask"],
        ),
        (
            "  packages:",
            "  version: 1\n  packages:",
            &["11:3 'version' stands in line 3"],
        ),
        (
            "  packages:",
            "  shutdown: halt\n  packages:",
            &["11:13 unknown end"],
        ),
        ("  packages: [", "  packages: [[", &["not YAML"]),
    ] {
        let text = AUTOINSTALL.replace(from, to);
        assert_ne!(text, AUTOINSTALL, "{from}");
        assert_told(&errors(Kind::Autoinstall, &text), parts);
        assert!(!format!("{:?}", lint(Kind::Autoinstall, &text, &expect())).contains("hunter2"));
    }
    assert_told(
        &errors(Kind::Autoinstall, "#cloud-config\npackages: [vim]\n"),
        &["no key 'autoinstall'"],
    );
    assert_told(
        &errors(Kind::Autoinstall, "- a\n"),
        &["1:1 the file is a list"],
    );
}

const USER_DATA: &str = "#cloud-config\nusers:\n  - name: ada\n    lock_passwd: false\n    \
    passwd: '$6$salt$hash'\nruncmd:\n  - [ls, -l]\nphone_home:\n  url: http://h/\n  post: all\n\
    power_state:\n  mode: poweroff\n";

#[test]
fn mistakes_in_user_data_have_their_place() {
    let good = lint(Kind::CloudInit, USER_DATA, &expect());
    assert!(good.is_empty(), "{good:#?}");
    assert_eq!(judge(Kind::CloudInit, USER_DATA), Verdict::Accepted);
    for (from, to, parts) in [
        (
            "#cloud-config\n",
            "#cloud-confg\n",
            &["1:1 the first line"][..],
        ),
        ("runcmd:", "runcmds:", &["6:1 unknown key 'runcmds'"]),
        (
            "  post: all",
            "  pots: all",
            &["10:3 unknown key of phone_home"],
        ),
        ("mode: poweroff", "mode: off", &["12:9 unknown mode 'off'"]),
        ("'$6$salt$hash'", "hunter2", &["5:13 passwd is no hash"]),
        (
            "runcmd:\n  - [ls, -l]",
            "runcmd: ls",
            &["6:9 'runcmd' is a single value"],
        ),
        (
            "power_state:",
            "write_files: [{content: x}]\npower_state:",
            &["11:15 a file has a path"],
        ),
    ] {
        let text = USER_DATA.replace(from, to);
        assert_told(&errors(Kind::CloudInit, &text), parts);
    }
    // cloud-init's own schema agrees where it looks.
    let text = USER_DATA.replace("  post: all", "  pots: all");
    assert!(matches!(
        judge(Kind::CloudInit, &text),
        Verdict::Refused { .. }
    ));
    let nobody = lint(Kind::CloudInit, "#cloud-config\nhostname: x\n", &expect());
    assert_told(&told(&nobody, Severity::Warning), &["nobody could log in"]);
    assert!(lint(Kind::CloudInit, "#!/bin/sh\nnot: [yaml\n", &expect()).is_empty());
}

#[test]
fn meta_data_and_network_configuration_are_looked_over() {
    assert!(lint_meta_data("instance-id: i-1\nlocal-hostname: g\n").is_empty());
    assert!(has_errors(&lint_meta_data("local-hostname: g\n")));
    assert!(has_errors(&lint_meta_data("[")));
    let near = lint_meta_data("instance-id: i-1\nlocal-hostnam: g\n");
    assert!(near[0].remedy.contains("'local-hostname'"), "{near:?}");
    assert!(lint_network_config("version: 2\nethernets: {}\n").is_empty());
    assert!(lint_network_config("network:\n  version: 1\n  config: []\n").is_empty());
    for text in [
        "ethernets: {}\n",
        "version: 2\nethernet: {}\n",
        "version: 1\n",
    ] {
        assert!(has_errors(&lint_network_config(text)), "{text}");
    }
    let parameters = parameters().remove(0);
    assert!(lint_meta_data(&parameters.meta_data("i-0001").unwrap()).is_empty());
}

#[test]
fn reports_follow_what_the_file_does_itself() {
    let hooks = Hooks::new("abcdefgh12345678").unwrap();
    let text = format!(
        "{PRESEED}d-i preseed/late_command string in-target true; \\\n  echo hi > /target/x\n"
    );
    let added = instrument(Kind::Preseed, &text, &hooks).unwrap();
    let late: Vec<&str> = added
        .lines()
        .filter(|l| l.contains("late_command"))
        .collect();
    let [late] = late.as_slice() else {
        panic!("{added}")
    };
    assert!(
        late.contains("if ( in-target true;  echo hi > /target/x ); then ")
            || late.contains("if ( in-target true; echo hi > /target/x ); then "),
        "{late}"
    );
    assert!(late.contains(&hooks.success()) && late.contains(&hooks.failure()));
    // The command is one that a shell reads.
    let command = late.split_once("string ").unwrap().1;
    ok("dash", "dash", &["-n"], command.as_bytes());
    let added = instrument(Kind::Autoinstall, AUTOINSTALL, &hooks).unwrap();
    let own = added.find("echo done").unwrap();
    let report = added.find(&hooks.success()).unwrap();
    assert!(
        added.starts_with("#cloud-config\n") && own < report,
        "{added}"
    );
    let script = instrument(Kind::CloudInit, "#!/bin/sh\n", &hooks);
    assert_eq!(script.unwrap_err(), InstrumentError::NotCloudConfig);
    for token in ["", "short", "with space here", &"x".repeat(65)] {
        assert!(Hooks::new(token).is_err());
    }
    assert_eq!(format!("{hooks:?}"), "Hooks(…)");
}

#[test]
fn yaml_that_grows_without_end_is_refused() {
    let mut bomb = String::from("#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let below = format!("*a{}", level - 1);
        let items = vec![below; 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    let told = errors(Kind::CloudInit, &bomb);
    assert!(
        told.iter().any(|told| told.contains("200,000 parts")),
        "{told:?}"
    );
    let deep = format!("#cloud-config\na: {}\n", "[".repeat(5000));
    assert!(!errors(Kind::CloudInit, &deep).is_empty());
    let itself = "#cloud-config\na: &a [*a]\n";
    assert!(!errors(Kind::CloudInit, itself).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Any text is looked over: never a panic.
    #[test]
    fn any_text_is_looked_over(text in "(%[a-z]{0,5}|[a-z/:-]{1,12}|[ \\t'\"\\\\#&*\\[\\]{}|>!-]|\\PC|\n|: |\n  - ){0,80}") {
        let hooks = Hooks::new("abcdefgh12345678").unwrap();
        for kind in Kind::ALL {
            let _ = lint(kind, &text, &expect());
            let headed = format!("#cloud-config\n{text}");
            let _ = lint(kind, &headed, &expect());
            let _ = instrument(kind, &text, &hooks);
        }
        let _ = lint_meta_data(&text);
        let _ = lint_network_config(&text);
    }
}
