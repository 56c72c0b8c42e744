//! What can go wrong with a domain.

use std::path::PathBuf;

use cenote_pools::ErrorKind;

/// An operation on a domain failed. Messages are libvirt's where it has one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No domain has that name, UUID or id.
    #[error("domain not found: there is no domain '{0}'")]
    NotFound(String),
    /// A number was given that is no running domain's id.
    #[error("domain not found: there is no domain '{0}', and no running domain has that id")]
    NoSuchId(String),
    /// Another domain has the name.
    #[error("operation failed: domain '{name}' already exists with uuid {uuid}")]
    NameTaken {
        /// Its name.
        name: String,
        /// Its UUID.
        uuid: String,
        /// Whether the document had a UUID of its own.
        document_has_uuid: bool,
    },
    /// Another domain has the UUID.
    #[error("operation failed: domain '{name}' is already defined with uuid {uuid}")]
    UuidTaken {
        /// Its name.
        name: String,
        /// The UUID.
        uuid: String,
    },
    /// The domain's state or kind rules the operation out.
    #[error("Requested operation is not valid: {reason}")]
    InvalidOperation {
        /// The domain.
        domain: String,
        /// Why not, in libvirt's words.
        reason: String,
        /// The remedy, one sentence with the exact command where there is one.
        hint: Option<String>,
    },
    /// A value that was given cannot be used.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// Something the domain needs is not there or not usable.
    #[error("cannot start domain '{domain}': {component}")]
    ComponentMissing {
        /// The domain.
        domain: String,
        /// What is missing, with its place.
        component: String,
        /// What brings it, with the exact command where there is one.
        remedy: String,
    },
    /// The machine of this release lacks a part that the guest needs.
    #[error("cannot start domain '{domain}': {part}")]
    MachineLacks {
        /// The domain.
        domain: String,
        /// The part, with its place in the document and what to use in its place.
        part: String,
    },
    /// Another command works on the domain and does not come to an end.
    #[error("domain '{0}' is busy: another command has worked on it for too long")]
    Busy(String),
    /// The monitor or supervisor could not be started.
    #[error("failed to start domain '{domain}': {reason}")]
    StartFailed {
        /// The domain.
        domain: String,
        /// What the monitor said.
        reason: String,
        /// Its log.
        log: PathBuf,
    },
    /// The supervisor did not do what it was asked.
    #[error("failed to {action} domain '{domain}': {reason}")]
    Monitor {
        /// What was asked, to be read after "failed to".
        action: &'static str,
        /// The domain.
        domain: String,
        /// What it said.
        reason: String,
    },
    /// A program of Cenote is not installed.
    #[error("the program '{0}' was not found")]
    NoProgram(&'static str),
    /// A file is not a saved domain, or is damaged.
    #[error("'{}' cannot be restored: {reason}", path.display())]
    BadSaveFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The domain has no metadata of that namespace.
    #[error("metadata not found: Requested metadata element is not present")]
    NoMetadata,
    /// The domain has no such snapshot.
    #[error("Domain snapshot not found: no domain snapshot with matching name '{name}'")]
    NoSnapshot {
        /// The domain.
        domain: String,
        /// What was asked for.
        name: String,
    },
    /// The domain has a snapshot of that name.
    #[error("operation failed: domain snapshot {name} already exists")]
    SnapshotExists {
        /// The domain.
        domain: String,
        /// The name.
        name: String,
    },
    /// The domain has no such disk or drive.
    #[error("invalid argument: domain '{domain}' has no disk or drive '{target}'")]
    NoDisk {
        /// The domain.
        domain: String,
        /// What was asked for.
        target: String,
    },
    /// The domain has no stream that can be attached to.
    #[error("cannot find a console of domain '{0}'")]
    NoConsole(String),
}

impl Error {
    /// An operation that the domain's state rules out.
    pub(crate) fn invalid(domain: &str, reason: &str, hint: Option<String>) -> Self {
        Error::InvalidOperation {
            domain: domain.to_owned(),
            reason: reason.to_owned(),
            hint,
        }
    }

    /// The class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotFound(_)
            | Error::NoSuchId(_)
            | Error::NoMetadata
            | Error::NoDisk { .. }
            | Error::NoSnapshot { .. } => ErrorKind::NotFound,
            Error::NameTaken { .. } | Error::UuidTaken { .. } | Error::SnapshotExists { .. } => {
                ErrorKind::Exists
            }
            Error::InvalidOperation { .. }
            | Error::ComponentMissing { .. }
            | Error::Busy(_)
            | Error::NoConsole(_) => ErrorKind::InvalidState,
            Error::InvalidArgument(_) => ErrorKind::Invalid,
            Error::MachineLacks { .. } => ErrorKind::Unsupported,
            Error::NoProgram(_) => ErrorKind::Host,
            Error::StartFailed { .. } | Error::Monitor { .. } | Error::BadSaveFile { .. } => {
                ErrorKind::Failed
            }
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NotFound(_) => Some(
                "define one with 'define FILE', start one with 'create FILE', or list them: \
                 cenote list --all"
                    .into(),
            ),
            Error::NoSuchId(_) => Some(
                "an id is valid only while the domain is running; use its name or UUID: \
                 cenote list --all"
                    .into(),
            ),
            Error::NameTaken {
                name,
                uuid,
                document_has_uuid: false,
            } => Some(format!(
                "to change that domain add --replace, or <uuid>{uuid}</uuid> to the document; \
                 else choose another name: cenote dumpxml {name} --inactive"
            )),
            Error::NameTaken { name, .. } => Some(format!(
                "choose another name, or undefine the other domain: cenote undefine {name}"
            )),
            Error::UuidTaken { name, .. } => Some(format!(
                "remove <uuid> from the document, or rename the other domain: \
                 cenote domrename {name} NEW-NAME"
            )),
            Error::InvalidOperation { hint, .. } => hint.clone(),
            Error::ComponentMissing { remedy, .. } => Some(remedy.clone()),
            Error::MachineLacks { domain, .. } => {
                Some(format!("change the definition: cenote edit {domain}"))
            }
            Error::Busy(_) => {
                Some("wait for the other command, or look what runs: cenote list --all".into())
            }
            Error::StartFailed { log, .. } => {
                Some(format!("the monitor's log is {}", log.display()))
            }
            Error::Monitor { domain, .. } => Some(format!(
                "see how it stands: cenote domstate {domain} --reason"
            )),
            Error::NoProgram(program) => Some(format!(
                "install '{program}' beside cenote, or name its folder with CENOTE_PROGRAMS"
            )),
            Error::BadSaveFile { .. } => Some("name a file that 'cenote save' wrote".into()),
            Error::NoSnapshot { domain, .. } => Some(format!(
                "use the name of one of its snapshots: cenote snapshot-list {domain}"
            )),
            Error::SnapshotExists { domain, name } => Some(format!(
                "choose another name, or delete that one: cenote snapshot-delete {domain} {name}"
            )),
            Error::NoDisk { domain, .. } => {
                Some(format!("see which it has: cenote domblklist {domain}"))
            }
            Error::NoConsole(domain) => Some(format!(
                "add <serial type='pty'/> to its devices: cenote edit {domain}"
            )),
            Error::InvalidArgument(_) | Error::NoMetadata => None,
        }
    }
}
