//! Looking at domains.

use std::collections::HashSet;

use cenote_model::Document as _;
use cenote_model::ReadOptions;
use cenote_model::domain::Domain;
use serde::{Deserialize, Serialize};

use super::error::Error as DomainError;
use super::lifecycle::Cause;
use super::state::DomainState;
use super::table::{self, Documents, DomainRow};
use crate::error::{Error, Result};
use crate::node::Node;

/// A domain and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// Its id while it runs.
    pub id: Option<u32>,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its title.
    pub title: Option<String>,
    /// How it stands and why.
    pub state: DomainState,
    /// Whether it is defined beyond its run.
    pub persistent: bool,
    /// Whether it is started with the node.
    pub autostart: bool,
    /// Whether it ends with the connection that started it.
    pub autodestroy: bool,
    /// Whether the next start goes on from a managed save.
    pub managed_save: bool,
}

/// Which document of a domain, and for whose eyes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XmlOptions {
    /// The definition, also while it runs.
    pub inactive: bool,
    /// Without what holds only on this host while it runs: id, names of parts.
    pub migratable: bool,
    /// With passwords.
    pub secure: bool,
}

impl DomainInfo {
    fn of(row: DomainRow, managed_save: bool) -> Self {
        DomainInfo {
            id: row.run,
            name: row.name,
            uuid: row.uuid,
            title: row.title,
            state: row.state,
            persistent: row.persistent,
            autostart: row.autostart,
            autodestroy: row.autodestroy,
            managed_save,
        }
    }
}

impl Node {
    /// All domains by name, running or not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        let saved = self.managed_saves();
        let rows = self.domain_rows()?.into_iter();
        Ok(rows
            .map(|row| {
                let saved = saved.contains(&row.uuid);
                DomainInfo::of(row, saved)
            })
            .collect())
    }

    /// One domain, by the id of a running one, UUID or name.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn domain(&self, key: &str) -> Result<DomainInfo> {
        let row = self.domain_row(key)?;
        let saved = self.managed_save_path(&row.uuid).exists();
        Ok(DomainInfo::of(row, saved))
    }

    /// A domain's document: what runs, else its definition.
    ///
    /// # Errors
    /// There is no such domain, or a transient one has no definition.
    pub fn domain_xml(&self, key: &str, options: XmlOptions) -> Result<String> {
        let mut document = self.domain_document(key, options.inactive)?;
        if options.migratable {
            document = document.inactive();
        }
        Ok(if options.secure || !document.has_secrets() {
            document.to_xml()
        } else {
            document.without_secrets().to_xml()
        })
    }

    /// The same as a structure, with all its secrets.
    ///
    /// # Errors
    /// As [`Node::domain_xml`].
    pub fn domain_document(&self, key: &str, inactive: bool) -> Result<Domain> {
        let row = self.domain_row(key)?;
        let documents = self.documents_of(&row)?;
        let text = match (inactive, documents) {
            (
                false,
                Documents {
                    live: Some(live), ..
                },
            ) => live,
            (
                _,
                Documents {
                    definition: Some(definition),
                    ..
                },
            ) => definition,
            // virsh shows of a transient domain what runs, without what holds only now.
            (
                true,
                Documents {
                    live: Some(live), ..
                },
            ) => {
                return Ok(parse_stored(&row.name, &live)?.inactive());
            }
            (
                _,
                Documents {
                    definition: None,
                    live: None,
                },
            ) => String::new(),
        };
        parse_stored(&row.name, &text)
    }

    pub(crate) fn documents_of(&self, row: &DomainRow) -> Result<Documents> {
        table::documents(self.state(), row.id)?
            .ok_or_else(|| DomainError::NotFound(row.name.clone()).into())
    }

    /// All rows, true.
    pub(crate) fn domain_rows(&self) -> Result<Vec<DomainRow>> {
        let rows = table::all(self.state())?;
        let mut buried = false;
        for row in rows.iter().filter(|row| row.is_active()) {
            buried |= self.bury(row, Cause::SupervisorDied)?;
        }
        if buried {
            return table::all(self.state());
        }
        Ok(rows)
    }

    /// One row, true.
    pub(crate) fn domain_row(&self, key: &str) -> Result<DomainRow> {
        let found = table::find(self.state(), key)?;
        let found = match found {
            Some(row) if self.bury(&row, Cause::SupervisorDied)? => {
                table::find(self.state(), &row.uuid)?
            }
            other => other,
        };
        found.ok_or_else(|| missing(key).into())
    }

    /// UUIDs of domains with a managed save.
    fn managed_saves(&self) -> HashSet<String> {
        let Ok(entries) = std::fs::read_dir(self.save_dir()) else {
            return HashSet::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_suffix(".save").map(str::to_owned)
            })
            .collect()
    }
}

/// There is no domain `key`; a number may have been meant as an id.
fn missing(key: &str) -> DomainError {
    if key.parse::<u32>().is_ok() {
        DomainError::NoSuchId(key.to_owned())
    } else {
        DomainError::NotFound(key.to_owned())
    }
}

/// A document out of the database.
pub(crate) fn parse_stored(name: &str, text: &str) -> Result<Domain> {
    match Domain::from_xml(text, &ReadOptions::default()) {
        Ok(parsed) => Ok(parsed.document),
        Err(error) => Err(Error::BadRecord {
            what: format!("the definition of domain '{name}'"),
            reason: error.to_string(),
        }),
    }
}

impl Node {
    /// The running domain that has an image open, by what its document says.
    pub(crate) fn domain_with_image(&self, path: &std::path::Path) -> Option<String> {
        let wanted = crate::volumes::identity(path)?;
        for row in self.domain_rows().ok()? {
            if !row.is_active() {
                continue;
            }
            let text = self.documents_of(&row).ok()?.live.unwrap_or_default();
            let Ok(document) = parse_stored(&row.name, &text) else {
                continue;
            };
            for image in self.images_of_domain(&document) {
                if crate::volumes::identity(&image) == Some(wanted) {
                    return Some(row.name);
                }
            }
        }
        None
    }

    /// Every file that a domain's disks are made of, with what they stand on.
    pub(crate) fn images_of_domain(&self, document: &Domain) -> Vec<std::path::PathBuf> {
        let mut images = Vec::new();
        for disk in &document.devices.disks {
            let path = match disk.source_volume() {
                Some((pool, volume)) => self
                    .volume(&cenote_pools::VolumeId::new(pool, volume))
                    .ok()
                    .map(|info| (info.path.clone(), info.format)),
                None => disk
                    .source_path()
                    .map(|path| (path.into(), disk.format().to_string())),
            };
            let Some((path, format)) = path else { continue };
            let format = match format.as_str() {
                "qcow2" => cenote_image::Format::Qcow2,
                _ => cenote_image::Format::Raw,
            };
            images.extend(self.layers().ancestors(&path, format));
            images.push(path);
        }
        images
    }
}
