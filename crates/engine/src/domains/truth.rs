//! Finding domains whose supervisor died, and burying them.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::life::StartOptions;
use super::lifecycle::{self, Cause, Lifecycle};
use super::lock;
use super::state::ShutOffReason;
use super::table::{self, DomainRow};
use crate::error::Result;
use crate::node::Node;

/// How long a monitor may take to be gone once it was killed.
const DEATH: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

/// Name of the file in a run directory that says who the monitor is: its process and the time it
/// was started at, since numbers of processes are used again.
pub(crate) const MONITOR_FILE: &str = "monitor.pid";

impl Node {
    /// Writes the truth about a domain that is said to run and does not. Answers whether it did.
    pub(crate) fn bury(&self, row: &DomainRow, cause: Cause) -> Result<bool> {
        let path = lock::life_path(&self.domains_dir(), &row.uuid);
        if !row.is_active() || lock::is_held(&path)? {
            return Ok(false);
        }
        if !self.is_read_only() {
            // The kernel kills it with its supervisor; the next start must not meet its locks.
            end_monitor(&self.run_dir(&row.uuid, &row.name));
        }
        let buried = self.state().write("record a domain's end", |transaction| {
            // Another process may have been faster, or have started it again.
            let Some(now) = table::by_row(transaction, row.id)? else {
                return Ok(false);
            };
            if now.run != row.run {
                return Ok(false);
            }
            table::set_stopped(transaction, row.id, ShutOffReason::Crashed)?;
            let event = Lifecycle::StoppedFailed;
            lifecycle::append(transaction, row.subject(), event, cause, None)?;
            Ok(true)
        })?;
        if buried {
            tracing::warn!(domain = row.name, ?cause, "the domain's supervisor is gone");
            self.forget_memory_of_gone(&row.uuid);
            self.wake();
        }
        Ok(buried)
    }

    /// After the host booted nothing runs any more; domains marked for it are started.
    pub(crate) fn note_boot_of_domains(&self) -> Result<()> {
        for row in table::all(self.state())? {
            self.bury(&row, Cause::HostReboot)?;
        }
        for row in table::all(self.state())?.iter().filter(|row| row.autostart) {
            let started = self.start(&row.uuid, StartOptions::default(), Cause::Autostart);
            if let Err(error) = started {
                tracing::warn!(domain = row.name, %error, "cannot autostart a domain");
            }
        }
        Ok(())
    }
}

/// Kills the monitor that a dead supervisor may have left, and waits until it is gone.
pub(crate) fn end_monitor(run_dir: &Path) {
    let Ok(text) = std::fs::read_to_string(run_dir.join(MONITOR_FILE)) else {
        return;
    };
    let mut words = text.split_whitespace();
    let (Some(pid), Some(started)) = (words.next(), words.next()) else {
        return;
    };
    let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    // Looked at with the descriptor open: from here on the number cannot come to mean another.
    if start_time(pid).as_deref() != Some(started) {
        return;
    }
    let _ = pidfd_send_signal(&process, Signal::KILL);
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    if !matches!(poll(&mut fds, Some(&DEATH)), Ok(1)) {
        tracing::warn!(
            pid = pid.as_raw_nonzero(),
            "a killed monitor does not go away"
        );
    }
}

/// When a process was started, in the kernel's ticks since boot (`proc_pid_stat(5)`, field 22).
pub(crate) fn start_time(pid: Pid) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in brackets may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// How long the life lock of a domain that has just ended may still be held.
pub(crate) const LAST_BREATH: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_have_a_start_time() {
        let own = start_time(rustix::process::getpid()).unwrap();
        assert!(own.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn a_process_of_another_time_is_let_live() {
        let dir = tempfile::tempdir().unwrap();
        let own = rustix::process::getpid().as_raw_nonzero();
        std::fs::write(dir.path().join(MONITOR_FILE), format!("{own} 1")).unwrap();
        end_monitor(dir.path());
    }

    #[test]
    fn a_left_monitor_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let text = format!("{} {}", child.id(), start_time(pid).unwrap());
        std::fs::write(dir.path().join(MONITOR_FILE), text).unwrap();
        end_monitor(dir.path());
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
