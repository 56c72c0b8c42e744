//! The emulated host of one run: its disks, its QEMU process, its output.

use super::base::Base;
use super::payload::Payload;
use super::{Run, TIMED_OUT};
use crate::shell::{Context, Outcome, fail, on_path, program, run as run_command, time};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The file that stands in a run's folder while the run goes on.
pub(crate) const RUNNING: &str = "running";

/// Room on the disk for results, in MiB; it is sparse.
const RESULTS_SIZE: u64 = 4096;

/// The disks of one run, all removed after it.
pub(crate) struct Disks {
    root: PathBuf,
    payload: PathBuf,
    results: PathBuf,
}

impl Disks {
    /// A copy-on-write layer over the base, a disk with the payload, an empty disk.
    pub(crate) fn prepare(directory: &Path, base: &Base, payload: &Payload) -> Outcome<Self> {
        let disks = Self {
            root: directory.join("root.qcow2"),
            payload: directory.join("payload.img"),
            results: directory.join("results.img"),
        };
        run_command(
            program("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw"])
                .arg("-b")
                .arg(base.disk())
                .arg(&disks.root),
        )?;
        let tree = directory.join("payload");
        payload.lay_out(&tree)?;
        let used = crate::shell::output(program("du", ["-sm", "--apparent-size"]).arg(&tree))?;
        let used: u64 = used
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        file_system(&disks.payload, used + used / 4 + 1024, Some(&tree))?;
        fs::remove_dir_all(&tree).context(tree.display())?;
        file_system(&disks.results, RESULTS_SIZE, None)?;
        Ok(disks)
    }

    /// Copies what the command left in `/lab/out` to `folder`.
    pub(crate) fn results(&self, folder: &Path) -> Outcome<()> {
        fs::create_dir_all(folder).context(folder.display())?;
        let debugfs = program("debugfs", ["-R"])
            .arg(format!("rdump / \"{}\"", folder.display()))
            .arg(&self.results)
            .stdin(Stdio::null())
            .output()
            .context("debugfs")?;
        if !debugfs.status.success() {
            return fail(format_args!(
                "reading the results failed: {}",
                String::from_utf8_lossy(&debugfs.stderr)
            ));
        }
        let lost = folder.join("lost+found");
        if lost.is_dir() {
            fs::remove_dir_all(&lost).context(lost.display())?;
        }
        Ok(())
    }

    /// Removes the disks; what is left behind only costs room.
    pub(crate) fn remove(&self) {
        for file in [&self.root, &self.payload, &self.results] {
            let _ = fs::remove_file(file);
        }
    }
}

/// A sparse ext4 image of `size` MiB with the files of `tree`.
fn file_system(image: &Path, size: u64, tree: Option<&Path>) -> Outcome<()> {
    let file = File::create(image).context(image.display())?;
    file.set_len(size << 20).context(image.display())?;
    let mut command = program("mke2fs", ["-q", "-F", "-t", "ext4", "-m", "0"]);
    command.args([
        "-O",
        "^has_journal",
        "-E",
        "lazy_itable_init=1,root_owner=0:0",
    ]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    // mke2fs stands in a folder that not every user has on the path.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    run_command(command.arg(image))
}

/// Starts the emulated host, passes the command's output on, and gives its exit status.
pub(crate) fn run(directory: &Path, base: &Base, disks: &Disks, wanted: &Run) -> Outcome<u8> {
    let marker = directory.join(RUNNING);
    File::create(&marker).context(marker.display())?;
    let outcome = attended(directory, base, disks, wanted);
    let _ = fs::remove_file(&marker);
    outcome
}

fn attended(directory: &Path, base: &Base, disks: &Disks, wanted: &Run) -> Outcome<u8> {
    let begun = Instant::now();
    // A socket's name may have 107 bytes at most, so it does not stand in the run's folder.
    let sockets = std::env::temp_dir().join(format!("cenote-lab-{}", std::process::id()));
    fs::create_dir_all(&sockets).context(sockets.display())?;
    let names = ["out", "err", "status"];
    let mut listeners = Vec::new();
    for name in names {
        let socket = sockets.join(name);
        let _ = fs::remove_file(&socket);
        listeners.push(UnixListener::bind(&socket).context(socket.display())?);
    }
    let console = directory.join("console.log");
    let mut qemu = command(base, disks, wanted, &sockets, &console);
    let mut child = qemu
        .stdin(Stdio::null())
        .spawn()
        .context("qemu-system-x86_64")?;
    let streams = accept_all(&listeners, &mut child);
    let _ = fs::remove_dir_all(&sockets);
    let mut streams = streams?.into_iter();
    let (Some(out), Some(err), Some(status)) = (streams.next(), streams.next(), streams.next())
    else {
        return fail("the emulated host has too few ports");
    };
    let pumps = [pump(out, std::io::stdout()), pump(err, std::io::stderr())];
    let status = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = { status }.read_to_string(&mut text);
        text
    });
    let in_time = wait(&mut child, begun + wanted.timeout)?;
    for thread in pumps {
        let _ = thread.join();
    }
    let status = status.join().unwrap_or_default();
    if !in_time {
        eprintln!(
            "lab: ended after {}; console: {}",
            time(wanted.timeout),
            console.display()
        );
        return Ok(TIMED_OUT);
    }
    match status.trim().parse() {
        Ok(code) => Ok(code),
        Err(_) => {
            let text = fs::read_to_string(&console).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            fail(format_args!(
                "the emulated host ended without a status; its console ({}) ends so:\n{tail}",
                console.display()
            ))
        }
    }
}

/// The QEMU process.
fn command(base: &Base, disks: &Disks, wanted: &Run, sockets: &Path, console: &Path) -> Command {
    let mut command = if on_path("setpriv") {
        // Goes with us even when we are killed.
        let mut command = program("setpriv", ["--pdeathsig=KILL", "--"]);
        command.arg("qemu-system-x86_64");
        command
    } else {
        program("qemu-system-x86_64", [] as [&str; 0])
    };
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ])
        .args(["-smp", &wanted.cpus.to_string()])
        .args(["-m", &wanted.memory.to_string()])
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(base.kernel())
        .arg("-append")
        .arg(
            "console=ttyS0 quiet panic=-1 root=/dev/nvme0n1 rootwait rw init=/lab/init \
             mitigations=off",
        )
        .args(["-serial", &format!("file:{}", console.display())])
        .args(["-device", "virtio-serial-pci"]);
    for name in ["out", "err", "status"] {
        let socket = sockets.join(name);
        command
            .arg("-chardev")
            .arg(format!("socket,id={name},path={}", socket.display()))
            .arg("-device")
            .arg(format!("virtserialport,chardev={name},name=lab.{name}"));
    }
    command.args(["-device", "nvme,id=disks,serial=lab"]);
    let drives = [
        ("root", &disks.root, "qcow2"),
        ("payload", &disks.payload, "raw"),
        ("results", &disks.results, "raw"),
    ];
    for (name, file, format) in drives {
        command
            .arg("-drive")
            .arg(format!(
                "if=none,id={name},file={},format={format},cache=unsafe,discard=unmap",
                file.display()
            ))
            .arg("-device")
            .arg(format!("nvme-ns,drive={name},bus=disks"));
    }
    command
}

/// QEMU's connections, or why it did not make them.
fn accept_all(listeners: &[UnixListener], child: &mut Child) -> Outcome<Vec<UnixStream>> {
    let mut streams = Vec::new();
    for listener in listeners {
        listener.set_nonblocking(true).context("socket")?;
        streams.push(loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return fail(format_args!("socket: {error}")),
            }
            if let Some(status) = child.try_wait().context("qemu-system-x86_64")? {
                return fail(format_args!("qemu-system-x86_64 did not start: {status}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        });
    }
    for stream in &streams {
        stream.set_nonblocking(false).context("socket")?;
    }
    Ok(streams)
}

/// Passes on what comes until the other side closes.
fn pump(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut buffer) {
            // Where nobody listens any more the guest must still get rid of its output.
            if count == 0 {
                break;
            }
            let _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
        }
    })
}

/// Waits for the end; kills the process when `deadline` is over and gives false.
fn wait(child: &mut Child, deadline: Instant) -> Outcome<bool> {
    loop {
        if let Some(status) = child.try_wait().context("qemu-system-x86_64")? {
            if !status.success() {
                return fail(format_args!("qemu-system-x86_64 failed: {status}"));
            }
            return Ok(true);
        }
        if Instant::now() >= deadline {
            child.kill().context("qemu-system-x86_64")?;
            child.wait().context("qemu-system-x86_64")?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
