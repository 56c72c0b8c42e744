//! The open node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cenote_pools::Usage;
use cenote_pools::layers::LayerCache;

use crate::error::{Error, Result};
use crate::events::{self, Event, EventWatcher};
use crate::jobs::{self, Job};
use crate::journal::Repair;
use crate::paths::NodeOptions;
use crate::state::{State, make_private_dir};

/// One machine's Cenote state, open.
///
/// `Node` is `Send + Sync`; several nodes and several processes may have the
/// same state directory open.
pub struct Node {
    state: Arc<State>,
    state_dir: PathBuf,
    runtime_dir: PathBuf,
    repairs: Vec<Repair>,
    layers: LayerCache,
    backing_dirs: Vec<PathBuf>,
    usages: Vec<Arc<dyn Usage>>,
    programs: Option<PathBuf>,
    allow_emulation: bool,
    /// Where a read-only node keeps its copy of the state.
    scratch: Option<tempfile::TempDir>,
}

impl Node {
    /// Opens the node, making it where it is new, and repairs what interrupted
    /// operations left.
    ///
    /// # Errors
    /// The state directory cannot be made or written, or it was written by a
    /// newer Cenote. An operation that cannot be repaired yet is no error: it
    /// is reported by [`Node::repairs`] and tried again at the next open.
    pub fn open(options: &NodeOptions) -> Result<Node> {
        let (state_dir, runtime_dir) = options.directories()?;
        if options.read_only {
            return Node::open_copy(options, state_dir, runtime_dir);
        }
        let state = State::open(&state_dir)?;
        let mut node = Node {
            state: Arc::new(state),
            state_dir,
            runtime_dir,
            repairs: Vec::new(),
            layers: LayerCache::default(),
            backing_dirs: options.backing_dirs.clone(),
            usages: Vec::new(),
            programs: options.programs.clone(),
            allow_emulation: options.allow_emulation,
            scratch: None,
        };
        for dir in [node.operations_dir(), node.runtime_dir.clone()] {
            make_private_dir(&dir)
                .map_err(|source| Error::StateNotWritable { path: dir, source })?;
        }
        events::trim_wake_file(&node.wake_file());
        node.make_default_pool()?;
        node.note_boot(&boot_id())?;
        if !options.skip_repair {
            node.repairs = node.repair_all()?;
        }
        Ok(node)
    }

    /// See [`NodeOptions::read_only`].
    fn open_copy(options: &NodeOptions, state_dir: PathBuf, runtime_dir: PathBuf) -> Result<Node> {
        let scratch = tempfile::Builder::new()
            .prefix("cenote-")
            .tempdir()
            .map_err(|source| Error::Io {
                action: "make a temporary directory in",
                path: std::env::temp_dir(),
                source,
            })?;
        let state = State::open_copy(&state_dir, scratch.path())?;
        let node = Node {
            state: Arc::new(state),
            state_dir,
            runtime_dir,
            repairs: Vec::new(),
            layers: LayerCache::default(),
            backing_dirs: options.backing_dirs.clone(),
            usages: Vec::new(),
            programs: options.programs.clone(),
            allow_emulation: options.allow_emulation,
            scratch: Some(scratch),
        };
        let operations = node.operations_dir();
        make_private_dir(&operations).map_err(|source| Error::StateNotWritable {
            path: operations,
            source,
        })?;
        node.make_default_pool()?;
        Ok(node)
    }

    /// Whether the node is a copy that is thrown away.
    pub fn is_read_only(&self) -> bool {
        self.scratch.is_some()
    }

    /// Where this node's own files are written.
    fn private_dir(&self) -> &Path {
        match &self.scratch {
            Some(scratch) => scratch.path(),
            None => &self.state_dir,
        }
    }

    /// What [`Node::open`] repaired, oldest operation first.
    pub fn repairs(&self) -> &[Repair] {
        &self.repairs
    }

    /// Directory of the database and the `default` pool.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Directory of sockets and other things a reboot may take.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// Up to 1024 events after `sequence`, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn events(&self, after: i64) -> Result<Vec<Event>> {
        events::after(&self.state, after)
    }

    /// Waits for events after `sequence`; `None` means from now on.
    ///
    /// # Errors
    /// The wake file cannot be made or watched.
    pub fn watch_events(&self, after: Option<i64>) -> Result<EventWatcher> {
        let after = match after {
            Some(after) => after,
            None => events::newest(&self.state)?,
        };
        EventWatcher::new(Arc::clone(&self.state), self.wake_file(), after)
    }

    /// Long operations, running and past, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        jobs::list(&self.state)
    }

    /// Asks a running job to break off and undo itself; does not wait for it.
    ///
    /// # Errors
    /// There is no such job, or it has ended.
    pub fn cancel_job(&self, id: i64) -> Result<()> {
        jobs::cancel(&self.state, id)
    }

    /// Adds somebody who knows who uses volumes, asked before one is changed.
    pub fn add_usage(&mut self, usage: Arc<dyn Usage>) {
        self.usages.push(usage);
    }

    pub(crate) fn usages(&self) -> &[Arc<dyn Usage>] {
        &self.usages
    }

    pub(crate) fn backing_dirs(&self) -> &[PathBuf] {
        &self.backing_dirs
    }

    pub(crate) fn programs_dir(&self) -> Option<&Path> {
        self.programs.as_deref()
    }

    pub(crate) fn allows_emulation(&self) -> bool {
        self.allow_emulation
    }

    pub(crate) fn layers(&self) -> &LayerCache {
        &self.layers
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn state_arc(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    pub(crate) fn operations_dir(&self) -> PathBuf {
        self.private_dir().join("operations")
    }

    fn wake_file(&self) -> PathBuf {
        self.private_dir().join("events.wake")
    }

    /// Wakes everybody who waits for events; after a commit that added some.
    pub(crate) fn wake(&self) {
        events::wake(&self.wake_file());
    }
}

/// Tells one boot of the host from the next.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("state_dir", &self.state_dir)
            .field("runtime_dir", &self.runtime_dir)
            .finish_non_exhaustive()
    }
}
