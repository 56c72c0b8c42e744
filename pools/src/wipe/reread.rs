//! Comparing what lies on disk today with what a report says was left there.

use std::path::PathBuf;

use serde::Serialize;

use super::Stage;
use super::error::Result;
use super::extents::{Extent, spans};
use super::keystream::PassKey;
use super::pass::{self, Content as PassContent, Fault, FaultKind, Flow, Hooks, Limiter, PassRun};
use super::pass::{Portion, Tuning};
use super::report::{Content, FileReport, Outcome, WipeReport};
use super::request::{Observer, WipeEvent};
use super::target::{Identity, Target};
use cenote_image::storage::Storage as _;

/// What reading a file of a report again found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "found", rename_all = "kebab-case")]
pub enum Reread {
    /// All listed extents hold what the last pass wrote.
    Holds {
        /// Bytes compared.
        bytes: u64,
        /// Extents that the report does not list one by one.
        unlisted_extents: u64,
    },
    /// They do not: the volume was used since, or the report is not of it.
    Differs {
        /// Bytes compared.
        bytes: u64,
        /// Offset of the first difference in each piece that differs, at most
        /// a hundred.
        offsets: Vec<u64>,
    },
    /// There is nothing to compare.
    NotComparable {
        /// Why.
        because: String,
    },
}

/// A file of a report and what it holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RereadFile {
    /// Its name.
    pub path: PathBuf,
    /// What was found.
    #[serde(flatten)]
    pub found: Reread,
}

const MOST_OFFSETS: usize = 100;

struct Differences<'a> {
    observer: &'a dyn Observer,
    offsets: Vec<u64>,
    stopped: bool,
}

impl Hooks for Differences<'_> {
    fn advanced(&mut self, position: u64) -> Result<Flow> {
        self.stopped |= self
            .observer
            .event(&WipeEvent::Advanced { done: position })
            .is_break();
        Ok(if self.stopped {
            Flow::Stop
        } else {
            Flow::Continue
        })
    }

    fn durable(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn failed(&mut self, fault: Fault) -> Result<Flow> {
        let at = match fault.kind {
            FaultKind::Mismatch(at) => at,
            _ => fault.offset,
        };
        if self.offsets.len() < MOST_OFFSETS {
            self.offsets.push(at);
        }
        Ok(Flow::Continue)
    }
}

/// Reads every file of `report` past the page cache and compares it. Nothing
/// is written or locked.
pub fn reread(report: &WipeReport, observer: &dyn Observer) -> Result<Vec<RereadFile>> {
    report
        .files
        .iter()
        .map(|file| {
            Ok(RereadFile {
                path: file.path.clone(),
                found: reread_file(file, observer)?,
            })
        })
        .collect()
}

fn content(file: &FileReport) -> Result<PassContent, String> {
    match &file.outcome {
        Outcome::Kept | Outcome::LeftInPlace { .. } => {}
        Outcome::Rebuilt => return Err("an empty image took its place after the wipe".to_owned()),
        Outcome::Removed => return Err("it was removed after the wipe".to_owned()),
    }
    let unknown = || "the report does not say what it must hold".to_owned();
    match &file.content {
        Content::Pattern { bytes } => super::algorithm::known_pattern(bytes)
            .map(PassContent::Pattern)
            .ok_or_else(unknown),
        Content::KeyStream { key } => PassKey::from_hex(key)
            .map(PassContent::Random)
            .ok_or_else(unknown),
        Content::Unspecified => Err("a trim leaves whatever the device likes".to_owned()),
    }
}

fn reread_file(file: &FileReport, observer: &dyn Observer) -> Result<Reread> {
    let content = match content(file) {
        Ok(content) => content,
        Err(because) => return Ok(Reread::NotComparable { because }),
    };
    let target = Target::open_for_reading(&file.path)?;
    let (then, now) = (&file.identity, target.identity());
    let id = |one: &Identity| (one.kind, one.inode, one.created, one.size);
    if id(then) != id(now) {
        let because = "another file or device has its name, or its size changed".to_owned();
        return Ok(Reread::NotComparable { because });
    }
    let extents: Vec<Extent> = file
        .extents
        .iter()
        .map(|listed| Extent {
            offset: listed.offset,
            length: listed.length,
            physical: listed.physical,
            flags: 0,
        })
        .collect();
    let spans = spans(&extents, target.alignment() as u64, now.size);
    let (tuning, limiter) = (Tuning::default(), Limiter::new(None));
    let run = PassRun {
        storage: &target,
        spans: &spans,
        content,
        tuning: &tuning,
        limiter: &limiter,
        memory: &tuning.memory(),
    };
    let _ = observer.event(&WipeEvent::Begin {
        path: &file.path,
        stage: Stage::Verify,
        pass: 0,
        passes: 0,
        done: 0,
        total: spans.iter().map(|span| span.length).sum(),
    });
    let mut found = Differences {
        observer,
        offsets: Vec::new(),
        stopped: false,
    };
    let (_, bytes) = pass::verify(&run, 0, Portion::All, &mut found)?;
    if found.stopped {
        return Ok(Reread::NotComparable {
            because: "reading was stopped".to_owned(),
        });
    }
    let Differences { offsets, .. } = found;
    if !offsets.is_empty() {
        return Ok(Reread::Differs { bytes, offsets });
    }
    let unlisted_extents = file.extent_count.saturating_sub(extents.len() as u64);
    Ok(Reread::Holds {
        bytes,
        unlisted_extents,
    })
}
