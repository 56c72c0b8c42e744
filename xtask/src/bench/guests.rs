//! Measurements of monitors in the lab: a Python script there runs the guests and prints values,
//! here they become the table. Nothing the lab measures says how fast anything is on a real
//! machine: only the ratios count.

use super::report::{Row, Series, Unit, publish};
use super::{Wanted, measure};
use crate::lab;
use crate::setup::{self, Group};
use crate::shell::{Context, Outcome, fail, target};
use std::fs;
use std::time::Duration;

const OURS: &str = "cenote-vmm";

/// A case of a script: its name there, its unit, whom it is measured against, how many times as
/// good as the peer it is to be, and a bound on our own value in place of that.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) peers: &'static [&'static str],
    pub(super) goal: f64,
    pub(super) at_most: Option<f64>,
}

/// A value that a script printed.
#[derive(Debug, PartialEq)]
struct Value {
    case: String,
    program: String,
    value: f64,
    rss: u64,
}

/// Runs `NAME.py` in the lab and publishes what it measures for `cases` beside `peer`.
pub(super) fn run(wanted: &Wanted, name: &str, peer: &str, cases: &[Case]) -> Outcome<()> {
    setup::ensure_quietly(&[Group::Lab, Group::Bench])?;
    let only = wanted.only.clone().unwrap_or_default();
    let script = format!(
        "set -o pipefail; python3 xtask/src/bench/{name}.py {} {} | tee /lab/out/values.jsonl",
        wanted.rounds,
        crate::shell::quoted(&only)
    );
    let run = lab::Run {
        command: vec!["bash".into(), "-c".into(), script],
        programs: lab::Programs {
            packages: vec!["cenote-vmm".into()],
            release: true,
            ..lab::Programs::default()
        },
        timeout: Duration::from_secs(3600),
        // With one processor all that a program does counts, on whichever thread it does it; and an
        // emulated host with two now and then dies of itself.
        cpus: 1,
        ..lab::Run::default()
    };
    let status = run.run()?;
    if status != 0 {
        return fail(format_args!("the lab ended with status {status}"));
    }
    let file = target().join("lab/last/out/values.jsonl");
    let text = fs::read_to_string(&file).context(file.display())?;
    let values = text.lines().map(value).collect::<Outcome<Vec<_>>>()?;
    let rows: Vec<Row> = cases.iter().filter_map(|case| row(case, &values)).collect();
    if rows.is_empty() {
        return fail(format_args!("no case has `{only}` in its name"));
    }
    publish(name, peer, &rows)
}

/// One line of a script's output.
fn value(line: &str) -> Outcome<Value> {
    let text = |name: &str| {
        let rest = line.split_once(&format!("\"{name}\": \""))?.1;
        Some(rest.split_once('"')?.0.to_string())
    };
    let number = |name| {
        let spaced = line.replace([',', '}'], " ");
        measure::number_after(&spaced, &format!("\"{name}\":"))
    };
    let (Some(case), Some(program)) = (text("case"), text("program")) else {
        return fail(format_args!("`{line}` is no value"));
    };
    Ok(Value {
        case,
        program,
        value: number("value")?,
        rss: number("rss")? as u64,
    })
}

fn row(case: &Case, values: &[Value]) -> Option<Row> {
    let series = |program: &str| {
        let mut series = Series::new(program);
        for value in values {
            if value.case == case.name && value.program == program {
                series.add(value.value, value.rss);
            }
        }
        (!series.values.is_empty()).then_some(series)
    };
    Some(Row {
        case: case.name.to_string(),
        unit: case.unit,
        ours: series(OURS)?,
        peers: case
            .peers
            .iter()
            .map(|peer| series(peer))
            .collect::<Option<_>>()?,
        goal: case.goal,
        at_most: case.at_most,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_rows() {
        let lines = [
            r#"{"case": "start to init", "program": "cenote-vmm", "value": 1.500000, "rss": 3000}"#,
            r#"{"case": "start to init", "program": "QEMU q35", "value": 4.500000, "rss": 0}"#,
        ];
        let values: Vec<Value> = lines
            .iter()
            .map(|line| value(line).expect("it is one"))
            .collect();
        let first = Value {
            case: "start to init".into(),
            program: "cenote-vmm".into(),
            value: 1.5,
            rss: 3000,
        };
        assert_eq!(values[0], first);
        let case = |peers| Case {
            name: "start to init",
            unit: Unit::Seconds,
            peers,
            goal: 2.0,
            at_most: None,
        };
        let row = row(&case(&["QEMU q35"]), &values).expect("both were measured");
        assert_eq!(row.ours.values, [1.5]);
        assert_eq!(row.peers[0].values, [4.5]);
        assert!(
            super::row(&case(&["QEMU microvm"]), &values).is_none(),
            "microvm was not"
        );
        assert!(value("nonsense").is_err());
    }
}
