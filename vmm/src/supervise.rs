//! Starting a monitor and learning how it ended, for whoever runs domains.
//!
//! The starter makes the control socket and the exit report's file before the monitor is there and
//! hands them over as descriptors. So the socket can be connected to at once, and what killed a
//! monitor can be told although it could not report: the report's file is empty and the status of
//! the process names the signal.

use crate::machine::{
    Client, ClientError, Description, ExitCause, ExitReport, Place,
    control::{self, ControlError},
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::FileExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// A report is far shorter.
const LARGEST_REPORT: usize = 64 * 1024;
/// The number of the first descriptor that a monitor is given.
const FIRST: RawFd = 3;

/// What a monitor is to be started with.
pub struct Launch {
    program: PathBuf,
    control: PathBuf,
    descriptors: Vec<OwnedFd>,
    arguments: Vec<String>,
    messages: Option<File>,
}

/// Why a monitor was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be run.
    #[error("monitor {program} cannot be started")]
    Program {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A file for the monitor cannot be made.
    #[error("a file to pass to a monitor cannot be made")]
    File(#[source] io::Error),
    /// The description cannot be written.
    #[error("the machine description cannot be written")]
    Description(#[source] serde_json::Error),
}

impl Launch {
    /// The monitor `program`, to be controlled through a socket at `control`.
    #[must_use]
    pub fn new(program: &Path, control: &Path) -> Self {
        Self {
            program: program.to_owned(),
            control: control.to_owned(),
            descriptors: Vec::new(),
            arguments: Vec::new(),
            messages: None,
        }
    }

    /// Gives the monitor an open descriptor. The result is its number there, to be named in the
    /// description.
    pub fn give(&mut self, descriptor: impl Into<OwnedFd>) -> RawFd {
        let number = FIRST + self.descriptors.len() as RawFd;
        self.descriptors.push(descriptor.into());
        number
    }

    /// Lets the guest wait for `resume`.
    pub fn paused(&mut self) -> &mut Self {
        self.arguments.push("--paused".to_owned());
        self
    }

    /// Lets the guest go on from a saved machine.
    pub fn restore(&mut self, file: File) -> &mut Self {
        let number = self.give(file);
        self.arguments
            .extend(["--restore".to_owned(), format!("/dev/fd/{number}")]);
        self
    }

    /// Writes the monitor's own messages to `file` instead of this process's standard error.
    pub fn messages(&mut self, file: File) -> &mut Self {
        self.messages = Some(file);
        self
    }

    /// Starts the monitor on `description`, whose `control` and `exit_report` are replaced. It may
    /// still refuse the machine: [`Monitor::wait`] tells.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn start(mut self, description: &Description) -> Result<Monitor, LaunchError> {
        let listener = control::bind(&self.control)?;
        let report = anonymous().map_err(LaunchError::File)?;
        let duplicate = report.try_clone().map_err(LaunchError::File)?;
        let mut description = description.clone();
        description.control = Some(Place::Descriptor {
            fd: self.give(listener),
        });
        description.exit_report = Some(Place::Descriptor {
            fd: self.give(duplicate),
        });
        let text = serde_json::to_vec(&description).map_err(LaunchError::Description)?;
        let mut file = anonymous().map_err(LaunchError::File)?;
        file.write_all(&text).map_err(LaunchError::File)?;
        let number = self.give(file);

        let mut command = Command::new(&self.program);
        command
            .args(["--machine", &format!("/dev/fd/{number}")])
            .args(&self.arguments)
            .stdin(Stdio::null());
        if let Some(messages) = self.messages {
            command.stderr(messages);
        }
        hand_over(&mut command, &self.descriptors);
        let child = command.spawn().map_err(|source| LaunchError::Program {
            program: self.program,
            source,
        })?;
        Ok(Monitor {
            child,
            report,
            control: self.control,
        })
    }
}

/// A file without a name.
fn anonymous() -> io::Result<File> {
    Ok(memfd_create("cenote-vmm", MemfdFlags::CLOEXEC)?.into())
}

/// Has the descriptors open in the child, under numbers from [`FIRST`] on.
#[allow(unsafe_code)] // What runs between fork and exec is the caller's responsibility.
fn hand_over(command: &mut Command, descriptors: &[OwnedFd]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(OwnedFd::as_raw_fd).collect();
    let beyond = FIRST + numbers.len() as RawFd;
    let place = move || {
        let mut moved = [-1; 256];
        let moved = moved
            .get_mut(..numbers.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        // First out of the way of their new numbers, then there, where they outlive exec.
        for (from, to) in numbers.iter().zip(&mut *moved) {
            // SAFETY: the number is this process's copy of a descriptor that is open there; fcntl
            // may be called between fork and exec.
            *to = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, beyond) };
            if *to < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for (to, from) in (FIRST..).zip(&*moved) {
            // SAFETY: as above. What had the number is open only in this copy of the process,
            // which is about to become another program.
            if unsafe { libc::dup2(*from, to) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: it allocates nothing, takes no lock and calls only what may be called there.
    unsafe { command.pre_exec(place) };
}

/// A monitor that was started. It goes on when this is dropped.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    report: File,
    control: PathBuf,
}

impl Monitor {
    /// The process's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Connects to the control socket. Requests are answered once the machine is put together.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn client(&self) -> Result<Client, ClientError> {
        Client::connect(&self.control)
    }

    /// Kills the process, as `kill -9` does.
    ///
    /// # Errors
    /// If it has ended and was waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the process is not ours to wait for, or its report cannot be read.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitReport>> {
        match self.child.try_wait()? {
            Some(status) => self.ended(status).map(Some),
            None => Ok(None),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Monitor::try_wait`].
    pub fn wait(&mut self) -> io::Result<ExitReport> {
        let status = self.child.wait()?;
        self.ended(status)
    }

    fn ended(&self, status: ExitStatus) -> io::Result<ExitReport> {
        // Nobody listens there any more.
        let _ = std::fs::remove_file(&self.control);
        let mut text = vec![0; LARGEST_REPORT];
        let length = self.report.read_at(&mut text, 0)?;
        Ok(conclude(status, &text[..length]))
    }
}

/// How a monitor ended, from its process's status and the text of its report, which is empty or
/// cut off where it was killed.
#[must_use]
pub fn conclude(status: ExitStatus, report: &[u8]) -> ExitReport {
    if let Ok(report) = serde_json::from_slice::<ExitReport>(report) {
        return report;
    }
    let (cause, detail) = match (status.signal(), status.code()) {
        (Some(libc::SIGSYS), _) => (
            ExitCause::SandboxViolation,
            "the sandbox stopped it at a system call that it does not need; the host's kernel log \
             says which ('type=1326')"
                .to_owned(),
        ),
        (Some(signal), _) => (ExitCause::Killed, format!("signal {signal}")),
        (None, code) => (
            ExitCause::MonitorError,
            format!(
                "it ended with status {} without a report; its messages say why",
                code.unwrap_or(-1)
            ),
        ),
    };
    ExitReport {
        version: 1,
        cause,
        detail: Some(detail),
        resets: 0,
        ran_milliseconds: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concluded(status: i32, report: &str) -> (ExitCause, Option<String>) {
        let report = conclude(ExitStatus::from_raw(status), report.as_bytes());
        (report.cause, report.detail)
    }

    #[test]
    fn a_report_stands_and_its_lack_is_explained() {
        let report = r#"{"version":1,"cause":"guest-panic","resets":2,"ran_milliseconds":9}"#;
        assert_eq!(concluded(3 << 8, report), (ExitCause::GuestPanic, None));
        // Killed when it had said all.
        assert_eq!(concluded(9, report), (ExitCause::GuestPanic, None));
        for cut in ["", &report[..20]] {
            let (cause, detail) = concluded(9, cut);
            assert_eq!(cause, ExitCause::Killed);
            assert_eq!(detail.as_deref(), Some("signal 9"));
        }
        assert_eq!(concluded(libc::SIGSYS, "").0, ExitCause::SandboxViolation);
        let (cause, detail) = concluded(2 << 8, "");
        assert_eq!(cause, ExitCause::MonitorError);
        assert!(detail.is_some_and(|text| text.contains("status 2")));
    }

    #[test]
    fn descriptors_arrive_under_their_numbers() {
        // More than there are numbers before theirs, in an order that crosses.
        let files: Vec<OwnedFd> = (0..40)
            .map(|index| {
                let mut file = anonymous().unwrap();
                writeln!(file, "{index}").unwrap();
                file.into()
            })
            .rev()
            .collect();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "for n in 3 4 22 42; do cat /dev/fd/$n; done; ls /dev/fd | wc -l",
        ]);
        hand_over(&mut command, &files);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(lines[..4], ["39", "38", "20", "0"], "{text}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"vcpus":1,"memory":4194304,
            "boot":{"real-mode":{"image":{"path":"/nonexistent"}}}}"#;
        let description: Description = serde_json::from_str(text).unwrap();
        let launch = Launch::new(Path::new("/nonexistent/vmm"), &folder.path().join("c"));
        let error = launch.start(&description).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/vmm"), "{error}");
    }
}
