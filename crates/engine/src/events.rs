//! The event log and waiting on it.
//!
//! Events are rows with a strictly increasing sequence. A writer touches a
//! wake file after its commit; a watcher holds an inotify watch on that file,
//! so that waiting costs nothing and works across processes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Transaction, params};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::state::State;

/// Most events one read returns, so that a watcher far behind stays bounded.
const BATCH: i64 = 1024;

/// Events older than this many are forgotten.
const KEPT: i64 = 100_000;

/// One thing that happened on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the log; strictly increasing, never used twice, gaps are
    /// possible.
    pub sequence: i64,
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// What, for example `pool-started` or `volume-created`.
    pub kind: String,
    /// To what: a pool's name or `pool/volume`.
    pub subject: String,
    /// More, as the kind demands; an object.
    pub detail: serde_json::Value,
}

/// The present time as the database keeps it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// Adds an event inside a transaction; the caller wakes watchers after it.
pub(crate) fn append(
    transaction: &Transaction<'_>,
    kind: &str,
    subject: &str,
    detail: &serde_json::Value,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO events (time, kind, subject, detail) VALUES (?1, ?2, ?3, ?4)",
        params![now(), kind, subject, detail.to_string()],
    )?;
    let sequence = transaction.last_insert_rowid();
    if sequence % 1000 == 0 {
        transaction.execute(
            "DELETE FROM events WHERE sequence <= ?1",
            [sequence.saturating_sub(KEPT)],
        )?;
    }
    Ok(())
}

/// Up to [`BATCH`] events after `sequence`, oldest first.
pub(crate) fn after(state: &State, sequence: i64) -> Result<Vec<Event>> {
    let rows = state.read("read events", |connection| {
        let mut statement = connection.prepare_cached(
            "SELECT sequence, time, kind, subject, detail FROM events
             WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
        )?;
        statement
            .query_map(params![sequence, BATCH], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, String>(3)?,
                    row.get::<_, String>(4)?,
                ))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()
    })?;
    rows.into_iter()
        .map(|(sequence, time, kind, subject, detail)| {
            let detail = serde_json::from_str(&detail).map_err(|error| Error::BadRecord {
                what: format!("event {sequence}"),
                reason: error.to_string(),
            })?;
            Ok(Event {
                sequence,
                time,
                kind,
                subject,
                detail,
            })
        })
        .collect()
}

/// The sequence of the newest event ever written; 0 before the first.
pub(crate) fn newest(state: &State) -> Result<i64> {
    state.read("read events", |connection| {
        connection.query_row(
            "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)",
            [],
            |row| row.get(0),
        )
    })
}

/// Wakes watchers in all processes. A failure only delays them until the next
/// event, so it is logged and no more.
pub(crate) fn wake(path: &Path) {
    let touched = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(b"\n"));
    if let Err(error) = touched {
        tracing::warn!(path = %path.display(), %error, "cannot wake event watchers");
    }
}

/// Waits for events of a node, in the order they happen, without polling.
#[derive(Debug)]
pub struct EventWatcher {
    state: Arc<State>,
    inotify: OwnedFd,
    wake_file: PathBuf,
    position: i64,
}

impl EventWatcher {
    pub(crate) fn new(state: Arc<State>, wake_file: PathBuf, after: i64) -> Result<Self> {
        let at = |action| {
            let path = wake_file.clone();
            move |source: std::io::Error| Error::Io {
                action,
                path,
                source,
            }
        };
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&wake_file)
            .map_err(at("create the event wake file"))?;
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| at("watch")(errno.into()))?;
        // The watch stands before the first read of the log, so that no event
        // falls between them.
        inotify::add_watch(&inotify, &wake_file, inotify::WatchFlags::MODIFY)
            .map_err(|errno| at("watch")(errno.into()))?;
        Ok(EventWatcher {
            state,
            inotify,
            wake_file,
            position: after,
        })
    }

    /// Sequence of the last event this watcher returned.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// The events since the last call, waiting for one where there is none. An
    /// empty answer means that `timeout` passed; `None` waits without end.
    ///
    /// # Errors
    /// The database cannot be read, or waiting failed.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Vec<Event>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.drain();
            let events = after(&self.state, self.position)?;
            if let Some(last) = events.last() {
                self.position = last.sequence;
                return Ok(events);
            }
            let remaining = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if remaining == Some(Duration::ZERO) {
                return Ok(Vec::new());
            }
            self.wait(remaining)?;
        }
    }

    fn wait(&self, remaining: Option<Duration>) -> Result<()> {
        let timeout = remaining.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::Io {
                action: "wait on",
                path: self.wake_file.clone(),
                source: errno.into(),
            }),
        }
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        while rustix::io::read(&self.inotify, &mut buffer).is_ok_and(|(read, _)| !read.is_empty()) {
        }
    }
}

/// Keeps the wake file from growing; a few bytes are cut off at open.
pub(crate) fn trim_wake_file(path: &Path) {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
        let _ = OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(0));
    }
}
