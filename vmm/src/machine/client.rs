//! The other side of the control socket, for whoever has started a monitor.

use super::{Notice, Status};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, IoSlice, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
};

/// The most descriptors that one request can bring.
pub const MOST_DESCRIPTORS: usize = super::control::MOST_DESCRIPTORS;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No monitor listens there.
    #[error("control socket {path} cannot be reached: does the monitor run?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the monitor broke")]
    Connection(#[source] io::Error),
    /// The monitor ended before it answered.
    #[error("the monitor ended before it answered")]
    Ended,
    /// The monitor answered something that is no answer.
    #[error("the monitor's answer cannot be understood")]
    Answer(#[source] serde_json::Error),
    /// The monitor refused or failed.
    #[error("{message}")]
    Refused {
        /// JSON-RPC's code of the error.
        code: i32,
        /// What the monitor said.
        message: String,
    },
    /// More descriptors than a request can bring.
    #[error("a request brings at most {MOST_DESCRIPTORS} descriptors, not {0}")]
    Descriptors(usize),
    /// The file to save to cannot be made.
    #[error("{path}: {action} failed")]
    File {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    code: i32,
    message: String,
}

/// A connection to a running monitor's control socket.
pub struct Client {
    stream: BufReader<UnixStream>,
    id: u64,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            id: 0,
        })
    }

    /// Calls a method that answers with the machine's status: `status`, `pause`, `resume`,
    /// `shutdown`, `reset`, `quit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(&mut self, method: &str) -> Result<Status, ClientError> {
        let result = self.request(method, &Value::Null, &[])?;
        serde_json::from_value(result).map_err(ClientError::Answer)
    }

    /// Sends a request with parameters and descriptors, waits until the monitor has carried it
    /// out, and gives the result. The monitor gets duplicates; the caller's stay open.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn request(
        &mut self,
        method: &str,
        parameters: &Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Value, ClientError> {
        self.id += 1;
        let request = json!({
            "jsonrpc": "2.0",
            "id": self.id,
            "method": method,
            "params": parameters,
            "descriptors": descriptors.len(),
        });
        let line = request.to_string() + "\n";
        self.send(line.as_bytes(), descriptors)?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => return Err(ClientError::Ended),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(ClientError::Ended);
            }
            Err(error) => return Err(ClientError::Connection(error)),
        }
        let answer: Answer = serde_json::from_str(&line).map_err(ClientError::Answer)?;
        match answer.error {
            None => Ok(answer.result),
            Some(Refused { code, message }) => Err(ClientError::Refused { code, message }),
        }
    }

    /// Watches the machine: its status now, and then what happens to it, as it happens. The notices
    /// end when the monitor does.
    ///
    /// # Errors
    /// [`ClientError`], also instead of a notice.
    pub fn watch(
        mut self,
    ) -> Result<(Status, impl Iterator<Item = Result<Notice, ClientError>>), ClientError> {
        let status = self.call("watch")?;
        let lines = self.stream.lines();
        let notices = lines.map(|line| {
            let line = line.map_err(ClientError::Connection)?;
            serde_json::from_str(&line).map_err(ClientError::Answer)
        });
        Ok((status, notices))
    }

    fn send(&self, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        if descriptors.len() > MOST_DESCRIPTORS {
            return Err(ClientError::Descriptors(descriptors.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let mut stream = self.stream.get_ref();
        // They go with the first bytes; what does not fit into the socket at once follows.
        let flags = SendFlags::NOSIGNAL;
        sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, flags)
            .map_err(io::Error::from)
            .and_then(|sent| stream.write_all(&line[sent..]))
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => ClientError::Ended,
                _ => ClientError::Connection(error),
            })
    }

    /// Saves the machine to `path`, which is replaced only when everything is on disk. With
    /// `end` the monitor ends then, else the guest goes on.
    ///
    /// # Errors
    /// [`ClientError`]; `path` is then as it was.
    pub fn save(&mut self, path: &Path, end: bool) -> Result<Status, ClientError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let failed = |action| {
            move |source| ClientError::File {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .map_err(failed("creating"))?;
        let result = self
            .request("save", &json!({"end": end}), &[file.as_fd()])
            .and_then(|status| {
                std::fs::rename(&beside, path).map_err(failed("moving it into place"))?;
                let folder = path
                    .parent()
                    .filter(|folder| !folder.as_os_str().is_empty());
                File::open(folder.unwrap_or(Path::new(".")))
                    .and_then(|folder| folder.sync_all())
                    .map_err(failed("making it durable"))?;
                serde_json::from_value(status).map_err(ClientError::Answer)
            });
        if result.is_err() {
            // Half a file is of no use; that it cannot be removed changes nothing about the
            // failure.
            let _ = std::fs::remove_file(&beside);
        }
        result
    }
}
