//! Tiny 16-bit guests on KVM: how a machine ends, pauses, saves and goes on.
//!
//! They run on every `/dev/kvm`, also on one that only emulates.

#![allow(clippy::unwrap_used)] // A failed expectation fails the test.

mod common;

use cenote_vmm::machine::{ExitCause, RunState};
use common::{
    Guest, Monitor,
    code::{self, POWER_OFF, PRINT, out_and_halt, printing},
    wait_for,
};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::{fs::File, os::fd::AsFd as _, process::Command};

#[test]
#[ignore = "needs /dev/kvm"]
fn a_guest_prints_and_switches_itself_off() {
    let guest = Guest::real_mode(&printing(b"hello\n", POWER_OFF));
    let ended = Monitor::start(&guest, &[]).wait();
    assert_eq!(ended.cause(), "guest-power-off");
    assert_eq!(ended.status, Some(0));
    assert_eq!(ended.output, "hello\n");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn every_reset_port_resets() {
    for (port, value) in [(0xcf9, 6), (0x64, 0xfe), (0x92, 3)] {
        let mut guest = Guest::real_mode(&printing(b"r", &out_and_halt(port, value)));
        guest.description["on_reset"] = json!("exit");
        let ended = Monitor::start(&guest, &[]).wait();
        assert_eq!(
            (ended.cause(), ended.output.as_str()),
            ("guest-reset", "r"),
            "{port:#x}"
        );
    }
}

/// The guest counts its starts in CMOS memory, which outlives resets.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_reset_in_place_starts_the_guest_again() {
    let then = code::counting(3, &out_and_halt(0x64, 0xfe), POWER_OFF);
    let ended = Monitor::start(&Guest::real_mode(&printing(b"s", &then)), &[]).wait();
    assert_eq!(
        (ended.cause(), ended.output.as_str()),
        ("guest-power-off", "ssss")
    );
    assert_eq!(ended.report.as_ref().unwrap()["resets"], 3);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_reported_panic_is_a_panic() {
    let ended = Monitor::start(&Guest::real_mode(&out_and_halt(0x505, 1)), &[]).wait();
    assert_eq!((ended.cause(), ended.status), ("guest-panic", Some(3)));
}

/// Whoever starts monitors learns why each ended, also where it could not say so.
#[test]
#[ignore = "needs /dev/kvm"]
fn every_end_has_its_own_cause() {
    let cause = |code: &[u8]| {
        let mut guest = Guest::real_mode(code);
        guest.description["on_reset"] = json!("exit");
        guest.launch().wait().unwrap().cause
    };
    assert_eq!(cause(POWER_OFF), ExitCause::GuestPowerOff);
    assert_eq!(cause(&out_and_halt(0x64, 0xfe)), ExitCause::GuestReset);
    assert_eq!(cause(&out_and_halt(0x505, 1)), ExitCause::GuestPanic);
    let running = Guest::real_mode(&[0xf4, 0xeb, 0xfd]); // again: hlt; jmp again
    for (signal, expected) in [
        (Signal::KILL, ExitCause::Killed),
        (Signal::TERM, ExitCause::Killed),
        (Signal::SYS, ExitCause::SandboxViolation),
    ] {
        let mut monitor = running.launch();
        let status = monitor.client().unwrap().call("status").unwrap();
        assert_eq!(status.state, RunState::Running);
        assert!(monitor.try_wait().unwrap().is_none());
        let process = Pid::from_raw(monitor.id() as i32).unwrap();
        rustix::process::kill_process(process, signal).unwrap();
        let report = monitor.wait().unwrap();
        assert_eq!(report.cause, expected);
        let detail = report.detail.unwrap();
        let number = format!("signal {}", signal.as_raw());
        assert!(
            expected != ExitCause::Killed || detail == number,
            "{detail}"
        );
        assert!(!running.folder.path().join("control").exists());
    }
    let mut monitor = running.launch();
    monitor.client().unwrap().call("quit").unwrap();
    assert_eq!(monitor.wait().unwrap().cause, ExitCause::Quit);
}

/// What a monitor refuses before its guest runs is in the report and among its messages.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_that_cannot_start_is_explained() {
    let mut guest = Guest::real_mode(&[0xf4]);
    guest.description["boot"]["real-mode"]["image"] = json!({"path": "/nonexistent/code"});
    let report = guest.launch().wait().unwrap();
    assert_eq!(report.cause, ExitCause::MonitorError);
    let detail = report.detail.unwrap();
    assert!(detail.contains("/nonexistent/code"), "{detail}");
    let messages = std::fs::read_to_string(guest.folder.path().join("messages")).unwrap();
    assert!(messages.contains(&detail), "{messages}");
}

/// Each impossible machine has its own message, and the message a remedy.
#[test]
#[ignore = "needs /dev/kvm"]
fn impossible_machines_are_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        json!({"path": path})
    };
    // An ELF file's header that speaks of more than there is.
    let mut header = vec![0; 64];
    header[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let kernel = |image: &Value| json!({"kernel": {"image": image}});
    let text = file(
        "text",
        b"This is no kernel, however long it is."
            .repeat(100)
            .as_slice(),
    );
    let cases = [
        ("vcpus", json!(0), "0 vCPUs are impossible: give 1 to 32"),
        ("vcpus", json!(33), "give 1 to 32"),
        ("memory", json!(5), "give a multiple of 4096"),
        ("memory", json!(1u64 << 42), "give the guest less"),
        (
            "boot",
            kernel(&text),
            "name a file like /boot/vmlinuz-VERSION",
        ),
        ("boot", kernel(&file("cut", &header)), "the kernel is"),
        (
            "boot",
            kernel(&json!({"fd": 999})),
            "descriptor 999 is not open",
        ),
        (
            "boot",
            json!({"real-mode": {"image": file("empty", b"")}}),
            "give the guest more memory",
        ),
        ("colour", json!("red"), "unknown field `colour`"),
    ];
    let mut seen = Vec::new();
    for (field, value, remedy) in cases {
        let mut guest = Guest::real_mode(&[0xf4]);
        guest.description[field] = value.clone();
        let refused = guest.run(&[]);
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{field} {value}: {message}");
        assert!(message.contains(remedy), "{field} {value}: {message}");
        assert!(!seen.contains(&message), "{message}");
        seen.push(message);
    }
}

/// A host that only emulates says so unless the description allows it; `--check` says it too.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_host_that_only_emulates_is_told_from_a_real_one() {
    let mut guest = Guest::real_mode(POWER_OFF);
    guest.description["allow_emulation"] = json!(false);
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let real = cpus.split_whitespace().any(|w| w == "vmx" || w == "svm");
    for arguments in [&["--check"][..], &[]] {
        let output = guest.run(arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), real, "{message}");
        assert!(real || message.contains("only emulates"), "{message}");
        assert!(real || message.contains("use another host"), "{message}");
    }
}

/// A user without rights to the device is told which group to join.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_user_without_rights_is_told_how_to_get_them() {
    use std::os::unix::{fs::MetadataExt as _, process::CommandExt as _};
    let root = rustix::process::geteuid().is_root();
    if !root || std::fs::metadata("/dev/kvm").unwrap().mode() & 6 != 0 {
        println!("not tried: everybody may open /dev/kvm, or nobody else can be played");
        return;
    }
    let guest = Guest::real_mode(&[0xf4]);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(guest.folder.path(), open).unwrap();
    let output = std::process::Command::new(common::program())
        .args(["--check", "--machine"])
        .arg(guest.written())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("usermod -aG kvm"), "{message}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_killed_monitor_leaves_no_report() {
    let guest = Guest::real_mode(&printing(b"up", &[0xf4, 0xeb, 0xfd]));
    let mut monitor = Monitor::start(&guest, &[]);
    wait_for("the guest's output", || monitor.output() == "up");
    monitor.kill();
    let ended = monitor.wait();
    assert_eq!((ended.status, ended.report), (None, None));
}

/// Prints letters one after the other, for ever.
fn counting() -> Guest {
    let mut code = vec![0xeb, PRINT.len() as u8];
    code.extend(PRINT);
    code.extend([0xb2, b'a']); // mov dl, 'a'
    let again = code.len() as i32;
    code.push(0xe8); // again: call PRINT
    code.extend(((2 - (code.len() as i32 + 2)) as i16).to_le_bytes());
    code.extend([
        0xb9,
        0x00,
        0x20, // mov cx, 0x2000
        0xe2,
        0xfe, // loop itself
        0xfe,
        0xc2, // inc dl
        0x80,
        0xfa,
        b'z' + 1, // cmp dl, 'z' + 1
        0x75,
        0x02, // jne
        0xb2,
        b'a', // mov dl, 'a'
        0xeb,
        0x00, // jmp again
    ]);
    let end = code.len() as i32;
    *code.last_mut().unwrap() = (again - end) as i8 as u8;
    Guest::real_mode(&code)
}

fn assert_alphabet(text: &str, first: u8) {
    let expected: String = (0..text.len())
        .map(|index| char::from(b'a' + ((usize::from(first - b'a') + index) % 26) as u8))
        .collect();
    assert_eq!(text, expected);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() {
    let guest = counting();
    let monitor = Monitor::start(&guest, &[]);
    wait_for("output", || monitor.output().len() > 30);
    assert_eq!(monitor.call("pause", json!(null))["state"], "paused");
    let ran = monitor.call("status", json!(null))["ran_milliseconds"].clone();
    // The writer may still have the last characters in hand; after that nothing comes.
    monitor.settle();
    let before = monitor.output();
    assert_eq!(monitor.call("status", json!(null))["ran_milliseconds"], ran);
    assert_eq!(monitor.output(), before);
    assert_eq!(monitor.call("resume", json!(null))["state"], "running");
    wait_for("more output", || monitor.output().len() > before.len() + 30);
    monitor.call("quit", json!(null));
    let ended = monitor.wait();
    assert_eq!(ended.cause(), "quit");
    assert_alphabet(&ended.output, b'a');
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_saved_guest_goes_on_three_times_from_the_same_file() {
    let guest = counting();
    let monitor = Monitor::start(&guest, &[]);
    wait_for("output", || monitor.output().len() > 40);
    let file = guest.folder.path().join("saved");
    monitor.client().save(&file, true).unwrap();
    let ended = monitor.wait();
    assert_eq!(ended.cause(), "saved");
    assert_alphabet(&ended.output, b'a');
    let next = b'a' + (ended.output.len() % 26) as u8;
    let restore = ["--restore", file.to_str().unwrap()];
    for _ in 0..3 {
        let monitor = Monitor::start(&guest, &restore);
        wait_for("output after the restore", || monitor.output().len() > 40);
        monitor.kill_and_wait(|output| assert_alphabet(output, next));
    }
    let check = guest.run(&["--check", "--verify", restore[0], restore[1]]);
    assert!(check.status.success(), "{check:?}");
    // One damaged byte of the state is found before anything starts.
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let refused = guest.run(&restore);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("damaged: its state"),
        "{refused:?}"
    );
}

/// The sandbox is on, so that a disk is changed with what the monitor has.
#[test]
#[ignore = "needs /dev/kvm"]
fn a_disk_is_changed_again_and_again_under_a_running_guest() {
    let mut guest = counting();
    let folder = guest.folder.path().to_owned();
    let create = |name: &str, backing: Option<&str>, size: &str| {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]);
        if let Some(backing) = backing {
            // The monitor has it locked.
            command.args(["-u", "-F", "qcow2", "-b", backing]);
        }
        command.arg(folder.join(name)).arg(size);
        assert!(command.status().unwrap().success());
    };
    create("0", None, "1M");
    create("other", None, "2M");
    let layer = json!({"file": {"path": folder.join("0")}, "format": "qcow2"});
    guest.description["disks"] = json!([{"name": "vda", "queues": 2, "chain": [layer]}]);
    let monitor = Monitor::start(&guest, &[]);
    wait_for("counting", || monitor.output().len() > 5);
    let change = |names: &[&str]| {
        let open = |name: &&str| {
            let top = *name == names[0];
            let file = File::options()
                .read(true)
                .write(top)
                .open(folder.join(name));
            file.unwrap()
        };
        let files: Vec<File> = names.iter().map(open).collect();
        let descriptors: Vec<_> = files.iter().map(File::as_fd).collect();
        let chain: Vec<_> = names.iter().map(|_| json!({"format": "qcow2"})).collect();
        let parameters = json!({"disk": "vda", "chain": chain});
        monitor.request("change-disk", parameters, &descriptors)
    };
    create("1", Some("0"), "1M");
    change(&["1", "0"]).unwrap();
    let refused = change(&["other"]).unwrap_err();
    assert!(refused.contains("bytes"), "{refused}");
    create("2", Some("1"), "1M");
    change(&["2", "1", "0"]).unwrap();
    let before = monitor.output().len();
    wait_for("counting on", || monitor.output().len() > before + 5);
    monitor.call("quit", json!(null));
    let ended = monitor.wait();
    assert_eq!(ended.cause(), "quit", "{ended:?}");
    assert_eq!(ended.report.as_ref().unwrap()["detail"], Value::Null);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_control_socket_answers_nonsense_with_errors() {
    let guest = counting();
    let monitor = Monitor::start(&guest, &[]);
    for (line, code) in [
        ("nonsense", -32700),
        ("[]", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"explode"}"#, -32601),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"pause","params":{"x":1}}"#,
            -32602,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"save","params":{"path":"x"}}"#,
            -32602,
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"save"}"#, -32602),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"save","descriptors":1}"#,
            -32600,
        ),
    ] {
        assert_eq!(monitor.send(line)["error"]["code"], code, "{line}");
    }
    assert_eq!(monitor.call("status", json!(null))["state"], "running");
    monitor.call("reset", json!(null));
    assert_eq!(monitor.call("status", json!(null))["resets"], 1);
    monitor.call("quit", json!(null));
    assert_eq!(monitor.wait().cause(), "quit");
}

/// 32-bit registers' worth of ports at every width and offset, from inside a guest.
#[test]
#[ignore = "needs /dev/kvm"]
fn accesses_of_every_width_to_every_port_do_not_end_the_monitor() {
    // Reads all ports, bytes, words and double words, then switches off.
    let mut then = vec![
        0x31, 0xd2, // xor dx, dx
        0xec, // next: in al, dx
        0xed, // in ax, dx
        0x66, 0xed, // in eax, dx
        0x42, // inc dx
        0x75, 0xf9, // jnz next
    ];
    then.extend(POWER_OFF);
    let ended = Monitor::start(&Guest::real_mode(&printing(b"", &then)), &[]).wait();
    assert_eq!(ended.cause(), "guest-power-off");
}

/// The log has the pages that the guest wrote and those that the monitor wrote, once each.
#[test]
#[ignore = "needs /dev/kvm"]
fn written_pages_are_logged() {
    use cenote_vmm::{
        boot::Entry,
        bus::AddressMap,
        kvm::{Exit, Host, Vm},
        memory::MemoryLayout,
    };
    use vm_memory::{Bytes as _, GuestAddress};
    let code = [
        0xb8, 0x00, 0x03, 0x8e, 0xd8, // mov ax, 0x300; mov ds, ax
        0xc6, 0x06, 0x00, 0x00, 0x01, // mov byte [0], 1
        0xb8, 0x00, 0x07, 0x8e, 0xd8, // mov ax, 0x700; mov ds, ax
        0xc6, 0x06, 0x00, 0x00, 0x01, // mov byte [0], 1
        0xe6, 0x80, // out 0x80, al
    ];
    let host = Host::open(true).unwrap();
    let memory = MemoryLayout::new(4 << 20).unwrap().map().unwrap();
    let vm = Vm::new(&host, memory).unwrap();
    let mut vcpus = vm.create_vcpus(&host, 1, &[]).unwrap();
    vm.memory()
        .write_slice(&code, GuestAddress(0x1_0000))
        .unwrap();
    vcpus[0].set_entry(&Entry::real_mode(0x1_0000)).unwrap();
    vm.log_dirty_pages(true).unwrap();
    vm.take_dirty_pages().unwrap();
    let (ports, mmio) = (AddressMap::ports(), AddressMap::memory());
    loop {
        match vcpus[0].enter(&ports, &mmio) {
            Exit::Interrupted => {}
            Exit::Handled => break,
            other => panic!("{other:?}"),
        }
    }
    vm.memory().write_obj(1u8, GuestAddress(0x5fff)).unwrap();
    let written = |pages: Vec<(u64, Vec<u64>)>| -> Vec<u64> {
        pages
            .iter()
            .flat_map(|(start, words)| {
                (0u64..)
                    .zip(words)
                    .flat_map(move |(index, word)| {
                        (0..64).map(move |bit| (index * 64 + bit, word >> bit & 1))
                    })
                    .filter(|(_, set)| *set == 1)
                    .map(move |(page, _)| start + page * 4096)
            })
            .collect()
    };
    // Where KVM maps the page of the code as writable, it counts it as written.
    let mut pages = written(vm.take_dirty_pages().unwrap());
    pages.retain(|page| *page != 0x1_0000);
    assert_eq!(pages, [0x3000, 0x5000, 0x7000]);
    assert!(written(vm.take_dirty_pages().unwrap()).is_empty());
}
