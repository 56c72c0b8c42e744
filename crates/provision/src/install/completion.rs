//! Whether an install is done.
//!
//! A guest that stops is no proof: installers reset after a crash, and power off when someone
//! gives up. What the answer file's last line reports is proof, and how the guest stopped says
//! the rest.

/// How phase one ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest reset.
    Reset,
    /// The guest powered off.
    PowerOff,
    /// The guest crashed.
    Crash,
    /// The monitor died.
    MonitorLost,
    /// The user stopped it.
    Stopped,
    /// The time for the whole install is up.
    TimeUp,
    /// Nothing was heard for too long.
    Silence,
    /// The installer asks a question; its text.
    Asked(String),
}

/// What is known when a decision is due.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The guest reported success.
    pub success: bool,
    /// The guest reported failure.
    pub failure: bool,
    /// The answer file was asked for, where it is fetched from our server.
    pub fetched: Option<bool>,
    /// How phase one ended; none while it runs.
    pub end: Option<End>,
    /// The installer was seen to start once more after it had reported: a loop.
    pub started_again: bool,
}

/// What is asked of an install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The answer file reports its end: a stop without a report is a failure.
    pub reports: bool,
    /// The system is installed already (`--import`): a report of success is the end, and the
    /// guest goes on running.
    pub import: bool,
}

/// Why an install failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The guest reported it.
    Reported,
    /// The guest stopped without a report.
    NoReport(End),
    /// The answer file was never asked for.
    NotFetched,
    /// The guest crashed, or its monitor.
    Crashed(End),
    /// It waits for an answer.
    Asked(String),
    /// The installer started once more.
    Loop,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Phase one goes on.
    Wait,
    /// Phase two.
    Success,
    /// Phase two; the guest reset as one does that is done, and nothing said so.
    Unconfirmed,
    /// The end. The disk and what was written are evidence.
    Failed(Reason),
    /// The end, for want of time.
    TimedOut(End),
    /// The end, as the user wished.
    Cancelled,
}

impl Decision {
    /// Status of the command.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Wait => None,
            Self::Success | Self::Unconfirmed => Some(0),
            Self::Failed(_) => Some(8),
            Self::TimedOut(_) => Some(7),
            Self::Cancelled => Some(9),
        }
    }

    /// Whether the domain goes on to its second phase.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Success | Self::Unconfirmed)
    }
}

/// Decides.
pub fn decide(policy: Policy, evidence: &Evidence) -> Decision {
    if evidence.failure {
        return Decision::Failed(Reason::Reported);
    }
    if evidence.started_again {
        return Decision::Failed(Reason::Loop);
    }
    match &evidence.end {
        None if policy.import && evidence.success => Decision::Success,
        None => Decision::Wait,
        Some(End::Stopped) => Decision::Cancelled,
        Some(end @ (End::Reset | End::PowerOff)) => stopped(policy, evidence, end),
        // The report was the last thing to be done; how the guest then fell does not matter.
        Some(End::Crash | End::Silence | End::TimeUp) if evidence.success => Decision::Success,
        Some(end @ (End::Crash | End::MonitorLost)) => {
            Decision::Failed(Reason::Crashed(end.clone()))
        }
        Some(End::Asked(text)) => Decision::Failed(Reason::Asked(text.clone())),
        Some(End::TimeUp | End::Silence) if evidence.fetched == Some(false) => {
            Decision::Failed(Reason::NotFetched)
        }
        Some(end @ (End::TimeUp | End::Silence)) => Decision::TimedOut(end.clone()),
    }
}

/// The guest reset or powered off.
fn stopped(policy: Policy, evidence: &Evidence, end: &End) -> Decision {
    if evidence.success {
        return Decision::Success;
    }
    if evidence.fetched == Some(false) {
        return Decision::Failed(Reason::NotFetched);
    }
    if policy.reports {
        return Decision::Failed(Reason::NoReport(end.clone()));
    }
    match end {
        End::Reset => Decision::Unconfirmed,
        // Who gives up powers off.
        _ => Decision::Failed(Reason::NoReport(end.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORTS: Policy = Policy {
        reports: true,
        import: false,
    };
    const SILENT: Policy = Policy {
        reports: false,
        import: false,
    };

    fn ended(end: End, success: bool) -> Evidence {
        Evidence {
            success,
            end: Some(end),
            ..Evidence::default()
        }
    }

    #[test]
    fn a_report_and_a_stop_are_success() {
        for end in [End::Reset, End::PowerOff] {
            assert_eq!(
                decide(REPORTS, &ended(end.clone(), true)),
                Decision::Success
            );
            assert_eq!(decide(SILENT, &ended(end, true)), Decision::Success);
        }
        assert_eq!(
            decide(REPORTS, &ended(End::Silence, true)),
            Decision::Success
        );
    }

    #[test]
    fn a_stop_without_a_report_is_none() {
        for end in [End::Reset, End::PowerOff] {
            let decision = decide(REPORTS, &ended(end.clone(), false));
            assert_eq!(decision, Decision::Failed(Reason::NoReport(end)));
            assert_eq!(decision.exit_code(), Some(8));
        }
        assert_eq!(
            decide(SILENT, &ended(End::Reset, false)),
            Decision::Unconfirmed
        );
        let off = decide(SILENT, &ended(End::PowerOff, false));
        assert_eq!(off, Decision::Failed(Reason::NoReport(End::PowerOff)));
    }

    #[test]
    fn every_other_end_fails_with_its_status() {
        let status = |end| decide(REPORTS, &ended(end, false)).exit_code();
        assert_eq!(status(End::Crash), Some(8));
        assert_eq!(status(End::MonitorLost), Some(8));
        assert_eq!(status(End::Asked("?".into())), Some(8));
        assert_eq!(status(End::TimeUp), Some(7));
        assert_eq!(status(End::Silence), Some(7));
        assert_eq!(status(End::Stopped), Some(9));
        // A monitor that died took the guest's disk cache with it.
        assert_eq!(
            decide(REPORTS, &ended(End::MonitorLost, true)).exit_code(),
            Some(8)
        );
    }

    #[test]
    fn failure_loops_and_unasked_files_go_before_the_end() {
        let failed = Evidence {
            failure: true,
            ..ended(End::Reset, true)
        };
        assert_eq!(decide(REPORTS, &failed), Decision::Failed(Reason::Reported));
        let again = Evidence {
            started_again: true,
            ..Evidence::default()
        };
        assert_eq!(decide(REPORTS, &again), Decision::Failed(Reason::Loop));
        for end in [End::Silence, End::TimeUp, End::Reset] {
            let unasked = Evidence {
                fetched: Some(false),
                ..ended(end, false)
            };
            assert_eq!(
                decide(REPORTS, &unasked),
                Decision::Failed(Reason::NotFetched)
            );
        }
    }

    #[test]
    fn an_imported_guest_goes_on_running() {
        let import = Policy {
            reports: true,
            import: true,
        };
        let reported = Evidence {
            success: true,
            ..Evidence::default()
        };
        assert_eq!(decide(import, &reported), Decision::Success);
        assert_eq!(decide(REPORTS, &reported), Decision::Wait);
        assert_eq!(decide(import, &Evidence::default()), Decision::Wait);
    }
}
