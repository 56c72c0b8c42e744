//! The life of pools, word for word, and what protects the user on the way.

mod common;

use common::{Cenote, run, small as fixture};

#[test]
fn a_fresh_node_has_an_active_default_pool() {
    let cenote = Cenote::new();
    let listed = cenote.ok("pool-list --all");
    assert_eq!(
        listed,
        " Name      State    Autostart\n-------------------------------\n default   active   yes\n"
    );
}

#[test]
fn life_of_a_pool() {
    let cenote = Cenote::new();
    let target = cenote.path("photos");
    let steps = [
        (
            format!("pool-define-as photos dir --target {}", target.display()),
            "Pool photos defined",
        ),
        ("pool-build photos".into(), "Pool photos built"),
        ("pool-start photos".into(), "Pool photos started"),
        (
            "pool-autostart photos".into(),
            "Pool photos marked as autostarted",
        ),
        (
            "pool-autostart photos --disable".into(),
            "Pool photos unmarked as autostarted",
        ),
        ("pool-refresh photos".into(), "Pool photos refreshed"),
        ("pool-destroy photos".into(), "Pool photos destroyed"),
        ("pool-delete photos --yes".into(), "Pool photos deleted"),
        (
            "pool-undefine photos".into(),
            "Pool photos has been undefined",
        ),
    ];
    for (line, says) in steps {
        assert_eq!(cenote.ok(&line), format!("{says}\n"), "{line}");
    }
    assert!(!target.exists());
    cenote.run("pool-info photos").fails(3, "E0201");
}

#[test]
fn info_is_laid_out_as_virsh_has_it() {
    let cenote = fixture();
    let uuid = cenote.ok("pool-uuid images");
    let uuid = uuid.trim();
    assert_eq!(
        cenote.ok("pool-info images"),
        format!(
            "Name:           images\nUUID:           {uuid}\nState:          inactive\n\
             Persistent:     yes\nAutostart:      no\n"
        )
    );
    assert_eq!(cenote.ok(&format!("pool-name {uuid}")), "images\n");
    assert_eq!(
        cenote.ok("pool-list --inactive --name"),
        "images\nscratch\n"
    );
    assert_eq!(cenote.ok("pool-list --all --type logical -o json"), "[]\n");
}

#[test]
fn mistakes_end_with_their_exit_codes() {
    let cenote = fixture();
    let table = [
        ("pool-info defualt", 3, "did you mean 'default'?"),
        ("pool-start default", 5, "E0204"),
        ("pool-destroy images", 5, "E0203"),
        ("pool-undefine default", 5, "cenote pool-destroy default"),
        ("pool-define-as x iscsi --target /x", 1, "iscsi"),
        ("pool-define-as x nonsense", 2, "nonsense"),
        ("pool-define-as x/y dir --target /x", 2, "E0308"),
        ("pool-define nowhere.xml", 3, "nowhere.xml"),
        ("pool-define image.raw", 1, "E050"),
        ("vol-list images", 5, "cenote pool-start images"),
        ("vol-info disk.rw", 3, "did you mean 'disk.raw'?"),
        ("vol-info disk.raw --pool nowhere", 3, "E0201"),
        ("vol-download disk.raw x --offset 1Q", 2, "E0011"),
        ("vol-download disk.raw x --offset 2M", 2, "past its end"),
        ("pool-dumpxml default --xpath ((", 2, "E0504"),
        ("event --timeout 0", 7, "E0012"),
        ("job-cancel 4711", 3, "E0107"),
    ];
    for (line, code, says) in table {
        cenote.run(line).fails(code, says);
    }
}

#[test]
fn documents_go_round() {
    let cenote = fixture();
    let first = cenote.ok("pool-dumpxml images");
    std::fs::write(cenote.path("again.xml"), &first).expect("written");
    cenote.ok("pool-define again.xml");
    assert_eq!(cenote.ok("pool-dumpxml images"), first);
    let path = cenote.ok("pool-dumpxml images --xpath /pool/target/path/text()");
    assert_eq!(path.trim(), cenote.path("images").display().to_string());
    assert_eq!(cenote.ok("pool-dumpxml images --xpath //nothing"), "");
}

#[test]
fn an_editor_changes_a_definition_or_does_not() {
    let cenote = fixture();
    let edit = |editor: &str| {
        run(cenote
            .command()
            .arg("pool-edit")
            .arg("images")
            .env("EDITOR", editor))
    };
    assert!(edit("true").ok().stdout.contains("not changed"));
    let elsewhere = cenote.path("elsewhere").display().to_string();
    let script = format!("sed -i 's|<path>.*</path>|<path>{elsewhere}</path>|'");
    assert!(edit(&script).ok().stdout.contains("edited"));
    assert!(cenote.ok("pool-dumpxml images").contains(&elsewhere));
    let broken = edit("sed -i s/pool/loop/g").fails(1, "nothing was changed; your text is in ");
    assert!(broken.stderr.contains("expecting root element of 'pool'"));
    assert!(cenote.ok("pool-dumpxml images").contains(&elsewhere));
    edit("false").fails(6, "editor");
}

#[test]
fn three_levels_of_agreement() {
    let cenote = fixture();
    // None.
    cenote.ok("pool-refresh default");
    // y/N.
    cenote.run("vol-delete disk.raw").fails(9, "--yes");
    cenote
        .run("vol-delete disk.raw --confirm other")
        .fails(9, "other");
    cenote.ok("vol-info disk.raw");
    // The name typed.
    let build = "pool-build images --overwrite";
    cenote.run(build).fails(9, "--confirm images");
    cenote
        .run(&format!("{build} --yes"))
        .fails(9, "--confirm images");
    cenote
        .run(&format!("{build} --confirm imgaes"))
        .fails(9, "imgaes");
    // Agreed to, it goes on, and a directory has nothing that could be formatted.
    cenote
        .run(&format!("{build} --confirm images"))
        .fails(5, "format");
    cenote.ok("vol-delete disk.raw --confirm disk.raw");
    cenote.run("vol-info disk.raw").fails(3, "E0301");
}

#[test]
fn a_terminal_is_asked() {
    let cenote = fixture();
    let ask = |answer: &str, line: &str| {
        cenote.shell(&format!(
            "printf '{answer}\\n' | script -qec 'cenote {line}' /dev/null"
        ))
    };
    let no = ask("n", "vol-delete disk.raw");
    assert!(no.stdout.contains("[y/N]") && no.code == 9, "{no:?}");
    let wrong = ask("imags", "pool-build images --overwrite");
    assert!(
        wrong.stdout.contains("Type") && wrong.code == 9,
        "{wrong:?}"
    );
    let yes = ask("y", "vol-delete disk.raw");
    assert!(
        yes.stdout.contains("Vol disk.raw deleted") && yes.code == 0,
        "{yes:?}"
    );
}

#[test]
fn a_dry_run_touches_nothing() {
    let cenote = fixture();
    let before = cenote.state_sum();
    let lines = [
        "pool-define pool.xml",
        "pool-define-as x dir --target /x",
        "pool-create pool.xml --build",
        "pool-build images",
        "pool-start images",
        "pool-start images --overwrite",
        "pool-autostart images",
        "pool-refresh default",
        "pool-destroy default",
        "pool-undefine images",
        "pool-delete scratch",
        "pool-edit images",
        "vol-upload disk.raw image.raw",
        "vol-download disk.raw copy.raw",
        "vol-delete disk.raw",
        "vol-delete disk.raw --wipe",
        "vol-wipe disk.raw",
        "wipe-resume",
        "vol-set-format disk.raw raw",
        "repair",
        "job-cancel 1",
    ];
    for line in lines {
        let plan = cenote.run(&format!("{line} --dry-run")).ok();
        assert!(
            plan.stdout.contains("Nothing was changed."),
            "{line}: {plan:?}"
        );
        assert_eq!(cenote.state_sum(), before, "{line}");
    }
    assert!(!cenote.path("copy.raw").exists() && !cenote.path("from-xml").exists());
    // A dry run fails where the command would.
    cenote
        .run("pool-undefine nowhere --dry-run")
        .fails(3, "E0201");
    cenote
        .run("pool-define-as default dir --target /x --dry-run")
        .fails(4, "E0202");
    let fresh = Cenote::new();
    fresh.ok("pool-autostart default --dry-run");
    assert!(!fresh.state().exists());
}

#[test]
fn every_change_was_tried_dry() {
    let source = include_str!("pools.rs").to_owned()
        + include_str!("volumes.rs")
        + include_str!("chains.rs")
        + include_str!("domains.rs")
        + include_str!("kvm_domains.rs");
    for entry in cenote::verbs::all() {
        if entry.kind == cenote::verb::Kind::Change && entry.name != "pool-create-as" {
            assert!(
                source.contains(&format!("\"{}", entry.name)),
                "{} is in no test",
                entry.name
            );
        }
    }
}

#[test]
fn other_machines_are_refused_by_name() {
    let cenote = fixture();
    for uri in [
        "qemu:///system",
        "qemu+ssh://host/system",
        "test:///default",
        "xen:///",
    ] {
        cenote.run(&format!("-c {uri} pool-list")).fails(6, uri);
    }
    cenote.ok("-c local pool-list");
    cenote.ok("-c cenote:///system pool-list");
}

#[test]
fn an_interrupted_operation_is_seen_by_fsck_and_doctor_and_repaired() {
    let cenote = fixture();
    let script = "python3 - <<'E'\nimport sqlite3, os\n\
        c = sqlite3.connect(os.environ['CENOTE_STATE_DIR'] + '/node.db')\n\
        c.execute(\"update journal set state='running', finished=null where kind='pool-build'\")\n\
        c.commit()\nE";
    cenote.shell(script).ok();
    std::fs::write(cenote.state().join("operations/999.lock"), "").expect("written");
    let before = cenote.state_sum();
    let seen = cenote.run("fsck -o json").fails(8, "E0109");
    let rows = seen.json();
    assert_eq!(rows[0]["kind"], "pool-build");
    assert_eq!(rows[0]["outcome"], "interrupted");
    let doctor = cenote.run("doctor -o json").json();
    for probe in ["journal", "locks"] {
        let all = doctor["probes"].as_array().expect("probes");
        let found = all
            .iter()
            .find(|item| item["probe"] == probe)
            .expect("probe");
        assert_eq!(found["status"], "warn", "{found}");
    }
    assert_eq!(cenote.state_sum(), before, "looking changed something");
    let repaired = cenote.run("repair").ok();
    assert!(repaired.stdout.contains("rolled-back"), "{repaired:?}");
    assert!(repaired.stderr.contains("999.lock"), "{repaired:?}");
    assert_eq!(cenote.ok("repair"), "Nothing was half done.\n");
    cenote.ok("fsck");
}

#[test]
fn shells_complete_live_names() {
    let cenote = fixture();
    // The index is that of the last word.
    let last = |words: &[&str]| {
        let mut command = cenote.command();
        command
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        command
            .env("_CLAP_IFS", "\n")
            .arg("--")
            .arg("cenote")
            .args(words);
        run(&mut command).ok().stdout
    };
    let before = cenote.state_sum();
    assert_eq!(last(&["pool-info", "im"]), "images");
    assert_eq!(last(&["pool", "info", "sc"]), "scratch");
    assert_eq!(last(&["vol-info", "di"]), "disk.raw");
    assert_eq!(last(&["vol-info", "--pool", "def"]), "default");
    assert!(last(&["pool-de"]).contains("pool-destroy"));
    assert_eq!(cenote.state_sum(), before);
}

#[test]
fn bash_itself_completes_live_names() {
    let cenote = fixture();
    let script = "source <(cenote completions bash)\n\
        COMP_WORDS=(cenote vol-info di); COMP_CWORD=2; COMP_TYPE=9; COMP_LINE='cenote vol-info di'\n\
        COMP_POINT=${#COMP_LINE}\n\
        spec=$(complete -p cenote); function=${spec##*-F }; function=${function%% *}\n\
        $function cenote di vol-info\n\
        echo \"${COMPREPLY[@]}\"";
    let run = cenote.shell(script).ok();
    assert_eq!(run.stdout.trim(), "disk.raw", "{run:?}");
}
