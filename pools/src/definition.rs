//! From a pool's document to what the backends act on, and back.

use std::path::{Path, PathBuf};

use cenote_model::pool::{Pool, PoolFormat, PoolKind, PoolSource, PoolTarget};
use cenote_model::{Bytes, Document, Name, ReadOptions};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::spec::{NetworkOptions, Permissions, PoolSpec, Source, Space};

/// A pool's document that was found to be something Cenote can do.
#[derive(Debug, Clone)]
pub struct PoolDefinition {
    document: Pool,
    /// The pool's UUID, made where the document had none.
    pub uuid: String,
    /// What it asks of the host.
    pub spec: PoolSpec,
}

impl PoolDefinition {
    /// Reads a document.
    ///
    /// # Errors
    /// It is not well-formed, or asks for what Cenote does not do.
    pub fn from_xml(xml: &str) -> Result<Self> {
        Self::from_document(Pool::from_xml(xml, &ReadOptions::default())?.document)
    }

    /// Takes a document made field by field.
    ///
    /// # Errors
    /// It asks for what Cenote does not do.
    pub fn from_document(mut document: Pool) -> Result<Self> {
        // What a document reports is not part of the definition.
        (document.capacity, document.allocation, document.available) = (None, None, None);
        let uuid = *document.uuid.get_or_insert_with(Uuid::new_v4);
        let spec = spec_of(&document)?;
        Ok(PoolDefinition {
            document,
            uuid: uuid.hyphenated().to_string(),
            spec,
        })
    }

    /// A pool of type `dir` on `target`.
    ///
    /// # Errors
    /// The name is none, or the target is not UTF-8.
    pub fn directory(name: &str, target: &Path) -> Result<Self> {
        let bad = |reason: String| Error::BadDefinition {
            what: format!("pool '{name}'"),
            reason,
        };
        let path = target
            .to_str()
            .ok_or_else(|| bad("its target path is not UTF-8".into()))?;
        Self::from_document(Pool {
            name: Name::new(name).map_err(|error| bad(error.to_string()))?,
            target: PoolTarget {
                path: Some(path.to_owned()),
                ..PoolTarget::default()
            },
            ..Pool::default()
        })
    }

    /// The document, with the pool's space if it is known.
    pub fn to_xml(&self, space: Option<Space>) -> String {
        let mut document = self.document.clone();
        if let Some(space) = space {
            document.capacity = Some(Bytes(space.capacity));
            document.allocation = Some(Bytes(space.allocation));
            document.available = Some(Bytes(space.available));
        }
        document.to_xml()
    }

    /// Its type as the document writes it.
    pub fn kind(&self) -> &'static str {
        self.document.kind.as_str()
    }

    /// Whether starting it mounts a file system.
    pub fn mounts(&self) -> bool {
        matches!(self.document.kind, PoolKind::Fs | PoolKind::Netfs)
    }
}

fn spec_of(document: &Pool) -> Result<PoolSpec> {
    let name = document.name.to_string();
    let bad = |reason: &str| Error::BadDefinition {
        what: format!("pool '{name}'"),
        reason: reason.to_owned(),
    };
    let source = document.source.clone().unwrap_or_default();
    let kind = match document.kind {
        PoolKind::Dir => Source::Directory,
        PoolKind::Fs => Source::FileSystem {
            device: source
                .devices
                .first()
                .map(|device| PathBuf::from(&device.path))
                .ok_or_else(|| bad("it names no source device"))?,
            format: format_of(&source).to_owned(),
        },
        PoolKind::Netfs => network(&source, &bad)?,
        PoolKind::Logical => Source::VolumeGroup {
            name: document
                .volume_group()
                .ok_or_else(|| bad("it names no volume group"))?
                .to_owned(),
            devices: source
                .devices
                .iter()
                .map(|device| PathBuf::from(&device.path))
                .collect(),
        },
        other => {
            return Err(Error::PoolTypeUnsupported {
                pool: name,
                kind: other.to_string(),
            });
        }
    };
    let target = match (&document.target.path, &kind) {
        (Some(path), _) => PathBuf::from(path),
        (None, Source::VolumeGroup { name, .. }) => Path::new("/dev").join(name),
        (None, _) => return Err(bad("it names no target path")),
    };
    if !target.is_absolute() {
        return Err(bad("its target path is not absolute"));
    }
    let permissions = document.target.permissions.as_ref();
    if permissions.is_some_and(|permissions| permissions.label.is_some()) {
        return Err(bad("security labels of the target are not supported"));
    }
    Ok(PoolSpec {
        target,
        permissions: Permissions {
            mode: permissions.and_then(|p| p.mode).map(|mode| mode.0),
            owner: permissions
                .and_then(|p| p.owner)
                .and_then(|id| u32::try_from(id).ok()),
            group: permissions
                .and_then(|p| p.group)
                .and_then(|id| u32::try_from(id).ok()),
        },
        source: kind,
        without_cow: document.without_cow(),
        name,
    })
}

fn format_of(source: &PoolSource) -> &'static str {
    source
        .format
        .as_ref()
        .map_or(PoolFormat::Auto, |format| format.kind)
        .as_str()
}

fn network(source: &PoolSource, bad: &dyn Fn(&str) -> Error) -> Result<Source> {
    let [host] = source.hosts.as_slice() else {
        return Err(bad("exactly one source host is needed"));
    };
    if host.name.is_empty() || host.name.starts_with('-') {
        return Err(bad("the name of its source host is not a host's"));
    }
    let directory = source
        .dir
        .as_ref()
        .ok_or_else(|| bad("it names no source directory"))?;
    Ok(Source::Network {
        host: host.name.clone(),
        directory: directory.path.clone(),
        format: format_of(source).to_owned(),
        options: NetworkOptions {
            port: host.port,
            version: match source
                .protocol
                .as_ref()
                .map(|protocol| protocol.version.clone())
            {
                Some(version) if !version.chars().all(|c| c.is_ascii_digit() || c == '.') => {
                    return Err(bad("its protocol version is not a version number"));
                }
                version => version,
            },
        },
    })
}
