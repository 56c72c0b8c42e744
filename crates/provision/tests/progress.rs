//! What installers print, as their logs have it.
#![allow(clippy::unwrap_used)]

use cenote_provision::answer::Hooks;
use cenote_provision::install::{Progress, Stage, Step};
use proptest::prelude::*;

fn hooks() -> Hooks {
    Hooks::new("abcdefgh12345678").unwrap()
}

fn read(text: &str) -> (Vec<Step>, Progress) {
    let mut progress = Progress::new(Some(hooks()));
    let steps = progress.feed(text.as_bytes());
    (steps, progress)
}

fn stages(text: &str) -> Vec<Stage> {
    let (steps, _) = read(text);
    let stages = steps.into_iter().filter_map(|step| match step {
        Step::At { stage, .. } => Some(stage),
        _ => None,
    });
    stages.collect()
}

#[test]
fn anaconda_is_followed() {
    let text = "[    0.000000] Linux version 6.8.5-301.fc40.x86_64 (mockbuild)\r\n\
        Starting installer, one moment...\r\n\
        anaconda 40.22.3-1.fc40 for Fedora 40 started.\r\n\
        Starting automated install...\r\nConfiguring storage\r\nCreating disklabel on /dev/vda\r\n\
        Starting package installation process\r\nInstalling libgcc.x86_64 (1/345)\r\n\
        12:01:02,345 INF packaging: Installing glibc.x86_64 (23/345)\r\n\
        Installing boot loader\r\nPerforming post-installation setup tasks\r\n\
        Installation complete\r\n";
    let (steps, progress) = read(text);
    assert_eq!(steps[0], Step::KernelStarted);
    assert!(steps.contains(&Step::Count { done: 1, of: 345 }));
    assert!(steps.contains(&Step::Count { done: 23, of: 345 }));
    assert_eq!(progress.stage(), Some(Stage::Done));
    use Stage::{BootLoader, Configure, Done, Packages, Prepare, Storage};
    let expected = [
        Prepare, Prepare, Storage, Storage, Packages, BootLoader, Configure, Done,
    ];
    assert_eq!(stages(text), expected);
}

#[test]
fn debian_installer_is_followed() {
    let text = "Jan  1 00:00:07 main-menu[211]: INFO: Menu item 'netcfg' selected\n\
        Jan  1 00:00:20 main-menu[211]: INFO: Menu item 'partman-base' selected\n\
        Jan  1 00:00:30 main-menu[211]: INFO: Menu item 'bootstrap-base' selected\n\
        Installing the base system ... 40%\n\
        Jan  1 00:01:00 main-menu[211]: INFO: Menu item 'grub-installer' selected\n\
        Jan  1 00:01:09 main-menu[211]: INFO: Menu item 'finish-install' selected\n";
    use Stage::{BootLoader, Configure, Packages, Prepare, Storage};
    assert_eq!(
        stages(text),
        [Prepare, Storage, Packages, BootLoader, Configure]
    );
    assert!(read(text).0.contains(&Step::Count { done: 40, of: 100 }));
}

#[test]
fn subiquity_is_followed_by_line_and_by_webhook() {
    let text = "start: subiquity/Meta/status_GET: \n\
        start: subiquity/Install/install/curtin_install/run_curtin_step: executing curtin install partitioning step\n\
        start: subiquity/Install/install/curtin_install/run_curtin_step: executing curtin install extract step\n\
        start: subiquity/Late/run: \n";
    use Stage::{Configure, Packages, Prepare, Storage};
    assert_eq!(stages(text), [Prepare, Storage, Packages, Configure]);
    let mut progress = Progress::default();
    let step = progress.report(
        r#"{"name": "subiquity/Install/install/curtin_install/run_curtin_step", "event_type": "start",
            "description": "executing curtin install extract step", "origin": "subiquity"}"#,
    );
    assert!(
        matches!(
            step,
            Some(Step::At {
                stage: Packages,
                ..
            })
        ),
        "{step:?}"
    );
    let step = progress.report(
        r#"{"name": "subiquity/Install/install", "event_type": "finish", "result": "FAIL", "description": "x"}"#,
    );
    assert!(matches!(step, Some(Step::Trouble(_))));
    for noise in ["", "[]", "{\"name\": 3}", "{"] {
        assert_eq!(progress.report(noise), None);
    }
}

#[test]
fn cloud_init_is_followed() {
    let text = "[    9.1] cloud-init[301]: Cloud-init v. 22.4.2 running 'init-local' at Fri, 20 Nov 2026 10:00:00 +0000. Up 9.00 seconds.\n\
        [   15.1] cloud-init[512]: Cloud-init v. 22.4.2 running 'modules:final' at Fri, 20 Nov 2026 10:00:06 +0000. Up 15.00 seconds.\n\
        [   17.1] cloud-init[512]: Cloud-init v. 22.4.2 finished at Fri, 20 Nov 2026 10:00:08 +0000. Datasource DataSourceNoCloud [seed=/dev/sr0][dsmode=net].  Up 17.00 seconds\n";
    assert_eq!(
        stages(text),
        [Stage::Prepare, Stage::Configure, Stage::Done]
    );
}

#[test]
fn questions_are_seen_before_the_line_ends_and_once() {
    let mut progress = Progress::new(None);
    assert!(progress.feed(b"Continue with auto").is_empty());
    let steps = progress.feed(b"install? (yes|no)");
    assert_eq!(
        steps,
        [Step::Asked("Continue with autoinstall? (yes|no)".into())]
    );
    assert!(progress.feed(b" ").is_empty());
    assert!(progress.feed(b"\r\n").is_empty());
    let (steps, _) =
        read("\x1b[1;31mPlease make a selection from the above\x1b[0m ['c' to continue]: ");
    assert!(matches!(&steps[..], [Step::Asked(_)]), "{steps:?}");
    let (steps, _) = read("(initramfs) ");
    assert!(matches!(&steps[..], [Step::Asked(_)]), "{steps:?}");
    assert!(read("a text about (initramfs) prompts\n").0.is_empty());
}

#[test]
fn trouble_and_reports_are_told() {
    let (steps, _) = read("[  1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n");
    let text = "Kernel panic - not syncing: VFS: Unable to mount root fs";
    assert_eq!(steps, [Step::Trouble(text.into())]);
    let (steps, _) = read(&format!("{}\r\n", hooks().success()));
    assert_eq!(steps, [Step::Report { success: true }]);
    let (steps, _) = read(&format!("[ 9.9] {}\n", hooks().failure()));
    assert_eq!(steps, [Step::Report { success: false }]);
    let other = Hooks::new("anotherinstall99").unwrap();
    assert!(
        read(&format!("{}\n", other.success())).0.is_empty(),
        "another install's"
    );
    // The command of an answer file, shown on the console, is no report.
    let shown = format!(
        "+ for p in /dev/ttyS0; do echo {} 1<>$p; done\n",
        hooks().success()
    );
    assert!(read(&shown).0.is_empty());
}

proptest! {
    /// However the bytes come in pieces, they mean the same; noise does no harm.
    #[test]
    fn pieces_do_not_matter(text in "(Installing a \\([0-9]{1,3}/[0-9]{1,3}\\)\n|\\PC{0,40}\n|\u{1b}\\[[0-9;]{0,4}m|Installing boot loader\r\n){0,20}", cut in 1usize..50) {
        let (whole, _) = read(&text);
        let mut progress = Progress::new(Some(hooks()));
        let mut parts = Vec::new();
        for piece in text.as_bytes().chunks(cut) {
            parts.extend(progress.feed(piece));
        }
        prop_assert_eq!(whole, parts);
    }

    #[test]
    fn noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let mut progress = Progress::new(Some(hooks()));
        for step in progress.feed(&bytes) {
            if let Step::At { text, .. } | Step::Asked(text) | Step::Trouble(text) = step {
                prop_assert!(text.chars().count() <= 200);
            }
        }
    }
}
