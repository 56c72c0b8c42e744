//! What the supervisor writes into the node's database. Each change of the domain is one
//! transaction, with its events.

use cenote_model::Document as _;
use cenote_model::domain::Domain;
use rusqlite::{Transaction, params};

use super::protocol::Order;
use crate::domains::define::check_identity;
use crate::domains::lifecycle::{self, Cause, Lifecycle, Subject};
use crate::domains::snapshots::{self, table::NewDocuments};
use crate::domains::state::{DomainState, ShutOffReason};
use crate::domains::{Error as DomainError, table};
use crate::error::Result;
use crate::node::Node;

/// The domain as its supervisor records it.
pub(crate) struct Record<'n> {
    node: &'n Node,
    name: String,
    uuid: String,
    row: i64,
    id: u32,
}

impl<'n> Record<'n> {
    /// Records that the domain runs.
    ///
    /// # Errors
    /// Name or UUID were given to another domain meanwhile, or the database refuses.
    pub(crate) fn started(
        node: &'n Node,
        order: &Order,
        document: &mut Domain,
        state: DomainState,
        events: &[Lifecycle],
    ) -> Result<Self> {
        let started = node
            .state()
            .write("record a domain's start", |transaction| {
                let existing = match check_identity(transaction, document, true)? {
                    Ok(existing) => existing,
                    Err(error) => return Ok(Err(error)),
                };
                if existing.as_ref().is_some_and(table::DomainRow::is_active) {
                    let reason = "domain is already active";
                    return Ok(Err(DomainError::invalid(&order.name, reason, None)));
                }
                let id = table::next_run(transaction)?;
                document.id = Some(id);
                let live = document.to_xml();
                let (number, reason) = state.numbers();
                let row = match existing {
                    Some(row) => {
                        transaction.execute(
                            "UPDATE domains SET live = ?2, run = ?3, state = ?4, reason = ?5,
                         autodestroy = ?6 WHERE id = ?1",
                            params![row.id, live, id, number, reason, order.autodestroy],
                        )?;
                        row.id
                    }
                    None => {
                        transaction.execute(
                            "INSERT INTO domains
                         (name, uuid, title, live, run, state, reason, autodestroy)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                            params![
                                order.name,
                                order.uuid,
                                document.title,
                                live,
                                id,
                                number,
                                reason,
                                order.autodestroy
                            ],
                        )?;
                        transaction.last_insert_rowid()
                    }
                };
                let subject = Subject {
                    name: &order.name,
                    uuid: &order.uuid,
                    id: Some(id),
                };
                for event in events {
                    lifecycle::append(transaction, subject, *event, order.cause, None)?;
                }
                Ok(Ok((row, id)))
            })?;
        let (row, id) = started?;
        node.wake();
        Ok(Record {
            node,
            name: order.name.clone(),
            uuid: order.uuid.clone(),
            row,
            id,
        })
    }

    /// The domain's id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            name: &self.name,
            uuid: &self.uuid,
            id: Some(self.id),
        }
    }

    /// Makes a change of the domain, and wakes those who watch it.
    fn write(
        &self,
        action: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<()> {
        self.node.state().write(action, change)?;
        self.node.wake();
        Ok(())
    }

    fn append(
        &self,
        transaction: &Transaction<'_>,
        events: &[Lifecycle],
        cause: Cause,
        note: Option<&str>,
    ) -> rusqlite::Result<()> {
        for event in events {
            lifecycle::append(transaction, self.subject(), *event, cause, note)?;
        }
        Ok(())
    }

    /// Records another state of the running domain.
    pub(crate) fn state(
        &self,
        state: DomainState,
        events: &[Lifecycle],
        cause: Cause,
        note: Option<&str>,
    ) -> Result<()> {
        self.write("record a domain's state", |transaction| {
            table::set_state(transaction, self.row, state)?;
            self.append(transaction, events, cause, note)
        })
    }

    /// Records that the running domain is another document's now.
    pub(crate) fn document(&self, live: &str) -> Result<()> {
        self.write("record a domain's document", |transaction| {
            transaction.execute(
                "UPDATE domains SET live = ?2 WHERE id = ?1 AND live IS NOT NULL",
                params![self.row, live],
            )?;
            Ok(())
        })
    }

    /// Records that a snapshot that was begun is there, and what the domain's documents are now.
    /// `false` if it was given up meanwhile.
    pub(crate) fn snapshot(
        &self,
        token: &str,
        live: &str,
        definition: Option<&str>,
    ) -> Result<bool> {
        let documents = NewDocuments {
            live: Some(live),
            definition,
        };
        let committed = self
            .node
            .state()
            .write("record a snapshot", |transaction| {
                snapshots::table::commit(transaction, token, documents)
            })?;
        self.node.wake();
        Ok(committed)
    }

    /// Records that the machine was reset; it stands or runs as before.
    pub(crate) fn reset(&self, cause: Cause) -> Result<()> {
        self.write("record a domain's reset", |transaction| {
            lifecycle::append_reboot(transaction, self.subject(), cause)
        })
    }

    /// Records that the guest was reset, or started again, and runs on.
    pub(crate) fn rebooted(
        &self,
        state: DomainState,
        before: &[Lifecycle],
        cause: Cause,
    ) -> Result<()> {
        self.write("record a domain's reboot", |transaction| {
            table::set_state(transaction, self.row, state)?;
            self.append(transaction, before, cause, None)?;
            lifecycle::append_reboot(transaction, self.subject(), cause)
        })
    }

    /// Records that the domain ended; a transient one is forgotten.
    pub(crate) fn stopped(
        &self,
        reason: ShutOffReason,
        events: &[Lifecycle],
        cause: Cause,
        note: Option<&str>,
    ) -> Result<()> {
        self.write("record a domain's end", |transaction| {
            table::set_stopped(transaction, self.row, reason)?;
            self.append(transaction, events, cause, note)
        })
    }
}

/// Records that a domain that is defined could not be started.
pub(crate) fn failed(node: &Node, order: &Order, reason: &str) {
    let written = node.state().write("record a failed start", |transaction| {
        let Some(row) = table::by_uuid(transaction, &order.uuid)? else {
            return Ok(());
        };
        if row.is_active() {
            return Ok(());
        }
        table::set_state(
            transaction,
            row.id,
            DomainState::ShutOff(ShutOffReason::Failed),
        )?;
        let event = Lifecycle::StoppedFailed;
        lifecycle::append(
            transaction,
            row.subject(),
            event,
            Cause::MonitorError,
            Some(reason),
        )
    });
    match written {
        Ok(()) => node.wake(),
        Err(error) => tracing::warn!(%error, "a failed start cannot be recorded"),
    }
}
