//! Stock Debian guests on the networks of this crate, with the monitor.
//!
//! `cargo xtask lab --tests cenote-net --memory 4096 -- kvm_net --ignored --test-threads=1`.
//! The test is root there and gives each of its networks and changed files namespaces of their
//! own; monitor and network process run as an ordinary user. What the guests use is busybox's and
//! iperf3.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.
#![allow(unsafe_code)] // Children get descriptors, and the test a network namespace.

use cenote_net::tap::{Tap, TapError, TapOptions};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::{MetadataExt as _, chown},
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than anything takes in an emulated host on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);
/// The lab's ordinary user.
const USER: u32 = 1000;

/// A child that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(result) = condition() {
            return result;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A program of the project with inherited descriptors, each under its number.
fn program(name: &str, descriptors: &[(RawFd, RawFd)]) -> Command {
    let mut command = Command::new(name);
    let descriptors = descriptors.to_vec();
    // SAFETY: dup2 is safe between fork and exec, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in &descriptors {
                // SAFETY: both are numbers; the kernel checks them.
                if libc::dup2(*from, *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command
}

/// The group that may use `/dev/kvm`.
fn kvm_group() -> u32 {
    std::fs::metadata("/dev/kvm").unwrap().gid()
}

struct Guest {
    folder: tempfile::TempDir,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(USER), Some(kvm_group())).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the monitor, as an ordinary user, with a guest that runs `command`.
    fn start(
        &self,
        command: &str,
        vcpus: u8,
        nic: Value,
        descriptors: &[(RawFd, RawFd)],
    ) -> Running {
        assert!(!command.contains('"'));
        let boot = json!({"kernel": {
            "image": {"path": "/lab/guest/vmlinux-cloud"},
            "initrd": {"path": "/lab/guest/initramfs-tools.cpio.gz"},
            "command_line": format!("console=ttyS0 panic=-1 quiet GUEST=\"{command}\""),
        }});
        self.start_from(boot, vcpus, nic, descriptors)
    }

    /// The same with a guest that starts from whatever `boot` says.
    fn start_from(
        &self,
        boot: Value,
        vcpus: u8,
        nic: Value,
        descriptors: &[(RawFd, RawFd)],
    ) -> Running {
        let description = json!({
            "version": 1, "vcpus": vcpus, "memory": 536_870_912, "boot": boot,
            "serial": {"backend": {"file": {"path": self.path().join("serial.log")}}},
            "exit_report": self.path().join("report"),
            "control": self.path().join("control"),
            "nics": [nic],
        });
        let file = self.path().join("machine.json");
        std::fs::write(&file, description.to_string()).unwrap();
        let messages = File::create(self.path().join("messages")).unwrap();
        let child = program("cenote-vmm", descriptors)
            .arg("--machine")
            .arg(file)
            .uid(USER)
            .gid(kvm_group())
            .stdin(Stdio::null())
            .stderr(messages)
            .spawn()
            .unwrap();
        Running(child)
    }

    fn output(&self) -> String {
        let bytes = std::fs::read(self.path().join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits for the guest's end, which must be its own, and gives what it printed.
    fn finish(&self, mut monitor: Running) -> String {
        wait_for("the guest's end", || monitor.0.try_wait().unwrap());
        let messages = std::fs::read_to_string(self.path().join("messages")).unwrap_or_default();
        let report = std::fs::read_to_string(self.path().join("report")).unwrap_or_default();
        let output = self.output();
        assert!(
            report.contains("guest-power-off"),
            "{report}\n{messages}\n{output}"
        );
        output
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the guest printed:\n{}", self.output());
            for file in ["messages", "network-messages"] {
                let text = std::fs::read_to_string(self.path().join(file)).unwrap_or_default();
                eprintln!("{file}:\n{text}");
            }
        }
    }
}

/// Starts the network process, as an ordinary user, and gives it and the monitor's end.
fn user_network(guest: &Guest, settings: Value) -> (Running, OwnedFd) {
    let (frames, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut description = json!({"version": 1, "monitor": 200, "mac": "52:54:00:12:34:56"});
    for (name, value) in settings.as_object().unwrap() {
        description[name] = value.clone();
    }
    let file = guest.path().join("network.json");
    std::fs::write(&file, description.to_string()).unwrap();
    let messages = File::create(guest.path().join("network-messages")).unwrap();
    let child = program("cenote-net", &[(theirs.as_raw_fd(), 200)])
        .arg("--network")
        .arg(file)
        .uid(USER)
        .gid(USER)
        .stdin(Stdio::null())
        .stderr(messages)
        .spawn()
        .unwrap();
    (Running(child), frames)
}

fn card(backend: Value) -> Value {
    json!({"name": "net0", "mac": "52:54:00:12:34:56", "backend": backend})
}

/// Answers requests as HTTP/1.0 does, for as long as the test runs.
fn serve_http<S: std::io::Read + std::io::Write>(mut stream: S, body: &[u8]) {
    let mut request = Vec::new();
    let mut part = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(length) if length > 0 => request.extend_from_slice(&part[..length]),
            _ => return,
        }
    }
    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
    let _ = stream.write_all(body);
}

/// A name server of the host that knows one name, for this thread and what it starts.
fn name_server(folder: &Path) -> Running {
    // SAFETY: only this thread's view of the file systems changes.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    run("mount --make-rprivate /");
    let copy = folder.join("etc").display().to_string();
    run(&format!("cp -a /etc {copy}"));
    // A link would be followed to the original.
    run(&format!("rm -f {copy}/resolv.conf"));
    std::fs::write(format!("{copy}/resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    run(&format!("mount --bind {copy} /etc"));
    let child = Command::new("dnsmasq")
        .args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
        ])
        .args([
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--pid-file=",
        ])
        .arg("--address=/install.example.org/192.0.2.77")
        .spawn()
        .unwrap();
    Running(child)
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_guest_of_an_ordinary_user_gets_address_names_files_and_the_host() {
    own_network();
    let guest = Guest::new();
    let names = name_server(guest.path());
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = web.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in web.incoming().flatten() {
            serve_http(stream, b"from the host's loopback\n");
        }
    });
    let service = UnixListener::bind(guest.path().join("http")).unwrap();
    chown(guest.path().join("http"), Some(USER), Some(USER)).unwrap();
    thread::spawn(move || {
        for stream in service.incoming().flatten() {
            serve_http(stream, b"from the service\n");
        }
    });
    let root = guest.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let kernel = std::fs::read("/lab/guest/vmlinuz-cloud").unwrap();
    std::fs::write(root.join("vmlinuz"), &kernel).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", root.join("link")).unwrap();
    let (_network, frames) = user_network(
        &guest,
        json!({
            "host_loopback": true,
            "tftp": {"root": root},
            "services": [{"address": "10.0.2.4:80", "unix": guest.path().join("http")}],
        }),
    );
    let commands = [
        "set -e; ip link set eth0 up; udhcpc -n -q -f -t 8 -i eth0 -s /usr/share/udhcpc/default.script".to_owned(),
        "ip -4 addr show dev eth0; cat /etc/resolv.conf".to_owned(),
        format!("wget -q -O - http://10.0.2.2:{port}/"),
        "wget -q -O - http://10.0.2.4/".to_owned(),
        "nslookup install.example.org | grep Address".to_owned(),
        "tftp -g -b 1408 -r vmlinuz -l /tmp/v 10.0.2.2; md5sum </tmp/v".to_owned(),
        "tftp -g -r link -l /tmp/l 10.0.2.2 || echo refused".to_owned(),
        "ping -c 1 -W 5 10.0.2.2 >/dev/null; echo reached".to_owned(),
    ];
    let monitor = guest.start(
        &commands.join("; "),
        1,
        card(json!({"socket": {"fd": 200}})),
        &[(frames.as_raw_fd(), 200)],
    );
    drop(frames);
    let output = guest.finish(monitor);
    drop(names);
    let expected = Command::new("md5sum")
        .arg(root.join("vmlinuz"))
        .output()
        .unwrap()
        .stdout;
    let digest = String::from_utf8(expected).unwrap()[..32].to_owned();
    for line in [
        "inet 10.0.2.15/24",
        "nameserver 10.0.2.3",
        "from the host's loopback",
        "from the service",
        "192.0.2.77",
        &digest,
        "refused",
        "reached",
        "guest: status 0",
    ] {
        assert!(output.contains(line), "'{line}' is missing:\n{output}");
    }
}

/// Boots a guest without disks from the network, with these files served over TFTP, and gives
/// what it printed.
fn boots_from_the_network(boot: Value, files: Value) -> String {
    let guest = Guest::new();
    let (_network, frames) = user_network(
        &guest,
        json!({"restricted": true, "boot": boot, "tftp": {"files": files}}),
    );
    let mut nic = card(json!({"socket": {"fd": 200}}));
    nic["boot_index"] = json!(0);
    let firmware = json!({"firmware": {"only_listed": true}});
    let monitor = guest.start_from(firmware, 1, nic, &[(frames.as_raw_fd(), 200)]);
    drop(frames);
    guest.finish(monitor)
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn ipxe_boots_linux_by_a_script() {
    let script = "#!ipxe\n\
        kernel tftp://${next-server}/vmlinuz initrd=initrd console=ttyS0 panic=-1 quiet \
        GUEST=\"ls /sys/class/net; echo from the network\"\n\
        initrd --name initrd tftp://${next-server}/initrd.gz\nboot\n";
    let output = boots_from_the_network(
        json!({"ipxe_file": "boot.ipxe"}),
        json!({
            "boot.ipxe": {"text": script},
            "vmlinuz": {"path": "/lab/guest/vmlinuz-cloud"},
            "initrd.gz": {"path": "/lab/guest/initramfs.cpio.gz"},
        }),
    );
    for line in ["eth0", "from the network", "guest: status 0"] {
        assert!(output.contains(line), "'{line}' is missing:\n{output}");
    }
}

/// A boot program of the PXE kind, which prints a word and powers off.
#[test]
#[ignore = "needs /dev/kvm, SeaBIOS and iPXE"]
fn a_boot_program_comes_over_tftp() {
    // Each character goes to COM1 by itself: its queue takes sixteen.
    let mut program = vec![0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in b"booted" {
        program.extend([0xb0, *byte, 0xee]); // mov al, byte; out dx, al
    }
    // ACPI power-off: sleep enable to PM1a control, where SeaBIOS has put it.
    program.extend([0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("start.0");
    std::fs::write(&file, program).unwrap();
    chown(folder.path(), Some(USER), Some(USER)).unwrap();
    let output = boots_from_the_network(
        json!({"file": "start.0"}),
        json!({"start.0": {"path": file}}),
    );
    assert!(output.contains("booted"), "{output}");
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_guest_sees_its_link_go_down_when_the_network_dies() {
    let guest = Guest::new();
    let (mut network, frames) = user_network(&guest, json!({"restricted": true}));
    let commands = [
        "ip link set eth0 up; cd /sys/class/net/eth0",
        "echo carrier $(cat carrier)",
        "while [ $(cat carrier) = 1 ]; do sleep 0.1; done",
        "echo the link is down",
    ];
    let monitor = guest.start(
        &commands.join("; "),
        1,
        card(json!({"socket": {"fd": 200}})),
        &[(frames.as_raw_fd(), 200)],
    );
    drop(frames);
    wait_for("the carrier", || {
        guest.output().contains("carrier 1").then_some(())
    });
    let mut watching = UnixStream::connect(guest.path().join("control")).unwrap();
    watching.set_read_timeout(Some(PATIENCE)).unwrap();
    let watch = json!({"jsonrpc": "2.0", "id": 1, "method": "watch"});
    writeln!(watching, "{watch}").unwrap();
    let mut lines = BufReader::new(watching).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["result"]["lost_links"], Value::Null);
    network.0.kill().unwrap();
    let told = next();
    assert_eq!(told["method"], "link-lost", "{told}");
    assert_eq!(told["params"]["nic"], "net0");
    let output = guest.finish(monitor);
    assert!(output.contains("the link is down"), "{output}");
    let messages = std::fs::read_to_string(guest.path().join("messages")).unwrap();
    assert!(
        messages.contains("the network behind the card has gone"),
        "{messages}"
    );
}

/// Puts this thread, and what it starts, into a network of its own.
fn own_network() {
    // SAFETY: only this thread's network changes; no descriptor or memory is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    run("ip link set lo up");
}

/// Runs a program of the host, which must succeed.
fn run(words: &str) {
    let mut parts = words.split(' ');
    let status = Command::new(parts.next().unwrap()).args(parts).status();
    assert!(status.unwrap().success(), "{words}");
}

fn counter(interface: &str, name: &str) -> u64 {
    // sysfs shows the network of whoever mounted it; the kernel's table is this thread's.
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{interface}:")))
        .unwrap();
    let fields: Vec<u64> = line
        .split_whitespace()
        .map(|field| field.parse().unwrap())
        .collect();
    match name {
        "received-bytes" => fields[0],
        "received-packets" => fields[1],
        "sent-bytes" => fields[8],
        "sent-packets" => fields[9],
        other => panic!("{other}"),
    }
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn a_tap_carries_iperf_both_ways_with_offloads_and_several_queues() {
    own_network();
    let tap = Tap::open(&TapOptions {
        name: Some("lab%d".into()),
        queues: 2,
        ..TapOptions::default()
    })
    .unwrap();
    run(&format!("ip addr add 10.9.0.1/24 dev {}", tap.name));
    let server = Command::new("iperf3")
        .args(["-s", "-B", "10.9.0.1"])
        .stdout(Stdio::null())
        .spawn();
    let _server = Running(server.unwrap());
    let guest = Guest::new();
    let commands = [
        "set -e; ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up",
        "ls /sys/class/net/eth0/queues | tr '\\n' ' '; echo",
        "iperf3 -c 10.9.0.1 -n 64M -P 2 | grep SUM",
        "iperf3 -c 10.9.0.1 -n 64M -P 2 -R | grep SUM",
    ];
    let descriptors: Vec<(RawFd, RawFd)> = (200..)
        .zip(&tap.queues)
        .map(|(to, queue)| (queue.as_raw_fd(), to))
        .collect();
    let monitor = guest.start(
        &commands.join("; "),
        2,
        card(json!({"tap": [{"fd": 200}, {"fd": 201}]})),
        &descriptors,
    );
    let output = guest.finish(monitor);
    assert!(output.contains("rx-0 rx-1 tx-0 tx-1"), "{output}");
    assert_eq!(output.matches("receiver").count(), 2, "{output}");
    assert!(output.contains("guest: status 0"), "{output}");
    for way in ["received", "sent"] {
        let bytes = counter(&tap.name, &format!("{way}-bytes"));
        let packets = counter(&tap.name, &format!("{way}-packets"));
        assert!(bytes > 64 << 20, "{way}: {bytes} bytes");
        // Pure acknowledgements are among them; without segmentation none is above 1514.
        assert!(
            bytes / packets > 3000,
            "{way}: {bytes} bytes in {packets} packets"
        );
    }
}

#[test]
#[ignore = "needs a /dev/kvm that runs 64-bit kernels"]
fn taps_are_ports_of_bridges_and_errors_say_what_is_wrong() {
    own_network();
    run("modprobe bridge");
    run("ip link add lab-bridge type bridge");
    let options = TapOptions {
        name: Some("port0".into()),
        queues: 1,
        mtu: Some(9000),
        mac: Some([2, 0, 0, 0, 0, 9]),
        bridge: Some("lab-bridge".into()),
    };
    let tap = Tap::open(&options).unwrap();
    let shown = Command::new("ip")
        .args(["-d", "link", "show", "port0"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for word in ["mtu 9000", "master lab-bridge", "02:00:00:00:00:09", "UP"] {
        assert!(shown.contains(word), "'{word}' is missing: {shown}");
    }
    assert!(matches!(Tap::open(&options), Err(TapError::Busy(name)) if name == "port0"));
    drop(tap);
    let missing = TapOptions {
        bridge: Some("none".into()),
        ..options.clone()
    };
    assert!(matches!(Tap::open(&missing), Err(TapError::Bridge(name)) if name == "none"));
    let left = Command::new("ip")
        .args(["link", "show", "port0"])
        .status()
        .unwrap();
    assert!(!left.success(), "a tap is left behind");
    // Without the right to change networks.

    let none = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).unwrap();
    let refused = Tap::open(&options).unwrap_err();
    assert!(matches!(refused, TapError::Permission { .. }), "{refused}");
    assert!(refused.to_string().contains("needs no right"), "{refused}");
}
