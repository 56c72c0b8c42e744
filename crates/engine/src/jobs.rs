//! Long operations as the user sees them: progress, cancellation, history.
//!
//! Every journalled operation is a job of the same number. Progress is written
//! to the database at most twice a second; the same moment looks whether
//! another process asked to cancel.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cenote_pools::{Progress, crash};
use parking_lot::Mutex;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::state::State;

const WRITE_INTERVAL: Duration = Duration::from_millis(500);

/// State of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Its process works on it, or died and nobody looked yet.
    Running,
    /// Ended well.
    Done,
    /// Ended in an error and undid itself.
    Failed,
    /// Its process died; the repair finished it.
    RolledForward,
    /// Its process died; the repair undid it.
    RolledBack,
}

impl JobState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::RolledForward => "rolled-forward",
            JobState::RolledBack => "rolled-back",
        }
    }

    fn parse(text: &str) -> Option<JobState> {
        [
            JobState::Running,
            JobState::Done,
            JobState::Failed,
            JobState::RolledForward,
            JobState::RolledBack,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
    }
}

/// A long operation, running or past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// What it does, for example `volume-clone`.
    pub kind: String,
    /// To what: a pool's name or `pool/volume`.
    pub subject: String,
    /// How it stands.
    pub state: JobState,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 where it is not known.
    pub total: u64,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// When it ended.
    pub finished: Option<String>,
    /// Process that runs or ran it.
    pub pid: u32,
    /// Whether somebody asked to cancel it.
    pub cancel_requested: bool,
    /// Why it failed.
    pub error: Option<String>,
}

/// All jobs the journal remembers, oldest first.
pub(crate) fn list(state: &State) -> Result<Vec<Job>> {
    let rows = state.read("read jobs", |connection| {
        let mut statement = connection.prepare_cached(
            "SELECT j.id, j.kind, j.subject, j.state, b.done, b.total, j.started, j.finished,
                    j.pid, b.cancel, j.error
             FROM journal j JOIN jobs b ON b.id = j.id ORDER BY j.id",
        )?;
        statement
            .query_map([], |row| {
                let state: String = row.get(3)?;
                Ok(Job {
                    id: row.get(0)?,
                    kind: row.get(1)?,
                    subject: row.get(2)?,
                    // An unknown state can only come from a newer schema,
                    // which is refused at open.
                    state: JobState::parse(&state).unwrap_or(JobState::Failed),
                    done: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
                    total: u64::try_from(row.get::<_, i64>(5)?).unwrap_or(0),
                    started: row.get(6)?,
                    finished: row.get(7)?,
                    pid: row.get(8)?,
                    cancel_requested: row.get(9)?,
                    error: row.get(10)?,
                })
            })?
            .collect::<rusqlite::Result<Vec<_>>>()
    })?;
    Ok(rows)
}

/// Asks the process that runs job `id` to break it off.
pub(crate) fn cancel(state: &State, id: i64) -> Result<()> {
    let found: Option<bool> = state.write("cancel a job", |transaction| {
        let running = match transaction.query_row(
            "SELECT state = 'running' FROM journal WHERE id = ?1",
            [id],
            |row| row.get(0),
        ) {
            Ok(running) => Some(running),
            Err(rusqlite::Error::QueryReturnedNoRows) => None,
            Err(error) => return Err(error),
        };
        if running == Some(true) {
            transaction.execute("UPDATE jobs SET cancel = 1 WHERE id = ?1", [id])?;
        }
        Ok(running)
    })?;
    match found {
        Some(true) => Ok(()),
        Some(false) => Err(Error::JobEnded(id)),
        None => Err(Error::NoSuchJob(id)),
    }
}

/// Passes progress on to the caller and into the database.
pub(crate) struct JobProgress<'a> {
    state: Arc<State>,
    id: i64,
    caller: &'a dyn Progress,
    last: Mutex<(Instant, bool)>,
}

impl<'a> JobProgress<'a> {
    pub(crate) fn new(state: Arc<State>, id: i64, caller: &'a dyn Progress) -> Self {
        JobProgress {
            state,
            id,
            caller,
            last: Mutex::new((Instant::now(), false)),
        }
    }

    fn write(&self, done: u64, total: u64) -> Result<bool> {
        let (done, total) = (
            i64::try_from(done).unwrap_or(i64::MAX),
            i64::try_from(total).unwrap_or(i64::MAX),
        );
        self.state.write("record progress", |transaction| {
            transaction.execute(
                "UPDATE jobs SET done = ?2, total = ?3 WHERE id = ?1",
                params![self.id, done, total],
            )?;
            transaction.query_row("SELECT cancel FROM jobs WHERE id = ?1", [self.id], |row| {
                row.get(0)
            })
        })
    }
}

impl Progress for JobProgress<'_> {
    fn update(&self, done: u64, total: u64) -> ControlFlow<()> {
        crash::point("progress");
        self.caller.update(done, total)?;
        // A thread that finds another one writing goes on with its work.
        let Some(mut last) = self.last.try_lock() else {
            return ControlFlow::Continue(());
        };
        if last.0.elapsed() >= WRITE_INTERVAL || (done == total && total != 0) {
            last.0 = Instant::now();
            match self.write(done, total) {
                Ok(cancel) => last.1 = cancel,
                Err(error) => tracing::warn!(job = self.id, %error, "cannot record progress"),
            }
        }
        if last.1 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// As the image engine asks for it.
impl cenote_image::Progress for JobProgress<'_> {
    fn report(&self, done: u64, total: u64) -> ControlFlow<()> {
        self.update(done, total)
    }
}
