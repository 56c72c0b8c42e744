//! Definitions: adding, replacing, renaming and removing them.

use std::time::Duration;

use cenote_model::domain::{Domain, InterfaceMac, MacAddress};
use cenote_model::{Document as _, Name, ReadOptions};
use rusqlite::{Transaction, params};
use uuid::Uuid;

use super::error::Error as DomainError;
use super::lifecycle::{self, Cause, Lifecycle};
use super::lock;
use super::read::{DomainInfo, parse_stored};
use super::table::{self, DomainRow};
use crate::error::{Error, Result};
use crate::node::Node;

/// How long a command waits for another one on the same domain; libvirt's own limit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a definition is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefineOptions {
    /// A document without UUID replaces the definition of the domain of its name.
    pub replace: bool,
}

/// What may be removed along with a definition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UndefineOptions {
    /// The managed save.
    pub managed_save: bool,
    /// The file of the firmware's variables: `Some(true)` removes it, `Some(false)` keeps it,
    /// `None` refuses where there is one.
    pub nvram: Option<bool>,
    /// What is known of its snapshots; they stay in its images.
    pub snapshots_metadata: bool,
}

/// What a removed definition leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undefined {
    /// The domain's name.
    pub name: String,
    /// Whether it runs on, transient now.
    pub runs_on: bool,
    /// Images that nothing was done to.
    pub images: Vec<String>,
}

impl Node {
    /// Defines a domain, or changes the definition of one with the same name and UUID. One that
    /// runs is not affected; a transient one becomes persistent.
    ///
    /// # Errors
    /// The document is wrong; name or UUID belong to another domain.
    pub fn domain_define(&self, xml: &str, options: DefineOptions) -> Result<DomainInfo> {
        let mut document = parse(xml)?.inactive();
        let had_uuid = document.uuid.is_some();
        let name = document.name.to_string();
        let stored = self.state().write("store a domain", |transaction| {
            if options.replace
                && !had_uuid
                && let Some(row) = table::by_name(transaction, &name)?
                && let Ok(uuid) = Uuid::try_parse(&row.uuid)
            {
                document.set_uuid(uuid);
            }
            give_identity(&mut document);
            store(transaction, &document, had_uuid)
        })?;
        let uuid = stored?;
        self.wake();
        self.domain(&uuid)
    }

    /// Removes a definition. A domain that runs goes on and is transient from then on. Nothing
    /// is done to its images.
    ///
    /// # Errors
    /// There is no such domain, it is transient, or it has a managed save or firmware variables
    /// and `options` do not say what becomes of them.
    pub fn domain_undefine(&self, key: &str, options: UndefineOptions) -> Result<Undefined> {
        let (row, lock) = self.lock_domain(key)?;
        if !row.persistent {
            let reason = "cannot undefine transient domain";
            let hint = format!("it is forgotten when it ends: cenote destroy {}", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let documents = self.documents_of(&row)?;
        let document = parse_stored(&row.name, &documents.definition.unwrap_or_default())?;
        let save = self.managed_save_path(&row.uuid);
        if save.exists() && !options.managed_save {
            let reason = "Refusing to undefine while domain managed save image exists";
            let hint = format!(
                "remove it along with the definition: cenote undefine {} --managed-save",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let snapshots = super::snapshots::table::count(self.state(), row.id)?;
        if snapshots > 0 && !row.is_active() && !options.snapshots_metadata {
            let reason = format!("cannot delete inactive domain with {snapshots} snapshots");
            let hint = format!(
                "delete them first, or forget them along with the definition: \
                 cenote undefine {} --snapshots-metadata",
                row.name
            );
            return Err(DomainError::invalid(&row.name, &reason, Some(hint)).into());
        }
        let nvram = document.os.nvram.as_ref().map(|nvram| nvram.path.trim());
        let nvram = nvram.filter(|path| std::path::Path::new(path).exists());
        if nvram.is_some() && options.nvram.is_none() {
            let reason = "cannot undefine domain with nvram";
            let hint = format!(
                "say what becomes of it, --nvram or --keep-nvram: cenote undefine {} --keep-nvram",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        self.state().write("forget a domain", |transaction| {
            let Some(now) = table::by_row(transaction, row.id)? else {
                return Ok(());
            };
            let query = if now.is_active() {
                "UPDATE domains SET definition = NULL, autostart = 0 WHERE id = ?1"
            } else {
                "DELETE FROM domains WHERE id = ?1"
            };
            transaction.execute(query, [row.id])?;
            let event = Lifecycle::UndefinedRemoved;
            lifecycle::append(transaction, row.subject(), event, Cause::Command, None)
        })?;
        self.wake();
        let remove = |path: &std::path::Path| match std::fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
                action: "remove",
                path: path.to_owned(),
                source,
            }),
            _ => Ok(()),
        };
        if !self.is_read_only() {
            if options.managed_save {
                remove(&save)?;
            }
            if !row.is_active() {
                self.forget_memory(&row.uuid);
            }
            if let (Some(path), Some(true)) = (nvram, options.nvram) {
                remove(std::path::Path::new(path))?;
            }
            if !row.is_active() {
                remove(&lock::life_path(&self.domains_dir(), &row.uuid))?;
                remove(&lock::command_path(&self.domains_dir(), &row.uuid))?;
            }
        }
        drop(lock);
        Ok(Undefined {
            images: images_of(&document),
            runs_on: row.is_active(),
            name: row.name,
        })
    }

    /// Gives a domain that does not run another name.
    ///
    /// # Errors
    /// It runs or is transient; the name is wrong or taken.
    pub fn domain_rename(&self, key: &str, new: &str) -> Result<()> {
        let new = Name::new(new)
            .map_err(|error| DomainError::InvalidArgument(format!("name '{new}': {error}")))?;
        let (row, _lock) = self.lock_domain(key)?;
        if row.is_active() {
            let reason = "cannot rename active domain";
            let hint = format!("shut it down first: cenote shutdown {}", row.name);
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        if row.name == new.as_str() {
            return Err(DomainError::invalid(
                &row.name,
                "can't rename domain to itself",
                Some("choose another name".into()),
            )
            .into());
        }
        let documents = self.documents_of(&row)?;
        let mut document = parse_stored(&row.name, &documents.definition.unwrap_or_default())?;
        document.name = new.clone();
        let xml = document.to_xml();
        let renamed = self.state().write("rename a domain", |transaction| {
            if let Some(other) = table::by_name(transaction, &new)? {
                return Ok(Err(DomainError::NameTaken {
                    name: other.name,
                    uuid: other.uuid,
                    document_has_uuid: true,
                }));
            }
            transaction.execute(
                "UPDATE domains SET name = ?2, definition = ?3 WHERE id = ?1",
                params![row.id, new.as_str(), xml],
            )?;
            let (event, cause) = (Lifecycle::UndefinedRenamed, Cause::Command);
            lifecycle::append(transaction, row.subject(), event, cause, None)?;
            let subject = lifecycle::Subject {
                name: &new,
                ..row.subject()
            };
            lifecycle::append(transaction, subject, Lifecycle::DefinedRenamed, cause, None)?;
            Ok(Ok(()))
        })?;
        renamed?;
        self.wake();
        if !self.is_read_only() {
            let (from, to) = (self.domain_log_dir(&row.name), self.domain_log_dir(&new));
            if let Err(error) = std::fs::rename(&from, &to)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(from = %from.display(), %error, "the logs keep the old name");
            }
        }
        Ok(())
    }

    /// Marks a domain to be started with the node, or not.
    ///
    /// # Errors
    /// There is no such domain, or it is transient.
    pub fn domain_autostart(&self, key: &str, autostart: bool) -> Result<()> {
        let (row, _lock) = self.lock_domain(key)?;
        if !row.persistent {
            let reason = "cannot set autostart for transient domain";
            let hint = format!(
                "define it first: cenote dumpxml {} --inactive > FILE, then cenote define FILE",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        self.state().write("store a domain", |transaction| {
            transaction.execute(
                "UPDATE domains SET autostart = ?2 WHERE id = ?1",
                params![row.id, autostart],
            )
        })?;
        Ok(())
    }

    /// The domain's row, true, and its command lock. A node that is a copy needs no lock.
    pub(crate) fn lock_domain(&self, key: &str) -> Result<(DomainRow, Option<std::fs::File>)> {
        let first = self.domain_row(key)?;
        if self.is_read_only() {
            return Ok((first, None));
        }
        let lock = self.lock_uuid(&first.uuid, &first.name)?;
        // It may have changed while somebody else had the lock.
        Ok((self.domain_row(&first.uuid)?, Some(lock)))
    }

    /// The command lock of the domain with that UUID.
    pub(crate) fn lock_uuid(&self, uuid: &str, name: &str) -> Result<std::fs::File> {
        let path = lock::command_path(&self.domains_dir(), uuid);
        lock::acquire(&path, PATIENCE)?.ok_or_else(|| DomainError::Busy(name.to_owned()).into())
    }
}

/// Reads a document that a user gave.
pub(crate) fn parse(xml: &str) -> Result<Domain> {
    Ok(Domain::from_xml(xml, &ReadOptions::default())
        .map_err(cenote_pools::Error::from)?
        .document)
}

/// Gives the domain a UUID, and each network card an address, where it has none.
pub(crate) fn give_identity(document: &mut Domain) {
    if document.uuid.is_none() {
        document.set_uuid(Uuid::new_v4());
    }
    for card in &mut document.devices.interfaces {
        card.mac.get_or_insert_with(|| InterfaceMac {
            address: MacAddress::of_guest(rand::random()),
            ..InterfaceMac::default()
        });
    }
}

/// The document's UUID as text.
pub(crate) fn uuid_of(document: &Domain) -> String {
    document.uuid.unwrap_or_default().hyphenated().to_string()
}

/// That neither name nor UUID belongs to another domain; and the domain that has both.
pub(crate) fn check_identity(
    transaction: &Transaction<'_>,
    document: &Domain,
    document_has_uuid: bool,
) -> rusqlite::Result<std::result::Result<Option<DomainRow>, DomainError>> {
    let uuid = uuid_of(document);
    if let Some(row) = table::by_uuid(transaction, &uuid)? {
        return Ok(if row.name == document.name.as_str() {
            Ok(Some(row))
        } else {
            Err(DomainError::UuidTaken {
                name: row.name,
                uuid,
            })
        });
    }
    Ok(match table::by_name(transaction, &document.name)? {
        Some(row) => Err(DomainError::NameTaken {
            name: row.name,
            uuid: row.uuid,
            document_has_uuid,
        }),
        None => Ok(None),
    })
}

/// Stores a definition; answers its UUID.
fn store(
    transaction: &Transaction<'_>,
    document: &Domain,
    had_uuid: bool,
) -> rusqlite::Result<std::result::Result<String, DomainError>> {
    let existing = match check_identity(transaction, document, had_uuid)? {
        Ok(existing) => existing,
        Err(error) => return Ok(Err(error)),
    };
    let (uuid, xml) = (uuid_of(document), document.to_xml());
    let event = match &existing {
        Some(row) => {
            transaction
                .prepare_cached("UPDATE domains SET definition = ?2, title = ?3 WHERE id = ?1")?
                .execute(params![row.id, xml, document.title])?;
            if row.persistent {
                Lifecycle::DefinedUpdated
            } else {
                Lifecycle::DefinedAdded
            }
        }
        None => {
            transaction
                .prepare_cached(
                    "INSERT INTO domains (name, uuid, title, definition) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![document.name.as_str(), uuid, document.title, xml])?;
            Lifecycle::DefinedAdded
        }
    };
    let subject = lifecycle::Subject {
        name: &document.name,
        uuid: &uuid,
        id: existing.and_then(|row| row.run),
    };
    lifecycle::append(transaction, subject, event, Cause::Command, None)?;
    Ok(Ok(uuid))
}

/// Images that belong to a domain's disks, as its user would name them.
pub(crate) fn images_of(document: &Domain) -> Vec<String> {
    let name = |disk: &cenote_model::domain::Disk| {
        let volume = disk.source_volume();
        volume
            .map(|(pool, volume)| format!("{pool}/{volume}"))
            .or_else(|| disk.source_path().map(str::to_owned))
    };
    let disks = document.devices.disks.iter();
    disks
        .filter(|disk| !disk.readonly)
        .filter_map(name)
        .collect()
}
