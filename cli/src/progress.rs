//! How far a long operation is: a bar for people, JSON lines for programs. Always standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cenote_engine::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;
use crate::globals::ProgressMode;
use crate::interrupt::Interrupt;

/// JSON lines come at most this often.
const INTERVAL: Duration = Duration::from_millis(200);

/// What the bar looks like: name, bar, amount, rate, remaining time.
const TEMPLATE: &str = "{msg} [{bar:24}] {percent:>3}% {binary_bytes}/{binary_total_bytes} \
                        {binary_bytes_per_sec}, {eta} left";
/// The same where the total is unknown.
const OPEN_TEMPLATE: &str = "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}";

/// Watches one operation.
pub struct Watch {
    shown: Shown,
    operation: String,
    interrupt: Interrupt,
    told: AtomicBool,
    quiet: bool,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

struct Lines {
    started: Instant,
    last: Option<Instant>,
}

/// One line of `--progress jsonl`.
#[derive(Serialize)]
struct Line<'a> {
    operation: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    /// Bytes per second since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    /// Seconds left at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
}

impl Watch {
    /// Begins to watch `operation`, a phrase such as `cloning a.qcow2`.
    #[must_use]
    pub fn new(mode: ProgressMode, quiet: bool, operation: String, interrupt: Interrupt) -> Self {
        let terminal = io::stderr().is_terminal();
        let shown = match mode {
            ProgressMode::Auto if terminal && !quiet => Shown::Bar(bar(&operation)),
            ProgressMode::Bar if !quiet => Shown::Bar(bar(&operation)),
            // Lines were asked for by name, so that -q does not take them away.
            ProgressMode::Jsonl => Shown::Lines(Mutex::new(Lines {
                started: Instant::now(),
                last: None,
            })),
            _ => Shown::Nothing,
        };
        Self {
            shown,
            operation,
            interrupt,
            told: AtomicBool::new(false),
            quiet,
        }
    }

    /// Ends the display; the last JSON line has `result`.
    pub fn finish(&self, failure: Option<&Failure>) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines(_) => {
                let mut line = self.line();
                line.result = Some(if failure.is_some() { "failed" } else { "ok" });
                line.error = failure.map(Failure::what);
                line.code = failure.map(|failure| failure.code().as_str());
                emit(&line);
            }
        }
    }

    fn line(&self) -> Line<'_> {
        Line {
            operation: &self.operation,
            done: None,
            total: None,
            rate: None,
            eta: None,
            result: None,
            error: None,
            code: None,
        }
    }

    fn tell_of_cancelling(&self) {
        if self.quiet || self.told.swap(true, Ordering::Relaxed) {
            return;
        }
        let text = format!(
            "Stopping: {} is being undone; press Ctrl-C again to quit at once",
            self.operation
        );
        match &self.shown {
            Shown::Bar(bar) => bar.println(text),
            Shown::Nothing | Shown::Lines(_) => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }
}

impl Progress for Watch {
    fn update(&self, done: u64, total: u64) -> ControlFlow<()> {
        if self.interrupt.is_asked() {
            self.tell_of_cancelling();
            return ControlFlow::Break(());
        }
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                if total != 0 && bar.length() != Some(total) {
                    bar.set_length(total);
                    bar.set_style(style(TEMPLATE));
                }
                bar.set_position(done);
            }
            Shown::Lines(lines) => {
                // A thread that finds another one writing goes on with its work.
                if let Ok(mut lines) = lines.try_lock() {
                    let due = lines.last.is_none_or(|last| last.elapsed() >= INTERVAL);
                    if due || (done == total && total != 0) {
                        lines.last = Some(Instant::now());
                        let mut line = self.line();
                        (line.done, line.total) = (Some(done), Some(total));
                        (line.rate, line.eta) = pace(done, total, lines.started.elapsed());
                        emit(&line);
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Bytes per second so far and the seconds left at that pace.
fn pace(done: u64, total: u64, elapsed: Duration) -> (Option<u64>, Option<u64>) {
    let millis = elapsed.as_millis();
    let rate = (u128::from(done) * 1000).checked_div(millis);
    let rate = rate.and_then(|rate| u64::try_from(rate).ok());
    let left = total.saturating_sub(done);
    let eta = rate.and_then(|rate| left.checked_div(rate));
    (rate, eta.filter(|_| total != 0))
}

fn emit(line: &Line<'_>) {
    if let Ok(text) = serde_json::to_string(line) {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

fn bar(operation: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style(OPEN_TEMPLATE));
    bar.set_message(operation.to_owned());
    bar
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_is_rate_and_remaining_time() {
        let two = Duration::from_secs(2);
        assert_eq!(pace(200, 1000, two), (Some(100), Some(8)));
        assert_eq!(pace(0, 1000, two), (Some(0), None));
        assert_eq!(pace(200, 0, two), (Some(100), None));
        assert_eq!(pace(200, 1000, Duration::ZERO), (None, None));
    }

    #[test]
    fn both_templates_are_valid() {
        for template in [TEMPLATE, OPEN_TEMPLATE] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn a_signal_breaks_the_operation_off() {
        let interrupt = Interrupt::default();
        let watch = Watch::new(ProgressMode::None, true, "x".to_owned(), interrupt.clone());
        assert!(watch.update(1, 2).is_continue());
        interrupt.flag().store(true, Ordering::Relaxed);
        assert!(watch.update(1, 2).is_break());
    }
}
