//! Ports of the virtio console: `<channel>` and `<console>` of type virtio.

use std::path::{Path, PathBuf};

use cenote_model::OnOff;
use cenote_model::domain::{Character, CharacterKind, CharacterLog, CharacterSource};
use cenote_vmm::machine::{FileSource, PortBackend, PortDescription};

use super::Translation;
use crate::domains::error::Error as DomainError;

impl Translation<'_> {
    /// The ports, and files among them that start empty.
    pub(super) fn ports(&mut self) -> Result<(Vec<PortDescription>, Vec<PathBuf>), DomainError> {
        let (mut ports, mut emptied) = (Vec::new(), Vec::new());
        let devices = &self.document.devices;
        for (index, channel) in devices.channels.iter().enumerate() {
            let place = format!("devices/channel[{}]", index + 1);
            self.no_log(&place, channel.log.as_ref())?;
            let name = channel.target.name.clone().unwrap_or_default();
            let own = own_socket(index);
            let backend =
                self.backend(&place, channel.kind, channel.source.as_ref(), Some(&own))?;
            note_emptied(&backend, channel.source.as_ref(), &mut emptied);
            ports.push(PortDescription {
                name,
                console: false,
                backend,
            });
        }
        for (index, console) in devices.consoles.iter().enumerate() {
            let place = format!("devices/console[{}]", index + 1);
            if !is_virtio(console) {
                self.serial_console(&place, index, console)?;
                continue;
            }
            self.no_log(&place, console.log.as_ref())?;
            let backend = self.backend(&place, console.kind, console.source.as_ref(), None)?;
            note_emptied(&backend, console.source.as_ref(), &mut emptied);
            ports.push(PortDescription {
                name: String::new(),
                console: true,
                backend,
            });
        }
        Ok((ports, emptied))
    }

    /// Only the first console is a serial port under another name.
    fn serial_console(
        &self,
        place: &str,
        index: usize,
        console: &Character,
    ) -> Result<(), DomainError> {
        let kind = console
            .target
            .as_ref()
            .and_then(|target| target.kind.as_deref());
        match kind {
            None | Some("serial") if index == 0 => Ok(()),
            other => {
                let other = other.unwrap_or("serial");
                let text = format!("another console of type '{other}'; use virtio");
                Err(self.lacks(&format!("{place}/target/@type"), &text))
            }
        }
    }

    fn no_log(&self, place: &str, log: Option<&CharacterLog>) -> Result<(), DomainError> {
        match log {
            None => Ok(()),
            Some(_) => Err(self.lacks(
                &format!("{place}/log"),
                "a port's output is not written to a second place; use type='file'",
            )),
        }
    }

    fn backend(
        &mut self,
        place: &str,
        kind: CharacterKind,
        source: Option<&CharacterSource>,
        own: Option<&str>,
    ) -> Result<PortBackend, DomainError> {
        let path = source.and_then(|source| source.path.as_deref());
        let connects = source.is_some_and(|source| source.mode.as_deref() == Some("connect"));
        Ok(match (kind, path) {
            (CharacterKind::File, Some(path)) => PortBackend::File(FileSource::Path(path.into())),
            (CharacterKind::Unix, Some(path)) if connects => {
                self.check_socket(place, path)?;
                PortBackend::Socket(FileSource::Path(path.into()))
            }
            (CharacterKind::Unix, path) => match path.or(own) {
                Some(path) => PortBackend::Listen(path.into()),
                None => return Err(self.lacks(place, "a socket without a path")),
            },
            (CharacterKind::Null, _) => PortBackend::Null,
            // The model has said that nothing is joined to these.
            (
                CharacterKind::SpiceVmc
                | CharacterKind::SpicePort
                | CharacterKind::QemuVdagent
                | CharacterKind::Dbus
                | CharacterKind::Vc,
                _,
            ) => {
                self.note(
                    place,
                    &format!("nothing is joined to it: there is no '{kind}'"),
                );
                PortBackend::Null
            }
            _ => {
                let text = format!("a port of type '{kind}'; use unix, file or null");
                return Err(self.lacks(&format!("{place}/@type"), &text));
            }
        })
    }

    fn check_socket(&self, place: &str, path: &str) -> Result<(), DomainError> {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Ok(()),
            Err(error) => Err(DomainError::ComponentMissing {
                domain: self.document.name.to_string(),
                component: format!("{place}: nobody listens at '{path}': {error}"),
                remedy: "start the program that is to listen there, or use mode='bind'".to_owned(),
            }),
        }
    }
}

fn is_virtio(console: &Character) -> bool {
    let target = console.target.as_ref();
    target.and_then(|target| target.kind.as_deref()) == Some("virtio")
}

/// Files start empty unless they are to be added to.
fn note_emptied(
    backend: &PortBackend,
    source: Option<&CharacterSource>,
    emptied: &mut Vec<PathBuf>,
) {
    let append = source.and_then(|source| source.append) == Some(OnOff::On);
    if let PortBackend::File(FileSource::Path(path)) = backend
        && !append
    {
        emptied.push(path.clone());
    }
}

/// Empties the files that start so.
///
/// # Errors
/// What the system said, with the path.
pub(crate) fn empty(files: &[PathBuf]) -> Result<(), String> {
    for path in files {
        std::fs::File::create(path).map_err(|error| format!("'{}': {error}", path.display()))?;
    }
    Ok(())
}

/// Removes sockets that a dead monitor left where the next one listens.
///
/// # Errors
/// What the system said, with the path.
pub(crate) fn clear_sockets(ports: &[PortDescription], run_dir: &Path) -> Result<(), String> {
    use std::io::ErrorKind::ConnectionRefused;
    use std::os::unix::fs::FileTypeExt as _;
    for port in ports {
        let PortBackend::Listen(path) = &port.backend else {
            continue;
        };
        // In the run directory nobody else listens.
        let own = path.is_relative();
        let path = run_dir.join(path);
        let is_socket =
            std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket());
        let is_left = || {
            let answer = std::os::unix::net::UnixStream::connect(&path);
            answer.is_err_and(|error| error.kind() == ConnectionRefused)
        };
        if is_socket && (own || is_left()) {
            std::fs::remove_file(&path)
                .map_err(|error| format!("'{}': {error}", path.display()))?;
        }
    }
    Ok(())
}

/// The same document with the sockets that the monitor listens at without being told where.
pub(crate) fn name_sockets(document: &mut cenote_model::domain::Domain, run_dir: &Path) {
    for (index, channel) in document.devices.channels.iter_mut().enumerate() {
        let source = channel.source.get_or_insert_default();
        if channel.kind == CharacterKind::Unix && source.path.is_none() {
            let path = run_dir.join(own_socket(index));
            source.mode = Some("bind".to_owned());
            source.path = Some(path.display().to_string());
        }
    }
}

/// Name of a channel's socket in the run directory, which is the monitor's working directory.
fn own_socket(index: usize) -> String {
    format!("channel{index}.sock")
}
