//! The table of a benchmark, on the terminal and as JSON.

use super::measure::median;
use crate::shell::{Context, Outcome, target};
use std::fmt::Write as _;
use std::fs;

/// What a case counts in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    /// More is better.
    MebibytesPerSecond,
    /// More is better.
    RequestsPerSecond,
    /// Less is better.
    Seconds,
    /// Less is better.
    CpuMilliseconds,
    /// Less is better.
    Mebibytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::MebibytesPerSecond => "MiB/s",
            Self::RequestsPerSecond => "1/s",
            Self::Seconds => "s",
            Self::CpuMilliseconds => "ms CPU",
            Self::Mebibytes => "MiB",
        }
    }
}

/// One program's runs of one case.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    /// The program and its options, as the table shows them.
    pub(super) name: String,
    /// One value per round.
    pub(super) values: Vec<f64>,
    /// The largest resident size of any round, in KiB.
    pub(super) peak_rss: u64,
}

impl Series {
    /// A series without values.
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Adds a round.
    pub(super) fn add(&mut self, value: f64, peak_rss: u64) {
        self.values.push(value);
        self.peak_rss = self.peak_rss.max(peak_rss);
    }

    fn median(&self) -> f64 {
        median(&self.values)
    }
}

/// One case: ours, the peer as it comes and with other options.
pub(super) struct Row {
    /// What was done.
    pub(super) case: String,
    /// What the values are.
    pub(super) unit: Unit,
    /// Cenote's runs.
    pub(super) ours: Series,
    /// The peer's; the first is the peer with its default options.
    pub(super) peers: Vec<Series>,
    /// How many times as fast as the peer with its best options we mean to be.
    pub(super) goal: f64,
    /// A bound on our own value, whatever the peer does.
    pub(super) at_most: Option<f64>,
}

/// No case may take more memory than this, in KiB.
const MEMORY_LIMIT: u64 = 64 << 10;

impl Row {
    /// How many times as fast as `peer` we are.
    fn ratio(&self, peer: &Series) -> f64 {
        match self.unit {
            Unit::MebibytesPerSecond | Unit::RequestsPerSecond => {
                self.ours.median() / peer.median()
            }
            Unit::Seconds | Unit::CpuMilliseconds | Unit::Mebibytes => {
                peer.median() / self.ours.median()
            }
        }
    }

    /// The peer's fastest options.
    fn best(&self) -> &Series {
        let mut best = &self.peers[0];
        for peer in &self.peers[1..] {
            if self.ratio(peer) < self.ratio(best) {
                best = peer;
            }
        }
        best
    }

    /// What this case was to reach and did not.
    fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let best = self.best();
        let ratio = self.ratio(best);
        // A bound replaces the comparison: both are then far below what anyone waits for.
        match self.at_most {
            Some(bound) if self.ours.median() > bound => missed.push(format!(
                "{}: {} {}, meant to be at most {}",
                self.case,
                figure(self.ours.median()),
                self.unit.name(),
                figure(bound)
            )),
            None if ratio < self.goal => missed.push(format!(
                "{}: {ratio:.2} times as fast as {}, meant to be {:.2}",
                self.case, best.name, self.goal
            )),
            _ => {}
        }
        if self.ours.peak_rss > MEMORY_LIMIT {
            missed.push(format!(
                "{}: {} MiB resident, meant to be at most {}",
                self.case,
                self.ours.peak_rss >> 10,
                MEMORY_LIMIT >> 10
            ));
        }
        missed
    }
}

/// Three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The geometric mean.
fn geometric_mean(ratios: &[f64]) -> f64 {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

/// Prints the table, says what was not reached, writes `target/bench/NAME.json`.
pub(super) fn publish(name: &str, peer: &str, rows: &[Row]) -> Outcome<()> {
    print!("{}", table(peer, rows));
    let missed: Vec<String> = rows.iter().flat_map(Row::missed).collect();
    if missed.is_empty() {
        println!("\nEvery goal was reached.");
    } else {
        println!("\nNot reached:");
        for line in &missed {
            println!("  {line}");
        }
    }
    let folder = target().join("bench");
    fs::create_dir_all(&folder).context(folder.display())?;
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, json(peer, rows, &missed)).context(file.display())?;
    println!("\nwritten to {}", file.display());
    Ok(())
}

fn table(peer: &str, rows: &[Row]) -> String {
    let mut lines = vec![[
        "case".to_string(),
        "unit".into(),
        "QEMU".into(),
        "QEMU best".into(),
        "with".into(),
        "Cenote".into(),
        "ratio".into(),
        "to best".into(),
        "goal".into(),
        "peak MiB".into(),
        "QEMU".into(),
    ]];
    for row in rows {
        let (default, best) = (&row.peers[0], row.best());
        lines.push([
            row.case.clone(),
            row.unit.name().into(),
            figure(default.median()),
            figure(best.median()),
            best.name.clone(),
            figure(row.ours.median()),
            format!("{:.2}", row.ratio(default)),
            format!("{:.2}", row.ratio(best)),
            match row.at_most {
                Some(bound) => format!("<= {}", figure(bound)),
                None => format!("{:.2}", row.goal),
            },
            format!("{:.0}", row.ours.peak_rss as f64 / 1024.0),
            format!("{:.0}", best.peak_rss as f64 / 1024.0),
        ]);
    }
    let mut text = format!("\nbeside {peer}; medians; ratio = how many times as fast\n\n");
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = lines.iter().map(|line| line[column].chars().count()).max();
            let width = width.unwrap_or(0);
            let _ = match column {
                0 | 1 | 4 => write!(text, "{cell:<width$}  "),
                _ => write!(text, "{cell:>width$}  "),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    let transfers: Vec<&Row> = rows
        .iter()
        .filter(|row| matches!(row.unit, Unit::MebibytesPerSecond | Unit::RequestsPerSecond))
        .collect();
    if !transfers.is_empty() {
        let of = |ratio: &dyn Fn(&Row) -> f64| {
            geometric_mean(&transfers.iter().map(|row| ratio(row)).collect::<Vec<_>>())
        };
        let _ = writeln!(
            text,
            "\ngeometric mean of {} transfer cases: {:.2} to QEMU's default, {:.2} to its best",
            transfers.len(),
            of(&|row| row.ratio(&row.peers[0])),
            of(&|row| row.ratio(row.best())),
        );
    }
    text
}

fn json(peer: &str, rows: &[Row], missed: &[String]) -> String {
    let text = |word: &str| format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""));
    let series = |series: &Series| {
        let values: Vec<String> = series.values.iter().map(|v| format!("{v:.6}")).collect();
        format!(
            "{{\"name\":{},\"median\":{:.6},\"values\":[{}],\"peak_rss_kib\":{}}}",
            text(&series.name),
            series.median(),
            values.join(","),
            series.peak_rss
        )
    };
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let peers: Vec<String> = row.peers.iter().map(series).collect();
            format!(
                "{{\"case\":{},\"unit\":{},\"cenote\":{},\"peers\":[{}],\"ratio_default\":{:.4},\
                 \"ratio_best\":{:.4},\"goal\":{},\"at_most\":{}}}",
                text(&row.case),
                text(row.unit.name()),
                series(&row.ours),
                peers.join(","),
                row.ratio(&row.peers[0]),
                row.ratio(row.best()),
                row.goal,
                row.at_most
                    .map_or("null".to_string(), |bound| bound.to_string())
            )
        })
        .collect();
    let missed: Vec<String> = missed.iter().map(|line| text(line)).collect();
    format!(
        "{{\"peer\":{},\"rows\":[\n{}\n],\"missed\":[{}]}}\n",
        text(peer),
        rows.join(",\n"),
        missed.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, ours: f64, peers: &[f64]) -> Row {
        let series = |value: f64| {
            let mut series = Series::new(format!("p{value}"));
            series.add(value, 2048);
            series
        };
        Row {
            case: "c \"q\"".into(),
            unit,
            ours: series(ours),
            peers: peers.iter().map(|value| series(*value)).collect(),
            goal: 1.0,
            at_most: None,
        }
    }

    #[test]
    fn the_best_of_the_peers_options_counts() {
        let rate = row(Unit::MebibytesPerSecond, 150.0, &[100.0, 200.0]);
        assert_eq!(rate.best().name, "p200");
        assert_eq!(rate.missed().len(), 1, "{:?}", rate.missed());
        let time = row(Unit::Seconds, 1.0, &[2.0, 1.5]);
        assert_eq!(time.best().name, "p1.5");
        assert!(time.missed().is_empty());
        let mut bounded = row(Unit::CpuMilliseconds, 9.0, &[5.0]);
        bounded.at_most = Some(10.0);
        assert!(bounded.missed().is_empty());
        bounded.ours.peak_rss = 65 << 10;
        assert_eq!(bounded.missed().len(), 1);
    }

    #[test]
    fn the_json_is_read_by_jq() {
        let rows = [row(Unit::Seconds, 1.0, &[2.0])];
        let text = json("QEMU", &rows, &["m".into()]);
        let file = std::env::temp_dir().join(format!("cenote-json-{}", std::process::id()));
        fs::write(&file, text).expect("written");
        let mut jq = crate::shell::program("jq", ["-r", ".rows[0].case, .rows[0].ratio_best"]);
        let printed = crate::shell::output(jq.arg(&file)).expect("jq (package `jq`) reads it");
        fs::remove_file(&file).expect("removed");
        assert_eq!(printed, "c \"q\"\n2\n");
    }

    #[test]
    fn the_geometric_mean_of_2_and_8_is_4() {
        assert!((geometric_mean(&[2.0, 8.0]) - 4.0).abs() < 1e-9);
    }
}
