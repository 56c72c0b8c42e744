//! Running a program and measuring it from outside.

use crate::shell::{Context, Failure, Outcome, fail, program, shown};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What one run of a program took.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Seconds from start to end of the process.
    pub(super) seconds: f64,
    /// Seconds of CPU, user and system; in steps of 10 ms.
    pub(super) cpu: f64,
    /// Largest resident size in KiB.
    pub(super) peak_rss: u64,
    /// Standard output.
    pub(super) output: String,
}

/// The stack that programs may have, in bytes. QEMU's io_uring calls itself again for each read
/// that is answered at once, and on a cached chain of 64 images the usual 8 MiB are not enough.
const STACK: &str = "--stack=1073741824:";

/// Runs the command under time(1).
pub(super) fn run(command: &Command) -> Outcome<Measured> {
    let report = std::env::temp_dir().join(format!("cenote-bench-{}", std::process::id()));
    let mut timed = program("prlimit", [STACK, "--"]);
    timed
        .args(["/usr/bin/time", "-f", "%M %U %S", "-o"])
        .arg(&report)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    let begun = Instant::now();
    let result = timed.output().context("time")?;
    let seconds = begun.elapsed().as_secs_f64();
    if !result.status.success() {
        return fail(format_args!(
            "`{}` failed: {}\n{}",
            shown(command),
            result.status,
            String::from_utf8_lossy(&result.stderr)
        ));
    }
    let text = fs::read_to_string(&report).context(report.display())?;
    let _ = fs::remove_file(&report);
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [peak_rss, user, system] = numbers[..] else {
        return fail(format_args!("time(1) printed `{text}`"));
    };
    Ok(Measured {
        seconds,
        cpu: user + system,
        peak_rss: peak_rss as u64,
        output: String::from_utf8_lossy(&result.stdout).into_owned(),
    })
}

/// The number that follows `before` in `text`.
pub(super) fn number_after(text: &str, before: &str) -> Outcome<f64> {
    text.split_once(before)
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| Failure(format!("no number after `{before}` in `{text}`")))
}

/// The middle value; of an even number, the upper of the two.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured() {
        if !std::path::Path::new("/usr/bin/time").exists() {
            panic!("install the package `time`");
        }
        let measured = run(&program("sh", ["-c", "echo out 7"])).expect("it runs");
        assert_eq!(measured.output, "out 7\n");
        assert!(measured.peak_rss > 100, "{measured:?}");
        assert_eq!(
            number_after(&measured.output, "out").expect("a number"),
            7.0
        );
        assert!(run(&program("false", [] as [&str; 0])).is_err());
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
