//! The control socket: JSON-RPC 2.0, one request per line, over a Unix socket.
//!
//! Methods: `status`, `pause`, `resume`, `shutdown` (the power button), `reset`, `quit` without
//! parameters; `save` with `{"end": BOOL}` and one descriptor (`end` ends the monitor afterwards;
//! without it the machine goes on); `screenshot` with one descriptor; `change-medium` with
//! `{"drive": POSITION, "force": BOOL}` and the new medium's descriptor, or none to eject;
//! `change-disk` with `{"disk": NAME, "chain": [{"format": FORMAT}, …]}` and a descriptor for each
//! image. Each answers with the machine's [`Status`] after it was carried out. After `watch` the
//! connection also carries [notices](super::Notice), between answers.
//!
//! The monitor opens nothing by name once it runs. What a request needs opened comes with it: the
//! sender attaches open descriptors to the request's bytes (`SCM_RIGHTS`) and says in the
//! request's member `descriptors` how many are its own. [`Client`](super::Client) does both.

mod connection;

use super::{
    Command, CommandError, Remote, Status,
    notices::{Notice, Watch},
};
use crate::{
    devices::ide::Position,
    disk::Layer,
    sandbox::{self, Class},
};
use cenote_image::Format;
use connection::Connection;
pub(super) use connection::MOST_DESCRIPTORS;
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tokio::net::{UnixListener, UnixStream};

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const FAILED: i32 = -32000;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another monitor listens there.
    #[error("control socket {0} is in use by another monitor: choose another path")]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("control socket {path} cannot be made")]
    Bind {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket cannot be served.
    #[error("the control socket cannot be served")]
    Serve(#[source] io::Error),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct SaveParameters {
    end: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MediumParameters {
    drive: Position,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    jsonrpc: String,
    #[serde(default)]
    id: Value,
    method: String,
    #[serde(default)]
    params: Option<Value>,
    /// How many of the descriptors that came are this request's.
    #[serde(default)]
    descriptors: usize,
}

/// A request that is not carried out: JSON-RPC's code and a text.
type Refusal = (i32, String);

/// Binds a socket at `path`, readable and writable by its owner only. A socket that an earlier
/// monitor has left behind is replaced.
///
/// # Errors
/// [`ControlError`].
pub fn bind(path: &Path) -> Result<std::os::unix::net::UnixListener, ControlError> {
    let bind = |source| ControlError::Bind {
        path: path.to_owned(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ControlError::InUse(path.to_owned()));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            std::fs::remove_file(path).map_err(bind)?;
        }
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(bind)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind)?;
    Ok(listener)
}

/// Serves `remote` on `listener` from a thread of its own, for as long as the process lives.
///
/// # Errors
/// [`ControlError::Serve`].
pub fn serve(
    listener: std::os::unix::net::UnixListener,
    remote: Remote,
) -> Result<(), ControlError> {
    listener
        .set_nonblocking(true)
        .map_err(ControlError::Serve)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(ControlError::Serve)?;
    thread::Builder::new()
        .name("control".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            sandbox::restrict_thread(Class::Control);
            runtime.block_on(accept(listener, remote));
        })
        .map_err(ControlError::Serve)?;
    Ok(())
}

/// Requests that were read and whose answers are not sent, in this process.
static UNANSWERED: Mutex<usize> = Mutex::new(0);
static ANSWERED: Condvar = Condvar::new();

/// A request that is to be answered.
struct Unanswered;

impl Unanswered {
    fn new() -> Self {
        *UNANSWERED.lock() += 1;
        Self
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        *UNANSWERED.lock() -= 1;
        ANSWERED.notify_all();
    }
}

/// Waits until all requests are answered, those that have ended the machine among them, but for
/// `bound` at most: nobody has to read an answer.
pub fn finish_answers(bound: Duration) {
    let end = Instant::now() + bound;
    let mut unanswered = UNANSWERED.lock();
    while *unanswered > 0 && !ANSWERED.wait_until(&mut unanswered, end).timed_out() {}
}

async fn accept(listener: std::os::unix::net::UnixListener, remote: Remote) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the control socket cannot be served");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer_all(stream, remote.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a control connection was not accepted");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn answer_all(stream: UnixStream, remote: Remote) {
    let mut connection = Connection::new(stream);
    let mut watch = None;
    loop {
        let line = tokio::select! {
            line = connection.line() => line,
            Some(notice) = notice(&mut watch) => {
                let sent = connection.send(line_of(&notice).as_bytes()).await;
                if sent.is_err() {
                    return;
                }
                continue;
            }
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a control connection is closed");
                return;
            }
        };
        let _unanswered = Unanswered::new();
        let mut text = answer(&line, &mut connection, &mut watch, &remote).await;
        text.push('\n');
        if connection.send(text.as_bytes()).await.is_err() || line.last() != Some(&b'\n') {
            return;
        }
    }
}

/// The next notice of a connection that watches; none for ever of one that does not.
async fn notice(watch: &mut Option<Watch>) -> Option<Notice> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

fn line_of(notice: &Notice) -> String {
    let mut message = json!(notice);
    message["jsonrpc"] = json!("2.0");
    format!("{message}\n")
}

async fn answer(
    line: &[u8],
    connection: &mut Connection,
    watch: &mut Option<Watch>,
    remote: &Remote,
) -> String {
    let (id, result) = match serde_json::from_slice::<Request>(line) {
        Err(error) => {
            // Nobody knows how many of the descriptors belonged to it.
            connection.close_descriptors();
            let code = if error.is_data() {
                INVALID_REQUEST
            } else {
                PARSE_ERROR
            };
            (Value::Null, Err((code, error.to_string())))
        }
        Ok(request) => {
            let result = match connection.take(request.descriptors) {
                Some(descriptors) => carry_out(&request, descriptors, watch, remote).await,
                None => Err((
                    INVALID_REQUEST,
                    format!("{} descriptors did not come", request.descriptors),
                )),
            };
            (request.id, result)
        }
    };
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    }
    .to_string()
}

async fn carry_out(
    request: &Request,
    descriptors: Vec<OwnedFd>,
    watch: &mut Option<Watch>,
    remote: &Remote,
) -> Result<Value, Refusal> {
    if request.jsonrpc != "2.0" {
        return Err((INVALID_REQUEST, "\"jsonrpc\" is to be \"2.0\"".to_owned()));
    }
    let command = match request.method.as_str() {
        "status" => plain(Command::Status, request, &descriptors)?,
        "watch" => {
            let command = plain(Command::Status, request, &descriptors)?;
            // Before the status, so that nothing happens between the two.
            watch.get_or_insert_with(|| remote.watch());
            command
        }
        "pause" => plain(Command::Pause, request, &descriptors)?,
        "resume" => plain(Command::Resume, request, &descriptors)?,
        "shutdown" => plain(Command::PowerButton, request, &descriptors)?,
        "reset" => plain(Command::Reset, request, &descriptors)?,
        "quit" => plain(Command::Quit, request, &descriptors)?,
        "save" => save(request, descriptors)?,
        "screenshot" => screenshot(request, descriptors)?,
        "change-medium" => change_medium(request, descriptors)?,
        "change-disk" => change_disk(request, descriptors)?,
        "keys" => keys(request, descriptors)?,
        "snapshot-disk" => snapshot_disk(request, descriptors)?,
        other => return Err((METHOD_NOT_FOUND, format!("there is no method '{other}'"))),
    };
    let status = call(command, remote)
        .await
        .map_err(|error| (FAILED, error.to_string()))?;
    serde_json::to_value(status).map_err(|error| (FAILED, error.to_string()))
}

/// `command`, if the request brings nothing that it does not take.
fn plain(command: Command, request: &Request, descriptors: &[OwnedFd]) -> Result<Command, Refusal> {
    let empty = match &request.params {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    let method = &request.method;
    if !empty {
        return Err((INVALID_PARAMS, format!("'{method}' has no parameters")));
    }
    if !descriptors.is_empty() {
        return Err((INVALID_PARAMS, format!("'{method}' takes no descriptors")));
    }
    Ok(command)
}

/// The parameters of a request; none is as good as an empty object.
fn parameters<T: serde::de::DeserializeOwned + Default>(request: &Request) -> Result<T, Refusal> {
    match &request.params {
        None | Some(Value::Null) => Ok(T::default()),
        Some(parameters) => serde_json::from_value(parameters.clone())
            .map_err(|error| (INVALID_PARAMS, format!("'{}': {error}", request.method))),
    }
}

/// Exactly `N` descriptors, or what the request should have brought.
fn exactly<const N: usize>(
    request: &Request,
    descriptors: Vec<OwnedFd>,
    what: &str,
) -> Result<[OwnedFd; N], Refusal> {
    <[OwnedFd; N]>::try_from(descriptors).map_err(|came| {
        let text = format!(
            "'{}' takes {what}; {} descriptors came with the request",
            request.method,
            came.len()
        );
        (INVALID_PARAMS, text)
    })
}

fn save(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Command, Refusal> {
    let SaveParameters { end } = parameters(request)?;
    let [file] = exactly(request, descriptors, "one descriptor of a file to write to")?;
    let file = File::from(file);
    Ok(Command::Save { file, end })
}

fn screenshot(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Command, Refusal> {
    let [file] = exactly(request, descriptors, "one descriptor of a file to write to")?;
    plain(
        Command::Screenshot {
            file: File::from(file),
        },
        request,
        &[],
    )
}

fn change_medium(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Command, Refusal> {
    let parameters = request.params.clone().unwrap_or_default();
    let MediumParameters { drive, force } = serde_json::from_value(parameters)
        .map_err(|error| (INVALID_PARAMS, format!("'change-medium': {error}")))?;
    let file = if descriptors.is_empty() {
        None
    } else {
        let [file] = exactly(request, descriptors, "at most one descriptor of a disc")?;
        Some(File::from(file))
    };
    Ok(Command::ChangeMedium {
        position: drive,
        file,
        force,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeDiskParameters {
    disk: String,
    chain: Vec<ChainLayer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChainLayer {
    format: Format,
    /// Another descriptor follows the image's: its external data file.
    #[serde(default)]
    data_file: bool,
}

fn change_disk(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Command, Refusal> {
    let parameters = request.params.clone().unwrap_or_default();
    let ChangeDiskParameters { disk, chain } = serde_json::from_value(parameters)
        .map_err(|error| (INVALID_PARAMS, format!("'change-disk': {error}")))?;
    let wanted: usize = chain
        .iter()
        .map(|layer| 1 + usize::from(layer.data_file))
        .sum();
    if wanted != descriptors.len() {
        let came = descriptors.len();
        let text = format!(
            "'change-disk' takes a descriptor for each image and data file, {wanted} here; {came} came with the request"
        );
        return Err((INVALID_PARAMS, text));
    }
    let mut descriptors = descriptors.into_iter();
    let mut layers = Vec::new();
    for (depth, layer) in chain.iter().enumerate() {
        // There are as many as the layers want.
        let Some(file) = descriptors.next() else {
            break;
        };
        layers.push(Layer {
            label: format!("image {depth} of the new chain"),
            file,
            format: layer.format,
            data_file: layer.data_file.then(|| descriptors.next()).flatten(),
        });
    }
    Ok(Command::ChangeDisk { disk, layers })
}

/// The most keys in one request.
const MOST_KEYS: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysParameters {
    keys: Vec<u8>,
    down: bool,
}

fn keys(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Command, Refusal> {
    let [] = exactly(request, descriptors, "no descriptors")?;
    let parameters = request.params.clone().unwrap_or_default();
    let KeysParameters { keys, down } = serde_json::from_value(parameters)
        .map_err(|error| (INVALID_PARAMS, format!("'keys': {error}")))?;
    if keys.len() > MOST_KEYS {
        let text = format!("'keys' takes at most {MOST_KEYS} keys");
        return Err((INVALID_PARAMS, text));
    }
    Ok(Command::Keys { codes: keys, down })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotDiskParameters {
    disk: String,
    name: String,
    #[serde(default)]
    delete: bool,
}

fn snapshot_disk(request: &Request, descriptors: Vec<OwnedFd>) -> Result<Command, Refusal> {
    let [] = exactly(request, descriptors, "no descriptors")?;
    let parameters = request.params.clone().unwrap_or_default();
    let SnapshotDiskParameters { disk, name, delete } = serde_json::from_value(parameters)
        .map_err(|error| (INVALID_PARAMS, format!("'snapshot-disk': {error}")))?;
    Ok(Command::SnapshotDisk { disk, name, delete })
}

/// Waits until the command is carried out, without holding up other connections.
async fn call(command: Command, remote: &Remote) -> Result<Status, CommandError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    remote.send(
        command,
        Box::new(|reply| {
            // Whoever asked may have gone away.
            let _ = sender.send(reply);
        }),
    )?;
    receiver.await.unwrap_or(Err(CommandError::Ended))
}

#[cfg(test)]
mod tests;
