//! Plans of delivery, their seeds as other programs read them, and the server as curl sees it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use cenote_provision::answer::Kind;
use cenote_provision::deliver::http::{Content, Event, Server, Site};
use cenote_provision::deliver::{
    AnswerFiles, Boot, Delivery, Packages, Plan, PlanError, Request, plan,
};
use cenote_provision::media::open_tree;
use common::{ok, run, text};
use tokio::net::{TcpListener, UnixListener};

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

struct Running {
    runtime: tokio::runtime::Handle,
    server: Server,
    events: mpsc::Receiver<(String, Event)>,
    port: u16,
}

fn running() -> Running {
    let (sender, events) = mpsc::channel();
    let server = Server::new(move |token, event| {
        let _ = sender.send((token.to_owned(), event));
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = server.clone();
    let handle = runtime.handle().clone();
    handle.spawn(async move { own.listen_tcp(listener).await });
    // It drives the server until the test's process ends.
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Running {
        runtime: handle,
        server,
        events,
        port,
    }
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Status and body.
    fn curl(&self, arguments: &[&str], path: &str) -> (u16, Vec<u8>) {
        let url = self.url(path);
        let mut words = vec![
            "-s",
            "-S",
            "--path-as-is",
            "-w",
            "%{stderr}%{http_code}",
            "--max-time",
            "60",
        ];
        words.extend(arguments);
        words.push(&url);
        let output = run("curl", "curl", &words, b"");
        let status = String::from_utf8(output.stderr).unwrap();
        (
            status.trim().parse().unwrap_or_else(|_| panic!("{status}")),
            output.stdout,
        )
    }

    fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(60)).unwrap().1
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8) ^ (at >> 8) as u8 ^ (at >> 16) as u8)
        .collect()
}

#[test]
fn curl_gets_files_ranges_and_trees_with_its_token_alone() {
    let running = running();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("sub dir")).unwrap();
    fs::write(folder.path().join("sub dir/big.bin"), pattern(3_000_000)).unwrap();
    let mut site = Site::default();
    site.files
        .insert("ks.cfg".into(), Content::Bytes(pattern(1000).into()));
    site.tree = Some(open_tree(folder.path()).unwrap());
    running.server.open("tokena", site);
    let file = "/i/tokena/ks.cfg";
    assert_eq!(running.curl(&[], file), (200, pattern(1000)));
    assert_eq!(
        running.curl(&["-r", "10-19"], file),
        (206, pattern(1000)[10..20].to_vec())
    );
    assert_eq!(
        running.curl(&["-r", "990-"], file),
        (206, pattern(1000)[990..].to_vec())
    );
    assert_eq!(
        running.curl(&["-r", "-5"], file),
        (206, pattern(1000)[995..].to_vec())
    );
    assert_eq!(
        running.curl(&["-r", "5-5000"], file),
        (206, pattern(1000)[5..].to_vec())
    );
    assert_eq!(running.curl(&["-r", "1000-"], file).0, 416);
    assert_eq!(running.curl(&["-r", "1-2,5-6"], file), (200, pattern(1000)));
    assert_eq!(
        running.curl(&["-H", "Range: lines=1"], file),
        (200, pattern(1000))
    );
    let (status, head) = running.curl(&["-I"], file);
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        status == 200 && head.contains("content-length: 1000\r\n"),
        "{head}"
    );
    let big = "/i/tokena//tree/sub%20dir/big.bin";
    assert_eq!(running.curl(&[], big), (200, pattern(3_000_000)));
    let part = running.curl(&["-r", "2999000-"], big);
    assert_eq!(part, (206, pattern(3_000_000)[2_999_000..].to_vec()));
    for path in [
        "/",
        "/i/",
        "/i/tokena",
        "/i/tokenb/ks.cfg",
        "/ks.cfg",
        "/i/tokena/nothing",
        "/i/tokena/tree/../../../etc/passwd",
        "/i/tokena/tree/%2e%2e/x",
        "/i/tokena/%00",
        "/i/tokena/%zz",
        "/i/tokena/tree",
        "/i/tokena/tree/sub%20dir",
        "/i//ks.cfg",
    ] {
        assert_eq!(running.curl(&[], path).0, 404, "{path}");
    }
    assert_eq!(running.curl(&["-X", "DELETE"], file).0, 405);
    running.server.close("tokena");
    assert_eq!(running.curl(&[], file).0, 404);
}

#[test]
fn each_fetch_is_an_event_with_who_fetched() {
    let running = running();
    let mut site = Site::default();
    site.files
        .insert("ks.cfg".into(), Content::Bytes(pattern(10).into()));
    running.server.open("t", site);
    let mac = "X-RHN-Provisioning-MAC-0: enp1s0 52:54:00:12:34:56";
    running.curl(&["-H", mac], "/i/t/ks.cfg");
    let expected = Event::Fetched {
        path: "ks.cfg".into(),
        status: 200,
        bytes: 10,
        identity: vec![(
            "x-rhn-provisioning-mac-0".into(),
            "enp1s0 52:54:00:12:34:56".into(),
        )],
    };
    assert_eq!(running.event(), expected);
    running.curl(&[], "/i/t/gone.cfg");
    assert!(matches!(
        running.event(),
        Event::Fetched { status: 404, .. }
    ));
}

#[test]
fn secrets_are_given_once() {
    let running = running();
    let mut site = Site::default();
    site.files
        .insert("user-data".into(), Content::once(pattern(100_000)));
    running.server.open("t", site);
    assert_eq!(running.curl(&["-I"], "/i/t/user-data").0, 200);
    assert_eq!(
        running.curl(&["-r", "0-9"], "/i/t/user-data"),
        (200, pattern(100_000))
    );
    assert_eq!(running.curl(&[], "/i/t/user-data"), (410, Vec::new()));
}

#[test]
fn reports_become_events() {
    let running = running();
    running.server.open("t", Site::default());
    let form = "instance_id=i-1&hostname=a+b%26c&bad=%zz";
    assert_eq!(running.curl(&["-d", form], "/i/t/phone-home").0, 204);
    let fields = vec![
        ("instance_id".into(), "i-1".into()),
        ("hostname".into(), "a b&c".into()),
    ];
    assert_eq!(running.event(), Event::PhoneHome { fields });
    assert_eq!(
        running.curl(&["-d", "{\"name\": \"x\"}"], "/i/t/report").0,
        204
    );
    assert_eq!(
        running.event(),
        Event::Report {
            text: "{\"name\": \"x\"}".into()
        }
    );
    assert_eq!(running.curl(&[], "/i/t/done").0, 204);
    assert_eq!(running.event(), Event::Ended { success: true });
    assert_eq!(running.curl(&["-X", "POST"], "/i/t/failed").0, 204);
    assert_eq!(running.event(), Event::Ended { success: false });
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big");
    fs::write(&big, vec![b'x'; 300 << 10]).unwrap();
    let data = format!("@{}", text(&big));
    assert_eq!(
        running.curl(&["--data-binary", &data], "/i/t/report").0,
        413
    );
    assert_eq!(running.curl(&[], "/i/other/done").0, 404);
    assert!(running.events.try_recv().is_err());
}

#[test]
fn a_unix_socket_serves_as_well() {
    let running = running();
    let mut site = Site::default();
    site.files
        .insert("x".into(), Content::Bytes(pattern(10).into()));
    running.server.open("t", site);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("http.sock");
    let own = running.server.clone();
    let listener = {
        let _guard = running.runtime.enter();
        UnixListener::bind(&socket).unwrap()
    };
    running
        .runtime
        .spawn(async move { own.listen_unix(listener).await });
    let got = running.curl(&["--unix-socket", text(&socket)], "/i/t/x");
    assert_eq!(got, (200, pattern(10)));
}

/// cloud-init's own code posts its report to us.
#[test]
fn cloud_inits_phone_home_is_understood() {
    let running = running();
    running.server.open("t", Site::default());
    let program = format!(
        "from cloudinit import url_helper\n\
         url_helper.read_file_or_url('{}', data={{'instance_id': 'i-7', 'hostname': 'g'}}, \
         retries=0)\n",
        running.url("/i/t/phone-home")
    );
    ok("/usr/bin/python3", "cloud-init", &["-c", &program], b"");
    let Event::PhoneHome { fields } = running.event() else {
        panic!()
    };
    assert!(
        fields.contains(&("instance_id".into(), "i-7".into())),
        "{fields:?}"
    );
}

/// What is no HTTP ends the connection and nothing else.
#[test]
fn noise_does_no_harm() {
    use std::io::{Read, Write};
    let running = running();
    let mut site = Site::default();
    site.files
        .insert("x".into(), Content::Bytes(pattern(10).into()));
    running.server.open("t", site);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000));
    for noise in [
        "\0\0\0\0\n\n",
        "GET\r\n\r\n",
        "POST /i/t/report HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        &long,
        &many,
    ] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", running.port)).unwrap();
        // It may be closed before all is written.
        let _ = stream.write_all(noise.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.take(4096).read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    assert_eq!(running.curl(&[], "/i/t/x"), (200, pattern(10)));
}
