//! Life-cycle events, with libvirt's words for event and detail and our own for the cause.

use rusqlite::Transaction;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::events;

/// What brought a change about; libvirt has no word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A command of a person or program.
    Command,
    /// The guest switched itself off.
    GuestPowerOff,
    /// The guest switched itself off after a command had pushed its power button.
    PowerButton,
    /// The guest reset itself.
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest's processor shut down after a triple fault.
    TripleFault,
    /// The monitor failed and said why.
    MonitorError,
    /// The monitor was killed, or ended without a word.
    MonitorDied,
    /// The supervisor was killed, and the monitor with it.
    SupervisorDied,
    /// The host went down under the domain.
    HostReboot,
    /// The connection that an autodestroyed domain was tied to went away.
    ConnectionClosed,
    /// The node started it because it is marked for that.
    Autostart,
    /// The host could not read or write a disk, whose error policy is to stop.
    IoError,
}

/// An event of a domain's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    DefinedAdded,
    DefinedUpdated,
    DefinedRenamed,
    DefinedSnapshot,
    UndefinedRemoved,
    UndefinedRenamed,
    StartedBooted,
    StartedRestored,
    StartedSnapshot,
    SuspendedPaused,
    SuspendedRestored,
    SuspendedSnapshot,
    SuspendedIoError,
    ResumedUnpaused,
    ShutdownFinished { by_guest: bool },
    StoppedShutdown,
    StoppedDestroyed,
    StoppedCrashed,
    StoppedSaved,
    StoppedSnapshot,
    StoppedFailed,
    CrashedPanicked,
}

impl Lifecycle {
    /// libvirt's words for event and detail.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Lifecycle::DefinedAdded => ("Defined", "Added"),
            Lifecycle::DefinedUpdated => ("Defined", "Updated"),
            Lifecycle::DefinedRenamed => ("Defined", "Renamed"),
            Lifecycle::DefinedSnapshot => ("Defined", "Snapshot"),
            Lifecycle::UndefinedRemoved => ("Undefined", "Removed"),
            Lifecycle::UndefinedRenamed => ("Undefined", "Renamed"),
            Lifecycle::StartedBooted => ("Started", "Booted"),
            Lifecycle::StartedRestored => ("Started", "Restored"),
            Lifecycle::StartedSnapshot => ("Started", "Snapshot"),
            Lifecycle::SuspendedPaused => ("Suspended", "Paused"),
            Lifecycle::SuspendedRestored => ("Suspended", "Restored"),
            Lifecycle::SuspendedSnapshot => ("Suspended", "Snapshot"),
            Lifecycle::SuspendedIoError => ("Suspended", "I/O Error"),
            Lifecycle::ResumedUnpaused => ("Resumed", "Unpaused"),
            Lifecycle::ShutdownFinished { by_guest: true } => {
                ("Shutdown", "Finished after guest request")
            }
            Lifecycle::ShutdownFinished { by_guest: false } => {
                ("Shutdown", "Finished after host request")
            }
            Lifecycle::StoppedShutdown => ("Stopped", "Shutdown"),
            Lifecycle::StoppedDestroyed => ("Stopped", "Destroyed"),
            Lifecycle::StoppedCrashed => ("Stopped", "Crashed"),
            Lifecycle::StoppedSaved => ("Stopped", "Saved"),
            Lifecycle::StoppedSnapshot => ("Stopped", "Snapshot"),
            Lifecycle::StoppedFailed => ("Stopped", "Failed"),
            Lifecycle::CrashedPanicked => ("Crashed", "Panicked"),
        }
    }
}

/// Which domain an event is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    pub(crate) uuid: &'a str,
    pub(crate) id: Option<u32>,
}

/// Adds a life-cycle event inside a transaction; the caller wakes watchers after it.
pub(crate) fn append(
    transaction: &Transaction<'_>,
    subject: Subject<'_>,
    event: Lifecycle,
    cause: Cause,
    note: Option<&str>,
) -> rusqlite::Result<()> {
    let (word, detail) = event.words();
    let mut fields = json!({
        "uuid": subject.uuid, "id": subject.id, "event": word, "detail": detail, "cause": cause,
    });
    if let (Some(note), Some(fields)) = (note, fields.as_object_mut()) {
        fields.insert("note".into(), note.into());
    }
    events::append(transaction, "lifecycle", subject.name, &fields)
}

/// Adds the event of a guest that was reset and runs on.
pub(crate) fn append_reboot(
    transaction: &Transaction<'_>,
    subject: Subject<'_>,
    cause: Cause,
) -> rusqlite::Result<()> {
    let fields = json!({ "uuid": subject.uuid, "id": subject.id, "cause": cause });
    events::append(transaction, "reboot", subject.name, &fields)
}
