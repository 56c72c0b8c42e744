//! The monitor's process and its control socket.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use cenote_vmm::machine::{Client, ExitReport, Notice, Status};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use super::network::{Inherited, Networks};
use super::protocol;
use crate::domains::translate::{CONTROL_SOCKET, EXIT_REPORT, Machine, clear_sockets};
use crate::domains::truth::{MONITOR_FILE, start_time};

/// Name of the machine description in the run directory.
const DESCRIPTION: &str = "machine.json";
/// How long a monitor may take to put a machine together, on a busy host that emulates.
const START: Duration = Duration::from_secs(300);
/// How long a monitor that has failed may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often a starting monitor's socket is tried.
const INTERVAL: Duration = Duration::from_millis(2);

/// A monitor that runs.
pub(crate) struct Monitor {
    pid: Pid,
    process: OwnedFd,
    control: Client,
    networks: Networks,
}

/// Its ends of the guest's serial port, if it has one.
pub(crate) type Ends = Option<(ChildStdin, ChildStdout)>;

/// How a monitor's end looks from outside.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: io::Result<ExitStatus>,
    /// What it wrote last; nothing if it was killed.
    pub(crate) report: Option<ExitReport>,
}

/// What a monitor is started with.
pub(crate) struct Setting<'a> {
    pub(crate) program: &'a Path,
    pub(crate) run_dir: &'a Path,
    /// Where its messages go.
    pub(crate) log: &'a Path,
    pub(crate) machine: &'a Machine,
    /// The user-mode network's program, where a card needs one.
    pub(crate) network: Option<&'a Path>,
    pub(crate) restore: Option<&'a Path>,
    pub(crate) has_console: bool,
}

impl Monitor {
    /// Starts a monitor with its guest standing still, and waits until it answers. `ended` is
    /// told by `message` when it ends, however that comes.
    ///
    /// To be called from the thread that lives as long as the supervisor: the kernel kills the
    /// monitor when that thread ends. What happens to the machine without a request is told by
    /// `noticed`.
    ///
    /// # Errors
    /// What the monitor said, or what the system did.
    pub(crate) fn start<M: Send + 'static>(
        setting: &Setting<'_>,
        ended: Sender<M>,
        message: fn(End) -> M,
        noticed: fn(Notice) -> M,
    ) -> Result<(Monitor, Ends), String> {
        let run_dir = setting.run_dir;
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("{what}: {error}")
        };
        for left in [CONTROL_SOCKET, EXIT_REPORT] {
            remove(&run_dir.join(left)).map_err(failed("cannot clear the run directory"))?;
        }
        clear_sockets(&setting.machine.description.ports, run_dir)?;
        if let Some(loaded) = &setting.machine.loaded {
            loaded.write(run_dir)?;
        }
        let (networks, description) = Networks::start(setting)?;
        let text = serde_json::to_string_pretty(&description)
            .map_err(|error| format!("cannot write the machine description: {error}"))?;
        fs::write(run_dir.join(DESCRIPTION), text)
            .map_err(failed("cannot write the machine description"))?;
        let log = super::console::open_log(setting.log, true)
            .map_err(failed("cannot open the monitor's log"))?;
        let mut child = command(setting, &log)
            .and_then(|mut command| {
                let _inherited = Inherited::by_children(networks.monitor_ends())?;
                command.spawn()
            })
            .map_err(|error| format!("cannot run '{}': {error}", setting.program.display()))?;
        let networks = networks.joined();
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| format!("cannot watch the monitor: {error}"))?;
        let text = format!(
            "{} {}\n",
            pid.as_raw_nonzero(),
            start_time(pid).unwrap_or_default()
        );
        let result = fs::write(run_dir.join(MONITOR_FILE), text)
            .map_err(failed("cannot write the run directory"))
            .and_then(|()| wait_for_socket(&mut child, run_dir));
        let control = match result {
            Ok(control) => control,
            Err(reason) => {
                end(&mut child);
                return Err(reason_of_end(run_dir, setting.log).unwrap_or(reason));
            }
        };
        let ends = child.stdin.take().zip(child.stdout.take());
        let mut monitor = Monitor {
            pid,
            process,
            control,
            networks,
        };
        let answered = monitor
            .call("status")
            .and_then(|_| listen(run_dir, ended.clone(), noticed));
        if let Some(loaded) = &setting.machine.loaded {
            // The monitor has read them; the run directory lies in memory.
            loaded.remove(run_dir);
        }
        let report = run_dir.join(EXIT_REPORT);
        if let Err(reason) = answered {
            end(&mut child);
            return Err(reason_of_end(run_dir, setting.log).unwrap_or(reason));
        }
        thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || {
                let status = child.wait();
                let report = read_report(&report);
                // The supervisor waits for nothing else.
                let _ = ended.send(message(End { status, report }));
            })
            .map_err(failed("cannot start a thread"))?;
        Ok((monitor, ends))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Its user-mode networks.
    pub(crate) fn networks(&mut self) -> &mut Networks {
        &mut self.networks
    }

    /// Something that kills it, from any thread.
    pub(crate) fn killer(&self) -> io::Result<Killer> {
        Ok(Killer(self.process.try_clone()?))
    }

    /// Calls a method, and waits until the monitor has done it.
    pub(crate) fn call(&mut self, method: &str) -> Result<Status, String> {
        self.control.call(method).map_err(|error| described(&error))
    }

    /// Makes a request with descriptors.
    pub(crate) fn request(
        &mut self,
        method: &str,
        parameters: &serde_json::Value,
        files: &[File],
    ) -> Result<(), String> {
        let descriptors: Vec<_> = files.iter().map(File::as_fd).collect();
        let answer = self.control.request(method, parameters, &descriptors);
        answer.map(drop).map_err(|error| described(&error))
    }

    /// Saves the machine, which stands still, to an open file, and goes on standing.
    pub(crate) fn save(&mut self, file: &File) -> Result<(), String> {
        let saved = self.control.request("save", &json!({}), &[file.as_fd()]);
        saved.map(drop).map_err(|error| described(&error))
    }
}

/// Passes on what happens to the machine without anybody's request, until it ends.
fn listen<M: Send + 'static>(
    run_dir: &Path,
    sender: Sender<M>,
    noticed: fn(Notice) -> M,
) -> Result<(), String> {
    let watch = protocol::at_short_path(run_dir, CONTROL_SOCKET, |path| {
        Client::connect(path).map_err(io::Error::other)
    });
    let watch = watch.map_err(|error| error.to_string())?;
    let (_, notices) = watch.watch().map_err(|error| described(&error))?;
    let started = thread::Builder::new()
        .name("notices".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            for notice in notices.map_while(Result::ok) {
                if sender.send(noticed(notice)).is_err() {
                    break;
                }
            }
        });
    started
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}

/// An error with its causes, in one line.
fn described(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Kills a monitor.
pub(crate) struct Killer(OwnedFd);

impl Killer {
    /// At once. It may have ended already, which is as well.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}

/// Lets a monitor that has failed say why, and sees to it that it ends.
fn end(child: &mut Child) {
    let begun = Instant::now();
    while begun.elapsed() < LAST_WORDS && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(INTERVAL);
    }
    // It has ended already, unless it hangs.
    let _ = child.kill();
    let _ = child.wait();
}

fn command(setting: &Setting<'_>, log: &File) -> io::Result<Command> {
    let mut command = Command::new(setting.program);
    // The path of the description has the domain's name in it, for whoever lists processes.
    command
        .arg("--machine")
        .arg(setting.run_dir.join(DESCRIPTION))
        .arg("--paused")
        .arg("--with-parent")
        .arg(std::process::id().to_string())
        .current_dir(setting.run_dir)
        .stderr(log.try_clone()?);
    if let Some(path) = setting.restore {
        command.arg("--restore").arg(path);
    }
    if setting.has_console {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    } else {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    Ok(command)
}

fn wait_for_socket(child: &mut Child, run_dir: &Path) -> Result<Client, String> {
    let begun = Instant::now();
    loop {
        if let Ok(control) = protocol::at_short_path(run_dir, CONTROL_SOCKET, |path| {
            Client::connect(path).map_err(io::Error::other)
        }) {
            return Ok(control);
        }
        match child.try_wait() {
            Ok(Some(status)) => return Err(format!("the monitor ended with {status}")),
            Ok(None) => {}
            Err(error) => return Err(format!("cannot watch the monitor: {error}")),
        }
        if begun.elapsed() >= START {
            return Err("the monitor does not come up".to_owned());
        }
        thread::sleep(INTERVAL);
    }
}

/// What a monitor that did not start said: in its report, else in the last line of its log.
fn reason_of_end(run_dir: &Path, log: &Path) -> Option<String> {
    let report = read_report(&run_dir.join(EXIT_REPORT)).and_then(|report| report.detail);
    report.or_else(|| {
        let text = fs::read(log).ok()?;
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        let line = line.strip_prefix("cenote-vmm: ").unwrap_or(line);
        Some(line.to_owned())
    })
}

fn read_report(path: &PathBuf) -> Option<ExitReport> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
