//! What is known of phase one: from what its guest wrote, and from how it ended.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use cenote_provision::answer::Hooks;
use cenote_provision::install::{Decision, End, Evidence, Policy, Progress, Reason, Step, decide};
use serde::{Deserialize, Serialize};

use super::files::at;
use super::protocol::Install;
use crate::domains::Cause;
use crate::error::Result;
use crate::node::Node;

/// Longest text of the guest that a message repeats, in characters.
const LONGEST: usize = 200;

/// What was decided of phase one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// It reported success.
    Confirmed,
    /// It reset, as one does that is done, and its answer file reports nothing.
    Unconfirmed,
    /// It failed, and why.
    Failed(String),
    /// It was not done in time, and what it was last at.
    TimedOut(String),
    /// Somebody stopped it.
    Cancelled,
}

impl Verdict {
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Verdict::Confirmed | Verdict::Unconfirmed)
    }
}

/// A file that the guest writes to, read as it grows.
#[derive(Debug)]
struct Stream {
    path: PathBuf,
    read: u64,
    progress: Progress,
}

/// All that the guest wrote.
#[derive(Debug)]
pub(super) struct Listener {
    streams: Vec<Stream>,
    success: bool,
    failure: bool,
    kernels: u32,
    asked: Option<String>,
    trouble: Option<String>,
}

impl Listener {
    pub(super) fn new(install: &Install) -> Self {
        let token = install.token.as_deref();
        let hooks = token.and_then(|token| Hooks::new(token).ok());
        let stream = |path: PathBuf| Stream {
            path,
            read: 0,
            progress: Progress::new(hooks.clone()),
        };
        let marker = install.folder.join(super::prepare::MARKER);
        let files = [
            install.serial_log.clone(),
            install.installer_log.clone(),
            marker,
        ];
        Listener {
            streams: files.into_iter().map(stream).collect(),
            success: false,
            failure: false,
            kernels: 0,
            asked: None,
            trouble: None,
        }
    }

    /// Reads what is new. Answers what it means, and whether there was anything at all.
    pub(super) fn listen(&mut self) -> Result<(Vec<Step>, bool)> {
        let mut steps = Vec::new();
        let mut heard = false;
        for (index, stream) in self.streams.iter_mut().enumerate() {
            let mut new = Vec::new();
            heard |= stream.listen(&mut new)?;
            // A kernel's start is on the serial line, and may be told again elsewhere.
            new.retain(|step| index == 0 || *step != Step::KernelStarted);
            steps.append(&mut new);
        }
        for step in &steps {
            match step {
                Step::Report { success: true } => self.success = true,
                Step::Report { success: false } => self.failure = true,
                Step::KernelStarted => self.kernels = self.kernels.saturating_add(1),
                Step::Asked(text) => self.asked = Some(text.clone()),
                Step::Trouble(text) => self.trouble = Some(text.clone()),
                Step::At { .. } | Step::Count { .. } => {}
            }
        }
        Ok((steps, heard))
    }

    /// What follows from it and from how phase one ended, if it did; `None`: it goes on.
    pub(super) fn decide(&self, install: &Install, end: Option<End>) -> Option<Verdict> {
        let policy = Policy {
            reports: install.token.is_some(),
            import: false,
        };
        let end = end.or_else(|| self.asked.clone().map(End::Asked));
        let evidence = Evidence {
            success: self.success,
            failure: self.failure,
            fetched: None,
            end,
            started_again: self.kernels > 1,
        };
        Some(match decide(policy, &evidence) {
            Decision::Wait => return None,
            Decision::Success => Verdict::Confirmed,
            Decision::Unconfirmed => Verdict::Unconfirmed,
            Decision::Failed(reason) => Verdict::Failed(self.told(&reason_text(&reason))),
            Decision::TimedOut(end) => {
                Verdict::TimedOut(self.told(&end_text(&end, install.silence)))
            }
            Decision::Cancelled => Verdict::Cancelled,
        })
    }

    /// A reason with what the guest said to it.
    fn told(&self, reason: &str) -> String {
        let said = self.trouble.clone().or_else(|| {
            let serial = self.streams.first()?;
            last_line(&serial.path)
        });
        match said {
            Some(said) => format!("{reason}; it last said '{said}'"),
            None => format!("{reason}; it said nothing"),
        }
    }
}

impl Stream {
    fn listen(&mut self, steps: &mut Vec<Step>) -> Result<bool> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            file => file.map_err(at("open", &self.path))?,
        };
        let fail = || at("read", &self.path);
        file.seek(SeekFrom::Start(self.read)).map_err(fail())?;
        let mut buffer = vec![0; 1 << 16];
        let mut heard = false;
        loop {
            let count = file.read(&mut buffer).map_err(fail())?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Ok(heard);
            };
            heard = true;
            self.read = self.read.saturating_add(count as u64);
            steps.extend(self.progress.feed(bytes));
        }
    }
}

fn reason_text(reason: &Reason) -> String {
    match reason {
        Reason::Reported => "the answer file reported a failure".to_owned(),
        Reason::NoReport(End::Reset) => "the guest reset without a report of success".to_owned(),
        Reason::NoReport(_) => "the guest powered off without a report of success".to_owned(),
        Reason::NotFetched => "the installer never asked for its answer file".to_owned(),
        Reason::Crashed(End::Crash) => "the guest crashed".to_owned(),
        Reason::Crashed(_) => "the monitor died under the guest".to_owned(),
        Reason::Asked(_) => "the installer waits for an answer".to_owned(),
        Reason::Loop => "the installer started a second time".to_owned(),
    }
}

fn end_text(end: &End, silence: u64) -> String {
    match end {
        End::Silence => format!("the guest printed nothing for {silence} s"),
        _ => "it was not done in time".to_owned(),
    }
}

/// The last line of a log that has anything in it.
fn last_line(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(4096)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().rev();
    let clean = |line: &str| -> String {
        let shown = line.chars().filter(|c| !c.is_control());
        shown.take(LONGEST).collect::<String>().trim().to_owned()
    };
    lines.map(clean).find(|line| !line.is_empty())
}

/// How the first run of a domain after an event went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// It was not started.
    None,
    /// It runs.
    Under,
    /// It has ended.
    Over(End),
}

impl Node {
    /// How the run of the domain that began after event `since` went.
    pub(super) fn first_run(&self, uuid: &str, since: i64) -> Result<Run> {
        // Looked at first: this records the end of a domain whose supervisor died.
        let _ = self.domain(uuid);
        let (mut run, mut after) = (Run::None, since);
        loop {
            let events = self.events(after)?;
            let Some(last) = events.last() else {
                return Ok(run);
            };
            after = last.sequence;
            for event in events.iter().filter(|event| event.kind == "lifecycle") {
                let text = |key: &str| event.detail.get(key).and_then(|value| value.as_str());
                if text("uuid") != Some(uuid) {
                    continue;
                }
                match text("event") {
                    Some("Started") => run = Run::Under,
                    Some("Stopped") if run == Run::Under => {
                        let cause = event.detail.get("cause").cloned().unwrap_or_default();
                        return Ok(Run::Over(end_of(serde_json::from_value(cause).ok())));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn end_of(cause: Option<Cause>) -> End {
    match cause {
        Some(Cause::GuestReset) => End::Reset,
        Some(Cause::GuestPowerOff | Cause::PowerButton) => End::PowerOff,
        Some(Cause::GuestPanic | Cause::TripleFault) => End::Crash,
        Some(Cause::Command | Cause::ConnectionClosed) => End::Stopped,
        _ => End::MonitorLost,
    }
}
