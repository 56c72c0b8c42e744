//! The domain's console: what the guest says goes to a log that is always kept, to the files
//! that the document names and to whoever is attached; what they type goes to the guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use crate::state::make_private_dir;

/// Name of a console's log.
pub(crate) const CONSOLE_LOG: &str = "console.log";
/// A log of this many bytes is moved aside; libvirt's own limits.
const LARGEST: u64 = 2 << 20;
/// So many old ones are kept.
const OLD: usize = 3;
/// Somebody attached who does not read for this long is let go.
const PATIENCE: Duration = Duration::from_secs(1);

/// Moves a log aside when it has grown too large: `log` becomes `log.0`, that `log.1`.
pub(crate) fn rotate(path: &Path) {
    if fs::metadata(path).map_or(0, |metadata| metadata.len()) < LARGEST {
        return;
    }
    let old = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..OLD).rev() {
        // What is not there yet is not moved.
        let _ = fs::rename(old(number.saturating_sub(1)), old(number));
    }
    if let Err(error) = fs::rename(path, old(0)) {
        tracing::warn!(path = %path.display(), %error, "a log cannot be rotated");
    }
}

/// Opens a log for writing at its end, its owner's alone.
pub(crate) fn open_log(path: &Path, append: bool) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        make_private_dir(dir)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if append {
        options.append(true);
    } else {
        options.write(true).truncate(true);
    }
    options.open(path)
}

/// A log that is rotated while it is written.
struct Log {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Log {
    fn open(path: PathBuf) -> io::Result<Self> {
        rotate(&path);
        let file = open_log(&path, true)?;
        let written = file.metadata()?.len();
        Ok(Log {
            path,
            file,
            written,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= LARGEST {
            rotate(&self.path);
            self.file = open_log(&self.path, true)?;
            self.written = 0;
        }
        self.file.write_all(bytes)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.written = self.written.saturating_add(length);
        Ok(())
    }
}

#[derive(Default)]
struct Ends {
    /// The guest's side, while a monitor runs.
    guest: Option<ChildStdin>,
    /// Who is attached, and the number of the attachment.
    client: Option<(u64, UnixStream)>,
    attachments: u64,
}

/// The console of one domain, over all the monitors it runs on.
pub(crate) struct Console {
    log: Mutex<Log>,
    files: Mutex<Vec<File>>,
    ends: Mutex<Ends>,
}

impl Console {
    /// Opens the log and the files, which the first monitor's output is written to.
    pub(crate) fn open(log_dir: &Path, files: &[(PathBuf, bool)]) -> io::Result<Arc<Self>> {
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("'{}': {error}", path.display()))
        };
        let mut open = Vec::new();
        for (path, append) in files {
            open.push(open_log(path, *append).map_err(|error| named(path, error))?);
        }
        let path = log_dir.join(CONSOLE_LOG);
        let log = Log::open(path.clone()).map_err(|error| named(&path, error))?;
        Ok(Arc::new(Console {
            log: Mutex::new(log),
            files: Mutex::new(open),
            ends: Mutex::default(),
        }))
    }

    /// Joins a monitor's ends to the console, until it closes them.
    pub(crate) fn join(
        self: &Arc<Self>,
        guest: ChildStdin,
        mut output: ChildStdout,
    ) -> io::Result<JoinHandle<()>> {
        self.ends.lock().guest = Some(guest);
        let console = Arc::clone(self);
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                let mut buffer = [0; 16384];
                loop {
                    match output.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(read) => console.say(buffer.get(..read).unwrap_or_default()),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => {
                            tracing::warn!(%error, "the console cannot be read");
                            break;
                        }
                    }
                }
            })
    }

    fn say(&self, bytes: &[u8]) {
        if let Err(error) = self.log.lock().write(bytes) {
            tracing::warn!(%error, "the console's log cannot be written");
        }
        for file in self.files.lock().iter_mut() {
            if let Err(error) = file.write_all(bytes) {
                tracing::warn!(%error, "a copy of the console cannot be written");
            }
        }
        let mut ends = self.ends.lock();
        if let Some((_, client)) = &mut ends.client
            && client.write_all(bytes).is_err()
        {
            ends.client = None;
        }
    }

    /// Attaches a connection and serves it until it goes away. `accept` tells the other side.
    /// Answers why not, if somebody else is attached.
    pub(crate) fn attach(
        &self,
        stream: &UnixStream,
        force: bool,
        accept: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<bool> {
        let number = {
            let mut ends = self.ends.lock();
            match &ends.client {
                Some(_) if !force => return Ok(false),
                Some((_, other)) => {
                    // It may be gone already.
                    let _ = other.shutdown(Shutdown::Both);
                }
                None => {}
            }
            accept()?;
            let client = stream.try_clone()?;
            client.set_write_timeout(Some(PATIENCE))?;
            ends.attachments = ends.attachments.saturating_add(1);
            ends.client = Some((ends.attachments, client));
            ends.attachments
        };
        let mut buffer = [0; 4096];
        let mut stream = stream;
        while let Ok(read) = stream.read(&mut buffer) {
            let Some(typed) = buffer.get(..read).filter(|typed| !typed.is_empty()) else {
                break;
            };
            // A clone is written to without the lock: a guest that does not read holds back its
            // typist and nobody else.
            let guest = {
                let ends = self.ends.lock();
                let guest = ends.guest.as_ref();
                guest.and_then(|guest| rustix::io::dup(guest).ok())
            };
            if let Some(guest) = guest {
                let _ = File::from(guest).write_all(typed);
            }
        }
        let mut ends = self.ends.lock();
        if ends.client.as_ref().is_some_and(|(own, _)| *own == number) {
            ends.client = None;
        }
        Ok(true)
    }

    /// Lets whoever is attached go: the domain has ended.
    pub(crate) fn close(&self) {
        let mut ends = self.ends.lock();
        ends.guest = None;
        if let Some((_, client)) = ends.client.take() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_rotated_and_old_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONSOLE_LOG);
        let mut log = Log::open(path.clone()).unwrap();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..11 {
            log.write(&piece).unwrap();
        }
        let length = |name: &str| fs::metadata(dir.path().join(name)).map(|m| m.len()).ok();
        assert_eq!(length("console.log"), Some(1 << 20));
        for old in ["console.log.0", "console.log.1", "console.log.2"] {
            assert_eq!(length(old), Some(2 << 20), "{old}");
        }
        assert_eq!(length("console.log.3"), None);
    }
}
