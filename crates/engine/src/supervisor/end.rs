//! What follows the end of a monitor: a pure function of how it ended, what had been asked for
//! and what the document wants.

use std::os::unix::process::ExitStatusExt as _;

use cenote_model::domain::LifecycleAction;
use cenote_vmm::machine::ExitCause;

use super::act::Policies;
use super::monitor::End;
use crate::domains::Cause;
use crate::domains::lifecycle::Lifecycle;
use crate::domains::state::{CrashedReason, DomainState, PausedReason, ShutOffReason};

/// What a system call that the sandbox forbids ends in.
const SIGSYS: i32 = rustix::process::Signal::SYS.as_raw();

/// The power button that somebody pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Button {
    /// The guest is to switch itself off.
    Off,
    /// It is to be started again when it has.
    Reboot,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) next: Next,
    pub(crate) events: Vec<Lifecycle>,
    pub(crate) cause: Cause,
    /// What a person needs to know beyond the cause.
    pub(crate) note: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The domain has ended.
    Stop(ShutOffReason),
    /// The guest is started anew, under the same id.
    Restart,
    /// The domain stays, without a machine.
    Keep(DomainState),
}

/// Decides what follows the end of a monitor that nobody had told to end.
pub(crate) fn follow(end: &End, policies: &Policies, button: Option<Button>) -> Outcome {
    let report = end.report.as_ref();
    let note = report.and_then(|report| report.detail.clone());
    let outcome = |next, events: &[Lifecycle], cause| Outcome {
        next,
        events: events.to_vec(),
        cause,
        note: note.clone(),
    };
    let off = |by_guest| {
        [
            Lifecycle::ShutdownFinished { by_guest },
            Lifecycle::StoppedShutdown,
        ]
    };
    match report.map(|report| report.cause) {
        Some(ExitCause::GuestPowerOff) => {
            let cause = match button {
                Some(Button::Reboot) => return outcome(Next::Restart, &[], Cause::Command),
                Some(Button::Off) => Cause::PowerButton,
                None => Cause::GuestPowerOff,
            };
            match policies.on_poweroff {
                LifecycleAction::Restart => outcome(Next::Restart, &[], cause),
                LifecycleAction::Preserve => {
                    let kept = DomainState::Paused(PausedReason::ShuttingDown);
                    let events = [Lifecycle::ShutdownFinished { by_guest: true }];
                    outcome(Next::Keep(kept), &events, cause)
                }
                _ => {
                    let reason = ShutOffReason::Shutdown;
                    outcome(Next::Stop(reason), &off(button.is_none()), cause)
                }
            }
        }
        Some(ExitCause::GuestReset) => {
            let cause = Cause::GuestReset;
            match policies.on_reboot {
                LifecycleAction::Restart => outcome(Next::Restart, &[], cause),
                LifecycleAction::Preserve => {
                    let kept = DomainState::Paused(PausedReason::ShuttingDown);
                    let events = [Lifecycle::ShutdownFinished { by_guest: true }];
                    outcome(Next::Keep(kept), &events, cause)
                }
                _ => outcome(Next::Stop(ShutOffReason::Shutdown), &off(true), cause),
            }
        }
        Some(ExitCause::GuestPanic) => crashed(policies, Cause::GuestPanic, outcome),
        Some(ExitCause::TripleFault) => crashed(policies, Cause::TripleFault, outcome),
        // Somebody went to the monitor itself.
        Some(ExitCause::Quit) => outcome(
            Next::Stop(ShutOffReason::Destroyed),
            &[Lifecycle::StoppedDestroyed],
            Cause::Command,
        ),
        Some(ExitCause::Saved) => outcome(
            Next::Stop(ShutOffReason::Saved),
            &[Lifecycle::StoppedSaved],
            Cause::Command,
        ),
        Some(ExitCause::MonitorError | ExitCause::SandboxViolation | ExitCause::Killed) => outcome(
            Next::Stop(ShutOffReason::Crashed),
            &[Lifecycle::StoppedFailed],
            Cause::MonitorError,
        ),
        None => Outcome {
            note: Some(words_of(end)),
            ..outcome(
                Next::Stop(ShutOffReason::Crashed),
                &[Lifecycle::StoppedFailed],
                Cause::MonitorDied,
            )
        },
    }
}

fn crashed(
    policies: &Policies,
    cause: Cause,
    outcome: impl Fn(Next, &[Lifecycle], Cause) -> Outcome,
) -> Outcome {
    let panicked = Lifecycle::CrashedPanicked;
    match policies.on_crash {
        LifecycleAction::Restart => outcome(Next::Restart, &[panicked], cause),
        LifecycleAction::Preserve => {
            let kept = DomainState::Crashed(CrashedReason::Panicked);
            outcome(Next::Keep(kept), &[panicked], cause)
        }
        _ => {
            let events = [panicked, Lifecycle::StoppedCrashed];
            outcome(Next::Stop(ShutOffReason::Crashed), &events, cause)
        }
    }
}

/// How a monitor that left no report ended.
fn words_of(end: &End) -> String {
    match &end.status {
        Ok(status) => match status.signal() {
            Some(SIGSYS) => "the monitor was stopped by its own sandbox".to_owned(),
            Some(signal) => format!("the monitor was killed by signal {signal}"),
            None => format!("the monitor ended with {status} and left no report"),
        },
        Err(error) => format!("the monitor ended: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cenote_vmm::machine::ExitReport;
    use std::process::ExitStatus;

    fn ended(cause: Option<ExitCause>) -> End {
        End {
            status: Ok(ExitStatus::from_raw(if cause.is_some() { 0 } else { 9 })),
            report: cause.map(|cause| ExitReport {
                version: 1,
                cause,
                detail: None,
                resets: 0,
                ran_milliseconds: 1,
            }),
        }
    }

    fn all(action: LifecycleAction) -> Policies {
        Policies {
            on_poweroff: action,
            on_reboot: action,
            on_crash: action,
        }
    }

    /// Rows 114 to 116 and 56: the action, and the cause that libvirt does not tell.
    #[test]
    fn every_end_under_every_policy() {
        use ExitCause::{GuestPanic, GuestPowerOff, GuestReset, TripleFault};
        use LifecycleAction::{Destroy, Preserve, Restart};
        let stop = Next::Stop;
        let kept = Next::Keep(DomainState::Paused(PausedReason::ShuttingDown));
        let crash = Next::Keep(DomainState::Crashed(CrashedReason::Panicked));
        let table = [
            (
                GuestPowerOff,
                Destroy,
                stop(ShutOffReason::Shutdown),
                Cause::GuestPowerOff,
            ),
            (GuestPowerOff, Restart, Next::Restart, Cause::GuestPowerOff),
            (GuestPowerOff, Preserve, kept, Cause::GuestPowerOff),
            (
                GuestReset,
                Destroy,
                stop(ShutOffReason::Shutdown),
                Cause::GuestReset,
            ),
            (GuestReset, Restart, Next::Restart, Cause::GuestReset),
            (GuestReset, Preserve, kept, Cause::GuestReset),
            (
                GuestPanic,
                Destroy,
                stop(ShutOffReason::Crashed),
                Cause::GuestPanic,
            ),
            (GuestPanic, Restart, Next::Restart, Cause::GuestPanic),
            (GuestPanic, Preserve, crash, Cause::GuestPanic),
            (
                TripleFault,
                Destroy,
                stop(ShutOffReason::Crashed),
                Cause::TripleFault,
            ),
            (TripleFault, Preserve, crash, Cause::TripleFault),
        ];
        for (cause, action, next, why) in table {
            let outcome = follow(&ended(Some(cause)), &all(action), None);
            assert_eq!(
                (outcome.next, outcome.cause),
                (next, why),
                "{cause:?} {action:?}"
            );
        }
    }

    #[test]
    fn a_pushed_button_is_the_cause() {
        let policies = all(LifecycleAction::Destroy);
        let end = ended(Some(ExitCause::GuestPowerOff));
        let off = follow(&end, &policies, Some(Button::Off));
        assert_eq!(off.cause, Cause::PowerButton);
        assert_eq!(
            off.events[0],
            Lifecycle::ShutdownFinished { by_guest: false }
        );
        let reboot = follow(&end, &policies, Some(Button::Reboot));
        assert_eq!((reboot.next, reboot.cause), (Next::Restart, Cause::Command));
    }

    #[test]
    fn a_killed_monitor_is_a_crash_whatever_the_policy() {
        let outcome = follow(&ended(None), &all(LifecycleAction::Restart), None);
        assert_eq!(outcome.next, Next::Stop(ShutOffReason::Crashed));
        assert_eq!(outcome.cause, Cause::MonitorDied);
        assert!(outcome.note.unwrap().contains("signal 9"));
    }
}
