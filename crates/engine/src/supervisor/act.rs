//! The supervisor at work: requests, ends, restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cenote_model::Document as _;
use cenote_model::domain::{Domain, LifecycleAction};

use cenote_vmm::machine::{Notice, RunState, StopReason};
use serde_json::json;

use super::console::Console;
use super::end::{self, Button, Next, Outcome};
use super::live;
use super::monitor::{End, Monitor, Setting};
use super::protocol::{Order, Reply, Request};
use super::record::Record;
use super::serve::{Message, Shared};
use crate::domains::Cause;
use crate::domains::lifecycle::Lifecycle;
use crate::domains::save;
use crate::domains::state::{DomainState, PausedReason, RunningReason, ShutOffReason};
use crate::domains::translate;
use crate::node::Node;

/// A guest that ran for less than this before it was started again is a quick one.
const QUICK: Duration = Duration::from_secs(1);
/// So many quick ones in a row are started at once; later ones wait.
const MOST_QUICK: u32 = 10;

/// What the document wants after the guest's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policies {
    pub(crate) on_poweroff: LifecycleAction,
    pub(crate) on_reboot: LifecycleAction,
    pub(crate) on_crash: LifecycleAction,
}

/// How the domain stands.
pub(crate) enum Phase {
    /// A monitor runs.
    Up { monitor: Monitor, paused: bool },
    /// The guest is started anew at that time.
    Waiting(Instant, Outcome),
    /// The monitor has ended and the domain is kept.
    Kept,
}

/// What the domain is ending for.
struct Ending {
    reason: ShutOffReason,
    events: Vec<Lifecycle>,
    cause: Cause,
    reply: Sender<Reply>,
}

pub(crate) struct Supervisor<'n> {
    pub(crate) record: Record<'n>,
    pub(crate) order: Order,
    pub(crate) policies: Policies,
    /// What runs, without what holds only while it does.
    pub(crate) document: Domain,
    pub(crate) node: &'n Node,
    pub(crate) run_dir: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) console: Option<Arc<Console>>,
    /// Reads what the present monitor's guest says.
    pub(crate) output: Option<JoinHandle<()>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) sender: Sender<Message>,
    pub(crate) phase: Phase,
    pub(crate) button: Option<Button>,
    pub(crate) quick_restarts: u32,
}

/// Whether the domain goes on.
enum Flow {
    On,
    Over,
}

fn invalid(reason: &str) -> Reply {
    Reply::Invalid {
        reason: reason.to_owned(),
    }
}

/// A reply that tells what failed, if anything.
fn reply_of(result: Result<(), String>) -> Reply {
    match result {
        Ok(()) => Reply::Done,
        Err(reason) => Reply::Failed { reason },
    }
}

impl Supervisor<'_> {
    /// Serves the domain to its end.
    pub(crate) fn run(mut self, messages: Receiver<Message>) {
        let mut ending: Option<Ending> = None;
        loop {
            let message = match &self.phase {
                Phase::Waiting(until, _) => {
                    let left = until.saturating_duration_since(Instant::now());
                    match messages.recv_timeout(left) {
                        Err(RecvTimeoutError::Timeout) => match self.restart() {
                            Flow::On => continue,
                            Flow::Over => break,
                        },
                        other => other.ok(),
                    }
                }
                _ => messages.recv().ok(),
            };
            // Connections hold senders for as long as the process lives.
            let Some(message) = message else { break };
            let flow = match message {
                Message::Request(
                    Request::Destroy {
                        graceful,
                        cause,
                        for_snapshot,
                    },
                    reply,
                ) => {
                    let (reason, event) = match for_snapshot {
                        true => (ShutOffReason::FromSnapshot, Lifecycle::StoppedSnapshot),
                        false => (ShutOffReason::Destroyed, Lifecycle::StoppedDestroyed),
                    };
                    let end = Ending {
                        reason,
                        events: vec![event],
                        cause,
                        reply,
                    };
                    self.destroy(end, graceful, &mut ending)
                }
                Message::Request(
                    Request::Save {
                        path,
                        document,
                        run,
                    },
                    reply,
                ) => self.save(&path, document, run, reply, &mut ending),
                Message::Request(request, reply) => {
                    // Whoever asked may have gone away.
                    let _ = reply.send(self.obey(&request));
                    Flow::On
                }
                Message::Ended(end) => self.ended(&end, ending.take()),
                Message::Noticed(notice) => {
                    self.noticed(&notice);
                    Flow::On
                }
            };
            if matches!(flow, Flow::Over) {
                break;
            }
        }
        // Those whose question is still in it hear that the domain has ended.
        drop(messages);
        if let Some(console) = &self.console {
            console.close();
        }
        self.shared.finish();
    }

    fn obey(&mut self, request: &Request) -> Reply {
        let Phase::Up { monitor, paused } = &mut self.phase else {
            return match (&self.phase, request) {
                (Phase::Waiting(..), _) => invalid("domain is being started again"),
                _ => invalid("domain is not running"),
            };
        };
        let method = match request {
            Request::Suspend if *paused => return Reply::Done,
            Request::Suspend => "pause",
            Request::Resume if !*paused => return invalid("domain is already running"),
            Request::Resume => "resume",
            Request::PowerButton { .. } if *paused => {
                return invalid("domain is not running");
            }
            Request::PowerButton { .. } => "shutdown",
            Request::Reset => "reset",
            Request::Stats => "status",
            Request::Cards => return Reply::Cards(monitor.networks().reports()),
            Request::Screenshot { path } => return reply_of(live::screenshot(monitor, path)),
            Request::Keys { codes, down } => {
                let parameters = json!({"keys": codes, "down": down});
                return reply_of(monitor.request("keys", &parameters, &[]));
            }
            Request::TakeSnapshot(wanted) => return reply_of(self.take_snapshot(wanted)),
            Request::DropSnapshot { name, targets } => {
                return reply_of(self.drop_snapshot(name, targets));
            }
            Request::ChangeMedium {
                document,
                target,
                force,
            } => return reply_of(self.change_medium(document, target, *force)),
            Request::Destroy { .. } | Request::Save { .. } | Request::Console { .. } => {
                return invalid("not asked here");
            }
        };
        let status = match monitor.call(method) {
            Ok(status) => status,
            Err(reason) => return Reply::Failed { reason },
        };
        let pid = monitor.pid().as_raw_nonzero().get().unsigned_abs();
        let recorded = match request {
            Request::Suspend => {
                *paused = true;
                let state = DomainState::Paused(PausedReason::User);
                let events = [Lifecycle::SuspendedPaused];
                self.record.state(state, &events, Cause::Command, None)
            }
            Request::Resume => {
                *paused = false;
                let state = DomainState::Running(RunningReason::Unpaused);
                let events = [Lifecycle::ResumedUnpaused];
                self.record.state(state, &events, Cause::Command, None)
            }
            Request::PowerButton { reboot } => {
                self.button = Some(if *reboot { Button::Reboot } else { Button::Off });
                Ok(())
            }
            Request::Reset => {
                self.button = None;
                self.record.reset(Cause::Command)
            }
            _ => {
                return Reply::Stats {
                    monitor: pid,
                    ran_milliseconds: status.ran_milliseconds,
                    resets: status.resets,
                    disks: status.disks,
                };
            }
        };
        reply_of(recorded.map_err(|error| error.to_string()))
    }

    /// Something happened to the machine that nobody had asked for.
    fn noticed(&mut self, notice: &Notice) {
        match notice {
            Notice::Stopped { .. } | Notice::Lost { .. } => self.look_whether_stopped(),
            Notice::LinkLost { nic } => {
                tracing::warn!(nic, "the network behind a card has ended; its link is down");
            }
        }
    }

    /// Records that the machine stands still, if it does since the host could not read or write.
    fn look_whether_stopped(&mut self) {
        let Phase::Up { monitor, paused } = &mut self.phase else {
            return;
        };
        // It may have gone on meanwhile.
        let stopped = monitor.call("status").is_ok_and(|status| {
            status.state == RunState::Paused && status.reason == Some(StopReason::IoError)
        });
        if *paused || !stopped {
            return;
        }
        *paused = true;
        let state = DomainState::Paused(PausedReason::IoError);
        let events = [Lifecycle::SuspendedIoError];
        if let Err(error) = self.record.state(state, &events, Cause::IoError, None) {
            tracing::warn!(%error, "a state cannot be recorded");
        }
    }

    /// Ends the domain; its end answers.
    fn destroy(&mut self, end: Ending, graceful: bool, ending: &mut Option<Ending>) -> Flow {
        match &mut self.phase {
            Phase::Up { monitor, .. } => {
                // Told twice, it is told to whoever asked first.
                let reply = end.reply.clone();
                if let Some(first) = ending.replace(end) {
                    let _ = first.reply.send(invalid("domain is being destroyed"));
                }
                // It closes its images before it answers, and ends.
                if let Err(reason) = monitor.call("quit")
                    && graceful
                    && !reason.contains("ended")
                {
                    *ending = None;
                    let _ = reply.send(Reply::Failed { reason });
                }
                Flow::On
            }
            Phase::Waiting(..) | Phase::Kept => {
                self.stop(end.reason, &end.events, end.cause, None);
                let _ = end.reply.send(Reply::Done);
                Flow::Over
            }
        }
    }

    fn save(
        &mut self,
        path: &Path,
        document: Option<String>,
        run: Option<bool>,
        reply: Sender<Reply>,
        ending: &mut Option<Ending>,
    ) -> Flow {
        let Phase::Up { monitor, paused } = &mut self.phase else {
            let _ = reply.send(invalid("domain is not running"));
            return Flow::On;
        };
        if self.order.autodestroy {
            let _ = reply.send(invalid("domain is marked for auto destroy"));
            return Flow::On;
        }
        let was_running = !*paused;
        let document = document.unwrap_or_else(|| self.document.to_xml());
        let saved = monitor.call("pause").map(drop).and_then(|()| {
            let trailer = save::Trailer {
                version: save::VERSION,
                document,
                running: run.unwrap_or(was_running),
            };
            save::write(path, &trailer, |file| monitor.save(file))
        });
        if let Err(reason) = saved {
            // The guest goes on as it was.
            if was_running && let Err(reason) = monitor.call("resume") {
                tracing::warn!(reason, "the guest cannot go on after a failed save");
            }
            let _ = reply.send(Reply::Failed { reason });
            return Flow::On;
        }
        let end = Ending {
            reason: ShutOffReason::Saved,
            events: vec![Lifecycle::StoppedSaved],
            cause: Cause::Command,
            reply,
        };
        self.destroy(end, false, ending)
    }

    fn ended(&mut self, end: &End, ending: Option<Ending>) -> Flow {
        self.shared.set_monitor(None);
        if let Some(output) = self.output.take() {
            // What the guest said last is written before its end is recorded.
            let _ = output.join();
        }
        if let Some(ending) = ending {
            self.stop(ending.reason, &ending.events, ending.cause, None);
            let _ = ending.reply.send(Reply::Done);
            return Flow::Over;
        }
        let outcome = end::follow(end, &self.policies, self.button.take());
        match outcome.next {
            Next::Stop(reason) => {
                self.stop(
                    reason,
                    &outcome.events,
                    outcome.cause,
                    outcome.note.as_deref(),
                );
                Flow::Over
            }
            Next::Keep(state) => {
                let note = outcome.note.as_deref();
                let recorded = self
                    .record
                    .state(state, &outcome.events, outcome.cause, note);
                if let Err(error) = recorded {
                    tracing::warn!(%error, "a state cannot be recorded");
                }
                self.phase = Phase::Kept;
                Flow::On
            }
            Next::Restart => {
                let ran = end
                    .report
                    .as_ref()
                    .map_or(0, |report| report.ran_milliseconds);
                let quick = Duration::from_millis(ran) < QUICK;
                self.quick_restarts = if quick {
                    self.quick_restarts.saturating_add(1)
                } else {
                    0
                };
                let wait = if self.quick_restarts > MOST_QUICK {
                    QUICK
                } else {
                    Duration::ZERO
                };
                let at = Instant::now()
                    .checked_add(wait)
                    .unwrap_or_else(Instant::now);
                self.phase = Phase::Waiting(at, outcome);
                Flow::On
            }
        }
    }

    /// Starts the guest anew, on a new monitor and under the same id.
    fn restart(&mut self) -> Flow {
        let Phase::Waiting(_, outcome) = &self.phase else {
            return Flow::On;
        };
        let outcome = outcome.clone();
        // Its disks may have been changed since it was first started.
        let machine =
            translate::machine(&self.document, super::translation(self.node, &self.order));
        let started = machine
            .map_err(|error| error.to_string())
            .and_then(|machine| {
                let setting = Setting {
                    program: &self.order.monitor,
                    run_dir: &self.run_dir,
                    log: &self.log,
                    machine: &machine,
                    network: self.order.network.as_deref(),
                    restore: None,
                    has_console: self.console.is_some(),
                };
                let (monitor, ends) = Monitor::start(
                    &setting,
                    self.sender.clone(),
                    Message::Ended,
                    Message::Noticed,
                )?;
                let output = super::join(self.console.as_ref(), ends)?;
                Ok((monitor, output))
            });
        let (mut monitor, output) = match started {
            Ok(started) => started,
            Err(reason) => {
                let events = [Lifecycle::StoppedFailed];
                let (failed, cause) = (ShutOffReason::Failed, Cause::MonitorError);
                self.stop(failed, &events, cause, Some(&reason));
                return Flow::Over;
            }
        };
        let state = DomainState::Running(RunningReason::Booted);
        if let Err(error) = self.record.rebooted(state, &outcome.events, outcome.cause) {
            tracing::warn!(%error, "a reboot cannot be recorded");
        }
        if let Err(reason) = monitor.call("resume") {
            tracing::warn!(reason, "the guest cannot be let go");
        }
        self.output = output;
        self.shared.set_monitor(Some(&monitor));
        self.phase = Phase::Up {
            monitor,
            paused: false,
        };
        Flow::On
    }

    /// Records the end. Where that fails, the life lock's release says so to the next command.
    fn stop(&self, reason: ShutOffReason, events: &[Lifecycle], cause: Cause, note: Option<&str>) {
        if let Err(error) = self.record.stopped(reason, events, cause, note) {
            tracing::error!(%error, "the domain's end cannot be recorded");
        }
        self.node.forget_memory_of_gone(&self.order.uuid);
    }
}
