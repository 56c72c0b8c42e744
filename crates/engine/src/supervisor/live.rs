//! Changes of the running machine: discs, snapshots, and what its screen shows.

use std::fs::File;
use std::path::Path;

use cenote_model::Document as _;
use cenote_model::domain::Domain;
use cenote_vmm::machine::{FileSource, LayerDescription};
use serde_json::{Value, json};

use super::act::{Phase, Supervisor};
use super::monitor::Monitor;
use super::protocol::LiveSnapshot;
use crate::domains::define::parse;
use crate::domains::{save, translate};

/// Has the picture on the screen written to a file that exists.
pub(super) fn screenshot(monitor: &mut Monitor, path: &Path) -> Result<(), String> {
    let file = File::options()
        .write(true)
        .truncate(true)
        .open(path)
        .map_err(|error| format!("'{}': {error}", path.display()))?;
    monitor.request("screenshot", &Value::Null, &[file])
}

impl Supervisor<'_> {
    /// Puts the disc of `document` into the drive, or takes out the one that is there, and goes
    /// over to that document.
    pub(super) fn change_medium(
        &mut self,
        document: &str,
        target: &str,
        force: bool,
    ) -> Result<(), String> {
        let document = parse(document).map_err(|error| error.to_string())?;
        let Phase::Up { monitor, .. } = &mut self.phase else {
            return Err("domain is not running".to_owned());
        };
        let (position, disc) =
            translate::disc(self.node, &document, target).map_err(|error| error.to_string())?;
        let files = disc
            .map(|path| File::open(&path).map_err(|error| format!("'{}': {error}", path.display())))
            .transpose()?;
        let parameters = json!({"drive": position, "force": force});
        let files: Vec<File> = files.into_iter().collect();
        monitor.request("change-medium", &parameters, &files)?;
        self.go_over(document)
    }

    /// Takes a snapshot of the standing guest: its memory to a file, its disks in their images or
    /// by overlays. Either all of it is there afterwards, and recorded, or none.
    pub(super) fn take_snapshot(&mut self, wanted: &LiveSnapshot) -> Result<(), String> {
        let document = parse(&wanted.document).map_err(|error| error.to_string())?;
        let chains = |document: &Domain| -> Result<Vec<(String, Chain)>, String> {
            let chain = |target: &String| {
                let chain = translate::chain(self.node, document, target);
                chain
                    .map(|chain| (target.clone(), chain))
                    .map_err(|error| error.to_string())
            };
            wanted.overlaid.iter().map(chain).collect()
        };
        let (new, old) = (chains(&document)?, chains(&self.document)?);
        let Phase::Up { monitor, paused } = &mut self.phase else {
            return Err("domain is not running".to_owned());
        };
        let runs = !*paused;
        if runs {
            monitor.call("pause")?;
        }
        let mut done = Done::default();
        let kept = keep(monitor, wanted, &self.document, runs, &new, &mut done);
        let result = kept.and_then(|()| {
            let live = live_text(&document, &self.run_dir, self.record.id(), monitor);
            let definition = wanted.definition.as_deref();
            match self.record.snapshot(&wanted.token, &live, definition) {
                Ok(true) => Ok(()),
                Ok(false) => Err("it was given up meanwhile".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        if result.is_err() {
            undo(monitor, wanted, &old, &done);
        } else {
            self.document = document;
        }
        if runs && let Err(reason) = monitor.call("resume") {
            tracing::error!(reason, "the guest cannot go on after a snapshot");
        }
        result
    }

    /// Deletes a snapshot from the images of disks.
    pub(super) fn drop_snapshot(&mut self, name: &str, targets: &[String]) -> Result<(), String> {
        let Phase::Up { monitor, paused } = &mut self.phase else {
            return Err("domain is not running".to_owned());
        };
        let runs = !*paused;
        if runs {
            monitor.call("pause")?;
        }
        let mut dropped = targets.iter();
        let result = dropped.try_for_each(|target| snapshot_disk(monitor, target, name, true));
        if runs && let Err(reason) = monitor.call("resume") {
            tracing::error!(
                reason,
                "the guest cannot go on after a snapshot was deleted"
            );
        }
        result
    }

    /// The domain is another document's from now on.
    fn go_over(&mut self, document: Domain) -> Result<(), String> {
        let Phase::Up { monitor, .. } = &mut self.phase else {
            return Err("domain is not running".to_owned());
        };
        let live = live_text(&document, &self.run_dir, self.record.id(), monitor);
        self.document = document;
        let recorded = self.record.document(&live);
        recorded.map_err(|error| error.to_string())
    }
}

/// How far a snapshot is.
#[derive(Default)]
struct Done {
    memory: bool,
    internal: usize,
    overlaid: usize,
}

/// Keeps memory and disks of the standing guest.
fn keep(
    monitor: &mut Monitor,
    wanted: &LiveSnapshot,
    document: &Domain,
    running: bool,
    chains: &[(String, Chain)],
    done: &mut Done,
) -> Result<(), String> {
    if let Some(path) = &wanted.memory {
        let trailer = save::Trailer {
            version: save::VERSION,
            document: document.to_xml(),
            running,
        };
        done.memory = true;
        save::write(path, &trailer, |file| monitor.save(file))?;
    }
    for target in &wanted.internal {
        snapshot_disk(monitor, target, &wanted.name, false)?;
        done.internal += 1;
    }
    for (target, chain) in chains {
        change_disk(monitor, target, chain)?;
        done.overlaid += 1;
    }
    Ok(())
}

/// Takes back what was done of a snapshot; the guest has written nothing since.
fn undo(monitor: &mut Monitor, wanted: &LiveSnapshot, old: &[(String, Chain)], done: &Done) {
    for (target, chain) in old.iter().take(done.overlaid) {
        if let Err(reason) = change_disk(monitor, target, chain) {
            tracing::error!(target, reason, "a disk cannot go back to its image");
        }
    }
    for target in wanted.internal.iter().take(done.internal) {
        if let Err(reason) = snapshot_disk(monitor, target, &wanted.name, true) {
            tracing::error!(target, reason, "an unfinished snapshot stays in an image");
        }
    }
    if let Some(path) = wanted.memory.as_ref().filter(|_| done.memory) {
        // It may not be there yet.
        let _ = std::fs::remove_file(path);
    }
}

fn snapshot_disk(
    monitor: &mut Monitor,
    target: &str,
    name: &str,
    delete: bool,
) -> Result<(), String> {
    let parameters = json!({"disk": target, "name": name, "delete": delete});
    monitor.request("snapshot-disk", &parameters, &[])
}

/// Images of a disk, top first.
type Chain = Vec<LayerDescription>;

/// Puts another chain in a disk's place; the first image is for writing.
fn change_disk(monitor: &mut Monitor, target: &str, chain: &Chain) -> Result<(), String> {
    let mut files = Vec::new();
    let mut layers = Vec::new();
    for (depth, layer) in chain.iter().enumerate() {
        for source in std::iter::once(&layer.file).chain(&layer.data_file) {
            let FileSource::Path(path) = source else {
                return Err("an image without a path".to_owned());
            };
            let file = File::options().read(true).write(depth == 0).open(path);
            files.push(file.map_err(|error| format!("'{}': {error}", path.display()))?);
        }
        let has_data_file = layer.data_file.is_some();
        layers.push(json!({"format": layer.format, "data_file": has_data_file}));
    }
    let parameters = json!({"disk": target, "chain": layers});
    monitor.request("change-disk", &parameters, &files)
}

/// A document as it stands while it runs: with its id and the names of sockets and devices.
fn live_text(document: &Domain, run_dir: &Path, id: u32, monitor: &mut Monitor) -> String {
    let mut live = document.clone();
    name_parts(&mut live, run_dir, monitor);
    live.id = Some(id);
    live.to_xml()
}

/// Names sockets and devices of the host.
pub(super) fn name_parts(live: &mut Domain, run_dir: &Path, monitor: &mut Monitor) {
    translate::name_sockets(live, run_dir);
    let cards = live.devices.interfaces.iter_mut();
    for (card, device) in cards.zip(monitor.networks().devices()) {
        if let Some(dev) = device {
            card.target.get_or_insert_default().dev = dev.to_owned();
        }
    }
}
