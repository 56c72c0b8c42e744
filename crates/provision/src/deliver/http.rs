//! The server that a guest fetches its answer file and its packages from, and reports to.
//!
//! It serves HTTP/1.1 on any stream: a TCP port, a Unix socket, or what a user-mode network
//! hands over. Each install has a place of its own, `/i/TOKEN/`, that nobody finds without the
//! token; below it are files, a tree (`tree/…`) and places to report to:
//!
//! | Address | Meaning |
//! |---|---|
//! | `POST phone-home` | cloud-init's `phone_home`: a form |
//! | `POST report` | Subiquity's webhook: JSON |
//! | `GET` or `POST done`, `failed` | how the install went |
//!
//! Everything that a guest asks for becomes an [`Event`]; that it asks at all is the progress
//! that an install shows first.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

use crate::media::{Tree, TreeFile};

/// Most connections at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// Most headers of a request, and bytes of them.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 16 << 10;
/// How long a client may take for its headers.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Most bytes of a report.
const MAX_REPORT: usize = 256 << 10;
/// Longest path in bytes.
const MAX_PATH: usize = 1024;
/// Bytes read from a file at once.
const CHUNK: usize = 256 << 10;

/// What is served under a name.
#[derive(Clone)]
pub enum Content {
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// Bytes that are given once as a whole, and then no more: an answer file with secrets. A
    /// transfer that breaks off does not count.
    Once(Arc<Once>),
    /// A file.
    File(TreeFile),
}

/// Bytes that are given once.
pub struct Once {
    bytes: Bytes,
    state: AtomicU8,
}

const FREE: u8 = 0;
const GIVING: u8 = 1;
const GONE: u8 = 2;

impl Content {
    /// Bytes that are given once.
    pub fn once(bytes: Vec<u8>) -> Self {
        Self::Once(Arc::new(Once {
            bytes: bytes.into(),
            state: AtomicU8::new(FREE),
        }))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Once(once) => write!(f, "Once({})", once.bytes.len()),
            Self::File(file) => write!(f, "File({})", file.size()),
        }
    }
}

/// The place of one install.
#[derive(Debug, Clone, Default)]
pub struct Site {
    /// Files by their names.
    pub files: HashMap<String, Content>,
    /// A tree, below `tree/`.
    pub tree: Option<Tree>,
}

/// What a guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It asked for a file.
    Fetched {
        /// Name below the install's place.
        path: String,
        /// Status of the answer: 200, 206, 404, 410, 416.
        status: u16,
        /// Bytes of the file that the answer has.
        bytes: u64,
        /// Hardware address and serial number that Anaconda tells of its guest.
        identity: Vec<(String, String)>,
    },
    /// cloud-init reported that it is done.
    PhoneHome {
        /// Fields of the form: `instance_id`, `hostname`, `fqdn`, `pub_key_…`.
        fields: Vec<(String, String)>,
    },
    /// Subiquity reported.
    Report {
        /// JSON, not checked.
        text: String,
    },
    /// The install reported its end.
    Ended {
        /// Whether it went well.
        success: bool,
    },
}

type Listener = dyn Fn(&str, Event) + Send + Sync;

/// The server; clones are the same one.
#[derive(Clone)]
pub struct Server {
    sites: Arc<Mutex<HashMap<String, Site>>>,
    listener: Arc<Listener>,
    connections: Arc<Semaphore>,
}

impl fmt::Debug for Server {
    /// Without tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} sites)", self.sites().len())
    }
}

impl Server {
    /// A server without sites. `listener` is called with the token and what a guest did, from
    /// the threads that serve, and must not wait.
    pub fn new(listener: impl Fn(&str, Event) + Send + Sync + 'static) -> Self {
        Self {
            sites: Arc::default(),
            listener: Arc::new(listener),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    fn sites(&self) -> MutexGuard<'_, HashMap<String, Site>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the place of a token, instead of what was there.
    pub fn open(&self, token: &str, site: Site) {
        self.sites().insert(token.to_owned(), site);
    }

    /// Closes the place of a token: from now on nothing is there.
    pub fn close(&self, token: &str) {
        self.sites().remove(token);
    }

    /// Path of a token's place, with a slash at its end.
    pub fn place(token: &str) -> String {
        format!("/i/{token}/")
    }

    /// Serves one connection to its end.
    ///
    /// # Errors
    /// What the stream says, and requests that are none.
    pub async fn serve<S>(&self, stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let permit = self.connections.acquire().await.map_err(io::Error::other)?;
        let service =
            service_fn(|request| async { Ok::<_, Infallible>(self.answer(request).await) });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        drop(permit);
        served.map_err(io::Error::other)
    }

    /// Accepts connections of a TCP port until the task is dropped.
    ///
    /// # Errors
    /// What accepting says.
    pub async fn listen_tcp(&self, listener: tokio::net::TcpListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            self.spawn(stream);
        }
    }

    /// Accepts connections of a Unix socket until the task is dropped.
    ///
    /// # Errors
    /// What accepting says.
    pub async fn listen_unix(&self, listener: tokio::net::UnixListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            self.spawn(stream);
        }
    }

    fn spawn<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let server = self.clone();
        // What a guest's connection ends with is not the node's concern.
        tokio::spawn(async move { server.serve(stream).await.ok() });
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let Some((token, path)) = split(request.uri().path()) else {
            return refuse(StatusCode::NOT_FOUND);
        };
        let Some(site) = self.sites().get(&token).cloned() else {
            return refuse(StatusCode::NOT_FOUND);
        };
        let method = request.method().clone();
        match (path.as_str(), &method) {
            ("done" | "failed", &Method::GET | &Method::POST | &Method::PUT) => {
                let success = path == "done";
                (self.listener)(&token, Event::Ended { success });
                refuse(StatusCode::NO_CONTENT)
            }
            ("phone-home" | "report", &Method::POST) => self.report(&token, &path, request).await,
            (_, &Method::GET | &Method::HEAD) => self.file(&token, &site, &path, &request).await,
            _ => {
                let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED);
                let allowed = HeaderValue::from_static("GET, HEAD");
                response.headers_mut().insert(header::ALLOW, allowed);
                response
            }
        }
    }

    async fn report(
        &self,
        token: &str,
        path: &str,
        request: Request<Incoming>,
    ) -> Response<Answer> {
        let body = Limited::new(request.into_body(), MAX_REPORT)
            .collect()
            .await;
        let Ok(body) = body else {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE);
        };
        let bytes = body.to_bytes();
        let event = match path {
            "report" => Event::Report {
                text: String::from_utf8_lossy(&bytes).into_owned(),
            },
            _ => Event::PhoneHome {
                fields: form(&bytes),
            },
        };
        (self.listener)(token, event);
        refuse(StatusCode::NO_CONTENT)
    }

    async fn file(
        &self,
        token: &str,
        site: &Site,
        path: &str,
        request: &Request<Incoming>,
    ) -> Response<Answer> {
        let head = request.method() == Method::HEAD;
        let range = match request.headers().contains_key(header::IF_RANGE) {
            // Nothing here has a validator, so the condition cannot hold.
            true => None,
            false => request.headers().get(header::RANGE),
        };
        let content = match site.files.get(path) {
            Some(content) => Some(content.clone()),
            None => in_tree(site, path).await,
        };
        let (response, bytes) = match content {
            Some(content) => give(&content, range, head),
            None => (refuse(StatusCode::NOT_FOUND), 0),
        };
        (self.listener)(
            token,
            Event::Fetched {
                path: path.to_owned(),
                status: response.status().as_u16(),
                bytes,
                identity: identity(request),
            },
        );
        response
    }
}

/// What Anaconda tells of its guest with `inst.ks.sendmac` and `inst.ks.sendsn`.
fn identity(request: &Request<Incoming>) -> Vec<(String, String)> {
    let told = request.headers().iter().filter(|(name, _)| {
        let name = name.as_str();
        name.starts_with("x-rhn-provisioning-mac-") || name == "x-system-serial-number"
    });
    told.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    })
    .collect()
}

/// Token and the rest of `/i/TOKEN/REST`, decoded. `None` for paths that name no file.
fn split(path: &str) -> Option<(String, String)> {
    if path.len() > MAX_PATH {
        return None;
    }
    let rest = path.strip_prefix("/i/")?;
    let (token, rest) = rest.split_once('/')?;
    let rest = decode(rest, false)?;
    let bad = |part: &str| matches!(part, "." | "..") || part.contains('\0');
    // Servers take several slashes for one, and installers write them.
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| bad(part)) {
        return None;
    }
    Some((token.to_owned(), parts.join("/")))
}

/// Percent-decoding (RFC 3986, 2.1), with `+` for a blank in forms.
fn decode(text: &str, is_form: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if is_form => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The fields of a form; what cannot be decoded is left out.
fn form(bytes: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    text.split('&')
        .filter_map(|field| {
            let (name, value) = field.split_once('=')?;
            Some((decode(name, true)?, decode(value, true)?))
        })
        .take(64)
        .collect()
}

async fn in_tree(site: &Site, path: &str) -> Option<Content> {
    let tree = site.tree.clone()?;
    let inside = path.strip_prefix("tree/")?.to_owned();
    // Looking up reads directories, which may wait for a disk.
    let found = tokio::task::spawn_blocking(move || tree.find(&inside)).await;
    found.ok()?.ok()?.map(Content::File)
}

/// The answer with a file, and how many of its bytes are in it.
fn give(content: &Content, range: Option<&HeaderValue>, head: bool) -> (Response<Answer>, u64) {
    let size = match content {
        Content::Bytes(bytes) => bytes.len() as u64,
        Content::Once(once) => once.bytes.len() as u64,
        Content::File(file) => file.size(),
    };
    let range = match content {
        Content::Once(_) => Ok(None),
        _ => parse_range(range, size),
    };
    let Ok(range) = range else {
        let mut response = refuse(StatusCode::RANGE_NOT_SATISFIABLE);
        set(
            &mut response,
            header::CONTENT_RANGE,
            format!("bytes */{size}"),
        );
        return (response, 0);
    };
    let (start, length) = range.unwrap_or((0, size));
    let body = match content {
        Content::Once(once) if once.state.load(Ordering::Acquire) == GONE => {
            return (refuse(StatusCode::GONE), 0);
        }
        _ if head => Answer::empty(),
        Content::Bytes(bytes) => {
            let part = bytes.get(start as usize..(start + length) as usize);
            Answer::Whole(Some(Bytes::copy_from_slice(part.unwrap_or_default())))
        }
        Content::Once(once) => match Giving::begin(once) {
            Some(giving) => Answer::Once(giving),
            None => return (refuse(StatusCode::CONFLICT), 0),
        },
        Content::File(file) => Answer::Stream {
            chunks: read_in_background(file.clone(), start, length),
            left: length,
        },
    };
    let mut response = Response::new(body);
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let last = start + length - 1;
        set(
            &mut response,
            header::CONTENT_RANGE,
            format!("bytes {start}-{last}/{size}"),
        );
    }
    set(&mut response, header::CONTENT_LENGTH, length.to_string());
    let octets = "application/octet-stream".to_owned();
    set(&mut response, header::CONTENT_TYPE, octets);
    if !matches!(content, Content::Once(_)) {
        set(&mut response, header::ACCEPT_RANGES, "bytes".to_owned());
    }
    (response, if head { 0 } else { length })
}

fn set(response: &mut Response<Answer>, name: header::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Start and length of the one range that is asked for (RFC 9110, 14.1.2). What is no range,
/// or asks for several, is passed over, as a server may; `Err` for one beyond the end.
fn parse_range(value: Option<&HeaderValue>, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = value.and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .filter(|ranges| !ranges.contains(','))
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Ok(None);
    };
    let number = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| text.parse().ok())
    };
    let (start, end) = match (first, last) {
        ("", last) => match number(last).flatten() {
            Some(0) => return Err(()),
            Some(count) => (size.saturating_sub(count), size),
            None => return Ok(None),
        },
        (first, last) => {
            let Some(start) = number(first).flatten() else {
                return Ok(None);
            };
            match last {
                "" => (start, size),
                last => match number(last).flatten() {
                    Some(last) if last < start => return Ok(None),
                    Some(last) => (start, size.min(last.saturating_add(1))),
                    None => return Ok(None),
                },
            }
        }
    };
    if start >= size {
        return Err(());
    }
    Ok(Some((start, end - start)))
}

fn refuse(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::empty());
    *response.status_mut() = status;
    response
}

/// Reads a file in chunks, ahead of the client by four of them. Ends where the client is gone.
fn read_in_background(
    file: TreeFile,
    start: u64,
    length: u64,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut done = 0;
        while done < length {
            let mut chunk = vec![0; CHUNK.min((length - done) as usize)];
            let read = match file.read_at(&mut chunk, start + done) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    chunk.truncate(count);
                    done += count as u64;
                    Ok(Bytes::from(chunk))
                }
                Err(error) => Err(io::Error::other(error)),
            };
            let ended = read.is_err();
            if sender.blocking_send(read).is_err() || ended {
                break;
            }
        }
    });
    receiver
}

/// The body of an answer.
enum Answer {
    Whole(Option<Bytes>),
    Once(Giving),
    Stream {
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        left: u64,
    },
}

impl Answer {
    fn empty() -> Self {
        Self::Whole(None)
    }
}

/// One transfer of what is given once. It counts when hyper, having written all of it, drops
/// it with nothing left to send.
struct Giving {
    once: Arc<Once>,
    sent: bool,
}

impl Giving {
    fn begin(once: &Arc<Once>) -> Option<Self> {
        let free = once
            .state
            .compare_exchange(FREE, GIVING, Ordering::AcqRel, Ordering::Acquire);
        free.is_ok().then(|| Self {
            once: once.clone(),
            sent: false,
        })
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        let state = if self.sent { GONE } else { FREE };
        self.once.state.store(state, Ordering::Release);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Once(giving) => {
                let first = !std::mem::replace(&mut giving.sent, true);
                let bytes = first.then(|| Ok(Frame::data(giving.once.bytes.clone())));
                Poll::Ready(bytes)
            }
            Self::Stream { chunks, left } => chunks.poll_recv(context).map(|chunk| {
                let chunk = chunk?;
                if let Ok(chunk) = &chunk {
                    *left = left.saturating_sub(chunk.len() as u64);
                }
                Some(chunk.map(Frame::data))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Once(giving) => giving.sent,
            Self::Stream { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Self::Once(giving) if giving.sent => 0,
            Self::Once(giving) => giving.once.bytes.len() as u64,
            Self::Stream { left, .. } => *left,
        })
    }
}
