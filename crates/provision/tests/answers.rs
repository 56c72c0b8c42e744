//! Kickstart and preseed files: what we find in bad ones, and what the installers' own judges
//! say.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use cenote_provision::answer::judge::{Judges, Verdict};
use cenote_provision::answer::{
    Expect, Finding, Hooks, Kind, Severity, has_errors, lint_kickstart, lint_preseed,
};
use common::ok;
use proptest::prelude::*;

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

fn expect() -> Expect {
    Expect {
        disks: vec!["vda".into()],
        source_given: false,
    }
}

/// `line:column severity message` of each finding with that severity.
fn told(findings: &[Finding], severity: Severity) -> Vec<String> {
    let chosen = findings.iter().filter(|f| f.severity == severity);
    chosen
        .map(|f| format!("{}:{} {}", f.line, f.column, f.message))
        .collect()
}

fn lint(kind: Kind, text: &str, expect: &Expect) -> Vec<Finding> {
    match kind {
        Kind::Kickstart => lint_kickstart(text, expect),
        Kind::Preseed => lint_preseed(text, expect),
        other => panic!("{other}"),
    }
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

#[test]
fn reports_follow_what_the_file_does_itself() {
    let hooks = Hooks::new("abcdefgh12345678").unwrap();
    let text = format!(
        "{PRESEED}d-i preseed/late_command string in-target true; \\\n  echo hi > /target/x\n"
    );
    let added = hooks.add_to_preseed(&text);
    let late: Vec<&str> = added
        .lines()
        .filter(|l| l.contains("late_command"))
        .collect();
    let [late] = late.as_slice() else {
        panic!("{added}")
    };
    assert!(
        late.contains("if ( in-target true; echo hi > /target/x ); then "),
        "{late}"
    );
    assert!(late.contains(&hooks.success()) && late.contains(&hooks.failure()));
    // The command is one that a shell reads.
    let command = late.split_once("string ").unwrap().1;
    ok("dash", "dash", &["-n"], command.as_bytes());
    assert_eq!(judge(Kind::Preseed, &added), Verdict::Accepted);
    let added = hooks.add_to_kickstart(KICKSTART);
    assert!(added.starts_with(KICKSTART) && added.contains(&hooks.success()));
    assert!(lint_kickstart(&added, &expect()).is_empty());
    assert_eq!(judge(Kind::Kickstart, &added), Verdict::Accepted);
    for token in ["", "short", "with space here", &"x".repeat(65)] {
        assert!(Hooks::new(token).is_err());
    }
    assert_eq!(format!("{hooks:?}"), "Hooks(…)");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Any text is looked over: never a panic.
    #[test]
    fn any_text_is_looked_over(text in "(%[a-z]{0,5}|[a-z/:-]{1,12}|[ \\t'\"\\\\#&*\\[\\]{}|>!-]|\\PC|\n|d-i a/b string ){0,80}") {
        let hooks = Hooks::new("abcdefgh12345678").unwrap();
        let _ = lint_kickstart(&text, &expect());
        let _ = lint_preseed(&text, &expect());
        let _ = lint_kickstart(&hooks.add_to_kickstart(&text), &expect());
        let _ = lint_preseed(&hooks.add_to_preseed(&text), &expect());
    }
}
