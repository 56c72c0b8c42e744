//! What can go wrong with an install.

use std::path::PathBuf;

use cenote_pools::ErrorKind;
use cenote_provision::media::MediaError;

/// An install was refused, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A way of installing that is not there yet.
    #[error("{what} is not possible yet")]
    NotYet {
        /// What was asked for.
        what: String,
        /// What would do.
        instead: &'static str,
    },
    /// The request contradicts itself, or cannot be honoured.
    #[error("the install cannot be planned: {0}")]
    Refused(String),
    /// The media are of no use.
    #[error("the install media are of no use: {}", chain(.0))]
    Media(#[from] MediaError),
    /// The installer would stumble over the answer file, or wait for an answer.
    #[error("the {kind} file would not install unattended: {}", findings.join("; "))]
    Answer {
        /// Its kind.
        kind: &'static str,
        /// What is wrong, and what to write.
        findings: Vec<String>,
    },
    /// The installer failed.
    #[error("the install of domain '{domain}' failed: {reason}")]
    Failed {
        /// The domain.
        domain: String,
        /// Why, with the installer's last words.
        reason: String,
        /// Whether domain and volumes are still there.
        kept: bool,
        /// What its serial line said.
        log: PathBuf,
    },
    /// The installer was not done in time.
    #[error("the install of domain '{domain}' was given up: {reason}")]
    TimedOut {
        /// The domain.
        domain: String,
        /// Why, with the installer's last words.
        reason: String,
        /// Whether domain and volumes are still there.
        kept: bool,
        /// What its serial line said.
        log: PathBuf,
    },
    /// Somebody stopped it.
    #[error("the install of domain '{0}' was stopped, and what it had made is deleted")]
    Cancelled(String),
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

impl Error {
    /// The class of the error, for exit codes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotYet { .. } => ErrorKind::Unsupported,
            Error::Refused(_) | Error::Answer { .. } => ErrorKind::Invalid,
            Error::Media(_) => ErrorKind::NotFound,
            Error::Failed { .. } | Error::TimedOut { .. } => ErrorKind::Failed,
            Error::Cancelled(_) => ErrorKind::Cancelled,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NotYet { instead, .. } => Some((*instead).to_owned()),
            Error::Answer { .. } => Some(
                "correct the file, or take the risk with --no-lint: cenote install --help".into(),
            ),
            Error::Media(_) => Some(
                "name kernel and initrd, --location PATH,kernel=K,initrd=I: cenote install --help"
                    .into(),
            ),
            Error::Failed { domain, kept, .. } | Error::TimedOut { domain, kept, .. } => {
                let rest = if *kept {
                    format!(
                        "; domain and disks are kept for a look at them, and taken away by \
                         cenote teardown {domain}"
                    )
                } else {
                    String::new()
                };
                Some(format!(
                    "read what the installer printed: cenote logs {domain} --install{rest}"
                ))
            }
            Error::Refused(_) | Error::Cancelled(_) => None,
        }
    }
}

/// Refusals of the parts below, in their own words.
macro_rules! refused {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Refused(chain(&error))
            }
        })*
    };
}
refused!(
    cenote_provision::answer::InstrumentError,
    cenote_provision::answer::secret::SecretError,
    cenote_provision::deliver::PlanError,
    cenote_provision::initrd::InitrdError,
    cenote_provision::install::RequestError,
);
