//! Answer files: kickstart, preseed, autoinstall and cloud-init's user data.
//!
//! [`lint`] finds what an installer would stumble over, and above all what would make it stop
//! and ask, which in an unattended install is to hang. Each finding has a line, a column and a
//! remedy; no finding repeats a password. [`judge`] asks the installers' own programs where
//! the machine has them. [`template`] writes all four kinds from parameters, and
//! [`instrument`] adds to any of them the lines that report success or failure.

mod autoinstall;
mod cloudinit;
mod hooks;
pub mod judge;
mod kickstart;
mod preseed;
pub mod secret;
pub mod template;
mod yaml;

use std::fmt;

pub use hooks::{Hooks, InstrumentError, MARKER_PORT, instrument};

/// Longest answer file that is looked at, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// What sort of answer file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anaconda's.
    Kickstart,
    /// debian-installer's.
    Preseed,
    /// Subiquity's.
    Autoinstall,
    /// cloud-init's user data, for images that are installed already.
    CloudInit,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Kickstart,
        Self::Preseed,
        Self::Autoinstall,
        Self::CloudInit,
    ];

    /// The word that options and messages use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kickstart => "kickstart",
            Self::Preseed => "preseed",
            Self::Autoinstall => "autoinstall",
            Self::CloudInit => "cloud-init",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The install would go on, perhaps not as was meant.
    Warning,
    /// The install would fail, or wait for an answer.
    Error,
}

/// Something about an answer file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// Column in characters, from 1; 0 with line 0.
    pub column: usize,
    /// What is wrong, and what would come of it.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}; {}", self.message, self.remedy)
    }
}

/// What is known of the install that the file is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expect {
    /// Names of the disks in the guest, such as `vda`; empty if they are not known.
    pub disks: Vec<String>,
    /// The kernel's command line says where packages come from.
    pub source_given: bool,
}

/// Looks an answer file over. Findings are in the order of the file, those on the whole of it
/// last.
pub fn lint(kind: Kind, text: &str, expect: &Expect) -> Vec<Finding> {
    let mut findings = Findings::default();
    if text.len() > MAX_BYTES {
        findings.error(
            (0, 0),
            format!("the file has over {} MiB", MAX_BYTES >> 20),
            "an answer file is a small text",
        );
        return findings.0;
    }
    if let Some((line, column)) = control_character(text) {
        findings.error(
            (line, column),
            "a control character: this is no text",
            "save it as UTF-8 text",
        );
    }
    match kind {
        Kind::Kickstart => kickstart::lint(text, expect, &mut findings),
        Kind::Preseed => preseed::lint(text, expect, &mut findings),
        Kind::Autoinstall => autoinstall::lint(text, expect, &mut findings),
        Kind::CloudInit => cloudinit::lint(text, &mut findings),
    }
    findings.done()
}

/// Looks cloud-init's meta data over.
pub fn lint_meta_data(text: &str) -> Vec<Finding> {
    let mut findings = Findings::default();
    cloudinit::lint_meta_data(text, &mut findings);
    findings.done()
}

/// Looks cloud-init's network configuration over.
pub fn lint_network_config(text: &str) -> Vec<Finding> {
    let mut findings = Findings::default();
    cloudinit::lint_network_config(text, &mut findings);
    findings.done()
}

/// Whether any finding is an error.
pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.severity == Severity::Error)
}

fn control_character(text: &str) -> Option<(usize, usize)> {
    let odd = |c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\n');
    for (number, line) in text.lines().enumerate() {
        if let Some(at) = line.chars().position(odd) {
            return Some((number + 1, at + 1));
        }
    }
    None
}

/// Findings while they are gathered.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

/// Line and column, from 1; zeroes for the whole file.
type Place = (usize, usize);

/// Most findings that are told; a file that is of another kind altogether has one in each line.
const MAX_FINDINGS: usize = 200;

impl Findings {
    fn add(&mut self, severity: Severity, place: Place, message: String, remedy: String) {
        if self.0.len() < MAX_FINDINGS {
            self.0.push(Finding {
                severity,
                line: place.0,
                column: place.1,
                message,
                remedy,
            });
        }
    }

    fn error(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, place, message.into(), remedy.into());
    }

    fn warning(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, place, message.into(), remedy.into());
    }

    fn done(mut self) -> Vec<Finding> {
        self.0
            .sort_by_key(|finding| match (finding.line, finding.column) {
                (0, _) => (usize::MAX, 0),
                place => place,
            });
        self.0
    }

    /// A word that is not known: an error with the nearest one that is.
    fn unknown(&mut self, place: Place, what: &str, word: &str, known: &[&str]) {
        let shown: String = word.chars().take(60).collect();
        let remedy = match nearest(word, known) {
            Some(near) => format!("did you mean '{near}'?"),
            None => "remove it".to_owned(),
        };
        self.error(place, format!("unknown {what} '{shown}'"), remedy);
    }

    /// The file names a disk that the domain does not have.
    fn disk(&mut self, place: Place, name: &str, expect: &Expect) {
        let name = name.trim_start_matches("/dev/");
        // A path by id or label, a pattern or a partition is for the installer to find.
        if expect.disks.is_empty() || name.contains(['/', '*', '=', '|']) || name.is_empty() {
            return;
        }
        let partition_of = |disk: &String| {
            let rest = name.strip_prefix(disk.as_str());
            rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
        };
        if !expect.disks.iter().any(partition_of) {
            let shown: String = name.chars().take(60).collect();
            self.error(
                place,
                format!("the domain has no disk '{shown}'"),
                format!("its disks are {}", expect.disks.join(", ")),
            );
        }
    }
}

/// The nearest of `known`, if one is near.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known
        .iter()
        .map(|known| (strsim::jaro_winkler(word, known), *known));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.85).then_some(best.1)
}

/// Whether a password is a crypt hash, or locked.
fn is_hashed(password: &str) -> bool {
    let crypt = password.strip_prefix('$').is_some_and(|rest| {
        let mut parts = rest.split('$');
        let id = parts.next().unwrap_or_default();
        let known = ["1", "2a", "2b", "2y", "5", "6", "7", "y", "gy"];
        known.contains(&id) && parts.clone().count() >= 2 && parts.all(|part| !part.is_empty())
    });
    crypt || matches!(password, "*" | "!" | "!!")
}
