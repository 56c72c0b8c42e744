//! Carrying a recorded wipe out, from wherever it stands to its report.

use std::time::{Duration, Instant};

use super::algorithm::{Algorithm, Pass};
use super::buffer::Memory;
use super::error::{Error, Result};
use super::extents::{Extent, Span, spans};
use super::finish;
use super::journal::{
    Failure, FileProgress, MOST_FAILURES, PassReport, Progress, Record, Verification, WipeJournal,
    now,
};
use super::keystream::Secret;
use super::pass::{
    self, Content, Fault, FaultKind, Flow, Hooks, Limiter, PassRun, Portion, Tuning,
};
use super::plan::Held;
use super::report::{self, WipeReport};
use super::request::{Observer, Stage, Verify, WipeEvent};
use super::target::{Change, Target};
use super::verdict::Reason;
use cenote_image::storage::Storage as _;

/// A wipe that stops being worth isolating: this many failed ranges.
const TOO_MANY_FAILURES: u64 = 65_536;
/// How often the file is looked at for changes by others.
const WATCH: Duration = Duration::from_millis(50);
/// Bytes given to one discard request.
const FORGET: u64 = 128 << 20;

/// A wipe under way.
pub(super) struct Session<'a> {
    pub(super) journal: &'a dyn WipeJournal,
    pub(super) observer: &'a dyn Observer,
    pub(super) tuning: &'a Tuning,
    pub(super) limiter: &'a Limiter,
    pub(super) record: &'a Record,
    pub(super) progress: Progress,
    /// One for each file that is not finished.
    pub(super) held: Vec<Held>,
    /// What all passes over all files use.
    pub(super) memory: Memory,
}

impl Session<'_> {
    /// Goes on until the files are wiped, checked and rebuilt or removed.
    pub(super) fn run(&mut self) -> Result<WipeReport> {
        let secret = self
            .record
            .secret
            .parse::<Secret>()
            .map_err(|error| Error::BadRecord {
                id: self.record.id.clone(),
                reason: error.to_string(),
            })?;
        while self.progress.stage < Stage::Finish {
            self.file(&secret)?;
            self.progress.file += 1;
            self.progress.pass = 0;
            self.progress.position = 0;
            self.progress.stage = Stage::Overwrite;
            if self.progress.file as usize >= self.record.files.len() {
                self.progress.stage = Stage::Finish;
                self.progress.finished = Some(now());
            }
            self.save()?;
            self.step("file done")?;
        }
        if self.progress.stage == Stage::Finish {
            self.finish()?;
            self.progress.stage = Stage::Certify;
            self.save()?;
            self.step("finished")?;
        }
        Ok(WipeReport::new(self.record, &self.progress))
    }

    fn save(&mut self) -> Result<()> {
        self.progress.recorded = now();
        self.journal.advance(&self.record.id, &self.progress)
    }

    fn step(&self, name: &'static str) -> Result<()> {
        // Between steps there is nothing to stop: the next one asks.
        let _ = self.observer.event(&WipeEvent::Step { name });
        Ok(())
    }

    fn cancelled(&self) -> Error {
        Error::Cancelled {
            path: self.record.request.path.clone(),
            id: self.record.id.clone(),
        }
    }

    fn index(&self) -> usize {
        self.progress.file as usize
    }

    fn done(&mut self) -> &mut FileProgress {
        let index = self.index();
        &mut self.progress.files[index]
    }

    fn target(&self) -> &Target {
        &self.held[self.index()].target
    }

    fn spans(&self) -> Vec<Span> {
        let file = &self.record.files[self.index()];
        let alignment = self.target().alignment() as u64;
        spans(&file.map.extents, alignment, file.identity.size)
    }

    /// Wipes the current file from where it stands.
    fn file(&mut self, secret: &Secret) -> Result<()> {
        let algorithm = self.record.request.algorithm;
        let spans = self.spans();
        if self.progress.stage == Stage::Overwrite {
            let flow = match algorithm {
                Algorithm::Trim => self.forget(&spans)?,
                _ => self.overwrite(algorithm.passes(), &spans, secret)?,
            };
            if flow == Flow::Stop {
                return Ok(());
            }
            let modified = self.target().modified();
            self.done().modified =
                modified.map_err(Error::io(&self.record.request.path, "look at"))?;
            self.progress.stage = Stage::Verify;
            self.progress.pass = 0;
            self.progress.position = 0;
            self.save()?;
        }
        self.read_back(algorithm, &spans, secret)?;
        self.look_again()
    }

    fn overwrite(&mut self, passes: &[Pass], spans: &[Span], secret: &Secret) -> Result<Flow> {
        while let Some(pass) = passes.get(self.progress.pass as usize) {
            let (file, number) = (self.progress.file, self.progress.pass);
            let content = Content::new(*pass, || secret.pass_key(file, number));
            if self.done().passes.len() <= number as usize {
                self.done().passes.push(PassReport {
                    number: number + 1,
                    content: pass.to_string(),
                    started: now(),
                    finished: None,
                    bytes: 0,
                    milliseconds: 0,
                });
            }
            self.begin(Stage::Overwrite, number + 1, passes.len() as u32, spans);
            if self.transfer(content, spans, Stage::Overwrite)?.0 == Flow::Stop {
                return Ok(Flow::Stop);
            }
            if let Some(report) = self.done().passes.last_mut() {
                report.finished = Some(now());
            }
            self.progress.pass += 1;
            self.progress.position = 0;
            self.save()?;
            self.step("pass done")?;
        }
        Ok(Flow::Continue)
    }

    fn begin(&self, stage: Stage, pass: u32, passes: u32, spans: &[Span]) {
        let event = WipeEvent::Begin {
            path: self.target().path(),
            stage,
            pass,
            passes,
            done: self.progress.position,
            total: spans.iter().map(|span| span.length).sum(),
        };
        let _ = self.observer.event(&event);
    }

    /// Writes or reads a pass through the hooks that keep the books. The
    /// second value is what was read; the third what did not match.
    fn transfer(
        &mut self,
        content: Content,
        spans: &[Span],
        stage: Stage,
    ) -> Result<(Flow, u64, u64)> {
        let start = self.progress.position;
        let index = self.index();
        let trim = self.record.request.algorithm == Algorithm::Trim;
        let Self {
            held,
            progress,
            tuning,
            limiter,
            journal,
            observer,
            record,
            memory,
            ..
        } = self;
        let target = &held[index].target;
        let run = PassRun {
            storage: target,
            spans,
            content,
            tuning,
            limiter,
            memory,
        };
        let mut books = Books {
            target,
            progress,
            index,
            stage,
            journal: *journal,
            id: &record.id,
            observer: *observer,
            interval: tuning.checkpoint,
            saved: Instant::now(),
            watched: Instant::now(),
            counted: start,
            timed: Instant::now(),
            latest: start,
            whole: record.request.verify == Verify::All || stage != Stage::Verify,
            mismatches: trim.then_some(0),
            cancelled: false,
        };
        let (flow, read) = match stage {
            Stage::Verify => {
                let portion = match record.request.verify {
                    Verify::Sample(percent) => Portion::Sample(percent),
                    _ => Portion::All,
                };
                let done = pass::verify(&run, start, portion, &mut books)?;
                // The time since the last record belongs to the reading too.
                books.record(books.latest)?;
                done
            }
            _ => (pass::write(&run, start, &mut books)?, 0),
        };
        books.watch()?;
        let (cancelled, mismatches) = (books.cancelled, books.mismatches.unwrap_or(0));
        let fatal = !progress.files[index].fatal.is_empty();
        if cancelled {
            self.save()?;
            return Err(self.cancelled());
        }
        // A name that is gone ends no pass, but the file's wipe has failed.
        Ok((
            if flow == Flow::Stop && fatal {
                Flow::Stop
            } else {
                Flow::Continue
            },
            read,
            mismatches,
        ))
    }

    fn read_back(&mut self, algorithm: Algorithm, spans: &[Span], secret: &Secret) -> Result<()> {
        if self.record.request.verify == Verify::None {
            if algorithm == Algorithm::Trim {
                let answers = "nothing was read".to_owned();
                self.add_reason(Reason::TrimOnly { answers });
            }
            return Ok(());
        }
        let passes = algorithm.passes();
        let last = passes.len().saturating_sub(1) as u32;
        let file = self.progress.file;
        let content = match passes.last() {
            Some(pass) => Content::new(*pass, || secret.pass_key(file, last)),
            None => Content::Pattern(&[0]),
        };
        if self.done().verification.is_none() {
            self.done().verification = Some(Verification {
                started: now(),
                finished: None,
                bytes: 0,
                milliseconds: 0,
            });
        }
        self.begin(Stage::Verify, 0, passes.len() as u32, spans);
        let before = self
            .done()
            .verification
            .as_ref()
            .map_or(0, |done| done.bytes);
        let (_, read, mismatches) = self.transfer(content, spans, Stage::Verify)?;
        if let Some(verification) = &mut self.done().verification {
            verification.finished = Some(now());
            verification.bytes = before + read;
        }
        if algorithm == Algorithm::Trim {
            let answers = match mismatches {
                0 => "zeroes".to_owned(),
                count => format!("something else than zeroes in {count} places"),
            };
            self.add_reason(Reason::TrimOnly { answers });
        }
        Ok(())
    }

    fn add_reason(&mut self, reason: Reason) {
        let reasons = &mut self.done().reasons;
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    /// Asks for the spans to be forgotten, by the request the device takes.
    fn forget(&mut self, spans: &[Span]) -> Result<Flow> {
        self.begin(Stage::Overwrite, 1, 1, spans);
        let started = Instant::now();
        let (mut position, first) = (0, now());
        let mut method = "nothing";
        for span in spans {
            let mut at = 0;
            while at < span.length {
                let length = FORGET.min(span.length - at);
                if position >= self.progress.position {
                    match self.target().forget(span.offset + at, length) {
                        Ok(name) => method = name,
                        Err(error) => {
                            let what = format!("the blocks cannot be forgotten: {error}");
                            self.done().fatal.push(what);
                            return Ok(Flow::Stop);
                        }
                    }
                }
                at += length;
                position += length;
                if self
                    .observer
                    .event(&WipeEvent::Advanced { done: position })
                    .is_break()
                {
                    self.progress.position = position;
                    self.save()?;
                    return Err(self.cancelled());
                }
            }
        }
        let synced = self.target().sync();
        synced.map_err(Error::io(&self.record.request.path, "sync"))?;
        self.done().passes = vec![PassReport {
            number: 1,
            content: method.to_owned(),
            started: first,
            finished: Some(now()),
            bytes: position,
            milliseconds: milliseconds(started),
        }];
        Ok(Flow::Continue)
    }

    /// After the last pass: do the extents lie where they lay, and has anyone
    /// come to share them?
    fn look_again(&mut self) -> Result<()> {
        if self.record.request.algorithm == Algorithm::Trim || !self.done().fatal.is_empty() {
            return Ok(());
        }
        let before = &self.record.files[self.index()].map;
        let after = self
            .target()
            .map()
            .map_err(Error::io(self.target().path(), "map the extents of"))?;
        let mut found: Vec<Reason> = after.extents.iter().flat_map(Extent::reasons).collect();
        if !before.same_places(&after) {
            found.push(Reason::Moved);
        }
        found.into_iter().for_each(|reason| self.add_reason(reason));
        Ok(())
    }

    /// Rebuilds or removes the files, unless one of them failed.
    fn finish(&mut self) -> Result<()> {
        let request = &self.record.request;
        let failed = self
            .record
            .files
            .iter()
            .zip(&self.progress.files)
            .any(|(file, done)| report::file_verdict(request, file, done).is_failed());
        if failed {
            return Ok(());
        }
        for index in 0..self.record.files.len() {
            let file = &self.record.files[index];
            if self.progress.files[index].finished || !report::wants_finish(request, file) {
                continue;
            }
            if self.progress.files[index].removal.is_none() {
                self.progress.files[index].removal = Some(finish::aside(&file.path)?);
                self.save()?;
                self.step("removal planned")?;
            }
            let aside = self.progress.files[index]
                .removal
                .clone()
                .unwrap_or_default();
            finish::file(request, file, &aside, &|name| {
                let _ = self.observer.event(&WipeEvent::Step { name });
            })?;
            self.progress.files[index].finished = true;
            self.save()?;
        }
        Ok(())
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Keeps progress, failures and watch while a pass runs.
struct Books<'a> {
    target: &'a Target,
    progress: &'a mut Progress,
    index: usize,
    stage: Stage,
    journal: &'a dyn WipeJournal,
    id: &'a str,
    observer: &'a dyn Observer,
    interval: Duration,
    saved: Instant,
    watched: Instant,
    /// Position up to which bytes are in the report.
    counted: u64,
    timed: Instant,
    /// Position up to which all is transferred.
    latest: u64,
    /// Whether all before a position is transferred, or a sample of it.
    whole: bool,
    /// Counted instead of failed, where differences are an answer.
    mismatches: Option<u64>,
    cancelled: bool,
}

impl Books<'_> {
    fn record(&mut self, position: u64) -> Result<()> {
        self.progress.position = position;
        let bytes = match self.whole {
            true => position.saturating_sub(self.counted),
            false => 0,
        };
        let spent = milliseconds(self.timed);
        let done = &mut self.progress.files[self.index];
        match (self.stage, done.passes.last_mut(), &mut done.verification) {
            (Stage::Verify, _, Some(report)) => {
                report.bytes += bytes;
                report.milliseconds += spent;
            }
            (Stage::Overwrite, Some(report), _) => {
                report.bytes += bytes;
                report.milliseconds += spent;
            }
            _ => {}
        }
        self.counted = position;
        self.timed = Instant::now();
        self.saved = Instant::now();
        self.progress.recorded = now();
        self.journal.advance(self.id, self.progress)?;
        let event = WipeEvent::Recorded { done: position };
        if self.observer.event(&event).is_break() {
            self.cancelled = true;
        }
        Ok(())
    }

    fn watch(&mut self) -> Result<Flow> {
        let changed = self
            .target
            .change()
            .map_err(Error::io(self.target.path(), "keep an eye on"))?;
        let Some(change) = changed else {
            return Ok(Flow::Continue);
        };
        let what = change.to_string();
        let fatal = &mut self.progress.files[self.index].fatal;
        if !fatal.contains(&what) {
            fatal.push(what);
        }
        // Beyond a new end there is nothing of the volume to write to. A file
        // that only lost its name still holds the data: it is overwritten.
        let resized = matches!(change, Change::Resized { .. });
        Ok(if resized { Flow::Stop } else { Flow::Continue })
    }
}

impl Hooks for Books<'_> {
    fn advanced(&mut self, position: u64) -> Result<Flow> {
        self.latest = position;
        if self
            .observer
            .event(&WipeEvent::Advanced { done: position })
            .is_break()
        {
            self.cancelled = true;
        }
        if self.stage == Stage::Verify && self.saved.elapsed() >= self.interval {
            self.record(position)?;
        }
        // A write past a new end would make the file grow again.
        let resized = self.target.size().ok() != Some(self.target.identity().size);
        if resized || self.watched.elapsed() >= WATCH {
            self.watched = Instant::now();
            if self.watch()? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(if self.cancelled {
            Flow::Stop
        } else {
            Flow::Continue
        })
    }

    fn durable(&mut self, position: u64) -> Result<()> {
        self.record(position)
    }

    fn failed(&mut self, fault: Fault) -> Result<Flow> {
        let local = fault.kind.is_local();
        let what = match &fault.kind {
            FaultKind::Write(error) => format!("cannot be written: {error}"),
            FaultKind::Read(error) => format!("cannot be read back: {error}"),
            FaultKind::Mismatch(_) if self.mismatches.is_some() => {
                self.mismatches = self.mismatches.map(|count| count + 1);
                return Ok(Flow::Continue);
            }
            FaultKind::Mismatch(at) => {
                format!("does not read back as written, first at offset {at}")
            }
        };
        let done = &mut self.progress.files[self.index];
        if !local {
            done.fatal
                .push(format!("at offset {}: {what}", fault.offset));
            return Ok(Flow::Stop);
        }
        let failure = Failure {
            offset: fault.offset,
            length: fault.length,
            what,
        };
        // After a resume the same place fails again.
        if !done.failures.contains(&failure) {
            done.failure_count += 1;
            if done.failures.len() < MOST_FAILURES {
                done.failures.push(failure);
            }
        }
        if done.failure_count >= TOO_MANY_FAILURES {
            done.fatal
                .push(format!("more than {TOO_MANY_FAILURES} ranges failed"));
            return Ok(Flow::Stop);
        }
        Ok(Flow::Continue)
    }
}
