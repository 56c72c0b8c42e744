//! Listening, accepting, and stopping.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::Connection;
use super::device::BlockDevice;
use super::negotiate::negotiate;
use crate::{Error, Result};

/// The protocol's limit on names and descriptions, in bytes.
const NAME_MAX: usize = 4096;
/// A client that has not chosen an export after this long is dropped.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// How long clients may take to read their last answers.
const GRACE: Duration = Duration::from_secs(10);

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// What clients ask for; the empty name is the default export.
    pub name: String,
    /// For people.
    pub description: String,
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
    /// Whether clients may only read, even if the device can be written to.
    pub read_only: bool,
}

impl Export {
    /// The default export, with all the rights that the device has.
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            name: String::new(),
            description: String::new(),
            device,
            read_only: false,
        }
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only || !self.device.is_writable()
    }
}

/// What to serve and how much.
#[derive(Clone)]
pub struct ServerOptions {
    /// At least one; names differ.
    pub exports: Vec<Export>,
    /// Clients at once; further ones are turned away.
    pub max_connections: usize,
    /// Requests of one client that run at the same time.
    pub workers: usize,
}

impl ServerOptions {
    /// One export, 32 clients, 16 requests each.
    pub fn new(export: Export) -> Self {
        Self {
            exports: vec![export],
            max_connections: 32,
            workers: 16,
        }
    }

    fn validate(&self) -> Result<()> {
        if self.exports.is_empty() {
            return Err(Error::invalid("NBD server", "needs an export"));
        }
        for (index, export) in self.exports.iter().enumerate() {
            if export.name.len() > NAME_MAX || export.description.len() > NAME_MAX {
                return Err(Error::invalid(
                    "NBD export",
                    format!("name and description have {NAME_MAX} bytes at most"),
                ));
            }
            if self.exports[..index]
                .iter()
                .any(|other| other.name == export.name)
            {
                return Err(Error::invalid(
                    format!("NBD export '{}'", export.name),
                    "exists twice; give each export its own name",
                ));
            }
        }
        Ok(())
    }
}

/// A running server. Dropping it stops it as [`Server::stop`] does.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    /// The socket file, if this server made it.
    path: Option<PathBuf>,
}

struct Shared {
    options: ServerOptions,
    /// Readable when the server must stop.
    stop: OwnedFd,
    clients: Mutex<Clients>,
    changed: Condvar,
}

#[derive(Default)]
struct Clients {
    streams: HashMap<u64, UnixStream>,
    /// How many have ever connected.
    seen: u64,
    stopping: bool,
}

impl Server {
    /// Makes a socket file that only this user can connect to, and serves.
    ///
    /// A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`Error::Io`] when the socket cannot be made (`AddrInUse` when someone
    /// listens on it), [`Error::Invalid`] for the options.
    pub fn start(path: &Path, options: ServerOptions) -> Result<Self> {
        options.validate()?;
        let listener = listen(path).map_err(|error| Error::io(path, "listen on", error))?;
        let mut server = Self::start_on(listener, options)?;
        server.path = Some(path.to_owned());
        Ok(server)
    }

    /// Serves on a socket that listens already.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the options, [`Error::Io`] when the host has no
    /// thread or descriptor left.
    pub fn start_on(listener: UnixListener, options: ServerOptions) -> Result<Self> {
        options.validate()?;
        let place = Path::new("NBD socket");
        let failed = |error: io::Error| Error::io(place, "serve", error);
        listener.set_nonblocking(true).map_err(failed)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        let shared = Arc::new(Shared {
            options,
            stop,
            clients: Mutex::default(),
            changed: Condvar::new(),
        });
        let acceptor = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("nbd-accept".into())
                .spawn(move || accept(listener, &shared))
                .map_err(failed)?
        };
        Ok(Self {
            shared,
            acceptor: Some(acceptor),
            path: None,
        })
    }

    /// Clients connected now.
    pub fn clients(&self) -> usize {
        self.shared.clients.lock().streams.len()
    }

    /// Waits until at least one client has come and all have gone; false when
    /// that takes longer than `timeout`.
    pub fn wait_until_unused(&self, timeout: Option<Duration>) -> bool {
        let mut clients = self.shared.clients.lock();
        let busy = |clients: &mut Clients| clients.seen == 0 || !clients.streams.is_empty();
        match timeout {
            None => {
                self.shared.changed.wait_while(&mut clients, busy);
                true
            }
            Some(timeout) => !self
                .shared
                .changed
                .wait_while_for(&mut clients, busy, timeout)
                .timed_out(),
        }
    }

    /// Takes no new clients, answers what has been asked, closes all
    /// connections, flushes the devices and removes the socket file.
    ///
    /// # Errors
    /// The first failed flush.
    pub fn stop(mut self) -> Result<()> {
        self.shut_down();
        for export in &self.shared.options.exports {
            if export.device.is_writable() {
                export.device.flush()?;
            }
        }
        Ok(())
    }

    fn shut_down(&mut self) {
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "the NBD server cannot be told to stop");
        }
        {
            let mut clients = self.shared.clients.lock();
            clients.stopping = true;
            for stream in clients.streams.values() {
                // Ends the reader; what it has read is still answered.
                let _ = stream.shutdown(Shutdown::Read);
            }
        }
        // A client that does not take its answers must not hold the server.
        let mut clients = self.shared.clients.lock();
        let busy = |clients: &mut Clients| !clients.streams.is_empty();
        if self
            .shared
            .changed
            .wait_while_for(&mut clients, busy, GRACE)
            .timed_out()
        {
            for stream in clients.streams.values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        drop(clients);
        if acceptor.join().is_err() {
            tracing::error!("the NBD server's accepting thread panicked");
        }
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "the NBD socket was not removed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Binds with mode 0600 before anyone can connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    match rustix::net::bind(&socket, &address) {
        Err(rustix::io::Errno::ADDRINUSE) if is_abandoned(path) => {
            std::fs::remove_file(path)?;
            rustix::net::bind(&socket, &address)?;
        }
        other => other?,
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket.into())
}

/// A socket file whose listener is gone.
fn is_abandoned(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn accept(listener: UnixListener, shared: &Arc<Shared>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let mut waiting = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.stop.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the NBD server cannot wait for clients");
                break;
            }
        }
        if !waiting[1].revents().is_empty() {
            break;
        }
        threads.retain(|thread| !thread.is_finished());
        match listener.accept() {
            Ok((stream, _)) => threads.extend(welcome(stream, shared)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "an NBD client could not be accepted");
                // Out of descriptors: wait for one to be given back.
                let mut clients = shared.clients.lock();
                shared
                    .changed
                    .wait_for(&mut clients, Duration::from_millis(100));
            }
        }
    }
    drop(listener);
    for thread in threads {
        let _ = thread.join();
    }
}

/// Starts a client's thread, unless there are too many clients.
fn welcome(stream: UnixStream, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    let number = {
        let mut clients = shared.clients.lock();
        if clients.stopping {
            return None;
        }
        if clients.streams.len() >= shared.options.max_connections {
            tracing::warn!("an NBD client was turned away: too many are connected");
            return None;
        }
        let registered = stream
            .set_nonblocking(false)
            .and_then(|()| stream.try_clone())
            .ok()?;
        clients.seen += 1;
        let number = clients.seen;
        clients.streams.insert(number, registered);
        number
    };
    let in_thread = shared.clone();
    let spawned = std::thread::Builder::new()
        .name("nbd-client".into())
        .spawn(move || {
            let goodbye = Goodbye {
                shared: &in_thread,
                number,
            };
            if let Err(error) = serve(&stream, &in_thread.options) {
                tracing::debug!(%error, "an NBD client was dropped");
            }
            drop(stream);
            drop(goodbye);
        });
    match spawned {
        Ok(thread) => Some(thread),
        Err(error) => {
            tracing::warn!(%error, "no thread for an NBD client");
            Goodbye { shared, number };
            None
        }
    }
}

/// Strikes a client off the list, however its thread ends.
struct Goodbye<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Goodbye<'_> {
    fn drop(&mut self) {
        self.shared.clients.lock().streams.remove(&self.number);
        self.shared.changed.notify_all();
    }
}

fn serve(stream: &UnixStream, options: &ServerOptions) -> io::Result<()> {
    stream.set_read_timeout(Some(HANDSHAKE))?;
    let Some(agreement) = negotiate(stream, &options.exports)? else {
        return Ok(());
    };
    stream.set_read_timeout(None)?;
    Connection::new(stream, &agreement, options.workers).serve()
}
