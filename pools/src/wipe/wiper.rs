//! The way in: planning, wiping, resuming, several volumes side by side.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::algorithm::Algorithm;
use super::error::{Error, Refusal, Result};
use super::journal::{Interruption, Progress, Record, VERSION, WipeJournal, now};
use super::keystream::Secret;
use super::pass::{Limiter, Tuning};
use super::plan::{self, Held, Plan};
use super::report::WipeReport;
use super::request::{Observer, Stage, WipeEvent, WipeRequest};
use super::session::Session;
use super::target::{Identity, Kind};
use super::usage::Usage;

/// Makes certificates of reports. Asked again for the same id after a crash,
/// it gives the certificate it made before.
pub trait Notary: Sync {
    /// Certifies a finished wipe; gives the certificate's place.
    fn certify(&self, report: &WipeReport) -> Result<PathBuf, crate::certificate::Error>;
}

/// A finished wipe.
#[derive(Debug, Clone)]
pub struct Wiped {
    /// What was done and what may be claimed.
    pub report: WipeReport,
    /// Its certificate, where a notary was given.
    pub certificate: Option<PathBuf>,
}

/// A wipe that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// Id to resume it by.
    pub id: String,
    /// The volume.
    pub path: PathBuf,
    /// What users call it.
    pub volume: Option<String>,
    /// The method.
    pub algorithm: Algorithm,
    /// When it began, RFC 3339.
    pub started: String,
    /// When it was last recorded, RFC 3339.
    pub recorded: String,
    /// What it was doing.
    pub stage: Stage,
    /// Pass, from 1.
    pub pass: u32,
    /// Passes of the method.
    pub passes: u32,
    /// Bytes of the pass recorded as done.
    pub position: u64,
    /// Bytes of the volume's extents.
    pub total: u64,
}

/// Wipes volumes.
pub struct Wiper<'a> {
    journal: &'a dyn WipeJournal,
    usage: &'a dyn Usage,
    notary: Option<&'a dyn Notary>,
    tuning: Tuning,
}

impl std::fmt::Debug for Wiper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wiper")
            .field("tuning", &self.tuning)
            .finish_non_exhaustive()
    }
}

impl<'a> Wiper<'a> {
    /// A wiper that records in `journal` and asks `usage` who else needs a
    /// volume.
    pub fn new(journal: &'a dyn WipeJournal, usage: &'a dyn Usage) -> Self {
        Self {
            journal,
            usage,
            notary: None,
            tuning: Tuning::default(),
        }
    }

    /// Has finished wipes certified.
    #[must_use]
    pub fn with_notary(self, notary: &'a dyn Notary) -> Self {
        Self {
            notary: Some(notary),
            ..self
        }
    }

    /// Other sizes of requests and checkpoints.
    #[must_use]
    pub fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuning, ..self }
    }

    /// What [`Wiper::wipe`] would do; writes nothing, and refuses what that
    /// would refuse except for the lack of a proof.
    pub fn plan(&self, request: &WipeRequest) -> Result<Plan> {
        Plan::of(request, self.usage)
    }

    /// Wipes a volume. An interrupted wipe of it with the same settings is
    /// taken up instead.
    pub fn wipe(&self, request: &WipeRequest, observer: &dyn Observer) -> Result<Wiped> {
        let limiter = Limiter::new(request.limit);
        self.wipe_limited(request, observer, &limiter, &self.tuning)
    }

    fn wipe_limited(
        &self,
        request: &WipeRequest,
        observer: &dyn Observer,
        limiter: &Limiter,
        tuning: &Tuning,
    ) -> Result<Wiped> {
        let request = absolute(request)?;
        for id in self.journal.list()? {
            let Some((record, _)) = self.journal.load(&id)? else {
                continue;
            };
            if record.request == request {
                return self.resume_limited(&id, observer, limiter, tuning);
            }
            if record.files.iter().any(|file| file.path == request.path) {
                let algorithm = record.request.algorithm.to_string();
                return Err(Error::Pending {
                    path: request.path,
                    id,
                    algorithm,
                });
            }
        }
        let (files, held, notes) = plan::prepare(&request, self.usage)?;
        let reasons = plan::reasons(&request, &files);
        if !reasons.is_empty() && !request.best_effort {
            return Err(Error::NotProvable {
                path: request.path,
                reasons,
            });
        }
        let progress = Progress::new(files.len());
        let record = Record {
            version: VERSION,
            id: uuid::Uuid::new_v4().to_string(),
            request,
            secret: Secret::generate()?.to_hex(),
            started: now(),
            files,
            notes,
        };
        self.journal.begin(&record, &progress)?;
        let _ = observer.event(&WipeEvent::Step { name: "recorded" });
        self.run(&record, progress, held, observer, limiter, tuning)
    }

    /// Takes up an interrupted wipe where its record says it was.
    pub fn resume(&self, id: &str, observer: &dyn Observer) -> Result<Wiped> {
        let limit = self.load(id)?.0.request.limit;
        self.resume_limited(id, observer, &Limiter::new(limit), &self.tuning)
    }

    fn load(&self, id: &str) -> Result<(Record, Progress)> {
        let found = self.journal.load(id)?;
        let (record, progress) = found.ok_or_else(|| Error::NoSuchWipe { id: id.to_owned() })?;
        let bad = |reason: String| Error::BadRecord {
            id: id.to_owned(),
            reason,
        };
        if record.version != VERSION {
            let version = record.version;
            return Err(bad(format!(
                "it has version {version}, this program knows {VERSION}"
            )));
        }
        let within =
            progress.stage >= Stage::Finish || (progress.file as usize) < record.files.len();
        if progress.files.len() != record.files.len() || !within {
            return Err(bad("its progress belongs to another record".to_owned()));
        }
        Ok((record, progress))
    }

    fn resume_limited(
        &self,
        id: &str,
        observer: &dyn Observer,
        limiter: &Limiter,
        tuning: &Tuning,
    ) -> Result<Wiped> {
        let (mut record, mut progress) = self.load(id)?;
        let mut held = Vec::new();
        let mut restarted = None;
        let at = interruption(&record, &progress);
        if progress.stage < Stage::Finish {
            held = self.take_again(&record)?;
            restarted = compare(&mut record, &mut progress, &held)?;
        }
        progress
            .interruptions
            .push(Interruption { restarted, ..at });
        self.journal.begin(&record, &progress)?;
        self.run(&record, progress, held, observer, limiter, tuning)
    }

    /// Opens, locks and checks the files of a record anew.
    fn take_again(&self, record: &Record) -> Result<Vec<Held>> {
        let paths: Vec<PathBuf> = record.files.iter().map(|file| file.path.clone()).collect();
        let mut held = Vec::new();
        for file in &record.files {
            let one = Held::take(&file.path, &paths, self.usage)?;
            if let Some(what) = difference(&file.identity, one.target.identity()) {
                return Err(Error::Refused {
                    path: file.path.clone(),
                    refusal: Refusal::Changed {
                        what,
                        id: record.id.clone(),
                    },
                });
            }
            held.push(one);
        }
        Ok(held)
    }

    fn run(
        &self,
        record: &Record,
        progress: Progress,
        held: Vec<Held>,
        observer: &dyn Observer,
        limiter: &Limiter,
        tuning: &Tuning,
    ) -> Result<Wiped> {
        let journal = self.journal;
        let mut session = Session {
            journal,
            observer,
            tuning,
            limiter,
            record,
            progress,
            held,
            memory: tuning.memory(),
        };
        let report = session.run()?;
        let certificate = self
            .notary
            .map(|notary| notary.certify(&report))
            .transpose()?;
        let _ = observer.event(&WipeEvent::Step { name: "certified" });
        self.journal.end(&record.id)?;
        let _ = observer.event(&WipeEvent::Step { name: "ended" });
        Ok(Wiped {
            report,
            certificate,
        })
    }

    /// Wipes several volumes, `parallel` at a time, sharing memory and the
    /// smallest rate limit among them. `observer` is told which request an
    /// event is about; results are in the order of the requests.
    pub fn wipe_all(
        &self,
        requests: &[WipeRequest],
        parallel: usize,
        observer: &(dyn Fn(usize, &WipeEvent<'_>) -> ControlFlow<()> + Sync),
    ) -> Vec<Result<Wiped>> {
        let workers = parallel.clamp(1, requests.len().max(1));
        let limiter = Limiter::new(requests.iter().filter_map(|request| request.limit).min());
        let tuning = self.tuning.shared_among(workers);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((index, request)) = {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        requests.get(index).map(|request| (index, request))
                    } {
                        let one = |event: &WipeEvent<'_>| observer(index, event);
                        let result = self.wipe_limited(request, &one, &limiter, &tuning);
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        results.push((index, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// All interrupted wipes, oldest first.
    pub fn pending(&self) -> Result<Vec<Pending>> {
        let mut all = Vec::new();
        for id in self.journal.list()? {
            let Some((record, progress)) = self.journal.load(&id)? else {
                continue;
            };
            let algorithm = record.request.algorithm;
            let current = record
                .files
                .get(progress.file as usize)
                .or(record.files.last());
            all.push(Pending {
                id,
                path: record.request.path.clone(),
                volume: record.request.volume.clone(),
                algorithm,
                started: record.started.clone(),
                recorded: progress.recorded.clone(),
                stage: progress.stage,
                pass: progress.pass + 1,
                passes: algorithm.passes().len() as u32,
                position: progress.position,
                total: current.map_or(0, |file| file.map.length()),
            });
        }
        Ok(all)
    }

    /// Drops the record of an interrupted wipe; the volume stays as it is.
    pub fn forget(&self, id: &str) -> Result<()> {
        self.load(id)?;
        self.journal.end(id)
    }
}

impl Plan {
    /// What wiping as `request` says would do, without a journal at hand.
    pub fn of(request: &WipeRequest, usage: &dyn Usage) -> Result<Self> {
        let request = absolute(request)?;
        let (files, _held, notes) = plan::prepare(&request, usage)?;
        Ok(Self::new(&request, files, notes))
    }
}

fn absolute(request: &WipeRequest) -> Result<WipeRequest> {
    let path = std::path::absolute(&request.path)
        .map_err(Error::io(Path::new("."), "find the current folder"))?;
    Ok(WipeRequest {
        path,
        ..request.clone()
    })
}

fn interruption(record: &Record, progress: &Progress) -> Interruption {
    let file = record
        .files
        .get(progress.file as usize)
        .or(record.files.last());
    Interruption {
        stage: progress.stage,
        path: file.map_or_else(|| record.request.path.clone(), |file| file.path.clone()),
        pass: progress.pass + 1,
        position: progress.position,
        recorded: progress.recorded.clone(),
        resumed: now(),
        restarted: None,
    }
}

/// Whether the file on record is still the one that is there.
fn difference(then: &Identity, now: &Identity) -> Option<String> {
    if (then.kind, then.inode, then.created) != (now.kind, now.inode, now.created) {
        return Some("another file has taken its name".to_owned());
    }
    // The numbers of a file's file system may change when it is mounted anew.
    let moved = (then.major, then.minor, &then.serial) != (now.major, now.minor, &now.serial);
    if then.kind == Kind::BlockDevice && moved {
        return Some("another device has taken its name".to_owned());
    }
    (then.size != now.size)
        .then(|| format!("it was resized from {} to {} bytes", then.size, now.size))
}

/// Compares the files with the record. Where something was written or moved in
/// between, the wipe goes back to the start of that file, and says why.
fn compare(record: &mut Record, progress: &mut Progress, held: &[Held]) -> Result<Option<String>> {
    for (index, one) in held.iter().enumerate() {
        let path = one.target.path();
        let current = progress.file as usize;
        let trim = record.request.algorithm == Algorithm::Trim;
        let map = one
            .target
            .map()
            .map_err(Error::io(path, "map the extents of"))?;
        let modified = one.target.modified().map_err(Error::io(path, "look at"))?;
        let written = index < current || (index == current && progress.stage == Stage::Verify);
        let why = if !trim && !record.files[index].map.same_places(&map) {
            Some("its extents are others now")
        } else if written && modified != progress.files[index].modified {
            Some("it was written to in between")
        } else if written && modified.is_none() && index == current {
            // A device cannot tell: its verification begins again.
            progress.position = 0;
            None
        } else {
            None
        };
        let Some(why) = why else { continue };
        record.files[index].map = map;
        if index <= current {
            for later in index..held.len() {
                progress.files[later] = super::journal::FileProgress::default();
            }
            progress.file = index as u32;
            progress.stage = Stage::Overwrite;
            progress.pass = 0;
            progress.position = 0;
            // What lies behind is compared by the next rounds.
            return compare_rest(record, held, index + 1)
                .map(|()| Some(format!("'{}': {why}", path.display())));
        }
    }
    Ok(None)
}

fn compare_rest(record: &mut Record, held: &[Held], from: usize) -> Result<()> {
    for (file, one) in record.files.iter_mut().zip(held).skip(from) {
        file.map = one
            .target
            .map()
            .map_err(Error::io(&file.path, "map the extents of"))?;
    }
    Ok(())
}
