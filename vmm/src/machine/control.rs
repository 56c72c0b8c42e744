//! The control socket: JSON-RPC 2.0, one request per line, over a Unix socket.
//!
//! Methods: `status`, `pause`, `resume`, `shutdown` (the power button), `reset`, `quit` without
//! parameters, and `save` with `{"path": FILE, "end": BOOL}` (`end` ends the monitor afterwards;
//! without it the machine goes on). Each answers with the machine's [`Status`](super::Status)
//! after it was carried out.

use super::{Command, Remote};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

/// The longest request, in bytes.
const LONGEST: u64 = 64 * 1024;

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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaveParameters {
    path: PathBuf,
    #[serde(default)]
    end: bool,
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
}

/// Listens at `path` (readable and writable by its owner only) and serves `remote` from a thread
/// of its own, for as long as the process lives. A socket that a killed monitor has left behind
/// is replaced.
///
/// # Errors
/// [`ControlError`].
pub fn listen(path: &Path, remote: Remote) -> Result<(), ControlError> {
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
    listener.set_nonblocking(true).map_err(bind)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .max_blocking_threads(4)
        .thread_stack_size(128 * 1024)
        .build()
        .map_err(bind)?;
    thread::Builder::new()
        .name("control".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || runtime.block_on(accept(listener, remote)))
        .map_err(bind)?;
    Ok(())
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
                tokio::spawn(serve(stream, remote.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a control connection was not accepted");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn serve(stream: UnixStream, remote: Remote) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader)
            .take(LONGEST)
            .read_until(b'\n', &mut line)
            .await;
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n');
        let remote = remote.clone();
        // The machine answers when it has done what was asked, which may take a while.
        let answer = tokio::task::spawn_blocking(move || answer(&line, &remote)).await;
        let Ok(mut text) = answer else { return };
        text.push('\n');
        if writer.write_all(text.as_bytes()).await.is_err() || !whole {
            return;
        }
    }
}

fn answer(line: &[u8], remote: &Remote) -> String {
    let (id, result) = match serde_json::from_slice::<Request>(line) {
        Err(error) if error.is_data() => (Value::Null, Err((INVALID_REQUEST, error.to_string()))),
        Err(error) => (Value::Null, Err((PARSE_ERROR, error.to_string()))),
        Ok(request) => (request.id.clone(), carry_out(&request, remote)),
    };
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err((code, message)) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    }
    .to_string()
}

fn carry_out(request: &Request, remote: &Remote) -> Result<Value, (i32, String)> {
    if request.jsonrpc != "2.0" {
        return Err((INVALID_REQUEST, "\"jsonrpc\" is to be \"2.0\"".to_owned()));
    }
    let command = match request.method.as_str() {
        "status" => Command::Status,
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "shutdown" => Command::PowerButton,
        "reset" => Command::Reset,
        "quit" => Command::Quit,
        "save" => return save(request, remote),
        other => return Err((METHOD_NOT_FOUND, format!("there is no method '{other}'"))),
    };
    match &request.params {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) if map.is_empty() => {}
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(_) => {
            return Err((
                INVALID_PARAMS,
                format!("'{}' has no parameters", request.method),
            ));
        }
    }
    call(command, remote)
}

fn save(request: &Request, remote: &Remote) -> Result<Value, (i32, String)> {
    let parameters = request.params.clone().unwrap_or_default();
    let SaveParameters { path, end } = serde_json::from_value(parameters)
        .map_err(|error| (INVALID_PARAMS, format!("'save': {error}")))?;
    if !path.is_absolute() {
        return Err((
            INVALID_PARAMS,
            "'save': the path is to be absolute".to_owned(),
        ));
    }
    call(Command::Save { path, end }, remote)
}

fn call(command: Command, remote: &Remote) -> Result<Value, (i32, String)> {
    let status = remote
        .call(command)
        .map_err(|error| (FAILED, error.to_string()))?;
    serde_json::to_value(status).map_err(|error| (FAILED, error.to_string()))
}
