//! Definitions of domains, word for word. Row numbers are those of the feature table.

mod common;

use common::{Cenote, fixture, run, text, tool};

/// A document without devices.
fn document(name: &str, more: &str) -> String {
    format!(
        "<domain type='kvm'><name>{name}</name>{more}<memory>65536</memory>\
         <os><type>hvm</type></os></domain>"
    )
}

fn write(cenote: &Cenote, file: &str, text: &str) {
    std::fs::write(cenote.path(file), text).expect("written");
}

const UUID: &str = "<uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>";

/// Rows 13, 31, 40, 41, 54: the life of a definition.
#[test]
fn life_of_a_definition() {
    let cenote = Cenote::new();
    cenote.run("domstate g").fails(3, "domain not found");
    write(&cenote, "g.xml", &document("g", UUID));
    assert_eq!(cenote.ok("define g.xml"), "Domain 'g' defined from g.xml\n");
    assert_eq!(cenote.ok("domstate g --reason"), "shut off (unknown)\n");
    assert_eq!(cenote.ok("domid g"), "-\n");
    assert_eq!(
        cenote.ok("domuuid g"),
        "6695eb01-f6a4-8304-79aa-97f2502e193f\n"
    );
    assert_eq!(
        cenote.ok("domname 6695EB01-f6a4-8304-79aa-97f2502e193f"),
        "g\n"
    );
    assert_eq!(
        cenote.ok("list --all"),
        " Id   Name   State\n-----------------------\n -    g      shut off\n"
    );
    assert_eq!(
        cenote.ok("dominfo g"),
        "Id:             -\nName:           g\nUUID:           6695eb01-f6a4-8304-79aa-97f2502e193f\n\
         OS Type:        hvm\nState:          shut off\nCPU(s):         1\n\
         Max memory:     65536 KiB\nUsed memory:    65536 KiB\nPersistent:     yes\n\
         Autostart:      disable\nManaged save:   no\n"
    );
    cenote.ok("define g.xml");
    assert_eq!(
        cenote.ok("autostart g"),
        "Domain 'g' marked as autostarted\n"
    );
    assert_eq!(cenote.ok("list --all --autostart --name"), "g\n");
    assert_eq!(
        cenote.ok("autostart g --disable"),
        "Domain 'g' unmarked as autostarted\n"
    );
    assert_eq!(cenote.ok("domrename g h"), "Domain successfully renamed\n");
    assert_eq!(cenote.ok("undefine h"), "Domain 'h' has been undefined\n");
    cenote.run("dominfo h").fails(3, "E0601");
    let log = cenote.ok("event --after 0 --loop --timeout 0 --event lifecycle");
    let words: Vec<&str> = log.lines().collect();
    assert_eq!(
        words,
        [
            "event 'lifecycle' for domain 'g': Defined Added",
            "event 'lifecycle' for domain 'g': Defined Updated",
            "event 'lifecycle' for domain 'g': Undefined Renamed",
            "event 'lifecycle' for domain 'h': Defined Renamed",
            "event 'lifecycle' for domain 'h': Undefined Removed",
        ]
    );
}

/// Row 42, and the other ways of meeting another domain, with libvirt's messages.
#[test]
fn names_and_uuids_are_taken_once() {
    let cenote = Cenote::new();
    write(&cenote, "g.xml", &document("g", UUID));
    write(&cenote, "plain.xml", &document("g", ""));
    write(&cenote, "other.xml", &document("h", UUID));
    cenote.ok("define g.xml");
    let refused = cenote.run("define plain.xml").fails(
        4,
        "domain 'g' already exists with uuid 6695eb01-f6a4-8304-79aa-97f2502e193f",
    );
    assert!(refused.stderr.contains("--replace"), "{refused:?}");
    cenote.run("define other.xml").fails(
        4,
        "domain 'g' is already defined with uuid 6695eb01-f6a4-8304-79aa-97f2502e193f",
    );
    cenote.ok("define plain.xml --replace");
    assert_eq!(
        cenote.ok("domuuid g"),
        "6695eb01-f6a4-8304-79aa-97f2502e193f\n"
    );
    write(&cenote, "h.xml", &document("h", ""));
    cenote.ok("define h.xml");
    cenote.run("domrename h g").fails(4, "already exists");
    cenote.run("domrename h h").fails(5, "itself");
    cenote.run("domrename h a/b").fails(2, "cannot contain '/'");
}

/// Row 24: a number is an id, and ids are of running domains.
#[test]
fn ids_are_valid_only_while_running() {
    let cenote = fixture();
    cenote
        .run("domstate 1")
        .fails(3, "an id is valid only while the domain is running");
    cenote.run("domstate wbe").fails(3, "did you mean 'web'?");
}

/// Rows 9, 10, 11, 15 and 84.
#[test]
fn documents_go_round_and_validate() {
    let cenote = fixture();
    let first = cenote.ok("dumpxml web");
    write(&cenote, "again.xml", &first);
    let valid = tool(
        "virt-xml-validate",
        "libvirt-clients",
        &[text(&cenote.path("again.xml")), "domain"],
    );
    assert_eq!(valid.code, 0, "{valid:?}");
    cenote.ok("define again.xml");
    assert_eq!(cenote.ok("dumpxml web"), first);
    assert_eq!(cenote.ok("dumpxml web --inactive --migratable"), first);
    assert_eq!(
        cenote.ok("dumpxml web --xpath //disk/target/@dev"),
        "vda\nhdc\n"
    );
    assert_eq!(cenote.ok("dumpxml web --xpath //nothing"), "");
    let help = cenote.ok("dumpxml --help");
    assert!(help.contains("configuration, not its memory"), "{help}");
}

/// Rows 12 to 14 of the small changes.
#[test]
fn memory_and_processors_of_the_next_start() {
    let cenote = fixture();
    cenote.ok("setmem web 256M --config");
    cenote.ok("setmaxmem web 1G");
    let info = cenote.run("dominfo web -o json").ok().json();
    assert_eq!(info["used_memory_kib"], 262_144);
    assert_eq!(info["max_memory_kib"], 1_048_576);
    cenote
        .run("setmem web 2G")
        .fails(2, "cannot set memory higher than max memory");
    cenote.run("setmem web 1Q").fails(2, "E0011");
    cenote
        .run("setmem web 1G --live")
        .fails(5, "Requested operation is not valid: domain is not running");
    assert_eq!(
        cenote.ok("vcpucount web"),
        "maximum      config         2\ncurrent      config         2\n"
    );
    cenote
        .run("setvcpus web 9")
        .fails(2, "requested cpu amount exceeds maximum (9 > 2)");
    cenote.ok("setvcpus web 4 --maximum --config");
    cenote.ok("setvcpus web 3");
    assert_eq!(cenote.ok("vcpucount web --maximum"), "4\n");
    assert_eq!(cenote.ok("vcpucount web --active --config"), "3\n");
    cenote.run("setvcpus web 2 --guest").fails(1, "E0605");
}

#[test]
fn disks_and_discs_of_the_next_start() {
    let cenote = fixture();
    for name in ["a.iso", "b.iso", "c.raw"] {
        write(&cenote, name, &"disc".repeat(512));
    }
    let shown = |what: &str| cenote.ok("domblklist web").contains(what);
    cenote
        .run("change-media web hdc --eject --config")
        .fails(2, "'hdc' doesn't have media");
    cenote.ok("change-media web hdc a.iso --insert --config");
    assert!(shown("a.iso"));
    cenote.ok("change-media web hdc b.iso --config");
    assert!(shown("b.iso") && !shown("a.iso"));
    cenote.ok("change-media web hdc --eject --config");
    assert!(!shown("b.iso"));
    cenote
        .run("change-media web vda a.iso --config")
        .fails(2, "vda");
    cenote.ok("attach-disk web c.raw vdb --config");
    assert!(shown("c.raw"));
    cenote
        .run("attach-disk web c.raw vdb --config")
        .fails(2, "target vdb already exists");
    cenote.ok("detach-disk web vdb --config");
    assert!(!shown("c.raw"));
    cenote
        .run("detach-disk web vdb --config")
        .fails(2, "no disk or drive 'vdb'");
}

#[test]
fn snapshots_while_the_domain_is_off() {
    let cenote = fixture();
    let image = cenote.ok("vol-path disk.qcow2");
    let disk = format!(
        "<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{}'/><target dev='vda' bus='virtio'/></disk></devices>",
        image.trim()
    );
    let with_disk = document("db", "").replace("</domain>", &(disk + "</domain>"));
    write(&cenote, "db.xml", &with_disk);
    cenote.ok("define db.xml");
    let listed = || cenote.ok("snapshot-list db --name");
    cenote.ok("snapshot-create-as db one --dry-run");
    assert_eq!(listed().trim(), "");
    cenote.ok("snapshot-create-as db one");
    cenote.ok("snapshot-create-as db two");
    assert_eq!(
        listed().split_whitespace().collect::<Vec<_>>(),
        ["one", "two"]
    );
    assert_eq!(cenote.ok("snapshot-current db --name").trim(), "two");
    assert_eq!(cenote.ok("snapshot-parent db two").trim(), "one");
    cenote.ok("snapshot-revert db one --dry-run");
    assert_eq!(cenote.ok("snapshot-current db --name").trim(), "two");
    cenote.ok("snapshot-revert db one --force");
    assert_eq!(cenote.ok("snapshot-current db --name").trim(), "one");
    cenote.ok("snapshot-delete db two --dry-run");
    cenote.ok("snapshot-delete db two --yes");
    assert_eq!(listed().trim(), "one");
    cenote.run("snapshot-revert db two --force").fails(3, "two");
    cenote.ok("snapshot-revert db one --save-current now --dry-run");
    assert!(!listed().contains("now"), "a dry run takes nothing");
    cenote.ok("snapshot-revert db one --save-current now");
    assert!(listed().contains("now"));
    cenote
        .run("snapshot-create-as db x --memspec file=/memory")
        .fails(5, "memory state cannot be saved");
    cenote
        .run("snapshot-create-as db x --memspec snapshot=external")
        .fails(2, "needs a file");
    cenote.ok("snapshot-delete db now --yes");
    cenote.ok("clone db copy --dry-run");
    cenote.run("dominfo copy").fails(3, "copy");
    cenote.ok("clone db copy");
    assert!(cenote.ok("domblklist copy").contains("copy"));
}

#[test]
fn keys_are_pressed_while_a_domain_runs() {
    let cenote = fixture();
    cenote
        .run("send-key web KEY_A")
        .fails(5, "domain is not running");
    cenote.run("send-key web KEY_NONE").fails(2, "E0608");
}

#[test]
fn titles_descriptions_and_metadata_are_as_virsh_prints_them() {
    let cenote = fixture();
    assert_eq!(cenote.ok("desc web"), "No description for domain: web\n");
    assert_eq!(
        cenote.ok("desc web foo bar"),
        "Domain description updated successfully\n"
    );
    assert_eq!(cenote.ok("desc web"), "foo bar\n");
    assert_eq!(
        cenote.ok("desc web --title hello"),
        "Domain title updated successfully\n"
    );
    assert_eq!(cenote.ok("desc web --title"), "hello\n");
    assert_eq!(
        cenote.ok("list --all --title"),
        " Id   Name   State      Title\n-------------------------------\n -    web    shut off   hello\n"
    );
    let set = [
        "metadata",
        "web",
        "http://a/b",
        "--key",
        "k",
        "--set",
        "<x a='1'><y/></x>",
    ];
    assert_eq!(cenote.run_words(&set).ok().stdout, "Metadata modified\n");
    let document = cenote.ok("dumpxml web");
    assert!(document.contains("<k:x"), "{document}");
    let shown = cenote.ok("metadata web http://a/b");
    assert!(
        shown.contains("<x a='1'>") && shown.contains("<y/>"),
        "{shown}"
    );
    assert_eq!(
        cenote.ok("metadata web http://a/b --remove"),
        "Metadata removed\n"
    );
    cenote
        .run("metadata web http://a/b")
        .fails(3, "Requested metadata element is not present");
}

/// Rows 62 and 63.
#[test]
fn the_chosen_editor_edits() {
    let cenote = fixture();
    let edit = |variables: &[(&str, &str)]| {
        let mut command = cenote.command();
        command.args(["edit", "web"]);
        for (name, value) in variables {
            command.env(name, value);
        }
        run(&mut command)
    };
    let sed = "sed -i s/524288/786432/";
    let edited = edit(&[("EDITOR", sed)]).ok();
    assert_eq!(edited.stdout, "Domain 'web' XML configuration edited.\n");
    assert!(cenote.ok("dumpxml web").contains("786432"));
    let same = edit(&[("EDITOR", "true")]).ok();
    assert_eq!(same.stdout, "Domain 'web' XML configuration not changed.\n");
    edit(&[("EDITOR", "false"), ("VISUAL", "true")]).ok();
    edit(&[("EDITOR", "false")]).fails(6, "the editor 'false' failed");
    let before = cenote.ok("dumpxml web");
    let broken = edit(&[("EDITOR", "sed -i s/memory/mmeory/g")]);
    broken.fails(1, "nothing was changed; your text is in ");
    assert_eq!(cenote.ok("dumpxml web"), before);
    // virsh's `i`: take it although a part is not known.
    let answer = |answer: &str| {
        cenote.shell(&format!(
            "printf '{answer}\\n' | EDITOR='sed -i s/<devices>/<novelty\\/><devices>/' \
             script -qec \"env EDITOR=\\\"$PWD/ed\\\" cenote edit web\" /dev/null"
        ))
    };
    cenote
        .shell("printf '#!/bin/sh\\nsed -i \"s|<devices>|<novelty/><devices>|\" \"$1\"\\n' > ed; chmod +x ed")
        .ok();
    let no = answer("n");
    assert!(no.stdout.contains("Try again? [y,n,i,f,?]"), "{no:?}");
    assert_eq!(cenote.ok("dumpxml web"), before);
    answer("i").ok();
    assert!(cenote.ok("dumpxml web").contains("<novelty/>"));
}

/// Rows 22 and 81.
#[test]
fn images_outlive_their_domain() {
    let cenote = fixture();
    let sum = || {
        cenote
            .shell("sha256sum \"$CENOTE_STATE_DIR\"/images/disk.raw")
            .ok()
            .stdout
    };
    let before = sum();
    let undefined = cenote.run("undefine web").ok();
    assert!(
        undefined.stderr.contains("disk.raw") && undefined.stderr.contains("cenote vol-wipe"),
        "{undefined:?}"
    );
    assert_eq!(sum(), before);
    cenote.ok("define web.xml");
    for flag in ["--remove-all-storage", "--storage vda", "--wipe-storage"] {
        cenote
            .run(&format!("undefine web {flag}"))
            .fails(1, "E0605");
    }
    cenote.ok("dominfo web");
}

#[test]
fn teardown_shows_what_it_takes_and_leaves_nothing() {
    let cenote = fixture();
    let before = cenote.state_sum();
    let plan = cenote.ok("teardown web --dry-run");
    for line in [
        "delete volume default/disk.raw",
        "remove the definition of domain web",
        "--confirm web agrees",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    assert_eq!(cenote.state_sum(), before);
    cenote.run("teardown web").fails(9, "--confirm web");
    cenote.run("teardown web --yes").fails(9, "--confirm web");
    cenote
        .run("teardown web --best-effort --confirm web")
        .fails(2, "--wipe");
    cenote.ok("vol-info disk.raw");
    // In memory no overwrite can be proved.
    let wiped = "teardown web --wipe=zero --best-effort --confirm web";
    let done = cenote.run(wiped).ok();
    assert!(done.stderr.contains("certificate: "), "{done:?}");
    assert!(
        done.stdout.contains("nothing of its own is left"),
        "{done:?}"
    );
    cenote.run("vol-info disk.raw").fails(3, "E0301");
    cenote
        .run("teardown web --confirm web")
        .fails(3, "there is no domain 'web'");
    let certificates = cenote.ok("verify-certificate");
    assert!(certificates.contains("domain web"), "{certificates}");
}

/// Also where nothing was ever made: the node's own pool is empty then.
#[test]
fn the_first_command_of_a_node_can_be_a_dry_install() {
    let cenote = Cenote::new();
    for name in ["vmlinuz", "initrd.img"] {
        write(&cenote, name, "content");
    }
    let plan = cenote.ok(
        "install --name db --disk size=1G --location kernel=vmlinuz,initrd=initrd.img --dry-run",
    );
    assert!(plan.contains("create volume default/db.qcow2"), "{plan}");
    assert!(!cenote.state().exists());
}

#[test]
fn a_dry_run_touches_nothing() {
    let cenote = fixture();
    write(&cenote, "a.iso", &"disc".repeat(512));
    write(&cenote, "b.raw", &"disk".repeat(512));
    let before = cenote.state_sum();
    let lines = [
        "define mail.xml",
        "define web.xml --replace",
        "undefine web",
        "domrename web shop",
        "autostart web",
        "edit web",
        "desc web new words",
        "metadata web http://a/b --key k --set <x/>",
        "setmem web 1M",
        "setmaxmem web 1G",
        "setvcpus web 1",
        "change-media web hdc a.iso --config",
        "attach-disk web b.raw vdb --config",
        "detach-disk web vda --config",
    ];
    for line in lines {
        let plan = cenote.run(&format!("{line} --dry-run")).ok();
        assert!(
            plan.stdout.contains("Nothing was changed."),
            "{line}: {plan:?}"
        );
        assert_eq!(cenote.state_sum(), before, "{line}");
    }
    cenote
        .run("setvcpus web 9 --dry-run")
        .fails(2, "requested cpu amount exceeds maximum");
}

#[test]
fn mistakes_leave_the_node_as_it_was() {
    let cenote = fixture();
    let before = cenote.ok("list --all -o json");
    write(
        &cenote,
        "twice.xml",
        &document("twice", "").replace(
            "</domain>",
            "<devices><disk type='file'><source file='/a'/><target dev='vda'/></disk>\
         <disk type='file'><source file='/b'/><target dev='vda'/></disk></devices></domain>",
        ),
    );
    write(
        &cenote,
        "unit.xml",
        &document("unit", "").replace("<memory>", "<memory unit='XB'>"),
    );
    write(
        &cenote,
        "bomb.xml",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><domain>&a;</domain>",
    );
    write(
        &cenote,
        "pool.xml",
        "<pool type='dir'><name>x</name></pool>",
    );
    write(&cenote, "strict.xml", &document("strict", "<novelty/>"));
    for (line, code, says) in [
        ("define twice.xml", 1, "target duplicated"),
        ("define unit.xml", 1, "XB"),
        ("define bomb.xml", 1, "E0501"),
        ("define pool.xml", 1, "expecting root element of 'domain'"),
        ("define strict.xml --validate", 1, "novelty"),
        ("define nowhere.xml", 3, "nowhere.xml"),
    ] {
        cenote.run(line).fails(code, says);
    }
    assert_eq!(cenote.ok("list --all -o json"), before);
}

/// Rows 85 and 222: what can be seen of an install without a guest.
#[test]
fn an_install_is_planned_and_refused_by_name() {
    let cenote = fixture();
    // Opening the node empties the file that wakes watchers.
    cenote.ok("list --all");
    let before = cenote.state_sum();
    let line = "install --name db --disk size=10G --location kernel=vmlinuz,initrd=initrd.img";
    let plan = cenote.ok(&format!("{line} --kickstart db.ks --dry-run"));
    for text in [
        "create volume default/db.qcow2 (qcow2, 10737418240 bytes)",
        "put into the initrd ks.cfg",
        "inst.ks=file:/ks.cfg",
        "define domain db",
        "start domain db",
        "Nothing was changed",
    ] {
        assert!(plan.contains(text), "{text}: {plan}");
    }
    let one = cenote.ok(&format!("{line} --kickstart db.ks --print-xml 1"));
    assert!(one.contains("<on_reboot>destroy</on_reboot>"), "{one}");
    let two = cenote.ok(&format!("{line} --kickstart db.ks --print-xml 2"));
    assert!(
        !two.contains("<kernel>") && two.contains("<boot dev=\"hd\"/>")
            || two.contains("<boot dev='hd'/>"),
        "{two}"
    );
    for (more, code, error) in [
        ("--name db --disk size=1G --cdrom none.iso", 3, "none.iso"),
        ("--name db --disk size=1G --pxe", 1, "E0701"),
        ("--name db --disk size=1G --import", 1, "E0701"),
        ("--name db --disk size=1G", 2, "E0702"),
        (
            "--name db --disk size=1G --location http://mirror.test/os",
            2,
            "E0702",
        ),
        (
            "--name db --disk size=1G --location kernel=none,initrd=none",
            3,
            "E0703",
        ),
    ] {
        cenote.run(&format!("install {more}")).fails(code, error);
    }
    for (more, code, error) in [
        ("--kickstart db.ks --delivery http", 1, "E0701"),
        ("--cdrom vmlinuz", 2, "--cdrom"),
        ("--kickstart bad.ks", 2, "E0704"),
        ("--preseed db.ks --delivery media --no-lint", 2, "E0702"),
        ("--disk vol=disk.raw,size=1G", 2, "E0702"),
        ("--disk size=1G,name=disk.raw", 4, "E0302"),
    ] {
        cenote.run(&format!("{line} {more}")).fails(code, error);
    }
    cenote
        .run("install --name web --disk size=1G --location kernel=vmlinuz,initrd=initrd.img")
        .fails(4, "E0602");
    assert_eq!(cenote.state_sum(), before);
}

/// Without a monitor nothing of an install is left.
#[test]
fn an_install_that_cannot_start_leaves_nothing() {
    let cenote = fixture();
    let line = "export CENOTE_PROGRAMS=/nonexistent; cenote install --name db --disk size=1M \
                --network none --location kernel=vmlinuz,initrd=initrd.img --kickstart db.ks";
    let run = cenote.shell(line);
    assert!(run.code != 0, "{run:?}");
    cenote.run("vol-info db.qcow2").fails(3, "E0301");
    cenote.run("domstate db").fails(3, "E0601");
    let installs = std::fs::read_dir(cenote.state().join("installs"));
    assert_eq!(installs.map(Iterator::count).unwrap_or(0), 0);
    assert!(!cenote.ok("job-list").contains("install"));
}
