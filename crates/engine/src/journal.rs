//! The operation journal.
//!
//! A multi-step operation writes its plan here before its first step and marks
//! the steps that repair must know about. While it runs, its process holds a
//! `flock` on `operations/<id>.lock`; the kernel lets go of that however the
//! process ends. So an entry that still says `running` and whose lock is free
//! belongs to the dead, and whoever finds it rolls it forward or back.
//!
//! The lock file is made and locked inside the transaction that inserts the
//! entry: nobody can see an entry whose owner lives and does not hold its lock.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::PathBuf;

use cenote_pools::{Progress, crash};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::events;
use crate::jobs::{JobProgress, JobState};
use crate::node::Node;
use crate::plan::Plan;

/// Finished entries kept for `job-list`.
const HISTORY: i64 = 1000;

thread_local! {
    /// The operation that those begun by this thread are parts of; 0 for none.
    static WHOLE: Cell<i64> = const { Cell::new(0) };
}

/// Runs `work`, whose operations are parts of operation `id`: they may work on its subjects.
fn inside<T>(id: i64, work: impl FnOnce() -> T) -> T {
    struct Back(i64);
    impl Drop for Back {
        fn drop(&mut self) {
            WHOLE.set(self.0);
        }
    }
    let _back = Back(WHOLE.replace(id));
    work()
}

/// Live operations on `?1`, on something in it (`?1` a pool) or on what it is
/// in (`?1` a volume), except for `?2`.
const CONFLICT: &str = "FROM journal j
    JOIN journal_subjects s ON s.operation = j.id
    WHERE j.state = 'running' AND j.id <> ?2 AND (s.subject = ?1
        OR substr(s.subject, 1, length(?1) + 1) = ?1 || '/'
        OR substr(?1, 1, length(s.subject) + 1) = s.subject || '/')";

/// What repair did about one interrupted operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Number of the operation (and job).
    pub operation: i64,
    /// What it was, for example `volume-clone`.
    pub kind: String,
    /// What it worked on.
    pub subject: String,
    /// Which way it went.
    pub outcome: RepairOutcome,
    /// One sentence for the user.
    pub message: String,
}

/// Which way an interrupted operation was brought to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RepairOutcome {
    /// It was finished.
    RolledForward,
    /// It was undone.
    RolledBack,
    /// It could not be repaired now; it is tried again at the next open.
    Pending,
}

/// An operation under way in this process.
#[derive(Debug)]
pub(crate) struct Operation<'n> {
    node: &'n Node,
    id: i64,
    kind: &'static str,
    subject: String,
    plan: Plan,
    step: i64,
    /// Held for as long as the operation runs.
    _lock: File,
}

struct Entry {
    id: i64,
    kind: String,
    subject: String,
    pid: u32,
}

impl Node {
    fn lock_path(&self, id: i64) -> PathBuf {
        self.operations_dir().join(format!("{id}.lock"))
    }

    /// Writes `plan` to the journal. Fails with [`Error::Busy`] where a live
    /// operation works on one of the plan's subjects.
    pub(crate) fn begin(&self, plan: Plan) -> Result<Operation<'_>> {
        let subjects = plan.subjects();
        for subject in &subjects {
            if let Some(entry) = self.running_on(subject)? {
                // Repairs it where its owner is dead.
                self.repair_entry(&entry)?;
                if let Some(Entry { id, kind, pid, .. }) = self.running_on(subject)? {
                    return Err(Error::Busy {
                        subject: subject.clone(),
                        operation: id,
                        kind,
                        pid,
                    });
                }
            }
        }
        let text = serde_json::to_string(&plan).map_err(|error| Error::BadRecord {
            what: "a plan".into(),
            reason: error.to_string(),
        })?;
        let subject = subjects.first().cloned().unwrap_or_default();
        let begun = self.state().write("write the journal", |transaction| {
            for subject in &subjects {
                let taken: Option<(i64, String, u32)> = transaction
                    .query_row(
                        &format!("SELECT j.id, j.kind, j.pid {CONFLICT}"),
                        params![subject, WHOLE.get()],
                        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                    )
                    .optional()?;
                if let Some((id, kind, pid)) = taken {
                    let (subject, operation) = (subject.clone(), id);
                    return Ok(Err(Error::Busy {
                        subject,
                        operation,
                        kind,
                        pid,
                    }));
                }
            }
            transaction.execute(
                "INSERT INTO journal (kind, subject, plan, state, started, pid)
                 VALUES (?1, ?2, ?3, 'running', ?4, ?5)",
                params![
                    plan.kind(),
                    subject,
                    text,
                    events::now(),
                    std::process::id()
                ],
            )?;
            let id = transaction.last_insert_rowid();
            transaction.execute("INSERT INTO jobs (id) VALUES (?1)", [id])?;
            for subject in &subjects {
                transaction.execute(
                    "INSERT OR IGNORE INTO journal_subjects (operation, subject) VALUES (?1, ?2)",
                    params![id, subject],
                )?;
            }
            transaction.execute(
                "DELETE FROM journal WHERE state <> 'running' AND id <= ?1",
                [id.saturating_sub(HISTORY)],
            )?;
            Ok(self.take_lock(id).map(|lock| (id, lock)))
        })?;
        let (id, lock) = begun?;
        crash::point("journal-begin");
        Ok(Operation {
            node: self,
            id,
            kind: plan.kind(),
            subject,
            plan,
            step: 0,
            _lock: lock,
        })
    }

    fn open_lock(&self, id: i64) -> Result<File> {
        let path = self.lock_path(id);
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| Error::Io {
                action: "open the operation lock",
                path,
                source,
            })
    }

    fn take_lock(&self, id: i64) -> Result<File> {
        let file = self.open_lock(id)?;
        file.try_lock().map_err(|error| Error::Io {
            action: "lock",
            path: self.lock_path(id),
            source: error.into(),
        })?;
        Ok(file)
    }

    fn running_on(&self, subject: &str) -> Result<Option<Entry>> {
        self.state().read("read the journal", |connection| {
            connection
                .query_row(
                    &format!("SELECT j.id, j.kind, j.subject, j.pid {CONFLICT}"),
                    params![subject, WHOLE.get()],
                    entry_of_row,
                )
                .optional()
        })
    }

    /// Brings every operation whose process is gone to an end.
    pub(crate) fn repair_all(&self) -> Result<Vec<Repair>> {
        let entries = self.state().read("read the journal", |connection| {
            connection
                .prepare(
                    "SELECT id, kind, subject, pid FROM journal WHERE state = 'running'
                     ORDER BY id",
                )?
                .query_map([], entry_of_row)?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut repairs = Vec::new();
        for entry in entries {
            repairs.extend(self.repair_entry(&entry)?);
        }
        Ok(repairs)
    }

    /// Brings an operation on `subject` to an end whose process is gone.
    pub(crate) fn repair_on(&self, subject: &str) -> Result<()> {
        if let Some(entry) = self.running_on(subject)? {
            self.repair_entry(&entry)?;
        }
        Ok(())
    }

    /// Records how far the operation is that is brought to an end right now.
    pub(crate) fn record_step(&self, step: i64, plan: &Plan) -> Result<()> {
        let text = serde_json::to_string(plan).map_err(|error| Error::BadRecord {
            what: "a plan".into(),
            reason: error.to_string(),
        })?;
        self.state().write("write the journal", |transaction| {
            transaction.execute(
                "UPDATE journal SET step = ?2, plan = ?3 WHERE id = ?1 AND state = 'running'",
                params![WHOLE.get(), step, text],
            )
        })?;
        crash::point("journal-repair-step");
        Ok(())
    }

    /// Repairs one entry, if its owner is dead. `None`: it lives, or another
    /// process repaired it.
    fn repair_entry(&self, entry: &Entry) -> Result<Option<Repair>> {
        let lock = self.open_lock(entry.id)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => {
                let path = self.lock_path(entry.id);
                return Err(Error::Io {
                    action: "lock",
                    path,
                    source,
                });
            }
        }
        // With the lock held nobody else repairs; was it repaired before?
        let still: Option<(String, i64)> = self.state().read("read the journal", |connection| {
            connection
                .query_row(
                    "SELECT plan, step FROM journal WHERE id = ?1 AND state = 'running'",
                    [entry.id],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()
        })?;
        let Some((plan, step)) = still else {
            // Opening it made it anew.
            let _ = fs::remove_file(self.lock_path(entry.id));
            return Ok(None);
        };
        let recovered = serde_json::from_str::<Plan>(&plan)
            .map_err(|error| Error::BadRecord {
                what: format!("the plan of operation {}", entry.id),
                reason: error.to_string(),
            })
            .and_then(|plan| inside(entry.id, || plan.recover(self, step)));
        let (outcome, message) = match recovered {
            Ok((outcome, message)) => (outcome, message),
            Err(error) => (RepairOutcome::Pending, format!("not repaired yet: {error}")),
        };
        let state = match outcome {
            RepairOutcome::RolledForward => JobState::RolledForward,
            RepairOutcome::RolledBack => JobState::RolledBack,
            RepairOutcome::Pending => JobState::Running,
        };
        let repair = Repair {
            operation: entry.id,
            kind: entry.kind.clone(),
            subject: entry.subject.clone(),
            outcome,
            message,
        };
        tracing::info!(
            operation = repair.operation,
            kind = repair.kind,
            "{}",
            repair.message
        );
        if outcome != RepairOutcome::Pending {
            self.close_entry(
                entry.id,
                state,
                Some(&repair.message),
                "operation-repaired",
                &repair,
            )?;
        }
        drop(lock);
        Ok(Some(repair))
    }

    /// Marks an entry as ended, says so in the event log and removes its lock.
    fn close_entry(
        &self,
        id: i64,
        state: JobState,
        error: Option<&str>,
        event: &str,
        detail: &impl Serialize,
    ) -> Result<()> {
        let detail = serde_json::to_value(detail).unwrap_or_default();
        self.state().write("close a journal entry", |transaction| {
            transaction.execute(
                "UPDATE journal SET state = ?2, finished = ?3, error = ?4 WHERE id = ?1",
                params![id, state.as_str(), events::now(), error],
            )?;
            let subject: String = transaction.query_row(
                "SELECT subject FROM journal WHERE id = ?1",
                [id],
                |row| row.get(0),
            )?;
            events::append(transaction, event, &subject, &detail)
        })?;
        self.wake();
        // A left-over lock file is harmless: numbers are not used again.
        let _ = fs::remove_file(self.lock_path(id));
        Ok(())
    }
}

fn entry_of_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        id: row.get(0)?,
        kind: row.get(1)?,
        subject: row.get(2)?,
        pid: row.get(3)?,
    })
}

impl Operation<'_> {
    /// The plan, with what [`Operation::revise`] learned.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Records durably that all before `step` is done, with changes to the
    /// plan learned on the way, such as the inode of a file that was made.
    pub(crate) fn revise(&mut self, step: i64, change: impl FnOnce(&mut Plan)) -> Result<()> {
        change(&mut self.plan);
        let text = serde_json::to_string(&self.plan).map_err(|error| Error::BadRecord {
            what: "a plan".into(),
            reason: error.to_string(),
        })?;
        crash::point("journal-step-before");
        self.node
            .state()
            .write("write the journal", |transaction| {
                transaction.execute(
                    "UPDATE journal SET step = ?2, plan = ?3 WHERE id = ?1",
                    params![self.id, step, text],
                )
            })?;
        self.step = step;
        crash::point("journal-step-after");
        Ok(())
    }

    /// Runs a part of it that is an operation of its own.
    pub(crate) fn part<T>(&self, work: impl FnOnce() -> T) -> T {
        inside(self.id, work)
    }

    /// Progress that also shows in `job-list` and hears `job-cancel`.
    pub(crate) fn progress<'a>(&self, caller: &'a dyn Progress) -> JobProgress<'a> {
        JobProgress::new(self.node.state_arc(), self.id, caller)
    }

    /// Ends the operation: `Ok` closes its entry, `Err` undoes what was done
    /// (by the same code that repairs after a crash) and closes it as failed.
    pub(crate) fn finish<T>(self, result: Result<T>) -> Result<T> {
        let failure = result.as_ref().err().map(Error::to_string);
        self.end(failure)?;
        result
    }

    /// [`Operation::finish`] for operations with several results: as failed
    /// where there is a `failure`.
    pub(crate) fn end(self, failure: Option<String>) -> Result<()> {
        crash::point("journal-finish");
        let Some(error) = failure else {
            let detail = serde_json::json!({ "operation": self.id });
            return self
                .node
                .close_entry(self.id, JobState::Done, None, self.kind, &detail);
        };
        match inside(self.id, || self.plan.recover(self.node, self.step)) {
            // It goes on without this process.
            Ok((RepairOutcome::Pending, message)) => {
                tracing::warn!(operation = self.id, subject = self.subject, "{message}")
            }
            Ok((_, message)) => {
                let detail = serde_json::json!({
                    "operation": self.id, "error": error, "repair": message,
                });
                self.node.close_entry(
                    self.id,
                    JobState::Failed,
                    Some(&error),
                    "operation-failed",
                    &detail,
                )?;
            }
            // The entry stays, so that the next open tries again.
            Err(undo) => tracing::warn!(
                operation = self.id, subject = self.subject, %undo,
                "cannot undo a failed operation now; the next command tries again"
            ),
        }
        Ok(())
    }
}
