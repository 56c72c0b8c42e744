//! Small changes of a domain's documents.

use cenote_model::domain::{Domain, VcpuCount};
use cenote_model::{Document as _, Element, Memory, Metadata, ReadOptions};
use rusqlite::params;

use super::define::parse;
use super::error::Error as DomainError;
use super::lifecycle::{self, Cause, Lifecycle};
use super::read::parse_stored;
use super::table::DomainRow;
use crate::error::Result;
use crate::events;
use crate::node::Node;

/// Which documents of a domain are meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// What runs if it runs, else the definition.
    #[default]
    Current,
    /// The definition.
    Config,
    /// What runs.
    Live,
    /// Both.
    Both,
}

/// What an amount of memory or processors is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// What the guest has.
    Current,
    /// What it could have at most.
    Maximum,
}

/// What a change is, for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// Words for people and programs, which no machine is made from.
    Words,
    /// What the machine is made from.
    Machine,
}

impl Node {
    /// Sets or, with nothing, removes the title.
    ///
    /// # Errors
    /// There is no such domain or document; the title has several lines.
    pub fn domain_set_title(&self, key: &str, scope: Scope, title: Option<&str>) -> Result<()> {
        self.change_domain(key, scope, Topic::Words, |document| {
            document.title = title.map(str::to_owned);
            Ok(())
        })
    }

    /// Sets or, with nothing, removes the description.
    ///
    /// # Errors
    /// There is no such domain or document.
    pub fn domain_set_description(
        &self,
        key: &str,
        scope: Scope,
        description: Option<&str>,
    ) -> Result<()> {
        self.change_domain(key, scope, Topic::Words, |document| {
            document.description = description.map(str::to_owned);
            Ok(())
        })
    }

    /// The metadata of a namespace, as virsh prints it: without the namespace.
    ///
    /// # Errors
    /// There is no such domain, or nothing of that namespace in it.
    pub fn domain_metadata(&self, key: &str, scope: Scope, uri: &str) -> Result<String> {
        let document = self.scoped_document(key, scope)?;
        let found = document
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.of_namespace(uri));
        let found = found.ok_or(DomainError::NoMetadata)?;
        let mut element = found.clone();
        let declaration = match found.name.split_once(':') {
            Some((prefix, _)) => {
                rename(&mut element, &|name| {
                    let (own, local) = name.split_once(':')?;
                    (own == prefix).then(|| local.to_owned())
                });
                format!("xmlns:{prefix}")
            }
            None => "xmlns".to_owned(),
        };
        element
            .attributes
            .retain(|attribute| attribute.name != declaration);
        Ok(element.to_string())
    }

    /// Sets the metadata of a namespace, or removes it with nothing. `prefix` names the
    /// namespace in the document.
    ///
    /// # Errors
    /// There is no such domain; `xml` is not one well-formed element; what is to be removed is
    /// not there.
    pub fn domain_set_metadata(
        &self,
        key: &str,
        scope: Scope,
        uri: &str,
        prefix: Option<&str>,
        xml: Option<&str>,
    ) -> Result<()> {
        let element = match xml {
            Some(xml) => Some(qualified(xml, uri, prefix)?),
            None => None,
        };
        self.change_domain(key, scope, Topic::Words, |document| {
            let there = document
                .metadata
                .as_ref()
                .is_some_and(|metadata| metadata.of_namespace(uri).is_some());
            let metadata = document
                .metadata
                .get_or_insert_with(|| Metadata(Vec::new()));
            match &element {
                Some(element) => {
                    metadata.remove(uri);
                    metadata.replace(element.clone());
                }
                None if there => metadata.remove(uri),
                None => return Err(DomainError::NoMetadata.into()),
            }
            Ok(())
        })
    }

    /// Sets the memory of the next start, in KiB.
    ///
    /// # Errors
    /// The domain runs and its live memory is meant; the amount contradicts the maximum.
    pub fn domain_set_memory(
        &self,
        key: &str,
        scope: Scope,
        amount: Amount,
        kib: u64,
    ) -> Result<()> {
        self.change_domain(key, scope, Topic::Machine, |document| {
            let invalid = |text: &str| Err(DomainError::InvalidArgument(text.to_owned()).into());
            if kib == 0 {
                return invalid("an amount of memory above nothing is expected");
            }
            let wanted = Memory { kib };
            match amount {
                Amount::Current if wanted > document.memory => {
                    return invalid("cannot set memory higher than max memory");
                }
                Amount::Current => document.current_memory = Some(wanted),
                Amount::Maximum => {
                    document.memory = wanted;
                    let current = document.current_memory.unwrap_or(wanted);
                    document.current_memory = Some(current.min(wanted));
                }
            }
            Ok(())
        })
    }

    /// Sets the number of processors of the next start.
    ///
    /// # Errors
    /// The domain runs and its live processors are meant; the number contradicts the maximum or
    /// the topology.
    pub fn domain_set_vcpus(
        &self,
        key: &str,
        scope: Scope,
        amount: Amount,
        count: u32,
    ) -> Result<()> {
        self.change_domain(key, scope, Topic::Machine, |document| {
            let invalid = |text: String| Err(DomainError::InvalidArgument(text).into());
            let maximum = document.vcpu.maximum();
            if count == 0 {
                return invalid("a number of processors above nothing is expected".into());
            }
            match amount {
                Amount::Current if count > maximum => {
                    return invalid(format!(
                        "requested cpu amount exceeds maximum ({count} > {maximum})"
                    ));
                }
                Amount::Current => {
                    document.vcpu.current = (count != maximum).then_some(count);
                }
                Amount::Maximum => {
                    document.vcpu.count = VcpuCount(count);
                    let current = document.vcpu.current.filter(|current| *current < count);
                    document.vcpu.current = current;
                }
            }
            Ok(())
        })
    }

    /// The document that `scope` means, for reading.
    ///
    /// # Errors
    /// There is no such domain or document.
    pub fn scoped_document(&self, key: &str, scope: Scope) -> Result<Domain> {
        let row = self.domain_row(key)?;
        let (live, config) = meant(&row, scope)?;
        let documents = self.documents_of(&row)?;
        let text = if live {
            documents.live
        } else {
            debug_assert!(config);
            documents.definition
        };
        parse_stored(&row.name, &text.unwrap_or_default())
    }

    pub(super) fn change_domain(
        &self,
        key: &str,
        scope: Scope,
        topic: Topic,
        edit: impl Fn(&mut Domain) -> Result<()>,
    ) -> Result<()> {
        let (row, _lock) = self.lock_domain(key)?;
        let (live, config) = meant(&row, scope)?;
        if live && topic == Topic::Machine {
            let reason = "cannot change memory, processors or devices of a running domain";
            let hint = format!(
                "change them for the next start with --config: cenote dominfo {}",
                row.name
            );
            return Err(DomainError::invalid(&row.name, reason, Some(hint)).into());
        }
        let documents = self.documents_of(&row)?;
        let changed = |text: Option<String>, wanted: bool| -> Result<Option<Domain>> {
            if !wanted {
                return Ok(None);
            }
            let mut document = parse_stored(&row.name, &text.unwrap_or_default())?;
            edit(&mut document)?;
            // Read back, so that changes obey the rules of documents.
            parse(&document.to_xml()).map(Some)
        };
        let new_live = changed(documents.live, live)?;
        let new_config = changed(documents.definition, config)?;
        let title = new_config
            .as_ref()
            .or(new_live.as_ref())
            .and_then(|d| d.title.clone());
        self.state().write("store a domain", |transaction| {
            for (column, document) in [("live", &new_live), ("definition", &new_config)] {
                if let Some(document) = document {
                    transaction.execute(
                        &format!(
                            "UPDATE domains SET {column} = ?2, title = ?3
                             WHERE id = ?1 AND {column} IS NOT NULL"
                        ),
                        params![row.id, document.to_xml(), title],
                    )?;
                }
            }
            match topic {
                Topic::Words => {
                    let fields = serde_json::json!({
                        "uuid": row.uuid, "id": row.run, "cause": Cause::Command,
                    });
                    events::append(transaction, "metadata-change", &row.name, &fields)
                }
                Topic::Machine => {
                    let (event, cause) = (Lifecycle::DefinedUpdated, Cause::Command);
                    lifecycle::append(transaction, row.subject(), event, cause, None)
                }
            }
        })?;
        self.wake();
        Ok(())
    }
}

/// Whether `scope` means what runs, and the definition.
pub(super) fn meant(row: &DomainRow, scope: Scope) -> Result<(bool, bool)> {
    let (live, config) = match scope {
        Scope::Current => (row.is_active(), !row.is_active()),
        Scope::Config => (false, true),
        Scope::Live => (true, false),
        Scope::Both => (true, true),
    };
    if live && !row.is_active() {
        let hint = format!("start it first: cenote start {}", row.name);
        return Err(DomainError::invalid(&row.name, "domain is not running", Some(hint)).into());
    }
    if config && !row.persistent {
        let reason = "transient domains do not have any persistent config";
        return Err(DomainError::invalid(&row.name, reason, None).into());
    }
    Ok((live, config))
}

/// The element of `xml`, in the namespace `uri`.
fn qualified(xml: &str, uri: &str, prefix: Option<&str>) -> Result<Element> {
    let mut element =
        cenote_model::parse(xml, &ReadOptions::default()).map_err(cenote_pools::Error::from)?;
    match prefix {
        Some(prefix) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let first = prefix.starts_with(|c: char| c.is_ascii_alphabetic());
            if !first || !prefix.chars().all(plain) {
                let text = format!("'{prefix}' cannot name a namespace");
                return Err(DomainError::InvalidArgument(text).into());
            }
            rename(&mut element, &|name| {
                (!name.contains(':')).then(|| format!("{prefix}:{name}"))
            });
            element.set(&format!("xmlns:{prefix}"), uri);
        }
        None => element.set("xmlns", uri),
    }
    Ok(element)
}

/// Renames the element and all in it; `None` leaves a name as it is. The depth is that of a
/// document that was read, which is bounded.
fn rename(element: &mut Element, name: &impl Fn(&str) -> Option<String>) {
    if let Some(new) = name(&element.name) {
        element.name = new;
    }
    for child in &mut element.children {
        if let cenote_model::Node::Element(child) = child {
            rename(child, name);
        }
    }
}
