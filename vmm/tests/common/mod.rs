//! Starting the monitor on a guest, watching it, and talking to it.

#![allow(dead_code)] // Each suite uses a part of this.

pub(crate) mod code;
pub(crate) mod network;
pub(crate) mod pc;

use cenote_vmm::{
    machine::Client,
    supervise::{self, Launch},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Longer than anything takes in an emulated host on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Waits for a condition.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The monitor's program: beside the tests, or on the path of the lab.
pub(crate) fn program() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_cenote-vmm"));
    if std::env::var_os("CENOTE_LAB").is_some() || !built.exists() {
        PathBuf::from("cenote-vmm")
    } else {
        built
    }
}

/// A guest and its description.
pub(crate) struct Guest {
    pub(crate) folder: TempDir,
    pub(crate) description: Value,
}

impl Guest {
    fn new(boot: Value, memory: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let description = json!({
            "version": 1,
            "vcpus": 1,
            "memory": memory,
            "boot": boot,
            "serial": {"backend": {"file": {"path": folder.path().join("serial.log")}}},
            "allow_emulation": true,
            "control": folder.path().join("control"),
            "exit_report": folder.path().join("report"),
        });
        Self {
            folder,
            description,
        }
    }

    /// 16-bit code.
    pub(crate) fn real_mode(code: &[u8]) -> Self {
        let mut guest = Self::new(Value::Null, 4 << 20);
        let image = guest.folder.path().join("image");
        std::fs::write(&image, code).unwrap();
        guest.description["boot"] = json!({"real-mode": {"image": {"path": image}}});
        guest
    }

    /// SeaBIOS, with its messages in [`Monitor::debug`].
    pub(crate) fn firmware() -> Self {
        let mut guest = Self::new(json!({"firmware": {"fail_wait": -1}}), 64 << 20);
        let log = guest.folder.path().join("debug.log");
        guest.description["debug_console"] = json!({"backend": {"file": {"path": log}}});
        guest
    }

    /// A stock kernel of the lab that runs `command` as its only work.
    pub(crate) fn kernel(image: &str, command: &str, vcpus: u8, memory: u64) -> Self {
        let boot = json!({"kernel": {
            "image": {"path": format!("/lab/guest/{image}")},
            "initrd": {"path": "/lab/guest/initramfs.cpio.gz"},
            "command_line": format!("console=ttyS0 panic=-1 GUEST=\"{command}\""),
        }});
        let mut guest = Self::new(boot, memory);
        guest.description["vcpus"] = json!(vcpus);
        guest.description["allow_emulation"] = json!(false);
        guest
    }

    /// Keeps what a failed test's guest has printed, and says where.
    fn keep(&self) {
        let name = thread::current().name().unwrap_or("main").to_owned();
        let to = match std::env::var_os("CENOTE_LAB") {
            // Found in target/lab/last/out after the run.
            Some(_) => PathBuf::from("/lab/out"),
            None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        };
        let unique = self.folder.path().file_name().unwrap_or_default();
        let to = to.join(name).join(unique);
        let _ = std::fs::create_dir_all(&to);
        for file in ["serial.log", "messages", "report", "machine.json"] {
            let _ = std::fs::copy(self.folder.path().join(file), to.join(file));
        }
        eprintln!(
            "the guest's serial log is {}",
            to.join("serial.log").display()
        );
    }

    /// Writes the description to a file and gives its path.
    pub(crate) fn written(&self) -> PathBuf {
        let path = self.folder.path().join("machine.json");
        std::fs::write(&path, self.description.to_string()).unwrap();
        path
    }

    /// Starts the monitor as whoever runs domains does.
    pub(crate) fn launch(&self) -> supervise::Monitor {
        let folder = self.folder.path();
        let mut launch = Launch::new(&program(), &folder.join("control"));
        launch.messages(File::create(folder.join("messages")).unwrap());
        let description = serde_json::from_value(self.description.clone()).unwrap();
        launch.start(&description).unwrap()
    }

    /// Runs the monitor to its end with further arguments.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        Command::new(program())
            .arg("--machine")
            .arg(self.written())
            .args(arguments)
            .output()
            .expect("the monitor starts")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep();
        }
    }
}

/// A running monitor.
pub(crate) struct Monitor<'a> {
    child: Child,
    folder: &'a Path,
}

/// How a monitor ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) report: Option<Value>,
    pub(crate) output: String,
    pub(crate) messages: String,
}

impl Ended {
    /// The cause in the report.
    pub(crate) fn cause(&self) -> &str {
        match &self.report {
            Some(report) => report["cause"].as_str().unwrap_or("?"),
            None => panic!("no report: {self:?}"),
        }
    }
}

impl<'a> Monitor<'a> {
    /// Starts the monitor on `guest`, with further arguments.
    pub(crate) fn start(guest: &'a Guest, arguments: &[&str]) -> Self {
        let folder = guest.folder.path();
        for old in ["serial.log", "debug.log", "report", "control"] {
            let _ = std::fs::remove_file(folder.join(old));
        }
        let messages = File::create(folder.join("messages")).unwrap();
        let child = Command::new(program())
            .arg("--machine")
            .arg(guest.written())
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(messages)
            .spawn()
            .expect("the monitor starts");
        Self { child, folder }
    }

    /// What the guest has printed.
    pub(crate) fn output(&self) -> String {
        let bytes = std::fs::read(self.folder.join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the firmware has written to its debug console.
    pub(crate) fn debug(&self) -> String {
        let bytes = std::fs::read(self.folder.join("debug.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the writer of output has written what it had in hand: two looks alike, a status
    /// request apart.
    pub(crate) fn settle(&self) {
        wait_for("quiet", || {
            let before = self.output();
            self.call("status", json!(null));
            thread::sleep(Duration::from_millis(100));
            self.output() == before
        });
    }

    /// Sends a line to the control socket and gives the answer.
    pub(crate) fn send(&self, line: &str) -> Value {
        let path = self.folder.join("control");
        let mut stream = None;
        wait_for("the control socket", || {
            stream = UnixStream::connect(&path).ok();
            stream.is_some()
        });
        let mut stream = stream.unwrap();
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// Calls a method and gives its result.
    pub(crate) fn call(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let answer = self.send(&request.to_string());
        assert_eq!(answer["id"], 7);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Sends a request with descriptors; what is refused is given as text.
    pub(crate) fn request(
        &self,
        method: &str,
        params: Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Value, String> {
        let result = self.client().request(method, &params, descriptors);
        result.map_err(|error| error.to_string())
    }

    /// A client of the control socket.
    pub(crate) fn client(&self) -> Client {
        let path = self.folder.join("control");
        let mut client = None;
        wait_for("the control socket", || {
            client = Client::connect(&path).ok();
            client.is_some()
        });
        client.unwrap()
    }

    /// Kills the monitor as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Kills the monitor and looks at what the guest had printed.
    pub(crate) fn kill_and_wait(mut self, look: impl FnOnce(&str)) {
        self.kill();
        look(&self.wait().output);
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ended {
        let mut status = None;
        let start = Instant::now();
        while status.is_none() {
            status = self.child.try_wait().unwrap();
            if start.elapsed() > PATIENCE {
                let _ = self.child.kill();
                panic!(
                    "the monitor does not end; the guest printed:\n{}",
                    self.output()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It is empty until the monitor has ended by itself.
        let report = std::fs::read(self.folder.join("report")).ok();
        let report = report.filter(|text| !text.is_empty());
        Ended {
            status: status.and_then(|status| status.code()),
            report: report.map(|text| serde_json::from_slice(&text).unwrap()),
            output: self.output(),
            messages: std::fs::read_to_string(self.folder.join("messages")).unwrap_or_default(),
        }
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        // Already gone where the test has waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
