//! Ports of the virtio console in the machine description.

use super::{DescriptionError, FileSource};
use crate::virtio::console::{HostSide, LONGEST_PORT_NAME, MOST_PORTS, PortOptions};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::{
        fd::{IntoRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

/// A port between the guest and a program of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortDescription {
    /// The name that the guest sees, at most 127 bytes; none unless given.
    #[serde(default)]
    pub name: String,
    /// Whether the guest is to use it as a console.
    #[serde(default)]
    pub console: bool,
    /// The host's side.
    pub backend: PortBackend,
}

/// The host's side of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortBackend {
    /// Output is lost, there is no input.
    Null,
    /// Output goes to a file, there is no input.
    File(FileSource),
    /// A stream socket: a descriptor of a connected or a listening one, or the path of one to
    /// connect to.
    Socket(FileSource),
    /// The path of a stream socket to listen at; one client at a time is served.
    Listen(std::path::PathBuf),
}

/// What is wrong with the ports.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Too many ports.
    #[error("{0} console ports are too many: give at most {MOST_PORTS}")]
    Count(usize),
    /// A name that is too long or odd.
    #[error(
        "console port name '{0}' is impossible: give at most {LONGEST_PORT_NAME} printable ASCII characters"
    )]
    Name(String),
    /// Two ports have one name.
    #[error("two console ports are called '{0}': give each its own name")]
    Twice(String),
    /// A file cannot be opened.
    #[error("console port '{name}'")]
    Open {
        /// The port.
        name: String,
        /// Which file, and why.
        source: DescriptionError,
    },
    /// A socket cannot be used.
    #[error("console port '{name}': the socket cannot be used")]
    Socket {
        /// The port.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Checks all ports of a machine.
///
/// # Errors
/// [`PortError`].
pub fn check(ports: &[PortDescription]) -> Result<(), PortError> {
    if ports.len() > MOST_PORTS {
        return Err(PortError::Count(ports.len()));
    }
    for (index, port) in ports.iter().enumerate() {
        let printable = port.name.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        if !printable || port.name.len() > LONGEST_PORT_NAME {
            return Err(PortError::Name(port.name.clone()));
        }
        let twice = ports[..index].iter().any(|other| other.name == port.name);
        if twice && !port.name.is_empty() {
            return Err(PortError::Twice(port.name.clone()));
        }
    }
    Ok(())
}

impl PortDescription {
    /// Opens what is named by a path and puts its descriptor in the path's place.
    pub(super) fn keep_open(&mut self) -> Result<(), PortError> {
        let by_path = matches!(
            self.backend,
            PortBackend::File(FileSource::Path(_))
                | PortBackend::Socket(FileSource::Path(_))
                | PortBackend::Listen(_)
        );
        if !by_path {
            return Ok(());
        }
        self.backend = match self.open()?.host {
            HostSide::Null => PortBackend::Null,
            HostSide::File(file) => PortBackend::File(FileSource::Fd(file.into_raw_fd())),
            HostSide::Stream(None) => PortBackend::Null,
            HostSide::Stream(Some(socket)) | HostSide::Listener { socket, .. } => {
                PortBackend::Socket(FileSource::Fd(socket.into_raw_fd()))
            }
        };
        Ok(())
    }

    /// Opens the host's side.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn open(&self) -> Result<PortOptions, PortError> {
        let open = |file: &FileSource, options: &std::fs::OpenOptions| {
            file.open_with("file", options)
                .map(OwnedFd::from)
                .map_err(|source| PortError::Open {
                    name: self.name.clone(),
                    source,
                })
        };
        let failed = |source| PortError::Socket {
            name: self.name.clone(),
            source,
        };
        let host = match &self.backend {
            PortBackend::Null => HostSide::Null,
            PortBackend::File(file) => {
                let file = open(file, File::options().append(true).create(true))?;
                HostSide::file(file).map_err(failed)?
            }
            PortBackend::Socket(FileSource::Path(path)) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                HostSide::socket(stream.into()).map_err(failed)?
            }
            PortBackend::Socket(socket) => {
                HostSide::socket(open(socket, File::options().read(true))?).map_err(failed)?
            }
            PortBackend::Listen(path) => {
                let listener = UnixListener::bind(path).map_err(failed)?;
                HostSide::socket(listener.into()).map_err(failed)?
            }
        };
        Ok(PortOptions {
            name: self.name.clone(),
            console: self.console,
            host,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> PortDescription {
        PortDescription {
            name: name.to_owned(),
            console: false,
            backend: PortBackend::Null,
        }
    }

    #[test]
    fn impossible_ports_have_their_own_messages() {
        let message = |ports: &[PortDescription]| check(ports).unwrap_err().to_string();
        assert!(check(&[port("a"), port(""), port("")]).is_ok());
        assert!(message(&[port("a"), port("a")]).contains("two console ports"));
        assert!(message(&[port(&"x".repeat(128))]).contains("at most 127"));
        assert!(message(&[port("a\n")]).contains("printable"));
        assert!(message(&vec![port(""); 32]).contains("32 console ports"));
    }

    #[test]
    fn sockets_are_given_or_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut listening = port("a");
        listening.backend = PortBackend::Listen(path.clone());
        let opened = listening.open().unwrap();
        assert!(!opened.host.is_connected());
        let mut connected = port("b");
        connected.backend = PortBackend::Socket(FileSource::Path(path.clone()));
        assert!(connected.open().unwrap().host.is_connected());
        let taken = listening.open().unwrap_err();
        assert!(matches!(taken, PortError::Socket { .. }));
        drop(opened);
        assert!(connected.open().is_err(), "nobody listens");
    }
}
