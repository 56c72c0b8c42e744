//! What commands and supervisors say to each other: one JSON document per line over a Unix
//! socket in the domain's run directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use cenote_vmm::machine::DiskStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::network::CardReport;
use crate::domains::{Cause, NetworkServices};

/// Name of the supervisor's socket in the run directory.
pub(crate) const SOCKET: &str = "supervisor.sock";

/// The longest line that is read, in bytes; an order holds documents.
const LONGEST: u64 = 64 << 20;

/// What a supervisor is to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// The document of what is to run.
    pub(crate) document: String,
    /// A saved machine to go on from.
    pub(crate) restore: Option<Restore>,
    /// Whether the guest is left standing.
    pub(crate) paused: bool,
    pub(crate) autodestroy: bool,
    pub(crate) cause: Cause,
    pub(crate) allow_emulation: bool,
    /// Where backing files may lie besides the pools.
    #[serde(default)]
    pub(crate) backing_dirs: Vec<PathBuf>,
    /// The monitor's program.
    pub(crate) monitor: PathBuf,
    /// The user-mode network's program, where a card needs one.
    pub(crate) network: Option<PathBuf>,
    /// What the guest's network has beyond the document.
    #[serde(default)]
    pub(crate) services: NetworkServices,
}

/// A saved machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Restore {
    pub(crate) path: PathBuf,
    /// Whether the file is removed once the domain runs.
    pub(crate) consume: bool,
    /// Whether it is a snapshot's.
    #[serde(default)]
    pub(crate) snapshot: bool,
}

/// What a supervisor says when it has started its domain, or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ready {
    Started { id: u32, notes: Vec<String> },
    Failed { reason: String },
}

/// What can be asked of a supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    Suspend,
    Resume,
    /// Push the power button; with `reboot` the guest is started again when it has switched
    /// itself off.
    PowerButton {
        reboot: bool,
    },
    Reset,
    Destroy {
        graceful: bool,
        cause: Cause,
        /// To go back to a snapshot.
        #[serde(default)]
        for_snapshot: bool,
    },
    /// Save to a file and end.
    Save {
        path: PathBuf,
        document: Option<String>,
        run: Option<bool>,
    },
    /// What its processes have used.
    Stats,
    /// How the networks of its cards stand.
    Cards,
    /// What the screen shows, as PNG, to a file that exists.
    Screenshot {
        path: PathBuf,
    },
    /// Press keys, or let them go.
    Keys {
        codes: Vec<u8>,
        down: bool,
    },
    /// Go over to another document, which differs in the disc of the drive `target`.
    ChangeMedium {
        document: String,
        target: String,
        force: bool,
    },
    /// Go over to overlays on some disks, and make the snapshot that was begun one that is there.
    TakeSnapshot(LiveSnapshot),
    /// Delete the snapshot `name` from the images of the disks `targets`, where it is.
    DropSnapshot {
        name: String,
        targets: Vec<String>,
    },
    /// The connection carries the console's bytes from here on.
    Console {
        force: bool,
    },
}

/// A snapshot of a running domain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LiveSnapshot {
    pub(crate) token: String,
    pub(crate) name: String,
    /// What runs afterwards: the disks `overlaid` have new images.
    pub(crate) document: String,
    /// The domain's new definition.
    pub(crate) definition: Option<String>,
    pub(crate) overlaid: Vec<String>,
    /// Disks whose images hold the snapshot.
    pub(crate) internal: Vec<String>,
    /// Where the guest's memory is kept.
    pub(crate) memory: Option<PathBuf>,
}

/// What a supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    Done,
    Stats {
        monitor: u32,
        ran_milliseconds: u64,
        resets: u64,
        #[serde(default)]
        disks: BTreeMap<String, DiskStatus>,
    },
    Cards(Vec<CardReport>),
    /// The domain's state rules it out.
    Invalid {
        reason: String,
    },
    Failed {
        reason: String,
    },
}

/// Does something with a socket in a directory, however long the directory's path is: the kernel
/// takes 108 bytes.
pub(crate) fn at_short_path<T, E: From<io::Error>>(
    dir: &Path,
    name: &str,
    action: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let dir = File::open(dir)?;
    action(Path::new(&format!(
        "/proc/self/fd/{}/{name}",
        dir.as_raw_fd()
    )))
}

/// Connects to a socket in a directory.
pub(crate) fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    at_short_path(dir, name, |path| UnixStream::connect(path))
}

/// Listens on a socket in a directory, replacing one that a dead process left.
pub(crate) fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    at_short_path(dir, name, |path| UnixListener::bind(path))
}

/// Sends one document.
pub(crate) fn send(stream: &mut impl io::Write, document: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(document)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.flush()
}

/// Receives one document; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(
    reader: &mut BufReader<impl io::Read>,
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    reader.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// One question and its answer; and the connection, which may carry more.
pub(crate) fn ask(dir: &Path, request: &Request) -> io::Result<(UnixStream, Reply)> {
    let mut stream = connect(dir, SOCKET)?;
    send(&mut stream, request)?;
    // Byte by byte: what follows the answer is not a document.
    let reply = receive(&mut BufReader::with_capacity(1, &stream))?;
    let reply = reply.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok((stream, reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_deep_down_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let listener = listen(&deep, SOCKET).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let request: Request = receive(&mut reader).unwrap().unwrap();
            assert!(matches!(request, Request::Suspend));
            send(&mut &stream, &Reply::Done).unwrap();
        });
        assert!(matches!(
            ask(&deep, &Request::Suspend).unwrap().1,
            Reply::Done
        ));
        server.join().unwrap();
        // A socket left behind is replaced.
        drop(listen(&deep, SOCKET).unwrap());
        assert!(ask(&deep, &Request::Suspend).is_err());
    }
}
