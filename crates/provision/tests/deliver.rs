//! Plans of delivery, and their seeds as other programs read them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use cenote_provision::answer::Kind;
use cenote_provision::deliver::{
    AnswerFiles, Boot, Delivery, Packages, Plan, PlanError, Request, plan,
};
use common::{ok, text};

fn request(kind: Kind, boot: Boot, delivery: Delivery) -> Request {
    Request {
        kind,
        boot,
        delivery,
        files: AnswerFiles {
            answer: match kind {
                Kind::Preseed => "d-i debian-installer/locale string de_DE.UTF-8\n\
                     d-i netcfg/get_hostname string guest\n"
                    .into(),
                _ => "#cloud-config\n".into(),
            },
            ..AnswerFiles::default()
        },
        packages: Packages::Given,
        server: Some("http://10.0.2.2/i/token/".into()),
        instance: "i-1".into(),
        extra_arguments: String::new(),
    }
}

fn line(request: &Request) -> String {
    plan(request).unwrap().command_line.unwrap()
}

const FAST: &str = "rd.shell=0 rd.emergency=poweroff console=tty0 console=ttyS0";

#[test]
fn each_kind_gets_the_arguments_of_its_installer() {
    use Delivery::{Http, Initrd, Media};
    let ks = |delivery| request(Kind::Kickstart, Boot::Direct, delivery);
    assert_eq!(line(&ks(Initrd)), format!("inst.ks=file:/ks.cfg {FAST}"));
    assert_eq!(
        line(&ks(Media)),
        format!("inst.ks=hd:LABEL=OEMDRV:/ks.cfg {FAST}")
    );
    assert_eq!(
        line(&ks(Http)),
        format!("inst.ks=http://10.0.2.2/i/token/ks.cfg ip=dhcp {FAST}")
    );
    let packages = Packages::Cdrom("Fedora S 40".into());
    let cdrom = Request {
        packages,
        ..ks(Initrd)
    };
    let expected = format!("inst.ks=file:/ks.cfg inst.stage2=hd:LABEL=Fedora\\x20S\\x2040 {FAST}");
    assert_eq!(line(&cdrom), expected);
    let packages = Packages::Url("http://10.0.2.2/i/token/tree".into());
    let url = Request {
        packages,
        ..ks(Initrd)
    };
    let expected =
        format!("inst.ks=file:/ks.cfg inst.repo=http://10.0.2.2/i/token/tree ip=dhcp {FAST}");
    assert_eq!(line(&url), expected);
    assert_eq!(
        line(&request(Kind::Preseed, Boot::Direct, Initrd)),
        "auto=true priority=critical preseed/file=/preseed.cfg --- console=tty0 console=ttyS0"
    );
    assert_eq!(
        line(&request(Kind::Preseed, Boot::Pxe, Http)),
        "auto=true priority=critical url=http://10.0.2.2/i/token/preseed.cfg \
         locale=de_DE.UTF-8 interface=auto hostname=guest --- console=tty0 console=ttyS0"
    );
    assert_eq!(
        line(&request(Kind::Autoinstall, Boot::Direct, Media)),
        "autoinstall console=tty0 console=ttyS0"
    );
    assert_eq!(
        line(&request(Kind::Autoinstall, Boot::Direct, Http)),
        "autoinstall ds=nocloud-net;s=http://10.0.2.2/i/token/ ip=dhcp console=tty0 console=ttyS0"
    );
}

#[test]
fn the_users_consoles_and_arguments_stay_as_they_are() {
    let with = |extra: &str| Request {
        extra_arguments: extra.into(),
        ..request(Kind::Kickstart, Boot::Direct, Delivery::Initrd)
    };
    assert_eq!(
        line(&with("console=ttyS0 console=tty quiet")),
        "inst.ks=file:/ks.cfg rd.shell=0 rd.emergency=poweroff console=ttyS0 console=tty quiet"
    );
    let preseed = Request {
        extra_arguments: "foo=bar".into(),
        ..request(Kind::Preseed, Boot::Direct, Delivery::Initrd)
    };
    assert!(line(&preseed).contains("/preseed.cfg foo=bar --- console="));
    for bad in ["x".repeat(3000), "a\0b".into()] {
        assert!(matches!(plan(&with(&bad)), Err(PlanError::CommandLine(_))));
    }
    let cdrom = Request {
        boot: Boot::Cdrom,
        delivery: Delivery::Media,
        ..with("quiet")
    };
    assert!(matches!(plan(&cdrom), Err(PlanError::CommandLine(_))));
}

/// What no installer would look at is refused, and everything else has its part.
#[test]
fn every_way_is_honoured_or_refused() {
    let mut ways = 0;
    for kind in Kind::ALL {
        for boot in [Boot::Direct, Boot::Cdrom, Boot::Pxe, Boot::Import] {
            for delivery in [Delivery::Initrd, Delivery::Media, Delivery::Http] {
                let request = request(kind, boot, delivery);
                let plan = match plan(&request) {
                    Ok(plan) => plan,
                    Err(PlanError::NoWay { reason, .. }) => {
                        assert!(!reason.is_empty());
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                ways += 1;
                let Plan {
                    injected,
                    seed,
                    served,
                    command_line,
                    ..
                } = &plan;
                let parts = (injected.len(), seed.is_some(), served.is_empty());
                match delivery {
                    Delivery::Initrd => assert_eq!(parts, (1, false, true)),
                    Delivery::Media => assert_eq!(parts, (0, true, true)),
                    Delivery::Http => assert_eq!((parts.0, parts.1), (0, false)),
                }
                assert_eq!(
                    command_line.is_some(),
                    matches!(boot, Boot::Direct | Boot::Pxe)
                );
                assert!(!format!("{request:?}{plan:?}").contains("cloud-config"));
            }
        }
    }
    // Kickstart 3+1+3, preseed 2+0+2, autoinstall 2+0+2, cloud-init 2.
    assert_eq!(ways, 17);
    let alone = Request {
        server: None,
        ..request(Kind::Kickstart, Boot::Direct, Delivery::Http)
    };
    assert_eq!(plan(&alone).unwrap_err(), PlanError::NoServer);
    let import = plan(&request(Kind::CloudInit, Boot::Import, Delivery::Http)).unwrap();
    assert_eq!(
        import.smbios_serial.as_deref(),
        Some("ds=nocloud-net;s=http://10.0.2.2/i/token/")
    );
}

#[test]
fn seeds_have_the_labels_and_files_that_are_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seed.iso");
    for (kind, boot, label, files) in [
        (Kind::Kickstart, Boot::Direct, "OEMDRV", &["/ks.cfg"][..]),
        (
            Kind::CloudInit,
            Boot::Import,
            "cidata",
            &["/meta-data", "/user-data"],
        ),
    ] {
        let seed = plan(&request(kind, boot, Delivery::Media))
            .unwrap()
            .seed
            .unwrap();
        fs::write(&path, &seed.image).unwrap();
        let found = ok(
            "blkid",
            "util-linux",
            &["-p", "-o", "value", "-s", "LABEL", text(&path)],
            b"",
        );
        assert_eq!(String::from_utf8(found).unwrap().trim(), label);
        let found = ok(
            "isoinfo",
            "genisoimage",
            &["-R", "-f", "-i", text(&path)],
            b"",
        );
        let found = String::from_utf8(found).unwrap();
        assert_eq!(found.lines().collect::<Vec<_>>(), files);
    }
}

/// cloud-init's own reader of NoCloud seeds takes ours from a folder.
#[test]
fn cloud_init_takes_our_meta_data() {
    let plan = plan(&request(Kind::CloudInit, Boot::Import, Delivery::Http)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for served in &plan.served {
        fs::write(folder.path().join(&served.name), &served.bytes).unwrap();
    }
    let program = format!(
        "from cloudinit import util\n\
         found = util.pathprefix2dict({:?}, required=['user-data', 'meta-data'], \
         optional=['vendor-data'])\n\
         print(util.load_yaml(found['meta-data'])['instance-id'])\n",
        text(folder.path())
    );
    let said = ok("/usr/bin/python3", "cloud-init", &["-c", &program], b"");
    assert_eq!(said, b"i-1\n");
}
